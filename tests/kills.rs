//! kill -9 in mid-load, again and again: every acknowledged add is in the end value, exactly once.

mod support;

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use serde_json::json;
use support::Cluster;
use support::load::Load;
use tokio::time::timeout;

const CLIENTS: usize = 8;
const COUNTERS: [&str; 3] = ["hits", "stock", "points"];
/// Adds between two blows: enough that the load is in full swing, on any machine.
const SWING: u64 = 300;
/// A failover takes about half a second, several times that on a busy machine; less than any time limit of a request.
const HANG: Duration = Duration::from_secs(4);

#[tokio::test]
async fn the_primary_is_killed() {
    let cluster = Cluster::start(3).await;
    let load = Load::start(CLIENTS, &COUNTERS, &cluster.client());
    for _ in 0..4 {
        load.progress(&cluster, SWING).await;
        let primary = cluster.primary().await;
        cluster.kill9(&primary);
        // The others go on without it.
        load.progress(&cluster, SWING).await;
        cluster.restart(&primary).await;
    }
    load.verify(&cluster).await;
    cluster.equal_hashes().await;
}

#[tokio::test]
async fn a_backup_is_killed() {
    let cluster = Cluster::start(3).await;
    let load = Load::start(CLIENTS, &COUNTERS, &cluster.client());
    for _ in 0..4 {
        load.progress(&cluster, SWING).await;
        let backup = cluster.backup().await;
        cluster.kill9(&backup);
        load.progress(&cluster, SWING).await;
        cluster.restart(&backup).await;
    }
    load.verify(&cluster).await;
    cluster.equal_hashes().await;
}

#[tokio::test]
async fn all_are_killed() {
    let cluster = Cluster::start(3).await;
    let load = Load::start(CLIENTS, &COUNTERS, &cluster.client());
    for _ in 0..4 {
        load.progress(&cluster, SWING).await;
        cluster.kill9_all();
        for name in cluster.names() {
            cluster.start_server(&name);
        }
        cluster.wait_all_ready().await;
    }
    load.progress(&cluster, SWING).await;
    load.verify(&cluster).await;
    cluster.equal_hashes().await;
}

/// A primary that hangs (SIGSTOP: its connections stay open, nothing answers) is replaced like a dead one, and what was
/// sent on to it does not hold up what comes after.
#[tokio::test]
async fn the_primary_hangs() {
    let cluster = Cluster::start(3).await;
    let load = Load::start(CLIENTS, &COUNTERS, &cluster.client());
    for _ in 0..3 {
        load.progress(&cluster, SWING).await;
        let primary = cluster.primary().await;
        cluster.pause(&primary);
        let backups: Vec<String> = cluster.names().into_iter().filter(|name| *name != primary).collect();
        let paused = Instant::now();
        // More than a server sends on at a time, so that all its places are taken.
        let adds = (0..16).map(|n| add_until_done(&cluster, &backups[n % backups.len()]));
        join_all(adds).await;
        assert!(paused.elapsed() < HANG, "adds were held up for {:?}", paused.elapsed());
        load.progress(&cluster, SWING).await;
        cluster.resume(&primary);
        cluster.wait_all_ready().await;
    }
    load.verify(&cluster).await;
    cluster.equal_hashes().await;
}

/// Sends an add to one server, again and again, until one is acknowledged.
async fn add_until_done(cluster: &Cluster, server: &str) {
    let (url, body) =
        (format!("{}/v1/counter/add", cluster.url(server)), json!({"name": "other", "amount": 1}));
    cluster
        .until(&format!("{server} adds"), async || {
            match timeout(Duration::from_millis(300), cluster.http.post(&url, &body)).await {
                Ok(Ok(reply)) if reply.status == 200 => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
}
