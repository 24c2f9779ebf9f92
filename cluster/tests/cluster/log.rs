//! The log as people read it, page by page.

use quorate_cluster::node::{LoggedDelta, Node};

use crate::support::{Cluster, Options, eventually, tally, within};

/// The pages from revision 1 on, each asked for with this limit.
async fn pages(node: &Node, limit: usize) -> Vec<Vec<LoggedDelta>> {
    let (mut pages, mut next) = (Vec::new(), 1);
    loop {
        let page = node.log_page(next, limit).await.unwrap();
        assert!(page.deltas.len() <= limit);
        if page.deltas.is_empty() {
            return pages;
        }
        next = page.next;
        pages.push(page.deltas);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_of_long_commands_ends_early_and_the_next_goes_on() {
    let cluster = Cluster::single(Options::default()).await;
    let node = cluster.node("S1");
    let before = node.status().unwrap().revision;
    let put = |n: usize| tally::put(&format!("text{n}"), 400_000);
    node.propose(tally::put("long", 3_000_000), within(10_000)).await.unwrap();
    node.propose_all((0..3).map(put).collect(), within(10_000)).await.unwrap();
    for n in 3..6 {
        node.propose(put(n), within(10_000)).await.unwrap();
    }
    let pages = pages(&node, 1000).await;
    let revisions: Vec<u64> = pages.iter().flatten().map(|delta| delta.revision).collect();
    assert!(revisions.iter().copied().eq(1..=before + 7), "{revisions:?}");
    let ends: Vec<u64> = pages.iter().map(|page| page.last().unwrap().revision - before).collect();
    assert!(ends.ends_with(&[1, 3, 5, 7]), "a long one alone, and the others two by two: {ends:?}");
    cluster.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_server_shows_the_log_as_before() {
    let cluster = Cluster::single(Options::default()).await;
    let node = cluster.node("S1");
    for n in 0..50 {
        let adds = (0..=n % 4).map(|_| tally::add(&format!("key{n}"))).collect();
        node.propose_all(adds, within(10_000)).await.unwrap();
        if n == 30 {
            node.state().flush().await.unwrap();
        }
    }
    let before = pages(&node, 7).await.concat();
    assert!(before.len() > 100);
    drop(node);
    cluster.kill("S1").await;
    cluster.start("S1").await;
    let node = cluster.node("S1");
    eventually("it is ready again", async || node.ready()).await;
    let after = pages(&node, 7).await.concat();
    assert_eq!(after[..before.len()], before);
    cluster.finish().await;
}
