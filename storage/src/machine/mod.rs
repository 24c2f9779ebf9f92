//! The machine: applies deltas to the tables. Pure and synchronous; no disk, clock or network here.
//!
//! Invariants:
//! - every delta takes one revision, a replayed or refused one too, so position and delta are one to one;
//! - logged time never goes backwards, whatever a delta's time says;
//! - equal entries in equal order give equal rows, hence an equal hash, on every replica.

mod events;
mod replies;
mod sessions;
mod system;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;

pub use self::events::{Compacted, MAX_EVENTS};
use self::replies::{Admission, Live};
pub use self::replies::{MAX_REPLIES, MAX_REPLY_BYTES};
pub use self::sessions::{DEFAULT_TTL, MAX_SESSIONS, SessionCommand, SessionReply, TTL_BOUNDS};
pub use self::system::{FIRST_NODE_ID, SystemCommand, SystemReply};
use crate::codec::{self, CodecError};
use crate::delta::{
    Delta, DeltaResult, EntryReader, MAX_DELTAS_PER_ENTRY, Millis, Outcome, SESSION_SERVICE, SYSTEM_SERVICE,
};
use crate::log::LogMark;
use crate::raft_types::{LogId, Payload, StoredMembership};
pub use crate::service::Position;
use crate::service::events::Emitted;
use crate::service::{BadRequest, Context, Event, QueryContext, Refusal, Registry};
use crate::tables::base::FlushMeta;
use crate::tables::overlay::Overlay;
use crate::tables::rows::Rows;
use crate::tables::{Damage, Tables, View};

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

