//! One client of the load, and what all clients share.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hdrhistogram::Histogram;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, timeout};

use super::super::common::ReadName;
use super::super::output::CliError;
use super::Op;
use super::find::{Finder, cause_of};
use super::request::{Commands, Gets, Keys, plain};
use super::wire::{Answer, Wire};

/// The pause after a failed request.
const RETRY_PAUSE: Duration = Duration::from_millis(10);
/// The longest pause that a server can ask for.
const RETRY_PAUSE_MAX: Duration = Duration::from_millis(500);
/// How long the end of a session may take.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// What every client does.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    pub(super) op: Op,
    pub(super) read: ReadName,
    pub(super) batch: u32,
    pub(super) keys: u32,
    pub(super) session_ttl: Duration,
    /// How long a client tries to connect and to open its session before the bench gives up.
    pub(super) patience: Duration,
}

/// What all clients add to.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) ops: AtomicU64,
    pub(super) errors: AtomicU64,
    first_error: Mutex<Option<String>>,
    /// Why a client could not connect yet.
    waiting_for: Mutex<Option<String>>,
    latencies: Mutex<Histogram<u64>>,
    finder: Finder,
}

impl Shared {
    pub(super) fn new(servers: &[String]) -> Result<Self, CliError> {
        // From 1 us to 5 minutes, three digits.
        let latencies = Histogram::new_with_bounds(1, 300_000_000, 3).map_err(CliError::failed)?;
        Ok(Self {
            ops: AtomicU64::new(0),
            errors: AtomicU64::new(0),
            first_error: Mutex::new(None),
            waiting_for: Mutex::new(None),
            latencies: Mutex::new(latencies),
            finder: Finder::new(servers).map_err(CliError::usage)?,
        })
    }

