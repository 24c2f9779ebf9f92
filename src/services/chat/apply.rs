//! What commands do.

use std::ops::{Bound, ControlFlow};

use super::stored::{ACCOUNTS, Account, DEVICES, Device, LOGINS, MESSAGES, STATE, State, Stored};
use super::{
    AccountRow, MAX_ACCOUNTS, MAX_DEVICES, MAX_TEXT_BYTES, Message, Reply, check_name, unknown_account,
};
use crate::{Context, Readable, Refusal, Tables};

/// Old messages dropped with each new one: more than one, so that a smaller number is reached.
pub(super) const DROPS_PER_MESSAGE: u64 = 4;
/// And with each tick.
pub(super) const DROPS_PER_TICK: u64 = 1_000;

pub(super) fn login(
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
        let text = format!(
            "{name} has {MAX_DEVICES} devices, which is the most; `forget` one that is no longer used"
        );
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
pub(super) fn logged_in(view: &impl Readable, context: &Context<'_>) -> Result<(String, String), Refusal> {
    view.get(&LOGINS, &context.session()).ok_or_else(|| {
        let text = "nobody is logged in through this session; it may have expired, or the account was deleted. Log in";
        Refusal::new("not_logged_in", text)
    })
}

/// Takes a device's session from it.
pub(super) fn log_out(tables: &mut Tables<'_>, context: &mut Context<'_>, name: &String, device: &str) {
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

pub(super) fn say(
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
        return Err(unknown_account(to));
    }
    let mut state = State::of(tables);
    state.newest += 1;
    let (number, time_ms) = (state.newest, context.time());
    let stored = Stored { from, to, text, time_ms };
    MESSAGES.append(tables, number - 1, stored.clone());
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
pub(super) fn drop_old(tables: &mut Tables<'_>, mut state: State, most: u64) -> State {
    for _ in 0..most.min(state.kept().saturating_sub(state.retention)) {
        MESSAGES.drop_below(tables, state.oldest);
        state.oldest += 1;
    }
    state
}

pub(super) fn mark(
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

pub(super) fn forget(
    tables: &mut Tables<'_>,
    context: &mut Context<'_>,
    device: &str,
) -> Result<Reply, Refusal> {
    let (name, _) = logged_in(tables, context)?;
    let key = (name, device.to_owned());
    let Some(row) = tables.get(&DEVICES, &key) else {
        let text = format!("{} has no device {device}", key.0);
        return Err(Refusal::new("unknown_device", text).with_status(404));
    };
    if row.session != 0 {
        let text = format!("{} is logged in on {device}; log out there first", key.0);
        return Err(Refusal::new("active", text));
    }
    tables.remove(&DEVICES, &key);
    if let Some(mut account) = tables.get(&ACCOUNTS, &key.0) {
        account.devices = account.devices.saturating_sub(1);
        tables.put(&ACCOUNTS, &key.0, &account);
    }
    Ok(Reply::Done)
}

pub(super) fn delete(
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

pub(super) fn tell_of(context: &mut Context<'_>, name: &str, online: bool, exists: bool) {
    context.emit("accounts", &AccountRow { name: name.to_owned(), online, exists });
}
