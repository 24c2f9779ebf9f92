//! Damage to the tables.

use super::*;

/// A server with several flushes, and what its tables and its log must give.
struct TableTruth {
    dir: TempDir,
    hash: u128,
    last: u64,
}

/// As a kill leaves it: sled's journal has a frame for each flush. `purged`: the log does not reach
/// back behind the last flush. `reopened`: sled has put its journal into a snapshot.
async fn table_truth(purged: bool, reopened: bool) -> TableTruth {
    let live = scratch();
    create(live.path()).await;
    let mut disk = support::open(live.path()).unwrap();
    let mut machine = StateMachine::new(disk.state.clone());
    apply(&mut machine, read_all(&disk.log)).await;
    let last = 90;
    for from in (1..=last).step_by(15) {
        let entries = (from..from + 15).map(|index| entry(1, index));
        append(&mut disk.log, entries.clone()).await;
        apply(&mut machine, entries).await;
        // The last ones are in the log alone.
        if from + 15 <= last {
            machine.build_snapshot().await.unwrap();
        }
    }
    if purged {
        disk.log.purge(log_id(1, 75)).await.unwrap();
        disk.log.sync().await.unwrap();
    }
    let hash = disk.state.read_hashed(|_, hash| hash).unwrap();
    let dir = scratch();
    if reopened {
        drop((disk, machine));
        drop(support::open(live.path()).unwrap());
        copy(live.path(), dir.path());
    } else {
        copy(live.path(), dir.path());
        drop((disk, machine));
    }
    TableTruth { dir, hash, last }
}

pub(super) async fn table_cases() -> Tally {
    let mut tally = Tally::default();
    for (purged, reopened) in [(true, false), (false, false), (true, true), (false, true)] {
        let truth = table_truth(purged, reopened).await;
        table_case(&truth, None, &mut tally).await;
        let state = truth.dir.path().join("state-1");
        for file in files(&state) {
            let good = std::fs::read(&file).unwrap();
            for damage in table_damages(&file, &good) {
                table_case(&truth, Some((&file, &good, damage)), &mut tally).await;
            }
        }
    }
    assert!(tally.refused > 100 && tally.intact > 20, "{tally:?}");
    tally
}

fn table_damages(file: &Path, good: &[u8]) -> Vec<Damage> {
    let mut rng = Rng(good.len() as u64);
    let journal = file.parent().unwrap().ends_with("metadata");
    let mut flips: Vec<usize> =
        (0..if journal { 40 } else { 12 }).map(|_| rng.below(good.len() as u64) as usize).collect();
    // Lengths and checksums are at the ends.
    flips.extend((0..12).chain(good.len().saturating_sub(12)..good.len()).filter(|&at| at < good.len()));
    let mut cuts = vec![0, 1, 8, good.len() / 3, good.len() / 2, good.len() - 1];
    if journal {
        let mut at = 0;
        while at < good.len() {
            cuts.extend([at, at + 4, at + 9]);
            at += frame_length(&good[at..]);
        }
    }
    cuts.retain(|&to| to < good.len());
    let mut damages: Vec<Damage> =
        flips.into_iter().map(|at| Damage::Flip { at, bit: rng.below(8) as u8 }).collect();
    damages.extend(cuts.into_iter().map(|to| Damage::Cut { to }));
    damages.extend(
        (0..good.len()).step_by(4096).map(|from| Damage::Zero { from, to: (from + 4096).min(good.len()) }),
    );
    damages.push(Damage::Append(vec![0; 100]));
    damages.push(Damage::Append(vec![0xa5; 100]));
    damages.push(Damage::Remove);
    damages
}

/// sled's frame: 6 bytes of length, 2 of its checksum, the content, 4 of its checksum.
fn frame_length(frame: &[u8]) -> usize {
    let mut length = [0; 8];
    length[..6].copy_from_slice(&frame[..6]);
    u64::from_le_bytes(length) as usize + 12
}

async fn table_case(truth: &TableTruth, damage: Option<(&Path, &[u8], Damage)>, tally: &mut Tally) {
    let dir = scratch();
    copy(truth.dir.path(), dir.path());
    if let Some((file, good, damage)) = &damage {
        say("tables", file, damage);
        damage.apply(&dir.path().join(file.strip_prefix(truth.dir.path()).unwrap()), good);
    }
    let disk = match support::open(dir.path()) {
        Ok(disk) => disk,
        Err(e) => {
            assert!(damage.is_some(), "refused without damage: {e}");
            let text = e.to_string();
            let told = matches!(e, DiskError::Damaged { .. } | DiskError::Incomplete { .. });
            assert!(told, "not told to be damage: {text}");
            assert!(text.contains("state") && text.contains("rejoin"), "{text}");
            tally.refused += 1;
            return;
        }
    };
    let mut machine = StateMachine::new(disk.state.clone());
    let applied = disk.state.last_flush().applied;
    let mut rest = read_all(&disk.log);
    rest.retain(|entry| Some(&entry.log_id) > applied.as_ref());
    assert_eq!(rest.last().map(|entry| entry.log_id.index), Some(truth.last));
    apply(&mut machine, rest).await;
    let hash = disk.state.read_hashed(|_, hash| hash).unwrap();
    assert_eq!(hash, truth.hash, "other rows, and nobody noticed");
    tally.intact += 1;
}
