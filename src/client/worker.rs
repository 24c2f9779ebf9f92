//! A worker: a member of a queue that claims one job after the other, keeps its lease alive, and takes its part in the resizing
//! of the ring.
//!
//! It stops working on a job as soon as it knows that the job is no longer its own: when the cluster says so, and when it could
//! not extend its lease for as long as that lasts, by its own clock. What the work did until then has happened; that is
//! why a job's effects come at least once, while only one completion counts.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use serde_json::json;
use tokio::sync::watch;
use tokio::task::{JoinError, JoinHandle};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval, sleep};

use super::{Client, Error, Event, Position, Reply, Result, Watch, is_refusal};
use crate::services::jobs::{Claim, Phase, ReadyEvent, RingEvent, Standing, State};

/// A worker whose lease was not set has this one.
pub const DEFAULT_LEASE: Duration = Duration::from_secs(5);
/// After a failure that may pass.
const PAUSE: Duration = Duration::from_millis(200);
/// While another worker has the name.
const NAME_PAUSE: Duration = Duration::from_millis(500);

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
    /// Says how far it is, in a few words: others see it with the next heartbeat.
    pub fn progress(&self, text: impl Into<String>) {
        self.progress.send_replace(text.into());
    }
}

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
    /// It was evicted, and joins again.
    Evicted,
    /// The cluster does not answer as it should. It tries again.
    Trouble(Error),
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
    /// Its future is dropped when the job is no longer this worker's. Returns how many jobs were completed.
    ///
    /// # Errors
    /// A refusal that will not pass: a name that is not taken, a queue with too many workers. Whatever may pass is
    /// told to `tell`, and tried again.
    pub async fn run<W, F>(
        self,
        work: W,
        stop: watch::Receiver<Stop>,
        tell: impl Fn(WorkerEvent) + Send + Sync,
    ) -> Result<u64>
    where
        W: Fn(Task) -> F + Send + Sync,
        F: Future<Output = Result<String, String>> + Send + 'static,
    {
        let mut heartbeats = interval(self.lease / 3);
        heartbeats.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // No request may take so long that the lease ends meanwhile.
        let client = self.client.with_timeout((self.lease / 2).max(Duration::from_secs(1)));
        let mut run = Run { client, heartbeats, stop, work, tell, worker: self, done: 0 };
        while let Some(member) = run.join().await? {
            if run.serve(member).await? {
                break;
            }
        }
        Ok(run.done)
    }
}

struct Run<W, T> {
    worker: Worker,
    client: Client,
    heartbeats: Interval,
    stop: watch::Receiver<Stop>,
    work: W,
    tell: T,
    done: u64,
}

/// A membership.
struct Member {
    id: u64,
    /// Its lease lasts at least until a lease's time from here.
    heard: Instant,
    /// The phase that waits for this member, or the last that it has acknowledged.
    asked: Option<(u64, Phase)>,
    acknowledged: (u64, Phase),
    /// What it owns: first and last slot of each run.
    owns: Vec<(u32, u32)>,
    job: Option<Held>,
    /// There may be something to claim.
    curious: bool,
    events: Watch,
}

/// A job that this worker has.
struct Held {
    claim: Claim,
    progress: watch::Receiver<String>,
    work: JoinHandle<Result<String, String>>,
    /// What came of it, until the cluster knows.
    outcome: Option<Result<String, String>>,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.work.abort();
    }
}

#[derive(Deserialize)]
struct Claimed {
    job: Option<Claim>,
    standing: Standing,
}

#[derive(Deserialize)]
struct Outcome {
    state: State,
}

/// Why a membership has ended.
enum End {
    /// It was taken away.
    Evicted,
    /// The cluster said no to something that it will say no to again.
    Refused(Error),
}

enum Happened {
    Event(Result<Event>),
    Heartbeat,
    Outcome(Result<Result<String, String>, JoinError>),
    Stop,
}

