//! Hooks on a server: what its owner wants to say before a command is taken, and is told after its reply.

use std::fmt::Debug;
use std::sync::Arc;

use quorate_storage::delta::{Command, DeltaResult};
use serde_json::Value;

use crate::{Refusal, Registry};

/// A command that a client has sent to this server.
#[derive(Debug, Clone, PartialEq)]
pub struct Call {
    /// The client's session; 0 for none.
    pub session: u64,
    /// The command's number in it; 0 without a session.
    pub sequence: u64,
    /// The service that is meant.
    pub service: String,
    /// The command's name.
    pub command: String,
    /// Its fields.
    pub fields: Value,
}

/// Is asked and told by one server, of the commands that came to it. Every method may be left out; none may take long: the
/// server does nothing else meanwhile. What they refuse is neither logged nor remembered: another server, with other hooks, may take it, and
/// a retry here is asked about again. So a client whose earlier attempt may have been applied reports an unknown outcome.
pub trait Hooks: Debug + Send + Sync {
    /// Before a command is proposed, each time that it is sent here.
    ///
    /// # Errors
    /// A refusal, which the client gets: nothing was done. In a batch it stands for the whole of it.
    fn before_call(&self, _: &Call) -> Result<(), Refusal> {
        Ok(())
    }

    /// After the service's reply, or its refusal.
    fn after_reply(&self, _: &Call, _: &Result<Value, Refusal>) {}
}

/// The hooks of a server that may have none.
#[derive(Debug, Clone, Default)]
pub(crate) struct Hooked(pub(crate) Option<Arc<dyn Hooks>>);

impl Hooked {
    /// Asks about a command; gives what [`Hooked::after`] is to be called with.
    pub(crate) fn before(&self, registry: &Registry, command: &Command) -> Result<Option<Call>, Refusal> {
        let Some(hooks) = &self.0 else { return Ok(None) };
        let tagged =
            registry.get(&command.service).and_then(|service| service.command_to_json(&command.body).ok());
        // A command is `{"add":{…}}`, one without fields `"reset"`.
        let (name, fields) = match tagged {
            Some(Value::Object(fields)) => fields.into_iter().next().unwrap_or_default(),
            Some(Value::String(name)) => (name, Value::Null),
            _ => return Ok(None),
        };
        let call = Call {
            session: command.session,
            sequence: command.sequence,
            service: command.service.to_string(),
            command: name,
            fields,
        };
        hooks.before_call(&call).map(|()| Some(call))
    }

    /// The same for a batch. Without hooks nothing is kept: batches are large. An error has the number of the command.
    pub(crate) fn before_all(
        &self,
        registry: &Registry,
        commands: &[Command],
    ) -> Result<Vec<Option<Call>>, (usize, Refusal)> {
        if self.0.is_none() {
            return Ok(Vec::new());
        }
        let asked = commands.iter().enumerate();
        asked.map(|(n, command)| self.before(registry, command).map_err(|refusal| (n, refusal))).collect()
    }

    pub(crate) fn after(&self, registry: &Registry, call: Option<&Call>, result: &DeltaResult) {
        let (Some(hooks), Some(call)) = (&self.0, call) else { return };
        let told = match result {
            DeltaResult::Reply(reply) => {
                let mut json = Vec::new();
                let readable =
                    registry.get(&call.service).map(|service| service.reply_to_json(reply, &mut json));
                match readable {
                    Some(Ok(())) => Ok(serde_json::from_slice(&json).unwrap_or_default()),
                    _ => return,
                }
            }
            DeltaResult::Refused(refusal) => Err(Refusal::clone(refusal)),
            // The session's refusals are no replies to the command.
            _ => return,
        };
        hooks.after_reply(call, &told);
    }
}
