//! Where jobs are found by their state: tables that have a row for each job that is in it.

use std::ops::{Bound, ControlFlow};

use super::desk::{Desk, JOBS, PAYLOADS, RESULTS};
use super::ring::{Slots, slot_of};
use super::stored::{Front, Job, LEVELS};
use super::{KEPT, MAX_PRIORITY, SLOTS, State};
use crate::{Key, Readable, Table};

/// Dead letters, of a queue.
pub(super) const DEAD: Table<(String, u64), ()> = Table::new("dead");
/// When, and which job.
pub(super) const DELAYED: Table<(u64, u64), ()> = Table::new("delayed");
/// Ready jobs without a key: queue, level, job.
const READY: Table<(String, (u64, u64)), ()> = Table::new("ready");
/// Queue, level, slot, job.
type Keyed = (String, (u64, (u64, u64)));
/// Ready jobs with a key.
const KEYED: Table<Keyed, ()> = Table::new("keyed");
/// The slots of a queue and level that have a row in [`KEYED`].
const LEVEL_SLOTS: Table<(String, u64), Slots> = Table::new("level_slots");
/// Of a queue and key: the jobs behind the first one.
pub(super) const LINES: Table<(String, (String, u64)), ()> = Table::new("lines");
/// Jobs that are done or cancelled, by their place.
const ENDED: Table<(String, u64), u64> = Table::new("ended");
/// Jobs that are dropped with each one that ends: more than one, as one that was taken back leaves its place empty.
pub(super) const DROPS: u64 = 2;

