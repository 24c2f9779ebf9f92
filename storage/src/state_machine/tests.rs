use std::path::Path;

use bytes::Bytes;

use crate::FORMAT_VERSION;
use crate::delta::{Command, encode_entry};
use crate::identity::Identity;
use crate::log::LogOptions;
use crate::node_disk;
use crate::raft_types::{Deltas, NodeInfo, Payload, log_id};
use crate::service::Registry;

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
    let two = encode_entry(1, &[Command::sessionless("a", vec![1]), Command::sessionless("b", vec![2])]);
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
