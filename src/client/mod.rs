//! The Rust client.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use quorate::client::Client;
//!
//! let client = Client::builder().servers(["http://127.0.0.1:8001", "http://127.0.0.1:8002"]).build()?;
//! let reply = client.counter("hits").add(5).await?;
//! println!("{} at revision {}", reply.value, reply.revision);
//! client.close().await?;
//! # Ok(())
//! # }
//! ```
//!
//! A [`Client`] is cheap to clone, and any number of requests may be in flight on it. Each request has a deadline.
//! Until then it is retried, on one server after the other, with the same session and sequence, so that it is applied
//! once however often it had to be sent. [`Error`] says for certain whether a request that brought no reply may have
//! been applied.
//!
//! Caveats:
//! - Without a session ([`SessionMode::Off`]) a command whose reply is lost is not retried: its outcome is unknown.
//! - After `session_expired` the outcome of that one request is unknown, even if it was sent once only; later requests
//!   go on in a new session.
//! - A named session belongs to one client at a time: two that number the same session get in each other's way.

mod background;
mod builder;
mod chat;
mod cluster;
mod error;
mod exchange;
mod group;
mod hooks;
mod jobs;
mod problem;
mod retry;
mod servers;
mod services;
mod session;
mod transport;
pub(crate) mod watch;
mod worker;

#[cfg(test)]
pub(crate) mod stub;
#[cfg(test)]
mod tests;

use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::time::Instant;

pub use background::Background;
pub use builder::{BuildError, ClientBuilder, DEFAULT_SERVERS, DEFAULT_SESSION_TTL, DEFAULT_TIMEOUT};
pub(crate) use chat::is_refusal;
pub use chat::{Chat, ChatAccount, ChatEvent, ChatEvents, ChatLine, ChatLogin, ChatSaid};
pub use cluster::{ClusterStatus, LogPage, LoggedDelta, Membership, MembershipChange, ServerStatus};
pub use error::{AttemptEnd, Error, ErrorKind, Failure, Refused, TRIED_KEPT, Tried};
pub use exchange::{CacheStats, Exchange, Ordered, Orders, OrdersQuery, Stock};
pub use group::Group;
pub use hooks::{Call, Hooks};
pub use jobs::{JobList, JobResult, JobState, Jobs, NewJob, Purged, RingView, Submitted};
pub use services::{
    Counter, CounterReply, CounterRow, CounterRows, CounterValue, ListQuery, Register, RegisterReply,
    RegisterRow, RegisterRows, RegisterText,
};
pub use session::{SessionMode, WINDOW};
pub use watch::{Event, Position, Watch};
pub use worker::{Attempt, DEFAULT_LEASE, Failed, Stop, Tally, Task, Worker, WorkerEvent};

use error::History;
pub(crate) use error::PEER_PORT;
use group::Duplicates;
pub(crate) use problem::Problem;
pub(crate) use servers::parse as parse_server;
use session::{Sessions, Ticket};
use transport::{Answer, Repeat, Request, Transport};

/// The result of a request.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A connection to a cluster. Clones share the session and the connections.
#[derive(Debug, Clone)]
pub struct Client {
    inner: Arc<Inner>,
    timeout: Duration,
    group: Option<Group>,
}

#[derive(Debug)]
struct Inner {
    transport: Arc<Transport>,
    sessions: Sessions,
    duplicates: Duplicates,
}

/// A reply, and how it came.
#[derive(Debug, Clone)]
pub struct Reply<T> {
    /// What the service answered; also reached by plain dereference.
    pub data: T,
    /// The HTTP body as it was received.
    pub body: String,
    /// The server that answered.
    pub server: String,
    /// How often the request was sent.
    pub attempts: u32,
}

impl<T> Deref for Reply<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.data
    }
}

/// How fresh the answer to a query has to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ReadLevel {
    /// It contains every command that was acknowledged before the query was sent.
    #[default]
    Linearizable,
    /// The same as long as the clocks of the servers run at about the same speed; saves a round trip among them.
    Lease,
    /// Whatever the asked server has, at most this old.
    Stale {
        /// The oldest answer that is good enough; no bound when absent.
        max_age: Option<Duration>,
    },
}

