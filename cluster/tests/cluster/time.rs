//! Logged time over failovers between servers whose wall clocks disagree.

use std::time::Duration;

use quorate_cluster::message::MemberOp;
use quorate_cluster::node::Node;

use crate::support::{Cluster, Options, eventually, tally, throughout, within};

const HOUR: i64 = 3_600_000;

/// Adds one, and gives the logged time of it.
async fn logged(node: &Node) -> u64 {
    node.propose(tally::add("hits"), within(10_000)).await.unwrap();
    node.status().unwrap().time
}

/// The times in the log itself never go backwards either.
async fn check_log(node: &Node) {
    let deltas = node.log_page(1, 10_000).await.unwrap().deltas;
    assert!(!deltas.is_empty());
    for pair in deltas.windows(2) {
        assert!(pair[0].time <= pair[1].time, "{pair:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn logged_time_goes_on_when_a_primary_with_a_clock_behind_takes_over() {
    let cluster = Cluster::start_three().await;
    for name in ["S2", "S3"] {
        cluster.clock(name).set_offset(-HOUR / 2);
    }
    cluster.change(MemberOp::Transfer, "S1").await;
    let mut last = logged(&cluster.node("S1")).await;
    for _ in 0..2 {
        let old = cluster.primary().await;
        cluster.kill(&old).await;
        let node = cluster.node(&cluster.primary().await);
        for _ in 0..3 {
            let now = logged(&node).await;
            assert!(now >= last, "time goes back from {last} to {now}");
            assert!(now < last + 60_000, "time leaps from {last} to {now}");
            last = now;
        }
        cluster.start(&old).await;
        eventually("it is ready again", async || cluster.node(&old).ready()).await;
    }
    cluster.converge().await;
    for node in cluster.nodes.all() {
        check_log(&node).await;
    }
    cluster.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_more_than_an_hour_ahead_is_not_believed_and_shows_in_the_status() {
    let cluster = Cluster::start_three().await;
    cluster.change(MemberOp::Transfer, "S1").await;
    let before = logged(&cluster.node("S1")).await;
    cluster.clock("S2").set_offset(2 * HOUR);
    assert_eq!(cluster.status("S2").clock_ahead_ms, None, "a backup's clock is of no account");
    cluster.change(MemberOp::Transfer, "S2").await;
    let after = logged(&cluster.node("S2")).await;
    assert!((before..before + 60_000).contains(&after), "from {before} to {after}");
    let ahead = cluster.status("S2").clock_ahead_ms.unwrap();
    assert!(ahead > HOUR as u64, "{ahead}");
    // A jump in the middle of a term changes nothing, in either direction.
    for offset in [HOUR / 2, -5 * HOUR] {
        cluster.clock("S2").set_offset(offset);
        let jumped = logged(&cluster.node("S2")).await;
        assert!((after..after + 60_000).contains(&jumped), "from {after} to {jumped}");
    }
    cluster.finish().await;
}

/// All were stopped for a weekend: what stood still is the logged time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clocks_ahead_are_believed_when_a_majority_shows_the_same() {
    for (servers, wrong) in [(3, Some("S2")), (1, None)] {
        let cluster = Cluster::start_with(Options { servers, ..Options::default() }).await;
        let before = logged(&cluster.node(&cluster.primary().await)).await;
        for name in cluster.names() {
            cluster.kill(&name).await;
            let weekend = if wrong == Some(&*name) { 500 * HOUR } else { 60 * HOUR };
            cluster.clock(&name).set_offset(weekend);
        }
        for name in cluster.names() {
            cluster.start(&name).await;
        }
        cluster.primary().await;
        if let Some(wrong) = wrong {
            // Alone with what it shows, it is not believed; nor does it keep the others from it.
            cluster.change(MemberOp::Transfer, wrong).await;
            logged(&cluster.node(wrong)).await;
            let doubted =
                || cluster.status(wrong).clock_ahead_ms.is_some_and(|ahead| ahead > 400 * HOUR as u64);
            throughout("it is not believed", Duration::from_millis(2500), doubted).await;
            let time = logged(&cluster.node(wrong)).await;
            assert!(time < before + 61 * HOUR as u64, "from {before} to {time}");
            cluster.change(MemberOp::Transfer, "S3").await;
        }
        eventually("it is Monday", async || {
            let time = logged(&cluster.node(&cluster.primary().await)).await;
            assert!(time < before + 61 * HOUR as u64, "from {before} to {time}");
            time >= before + 60 * HOUR as u64
        })
        .await;
        assert_eq!(cluster.status(&cluster.primary().await).clock_ahead_ms, None);
        for node in cluster.nodes.all() {
            check_log(&node).await;
        }
        cluster.finish().await;
    }
}
