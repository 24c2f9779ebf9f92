//! The machine: applies deltas to the tables. Pure and synchronous; no disk, clock or network here.
//!
//! Invariants:
//! - every delta takes one revision, a replayed or refused one too, so position and delta are one to one;
//! - logged time never goes backwards, whatever a delta's time says;
//! - equal entries in equal order give equal rows, hence an equal hash, on every replica.

mod apply;
mod checkpoints;
mod events;
mod replies;
mod sessions;
mod settings;
mod system;

#[cfg(test)]
mod tests;

use std::sync::Arc;

pub use self::apply::supports;
pub use self::checkpoints::{Checkpoint, Interval};
pub use self::events::{Compacted, MAX_EVENTS};
use self::replies::Live;
pub use self::replies::{MAX_REPLIES, MAX_REPLY_BYTES};
pub use self::sessions::{DEFAULT_TTL, MAX_SESSIONS, SessionCommand, SessionReply, TTL_BOUNDS};
pub use self::settings::Settings;
pub use self::system::{FIRST_NODE_ID, SystemCommand, SystemReply};
use crate::codec::CodecError;
use crate::delta::Millis;
use crate::log::LogMark;
use crate::raft_types::{LogId, StoredMembership};
pub use crate::service::Position;
use crate::service::events::Emitted;
use crate::service::{BadRequest, Event, QueryContext, Refusal, Registry};
use crate::tables::base::FlushMeta;
use crate::tables::overlay::Overlay;
use crate::tables::rows::Rows;
use crate::tables::{Damage, View};

/// Why a committed entry could not be applied. The node must stop: to go on would diverge.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ApplyError {
    /// A row could not be read or written.
    #[error(transparent)]
    Damage(#[from] Damage),
    /// The entry does not decode.
    #[error("a committed log entry cannot be read: {0}")]
    Entry(CodecError),
    /// A command of another build: to pass over it would be to diverge from who knows it.
    #[error(
        "the log holds a command of service {0:?} that this build does not know: the cluster runs a newer one. Start \
         this server with that; its data stays as it is"
    )]
    Unsupported(String),
    /// What a session keeps does not decode.
    #[error("the replies that a session keeps cannot be read: {0}")]
    Replies(CodecError),
}

/// An [`ApplyError`] came earlier: rows and sessions may be half way through an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the state is unusable: an entry could not be applied")]
pub struct Unusable;

/// One replica's state at one revision.
pub struct Machine {
    registry: Registry,
    rows: Rows,
    applied: Option<LogId>,
    membership: StoredMembership,
    revision: u64,
    time: Millis,
    events: events::Kept,
    /// What the entry being applied emitted; empty between entries.
    emitted: Emitted,
    sessions: Live,
    /// The last entry set a checkpoint, whose rows are not frozen yet.
    at_checkpoint: bool,
    /// What a checkpoint's flush is to write.
    held: Option<(Arc<Overlay>, FlushMeta)>,
    unusable: bool,
}

impl Machine {
    /// The machine at a flush.
    ///
    /// # Errors
    /// [`Damage`] when the events cannot be read.
    pub fn new(registry: Registry, rows: Rows, meta: FlushMeta) -> Result<Self, Damage> {
        let view = View::new(&rows, events::NAMESPACE);
        let events = events::Kept::find(&view);
        if let Some(damage) = view.damage() {
            return Err(damage);
        }
        let FlushMeta { applied, membership, revision, time, .. } = meta;
        Ok(Self {
            registry,
            rows,
            applied,
            membership,
            revision,
            time,
            events,
            emitted: Emitted::default(),
            sessions: Live::default(),
            at_checkpoint: false,
            held: None,
            unusable: false,
        })
    }

    /// The last applied log id.
    pub fn applied(&self) -> Option<&LogId> {
        self.applied.as_ref()
    }

    /// The last applied membership.
    pub fn membership(&self) -> &StoredMembership {
        &self.membership
    }

    /// The revision: how many deltas have been applied.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// The logged time.
    pub fn time(&self) -> Millis {
        self.time
    }

    /// The hash of all rows.
    ///
    /// # Errors
    /// [`ApplyError`] when a row cannot be read: the state must not be used any more.
    pub fn state_hash(&mut self) -> Result<u128, ApplyError> {
        let settled = self.settle();
        self.noting(settled)?;
        Ok(self.rows.hash())
    }

    /// Whether the state may be used.
    ///
    /// # Errors
    /// [`Unusable`] after an [`ApplyError`]. To go on from what that left, or to write it to disk, would lose or double
    /// commands once the entry is applied again.
    pub fn usable(&self) -> Result<(), Unusable> {
        if self.unusable { Err(Unusable) } else { Ok(()) }
    }

    fn noting<R>(&mut self, result: Result<R, ApplyError>) -> Result<R, ApplyError> {
        self.unusable |= result.is_err();
        result
    }

    /// The rows.
    pub fn rows(&self) -> &Rows {
        &self.rows
    }

