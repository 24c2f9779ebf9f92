//! Chat: accounts, and messages to all or to one, in one order for everybody.
//!
//! - Messages are numbered from 1 without a gap. A device has a cursor, the number up to which it has been given them; so
//!   each message is offered to each device once, whatever ends in between.
//! - An account is logged in on a device through a session. When the session ends, the device is logged out; the
//!   account stays.
//! - An account sees what was said after it was made: to all, to it, and by it.
//! - Old messages are dropped beyond a number that can be set. A device that has not been given them yet is told how many.
//! - Events: a message to all on the topic `all`, a message to one on `@NAME` of both, who comes and goes on `accounts`.

use std::ops::{Bound, ControlFlow};

use serde::{Deserialize, Serialize};

use super::names::{self, Listing};
use crate::{Context, QueryContext, Readable, Refusal, Service, Table, Tables, View};

/// A message's text takes at most so many bytes.
pub const MAX_TEXT_BYTES: usize = 4_096;
/// An account's or a device's name takes at most so many bytes.
pub const MAX_NAME_BYTES: usize = 32;
/// An account has at most so many devices.
pub const MAX_DEVICES: u32 = 16;
/// There are at most so many accounts.
pub const MAX_ACCOUNTS: u64 = 100_000;
/// So many messages are kept until it is set otherwise.
pub const DEFAULT_RETENTION: u64 = 100_000;
/// The device of a client that names none.
pub const DEFAULT_DEVICE: &str = "default";

/// At most so many messages in one answer.
const MAX_PAGE: u32 = 1_000;
/// And in one of old ones, each of which is looked up who has it.
const MAX_HISTORY: u32 = 200;
const DEFAULT_PAGE: u32 = 100;
/// A page ends after the message that reaches this many bytes.
const MAX_PAGE_BYTES: usize = 1 << 20;
/// Messages looked at for one page.
const MAX_SCAN: u64 = 10_000;
/// Devices looked at to say who has a message to all: with more, it is said of the first ones.
const MAX_MARKS: usize = 2_000;
/// Old messages dropped with each new one: more than one, so that a smaller number is reached.
const DROPS_PER_MESSAGE: u64 = 4;
/// And with each tick.
const DROPS_PER_TICK: u64 = 1_000;

const ACCOUNTS: Table<String, Account> = Table::new("accounts");
const DEVICES: Table<(String, String), Device> = Table::new("devices");
/// Who is logged in through a session.
const LOGINS: Table<u64, (String, String)> = Table::new("logins");
const MESSAGES: Table<u64, Stored> = Table::new("messages");
const STATE: Table<(), State> = Table::new("state");

