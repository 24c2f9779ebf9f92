//! The machine alone: commands per second through sessions and tables, without disk or network.
//!
//! 64 sessions, or one as in a batch, add to 1,000 counters in turn; each request acknowledges the replies to the
//! requests before it, a batch those to the batch before. The rows stay in the
//! overlay: no flush runs, so what is measured is one core's work per command. Entries are built outside the time.

mod support;

use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput};
use quorate::Registry;
use quorate_storage::codec;
use quorate_storage::delta::{Command, DeltaResult, Millis, SESSION_SERVICE, encode_entry};
use quorate_storage::machine::{MAX_EVENTS, Machine, SessionCommand, TTL_BOUNDS};
use quorate_storage::raft_types::{Deltas, Payload, log_id};
use quorate_storage::tables::base::{Base, FlushMeta};
use quorate_storage::tables::rows::Rows;

/// As the server has it.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Sessions that send in turn; one sends batches; none.
const SESSIONS: [(&str, u64); 3] = [("64 sessions", 64), ("one session", 1), ("without sessions", 0)];
const COUNTERS: u64 = 1_000;
/// Commands in a log entry: one client, what 64 and 256 clients make, a large batch.
const COMMANDS: [u64; 4] = [1, 16, 64, 1_000];
/// Entries that are built before they are applied.
const BUILT: u64 = 64;
const TIME: Millis = 1_700_000_000_000;

fn main() {
    let mut criterion = Criterion::default().sample_size(20).configure_from_args();
    let mut group = criterion.benchmark_group("apply");
    group.warm_up_time(Duration::from_secs(1)).measurement_time(Duration::from_secs(3));
    for (name, sessions) in SESSIONS {
        for commands in COMMANDS {
            group.throughput(Throughput::Elements(commands));
            group.bench_with_input(BenchmarkId::new(name, commands), &commands, |bench, &commands| {
                let mut load = Load::new(sessions);
                bench.iter_custom(|entries| load.apply(commands, entries));
            });
        }
    }
    group.finish();
    criterion.final_summary();
}

struct Load {
    machine: Machine,
    registry: Registry,
    sessions: u64,
    next_index: u64,
    /// How many commands have been made.
    made: u64,
    _dir: tempfile::TempDir,
}

impl Load {
    fn new(sessions: u64) -> Self {
        let dir = support::disk_dir("apply");
        let base = Base::open(dir.path()).expect("a new store");
        let registry = quorate::services::registry();
        let machine =
            Machine::new(registry.clone(), Rows::new(base, 0), FlushMeta::default()).expect("a new machine");
        let mut load = Self { machine, registry, sessions, next_index: 0, made: 0, _dir: dir };
        // A fresh machine counts its sessions from 1.
        let open = SessionCommand::Open { name: None, ttl_ms: Some(TTL_BOUNDS.1) };
        let open = Command::sessionless(SESSION_SERVICE, codec::encode(&open));
        let all = vec![open; sessions as usize];
        load.apply_entry(&Payload::Normal(Deltas(encode_entry(TIME, &all))));
        // Until the table of events is full and the oldest ones go, as in a server that has run a while.
        load.apply(1_000, MAX_EVENTS as u64 / 1_000 + 1);
        load
    }

    /// Applies `entries` entries of `commands` commands; the time that the machine took.
    fn apply(&mut self, commands: u64, entries: u64) -> Duration {
        let mut spent = Duration::ZERO;
        let mut left = entries;
        while left > 0 {
            let now = left.min(BUILT);
            left -= now;
            let built: Vec<Payload> = (0..now).map(|_| self.entry(commands)).collect();
            let begun = Instant::now();
            for payload in &built {
                self.apply_entry(payload);
            }
            spent += begun.elapsed();
        }
        spent
    }

    fn apply_entry(&mut self, payload: &Payload) {
        let outcomes =
            self.machine.apply_entry(log_id(1, self.next_index), payload).expect("an intact state");
        self.next_index += 1;
        let applied = outcomes.iter().all(|outcome| matches!(outcome.result, DeltaResult::Reply(_)));
        assert!(applied, "a command was not applied: {outcomes:?}");
    }

    fn entry(&mut self, commands: u64) -> Payload {
        let before = self.made;
        let adds: Vec<Command> = (0..commands).map(|_| self.add(before)).collect();
        Payload::Normal(Deltas(encode_entry(TIME, &adds)))
    }

    /// An add in an entry that began when `before` had been made.
    fn add(&mut self, before: u64) -> Command {
        let n = self.made;
        self.made += 1;
        let fields = format!(r#"{{"name":"bench-{:03}","amount":1}}"#, n.wrapping_mul(7_919) % COUNTERS);
        let counter = self.registry.get("counter").expect("the service counter");
        let body = counter.command_from_json("add", fields.as_bytes()).expect("a command");
        let mut command = Command::sessionless("counter", body);
        if self.sessions > 0 {
            command.session = n % self.sessions + 1;
            command.sequence = n / self.sessions + 1;
            command.acked = (before / self.sessions).min(command.sequence - 1);
        }
        command
    }
}
