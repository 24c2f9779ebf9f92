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
use tokio::time::{Instant, Interval, MissedTickBehavior, interval, sleep, sleep_until, timeout};

use super::member::{EVERYTHING, Events, Held, Member, lost};
use super::{Attempt, Failed, Stop, Tally, Task, Worker, WorkerEvent};
use crate::client::{Client, Error, Event, Position, Reply, Result, is_refusal};
use crate::services::jobs::{Claim, MemberRow, Phase, Standing, State};

/// After a failure that may pass.
pub(super) const PAUSE: Duration = Duration::from_millis(200);
/// While another worker has the name.
const NAME_PAUSE: Duration = Duration::from_millis(500);
/// Heartbeats come three times in a lease, but as often as this: they tell what events may have missed.
const HEARTBEAT_MAX: Duration = Duration::from_secs(5);
const HEARTBEAT_MIN: Duration = Duration::from_millis(50);
/// Who is to end at once waits so long for the end of its work, and for its leave.
const LEAVE: Duration = Duration::from_secs(2);

pub(super) struct Run<W, T> {
    worker: Worker,
    client: Client,
    heartbeats: Interval,
    stop: watch::Receiver<Stop>,
    work: W,
    tell: T,
    tally: Tally,
    /// Tells the cluster this worker from another one of the same client and name.
    number: u32,
    /// The last thing that was asked of the cluster was not answered as it should.
    in_trouble: bool,
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
    Event(Option<Event>),
    Heartbeat,
    /// The work of a job that is no longer its own has ended.
    Ended,
    Outcome(Result<Attempt, JoinError>),
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
    F: Future<Output = Attempt> + Send + 'static,
    T: Fn(WorkerEvent),
{
    pub(super) fn new(worker: Worker, stop: watch::Receiver<Stop>, work: W, tell: T) -> Self {
        let mut heartbeats = interval((worker.lease / 3).clamp(HEARTBEAT_MIN, HEARTBEAT_MAX));
        heartbeats.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // So that there is time for a second attempt.
        let limit = worker.client.timeout.min(worker.lease / 2);
        let client = worker.client.with_timeout(limit);
        Self {
            worker,
            client,
            heartbeats,
            stop,
            work,
            tell,
            tally: Tally::default(),
            number: rand::random(),
            in_trouble: false,
        }
    }

    pub(super) async fn run(mut self) -> Result<Tally> {
        while let Some(mut member) = self.join().await? {
            if self.serve(&mut member).await? {
                break;
            }
        }
        Ok(self.tally)
    }

    /// Becomes a member; nothing if it is to stop before.
    async fn join(&mut self) -> Result<Option<Member>> {
        let body = json!({
            "queue": self.worker.queue, "worker": self.worker.name,
            "lease_ms": u64::try_from(self.worker.lease.as_millis()).unwrap_or(u64::MAX), "run": self.number,
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
                    self.recovered();
                    let Joined { standing, revision } = joined.data;
                    (self.tell)(WorkerEvent::Joined(standing.member));
                    let from = Position::after(revision);
                    let events = Events::follow(self.client.clone(), &self.worker.queue, from);
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
                    self.trouble(error);
                    PAUSE
                }
            };
            sleep(pause).await;
        }
        Ok(None)
    }

    fn trouble(&mut self, error: Error) {
        if !std::mem::replace(&mut self.in_trouble, true) {
            (self.tell)(WorkerEvent::Trouble(error));
        }
    }

    fn recovered(&mut self) {
        if std::mem::take(&mut self.in_trouble) {
            (self.tell)(WorkerEvent::Recovered);
        }
    }

