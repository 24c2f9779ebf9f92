//! Snapshots: files, installs, crashes within one.

use super::*;

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
