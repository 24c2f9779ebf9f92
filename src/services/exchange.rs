//! A stock exchange: a catalog of stocks, and a log of orders whose numbers have no gap.
//!
//! - An order changes its stock, takes the next number and stands in the log, in one command; or it is refused and
//!   changes nothing. Numbers begin at 0.
//! - A price is in cents. A purchase takes from the quantity on offer, a sale gives to it, both add to the volume.
//! - The catalog begins with [`OPENING`], until another one is loaded before the first order.
//! - An event goes out on the topic of the stock's name when its price, quantity or volume changes.

use std::collections::BTreeSet;
use std::ops::{Bound, ControlFlow};

use serde::{Deserialize, Serialize};

use super::names::{self, Listing};
use crate::{Context, QueryContext, Readable, Refusal, Service, Table, Tables, View};

/// The stocks that are there at first.
pub const OPENING: [&str; 4] = ["GameStart", "BoarCo", "MenhirCo", "FishCo"];
/// Of each of them so many are on offer,
const OPENING_QUANTITY: u64 = 100;
/// at so many cents.
const OPENING_PRICE: u64 = 10_000;
/// One load has at most so many stocks: it is one command.
pub const MAX_LOAD: usize = 256;
/// Orders looked at for one answer.
const MAX_SCAN: usize = 10_000;
/// Orders in one answer.
const MAX_ORDERS: u32 = 1_000;
const DEFAULT_ORDERS: u32 = 100;

const STOCKS: Table<String, Stock> = Table::new("stocks");
const ORDERS: Table<u64, Entry> = Table::new("orders");
const BY_STOCK: Index = Index { tails: Table::new("stock_tails"), chunks: Table::new("stock_chunks") };
const BY_CLIENT: Index = Index { tails: Table::new("client_tails"), chunks: Table::new("client_chunks") };
/// How many orders there are; absent while nothing was ever written.
const COUNT: Table<(), u64> = Table::new("count");

/// So many numbers of orders make a chunk of an [`Index`].
const CHUNK: usize = 32;

/// The numbers of a name's orders. The last ones are in its tail; full chunks, each under its last number. A row for each
/// order would be simpler, and so many rows that writing them costs more than all else that an order does.
struct Index {
    tails: Table<String, Vec<u64>>,
    chunks: Table<(String, u64), Vec<u64>>,
}

impl Index {
    fn note(&self, tables: &mut Tables<'_>, name: &String, number: u64) {
        let mut tail = tables.get(&self.tails, name).unwrap_or_default();
        tail.push(number);
        if tail.len() == CHUNK {
            tables.put(&self.chunks, &(name.clone(), number), &tail);
            tail.clear();
        }
        tables.put(&self.tails, name, &tail);
    }

    /// Calls `each` for the numbers from `since` on, until it breaks.
    fn each(&self, view: &View<'_>, name: &String, since: u64, mut each: impl FnMut(u64) -> ControlFlow<()>) {
        let mut all =
            |numbers: Vec<u64>| numbers.into_iter().filter(|number| *number >= since).try_for_each(&mut each);
        let (from, to) = ((name.clone(), since), (name.clone(), u64::MAX));
        let mut flow = ControlFlow::Continue(());
        view.range(&self.chunks, (Bound::Included(&from), Bound::Included(&to)), |_, numbers| {
            flow = all(numbers);
            flow
        });
        if flow.is_continue() {
            // Nothing follows it.
            let _ = all(view.get(&self.tails, name).unwrap_or_default());
        }
    }
}

/// The service `exchange`.
#[derive(Debug, Clone, Copy, Default)]
pub struct Exchange;

/// Which way an order goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Side {
    /// From the exchange to the client.
    Buy,
    /// From the client to the exchange.
    Sell,
}

/// What the exchange can be told. Stored by position: append variants and fields only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Command {
    /// Buys or sells.
    Order {
        /// Which stock.
        stock: String,
        /// Which way.
        side: Side,
        /// How many, at least one.
        quantity: u64,
        /// On whose account; empty: the session's.
        #[serde(default)]
        client: String,
    },
    /// Puts a new stock into the catalog.
    AddStock(NewStock),
    /// Gives a stock another price.
    Reprice {
        /// Which stock.
        stock: String,
        /// Cents.
        price: u64,
    },
    /// Replaces the catalog, before the first order.
    Load {
        /// The new one.
        stocks: Vec<NewStock>,
    },
}

