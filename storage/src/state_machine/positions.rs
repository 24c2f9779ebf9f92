//! Which revisions the log's entries hold: for reading the log by revision.

use std::collections::VecDeque;
use std::io;
use std::sync::{MutexGuard, PoisonError};

use super::{Applied, State, damaged};
use crate::delta::EntryReader;
use crate::raft_types::{Entry, Payload};

/// Entries whose revisions are remembered. More than the log keeps, usually.
const MAX_POSITIONS: usize = 1 << 18;

/// Where a revision stands in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The entry that holds it; `end` when it is not applied yet.
    pub index: u64,
    /// The revision before that entry.
    pub before: u64,
    /// The next entry to be applied.
    pub end: u64,
    /// The oldest revision that is still in the log.
    pub oldest: u64,
}

/// The revisions before applied entries that follow one another.
pub(super) struct Positions {
    first: u64,
    /// The revision before each entry from `first` on; the last one is that before the next entry to be applied.
    /// Never empty.
    before: VecDeque<u64>,
}

impl Positions {
    /// What a replica knows that has applied so far.
    pub(super) fn at(applied: &Applied) -> Self {
        let first = applied.log_id.as_ref().map_or(0, |id| id.index + 1);
        Self { first, before: [applied.revision].into() }
    }

    fn end(&self) -> u64 {
        self.first + self.before.len() as u64 - 1
    }

    /// Notes that the entry at `index` was applied, and the revision after it.
    pub(super) fn push(&mut self, index: u64, revision: u64) {
        if index != self.end() {
            // Entries come one after another, but openraft's suite of tests leaves gaps.
            *self = Self { first: index + 1, before: [revision].into() };
            return;
        }
        while self.before.len() >= MAX_POSITIONS {
            self.before.pop_front();
            self.first += 1;
        }
        self.before.push_back(revision);
    }

    /// Notes how many deltas the entries before `at` hold, if that is still where the known ones begin.
    fn push_front(&mut self, at: u64, counts: &[u64]) {
        if self.first != at {
            return;
        }
        let mut revision = self.before[0];
        for count in counts.iter().rev() {
            revision = revision.saturating_sub(*count);
            self.before.push_front(revision);
        }
        self.first -= counts.len() as u64;
    }

    /// The place of `revision` among the entries from `first` on, or that of the oldest revision there.
    fn find(&self, revision: u64, first: u64) -> Place {
        let end = self.end();
        let skipped = (first.clamp(self.first, end) - self.first) as usize;
        let oldest = self.before[skipped] + 1;
        let revision = revision.max(oldest);
        // The last entry before which it is not reached.
        let at = self.before.partition_point(|before| *before < revision) - 1;
        Place { index: self.first + at as u64, before: self.before[at], end, oldest }
    }
}

impl State {
    /// Where `revision` stands in the log, or the oldest one there if it is gone. Reads the log when it holds entries
    /// that were applied before this process began: once, but all of them.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub fn place_of(&self, revision: u64) -> io::Result<Place> {
        let first = self.shared.log.range().map_or(u64::MAX, |(first, _)| first);
        self.count_from(first)?;
        Ok(self.positions().find(revision, first))
    }

    pub(super) fn positions(&self) -> MutexGuard<'_, Positions> {
        self.shared.positions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts the deltas of the entries from `first` to where the known positions begin.
    fn count_from(&self, first: u64) -> io::Result<()> {
        let (at, room) = {
            let positions = self.positions();
            (positions.first, MAX_POSITIONS.saturating_sub(positions.before.len()))
        };
        let mut next = first.max(at.saturating_sub(room as u64));
        let mut counts = Vec::new();
        while next < at {
            let entries = self.shared.log.read(next, at)?;
            let (Some(first), Some(last)) = (entries.first(), entries.last()) else {
                // The log no longer reaches the known positions: a snapshot was installed.
                return Ok(());
            };
            if first.log_id.index != next {
                // What was counted has been purged meanwhile.
                counts.clear();
            }
            next = last.log_id.index + 1;
            for entry in &entries {
                counts.push(deltas_in(entry)?);
            }
        }
        self.positions().push_front(at, &counts);
        Ok(())
    }
}

