//! The rules on flush, purge, snapshot and truncation, and what start-up makes of a directory
//! that a crash left. (Power cuts: `power_cut/`. Damage: `damage.rs`.)

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod support;

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use futures_util::FutureExt as _;
use openraft::storage::{RaftLogStorage, RaftStateMachine, StorageHelper};
use openraft::{Raft, RaftSnapshotBuilder as _};
use quorate_storage::identity::Identity;
use quorate_storage::node_disk::{self, DiskError, NodeDisk};
use quorate_storage::raft_types::{SnapshotMeta, TypeConfig, log_id};
use quorate_storage::snapshot;
use quorate_storage::state_machine::{SnapshotHandle, StateMachine};
use support::{
    append, apply, create, entry, identity, info, model_at, open, options, read_all, registry, server_with,
};
use tempfile::TempDir;

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
    machine.install_snapshot(&meta, SnapshotHandle::Received(file)).await
}

#[tokio::test]
async fn restart_is_the_last_flush_and_a_replay() {
    let dir = tempfile::tempdir().unwrap();
    let (mut disk, mut machine) = server_with(dir.path(), 50).await;
    machine.build_snapshot().await.unwrap();
    append(&mut disk.log, (51..=80).map(|index| entry(1, index))).await;
    apply(&mut machine, (51..=80).map(|index| entry(1, index))).await;
    assert_eq!(hash(&disk), model_at(80).hash());
    drop((disk, machine));

    let disk = open(dir.path()).unwrap();
    assert_eq!(disk.state.last_flush().applied, Some(log_id(1, 50)));
    assert_eq!(hash(&disk), model_at(50).hash(), "what was flushed is there, what was not is not");
    let machine = replay(&disk).await;
    assert_eq!(hash(&disk), model_at(80).hash());
    let revision = disk.state.read(|machine| machine.revision()).unwrap();
    assert_eq!(revision, model_at(80).revision);
    drop(machine);
}

#[tokio::test]
async fn a_flush_syncs_the_log_first() {
    let dir = tempfile::tempdir().unwrap();
    let (mut disk, mut machine) = server_with(dir.path(), 20).await;
    // Nobody waits for these, so they stay in memory until something syncs.
    let before = log_bytes(dir.path());
    disk.log.truncate_after(Some(log_id(1, 20))).await.unwrap();
    disk.log.save_committed(Some(log_id(1, 20))).await.unwrap();
    let mark = disk.log.mark();
    assert_eq!(log_bytes(dir.path()), before);
    machine.build_snapshot().await.unwrap();
    assert!(log_bytes(dir.path()) > before, "the flush did not sync the log");
    let recorded = disk.state.last_flush().mark;
    assert!(recorded.end >= mark.end && recorded.last == Some(log_id(1, 20)), "{recorded:?}");
}

#[tokio::test]
async fn an_install_syncs_the_log_first_truncations_included() {
    let dir = tempfile::tempdir().unwrap();
    let (mut disk, mut machine) = server_with(dir.path(), 20).await;
    append(&mut disk.log, (21..=40).map(|index| entry(1, index))).await;
    let before = log_bytes(dir.path());
    disk.log.truncate_after(Some(log_id(1, 20))).await.unwrap();
    let mark = disk.log.mark();
    assert_eq!(log_bytes(dir.path()), before);
    install(&disk, &mut machine, 30).await.unwrap();
    assert!(log_bytes(dir.path()) > before, "the install did not sync the log");
    assert!(disk.state.last_flush().mark.end >= mark.end);
}

#[tokio::test]
async fn the_current_snapshot_is_the_last_flush_and_nothing_newer() {
    let dir = tempfile::tempdir().unwrap();
    create(dir.path()).await;
    let mut disk = open(dir.path()).unwrap();
    let mut machine = StateMachine::new(disk.state.clone());
    assert!(machine.get_current_snapshot().await.unwrap().is_none(), "nothing has been flushed");
    apply(&mut machine, read_all(&disk.log)).await;
    for last in [10, 20, 30] {
        let entries = (last - 9..=last).map(|index| entry(1, index));
        append(&mut disk.log, entries.clone()).await;
        apply(&mut machine, entries).await;
        let before = machine.get_current_snapshot().await.unwrap();
        assert!(before.is_none_or(|s| s.meta.last_log_id < Some(log_id(1, last))));
        machine.build_snapshot().await.unwrap();
        let snapshot = machine.get_current_snapshot().await.unwrap().unwrap();
        assert_eq!(snapshot.meta.last_log_id, Some(log_id(1, last)));
        assert_eq!(snapshot.meta.last_membership.membership().voter_ids().collect::<Vec<_>>(), [1]);
    }
    // A flush with nothing to do writes nothing.
    let at = disk.state.last_flush();
    machine.build_snapshot().await.unwrap();
    assert_eq!(disk.state.last_flush(), at);
}