    /// Serves until the membership ends. True: so does the worker.
    async fn serve(&mut self, member: &mut Member) -> Result<bool> {
        loop {
            match self.step(member).await {
                Ok(true) => return Ok(true),
                Ok(false) => {}
                Err(End::Refused(error)) => return Err(error),
                Err(End::Evicted) => {
                    self.lose(member, "the lease had ended");
                    (self.tell)(WorkerEvent::Evicted);
                    if let Some(held) = member.ending.take() {
                        // Longer than that it is waited for by nobody: the job is others' already.
                        let _ = timeout(LEAVE, held.end()).await;
                    }
                    return Ok(false);
                }
            }
        }
    }

    /// The job that it has, if it has one, is no longer this worker's: its work is ended.
    fn lose(&self, member: &mut Member, cause: &str) {
        if let Some(held) = member.job.take() {
            (self.tell)(WorkerEvent::Lost { id: held.claim.id, cause: cause.to_owned() });
            if held.outcome.is_none() {
                held.work.abort();
                member.ending = Some(held);
            }
        }
    }

    /// Takes note of how the cluster sees it, by the reply to what was sent at `sent`.
    fn stands(&self, member: &mut Member, standing: &Standing, sent: Instant) {
        // What it is still to tell of is told all the same: it may be that only the reply was lost.
        let is_gone = |held: &Held| held.claim.token != standing.token && held.outcome.is_none();
        if member.job.as_ref().is_some_and(is_gone) {
            self.lose(member, "it was cancelled, or given to another worker");
        }
        member.stands(standing, sent);
    }

    /// Waits for something; a lease that ends meanwhile ends the job. Nothing: it is to stop at once.
    async fn meanwhile<R>(&self, member: &mut Member, wanted: impl Future<Output = R>) -> Option<R> {
        let mut wanted = pin!(wanted);
        loop {
            tokio::select! {
                done = &mut wanted => return Some(done),
                () = at(member.lease_end()) => self.lose(member, "its lease could not be extended"),
                () = told_now(self.stop.clone()) => return None,
            }
        }
    }

