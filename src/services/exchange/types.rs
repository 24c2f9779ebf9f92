//! What the exchange can be told and asked, and what it says.

use serde::{Deserialize, Serialize};

use super::stored::{Entry, Stock};
use super::{DEFAULT_ORDERS, Listing};

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
    pub(super) fn new(number: u64, entry: Entry) -> Self {
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
pub(super) struct Removed<'a> {
    pub(super) name: &'a str,
    pub(super) removed: bool,
}

impl StockRow {
    pub(super) fn new(name: String, stock: Stock) -> Self {
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
