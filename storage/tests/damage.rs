//! Damage: flipped bits, cut files, zeroed pages, missing files, in each kind of file.
//!
//! Expected: everything that was acknowledged is still there, or the directory is refused with cause
//! and remedy. Never a panic, a hang, an abort, a huge allocation, or a silent loss or difference.
//!
//! What is noticed and what cannot be:
//!
//! - `identity.json`: every change of a field, by a checksum over the fields.
//! - The log: every record has a checksum, each file must begin where the one before ends, and the
//!   oldest must hold the first entry that is not purged. The tables' last flush knows how far the log
//!   reached (its *mark*), so what lies before the mark cannot go unnoticed. Behind the mark, in the
//!   newest file alone, this cannot be told from a write that a crash left half done:
//!   - the file is cut: what is missing is gone, and the rest of a half record is reported as a torn tail;
//!   - zeros up to the file's end are a torn tail too: a file's length can reach the disk before its bytes;
//!   - a flip in the *last* record that makes it seem longer than the file (its type; payloads have a
//!     length with a checksum of its own): the torn tail is that one record;
//!   - the newest file is missing, and lies behind the mark altogether.
//!
//!   All of them leave a true beginning of the log, never other content.
//! - The tables: a hash over all rows, kept with each flush, is computed anew at start. sled falls back to
//!   an older flush when the end of its own journal is damaged. Then the log makes up for it, or the log
//!   is purged further than that flush, which is noticed.
//! - Snapshots: checksums of all frames, an end mark, and the rows' hash.
//!
//! The cases run in a process of their own, under a limit of memory, and this one watches it: a panic
//! would end it, an abort too, and a hang is one case that takes too long.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod support;

use std::io::{BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use openraft::RaftSnapshotBuilder as _;
use openraft::storage::{RaftLogReader as _, RaftLogStorage as _};
use openraft::vote::RaftLeaderId as _;
use quorate_storage::identity::Identity;
use quorate_storage::log::{DeltaLog, LogMark, LogOptions};
use quorate_storage::node_disk::{self, DiskError};
use quorate_storage::raft_types::{Entry, Vote, log_id};
use quorate_storage::snapshot;
use quorate_storage::state_machine::StateMachine;
use quorate_storage::tables::base::Base;
use support::{Rng, append, apply, create, entry, entry_of, identity, read_all, registry};
use tempfile::TempDir;

/// One case may take so long.
const PATIENCE: Duration = Duration::from_secs(60);
/// Address space of the process that runs the cases, in KiB.
const MEMORY_KIB: u64 = 6 << 20;

#[test]
fn identity_files() {
    watch("identity");
}

#[test]
fn log_files() {
    watch("log");
}

#[test]
fn table_files() {
    watch("tables");
}

#[test]
fn snapshot_files() {
    watch("snapshot");
}

/// Runs the cases of `kind` in another process, and watches it.
fn watch(kind: &str) {
    let mut worker = Command::new("/bin/sh")
        .args(["-c", &format!("ulimit -v {MEMORY_KIB}; exec \"$0\" \"$@\"")])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "worker_process", "--ignored", "--nocapture", "--test-threads=1"])
        .env("QUORATE_DAMAGE", kind)
        // sled runs `sync` whenever it opens: with thousands of openings that takes its time.
        .env("PATH", "/nonexistent")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let (said, lines) = channel();
    let out = BufReader::new(worker.stdout.take().unwrap());
    std::thread::spawn(move || out.lines().map_while(Result::ok).try_for_each(|line| said.send(line)));
    // sled is talkative on some kinds of damage: read, lest the pipe fills and the worker waits.
    let errors = worker.stderr.take().unwrap();
    let errors = std::thread::spawn(move || {
        let mut text = Vec::new();
        BufReader::new(errors).read_to_end(&mut text).map(|_| String::from_utf8_lossy(&text).into_owned())
    });
    let mut case = String::new();
    let mut summary = None;
    loop {
        match lines.recv_timeout(PATIENCE) {
            Ok(line) if line.starts_with("case ") => case = line,
            Ok(line) if line.starts_with("cases: ") => summary = Some(line),
            Ok(_) => {}
            Err(RecvTimeoutError::Timeout) => {
                worker.kill().unwrap();
                worker.wait().unwrap();
                panic!("it hangs: {case}");
            }
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    let status = worker.wait().unwrap();
    let errors = errors.join().unwrap().unwrap();
    let tail = errors.lines().rev().take(12).collect::<Vec<_>>().into_iter().rev().collect::<Vec<_>>();
    assert!(status.success(), "{status} at {case}\n{}", tail.join("\n"));
    println!("{kind}: {}", summary.expect("the worker ended without a word"));
}

/// The other process.
#[tokio::test]
#[ignore = "not a test: the damage tests run it as a process of its own"]
async fn worker_process() {
    let kind = std::env::var("QUORATE_DAMAGE").expect("set by the damage tests");
    println!();
    let tally = match kind.as_str() {
        "identity" => identity_cases(),
        "log" => log_cases().await,
        "tables" => table_cases().await,
        _ => snapshot_cases().await,
    };
    println!("cases: {tally:?}");
}

/// What became of the cases.
#[derive(Debug, Default)]
struct Tally {
    intact: u32,
    refused: u32,
    /// A tail behind the mark was lost: what cannot be told from a crash.
    tail_lost: u32,
}

/// What is done to a file.
#[derive(Debug, Clone)]
enum Damage {
    Flip { at: usize, bit: u8 },
    Cut { to: usize },
    Zero { from: usize, to: usize },
    Append(Vec<u8>),
    Remove,
}

impl Damage {
    fn apply(&self, file: &Path, good: &[u8]) {
        let mut bytes = good.to_vec();
        match self {
            Self::Flip { at, bit } => bytes[*at] ^= 1 << bit,
            Self::Cut { to } => bytes.truncate(*to),
            Self::Zero { from, to } => bytes[*from..*to].fill(0),
            Self::Append(more) => bytes.extend_from_slice(more),
            Self::Remove => return std::fs::remove_file(file).unwrap(),
        }
        std::fs::write(file, bytes).unwrap();
    }

    /// The first byte that is not as it was.
    fn begins(&self, good: &[u8]) -> usize {
        match self {
            Self::Flip { at, .. } => *at,
            Self::Cut { to } => *to,
            Self::Zero { from, to } => (*from..*to).find(|&at| good[at] != 0).unwrap_or(good.len()),
            Self::Append(_) => good.len(),
            Self::Remove => 0,
        }
    }
}

fn say(kind: &str, file: &Path, damage: &Damage) {
    println!("case {kind} {} {damage:?}", file.file_name().unwrap().to_string_lossy());
}

/// Where there is memory to work in, damage needs no disk.
fn scratch() -> TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { TempDir::new_in(memory).unwrap() } else { TempDir::new().unwrap() }
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        let kind = entry.file_type().unwrap();
        if kind.is_symlink() {
            std::os::unix::fs::symlink(std::fs::read_link(entry.path()).unwrap(), to).unwrap();
        } else if kind.is_dir() {
            copy(&entry.path(), &to);
        } else {
            std::fs::copy(entry.path(), to).unwrap();
        }
    }
}

