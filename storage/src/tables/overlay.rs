//! Rows in memory: found by hash, listed in order.
//!
//! Nearly all of apply's look-ups are for one key, mostly of a row that is here already; a tree alone costs three times
//! as much for these. The order is kept beside: it changes only when a row comes or goes.

use std::collections::{BTreeSet, HashMap};
use std::ops::RangeBounds;

use super::row_key::RowKey;

/// A dirty row.
#[derive(Debug, Clone)]
pub struct Dirty {
    /// The value, or `None` when the row was removed.
    pub value: Option<Box<[u8]>>,
    /// The row's share of the state hash; 0 when removed.
    pub(super) hash: u128,
    /// No row of this key lies below, so that removing it leaves nothing to flush.
    pub(super) fresh: bool,
}

/// Dirty rows by key. The hashes are seeded at random: clients choose keys.
#[derive(Default)]
pub struct Overlay {
    rows: HashMap<RowKey, Dirty, foldhash::quality::RandomState>,
    order: BTreeSet<RowKey>,
}

impl Overlay {
    pub(super) fn get(&self, key: &RowKey) -> Option<&Dirty> {
        self.rows.get(key)
    }

    pub(super) fn get_mut(&mut self, key: &RowKey) -> Option<&mut Dirty> {
        self.rows.get_mut(key)
    }

    pub(super) fn insert(&mut self, key: RowKey, dirty: Dirty) {
        if self.rows.insert(key.clone(), dirty).is_none() {
            self.order.insert(key);
        }
    }

    pub(super) fn remove(&mut self, key: &RowKey) {
        self.rows.remove(key);
        self.order.remove(key);
    }

    /// The rows within `bounds`, in the order of their keys.
    pub(super) fn range(&self, bounds: impl RangeBounds<RowKey>) -> impl Iterator<Item = (&RowKey, &Dirty)> {
        self.order.range(bounds).filter_map(|key| Some((key, self.rows.get(key)?)))
    }

    /// All rows, in the order of their keys.
    pub fn iter(&self) -> impl Iterator<Item = (&RowKey, &Dirty)> {
        self.range(..)
    }
}
