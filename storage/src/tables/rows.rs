//! Rows in memory over rows on disk, and the hash over all of them.
//!
//! Invariants:
//! - `live` holds what changed since the last freeze, `frozen` what a flush is writing, `base` what
//!   the last flush wrote; a row's value is the first of the three that has it.
//! - `hash` is the wrapping sum of [`row_hash`] over all rows there are.
//! - A flush changes `base` only in rows that `frozen` holds, so a read never sees half a flush.

use std::cell::{Cell, RefCell};
use std::io;
use std::ops::{Bound, ControlFlow};
use std::sync::Arc;

use xxhash_rust::xxh3::{xxh3_64, xxh3_128_with_seed};

use super::base::Base;
use super::key::Key;
use super::overlay::{Dirty, Overlay, Value};
use super::prefix_into;
use super::row_key::RowKey;

/// What a dirty row costs besides its key and value, in bytes: twice the key, map slots and boxes, roughly.
const ROW_OVERHEAD: usize = 256;

/// The rows of one replica.
pub struct Rows {
    live: Overlay,
    live_bytes: usize,
    /// Where the last row was found: mostly, what was read is written next.
    last: Cell<usize>,
    frozen: Option<Arc<Overlay>>,
    frozen_bytes: usize,
    base: Base,
    hash: u128,
    pub(super) scratch: Scratch,
}

/// Buffers that are kept from one operation to the next, so that these allocate little.
#[derive(Default)]
pub(super) struct Scratch {
    /// A row's key. Readers use it too.
    pub(super) key: RefCell<KeyBuffer>,
    /// A row's value.
    pub(super) value: Vec<u8>,
}

/// A row's key under construction. Its prefix mostly stays.
#[derive(Default)]
pub(super) struct KeyBuffer {
    bytes: Vec<u8>,
    prefix: usize,
    /// The namespace and the table that the prefix is of.
    of: (&'static str, &'static str),
}

impl KeyBuffer {
    /// The key of the row that has `key` in the namespace's table.
    pub(super) fn row<K: Key>(&mut self, namespace: &'static str, table: &'static str, key: &K) -> &[u8] {
        // The same text at another address is written anew: that is rare.
        if std::ptr::eq(self.of.0, namespace) && std::ptr::eq(self.of.1, table) {
            self.bytes.truncate(self.prefix);
        } else {
            prefix_into(namespace, table, &mut self.bytes);
            self.prefix = self.bytes.len();
            self.of = (namespace, table);
        }
        key.encode_into(&mut self.bytes);
        &self.bytes
    }
}

impl Rows {
    /// The rows of `base`, whose hash is `hash`.
    pub fn new(base: Base, hash: u128) -> Self {
        Self {
            live: Overlay::default(),
            live_bytes: 0,
            last: Cell::new(0),
            frozen: None,
            frozen_bytes: 0,
            base,
            hash,
            scratch: Scratch::default(),
        }
    }

    /// The state hash.
    pub fn hash(&self) -> u128 {
        self.hash
    }

    /// The store below.
    pub fn base(&self) -> &Base {
        &self.base
    }

    /// How many bytes the dirty rows take, those being flushed included.
    pub fn dirty_bytes(&self) -> usize {
        self.live_bytes + self.frozen_bytes
    }

    /// Calls `f` with the value at `key`.
    ///
    /// # Errors
    /// When the store cannot read it.
    pub fn with<R>(&self, key: &[u8], f: impl FnOnce(Option<&[u8]>) -> R) -> io::Result<R> {
        let row = RowKey::from(key);
        let frozen = || self.frozen.as_ref().and_then(|frozen| frozen.get(&row));
        match self.find(&row).and_then(|place| self.live.at(place)).or_else(frozen) {
            Some(dirty) => Ok(f(dirty.value())),
            None => self.base.with(key, f),
        }
    }

