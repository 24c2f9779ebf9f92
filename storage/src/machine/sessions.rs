//! Sessions: what makes a retry harmless.
//!
//! After Raft's client sessions (Ongaro, *Consensus: Bridging Theory and Practice*, 2014, §6.3),
//! with many requests in flight: the state keeps a reply for each sequence above `acked`, and a
//! delta whose sequence is known gets the kept reply and applies nothing.

use std::ops::{Bound, ControlFlow};

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use crate::delta::{Delta, DeltaResult, Millis, Outcome};
use crate::service::Refusal;
use crate::tables::{Table, Tables, View};

/// The namespace of the sessions' tables.
pub(super) const NAMESPACE: &str = crate::delta::SESSION_SERVICE;

/// A session keeps at most this many replies that its client has not acknowledged.
pub const MAX_REPLIES: u32 = 1024;
/// And at most this many bytes of them.
pub const MAX_REPLY_BYTES: u64 = 4 << 20;
/// At most this many sessions live at once.
pub const MAX_SESSIONS: u64 = 100_000;
/// A session's time to live without a request, if its client names none.
pub const DEFAULT_TTL: Millis = 60_000;
/// The shortest and longest time to live.
pub const TTL_BOUNDS: (Millis, Millis) = (1_000, 24 * 3_600_000);
/// One tick expires at most this many sessions; the rest comes with the next tick.
const EXPIRIES_PER_TICK: usize = 128;
/// Replies up to this number and size, each, are kept in the session's own row: mostly all of them.
const INLINE: (usize, u64) = (4, 256);
/// Up to this many newly acknowledged sequences are forgotten one by one.
const FEW: u64 = 64;

const SESSIONS: Table<u64, Session> = Table::new("sessions");
const NAMES: Table<String, u64> = Table::new("names");
/// Those that do not fit inline.
const REPLIES: Table<(u64, u64), Remembered> = Table::new("replies");
/// When to look at a session again. Not moved by each request: a tick that finds the session used
/// in the meantime puts it back with its new deadline. A live session has exactly one row here.
const DEADLINES: Table<(u64, u64), ()> = Table::new("deadlines");
const COUNTS: Table<(), Counts> = Table::new("counts");

/// A command to the built-in service "session". Append variants only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SessionCommand {
    /// Opens a session, or finds the live one of this name.
    Open {
        /// A name by which the session is found again.
        name: Option<String>,
        /// Time to live without a request.
        ttl_ms: Option<Millis>,
    },
    /// Keeps a session alive.
    KeepAlive {
        /// The session.
        session: u64,
    },
    /// Ends a session and forgets its replies.
    Close {
        /// The session.
        session: u64,
    },
}

/// The reply to a [`SessionCommand`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionReply {
    /// The session.
    pub session: u64,
    /// The sequence to go on from.
    pub next_sequence: u64,
    /// Its time to live.
    pub ttl_ms: Millis,
    /// True when `Open` made a new session.
    pub created: bool,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Session {
    name: Option<String>,
    ttl_ms: Millis,
    last_used: Millis,
    /// Where its row in [`DEADLINES`] is.
    deadline: Millis,
    acked: u64,
    max_sequence: u64,
    /// Replies kept here, by sequence, in the order of application.
    inline: Vec<(u64, Remembered)>,
    /// How many more are in [`REPLIES`].
    rows: u32,
    /// The size of all of them.
    reply_bytes: u64,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Serialize, Deserialize)]
struct Counts {
    last_id: u64,
    live: u64,
}

/// A reply kept for retries.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Remembered {
    body_hash: u64,
    outcome: Outcome,
}

/// What a delta's session says of it.
pub(super) enum Admission {
    /// Apply it, then [`remember`] the outcome.
    Apply(Admitted),
    /// Apply nothing: this is the result.
    Answer(Outcome),
}

/// A delta that its session lets through.
pub(super) struct Admitted {
    session: Session,
    body_hash: u64,
}

/// Looks a delta up in its session.
pub(super) fn admit(tables: &mut Tables<'_>, delta: &Delta<'_>, revision: u64, time: Millis) -> Admission {
    let answer = |result| Admission::Answer(Outcome { revision, result });
    let Some(mut session) = tables.get(&SESSIONS, &delta.session) else {
        return answer(DeltaResult::SessionExpired);
    };
    if delta.sequence <= session.acked {
        return answer(DeltaResult::SequenceAcked);
    }
    let body_hash = body_hash(delta);
    // Sequences mostly rise: only one that is not the highest so far can have been used before.
    if delta.sequence <= session.max_sequence
        && let Some(kept) = kept(tables, delta, &mut session)
    {
        return match kept.body_hash == body_hash {
            true => Admission::Answer(kept.outcome),
            false => answer(DeltaResult::SequenceReused),
        };
    }
    session.last_used = time;
    session.max_sequence = session.max_sequence.max(delta.sequence);
    forget_acked(tables, delta, &mut session);
    let replies = session.inline.len() as u64 + u64::from(session.rows);
    if replies >= u64::from(MAX_REPLIES) || session.reply_bytes >= MAX_REPLY_BYTES {
        tables.put(&SESSIONS, &delta.session, &session);
        return answer(DeltaResult::SessionFull);
    }
    Admission::Apply(Admitted { session, body_hash })
}

