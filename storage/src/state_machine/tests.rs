use std::path::Path;

use bytes::Bytes;

use crate::delta::{Command, SYSTEM_SERVICE, encode_entry};
use crate::identity::Identity;
use crate::log::LogOptions;
use crate::machine::SystemCommand;
use crate::raft_types::{Deltas, Entry, NodeInfo, Payload, log_id};
use crate::service::Registry;
use crate::{FORMAT_VERSION, codec, node_disk};

/// Makes the directory of a server without services, the first of its cluster.
pub(super) async fn create(dir: &Path) {
    let identity = Identity {
        cluster_id: "0".repeat(32),
        node_id: 1,
        name: "S1".to_owned(),
        format_version: FORMAT_VERSION,
        seeds: Vec::new(),
        services: Vec::new(),
    };
    node_disk::create(dir, &identity, Some(NodeInfo::default())).await.unwrap();
}

/// What an entry left that could be applied in part only is neither read nor written to disk: applied again after a
/// restart, it would count twice.
#[tokio::test]
async fn half_an_entry_is_neither_read_nor_flushed() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("data");
    create(&dir).await;
    let disk = node_disk::open(&dir, Registry::new(), &LogOptions::default()).unwrap();
    let before = disk.state.last_flush();
    for Entry { log_id, payload } in disk.log.read(0, 1).unwrap() {
        disk.state.apply(log_id, &payload).await.unwrap();
    }
    let tick = Command::sessionless(SYSTEM_SERVICE, codec::encode(&SystemCommand::Tick));
    let two = encode_entry(1, &[tick.clone(), tick]);
    let damaged = Bytes::copy_from_slice(&two[..two.len() - 1]);
    let error = disk.state.apply(log_id(1, 1), &Payload::Normal(Deltas(damaged))).await.unwrap_err();
    assert!(error.to_string().contains("cannot be read"), "{error}");
    let unusable = |error: std::io::Error| assert!(error.to_string().contains("unusable"), "{error}");
    unusable(disk.state.flush().await.unwrap_err());
    unusable(disk.state.read(|machine| machine.revision()).unwrap_err());
    unusable(disk.state.read_hashed(|_, hash| hash).unwrap_err());
    unusable(disk.state.apply(log_id(1, 1), &Payload::Normal(Deltas(two))).await.unwrap_err());
    assert_eq!(disk.state.last_flush(), before);
}