impl Desk<'_, '_, '_> {
    /// Where it is found while it is in its state.
    pub(super) fn place(&mut self, id: u64, job: &mut Job) {
        let queue = self.name.clone();
        match (job.state, &job.key) {
            (State::Waiting, Some(key)) => {
                self.tables.put(&LINES, &(queue, (key.clone(), id)), &());
                self.change_line(key, |line| line.behind.add(id));
            }
            (State::Delayed, _) => self.tables.put(&DELAYED, &(job.due_ms, id), &()),
            (State::Ready, None) => {
                self.tables.put(&READY, &(queue, (level(job), id)), &());
                self.plain(level(job)).add(id);
            }
            (State::Ready, Some(key)) => {
                let (level, slot) = (level(job), slot_of(key));
                self.tables.put(&KEYED, &(queue.clone(), (level, (u64::from(slot), id))), &());
                let mut slots = self.level_slots(level);
                if !slots.has(slot) {
                    slots.add(slot);
                    self.tables.put(&LEVEL_SLOTS, &(queue, level), &slots);
                    self.queue.levels |= 1 << level;
                }
            }
            (State::Done | State::Cancelled, _) => {
                job.place = self.queue.ended;
                self.queue.ended += 1;
                self.queue.kept += 1;
                self.tables.put(&ENDED, &(queue, job.place), &id);
                self.drop_old();
            }
            (State::Dead, _) => self.tables.put(&DEAD, &(queue, id), &()),
            // Its member has it; and who waits has a key.
            (State::Running | State::Waiting, _) => {}
        }
    }

    pub(super) fn unplace(&mut self, id: u64, job: &Job) {
        let queue = self.name.clone();
        match (job.state, &job.key) {
            (State::Waiting, Some(key)) => {
                self.tables.remove(&LINES, &(queue, (key.clone(), id)));
                self.change_line(key, |line| line.behind.remove(id));
            }
            (State::Delayed, _) => self.tables.remove(&DELAYED, &(job.due_ms, id)),
            (State::Ready, None) => {
                self.tables.remove(&READY, &(queue, (level(job), id)));
                self.plain(level(job)).remove(id);
            }
            (State::Ready, Some(key)) => {
                let (level, slot) = (level(job), slot_of(key));
                self.tables.remove(&KEYED, &(queue.clone(), (level, (u64::from(slot), id))));
                if self.keyed(level, slot).is_none() {
                    let mut slots = self.level_slots(level);
                    slots.remove(slot);
                    if slots.is_empty() {
                        self.tables.remove(&LEVEL_SLOTS, &(queue, level));
                        self.queue.levels &= !(1 << level);
                    } else {
                        self.tables.put(&LEVEL_SLOTS, &(queue, level), &slots);
                    }
                }
            }
            (State::Done | State::Cancelled, _) => {
                self.tables.remove(&ENDED, &(queue, job.place));
                self.queue.kept = self.queue.kept.saturating_sub(1);
            }
            (State::Dead, _) => self.tables.remove(&DEAD, &(queue, id)),
            (State::Running | State::Waiting, _) => {}
        }
    }

    fn level_slots(&self, level: u64) -> Slots {
        self.tables.get(&LEVEL_SLOTS, &(self.name.clone(), level)).unwrap_or_default()
    }

    /// The first ready job of a slot.
    fn keyed(&self, level: u64, slot: u32) -> Option<u64> {
        let bound = |id| (self.name.clone(), (level, (u64::from(slot), id)));
        first(self.tables, &KEYED, (&bound(0), &bound(u64::MAX))).map(|(_, (_, (_, id)))| id)
    }

    fn plain(&mut self, level: u64) -> &mut Front {
        // A level is a priority counted from the other end.
        &mut self.queue.plain[level as usize % LEVELS]
    }

    /// The first ready job of a level without a key.
    fn first_plain(&mut self, level: u64) -> Option<u64> {
        let Front { count: 1.., first: from } = *self.plain(level) else { return None };
        let bound = |id| (self.name.clone(), (level, id));
        let (_, (_, id)) = first(self.tables, &READY, (&bound(from), &bound(u64::MAX)))?;
        self.plain(level).first = id;
        Some(id)
    }

    /// The job that whoever owns `slots` is to have: of the highest priority, with or without a key; then the oldest one.
    /// Slots are looked at from `cursor` on, and where to go on the next time is returned.
    pub(super) fn pick(&mut self, slots: &Slots, cursor: u32) -> Option<(u64, u32)> {
        (0..=u64::from(MAX_PRIORITY)).find_map(|level| {
            let keyed = if self.queue.levels & (1 << level) == 0 {
                None
            } else {
                let slot = self.level_slots(level).and(slots).first_from(cursor);
                slot.and_then(|slot| Some((self.keyed(level, slot)?, (slot + 1) % SLOTS)))
            };
            let plain = self.first_plain(level).map(|id| (id, cursor));
            // The numbers are different.
            plain.into_iter().chain(keyed).min()
        })
    }

    fn drop_old(&mut self) {
        for _ in 0..DROPS {
            if self.queue.kept > KEPT {
                self.drop_place();
            }
        }
    }

    /// Forgets what stands in the oldest place, if something does; gives how many bytes its texts had.
    pub(super) fn drop_place(&mut self) -> usize {
        let place = (self.name.clone(), self.queue.dropped);
        self.queue.dropped += 1;
        let Some(id) = self.tables.get(&ENDED, &place) else { return 0 };
        let texts = [&PAYLOADS, &RESULTS].map(|table| {
            let bytes = self.tables.get(table, &id).map_or(0, |text| text.len());
            self.tables.remove(table, &id);
            bytes
        });
        self.tables.remove(&ENDED, &place);
        self.tables.remove(&JOBS, &id);
        self.queue.kept = self.queue.kept.saturating_sub(1);
        texts.iter().sum()
    }
}

/// The highest priority is the first level.
fn level(job: &Job) -> u64 {
    u64::from(MAX_PRIORITY - job.priority)
}

/// The first key from one to another, both included.
pub(super) fn first<K: Key>(view: &impl Readable, table: &Table<K, ()>, (from, to): (&K, &K)) -> Option<K> {
    let mut found = None;
    view.range(table, (Bound::Included(from), Bound::Included(to)), |key, ()| {
        found = Some(key);
        ControlFlow::Break(())
    });
    found
}
