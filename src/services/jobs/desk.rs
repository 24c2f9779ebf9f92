//! The jobs of one queue, and how they go from one state to the next.

use serde::{Deserialize, Serialize};

use super::members::MEMBERS;
use super::places::{DROPS, LINES, first};
use super::ring::slot_of;
use super::stored::{Front, Job, Line, NOBODY, Queue};
use super::{
    JobEvent, MAX_ATTEMPTS, MAX_BACKOFF_MS, MAX_DELAY_MS, MAX_ERROR_BYTES, MAX_OPEN, MAX_PAYLOAD_BYTES,
    MAX_PRIORITY, MAX_QUEUES, MAX_RESULT_BYTES, PURGED_BYTES, ReadyEvent, Reply, State, bad, check_queue,
    cut, names, unknown_job, unknown_queue,
};
use crate::{Context, Refusal, Table, Tables};

pub(super) const JOBS: Table<u64, Job> = Table::new("jobs");
pub(super) const PAYLOADS: Table<u64, String> = Table::new("payloads");
pub(super) const RESULTS: Table<u64, String> = Table::new("results");
pub(super) const QUEUES: Table<String, Queue> = Table::new("queues");
/// Of a queue and key.
const HEADS: Table<(String, String), Line> = Table::new("heads");
/// Queues of which something is to be forgotten.
pub(super) const PURGES: Table<String, ()> = Table::new("purges");
pub(super) const STATE: Table<(), All> = Table::new("state");

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct All {
    pub(super) jobs: u64,
    pub(super) queues: u64,
    /// No row of [`super::places::DELAYED`] is at this one or before it,
    pub(super) delayed: (u64, u64),
    /// and none of [`super::members::EXPIRIES`].
    pub(super) expiries: (u64, u64),
}

/// A queue at work. What is changed of its row is stored by [`Desk::close`].
pub(super) struct Desk<'x, 't, 'c> {
    pub(super) tables: &'x mut Tables<'t>,
    pub(super) context: &'x mut Context<'c>,
    pub(super) name: String,
    pub(super) queue: Queue,
}

impl<'x, 't, 'c> Desk<'x, 't, 'c> {
    pub(super) fn open(tables: &'x mut Tables<'t>, context: &'x mut Context<'c>, name: &str) -> Self {
        let name = name.to_owned();
        let queue = tables.get(&QUEUES, &name).unwrap_or_default();
        Self { tables, context, name, queue }
    }

    /// Nothing is to be done in it, and nobody is there to do it.
    fn is_idle(&self) -> bool {
        self.queue.counts.open() == 0 && self.queue.members == 0
    }

    pub(super) fn close(self) {
        self.tables.put(&QUEUES, &self.name, &self.queue);
    }

    /// Brings a job from its state to another one.
    pub(super) fn turn(&mut self, id: u64, job: &mut Job, state: State) {
        self.unplace(id, job);
        let count = self.queue.counts.of(job.state);
        *count = count.saturating_sub(1);
        self.enter(id, job, state);
    }

    fn enter(&mut self, id: u64, job: &mut Job, state: State) {
        job.state = state;
        *self.queue.counts.of(state) += 1;
        if matches!(state, State::Done | State::Cancelled | State::Dead) {
            job.ended_ms = self.context.time();
        }
        self.place(id, job);
        self.tables.put(&JOBS, &id, job);
        if state == State::Ready {
            let slot = job.key.as_deref().map(slot_of);
            self.context.emit(format!("ready:{}", self.name), &ReadyEvent { job: id, slot });
        } else {
            let worker = (!job.worker.is_empty()).then(|| job.worker.clone());
            self.context.emit(&self.name, &JobEvent { job: id, state, worker });
        }
    }

    /// Where a job that is to be done goes: behind those of its key, or it waits for its time or for a worker.
    fn begin(&mut self, id: u64, job: &Job) -> State {
        if let Some(key) = &job.key {
            let key = (self.name.clone(), key.clone());
            match self.tables.get(&HEADS, &key) {
                Some(line) if line.head != id => return State::Waiting,
                Some(_) => {}
                None => self.tables.put(&HEADS, &key, &Line { head: id, behind: Front::default() }),
            }
        }
        self.armed(job)
    }

    /// The line of a key changes.
    pub(super) fn change_line(&mut self, key: &str, change: impl FnOnce(&mut Line)) {
        let key = (self.name.clone(), key.to_owned());
        if let Some(mut line) = self.tables.get(&HEADS, &key) {
            change(&mut line);
            self.tables.put(&HEADS, &key, &line);
        }
    }