/// A cluster of one has nobody to talk to.
struct Nobody;

mod nobody {
    use std::future::Future;

    use openraft::error::{RPCError, ReplicationClosed, StreamingError};
    use openraft::network::RPCOption;
    use openraft::raft::{
        AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, VoteRequest, VoteResponse,
    };
    use openraft::{OptionalSend, RaftNetworkFactory, RaftNetworkV2};
    use quorate_storage::raft_types::{NodeInfo, TypeConfig, Vote};
    use quorate_storage::state_machine::SnapshotHandle;

    use super::Nobody;

    type Snapshot = openraft::type_config::alias::SnapshotOf<TypeConfig, SnapshotHandle>;

    impl RaftNetworkFactory<TypeConfig> for Nobody {
        type Network = Self;

        async fn new_client(&mut self, _: u64, _: &NodeInfo) -> Self {
            unreachable!("a cluster of one has no peers")
        }
    }

    impl RaftNetworkV2<TypeConfig> for Nobody {
        type SnapshotData = SnapshotHandle;

        async fn append_entries(
            &mut self,
            _: AppendEntriesRequest<TypeConfig>,
            _: RPCOption,
        ) -> Result<AppendEntriesResponse<TypeConfig>, RPCError<TypeConfig>> {
            unreachable!()
        }

        async fn vote(
            &mut self,
            _: VoteRequest<TypeConfig>,
            _: RPCOption,
        ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
            unreachable!()
        }

        async fn full_snapshot(
            &mut self,
            _: Vote,
            _: Snapshot,
            _: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
            _: RPCOption,
        ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
            unreachable!()
        }
    }
}

#[tokio::test]
async fn openraft_never_purges_beyond_the_last_flush() {
    let dir = tempfile::tempdir().unwrap();
    create(dir.path()).await;
    let disk = open(dir.path()).unwrap();
    let config = openraft::Config {
        enable_leader_restore: Some(false),
        snapshot_policy: openraft::SnapshotPolicy::Never,
        max_in_snapshot_log_to_keep: 0,
        ..openraft::Config::default()
    };
    let machine = StateMachine::new(disk.state.clone());
    let raft = Raft::new(1, Arc::new(config.validate().unwrap()), Nobody, disk.log.clone(), machine);
    let raft: Raft<TypeConfig, StateMachine> = raft.await.unwrap();
    let leads = raft.wait(Some(std::time::Duration::from_secs(20))).current_leader(1, "a leader").await;
    leads.unwrap();
    let flushed = || disk.state.last_flush().applied;
    for round in 1..=5u64 {
        for n in 0..20 {
            let entry = entry(1, round * 100 + n);
            let openraft::EntryPayload::Normal(deltas) = entry.payload else { unreachable!() };
            raft.client_write(deltas).await.unwrap();
        }
        // Asked to purge everything before there is a flush that covers it.
        raft.trigger().purge_log(u64::MAX).await.unwrap();
        raft.with_raft_state(|_| ()).await.unwrap();
        assert!(disk.log.purged() <= flushed(), "purged {:?}, flushed {:?}", disk.log.purged(), flushed());
        let before = disk.log.purged();
        disk.state.flush().await.unwrap();
        raft.trigger().snapshot().await.unwrap();
        let goal = flushed();
        let wait = raft.wait(Some(std::time::Duration::from_secs(20)));
        wait.metrics(|m| m.snapshot == goal, "the snapshot").await.unwrap();
        raft.trigger().purge_log(u64::MAX).await.unwrap();
        let wait = raft.wait(Some(std::time::Duration::from_secs(20)));
        wait.metrics(|m| m.purged > before, "a purge").await.unwrap();
        assert!(disk.log.purged() <= flushed());
    }
    raft.shutdown().await.unwrap();
    let hash = hash(&disk);
    drop((raft, disk));
    let disk = open(dir.path()).unwrap();
    let _machine = replay(&disk).await;
    assert_eq!(self::hash(&disk), hash);
}

