//! The delta log alone: order of group commit, what a sync covers, purge, truncation, marks, torn tails.

mod damage;

use std::fs::OpenOptions;
use std::future::Future;
use std::path::PathBuf;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;
use openraft::type_config::TypeConfigExt as _;
use openraft::vote::RaftLeaderId;
use tempfile::TempDir;
use tokio::sync::oneshot;

use super::*;
use crate::raft_types::{Deltas, Payload, log_id};

type Flush = oneshot::Receiver<Result<(), io::Error>>;

fn options() -> LogOptions {
    LogOptions { chunk_bytes: 4 << 10, cache_bytes: 1 << 20 }
}

fn open(dir: &TempDir) -> DeltaLog {
    let (log, torn) = open_behind(dir, &LogMark::default()).unwrap();
    assert_eq!(torn, []);
    log
}

fn open_behind(dir: &TempDir, mark: &LogMark) -> io::Result<(DeltaLog, Vec<TornTail>)> {
    DeltaLog::open_behind(dir.path(), &options(), mark)
}

fn entry_of(term: u64, index: u64, bytes: usize) -> Entry {
    let content = vec![(index % 251) as u8; bytes];
    Entry { log_id: log_id(term, index), payload: Payload::Normal(Deltas(Bytes::from(content))) }
}

fn entries(term: u64, indexes: std::ops::Range<u64>) -> Vec<Entry> {
    indexes.map(|index| entry_of(term, index, 40)).collect()
}

fn vote(term: u64) -> Vote {
    Vote { leader_id: RaftLeaderId::new(term, 1), committed: true }
}

/// Appends without waiting; the receiver gets what the callback is told.
async fn start(log: &mut DeltaLog, entries: Vec<Entry>) -> Flush {
    let (done, flush) = TypeConfig::oneshot();
    log.append(entries, IOFlushed::signal(done)).await.unwrap();
    flush
}

async fn append(log: &mut DeltaLog, entries: Vec<Entry>) {
    start(log, entries).await.await.unwrap().unwrap();
}

fn ids(log: &DeltaLog) -> Vec<(u64, u64)> {
    let Some((first, last)) = log.range() else {
        return Vec::new();
    };
    let entries = log.read_bounded(first, last + 1, usize::MAX).unwrap();
    entries.iter().map(|entry| (crate::raft_types::term_of(&entry.log_id), entry.log_id.index)).collect()
}

fn expected(term: u64, indexes: std::ops::Range<u64>) -> Vec<(u64, u64)> {
    indexes.map(|index| (term, index)).collect()
}

/// The log's files, oldest first.
fn files(dir: &TempDir) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<PathBuf> =
        entries.filter(|path| path.extension().is_some_and(|extension| extension == "wal")).collect();
    files.sort();
    files
}

#[tokio::test]
async fn entries_can_be_read_when_append_returns_and_are_told_durable_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = open(&dir);
    let durable = log.inner.clock.durable.subscribe();
    let mut flushes = Vec::new();
    for index in 0..200 {
        flushes.push(start(&mut log, entries(1, index..index + 1)).await);
        assert_eq!(log.read(index, index + 1).unwrap().len(), 1, "entry {index} cannot be read yet");
    }
    for (number, flush) in (1..).zip(flushes) {
        flush.await.unwrap().unwrap();
        // The n-th append is the n-th write: its callback comes after the sync that covers it.
        let reached = *durable.borrow().as_ref().unwrap();
        assert!(reached >= number, "append {number} was acknowledged with {reached} writes on disk");
    }
}

#[tokio::test]
async fn one_sync_serves_all_who_wait() {
    let dir = tempfile::tempdir().unwrap();
    let (mut log, _) = DeltaLog::open(dir.path(), &LogOptions::default()).unwrap();
    // As if a sync were running, until it is told to have ended.
    let clock = Arc::clone(&log.inner.clock);
    assert!(clock.try_start());
    let mut waiting = Vec::new();
    for index in 0..100 {
        waiting.push(start(&mut log, entries(1, index..index + 1)).await);
    }
    let syncs = || log.inner.lock().log.stat().flush_metrics.sync_batch_count;
    let before = syncs();
    raft_log::Callback::send(Flushed::new(clock, 0, Vec::new()), Ok(()));
    for flush in waiting {
        flush.await.unwrap().unwrap();
    }
    assert_eq!(syncs() - before, 1, "so many syncs for 100 appends");
}