/// A stock as it enters the catalog.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewStock {
    /// Its name.
    pub name: String,
    /// Cents.
    pub price: u64,
    /// How many are on offer.
    pub quantity: u64,
}

/// What a command came to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// Of [`Command::Order`].
    Ordered(Order),
    /// Of [`Command::AddStock`] and [`Command::Reprice`].
    Stock(StockRow),
    /// Of [`Command::Load`].
    Loaded {
        /// How many stocks there are now.
        stocks: u64,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Stock {
    price: u64,
    quantity: u64,
    volume: u64,
}

/// An order as it is stored, under its number.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    stock: String,
    side: Side,
    quantity: u64,
    price: u64,
    client: String,
    time_ms: u64,
}

/// An order of the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// Its number.
    pub number: u64,
    /// Which stock.
    pub stock: String,
    /// Which way.
    pub side: Side,
    /// How many.
    pub quantity: u64,
    /// At how many cents each.
    pub price: u64,
    /// On whose account.
    pub client: String,
    /// When, in logged milliseconds since 1970.
    pub time_ms: u64,
}

impl Order {
    fn new(number: u64, entry: Entry) -> Self {
        let Entry { stock, side, quantity, price, client, time_ms } = entry;
        Self { number, stock, side, quantity, price, client, time_ms }
    }
}

/// A stock of the catalog; also the event of its change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StockRow {
    /// Its name.
    pub name: String,
    /// Cents.
    pub price: u64,
    /// How many are on offer.
    pub quantity: u64,
    /// How many were bought and sold.
    pub volume: u64,
}

/// The event of a stock's end.
#[derive(Serialize)]
struct Removed<'a> {
    name: &'a str,
    removed: bool,
}

impl StockRow {
    fn new(name: String, stock: Stock) -> Self {
        let Stock { price, quantity, volume } = stock;
        Self { name, price, quantity, volume }
    }
}

/// What can be asked.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Query {
    /// One stock.
    Lookup {
        /// Which.
        name: String,
    },
    /// The catalog, in the order of the names.
    Catalog(Listing),
    /// Orders, in the order of their numbers: those that meet all that is asked for.
    Orders(Wanted),
}

/// Which orders are asked for.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wanted {
    /// These numbers, with commas between.
    #[serde(default)]
    pub numbers: Option<String>,
    /// From this number on.
    #[serde(default)]
    pub since: u64,
    /// Of this stock.
    #[serde(default)]
    pub stock: Option<String>,
    /// On this account.
    #[serde(default)]
    pub client: Option<String>,
    /// At this time or later, in milliseconds since 1970.
    #[serde(default)]
    pub from_ms: Option<u64>,
    /// Before this time.
    #[serde(default)]
    pub until_ms: Option<u64>,
    /// At most so many, from 1 to 1,000.
    #[serde(default = "default_orders")]
    pub limit: u32,
}

fn default_orders() -> u32 {
    DEFAULT_ORDERS
}

/// The answer to a [`Query`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Answer {
    /// To [`Query::Lookup`].
    Lookup(StockRow),
    /// To [`Query::Catalog`].
    Catalog {
        /// The stocks.
        stocks: Vec<StockRow>,
        /// The name to pass as `after` for the next page, when there is one.
        next: Option<String>,
    },
    /// To [`Query::Orders`].
    Orders {
        /// The orders.
        orders: Vec<Order>,
        /// The number to pass as `since` for the next page, when there may be one.
        next: Option<u64>,
    },
}