#[tokio::test]
async fn a_log_that_is_purged_beyond_the_last_flush_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (mut disk, mut machine) = server_with(dir.path(), 20).await;
    machine.build_snapshot().await.unwrap();
    append(&mut disk.log, (21..=40).map(|index| entry(1, index))).await;
    disk.log.purge(log_id(1, 30)).await.unwrap();
    disk.log.sync().await.unwrap();
    drop((disk, machine));
    let text = refusal(open(dir.path())).to_string();
    assert!(text.contains("a flush is lost") && text.contains("rejoin"), "{text}");
}

/// What openraft does at start must go through, and give the model's state.
async fn starts_with(dir: &Path, applied: u64) {
    let disk = open(dir).unwrap();
    let mut machine = StateMachine::new(disk.state.clone());
    let mut log = disk.log.clone();
    let state = StorageHelper::new(&mut log, &mut machine).with_id(1).get_initial_state().await.unwrap();
    assert_eq!(state.snapshot_meta.last_log_id, Some(log_id(1, applied)));
    assert_eq!(hash(&disk), model_at(applied).hash());
    drop(machine);
    let _machine = replay(&disk).await;
    let last = disk.log.range().map_or(applied, |(_, last)| last);
    assert_eq!(hash(&disk), model_at(last).hash());
}

#[tokio::test]
async fn a_crash_between_an_installs_switch_and_the_purge() {
    // Ahead of the log, within it, and at its end.
    for (log_end, snapshot) in [(20, 35), (20, 12), (20, 20)] {
        let dir = tempfile::tempdir().unwrap();
        let (mut disk, mut machine) = server_with(dir.path(), 10).await;
        append(&mut disk.log, (11..=log_end).map(|index| entry(1, index))).await;
        machine.build_snapshot().await.unwrap();
        install(&disk, &mut machine, snapshot).await.unwrap();
        assert_eq!(hash(&disk), model_at(snapshot).hash());
        drop((disk, machine));
        starts_with(dir.path(), snapshot).await;
    }
}

#[tokio::test]
async fn leftovers_of_an_install_are_swept_and_harm_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (disk, mut machine) = server_with(dir.path(), 20).await;
    machine.build_snapshot().await.unwrap();
    drop((disk, machine));
    let leftovers = ["state.new-7", "state-9"].map(|name| dir.path().join(name));
    for leftover in &leftovers {
        std::fs::create_dir_all(leftover.join("slabs")).unwrap();
        std::fs::write(leftover.join("slabs/64"), b"half").unwrap();
    }
    std::os::unix::fs::symlink("state-9", dir.path().join("state.tmp")).unwrap();
    std::fs::create_dir_all(dir.path().join("snapshots")).unwrap();
    std::fs::write(dir.path().join("snapshots/incoming-3.tmp"), b"half").unwrap();
    starts_with(dir.path(), 20).await;
    assert!(leftovers.iter().all(|leftover| !leftover.exists()));
    // And the next install goes through.
    let disk = open(dir.path()).unwrap();
    let mut machine = replay(&disk).await;
    install(&disk, &mut machine, 30).await.unwrap();
    drop((disk, machine));
    starts_with(dir.path(), 30).await;
}

#[tokio::test]
async fn a_damaged_snapshot_is_refused_and_leaves_the_state_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let (disk, mut machine) = server_with(dir.path(), 20).await;
    let good = dir.path().join("good");
    snapshot_of(40, &good).await;
    let bytes = std::fs::read(&good).unwrap();
    for at in [0, 9, bytes.len() / 2, bytes.len() - 1] {
        let file = disk.state.incoming_file(2).unwrap();
        let mut bad = bytes.clone();
        bad[at] ^= 0x10;
        std::fs::write(&file, &bad).unwrap();
        let error = machine.install_snapshot(&SnapshotMeta::default(), SnapshotHandle::Received(file)).await;
        assert_eq!(error.unwrap_err().kind(), std::io::ErrorKind::InvalidData);
        assert_eq!(hash(&disk), model_at(20).hash());
    }
    install(&disk, &mut machine, 40).await.unwrap();
    assert_eq!(hash(&disk), model_at(40).hash());
    drop((disk, machine));
    starts_with(dir.path(), 40).await;
}

