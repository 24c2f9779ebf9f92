//! The exchange: its catalog, orders, and a cache of the catalog.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{Background, Client, Position, ReadLevel, Reply, Result};
use crate::services::exchange::{NewStock, Order, Side, StockRow};

/// Entries in one cache. Beyond that, what is looked up is not kept.
const MAX_ENTRIES: usize = 10_000;
/// An entry is looked up anew after this time, should the watch be cut off and not know it yet.
const MAX_AGE: Duration = Duration::from_secs(5);
/// Before a watch is begun again.
const PAUSE: Duration = Duration::from_millis(200);

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

/// Stocks that were looked up, kept up to date by a watch.
#[derive(Debug)]
struct Cache {
    kept: Mutex<Kept>,
    hits: AtomicU64,
    misses: AtomicU64,
    pushes: AtomicU64,
    watching: Mutex<Option<Background>>,
}

#[derive(Debug, Default)]
struct Kept {
    /// The revision from which on the watch tells of changes; absent while there is none, and then nothing is kept.
    since: Option<u64>,
    entries: HashMap<String, Entry>,
}

#[derive(Debug)]
struct Entry {
    /// What is older than this is not filled in: a push has told of something newer.
    revision: u64,
    /// Absent while it is asked for.
    stock: Option<(StockRow, Instant)>,
}

