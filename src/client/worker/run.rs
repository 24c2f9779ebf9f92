//! What a worker does, one thing after the other.

use std::future::{Future, pending};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinError;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval, sleep, sleep_until};

use super::member::{EVERYTHING, Held, Member, lost};
use super::{Stop, Task, Worker, WorkerEvent};
use crate::client::{Client, Error, Event, Position, Reply, Result, Watch, is_refusal};
use crate::services::jobs::{Claim, MemberRow, Phase, Standing, State};

/// After a failure that may pass.
const PAUSE: Duration = Duration::from_millis(200);
/// While another worker has the name.
const NAME_PAUSE: Duration = Duration::from_millis(500);
/// Heartbeats come three times in a lease, but as often as this: they tell what events may have missed.
const HEARTBEAT_MAX: Duration = Duration::from_secs(5);
const HEARTBEAT_MIN: Duration = Duration::from_millis(50);
/// Who is to end at once waits so long for its leave.
const LEAVE: Duration = Duration::from_secs(2);

pub(super) struct Run<W, T> {
    worker: Worker,
    client: Client,
    heartbeats: Interval,
    stop: watch::Receiver<Stop>,
    work: W,
    tell: T,
    done: u64,
}

#[derive(Deserialize)]
struct Joined {
    #[serde(flatten)]
    standing: Standing,
    revision: u64,
}

#[derive(Deserialize)]
struct Claimed {
    job: Option<Claim>,
    standing: Standing,
    revision: u64,
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
    LeaseOver,
    Stop,
}

/// Comes then; never, without a time.
async fn at(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => pending().await,
    }
}

/// Comes when it is to stop at once; never, if nobody is left who could say so.
async fn told_now(mut stop: watch::Receiver<Stop>) {
    if stop.wait_for(|stop| *stop == Stop::Now).await.is_err() {
        pending::<()>().await;
    }
}

