//! What commands do.

use std::collections::BTreeSet;
use std::ops::{Bound, ControlFlow};

use super::stored::{BY_CLIENT, BY_STOCK, COUNT, Entry, ORDERS, STOCKS, Stock};
use super::types::Removed;
use super::{
    MAX_LOAD, NewStock, OPENING, OPENING_PRICE, OPENING_QUANTITY, Order, Reply, Side, StockRow, check_price,
    names, overflow, unknown_stock,
};
use crate::{Context, Readable, Refusal, Tables};

pub(super) fn order(
    tables: &mut Tables<'_>,
    context: &mut Context<'_>,
    name: String,
    (side, quantity): (Side, u64),
    client: String,
) -> Result<Order, Refusal> {
    names::check(&name)?;
    let client = match (client.is_empty(), context.session()) {
        (false, _) => client,
        (true, 0) => "nobody".to_owned(),
        (true, session) => format!("session {session}"),
    };
    names::check(&client)?;
    if quantity == 0 {
        let text = "the quantity is 0; an order is for at least one";
        return Err(Refusal::new("bad_quantity", text).with_status(400));
    }
    let before = stock(tables, &name).ok_or_else(|| unknown_stock(&name))?;
    let left = match side {
        Side::Buy => before.quantity.checked_sub(quantity).ok_or_else(|| {
            let text = format!("{quantity} of {name} are wanted, and {} are on offer", before.quantity);
            Refusal::new("not_enough", text).with_current(before.quantity)
        })?,
        Side::Sell => before.quantity.checked_add(quantity).ok_or_else(|| overflow(&name))?,
    };
    let volume = before.volume.checked_add(quantity).ok_or_else(|| overflow(&name))?;
    open(tables);
    let number = tables.get(&COUNT, &()).unwrap_or(0);
    tables.put(&COUNT, &(), &(number + 1));
    let entry = Entry {
        stock: name.clone(),
        side,
        quantity,
        price: before.price,
        client: client.clone(),
        time_ms: context.time(),
    };
    ORDERS.append(tables, number, entry.clone());
    BY_STOCK.note(tables, &name, number);
    BY_CLIENT.note(tables, &client, number);
    put(tables, context, name, Stock { quantity: left, volume, ..before });
    Ok(Order::new(number, entry))
}

pub(super) fn load(
    tables: &mut Tables<'_>,
    context: &mut Context<'_>,
    stocks: Vec<NewStock>,
) -> Result<Reply, Refusal> {
    if stocks.is_empty() || stocks.len() > MAX_LOAD {
        let text = format!("{} stocks; one load takes 1 to {MAX_LOAD}, `add_stock` more", stocks.len());
        return Err(Refusal::new("bad_catalog", text).with_status(400));
    }
    let mut seen = BTreeSet::new();
    for stock in &stocks {
        names::check(&stock.name)?;
        check_price(stock.price)?;
        if !seen.insert(&stock.name) {
            let text = format!("{} is in it twice", stock.name);
            return Err(Refusal::new("bad_catalog", text).with_status(400));
        }
    }
    let orders = tables.get(&COUNT, &()).unwrap_or(0);
    if orders > 0 {
        let text = format!(
            "{orders} orders were made by the catalog that is there; a stock is added by `add_stock`"
        );
        return Err(Refusal::new("already_traded", text));
    }
    let mut before = Vec::new();
    tables.range(&STOCKS, (Bound::Unbounded, Bound::Unbounded), |name, _| {
        before.push(name);
        if before.len() <= MAX_LOAD { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    });
    if before.len() > MAX_LOAD {
        let text =
            format!("the catalog has more than {MAX_LOAD} stocks, which is too much to replace at once");
        return Err(Refusal::new("too_many_stocks", text));
    }
    open(tables);
    for name in before.into_iter().chain(OPENING.map(str::to_owned)) {
        if !seen.contains(&name) && tables.get(&STOCKS, &name).is_some() {
            tables.remove(&STOCKS, &name);
            context.emit(&name, &Removed { name: &name, removed: true });
        }
    }
    let count = stocks.len() as u64;
    for NewStock { name, price, quantity } in stocks {
        put(tables, context, name, Stock { price, quantity, volume: 0 });
    }
    Ok(Reply::Loaded { stocks: count })
}

/// Writes the opening catalog down, if nothing was written yet.
pub(super) fn open(tables: &mut Tables<'_>) {
    if tables.get(&COUNT, &()).is_none() {
        tables.put(&COUNT, &(), &0);
        for name in OPENING {
            tables.put(&STOCKS, &name.to_owned(), &opening());
        }
    }
}

pub(super) fn opening() -> Stock {
    Stock { price: OPENING_PRICE, quantity: OPENING_QUANTITY, volume: 0 }
}

pub(super) fn stock(view: &impl Readable, name: &String) -> Option<Stock> {
    match view.get(&COUNT, &()) {
        Some(_) => view.get(&STOCKS, name),
        None => OPENING.contains(&name.as_str()).then(opening),
    }
}

/// Stores a stock, and tells those who watch.
pub(super) fn put(
    tables: &mut Tables<'_>,
    context: &mut Context<'_>,
    name: String,
    stock: Stock,
) -> StockRow {
    tables.put(&STOCKS, &name, &stock);
    let row = StockRow::new(name, stock);
    context.emit(&row.name, &row);
    row
}