/// The service `chat`.
#[derive(Debug, Clone, Copy, Default)]
pub struct Chat;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Account {
    /// The last message before it was made.
    since: u64,
    created_ms: u64,
    devices: u32,
    online: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Device {
    /// The account's.
    since: u64,
    /// The session that it is logged in through; 0: none.
    session: u64,
    /// It has been given the messages up to this one.
    delivered: u64,
    /// And somebody has read them up to this one.
    read: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Stored {
    from: String,
    to: Option<String>,
    text: String,
    time_ms: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct State {
    /// The last message.
    newest: u64,
    /// The first that is kept, or the next one.
    oldest: u64,
    retention: u64,
    accounts: u64,
}

impl State {
    fn of(view: &impl Readable) -> Self {
        let first = Self { newest: 0, oldest: 1, retention: DEFAULT_RETENTION, accounts: 0 };
        view.get(&STATE, &()).unwrap_or(first)
    }

    fn kept(self) -> u64 {
        self.newest + 1 - self.oldest
    }
}

/// What the chat can be told. Stored by position: append variants and fields only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Command {
    /// Logs the session in; an unknown name becomes an account.
    Login {
        /// The account.
        name: String,
        /// One of its devices.
        #[serde(default = "default_device")]
        device: String,
        /// False: an unknown name is refused.
        #[serde(default = "yes")]
        create: bool,
    },
    /// Logs the session out.
    Logout {},
    /// Says something, to all or to one.
    Say {
        /// To whom; to all when absent.
        #[serde(default)]
        to: Option<String>,
        /// What.
        text: String,
    },
    /// The session's device has been given, and maybe its user has read, the messages up to these.
    Mark {
        /// Given.
        delivered: u64,
        /// Read.
        #[serde(default)]
        read: u64,
    },
    /// Deletes an account: one's own, or any.
    Delete {
        /// Which.
        name: String,
        /// Whosoever it is.
        #[serde(default)]
        admin: bool,
    },
    /// Sets how many messages are kept.
    Retain {
        /// At least one.
        messages: u64,
    },
}

fn default_device() -> String {
    DEFAULT_DEVICE.to_owned()
}

fn yes() -> bool {
    true
}

/// What a command came to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// Of [`Command::Login`].
    LoggedIn {
        /// The account.
        name: String,
        /// The device.
        device: String,
        /// The account is new.
        created: bool,
        /// What the device has been given: it is to be given what follows.
        delivered: u64,
        /// So many messages that it has not been given are no longer kept.
        dropped: u64,
        /// The last message there is.
        newest: u64,
    },
    /// Of [`Command::Say`].
    Said {
        /// The message's number.
        number: u64,
        /// When, in logged milliseconds since 1970.
        time_ms: u64,
    },
    /// Of [`Command::Mark`]: the marks as they are now.
    Marked {
        /// Given.
        delivered: u64,
        /// Read.
        read: u64,
    },
    /// Of the others.
    Done,
}

/// What can be asked.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Query {
    /// The messages that an account may see, from one on.
    Inbox {
        /// The account.
        name: String,
        /// Those behind this one.
        #[serde(default)]
        after: u64,
        /// At most so many, from 1 to 1,000.
        #[serde(default = "default_page")]
        limit: u32,
    },
    /// The last messages that an account may see, and who has them.
    History {
        /// The account.
        name: String,
        /// Only those from or to this one.
        #[serde(default)]
        with: Option<String>,
        /// Those before this one.
        #[serde(default)]
        before: Option<u64>,
        /// At most so many, from 1 to 200.
        #[serde(default = "default_page")]
        limit: u32,
    },
    /// Accounts, in the order of their names.
    Accounts(Listing),
}

fn default_page() -> u32 {
    DEFAULT_PAGE
}

/// A message; also its event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Its number.
    pub number: u64,
    /// Who said it.
    pub from: String,
    /// To whom; to all when null.
    pub to: Option<String>,
    /// What.
    pub text: String,
    /// When, in logged milliseconds since 1970.
    pub time_ms: u64,
}

impl Message {
    fn new(number: u64, Stored { from, to, text, time_ms }: Stored) -> Self {
        Self { number, from, to, text, time_ms }
    }

    fn is_for(&self, name: &str) -> bool {
        self.to.as_ref().is_none_or(|to| to == name || self.from == name)
    }
}

/// A message, and who has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MarkedMessage {
    #[serde(flatten)]
    message: Message,
    /// So many other accounts have been given it,
    delivered: u64,
    /// and so many have read it,
    read: u64,
    /// of so many.
    of: u64,
}

/// An account in a list; also the event of its coming and going.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AccountRow {
    name: String,
    online: bool,
    /// False in the event of its end.
    exists: bool,
}

/// The answer to a [`Query`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Answer {
    /// To [`Query::Inbox`].
    Inbox {
        /// The messages, the oldest first.
        messages: Vec<Message>,
        /// All up to this one were looked at: to be passed as `after` for what follows.
        upto: u64,
        /// Whether there may be more.
        more: bool,
        /// So many behind `after` are no longer kept.
        dropped: u64,
    },
    /// To [`Query::History`].
    History {
        /// The messages, the oldest first.
        messages: Vec<MarkedMessage>,
        /// To be passed as `before` for older ones, when there may be some.
        before: Option<u64>,
    },
    /// To [`Query::Accounts`].
    Accounts {
        /// The accounts.
        accounts: Vec<AccountRow>,
        /// The name to pass as `after` for the next page, when there is one.
        next: Option<String>,
    },
}

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
            Command::Login { name, device, create } => login(tables, context, (name, device), create),
            Command::Logout {} => {
                let (name, device) = logged_in(tables, context)?;
                log_out(tables, context, &name, &device);
                Ok(Reply::Done)
            }
            Command::Say { to, text } => say(tables, context, to, text),
            Command::Mark { delivered, read } => mark(tables, context, delivered, read),
            Command::Delete { name, admin } => delete(tables, context, &name, admin),
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
            Query::Inbox { name, after, limit } => inbox(view, &name, after, check_limit(limit, MAX_PAGE)?),
            Query::History { name, with, before, limit } => {
                history(view, &name, with.as_deref(), before, check_limit(limit, MAX_HISTORY)?)
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
        let state = State::of(tables);
        let state = drop_old(tables, state, DROPS_PER_TICK);
        tables.put(&STATE, &(), &state);
    }

    fn session_ended(&self, tables: &mut Tables<'_>, context: &mut Context<'_>) {
        if let Some((name, device)) = tables.get(&LOGINS, &context.session()) {
            log_out(tables, context, &name, &device);
        }
    }
}

