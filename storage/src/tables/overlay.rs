//! Rows in memory: found by hash, listed in order.
//!
//! Nearly all of apply's look-ups are for one key, mostly of a row that is here already; a tree alone costs three times
//! as much for these. The order is kept beside: it changes only when a row comes or goes.

use std::collections::BTreeSet;
use std::ops::RangeBounds;

use indexmap::IndexMap;
use smallvec::SmallVec;

use super::row_key::RowKey;

/// Bytes of a value. Numbers, and most of what is short, need no allocation.
pub(super) type Value = SmallVec<[u8; 24]>;

/// A dirty row.
#[derive(Debug, Clone)]
pub struct Dirty {
    /// `None` when the row was removed.
    pub(super) value: Option<Value>,
    /// The row's share of the state hash; 0 when removed.
    pub(super) hash: u128,
    /// No row of this key lies below, so that removing it leaves nothing to flush.
    pub(super) fresh: bool,
}

impl Dirty {
    /// The value, or `None` when the row was removed.
    pub fn value(&self) -> Option<&[u8]> {
        self.value.as_deref()
    }
}

/// Dirty rows by key. The hashes are seeded at random: clients choose keys.
#[derive(Default)]
pub struct Overlay {
    rows: IndexMap<RowKey, Dirty, foldhash::fast::RandomState>,
    order: BTreeSet<RowKey>,
}

impl Overlay {
    pub(super) fn get(&self, key: &RowKey) -> Option<&Dirty> {
        self.rows.get(key)
    }

    /// Where the row is; another removal may move it.
    pub(super) fn find(&self, key: &RowKey, guess: usize) -> Option<usize> {
        match self.rows.get_index(guess) {
            Some((there, _)) if there == key => Some(guess),
            _ => self.rows.get_index_of(key),
        }
    }

    pub(super) fn at(&self, place: usize) -> Option<&Dirty> {
        self.rows.get_index(place).map(|(_, dirty)| dirty)
    }

    pub(super) fn at_mut(&mut self, place: usize) -> Option<&mut Dirty> {
        self.rows.get_index_mut(place).map(|(_, dirty)| dirty)
    }

    pub(super) fn insert(&mut self, key: RowKey, dirty: Dirty) {
        if self.rows.insert(key.clone(), dirty).is_none() {
            self.order.insert(key);
        }
    }

    pub(super) fn remove(&mut self, key: &RowKey) {
        self.rows.swap_remove(key);
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
