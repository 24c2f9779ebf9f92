//! The delta log: votes, entries and commit marks in one ordered file sequence (crate `raft-log`).
//!
//! Invariants:
//! - what a call acknowledges is on disk, fdatasync included: votes before [`DeltaLog::save_vote`]
//!   returns, entries before their `IOFlushed` is completed;
//! - writes reach the disk in the order of the calls, so syncing the last one syncs them all;
//! - a failed write or sync ends the log: every later call fails, and the node stops.

mod flush;
mod open;
mod records;
mod tail;

#[cfg(test)]
mod tests;

use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::{Stream, TryStreamExt as _, stream};
use openraft::entry::RaftEntry;
use openraft::storage::{IOFlushed, LogState, RaftLogStorage};
use openraft::{OptionalSend, RaftLogReader};
use raft_log::RaftLog;
use raft_log::api::raft_log_writer::RaftLogWriter;
use serde::{Deserialize, Serialize};

use self::flush::{FlushClock, Flushed, failed};
pub use self::open::{LogOptions, TornTail};
use self::records::{LogId as StoredId, StoredPayload, StoredVote, WalTypes};
use crate::raft_types::{Entry, LogId, TypeConfig, Vote};

/// One read returns at most about this many payload bytes: a message to a lagging peer is built from it.
const MAX_READ_BYTES: usize = 4 << 20;

/// How far the log on disk reached at some moment. Recorded by each flush; checked at start.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct LogMark {
    /// The last entry on disk.
    pub last: Option<LogId>,
    /// The vote on disk.
    pub vote: Option<Vote>,
    /// The byte at which the log ends, counted since it was made. Votes, truncations and purges are
    /// written behind what is there too, so a log that ends earlier than it once did has lost something.
    pub end: u64,
}

/// A handle to the log. Clones share it.
#[derive(Clone)]
pub struct DeltaLog {
    inner: Arc<Inner>,
}

struct Inner {
    state: Mutex<State>,
    clock: Arc<FlushClock>,
}

struct State {
    log: RaftLog<WalTypes>,
    /// Counts the writes; [`FlushClock::durable`] follows it.
    written: u64,
    /// Who waits for a sync that has not started yet.
    waiters: Vec<IOFlushed<TypeConfig>>,
}

impl State {
    fn mark(&self) -> LogMark {
        let state = self.log.log_state();
        LogMark {
            last: state.last().map(|id| (*id).into()),
            vote: state.vote().map(|vote| vote.0),
            end: self.log.stat().open_chunk.global_end,
        }
    }
}

impl DeltaLog {
    fn from_parts(log: RaftLog<WalTypes>) -> Self {
        let clock = FlushClock::new();
        let state = Mutex::new(State { log, written: 0, waiters: Vec::new() });
        let inner = Arc::new(Inner { state, clock: Arc::clone(&clock) });
        // Ends with the log: the task holds it weakly, and dropping the log notifies a last time.
        let weak = Arc::downgrade(&inner);
        tokio::spawn(async move {
            loop {
                clock.wake.notified().await;
                let Some(inner) = weak.upgrade() else { return };
                Inner::start_sync(&inner, &mut inner.lock());
            }
        });
        Self { inner }
    }

    /// Waits until everything written before the call is on disk, and says how far the log reached then.
    ///
    /// # Errors
    /// When the log has failed.
    pub async fn sync(&self) -> io::Result<LogMark> {
        let mut durable = self.inner.clock.durable.subscribe();
        let (upto, mark) = {
            let mut state = self.inner.lock();
            // A write of its own, so that a sync runs even if a callback-less write came last.
            state.written += 1;
            state.waiters.push(IOFlushed::noop());
            Inner::start_sync(&self.inner, &mut state);
            (state.written, state.mark())
        };
        let reached = durable.wait_for(|durable| !matches!(durable, Ok(n) if *n < upto)).await;
        match reached.as_deref() {
            Ok(Ok(_)) => Ok(mark),
            Ok(Err(cause)) => Err(failed(cause)),
            Err(_) => Err(failed("it was closed")),
        }
    }

    /// For how long the sync that is running has run; `None` while none is.
    pub fn sync_time(&self) -> Option<Duration> {
        self.inner.clock.sync_time()
    }

    /// How far the log reaches, synced or not.
    pub fn mark(&self) -> LogMark {
        self.inner.lock().mark()
    }

    /// The first and last index that can be read, or `None` when the log is empty.
    pub fn range(&self) -> Option<(u64, u64)> {
        let state = self.inner.lock();
        let (purged, last) = (state.log.log_state().purged(), state.log.log_state().last()?);
        let first = purged.map_or(0, |id| id.index + 1);
        (first <= last.index).then_some((first, last.index))
    }

    /// The last entry that was purged, if any was.
    pub fn purged(&self) -> Option<LogId> {
        self.inner.lock().log.log_state().purged().map(|id| (*id).into())
    }

    /// The last entry that is known here to be committed.
    pub fn committed(&self) -> Option<LogId> {
        self.inner.lock().log.log_state().committed().map(|id| (*id).into())
    }

    /// Bytes on disk.
    pub fn disk_bytes(&self) -> u64 {
        self.inner.lock().log.on_disk_size()
    }

    /// Entries `from..to`, at most about 4 MiB of them, at least one if there is one.
    ///
    /// # Errors
    /// When an entry cannot be read from disk.
    pub fn read(&self, from: u64, to: u64) -> io::Result<Vec<Entry>> {
        self.read_bounded(from, to, MAX_READ_BYTES)
    }

