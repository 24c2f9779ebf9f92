//! The exchange: its catalog, orders, and a cache of the catalog.

mod cache;

use std::sync::Arc;
use std::time::Instant;

use serde::{Deserialize, Serialize};
use serde_json::json;

use self::cache::Cache;
use super::{Client, ReadLevel, Reply, Result};
use crate::services::exchange::{NewStock, Order, Side, StockRow};

/// A stock, as of a revision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stock {
    /// The stock.
    #[serde(flatten)]
    pub row: StockRow,
    /// The revision at which it was so.
    pub revision: u64,
}

/// An order that was carried out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ordered {
    /// The order, as it stands in the log.
    #[serde(flatten)]
    pub order: Order,
    /// Its revision.
    pub revision: u64,
}

/// Which orders are wanted: those that meet all of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OrdersQuery {
    /// These numbers.
    pub numbers: Vec<u64>,
    /// From this number on.
    pub since: u64,
    /// Of this stock.
    pub stock: Option<String>,
    /// On this account.
    pub client: Option<String>,
    /// At this time or later, in milliseconds since 1970.
    pub from_ms: Option<u64>,
    /// Before this time.
    pub until_ms: Option<u64>,
    /// At most so many, up to 1,000.
    pub limit: Option<u32>,
}

/// A page of orders.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Orders {
    /// The orders, in the order of their numbers.
    pub orders: Vec<Order>,
    /// To be passed as [`OrdersQuery::since`] for the next page, when there may be one.
    pub next: Option<u64>,
    /// The revision at which they were read.
    pub revision: u64,
}

#[derive(Debug, Deserialize)]
struct Loaded {
    revision: u64,
}

#[derive(Debug, Deserialize)]
struct Catalog {
    stocks: Vec<StockRow>,
    next: Option<String>,
}

/// What a cache has been worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct CacheStats {
    /// So many look-ups it has answered,
    pub hits: u64,
    /// and so many it has not.
    pub misses: u64,
    /// So many of its entries were brought up to date by a push of the cluster.
    pub pushes: u64,
}

/// A handle on the exchange. Clones share the cache.
#[derive(Debug, Clone)]
pub struct Exchange {
    client: Client,
    cache: Option<Arc<Cache>>,
}

impl Client {
    /// The exchange, without a cache: each look-up asks the cluster.
    pub fn exchange(&self) -> Exchange {
        Exchange { client: self.clone(), cache: None }
    }

    /// The exchange, with a cache of the stocks that were looked up. The cluster pushes what changes, so that an entry is behind
    /// by the time that a push takes; and by 5 s while the client is cut off. It needs a Tokio runtime.
    pub fn cached_exchange(&self) -> Exchange {
        Exchange { client: self.clone(), cache: Some(Cache::start(self.clone())) }
    }
}

impl Exchange {
    /// A stock; from the cache if it is there.
    ///
    /// # Errors
    /// Refused with `unknown_stock`.
    pub async fn lookup(&self, name: &str) -> Result<Stock> {
        let Some(cache) = &self.cache else {
            return Ok(self.ask(name).await?.data);
        };
        if let Some(stock) = cache.get(name) {
            return Ok(stock);
        }
        let asked = cache.ask(name).then(Instant::now);
        let result = self.ask(name).await;
        match (&result, asked) {
            (Ok(stock), Some(asked)) => cache.fill(name, stock, asked),
            _ => cache.forget(name),
        }
        Ok(result?.data)
    }

    async fn ask(&self, name: &str) -> Result<Reply<Stock>> {
        self.client.query("exchange", "lookup", &[("name", name)], ReadLevel::Linearizable).await
    }

    /// What the cache was worth until now; nothing, without one.
    pub fn cache_stats(&self) -> CacheStats {
        self.cache.as_ref().map_or_else(CacheStats::default, |cache| cache.stats())
    }

    /// All stocks, in the order of their names.
    ///
    /// # Errors
    /// As any query.
    pub async fn catalog(&self) -> Result<Vec<StockRow>> {
        let (mut all, mut after) = (Vec::new(), None);
        loop {
            let mut params = vec![("limit", "1000")];
            params.extend(after.as_deref().map(|after| ("after", after)));
            let page: Reply<Catalog> =
                self.client.query("exchange", "catalog", &params, ReadLevel::Linearizable).await?;
            all.extend(page.data.stocks);
            match page.data.next {
                Some(next) => after = Some(next),
                None => return Ok(all),
            }
        }
    }

    /// Buys or sells, on an account (empty: the session's).
    ///
    /// # Errors
    /// Refused: `unknown_stock`, `not_enough`.
    pub async fn order(
        &self,
        side: Side,
        stock: &str,
        quantity: u64,
        client: &str,
    ) -> Result<Reply<Ordered>> {
        let body = json!({"stock": stock, "side": side, "quantity": quantity, "client": client});
        let reply: Reply<Ordered> = self.client.command("exchange", "order", &body).await?;
        self.changed(Some(stock), reply.revision);
        Ok(reply)
    }

    /// A stock, or any of them, was changed through this handle, which is not to show what was before.
    fn changed(&self, stock: Option<&str>, revision: u64) {
        if let Some(cache) = &self.cache {
            cache.changed(stock, revision);
        }
    }

    /// A page of orders.
    ///
    /// # Errors
    /// As any query.
    pub async fn orders(&self, query: &OrdersQuery) -> Result<Reply<Orders>> {
        let numbers: Vec<String> = query.numbers.iter().map(ToString::to_string).collect();
        let mut params = vec![("since", query.since.to_string())];
        if !numbers.is_empty() {
            params.push(("numbers", numbers.join(",")));
        }
        params.extend(query.stock.clone().map(|stock| ("stock", stock)));
        params.extend(query.client.clone().map(|client| ("client", client)));
        params.extend(query.from_ms.map(|from| ("from_ms", from.to_string())));
        params.extend(query.until_ms.map(|until| ("until_ms", until.to_string())));
        params.extend(query.limit.map(|limit| ("limit", limit.to_string())));
        let params: Vec<(&str, &str)> = params.iter().map(|(name, value)| (*name, value.as_str())).collect();
        self.client.query("exchange", "orders", &params, ReadLevel::Linearizable).await
    }

    /// Puts a new stock into the catalog.
    ///
    /// # Errors
    /// Refused with `stock_exists`.
    pub async fn add_stock(&self, stock: &NewStock) -> Result<Reply<Stock>> {
        let reply: Reply<Stock> = self.client.command("exchange", "add_stock", stock).await?;
        self.changed(Some(&stock.name), reply.revision);
        Ok(reply)
    }

    /// Gives a stock another price, in cents.
    ///
    /// # Errors
    /// Refused with `unknown_stock`.
    pub async fn reprice(&self, stock: &str, price: u64) -> Result<Reply<Stock>> {
        let body = json!({"stock": stock, "price": price});
        let reply: Reply<Stock> = self.client.command("exchange", "reprice", &body).await?;
        self.changed(Some(stock), reply.revision);
        Ok(reply)
    }

    /// Replaces the catalog, before the first order.
    ///
    /// # Errors
    /// Refused with `already_traded`.
    pub async fn load(&self, stocks: &[NewStock]) -> Result<()> {
        let body = json!({"stocks": stocks});
        let reply: Reply<Loaded> = self.client.command("exchange", "load", &body).await?;
        self.changed(None, reply.revision);
        Ok(())
    }
}
