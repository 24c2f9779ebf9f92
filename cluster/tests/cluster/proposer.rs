//! The proposer: bounds, batches, and commands that a backup sends on.

use quorate_cluster::error::{Attempt, Code};
use quorate_storage::delta::{Command, DeltaResult, MAX_DELTAS_PER_ENTRY, decode_entry};
use quorate_storage::raft_types::Payload;

use crate::support::client::{Client, Load};
use crate::support::{Cluster, eventually, tally, within};

/// How many deltas each entry of `name`'s log holds.
fn entry_sizes(cluster: &Cluster, name: &str) -> Vec<usize> {
    let log = cluster.node(name).state().log().clone();
    let (mut next, end) = (log.range().unwrap().0, cluster.status(name).applied + 1);
    let mut sizes = Vec::new();
    while next < end {
        for entry in log.read(next, end).unwrap() {
            next = entry.log_id.index + 1;
            if let Payload::Normal(deltas) = &entry.payload {
                sizes.push(decode_entry(&deltas.0).unwrap().len());
            }
        }
    }
    sizes
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn too_much_waiting_is_refused_at_once_and_not_applied() {
    let cluster = Cluster::start_three().await;
    let primary = cluster.primary().await;
    cluster.net.isolate(&primary);
    let node = cluster.node(&primary);
    // The proposer's queue holds 64 MiB.
    let waiting: Vec<_> = (0..80)
        .map(|n| {
            let (node, command) = (node.clone(), tally::put(&format!("text{n}"), 1 << 20));
            tokio::spawn(async move { node.propose(command, within(1000)).await.unwrap_err() })
        })
        .collect();
    let mut errors = Vec::new();
    for error in waiting {
        errors.push(error.await.unwrap());
    }
    let overloaded: Vec<_> = errors.iter().filter(|e| e.code == Code::Overloaded).collect();
    assert!((10..=30).contains(&overloaded.len()), "{} of {}", overloaded.len(), errors.len());
    for error in overloaded {
        assert_eq!(error.attempt, Attempt::NotApplied, "{error:?}");
        assert!(error.retry_after_ms.is_some(), "{error:?}");
    }
    // What waited gives its bytes back.
    cluster.net.heal();
    eventually("there is room again", async || node.propose(tally::add("hits"), within(2000)).await.is_ok())
        .await;
    cluster.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_stays_together_in_one_entry_whoever_takes_it() {
    let cluster = Cluster::start_three().await;
    let load = Load::start(&cluster.nodes, 3).await;
    for name in cluster.names() {
        for size in [100, 4095] {
            let batch = (0..size).map(|_| tally::add(&name)).collect();
            let outcomes = cluster.node(&name).propose_all(batch, within(10_000)).await.unwrap();
            let first = outcomes[0].revision;
            for (n, outcome) in outcomes.iter().enumerate() {
                assert_eq!(outcome.revision, first + n as u64, "in order, with nothing between");
            }
        }
    }
    let too_many = (0..=MAX_DELTAS_PER_ENTRY).map(|_| tally::add("hits")).collect();
    let error = cluster.node("S1").propose_all(too_many, within(1000)).await.unwrap_err();
    assert_eq!((error.code, error.attempt), (Code::BadRequest, Attempt::NotApplied));
    let summary = load.stop().await;
    cluster.converge().await;
    summary.check(&cluster.nodes);
    let large = entry_sizes(&cluster, "S2").into_iter().filter(|size| *size >= 100).count();
    assert_eq!(large, 6, "a batch is not spread over entries");
    cluster.finish().await;
}

/// As in a rolling upgrade: it is refused and not logged, or this build's servers would stop. Who came along is served.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_that_the_primary_does_not_know_is_not_logged() {
    let cluster = Cluster::start_three().await;
    let backup = cluster.node(&cluster.others(&cluster.primary().await)[0]);
    let before = backup.status().unwrap().revision;
    let unknown = || Command::sessionless("tomorrow", vec![1]);
    let batch = vec![unknown(), tally::add("hits"), unknown(), tally::add("hits"), unknown()];
    for (batch, known) in [(batch, 2), (vec![unknown()], 0)] {
        let services: Vec<_> = batch.iter().map(|command| command.service.clone()).collect();
        let outcomes = backup.propose_all(batch, within(5000)).await.unwrap();
        assert_eq!(outcomes.len(), services.len());
        for (outcome, service) in outcomes.iter().zip(&services) {
            let refused =
                matches!(&outcome.result, DeltaResult::Unsupported(text) if text.contains("older build"));
            assert_eq!(refused, service == "tomorrow", "{outcomes:?}");
        }
        assert_eq!(outcomes.iter().filter(|outcome| outcome.revision > before).count(), known);
    }
    // The primary answers when it has applied; the backup follows.
    eventually("the known ones are applied", async || tally::held(&backup, "hits") == 2).await;
    cluster.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_sequence_twice_in_one_entry_is_applied_once() {
    let cluster = Cluster::start_three().await;
    let client = Client::open(&cluster.nodes, "hits").await;
    let command = client.next_add();
    let backup = cluster.others(&cluster.primary().await).remove(0);
    let twice = vec![command.clone(), command];
    let outcomes = cluster.node(&backup).propose_all(twice, within(5000)).await.unwrap();
    assert_eq!(outcomes[0], outcomes[1]);
    assert_eq!(tally::value(&outcomes[0]), 1);
    cluster.converge().await;
    assert_eq!(tally::held(&cluster.node(&backup), "hits"), 1);
    cluster.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_that_come_together_share_entries_on_every_server() {
    let cluster = Cluster::start_three().await;
    let before = entry_sizes(&cluster, "S1").len();
    for name in cluster.names() {
        let node = cluster.node(&name);
        let adds: Vec<_> = (0..300)
            .map(|_| {
                let node = node.clone();
                tokio::spawn(async move { node.propose(tally::add("hits"), within(10_000)).await })
            })
            .collect();
        for add in adds {
            add.await.unwrap().unwrap();
        }
    }
    cluster.converge().await;
    let entries = entry_sizes(&cluster, "S1").len() - before;
    assert!(entries < 450, "900 commands took {entries} entries");
    assert_eq!(tally::held(&cluster.node("S1"), "hits"), 900);
    cluster.finish().await;
}
