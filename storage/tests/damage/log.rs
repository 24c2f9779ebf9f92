//! Damage to the files of the log.

use super::*;

/// Small, so that all bytes of a log can be damaged in turn.
fn small(term: u64, index: u64) -> Entry {
    entry_of(term, index, &[(format!("k{}", index % 9), Some("v".repeat((index % 23) as usize)))])
}

/// A log through several files, with all kinds of records in the newest, before and behind the mark.
struct LogTruth {
    dir: TempDir,
    mark: LogMark,
    log: Contents,
}

#[derive(Debug, PartialEq)]
struct Contents {
    vote: Option<Vote>,
    purged: Option<u64>,
    entries: Vec<Entry>,
}

async fn contents(log: &DeltaLog) -> Contents {
    let mut reader = log.clone();
    Contents {
        vote: reader.read_vote().await.unwrap(),
        purged: log.purged().map(|id| id.index),
        entries: read_all(log),
    }
}

async fn log_truth() -> LogTruth {
    let dir = scratch();
    let (mut log, _) = DeltaLog::open(dir.path(), &options()).unwrap();
    let vote =
        |term| Vote { leader_id: openraft::impls::leader_id_std::LeaderId::new(term, 1), committed: true };
    log.save_vote(&vote(1)).await.unwrap();
    append(&mut log, (0..30).map(|index| small(1, index))).await;
    log.purge(log_id(1, 11)).await.unwrap();
    log.save_vote(&vote(2)).await.unwrap();
    log.truncate_after(Some(log_id(1, 27))).await.unwrap();
    append(&mut log, (28..34).map(|index| small(2, index))).await;
    let mark = log.sync().await.unwrap();
    log.save_vote(&vote(3)).await.unwrap();
    log.save_committed(Some(log_id(2, 30))).await.unwrap();
    log.truncate_after(Some(log_id(2, 32))).await.unwrap();
    append(&mut log, (33..36).map(|index| small(3, index))).await;
    let log_now = contents(&log).await;
    drop(log);
    LogTruth { dir, mark, log: log_now }
}

pub(super) async fn log_cases() -> Tally {
    let truth = log_truth().await;
    let all: Vec<PathBuf> = files(truth.dir.path());
    assert!(all.len() >= 3, "the log should have several files");
    let newest = all.last().unwrap();
    let mut tally = Tally::default();
    let mut rng = Rng(1);
    for file in &all {
        let good = std::fs::read(file).unwrap();
        let mut damages: Vec<Damage> = Vec::new();
        // All bits of the newest file: lengths, types, flags, checksums.
        for at in 0..good.len() {
            let bits: Vec<u8> = if file == newest { (0..8).collect() } else { vec![rng.below(8) as u8] };
            damages.extend(bits.into_iter().map(|bit| Damage::Flip { at, bit }));
        }
        damages.extend((0..good.len()).map(|to| Damage::Cut { to }));
        for from in (0..good.len()).step_by(16) {
            for length in [16, 64, 512, 4096] {
                damages.push(Damage::Zero { from, to: (from + length).min(good.len()) });
            }
        }
        damages.push(Damage::Remove);
        damages.push(Damage::Append(vec![0; 5000]));
        damages.push(Damage::Append(vec![0xa5; 700]));
        for damage in damages {
            log_case(&truth, file, &good, &damage, file == newest, &mut tally).await;
        }
    }
    assert!(tally.refused > 1_000 && tally.tail_lost > 10, "{tally:?}");
    tally
}

async fn log_case(
    truth: &LogTruth,
    file: &Path,
    good: &[u8],
    damage: &Damage,
    newest: bool,
    tally: &mut Tally,
) {
    say("log", file, damage);
    let dir = scratch();
    copy(truth.dir.path(), dir.path());
    damage.apply(&dir.path().join(file.file_name().unwrap()), good);
    let (log, torn) = match DeltaLog::open_behind(dir.path(), &options(), &truth.mark) {
        Ok(opened) => opened,
        Err(e) => {
            assert_eq!(e.kind(), std::io::ErrorKind::InvalidData, "{e}");
            assert!(
                !matches!(damage, Damage::Append(more) if more[0] == 0 && newest),
                "a torn tail refused: {e}"
            );
            tally.refused += 1;
            return;
        }
    };
    let found = contents(&log).await;
    if found == truth.log {
        tally.intact += 1;
        return;
    }
    // Something is lost: only ever a tail behind the mark.
    let name = file.file_stem().unwrap().to_string_lossy().replace(['r', '-', '_'], "");
    let position = name.parse::<u64>().unwrap() + damage.begins(good) as u64;
    assert!(newest, "lost in an older file: {found:?}");
    assert!(position >= truth.mark.end || flips_the_last_record(&torn, good, damage), "lost before the mark");
    let is_beginning = |entries: &[Entry]| {
        entries.iter().all(|e| {
            let index = e.log_id.index;
            [1, 2, 3].into_iter().any(|term| *e == small(term, index))
        })
    };
    assert!(is_beginning(&found.entries), "other content: {found:?}");
    assert!(found.vote >= truth.mark.vote && found.purged == truth.log.purged);
    match damage {
        Damage::Flip { .. } => {
            assert!(flips_the_last_record(&torn, good, damage), "more than a record is lost")
        }
        Damage::Zero { .. } => assert!(!torn.is_empty()),
        _ => {}
    }
    tally.tail_lost += 1;
}

/// A flip whose torn tail begins before it and reaches to the end: it hit the record that is cut.
fn flips_the_last_record(torn: &[quorate_storage::log::TornTail], good: &[u8], damage: &Damage) -> bool {
    let Damage::Flip { at, .. } = damage else { return false };
    matches!(torn, [tail] if good.len() as u64 - tail.bytes <= *at as u64 && tail.bytes < 150)
}
