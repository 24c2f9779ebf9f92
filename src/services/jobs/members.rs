//! The workers of a queue: their leases, what they claim, and the phases of a resize.

use std::ops::{Bound, ControlFlow};

use super::desk::{Desk, JOBS, PAYLOADS, know_queue};
use super::ring::{Slots, assign};
use super::stored::{Job, Member, NOBODY, Ring};
use super::{
    Claim, MAX_LEASE_MS, MAX_MEMBERS, MAX_NAME_BYTES, MAX_PROGRESS_BYTES, MIN_LEASE_MS, Phase, Reply,
    RingEvent, Standing, State, bad, check_queue, cut, names,
};
use crate::{Context, Readable, Refusal, Table, Tables};

pub(super) const MEMBERS: Table<u64, Member> = Table::new("members");
/// When to look at a member's lease, and which. Not moved by each heartbeat: a look that finds the lease extended moves it.
pub(super) const EXPIRIES: Table<(u64, u64), ()> = Table::new("expiries");
/// A queue's members by name.
const NAMES: Table<(String, String), u64> = Table::new("names");

/// The numbers of a queue's members, in the order of their names.
pub(super) fn members(view: &impl Readable, queue: &str) -> Vec<u64> {
    let mut found = Vec::new();
    let from = (queue.to_owned(), String::new());
    view.range(&NAMES, (Bound::Included(&from), Bound::Unbounded), |(other, _), member| {
        if other != queue {
            return ControlFlow::Break(());
        }
        found.push(member);
        ControlFlow::Continue(())
    });
    found
}

/// Does the phase wait for this member?
pub(super) fn is_asked(ring: &Ring, member: &Member) -> bool {
    let takes_part = match ring.phase {
        Phase::Normal => false,
        // Who is new has nothing to announce.
        Phase::Announce => member.epoch > 0,
        _ => member.epoch == ring.epoch,
    };
    takes_part && member.acknowledged < (ring.epoch, ring.phase)
}

/// Whose jobs a member may be given: a slot that moves is nobody's until all know the new ring.
fn usable(ring: &Ring, member: &Member) -> Slots {
    if ring.phase == Phase::Synchronise { member.slots.and(&member.next) } else { member.slots }
}

fn member(tables: &Tables<'_>, id: u64) -> Result<Member, Refusal> {
    tables.get(&MEMBERS, &id).ok_or_else(|| {
        let text =
            format!("there is no member {id}: it has left, or has been silent for its lease. Join again");
        Refusal::new("unknown_member", text).with_status(404)
    })
}

