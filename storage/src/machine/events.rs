//! Events as rows of a replicated, bounded table, so that any server can resume any watch.

use std::collections::VecDeque;
use std::ops::{Bound, ControlFlow};

use serde::{Deserialize, Serialize};

use crate::service::{Event, MAX_EVENT_BYTES};
use crate::tables::{Table, Tables, View};

/// The namespace of the events' tables. No service has this name (it is reserved).
pub(super) const NAMESPACE: &str = "event";

/// At most this many events are kept.
pub const MAX_EVENTS: usize = 16_384;
/// And at most this many bytes of them.
const MAX_BYTES: u64 = 16 << 20;
/// When there are too many, the oldest go until this much room is free, so that the bookkeeping is rare.
const ROOM: (usize, u64) = (1_024, 1 << 20);

// What was emitted last is always kept: an event with a topic of sane length never fills what is left.
const _: () = assert!(ROOM.0 < MAX_EVENTS && ROOM.1 + 2 * MAX_EVENT_BYTES as u64 <= MAX_BYTES);

const EVENTS: Table<Position, Event> = Table::new("events");
const STATE: Table<(), Evicted> = Table::new("evicted");

/// An event's place: the delta's revision, and its number within the delta, from 0.
pub type Position = (u64, u32);

/// Through where events have been evicted.
#[derive(Debug, Default, Clone, Copy, PartialEq, Serialize, Deserialize)]
struct Evicted {
    through: Position,
}

/// Where the kept events are, oldest first, and how large. Not rows: found when the tables are opened,
/// so that an eviction asks the tables nothing.
#[derive(Debug, Default, Clone)]
pub(super) struct Kept {
    events: VecDeque<(Position, u64)>,
    bytes: u64,
}

impl Kept {
    pub(super) fn find(tables: &View<'_>) -> Self {
        let mut kept = Self::default();
        tables.range(&EVENTS, (Bound::Unbounded, Bound::Unbounded), |position, event| {
            kept.push(position, size(&event));
            ControlFlow::Continue(())
        });
        kept
    }

    fn push(&mut self, position: Position, size: u64) {
        self.events.push_back((position, size));
        self.bytes += size;
    }

    /// Stores what `service` emitted, at positions from `first` on, and evicts the oldest events over the
    /// bounds. Returns the next number within the revision.
    pub(super) fn store(
        &mut self,
        tables: &mut Tables<'_>,
        service: &str,
        first: Position,
        events: Vec<Event>,
    ) -> u32 {
        let (revision, mut number) = first;
        for mut event in events {
            event.service.push_str(service);
            self.push((revision, number), size(&event));
            tables.put_new(&EVENTS, &(revision, number), &event);
            number += 1;
        }
        if self.events.len() > MAX_EVENTS || self.bytes > MAX_BYTES {
            self.evict(tables);
        }
        number
    }

    fn evict(&mut self, tables: &mut Tables<'_>) {
        let mut through = None;
        while self.events.len() > MAX_EVENTS - ROOM.0 || self.bytes > MAX_BYTES - ROOM.1 {
            let Some((position, size)) = self.events.pop_front() else { break };
            self.bytes -= size;
            tables.remove(&EVENTS, &position);
            through = Some(position);
        }
        if let Some(through) = through {
            tables.put(&STATE, &(), &Evicted { through });
        }
    }
}

fn size(event: &Event) -> u64 {
    (event.service.len() + event.topic.len() + event.data.len() + 48) as u64
}

/// A watch asks for events that are no longer kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Compacted {
    /// Resuming after this position works.
    pub oldest: Position,
}

/// The events behind `after` that `wanted` accepts, at most `limit`; and the position to go on from.
pub(super) fn read(
    tables: &View<'_>,
    after: Position,
    limit: usize,
    wanted: impl Fn(&Event) -> bool,
) -> Result<(Vec<(Position, Event)>, Position), Compacted> {
    let evicted = tables.get(&STATE, &()).unwrap_or_default();
    if after < evicted.through {
        return Err(Compacted { oldest: evicted.through });
    }
    let mut found = Vec::new();
    let mut next = after;
    tables.range(&EVENTS, (Bound::Excluded(&after), Bound::Unbounded), |position, event| {
        next = position;
        if wanted(&event) {
            found.push((position, event));
        }
        if found.len() < limit { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    });
    Ok((found, next))
}
