//! What can be asked of jobs.

use std::ops::{Bound, ControlFlow};

use super::desk::{JOBS, PAYLOADS, QUEUES, RESULTS};
use super::members::{MEMBERS, is_asked, members};
use super::places::DEAD;
use super::ring::slot_of;
use super::stored::{Job, Member, Queue};
use super::{
    Answer, JobRow, Listing, MemberRow, Phase, QueueRow, SLOTS, State, bad, check_queue, names, unknown_job,
    unknown_queue,
};
use crate::{QueryContext, Readable, Refusal, View};

/// Jobs in one answer.
const MAX_ROWS: u32 = 1_000;
/// Jobs looked at for one answer.
const MAX_SCAN: usize = 10_000;

fn row(id: u64, job: Job) -> JobRow {
    let time = |time: u64| (time != 0).then_some(time);
    let text = |text: String| (!text.is_empty()).then_some(text);
    JobRow {
        id,
        queue: job.queue,
        key: job.key,
        priority: job.priority,
        state: job.state,
        attempts: job.attempts,
        most_attempts: job.most_attempts,
        submitted_ms: job.submitted_ms,
        due_ms: job.due_ms,
        claimed_ms: time(job.claimed_ms),
        ended_ms: time(job.ended_ms),
        worker: text(job.worker),
        token: job.token,
        progress: job.progress,
        error: text(job.error),
    }
}

pub(super) fn status(view: &View<'_>, id: u64) -> Result<Answer, Refusal> {
    let job = view.get(&JOBS, &id).ok_or_else(|| unknown_job(id))?;
    Ok(Answer::Status(row(id, job)))
}

pub(super) fn result(view: &View<'_>, id: u64) -> Result<Answer, Refusal> {
    let job = view.get(&JOBS, &id).ok_or_else(|| unknown_job(id))?;
    let result = view.get(&RESULTS, &id).filter(|_| job.state == State::Done);
    let payload = view.get(&PAYLOADS, &id).unwrap_or_default();
    Ok(Answer::Result { job: row(id, job), payload, result })
}

pub(super) fn list(
    view: &View<'_>,
    queue: Option<String>,
    state: Option<State>,
    after: u64,
    limit: u32,
) -> Result<Answer, Refusal> {
    if !(1..=MAX_ROWS).contains(&limit) {
        let text = format!("the limit is {limit}; use 1 to {MAX_ROWS}, and `after` for what follows");
        return Err(bad("bad_limit", text));
    }
    if let Some(name) = &queue {
        self::queue(view, name)?;
    }
    let (mut jobs, mut next, mut looked, mut last) = (Vec::new(), None, 0, after);
    let mut look = |id: u64, job: Option<Job>| {
        if jobs.len() == limit as usize || looked == MAX_SCAN {
            next = Some(last);
            return ControlFlow::Break(());
        }
        (looked, last) = (looked + 1, id);
        let wanted = |job: &Job| {
            queue.as_ref().is_none_or(|queue| *queue == job.queue)
                && state.is_none_or(|state| state == job.state)
        };
        jobs.extend(job.filter(wanted).map(|job| row(id, job)));
        ControlFlow::Continue(())
    };
    match (&queue, state) {
        (Some(queue), Some(State::Dead)) => {
            let bound = |id| (queue.clone(), id);
            let bounds = (&bound(after), &bound(u64::MAX));
            view.range(&DEAD, (Bound::Excluded(bounds.0), Bound::Included(bounds.1)), |(_, id), ()| {
                look(id, view.get(&JOBS, &id))
            });
        }
        _ => view.range(&JOBS, (Bound::Excluded(&after), Bound::Unbounded), |id, job| look(id, Some(job))),
    }
    Ok(Answer::List { jobs, next })
}

pub(super) fn queues(view: &View<'_>, listing: &Listing) -> Result<Answer, Refusal> {
    let page = names::page(view, &QUEUES, listing, |_| size_of::<Queue>())?;
    let row = |(name, queue): (String, Queue)| QueueRow {
        name,
        jobs: queue.counts,
        workers: queue.members,
        phase: queue.ring.phase,
    };
    Ok(Answer::Queues { queues: page.rows.into_iter().map(row).collect(), next: page.next })
}

fn queue(view: &impl Readable, name: &String) -> Result<Queue, Refusal> {
    check_queue(name)?;
    view.get(&QUEUES, name).ok_or_else(|| unknown_queue(name))
}

pub(super) fn ring(view: &View<'_>, context: &QueryContext, name: String) -> Result<Answer, Refusal> {
    let ring = queue(view, &name)?.ring;
    let row = |(id, member): (u64, Member)| {
        let job = view.get(&JOBS, &member.job);
        MemberRow {
            asked: is_asked(&ring, &member),
            member: id,
            until_ms: member.until_ms,
            job: (member.job != 0).then_some(member.job),
            progress: job.map(|job| job.progress).unwrap_or_default(),
            done: member.done,
            slots: member.slots.len(),
            owns: member.slots.runs(),
            next_slots: if member.epoch == ring.epoch { member.next.len() } else { 0 },
            next_owns: if ring.phase == Phase::Synchronise { member.next.runs() } else { Vec::new() },
            name: member.name,
        }
    };
    let found = |id| Some((id, view.get(&MEMBERS, &id)?));
    let workers = members(view, &name).into_iter().filter_map(found).map(row).collect();
    Ok(Answer::Ring {
        queue: name,
        epoch: ring.epoch,
        phase: ring.phase,
        phase_name: ring.phase.name(),
        since_ms: ring.since_ms,
        sync_revision: ring.sync,
        pending: ring.pending,
        slots: SLOTS,
        now_ms: context.time,
        workers,
    })
}

pub(super) fn owner(view: &View<'_>, name: String, key: &str) -> Result<Answer, Refusal> {
    names::check(key)?;
    let ring = queue(view, &name)?.ring;
    let slot = slot_of(key);
    let (mut worker, mut next) = (None, None);
    for member in members(view, &name).into_iter().filter_map(|id| view.get(&MEMBERS, &id)) {
        if member.slots.has(slot) {
            worker = Some(member.name.clone());
        }
        if member.next.has(slot) && member.epoch == ring.epoch {
            next = Some(member.name);
        }
    }
    Ok(Answer::Owner { slot, worker, next })
}