#[tokio::test]
async fn no_callback_comes_before_the_sync() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = open(&dir);
    // Somebody else has the right to sync: nothing can become durable until it is given back.
    assert!(log.inner.clock.try_start());
    let mut flush = start(&mut log, entries(1, 0..3)).await;
    let mut saving = Box::pin({
        let mut log = log.clone();
        async move { log.save_vote(&vote(1)).await }
    });
    for _ in 0..100 {
        tokio::task::yield_now().await;
        assert!(flush.try_recv().is_err(), "acknowledged without a sync");
        let mut context = Context::from_waker(Waker::noop());
        assert!(matches!(saving.as_mut().poll(&mut context), Poll::Pending), "vote saved without a sync");
    }
    assert_eq!(*log.inner.clock.durable.borrow(), Ok(0));
    // As if that other sync had ended.
    let clock = Arc::clone(&log.inner.clock);
    raft_log::Callback::send(Flushed::new(clock, 0, Vec::new()), Ok(()));
    flush.await.unwrap().unwrap();
    saving.await.unwrap();
}

#[tokio::test]
async fn sync_covers_what_was_written_before_it_even_without_callbacks() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = open(&dir);
    append(&mut log, entries(1, 0..10)).await;
    log.truncate_after(Some(log_id(1, 4))).await.unwrap();
    log.save_committed(Some(log_id(1, 3))).await.unwrap();
    let written = log.inner.lock().written;
    let mark = log.sync().await.unwrap();
    assert!(*log.inner.clock.durable.borrow().as_ref().unwrap() > written);
    assert_eq!(mark.last, Some(log_id(1, 4)));
    assert_eq!(mark.end, files_end(&dir), "the mark is the end of what is in the files");
}

/// Where the files end, counted from the log's beginning: the last one's name and its length.
fn files_end(dir: &TempDir) -> u64 {
    let last = files(dir).pop().unwrap();
    let name = last.file_stem().unwrap().to_string_lossy().replace(['r', '-', '_'], "");
    name.parse::<u64>().unwrap() + last.metadata().unwrap().len()
}

#[tokio::test]
async fn save_committed_waits_for_nothing_and_the_next_append_carries_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = open(&dir);
    append(&mut log, entries(1, 0..10)).await;
    let syncs = |log: &DeltaLog| log.inner.lock().log.stat().flush_metrics.sync_batch_count;
    let before = syncs(&log);
    for index in 0..8 {
        log.save_committed(Some(log_id(1, index))).await.unwrap();
    }
    assert_eq!(syncs(&log), before, "save_committed synced");
    // Beyond the end, backwards and "none" change nothing.
    log.save_committed(Some(log_id(1, 99))).await.unwrap();
    log.save_committed(Some(log_id(1, 2))).await.unwrap();
    log.save_committed(None).await.unwrap();
    assert_eq!(log.read_committed().await.unwrap(), Some(log_id(1, 7)));
    append(&mut log, entries(1, 10..11)).await;
    let copy = copy_of(&dir);
    drop(log);
    assert_eq!(open(&copy).read_committed().await.unwrap(), Some(log_id(1, 7)));
}

/// What is in the files now: what a kill at this moment leaves.
fn copy_of(dir: &TempDir) -> TempDir {
    let copy = tempfile::tempdir().unwrap();
    for file in files(dir) {
        std::fs::copy(&file, copy.path().join(file.file_name().unwrap())).unwrap();
    }
    copy
}

#[tokio::test]
async fn a_vote_is_in_the_files_when_save_vote_returns() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = open(&dir);
    for term in 1..20 {
        log.save_vote(&vote(term)).await.unwrap();
        assert_eq!(open(&copy_of(&dir)).read_vote().await.unwrap(), Some(vote(term)));
    }
    assert!(log.save_vote(&vote(3)).await.is_err(), "a vote of an earlier term was taken");
}