fn login(
    tables: &mut Tables<'_>,
    context: &mut Context<'_>,
    (name, device): (String, String),
    create: bool,
) -> Result<Reply, Refusal> {
    check_name("account", &name)?;
    check_name("device", &device)?;
    let session = context.session();
    if session == 0 {
        let text = "a login lasts as long as its session, and this request has none";
        return Err(Refusal::new("no_session", text).with_status(400));
    }
    if let Some((other, on)) =
        tables.get(&LOGINS, &session).filter(|login| *login != (name.clone(), device.clone()))
    {
        let text = format!("this session is logged in as {other} on {on}; log out first");
        return Err(Refusal::new("logged_in", text));
    }
    let mut state = State::of(tables);
    let known = tables.get(&ACCOUNTS, &name);
    let created = known.is_none();
    if created && !create {
        return Err(unknown_account(&name));
    }
    if created && state.accounts >= MAX_ACCOUNTS {
        let text = format!("there are {MAX_ACCOUNTS} accounts; some have to be deleted first");
        return Err(Refusal::new("too_many_accounts", text));
    }
    let mut account =
        known.unwrap_or(Account { since: state.newest, created_ms: context.time(), devices: 0, online: 0 });
    let key = (name.clone(), device.clone());
    let known = tables.get(&DEVICES, &key);
    if known.is_none() && account.devices >= MAX_DEVICES {
        let text = format!("{name} has {MAX_DEVICES} devices, which is the most");
        return Err(Refusal::new("too_many_devices", text));
    }
    let mut row = known.clone().unwrap_or(Device {
        since: account.since,
        session: 0,
        delivered: account.since,
        read: account.since,
    });
    if row.session != 0 && row.session != session {
        let text = format!(
            "{name} is active elsewhere, on device {device}. Log out there, or wait until its session has expired; another \
             device has a name of its own"
        );
        return Err(Refusal::new("active_elsewhere", text));
    }
    let dropped = (state.oldest - 1).saturating_sub(row.delivered);
    row.delivered += dropped;
    let came = row.session == 0;
    row.session = session;
    account.devices += u32::from(known.is_none());
    account.online += u32::from(came);
    state.accounts += u64::from(created);
    tables.put(&STATE, &(), &state);
    tables.put(&ACCOUNTS, &name, &account);
    tables.put(&DEVICES, &key, &row);
    tables.put(&LOGINS, &session, &key);
    if came && account.online == 1 {
        tell_of(context, &name, true, true);
    }
    Ok(Reply::LoggedIn { name, device, created, delivered: row.delivered, dropped, newest: state.newest })
}

/// Who the context's session is.
fn logged_in(view: &impl Readable, context: &Context<'_>) -> Result<(String, String), Refusal> {
    view.get(&LOGINS, &context.session()).ok_or_else(|| {
        let text = "nobody is logged in through this session; it may have expired, or the account was deleted. Log in";
        Refusal::new("not_logged_in", text)
    })
}

/// Takes a device's session from it.
fn log_out(tables: &mut Tables<'_>, context: &mut Context<'_>, name: &String, device: &str) {
    let key = (name.clone(), device.to_owned());
    if let Some(row) = tables.get(&DEVICES, &key) {
        tables.remove(&LOGINS, &row.session);
        tables.put(&DEVICES, &key, &Device { session: 0, ..row });
    }
    if let Some(mut account) = tables.get(&ACCOUNTS, name) {
        account.online = account.online.saturating_sub(1);
        tables.put(&ACCOUNTS, name, &account);
        if account.online == 0 {
            tell_of(context, name, false, true);
        }
    }
}

