//! Flushes, what a restart makes of them, and the log that is purged behind them.

use super::*;

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
async fn a_start_applies_what_is_committed_and_flushes_as_it_goes() {
    let dir = tempfile::tempdir().unwrap();
    let (mut disk, mut machine) = server_with(dir.path(), 10).await;
    machine.build_snapshot().await.unwrap();
    // 48 MiB, many times what one read gives and more than is left dirty.
    let long = |index: u64| entry_of(1, index, &[(format!("long-{index}"), Some("x".repeat(1 << 20)))]);
    append(&mut disk.log, (11..=60).map(long)).await;
    disk.log.save_committed(Some(log_id(1, 58))).await.unwrap();
    disk.log.sync().await.unwrap();
    drop((disk, machine));

    let disk = open(dir.path()).unwrap();
    disk.state.replay().await.unwrap();
    assert_eq!(disk.state.applied().borrow().log_id, Some(log_id(1, 58)), "that, and nothing more");
    assert_eq!(disk.state.read(|machine| machine.revision()).unwrap(), model_at(10).revision + 48);
    assert!(disk.state.dirty_bytes().unwrap() <= FLUSH_BYTES + (2 << 20), "nothing was flushed");
    let replayed = hash(&disk);
    disk.state.replay().await.unwrap();
    assert_eq!(hash(&disk), replayed, "a second time there is nothing to do");
    drop(disk);
    let disk = open(dir.path()).unwrap();
    disk.state.replay().await.unwrap();
    assert_eq!(hash(&disk), replayed);
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

/// Committed entries cannot be refused: apply waits, and memory stays bounded.
#[tokio::test]
async fn apply_waits_for_a_flush_while_the_overlay_is_full() {
    let dir = tempfile::tempdir().unwrap();
    let (disk, mut machine) = server_with(dir.path(), 1).await;
    let (more, room) = (FULL_BYTES + (16 << 20), 4 << 20);
    let long = |index: u64| entry_of(1, index, &[(format!("long-{index}"), Some("x".repeat(room)))]);
    let last = 1 + (more / room) as u64;
    let mut applying = Box::pin(apply(&mut machine, (2..=last).map(long)));
    assert!((&mut applying).now_or_never().is_none(), "nothing stopped it");
    let dirty = disk.state.dirty_bytes().unwrap();
    assert!((FULL_BYTES..FULL_BYTES + 2 * room).contains(&dirty), "{dirty}");
    assert!((&mut applying).now_or_never().is_none(), "nothing was flushed");
    disk.state.flush().await.unwrap();
    applying.await;
    assert_eq!(disk.state.applied().borrow().log_id, Some(log_id(1, last)));
}