#[tokio::test]
async fn every_acknowledged_append_is_in_the_files_of_a_killed_process() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = open(&dir);
    for index in 0..60 {
        append(&mut log, vec![entry_of(1, index, 300)]).await;
        let copy = copy_of(&dir);
        assert_eq!(ids(&open(&copy)), expected(1, 0..index + 1));
    }
    assert!(files(&dir).len() > 3, "the test should go through several files");
}

#[tokio::test]
async fn purge_then_reopen() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = open(&dir);
    append(&mut log, (0..100).map(|index| entry_of(1, index, 300)).collect()).await;
    let before = files(&dir).len();
    log.purge(log_id(1, 79)).await.unwrap();
    assert_eq!(log.range(), Some((80, 99)));
    log.sync().await.unwrap();
    // Files go behind the sync that covers the purge.
    let deadline = Instant::now() + Duration::from_secs(10);
    while files(&dir).len() > before / 2 {
        assert!(Instant::now() < deadline, "purged files stay");
        tokio::task::yield_now().await;
    }
    // Purging less than what is purged changes nothing.
    log.purge(log_id(1, 10)).await.unwrap();
    drop(log);
    let mut log = open(&dir);
    assert_eq!(log.purged(), Some(log_id(1, 79)));
    assert_eq!(ids(&log), expected(1, 80..100));
    let state = log.get_log_state().await.unwrap();
    assert_eq!((state.last_purged_log_id, state.last_log_id), (Some(log_id(1, 79)), Some(log_id(1, 99))));
    // Beyond the end: what an installed snapshot does.
    log.purge(log_id(2, 500)).await.unwrap();
    assert_eq!(log.range(), None);
    append(&mut log, entries(2, 501..503)).await;
    drop(log);
    assert_eq!(ids(&open(&dir)), expected(2, 501..503));
}

#[tokio::test]
async fn truncate_then_reopen() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = open(&dir);
    append(&mut log, entries(1, 0..50)).await;
    log.truncate_after(Some(log_id(1, 19))).await.unwrap();
    log.truncate_after(Some(log_id(1, 30))).await.unwrap();
    append(&mut log, entries(2, 20..25)).await;
    let both = [expected(1, 0..20), expected(2, 20..25)].concat();
    assert_eq!(ids(&log), both);
    drop(log);
    let mut log = open(&dir);
    assert_eq!(ids(&log), both);
    log.truncate_after(None).await.unwrap();
    log.sync().await.unwrap();
    drop(log);
    assert_eq!(open(&dir).range(), None);
}

#[tokio::test]
async fn a_read_is_bounded_in_bytes_and_gives_at_least_one_entry() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = open(&dir);
    append(&mut log, (0..20).map(|index| entry_of(1, index, 1_000)).collect()).await;
    assert_eq!(log.read_bounded(0, 20, 5_500).unwrap().len(), 5);
    assert_eq!(log.read_bounded(3, 20, 1).unwrap().len(), 1);
    assert_eq!(log.read(5, 8).unwrap().len(), 3);
    assert_eq!(log.read(20, 30).unwrap(), []);
    assert_eq!(log.try_get_log_entries(2..=4).await.unwrap().len(), 3);
}

#[tokio::test]
async fn what_is_to_be_applied_is_read_as_it_is_wanted() {
    let dir = tempfile::tempdir().unwrap();
    let (mut log, _) = DeltaLog::open(dir.path(), &LogOptions::default()).unwrap();
    append(&mut log, (0..8).map(|index| entry_of(1, index, 1 << 20)).collect()).await;
    let indexes = |entries: Vec<Entry>| entries.iter().map(|entry| entry.log_id.index).collect::<Vec<_>>();
    let all: Vec<Entry> = log.entries_stream(1..7).await.try_collect().await.unwrap();
    assert_eq!(indexes(all), [1, 2, 3, 4, 5, 6]);

    let mut reader = log.get_log_reader().await;
    let mut stream = Box::pin(reader.entries_stream(0..8).await);
    let first = stream.try_next().await.unwrap();
    log.truncate_after(Some(log_id(1, 5))).await.unwrap();
    let rest: Vec<Entry> = stream.try_collect().await.unwrap();
    let read = first.into_iter().chain(rest).collect();
    assert_eq!(indexes(read), [0, 1, 2, 3, 4, 5], "it was all read at once");

    // What is missing at the beginning is no end.
    log.purge(log_id(1, 2)).await.unwrap();
    let error = log.entries_stream(2..6).await.try_collect::<Vec<_>>().await.unwrap_err();
    assert_eq!(error.to_string(), "entry 2 is to be applied and not in the log");
}