impl ReadLevel {
    fn add_to(self, query: &mut Vec<(&str, String)>) {
        let name = match self {
            Self::Linearizable => "linearizable",
            Self::Lease => "lease",
            Self::Stale { .. } => "stale",
        };
        query.push(("read", name.to_owned()));
        if let Self::Stale { max_age: Some(max_age) } = self {
            query.push(("max_age_ms", max_age.as_millis().to_string()));
        }
    }
}

/// What one command of a batch came to.
pub type BatchResult = std::result::Result<Value, Box<Refused>>;

impl Client {
    /// Starts to set up a client.
    pub fn builder() -> ClientBuilder {
        ClientBuilder::default()
    }

    /// The same client, with another time limit for the requests that are made through this handle.
    #[must_use]
    pub fn with_timeout(&self, timeout: Duration) -> Self {
        Self { timeout, ..self.clone() }
    }

    /// The same client, whose commands through this handle go to every server at once. One that dies, or hangs, holds none
    /// of them up. They need a session: without one they would be applied several times, and so are refused here.
    #[must_use]
    pub fn group(&self, group: Group) -> Self {
        Self { group: Some(group), ..self.clone() }
    }

    /// How many replies to commands of [`Client::group`] came when nobody waited for them any more.
    pub fn duplicates(&self) -> u64 {
        self.inner.duplicates.count()
    }

    /// Waits until no duplicates are to come any more, a second at most.
    pub async fn settle_duplicates(&self) {
        self.inner.duplicates.settle().await;
    }

    /// The name of the session that a later client can go on with.
    pub fn session_name(&self) -> Option<&str> {
        self.inner.sessions.name()
    }

    /// Sends a command to a service, once and only once in effect.
    pub async fn command<T: DeserializeOwned>(
        &self,
        service: &str,
        command: &str,
        body: &(impl Serialize + ?Sized),
    ) -> Result<Reply<T>> {
        let (_, answer) = self.send(vec!["v1", service, command], encode(body)?, 1).await?;
        decode(answer, true)
    }

    /// Sends many commands as one log entry. Each has its own reply or refusal, in the order given; a refusal of one
    /// does not undo the others. At most [`WINDOW`] commands fit into one batch.
    pub async fn batch(&self, commands: &[BatchCommand]) -> Result<Reply<Vec<BatchResult>>> {
        let count = commands.len();
        if count == 0 || count > WINDOW {
            return Err(bad_request(format!("a batch holds 1 to {WINDOW} commands, this one {count}")));
        }
        let body: Vec<Value> = commands.iter().map(BatchCommand::to_json).collect();
        // Each command is a delta of its own: the n-th has the request's number plus n.
        let (ticket, answer) = self.send(vec!["v1", "batch"], encode(&body)?, count as u32).await?;
        let reply: Reply<Vec<Value>> = decode(answer, true)?;
        let results: Vec<BatchResult> = reply.data.into_iter().map(batch_result).collect();
        let problems = results.iter().filter_map(|result| result.as_ref().err());
        if let Some(refused) = problems.into_iter().find(|refused| is_of_session(refused)) {
            // No command of the batch can be vouched for, so none is called refused.
            if let Some(ticket) = &ticket {
                ticket.session_lost();
            }
            let mut history = History::default();
            history.add(&reply.server, refused.detail.clone(), Some(refused.code.clone()));
            return Err(
                history.fail(true, format!("the session cannot vouch for this batch ({})", refused.code))
            );
        }
        Ok(Reply { data: results, body: reply.body, server: reply.server, attempts: reply.attempts })
    }

    /// Asks a service, without changing anything.
    pub async fn query<T: DeserializeOwned>(
        &self,
        service: &str,
        query: &str,
        params: &[(&str, &str)],
        level: ReadLevel,
    ) -> Result<Reply<T>> {
        let mut pairs: Vec<(&str, String)> =
            params.iter().map(|(key, value)| (*key, (*value).to_owned())).collect();
        level.add_to(&mut pairs);
        self.get(vec!["v1", service, query], pairs).await
    }