fn say(
    tables: &mut Tables<'_>,
    context: &mut Context<'_>,
    to: Option<String>,
    text: String,
) -> Result<Reply, Refusal> {
    let (from, _) = logged_in(tables, context)?;
    if text.is_empty() || text.len() > MAX_TEXT_BYTES {
        let detail = format!("the text takes {} bytes; a message has 1 to {MAX_TEXT_BYTES}", text.len());
        return Err(Refusal::new("bad_text", detail).with_status(400));
    }
    if let Some(to) = &to
        && tables.get(&ACCOUNTS, to).is_none()
    {
        let detail = format!("there is no account {to}; `list` shows who there is");
        return Err(Refusal::new("unknown_account", detail).with_status(404));
    }
    let mut state = State::of(tables);
    state.newest += 1;
    let (number, time_ms) = (state.newest, context.time());
    let stored = Stored { from, to, text, time_ms };
    tables.put(&MESSAGES, &number, &stored);
    let state = drop_old(tables, state, DROPS_PER_MESSAGE);
    tables.put(&STATE, &(), &state);
    let message = Message::new(number, stored);
    match &message.to {
        None => context.emit("all", &message),
        Some(to) => {
            context.emit(format!("@{to}"), &message);
            if *to != message.from {
                context.emit(format!("@{}", message.from), &message);
            }
        }
    }
    Ok(Reply::Said { number, time_ms })
}

/// Drops at most `most` of the messages beyond the retention.
fn drop_old(tables: &mut Tables<'_>, mut state: State, most: u64) -> State {
    for _ in 0..most.min(state.kept().saturating_sub(state.retention)) {
        tables.remove(&MESSAGES, &state.oldest);
        state.oldest += 1;
    }
    state
}

fn mark(
    tables: &mut Tables<'_>,
    context: &mut Context<'_>,
    delivered: u64,
    read: u64,
) -> Result<Reply, Refusal> {
    let key = logged_in(tables, context)?;
    let newest = State::of(tables).newest;
    let before = tables.get(&DEVICES, &key).unwrap_or(Device {
        since: newest,
        session: 0,
        delivered: newest,
        read: newest,
    });
    // What was read was given. Marks do not go back.
    let read = read.min(newest).max(before.read);
    let delivered = delivered.min(newest).max(before.delivered).max(read);
    let after = Device { delivered, read, ..before.clone() };
    if after != before {
        tables.put(&DEVICES, &key, &after);
    }
    Ok(Reply::Marked { delivered, read })
}

fn delete(
    tables: &mut Tables<'_>,
    context: &mut Context<'_>,
    name: &String,
    admin: bool,
) -> Result<Reply, Refusal> {
    if !admin && logged_in(tables, context)?.0 != *name {
        let text = format!("{name} is somebody else's account; that takes an administrator");
        return Err(Refusal::new("not_yours", text).with_status(403));
    }
    if tables.get(&ACCOUNTS, name).is_none() {
        return Err(unknown_account(name));
    }
    let mut devices = Vec::new();
    let from = (name.clone(), String::new());
    tables.range(&DEVICES, (Bound::Included(&from), Bound::Unbounded), |key, device| {
        if key.0 != *name {
            return ControlFlow::Break(());
        }
        devices.push((key, device));
        ControlFlow::Continue(())
    });
    for (key, device) in devices {
        tables.remove(&DEVICES, &key);
        if device.session != 0 {
            tables.remove(&LOGINS, &device.session);
        }
    }
    tables.remove(&ACCOUNTS, name);
    let state = State::of(tables);
    tables.put(&STATE, &(), &State { accounts: state.accounts.saturating_sub(1), ..state });
    tell_of(context, name, false, false);
    Ok(Reply::Done)
}

fn tell_of(context: &mut Context<'_>, name: &str, online: bool, exists: bool) {
    context.emit("accounts", &AccountRow { name: name.to_owned(), online, exists });
}

