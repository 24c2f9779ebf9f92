//! Jobs: queues of work, handed out by leases, and a ring of workers on which every key has one owner.
//!
//! - A claim is a lease: who claims a job gets a fencing token, and has the job until it says that it is done, that it has
//!   failed, or nothing for the time of its lease. Leases end by logged time. A claim's token is larger than those of all claims
//!   before it, and an old one completes nothing.
//! - What a job does outside of the cluster is done **at least once**: a worker that is lost in the middle has done a part,
//!   and another one begins anew. That it was completed is recorded **exactly once**.
//! - An attempt that fails is followed by a pause, twice as long each time; after the last one the job is a dead letter.
//! - Jobs of one key run one after the other, in the order of their submission. One that waits for its second attempt holds those
//!   behind it up; a dead letter does not.
//! - Workers are members of a queue. Each owns a part of a consistent-hash ring; a keyed job goes to its key's
//!   owner. When workers come or go, the ring is resized in three phases (see [`Phase`]), each of which ends when
//!   all have acknowledged it. Who does not within its lease is evicted, so none lasts for ever. Keys that stay are served all the while.
//! - Events: a job that can be claimed on the topic `ready:QUEUE`, its other changes on `QUEUE` (and `cancelled:QUEUE`, if a worker
//!   had it), the ring's on `ring:QUEUE`.

mod answer;
mod command;
mod desk;
mod members;
mod places;
mod query;
mod ring;
mod stored;

pub use self::answer::*;
pub use self::command::*;
pub use self::ring::{SLOTS, slot_of};
pub use self::stored::{Counts, Phase, State};

use std::ops::{Bound, ControlFlow};

use self::desk::{All, Desk, JOBS, PURGES, STATE};
use self::members::EXPIRIES;
use self::places::DELAYED;
use self::stored::Job;
use super::names::{self, Listing};
use crate::{Context, QueryContext, Readable, Refusal, Service, Table, Tables, View};

/// One tick makes at most so many jobs ready, and looks at so many leases. The rest comes with the next one.
const PER_TICK: usize = if cfg!(test) { 3 } else { 512 };
/// One tick forgets at most so many jobs that are to be purged,
const PURGED_PLACES: u64 = if cfg!(test) { 100 } else { 256 };
/// and stops at so many bytes of their texts.
const PURGED_BYTES: usize = 1 << 20;

/// The service `jobs`.
#[derive(Debug, Clone, Copy, Default)]
pub struct Jobs;

impl Service for Jobs {
    const NAME: &'static str = "jobs";
    type Command = Command;
    type Reply = Reply;
    type Query = Query;
    type Answer = Answer;

    fn apply(
        &self,
        tables: &mut Tables<'_>,
        context: &mut Context<'_>,
        command: Command,
    ) -> Result<Reply, Refusal> {
        match command {
            Command::Submit { queue, payload, key, priority, delay_ms, attempts, backoff_ms } => {
                let now = context.time();
                let job = Job {
                    queue,
                    key,
                    priority,
                    state: State::Ready,
                    attempts: 0,
                    most_attempts: attempts,
                    backoff_ms,
                    submitted_ms: now,
                    due_ms: now.saturating_add(delay_ms),
                    claimed_ms: 0,
                    ended_ms: 0,
                    worker: String::new(),
                    member: 0,
                    token: 0,
                    progress: String::new(),
                    error: String::new(),
                    place: 0,
                    failed: 0,
                };
                desk::submit(tables, context, job, &payload)
            }
            Command::Join { queue, worker, lease_ms, run } => {
                members::join(tables, context, &queue, worker, (lease_ms, run))
            }
            Command::Leave { member } => members::leave(tables, context, member),
            Command::Claim { member } => members::claim(tables, context, member),
            Command::Heartbeat { member, token, progress } => {
                members::heartbeat(tables, context, member, token, progress)
            }
            Command::Complete { id, token, result } => desk::complete(tables, context, id, token, &result),
            Command::Fail { id, token, error, last } => desk::fail(tables, context, id, token, (error, last)),
            Command::Acknowledge { member, epoch, phase, token } => {
                members::acknowledge(tables, context, member, (epoch, phase), token)
            }
            Command::Cancel { id } => desk::cancel(tables, context, id),
            Command::Retry { id } => desk::retry(tables, context, id),
            Command::Purge { queue } => desk::purge(tables, context, &queue),
        }
    }