    fn armed(&self, job: &Job) -> State {
        if job.due_ms > self.context.time() { State::Delayed } else { State::Ready }
    }

    /// Ends a job, for the time being at least, and lets the next one of its key go ahead.
    pub(super) fn end(&mut self, id: u64, job: &mut Job, state: State) {
        self.turn(id, job, state);
        if let Some(key) = job.key.clone() {
            self.pass_on(key, id);
        }
    }

    /// The head of a key's line makes room, if it is `id`.
    pub(super) fn pass_on(&mut self, key: String, id: u64) {
        let head = (self.name.clone(), key.clone());
        let Some(line) = self.tables.get(&HEADS, &head).filter(|line| line.head == id) else { return };
        let bound = |id| (self.name.clone(), (key.clone(), id));
        let next = match line.behind {
            Front { count: 0, .. } => None,
            Front { first: from, .. } => first(self.tables, &LINES, (&bound(from), &bound(u64::MAX))),
        };
        let next = next.and_then(|(_, (_, next))| Some((next, self.tables.get(&JOBS, &next)?)));
        let Some((next, mut job)) = next else {
            self.tables.remove(&HEADS, &head);
            return;
        };
        let behind = Front { first: next, ..line.behind };
        self.tables.put(&HEADS, &head, &Line { head: next, behind });
        let state = self.armed(&job);
        self.turn(next, &mut job, state);
    }

    /// An attempt has come to nothing: the job is tried again after a pause, or is a dead letter; without a pause too.
    pub(super) fn come_to_nothing(&mut self, id: u64, job: &mut Job, error: String, pause_ms: Option<u64>) {
        job.error = error;
        job.due_ms = self.context.time();
        match pause_ms.filter(|_| job.attempts < job.most_attempts) {
            None => self.end(id, job, State::Dead),
            Some(pause_ms) => {
                job.due_ms += pause_ms;
                let state = self.armed(job);
                self.turn(id, job, state);
            }
        }
    }
}

pub(super) fn submit(
    tables: &mut Tables<'_>,
    context: &mut Context<'_>,
    mut job: Job,
    payload: &String,
) -> Result<Reply, Refusal> {
    check_queue(&job.queue)?;
    job.key.as_deref().map_or(Ok(()), names::check)?;
    if payload.len() > MAX_PAYLOAD_BYTES {
        let text = format!(
            "the payload takes {} bytes, and at most {MAX_PAYLOAD_BYTES} are taken; store it elsewhere and submit its address",
            payload.len()
        );
        return Err(Refusal::new("too_large", text).with_status(413));
    }
    if job.priority > MAX_PRIORITY {
        let text =
            format!("the priority is {}; use 0 to {MAX_PRIORITY}, the highest goes first", job.priority);
        return Err(bad("bad_priority", text));
    }
    if !(1..=MAX_ATTEMPTS).contains(&job.most_attempts) {
        return Err(bad("bad_attempts", format!("{} attempts; use 1 to {MAX_ATTEMPTS}", job.most_attempts)));
    }
    let delay = job.due_ms - job.submitted_ms;
    if delay > MAX_DELAY_MS {
        return Err(bad(
            "bad_delay",
            format!("the delay is {delay} ms, and at most {MAX_DELAY_MS} are taken"),
        ));
    }
    if job.backoff_ms > MAX_BACKOFF_MS {
        let text = format!("the backoff is {} ms, and at most {MAX_BACKOFF_MS} are taken", job.backoff_ms);
        return Err(bad("bad_backoff", text));
    }
    know_queue(tables, &job.queue)?;
    let mut desk = Desk::open(tables, context, &job.queue);
    if desk.queue.counts.open() >= MAX_OPEN {
        let text = format!(
            "the queue {} has {MAX_OPEN} jobs that are not done, dead letters included; wait, or cancel some",
            job.queue
        );
        return Err(Refusal::new("queue_full", text).with_status(429));
    }
    let mut all = desk.tables.get(&STATE, &()).unwrap_or_default();
    all.jobs += 1;
    let id = all.jobs;
    desk.tables.put(&STATE, &(), &all);
    desk.tables.put_new(&PAYLOADS, &id, payload);
    let state = desk.begin(id, &job);
    desk.enter(id, &mut job, state);
    desk.close();
    Ok(Reply::Submitted { id, state })
}

