//! Concurrent adds, sets and reads through all servers, while servers are killed and paused, are linearizable: each
//! history that the clients saw can be explained by one order of its operations (checked with porcupine).
//!
//! The clients are as plain as can be and not those of `quorate::client`: one request at a time, in a session, sent to
//! whichever server comes up, and repeated on another one when it brought nothing. A write that was given up has an
//! unknown outcome: it may take effect at any later time, or never.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use porcupine_rs::{CheckResult, Model, Operation, check_operations_timeout};
use serde_json::{Value, json};
use support::Cluster;
use support::http::{Http, Numbered};
use tokio::task::JoinHandle;
use tokio::time::timeout;

const WORKERS: u32 = 6;
const KEYS: usize = 3;
/// Operations between two blows.
const SWING: u64 = 80;
/// A server that hangs is left after this time.
const ATTEMPT: Duration = Duration::from_millis(300);
/// So many writes are given up after one attempt without a reply, so that unknown outcomes are part of the history.
/// The checker's work doubles with each.
const IMPATIENT: i64 = 12;
/// Any other write is repeated for so long, then its outcome is unknown.
const GIVE_UP: Duration = Duration::from_secs(8);
/// The checker needs far less than a second for a history that is in order.
const CHECK: Duration = Duration::from_secs(60);

/// What was done to one counter, and what came back.
#[derive(Debug, Clone, Copy)]
enum Done {
    /// The reply's `previous` and `value`; nothing when the outcome is unknown.
    Add {
        amount: i64,
        reply: Option<(i64, i64)>,
    },
    /// The reply's `previous`.
    Set {
        value: i64,
        reply: Option<i64>,
    },
    Get {
        value: i64,
    },
}

/// Independent counters, each at first 0.
#[derive(Debug, Clone, Copy)]
struct Counters;

impl Model for Counters {
    type State = i64;
    type Op = (usize, Done);
    type Metadata = ();

    fn partition_operations(history: &[Operation<Self>]) -> Vec<Vec<Operation<Self>>> {
        let of = |key| history.iter().filter(|operation| operation.op.0 == key).cloned().collect();
        (0..KEYS).map(of).collect()
    }

    fn init() -> i64 {
        0
    }

    fn step(state: &i64, (_, done): &(usize, Done)) -> (bool, i64) {
        match *done {
            Done::Add { amount, reply } => {
                let after = state + amount;
                (reply.is_none_or(|reply| reply == (*state, after)), after)
            }
            Done::Set { value, reply } => (reply.is_none_or(|previous| previous == *state), value),
            Done::Get { value } => (value == *state, *state),
        }
    }
}

/// One client.
struct Worker {
    number: u32,
    http: Http,
    urls: Vec<String>,
    session: u64,
    sequence: u64,
    /// The level of reads: `linearizable` or `lease`.
    levels: &'static [&'static str],
    /// How many writes may still be given up, by all workers together.
    impatience: Arc<AtomicI64>,
    start: Instant,
}

impl Worker {
    async fn run(mut self, stop: Arc<AtomicBool>, count: Arc<AtomicU64>) -> Vec<Operation<Counters>> {
        let mut history = Vec::new();
        while !stop.load(Ordering::Relaxed) {
            let key = rand::random_range(0..KEYS);
            let call_time = self.now();
            let done = match rand::random_range(0..10) {
                0..4 => self.get(key).await,
                4..8 => Some(self.add(key, rand::random_range(1..1_000)).await),
                _ => Some(self.set(key, rand::random_range(1..1_000_000)).await),
            };
            // A read without an answer says nothing.
            let Some(done) = done else { continue };
            let unknown = matches!(done, Done::Add { reply: None, .. } | Done::Set { reply: None, .. });
            let return_time = if unknown { i64::MAX } else { self.now() };
            history.push(Operation {
                client_id: Some(self.number),
                call_time,
                return_time,
                op: (key, done),
                metadata: None,
            });
            count.fetch_add(1, Ordering::Relaxed);
        }
        history
    }

    fn now(&self) -> i64 {
        self.start.elapsed().as_nanos() as i64
    }

