//! What a service is: a deterministic struct over tables.
//!
//! Every replica applies the same commands in the same order, so `apply` must depend on nothing but
//! its arguments: no clock, no randomness, no IO. Time, ids and the revision come from [`Context`].

mod batch;
mod erased;
pub(crate) mod events;
mod params;
mod registry;
mod reply;

use std::borrow::Cow;

use serde::Serialize;
use serde::de::DeserializeOwned;

pub use batch::EncodedCommands;
pub use erased::{BadRequest, ErasedService};
pub use events::{Event, MAX_EVENT_BYTES, Position};
pub use registry::Registry;

use self::events::Emitted;
use crate::delta::Millis;
use crate::tables::{Tables, View};

/// A deterministic state machine over tables.
///
/// `Command` and `Query` are enums whose variants are the names in URLs:
/// `POST /v1/counter/add {"name":"hits","amount":5}` is `Command::Add { name, amount }`. Their
/// variants and fields are stored by position, so append only.
pub trait Service: Send + Sync + 'static {
    /// The service's name: the URL segment and the namespace of its tables. Lower-case letters.
    const NAME: &'static str;
    /// What `apply` takes.
    type Command: Serialize + DeserializeOwned + Send;
    /// What `apply` returns: to JSON, an object. Of an enum, the fields of the variant, which each command has its own of.
    type Reply: Serialize + DeserializeOwned + Send;
    /// What `query` takes.
    type Query: DeserializeOwned + Send;
    /// What `query` returns: to JSON, an object.
    type Answer: Serialize + Send;

    /// Applies one command. An entry of up to 4,096 of them is applied at one go, on the thread that sends the heartbeats:
    /// one should take well below 50 µs, whatever the state holds.
    ///
    /// # Errors
    /// A [`Refusal`] of the domain. It is logged, remembered and replayed like a reply; whatever was
    /// written to `tables` before the refusal stays, so check first and write afterwards.
    fn apply(
        &self,
        tables: &mut Tables<'_>,
        context: &mut Context<'_>,
        command: Self::Command,
    ) -> Result<Self::Reply, Refusal>;

    /// Answers one query, at one revision.
    ///
    /// # Errors
    /// A [`Refusal`] of the domain.
    fn query(
        &self,
        tables: &View<'_>,
        context: &QueryContext,
        query: Self::Query,
    ) -> Result<Self::Answer, Refusal>;

    /// When `tick` wants to run next, in logged time. Must be cheap: O(log n).
    fn next_deadline(&self, _tables: &View<'_>) -> Option<Millis> {
        None
    }

    /// Does what is due at the context's time. Bounded work: what is left comes with the next tick.
    fn tick(&self, _tables: &mut Tables<'_>, _context: &mut Context<'_>) {}

    /// The context's session has ended: its client closed it, or has been silent for its time to live. Up to 128 end at
    /// one go, so this is to be as quick as `apply`.
    fn session_ended(&self, _tables: &mut Tables<'_>, _context: &mut Context<'_>) {}
}

/// A refusal of the domain: a value, not an error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, serde::Deserialize)]
pub struct Refusal {
    /// A stable word for programs: `overflow`, `compare_failed`.
    pub code: String,
    /// A sentence for people: the cause and what to do.
    pub detail: String,
    /// The HTTP status that fits: 409 unless said otherwise.
    pub status: u16,
    /// What is there instead, as JSON text: the current value after a failed compare.
    pub current: Option<String>,
}

impl Refusal {
    /// A refusal with status 409.
    pub fn new(code: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { code: code.into(), detail: detail.into(), status: 409, current: None }
    }

    /// With another HTTP status.
    #[must_use]
    pub fn with_status(mut self, status: u16) -> Self {
        self.status = status;
        self
    }

    /// With the current value.
    #[must_use]
    pub fn with_current(mut self, current: impl Serialize) -> Self {
        self.current = serde_json::to_string(&current).ok();
        self
    }
}

/// What `apply` knows besides the command, alike on every replica.
pub struct Context<'a> {
    service: &'static str,
    revision: u64,
    time: Millis,
    session: u64,
    emitted: &'a mut Emitted,
}

/// What `query` knows besides the query.
#[derive(Debug, Clone, Copy)]
pub struct QueryContext {
    /// The one revision that the query sees.
    pub revision: u64,
    /// The logged time as of that revision: milliseconds since the Unix epoch.
    pub time: Millis,
}

impl<'a> Context<'a> {
    /// A context for `service`; `emitted` collects what is emitted.
    pub(crate) fn new(
        service: &'static str,
        revision: u64,
        time: Millis,
        session: u64,
        emitted: &'a mut Emitted,
    ) -> Self {
        Self { service, revision, time, session, emitted }
    }

    /// The revision of the delta that is being applied.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// The logged time: milliseconds since the Unix epoch. Never goes backwards.
    pub fn time(&self) -> Millis {
        self.time
    }

    /// The session that sent the command; 0 for none.
    pub fn session(&self) -> u64 {
        self.session
    }

    /// Publishes `event` on `topic`. Watches get it in order, once per revision. A topic is one line: control characters
    /// in it become spaces.
    pub fn emit(&mut self, topic: impl AsRef<str>, event: &impl Serialize) {
        let topic = topic.as_ref();
        // Most often there are none, and a look at the bytes is enough to know.
        let topic = match topic.bytes().any(|byte| byte.is_ascii_control()) {
            false => Cow::Borrowed(topic),
            true => Cow::Owned(topic.replace(char::is_control, " ")),
        };
        self.emitted.push(self.revision, self.service, &topic, event);
    }
}