/// Counts a queue that is new.
pub(super) fn know_queue(tables: &mut Tables<'_>, name: &str) -> Result<(), Refusal> {
    if tables.get(&QUEUES, &name.to_owned()).is_some() {
        return Ok(());
    }
    let mut all = tables.get(&STATE, &()).unwrap_or_default();
    if all.queues >= MAX_QUEUES {
        let text =
            format!("there are {MAX_QUEUES} queues, which is the most; `purge` one that is no longer used");
        return Err(Refusal::new("too_many_queues", text));
    }
    all.queues += 1;
    tables.put(&STATE, &(), &all);
    Ok(())
}

/// The job, if `token` is that of its last claim and it runs.
fn held(tables: &Tables<'_>, id: u64, token: u64) -> Result<Job, Refusal> {
    let job = tables.get(&JOBS, &id).ok_or_else(|| unknown_job(id))?;
    if job.state == State::Running && job.token == token {
        return Ok(job);
    }
    let what = match job.state {
        State::Running => format!("{} has it now, with token {}", job.worker, job.token),
        State::Done => "it is done".to_owned(),
        State::Cancelled => "it was cancelled".to_owned(),
        State::Dead => "it is a dead letter".to_owned(),
        State::Waiting | State::Delayed | State::Ready => "it waits for another attempt".to_owned(),
    };
    let text = format!("token {token} holds job {id} no longer: {what}");
    Err(Refusal::new("stale_token", text).with_current(job.token))
}

/// The member that has the job has it no longer.
fn let_go(tables: &mut Tables<'_>, job: &Job, done: bool) {
    if let Some(mut member) = tables.get(&MEMBERS, &job.member).filter(|member| member.token == job.token) {
        member.job = 0;
        member.token = 0;
        member.done += u64::from(done);
        tables.put(&MEMBERS, &job.member, &member);
    }
}

pub(super) fn complete(
    tables: &mut Tables<'_>,
    context: &mut Context<'_>,
    id: u64,
    token: u64,
    result: &String,
) -> Result<Reply, Refusal> {
    if result.len() > MAX_RESULT_BYTES {
        let text = format!(
            "the result takes {} bytes, and at most {MAX_RESULT_BYTES} are taken; store it elsewhere and give its address",
            result.len()
        );
        return Err(Refusal::new("too_large", text).with_status(413));
    }
    // Said again, it is the same completion: a token is given once.
    if let Some(job) = tables.get(&JOBS, &id).filter(|job| job.state == State::Done && job.token == token) {
        return Ok(Reply::Job { id, state: job.state, due_ms: job.due_ms });
    }
    let mut job = held(tables, id, token)?;
    let_go(tables, &job, true);
    tables.put(&RESULTS, &id, result);
    let mut desk = Desk::open(tables, context, &job.queue);
    desk.end(id, &mut job, State::Done);
    desk.close();
    Ok(Reply::Job { id, state: job.state, due_ms: job.due_ms })
}

pub(super) fn fail(
    tables: &mut Tables<'_>,
    context: &mut Context<'_>,
    id: u64,
    token: u64,
    (error, last): (String, bool),
) -> Result<Reply, Refusal> {
    // Said again, it is the same failure, as long as nobody has claimed it anew.
    let again = |job: &Job| token != 0 && job.failed == token && job.token == token;
    if let Some(job) = tables.get(&JOBS, &id).filter(again) {
        return Ok(Reply::Job { id, state: job.state, due_ms: job.due_ms });
    }
    let mut job = held(tables, id, token)?;
    job.failed = token;
    let_go(tables, &job, false);
    let mut desk = Desk::open(tables, context, &job.queue);
    let pause = (!last).then(|| backoff(&job));
    desk.come_to_nothing(id, &mut job, cut(error, MAX_ERROR_BYTES), pause);
    desk.close();
    Ok(Reply::Job { id, state: job.state, due_ms: job.due_ms })
}

/// The pause after the job's last attempt.
fn backoff(job: &Job) -> u64 {
    let doublings = job.attempts.saturating_sub(1).min(32);
    job.backoff_ms.saturating_mul(1 << doublings).min(MAX_BACKOFF_MS)
}

