//! Two machines that apply the same entries and must agree after each.

use tempfile::TempDir;

use super::services::registry;
use crate::delta::{Command, Millis, Outcome, encode_entry};
use crate::machine::{ApplyError, Machine};
use crate::raft_types::{Deltas, Payload, log_id};
use crate::tables::base::Base;
use crate::tables::rows::Rows;

/// The first keeps its rows in memory. The second flushes them after each entry, so it reads from disk
/// what the first has at hand; and it can be started again.
pub(super) struct Replicas {
    first: Machine,
    second: Option<Machine>,
    index: u64,
    // Last: the stores go before their directories.
    dirs: [TempDir; 2],
}

impl Replicas {
    pub(super) fn new() -> Self {
        let dirs = [TempDir::new().unwrap(), TempDir::new().unwrap()];
        Self { first: open(&dirs[0]), second: Some(open(&dirs[1])), index: 0, dirs }
    }

    pub(super) fn machine(&self) -> &Machine {
        &self.first
    }

    /// Asks both; they must agree.
    pub(super) fn ask<R: PartialEq + std::fmt::Debug>(&self, question: impl Fn(&Machine) -> R) -> R {
        let answer = question(&self.first);
        assert_eq!(answer, question(self.second.as_ref().unwrap()));
        answer
    }

    /// Applies one entry on both.
    pub(super) fn apply(&mut self, time: Millis, commands: &[Command]) -> Vec<Outcome> {
        self.apply_bytes(&encode_entry(time, commands)).unwrap()
    }

    pub(super) fn apply_bytes(&mut self, entry: &[u8]) -> Result<Vec<Outcome>, ApplyError> {
        self.index += 1;
        let payload = Payload::Normal(Deltas(entry.to_vec().into()));
        let second = self.second.as_mut().unwrap();
        let outcomes = self.first.apply_entry(log_id(1, self.index), &payload);
        assert_eq!(outcomes, second.apply_entry(log_id(1, self.index), &payload));
        assert_eq!((self.first.revision(), self.first.time()), (second.revision(), second.time()));
        if self.index.is_multiple_of(3) {
            // Not each time: what is asked for its hash brings its rows up to date.
            assert_eq!(self.first.state_hash(), second.state_hash(), "equal revision, equal hash");
        }
        flush(second);
        outcomes
    }

    /// Starts the second again from its last flush.
    pub(super) fn restart_second(&mut self) {
        self.second = None;
        let mut second = open(&self.dirs[1]);
        assert_eq!(second.state_hash(), self.first.state_hash());
        self.second = Some(second);
    }

    pub(super) fn apply_an_entry_twice(mut self) {
        for _ in 0..2 {
            self.first.apply_entry(log_id(1, 1), &Payload::Blank).unwrap();
        }
    }
}

fn open(dir: &TempDir) -> Machine {
    let base = Base::open(dir.path()).unwrap();
    let meta = base.meta().unwrap().unwrap_or_default();
    Machine::new(registry(), Rows::new(base, meta.hash), meta).unwrap()
}

fn flush(machine: &mut Machine) {
    let (frozen, meta) = machine.freeze().unwrap();
    let changes = frozen.iter().map(|(key, dirty)| (key.to_vec(), dirty.value()));
    machine.rows().base().flush(changes, &meta).unwrap();
    machine.thawed();
}
