//! Clients that can tell whether the cluster keeps its word.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use quorate_cluster::error::Attempt;
use quorate_cluster::node::{Node, ReadLevel};
use quorate_storage::codec;
use quorate_storage::delta::{Command, DeltaResult, Outcome, SESSION_SERVICE};
use quorate_storage::machine::{SessionCommand, SessionReply};
use tokio::task::JoinHandle;

use super::tally::{self, held, value};
use super::{Nodes, PATIENCE};

/// One attempt through one server.
const ATTEMPT: Duration = Duration::from_millis(700);

/// A client that adds to a number of its own, one add after the other, each until it is acknowledged.
/// So the n-th reply must be n: nothing lost, nothing twice (invariants 1 and 2).
pub(crate) struct Client {
    nodes: Nodes,
    key: String,
    session: u64,
    acked: u64,
    turn: usize,
    history: Arc<History>,
}

/// What a client has asked for and been told, for those who read its number.
#[derive(Default)]
pub(crate) struct History {
    started: AtomicU64,
    acked: AtomicU64,
    /// When the n-th add was acknowledged.
    at: Mutex<Vec<Instant>>,
}

impl History {
    /// How many adds had been acknowledged by `time`.
    fn acked_by(&self, time: Instant) -> u64 {
        self.at.lock().unwrap().partition_point(|at| *at <= time) as u64
    }
}

impl Client {
    pub(crate) async fn open(nodes: &Nodes, key: &str) -> Self {
        let open = SessionCommand::Open { name: Some(key.to_owned()), ttl_ms: Some(3_600_000) };
        let mut client = Self {
            nodes: nodes.clone(),
            key: key.to_owned(),
            session: 0,
            acked: 0,
            turn: key.len(),
            history: Arc::default(),
        };
        let outcome = client.until_done(Command::sessionless(SESSION_SERVICE, codec::encode(&open))).await;
        let DeltaResult::Reply(reply) = outcome.result else { panic!("no session: {outcome:?}") };
        let reply: SessionReply = codec::decode(&reply).unwrap();
        client.session = reply.session;
        client
    }

    pub(crate) fn acked(&self) -> u64 {
        self.acked
    }

    /// The next add, as a command.
    pub(crate) fn next_add(&self) -> Command {
        let (session, sequence, acked) = (self.session, self.acked + 1, self.acked);
        Command { session, sequence, acked, ..tally::add(&self.key) }
    }

    /// Adds one, through whichever server takes it; then, now and then, asks again and must be told the same.
    pub(crate) async fn add(&mut self) {
        let command = self.next_add();
        self.history.started.store(command.sequence, Ordering::SeqCst);
        let outcome = self.until_done(command.clone()).await;
        assert_eq!(value(&outcome), command.sequence, "invariants 1 and 2: {} got {outcome:?}", self.key);
        if command.sequence.is_multiple_of(5) {
            let again = self.until_done(command.clone()).await;
            assert_eq!(again, outcome, "invariant 2: a retry gets the first reply");
        }
        self.acked = command.sequence;
        self.history.at.lock().unwrap().push(Instant::now());
        self.history.acked.store(self.acked, Ordering::SeqCst);
    }

    /// Retries with the same session and sequence through one server after the other.
    async fn until_done(&mut self, command: Command) -> Outcome {
        let deadline = Instant::now() + PATIENCE;
        let mut last = String::new();
        loop {
            assert!(Instant::now() < deadline, "no server took {command:?}: {last}");
            self.turn += 1;
            let nodes = self.nodes.all();
            let Some(node) = nodes.get(self.turn % nodes.len().max(1)) else {
                tokio::time::sleep(Duration::from_millis(20)).await;
                continue;
            };
            match node.propose(command.clone(), Instant::now() + ATTEMPT).await {
                Ok(outcome) => return outcome,
                Err(e) => last = format!("{e:?}"),
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// Clients, each with a reader, that work until they are told to stop.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    clients: Vec<JoinHandle<Client>>,
    readers: Vec<JoinHandle<Reads>>,
}

/// What the clients did.
#[derive(Debug, Default)]
pub(crate) struct Summary {
    pub(crate) adds: u64,
    pub(crate) reads: Reads,
    totals: Vec<(String, u64)>,
}

/// How many reads were answered.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Reads {
    pub(crate) fresh: u64,
    pub(crate) stale: u64,
}

impl Load {
    pub(crate) async fn start(nodes: &Nodes, clients: usize) -> Self {
        let stop = Arc::<AtomicBool>::default();
        let (mut tasks, mut readers) = (Vec::new(), Vec::new());
        for number in 0..clients {
            let mut client = Client::open(nodes, &format!("client{number}")).await;
            let (key, history) = (client.key.clone(), Arc::clone(&client.history));
            readers.push(tokio::spawn(read(nodes.clone(), key, history, Arc::clone(&stop))));
            let stop = Arc::clone(&stop);
            tasks.push(tokio::spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    client.add().await;
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
                client
            }));
        }
        Self { stop, clients: tasks, readers }
    }