impl Desk<'_, '_, '_> {
    /// A command of a member counts as a sign of life. While a phase waits for it, though, its lease ends a lease's time
    /// after the phase's beginning, whatever else it says.
    fn extend(&self, member: &mut Member) {
        let now = self.context.time();
        let begin = if is_asked(&self.queue.ring, member) { self.queue.ring.since_ms } else { now };
        member.until_ms = member.until_ms.max(begin.saturating_add(member.lease_ms));
    }

    fn standing(&self, id: u64, member: &Member) -> Standing {
        let ring = &self.queue.ring;
        Standing {
            member: id,
            until_ms: member.until_ms,
            left_ms: member.until_ms.saturating_sub(self.context.time()),
            token: member.token,
            epoch: ring.epoch,
            phase: ring.phase,
            asked: is_asked(ring, member),
        }
    }

    fn tell(&mut self, worker: Option<&str>, what: &str) {
        let Ring { epoch, phase, pending, .. } = self.queue.ring;
        let (worker, what) = (worker.map(str::to_owned), what.to_owned());
        self.context.emit(format!("ring:{}", self.name), &RingEvent { epoch, phase, pending, worker, what });
    }

    /// Goes on to the next phase, as long as nobody is waited for.
    fn advance(&mut self) {
        loop {
            let ring = self.queue.ring;
            match ring.phase {
                Phase::Normal if ring.changed => {
                    self.queue.ring.epoch += 1;
                    self.queue.ring.pending = self.on_the_ring();
                }
                Phase::Announce if ring.pending == 0 => self.set_ring(),
                Phase::Synchronise if ring.pending == 0 => self.take_ring(),
                Phase::Resume if ring.pending == 0 => {}
                _ => return,
            }
            self.queue.ring.phase = ring.phase.next();
            self.queue.ring.since_ms = self.context.time();
            self.tell(None, "phase");
        }
    }

    /// How many members own a part of the ring, or did.
    fn on_the_ring(&self) -> u32 {
        let rows =
            members(self.tables, &self.name).into_iter().filter_map(|id| self.tables.get(&MEMBERS, &id));
        rows.filter(|member| member.epoch > 0).count() as u32
    }

    /// All are heard: these members share the ring out, from this revision on.
    fn set_ring(&mut self) {
        let ids = members(self.tables, &self.name);
        let rows: Vec<(u64, Member)> =
            ids.into_iter().filter_map(|id| Some((id, self.tables.get(&MEMBERS, &id)?))).collect();
        let names: Vec<String> = rows.iter().map(|(_, member)| member.name.clone()).collect();
        for ((id, mut member), slots) in rows.into_iter().zip(assign(&names)) {
            member.next = slots;
            member.epoch = self.queue.ring.epoch;
            self.tables.put(&MEMBERS, &id, &member);
        }
        self.queue.ring.changed = false;
        self.queue.ring.sync = self.context.revision();
        self.queue.ring.pending = self.queue.members;
    }

    /// All know it: it holds.
    fn take_ring(&mut self) {
        let mut pending = 0;
        for id in members(self.tables, &self.name) {
            let row = self.tables.get(&MEMBERS, &id).filter(|member| member.epoch == self.queue.ring.epoch);
            if let Some(mut member) = row {
                member.slots = member.next;
                self.tables.put(&MEMBERS, &id, &member);
                pending += 1;
            }
        }
        self.queue.ring.pending = pending;
    }

    /// The job that a member holds.
    fn held_by(&self, member: &Member) -> Option<Job> {
        self.tables.get(&JOBS, &member.job).filter(|job| member.token != 0 && job.token == member.token)
    }

    /// What a member holds goes back, and the attempt does not count.
    fn release(&mut self, member: &Member) {
        if let Some(mut job) = self.held_by(member) {
            job.attempts = job.attempts.saturating_sub(1);
            self.turn(member.job, &mut job, State::Ready);
        }
    }

    /// A member says something, and it is not that it works on `token`: what was cancelled under its hands it has let go.
    fn lets_go(&mut self, member: &mut Member, token: u64) {
        if let Some((key, _)) = member.letting_go.take_if(|(_, cancelled)| *cancelled != token) {
            self.pass_on(key, NOBODY);
        }
    }

    /// Ends a membership. What it held is tried again at once; the attempt counts if the member was lost.
    fn part(&mut self, id: u64, member: &Member, lost: bool) {
        if !lost {
            self.release(member);
        } else if let Some(mut job) = self.held_by(member) {
            let error = format!("{} was silent for its lease of {} ms", member.name, member.lease_ms);
            self.come_to_nothing(member.job, &mut job, error, Some(0));
        }
        if let Some((key, _)) = member.letting_go.clone() {
            self.pass_on(key, NOBODY);
        }
        let asked = is_asked(&self.queue.ring, member);
        self.tables.remove(&EXPIRIES, &(member.look_ms, id));
        self.tables.remove(&MEMBERS, &id);
        self.tables.remove(&NAMES, &(self.name.clone(), member.name.clone()));
        self.queue.members = self.queue.members.saturating_sub(1);
        self.queue.ring.pending = self.queue.ring.pending.saturating_sub(u32::from(asked));
        self.queue.ring.changed = true;
        self.tell(Some(&member.name), if lost { "evicted" } else { "left" });
        self.advance();
    }
}

