//! What can go wrong with a request, sorted by what the caller has to know first: may it have been applied?
//!
//! - [`Error::Refused`]: the cluster looked at the request and said no. It changed nothing, and asking again with
//!   the same words brings the same answer.
//! - [`Error::NotApplied`]: no server carried it out, for certain. It may be sent again.
//! - [`Error::Unknown`]: at least one attempt may have reached a server that applied it, and no later attempt
//!   brought the reply. It is never reported as failed: look at the state before sending it again.

use std::fmt;

use serde_json::Value;

use super::problem::{Problem, is_foreign};
use super::watch::Position;

/// Why a request brought no reply. See the module's page for what each variant promises.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// The cluster said no, for certain: nothing was changed.
    #[error("{0}")]
    Refused(Box<Refused>),
    /// No server carried the request out, for certain.
    #[error("{what}: {0}", what = if .0.changes { "not applied" } else { "not answered" })]
    NotApplied(Box<Failure>),
    /// The request may or may not have been applied.
    #[error("outcome unknown: {0}")]
    Unknown(Box<Failure>),
}

impl Error {
    /// Is it open whether the request was applied?
    pub fn is_unknown(&self) -> bool {
        matches!(self, Self::Unknown(_))
    }

    /// What kind of error it is.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Refused(_) => ErrorKind::Refused,
            Self::NotApplied(failure) | Self::Unknown(failure) => failure.kind(),
        }
    }

    /// The code of the last problem that a server named, such as `refused` or `no_primary`.
    pub fn code(&self) -> Option<&str> {
        match self {
            Self::Refused(refused) => Some(&refused.code),
            Self::NotApplied(failure) | Self::Unknown(failure) => failure.code.as_deref(),
        }
    }

    /// The refusal, when the cluster said no.
    pub fn refused(&self) -> Option<&Refused> {
        match self {
            Self::Refused(refused) => Some(refused),
            _ => None,
        }
    }

    /// Is it that no server was found at all, so that any other request would end the same?
    pub(crate) fn finds_no_server(&self) -> bool {
        match self {
            Self::Refused(refused) => is_foreign(&refused.code),
            Self::NotApplied(failure) | Self::Unknown(failure) => !failure.reached,
        }
    }

    /// The same failure, known to have changed nothing: for a step that came before the command itself.
    pub(crate) fn before_sending(self) -> Self {
        match self {
            Self::Unknown(failure) => {
                let next = if failure.next == NEXT_UNKNOWN { NEXT_NOT_APPLIED } else { failure.next };
                Self::NotApplied(Box::new(Failure { next, ..*failure }))
            }
            other => other,
        }
    }
}

/// What kind of error brought a request to its end. Whether it may have been applied is another question:
/// [`Error::is_unknown`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// The cluster said no.
    Refused,
    /// No server takes connections: no process listens at any of the addresses.
    ConnectionRefused,
    /// The network or the servers are silent: connections, or answers, did not come in time.
    NetworkTimeout,
    /// The request's own time limit has passed, for other reasons or for several.
    TimedOut,
    /// Servers were reached, and none could carry the request out.
    Unavailable,
}

/// A "no" of the cluster: a refusal of the service, or a request that the server cannot take as it is.
#[derive(Debug, Clone, PartialEq)]
pub struct Refused {
    /// The problem's code, for example `refused`, `bad_request`, `compacted`.
    pub code: String,
    /// The service's own word for it, when it was the service that refused, for example `compare_failed`.
    pub refusal: Option<String>,
    /// The cause, and what to do about it.
    pub detail: String,
    /// The HTTP status.
    pub status: u16,
    /// The address of the server that said so; empty for what was refused before anything was sent, and within a batch.
    pub server: String,
    /// The value as it is now, after a failed compare.
    pub current: Option<Value>,
    /// Where a watch can begin, when events after the asked position are no longer kept.
    pub oldest: Option<Position>,
    /// The problem as it came, with whatever else the service put into it.
    pub problem: Value,
}

impl Refused {
    /// Is it a service's own refusal? Those are logged and remembered like replies.
    pub fn is_by_service(&self) -> bool {
        self.refusal.is_some()
    }