    pub(super) fn first_error(&self) -> Option<String> {
        self.first_error.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn waiting_for(&self) -> Option<String> {
        self.waiting_for.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn latencies(&self) -> Histogram<u64> {
        self.latencies.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// An error unless some server answers.
    pub(super) async fn reach(&self) -> Result<(), String> {
        self.finder.reach().await
    }

    fn count(&self, latency: Duration, ops: u32) {
        self.ops.fetch_add(u64::from(ops), Ordering::Relaxed);
        let mut latencies = self.latencies.lock().unwrap_or_else(PoisonError::into_inner);
        latencies.saturating_record(latency.as_micros() as u64);
    }

    fn count_error(&self, cause: String) {
        self.errors.fetch_add(1, Ordering::Relaxed);
        self.first_error.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(cause);
    }
}

/// What a client sends.
#[derive(Debug)]
enum Requests {
    Commands(Commands),
    Get(Gets),
}

/// Where the next attempt goes.
#[derive(Debug)]
enum Line {
    Up(Wire),
    Down,
}

/// One client: one connection, one session, one request in flight.
#[derive(Debug)]
pub(super) struct Worker {
    shared: Arc<Shared>,
    plan: Plan,
    index: usize,
    line: Line,
    address: String,
    /// The look-up of the primary that `address` came from.
    turn: u64,
    requests: Requests,
    session: Option<u64>,
    sequence: u64,
}

/// What an answer means for the request.
enum Next {
    /// It was answered; go on with another one.
    Done,
    /// It was not; send it again.
    Again(Duration),
    /// It never will be; go on with another one.
    Drop,
}

impl Worker {
    /// Connects and opens a session.
    pub(super) async fn prepare(shared: Arc<Shared>, plan: Plan, index: u32) -> Result<Self, String> {
        let keys = Keys::new(plan.keys, rand::random());
        let requests = match plan.op {
            Op::Add => Requests::Commands(Commands::adds(plan.batch, keys)),
            Op::Order => Requests::Commands(Commands::orders(keys)),
            Op::Say => Requests::Commands(Commands::messages(keys)),
            Op::Get => Requests::Get(Gets::new(plan.read, keys)),
        };
        let mut worker = Self {
            shared,
            plan,
            index: index as usize,
            line: Line::Down,
            address: String::new(),
            turn: 0,
            requests,
            session: None,
            sequence: 1,
        };
        let deadline = Instant::now() + worker.plan.patience;
        loop {
            match worker.connect().await {
                Ok(()) => return Ok(worker),
                Err(cause) if Instant::now() >= deadline => return Err(format!("cannot begin: {cause}")),
                Err(cause) => {
                    *worker.shared.waiting_for.lock().unwrap_or_else(PoisonError::into_inner) = Some(cause);
                    sleep(RETRY_PAUSE).await;
                }
            }
        }
    }

    /// Works until the end; what is answered from `start` on counts.
    pub(super) async fn run(mut self, start: Instant, end: Instant) {
        let mut now = Instant::now();
        while now < end {
            self.choose();
            let begun = now;
            let answered = self.until_answered(begun, end).await;
            now = Instant::now();
            if answered && now >= start && now < end {
                self.shared.count(now - begun, self.plan.batch);
            }
        }
        // The session would expire by itself; the cluster is left tidy where that is quick.
        let _ = timeout(CLOSE_TIMEOUT, self.close()).await;
    }

    fn choose(&mut self) {
        match &mut self.requests {
            Requests::Commands(commands) => commands.choose(),
            Requests::Get(gets) => gets.choose(),
        }
    }

    /// Sends the chosen request until it is answered, for good or ill, or time is up.
    async fn until_answered(&mut self, begun: Instant, end: Instant) -> bool {
        let mut attempt = begun;
        loop {
            let next = match self.exchange(attempt).await {
                Ok(answer) => self.judge(&answer),
                Err(cause) => {
                    self.line = Line::Down;
                    self.shared.count_error(cause);
                    Next::Again(RETRY_PAUSE)
                }
            };
            match next {
                Next::Done => {
                    self.sequence += u64::from(self.plan.batch);
                    return true;
                }
                Next::Drop => {
                    self.sequence += u64::from(self.plan.batch);
                    return false;
                }
                Next::Again(pause) => sleep(pause).await,
            }
            attempt = Instant::now();
            if attempt >= end {
                return false;
            }
        }
    }

    async fn exchange(&mut self, started: Instant) -> Result<Answer, String> {
        if matches!(self.line, Line::Down) {
            self.connect().await?;
        }
        let Line::Up(wire) = &mut self.line else {
            return Err("not connected".to_owned());
        };
        let request = match &mut self.requests {
            Requests::Commands(commands) => commands.request(self.sequence),
            Requests::Get(gets) => gets.request(),
        };
        wire.exchange(request, started).await.map_err(|error| format!("{}: {error}", self.address))
    }

    fn judge(&mut self, answer: &Answer) -> Next {
        let Line::Up(wire) = &self.line else {
            return Next::Again(RETRY_PAUSE);
        };
        let body = wire.body(answer);
        let failed = (answer.status != 200)
            .then(|| (cause_of(answer.status, body), serde_json::from_slice(body).unwrap_or_default()));
        let failed = failed.or_else(|| (self.plan.batch > 1).then(|| refusal_in(body)).flatten());
        if !answer.keep {
            self.line = Line::Down;
        }
        let Some((cause, problem)): Option<(String, Value)> = failed else {
            return Next::Done;
        };
        self.shared.count_error(format!("{}: {cause}", self.address));
        match (answer.status, problem.get("code").and_then(Value::as_str).unwrap_or_default()) {
            (_, "session_expired" | "sequence_acked" | "sequence_reused") => {
                self.session = None;
                self.line = Line::Down;
                Next::Drop
            }
            (429, _) => Next::Again(asked_pause(&problem)),
            (408 | 421, _) | (500.., _) => {
                // Perhaps another one is the primary by now.
                self.line = Line::Down;
                Next::Again(asked_pause(&problem))
            }
            _ => Next::Drop,
        }
    }

    /// Connects to the server that is to be measured, and opens a session if there is none.
    async fn connect(&mut self) -> Result<(), String> {
        if self.plan.op == Op::Get && self.plan.read == ReadName::Stale {
            // Any server answers these: spread them, and go round after a failure.
            let servers = self.shared.finder.servers();
            self.address = servers[(self.index + self.turn as usize) % servers.len()].clone();
            self.turn += 1;
        } else {
            (self.turn, self.address) = self.shared.finder.primary(self.turn).await?;
        }
        let mut wire =
            Wire::open(&self.address).await.map_err(|error| format!("{}: {error}", self.address))?;
        match &mut self.requests {
            Requests::Get(gets) => gets.connect(&self.address),
            Requests::Commands(commands) => {
                let session = match self.session {
                    Some(session) => session,
                    None => {
                        let opened = open_session(&mut wire, &self.address, self.plan.session_ttl).await?;
                        let used = match self.plan.op {
                            Op::Say => login(&mut wire, &self.address, opened).await?,
                            Op::Add | Op::Get | Op::Order => 0,
                        };
                        (self.session, self.sequence) = (Some(opened), used + 1);
                        opened
                    }
                };
                commands.connect(&self.address, session);
            }
        }
        self.line = Line::Up(wire);
        Ok(())
    }

    async fn close(&mut self) {
        if let (Line::Up(wire), Some(session)) = (&mut self.line, self.session) {
            let request = plain("DELETE", &format!("/v1/sessions/{session}"), &self.address, "");
            // Nothing depends on it.
            let _ = wire.exchange(&request, Instant::now()).await;
        }
    }
}

async fn open_session(wire: &mut Wire, address: &str, ttl: Duration) -> Result<u64, String> {
    let body = json!({"ttl_ms": ttl.as_millis() as u64}).to_string();
    let request = plain("POST", "/v1/sessions", address, &body);
    let answer =
        wire.exchange(&request, Instant::now()).await.map_err(|error| format!("{address}: {error}"))?;
    let body = wire.body(&answer);
    if !matches!(answer.status, 200 | 201) {
        return Err(format!("{address}: no session: {}", cause_of(answer.status, body)));
    }
    let opened: Value = serde_json::from_slice(body).map_err(|error| format!("{address}: {error}"))?;
    opened
        .get("session")
        .and_then(Value::as_u64)
        .ok_or_else(|| format!("{address}: a session without a number"))
}

/// Logs a session in to the chat, as an account of its own. Gives the sequence that it took.
async fn login(wire: &mut Wire, address: &str, session: u64) -> Result<u64, String> {
    let body = json!({"name": format!("bench-{session}")}).to_string();
    let head = format!("{address}\r\nquorate-session: {session}\r\nquorate-sequence: 1");
    let request = plain("POST", "/v1/chat/login", &head, &body);
    let answer =
        wire.exchange(&request, Instant::now()).await.map_err(|error| format!("{address}: {error}"))?;
    match answer.status {
        200 => Ok(1),
        status => Err(format!("{address}: no login: {}", cause_of(status, wire.body(&answer)))),
    }
}

fn asked_pause(problem: &Value) -> Duration {
    let asked = problem.get("retry_after_ms").and_then(Value::as_u64).map(Duration::from_millis);
    asked.unwrap_or(RETRY_PAUSE).clamp(Duration::from_millis(1), RETRY_PAUSE_MAX)
}

/// A refusal at the beginning or the end of a batch's replies: a session that is lost or full shows there, and nothing
/// else refuses an add of 1. Reading all of a large answer would cost the servers' time.
fn refusal_in(body: &[u8]) -> Option<(String, Value)> {
    if !body.starts_with(br#"[{"refused""#) && !body.ends_with(b"}}]") {
        return None;
    }
    let mut replies: Vec<Value> = serde_json::from_slice(body).ok()?;
    let problem = replies.iter_mut().find_map(|reply| reply.get_mut("refused").map(Value::take))?;
    Some((format!("in a batch: {problem}"), problem))
}