    fn read_bounded(&self, from: u64, to: u64, max_bytes: usize) -> io::Result<Vec<Entry>> {
        let state = self.inner.lock();
        let mut entries = Vec::new();
        let mut bytes = 0;
        for read in state.log.read(from, to) {
            let (id, payload) = read?;
            bytes += payload.size();
            if bytes > max_bytes && !entries.is_empty() {
                break;
            }
            entries.push(Entry { log_id: id.into(), payload: payload.0 });
        }
        Ok(entries)
    }

    /// Runs `write` on the log; on success its effect waits for the next sync.
    fn write<R>(
        &self,
        waiter: Option<IOFlushed<TypeConfig>>,
        write: impl FnOnce(&mut State) -> io::Result<R>,
    ) -> io::Result<R> {
        let mut state = self.inner.lock();
        if let Some(e) = self.inner.clock.failure() {
            return Err(e);
        }
        let result = write(&mut state).inspect_err(|e| self.inner.clock.fail(e))?;
        state.written += 1;
        if let Some(waiter) = waiter {
            state.waiters.push(waiter);
            Inner::start_sync(&self.inner, &mut state);
        }
        Ok(result)
    }
}

impl Inner {
    /// A panic while the lock was held leaves the log's memory in doubt, so the log ends there too.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned: PoisonError<_>| {
            self.clock.fail(&io::Error::other("a panic while it was being written"));
            poisoned.into_inner()
        })
    }

    /// Starts a sync if somebody waits and none is running.
    fn start_sync(self: &Arc<Self>, state: &mut State) {
        if state.waiters.is_empty() || !self.clock.try_start() {
            return;
        }
        let waiters = std::mem::take(&mut state.waiters);
        let flushed = Flushed::new(Arc::clone(&self.clock), state.written, waiters);
        if let Err(e) = state.log.flush(true, Some(flushed)) {
            // Who waits is told by the callback's drop, and `sync` by the clock.
            self.clock.fail(&e);
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.clock.wake.notify_one();
    }
}

impl RaftLogReader<TypeConfig> for DeltaLog {
    async fn try_get_log_entries<RB>(&mut self, range: RB) -> io::Result<Vec<Entry>>
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let (from, to) = half_open(&range);
        self.read_bounded(from, to, usize::MAX)
    }

    /// What is to be applied. openraft's own way reads it all at once; a server that catches up has a lot of it.
    async fn entries_stream<RB>(&mut self, range: RB) -> impl Stream<Item = io::Result<Entry>> + OptionalSend
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let (from, to) = half_open(&range);
        let log = self.clone();
        let pages = stream::try_unfold(from, move |next| {
            let log = log.clone();
            async move {
                if next >= to {
                    return Ok(None);
                }
                let page = log.read(next, to)?;
                // openraft takes the end of the stream for the end of the range: it would pass over what is missing.
                match (page.first(), page.last()) {
                    (Some(first), Some(last)) if first.log_id.index == next => {
                        let after = last.log_id.index + 1;
                        Ok(Some((page, after)))
                    }
                    (None, None) if log.range().is_none_or(|(_, last)| next > last) => Ok(None),
                    _ => Err(missing(next)),
                }
            }
        });
        pages.map_ok(|page| stream::iter(page.into_iter().map(Ok))).try_flatten()
    }

    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        Ok(self.inner.lock().log.log_state().vote().map(|vote| vote.0))
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<Entry>> {
        self.read(start, end)
    }
}

fn missing(index: u64) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("entry {index} is to be applied and not in the log"))
}

impl RaftLogStorage<TypeConfig> for DeltaLog {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> io::Result<LogState<TypeConfig>> {
        let state = self.inner.lock();
        let log = state.log.log_state();
        let purged: Option<LogId> = log.purged().map(|id| (*id).into());
        let last = log.last().map(|id| (*id).into());
        Ok(LogState { last_log_id: last.max(purged), last_purged_log_id: purged })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        self.write(None, |state| state.log.save_vote(StoredVote(*vote)))?;
        self.sync().await.map(|_| ())
    }

    /// Not synced: the next append carries it. Lost marks cost replay time, nothing else.
    async fn save_committed(&mut self, committed: Option<LogId>) -> io::Result<()> {
        let Some(committed) = committed else { return Ok(()) };
        self.write(None, |state| {
            let id = StoredId::from(&committed);
            let log = state.log.log_state();
            let known = log.committed().max(log.purged()) >= Some(&id);
            if known || Some(&id) > log.last() {
                return Ok(());
            }
            state.log.commit(id).map(|_| ())
        })
    }

    async fn read_committed(&mut self) -> io::Result<Option<LogId>> {
        Ok(self.committed())
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> io::Result<()>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        self.write(Some(callback), |state| {
            let entries = entries
                .into_iter()
                .map(|entry| (StoredId::from(&entry.log_id()), StoredPayload(entry.payload)));
            state.log.append(entries).map(|_| ())
        })
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> io::Result<()> {
        self.write(None, |state| {
            let keep = last.map_or(0, |id| id.index + 1);
            let end = state.log.log_state().last().map_or(0, |id| id.index + 1);
            if keep >= end {
                return Ok(());
            }
            state.log.truncate(keep).map(|_| ())
        })
    }

    /// raft-log removes files only after a sync that covers the purge record.
    async fn purge(&mut self, upto: LogId) -> io::Result<()> {
        self.write(Some(IOFlushed::noop()), |state| state.log.purge(StoredId::from(&upto)).map(|_| ()))
    }
}

fn half_open(range: &impl RangeBounds<u64>) -> (u64, u64) {
    let from = match range.start_bound() {
        Bound::Included(&n) => n,
        Bound::Excluded(&n) => n + 1,
        Bound::Unbounded => 0,
    };
    let to = match range.end_bound() {
        Bound::Included(&n) => n + 1,
        Bound::Excluded(&n) => n,
        Bound::Unbounded => u64::MAX,
    };
    (from, to.max(from))
}