pub(super) fn cancel(tables: &mut Tables<'_>, context: &mut Context<'_>, id: u64) -> Result<Reply, Refusal> {
    let mut job = tables.get(&JOBS, &id).ok_or_else(|| unknown_job(id))?;
    match job.state {
        State::Done => return Err(Refusal::new("already_done", format!("job {id} is done"))),
        State::Cancelled => return Err(Refusal::new("already_cancelled", format!("job {id} was cancelled"))),
        State::Running => return cancel_running(tables, context, id, job),
        State::Waiting | State::Delayed | State::Ready | State::Dead => {}
    }
    let mut desk = Desk::open(tables, context, &job.queue);
    desk.end(id, &mut job, State::Cancelled);
    desk.close();
    Ok(Reply::Job { id, state: job.state, due_ms: job.due_ms })
}

/// Its worker may be in the middle of it: the next job of the key waits until that one has let go.
fn cancel_running(
    tables: &mut Tables<'_>,
    context: &mut Context<'_>,
    id: u64,
    mut job: Job,
) -> Result<Reply, Refusal> {
    let member = tables.get(&MEMBERS, &job.member).filter(|member| member.token == job.token);
    let mut desk = Desk::open(tables, context, &job.queue);
    let event = JobEvent { job: id, state: State::Cancelled, worker: Some(job.worker.clone()) };
    desk.context.emit(format!("cancelled:{}", desk.name), &event);
    match (member, job.key.clone()) {
        (Some(mut member), Some(key)) => {
            desk.turn(id, &mut job, State::Cancelled);
            desk.change_line(&key, |line| line.head = NOBODY);
            member.letting_go = Some((key, member.token));
            (member.job, member.token) = (0, 0);
            desk.tables.put(&MEMBERS, &job.member, &member);
        }
        _ => {
            let_go(desk.tables, &job, false);
            desk.end(id, &mut job, State::Cancelled);
        }
    }
    desk.close();
    Ok(Reply::Job { id, state: job.state, due_ms: job.due_ms })
}

pub(super) fn purge(
    tables: &mut Tables<'_>,
    context: &mut Context<'_>,
    name: &str,
) -> Result<Reply, Refusal> {
    check_queue(name)?;
    if tables.get(&QUEUES, &name.to_owned()).is_none() {
        return Err(unknown_queue(name));
    }
    let mut desk = Desk::open(tables, context, name);
    let (jobs, gone) = (desk.queue.kept, desk.is_idle());
    desk.queue.purged = desk.queue.ended;
    desk.tables.put(&PURGES, &desk.name, &());
    desk.close();
    // What is little is done at once.
    go_on_purging(tables, context, name, DROPS);
    Ok(Reply::Purged { jobs, gone })
}

/// Drops what is to be forgotten of a queue, at most so many places and so many bytes, and at last the queue.
pub(super) fn go_on_purging(tables: &mut Tables<'_>, context: &mut Context<'_>, name: &str, places: u64) {
    let mut desk = Desk::open(tables, context, name);
    let mut bytes = 0;
    for _ in 0..places {
        if desk.queue.dropped >= desk.queue.purged || bytes >= PURGED_BYTES {
            break;
        }
        bytes += desk.drop_place();
    }
    if desk.queue.dropped < desk.queue.purged {
        return desk.close();
    }
    desk.tables.remove(&PURGES, &desk.name);
    if desk.queue.kept > 0 || !desk.is_idle() {
        return desk.close();
    }
    desk.tables.remove(&QUEUES, &desk.name);
    let all = desk.tables.get(&STATE, &()).unwrap_or_default();
    desk.tables.put(&STATE, &(), &All { queues: all.queues.saturating_sub(1), ..all });
}

pub(super) fn retry(tables: &mut Tables<'_>, context: &mut Context<'_>, id: u64) -> Result<Reply, Refusal> {
    let mut job = tables.get(&JOBS, &id).ok_or_else(|| unknown_job(id))?;
    match job.state {
        State::Dead | State::Cancelled => {}
        State::Done => return Err(Refusal::new("already_done", format!("job {id} is done"))),
        State::Waiting | State::Delayed | State::Ready | State::Running => {
            let text = format!("job {id} has not ended; it is tried by itself");
            return Err(Refusal::new("not_ended", text));
        }
    }
    (job.attempts, job.ended_ms, job.due_ms) = (0, 0, context.time());
    let mut desk = Desk::open(tables, context, &job.queue);
    if job.state == State::Cancelled && desk.queue.counts.open() >= MAX_OPEN {
        return Err(Refusal::new("queue_full", format!("the queue {} is full", job.queue)).with_status(429));
    }
    let state = desk.begin(id, &job);
    desk.turn(id, &mut job, state);
    desk.close();
    Ok(Reply::Job { id, state: job.state, due_ms: job.due_ms })
}