fn inbox(view: &View<'_>, name: &String, after: u64, limit: usize) -> Result<Answer, Refusal> {
    let account = account(view, name)?;
    let state = State::of(view);
    let begin = after.max(account.since).saturating_add(1);
    let dropped = state.oldest.saturating_sub(begin);
    let begin = begin.max(state.oldest);
    let (mut messages, mut upto, mut bytes) = (Vec::new(), begin - 1, 0);
    view.range(&MESSAGES, (Bound::Included(&begin), Bound::Unbounded), |number, stored| {
        if messages.len() == limit || bytes >= MAX_PAGE_BYTES || number - begin >= MAX_SCAN {
            return ControlFlow::Break(());
        }
        upto = number;
        let message = Message::new(number, stored);
        if message.is_for(name) {
            bytes += message.text.len();
            messages.push(message);
        }
        ControlFlow::Continue(())
    });
    Ok(Answer::Inbox { messages, upto, more: upto < state.newest, dropped })
}

fn history(
    view: &View<'_>,
    name: &String,
    with: Option<&str>,
    before: Option<u64>,
    limit: usize,
) -> Result<Answer, Refusal> {
    let account = account(view, name)?;
    let state = State::of(view);
    let first = state.oldest.max(account.since + 1);
    let end = before.unwrap_or(u64::MAX).min(state.newest + 1);
    let (mut messages, mut bytes, mut looked) = (Vec::new(), 0, end);
    for number in (first..end).rev().take(MAX_SCAN as usize) {
        if messages.len() == limit || bytes >= MAX_PAGE_BYTES {
            break;
        }
        looked = number;
        let Some(message) = view.get(&MESSAGES, &number).map(|stored| Message::new(number, stored)) else {
            continue;
        };
        let wanted = with.is_none_or(|with| message.from == with || message.to.as_deref() == Some(with));
        if wanted && message.is_for(name) {
            bytes += message.text.len();
            messages.push(message);
        }
    }
    messages.reverse();
    let all = marks(view, None);
    let marked = |message: Message| match message.to.clone() {
        Some(to) => marked(message, &marks(view, Some(to))),
        None => marked(message, &all),
    };
    let messages = messages.into_iter().map(marked).collect();
    Ok(Answer::History { messages, before: (looked > first).then_some(looked) })
}

/// Each account's marks, or one account's: the furthest of its devices.
fn marks(view: &View<'_>, only: Option<String>) -> Vec<(String, Device)> {
    let mut marks: Vec<(String, Device)> = Vec::new();
    let mut looked = 0;
    let from = only.clone().map(|name| (name, String::new()));
    let from = from.as_ref().map_or(Bound::Unbounded, Bound::Included);
    view.range(&DEVICES, (from, Bound::Unbounded), |(name, _), device| {
        if only.as_ref().is_some_and(|only| *only != name) {
            return ControlFlow::Break(());
        }
        looked += 1;
        match marks.last_mut().filter(|(last, _)| *last == name) {
            Some((_, furthest)) => {
                furthest.delivered = furthest.delivered.max(device.delivered);
                furthest.read = furthest.read.max(device.read);
            }
            None => marks.push((name, device)),
        }
        if looked < MAX_MARKS { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    });
    marks
}

fn marked(message: Message, marks: &[(String, Device)]) -> MarkedMessage {
    let meant = |name: &String| match &message.to {
        Some(to) => to == name,
        None => *name != message.from,
    };
    let (mut delivered, mut read, mut of) = (0, 0, 0);
    // Who came later is not given it.
    let there = |device: &Device| device.since < message.number;
    for (_, device) in marks.iter().filter(|(name, device)| meant(name) && there(device)) {
        of += 1;
        delivered += u64::from(device.delivered >= message.number);
        read += u64::from(device.read >= message.number);
    }
    MarkedMessage { message, delivered, read, of }
}

fn account(view: &View<'_>, name: &String) -> Result<Account, Refusal> {
    view.get(&ACCOUNTS, name).ok_or_else(|| unknown_account(name))
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

fn check_name(what: &str, name: &str) -> Result<(), Refusal> {
    names::check_plain(what, name, MAX_NAME_BYTES)
}
