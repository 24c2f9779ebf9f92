//! Checkpoints: a server whose state is not the others' finds out, and has itself sent the state anew.

use quorate_cluster::message::MemberOp;
use quorate_cluster::node::ReadLevel;

use crate::support::{Cluster, Options, eventually, tally, throughout, within};

const EVERY: u64 = 5;

/// Three servers with checkpoints, one of which all have flushed.
async fn three_at_a_checkpoint() -> Cluster {
    let cluster = Cluster::start_with(Options::patient()).await;
    let primary = cluster.node(&cluster.primary().await);
    primary.set("checkpoint-interval", &EVERY.to_string(), within(5_000)).await.unwrap();
    for n in 0..30 {
        primary.propose(tally::put(&format!("text{n}"), 100_000), within(10_000)).await.unwrap();
    }
    primary.propose(tally::add("hits"), within(10_000)).await.unwrap();
    pass_a_checkpoint(&cluster).await;
    cluster
}

/// Works on until a checkpoint is set that holds all that was done before.
async fn pass_a_checkpoint(cluster: &Cluster) {
    let primary = cluster.node(&cluster.primary().await);
    let before = primary.status().unwrap().revision;
    for _ in 0..EVERY {
        primary.propose(tally::add("work"), within(10_000)).await.unwrap();
    }
    eventually("all have flushed a checkpoint", async || {
        let flushed = |node: quorate_cluster::node::Node| {
            let status = node.status().unwrap();
            let last = status.checkpoints.last().map_or(0, |last| last.revision);
            last > before && status.flushed >= last
        };
        cluster.nodes.all().into_iter().all(flushed)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_flush_and_hash_alike_at_a_checkpoint_and_a_quiet_cluster_sets_none() {
    let cluster = three_at_a_checkpoint().await;
    cluster.converge().await;
    let last = cluster.status("S1").checkpoints;
    assert_eq!(last.last().unwrap().number, last.len() as u64);
    for name in ["S2", "S3"] {
        assert_eq!(cluster.status(name).checkpoints, last, "{name}");
        assert_eq!(cluster.status(name).differs_at, None);
    }
    // It stands in an entry of its own, so the flush is of that very revision.
    let primary = cluster.node(&cluster.primary().await);
    primary.set("checkpoint-interval", "100ms", within(5_000)).await.unwrap();
    eventually("the last change is followed by a checkpoint, and flushed at it", async || {
        let statuses: Vec<_> = cluster.nodes.all().iter().map(|node| node.status().unwrap()).collect();
        let last =
            |status: &quorate_cluster::message::NodeStatus| status.checkpoints.last().unwrap().revision;
        statuses.iter().all(|status| last(status) == status.revision && status.flushed == status.revision)
    })
    .await;
    let revision = primary.status().unwrap().revision;
    let quiet = std::time::Duration::from_millis(500);
    throughout("nothing happens, so nothing is logged", quiet, || {
        primary.status().unwrap().revision == revision
    })
    .await;
    cluster.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_whose_state_was_damaged_serves_nobody_until_it_has_the_state_anew() {
    let cluster = three_at_a_checkpoint().await;
    let primary = cluster.primary().await;
    let damaged = cluster.others(&primary).remove(0);
    cluster.kill(&damaged).await;
    cluster.damage(&damaged, "hits", 999);
    cluster.start(&damaged).await;
    eventually("it is ready", async || cluster.node(&damaged).ready()).await;
    assert_eq!(tally::held(&cluster.node(&damaged), "hits"), 999, "nobody knows yet");
    // 3 MB are to come: there is time to look.
    for sender in cluster.others(&damaged) {
        cluster.net.limit(&sender, &damaged, 150_000);
    }
    pass_a_checkpoint(&cluster).await;
    eventually("it notices", async || cluster.status(&damaged).differs_at.is_some()).await;
    let node = cluster.node(&damaged);
    let refused = node.check_ready().unwrap_err();
    assert!(refused.detail.contains("differs from the majority's"), "{refused}");
    let read = node.read_point(ReadLevel::Stale { max_age: None }, within(1_000)).await;
    assert!(read.is_err(), "not even stale");
    // Its log is right: it goes on acknowledging entries, also more of them than openraft would wait for apply with.
    let third = cluster.others(&damaged).into_iter().find(|name| *name != primary).unwrap();
    cluster.kill(&third).await;
    for _ in 0..1_200 {
        cluster.node(&primary).propose(tally::add("hits"), within(10_000)).await.unwrap();
    }
    assert!(cluster.status(&damaged).differs_at.is_some(), "it has the state already: the link is too fast");
    cluster.start(&third).await;
    cluster.net.heal();
    eventually("it is rebuilt", async || {
        let status = cluster.status(&damaged);
        status.differs_at.is_none() && status.ready
    })
    .await;
    cluster.converge().await;
    assert_eq!(tally::held(&node, "hits"), 1_201);
    cluster.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_primary_whose_state_was_damaged_gives_leadership_up_and_is_rebuilt() {
    let cluster = three_at_a_checkpoint().await;
    let damaged = cluster.primary().await;
    cluster.kill(&damaged).await;
    cluster.damage(&damaged, "hits", 999);
    cluster.start(&damaged).await;
    eventually("it is ready", async || cluster.node(&damaged).ready()).await;
    cluster.change(MemberOp::Transfer, &damaged).await;
    eventually("it leads again", async || cluster.node(&damaged).is_primary()).await;
    let node = cluster.node(&damaged);
    let mut term = 0;
    for _ in 0..EVERY {
        term = node.status().unwrap().term;
        node.propose(tally::add("work"), within(10_000)).await.unwrap();
    }
    eventually("another one leads, and it has the state of the others", async || {
        let status = node.status().unwrap();
        status.term > term && !node.is_primary() && status.ready && tally::held(&node, "hits") == 1
    })
    .await;
    cluster.finish().await;
}
