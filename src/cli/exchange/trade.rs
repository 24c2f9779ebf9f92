//! A client that trades at random and keeps its own log, which it compares with the cluster's at the end.

use std::time::Duration;

use clap::Args;
use hdrhistogram::Histogram;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::json;
use tokio::time::Instant;

use super::Caching;
use super::ledger::Ledger;
use crate::cli::output::{CliError, Exit, Output};
use crate::client::{CacheStats, Client, Error, Exchange, OrdersQuery};
use crate::services::exchange::{Order, Side};

/// Orders asked for at once at the end.
const PAGE: u32 = 1_000;
/// An order is for at most so many.
const MOST: u64 = 5;

#[derive(Debug, Args)]
pub(super) struct TradeArgs {
    /// For so long
    #[arg(long, value_name = "N", default_value_t = 30)]
    seconds: u64,
    /// How often a look-up is followed by an order
    #[arg(long, value_name = "0..1", default_value_t = 0.7, value_parser = probability)]
    probability: f64,
    /// Whether look-ups are answered from a cache
    #[arg(long, default_value = "on")]
    cache: Caching,
    /// On whose account [default: a name of its own]
    #[arg(long, value_name = "NAME")]
    account: Option<String>,
    /// Where the random numbers begin [default: at random]
    #[arg(long)]
    seed: Option<u64>,
    /// Print the last line alone
    #[arg(long)]
    quiet: bool,
}

fn probability(text: &str) -> Result<f64, String> {
    text.parse()
        .ok()
        .filter(|p| (0.0..=1.0).contains(p))
        .ok_or_else(|| format!("`{text}` is not from 0 to 1"))
}

/// What this client did, as far as it knows.
struct Trader {
    exchange: Exchange,
    account: String,
    random: StdRng,
    ledger: Ledger,
    refused: u64,
    failed: u64,
    lookups: Histogram<u64>,
    orders: Histogram<u64>,
}

pub(super) async fn run(client: &Client, arguments: &TradeArgs, json: bool) -> Result<Exit, CliError> {
    // From 1 us to 5 minutes, three digits.
    let histogram = || Histogram::new_with_bounds(1, 300_000_000, 3).map_err(CliError::failed);
    let seed = arguments.seed.unwrap_or_else(rand::random);
    let account =
        arguments.account.clone().unwrap_or_else(|| format!("trader-{:08x}", rand::random::<u32>()));
    let mut trader = Trader {
        exchange: arguments.cache.exchange(client),
        account,
        random: StdRng::seed_from_u64(seed),
        ledger: Ledger::default(),
        refused: 0,
        failed: 0,
        lookups: histogram()?,
        orders: histogram()?,
    };
    let stocks: Vec<String> = trader.exchange.catalog().await?.into_iter().map(|stock| stock.name).collect();
    if stocks.is_empty() {
        return Err(CliError::failed("the catalog is empty: there is nothing to trade"));
    }
    // What was on this account before is not this client's.
    let since = trader.newest().await?;
    let end = Instant::now() + Duration::from_secs(arguments.seconds);
    while Instant::now() < end {
        trader.turn(&stocks, arguments.probability).await;
    }
    let logged = match trader.logged(since).await {
        Ok(logged) => logged,
        Err(error) => {
            // What it did is worth telling all the same.
            Output::raw(format!("{}\n", trader.summary(None, json)).as_bytes())?;
            let text = format!("the orders were not compared with the cluster's log: {error}");
            return Err(CliError::new(Exit::Unknown, text));
        }
    };
    let verdicts = trader.ledger.compare(&logged);
    let _ = client.close().await;
    let wrong = verdicts.iter().filter(|verdict| verdict.wrong).count();
    if !arguments.quiet && !json {
        for verdict in &verdicts {
            Output::raw(format!("{}\n", verdict.text).as_bytes())?;
        }
    }
    Output::raw(format!("{}\n", trader.summary(Some(wrong), json)).as_bytes())?;
    if wrong > 0 {
        Output::note(&format!("{wrong} orders differ from the cluster's log (--seed {seed})"));
        return Ok(Exit::Failed);
    }
    Ok(Exit::Done)
}

