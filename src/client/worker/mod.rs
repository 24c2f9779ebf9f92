//! A worker: a member of a queue that claims one job after the other, keeps its lease alive, and takes its part in the resizing
//! of the ring.
//!
//! It stops working on a job as soon as it knows that the job is no longer its own: when the cluster says so, and when the
//! lease has ended by its own clock because it could not be extended. What the work did until then has happened; that is
//! why a job's effects come at least once, while only one completion counts.

mod member;
mod run;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::{Client, Error, Result};
use crate::services::jobs::{Claim, MAX_PROGRESS_BYTES, State};

use run::Run;

/// A worker whose lease was not set has this one.
pub const DEFAULT_LEASE: Duration = Duration::from_secs(5);

/// When a worker is to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stop {
    /// Not yet.
    No,
    /// When the job that it has is done.
    AfterJob,
    /// Now. The job goes back to the queue.
    Now,
}

/// What a worker is asked to do.
#[derive(Debug, Clone)]
pub struct Task {
    /// The job.
    pub claim: Claim,
    progress: Arc<watch::Sender<String>>,
}

impl Task {
    /// Says how far it is, in a few words: others see it with the next heartbeat. What is long is cut.
    pub fn progress(&self, text: &str) {
        let end = (0..=MAX_PROGRESS_BYTES.min(text.len())).rev().find(|at| text.is_char_boundary(*at));
        self.progress.send_replace(text[..end.unwrap_or(0)].to_owned());
    }
}

/// Why an attempt at a job has failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{cause}")]
pub struct Failed {
    /// Kept with the job.
    pub cause: String,
    /// No further attempt is of use: the job is a dead letter at once.
    pub last: bool,
}

impl From<String> for Failed {
    fn from(cause: String) -> Self {
        Self { cause, last: false }
    }
}

impl From<&str> for Failed {
    fn from(cause: &str) -> Self {
        cause.to_owned().into()
    }
}

/// What came of an attempt: the job's result, or why there is none.
pub type Attempt = std::result::Result<String, Failed>;

/// What a worker tells of itself.
#[derive(Debug, Clone)]
pub enum WorkerEvent {
    /// It is a member now, with this number.
    Joined(u64),
    /// Another worker has its name; it waits for the end of that one's lease.
    NameTaken(String),
    /// It has a job.
    Begun(Claim),
    /// Its job was completed, or has failed: where it is now.
    Ended {
        /// The job.
        id: u64,
        /// Where it is.
        state: State,
        /// Why it has failed.
        error: Option<String>,
    },
    /// Its job was taken from it, and why.
    Lost {
        /// The job.
        id: u64,
        /// The cause.
        cause: String,
    },
    /// The ring is resized, and these slots (first and last of each run) will be others'. What is kept of their keys
    /// ([`slot_of`](crate::services::jobs::slot_of) tells a key's slot) is out of date from now on.
    SlotsLost(Vec<(u32, u32)>),
    /// It was evicted, and joins again. It owns no slots any more.
    Evicted,
    /// The cluster does not answer as it should. It tries again; what comes of that is told only when it has changed.
    Trouble(Error),
    /// After a [`WorkerEvent::Trouble`]: the cluster answers again.
    Recovered,
}

/// What came of the jobs that a worker had.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tally {
    /// So many were completed,
    pub done: u64,
    /// and so many had their last attempt here, and are dead letters.
    pub dead: u64,
}

/// A worker that is about to run.
#[derive(Debug, Clone)]
pub struct Worker {
    client: Client,
    queue: String,
    name: String,
    lease: Duration,
    until_empty: bool,
}

impl Client {
    /// A worker of a queue, with a name that no other worker there has.
    pub fn worker(&self, queue: &str, name: &str) -> Worker {
        Worker {
            client: self.clone(),
            queue: queue.to_owned(),
            name: name.to_owned(),
            lease: DEFAULT_LEASE,
            until_empty: false,
        }
    }
}

impl Worker {
    /// It is taken for dead after this time without a word; by default 5 s.
    #[must_use]
    pub fn lease(self, lease: Duration) -> Self {
        Self { lease, ..self }
    }

    /// It ends when its queue has nothing left to do.
    #[must_use]
    pub fn until_empty(self, until_empty: bool) -> Self {
        Self { until_empty, ..self }
    }

    /// Joins, and works until `stop` says otherwise. `work` does a job: its text is the result, its error fails the attempt.
    /// Its future is dropped when the job is no longer this worker's. Returns what came of its jobs.
    ///
    /// # Errors
    /// A refusal that will not pass: a name that is not taken, a queue with too many workers. Whatever may pass is
    /// told to `tell`, and tried again.
    pub async fn run<W, F>(
        self,
        work: W,
        stop: watch::Receiver<Stop>,
        tell: impl Fn(WorkerEvent) + Send + Sync,
    ) -> Result<Tally>
    where
        W: Fn(Task) -> F + Send + Sync,
        F: Future<Output = Attempt> + Send + 'static,
    {
        Run::new(self, stop, work, tell).run().await
    }
}
