//! Chat: accounts, and messages to all or to one, in one order for everybody.
//!
//! - Messages are numbered from 1 without a gap. A device has a cursor, the number up to which it has been given them; so
//!   each message is offered to each device once, whatever ends in between.
//! - An account is logged in on a device through a session. When the session ends, the device is logged out; the
//!   account stays.
//! - An account sees what was said after it was made: to all, to it, and by it.
//! - Old messages are dropped beyond a number that can be set. A device that has not been given them yet is told how many.
//! - Events: a message to all on the topic `all`, a message to one on `@NAME` of both, who comes and goes on `accounts`.

mod apply;
mod query;
mod stored;
mod types;

pub use self::types::{AccountRow, Answer, Command, MarkedMessage, Message, Query, Reply};

use self::query::{MAX_HISTORY, MAX_PAGE};
use self::stored::{ACCOUNTS, Account, LOGINS, STATE, State};
use super::names::{self, Listing};
use crate::{Context, QueryContext, Refusal, Service, Tables, View};

/// A message's text takes at most so many bytes.
pub const MAX_TEXT_BYTES: usize = 4_096;
/// An account's or a device's name takes at most so many bytes.
pub const MAX_NAME_BYTES: usize = 32;
/// An account has at most so many devices.
pub const MAX_DEVICES: u32 = 16;
/// There are at most so many accounts. Tests reach it, so there it is low.
pub const MAX_ACCOUNTS: u64 = if cfg!(test) { 20 } else { 100_000 };
/// So many messages are kept until it is set otherwise.
pub const DEFAULT_RETENTION: u64 = 100_000;
/// The device of a client that names none.
pub const DEFAULT_DEVICE: &str = "default";

/// The service `chat`.
#[derive(Debug, Clone, Copy, Default)]
pub struct Chat;

impl Service for Chat {
    const NAME: &'static str = "chat";
    type Command = Command;
    type Reply = Reply;
    type Query = Query;
    type Answer = Answer;

    fn apply(
        &self,
        tables: &mut Tables<'_>,
        context: &mut Context<'_>,
        command: Command,
    ) -> Result<Reply, Refusal> {
        match command {
            Command::Login { name, device, create } => apply::login(tables, context, (name, device), create),
            Command::Logout {} => {
                let (name, device) = apply::logged_in(tables, context)?;
                apply::log_out(tables, context, &name, &device);
                Ok(Reply::Done)
            }
            Command::Say { to, text } => apply::say(tables, context, to, text),
            Command::Mark { delivered, read } => apply::mark(tables, context, delivered, read),
            Command::Delete { name, admin } => apply::delete(tables, context, &name, admin),
            Command::Forget { device } => apply::forget(tables, context, &device),
            Command::Retain { messages } => {
                if messages == 0 {
                    let text = "0 messages; at least one is kept";
                    return Err(Refusal::new("bad_retention", text).with_status(400));
                }
                tables.put(&STATE, &(), &State { retention: messages, ..State::of(tables) });
                Ok(Reply::Done)
            }
        }
    }

    fn query(&self, view: &View<'_>, _: &QueryContext, query: Query) -> Result<Answer, Refusal> {
        match query {
            Query::Inbox { name, after, limit } => {
                query::inbox(view, &name, after, check_limit(limit, MAX_PAGE)?)
            }
            Query::History { name, with, before, limit } => {
                query::history(view, &name, with.as_deref(), before, check_limit(limit, MAX_HISTORY)?)
            }
            Query::Accounts(listing) => {
                let page = names::page(view, &ACCOUNTS, &listing, |_| size_of::<Account>())?;
                let row = |(name, account): (String, Account)| AccountRow {
                    name,
                    online: account.online > 0,
                    exists: true,
                };
                Ok(Answer::Accounts { accounts: page.rows.into_iter().map(row).collect(), next: page.next })
            }
        }
    }

    fn next_deadline(&self, view: &View<'_>) -> Option<u64> {
        let state = State::of(view);
        (state.kept() > state.retention).then_some(0)
    }

    fn tick(&self, tables: &mut Tables<'_>, _: &mut Context<'_>) {
        let before = State::of(tables);
        let after = apply::drop_old(tables, before, apply::DROPS_PER_TICK);
        if after.oldest != before.oldest {
            tables.put(&STATE, &(), &after);
        }
    }

    fn session_ended(&self, tables: &mut Tables<'_>, context: &mut Context<'_>) {
        if let Some((name, device)) = tables.get(&LOGINS, &context.session()) {
            apply::log_out(tables, context, &name, &device);
        }
    }
}

fn unknown_account(name: &str) -> Refusal {
    Refusal::new("unknown_account", format!("there is no account {name}")).with_status(404)
}

fn check_limit(limit: u32, most: u32) -> Result<usize, Refusal> {
    if (1..=most).contains(&limit) {
        return Ok(limit as usize);
    }
    Err(Refusal::new("bad_limit", format!("the limit is {limit}; use 1 to {most}")).with_status(400))
}

/// Refuses what is no name of an account or a device.
pub(crate) fn check_name(what: &str, name: &str) -> Result<(), Refusal> {
    names::check_plain(what, name, MAX_NAME_BYTES)
}
