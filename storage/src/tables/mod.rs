//! Typed, ordered tables over rows of bytes.
//!
//! A service sees its own namespace only: a row's key is `service 0x00 table 0x00 key`. What lies
//! below is [`rows::Rows`]: an overlay of dirty rows over one sled tree.
//!
//! Reads do not return storage errors. A row that cannot be read is *damage*: it is noted, the read
//! answers as if the row were absent, and the caller that started the apply or the query looks at
//! [`Damage`] before it believes any result. So services stay free of storage errors, and a damaged
//! replica still never acknowledges anything.

pub mod base;
mod journal;
pub mod key;
pub mod overlay;
mod row_key;
pub mod rows;

#[cfg(test)]
mod model_test;

use std::cell::RefCell;
use std::io;
use std::marker::PhantomData;
use std::ops::{Bound, ControlFlow};

use serde::Serialize;
use serde::de::DeserializeOwned;

pub use key::Key;
pub use row_key::RowKey;
use rows::Rows;

use crate::codec;
use crate::delta::EncodedReply;

/// The name and types of one table: `const COUNTERS: Table<String, i64> = Table::new("counters")`.
#[derive(Debug)]
pub struct Table<K, V> {
    name: &'static str,
    types: PhantomData<fn() -> (K, V)>,
}

impl<K, V> Table<K, V> {
    /// A table called `name`, unique within its service. The name must not contain a zero byte.
    pub const fn new(name: &'static str) -> Self {
        Self { name, types: PhantomData }
    }
}

/// A row that could not be read: which one, and why. The node must stop.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("row {row} cannot be read: {cause}")]
pub struct Damage {
    /// The row's key, readable.
    pub row: String,
    /// What the store or the codec said.
    pub cause: String,
}

/// A read-only view of one service's tables at one revision.
pub struct View<'a> {
    rows: &'a Rows,
    scope: Scope,
}

/// One service's tables, for `apply` and `tick`.
pub struct Tables<'a> {
    rows: &'a mut Rows,
    scope: Scope,
}

/// The namespace, and the damage met so far.
struct Scope {
    namespace: &'static str,
    damage: RefCell<Option<Damage>>,
}

impl Scope {
    fn new(namespace: &'static str) -> Self {
        Self { namespace, damage: RefCell::new(None) }
    }

    fn note(&self, row: &[u8], cause: impl ToString) {
        let damage = Damage { row: row.escape_ascii().to_string(), cause: cause.to_string() };
        self.damage.borrow_mut().get_or_insert(damage);
    }

    fn get<K: Key, V: DeserializeOwned>(&self, rows: &Rows, table: &Table<K, V>, key: &K) -> Option<V> {
        let mut buffer = rows.scratch.key.borrow_mut();
        let row = buffer.row(self.namespace, table.name, key);
        let cause = match rows.with(row, |value| value.map(codec::decode::<V>).transpose()) {
            Ok(Ok(value)) => return value,
            Ok(Err(e)) => e.to_string(),
            Err(e) => e.to_string(),
        };
        self.note(row, cause);
        None
    }

    fn range<K: Key, V: DeserializeOwned>(
        &self,
        rows: &Rows,
        table: &Table<K, V>,
        bounds: (Bound<&K>, Bound<&K>),
        mut each: impl FnMut(K, V) -> ControlFlow<()>,
    ) {
        let mut prefix = Vec::with_capacity(32);
        prefix_into(self.namespace, table.name, &mut prefix);
        let row = |key: &K| {
            let mut row = prefix.clone();
            key.encode_into(&mut row);
            row
        };
        let from = match bounds.0 {
            Bound::Included(key) => Bound::Included(row(key)),
            Bound::Excluded(key) => Bound::Excluded(row(key)),
            Bound::Unbounded => Bound::Included(prefix.clone()),
        };
        let to = match bounds.1 {
            Bound::Included(key) => Bound::Included(row(key)),
            Bound::Excluded(key) => Bound::Excluded(row(key)),
            Bound::Unbounded => Bound::Excluded(end_of(&prefix)),
        };
        let scanned = rows.scan(from, to, |row, value| {
            let key = K::decode(&row[prefix.len()..]);
            match (key, codec::decode::<V>(value)) {
                (Some(key), Ok(value)) => each(key, value),
                (None, _) => {
                    self.note(row, "its key does not decode");
                    ControlFlow::Break(())
                }
                (_, Err(e)) => {
                    self.note(row, e);
                    ControlFlow::Break(())
                }
            }
        });
        if let Err(e) = scanned {
            self.note(&prefix, e);
        }
    }
}

impl<'a> View<'a> {
    /// A view of `namespace` over `rows`.
    pub fn new(rows: &'a Rows, namespace: &'static str) -> Self {
        Self { rows, scope: Scope::new(namespace) }
    }

    /// The value at `key`, or `None`.
    pub fn get<K: Key, V: DeserializeOwned>(&self, table: &Table<K, V>, key: &K) -> Option<V> {
        self.scope.get(self.rows, table, key)
    }

    /// Calls `each` for the rows within `bounds`, in key order, until it breaks.
    pub fn range<K: Key, V: DeserializeOwned>(
        &self,
        table: &Table<K, V>,
        bounds: (Bound<&K>, Bound<&K>),
        each: impl FnMut(K, V) -> ControlFlow<()>,
    ) {
        self.scope.range(self.rows, table, bounds, each);
    }

