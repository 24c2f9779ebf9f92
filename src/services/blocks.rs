//! Values with numbers from 0 on, that are appended, and dropped from the front.
//!
//! Some share a row: a row for each would be simpler, and so many rows that writing them to disk costs more than all else that
//! a command does (measured with `bench --op say`: a fifth of the servers' time).

use std::ops::{Bound, ControlFlow};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{Readable, Table, Tables};

/// So many values share a row. Each append writes half of them again on the average.
const SIZE: u64 = 8;

pub(super) struct Blocks<V>(Table<u64, Vec<V>>);

impl<V: Serialize + DeserializeOwned> Blocks<V> {
    pub(super) const fn new(name: &'static str) -> Self {
        Self(Table::new(name))
    }

    /// Appends the value with the number `number`, which is one more than the last one's.
    pub(super) fn append(&self, tables: &mut Tables<'_>, number: u64, value: V) {
        let block = number / SIZE;
        if number.is_multiple_of(SIZE) {
            tables.put_new(&self.0, &block, &vec![value]);
        } else {
            let mut values = tables.get(&self.0, &block).unwrap_or_default();
            values.push(value);
            tables.put(&self.0, &block, &values);
        }
    }

    pub(super) fn get(&self, view: &impl Readable, number: u64) -> Option<V> {
        view.get(&self.0, &(number / SIZE))?.into_iter().nth((number % SIZE) as usize)
    }

    /// Calls `each` for those from `from` on, until it breaks.
    pub(super) fn each(
        &self,
        view: &impl Readable,
        from: u64,
        mut each: impl FnMut(u64, V) -> ControlFlow<()>,
    ) {
        view.range(&self.0, (Bound::Included(&(from / SIZE)), Bound::Unbounded), |block, values| {
            let numbered = (block * SIZE..).zip(values).filter(|(number, _)| *number >= from);
            for (number, value) in numbered {
                each(number, value)?;
            }
            ControlFlow::Continue(())
        });
    }

    /// The same for those before `end`, the last one first.
    pub(super) fn each_before(
        &self,
        view: &impl Readable,
        end: u64,
        mut each: impl FnMut(u64, V) -> ControlFlow<()>,
    ) {
        for block in (0..end.div_ceil(SIZE)).rev() {
            let Some(values) = view.get(&self.0, &block) else { return };
            let mut numbered: Vec<(u64, V)> =
                (block * SIZE..).zip(values).filter(|(number, _)| *number < end).collect();
            while let Some((number, value)) = numbered.pop() {
                if each(number, value).is_break() {
                    return;
                }
            }
        }
    }

    /// All below `number` are needed no more. To be called for one number after the other.
    pub(super) fn drop_below(&self, tables: &mut Tables<'_>, number: u64) {
        if number.is_multiple_of(SIZE) && number > 0 {
            tables.remove(&self.0, &(number / SIZE - 1));
        }
    }
}
