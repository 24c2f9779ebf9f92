//! The errors of a node: what a client is told.

use serde::{Deserialize, Serialize};

/// What an attempt that failed may have done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Attempt {
    /// Nothing, for certain.
    NotApplied,
    /// It may have been applied, or may yet be.
    Unknown,
}

/// Why a node could not do what it was asked. Append variants only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Code {
    /// Too much is waiting.
    Overloaded,
    /// No primary is known.
    NoPrimary,
    /// Another server is the primary.
    NotPrimary,
    /// This server has not caught up yet.
    NotReady,
    /// This server is stopping.
    ShuttingDown,
    /// The time is up.
    Timeout,
    /// The disk is below its reserve.
    DiskFull,
    /// The compare-and-set failed.
    Changed,
    /// The request makes no sense.
    BadRequest,
    /// No such server.
    NotFound,
    /// It would do harm.
    Refused,
    /// This server has failed and is about to stop.
    Failed,
    /// It is for another server, or for another cluster.
    Misdirected,
    /// This server serves no clients: a witness, or a backup in passive mode.
    NotServing,
}

/// An error with its cause, what may have happened, and where to go next.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{detail}")]
pub struct NodeError {
    /// The kind.
    pub code: Code,
    /// The cause and what to do, for people.
    pub detail: String,
    /// What this attempt may have done.
    pub attempt: Attempt,
    /// The primary's URL, if known and of help.
    pub primary: Option<String>,
    /// When to try again, in milliseconds.
    pub retry_after_ms: Option<u64>,
}

impl NodeError {
    /// An error of an attempt that did nothing.
    pub fn not_applied(code: Code, detail: impl Into<String>) -> Self {
        let (attempt, detail) = (Attempt::NotApplied, detail.into());
        Self { code, detail, attempt, primary: None, retry_after_ms: None }
    }

    /// An error of an attempt whose outcome is unknown.
    pub fn unknown(code: Code, detail: impl Into<String>) -> Self {
        Self { attempt: Attempt::Unknown, ..Self::not_applied(code, detail) }
    }

    /// Of an attempt whose first part was done before this part failed.
    #[must_use]
    pub fn after_a_part(self) -> Self {
        Self { attempt: Attempt::Unknown, ..self }
    }

    /// With the primary's URL.
    #[must_use]
    pub fn with_primary(mut self, url: Option<String>) -> Self {
        self.primary = url;
        self
    }

    /// With a time to wait.
    #[must_use]
    pub fn retry_after(mut self, ms: u64) -> Self {
        self.retry_after_ms = Some(ms);
        self
    }
}
