//! Elections: one primary per term (the watch over every cluster sees to it), failover, and what
//! must not cause an election.

use std::time::{Duration, Instant};

use crate::support::client::Load;
use crate::support::{Cluster, Options, eventually, tally, throughout, within};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_primary_is_replaced_and_comes_back_as_a_backup() {
    let cluster = Cluster::start_three().await;
    let load = Load::start(&cluster.nodes, 3).await;
    for _ in 0..2 {
        let old = cluster.primary().await;
        let term = cluster.status(&old).term;
        cluster.kill(&old).await;
        let new = cluster.primary().await;
        assert_ne!(new, old);
        assert!(cluster.status(&new).term > term);
        cluster.start(&old).await;
        eventually("the killed server is ready again", async || cluster.node(&old).ready()).await;
    }
    let summary = load.stop().await;
    cluster.converge().await;
    summary.check(&cluster.nodes);
    assert!(summary.adds > 0 && summary.reads.fresh > 0 && summary.reads.stale > 0, "{summary:?}");
    cluster.finish().await;
}

/// The disturbed server asks before it raises its term (pre-vote), and those who hear the primary say no.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_was_cut_off_comes_back_and_disturbs_nothing() {
    let cluster = Cluster::start_with(Options::patient()).await;
    let primary = cluster.primary().await;
    let away = cluster.others(&primary).remove(0);
    let term = cluster.status(&primary).term;
    cluster.net.isolate(&away);
    eventually("it notices", async || !cluster.node(&away).ready()).await;
    let undisturbed = || cluster.status(&primary).term == term && cluster.status(&away).term == term;
    throughout("the term stays while it is away", Duration::from_secs(4), undisturbed).await;
    cluster.net.heal();
    eventually("it is ready again", async || cluster.node(&away).ready()).await;
    throughout("the term stays after it is back", Duration::from_secs(2), undisturbed).await;
    assert_eq!(cluster.primary().await, primary);
    cluster.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_speaks_but_does_not_hear_deposes_nobody() {
    let cluster = Cluster::start_with(Options::patient()).await;
    let primary = cluster.primary().await;
    let deaf = cluster.others(&primary).remove(0);
    let term = cluster.status(&primary).term;
    for other in cluster.others(&deaf) {
        cluster.net.cut(&other, &deaf);
    }
    eventually("it hears no primary", async || !cluster.node(&deaf).ready()).await;
    let undisturbed = || cluster.status(&primary).term == term && cluster.node(&primary).is_primary();
    throughout("the primary stays", Duration::from_secs(4), undisturbed).await;
    cluster.node(&primary).propose(tally::add("hits"), within(5000)).await.unwrap();
    cluster.net.heal();
    eventually("it is ready again", async || cluster.node(&deaf).ready()).await;
    assert_eq!(cluster.status(&primary).term, term);
    cluster.finish().await;
}

/// The primary hears nobody, but all hear it: it must not stay the primary of a cluster that cannot commit.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_primary_that_is_deaf_does_not_stop_the_cluster_for_ever() {
    let cluster = Cluster::start_three().await;
    let deaf = cluster.primary().await;
    let others = cluster.others(&deaf);
    for other in &others {
        cluster.net.cut(other, &deaf);
    }
    let new = cluster.primary_among(&others).await;
    let done = cluster.node(&new).propose(tally::add("hits"), within(10_000)).await;
    assert!(done.is_ok(), "{done:?}");
    cluster.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flapping_link_does_not_make_terms_explode() {
    let cluster = Cluster::start_three().await;
    let primary = cluster.primary().await;
    let flapping = cluster.others(&primary).remove(0);
    let term = cluster.status(&primary).term;
    let load = Load::start(&cluster.nodes, 2).await;
    for round in 0..30 {
        match round % 3 {
            0 => cluster.net.cut(&primary, &flapping),
            1 => cluster.net.cut(&flapping, &primary),
            _ => cluster.net.refuse(&primary, &flapping),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
        cluster.net.heal();
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
    let summary = load.stop().await;
    cluster.converge().await;
    summary.check(&cluster.nodes);
    let now = cluster.primary().await;
    // The link between the primary and one backup says nothing against the primary. One election
    // more is what a busy machine may cause.
    assert!(cluster.status(&now).term <= term + 1, "from term {term} to {}", cluster.status(&now).term);
    assert!(summary.adds > 20, "{summary:?}");
    cluster.finish().await;
}

/// It may have granted the primary a lease before it was killed, on which the primary answers reads: so for one time-out
/// after its start it makes nobody else the primary.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_has_just_started_votes_for_nobody() {
    let options = Options::patient();
    let cluster = Cluster::start_with(options).await;
    let primary = cluster.primary().await;
    let [voter, candidate] = &cluster.others(&primary)[..] else { panic!("not three servers") };
    for backup in [voter, candidate] {
        cluster.net.cut(&primary, backup);
        cluster.net.cut(backup, &primary);
    }
    // The candidate asks once in each time-out, at a moment of its own: several rounds do not miss it.
    for _ in 0..4 {
        cluster.kill(voter).await;
        cluster.start(voter).await;
        let begun = Instant::now();
        let undisturbed =
            || begun.elapsed() >= options.timing.election.0 || !cluster.node(candidate).is_primary();
        throughout("no vote is given yet", options.timing.election.0, undisturbed).await;
    }
    let new = cluster.primary_among(&[voter, candidate]).await;
    assert_ne!(new, primary);
    cluster.finish().await;
}

/// An entry takes longer to send than an election takes to begin: each connection carries 3 MB/s here.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heartbeats_are_not_stuck_behind_bulk() {
    let cluster = Cluster::start_three().await;
    let primary = cluster.primary().await;
    let term = cluster.status(&primary).term;
    for backup in cluster.others(&primary) {
        cluster.net.limit(&primary, &backup, 3_000_000);
    }
    let slow = Duration::from_millis(1500);
    assert!(slow > Options::default().timing.election.1 * 2);
    for n in 0..3 {
        let begun = Instant::now();
        let text = tally::put(&format!("text{n}"), 4_500_000);
        cluster.node(&primary).propose(text, within(20_000)).await.unwrap();
        assert!(begun.elapsed() >= slow, "the link is slow: {:?}", begun.elapsed());
    }
    for name in cluster.names() {
        assert_eq!(cluster.status(&name).term, term, "no election");
    }
    cluster.finish().await;
}