#[tokio::test]
async fn a_snapshot_file_holds_the_flush_and_is_written_once() {
    let dir = tempfile::tempdir().unwrap();
    let (disk, _machine) = server_with(dir.path(), 20).await;
    let (file, meta) = disk.state.snapshot_file().await.unwrap();
    assert_eq!(snapshot::read_meta(&file).unwrap(), meta);
    assert_eq!((meta.applied, meta.hash), (Some(log_id(1, 20)), model_at(20).hash()));
    let written = file.metadata().unwrap().modified().unwrap();
    assert_eq!(disk.state.snapshot_file().await.unwrap(), (file.clone(), meta));
    assert_eq!(file.metadata().unwrap().modified().unwrap(), written);
}

/// An HTTP client that hangs up drops what it asked for.
#[tokio::test]
async fn a_flush_that_nobody_waits_for_ends_all_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let (disk, mut machine) = server_with(dir.path(), 20).await;
    assert!(disk.state.flush().now_or_never().is_none());
    assert_eq!(disk.state.flush().await.unwrap().applied, Some(log_id(1, 20)));
    apply(&mut machine, vec![entry(1, 21)]).await;
    assert!(disk.state.snapshot_file().now_or_never().is_none());
    let (file, meta) = disk.state.snapshot_file().await.unwrap();
    assert_eq!(snapshot::read_meta(&file).unwrap(), meta);
    assert_eq!(meta.applied, Some(log_id(1, 21)));
}

#[tokio::test]
async fn making_a_directory_can_be_interrupted_anywhere() {
    let whole = tempfile::tempdir().unwrap();
    create(whole.path()).await;
    // The order in which `create` makes things; each prefix is what a crash leaves.
    for made in 0..=3 {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("incomplete"), b"").unwrap();
        if made > 0 {
            copy(&whole.path().join("state-1"), &dir.path().join("state-1"));
        }
        if made > 1 {
            std::os::unix::fs::symlink("state-1", dir.path().join("state")).unwrap();
        }
        if made > 2 {
            copy(&whole.path().join("log"), &dir.path().join("log"));
            std::fs::write(dir.path().join("identity.tmp"), b"{").unwrap();
        }
        assert!(!node_disk::inhabited(dir.path()).unwrap(), "{made}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "{made}: something was left");
        create(dir.path()).await;
        assert!(open(dir.path()).is_ok());
    }
    // With the identity it is whole: only the marker is left over.
    std::fs::write(whole.path().join("incomplete"), b"").unwrap();
    assert!(node_disk::inhabited(whole.path()).unwrap());
    assert_eq!(read_all(&open(whole.path()).unwrap().log).len(), 1);
    assert!(!whole.path().join("incomplete").exists());
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &to);
        } else {
            std::fs::copy(entry.path(), to).unwrap();
        }
    }
}

#[tokio::test]
async fn a_directory_with_anything_in_it_is_not_made_a_servers() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("letter"), b"dear").unwrap();
    for result in [
        node_disk::create(dir.path(), &identity(1), Some(info(1))).await,
        node_disk::inhabited(dir.path()).map(|_| ()),
        node_disk::open(dir.path(), registry(), &options()).map(|_| ()),
    ] {
        let Err(error @ DiskError::NotEmpty(_)) = result else { panic!("{result:?}") };
        assert!(error.to_string().contains("empty directory"), "{error}");
    }
    assert_eq!(std::fs::read(dir.path().join("letter")).unwrap(), b"dear");
    // Twice the same directory, too.
    let dir = tempfile::tempdir().unwrap();
    create(dir.path()).await;
    let again = node_disk::create(dir.path(), &identity(2), None).await;
    assert!(matches!(again, Err(DiskError::NotEmpty(_))));
    assert_eq!(open(dir.path()).unwrap().identity, identity(1));
}