    /// Where the row is in the live overlay.
    fn find(&self, row: &RowKey) -> Option<usize> {
        let found = self.live.find(row, self.last.get());
        if let Some(place) = found {
            self.last.set(place);
        }
        found
    }

    fn find_mut(&mut self, row: &RowKey) -> Option<&mut Dirty> {
        self.find(row).and_then(|place| self.live.at_mut(place))
    }

    /// Sets the value at `key`.
    ///
    /// # Errors
    /// When the row's earlier value cannot be read.
    pub fn put(&mut self, key: &[u8], value: &[u8]) -> io::Result<()> {
        let hash = row_hash(key, value);
        let row = RowKey::from(key);
        if let Some(dirty) = self.find_mut(&row) {
            let before = std::mem::replace(&mut dirty.hash, hash);
            let old = dirty.value.get_or_insert_default();
            let old_len = old.len();
            if old_len == value.len() {
                // Counters and sessions mostly keep their size.
                old.copy_from_slice(value);
            } else {
                *old = Value::from_slice(value);
            }
            self.hash = self.hash.wrapping_sub(before).wrapping_add(hash);
            self.live_bytes = self.live_bytes + value.len() - old_len;
            return Ok(());
        }
        let below = hash_below(self.frozen.as_deref(), &self.base, key, &row)?;
        self.insert(key.len(), row, value, hash, below);
        Ok(())
    }

    /// Sets the value at a key that never had a row, which the caller knows: so nothing is looked up. (Over a
    /// removed row that is not flushed yet, a later removal would bring the row below back.)
    pub fn put_new(&mut self, key: &[u8], value: &[u8]) {
        debug_assert!(matches!(self.with(key, |row| row.is_none()), Ok(true) | Err(_)), "the row exists");
        let hash = row_hash(key, value);
        self.insert(key.len(), RowKey::from(key), value, hash, None);
    }

    /// Inserts into the live overlay, where there is no such row; `below` is the hash of the one below.
    fn insert(&mut self, key_bytes: usize, key: RowKey, value: &[u8], hash: u128, below: Option<u128>) {
        self.hash = self.hash.wrapping_sub(below.unwrap_or(0)).wrapping_add(hash);
        self.live_bytes += key_bytes + value.len() + ROW_OVERHEAD;
        self.live.insert(key, Dirty { value: Some(Value::from_slice(value)), hash, fresh: below.is_none() });
    }

    /// Removes the row at `key`, if there is one.
    ///
    /// # Errors
    /// When the row's value cannot be read.
    pub fn remove(&mut self, key: &[u8]) -> io::Result<()> {
        let row = RowKey::from(key);
        let Some(dirty) = self.find_mut(&row) else {
            if let Some(below) = hash_below(self.frozen.as_deref(), &self.base, key, &row)? {
                self.hash = self.hash.wrapping_sub(below);
                self.live_bytes += key.len() + ROW_OVERHEAD;
                self.live.insert(row, Dirty { value: None, hash: 0, fresh: false });
            }
            return Ok(());
        };
        let (hash, value) = (std::mem::take(&mut dirty.hash), dirty.value.take());
        let fresh = dirty.fresh;
        self.hash = self.hash.wrapping_sub(hash);
        self.live_bytes -= value.map_or(0, |old| old.len());
        if fresh {
            self.live_bytes -= key.len() + ROW_OVERHEAD;
            self.live.remove(&row);
        }
        Ok(())
    }

