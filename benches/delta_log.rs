//! The delta log beside a raw file: one append of N entries of 100 bytes, durable before the next one.
//!
//! Both write in the same run, to the same file system. The raw file gets one `write` and one `fdatasync`: what no log
//! can beat. The difference is the log's own work: record headers, checksums, the cache, two thread changes.

mod support;

use std::fs::File;
use std::io::{Seek as _, SeekFrom, Write as _};
use std::time::{Duration, Instant};

use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, Throughput};
use openraft::storage::{IOFlushed, RaftLogStorage as _};
use openraft::type_config::TypeConfigExt as _;
use quorate_storage::log::{DeltaLog, LogOptions};
use quorate_storage::raft_types::{Deltas, Entry, Payload, TypeConfig, log_id};
use tokio::runtime::{Builder, Runtime};

const ENTRIES: [u64; 4] = [1, 16, 256, 2048];
const ENTRY_BYTES: usize = 100;

fn main() {
    let mut criterion = Criterion::default().sample_size(20).configure_from_args();
    let mut group = criterion.benchmark_group("delta_log");
    group.warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(3));
    let runtime = runtime();
    for entries in ENTRIES {
        group.throughput(Throughput::Elements(entries));
        group.bench_with_input(BenchmarkId::new("raw file", entries), &entries, |bench, &entries| {
            let mut raw = Raw::new();
            bench.iter_custom(|iterations| raw.append(entries, iterations));
        });
        group.bench_with_input(BenchmarkId::new("delta log", entries), &entries, |bench, &entries| {
            let mut log = Log::new(&runtime);
            bench.iter_custom(|iterations| runtime.block_on(log.append(entries, iterations)));
        });
    }
    group.finish();
    criterion.final_summary();
}

/// As a server has it: one worker.
fn runtime() -> Runtime {
    Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime")
}

struct Raw {
    file: File,
    _dir: tempfile::TempDir,
}

impl Raw {
    fn new() -> Self {
        let dir = support::disk_dir("raw-file");
        let file = File::create(dir.path().join("raw")).expect("a file");
        Self { file, _dir: dir }
    }

    fn append(&mut self, entries: u64, iterations: u64) -> Duration {
        let bytes = vec![7; ENTRY_BYTES * entries as usize];
        let begun = Instant::now();
        for _ in 0..iterations {
            self.file.write_all(&bytes).expect("a write");
            self.file.sync_data().expect("a sync");
        }
        let spent = begun.elapsed();
        self.file.set_len(0).expect("an empty file");
        self.file.seek(SeekFrom::Start(0)).expect("its beginning");
        spent
    }
}

struct Log {
    log: DeltaLog,
    next: u64,
    _dir: tempfile::TempDir,
}

impl Log {
    fn new(runtime: &Runtime) -> Self {
        let dir = support::disk_dir("delta-log");
        let _within = runtime.enter();
        let (log, _) = DeltaLog::open(dir.path(), &LogOptions::default()).expect("a new log");
        Self { log, next: 0, _dir: dir }
    }

    async fn append(&mut self, entries: u64, iterations: u64) -> Duration {
        let content = Bytes::from(vec![7; ENTRY_BYTES]);
        let mut spent = Duration::ZERO;
        for _ in 0..iterations {
            let batch: Vec<Entry> = (self.next..self.next + entries)
                .map(|index| Entry {
                    log_id: log_id(1, index),
                    payload: Payload::Normal(Deltas(content.clone())),
                })
                .collect();
            self.next += entries;
            let (done, flushed) = TypeConfig::oneshot();
            let begun = Instant::now();
            let appended = self.log.append(batch, IOFlushed::<TypeConfig>::signal(done)).await;
            appended.expect("an append");
            flushed.await.expect("an answer").expect("a sync");
            spent += begun.elapsed();
        }
        // Old files go, as they do behind a flush; otherwise a long run fills the disk.
        self.log.purge(log_id(1, self.next - 1)).await.expect("a purge");
        self.log.sync().await.expect("a sync");
        spent
    }
}