/// The reply that is kept for the delta's sequence.
fn kept(tables: &Tables<'_>, delta: &Delta<'_>, session: &mut Session) -> Option<Remembered> {
    match session.inline.iter().position(|(sequence, _)| *sequence == delta.sequence) {
        Some(at) => Some(session.inline.swap_remove(at).1),
        None if session.rows > 0 => tables.get(&REPLIES, &(delta.session, delta.sequence)),
        None => None,
    }
}

/// Keeps the outcome of an admitted delta for retries, and gives it back.
pub(super) fn remember(
    tables: &mut Tables<'_>,
    delta: &Delta<'_>,
    admitted: Admitted,
    outcome: Outcome,
) -> Outcome {
    let Admitted { mut session, body_hash } = admitted;
    let bytes = kept_bytes(&outcome);
    let remembered = Remembered { body_hash, outcome };
    session.reply_bytes += bytes;
    if session.inline.len() < INLINE.0 && bytes <= INLINE.1 {
        // The row is encoded with it, so that nothing is copied.
        session.inline.push((delta.sequence, remembered));
        tables.put(&SESSIONS, &delta.session, &session);
        let last = session.inline.pop().expect("it was just pushed");
        return last.1.outcome;
    }
    session.rows += 1;
    tables.put(&SESSIONS, &delta.session, &session);
    // `admit` has found none.
    tables.put_new(&REPLIES, &(delta.session, delta.sequence), &remembered);
    remembered.outcome
}

/// Forgets replies up to the delta's `acked`. A client cannot have acknowledged the very request.
fn forget_acked(tables: &mut Tables<'_>, delta: &Delta<'_>, session: &mut Session) {
    let acked = delta.acked.min(delta.sequence - 1);
    if acked <= session.acked {
        return;
    }
    let bytes = &mut session.reply_bytes;
    session.inline.retain(|(sequence, kept)| {
        let keep = *sequence > acked;
        if !keep {
            *bytes = bytes.saturating_sub(kept_bytes(&kept.outcome));
        }
        keep
    });
    let before = std::mem::replace(&mut session.acked, acked);
    if session.rows > 0 {
        forget_rows(tables, delta.session, (before, acked), session);
    }
}

/// Forgets replies in rows, behind `after` and up to `to`.
fn forget_rows(tables: &mut Tables<'_>, id: u64, (after, to): (u64, u64), session: &mut Session) {
    let mut done = Vec::new();
    if to - after <= FEW {
        // The common case. Point reads find the rows in the overlay; a range would ask sled too.
        for sequence in after + 1..=to {
            let key = (id, sequence);
            if let Some(kept) = tables.get(&REPLIES, &key) {
                done.push((key, kept_bytes(&kept.outcome)));
            }
        }
    } else {
        let (after, to) = ((id, after), (id, to));
        tables.range(&REPLIES, (Bound::Excluded(&after), Bound::Included(&to)), |key, kept| {
            done.push((key, kept_bytes(&kept.outcome)));
            ControlFlow::Continue(())
        });
    }
    for (key, bytes) in done {
        tables.remove(&REPLIES, &key);
        session.rows = session.rows.saturating_sub(1);
        session.reply_bytes = session.reply_bytes.saturating_sub(bytes);
    }
}

fn kept_bytes(outcome: &Outcome) -> u64 {
    let bytes = match &outcome.result {
        DeltaResult::Reply(reply) => reply.len(),
        DeltaResult::Refused(refusal) => {
            refusal.code.len() + refusal.detail.len() + refusal.current.as_ref().map_or(0, String::len)
        }
        _ => 0,
    };
    bytes as u64 + 32
}

fn body_hash(delta: &Delta<'_>) -> u64 {
    xxh3_64_with_seed(delta.body, xxh3_64(delta.service.as_bytes()))
}

