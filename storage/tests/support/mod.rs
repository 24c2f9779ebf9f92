//! What the storage tests share: a small service, entries whose content follows from their log id,
//! and a model of the tables that shares no code with them but the row's hash.

#![allow(dead_code, reason = "each test file uses a part of this")]

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use openraft::storage::{IOFlushed, RaftLogStorage, RaftStateMachine};
use openraft::type_config::TypeConfigExt as _;
use quorate_storage::codec;
use quorate_storage::delta::{Command, encode_entry};
use quorate_storage::identity::Identity;
use quorate_storage::log::{DeltaLog, LogOptions};
use quorate_storage::node_disk::{self, DiskError, NodeDisk};
use quorate_storage::raft_types::{Deltas, Entry, LogId, NodeInfo, Payload, TypeConfig, log_id};
use quorate_storage::service::{Context, QueryContext, Refusal, Registry, Service};
use quorate_storage::state_machine::StateMachine;
use quorate_storage::tables::rows::row_hash;
use quorate_storage::tables::{Table, Tables, View};
use serde::{Deserialize, Serialize};

const ROWS: Table<String, String> = Table::new("rows");

/// A service that puts and removes.
pub(crate) struct Kv;

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum KvCommand {
    Put { key: String, value: String },
    Remove { key: String },
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum KvQuery {
    Get { key: String },
}

impl Service for Kv {
    const NAME: &'static str = "kv";
    type Command = KvCommand;
    type Reply = ();
    type Query = KvQuery;
    type Answer = Option<String>;

    fn apply(&self, tables: &mut Tables<'_>, _: &mut Context<'_>, command: KvCommand) -> Result<(), Refusal> {
        match command {
            KvCommand::Put { key, value } => tables.put(&ROWS, &key, &value),
            KvCommand::Remove { key } => tables.remove(&ROWS, &key),
        }
        Ok(())
    }

    fn query(&self, tables: &View<'_>, _: &QueryContext, query: KvQuery) -> Result<Option<String>, Refusal> {
        let KvQuery::Get { key } = query;
        Ok(tables.get(&ROWS, &key))
    }
}

pub(crate) fn registry() -> Registry {
    Registry::new().with(Kv)
}

/// A small random number generator (splitmix64): the same seed, the same run, on every machine.
#[derive(Clone)]
pub(crate) struct Rng(pub u64);

impl Rng {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `bound`.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    pub(crate) fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

/// A change of one row: its new value, or a removal.
pub(crate) type Change = (String, Option<String>);

/// What the entry of `term` and `index` does: it follows from these alone, so that whoever knows the
/// log ids knows the content.
pub(crate) fn changes(term: u64, index: u64) -> Vec<Change> {
    let mut rng = Rng(term.wrapping_mul(1_000_003) ^ index.wrapping_mul(7_919));
    (0..1 + rng.below(3))
        .map(|_| {
            let key = format!("key-{:03}", rng.below(200));
            // Mostly small; some entries span pages, and some change sled's slab.
            let length = match rng.below(12) {
                0 => 3_000 + rng.below(6_000),
                1 | 2 => 200 + rng.below(800),
                _ => rng.below(60),
            };
            let fill = char::from(b'a' + (rng.below(26) as u8));
            let value = format!("{term}.{index}.{}", fill.to_string().repeat(length as usize));
            (key, (!rng.one_in(5)).then_some(value))
        })
        .collect()
}

/// The entry of `term` and `index`.
pub(crate) fn entry(term: u64, index: u64) -> Entry {
    entry_of(term, index, &changes(term, index))
}

pub(crate) fn entry_of(term: u64, index: u64, changes: &[Change]) -> Entry {
    let commands: Vec<Command> = changes
        .iter()
        .map(|(key, value)| match value {
            Some(value) => KvCommand::Put { key: key.clone(), value: value.clone() },
            None => KvCommand::Remove { key: key.clone() },
        })
        .map(|command| Command::sessionless("kv", codec::encode(&command)))
        .collect();
    let payload = Payload::Normal(Deltas(encode_entry(index, &commands)));
    Entry { log_id: log_id(term, index), payload }
}

/// What the tables must hold.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub(crate) struct Model {
    pub(crate) rows: BTreeMap<String, String>,
    pub(crate) revision: u64,
}

impl Model {
    pub(crate) fn apply(&mut self, term: u64, index: u64) {
        for (key, value) in changes(term, index) {
            self.revision += 1;
            match value {
                Some(value) => self.rows.insert(key, value),
                None => self.rows.remove(&key),
            };
        }
    }

    /// The row keys and values as the store holds them.
    pub(crate) fn stored(&self) -> impl Iterator<Item = (Vec<u8>, Vec<u8>)> {
        self.rows.iter().map(|(key, value)| (format!("kv\0rows\0{key}").into_bytes(), codec::encode(value)))
    }

    pub(crate) fn hash(&self) -> u128 {
        self.stored().fold(0u128, |sum, (key, value)| sum.wrapping_add(row_hash(&key, &value)))
    }
}

pub(crate) fn identity(node_id: u64) -> Identity {
    Identity {
        cluster_id: "0123456789abcdef0123456789abcdef".to_owned(),
        node_id,
        name: format!("S{node_id}"),
        format_version: quorate_storage::FORMAT_VERSION,
        seeds: vec!["127.0.0.1:9001".to_owned()],
        services: registry().names(),
    }
}

pub(crate) fn info(node_id: u64) -> NodeInfo {
    NodeInfo {
        name: format!("S{node_id}"),
        url: "http://127.0.0.1:1".to_owned(),
        peer: "127.0.0.1:2".to_owned(),
        witness: false,
    }
}

/// Small files, so that a test sees many of them.
pub(crate) fn options() -> LogOptions {
    LogOptions { chunk_bytes: 32 << 10, cache_bytes: 16 << 10 }
}

/// A new server's directory; entry 0 is its membership.
pub(crate) async fn create(dir: &Path) {
    node_disk::create(dir, &identity(1), Some(info(1))).await.unwrap();
}

/// Tries again for a while when it is in use: openraft's tasks let go of the log a moment after `shutdown`.
pub(crate) fn open(dir: &Path) -> Result<NodeDisk, DiskError> {
    let deadline = Instant::now() + Duration::from_secs(3);
    loop {
        match node_disk::open(dir, registry(), &options()) {
            Err(DiskError::InUse(_)) if Instant::now() < deadline => std::thread::yield_now(),
            opened => return opened,
        }
    }
}

/// Appends and waits until it is on disk.
pub(crate) async fn append(log: &mut DeltaLog, entries: impl IntoIterator<Item = Entry>) {
    let (done, flushed) = TypeConfig::oneshot();
    let entries: Vec<Entry> = entries.into_iter().collect();
    log.append(entries, IOFlushed::<TypeConfig>::signal(done)).await.unwrap();
    flushed.await.unwrap().unwrap();
}

pub(crate) async fn apply(machine: &mut StateMachine, entries: impl IntoIterator<Item = Entry>) {
    let entries: Vec<_> = entries.into_iter().map(|entry| Ok((entry, None))).collect();
    machine.apply(futures_util::stream::iter(entries)).await.unwrap();
}

/// All entries of the log, read in as many steps as it takes.
pub(crate) fn read_all(log: &DeltaLog) -> Vec<Entry> {
    let Some((first, last)) = log.range() else {
        return Vec::new();
    };
    let mut entries: Vec<Entry> = Vec::new();
    while entries.last().is_none_or(|entry| entry.log_id.index < last) {
        let from = entries.last().map_or(first, |entry| entry.log_id.index + 1);
        let read = log.read(from, last + 1).unwrap();
        assert!(!read.is_empty(), "entry {from} is missing");
        entries.extend(read);
    }
    entries
}

/// A server with `entries` applied and on disk behind its membership entry, none of them flushed.
pub(crate) async fn server_with(dir: &Path, entries: u64) -> (NodeDisk, StateMachine) {
    create(dir).await;
    let mut disk = open(dir).unwrap();
    let mut machine = StateMachine::new(disk.state.clone());
    apply(&mut machine, read_all(&disk.log)).await;
    append(&mut disk.log, (1..=entries).map(|index| entry(1, index))).await;
    apply(&mut machine, (1..=entries).map(|index| entry(1, index))).await;
    (disk, machine)
}

/// The model after entries `1..=last` of term 1.
pub(crate) fn model_at(last: u64) -> Model {
    let mut model = Model::default();
    (1..=last).for_each(|index| model.apply(1, index));
    model
}

pub(crate) fn term_of(id: &LogId) -> u64 {
    quorate_storage::raft_types::term_of(id)
}
