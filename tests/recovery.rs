//! Servers come back: by snapshot when the log that they lack is purged, with an empty disk under a new node id, and
//! after an orderly end.

mod support;

use futures_util::future::join_all;
use serde_json::Value;
use support::load::Load;
use support::{Cluster, Setup};

const CLIENTS: usize = 8;
const COUNTERS: [&str; 2] = ["hits", "stock"];
const SWING: u64 = 200;

/// A cluster whose log is soon purged.
async fn forgetful() -> Cluster {
    let flags = vec!["--log-keep".to_owned(), "10".to_owned()];
    Cluster::with(Setup { flags, ..Setup::default() }).await
}

async fn revision(cluster: &Cluster, server: &str) -> u64 {
    let status = cluster.status(server).await.expect("a status");
    status["revision"].as_u64().expect("a revision")
}

/// The server was down for longer than the log goes back. It gets a snapshot while the writing goes on, and what it
/// got is durable at once.
#[tokio::test]
async fn by_snapshot_after_the_log_is_purged() {
    let cluster = forgetful().await;
    let load = Load::start(CLIENTS, &COUNTERS, &cluster.client());
    load.progress(&cluster, SWING).await;
    let down = cluster.backup().await;
    cluster.kill9(&down);
    // All that it can have applied.
    let primary = cluster.primary().await;
    let known = revision(&cluster, &primary).await;
    cluster.until_purged(&primary, known).await;

    let before = cluster.snapshots(&down);
    cluster.restart(&down).await;
    assert!(cluster.snapshots(&down) > before, "{down} was to get a snapshot");
    // Its own log begins later as well: so it did not get there by the log.
    cluster.until_purged(&down, known).await;
    load.progress(&cluster, SWING).await;
    cluster.kill9(&down);
    cluster.restart(&down).await;
    load.progress(&cluster, SWING).await;
    load.verify(&cluster).await;
    cluster.equal_hashes().await;
}

/// kill -9 while a snapshot of many megabytes is installed: the state that the server had before is whole, or the new
/// one is, and in the end it has the new one.
#[tokio::test]
async fn after_kills_while_a_snapshot_is_installed() {
    let cluster = forgetful().await;
    let down = cluster.backup().await;
    cluster.kill9(&down);
    let client = cluster.client().build().expect("a client");
    let text = "x".repeat(256 << 10);
    let set =
        async |n: u64| client.register(format!("text {n}")).set(&text).await.map(|reply| reply.revision);
    let revisions = join_all((0..96).map(set)).await;
    let known = revisions.into_iter().map(|revision| revision.expect("a text is set")).max().expect("many");
    let load = Load::start(CLIENTS, &COUNTERS, &cluster.client());
    let primary = cluster.primary().await;
    cluster.until_purged(&primary, known).await;
    load.verify(&cluster).await;

    for _ in 0..3 {
        let before = cluster.snapshots(&down);
        cluster.start_server(&down);
        cluster
            .until(&format!("{down} installs a snapshot, or has done so"), async || {
                let ready = cluster.http.ok(&format!("{}/readyz", cluster.url(&down))).await;
                if cluster.snapshots(&down) > before { Ok(()) } else { ready.map(drop) }
            })
            .await;
        cluster.kill9(&down);
    }
    assert!(cluster.snapshots(&down) > 0, "{down} was to get a snapshot");
    cluster.restart(&down).await;
    cluster.equal_hashes().await;
}

/// A wiped server joins again, under a new node id, by snapshot, and takes its old place by one membership change.
#[tokio::test]
async fn with_an_empty_disk() {
    let cluster = forgetful().await;
    let load = Load::start(CLIENTS, &COUNTERS, &cluster.client());
    let primary = cluster.primary().await;
    let known = revision(&cluster, &primary).await;
    cluster.until_purged(&primary, known).await;

    let wiped = cluster.backup().await;
    let before = cluster.status(&wiped).await.expect("a status")["node_id"].clone();
    cluster.wipe(&wiped);
    load.progress(&cluster, SWING).await;
    let snapshots = cluster.snapshots(&wiped);
    cluster.start_server(&wiped);
    cluster.settle(&wiped).await;
    assert!(cluster.snapshots(&wiped) > snapshots, "{wiped} was to get a snapshot");
    let after = cluster.status(&wiped).await.expect("a status")["node_id"].clone();
    assert!(after.as_u64() > before.as_u64(), "node id {before} before the wipe, {after} after");
    let names = voters(&cluster).await;
    assert_eq!(names, ["S1", "S2", "S3"], "the old node id is no voter any more");
    load.verify(&cluster).await;
    cluster.equal_hashes().await;
}

/// The names of the voters, one for each node id.
async fn voters(cluster: &Cluster) -> Vec<String> {
    let url = format!("{}/v1/cluster", cluster.url(&cluster.primary().await));
    let status = cluster.http.json(&url).await.expect("the cluster's status");
    assert_eq!(status["membership"]["joint"], false, "{status}");
    let names = status["membership"]["voters"].as_array().expect("the voters");
    let mut names: Vec<String> = names.iter().filter_map(Value::as_str).map(str::to_owned).collect();
    names.sort();
    names
}

/// SIGTERM to one server after the other, as in an upgrade: each ends with 0, the clients notice nothing.
#[tokio::test]
async fn after_an_orderly_end_of_each() {
    let cluster = Cluster::start(3).await;
    let load = Load::start(CLIENTS, &COUNTERS, &cluster.client());
    for name in cluster.names() {
        load.progress(&cluster, SWING).await;
        let status = cluster.terminate(&name).await;
        assert!(status.success(), "{name} ended with {status} after SIGTERM");
        load.progress(&cluster, SWING).await;
        cluster.restart(&name).await;
    }
    load.verify(&cluster).await;
    cluster.equal_hashes().await;
}

/// SIGTERM to all at a time: the state is there again, as it was.
#[tokio::test]
async fn after_an_orderly_end_of_all() {
    let cluster = Cluster::start(3).await;
    let load = Load::start(CLIENTS, &COUNTERS, &cluster.client());
    load.progress(&cluster, SWING).await;
    load.verify(&cluster).await;
    let before = cluster.equal_hashes().await;
    for name in cluster.names() {
        cluster.server(&name).signal("TERM");
    }
    for name in cluster.names() {
        let status = cluster.ended(&name).await;
        assert!(status.success(), "{name} ended with {status} after SIGTERM");
    }
    for name in cluster.names() {
        cluster.start_server(&name);
    }
    cluster.wait_all_ready().await;
    let after = cluster.equal_hashes().await;
    assert!(after >= before, "revision {before} before, {after} after");
    let load = Load::start(CLIENTS, &["more"], &cluster.client());
    load.progress(&cluster, SWING).await;
    load.verify(&cluster).await;
}
