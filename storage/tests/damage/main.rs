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

mod identity;
mod log;
mod snapshots;
#[path = "../support/mod.rs"]
mod support;
mod tables;

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
        "identity" => identity::identity_cases(),
        "log" => log::log_cases().await,
        "tables" => tables::table_cases().await,
        _ => snapshots::snapshot_cases().await,
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

fn options() -> LogOptions {
    LogOptions { chunk_bytes: 1 << 10, cache_bytes: 1 << 10 }
}