impl<W, F, T> Run<W, T>
where
    W: Fn(Task) -> F,
    F: Future<Output = Result<String, String>> + Send + 'static,
    T: Fn(WorkerEvent),
{
    /// What may concern this worker: jobs that can be claimed, and the ring.
    fn watch(&self, from: Option<Position>) -> Watch {
        let (ready, ring) = (format!("ready:{}", self.worker.queue), format!("ring:{}", self.worker.queue));
        self.client.watch("jobs", &[&ready, &ring], from)
    }

    /// Becomes a member; nothing if it is to stop before.
    async fn join(&mut self) -> Result<Option<Member>> {
        let body = json!({
            "queue": self.worker.queue, "worker": self.worker.name, "lease_ms": self.worker.lease.as_millis() as u64,
        });
        #[derive(Deserialize)]
        struct Joined {
            #[serde(flatten)]
            standing: Standing,
            revision: u64,
        }
        let mut told = false;
        loop {
            if *self.stop.borrow() != Stop::No {
                return Ok(None);
            }
            let sent = Instant::now();
            let pause = match self.client.command::<Joined>("jobs", "join", &body).await {
                Ok(joined) => {
                    let Joined { standing, revision } = joined.data;
                    (self.tell)(WorkerEvent::Joined(standing.member));
                    let mut member = Member {
                        id: standing.member,
                        heard: sent,
                        asked: None,
                        acknowledged: (0, Phase::Normal),
                        owns: Vec::new(),
                        job: None,
                        curious: true,
                        events: self.watch(Some(Position::after(revision))),
                    };
                    member.stands(&standing);
                    return Ok(Some(member));
                }
                Err(error) if is_refusal(&error, "worker_exists") => {
                    if !std::mem::replace(&mut told, true) {
                        (self.tell)(WorkerEvent::NameTaken(error.to_string()));
                    }
                    NAME_PAUSE
                }
                Err(error) if error.refused().is_some() => return Err(error),
                Err(error) => {
                    (self.tell)(WorkerEvent::Trouble(error));
                    PAUSE
                }
            };
            sleep(pause).await;
        }
    }

    /// Serves until the membership ends. True: so does the worker.
    async fn serve(&mut self, mut member: Member) -> Result<bool> {
        loop {
            match self.step(&mut member).await {
                Ok(true) => return Ok(true),
                Ok(false) => {}
                Err(End::Refused(error)) => return Err(error),
                Err(End::Evicted) => {
                    if let Some(held) = &member.job {
                        let cause = "the lease had ended".to_owned();
                        (self.tell)(WorkerEvent::Lost { id: held.claim.id, cause });
                    }
                    (self.tell)(WorkerEvent::Evicted);
                    return Ok(false);
                }
            }
        }
    }

    /// One thing after the other: what the ring asks for, what is to be said of the job, a new job; then it waits for what happens.
    /// True: the worker has left.
    async fn step(&mut self, member: &mut Member) -> Result<bool, End> {
        let stop = *self.stop.borrow_and_update();
        if stop == Stop::Now || stop == Stop::AfterJob && member.job.is_none() {
            member.job = None;
            // Without it the lease ends by itself.
            let leave = json!({ "member": member.id });
            let _ = self.client.command::<serde_json::Value>("jobs", "leave", &leave).await;
            return Ok(true);
        }
        if let Some(asked) = member.asked.take() {
            return self.acknowledge(member, asked).await.map(|()| false);
        }
        if member.job.as_ref().is_some_and(|held| held.outcome.is_some()) {
            return self.report(member).await.map(|()| false);
        }
        if member.job.is_none() && std::mem::take(&mut member.curious) && self.claim(member).await? {
            return Ok(false);
        }
        match self.wait(member).await {
            Happened::Event(Ok(event)) => member.saw(event),
            // Heartbeats tell what was missed. The watch begins anew: what is behind may be gone.
            Happened::Event(Err(_)) => {
                sleep(PAUSE).await;
                member.events = self.watch(None);
            }
            Happened::Heartbeat => self.heartbeat(member).await?,
            Happened::Outcome(outcome) => {
                let outcome = outcome.unwrap_or_else(|error| Err(format!("the work has panicked: {error}")));
                if let Some(held) = &mut member.job {
                    held.outcome = Some(outcome);
                }
            }
            Happened::Stop => {}
        }
        Ok(false)
    }

    async fn wait(&mut self, member: &mut Member) -> Happened {
        let stop = *self.stop.borrow();
        let work = async {
            match &mut member.job {
                Some(held) => (&mut held.work).await,
                None => std::future::pending().await,
            }
        };
        let stopped = async {
            if self.stop.wait_for(|now| *now > stop).await.is_err() {
                // Nobody is left who could say so.
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            outcome = work => Happened::Outcome(outcome),
            event = member.events.next() => Happened::Event(event),
            _ = self.heartbeats.tick() => Happened::Heartbeat,
            () = stopped => Happened::Stop,
        }
    }

    /// A command of the member. Nothing: it may be tried again later.
    async fn command<R: serde::de::DeserializeOwned>(
        &self,
        member: &mut Member,
        command: &str,
        body: serde_json::Value,
    ) -> Result<Option<Reply<R>>, End> {
        let sent = Instant::now();
        match self.client.command("jobs", command, &body).await {
            Ok(reply) => {
                member.heard = sent;
                Ok(Some(reply))
            }
            Err(error) if is_refusal(&error, "unknown_member") => Err(End::Evicted),
            Err(error) if error.refused().is_some_and(|refused| refused.is_by_service()) => {
                Err(End::Refused(error))
            }
            Err(error) => {
                (self.tell)(WorkerEvent::Trouble(error));
                if member.heard.elapsed() >= self.worker.lease
                    && let Some(held) = member.job.take()
                {
                    let cause = "its lease could not be extended".to_owned();
                    (self.tell)(WorkerEvent::Lost { id: held.claim.id, cause });
                }
                sleep(PAUSE).await;
                Ok(None)
            }
        }
    }

    async fn acknowledge(&self, member: &mut Member, (epoch, phase): (u64, Phase)) -> Result<(), End> {
        let token = member.job.as_ref().map_or(0, |held| held.claim.token);
        let body = json!({"member": member.id, "epoch": epoch, "phase": phase, "token": token});
        match self.command::<Standing>(member, "acknowledge", body).await {
            Ok(Some(standing)) => {
                member.acknowledged = (epoch, phase);
                if phase == Phase::Resume {
                    let ring = self.client.jobs().ring(&self.worker.queue).await;
                    let own = ring.ok().and_then(|ring| {
                        ring.data.workers.into_iter().find(|worker| worker.member == member.id)
                    });
                    member.owns = own.map(|worker| worker.owns).unwrap_or_default();
                }
                // A ring that has changed may have something for this worker.
                member.curious = true;
                member.stands(&standing);
                Ok(())
            }
            Ok(None) => {
                member.asked = Some((epoch, phase));
                Ok(())
            }
            // Out of date; the next heartbeat tells how it stands.
            Err(End::Refused(error)) if is_refusal(&error, "bad_phase") => Ok(()),
            Err(end) => Err(end),
        }
    }

    async fn heartbeat(&self, member: &mut Member) -> Result<(), End> {
        let (token, progress) = member
            .job
            .as_ref()
            .map_or((0, String::new()), |held| (held.claim.token, held.progress.borrow().clone()));
        let body = json!({"member": member.id, "token": token, "progress": progress});
        let Some(standing) = self.command::<Standing>(member, "heartbeat", body).await? else {
            return Ok(());
        };
        if let Some(held) = member.job.take_if(|held| held.claim.token != standing.token) {
            let cause = "it was cancelled, or given to another worker".to_owned();
            (self.tell)(WorkerEvent::Lost { id: held.claim.id, cause });
        }
        // An event may have been missed.
        member.curious = true;
        member.stands(&standing);
        Ok(())
    }

    /// Asks for a job. True: it has one, or is to look again.
    async fn claim(&mut self, member: &mut Member) -> Result<bool, End> {
        let Some(claimed) = self.command::<Claimed>(member, "claim", json!({ "member": member.id })).await?
        else {
            member.curious = true;
            return Ok(true);
        };
        member.stands(&claimed.standing);
        let Some(claim) = claimed.data.job else {
            if self.worker.until_empty && self.is_empty().await {
                self.stop = watch::channel(Stop::AfterJob).1;
                return Ok(true);
            }
            return Ok(member.asked.is_some());
        };
        (self.tell)(WorkerEvent::Begun(claim.clone()));
        let (sender, progress) = watch::channel(String::new());
        let task = Task { claim: claim.clone(), progress: Arc::new(sender) };
        let work = tokio::spawn((self.work)(task));
        member.job = Some(Held { claim, progress, work, outcome: None });
        Ok(true)
    }

    /// Has the queue nothing left that a worker could do, now or later?
    async fn is_empty(&self) -> bool {
        let queues = self.client.jobs().queues().await.unwrap_or_default();
        queues.iter().find(|queue| queue.name == self.worker.queue).is_some_and(|queue| {
            let jobs = queue.jobs;
            jobs.waiting + jobs.delayed + jobs.ready + jobs.running == 0
        })
    }

    /// Tells what came of the job.
    async fn report(&mut self, member: &mut Member) -> Result<(), End> {
        let Some((id, token, outcome)) = member
            .job
            .as_ref()
            .and_then(|held| Some((held.claim.id, held.claim.token, held.outcome.clone()?)))
        else {
            return Ok(());
        };
        let (command, body, error) = match outcome {
            Ok(result) => ("complete", json!({"id": id, "token": token, "result": result}), None),
            Err(error) => ("fail", json!({"id": id, "token": token, "error": error.clone()}), Some(error)),
        };
        match self.command::<Outcome>(member, command, body).await {
            Ok(Some(outcome)) => {
                self.done += u64::from(outcome.state == State::Done);
                (self.tell)(WorkerEvent::Ended { id, state: outcome.state, error });
            }
            // It is tried again.
            Ok(None) => return Ok(()),
            // The attempt is over: its result is not to be had.
            Err(End::Refused(error)) if is_refusal(&error, "too_large") => {
                if let Some(held) = &mut member.job {
                    held.outcome = Some(Err(error.to_string()));
                }
                return Ok(());
            }
            Err(End::Refused(error)) => {
                (self.tell)(WorkerEvent::Lost { id, cause: error.to_string() });
            }
            Err(end) => return Err(end),
        }
        member.job = None;
        member.curious = true;
        Ok(())
    }
}

impl Member {
    /// Takes note of how the cluster sees it.
    fn stands(&mut self, standing: &Standing) {
        if standing.asked {
            self.is_asked((standing.epoch, standing.phase));
        }
    }

    fn is_asked(&mut self, asked: (u64, Phase)) {
        if asked.1 != Phase::Normal && asked > self.acknowledged {
            self.asked = Some(asked);
        }
    }

    /// Takes note of an event.
    fn saw(&mut self, event: Event) {
        if event.topic.starts_with("ring:") {
            if let Ok(ring) = serde_json::from_value::<RingEvent>(event.data)
                && ring.what == "phase"
            {
                self.is_asked((ring.epoch, ring.phase));
            }
        } else if let Ok(ready) = serde_json::from_value::<ReadyEvent>(event.data) {
            let owns = |slot| self.owns.iter().any(|(first, last)| (*first..=*last).contains(&slot));
            self.curious |= ready.slot.is_none_or(owns);
        }
    }
}
