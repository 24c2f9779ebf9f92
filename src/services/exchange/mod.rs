//! A stock exchange: a catalog of stocks, and a log of orders whose numbers have no gap.
//!
//! - An order changes its stock, takes the next number and stands in the log, in one command; or it is refused and
//!   changes nothing. Numbers begin at 0.
//! - A price is in cents. A purchase takes from the quantity on offer, a sale gives to it, both add to the volume.
//! - The catalog begins with [`OPENING`], until another one is loaded before the first order.
//! - An event goes out on the topic of the stock's name when its price, quantity or volume changes.

mod apply;
mod query;
mod stored;
mod types;

pub use self::types::{Answer, Command, NewStock, Order, Query, Reply, Side, StockRow, Wanted};

use self::stored::Stock;
use super::names::{self, Listing};
use crate::{Context, QueryContext, Refusal, Service, Tables, View};

/// The stocks that are there at first.
pub const OPENING: [&str; 4] = ["GameStart", "BoarCo", "MenhirCo", "FishCo"];
/// Of each of them so many are on offer,
const OPENING_QUANTITY: u64 = 100;
/// at so many cents.
const OPENING_PRICE: u64 = 10_000;
/// One load has at most so many stocks: it is one command. Tests reach it, so there it is low.
pub const MAX_LOAD: usize = if cfg!(test) { 6 } else { 256 };
const DEFAULT_ORDERS: u32 = 100;

/// The service `exchange`.
#[derive(Debug, Clone, Copy, Default)]
pub struct Exchange;

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
                apply::order(tables, context, stock, (side, quantity), client).map(Reply::Ordered)
            }
            Command::AddStock(NewStock { name, price, quantity }) => {
                names::check(&name)?;
                check_price(price)?;
                if apply::stock(tables, &name).is_some() {
                    let text = format!("{name} is in the catalog already; `reprice` gives it another price");
                    return Err(Refusal::new("stock_exists", text));
                }
                apply::open(tables);
                Ok(Reply::Stock(apply::put(tables, context, name, Stock { price, quantity, volume: 0 })))
            }
            Command::Reprice { stock: name, price } => {
                names::check(&name)?;
                check_price(price)?;
                let before = apply::stock(tables, &name).ok_or_else(|| unknown_stock(&name))?;
                apply::open(tables);
                Ok(Reply::Stock(apply::put(tables, context, name, Stock { price, ..before })))
            }
            Command::Load { stocks } => apply::load(tables, context, stocks),
        }
    }

    fn query(&self, view: &View<'_>, _: &QueryContext, query: Query) -> Result<Answer, Refusal> {
        match query {
            Query::Lookup { name } => {
                names::check(&name)?;
                let stock = apply::stock(view, &name).ok_or_else(|| unknown_stock(&name))?;
                Ok(Answer::Lookup(StockRow::new(name, stock)))
            }
            Query::Catalog(listing) => query::catalog(view, &listing),
            Query::Orders(wanted) => query::orders(view, &wanted),
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