/// Applies a session command.
pub(super) fn apply(
    tables: &mut Tables<'_>,
    command: SessionCommand,
    time: Millis,
) -> Result<SessionReply, Refusal> {
    match command {
        SessionCommand::Open { name, ttl_ms } => open(tables, name, ttl_ms, time),
        SessionCommand::KeepAlive { session: id } => {
            let mut session = tables.get(&SESSIONS, &id).ok_or_else(|| expired(id))?;
            session.last_used = time;
            tables.put(&SESSIONS, &id, &session);
            Ok(reply(id, &session, false))
        }
        SessionCommand::Close { session: id } => {
            let session = tables.get(&SESSIONS, &id).ok_or_else(|| expired(id))?;
            let reply = reply(id, &session, false);
            end(tables, id, session);
            Ok(reply)
        }
    }
}

fn open(
    tables: &mut Tables<'_>,
    name: Option<String>,
    ttl_ms: Option<Millis>,
    time: Millis,
) -> Result<SessionReply, Refusal> {
    let ttl_ms = ttl_ms.unwrap_or(DEFAULT_TTL).clamp(TTL_BOUNDS.0, TTL_BOUNDS.1);
    if let Some(name) = &name
        && let Some(id) = tables.get(&NAMES, name)
        && let Some(mut session) = tables.get(&SESSIONS, &id)
    {
        session.last_used = time;
        tables.put(&SESSIONS, &id, &session);
        return Ok(reply(id, &session, false));
    }
    let mut counts = tables.get(&COUNTS, &()).unwrap_or_default();
    if counts.live >= MAX_SESSIONS {
        let detail =
            format!("{MAX_SESSIONS} sessions are open; close some, or wait until unused ones expire");
        return Err(Refusal::new("too_many_sessions", detail).with_status(429));
    }
    counts.last_id += 1;
    counts.live += 1;
    tables.put(&COUNTS, &(), &counts);
    let id = counts.last_id;
    if let Some(name) = &name {
        tables.put(&NAMES, name, &id);
    }
    let deadline = time.saturating_add(ttl_ms);
    let session = Session {
        name,
        ttl_ms,
        last_used: time,
        deadline,
        acked: 0,
        max_sequence: 0,
        inline: Vec::new(),
        rows: 0,
        reply_bytes: 0,
    };
    tables.put(&SESSIONS, &id, &session);
    tables.put(&DEADLINES, &(deadline, id), &());
    Ok(reply(id, &session, true))
}

fn reply(id: u64, session: &Session, created: bool) -> SessionReply {
    // A client chooses its sequences, the last one of all included.
    let next_sequence = session.max_sequence.saturating_add(1);
    SessionReply { session: id, next_sequence, ttl_ms: session.ttl_ms, created }
}

fn expired(id: u64) -> Refusal {
    Refusal::new("session_expired", format!("session {id} is unknown or has expired; open a new one"))
        .with_status(410)
}

fn end(tables: &mut Tables<'_>, id: u64, session: Session) {
    let mut replies = Vec::with_capacity(session.rows as usize);
    let (from, to) = ((id, 0), (id, u64::MAX));
    if session.rows > 0 {
        tables.range(&REPLIES, (Bound::Included(&from), Bound::Included(&to)), |key, _| {
            replies.push(key);
            ControlFlow::Continue(())
        });
    }
    for key in &replies {
        tables.remove(&REPLIES, key);
    }
    if let Some(name) = &session.name {
        tables.remove(&NAMES, name);
    }
    tables.remove(&DEADLINES, &(session.deadline, id));
    tables.remove(&SESSIONS, &id);
    let mut counts = tables.get(&COUNTS, &()).unwrap_or_default();
    counts.live = counts.live.saturating_sub(1);
    tables.put(&COUNTS, &(), &counts);
}

/// When the next session might expire.
pub(super) fn next_deadline(tables: &View<'_>) -> Option<Millis> {
    let mut first = None;
    tables.range(&DEADLINES, (Bound::Unbounded, Bound::Unbounded), |(deadline, _), ()| {
        first = Some(deadline);
        ControlFlow::Break(())
    });
    first
}

/// Expires the sessions that are due at `time`.
pub(super) fn tick(tables: &mut Tables<'_>, time: Millis) {
    let mut due = Vec::new();
    let last = (time, u64::MAX);
    tables.range(&DEADLINES, (Bound::Unbounded, Bound::Included(&last)), |key, ()| {
        due.push(key);
        if due.len() < EXPIRIES_PER_TICK { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    });
    for key @ (_, id) in due {
        tables.remove(&DEADLINES, &key);
        let Some(mut session) = tables.get(&SESSIONS, &id) else {
            continue;
        };
        session.deadline = session.last_used.saturating_add(session.ttl_ms);
        if session.deadline <= time {
            end(tables, id, session);
        } else {
            tables.put(&DEADLINES, &(session.deadline, id), &());
            tables.put(&SESSIONS, &id, &session);
        }
    }
}