impl Cache {
    fn start(client: Client) -> Arc<Self> {
        let cache = Arc::new(Self {
            kept: Mutex::default(),
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
            pushes: AtomicU64::new(0),
            watching: Mutex::new(None),
        });
        let watched = Arc::downgrade(&cache);
        let task = client.clone().in_background(async move {
            loop {
                // From a revision that is known before anything is filled in.
                let Ok(now) = client.applied_revision().await else {
                    tokio::time::sleep(PAUSE).await;
                    continue;
                };
                let mut watch = client.watch("exchange", &[], Some(Position::after(now.data)));
                match watched.upgrade() {
                    Some(cache) => cache.kept().since = Some(now.data),
                    None => return,
                }
                loop {
                    let event = watch.next().await;
                    let Some(cache) = watched.upgrade() else { return };
                    match event {
                        Ok(event) => cache.pushed(event.position.revision, event.data),
                        Err(_) => {
                            cache.stop();
                            drop(cache);
                            tokio::time::sleep(PAUSE).await;
                            break;
                        }
                    }
                }
            }
        });
        *cache.watching.lock().unwrap_or_else(PoisonError::into_inner) = Some(task);
        cache
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        // Nothing in here panics half-way, so a poisoned lock still guards good entries.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nothing is kept up to date any more.
    fn stop(&self) {
        *self.kept() = Kept::default();
    }

    fn get(&self, name: &str) -> Option<Stock> {
        let kept = self.kept();
        let entry = kept.entries.get(name);
        let found = entry.and_then(|entry| Some((entry.stock.as_ref()?, entry.revision)));
        let stock = found
            .filter(|((_, at), _)| at.elapsed() < MAX_AGE)
            .map(|((row, _), revision)| Stock { row: row.clone(), revision });
        let count = if stock.is_some() { &self.hits } else { &self.misses };
        count.fetch_add(1, Ordering::Relaxed);
        stock
    }

    /// Someone asks the cluster for it: from now on, what is pushed of it counts. Gives whether the answer may be filled in.
    fn ask(&self, name: &str) -> bool {
        let Kept { since, entries } = &mut *self.kept();
        let Some(since) = *since else { return false };
        if entries.len() >= MAX_ENTRIES && !entries.contains_key(name) {
            return false;
        }
        // An answer from before the watch may be out of date already.
        entries.entry(name.to_owned()).or_insert(Entry { revision: since, stock: None });
        true
    }

    /// It was so when it was asked for, at the latest.
    fn fill(&self, name: &str, stock: &Stock, asked: Instant) {
        let mut kept = self.kept();
        if let Some(entry) = kept.entries.get_mut(name).filter(|entry| entry.revision <= stock.revision) {
            *entry = Entry { revision: stock.revision, stock: Some((stock.row.clone(), asked)) };
        }
    }

    /// What was asked for could not be had. That something newer is known to be there is not forgotten.
    fn forget(&self, name: &str) {
        let Kept { since, entries } = &mut *self.kept();
        if entries.get(name).is_some_and(|entry| entry.stock.is_none() && Some(entry.revision) == *since) {
            entries.remove(name);
        }
    }

    /// A command of one's own has changed one, or any: what is older is not to be had any more.
    fn changed(&self, name: Option<&str>, revision: u64) {
        let mut kept = self.kept();
        let entries = kept.entries.iter_mut().filter(|(key, _)| name.is_none_or(|name| name == *key));
        for (_, entry) in entries.filter(|(_, entry)| entry.revision < revision) {
            *entry = Entry { revision, stock: None };
        }
    }

    fn stats(&self) -> CacheStats {
        let count = |count: &AtomicU64| count.load(Ordering::Relaxed);
        CacheStats { hits: count(&self.hits), misses: count(&self.misses), pushes: count(&self.pushes) }
    }

    /// A stock has changed: what is known of it is out of date, and the event says what it is now.
    fn pushed(&self, revision: u64, data: serde_json::Value) {
        let mut kept = self.kept();
        let name = data.get("name").and_then(serde_json::Value::as_str).unwrap_or_default();
        let newer = |entry: &&mut Entry| {
            entry.revision < revision || entry.revision == revision && entry.stock.is_none()
        };
        let Some(entry) = kept.entries.get_mut(name).filter(newer) else { return };
        self.pushes.fetch_add(1, Ordering::Relaxed);
        // One that is gone from the catalog has no price.
        let row = serde_json::from_value::<StockRow>(data).ok();
        *entry = Entry { revision, stock: row.map(|row| (row, Instant::now())) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache() -> Cache {
        Cache {
            kept: Mutex::new(Kept { since: Some(1), entries: HashMap::new() }),
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
            pushes: AtomicU64::new(0),
            watching: Mutex::new(None),
        }
    }

    fn fill(cache: &Cache, stock: &Stock) {
        cache.fill("A", stock, Instant::now());
    }

    fn stock(quantity: u64, revision: u64) -> Stock {
        Stock { row: StockRow { name: "A".to_owned(), price: 1, quantity, volume: 0 }, revision }
    }

    fn push(cache: &Cache, quantity: u64, revision: u64) {
        cache.pushed(revision, serde_json::to_value(stock(quantity, revision).row).unwrap());
    }

    #[test]
    fn a_late_answer_does_not_overwrite_what_was_pushed() {
        let cache = cache();
        push(&cache, 9, 4);
        assert_eq!(cache.get("A"), None, "nobody asked for it");
        assert!(cache.ask("A"));
        push(&cache, 7, 6);
        fill(&cache, &stock(8, 5));
        assert_eq!(cache.get("A"), Some(stock(7, 6)));
        push(&cache, 8, 5);
        assert_eq!(cache.get("A"), Some(stock(7, 6)), "what came before comes late");
        fill(&cache, &stock(6, 7));
        assert_eq!(cache.get("A"), Some(stock(6, 7)));
        assert_eq!(cache.stats(), CacheStats { hits: 3, misses: 1, pushes: 1 });
    }

    #[test]
    fn what_is_known_to_be_newer_is_not_forgotten() {
        let cache = cache();
        assert!(cache.ask("A"));
        fill(&cache, &stock(9, 2));
        // One's own order, at revision 12; a look-up after it fails.
        cache.changed(Some("A"), 12);
        assert_eq!(cache.get("A"), None);
        assert!(cache.ask("A"));
        cache.forget("A");
        assert!(cache.ask("A"));
        fill(&cache, &stock(9, 5));
        assert_eq!(cache.get("A"), None, "from before the order");
        fill(&cache, &stock(8, 12));
        assert_eq!(cache.get("A"), Some(stock(8, 12)));
        // All of them, by a new catalog.
        cache.changed(None, 13);
        assert_eq!(cache.get("A"), None);
        // An answer that was long under way is as old as its question.
        let Some(long_ago) = Instant::now().checked_sub(MAX_AGE) else { return };
        cache.fill("A", &stock(7, 14), long_ago);
        assert_eq!(cache.get("A"), None);
    }

    #[test]
    fn without_the_watch_nothing_is_kept() {
        let cache = cache();
        assert!(cache.ask("A"));
        fill(&cache, &stock(1, 1));
        cache.stop();
        assert_eq!(cache.get("A"), None);
        assert!(!cache.ask("A"));
        fill(&cache, &stock(1, 1));
        assert_eq!(cache.get("A"), None);
        // A new watch: what was asked for before it may be out of date.
        cache.kept().since = Some(5);
        assert!(cache.ask("A"));
        fill(&cache, &stock(1, 4));
        assert_eq!(cache.get("A"), None);
        fill(&cache, &stock(1, 5));
        assert_eq!(cache.get("A"), Some(stock(1, 5)));
    }
}
