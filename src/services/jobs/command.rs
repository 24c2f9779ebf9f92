//! What jobs can be told and asked.

use serde::{Deserialize, Serialize};

use super::{Listing, Phase, State};

/// What the service can be told. Stored by position: append variants and fields only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Command {
    /// Puts a job into a queue.
    Submit {
        /// Which; it need not exist.
        #[serde(default = "default_queue")]
        queue: String,
        /// What the worker is given.
        payload: String,
        /// Jobs of one key run one after the other, in the order of their submission, on the worker that owns the key.
        #[serde(default)]
        key: Option<String>,
        /// From 0 to 9; the highest goes first.
        #[serde(default = "default_priority")]
        priority: u8,
        /// Not before so many milliseconds from now.
        #[serde(default)]
        delay_ms: u64,
        /// After so many failed attempts it is a dead letter.
        #[serde(default = "default_attempts")]
        attempts: u32,
        /// The pause before the second attempt; twice as long before the third, and so on, [`MAX_BACKOFF_MS`] at most.
        #[serde(default = "default_backoff")]
        backoff_ms: u64,
    },
    /// Makes a worker a member of a queue.
    Join {
        /// Which.
        #[serde(default = "default_queue")]
        queue: String,
        /// Its name, which no other member has.
        worker: String,
        /// It is taken for dead after so many milliseconds without a word.
        lease_ms: u64,
        /// A number that tells this worker from others of the same session and name, should a reply be lost.
        #[serde(default)]
        run: u64,
    },
    /// Ends a membership. A job that is held goes back, and the attempt does not count.
    Leave {
        /// Whose.
        member: u64,
    },
    /// Asks for a job. Who holds one is given that one again.
    Claim {
        /// Who.
        member: u64,
    },
    /// Extends a member's lease, and says how far its job is.
    Heartbeat {
        /// Whose.
        member: u64,
        /// The job's token; 0 for none.
        #[serde(default)]
        token: u64,
        /// A short text.
        #[serde(default)]
        progress: String,
    },
    /// A job was done.
    Complete {
        /// Which.
        id: u64,
        /// As it was claimed.
        token: u64,
        /// What came of it.
        #[serde(default)]
        result: String,
    },
    /// An attempt has failed.
    Fail {
        /// Which job's.
        id: u64,
        /// As it was claimed.
        token: u64,
        /// Why.
        error: String,
        /// No further attempt is of use: it is a dead letter at once.
        #[serde(default)]
        last: bool,
    },
    /// A member has done what a phase of a resize asks for.
    Acknowledge {
        /// Who.
        member: u64,
        /// Of which resize.
        epoch: u64,
        /// Which phase, 1 to 3.
        phase: Phase,
        /// The token of the job that it works on; 0 for none.
        #[serde(default)]
        token: u64,
    },
    /// Takes a job that has not ended out of its queue, or a dead letter away.
    Cancel {
        /// Which.
        id: u64,
    },
    /// Puts a dead letter, or a job that was cancelled, back into its queue, with all its attempts.
    Retry {
        /// Which.
        id: u64,
    },
    /// Forgets jobs that are done or cancelled, some at a time; and the queue, when nothing of it is left.
    Purge {
        /// Of which queue.
        queue: String,
    },
}

fn default_queue() -> String {
    DEFAULT_QUEUE.to_owned()
}

fn default_priority() -> u8 {
    DEFAULT_PRIORITY
}

fn default_attempts() -> u32 {
    DEFAULT_ATTEMPTS
}

fn default_backoff() -> u64 {
    DEFAULT_BACKOFF_MS
}

/// The queue of who names none.
pub const DEFAULT_QUEUE: &str = "default";
/// In the middle.
pub const DEFAULT_PRIORITY: u8 = 5;
/// The highest.
pub const MAX_PRIORITY: u8 = 9;
/// So many attempts has a job for which it is not said.
pub const DEFAULT_ATTEMPTS: u32 = 5;
/// Nor any job more than so many.
pub const MAX_ATTEMPTS: u32 = 1_000;
/// The pause before a second attempt when it is not said.
pub const DEFAULT_BACKOFF_MS: u64 = 1_000;
/// No pause is longer: 5 minutes.
pub const MAX_BACKOFF_MS: u64 = 300_000;
/// No delay is longer: 10 years.
pub const MAX_DELAY_MS: u64 = 315_360_000_000;
/// A lease is at least this long,
pub const MIN_LEASE_MS: u64 = 500;
/// and at most an hour.
pub const MAX_LEASE_MS: u64 = 3_600_000;
/// A payload takes at most so many bytes.
pub const MAX_PAYLOAD_BYTES: usize = 65_536;
/// A result too.
pub const MAX_RESULT_BYTES: usize = 65_536;
/// The name of a queue or a worker takes at most so many bytes.
pub const MAX_NAME_BYTES: usize = 64;
/// What is longer of an error is cut.
pub const MAX_ERROR_BYTES: usize = 1_024;
/// What is longer of a progress is cut.
pub const MAX_PROGRESS_BYTES: usize = 128;
/// A queue has at most so many members.
pub const MAX_MEMBERS: u32 = 64;
// Tests reach the limits that follow, so there they are low.

/// There are at most so many queues.
pub const MAX_QUEUES: u64 = if cfg!(test) { 8 } else { 10_000 };
/// A queue has at most so many jobs that are not done or cancelled.
pub const MAX_OPEN: u64 = if cfg!(test) { 200 } else { 1_000_000 };
/// So many that are done or cancelled are kept of each queue.
pub const KEPT: u64 = if cfg!(test) { 150 } else { 100_000 };

/// What can be asked.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Query {
    /// One job.
    Status {
        /// Which.
        id: u64,
    },
    /// One job with what came of it.
    Result {
        /// Which.
        id: u64,
    },
    /// Jobs, in the order of their numbers.
    List {
        /// Only those of this queue.
        #[serde(default)]
        queue: Option<String>,
        /// Only those in this state.
        #[serde(default)]
        state: Option<State>,
        /// Only those behind this one.
        #[serde(default)]
        after: u64,
        /// At most so many, from 1 to 1,000.
        #[serde(default = "default_limit")]
        limit: u32,
    },
    /// Queues, in the order of their names.
    Queues(Listing),
    /// A queue's workers, and what each of them owns.
    Ring {
        /// Which.
        #[serde(default = "default_queue")]
        queue: String,
    },
    /// Who owns a key.
    Owner {
        /// Of which queue.
        #[serde(default = "default_queue")]
        queue: String,
        /// The key.
        key: String,
    },
}

fn default_limit() -> u32 {
    100
}