    /// Waits for the adds that are on their way.
    pub(crate) async fn stop(self) -> Summary {
        self.stop.store(true, Ordering::Relaxed);
        let mut summary = Summary::default();
        for client in self.clients {
            let client = client.await.unwrap();
            summary.adds += client.acked;
            summary.totals.push((client.key, client.acked));
        }
        for reader in self.readers {
            let reads = reader.await.unwrap();
            summary.reads.fresh += reads.fresh;
            summary.reads.stale += reads.stale;
        }
        summary
    }
}

impl Summary {
    /// Every acknowledged add is in the end value exactly once. To be asked once all has converged.
    pub(crate) fn check(&self, nodes: &Nodes) {
        for node in nodes.all() {
            for (key, total) in &self.totals {
                assert_eq!(held(&node, key), *total, "invariants 1 and 2: {key} on {}", node.name());
            }
        }
    }
}

/// Reads one client's number through all servers in turn, at all levels (invariant 3).
async fn read(nodes: Nodes, key: String, history: Arc<History>, stop: Arc<AtomicBool>) -> Reads {
    let mut reads = Reads::default();
    let mut turn = 0;
    let mut newest = 0;
    while !stop.load(Ordering::Relaxed) {
        tokio::time::sleep(Duration::from_millis(3)).await;
        turn += 1;
        let running = nodes.all();
        let Some(node) = running.get(turn % running.len().max(1)) else { continue };
        let level = match turn / 3 % 4 {
            0 | 1 => ReadLevel::Linearizable,
            2 => ReadLevel::Lease,
            _ => ReadLevel::Stale { max_age: None },
        };
        let told = history.acked.load(Ordering::SeqCst);
        let Ok(point) = node.read_point(level, Instant::now() + ATTEMPT).await else { continue };
        let allowed = Instant::now();
        let seen = held(node, &key);
        let started = history.started.load(Ordering::SeqCst);
        let at = format!("{key} through {} at {level:?}", node.name());
        assert!(seen <= started, "{at}: {seen} seen, {started} asked for");
        match (level, point.age) {
            (ReadLevel::Stale { .. }, None) => {}
            (ReadLevel::Stale { .. }, Some(age)) => {
                let then = allowed.checked_sub(age).map_or(0, |then| history.acked_by(then));
                assert!(seen >= then, "invariant 3: {at}: {seen} seen, {then} were acknowledged {age:?} ago");
                reads.stale += 1;
            }
            _ => {
                assert!(seen >= told, "invariant 3: {at}: {seen} seen, {told} were acknowledged");
                assert!(seen >= newest, "invariant 3: {at}: {seen} seen, after {newest}");
                newest = seen;
                reads.fresh += 1;
            }
        }
    }
    reads
}

/// Adds without a session, each to a number of its own: shows whether errors tell the truth (invariant 6).
#[derive(Default)]
pub(crate) struct Attempts {
    made: Vec<(String, Option<Attempt>)>,
}

impl Attempts {
    /// One attempt through `node`. What became of it: `None` when it was acknowledged.
    pub(crate) async fn add(&mut self, node: &Node, deadline: Instant) -> Option<Attempt> {
        let key = format!("attempt{}", self.made.len());
        let result = node.propose(tally::add(&key), deadline).await;
        let told = result.err().map(|e| e.attempt);
        self.made.push((key, told));
        told
    }

    /// Compares what was told with what is there. To be asked once all has converged.
    pub(crate) fn check(&self, nodes: &Nodes) {
        for node in nodes.all() {
            for (key, told) in &self.made {
                let found = held(&node, key);
                let right = match told {
                    None => found == 1,
                    Some(Attempt::NotApplied) => found == 0,
                    Some(Attempt::Unknown) => found <= 1,
                };
                assert!(right, "invariants 1 and 6: {key} was told {told:?}, {} holds {found}", node.name());
            }
        }
    }
}