pub(super) fn join(
    tables: &mut Tables<'_>,
    context: &mut Context<'_>,
    queue: &str,
    worker: String,
    (lease_ms, run): (u64, u64),
) -> Result<Reply, Refusal> {
    check_queue(queue)?;
    names::check_plain("worker", &worker, MAX_NAME_BYTES)?;
    if !(MIN_LEASE_MS..=MAX_LEASE_MS).contains(&lease_ms) {
        let text = format!("the lease is {lease_ms} ms; use {MIN_LEASE_MS} to {MAX_LEASE_MS}");
        return Err(bad("bad_lease", text));
    }
    let name = (queue.to_owned(), worker);
    let there = tables.get(&NAMES, &name).and_then(|id| Some((id, tables.get(&MEMBERS, &id)?)));
    if let Some((id, mut other)) = there {
        // Its reply was lost.
        if other.session != 0 && (other.session, other.run) == (context.session(), run) {
            other.lease_ms = lease_ms;
            let desk = Desk::open(tables, context, queue);
            desk.extend(&mut other);
            desk.tables.put(&MEMBERS, &id, &other);
            return Ok(Reply::Standing(desk.standing(id, &other)));
        }
        let left = other.until_ms.saturating_sub(context.time());
        let text = format!(
            "{} is a member of {queue} already; give this worker another name, or wait until the lease of that one has ended, in \
             {left} ms if nothing is heard of it",
            name.1
        );
        return Err(Refusal::new("worker_exists", text).with_current(left));
    }
    know_queue(tables, queue)?;
    let mut desk = Desk::open(tables, context, queue);
    if desk.queue.members >= MAX_MEMBERS {
        let text = format!("{queue} has {MAX_MEMBERS} workers, which is the most");
        return Err(Refusal::new("too_many_workers", text));
    }
    let (id, until_ms) = (desk.context.revision(), desk.context.time().saturating_add(lease_ms));
    let member = Member {
        queue: name.0.clone(),
        name: name.1.clone(),
        lease_ms,
        until_ms,
        look_ms: until_ms,
        session: desk.context.session(),
        job: 0,
        token: 0,
        letting_go: None,
        done: 0,
        epoch: 0,
        acknowledged: (0, Phase::Normal),
        slots: Slots::default(),
        next: Slots::default(),
        cursor: 0,
        run,
    };
    desk.tables.put(&NAMES, &name, &id);
    desk.tables.put(&MEMBERS, &id, &member);
    desk.tables.put(&EXPIRIES, &(until_ms, id), &());
    desk.queue.members += 1;
    desk.queue.ring.changed = true;
    desk.tell(Some(&name.1), "joined");
    desk.advance();
    // It may be on a new ring.
    let member = desk.tables.get(&MEMBERS, &id).unwrap_or(member);
    let standing = desk.standing(id, &member);
    desk.close();
    Ok(Reply::Standing(standing))
}

pub(super) fn leave(tables: &mut Tables<'_>, context: &mut Context<'_>, id: u64) -> Result<Reply, Refusal> {
    let member = member(tables, id)?;
    let mut desk = Desk::open(tables, context, &member.queue);
    desk.part(id, &member, false);
    desk.close();
    Ok(Reply::Left)
}

/// Evicts the member if its lease has ended; otherwise it is looked at again when it has. Nothing if it has left.
pub(super) fn look_at_lease(tables: &mut Tables<'_>, context: &mut Context<'_>, id: u64) {
    let Some(mut member) = tables.get(&MEMBERS, &id) else { return };
    let mut desk = Desk::open(tables, context, &member.queue);
    if member.until_ms <= desk.context.time() {
        desk.part(id, &member, true);
    } else {
        member.look_ms = member.until_ms;
        desk.tables.put(&EXPIRIES, &(member.look_ms, id), &());
        desk.tables.put(&MEMBERS, &id, &member);
    }
    desk.close();
}