#[tokio::test]
async fn an_identity_without_its_log_or_state_is_refused_with_the_remedy() {
    type Remove = fn(&Path);
    let remove: [(&str, Remove); 6] = [
        ("log", |dir| std::fs::remove_dir_all(dir.join("log")).unwrap()),
        ("log", |dir| {
            std::fs::remove_dir_all(dir.join("log")).unwrap();
            std::fs::create_dir(dir.join("log")).unwrap();
        }),
        ("state", |dir| {
            std::fs::remove_dir_all(dir.join("state-1")).unwrap();
            std::fs::create_dir(dir.join("state-1")).unwrap();
        }),
        ("state", |dir| std::fs::remove_file(dir.join("state")).unwrap()),
        ("state", |dir| std::fs::remove_dir_all(dir.join("state-1")).unwrap()),
        ("state", |dir| {
            std::fs::remove_file(dir.join("state")).unwrap();
            std::fs::remove_dir_all(dir.join("state-1")).unwrap();
        }),
    ];
    for (missing, remove) in remove {
        let dir = tempfile::tempdir().unwrap();
        let (disk, mut machine) = server_with(dir.path(), 5).await;
        machine.build_snapshot().await.unwrap();
        drop((disk, machine));
        remove(dir.path());
        let text = refusal(open(dir.path())).to_string();
        assert!(text.contains(missing) && text.contains("rejoin") && text.contains("--join"), "{text}");
        assert!(text.contains(&*dir.path().to_string_lossy()), "{text}");
        // And again: nothing was made in its place.
        refusal(open(dir.path()));
    }
}

#[tokio::test]
async fn another_format_version_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    create(dir.path()).await;
    let file = dir.path().join("identity.json");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.replace("\"format_version\": 2", "\"format_version\": 1")).unwrap();
    let text = refusal(open(dir.path())).to_string();
    assert!(text.contains("format version 1") && text.contains("reads version 2"), "{text}");
}

#[tokio::test]
async fn a_build_that_lacks_one_of_the_servers_services_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let made_with = Identity { services: vec!["chat".to_owned()], ..identity(1) };
    node_disk::create(dir.path(), &made_with, None).await.unwrap();
    let refused = refusal(open(dir.path()));
    assert!(matches!(&refused, DiskError::Services { lacks, .. } if lacks == "chat"), "{refused}");
}

#[tokio::test]
async fn a_second_opening_in_this_process_is_told_that_it_is_in_use() {
    let dir = tempfile::tempdir().unwrap();
    let (_disk, _machine) = server_with(dir.path(), 5).await;
    assert!(matches!(refusal(open(dir.path())), DiskError::InUse(_)));
}

#[tokio::test]
async fn a_directory_that_another_process_holds_is_told_to_be_in_use() {
    let dir = tempfile::tempdir().unwrap();
    create(dir.path()).await;
    let mut holder = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "holder_process", "--ignored", "--nocapture"])
        .env("QUORATE_HELD_DIR", dir.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(holder.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap() == "held"), "the holder did not get so far");
    let error = refusal(open(dir.path()));
    drop(holder.stdin.take());
    assert!(holder.wait().unwrap().success());
    let text = error.to_string();
    assert!(matches!(error, DiskError::InUse(_)) && text.contains("Stop that server first"), "{text}");
    assert!(open(dir.path()).is_ok());
}

/// The other process of the test above.
#[tokio::test]
#[ignore = "not a test: another test runs it as a process of its own"]
async fn holder_process() {
    let dir: PathBuf = std::env::var_os("QUORATE_HELD_DIR").expect("set by the test").into();
    let _disk = open(&dir).unwrap();
    println!("\nheld");
    // Until the parent lets go.
    let _ = std::io::stdin().read_line(&mut String::new());
}

#[tokio::test]
async fn a_server_that_joins_begins_with_an_empty_log_and_takes_entries_or_a_snapshot() {
    let dir = TempDir::new().unwrap();
    node_disk::create(dir.path(), &identity(4), None).await.unwrap();
    let disk = open(dir.path()).unwrap();
    assert_eq!((disk.log.range(), disk.log.purged(), disk.identity.node_id), (None, None, 4));
    let mut machine = StateMachine::new(disk.state.clone());
    install(&disk, &mut machine, 30).await.unwrap();
    drop((disk, machine));
    // The crash came before the purge: the log has never had an entry.
    starts_with(dir.path(), 30).await;
}
