//! `quorate exchange`: the catalog, orders, a front end, and a client that trades at random.

mod cents;
mod front;
mod ledger;
mod trade;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand, ValueEnum};
use serde::Deserialize;
use serde_json::json;

use super::connect::{ConnectFlags, Connection, background_runtime, runtime};
use super::output::{CliError, Exit, Printed};
use super::shown::cell;
use super::{addresses, status};
use crate::client::{Client, Error, Exchange, OrdersQuery};
use crate::config::Config;
use crate::services::exchange::{NewStock, Order, Side, StockRow};

const EXAMPLE: &str = "\
Examples:
  quorate exchange catalog
  quorate exchange order buy GameStart 3 --account ada
  quorate exchange orders --account ada
  quorate exchange trade --seconds 30 --probability 0.7";
const LOAD_EXAMPLE: &str = "\
Example:
  quorate exchange load stocks.toml

The file, with prices in cents:
  [[stocks]]
  name = \"TurtleCo\"
  price = 1250
  quantity = 40";
const FRONT_EXAMPLE: &str = "\
Example:
  quorate exchange front --listen 127.0.0.1:8300
  curl http://127.0.0.1:8300/stocks/GameStart
  curl -d '{\"stock\":\"GameStart\",\"side\":\"buy\",\"quantity\":3}' http://127.0.0.1:8300/orders
  curl http://127.0.0.1:8300/orders/0";
const TRADE_EXAMPLE: &str = "\
Example:
  quorate exchange trade --seconds 30 --probability 0.7

At the end each order is compared with the cluster's log. Exit 1: they differ; 3: the log could not be had.";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLE)]
pub(crate) struct ExchangeArgs {
    #[command(flatten)]
    connect: ConnectFlags,
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Way {
    /// From the exchange
    Buy,
    /// To the exchange
    Sell,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
enum Caching {
    /// Answer from what was looked up, which the cluster keeps up to date
    #[default]
    On,
    /// Ask the cluster each time
    Off,
}

impl Caching {
    fn exchange(self, client: &Client) -> Exchange {
        match self {
            Self::On => client.cached_exchange(),
            Self::Off => client.exchange(),
        }
    }
}

#[derive(Debug, Subcommand)]
enum Action {
    #[command(flatten)]
    Request(Request),
    /// Serve the exchange over HTTP, with a cache
    #[command(after_help = FRONT_EXAMPLE)]
    Front {
        /// The address to listen on
        #[arg(long, value_name = "IP:PORT", value_parser = addresses::socket)]
        listen: SocketAddr,
        /// Whether look-ups are answered from a cache
        #[arg(long, default_value = "on")]
        cache: Caching,
        /// Say 402 in place of 409 when there is not enough
        #[arg(long)]
        legacy_codes: bool,
    },
    /// Look up and order at random, then compare with the cluster's log
    #[command(after_help = TRADE_EXAMPLE)]
    Trade(trade::TradeArgs),
}

/// What is asked once and answered.
#[derive(Debug, Subcommand)]
enum Request {
    /// Show all stocks
    #[command(after_help = "Example:\n  quorate exchange catalog")]
    Catalog,
    /// Show one stock
    #[command(after_help = "Example:\n  quorate exchange lookup GameStart")]
    Lookup {
        /// Which
        stock: String,
    },
    /// Buy or sell
    #[command(after_help = "Example:\n  quorate exchange order buy GameStart 3 --account ada")]
    Order {
        /// Which way
        way: Way,
        /// Which stock
        stock: String,
        /// How many
        quantity: u64,
        /// On whose account [default: the session's]
        #[arg(long, value_name = "NAME")]
        account: Option<String>,
    },
    /// Show orders, those that meet all that is asked for
    #[command(
        after_help = "Examples:\n  quorate exchange orders --number 0,5\n  quorate exchange orders --stock GameStart --since 100"
    )]
    Orders(OrdersArgs),
    /// Put a new stock into the catalog
    #[command(after_help = "Example:\n  quorate exchange add TurtleCo 12.50 40")]
    Add {
        /// Its name
        stock: String,
        /// Its price, such as 12.50
        #[arg(value_parser = cents::parse)]
        price: u64,
        /// How many are on offer
        quantity: u64,
    },
    /// Give a stock another price
    #[command(after_help = "Example:\n  quorate exchange reprice TurtleCo 13")]
    Reprice {
        /// Which stock
        stock: String,
        /// The price, such as 13 or 12.50
        #[arg(value_parser = cents::parse)]
        price: u64,
    },
    /// Replace the catalog, before the first order
    #[command(after_help = LOAD_EXAMPLE)]
    Load {
        /// A TOML file
        file: PathBuf,
    },
}

#[derive(Debug, Args)]
struct OrdersArgs {
    /// These numbers
    #[arg(long, value_name = "N,…", value_delimiter = ',')]
    number: Vec<u64>,
    /// From this number on
    #[arg(long, value_name = "N", default_value_t = 0)]
    since: u64,
    /// Of this stock
    #[arg(long)]
    stock: Option<String>,
    /// On this account
    #[arg(long, value_name = "NAME")]
    account: Option<String>,
    /// At this time or later, in milliseconds since 1970
    #[arg(long, value_name = "MS")]
    from: Option<u64>,
    /// Before this time, in milliseconds since 1970
    #[arg(long, value_name = "MS")]
    until: Option<u64>,
    /// At most so many
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1000))]
    limit: u32,
}

