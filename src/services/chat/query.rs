//! What can be asked.

use std::ops::{Bound, ControlFlow};

use super::stored::{ACCOUNTS, Account, DEVICES, Device, MESSAGES, State};
use super::{Answer, MarkedMessage, Message, unknown_account};
use crate::{Refusal, View};

/// At most so many messages in one answer.
pub(super) const MAX_PAGE: u32 = 1_000;
/// And in one of old ones, each of which is looked up who has it.
pub(super) const MAX_HISTORY: u32 = 200;
pub(super) const DEFAULT_PAGE: u32 = 100;
/// A page ends after the message that reaches this many bytes.
pub(super) const MAX_PAGE_BYTES: usize = 1 << 20;
/// Messages looked at for one page.
pub(super) const MAX_SCAN: u64 = 10_000;
/// And so many bytes of their texts.
const MAX_SCAN_BYTES: usize = 8 << 20;
/// Devices looked at to say who has a message to all: with more, it is said of the first ones.
pub(super) const MAX_MARKS: usize = 2_000;

pub(super) fn inbox(view: &View<'_>, name: &String, after: u64, limit: usize) -> Result<Answer, Refusal> {
    let account = account(view, name)?;
    let state = State::of(view);
    let begin = after.max(account.since).saturating_add(1);
    let dropped = state.oldest.saturating_sub(begin);
    let begin = begin.max(state.oldest);
    let (mut messages, mut upto, mut bytes) = (Vec::new(), begin - 1, 0);
    MESSAGES.each(view, begin - 1, |position, stored| {
        let number = position + 1;
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

pub(super) fn history(
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
    let (mut messages, mut bytes, mut seen, mut looked) = (Vec::new(), 0, 0, end);
    MESSAGES.each_before(view, end.saturating_sub(1), |position, stored| {
        let number = position + 1;
        let is_full = messages.len() == limit || bytes >= MAX_PAGE_BYTES;
        let has_seen_enough = end - number > MAX_SCAN || seen >= MAX_SCAN_BYTES;
        if number < first || is_full || has_seen_enough {
            return ControlFlow::Break(());
        }
        looked = number;
        seen += stored.text.len();
        let message = Message::new(number, stored);
        let wanted = with.is_none_or(|with| message.from == with || message.to.as_deref() == Some(with));
        if wanted && message.is_for(name) {
            bytes += message.text.len();
            messages.push(message);
        }
        ControlFlow::Continue(())
    });
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
pub(super) fn marks(view: &View<'_>, only: Option<String>) -> Vec<(String, Device)> {
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

pub(super) fn marked(message: Message, marks: &[(String, Device)]) -> MarkedMessage {
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

pub(super) fn account(view: &View<'_>, name: &String) -> Result<Account, Refusal> {
    view.get(&ACCOUNTS, name).ok_or_else(|| unknown_account(name))
}