    fn query(&self, view: &View<'_>, context: &QueryContext, query: Query) -> Result<Answer, Refusal> {
        match query {
            Query::Status { id } => query::status(view, id),
            Query::Result { id } => query::result(view, id),
            Query::List { queue, state, after, limit } => query::list(view, queue, state, after, limit),
            Query::Queues(listing) => query::queues(view, &listing),
            Query::Ring { queue } => query::ring(view, context, queue),
            Query::Owner { queue, key } => query::owner(view, queue, &key),
        }
    }

    fn next_deadline(&self, view: &View<'_>) -> Option<u64> {
        let all = view.get(&STATE, &()).unwrap_or_default();
        let first = |table: &Table<(u64, u64), ()>, from: (u64, u64)| {
            let mut first = None;
            view.range(table, (Bound::Excluded(&from), Bound::Unbounded), |(time, _), ()| {
                first = Some(time);
                ControlFlow::Break(())
            });
            first
        };
        let purge = first_purge(view).map(|_| 0);
        let times = [first(&DELAYED, all.delayed), first(&EXPIRIES, all.expiries), purge];
        times.into_iter().flatten().min()
    }

    fn tick(&self, tables: &mut Tables<'_>, context: &mut Context<'_>) {
        let all = tables.get(&STATE, &()).unwrap_or_default();
        let (delayed, at_delayed) = due(tables, context, &DELAYED, all.delayed);
        for row in delayed {
            tables.remove(&DELAYED, &row);
            let id = row.1;
            if let Some(mut job) = tables.get(&JOBS, &id) {
                let mut desk = Desk::open(tables, context, &job.queue);
                desk.turn(id, &mut job, State::Ready);
                desk.close();
            }
        }
        let (expired, at_expiries) = due(tables, context, &EXPIRIES, all.expiries);
        for row in expired {
            tables.remove(&EXPIRIES, &row);
            members::look_at_lease(tables, context, row.1);
        }
        if let Some(queue) = first_purge(tables) {
            desk::go_on_purging(tables, context, &queue, PURGED_PLACES);
        }
        let now = tables.get(&STATE, &()).unwrap_or_default();
        if (now.delayed, now.expiries) != (at_delayed, at_expiries) {
            tables.put(&STATE, &(), &All { delayed: at_delayed, expiries: at_expiries, ..now });
        }
    }
}

/// The rows whose time has come, of those behind `from`; and the last row behind which there are others.
fn due(
    tables: &Tables<'_>,
    context: &Context<'_>,
    table: &Table<(u64, u64), ()>,
    from: (u64, u64),
) -> (Vec<(u64, u64)>, (u64, u64)) {
    let mut found = Vec::new();
    let until = (context.time(), u64::MAX);
    tables.range(table, (Bound::Excluded(&from), Bound::Included(&until)), |row, ()| {
        found.push(row);
        if found.len() < PER_TICK { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    });
    // What is put in from now on lies in the future.
    let upto = match found.last() {
        None => from,
        Some(last) if found.len() == PER_TICK => *last,
        Some(_) => until,
    };
    (found, upto)
}

fn first_purge(view: &impl Readable) -> Option<String> {
    let mut first = None;
    view.range(&PURGES, (Bound::Unbounded, Bound::Unbounded), |queue, ()| {
        first = Some(queue);
        ControlFlow::Break(())
    });
    first
}

/// Cuts a text at a character's boundary.
fn cut(mut text: String, most: usize) -> String {
    if text.len() > most {
        let end = (0..=most).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        text.truncate(end);
    }
    text
}

fn check_queue(name: &str) -> Result<(), Refusal> {
    names::check_plain("queue", name, MAX_NAME_BYTES)
}

fn bad(code: &str, text: String) -> Refusal {
    Refusal::new(code, text).with_status(400)
}

fn unknown_queue(name: &str) -> Refusal {
    let text = format!("there is no queue {name}; a job or a worker makes one");
    Refusal::new("unknown_queue", text).with_status(404)
}

fn unknown_job(id: u64) -> Refusal {
    let text =
        format!("there is no job {id}; of those that have ended, the last {KEPT} of each queue are kept");
    Refusal::new("unknown_job", text).with_status(404)
}