pub(crate) fn run(arguments: ExchangeArgs, config: &Config) -> Result<Exit, CliError> {
    let connection = arguments.connect.resolve(config)?;
    let client = connection.builder().build()?;
    super::log_to_stderr("warn")?;
    match arguments.action {
        Action::Front { listen, cache, legacy_codes } => {
            background_runtime()?.block_on(front::serve(&client, listen, cache, legacy_codes))
        }
        Action::Trade(arguments) => {
            background_runtime()?.block_on(trade::run(&client, &arguments, connection.json))
        }
        Action::Request(request) => runtime()?.block_on(async {
            let result = perform(&client.exchange(), &request).await;
            let ended = finish(&connection, result, request.changes());
            super::client::close(&client).await;
            ended
        }),
    }
}

fn finish(
    connection: &Connection,
    result: Result<Printed, Trouble>,
    changes: bool,
) -> Result<Exit, CliError> {
    match result {
        Ok(printed) => {
            let shown = connection.output().reply(&printed);
            // Who sees an exit code of 1 may do it again.
            shown.map_err(|error| if changes { CliError::unseen(&error) } else { error.into() })?;
            Ok(Exit::Done)
        }
        Err(Trouble::Usage(error)) => Err(error),
        Err(Trouble::Error(error)) => {
            connection.output().refusal(&error)?;
            Err(error.into())
        }
    }
}

enum Trouble {
    Usage(CliError),
    Error(Error),
}

impl From<Error> for Trouble {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

impl Request {
    fn changes(&self) -> bool {
        matches!(self, Self::Order { .. } | Self::Add { .. } | Self::Reprice { .. } | Self::Load { .. })
    }
}

async fn perform(exchange: &Exchange, request: &Request) -> Result<Printed, Trouble> {
    match request {
        Request::Catalog => {
            let stocks = exchange.catalog().await?;
            Ok(Printed::new(stock_table(&stocks), json!({ "stocks": stocks }).to_string()))
        }
        Request::Lookup { stock } => {
            let stock = exchange.lookup(stock).await?;
            Ok(Printed::new(stock_table(std::slice::from_ref(&stock.row)), json!(stock).to_string()))
        }
        Request::Order { way, stock, quantity, account } => {
            let side = match way {
                Way::Buy => Side::Buy,
                Way::Sell => Side::Sell,
            };
            let account = account.as_deref().unwrap_or_default();
            let reply = exchange.order(side, stock, *quantity, account).await?;
            Ok(Printed::new(reply.order.number.to_string(), reply.body))
        }
        Request::Orders(wanted) => {
            let query = OrdersQuery {
                numbers: wanted.number.clone(),
                since: wanted.since,
                stock: wanted.stock.clone(),
                client: wanted.account.clone(),
                from_ms: wanted.from,
                until_ms: wanted.until,
                limit: Some(wanted.limit),
            };
            let page = exchange.orders(&query).await?;
            let note = page.next.map(|next| format!("there may be more: --since {next}"));
            Ok(Printed { note, ..Printed::new(order_table(&page.orders), page.body) })
        }
        Request::Add { stock, price, quantity } => {
            let new = NewStock { name: stock.clone(), price: *price, quantity: *quantity };
            let reply = exchange.add_stock(&new).await?;
            Ok(Printed::new(stock_table(std::slice::from_ref(&reply.row)), reply.body))
        }
        Request::Reprice { stock, price } => {
            let reply = exchange.reprice(stock, *price).await?;
            Ok(Printed::new(stock_table(std::slice::from_ref(&reply.row)), reply.body))
        }
        Request::Load { file } => {
            let stocks = read_stocks(file).map_err(Trouble::Usage)?;
            exchange.load(&stocks).await?;
            let text = format!("{} stocks", stocks.len());
            Ok(Printed::new(text, json!({ "stocks": stocks.len() }).to_string()))
        }
    }
}

fn read_stocks(file: &Path) -> Result<Vec<NewStock>, CliError> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Stocks {
        stocks: Vec<NewStock>,
    }
    let text = std::fs::read_to_string(file)
        .map_err(|error| CliError::usage(format!("cannot read {}: {error}", file.display())))?;
    let stocks: Stocks =
        toml::from_str(&text).map_err(|error| CliError::usage(format!("{}: {error}", file.display())))?;
    Ok(stocks.stocks)
}

fn stock_table(stocks: &[StockRow]) -> String {
    let mut table = status::table(&["stock", "price", "on offer", "volume"]);
    for stock in stocks {
        table.add_row([
            cell(&stock.name),
            cents::show(stock.price),
            stock.quantity.to_string(),
            stock.volume.to_string(),
        ]);
    }
    status::trimmed(&table)
}

fn order_table(orders: &[Order]) -> String {
    let mut table = status::table(&["number", "time", "account", "", "quantity", "stock", "price"]);
    for order in orders {
        table.add_row([
            order.number.to_string(),
            status::utc(order.time_ms),
            cell(&order.client),
            if order.side == Side::Buy { "buys" } else { "sells" }.to_owned(),
            order.quantity.to_string(),
            cell(&order.stock),
            cents::show(order.price),
        ]);
    }
    status::trimmed(&table)
}
