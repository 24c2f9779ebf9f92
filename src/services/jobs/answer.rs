//! What is said of jobs: replies, answers, events.

use serde::{Deserialize, Serialize};

use super::{Counts, Phase, State};

/// What a command came to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// Of [`super::Command::Submit`].
    Submitted {
        /// The job's number.
        id: u64,
        /// Where it is.
        state: State,
    },
    /// Of [`super::Command::Join`], [`super::Command::Heartbeat`] and [`super::Command::Acknowledge`].
    Standing(Standing),
    /// Of [`super::Command::Claim`].
    Claimed {
        /// The job; null when there is none for this worker.
        job: Option<Claim>,
        /// How the member stands.
        standing: Standing,
    },
    /// Of [`super::Command::Complete`], [`super::Command::Fail`], [`super::Command::Cancel`] and [`super::Command::Retry`].
    Job {
        /// Which.
        id: u64,
        /// Where it is now.
        state: State,
        /// The time before which it is not tried again.
        due_ms: u64,
    },
    /// Of [`super::Command::Leave`].
    Left,
    /// Of [`super::Command::Purge`].
    Purged {
        /// So many jobs are forgotten, as soon as it can be done.
        jobs: u64,
        /// So is the queue, if nothing comes into it until then.
        gone: bool,
    },
}

/// How a member stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing {
    /// Its number.
    pub member: u64,
    /// The end of its lease, in logged milliseconds since 1970.
    pub until_ms: u64,
    /// So many milliseconds from now.
    pub left_ms: u64,
    /// The token of the job that it holds; 0: none, or no longer.
    pub token: u64,
    /// The resize that is under way, or was the last.
    pub epoch: u64,
    /// Its phase.
    pub phase: Phase,
    /// The phase waits for this member to acknowledge it.
    pub asked: bool,
}

/// A job that was claimed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// Its number.
    pub id: u64,
    /// To be shown when it is completed: a larger one, given to somebody else, makes it worthless. It may be passed on to other
    /// systems, which then can refuse who comes late.
    pub token: u64,
    /// Its key.
    pub key: Option<String>,
    /// Which attempt it is, from 1 on.
    pub attempt: u32,
    /// What there is to do.
    pub payload: String,
}

/// A job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobRow {
    /// Its number.
    pub id: u64,
    /// Its queue.
    pub queue: String,
    /// Its key.
    pub key: Option<String>,
    /// From 0 to 9.
    pub priority: u8,
    /// Where it is.
    pub state: State,
    /// How many attempts were begun,
    pub attempts: u32,
    /// of so many.
    pub most_attempts: u32,
    /// When it was submitted, in logged milliseconds since 1970.
    pub submitted_ms: u64,
    /// Not before.
    pub due_ms: u64,
    /// When it was claimed the last time.
    pub claimed_ms: Option<u64>,
    /// When it ended.
    pub ended_ms: Option<u64>,
    /// The last worker that claimed it.
    pub worker: Option<String>,
    /// The token of the last claim.
    pub token: u64,
    /// What the worker said last.
    pub progress: String,
    /// What came of the last attempt that failed.
    pub error: Option<String>,
}

/// A queue.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueRow {
    /// Its name.
    pub name: String,
    /// How many jobs.
    pub jobs: Counts,
    /// How many workers.
    pub workers: u32,
    /// The phase of its ring.
    pub phase: Phase,
}

/// A worker on the ring.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberRow {
    /// Its name.
    pub name: String,
    /// Its number.
    pub member: u64,
    /// When its lease ends, in logged milliseconds since 1970.
    pub until_ms: u64,
    /// The job that it holds.
    pub job: Option<u64>,
    /// How far it is.
    pub progress: String,
    /// How many it has completed.
    pub done: u64,
    /// It takes part in the resize, and has not acknowledged the phase.
    pub asked: bool,
    /// How many slots it owns,
    pub slots: u32,
    /// and which: first and last of each run.
    pub owns: Vec<(u32, u32)>,
    /// How many it will own when the resize is through,
    pub next_slots: u32,
    /// and which; told in phase 2 alone.
    pub next_owns: Vec<(u32, u32)>,
}

/// The answer to a [`super::Query`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Answer {
    /// To [`super::Query::Status`].
    Status(JobRow),
    /// To [`super::Query::Result`].
    Result {
        /// The job.
        #[serde(flatten)]
        job: JobRow,
        /// What there was to do.
        payload: String,
        /// What came of it, when it is done.
        result: Option<String>,
    },
    /// To [`super::Query::List`].
    List {
        /// The jobs.
        jobs: Vec<JobRow>,
        /// The number to pass as `after` for the next page, when there may be one.
        next: Option<u64>,
    },
    /// To [`super::Query::Queues`].
    Queues {
        /// The queues.
        queues: Vec<QueueRow>,
        /// The name to pass as `after` for the next page, when there is one.
        next: Option<String>,
    },
    /// To [`super::Query::Ring`].
    Ring {
        /// The queue.
        queue: String,
        /// Which resize is under way, or was the last.
        epoch: u64,
        /// From 0 to 3.
        phase: Phase,
        /// Its name.
        phase_name: &'static str,
        /// Since when, in logged milliseconds since 1970.
        since_ms: u64,
        /// The revision at which the ring was known.
        sync_revision: u64,
        /// So many have not acknowledged the phase.
        pending: u32,
        /// How many slots the ring has.
        slots: u32,
        /// The logged time of the answer.
        now_ms: u64,
        /// The workers, in the order of their names.
        workers: Vec<MemberRow>,
    },
    /// To [`super::Query::Owner`].
    Owner {
        /// The key's slot.
        slot: u32,
        /// Who owns it; null: nobody, for the moment.
        worker: Option<String>,
        /// Who will own it when the resize is through.
        next: Option<String>,
    },
}

/// The event of a job that a worker may claim, on the topic `ready:QUEUE`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadyEvent {
    /// Which.
    pub job: u64,
    /// Its key's slot: only who owns it is given the job. Null: anybody.
    pub slot: Option<u32>,
}

/// The event of any other change of a job, on the topic of its queue; of one that is cancelled while a worker has it, on
/// `cancelled:QUEUE` too.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobEvent {
    /// Which.
    pub job: u64,
    /// Where it is now.
    pub state: State,
    /// Who has it, or had it last.
    pub worker: Option<String>,
}

/// The event of a change of the ring, on the topic `ring:QUEUE`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RingEvent {
    /// Which resize.
    pub epoch: u64,
    /// From 0 to 3.
    pub phase: Phase,
    /// So many members have not acknowledged the phase.
    pub pending: u32,
    /// Who has brought it about.
    pub worker: Option<String>,
    /// What has happened: `phase`, `joined`, `left`, `evicted`, `acknowledged`.
    pub what: String,
}
