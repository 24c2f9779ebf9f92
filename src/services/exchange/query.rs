//! What can be asked.

use std::ops::ControlFlow;

use super::apply::opening;
use super::stored::{BY_CLIENT, BY_STOCK, COUNT, Entry, ORDERS, STOCKS, Stock};
use super::{Answer, Listing, OPENING, Order, StockRow, Wanted, names};
use crate::{Refusal, View};

/// Orders looked at for one answer.
pub(super) const MAX_SCAN: usize = 10_000;
/// Orders in one answer.
pub(super) const MAX_ORDERS: u32 = 1_000;

pub(super) fn catalog(view: &View<'_>, listing: &Listing) -> Result<Answer, Refusal> {
    if view.get(&COUNT, &()).is_none() {
        let mut names: Vec<&str> = OPENING.to_vec();
        names.sort_unstable();
        names.retain(|name| {
            name.starts_with(&listing.prefix) && listing.after.as_deref().is_none_or(|after| *name > after)
        });
        let stocks = names.into_iter().map(|name| StockRow::new(name.to_owned(), opening())).collect();
        return Ok(Answer::Catalog { stocks, next: None });
    }
    let page = names::page(view, &STOCKS, listing, |_| size_of::<Stock>())?;
    let stocks = page.rows.into_iter().map(|(name, stock)| StockRow::new(name, stock)).collect();
    Ok(Answer::Catalog { stocks, next: page.next })
}

pub(super) fn orders(view: &View<'_>, wanted: &Wanted) -> Result<Answer, Refusal> {
    if !(1..=MAX_ORDERS).contains(&wanted.limit) {
        let text =
            format!("the limit is {}; use 1 to {MAX_ORDERS}, and `since` for what follows", wanted.limit);
        return Err(Refusal::new("bad_limit", text).with_status(400));
    }
    let limit = wanted.limit as usize;
    let meets = |entry: &Entry| {
        wanted.stock.as_ref().is_none_or(|stock| *stock == entry.stock)
            && wanted.client.as_ref().is_none_or(|client| *client == entry.client)
            && wanted.from_ms.is_none_or(|from| entry.time_ms >= from)
            && wanted.until_ms.is_none_or(|until| entry.time_ms < until)
    };
    if let Some(numbers) = &wanted.numbers {
        let mut found = Vec::new();
        for number in parse_numbers(numbers, limit)? {
            let entry = ORDERS.get(view, number).filter(|entry| number >= wanted.since && meets(entry));
            found.extend(entry.map(|entry| Order::new(number, entry)));
        }
        return Ok(Answer::Orders { orders: found, next: None });
    }
    let since = wanted.from_ms.map_or(wanted.since, |from| wanted.since.max(first_at(view, from)));
    let (mut found, mut next, mut looked) = (Vec::new(), None, 0);
    let mut look = |number: u64, entry: Option<Entry>| {
        let Some(entry) = entry else { return ControlFlow::Continue(()) };
        if found.len() == limit || looked == MAX_SCAN {
            next = Some(number);
            return ControlFlow::Break(());
        }
        // Times do not go back.
        if wanted.until_ms.is_some_and(|until| entry.time_ms >= until) {
            return ControlFlow::Break(());
        }
        looked += 1;
        if meets(&entry) {
            found.push(Order::new(number, entry));
        }
        ControlFlow::Continue(())
    };
    let by = match (&wanted.stock, &wanted.client) {
        (Some(stock), _) => Some((&BY_STOCK, stock)),
        (None, Some(client)) => Some((&BY_CLIENT, client)),
        (None, None) => None,
    };
    match by {
        Some((index, name)) => {
            index.each(view, name, since, |number| look(number, ORDERS.get(view, number)));
        }
        None => ORDERS.each(view, since, |number, entry| look(number, Some(entry))),
    }
    Ok(Answer::Orders { orders: found, next })
}

/// The first order at `time` or later; by halving, since times do not go back.
pub(super) fn first_at(view: &View<'_>, time: u64) -> u64 {
    let (mut low, mut high) = (0, view.get(&COUNT, &()).unwrap_or(0));
    while low < high {
        let middle = low + (high - low) / 2;
        if ORDERS.get(view, middle).is_some_and(|entry| entry.time_ms < time) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    low
}

pub(super) fn parse_numbers(text: &str, limit: usize) -> Result<Vec<u64>, Refusal> {
    let numbers: Result<Vec<u64>, _> = text.split(',').map(|number| number.trim().parse()).collect();
    match numbers {
        Ok(numbers) if numbers.len() <= limit => Ok(numbers),
        Ok(numbers) => {
            let text = format!("{} numbers, and the limit is {limit}", numbers.len());
            Err(Refusal::new("bad_limit", text).with_status(400))
        }
        Err(_) => {
            let text = format!("{text:?} are no numbers of orders; expected for example 0,1,5");
            Err(Refusal::new("bad_numbers", text).with_status(400))
        }
    }
}
