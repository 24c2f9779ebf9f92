//! The witness: it votes, and leads only for as long as nobody else can.

use std::time::Duration;

use quorate_cluster::error::{Attempt, Code};
use quorate_cluster::message::MemberOp;

use crate::support::{Cluster, Options, eventually, tally, within};

/// Two data servers and the witness, all of them voters.
async fn two_and_a_witness() -> Cluster {
    let mut cluster = Cluster::start_with(Options { servers: 2, ..Options::default() }).await;
    cluster.join("W").await;
    cluster.change(MemberOp::Promote, "W").await;
    eventually("the witness votes", async || cluster.node("W").is_voter()).await;
    cluster
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_data_server_and_the_witness_go_on_and_the_witness_serves_nobody() {
    let cluster = two_and_a_witness().await;
    let refused = cluster.node("W").check_serves(Duration::ZERO).await.unwrap_err();
    assert_eq!((refused.code, refused.attempt), (Code::NotServing, Attempt::NotApplied), "{refused:?}");
    for _ in 0..2 {
        let old = cluster.primary_among(&["S1", "S2"]).await;
        cluster.kill(&old).await;
        let left = cluster.others(&old);
        let left = left.iter().find(|name| *name != "W").unwrap();
        let led = async || cluster.node(left).is_primary();
        eventually("the other data server leads", led).await;
        cluster.node(left).propose(tally::add("hits"), within(10_000)).await.unwrap();
        cluster.start(&old).await;
        eventually("it is ready again", async || cluster.node(&old).ready()).await;
    }
    assert_eq!(tally::held(&cluster.node(&cluster.primary_among(&["S1", "S2"]).await), "hits"), 2);
    cluster.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_witness_that_was_made_the_primary_gives_it_up() {
    let cluster = two_and_a_witness().await;
    let term = cluster.status("W").term;
    cluster.change(MemberOp::Transfer, "W").await;
    eventually("a data server leads again", async || {
        !cluster.node("W").is_primary() && ["S1", "S2"].iter().any(|name| cluster.node(name).is_primary())
    })
    .await;
    assert!(cluster.status("W").term >= term + 2, "it led in between");
    cluster.finish().await;
}

/// What one data server and the witness have committed is not lost when that server is: the witness brings the other one up
/// to date, which it can only as the primary.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_witness_that_alone_has_everything_leads_until_another_has_it_too() {
    let cluster = two_and_a_witness().await;
    let first = cluster.primary_among(&["S1", "S2"]).await;
    let second = if first == "S1" { "S2" } else { "S1" };
    cluster.kill(second).await;
    for _ in 0..5 {
        cluster.node(&first).propose(tally::add("hits"), within(10_000)).await.unwrap();
    }
    cluster.kill(&first).await;
    cluster.start(second).await;
    eventually("the other one leads", async || cluster.node(second).is_primary()).await;
    assert_eq!(tally::held(&cluster.node(second), "hits"), 5);
    cluster.start(&first).await;
    cluster.finish().await;
}
