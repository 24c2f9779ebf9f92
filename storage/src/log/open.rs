//! Opening the log: options, the torn tail, and what counts as damage.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use raft_log::chunked_wal::{ChunkedWal, Config};
use raft_log::{RaftLog, RaftWalTypes};

use super::records::WalTypes;
use super::tail::{self, damaged};
use super::{DeltaLog, LogMark};
use crate::files;

/// Entries kept in memory. raft-log cannot read an entry back from its newest file, and may take one there for evictable
/// when it replaced one of a higher term. The oldest are evicted first; so the cache has room for twice what a file takes.
const CACHE_ITEMS: usize = 200_000;

/// Sizes of the log's files and caches.
#[derive(Debug, Clone)]
pub struct LogOptions {
    /// Bytes in a file before the next one is begun. The newest file is never purged, so this is
    /// about what an idle log keeps on disk. raft-log's default is 1 GiB.
    pub chunk_bytes: usize,
    /// Bytes of payloads kept in memory for replication and apply; at least two files' worth. raft-log's default is 1 GiB.
    pub cache_bytes: usize,
}

impl Default for LogOptions {
    fn default() -> Self {
        Self { chunk_bytes: 32 << 20, cache_bytes: 64 << 20 }
    }
}

/// A tail that was cut at opening: a write that a crash left half done. Never acknowledged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TornTail {
    /// The file.
    pub file: PathBuf,
    /// How many bytes were cut.
    pub bytes: u64,
}

impl DeltaLog {
    /// Opens or creates the log in `dir`; says which tails were cut.
    ///
    /// Must run within a tokio runtime: a task starts the syncs.
    ///
    /// # Errors
    /// `InvalidData` when the log is damaged before its tail; other kinds as the disk gives them.
    pub fn open(dir: &Path, options: &LogOptions) -> io::Result<(Self, Vec<TornTail>)> {
        Self::open_behind(dir, options, &LogMark::default())
    }

    /// [`Self::open`], for a log that reached as far as `mark` once.
    ///
    /// # Errors
    /// As [`Self::open`]; `InvalidData` too when the log ends before the mark: what was acknowledged is
    /// missing. The log is then left as it is.
    pub fn open_behind(
        dir: &Path,
        options: &LogOptions,
        mark: &LogMark,
    ) -> io::Result<(Self, Vec<TornTail>)> {
        std::fs::create_dir_all(dir)?;
        let config = raft_log::Config {
            wal: Config {
                dir: dir.to_string_lossy().into_owned(),
                read_buffer_size: Some(1 << 20),
                chunk_max_records: Some(CACHE_ITEMS / 2),
                chunk_max_size: Some(options.chunk_bytes),
                truncate_incomplete_record: Some(true),
                // Group commit is ours (flush.rs): raft-log's own wait only adds latency.
                flush_batch_wait: Some(Duration::ZERO),
                flush_batch_max_items: Some(2048),
                // One sync is in flight, so this bounds what is written during one sync.
                flush_queue_max_bytes: Some(512 << 20),
            },
            log_cache_max_items: Some(CACHE_ITEMS),
            log_cache_capacity: Some(options.cache_bytes.max(2 * options.chunk_bytes)),
        };
        let config = Arc::new(config);
        let mut torn = Vec::new();
        let log = files::when_unlocked(|| {
            torn.extend(make_ready(dir, &config.wal, mark)?);
            RaftLog::<WalTypes>::open(Arc::clone(&config))
        })?;
        check_complete(&log)?;
        Ok((Self::from_parts(log), torn))
    }

    /// Whether `dir` holds a log: its files, not just a directory for them.
    ///
    /// # Errors
    /// As the disk gives them.
    pub fn exists(dir: &Path) -> io::Result<bool> {
        Ok(dir.try_exists()? && !tail::files(dir)?.is_empty())
    }
}

/// What must be done before raft-log reads the files: see [`tail`] and [`sync_all`].
fn make_ready(dir: &Path, config: &Config, mark: &LogMark) -> io::Result<Vec<TornTail>> {
    // raft-log takes this lock again. Whoever comes in between finds the files in order too.
    let _lock = ChunkedWal::<RaftWalTypes<WalTypes>>::acquire_lock(config)?;
    let files = tail::files(dir)?;
    let tail = tail::find(&files)?;
    check_end(tail.end, mark)?;
    let torn = tail.cut(dir, &files)?;
    sync_all(&tail::files(dir)?)?;
    Ok(torn)
}

fn check_end(end: u64, mark: &LogMark) -> io::Result<()> {
    if end >= mark.end {
        return Ok(());
    }
    let last = mark.last.as_ref().map_or("no entry".to_owned(), |id| format!("entry {id}"));
    Err(damaged(format!(
        "the intact log ends at byte {end}, but when the last flush was made it reached byte {}, with {last} as \
         the last: what lay between is lost",
        mark.end
    )))
}

/// raft-log checks that its files follow each other, but not that the first one is there.
fn check_complete(log: &RaftLog<WalTypes>) -> io::Result<()> {
    let state = log.log_state();
    let first = state.purged().map_or(0, |id| id.index + 1);
    let Some(last) = state.last().filter(|last| last.index >= first) else { return Ok(()) };
    match log.read(first, last.index + 1).next() {
        Some(Ok((id, _))) if id.index == first => Ok(()),
        Some(Err(e)) => Err(e),
        found => {
            let found = found.and_then(Result::ok).map(|(id, _)| id.index);
            Err(damaged(format!(
                "entry {first} is missing at the log's beginning (the first one is {found:?})"
            )))
        }
    }
}

/// After a kill, what the dead process wrote may be in the page cache alone. openraft takes all that
/// it reads at start for durable, and acknowledges it, so it is made durable first.
fn sync_all(files: &tail::Files) -> io::Result<()> {
    files.keys().try_for_each(|file| File::open(file)?.sync_all())
}
