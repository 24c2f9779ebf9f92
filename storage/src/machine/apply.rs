//! One committed entry, delta by delta.

use super::replies::{self, Admission};
use super::sessions::{self, SessionCommand};
use super::system::{self, SystemCommand};
use super::{ApplyError, Machine, events};
use crate::codec;
use crate::delta::{
    Delta, DeltaResult, EntryReader, MAX_DELTAS_PER_ENTRY, Outcome, SESSION_SERVICE, SYSTEM_SERVICE,
};
use crate::raft_types::{LogId, Payload, StoredMembership};
use crate::service::{Context, Refusal, Registry};
use crate::tables::{Damage, Tables};

/// Where a run of deltas goes: looked up once for all of them.
#[derive(Debug, Clone, Copy)]
enum Target {
    Session,
    System,
    /// The service at this place in the registry.
    Service(usize),
    Unknown,
}

impl Machine {
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
    pub(super) fn settle(&mut self) -> Result<(), ApplyError> {
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
                let closed = match command {
                    SessionCommand::Close { session } => Some(session),
                    SessionCommand::Open { .. } | SessionCommand::KeepAlive { .. } => None,
                };
                let mut tables = Tables::new(&mut self.rows, sessions::NAMESPACE);
                let result = sessions::apply(&mut tables, command, self.time);
                intact(tables)?;
                if let Some(session) = closed.filter(|_| result.is_ok()) {
                    self.session_ended(session)?;
                }
                Ok(encoded(result))
            }
            Target::System => {
                let Ok(command) = codec::decode(delta.body) else {
                    return Err(unsupported(delta));
                };
                if command == SystemCommand::Tick {
                    self.tick()?;
                }
                let checkpoint = command == SystemCommand::Checkpoint;
                let at = system::At { revision: self.revision, time: self.time, hash: self.rows.hash() };
                let mut tables = Tables::new(&mut self.rows, system::NAMESPACE);
                let result = system::apply(&mut tables, command, at);
                intact(tables)?;
                self.at_checkpoint |= checkpoint;
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
        let ended = sessions::tick(&mut tables, self.time);
        intact(tables)?;
        for session in ended {
            self.session_ended(session)?;
        }
        for service in self.registry.iter() {
            let name = service.name();
            let mut context = Context::new(name, self.revision, self.time, 0, &mut self.emitted);
            let mut tables = Tables::new(&mut self.rows, name);
            service.tick(&mut tables, &mut context);
            intact(tables)?;
        }
        Ok(())
    }

    /// Tells the services.
    fn session_ended(&mut self, session: u64) -> Result<(), ApplyError> {
        for service in self.registry.iter() {
            let name = service.name();
            let mut context = Context::new(name, self.revision, self.time, session, &mut self.emitted);
            let mut tables = Tables::new(&mut self.rows, name);
            service.session_ended(&mut tables, &mut context);
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

fn intact(tables: Tables<'_>) -> Result<(), Damage> {
    tables.damage().map_or(Ok(()), Err)
}
