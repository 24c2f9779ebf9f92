//! Two machines that apply the same entries and must agree after each.

use bytes::Bytes;
use quorate_storage::delta::{Command, Millis, Outcome, encode_entry};
use quorate_storage::machine::Machine;
use quorate_storage::raft_types::{Deltas, Payload, log_id};
use quorate_storage::tables::base::{Base, FlushMeta};
use quorate_storage::tables::rows::Rows;
use tempfile::TempDir;

use crate::services;

/// The first keeps its rows in memory; the second can flush them to disk and read them from there.
pub(super) struct Replicas {
    first: Machine,
    second: Machine,
    index: u64,
    // Last: the stores go before their directories.
    _dirs: [TempDir; 2],
}

impl Replicas {
    pub(super) fn new() -> Self {
        let dirs = [TempDir::new().unwrap(), TempDir::new().unwrap()];
        let open = |dir: &TempDir| {
            let base = Base::open(dir.path()).unwrap();
            Machine::new(services::registry(), Rows::new(base, 0), FlushMeta::default()).unwrap()
        };
        Self { first: open(&dirs[0]), second: open(&dirs[1]), index: 0, _dirs: dirs }
    }

    pub(super) fn machine(&self) -> &Machine {
        &self.first
    }

    /// Applies one entry on both.
    pub(super) fn apply(&mut self, time: Millis, commands: &[Command]) -> Vec<Outcome> {
        self.index += 1;
        let payload = Payload::Normal(Deltas(encode_entry(time, commands)));
        let outcomes = self.first.apply_entry(log_id(1, self.index), &payload).unwrap();
        assert_eq!(outcomes, self.second.apply_entry(log_id(1, self.index), &payload).unwrap());
        assert_eq!(self.first.revision(), self.second.revision());
        assert_eq!(self.first.state_hash(), self.second.state_hash(), "equal revision, equal hash");
        outcomes
    }

    /// Writes the second's rows to disk.
    pub(super) fn flush_second(&mut self) {
        let (frozen, meta) = self.second.freeze().unwrap();
        let changes = frozen.iter().map(|(key, dirty)| (key.to_vec(), dirty.value()));
        self.second.rows().base().flush(changes, &meta).unwrap();
        self.second.thawed();
    }

    /// Encodes a command as the gateway does.
    pub(super) fn encode(&self, service: &str, command: &str, json: &str) -> Result<Bytes, String> {
        let service = self.first.registry().get(service).ok_or("unknown service")?;
        let body = service.command_from_json(command, json.as_bytes());
        body.map(Bytes::from).map_err(|e| e.to_string())
    }

    /// Asks both; they must agree.
    pub(super) fn query(&self, service: &str, query: &str, params: &str) -> Result<String, String> {
        let ask = |machine: &Machine| {
            let answer = machine.query(service, query, params);
            answer.map(|json| String::from_utf8(json).unwrap()).map_err(|e| format!("{e:?}"))
        };
        let answer = ask(&self.first);
        assert_eq!(answer, ask(&self.second));
        answer
    }
}
