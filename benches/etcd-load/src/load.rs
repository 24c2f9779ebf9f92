//! The load itself: threads, each a single-threaded runtime with its share of the clients.
//!
//! The threads share nothing while they measure: each fills a histogram of its own, merged at the end.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use etcd_client::Client;
use hdrhistogram::Histogram;
use rustix::time::{ClockId, clock_gettime};
use tokio::runtime::{Builder, Runtime};
use tokio::task::LocalSet;

use crate::{Op, Target};

/// How long connecting, filling the keys and the last answers may take, each.
const PATIENCE: Duration = Duration::from_secs(10);
/// A latency above this is recorded as this.
const LONGEST_US: u64 = 60_000_000;
/// A client whose request failed waits this long, so that a dead server is not hammered.
const PAUSE_AFTER_ERROR: Duration = Duration::from_millis(10);

/// What is to be done.
pub(crate) struct Load {
    pub(crate) endpoints: Vec<String>,
    pub(crate) clients: u32,
    pub(crate) conns: u32,
    pub(crate) threads: u32,
    pub(crate) warmup: Duration,
    pub(crate) measured: Duration,
    pub(crate) op: Op,
    pub(crate) keys: u32,
}

/// What was measured.
pub(crate) struct Outcome {
    pub(crate) latencies: Histogram<u64>,
    pub(crate) errors: u64,
    pub(crate) first_error: Option<String>,
    /// User and system time of this process in the measured seconds.
    pub(crate) cpu: Duration,
}

/// The endpoints to connect to, out of `all`.
pub(crate) fn choose(all: &[String], target: Target) -> Result<Vec<String>, String> {
    if target == Target::All {
        return Ok(all.to_vec());
    }
    runtime()?.block_on(within_patience("asking for the leader", async {
        for endpoint in all {
            let mut client = connect(endpoint).await?;
            let status = client
                .status()
                .await
                .map_err(|error| format!("status of {endpoint}: {error}"))?;
            if status.header().map(|header| header.member_id()) == Some(status.leader()) {
                return Ok(vec![endpoint.clone()]);
            }
        }
        Err(format!(
            "none of {} is the leader: give every member's URL",
            all.join(", ")
        ))
    }))
}

impl Load {
    /// Runs the load to its end, on `threads` threads.
    pub(crate) fn run(&self) -> Result<Outcome, String> {
        let barrier = &Barrier::new(self.threads as usize);
        let mut total = Outcome::new()?;
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..self.threads)
                .map(|thread| scope.spawn(move || self.run_thread(thread, barrier)))
                .collect();
            for thread in threads {
                let part = thread
                    .join()
                    .map_err(|_| "a load thread panicked".to_string())??;
                total.merge(part)?;
            }
            Ok(total)
        })
    }

    fn run_thread(&self, thread: u32, barrier: &Barrier) -> Result<Outcome, String> {
        let runtime = runtime()?;
        let local = LocalSet::new();
        // Every thread comes to the barrier, also one that cannot go on: the others would wait for ever.
        let prepared = local.block_on(&runtime, within_patience("connecting", self.prepare(thread)));
        barrier.wait();
        let clients = prepared?;
        let start = Instant::now() + self.warmup;
        let end = start + self.measured;
        let shared = Rc::new(RefCell::new(Outcome::new()?));
        local.block_on(&runtime, async {
            let tasks: Vec<_> = clients
                .into_iter()
                .map(|client| {
                    tokio::task::spawn_local(one_client(
                        client,
                        self.op,
                        self.keys,
                        start,
                        end,
                        shared.clone(),
                    ))
                })
                .collect();
            tokio::time::sleep_until(start.into()).await;
            let cpu = cpu_time();
            tokio::time::sleep_until(end.into()).await;
            shared.borrow_mut().cpu = cpu_time().saturating_sub(cpu);
            within_patience("waiting for the last answers", async {
                for task in tasks {
                    task.await.map_err(|error| error.to_string())?;
                }
                Ok(())
            })
            .await
        })?;
        Ok(shared.replace(Outcome::new()?))
    }

    /// The clients of one thread, connected, and every key of theirs written where reads are to be measured.
    async fn prepare(&self, thread: u32) -> Result<Vec<Client>, String> {
        let mut connections = Vec::new();
        for number in (thread..self.conns).step_by(self.threads as usize) {
            connections.push(connect(&self.endpoints[number as usize % self.endpoints.len()]).await?);
        }
        if connections.is_empty() {
            return Err(format!(
                "{} threads need as many connections at least",
                self.threads
            ));
        }
        let share = (thread..self.clients).step_by(self.threads as usize).count();
        let clients: Vec<_> = connections.iter().cycle().take(share).cloned().collect();
        if self.op == Op::Get {
            self.fill(thread, &clients).await?;
        }
        Ok(clients)
    }

    async fn fill(&self, thread: u32, clients: &[Client]) -> Result<(), String> {
        let keys: Vec<u32> = (thread..self.keys).step_by(self.threads as usize).collect();
        let tasks: Vec<_> = keys
            .chunks(keys.len().div_ceil(clients.len()).max(1))
            .zip(clients)
            .map(|(keys, client)| {
                let (keys, mut client) = (keys.to_vec(), client.clone());
                tokio::task::spawn_local(async move {
                    for key in keys {
                        client
                            .put(name(key), value(0), None)
                            .await
                            .map_err(|error| error.to_string())?;
                    }
                    Ok::<_, String>(())
                })
            })
            .collect();
        for task in tasks {
            task.await
                .map_err(|error| error.to_string())?
                .map_err(|error| format!("filling keys: {error}"))?;
        }
        Ok(())
    }
}

