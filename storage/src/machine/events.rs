//! Events as rows of a replicated, bounded table, so that any server can resume any watch.

use std::collections::VecDeque;
use std::ops::{Bound, ControlFlow};

use serde::{Deserialize, Serialize};

use crate::service::events::{BLOCK_BYTES, Block, Emitted, Extent};
use crate::service::{Event, MAX_EVENT_BYTES, Position};
use crate::tables::{Table, Tables, View};

/// The namespace of the events' tables. No service has this name (it is reserved).
pub(super) const NAMESPACE: &str = "event";

/// At most this many events are kept.
pub const MAX_EVENTS: usize = 16_384;
/// And at most this many bytes of them.
const MAX_BYTES: usize = 16 << 20;
/// When there are too many, the oldest go until this much room is free, so that the bookkeeping is rare.
const ROOM: (usize, usize) = (1_024, 1 << 20);

// What was emitted last is always kept: a block of events with topics of sane length never fills what is left.
const _: () = assert!(ROOM.0 < MAX_EVENTS && ROOM.1 + 2 * (BLOCK_BYTES + MAX_EVENT_BYTES) <= MAX_BYTES);

/// What a log entry emitted, under the first event's place; several rows if it is much.
const BLOCKS: Table<Position, Block> = Table::new("events");
const STATE: Table<(), Evicted> = Table::new("evicted");

/// Through where events have been evicted.
#[derive(Debug, Default, Clone, Copy, PartialEq, Serialize, Deserialize)]
struct Evicted {
    through: Position,
}

/// Where the kept blocks are, oldest first. Not rows: found when the tables are opened, so that an eviction asks the
/// tables nothing.
#[derive(Debug, Default, Clone)]
pub(super) struct Kept {
    blocks: VecDeque<Extent>,
    events: usize,
    bytes: usize,
}

impl Kept {
    pub(super) fn find(tables: &View<'_>) -> Self {
        let mut kept = Self::default();
        tables.range(&BLOCKS, (Bound::Unbounded, Bound::Unbounded), |_, block| {
            if let Some(extent) = block.extent() {
                kept.push(extent);
            }
            ControlFlow::Continue(())
        });
        kept
    }

    fn push(&mut self, extent: Extent) {
        self.blocks.push_back(extent);
        self.events += extent.events;
        self.bytes += extent.bytes;
    }

    /// Stores what was emitted, and evicts the oldest ones over the bounds.
    pub(super) fn store(&mut self, tables: &mut Tables<'_>, emitted: &mut Emitted) {
        emitted.finish(|extent, block| {
            self.push(extent);
            tables.put_new_as(&BLOCKS, &extent.first, &block);
        });
        if self.events > MAX_EVENTS || self.bytes > MAX_BYTES {
            self.evict(tables);
        }
    }

    fn evict(&mut self, tables: &mut Tables<'_>) {
        let mut through = None;
        while self.events > MAX_EVENTS - ROOM.0 || self.bytes > MAX_BYTES - ROOM.1 {
            let Some(Extent { first, last, events, bytes }) = self.blocks.pop_front() else { break };
            self.events -= events;
            self.bytes -= bytes;
            tables.remove(&BLOCKS, &first);
            through = Some(last);
        }
        if let Some(through) = through {
            tables.put(&STATE, &(), &Evicted { through });
        }
    }

    /// The events behind `after` that `wanted` accepts, at most `limit`; and the position to go on from.
    pub(super) fn read(
        &self,
        tables: &View<'_>,
        after: Position,
        limit: usize,
        wanted: impl Fn(&Event) -> bool,
    ) -> Result<(Vec<(Position, Event)>, Position), Compacted> {
        let evicted = tables.get(&STATE, &()).unwrap_or_default();
        if after < evicted.through {
            return Err(Compacted { oldest: evicted.through });
        }
        let (mut found, mut next) = (Vec::new(), after);
        let first = self.blocks.partition_point(|block| block.last <= after);
        let Some(first) = self.blocks.get(first).map(|block| block.first) else { return Ok((found, next)) };
        tables.range(&BLOCKS, (Bound::Included(&first), Bound::Unbounded), |_, block| {
            for (position, event) in block.events {
                if found.len() == limit {
                    return ControlFlow::Break(());
                }
                if position > after {
                    next = position;
                    found.extend(wanted(&event).then_some((position, event)));
                }
            }
            ControlFlow::Continue(())
        });
        Ok((found, next))
    }
}

/// A watch asks for events that are no longer kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Compacted {
    /// Resuming after this position works.
    pub oldest: Position,
}
