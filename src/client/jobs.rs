//! Jobs: what is submitted to queues, and what came of it.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{BatchCommand, BatchResult, Client, Position, ReadLevel, Reply, Result};
use crate::services::jobs::{DEFAULT_QUEUE, JobEvent, JobRow, MemberRow, Phase, QueueRow, State};

/// A job to be submitted. `NewJob { payload: "…".into(), ..NewJob::default() }` is one for the default queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewJob {
    /// Its queue.
    pub queue: String,
    /// What the worker is given.
    pub payload: String,
    /// Jobs of one key run one after the other, in the order of their submission.
    pub key: Option<String>,
    /// From 0 to 9; 5 when absent. The highest goes first.
    pub priority: Option<u8>,
    /// Not before so long from now.
    pub delay: Duration,
    /// After so many failed attempts it is a dead letter; 5 when absent.
    pub attempts: Option<u32>,
    /// The pause before the second attempt, doubled for each further one; a second when absent.
    pub backoff: Option<Duration>,
}

impl Default for NewJob {
    fn default() -> Self {
        Self {
            queue: DEFAULT_QUEUE.to_owned(),
            payload: String::new(),
            key: None,
            priority: None,
            delay: Duration::ZERO,
            attempts: None,
            backoff: None,
        }
    }
}

impl NewJob {
    fn body(&self) -> Value {
        let mut body = json!({"queue": self.queue, "payload": self.payload, "delay_ms": millis(self.delay)});
        let given = [
            ("key", self.key.as_ref().map(|key| json!(key))),
            ("priority", self.priority.map(|priority| json!(priority))),
            ("attempts", self.attempts.map(|attempts| json!(attempts))),
            ("backoff_ms", self.backoff.map(|backoff| json!(millis(backoff)))),
        ];
        for (name, value) in given {
            if let Some(value) = value {
                body[name] = value;
            }
        }
        body
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// A job that was submitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct Submitted {
    /// Its number.
    pub id: u64,
    /// Where it is.
    pub state: State,
    /// The revision at which it was submitted.
    pub revision: u64,
}

/// Where a job is after a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct JobState {
    /// Its number.
    pub id: u64,
    /// Where it is.
    pub state: State,
    /// It is not tried before this time, in logged milliseconds since 1970.
    pub due_ms: u64,
}

/// What a purge came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct Purged {
    /// So many jobs are forgotten, within seconds or, if they are many, minutes.
    pub jobs: u64,
    /// So is the queue, if nothing comes into it until then.
    pub gone: bool,
}

/// A job, and what came of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobResult {
    /// The job.
    #[serde(flatten)]
    pub job: JobRow,
    /// What there was to do.
    pub payload: String,
    /// What came of it, when it is done.
    pub result: Option<String>,
    /// The revision at which it was so.
    pub revision: u64,
}

impl JobResult {
    /// Will it change no more by itself?
    pub fn has_ended(&self) -> bool {
        has_ended(self.job.state)
    }
}

fn has_ended(state: State) -> bool {
    matches!(state, State::Done | State::Dead | State::Cancelled)
}

/// A page of jobs.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct JobList {
    /// The jobs, in the order of their numbers.
    pub jobs: Vec<JobRow>,
    /// To be passed as `after` for the next page, when there may be one.
    pub next: Option<u64>,
}

/// A queue's workers, and what each of them owns.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct RingView {
    /// The queue.
    pub queue: String,
    /// Which resize is under way, or was the last.
    pub epoch: u64,
    /// Its phase.
    pub phase: Phase,
    /// Since when, in logged milliseconds since 1970.
    pub since_ms: u64,
    /// The revision at which the ring was known.
    pub sync_revision: u64,
    /// So many have not acknowledged the phase.
    pub pending: u32,
    /// How many slots the ring has.
    pub slots: u32,
    /// The logged time of the answer.
    pub now_ms: u64,
    /// The workers, in the order of their names.
    pub workers: Vec<MemberRow>,
}

#[derive(Debug, Deserialize)]
struct Queues {
    queues: Vec<QueueRow>,
    next: Option<String>,
}

/// A handle on the jobs of all queues. [`Client::worker`] works on them.
#[derive(Debug, Clone)]
pub struct Jobs {
    client: Client,
}

impl Client {
    /// Jobs.
    pub fn jobs(&self) -> Jobs {
        Jobs { client: self.clone() }
    }
}

impl Jobs {
    /// Submits a job: once, however often it had to be sent.
    ///
    /// # Errors
    /// Refused: a name, a number or a size that is not taken; `queue_full`.
    pub async fn submit(&self, job: &NewJob) -> Result<Reply<Submitted>> {
        self.client.command("jobs", "submit", &job.body()).await
    }