    async fn add(&mut self, key: usize, amount: i64) -> Done {
        let body = json!({"name": name(key), "amount": amount});
        let reply = self.write("counter/add", body).await;
        Done::Add { amount, reply: reply.map(|reply| (number(&reply, "previous"), number(&reply, "value"))) }
    }

    async fn set(&mut self, key: usize, value: i64) -> Done {
        let reply = self.write("counter/set", json!({"name": name(key), "value": value})).await;
        Done::Set { value, reply: reply.map(|reply| number(&reply, "previous")) }
    }

    /// Sends a write to one server after the other. Nothing when the outcome is unknown.
    async fn write(&mut self, command: &'static str, body: Value) -> Option<Value> {
        self.sequence += 1;
        // Whatever came before has its reply or was given up.
        let acked = self.sequence - 1;
        let request = Numbered { session: self.session, sequence: self.sequence, acked, command, body };
        let begun = Instant::now();
        let mut server = rand::random_range(0..self.urls.len());
        loop {
            let sent = timeout(ATTEMPT, self.http.numbered(&self.urls[server], &request)).await;
            let unknown = match sent {
                Ok(Ok(reply)) if reply.status == 200 => return Some(reply.json()),
                Ok(Ok(reply)) => {
                    assert!(reply.is_passing(), "{request:?} got {reply:?}");
                    false
                }
                Ok(Err(error)) => error.sent,
                Err(_) => true,
            };
            let gives_up = || rand::random_bool(0.2) && self.impatience.fetch_sub(1, Ordering::Relaxed) > 0;
            if (unknown && gives_up()) || begun.elapsed() > GIVE_UP {
                return None;
            }
            server = (server + 1) % self.urls.len();
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn get(&self, key: usize) -> Option<Done> {
        let server = &self.urls[rand::random_range(0..self.urls.len())];
        let level = self.levels[rand::random_range(0..self.levels.len())];
        let url = format!("{server}/v1/counter/get?name={}&read={level}", name(key));
        match timeout(ATTEMPT, self.http.get(&url)).await {
            Ok(Ok(reply)) if reply.status == 200 => Some(Done::Get { value: number(&reply.json(), "value") }),
            Ok(Ok(reply)) => {
                assert!(reply.is_passing(), "{url} got {reply:?}");
                None
            }
            Ok(Err(_)) | Err(_) => None,
        }
    }
}

fn name(key: usize) -> String {
    format!("key-{key}")
}

fn number(reply: &Value, field: &str) -> i64 {
    reply[field].as_i64().unwrap_or_else(|| panic!("no {field} in {reply}"))
}

/// Workers on a cluster, and what they have seen.
struct Recording {
    stop: Arc<AtomicBool>,
    count: Arc<AtomicU64>,
    workers: Vec<JoinHandle<Vec<Operation<Counters>>>>,
}

impl Recording {
    async fn start(cluster: &Cluster, levels: &'static [&'static str]) -> Self {
        let (stop, count) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let impatience = Arc::new(AtomicI64::new(IMPATIENT));
        let start = Instant::now();
        let mut workers = Vec::new();
        for number in 0..WORKERS {
            let session = cluster.http.session(&cluster.url(&cluster.primary().await), 120_000).await;
            let (http, urls) = (Http::new(), cluster.urls());
            let worker = Worker {
                number,
                http,
                urls,
                session,
                sequence: 0,
                levels,
                impatience: Arc::clone(&impatience),
                start,
            };
            workers.push(tokio::spawn(worker.run(Arc::clone(&stop), Arc::clone(&count))));
        }
        Self { stop, count, workers }
    }

    /// Waits until many more operations have been done, through all servers alike.
    async fn progress(&self, cluster: &Cluster) {
        let goal = self.count.load(Ordering::Relaxed) + SWING;
        cluster
            .until("the clients get on", async || {
                assert!(!self.workers.iter().any(JoinHandle::is_finished), "a client has failed, see above");
                let count = self.count.load(Ordering::Relaxed);
                if count >= goal { Ok(()) } else { Err(format!("{count} of {goal} operations")) }
            })
            .await;
    }

    async fn check(self) {
        self.stop.store(true, Ordering::Relaxed);
        let mut history = Vec::new();
        for worker in self.workers {
            history.extend(worker.await.expect("a client has failed, see above"));
        }
        let unknown = history.iter().filter(|operation| operation.return_time == i64::MAX).count();
        assert_eq!(
            check_operations_timeout(&history, CHECK),
            CheckResult::Ok,
            "{} operations, {unknown} of them with an unknown outcome: no order explains them",
            history.len()
        );
    }
}

#[tokio::test]
async fn while_servers_are_killed() {
    let cluster = Cluster::start(3).await;
    let recording = Recording::start(&cluster, &["linearizable", "lease"]).await;
    for _ in 0..2 {
        recording.progress(&cluster).await;
        let primary = cluster.primary().await;
        cluster.kill9(&primary);
        recording.progress(&cluster).await;
        cluster.restart(&primary).await;
        recording.progress(&cluster).await;
        let backup = cluster.backup().await;
        cluster.kill9(&backup);
        recording.progress(&cluster).await;
        cluster.restart(&backup).await;
        recording.progress(&cluster).await;
        cluster.kill9_all();
        cluster.names().iter().for_each(|name| cluster.start_server(name));
    }
    cluster.wait_all_ready().await;
    recording.progress(&cluster).await;
    recording.check().await;
    cluster.equal_hashes().await;
}

/// A primary that was stopped for a while does not know that another has taken over. Its clients do not see that.
#[tokio::test]
async fn while_the_primary_is_paused() {
    let cluster = Cluster::start(3).await;
    let recording = Recording::start(&cluster, &["linearizable"]).await;
    for _ in 0..3 {
        recording.progress(&cluster).await;
        let primary = cluster.primary().await;
        cluster.pause(&primary);
        recording.progress(&cluster).await;
        cluster.resume(&primary);
    }
    cluster.wait_all_ready().await;
    recording.progress(&cluster).await;
    recording.check().await;
    cluster.equal_hashes().await;
}

// ---- The checker itself ----

fn operation(call_time: i64, return_time: i64, done: Done) -> Operation<Counters> {
    Operation { client_id: None, call_time, return_time, op: (0, done), metadata: None }
}

fn verdict(history: &[Operation<Counters>]) -> CheckResult {
    check_operations_timeout(history, CHECK)
}

const ADD_5: Done = Done::Add { amount: 5, reply: Some((0, 5)) };
const ADD_5_UNKNOWN: Done = Done::Add { amount: 5, reply: None };

#[test]
fn right_histories_pass() {
    // Two adds at a time, and a read that falls between them.
    let second = Done::Add { amount: 2, reply: Some((5, 7)) };
    let history = [operation(0, 9, second), operation(1, 8, ADD_5), operation(2, 7, Done::Get { value: 5 })];
    assert_eq!(verdict(&history), CheckResult::Ok);
    // What is unknown may have been done, later than it was given up, or never.
    for value in [0, 5] {
        let history = [operation(0, i64::MAX, ADD_5_UNKNOWN), operation(100, 101, Done::Get { value })];
        assert_eq!(verdict(&history), CheckResult::Ok, "read {value}");
    }
}

#[test]
fn wrong_histories_are_rejected() {
    let get = |value| Done::Get { value };
    let wrong: [(&str, Vec<Operation<Counters>>); 5] = [
        ("an acknowledged add is lost", vec![operation(0, 1, ADD_5), operation(2, 3, get(0))]),
        ("an add is done twice", vec![operation(0, 1, ADD_5), operation(2, 3, get(10))]),
        ("two adds get the same reply", vec![operation(0, 9, ADD_5), operation(0, 9, ADD_5)]),
        (
            "a read goes back in time",
            vec![operation(0, 9, ADD_5), operation(1, 2, get(5)), operation(3, 4, get(0))],
        ),
        (
            "an add of unknown outcome is done twice",
            vec![operation(0, i64::MAX, ADD_5_UNKNOWN), operation(2, 3, get(10))],
        ),
    ];
    for (what, history) in wrong {
        assert_eq!(verdict(&history), CheckResult::Illegal, "{what}");
    }
    // The counters are told apart.
    let mut other = operation(2, 3, get(5));
    other.op.0 = 1;
    assert_eq!(verdict(&[operation(0, 1, ADD_5), other]), CheckResult::Illegal);
}
