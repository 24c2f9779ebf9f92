//! Snapshots: for followers that are too far behind; interrupted, damaged.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use quorate_cluster::message::{Request, SnapshotChunk};
use quorate_cluster::node::parse_cluster_id;
use quorate_cluster::transport::TcpDial;
use quorate_cluster::transport::frame::Route;
use quorate_cluster::transport::lane::Lane;
use quorate_storage::raft_types::Vote;

use crate::support::client::Client;
use crate::support::{Cluster, Options, eventually, tally, within};

const KEEP: u64 = 20;

/// Kills a backup, goes on without it, and waits until the log that it would need is purged. Gives its name.
async fn leave_one_behind(cluster: &Cluster, work: impl AsyncFnOnce()) -> String {
    let primary = cluster.primary().await;
    let behind = cluster.others(&primary).remove(0);
    let last = cluster.status(&behind).last_log;
    cluster.kill(&behind).await;
    work().await;
    eventually("the others have purged what it needs", async || {
        cluster
            .nodes
            .all()
            .iter()
            .all(|node| node.state().log().range().is_some_and(|(first, _)| first > last + 1))
    })
    .await;
    behind
}

fn incoming(dir: &Path) -> Vec<(PathBuf, u64)> {
    let Ok(files) = std::fs::read_dir(dir.join("snapshots")) else { return Vec::new() };
    let files = files.filter_map(|file| {
        let file = file.ok()?;
        let name = file.file_name().to_string_lossy().starts_with("incoming-");
        name.then_some((file.path(), file.metadata().ok()?.len()))
    });
    files.collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_behind_the_log_gets_a_snapshot_sessions_included() {
    let cluster = Cluster::start_with(Options { log_keep: KEEP, ..Options::default() }).await;
    let mut client = Client::open(&cluster.nodes, "hits").await;
    let mut retried = client.next_add();
    let behind = leave_one_behind(&cluster, async || {
        for _ in 0..100 {
            client.add().await;
        }
        retried = client.next_add();
        let primary = cluster.primary().await;
        cluster.node(&primary).propose(retried.clone(), within(5000)).await.unwrap();
    })
    .await;
    let (purged, _) = cluster.node(&cluster.primary().await).state().log().range().unwrap();
    cluster.start(&behind).await;
    eventually("it is ready", async || cluster.node(&behind).ready()).await;
    cluster.converge().await;
    eventually("its log begins where the snapshot ends", async || {
        cluster.node(&behind).state().log().range().is_none_or(|(first, _)| first >= purged)
    })
    .await;
    // The retry of what was applied before the snapshot gets the first reply, through whom it was installed.
    let outcome = cluster.node(&behind).propose(retried, within(5000)).await.unwrap();
    assert_eq!(tally::value(&outcome), 101);
    cluster.converge().await;
    assert_eq!(tally::held(&cluster.node(&behind), "hits"), 101);
    assert_eq!(incoming(&cluster.dir(&behind)), [], "nothing is left over");
    // It starts again from what was installed.
    cluster.kill(&behind).await;
    cluster.start(&behind).await;
    eventually("it is ready again", async || cluster.node(&behind).ready()).await;
    cluster.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_that_is_interrupted_half_way_is_sent_again() {
    let cluster = Cluster::start_with(Options { log_keep: KEEP, ..Options::patient() }).await;
    let behind = leave_one_behind(&cluster, async || {
        let primary = cluster.primary().await;
        for n in 0..60 {
            let text = tally::put(&format!("text{n}"), 100_000);
            cluster.node(&primary).propose(text, within(10_000)).await.unwrap();
        }
    })
    .await;
    // Whoever is the primary by then: on a busy machine leadership may move.
    let senders = cluster.others(&behind);
    for sender in &senders {
        cluster.net.limit(sender, &behind, 1_500_000);
    }
    cluster.start(&behind).await;
    let dir = cluster.dir(&behind);
    // 6 MB are to come, in pieces of 1 MiB.
    let largest = || incoming(&dir).into_iter().map(|(_, bytes)| bytes).max();
    let half_way = async || largest().is_some_and(|bytes| (1_500_000..6_000_000).contains(&bytes));
    eventually("the snapshot is half there", half_way).await;
    let mut interrupted_at = 0;
    eventually("it begins again", async || {
        let Some(bytes) = largest() else { return false };
        // Between two pieces nothing is interrupted: the next one goes over a new connection. So again.
        if bytes > interrupted_at.max(1_500_000) {
            interrupted_at = bytes;
            senders.iter().for_each(|sender| cluster.net.reset(sender, &behind));
        }
        bytes < 1_500_000
    })
    .await;
    eventually("the second one is half there", half_way).await;
    cluster.kill(&behind).await;
    cluster.start(&behind).await;
    eventually("it is ready", async || cluster.node(&behind).ready()).await;
    cluster.converge().await;
    assert_eq!(incoming(&dir), [], "nothing is left over");
    cluster.finish().await;
}

/// A damaged snapshot is refused, and the server that was sent it goes on as it was.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_snapshot_is_refused_and_stops_nobody() {
    let cluster = Cluster::start_three().await;
    let primary = cluster.primary().await;
    let node = cluster.node(&primary);
    node.propose(tally::put("text", 300_000), within(5000)).await.unwrap();
    let (file, _) = node.state().snapshot_file().await.unwrap();
    let good = std::fs::read(file).unwrap();
    let target = cluster.others(&primary).remove(0);
    let before = cluster.status(&target);
    let lane = Lane::new(
        Arc::new(TcpDial),
        cluster.address(&target),
        Route {
            cluster: parse_cluster_id(node.cluster_id()).unwrap(),
            from: cluster.status(&primary).node_id,
            to: before.node_id,
        },
    );
    let vote = Vote::new_committed(before.term, cluster.status(&primary).node_id);
    let half = good.len() / 2;
    let flipped = [&good[..half], &[good[half] ^ 1], &good[half + 1..]].concat();
    let damaged =
        [flipped, good[..half].to_vec(), [&good[..], b"more"].concat(), b"no snapshot".to_vec(), Vec::new()];
    for (transfer, bytes) in (1 << 40..).zip(damaged) {
        let (length, bytes) = (bytes.len(), Bytes::from(bytes));
        let chunk = SnapshotChunk { transfer, vote, offset: 0, bytes, last: true };
        let refused = lane.call(&Request::Snapshot(chunk), Duration::from_secs(5)).await;
        assert!(refused.is_err(), "{length} damaged bytes were installed: {refused:?}");
    }
    let chunk = SnapshotChunk { transfer: 7, vote, offset: 1000, bytes: Bytes::from(good), last: true };
    let refused = lane.call(&Request::Snapshot(chunk), Duration::from_secs(5)).await;
    assert!(refused.is_err_and(|e| e.to_string().contains("a piece is missing")));
    assert!(cluster.node(&target).ready());
    node.propose(tally::add("hits"), within(5000)).await.unwrap();
    cluster.converge().await;
    assert!(cluster.status(&target).revision > before.revision);
    cluster.finish().await;
}

/// The primary's own copy of the snapshot is damaged on its disk: the receiver notices, a new one is written.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_that_is_damaged_at_the_sender_is_written_anew() {
    let cluster = Cluster::start_with(Options { log_keep: KEEP, ..Options::default() }).await;
    let behind = leave_one_behind(&cluster, async || {
        let primary = cluster.primary().await;
        for n in 0..50 {
            let text = tally::put(&format!("text{n}"), 10_000);
            cluster.node(&primary).propose(text, within(10_000)).await.unwrap();
        }
    })
    .await;
    let primary = cluster.primary().await;
    let (file, _) = cluster.node(&primary).state().snapshot_file().await.unwrap();
    let mut bytes = std::fs::read(&file).unwrap();
    let half = bytes.len() / 2;
    bytes[half] ^= 1;
    std::fs::write(&file, &bytes).unwrap();
    cluster.start(&behind).await;
    eventually("it is ready", async || cluster.node(&behind).ready()).await;
    cluster.converge().await;
    cluster.finish().await;
}

/// Few entries, but large ones: without a bound on bytes the log alone would fill the disk.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_is_bounded_in_bytes_too() {
    let cluster = Cluster::start_with(Options { servers: 1, ..Options::default() }).await;
    let node = cluster.node("S1");
    for n in 0..360 {
        node.propose(tally::put(&format!("text{}", n % 4), 1 << 20), within(20_000)).await.unwrap();
    }
    eventually("the oldest entries are gone", async || node.state().log().disk_bytes() <= 256 << 20).await;
    assert!(node.state().log().range().unwrap().0 > 1);
    cluster.finish().await;
}