/// Where a run of deltas goes: looked up once for all of them.
#[derive(Debug, Clone, Copy)]
enum Target {
    Session,
    System,
    /// The service at this place in the registry.
    Service(usize),
    Unknown,
}

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

    /// Freezes the dirty rows for a flush; says where the machine stands, to be written with them.
    ///
    /// # Errors
    /// As [`Self::state_hash`].
    pub fn freeze(&mut self, mark: LogMark) -> Result<(Arc<Overlay>, FlushMeta), ApplyError> {
        let settled = self.settle();
        self.noting(settled)?;
        let meta = FlushMeta {
            applied: self.applied,
            membership: self.membership.clone(),
            revision: self.revision,
            time: self.time,
            hash: self.rows.hash(),
            mark,
        };
        Ok((self.rows.freeze(), meta))
    }

    /// The frozen rows are in the store now.
    pub fn thawed(&mut self) {
        self.rows.thawed();
    }

    /// Applies one committed log entry; gives an outcome per delta, in order.
    ///
    /// # Errors
    /// [`ApplyError`]: the state is then half way through the entry and must not be used any more.
    pub fn apply_entry(&mut self, log_id: LogId, payload: &Payload) -> Result<Vec<Outcome>, ApplyError> {
        let outcomes = self.apply_payload(log_id, payload);
        self.noting(outcomes)
    }

    fn apply_payload(&mut self, log_id: LogId, payload: &Payload) -> Result<Vec<Outcome>, ApplyError> {
        assert!(self.applied.as_ref() < Some(&log_id), "{log_id} is applied after {:?}", self.applied);
        let outcomes = match payload {
            Payload::Blank => Vec::new(),
            Payload::Membership(membership) => {
                self.membership = StoredMembership::new(Some(log_id), membership.clone());
                Vec::new()
            }
            Payload::Normal(deltas) => {
                let deltas = EntryReader::new(&deltas.0).map_err(ApplyError::Entry)?;
                let mut outcomes = Vec::with_capacity(deltas.left().min(MAX_DELTAS_PER_ENTRY));
                let mut target = Target::Unknown;
                let mut service_hash = 0;
                for delta in deltas {
                    let delta = delta.map_err(ApplyError::Entry)?;
                    if delta.begins {
                        target = self.target(delta.service);
                        service_hash = replies::service_hash(delta.service);
                    }
                    outcomes.push(self.apply_delta(&delta, target, service_hash)?);
                }
                self.close_session()?;
                self.store_events()?;
                outcomes
            }
        };
        self.applied = Some(log_id);
        Ok(outcomes)
    }

    fn target(&self, service: &str) -> Target {
        match service {
            SESSION_SERVICE => Target::Session,
            SYSTEM_SERVICE => Target::System,
            name => self.registry.place_of(name).map_or(Target::Unknown, Target::Service),
        }
    }

    fn apply_delta(
        &mut self,
        delta: &Delta<'_>,
        target: Target,
        service_hash: u64,
    ) -> Result<Outcome, ApplyError> {
        self.revision += 1;
        self.time = self.time.max(delta.time);
        // The built-in services' commands stand outside sessions: one that ended its own session would be
        // remembered in it. All of them may be repeated.
        let built_in = matches!(target, Target::Session | Target::System);
        if built_in {
            self.settle()?;
        }
        if delta.session == 0 || delta.sequence == 0 || built_in {
            let result = self.run(delta, target)?;
            return Ok(Outcome { revision: self.revision, result });
        }
        let mut tables = Tables::new(&mut self.rows, sessions::NAMESPACE);
        let admission = self.sessions.admit(&mut tables, delta, service_hash, self.revision, self.time);
        intact(tables)?;
        match admission.map_err(ApplyError::Replies)? {
            Admission::Answer(outcome) => Ok(outcome),
            Admission::Apply(body_hash) => {
                let outcome = Outcome { revision: self.revision, result: self.run(delta, target)? };
                self.sessions.remember(delta, body_hash, &outcome);
                Ok(outcome)
            }
        }
    }

    /// Brings the rows of sessions up to date.
    fn settle(&mut self) -> Result<(), ApplyError> {
        let mut tables = Tables::new(&mut self.rows, sessions::NAMESPACE);
        let settled = self.sessions.settle(&mut tables);
        intact(tables)?;
        settled.map_err(ApplyError::Replies)
    }

    fn close_session(&mut self) -> Result<(), ApplyError> {
        let mut tables = Tables::new(&mut self.rows, sessions::NAMESPACE);
        let closed = self.sessions.close(&mut tables);
        intact(tables)?;
        closed.map_err(ApplyError::Replies)
    }

    /// Runs a delta's command, its session aside.
    fn run(&mut self, delta: &Delta<'_>, target: Target) -> Result<DeltaResult, ApplyError> {
        match target {
            Target::Session => {
                let Ok(command) = codec::decode(delta.body) else {
                    return Err(unsupported(delta));
                };
                let mut tables = Tables::new(&mut self.rows, sessions::NAMESPACE);
                let result = sessions::apply(&mut tables, command, self.time);
                intact(tables)?;
                Ok(encoded(result))
            }
            Target::System => {
                let Ok(command) = codec::decode(delta.body) else {
                    return Err(unsupported(delta));
                };
                if command == SystemCommand::Tick {
                    self.tick()?;
                }
                let mut tables = Tables::new(&mut self.rows, system::NAMESPACE);
                let result = system::apply(&mut tables, command);
                intact(tables)?;
                Ok(encoded(result))
            }
            Target::Service(place) => self.run_service(delta, place),
            Target::Unknown => Err(unsupported(delta)),
        }
    }

    fn run_service(&mut self, delta: &Delta<'_>, place: usize) -> Result<DeltaResult, ApplyError> {
        let service = self.registry.at(place);
        let name = service.name();
        let mut context = Context::new(name, self.revision, self.time, delta.session, &mut self.emitted);
        let mut tables = Tables::new(&mut self.rows, name);
        let result = service.apply(&mut tables, &mut context, delta.body);
        intact(tables)?;
        if self.emitted.is_much() {
            self.store_events()?;
        }
        match result {
            Ok(Ok(reply)) => Ok(DeltaResult::Reply(reply)),
            Ok(Err(refusal)) => Ok(DeltaResult::Refused(refusal.into())),
            Err(_) => Err(unsupported(delta)),
        }
    }

    fn tick(&mut self) -> Result<(), ApplyError> {
        let mut tables = Tables::new(&mut self.rows, sessions::NAMESPACE);
        sessions::tick(&mut tables, self.time);
        intact(tables)?;
        for service in self.registry.iter() {
            let name = service.name();
            let mut context = Context::new(name, self.revision, self.time, 0, &mut self.emitted);
            let mut tables = Tables::new(&mut self.rows, name);
            service.tick(&mut tables, &mut context);
            intact(tables)?;
        }
        Ok(())
    }

    /// Stores what was emitted since the last time.
    fn store_events(&mut self) -> Result<(), Damage> {
        let mut tables = Tables::new(&mut self.rows, events::NAMESPACE);
        self.events.store(&mut tables, &mut self.emitted);
        intact(tables)
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
    pub fn settings(&self) -> Result<BTreeMap<String, String>, Damage> {
        self.view(system::NAMESPACE, system::settings)
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

fn intact(tables: Tables<'_>) -> Result<(), Damage> {
    tables.damage().map_or(Ok(()), Err)
}

fn encoded<R: serde::Serialize>(result: Result<R, Refusal>) -> DeltaResult {
    match result {
        Ok(reply) => DeltaResult::Reply(codec::encode(&reply)[..].into()),
        Err(refusal) => DeltaResult::Refused(refusal.into()),
    }
}

fn unsupported(delta: &Delta<'_>) -> ApplyError {
    ApplyError::Unsupported(delta.service.to_owned())
}

/// Whether this build can apply a command. Whoever takes one from elsewhere asks before it is logged.
pub fn supports(registry: &Registry, service: &str, body: &[u8]) -> bool {
    match service {
        SESSION_SERVICE => codec::decode::<SessionCommand>(body).is_ok(),
        SYSTEM_SERVICE => codec::decode::<SystemCommand>(body).is_ok(),
        name => registry.get(name).is_some_and(|service| service.knows(body)),
    }
}