/// By the entry's own word: none of them is decoded.
fn deltas_in(entry: &Entry) -> io::Result<u64> {
    match &entry.payload {
        Payload::Normal(deltas) => Ok(EntryReader::new(&deltas.0).map_err(damaged)?.left() as u64),
        _ => Ok(0),
    }
}

#[cfg(test)]
mod tests {
    use openraft::storage::{IOFlushed, RaftLogStorage as _};

    use super::*;
    use crate::codec;
    use crate::delta::{Command, SYSTEM_SERVICE, encode_entry};
    use crate::log::LogOptions;
    use crate::machine::SystemCommand;
    use crate::node_disk::{self, NodeDisk};
    use crate::raft_types::{Deltas, log_id};
    use crate::service::Registry;
    use crate::state_machine::tests::create;

    /// Entry 0 is the first membership; each later one holds as many deltas as its index by three leaves.
    fn entry(index: u64) -> Entry {
        let tick = Command::sessionless(SYSTEM_SERVICE, codec::encode(&SystemCommand::Tick));
        let commands = vec![tick; (index % 3) as usize];
        Entry { log_id: log_id(1, index), payload: Payload::Normal(Deltas(encode_entry(1, &commands))) }
    }

    fn revision_before(index: u64) -> u64 {
        (0..index).map(|index| index % 3).sum()
    }

    fn open(dir: &std::path::Path) -> NodeDisk {
        node_disk::open(dir, Registry::new(), &LogOptions::default()).unwrap()
    }

    async fn apply(disk: &NodeDisk, from: u64, to: u64) {
        for entry in disk.log.read(from, to).unwrap() {
            disk.state.apply(entry.log_id, &entry.payload).await.unwrap();
        }
    }

    /// Asks for every revision up to that before entry `end`.
    fn check(disk: &NodeDisk, first: u64, end: u64) {
        let oldest = revision_before(first) + 1;
        for revision in 0..=revision_before(end) {
            let place = disk.state.place_of(revision).unwrap();
            let wanted = revision.max(oldest);
            assert_eq!((place.oldest, place.end), (oldest, end), "{revision}: {place:?}");
            assert_eq!(place.before, revision_before(place.index), "{revision}: {place:?}");
            assert!(place.before < wanted && wanted <= revision_before(place.index + 1), "{place:?}");
        }
        let beyond = disk.state.place_of(u64::MAX).unwrap();
        assert_eq!((beyond.index, beyond.before), (end, revision_before(end)));
    }

    #[tokio::test]
    async fn a_restarted_process_counts_what_the_log_holds_once() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("data");
        create(&dir).await;
        let mut disk = open(&dir);
        disk.log.append((1..90).map(entry), IOFlushed::noop()).await.unwrap();
        apply(&disk, 0, 60).await;
        check(&disk, 0, 60);
        disk.state.flush().await.unwrap();
        drop(disk);

        let mut disk = open(&dir);
        assert_eq!(disk.state.positions().first, 60, "a new process knows of the flush alone");
        check(&disk, 0, 60);
        assert_eq!(disk.state.positions().first, 0, "what was counted is remembered");
        apply(&disk, 60, 90).await;
        check(&disk, 0, 90);
        disk.log.purge(log_id(1, 20)).await.unwrap();
        check(&disk, 21, 90);
    }

    #[test]
    fn what_is_remembered_is_bounded_and_what_was_counted_too_late_is_dropped() {
        let mut positions = Positions::at(&Applied { log_id: Some(log_id(1, 9)), revision: 9 });
        let last = 10 + 2 * MAX_POSITIONS as u64;
        for index in 10..last {
            positions.push(index, index);
        }
        assert_eq!((positions.before.len(), positions.end()), (MAX_POSITIONS, last));
        let oldest = positions.find(1, 0).oldest;
        positions.push_front(10, &[1; 5]);
        assert_eq!(positions.find(1, 0).oldest, oldest);
    }
}
