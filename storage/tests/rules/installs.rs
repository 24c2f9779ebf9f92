//! Snapshots: files, installs, crashes within one.

use super::*;
use std::io::Write as _;

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

/// What a snapshot could have left in a server's directory.
fn beside_the_state(dir: &Path) -> Vec<String> {
    let current = std::fs::read_link(dir.join("state")).unwrap();
    let names = |dir: &Path| -> Vec<String> {
        let entries = std::fs::read_dir(dir).into_iter().flatten();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    };
    let mut found = names(dir);
    found.retain(|name| name.starts_with("state") && name.contains('-') && Path::new(name) != current);
    found.extend(names(&dir.join("snapshots")));
    found
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
    for name in ["incoming-3.tmp", "00000000000000000020-00000000000000000040.tmp", "kept.snapshot"] {
        std::fs::write(dir.path().join("snapshots").join(name), b"half").unwrap();
    }
    starts_with(dir.path(), 20).await;
    assert_eq!(beside_the_state(dir.path()), ["kept.snapshot"]);
    std::fs::remove_file(dir.path().join("snapshots/kept.snapshot")).unwrap();
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
        let refused = disk.state.build(file.clone()).await.map(|_| ()).unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::InvalidData);
        assert_eq!(beside_the_state(dir.path()), [] as [String; 0], "something is left");
        assert_eq!(hash(&disk), model_at(20).hash());
    }
    install(&disk, &mut machine, 40).await.unwrap();
    assert_eq!(hash(&disk), model_at(40).hash());
    drop((disk, machine));
    starts_with(dir.path(), 40).await;
}

/// The state of another replica as of a later entry, put in the place of the one in force behind openraft's back.
#[tokio::test]
async fn a_state_is_replaced_by_a_later_one_and_the_entries_up_to_that_are_passed_over() {
    let dir = tempfile::tempdir().unwrap();
    let (mut disk, mut machine) = server_with(dir.path(), 20).await;
    append(&mut disk.log, (21..=40).map(|index| entry(1, index))).await;
    let built = async |last| {
        let file = disk.state.incoming_file(1).unwrap();
        snapshot_of(last, &file).await;
        disk.state.build(file).await.unwrap()
    };
    assert_eq!(disk.state.skip().await, Some(log_id(1, 20)));
    apply(&mut machine, (21..=25).map(|index| entry(1, index))).await;
    let refused = disk.state.replace(built(12).await).await.unwrap_err();
    assert!(matches!(refused, NotReplaced::Now(_)), "it would go back: {refused}");
    assert_eq!(hash(&disk), model_at(20).hash(), "nothing was applied meanwhile");
    disk.state.resume().await.unwrap();
    assert_eq!(hash(&disk), model_at(25).hash(), "what was left out is applied, to the old state");

    disk.state.skip().await;
    apply(&mut machine, (26..=33).map(|index| entry(1, index))).await;
    disk.state.replace(built(30).await).await.unwrap();
    assert_eq!(hash(&disk), model_at(30).hash());
    disk.state.resume().await.unwrap();
    assert_eq!(hash(&disk), model_at(33).hash());
    // And one that is ahead of what openraft has brought.
    disk.state.skip().await;
    disk.state.replace(built(38).await).await.unwrap();
    disk.state.resume().await.unwrap();
    apply(&mut machine, (34..=40).map(|index| entry(1, index))).await;
    assert_eq!(hash(&disk), model_at(40).hash());
    assert_eq!(beside_the_state(dir.path()), [] as [String; 0], "something is left");
    // A crash now: the flush is that of the replacement, and the log goes on behind it.
    drop((disk, machine));
    starts_with(dir.path(), 38).await;
}

#[tokio::test]
async fn a_snapshot_that_cannot_be_written_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let base = Base::open(&dir.path().join("base")).unwrap();
    let file = dir.path().join("file.snapshot");
    let meta = FlushMeta { hash: 1, ..FlushMeta::default() };
    assert!(snapshot::write(&file, &base, &meta).is_err());
    // The rename fails: something is in its way.
    std::fs::create_dir_all(file.join("in the way")).unwrap();
    assert!(snapshot::write(&file, &base, &FlushMeta::default()).is_err());
    assert!(!dir.path().join("file.tmp").exists());
}

