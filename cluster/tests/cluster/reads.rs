//! Reads: how old a stale one is, what a lease saves, and who must not answer at all.

use std::time::{Duration, Instant};

use quorate_cluster::error::Code;
use quorate_cluster::node::{Node, ReadLevel};

use crate::support::{Cluster, Options, eventually, tally, within};

const STALE: ReadLevel = ReadLevel::Stale { max_age: None };

async fn age(node: &Node, level: ReadLevel) -> Option<Duration> {
    node.read_point(level, within(5000)).await.unwrap().age
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_age_of_a_stale_read_counts_from_when_the_read_index_was_sent() {
    let cluster = Cluster::start_with(Options::patient()).await;
    let primary = cluster.primary().await;
    let name = cluster.others(&primary).remove(0);
    let node = cluster.node(&name);
    let (there, back) = (Duration::from_millis(40), Duration::from_millis(20));
    cluster.net.delay(&name, &primary, there);
    cluster.net.delay(&primary, &name, back);

    let sent = Instant::now();
    node.read_point(ReadLevel::Linearizable, within(5000)).await.unwrap();
    let known = age(&node, STALE).await.unwrap();
    assert!(known >= there + back, "the age leaves out the way to the primary: {known:?}");
    assert!(known <= sent.elapsed(), "{known:?}");

    let old = Duration::from_millis(300);
    eventually("the age grows", async || age(&node, STALE).await.unwrap() > old).await;
    // A lease confirms nothing.
    node.read_point(ReadLevel::Lease, within(5000)).await.unwrap();
    assert!(age(&node, STALE).await.unwrap() > old);
    // Young enough: no question is asked, so it takes no time.
    let asked = Instant::now();
    assert!(age(&node, ReadLevel::Stale { max_age: Some(Duration::from_secs(60)) }).await.unwrap() > old);
    assert!(asked.elapsed() < there + back);
    // Too old: a new round.
    let fresh = age(&node, ReadLevel::Stale { max_age: Some(old) }).await.unwrap();
    assert!(fresh < old && fresh >= there + back, "{fresh:?}");
    cluster.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_without_the_primary_answers_stale_reads_and_no_others() {
    let cluster = Cluster::start_three().await;
    let primary = cluster.primary().await;
    let name = cluster.others(&primary).remove(0);
    let node = cluster.node(&name);
    node.propose(tally::add("hits"), within(5000)).await.unwrap();
    assert_eq!(tally::read(&node, "hits", ReadLevel::Linearizable, within(5000)).await.unwrap(), 1);
    cluster.net.isolate(&name);
    let others = cluster.others(&name);
    let elsewhere = cluster.node(&cluster.primary_among(&others).await);
    elsewhere.propose(tally::add("hits"), within(5000)).await.unwrap();

    let before = age(&node, STALE).await.unwrap();
    assert_eq!(tally::read(&node, "hits", STALE, within(500)).await.unwrap(), 1, "as old as it is");
    eventually("the age grows", async || {
        age(&node, STALE).await.unwrap() > before + Duration::from_millis(200)
    })
    .await;
    for level in [
        ReadLevel::Linearizable,
        ReadLevel::Lease,
        ReadLevel::Stale { max_age: Some(Duration::from_millis(1)) },
    ] {
        let error = tally::read(&node, "hits", level, within(400)).await.unwrap_err();
        assert!(matches!(error.code, Code::Timeout | Code::NoPrimary), "{level:?}: {error:?}");
    }
    cluster.net.heal();
    eventually("it reads on", async || {
        tally::read(&node, "hits", ReadLevel::Linearizable, within(5000)).await.is_ok_and(|value| value == 2)
    })
    .await;
    cluster.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_read_saves_the_round_of_the_voters() {
    let cluster = Cluster::start_with(Options::patient()).await;
    let primary = cluster.primary().await;
    let node = cluster.node(&primary);
    let way = Duration::from_millis(30);
    for backup in cluster.others(&primary) {
        cluster.net.delay(&primary, &backup, way);
        cluster.net.delay(&backup, &primary, way);
    }
    let mut quickest = Duration::MAX;
    for _ in 0..5 {
        let begun = Instant::now();
        node.read_point(ReadLevel::Linearizable, within(5000)).await.unwrap();
        assert!(begun.elapsed() >= way * 2, "no round of the voters: {:?}", begun.elapsed());
        let begun = Instant::now();
        node.read_point(ReadLevel::Lease, within(5000)).await.unwrap();
        quickest = quickest.min(begun.elapsed());
    }
    assert!(quickest < way, "a lease read asked the voters: {quickest:?}");
    // A backup asks the primary for its lease, and answers itself.
    let backup = cluster.node(&cluster.others(&primary)[0]);
    node.propose(tally::add("hits"), within(5000)).await.unwrap();
    assert_eq!(tally::read(&backup, "hits", ReadLevel::Lease, within(5000)).await.unwrap(), 1);
    cluster.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_has_not_recovered_answers_no_read() {
    let cluster = Cluster::start_three().await;
    let primary = cluster.primary().await;
    cluster.node(&primary).propose(tally::add("hits"), within(5000)).await.unwrap();
    for name in cluster.names() {
        cluster.kill(&name).await;
    }
    cluster.start("S1").await;
    let node = cluster.node("S1");
    for level in [ReadLevel::Linearizable, ReadLevel::Lease, STALE] {
        let error = node.read_point(level, within(400)).await.unwrap_err();
        assert_eq!(error.code, Code::NotReady, "{level:?}: {error:?}");
    }
    assert!(!node.ready());
    cluster.start("S2").await;
    eventually("two of three recover", async || node.ready()).await;
    assert_eq!(tally::read(&node, "hits", ReadLevel::Linearizable, within(5000)).await.unwrap(), 1);
    cluster.start("S3").await;
    cluster.finish().await;
}