    /// Calls `each` for the rows within the bounds, in key order, until it breaks.
    ///
    /// # Errors
    /// When the store cannot read a row.
    pub fn scan(
        &self,
        from: Bound<Vec<u8>>,
        to: Bound<Vec<u8>>,
        mut each: impl FnMut(&[u8], &[u8]) -> ControlFlow<()>,
    ) -> io::Result<()> {
        if empty_range(&from, &to) {
            return Ok(());
        }
        let bounds = (as_slice(&from), as_slice(&to));
        let rows = (bounds.0.map(RowKey::from), bounds.1.map(RowKey::from));
        let nothing = Overlay::default();
        let frozen = self.frozen.as_deref().unwrap_or(&nothing);
        let readable = |(key, dirty): (&RowKey, _)| (key.to_vec(), dirty);
        let mut live = self.live.range(rows.clone()).map(readable).peekable();
        let mut frozen = frozen.range(rows).map(readable).peekable();
        let mut base = self.base.range(bounds.0, bounds.1).peekable();
        loop {
            if let Some(Err(_)) = base.peek() {
                return base.next().map_or(Ok(()), |row| row.map(|_| ()));
            }
            let base_key = base.peek().and_then(|row| row.as_ref().ok()).map(|(key, _)| &key[..]);
            let keys =
                [live.peek().map(|(key, _)| &key[..]), frozen.peek().map(|(key, _)| &key[..]), base_key];
            let Some(key) = keys.iter().flatten().min().map(|key| key.to_vec()) else {
                return Ok(());
            };
            // Every layer that has the key moves on; the topmost one gives the value.
            let in_live = live.next_if(|(k, _)| *k == key);
            let in_frozen = frozen.next_if(|(k, _)| *k == key);
            let in_base = base.next_if(|row| matches!(row, Ok((k, _)) if k[..] == key[..]));
            let flow = match (in_live.or(in_frozen), in_base) {
                (Some((_, dirty)), _) => dirty.value().map(|value| each(&key, value)),
                (None, Some(Ok((_, value)))) => Some(each(&key, &value)),
                (None, _) => None,
            };
            if flow == Some(ControlFlow::Break(())) {
                return Ok(());
            }
        }
    }

    /// Whether a flush has begun and has not ended. One that failed never ends.
    pub fn is_frozen(&self) -> bool {
        self.frozen.is_some()
    }

    /// Freezes the dirty rows for a flush and starts a new overlay. One flush runs at a time.
    pub fn freeze(&mut self) -> Arc<Overlay> {
        assert!(self.frozen.is_none(), "a flush is already running");
        let frozen = Arc::new(std::mem::take(&mut self.live));
        self.frozen_bytes = std::mem::take(&mut self.live_bytes);
        self.frozen = Some(Arc::clone(&frozen));
        frozen
    }

    /// The frozen rows are in the store now.
    pub fn thawed(&mut self) {
        assert!(self.frozen.is_some(), "no flush is running");
        self.frozen = None;
        self.frozen_bytes = 0;
    }
}

/// The hash of the row below the live overlay, or `None` if there is no such row.
fn hash_below(frozen: Option<&Overlay>, base: &Base, key: &[u8], row: &RowKey) -> io::Result<Option<u128>> {
    if let Some(dirty) = frozen.and_then(|frozen| frozen.get(row)) {
        return Ok(dirty.value.is_some().then_some(dirty.hash));
    }
    base.with(key, |value| value.map(|value| row_hash(key, value)))
}

/// One row's share of the state hash (XXH3, 128 bits): against accidents, not against an adversary.
pub fn row_hash(key: &[u8], value: &[u8]) -> u128 {
    xxh3_128_with_seed(value, xxh3_64(key))
}

fn as_slice(bound: &Bound<Vec<u8>>) -> Bound<&[u8]> {
    match bound {
        Bound::Included(key) => Bound::Included(key),
        Bound::Excluded(key) => Bound::Excluded(key),
        Bound::Unbounded => Bound::Unbounded,
    }
}

/// `BTreeMap::range` panics on bounds that are the wrong way round.
fn empty_range(from: &Bound<Vec<u8>>, to: &Bound<Vec<u8>>) -> bool {
    match (from, to) {
        (Bound::Unbounded, _) | (_, Bound::Unbounded) => false,
        (Bound::Included(a), Bound::Included(b)) => a > b,
        (Bound::Included(a) | Bound::Excluded(a), Bound::Included(b) | Bound::Excluded(b)) => a >= b,
    }
}