impl Trader {
    /// The number that the next order on this account is at least.
    async fn newest(&self) -> Result<u64, Error> {
        let (mut since, mut last) = (0, 0);
        loop {
            let page = self.exchange.orders(&self.all(since)).await?;
            if let Some(order) = page.orders.last() {
                last = order.number + 1;
            }
            match page.next {
                Some(next) => since = next,
                None => return Ok(last),
            }
        }
    }

    fn all(&self, since: u64) -> OrdersQuery {
        OrdersQuery { since, client: Some(self.account.clone()), limit: Some(PAGE), ..OrdersQuery::default() }
    }

    /// One look-up, and maybe an order.
    async fn turn(&mut self, stocks: &[String], probability: f64) {
        let name = &stocks[self.random.random_range(0..stocks.len())];
        let begun = Instant::now();
        let looked = self.exchange.lookup(name).await;
        self.lookups.saturating_record(begun.elapsed().as_micros() as u64);
        let Ok(stock) = looked else {
            self.failed += 1;
            return;
        };
        if !self.random.random_bool(probability) {
            return;
        }
        let quantity = self.random.random_range(1..=MOST);
        // Nobody buys what is sold out.
        let side = match stock.row.quantity > 0 && self.random.random_bool(0.5) {
            true => Side::Buy,
            false => Side::Sell,
        };
        let begun = Instant::now();
        let result = self.exchange.order(side, name, quantity, &self.account).await;
        self.orders.saturating_record(begun.elapsed().as_micros() as u64);
        match result {
            Ok(reply) => self.ledger.carried_out(reply.data.order),
            Err(Error::Unknown(_)) => self.ledger.maybe_carried_out(side, name, quantity),
            Err(Error::Refused(refused)) if refused.is_by_service() => self.refused += 1,
            Err(_) => self.failed += 1,
        }
    }

    /// What the cluster's log says of this account, from `since` on.
    async fn logged(&self, since: u64) -> Result<Vec<Order>, Error> {
        let (mut orders, mut from) = (Vec::new(), Some(since));
        while let Some(since) = from {
            let page = self.exchange.orders(&self.all(since)).await?.data;
            orders.extend(page.orders);
            from = page.next;
        }
        Ok(orders)
    }

    fn summary(&self, wrong: Option<usize>, as_json: bool) -> String {
        let CacheStats { hits, misses, pushes } = self.exchange.cache_stats();
        let (lookups, orders) = (&self.lookups, &self.orders);
        let p = |of: &Histogram<u64>, percentile| of.value_at_percentile(percentile);
        if as_json {
            let value = json!({
                "account": self.account, "orders": self.ledger.orders(), "refused": self.refused, "failed": self.failed,
                "unknown": self.ledger.unknown(), "differences": wrong, "lookups": lookups.len(),
                "hits": hits, "misses": misses, "pushes": pushes,
                "lookup_p50_us": p(lookups, 50.0), "lookup_p99_us": p(lookups, 99.0),
                "order_p50_us": p(orders, 50.0), "order_p99_us": p(orders, 99.0),
            });
            return value.to_string();
        }
        let rate = match hits + misses {
            0 => "no cache".to_owned(),
            all => format!("{:.1} % from the cache", hits as f64 * 100.0 / all as f64),
        };
        let differences =
            wrong.map_or_else(|| "not compared".to_owned(), |wrong| format!("{wrong} differences"));
        format!(
            "{}: {} orders, {} refused, {} failed; {differences}\n\
             look-ups: {}, {rate}, p50 {} us, p99 {} us; orders: p50 {} us, p99 {} us",
            self.account,
            self.ledger.orders(),
            self.refused,
            self.failed,
            lookups.len(),
            p(lookups, 50.0),
            p(lookups, 99.0),
            p(orders, 50.0),
            p(orders, 99.0),
        )
    }
}