    /// The services.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Freezes the rows of a checkpoint that was just applied, so that the next flush is of that very revision. False
    /// while an earlier flush still has the place: nothing may be applied before it is over.
    ///
    /// # Errors
    /// As [`Self::state_hash`].
    pub fn freeze_checkpoint(&mut self) -> Result<bool, ApplyError> {
        if !self.at_checkpoint {
            return Ok(true);
        }
        if self.held.is_some() {
            // No flush runs, and none can: a snapshot is being written, say. That holds up nobody: the next flush is of a
            // later revision than this checkpoint's.
            self.at_checkpoint = false;
        } else if self.rows.is_frozen() {
            return Ok(false);
        } else {
            self.held = Some(self.freeze()?);
        }
        Ok(true)
    }

    /// Whether the last entry set a checkpoint whose rows are not frozen yet.
    pub fn at_checkpoint(&self) -> bool {
        self.at_checkpoint
    }

    /// Whether a checkpoint waits for its flush.
    pub fn wants_flush(&self) -> bool {
        self.at_checkpoint || self.held.is_some()
    }

    /// What a checkpoint's flush is to write.
    pub fn take_held(&mut self) -> Option<(Arc<Overlay>, FlushMeta)> {
        self.held.take()
    }

    /// Freezes the dirty rows for a flush; says where the machine stands, to be written with them. How far the log
    /// reaches is for the flush to say.
    ///
    /// # Errors
    /// As [`Self::state_hash`].
    pub fn freeze(&mut self) -> Result<(Arc<Overlay>, FlushMeta), ApplyError> {
        let settled = self.settle();
        self.noting(settled)?;
        let meta = FlushMeta {
            applied: self.applied,
            membership: self.membership.clone(),
            revision: self.revision,
            time: self.time,
            hash: self.rows.hash(),
            mark: LogMark::default(),
        };
        self.at_checkpoint = false;
        Ok((self.rows.freeze(), meta))
    }

    /// The frozen rows are in the store now.
    pub fn thawed(&mut self) {
        self.rows.thawed();
    }

    /// When a tick is due next, in logged time.
    ///
    /// # Errors
    /// [`Damage`] when a row cannot be read.
    pub fn next_deadline(&self) -> Result<Option<Millis>, Damage> {
        let mut next = self.view(sessions::NAMESPACE, sessions::next_deadline)?;
        for service in self.registry.iter() {
            let deadline = self.view(service.name(), |view| service.next_deadline(view))?;
            next = next.into_iter().chain(deadline).min();
        }
        Ok(next)
    }

    /// The cluster's settings.
    ///
    /// # Errors
    /// [`Damage`] when a row cannot be read.
    pub fn settings(&self) -> Result<Settings, Damage> {
        self.view(system::NAMESPACE, Settings::read)
    }

    /// The name of a session, if it is there and has one.
    ///
    /// # Errors
    /// [`Damage`] when a row cannot be read.
    pub fn session_name(&self, session: u64) -> Result<Option<String>, Damage> {
        self.view(sessions::NAMESPACE, |view| sessions::name(view, session))
    }

    /// The last checkpoints, oldest first.
    ///
    /// # Errors
    /// [`Damage`] when a row cannot be read.
    pub fn checkpoints(&self) -> Result<Vec<Checkpoint>, Damage> {
        self.view(system::NAMESPACE, checkpoints::read)
    }

    /// Asks a service; the answer is JSON text.
    ///
    /// # Errors
    /// [`QueryError`].
    pub fn query(&self, service: &str, name: &str, params: &str) -> Result<Vec<u8>, QueryError> {
        let service = self.registry.get(service).ok_or(QueryError::UnknownService)?;
        let context = QueryContext { revision: self.revision, time: self.time };
        let answer = self.view(service.name(), |view| service.query(view, &context, name, params))?;
        Ok(answer??)
    }

    /// The events behind `after` that `wanted` accepts, at most `limit`, and the position to go on from.
    ///
    /// # Errors
    /// [`Damage`]; and [`Compacted`] when events behind `after` are no longer kept.
    #[expect(clippy::type_complexity, reason = "two questions, asked in turn: readable? still there?")]
    pub fn events(
        &self,
        after: Position,
        limit: usize,
        wanted: impl Fn(&Event) -> bool,
    ) -> Result<Result<(Vec<(Position, Event)>, Position), Compacted>, Damage> {
        self.view(events::NAMESPACE, |view| self.events.read(view, after, limit, wanted))
    }

    fn view<R>(&self, namespace: &'static str, read: impl FnOnce(&View<'_>) -> R) -> Result<R, Damage> {
        let view = View::new(&self.rows, namespace);
        let result = read(&view);
        match view.damage() {
            None => Ok(result),
            Some(damage) => Err(damage),
        }
    }
}

/// Why a query has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QueryError {
    /// No service of that name.
    #[error("no such service")]
    UnknownService,
    /// No such query, or its parameters do not fit.
    #[error(transparent)]
    BadRequest(#[from] BadRequest),
    /// The service refused.
    #[error("{}", .0.detail)]
    Refused(Refusal),
    /// A row cannot be read. The node must stop.
    #[error(transparent)]
    Damage(#[from] Damage),
}

impl From<Refusal> for QueryError {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}