    /// The "no" of a server. What comes from no server's HTTP address says where it comes from.
    pub(crate) fn by(server: &str, status: u16, problem: Problem) -> Self {
        let foreign = problem.is_foreign();
        let refused = Self { server: server.to_owned(), ..Self::new(status, problem) };
        if foreign {
            return Self { detail: format!("{server}: {}", refused.detail), ..refused };
        }
        refused
    }

    pub(crate) fn new(status: u16, problem: Problem) -> Self {
        Self {
            code: problem.code,
            refusal: problem.refusal,
            detail: problem.detail,
            status,
            server: String::new(),
            current: problem.current,
            oldest: problem.oldest,
            problem: problem.body,
        }
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.refusal {
            Some(refusal) => write!(f, "refused ({refusal}): {}", self.detail)?,
            None if self.code == "refused" => write!(f, "refused: {}", self.detail)?,
            None => write!(f, "refused ({}): {}", self.code, self.detail)?,
        }
        if let Some(current) = self.current.as_ref().map(Value::to_string)
            && !self.detail.contains(&current)
        {
            write!(f, "; the current value is {current}")?;
        }
        if let Some(oldest) = self.oldest {
            write!(f, "; a watch can begin after {oldest}")?;
        }
        Ok(())
    }
}

/// A request that brought no reply: why, where it was tried, and what to do next.
#[derive(Debug, Clone, PartialEq)]
pub struct Failure {
    /// Why the request was given up.
    pub cause: String,
    /// Is it a request that changes something, and not a mere question?
    pub changes: bool,
    /// The last problem code that a server named.
    pub code: Option<String>,
    /// Did any server answer or at least take the connection?
    pub reached: bool,
    /// The last attempts, oldest first (at most [`TRIED_KEPT`]).
    pub tried: Vec<Tried>,
    /// How many attempts there were in all.
    pub attempts: u32,
    /// Has the request's time limit passed?
    pub timed_out: bool,
    /// What the caller can do now.
    pub next: &'static str,
}

/// How many attempts an error lists.
pub const TRIED_KEPT: usize = 8;

impl Failure {
    fn kind(&self) -> ErrorKind {
        let last = last_per_server(&self.tried);
        let all = |how| !last.is_empty() && last.iter().all(|tried| tried.how == how);
        match self.timed_out {
            _ if all(AttemptEnd::ConnectionRefused) => ErrorKind::ConnectionRefused,
            _ if all(AttemptEnd::NetworkTimeout) => ErrorKind::NetworkTimeout,
            true => ErrorKind::TimedOut,
            false => ErrorKind::Unavailable,
        }
    }
}

/// How an attempt ended that brought no reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttemptEnd {
    /// Nobody listens there.
    ConnectionRefused,
    /// No connection, or no answer, came in time.
    NetworkTimeout,
    /// The connection could not be made, or broke off.
    Broken,
    /// There was an answer, but no reply.
    Answered,
}

/// One attempt on one server.
#[derive(Debug, Clone, PartialEq)]
pub struct Tried {
    /// The server's address.
    pub server: String,
    /// How it ended.
    pub how: AttemptEnd,
    /// What came of it.
    pub cause: String,
}

pub(crate) const NEXT_NOT_APPLIED: &str =
    "see `quorate cluster status`; it is safe to send the request again";
const NEXT_NOT_ANSWERED: &str = "see `quorate cluster status`, or ask again";
const NEXT_NOBODY: &str =
    "is a server running there? `scripts/cluster.sh up` starts three; --servers names others";
const NEXT_STRANGERS: &str = "give --servers the HTTP address of a server, that of its --listen";
/// What the HTTP library says of a connection that ended where an answer was to come.
const CLOSED: &str = "connection closed before message completed";
pub(crate) const PEER_PORT: &str = "is this a peer port? --servers wants the HTTP address, that of --listen";
pub(crate) const NEXT_UNKNOWN: &str =
    "read the state, or `quorate cluster log`, before sending the request again";

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.cause)?;
        if !self.tried.is_empty() {
            match self.attempts {
                1 => write!(f, "; tried once")?,
                attempts => write!(f, "; tried {attempts} times")?,
            }
            let mut separator = ": ";
            for tried in last_per_server(&self.tried) {
                write!(f, "{separator}{} ({}", tried.server, tried.cause)?;
                let mut attempts = self.tried.iter().filter(|other| other.server == tried.server);
                if attempts.all(|attempt| attempt.cause == CLOSED) {
                    write!(f, "; {PEER_PORT}")?;
                }
                separator = "), ";
            }
            write!(f, ")")?;
        }
        write!(f, "; next: {}", self.next)
    }
}