    /// The damage that a read met, if any: then nothing that was read counts.
    pub fn damage(self) -> Option<Damage> {
        self.scope.damage.into_inner()
    }
}

impl<'a> Tables<'a> {
    /// The tables of `namespace` over `rows`.
    pub fn new(rows: &'a mut Rows, namespace: &'static str) -> Self {
        Self { rows, scope: Scope::new(namespace) }
    }

    /// The value at `key`, or `None`.
    pub fn get<K: Key, V: DeserializeOwned>(&self, table: &Table<K, V>, key: &K) -> Option<V> {
        self.scope.get(self.rows, table, key)
    }

    /// Calls `each` for the rows within `bounds`, in key order, until it breaks.
    pub fn range<K: Key, V: DeserializeOwned>(
        &self,
        table: &Table<K, V>,
        bounds: (Bound<&K>, Bound<&K>),
        each: impl FnMut(K, V) -> ControlFlow<()>,
    ) {
        self.scope.range(self.rows, table, bounds, each);
    }

    /// Sets the value at `key`.
    pub fn put<K: Key, V: Serialize>(&mut self, table: &Table<K, V>, key: &K, value: &V) {
        self.write(table, key, |rows, row| with_encoded(rows, value, |rows, value| rows.put(row, value)));
    }

    /// Sets the value at a key that never had a row: quicker, as nothing is looked up. Only for who knows that, by a number in the
    /// key that is given once, say; over a row that is or was there it would spoil the state hash, and a debug build panics.
    pub fn put_new<K: Key, V: Serialize>(&mut self, table: &Table<K, V>, key: &K, value: &V) {
        self.put_new_as(table, key, value);
    }

    /// The same with anything that has the encoding of `V`.
    pub(crate) fn put_new_as<K: Key, V>(&mut self, table: &Table<K, V>, key: &K, value: &impl Serialize) {
        self.write(table, key, |rows, row| {
            with_encoded(rows, value, |rows, value| rows.put_new(row, value));
            Ok(())
        });
    }

    /// Removes the row at `key`, if there is one.
    pub fn remove<K: Key, V>(&mut self, table: &Table<K, V>, key: &K) {
        self.write(table, key, |rows, row| rows.remove(row));
    }

    fn write<K: Key, V>(
        &mut self,
        table: &Table<K, V>,
        key: &K,
        f: impl FnOnce(&mut Rows, &[u8]) -> io::Result<()>,
    ) {
        let mut buffer = self.rows.scratch.key.take();
        let row = buffer.row(self.scope.namespace, table.name, key);
        if let Err(e) = f(self.rows, row) {
            self.scope.note(row, e);
        }
        self.rows.scratch.key.replace(buffer);
    }

    /// `value` encoded, by way of the buffer for rows' values.
    pub(crate) fn encoded(&mut self, value: &impl Serialize) -> EncodedReply {
        with_encoded(self.rows, value, |_, value| EncodedReply::from(value))
    }

    /// The damage that a read or write met, if any: then the node must stop.
    pub fn damage(self) -> Option<Damage> {
        self.scope.damage.into_inner()
    }
}

/// What can be read: for functions of a service that both its `apply` and its `query` call.
pub trait Readable {
    /// The value at `key`, or `None`.
    fn get<K: Key, V: DeserializeOwned>(&self, table: &Table<K, V>, key: &K) -> Option<V>;

    /// Calls `each` for the rows within `bounds`, in key order, until it breaks.
    fn range<K: Key, V: DeserializeOwned>(
        &self,
        table: &Table<K, V>,
        bounds: (Bound<&K>, Bound<&K>),
        each: impl FnMut(K, V) -> ControlFlow<()>,
    );
}

macro_rules! readable {
    ($($what:ty),*) => {$(
        impl Readable for $what {
            fn get<K: Key, V: DeserializeOwned>(&self, table: &Table<K, V>, key: &K) -> Option<V> {
                self.get(table, key)
            }

            fn range<K: Key, V: DeserializeOwned>(
                &self,
                table: &Table<K, V>,
                bounds: (Bound<&K>, Bound<&K>),
                each: impl FnMut(K, V) -> ControlFlow<()>,
            ) {
                self.range(table, bounds, each);
            }
        }
    )*};
}

readable!(View<'_>, Tables<'_>);

/// Encodes `value` in the buffer for rows' values.
fn with_encoded<R>(rows: &mut Rows, value: &impl Serialize, f: impl FnOnce(&mut Rows, &[u8]) -> R) -> R {
    let mut buffer = std::mem::take(&mut rows.scratch.value);
    buffer.clear();
    codec::encode_into(value, &mut buffer);
    let result = f(rows, &buffer);
    rows.scratch.value = buffer;
    result
}

fn prefix_into(namespace: &str, table: &str, out: &mut Vec<u8>) {
    out.clear();
    out.extend_from_slice(namespace.as_bytes());
    out.push(0);
    out.extend_from_slice(table.as_bytes());
    out.push(0);
}

/// The first key after all that start with `prefix`. A prefix ends in the separator 0x00, never 0xff.
fn end_of(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    end
}