pub(super) fn claim(tables: &mut Tables<'_>, context: &mut Context<'_>, id: u64) -> Result<Reply, Refusal> {
    let mut member = member(tables, id)?;
    let mut desk = Desk::open(tables, context, &member.queue);
    desk.extend(&mut member);
    let freed = member.letting_go.is_some();
    desk.lets_go(&mut member, 0);
    let job = match member.job {
        0 => {
            let picked = desk.pick(&usable(&desk.queue.ring, &member), member.cursor);
            let job = picked.and_then(|(job, cursor)| Some((job, desk.tables.get(&JOBS, &job)?, cursor)));
            job.map(|(number, mut job, cursor)| {
                (member.job, member.token, member.cursor) = (number, desk.context.revision(), cursor);
                job.worker.clone_from(&member.name);
                (job.member, job.token) = (id, member.token);
                job.attempts += 1;
                job.claimed_ms = desk.context.time();
                job.progress.clear();
                desk.turn(number, &mut job, State::Running);
                job
            })
        }
        // Its reply to the claim was lost, or it has begun anew.
        held => desk.tables.get(&JOBS, &held),
    };
    desk.tables.put(&MEMBERS, &id, &member);
    let job = job.map(|job| Claim {
        id: member.job,
        token: job.token,
        key: job.key,
        attempt: job.attempts,
        payload: desk.tables.get(&PAYLOADS, &member.job).unwrap_or_default(),
    });
    let standing = desk.standing(id, &member);
    // A member that finds nothing changes nothing of its queue.
    if freed || job.is_some() {
        desk.close();
    }
    Ok(Reply::Claimed { job, standing })
}

pub(super) fn heartbeat(
    tables: &mut Tables<'_>,
    context: &mut Context<'_>,
    id: u64,
    token: u64,
    progress: String,
) -> Result<Reply, Refusal> {
    let mut member = member(tables, id)?;
    let mut desk = Desk::open(tables, context, &member.queue);
    desk.extend(&mut member);
    desk.lets_go(&mut member, token);
    desk.tables.put(&MEMBERS, &id, &member);
    let holds = member.token != 0 && member.token == token;
    if let Some(mut job) = desk.tables.get(&JOBS, &member.job).filter(|_| holds && !progress.is_empty()) {
        job.progress = cut(progress, MAX_PROGRESS_BYTES);
        desk.tables.put(&JOBS, &member.job, &job);
    }
    let standing = desk.standing(id, &member);
    desk.close();
    Ok(Reply::Standing(standing))
}

pub(super) fn acknowledge(
    tables: &mut Tables<'_>,
    context: &mut Context<'_>,
    id: u64,
    (epoch, phase): (u64, Phase),
    token: u64,
) -> Result<Reply, Refusal> {
    let mut member = member(tables, id)?;
    let mut desk = Desk::open(tables, context, &member.queue);
    let ring = desk.queue.ring;
    let is_to_come =
        epoch > ring.epoch || epoch == ring.epoch && ring.phase != Phase::Normal && phase > ring.phase;
    if is_to_come || phase == Phase::Normal {
        let text = format!(
            "there is no phase {} of resize {epoch} to acknowledge; the ring is in phase {} of {}",
            u8::from(phase),
            u8::from(ring.phase),
            ring.epoch
        );
        return Err(Refusal::new("bad_phase", text));
    }
    desk.extend(&mut member);
    desk.lets_go(&mut member, token);
    // What was acknowledged before, or is over, needs nothing more.
    let counts = is_asked(&ring, &member) && (epoch, phase) == (ring.epoch, ring.phase);
    if counts {
        // Who works on nothing was told of nothing: the job goes to somebody else.
        if phase == Phase::Announce && token == 0 {
            desk.release(&member);
            (member.job, member.token) = (0, 0);
        }
        member.acknowledged = (epoch, phase);
        desk.extend(&mut member);
    }
    desk.tables.put(&MEMBERS, &id, &member);
    if counts {
        desk.queue.ring.pending = desk.queue.ring.pending.saturating_sub(1);
        desk.tell(Some(&member.name), "acknowledged");
        desk.advance();
        // A new ring may be in its row.
        member = desk.tables.get(&MEMBERS, &id).unwrap_or(member);
    }
    let standing = desk.standing(id, &member);
    desk.close();
    Ok(Reply::Standing(standing))
}