/// The last thing that each server said, in the order in which the servers were first tried.
fn last_per_server(tried: &[Tried]) -> Vec<&Tried> {
    let mut last: Vec<&Tried> = Vec::new();
    for attempt in tried {
        match last.iter_mut().find(|seen| seen.server == attempt.server) {
            Some(seen) => *seen = attempt,
            None => last.push(attempt),
        }
    }
    last
}

/// What a request went through, kept for the error that it may end in.
#[derive(Debug, Default)]
pub(crate) struct History {
    tried: Vec<Tried>,
    attempts: u32,
    code: Option<String>,
    /// Did any server take a connection?
    reached: bool,
    /// How many attempts met something that is no server's HTTP address.
    strangers: u32,
    /// The request's time limit has passed.
    timed_out: bool,
}

impl History {
    /// An attempt on a server that answered.
    pub(crate) fn add(&mut self, server: &str, cause: String, code: Option<String>) {
        self.push(server, cause, AttemptEnd::Answered);
        self.code = code;
        self.reached = true;
    }

    /// An attempt that brought no answer; `sent`, if the server took the connection.
    pub(crate) fn add_broken(&mut self, server: &str, cause: String, how: AttemptEnd, sent: bool) {
        self.push(server, cause, how);
        self.code = None;
        self.reached |= sent;
    }

    fn push(&mut self, server: &str, cause: String, how: AttemptEnd) {
        if self.tried.len() == TRIED_KEPT {
            self.tried.remove(0);
        }
        self.tried.push(Tried { server: server.to_owned(), how, cause });
        self.attempts += 1;
    }

    /// The request's time limit has passed.
    pub(crate) fn time_is_up(&mut self) {
        self.timed_out = true;
    }

    /// An attempt on something that is no server's HTTP address, and will not become one.
    pub(crate) fn add_stranger(&mut self, server: &str, cause: String) {
        self.add(server, cause, None);
        self.strangers += 1;
    }

    pub(crate) fn attempts(&self) -> u32 {
        self.attempts
    }

    /// The same, of something that does not even speak HTTP.
    pub(crate) fn add_not_http(&mut self, server: &str, cause: &str) {
        self.add_stranger(server, format!("what answers is not HTTP: {cause}; {PEER_PORT}"));
    }

    /// Whether one of `servers` may be found yet, when the one just asked is a stranger. A server that is away may come
    /// back; a stranger will never be a server.
    pub(crate) fn others_left(&self, servers: usize) -> bool {
        !self.met_only_strangers() || self.attempts as usize + 1 < servers
    }

    fn met_only_strangers(&self) -> bool {
        self.strangers == self.attempts
    }

    /// The error that a command's history ends in.
    pub(crate) fn fail(self, maybe_applied: bool, cause: String) -> Error {
        if maybe_applied {
            Error::Unknown(self.failure(cause, true, NEXT_UNKNOWN))
        } else {
            Error::NotApplied(self.failure(cause, true, NEXT_NOT_APPLIED))
        }
    }

    /// The error that a question's history ends in.
    pub(crate) fn fail_question(self, cause: String) -> Error {
        Error::NotApplied(self.failure(cause, false, NEXT_NOT_ANSWERED))
    }

    fn failure(self, cause: String, changes: bool, next: &'static str) -> Box<Failure> {
        let (cause, next) = if self.attempts == 0 {
            (cause, next)
        } else if !self.reached {
            ("no server can be reached".to_owned(), NEXT_NOBODY)
        } else if self.met_only_strangers() {
            (cause, NEXT_STRANGERS)
        } else {
            (cause, next)
        };
        let reached = self.attempts == 0 || (self.reached && !self.met_only_strangers());
        Box::new(Failure {
            cause,
            changes,
            code: self.code,
            reached,
            tried: self.tried,
            attempts: self.attempts,
            timed_out: self.timed_out,
            next,
        })
    }
}