    /// Submits many as one log entry, [`super::WINDOW`] at most. Each has its own number or refusal, in the order given.
    ///
    /// # Errors
    /// As any batch.
    pub async fn submit_all(&self, jobs: &[NewJob]) -> Result<Reply<Vec<BatchResult>>> {
        let commands: Vec<BatchCommand> =
            jobs.iter().map(|job| BatchCommand::new("jobs", "submit", job.body())).collect();
        self.client.batch(&commands).await
    }

    /// A job, and what came of it.
    ///
    /// # Errors
    /// Refused with `unknown_job`.
    pub async fn result(&self, id: u64) -> Result<Reply<JobResult>> {
        self.client.query("jobs", "result", &[("id", &id.to_string())], ReadLevel::Linearizable).await
    }

    /// Waits until a job has ended: is done, a dead letter, or cancelled.
    ///
    /// # Errors
    /// Refused with `unknown_job`; or when no server answers within the client's time limit.
    pub async fn wait(&self, id: u64) -> Result<Reply<JobResult>> {
        loop {
            let now = self.result(id).await?;
            if now.has_ended() {
                return Ok(now);
            }
            let mut watch =
                self.client.watch("jobs", &[now.job.queue.as_str()], Some(Position::after(now.revision)));
            loop {
                match watch.next().await {
                    Ok(event) => {
                        let event = serde_json::from_value::<JobEvent>(event.data).ok();
                        if event.is_some_and(|event| event.job == id && has_ended(event.state)) {
                            break;
                        }
                    }
                    // So far behind that the events are gone: the state knows.
                    Err(error) if error.code() == Some("compacted") => break,
                    Err(error) => return Err(error),
                }
            }
        }
    }

    /// A page of jobs: of one queue or all, in one state or any.
    ///
    /// # Errors
    /// As any query.
    pub async fn list(
        &self,
        queue: Option<&str>,
        state: Option<State>,
        after: u64,
        limit: u32,
    ) -> Result<Reply<JobList>> {
        let (after, limit) = (after.to_string(), limit.to_string());
        let state = state.and_then(|state| json!(state).as_str().map(str::to_owned));
        let mut params = vec![("after", after.as_str()), ("limit", limit.as_str())];
        params.extend(queue.map(|queue| ("queue", queue)));
        params.extend(state.as_deref().map(|state| ("state", state)));
        self.client.query("jobs", "list", &params, ReadLevel::Linearizable).await
    }

    /// All queues, in the order of their names.
    ///
    /// # Errors
    /// As any query.
    pub async fn queues(&self) -> Result<Vec<QueueRow>> {
        let (mut all, mut after) = (Vec::new(), None);
        loop {
            let mut params = vec![("limit", "1000")];
            params.extend(after.as_deref().map(|after| ("after", after)));
            let page: Reply<Queues> =
                self.client.query("jobs", "queues", &params, ReadLevel::Linearizable).await?;
            all.extend(page.data.queues);
            match page.data.next {
                Some(next) => after = Some(next),
                None => return Ok(all),
            }
        }
    }

    /// One queue, if there is one of this name.
    ///
    /// # Errors
    /// As any query.
    pub async fn queue(&self, name: &str) -> Result<Option<QueueRow>> {
        // Of the names that begin with it, it is the first.
        let params = [("prefix", name), ("limit", "1")];
        let page: Reply<Queues> =
            self.client.query("jobs", "queues", &params, ReadLevel::Linearizable).await?;
        Ok(page.data.queues.into_iter().find(|queue| queue.name == name))
    }

    /// A queue's workers, and what each of them owns.
    ///
    /// # Errors
    /// Refused with `unknown_queue`.
    pub async fn ring(&self, queue: &str) -> Result<Reply<RingView>> {
        self.client.query("jobs", "ring", &[("queue", queue)], ReadLevel::Linearizable).await
    }

    /// Takes a job that has not ended out of its queue, or a dead letter away. Whoever has it can complete it no more.
    ///
    /// # Errors
    /// Refused: `unknown_job`, `already_done`, `already_cancelled`.
    pub async fn cancel(&self, id: u64) -> Result<Reply<JobState>> {
        self.client.command("jobs", "cancel", &json!({ "id": id })).await
    }

    /// Forgets a queue's jobs that are done or cancelled; and the queue, when nothing of it is left.
    ///
    /// # Errors
    /// Refused with `unknown_queue`.
    pub async fn purge(&self, queue: &str) -> Result<Reply<Purged>> {
        self.client.command("jobs", "purge", &json!({ "queue": queue })).await
    }

    /// Puts a dead letter, or a job that was cancelled, back into its queue.
    ///
    /// # Errors
    /// Refused: `unknown_job`, `already_done`, `not_ended`.
    pub async fn retry(&self, id: u64) -> Result<Reply<JobState>> {
        self.client.command("jobs", "retry", &json!({ "id": id })).await
    }
}