    /// Ends the session. Wait for the replies of all commands first: those still under way end with an unknown
    /// outcome. A command that follows opens another session.
    pub async fn close(&self) -> Result<()> {
        self.inner.sessions.close(&self.inner.transport, self.deadline()).await
    }

    fn deadline(&self) -> Instant {
        Instant::now() + self.timeout
    }

    async fn send(&self, path: Vec<&str>, body: Bytes, count: u32) -> Result<(Option<Arc<Ticket>>, Answer)> {
        let deadline = self.deadline();
        let ticket = self.inner.sessions.ticket(&self.inner.transport, count, deadline).await?.map(Arc::new);
        if let Some(group) = self.group {
            let Some(ticket) = ticket else {
                return Err(bad_request("a command to a group of servers needs a session".to_owned()));
            };
            let answer = group::call(&self.inner, group, path, body, &ticket, deadline).await?;
            return Ok((Some(ticket), answer));
        }
        let repeat = if ticket.is_some() { Repeat::Harmless } else { Repeat::Harmful };
        let request = Request { ticket: ticket.as_deref(), ..Request::post(path, body, repeat) };
        let answer = self.inner.transport.call(&request, deadline).await?;
        Ok((ticket, answer))
    }

    async fn get<T: DeserializeOwned>(
        &self,
        path: Vec<&str>,
        query: Vec<(&str, String)>,
    ) -> Result<Reply<T>> {
        let answer = self.inner.transport.call(&Request::get(path, query), self.deadline()).await?;
        decode(answer, false)
    }
}

/// One command of a batch.
#[derive(Debug, Clone)]
pub struct BatchCommand {
    /// The service, for example `counter`.
    pub service: String,
    /// Its command, for example `add`.
    pub command: String,
    /// The command's fields.
    pub body: Value,
}

impl BatchCommand {
    /// A command for a batch.
    pub fn new(service: impl Into<String>, command: impl Into<String>, body: Value) -> Self {
        Self { service: service.into(), command: command.into(), body }
    }

    fn to_json(&self) -> Value {
        json!({ &self.service: { &self.command: &self.body } })
    }
}

fn batch_result(mut entry: Value) -> BatchResult {
    match entry.get_mut("refused").map(Value::take) {
        None => Ok(entry),
        Some(refused) => {
            let mut problem = Problem::from_json(refused);
            if problem.code.is_empty() {
                problem.code = "refused".to_owned();
            }
            Err(Box::new(Refused::new(409, problem)))
        }
    }
}

fn is_of_session(refused: &Refused) -> bool {
    Problem::from_json(refused.problem.clone()).is_of_session()
}

fn encode(body: &(impl Serialize + ?Sized)) -> Result<Bytes> {
    serde_json::to_vec(body)
        .map(Bytes::from)
        .map_err(|error| bad_request(format!("not to be put as JSON: {error}")))
}

/// A request that is refused before it is sent.
fn bad_request(detail: String) -> Error {
    let problem = Problem { code: "bad_request".to_owned(), detail, ..Problem::default() };
    Error::Refused(Box::new(Refused::new(400, problem)))
}

/// The error after a reply that is none of Quorate's, or of another version.
fn not_understood(server: &str, said: String, changes: bool) -> Error {
    let mut history = History::default();
    history.add(server, said, None);
    let cause =
        "the reply could not be read; is it a Quorate server, and of the same version as this client?";
    if changes { history.fail(true, cause.to_owned()) } else { history.fail_question(cause.to_owned()) }
}

fn decode<T: DeserializeOwned>(answer: Answer, changes: bool) -> Result<Reply<T>> {
    let data = serde_json::from_slice(&answer.body).map_err(|error| {
        // It was carried out, but what came of it cannot be told.
        not_understood(&answer.server, format!("answered in words not understood: {error}"), changes)
    })?;
    let body = String::from_utf8_lossy(&answer.body).into_owned();
    Ok(Reply { data, body, server: answer.server, attempts: answer.attempts })
}
