//! Partitions: a primary without a majority keeps quiet, and errors tell the truth.

use std::time::Duration;

use quorate_cluster::error::{Attempt, Code};
use quorate_cluster::node::ReadLevel;

use crate::support::client::{Attempts, Client, Load};
use crate::support::{Cluster, eventually, tally, within};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_partitioned_primary_acknowledges_nothing_and_answers_no_fresh_read() {
    let cluster = Cluster::start_three().await;
    let load = Load::start(&cluster.nodes, 3).await;
    let mut attempts = Attempts::default();
    let old = cluster.primary().await;
    let stranded = cluster.node(&old);
    assert_eq!(attempts.add(&stranded, within(5000)).await, None);

    cluster.net.isolate(&old);
    // The lease, the longest election time-out, ends before anybody else can be elected.
    for _ in 0..4 {
        let told = attempts.add(&stranded, within(300)).await;
        assert!(told.is_some(), "a primary without a majority acknowledged");
        let read = tally::read(&stranded, "attempt0", ReadLevel::Linearizable, within(300)).await;
        assert!(read.is_err(), "a primary without a majority answered a linearizable read");
    }
    let others = cluster.others(&old);
    let new = cluster.primary_among(&others).await;
    for _ in 0..5 {
        assert_eq!(attempts.add(&cluster.node(&new), within(5000)).await, None);
        let lease = tally::read(&stranded, "attempt0", ReadLevel::Lease, within(200)).await;
        assert!(lease.is_err(), "the lease outlived the next election");
        assert!(attempts.add(&stranded, within(100)).await.is_some());
    }
    let tail = cluster.status(&old).last_log;
    assert!(tail > cluster.status(&old).committed, "there is a tail to truncate");

    cluster.net.heal();
    eventually("the old primary is a ready backup", async || {
        !stranded.is_primary() && stranded.ready() && cluster.status(&old).term == cluster.status(&new).term
    })
    .await;
    let summary = load.stop().await;
    cluster.converge().await;
    summary.check(&cluster.nodes);
    attempts.check(&cluster.nodes);
    cluster.finish().await;
}

/// The primary appends, then is cut off before a majority has the entry, or before it can say so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_may_have_been_appended_is_unknown_never_not_applied() {
    let cluster = Cluster::start_three().await;
    let mut attempts = Attempts::default();
    for round in 0..3 {
        let primary = cluster.primary().await;
        let backup = cluster.others(&primary).remove(0);
        // The way to the primary is open.
        assert_eq!(attempts.add(&cluster.node(&backup), within(10_000)).await, None);
        let before = cluster.status(&primary).last_log;
        match round {
            0 => cluster.net.isolate(&primary),
            // Commits through the third server, but cannot tell the backup that asked.
            1 => cluster.net.cut(&primary, &backup),
            _ => cluster.others(&primary).iter().for_each(|other| cluster.net.cut(&primary, other)),
        }
        let asked = if round == 0 { &primary } else { &backup };
        let node = cluster.node(asked);
        let told = attempts.add(&node, within(250)).await;
        assert!(cluster.status(&primary).last_log > before, "it was appended, in round {round}");
        assert_eq!(told, Some(Attempt::Unknown), "round {round}");
        cluster.converge().await;
        attempts.check(&cluster.nodes);
    }
    cluster.finish().await;
}

/// As when the backups' disks hang for a moment: they hear the primary, but their answers come after its lease. It takes
/// nothing then, and makes commands wait instead of calling unknown what it never appended.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_that_come_after_the_lease_make_commands_wait() {
    let cluster = Cluster::start_three().await;
    let primary = cluster.primary().await;
    let node = cluster.node(&primary);
    for other in cluster.others(&primary) {
        cluster.net.delay(&other, &primary, Duration::from_millis(800));
    }
    let add = async || node.propose(tally::add("hits"), within(10_000)).await.map(|it| tally::value(&it));
    assert_eq!(add().await, Ok(1));
    // The lease has run out. It is renewed over new connections, before the primary gives up.
    cluster.net.heal();
    for other in cluster.others(&primary) {
        cluster.net.reset(&other, &primary);
    }
    assert_eq!(add().await, Ok(2));
    cluster.converge().await;
    cluster.finish().await;
}

/// The reply is lost after the commit; the retry with the same sequence finds it, through any server.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_reply_is_found_by_a_retry_through_every_server() {
    let cluster = Cluster::start_three().await;
    let mut client = Client::open(&cluster.nodes, "hits").await;
    client.add().await;
    let primary = cluster.primary().await;
    let backup = cluster.others(&primary).remove(0);
    let command = client.next_add();
    cluster.node(&backup).propose(tally::add("other"), within(5000)).await.unwrap();
    cluster.net.cut(&primary, &backup);
    let lost = cluster.node(&backup).propose(command.clone(), within(250)).await.unwrap_err();
    assert_eq!(lost.attempt, Attempt::Unknown, "{lost:?}");
    eventually("it is applied", async || tally::held(&cluster.node(&primary), "hits") == 2).await;
    cluster.net.heal();
    let mut outcomes = Vec::new();
    for name in cluster.names() {
        outcomes.push(cluster.node(&name).propose(command.clone(), within(10_000)).await.unwrap());
    }
    assert!(outcomes.iter().all(|outcome| *outcome == outcomes[0]), "{outcomes:?}");
    assert_eq!(tally::value(&outcomes[0]), 2);
    client.add().await;
    assert_eq!(client.acked(), 2, "the library's count goes on from the sequence that was retried");
    cluster.converge().await;
    assert_eq!(tally::held(&cluster.node(&backup), "hits"), 2);
    cluster.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_majority_there_is_no_primary_and_the_error_says_so() {
    let cluster = Cluster::start_three().await;
    let primary = cluster.primary().await;
    let backups = cluster.others(&primary);
    let (left, other) = (&backups[0], &backups[1]);
    // The primary last: the two backups could elect one of them before the other is gone.
    for name in [other, &primary] {
        cluster.kill(name).await;
    }
    let node = cluster.node(left);
    eventually("it knows no primary", async || !node.ready()).await;
    let error = node.propose(tally::add("hits"), within(300)).await.unwrap_err();
    assert_eq!((error.code, error.attempt), (Code::NoPrimary, Attempt::NotApplied), "{error}");
    assert!(error.retry_after_ms.is_some() && error.detail.contains("majority"), "{error}");
    let error = node.read_point(ReadLevel::Linearizable, within(300)).await.unwrap_err();
    assert_eq!(error.code, Code::NoPrimary, "{error}");
    // Nothing is lost: it comes back with the others.
    for name in cluster.names().iter().filter(|name| *name != left) {
        cluster.start(name).await;
    }
    eventually("it is ready", async || node.ready()).await;
    tokio::time::timeout(Duration::from_secs(10), node.propose(tally::add("hits"), within(10_000)))
        .await
        .unwrap()
        .unwrap();
    cluster.finish().await;
}