impl Service for Exchange {
    const NAME: &'static str = "exchange";
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
            Command::Order { stock, side, quantity, client } => {
                order(tables, context, stock, (side, quantity), client).map(Reply::Ordered)
            }
            Command::AddStock(NewStock { name, price, quantity }) => {
                names::check(&name)?;
                check_price(price)?;
                if stock(tables, &name).is_some() {
                    let text = format!("{name} is in the catalog already; `reprice` gives it another price");
                    return Err(Refusal::new("stock_exists", text));
                }
                open(tables);
                Ok(Reply::Stock(put(tables, context, name, Stock { price, quantity, volume: 0 })))
            }
            Command::Reprice { stock: name, price } => {
                names::check(&name)?;
                check_price(price)?;
                let before = stock(tables, &name).ok_or_else(|| unknown_stock(&name))?;
                open(tables);
                Ok(Reply::Stock(put(tables, context, name, Stock { price, ..before })))
            }
            Command::Load { stocks } => load(tables, context, stocks),
        }
    }

    fn query(&self, view: &View<'_>, _: &QueryContext, query: Query) -> Result<Answer, Refusal> {
        match query {
            Query::Lookup { name } => {
                names::check(&name)?;
                let stock = stock(view, &name).ok_or_else(|| unknown_stock(&name))?;
                Ok(Answer::Lookup(StockRow::new(name, stock)))
            }
            Query::Catalog(listing) => catalog(view, &listing),
            Query::Orders(wanted) => orders(view, &wanted),
        }
    }
}

fn order(
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
    tables.put(&ORDERS, &number, &entry);
    BY_STOCK.note(tables, &name, number);
    BY_CLIENT.note(tables, &client, number);
    put(tables, context, name, Stock { quantity: left, volume, ..before });
    Ok(Order::new(number, entry))
}

fn load(tables: &mut Tables<'_>, context: &mut Context<'_>, stocks: Vec<NewStock>) -> Result<Reply, Refusal> {
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
fn open(tables: &mut Tables<'_>) {
    if tables.get(&COUNT, &()).is_none() {
        tables.put(&COUNT, &(), &0);
        for name in OPENING {
            tables.put(&STOCKS, &name.to_owned(), &opening());
        }
    }
}

fn opening() -> Stock {
    Stock { price: OPENING_PRICE, quantity: OPENING_QUANTITY, volume: 0 }
}

fn stock(view: &impl Readable, name: &String) -> Option<Stock> {
    match view.get(&COUNT, &()) {
        Some(_) => view.get(&STOCKS, name),
        None => OPENING.contains(&name.as_str()).then(opening),
    }
}

/// Stores a stock, and tells those who watch.
fn put(tables: &mut Tables<'_>, context: &mut Context<'_>, name: String, stock: Stock) -> StockRow {
    tables.put(&STOCKS, &name, &stock);
    let row = StockRow::new(name, stock);
    context.emit(&row.name, &row);
    row
}

fn catalog(view: &View<'_>, listing: &Listing) -> Result<Answer, Refusal> {
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

fn orders(view: &View<'_>, wanted: &Wanted) -> Result<Answer, Refusal> {
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
            let entry = view.get(&ORDERS, &number).filter(|entry| number >= wanted.since && meets(entry));
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
            index.each(view, name, since, |number| look(number, view.get(&ORDERS, &number)));
        }
        None => view.range(&ORDERS, (Bound::Included(&since), Bound::Unbounded), |number, entry| {
            look(number, Some(entry))
        }),
    }
    Ok(Answer::Orders { orders: found, next })
}

/// The first order at `time` or later; by halving, since times do not go back.
fn first_at(view: &View<'_>, time: u64) -> u64 {
    let (mut low, mut high) = (0, view.get(&COUNT, &()).unwrap_or(0));
    while low < high {
        let middle = low + (high - low) / 2;
        if view.get(&ORDERS, &middle).is_some_and(|entry| entry.time_ms < time) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    low
}

fn parse_numbers(text: &str, limit: usize) -> Result<Vec<u64>, Refusal> {
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

fn check_price(price: u64) -> Result<(), Refusal> {
    if price > 0 {
        return Ok(());
    }
    Err(Refusal::new("bad_price", "the price is 0; it is in cents, and at least one").with_status(400))
}

fn unknown_stock(name: &str) -> Refusal {
    let text = format!("{name} is not in the catalog; `catalog` lists what is");
    Refusal::new("unknown_stock", text).with_status(404)
}

fn overflow(name: &str) -> Refusal {
    Refusal::new("overflow", format!("so many of {name} cannot be counted; nothing was done"))
}