impl Outcome {
    fn new() -> Result<Self, String> {
        let latencies = Histogram::new_with_bounds(1, LONGEST_US, 3).map_err(|error| error.to_string())?;
        Ok(Self {
            latencies,
            errors: 0,
            first_error: None,
            cpu: Duration::ZERO,
        })
    }

    fn merge(&mut self, part: Outcome) -> Result<(), String> {
        self.latencies
            .add(&part.latencies)
            .map_err(|error| error.to_string())?;
        self.errors += part.errors;
        self.first_error = self.first_error.take().or(part.first_error);
        // Each thread has read the whole process' clock.
        self.cpu = self.cpu.max(part.cpu);
        Ok(())
    }
}

/// One closed loop, until `end`; what ends before `start` is warm-up.
async fn one_client(
    mut client: Client,
    op: Op,
    keys: u32,
    start: Instant,
    end: Instant,
    shared: Rc<RefCell<Outcome>>,
) {
    let mut number = 0;
    loop {
        let key = name(fastrand::u32(0..keys));
        number += 1;
        let begun = Instant::now();
        let result = match op {
            Op::Put => client.put(key, value(number), None).await.map(drop),
            Op::Get => client.get(key, None).await.map(drop),
        };
        let now = Instant::now();
        if now >= end {
            return;
        }
        if now >= start {
            let mut outcome = shared.borrow_mut();
            match &result {
                Ok(()) => outcome
                    .latencies
                    .saturating_record((now - begun).as_micros() as u64),
                Err(error) => {
                    outcome.errors += 1;
                    outcome.first_error.get_or_insert_with(|| error.to_string());
                }
            }
        }
        if result.is_err() {
            tokio::time::sleep(PAUSE_AFTER_ERROR).await;
        }
    }
}

async fn connect(endpoint: &str) -> Result<Client, String> {
    Client::connect([endpoint], None)
        .await
        .map_err(|error| format!("connecting to {endpoint}: {error}"))
}

async fn within_patience<T>(what: &str, work: impl Future<Output = Result<T, String>>) -> Result<T, String> {
    tokio::time::timeout(PATIENCE, work)
        .await
        .unwrap_or_else(|_| Err(format!("{what} took more than {} s", PATIENCE.as_secs())))
}

fn runtime() -> Result<Runtime, String> {
    Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| format!("starting a runtime: {error}"))
}

fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec as u32)
}

fn name(key: u32) -> String {
    format!("k{key:06}")
}

fn value(number: u64) -> String {
    format!("{:08}", number % 100_000_000)
}