/// The files below `dir` that have something in them, in order.
fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            found.extend(files(&entry.path()));
        } else if entry.metadata().unwrap().len() > 0 {
            found.push(entry.path());
        }
    }
    found.sort();
    found
}

fn identity_cases() -> Tally {
    let dir = scratch();
    let truth = identity(3);
    truth.write(dir.path()).unwrap();
    let file = dir.path().join("identity.json");
    let good = std::fs::read(&file).unwrap();
    let flips = (0..good.len()).flat_map(|at| (0..8).map(move |bit| Damage::Flip { at, bit }));
    let cuts = (0..good.len()).map(|to| Damage::Cut { to });
    let zeros =
        (0..good.len()).step_by(16).map(|from| Damage::Zero { from, to: (from + 16).min(good.len()) });
    let more = [
        Damage::Zero { from: 0, to: good.len() },
        Damage::Append(b"{}".to_vec()),
        Damage::Append(vec![0; 4096]),
    ];
    let mut tally = Tally::default();
    for damage in flips.chain(cuts).chain(zeros).chain(more) {
        say("identity", &file, &damage);
        damage.apply(&file, &good);
        match Identity::read(dir.path()) {
            Ok(found) => {
                assert_eq!(found.as_ref(), Some(&truth), "another identity, and nobody noticed");
                tally.intact += 1;
            }
            Err(_) => {
                let text = match node_disk::open(dir.path(), registry(), &options()) {
                    Ok(_) => panic!("opened"),
                    Err(e) => e.to_string(),
                };
                assert!(text.contains("identity.json") || text.contains("format version"), "{text}");
                assert!(text.contains("rejoin"), "{text}");
                tally.refused += 1;
            }
        }
    }
    assert!(tally.refused > 1_000);
    tally
}

fn options() -> LogOptions {
    LogOptions { chunk_bytes: 1 << 10, cache_bytes: 1 << 10 }
}

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

async fn log_cases() -> Tally {
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

async fn table_cases() -> Tally {
    let mut tally = Tally::default();
    for (purged, reopened) in [(true, false), (false, false), (true, true), (false, true)] {
        let truth = table_truth(purged, reopened).await;
        table_case(&truth, None, &mut tally).await;
        assert_eq!(tally.refused, tally.refused.min(tally.refused), "the truth itself opens");
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

async fn snapshot_cases() -> Tally {
    let server = scratch();
    let (disk, _machine) = support::server_with(server.path(), 25).await;
    let (file, meta) = disk.state.snapshot_file().await.unwrap();
    let good = std::fs::read(&file).unwrap();
    let dir = scratch();
    let copied = dir.path().join("copy.snapshot");
    let base = Base::open(&dir.path().join("state")).unwrap();
    let mut tally = Tally::default();
    let mut rng = Rng(7);
    let mut damages: Vec<Damage> =
        (0..good.len()).map(|at| Damage::Flip { at, bit: rng.below(8) as u8 }).collect();
    // The first frame and the beginning of the second: lengths, checksums, position.
    damages.extend((0..400).flat_map(|at| (0..8).map(move |bit| Damage::Flip { at, bit })));
    damages.extend((0..good.len()).step_by(7).map(|to| Damage::Cut { to }));
    damages.extend((good.len() - 40..good.len()).map(|to| Damage::Cut { to }));
    damages.extend(
        (0..good.len()).step_by(4096).map(|from| Damage::Zero { from, to: (from + 4096).min(good.len()) }),
    );
    damages.extend([Damage::Append(vec![0]), Damage::Append(vec![0; 8]), Damage::Append(vec![7; 5000])]);
    for damage in damages {
        say("snapshot", &file, &damage);
        damage.apply(&copied, &good);
        let error = snapshot::load(&copied, &base).expect_err("a damaged snapshot was taken");
        assert_eq!(error.kind(), std::io::ErrorKind::InvalidData, "{error}");
        tally.refused += 1;
    }
    std::fs::write(&copied, &good).unwrap();
    assert_eq!(snapshot::load(&copied, &base).unwrap(), meta);
    tally.intact += 1;
    tally
}
