//! Services to drive the machine with.

use std::ops::{Bound, ControlFlow};

use serde::{Deserialize, Serialize};

use crate::delta::Millis;
use crate::service::{Context, QueryContext, Refusal, Registry, Service};
use crate::tables::{Table, Tables, View};

pub(super) fn registry() -> Registry {
    Registry::new().with(Tally).with(Alarm::<0>).with(Alarm::<1>)
}

/// One number, and commands that show what the machine makes of them.
struct Tally;

const TOTAL: Table<(), u64> = Table::new("total");

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(super) enum TallyCommand {
    /// Adds to the number and emits it.
    Add { amount: u64 },
    /// Emits, then refuses.
    Refuse { why: String },
    /// Emits `count` events of `bytes` bytes of text.
    Emit { count: u64, bytes: usize },
    /// Replies with `bytes` bytes of text.
    Speak { bytes: usize },
    /// Replies with what the context says.
    Context {},
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) enum TallyReply {
    Total(u64),
    Text(String),
    Context { revision: u64, time: Millis, session: u64 },
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum TallyQuery {
    Total {},
    /// Refuses.
    Refuse {},
}

impl Service for Tally {
    const NAME: &'static str = "tally";
    type Command = TallyCommand;
    type Reply = TallyReply;
    type Query = TallyQuery;
    type Answer = TallyReply;

    fn apply(
        &self,
        tables: &mut Tables<'_>,
        context: &mut Context<'_>,
        command: TallyCommand,
    ) -> Result<TallyReply, Refusal> {
        match command {
            TallyCommand::Add { amount } => {
                let total = tables.get(&TOTAL, &()).unwrap_or(0) + amount;
                tables.put(&TOTAL, &(), &total);
                context.emit("total", &total);
                Ok(TallyReply::Total(total))
            }
            TallyCommand::Refuse { why } => {
                context.emit("refused", &why);
                Err(Refusal::new("refused", why).with_current(tables.get(&TOTAL, &())))
            }
            TallyCommand::Emit { count, bytes } => {
                for n in 0..count {
                    context.emit(format!("emitted{n}"), &"x".repeat(bytes));
                }
                Ok(TallyReply::Total(count))
            }
            TallyCommand::Speak { bytes } => Ok(TallyReply::Text("x".repeat(bytes))),
            TallyCommand::Context {} => Ok(TallyReply::Context {
                revision: context.revision(),
                time: context.time(),
                session: context.session(),
            }),
        }
    }

    fn query(
        &self,
        view: &View<'_>,
        context: &QueryContext,
        query: TallyQuery,
    ) -> Result<TallyReply, Refusal> {
        match query {
            TallyQuery::Total {} => Ok(TallyReply::Total(view.get(&TOTAL, &()).unwrap_or(0))),
            TallyQuery::Refuse {} => {
                Err(Refusal::new("refused", format!("at revision {}", context.revision)))
            }
        }
    }
}

/// Two services with deadlines: `alarm` and `bell`.
struct Alarm<const SECOND: u8>;

const TIMES: Table<Millis, ()> = Table::new("times");

/// One tick rings at most this many.
const RINGS_PER_TICK: usize = 2;

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum AlarmCommand {
    Set { at: Millis },
}

impl<const SECOND: u8> Service for Alarm<SECOND> {
    const NAME: &'static str = if SECOND == 0 { "alarm" } else { "bell" };
    type Command = AlarmCommand;
    type Reply = TallyReply;
    type Query = TallyQuery;
    type Answer = TallyReply;

    fn apply(
        &self,
        tables: &mut Tables<'_>,
        _: &mut Context<'_>,
        AlarmCommand::Set { at }: AlarmCommand,
    ) -> Result<TallyReply, Refusal> {
        tables.put(&TIMES, &at, &());
        Ok(TallyReply::Total(at))
    }

    fn query(&self, _: &View<'_>, _: &QueryContext, _: TallyQuery) -> Result<TallyReply, Refusal> {
        Ok(TallyReply::Total(0))
    }

    fn next_deadline(&self, view: &View<'_>) -> Option<Millis> {
        let mut first = None;
        view.range(&TIMES, (Bound::Unbounded, Bound::Unbounded), |at, ()| {
            first = Some(at);
            ControlFlow::Break(())
        });
        first
    }

    fn tick(&self, tables: &mut Tables<'_>, context: &mut Context<'_>) {
        let mut due = Vec::new();
        let now = context.time();
        tables.range(&TIMES, (Bound::Unbounded, Bound::Included(&now)), |at, ()| {
            due.push(at);
            if due.len() < RINGS_PER_TICK { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        });
        for at in due {
            tables.remove(&TIMES, &at);
            context.emit("ring", &at);
        }
    }
}