#[tokio::test]
async fn without_room_no_snapshot_is_written_or_built_and_with_room_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let (disk, mut machine) = server_with(dir.path(), 20).await;
    let size = {
        disk.state.flush().await.unwrap();
        let base = disk.state.read(|machine| machine.rows().base().clone()).unwrap();
        snapshot::size(&base).unwrap()
    };
    let free = node_disk::free_bytes(dir.path()).unwrap();
    assert!(size > 0 && free > 4 * GIB, "this test needs some room: {free}");
    disk.state.keep_free(free + GIB);
    let refused = disk.state.snapshot_file().await.unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::StorageFull);
    assert!(refused.to_string().contains("Free some space"), "{refused}");
    let refused = install(&disk, &mut machine, 40).await.unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::StorageFull);
    assert_eq!(beside_the_state(dir.path()), [] as [String; 0], "something is left");
    assert_eq!(hash(&disk), model_at(20).hash());
    // What counts is what is left behind the snapshot.
    disk.state.keep_free(free - GIB);
    assert!(disk.state.check_room(2 * GIB).is_err());
    disk.state.check_room(0).unwrap();
    let (file, _) = disk.state.snapshot_file().await.unwrap();
    let written = file.metadata().unwrap().len();
    assert!((size..size + 1000).contains(&written), "{written} bytes for {size}");
    install(&disk, &mut machine, 40).await.unwrap();
    assert_eq!(hash(&disk), model_at(40).hash());
}

#[tokio::test]
async fn a_disk_that_fills_up_while_tables_are_built_leaves_those_in_force() {
    let mount = match mount::Mount::new(96 << 20) {
        Ok(mount) => mount,
        Err(why) => {
            // Not by a macro, whose output the test runner keeps to itself when a test passes.
            let _ = writeln!(std::io::stderr(), "\n*** SKIPPED: no small disk here: {why} ***\n");
            return;
        }
    };
    let dir = mount.path().join("S1");
    let (disk, mut machine) = server_with(&dir, 20).await;
    let elsewhere = tempfile::tempdir().unwrap();
    let (other, mut larger) = server_with(elsewhere.path(), 20).await;
    let mut rng = support::Rng(7);
    for index in 21..=40 {
        let text: String = (0..1 << 20).map(|_| char::from(b' ' + rng.below(90) as u8)).collect();
        apply(&mut larger, [entry_of(1, index, &[(format!("large-{index}"), Some(text))])]).await;
    }
    let (file, meta) = other.state.snapshot_file().await.unwrap();
    let refused = {
        let fill = std::thread::spawn({
            let dir = dir.clone();
            move || fill_up_when_building(&dir)
        });
        let refused = disk.state.build(copied(&file, elsewhere.path())).await.map(|_| ());
        fill.join().unwrap();
        refused.unwrap_err()
    };
    assert!(!refused.to_string().contains("no room for a snapshot"), "it was not begun: {refused}");
    assert_eq!(beside_the_state(&dir), [] as [String; 0], "something is left");
    assert_eq!(hash(&disk), model_at(20).hash());
    // Not begun at all: there is no room from the start.
    let refused = disk.state.build(copied(&file, elsewhere.path())).await.map(|_| ()).unwrap_err();
    assert!(refused.to_string().contains("no room for a snapshot"), "{refused}");
    std::fs::remove_file(dir.join("filling")).unwrap();
    let built = disk.state.build(copied(&file, elsewhere.path())).await.unwrap();
    let at = SnapshotMeta { last_log_id: meta.applied, ..SnapshotMeta::default() };
    machine.install_snapshot(&at, SnapshotHandle::Received(built)).await.unwrap();
    assert_eq!(disk.state.last_flush().hash, meta.hash);
    assert_eq!(beside_the_state(&dir), [] as [String; 0], "something is left");
}

/// Takes all of the disk but a little as soon as tables are built in `dir`.
fn fill_up_when_building(dir: &Path) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while beside_the_state(dir).is_empty() {
        assert!(Instant::now() < deadline, "nothing is built");
        std::thread::yield_now();
    }
    let filling = std::fs::File::create(dir.join("filling")).unwrap();
    let bytes = node_disk::free_bytes(dir).unwrap() - (1 << 20);
    rustix::fs::fallocate(filling, rustix::fs::FallocateFlags::empty(), 0, bytes).unwrap();
}

fn copied(file: &Path, to: &Path) -> PathBuf {
    let copy = to.join("copy");
    std::fs::copy(file, &copy).unwrap();
    copy
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
