//! The rules on flush, purge, snapshot and truncation, and what start-up makes of a directory
//! that a crash left. (Power cuts: `power_cut/`. Damage: `damage/`.)

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod directory;
mod flushes;
mod installs;
#[path = "../../../tests/support/mount.rs"]
#[allow(dead_code, reason = "the tests of other crates use the rest")]
mod mount;
#[path = "../support/mod.rs"]
mod support;

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use openraft::storage::{RaftLogStorage, RaftStateMachine, StorageHelper};
use openraft::{Raft, RaftSnapshotBuilder as _};
use quorate_storage::identity::Identity;
use quorate_storage::node_disk::{self, DiskError, NodeDisk};
use quorate_storage::raft_types::{SnapshotMeta, TypeConfig, log_id};
use quorate_storage::snapshot;
use quorate_storage::state_machine::{FLUSH_BYTES, FULL_BYTES, NotReplaced, SnapshotHandle, StateMachine};
use quorate_storage::tables::base::{Base, FlushMeta};
use support::{
    append, apply, create, entry, entry_of, identity, info, model_at, open, options, read_all, registry,
    server_with,
};
use tempfile::TempDir;

const GIB: u64 = 1 << 30;

/// The sum of the log files' lengths: what has left the process.
fn log_bytes(dir: &Path) -> u64 {
    let files = std::fs::read_dir(dir.join("log")).unwrap();
    files.map(|file| file.unwrap().metadata().unwrap().len()).sum()
}

fn hash(disk: &NodeDisk) -> u128 {
    disk.state.read_hashed(|_, hash| hash).unwrap()
}

/// Applies what the log holds behind the last flush.
async fn replay(disk: &NodeDisk) -> StateMachine {
    let mut machine = StateMachine::new(disk.state.clone());
    let (applied, _) = machine.applied_state().await.unwrap();
    let behind = |index| applied.as_ref().is_none_or(|id| index > id.index);
    let rest: Vec<_> = read_all(&disk.log).into_iter().filter(|e| behind(e.log_id.index)).collect();
    apply(&mut machine, rest).await;
    machine
}

fn refusal(result: Result<NodeDisk, DiskError>) -> DiskError {
    match result {
        Ok(_) => panic!("it was opened"),
        Err(e) => e,
    }
}

/// A snapshot file of a server that has applied `1..=last`.
async fn snapshot_of(last: u64, to: &Path) {
    let dir = tempfile::tempdir().unwrap();
    let (disk, _) = server_with(dir.path(), last).await;
    let (file, meta) = disk.state.snapshot_file().await.unwrap();
    assert_eq!(meta.applied, Some(log_id(1, last)));
    std::fs::copy(file, to).unwrap();
}

async fn install(disk: &NodeDisk, machine: &mut StateMachine, last: u64) -> std::io::Result<()> {
    let file = disk.state.incoming_file(1).unwrap();
    snapshot_of(last, &file).await;
    let meta = SnapshotMeta { last_log_id: Some(log_id(1, last)), ..SnapshotMeta::default() };
    machine.install_snapshot(&meta, SnapshotHandle::Received(disk.state.build(file).await?)).await
}