    /// What the ring asks for, what is to be said of the job, a new job; then it waits for what happens. True: the worker has
    /// left.
    async fn step(&mut self, member: &mut Member) -> Result<bool, End> {
        let stop = *self.stop.borrow_and_update();
        let is_free = member.job.is_none() && member.ending.is_none();
        if stop == Stop::Now || stop == Stop::AfterJob && is_free {
            if let Some(held) = member.job.take().or(member.ending.take())
                && timeout(LEAVE, held.end()).await.is_err()
            {
                // It goes on: nobody is to have the job, or the next one of its key, before the lease ends.
                return Ok(true);
            }
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
        if is_free && std::mem::take(&mut member.curious) && self.claim(member).await? {
            return Ok(false);
        }
        match self.wait(member, stop).await {
            Happened::Event(Some(event)) => {
                if member.saw(event) {
                    self.lose(member, "it was cancelled");
                }
            }
            // Some may have been missed.
            Happened::Event(None) => member.curious = true,
            Happened::Ended => {
                member.ending = None;
                member.curious = true;
            }
            Happened::Heartbeat => self.heartbeat(member).await?,
            Happened::Outcome(outcome) => {
                let outcome =
                    outcome.unwrap_or_else(|error| Err(format!("the work has panicked: {error}").into()));
                if let Some(held) = &mut member.job {
                    held.outcome = Some(outcome);
                }
            }
            Happened::LeaseOver => self.lose(member, "its lease could not be extended"),
            Happened::Stop => {}
        }
        Ok(false)
    }

    /// Waits for what happens next; `stop` is what was said of stopping before.
    async fn wait(&mut self, member: &mut Member, stop: Stop) -> Happened {
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
        let ended = async {
            match &mut member.ending {
                // However it ended.
                Some(held) => drop((&mut held.work).await),
                None => pending().await,
            }
        };
        tokio::select! {
            outcome = work => Happened::Outcome(outcome),
            () = ended => Happened::Ended,
            event = member.events.next() => Happened::Event(event),
            _ = self.heartbeats.tick() => Happened::Heartbeat,
            () = at(lease_end) => Happened::LeaseOver,
            () = stopped => Happened::Stop,
        }
    }

    /// A command of the member. Nothing: it may be tried again later.
    async fn command<R: DeserializeOwned>(
        &mut self,
        member: &mut Member,
        command: &str,
        body: Value,
    ) -> Result<Option<Reply<R>>, End> {
        let request = self.client.command("jobs", command, &body);
        let Some(result) = self.meanwhile(member, request).await else { return Ok(None) };
        let answered = result
            .as_ref()
            .map_or_else(|error| error.refused().is_some_and(|refused| refused.is_by_service()), |_| true);
        if answered {
            self.recovered();
        }
        match result {
            Ok(reply) => Ok(Some(reply)),
            Err(error) if is_refusal(&error, "unknown_member") => Err(End::Evicted),
            Err(error) if answered => Err(End::Refused(error)),
            Err(error) => {
                self.trouble(error);
                self.meanwhile(member, sleep(PAUSE)).await;
                Ok(None)
            }
        }
    }

    /// Tells that a phase was heard. Before the second one, whoever works here learns what it will not own any more.
    async fn acknowledge(&mut self, member: &mut Member, (epoch, phase): (u64, Phase)) -> Result<(), End> {
        if phase == Phase::Synchronise {
            let row = self.own_row(member.id);
            let own = self.meanwhile(member, row).await.flatten();
            let unknown = vec![EVERYTHING];
            let next = own.as_ref().map_or(&unknown, |own| &own.next_owns);
            // Where the ring cannot be read, nothing that is kept counts, and everything may be its own.
            let gone = if own.is_some() { lost(&member.owns, next) } else { member.owns.clone() };
            if !gone.is_empty() {
                (self.tell)(WorkerEvent::SlotsLost(gone));
            }
            member.owns.clone_from(next);
        }
        let body = json!({"member": member.id, "epoch": epoch, "phase": phase, "token": member.token()});
        let sent = Instant::now();
        match self.command::<Standing>(member, "acknowledge", body).await {
            Ok(Some(standing)) => {
                member.acknowledged = (epoch, phase);
                // A ring that has changed may have something for this worker.
                member.curious = true;
                self.stands(member, &standing, sent);
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

    async fn heartbeat(&mut self, member: &mut Member) -> Result<(), End> {
        let progress = member.job.as_ref().map_or_else(String::new, |held| held.progress.borrow().clone());
        let body = json!({"member": member.id, "token": member.token(), "progress": progress});
        let sent = Instant::now();
        let Some(standing) = self.command::<Standing>(member, "heartbeat", body).await? else {
            return Ok(());
        };
        // An event may have been missed.
        member.curious = true;
        self.stands(member, &standing, sent);
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
        let queue = self.client.jobs().queue(&self.worker.queue).await.ok().flatten();
        queue.is_some_and(|queue| {
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
            Err(Failed { cause, last }) => {
                let body = json!({"id": id, "token": token, "error": &cause, "last": last});
                ("fail", body, Some(cause))
            }
        };
        match self.command::<Outcome>(member, command, body).await {
            Ok(Some(outcome)) => {
                self.tally.done += u64::from(outcome.state == State::Done);
                self.tally.dead += u64::from(outcome.state == State::Dead);
                (self.tell)(WorkerEvent::Ended { id, state: outcome.state, error });
            }
            // It is tried again, if the job is still there.
            Ok(None) => return Ok(()),
            // The attempt is over: its result is not to be had.
            Err(End::Refused(error)) if is_refusal(&error, "too_large") => {
                if let Some(held) = &mut member.job {
                    held.outcome = Some(Err(error.to_string().into()));
                }
                return Ok(());
            }
            Err(End::Refused(error)) => self.lose(member, &error.to_string()),
            Err(end) => return Err(end),
        }
        member.job = None;
        member.curious = true;
        Ok(())
    }
}
