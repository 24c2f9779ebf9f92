//! Stocks that were looked up, kept up to date by a watch.
//!
//! Each entry has a revision, and nothing older is filled in: a look-up that takes long cannot overwrite what was pushed meanwhile.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::{CacheStats, Stock};
use crate::client::{Background, Client, Position};
use crate::services::exchange::StockRow;

/// Entries in one cache. Beyond that, what is looked up is not kept.
const MAX_ENTRIES: usize = 10_000;
/// An entry is looked up anew after this time, should the watch be cut off and not know it yet.
const MAX_AGE: Duration = Duration::from_secs(5);
/// Before a watch is begun again.
const PAUSE: Duration = Duration::from_millis(200);

#[derive(Debug)]
pub(super) struct Cache {
    kept: Mutex<Kept>,
    hits: AtomicU64,
    misses: AtomicU64,
    pushes: AtomicU64,
    watching: Mutex<Option<Background>>,
}

#[derive(Debug, Default)]
struct Kept {
    /// What is older than this may be out of date: the revision from which on the watch tells of changes, or of the last change that is
    /// known. Absent while there is no watch, and then nothing is kept.
    since: Option<u64>,
    entries: HashMap<String, Entry>,
}

impl Kept {
    fn has_changed(&mut self, revision: u64) {
        self.since = self.since.map(|since| since.max(revision));
    }
}

#[derive(Debug)]
struct Entry {
    /// What is older than this is not filled in: a push has told of something newer.
    revision: u64,
    /// Absent while it is asked for.
    stock: Option<(StockRow, Instant)>,
}

impl Cache {
    pub(super) fn start(client: Client) -> Arc<Self> {
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

    pub(super) fn get(&self, name: &str) -> Option<Stock> {
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
    pub(super) fn ask(&self, name: &str) -> bool {
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
    pub(super) fn fill(&self, name: &str, stock: &Stock, asked: Instant) {
        let mut kept = self.kept();
        if let Some(entry) = kept.entries.get_mut(name).filter(|entry| entry.revision <= stock.revision) {
            *entry = Entry { revision: stock.revision, stock: Some((stock.row.clone(), asked)) };
        }
    }

    /// What was asked for could not be had. That something newer is known to be there is in `since`.
    pub(super) fn forget(&self, name: &str) {
        let mut kept = self.kept();
        if kept.entries.get(name).is_some_and(|entry| entry.stock.is_none()) {
            kept.entries.remove(name);
        }
    }

    /// A command of one's own has changed one, or any: what is older is not to be had any more.
    pub(super) fn changed(&self, name: Option<&str>, revision: u64) {
        let mut kept = self.kept();
        kept.has_changed(revision);
        let entries = kept.entries.iter_mut().filter(|(key, _)| name.is_none_or(|name| name == *key));
        for (_, entry) in entries.filter(|(_, entry)| entry.revision < revision) {
            *entry = Entry { revision, stock: None };
        }
    }

    pub(super) fn stats(&self) -> CacheStats {
        let count = |count: &AtomicU64| count.load(Ordering::Relaxed);
        CacheStats { hits: count(&self.hits), misses: count(&self.misses), pushes: count(&self.pushes) }
    }

    /// A stock has changed: what is known of it is out of date, and the event says what it is now.
    fn pushed(&self, revision: u64, data: serde_json::Value) {
        let mut kept = self.kept();
        kept.has_changed(revision);
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
