//! Sessions: what makes a retry harmless. Here they begin, live and end; [`replies`] has what they keep.

use std::ops::{Bound, ControlFlow};

use serde::{Deserialize, Serialize};

use super::replies;
use crate::codec::SmallBytes;
use crate::delta::Millis;
use crate::service::Refusal;
use crate::tables::{Table, Tables, View};

/// The namespace of the sessions' tables.
pub(super) const NAMESPACE: &str = crate::delta::SESSION_SERVICE;

/// At most this many sessions live at once.
pub const MAX_SESSIONS: u64 = 100_000;
/// A session's time to live without a request, if its client names none.
pub const DEFAULT_TTL: Millis = 60_000;
/// The shortest and longest time to live.
pub const TTL_BOUNDS: (Millis, Millis) = (1_000, 24 * 3_600_000);
/// One tick expires at most this many sessions; the rest comes with the next tick.
const EXPIRIES_PER_TICK: usize = 128;
pub(super) const SESSIONS: Table<u64, Session> = Table::new("sessions");
const NAMES: Table<String, u64> = Table::new("names");
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
pub(super) struct Session {
    name: Option<String>,
    ttl_ms: Millis,
    pub(super) last_used: Millis,
    /// Where its row in [`DEADLINES`] is.
    deadline: Millis,
    pub(super) acked: u64,
    pub(super) max_sequence: u64,
    /// How many replies it keeps, and their bytes.
    pub(super) replies: u32,
    pub(super) reply_bytes: u64,
    /// A few of them ([`replies`] has the encoding), mostly all.
    pub(super) inline: SmallBytes<64>,
    /// How many rows hold the rest; and how many of these rows hold several.
    pub(super) rows: u32,
    pub(super) blocks: u32,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Serialize, Deserialize)]
struct Counts {
    last_id: u64,
    live: u64,
}

/// The name of a session.
pub(super) fn name(tables: &View<'_>, session: u64) -> Option<String> {
    tables.get(&SESSIONS, &session)?.name
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
        replies: 0,
        reply_bytes: 0,
        inline: SmallBytes::default(),
        rows: 0,
        blocks: 0,
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
    replies::forget_all(tables, id, &session);
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

/// Expires the sessions that are due at `time`; gives which.
pub(super) fn tick(tables: &mut Tables<'_>, time: Millis) -> Vec<u64> {
    let (mut due, mut ended) = (Vec::new(), Vec::new());
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
            ended.push(id);
        } else {
            tables.put(&DEADLINES, &(session.deadline, id), &());
            tables.put(&SESSIONS, &id, &session);
        }
    }
    ended
}
