//! What is stored of stocks and orders. By position: append fields only.

use std::ops::{Bound, ControlFlow};

use serde::{Deserialize, Serialize};

use super::super::blocks::Blocks;
use super::Side;
use crate::{Table, Tables, View};

pub(super) const STOCKS: Table<String, Stock> = Table::new("stocks");
pub(super) const ORDERS: Blocks<Entry> = Blocks::new("order_blocks");
pub(super) const BY_STOCK: Index =
    Index { tails: Table::new("stock_tails"), chunks: Table::new("stock_chunks") };
pub(super) const BY_CLIENT: Index =
    Index { tails: Table::new("client_tails"), chunks: Table::new("client_chunks") };
/// How many orders there are; absent while nothing was ever written.
pub(super) const COUNT: Table<(), u64> = Table::new("count");

/// So many numbers of orders make a chunk of an [`Index`].
pub(super) const CHUNK: usize = 32;

/// The numbers of a name's orders. The last ones are in its tail; full chunks, each under its last number. A row for each
/// order would be simpler, and so many rows that writing them costs more than all else that an order does.
pub(super) struct Index {
    pub(super) tails: Table<String, Vec<u64>>,
    pub(super) chunks: Table<(String, u64), Vec<u64>>,
}

impl Index {
    pub(super) fn note(&self, tables: &mut Tables<'_>, name: &String, number: u64) {
        let mut tail = tables.get(&self.tails, name).unwrap_or_default();
        tail.push(number);
        if tail.len() == CHUNK {
            tables.put_new(&self.chunks, &(name.clone(), number), &tail);
            tail.clear();
        }
        tables.put(&self.tails, name, &tail);
    }

    /// Calls `each` for the numbers from `since` on, until it breaks.
    pub(super) fn each(
        &self,
        view: &View<'_>,
        name: &String,
        since: u64,
        mut each: impl FnMut(u64) -> ControlFlow<()>,
    ) {
        let mut all =
            |numbers: Vec<u64>| numbers.into_iter().filter(|number| *number >= since).try_for_each(&mut each);
        let (from, to) = ((name.clone(), since), (name.clone(), u64::MAX));
        let mut flow = ControlFlow::Continue(());
        view.range(&self.chunks, (Bound::Included(&from), Bound::Included(&to)), |_, numbers| {
            flow = all(numbers);
            flow
        });
        if flow.is_continue() {
            // Nothing follows it.
            let _ = all(view.get(&self.tails, name).unwrap_or_default());
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Stock {
    pub(super) price: u64,
    pub(super) quantity: u64,
    pub(super) volume: u64,
}

/// An order as it is stored, under its number.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Entry {
    pub(super) stock: String,
    pub(super) side: Side,
    pub(super) quantity: u64,
    pub(super) price: u64,
    pub(super) client: String,
    pub(super) time_ms: u64,
}