#[tokio::test]
async fn entries_that_fell_out_of_the_cache_are_read_from_disk() {
    let dir = tempfile::tempdir().unwrap();
    let small = LogOptions { chunk_bytes: 4 << 10, cache_bytes: 1 << 10 };
    let (mut log, _) = DeltaLog::open(dir.path(), &small).unwrap();
    let all: Vec<Entry> = (0..200).map(|index| entry_of(1, index, 200)).collect();
    for some in all.chunks(10) {
        append(&mut log, some.to_vec()).await;
    }
    assert_eq!(log.read(0, 200).unwrap(), all);
    assert!(log.inner.lock().log.stat().payload_cache_miss > 50, "everything came from the cache");
}

#[tokio::test]
async fn a_second_opening_is_refused_as_in_use() {
    let dir = tempfile::tempdir().unwrap();
    let _log = open(&dir);
    let again = DeltaLog::open(dir.path(), &options()).map(|_| ());
    assert_eq!(again.unwrap_err().kind(), io::ErrorKind::WouldBlock);
}

#[tokio::test]
async fn a_failed_log_takes_no_more_writes() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = open(&dir);
    append(&mut log, entries(1, 0..3)).await;
    log.inner.clock.fail(&io::Error::other("the disk is gone"));
    let (done, _flush) = TypeConfig::oneshot();
    let error = log.append(entries(1, 3..4), IOFlushed::signal(done)).await.unwrap_err();
    assert!(error.to_string().contains("the disk is gone"), "{error}");
    assert!(log.save_vote(&vote(9)).await.is_err());
    assert!(log.sync().await.is_err());
    assert!(log.purge(log_id(1, 1)).await.is_err());
    assert!(log.truncate_after(None).await.is_err());
}

#[tokio::test]
async fn an_entry_that_is_refused_before_it_is_written_ends_the_log_and_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = open(&dir);
    append(&mut log, entries(1, 0..3)).await;
    let (done, _flush) = TypeConfig::oneshot();
    log.append(entries(1, 7..8), IOFlushed::signal(done)).await.expect_err("a gap was taken");
    drop(log);
    assert_eq!(ids(&open(&dir)), expected(1, 0..3));
}

#[tokio::test]
async fn a_request_that_raft_log_drops_ends_the_log() {
    let clock = FlushClock::new();
    assert!(clock.try_start());
    let (done, flush) = TypeConfig::oneshot();
    drop(Flushed::new(Arc::clone(&clock), 1, vec![IOFlushed::signal(done)]));
    assert!(flush.await.unwrap().is_err());
    assert!(clock.failure().is_some(), "who syncs would wait for ever");
}

/// raft-log takes what replaces evictable entries of a higher term for evictable too, and cannot read it back from its
/// newest file: the cache has room for that.
#[tokio::test]
async fn what_replaces_truncated_entries_of_a_higher_term_can_be_read() {
    // However full the newest file is by then.
    for replaced in 60..100 {
        let dir = tempfile::tempdir().unwrap();
        let small = LogOptions { chunk_bytes: 4 << 10, cache_bytes: 1 << 10 };
        let (mut log, _) = DeltaLog::open(dir.path(), &small).unwrap();
        append(&mut log, (0..10).map(|index| entry_of(1, index, 100)).collect()).await;
        append(&mut log, (10..replaced).map(|index| entry_of(2, index, 100)).collect()).await;
        log.truncate_after(Some(log_id(1, 9))).await.unwrap();
        let replacing: Vec<Entry> = (10..30).map(|index| entry_of(1, index, 500)).collect();
        append(&mut log, replacing.clone()).await;
        assert_eq!(log.read(10, 30).map_err(|e| e.to_string()), Ok(replacing.clone()), "{replaced}");
        drop(log);
        let (log, _) = DeltaLog::open(dir.path(), &small).unwrap();
        assert_eq!(log.read(10, 30).map_err(|e| e.to_string()), Ok(replacing), "{replaced}, opened again");
    }
}