impl<W, F, T> Run<W, T>
where
    W: Fn(Task) -> F,
    F: Future<Output = Result<String, String>> + Send + 'static,
    T: Fn(WorkerEvent),
{
    pub(super) fn new(worker: Worker, stop: watch::Receiver<Stop>, work: W, tell: T) -> Self {
        let mut heartbeats = interval((worker.lease / 3).clamp(HEARTBEAT_MIN, HEARTBEAT_MAX));
        heartbeats.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // So that there is time for a second attempt.
        let limit = worker.client.timeout.min(worker.lease / 2);
        let client = worker.client.with_timeout(limit);
        Self { worker, client, heartbeats, stop, work, tell, done: 0 }
    }

    pub(super) async fn run(mut self) -> Result<u64> {
        while let Some(mut member) = self.join().await? {
            if self.serve(&mut member).await? {
                break;
            }
        }
        Ok(self.done)
    }

    /// What may concern this worker: jobs that can be claimed, or were cancelled, and the ring.
    fn watch(&self, from: Option<Position>) -> Watch {
        let topics = ["ready", "cancelled", "ring"].map(|kind| format!("{kind}:{}", self.worker.queue));
        self.client.watch("jobs", &topics.each_ref().map(String::as_str), from)
    }

    /// Becomes a member; nothing if it is to stop before.
    async fn join(&mut self) -> Result<Option<Member>> {
        let body = json!({
            "queue": self.worker.queue, "worker": self.worker.name,
            "lease_ms": u64::try_from(self.worker.lease.as_millis()).unwrap_or(u64::MAX),
        });
        let mut told = false;
        while *self.stop.borrow() == Stop::No {
            let sent = Instant::now();
            let joined = tokio::select! {
                joined = self.client.command::<Joined>("jobs", "join", &body) => joined,
                () = told_now(self.stop.clone()) => return Ok(None),
            };
            let pause = match joined {
                Ok(joined) => {
                    let Joined { standing, revision } = joined.data;
                    (self.tell)(WorkerEvent::Joined(standing.member));
                    let events = self.watch(Some(Position::after(revision)));
                    return Ok(Some(Member::new(&standing, sent, events)));
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
        Ok(None)
    }

    /// Serves until the membership ends. True: so does the worker.
    async fn serve(&mut self, member: &mut Member) -> Result<bool> {
        loop {
            match self.step(member).await {
                Ok(true) => return Ok(true),
                Ok(false) => {}
                Err(End::Refused(error)) => return Err(error),
                Err(End::Evicted) => {
                    let job = member.job.take();
                    self.lose(job, "the lease had ended");
                    (self.tell)(WorkerEvent::Evicted);
                    return Ok(false);
                }
            }
        }
    }

    /// Tells that a job is no longer this worker's; its work ends with it.
    fn lose(&self, job: Option<Held>, cause: &str) {
        if let Some(held) = job {
            (self.tell)(WorkerEvent::Lost { id: held.claim.id, cause: cause.to_owned() });
        }
    }

    /// What the ring asks for, what is to be said of the job, a new job; then it waits for what happens. True: the worker has
    /// left.
    async fn step(&mut self, member: &mut Member) -> Result<bool, End> {
        let stop = *self.stop.borrow_and_update();
        if stop == Stop::Now || stop == Stop::AfterJob && member.job.is_none() {
            member.job = None;
            // Without it the lease ends by itself.
            let leave = json!({ "member": member.id });
            let client = self.client.with_timeout(LEAVE.min(self.client.timeout));
            let _ = client.command::<Value>("jobs", "leave", &leave).await;
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
            Happened::Event(Ok(event)) => {
                let cancelled = member.saw(event);
                member.curious |= cancelled.is_some();
                self.lose(cancelled, "it was cancelled");
            }
            // The watch begins anew; what was missed is looked for.
            Happened::Event(Err(_)) => {
                sleep(PAUSE).await;
                member.events = self.watch(None);
                member.curious = true;
            }
            Happened::Heartbeat => self.heartbeat(member).await?,
            Happened::Outcome(outcome) => {
                let outcome = outcome.unwrap_or_else(|error| Err(format!("the work has panicked: {error}")));
                if let Some(held) = &mut member.job {
                    held.outcome = Some(outcome);
                }
            }
            Happened::LeaseOver => {
                let job = member.job.take();
                self.lose(job, "its lease could not be extended");
            }
            Happened::Stop => {}
        }
        Ok(false)
    }

    async fn wait(&mut self, member: &mut Member) -> Happened {
        let stop = *self.stop.borrow();
        let stopped = async {
            if self.stop.wait_for(|now| *now > stop).await.is_err() {
                // Nobody is left who could say so.
                pending::<()>().await;
            }
        };
        let lease_end = member.lease_end();
        let work = async {
            match &mut member.job {
                Some(held) => (&mut held.work).await,
                None => pending().await,
            }
        };
        tokio::select! {
            outcome = work => Happened::Outcome(outcome),
            event = member.events.next() => Happened::Event(event),
            _ = self.heartbeats.tick() => Happened::Heartbeat,
            () = at(lease_end) => Happened::LeaseOver,
            () = stopped => Happened::Stop,
        }
    }

    /// A command of the member. Nothing: it may be tried again later.
    async fn command<R: DeserializeOwned>(
        &self,
        member: &mut Member,
        command: &str,
        body: Value,
    ) -> Result<Option<Reply<R>>, End> {
        let mut request = pin!(self.client.command("jobs", command, &body));
        let result = loop {
            tokio::select! {
                result = &mut request => break result,
                () = at(member.lease_end()) => {
                    let job = member.job.take();
                    self.lose(job, "its lease could not be extended");
                }
                () = told_now(self.stop.clone()) => return Ok(None),
            }
        };
        match result {
            Ok(reply) => Ok(Some(reply)),
            Err(error) if is_refusal(&error, "unknown_member") => Err(End::Evicted),
            Err(error) if error.refused().is_some_and(|refused| refused.is_by_service()) => {
                Err(End::Refused(error))
            }
            Err(error) => {
                (self.tell)(WorkerEvent::Trouble(error));
                sleep(PAUSE).await;
                Ok(None)
            }
        }
    }

    /// Tells that a phase was heard. Before the second one, whoever works here learns what it will not own any more.
    async fn acknowledge(&self, member: &mut Member, (epoch, phase): (u64, Phase)) -> Result<(), End> {
        if phase == Phase::Synchronise {
            let own = self.own_row(member.id).await;
            let unknown = vec![EVERYTHING];
            let next = own.as_ref().map_or(&unknown, |own| &own.next_owns);
            // Where the ring cannot be read, nothing that is kept counts, and everything may be its own.
            let gone = if own.is_some() { lost(&member.owns, next) } else { member.owns.clone() };
            if !gone.is_empty() {
                (self.tell)(WorkerEvent::SlotsLost(gone));
            }
            member.owns.clone_from(next);
        }
        let token = member.job.as_ref().map_or(0, |held| held.claim.token);
        let body = json!({"member": member.id, "epoch": epoch, "phase": phase, "token": token});
        let sent = Instant::now();
        match self.command::<Standing>(member, "acknowledge", body).await {
            Ok(Some(standing)) => {
                member.acknowledged = (epoch, phase);
                // A ring that has changed may have something for this worker.
                member.curious = true;
                member.stands(&standing, sent);
                Ok(())
            }
            Ok(None) => {
                member.asked.get_or_insert((epoch, phase));
                Ok(())
            }
            // Out of date; the next heartbeat tells how it stands.
            Err(End::Refused(error)) if is_refusal(&error, "bad_phase") => Ok(()),
            Err(end) => Err(end),
        }
    }

    async fn own_row(&self, member: u64) -> Option<MemberRow> {
        let ring = self.client.jobs().ring(&self.worker.queue).await.ok()?;
        ring.data.workers.into_iter().find(|worker| worker.member == member)
    }

    async fn heartbeat(&self, member: &mut Member) -> Result<(), End> {
        let (token, progress) = member
            .job
            .as_ref()
            .map_or((0, String::new()), |held| (held.claim.token, held.progress.borrow().clone()));
        let body = json!({"member": member.id, "token": token, "progress": progress});
        let sent = Instant::now();
        let Some(standing) = self.command::<Standing>(member, "heartbeat", body).await? else {
            return Ok(());
        };
        let gone = member.job.take_if(|held| held.claim.token != standing.token);
        self.lose(gone, "it was cancelled, or given to another worker");
        // An event may have been missed.
        member.curious = true;
        member.stands(&standing, sent);
        Ok(())
    }

    /// Asks for a job. True: it has one, or is to look again.
    async fn claim(&mut self, member: &mut Member) -> Result<bool, End> {
        let sent = Instant::now();
        let Some(claimed) = self.command::<Claimed>(member, "claim", json!({ "member": member.id })).await?
        else {
            member.curious = true;
            return Ok(true);
        };
        let Claimed { job, standing, revision } = claimed.data;
        member.stands(&standing, sent);
        let Some(claim) = job else {
            member.nothing_at = revision;
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
            // It is tried again, if the job is still there.
            Ok(None) => return Ok(()),
            // The attempt is over: its result is not to be had.
            Err(End::Refused(error)) if is_refusal(&error, "too_large") => {
                if let Some(held) = &mut member.job {
                    held.outcome = Some(Err(error.to_string()));
                }
                return Ok(());
            }
            Err(End::Refused(error)) => {
                let job = member.job.take();
                self.lose(job, &error.to_string());
            }
            Err(end) => return Err(end),
        }
        member.job = None;
        member.curious = true;
        Ok(())
    }
}
