//! What can go wrong with a request, sorted by what the caller has to know first: may it have been applied?
//!
//! - [`Error::Refused`]: the cluster looked at the request and said no. It changed nothing, and asking again with
//!   the same words brings the same answer.
//! - [`Error::NotApplied`]: no server carried it out, for certain. It may be sent again.
//! - [`Error::Unknown`]: at least one attempt may have reached a server that applied it, and no later attempt
//!   brought the reply. It is never reported as failed: look at the state before sending it again.

use std::fmt;

use serde_json::Value;

use super::problem::Problem;
use super::watch::Position;

/// Why a request brought no reply. See the module's page for what each variant promises.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// The cluster said no, for certain: nothing was changed.
    #[error("{0}")]
    Refused(Box<Refused>),
    /// No server carried the request out, for certain.
    #[error("not applied: {0}")]
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

    /// The same failure, known to have changed nothing: for a step that came before the command itself.
    pub(crate) fn before_sending(self) -> Self {
        match self {
            Self::Unknown(failure) => {
                Self::NotApplied(Box::new(Failure { next: NEXT_NOT_APPLIED, ..*failure }))
            }
            other => other,
        }
    }
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

    pub(crate) fn new(status: u16, problem: Problem) -> Self {
        Self {
            code: problem.code,
            refusal: problem.refusal,
            detail: problem.detail,
            status,
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
    /// The last problem code that a server named.
    pub code: Option<String>,
    /// The last attempts, oldest first (at most [`TRIED_KEPT`]).
    pub tried: Vec<Tried>,
    /// How many attempts there were in all.
    pub attempts: u32,
    /// What the caller can do now.
    pub next: &'static str,
}

/// How many attempts an error lists.
pub const TRIED_KEPT: usize = 8;

/// One attempt on one server.
#[derive(Debug, Clone, PartialEq)]
pub struct Tried {
    /// The server's address.
    pub server: String,
    /// What came of it.
    pub cause: String,
}

pub(crate) const NEXT_NOT_APPLIED: &str =
    "see `quorate cluster status`; it is safe to send the request again";
pub(crate) const NEXT_UNKNOWN: &str =
    "read the state, or `quorate cluster log`, before sending the request again";

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.cause)?;
        if !self.tried.is_empty() {
            write!(f, "; tried {}", if self.attempts == 1 { "once" } else { "" })?;
            if self.attempts > 1 {
                write!(f, "{} times", self.attempts)?;
            }
            let mut separator = ": ";
            for tried in last_per_server(&self.tried) {
                write!(f, "{separator}{} ({})", tried.server, tried.cause)?;
                separator = ", ";
            }
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
}

impl History {
    pub(crate) fn add(&mut self, server: &str, cause: String, code: Option<String>) {
        if self.tried.len() == TRIED_KEPT {
            self.tried.remove(0);
        }
        self.tried.push(Tried { server: server.to_owned(), cause });
        self.attempts += 1;
        self.code = code;
    }

    pub(crate) fn attempts(&self) -> u32 {
        self.attempts
    }

    /// The error that this history ends in.
    pub(crate) fn fail(self, maybe_applied: bool, cause: String) -> Error {
        let failure = |next| {
            Box::new(Failure { cause, code: self.code, tried: self.tried, attempts: self.attempts, next })
        };
        if maybe_applied {
            Error::Unknown(failure(NEXT_UNKNOWN))
        } else {
            Error::NotApplied(failure(NEXT_NOT_APPLIED))
        }
    }
}
