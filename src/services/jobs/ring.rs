//! The ring: which worker owns which key.
//!
//! Consistent hashing (Karger et al., STOC 1997, section 4): each worker stands at many points of a circle, and a key belongs to the
//! first point at or behind its own. So a worker that comes takes keys over, a worker that goes leaves its own ones, and
//! no other key moves. Here the circle is cut into [`SLOTS`] equal slots, the unit that moves: a slot belongs to the first
//! point at or behind its beginning.

use serde::{Deserialize, Serialize};

/// So many slots has a ring.
pub const SLOTS: u32 = 1_024;
/// At so many points stands each worker: with 8 workers, nine of ten own 10 to 15 % of the ring.
const POINTS: u32 = 64;
const WORDS: usize = SLOTS as usize / 64;

/// A set of slots.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct Slots([u64; WORDS]);

impl Slots {
    pub(super) fn has(&self, slot: u32) -> bool {
        self.0[slot as usize / 64] & (1 << (slot % 64)) != 0
    }

    pub(super) fn add(&mut self, slot: u32) {
        self.0[slot as usize / 64] |= 1 << (slot % 64);
    }

    pub(super) fn remove(&mut self, slot: u32) {
        self.0[slot as usize / 64] &= !(1 << (slot % 64));
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.iter().all(|word| *word == 0)
    }

    pub(super) fn len(&self) -> u32 {
        self.0.iter().map(|word| word.count_ones()).sum()
    }

    pub(super) fn and(&self, other: &Self) -> Self {
        let mut both = *self;
        both.0.iter_mut().zip(other.0).for_each(|(word, other)| *word &= other);
        both
    }

    /// The first of them at `from` or behind it, around the circle.
    pub(super) fn first_from(&self, from: u32) -> Option<u32> {
        let at = from as usize / 64 % WORDS;
        let behind = self.0[at] & (u64::MAX << (from % 64));
        let first = |at: usize, word: u64| (word != 0).then(|| at as u32 * 64 + word.trailing_zeros());
        let others = (1..=WORDS).map(|step| (at + step) % WORDS);
        first(at, behind).or_else(|| others.into_iter().find_map(|at| first(at, self.0[at])))
    }

    /// First and last of each run, in order.
    pub(super) fn runs(&self) -> Vec<(u32, u32)> {
        let mut runs: Vec<(u32, u32)> = Vec::new();
        for slot in (0..SLOTS).filter(|slot| self.has(*slot)) {
            match runs.last_mut().filter(|(_, last)| last + 1 == slot) {
                Some((_, last)) => *last = slot,
                None => runs.push((slot, slot)),
            }
        }
        runs
    }
}

/// The slot of a key, below [`SLOTS`].
pub fn slot_of(key: &str) -> u32 {
    let high = hash(key.bytes()) >> (64 - SLOTS.trailing_zeros());
    high as u32
}

/// What each of the workers owns, in the order of `names`, which are all different.
pub(super) fn assign(names: &[String]) -> Vec<Slots> {
    let mut points: Vec<(u64, usize)> = Vec::with_capacity(names.len() * POINTS as usize);
    for (worker, name) in names.iter().enumerate() {
        // 0xff is in no text: no name is the beginning of another one's points.
        let point = |n: u32| hash(name.bytes().chain([0xff]).chain(n.to_be_bytes()));
        points.extend((0..POINTS).map(|n| (point(n), worker)));
    }
    // Of two at one place, the first name's; that depends on nothing but the names.
    points.sort_unstable_by(|(a, one), (b, other)| a.cmp(b).then_with(|| names[*one].cmp(&names[*other])));
    let mut owned = vec![Slots::default(); names.len()];
    let (mut at, Some(&(_, around))) = (0, points.first()) else { return owned };
    for slot in 0..SLOTS {
        let begin = u64::from(slot) << (64 - SLOTS.trailing_zeros());
        while points.get(at).is_some_and(|(point, _)| *point < begin) {
            at += 1;
        }
        let owner = points.get(at).map_or(around, |(_, worker)| *worker);
        owned[owner].add(slot);
    }
    owned
}

/// FNV-1a, and a last mixing (Stafford's variant 13, as in `SplitMix64`) without which short texts lie close to each other.
fn hash(bytes: impl Iterator<Item = u8>) -> u64 {
    let mut hash = bytes.fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}

#[cfg(test)]
mod tests {
    use proptest::collection::btree_set;
    use proptest::prelude::*;

    use super::*;

    fn names(range: std::ops::Range<u32>) -> Vec<String> {
        range.map(|n| format!("W{n}")).collect()
    }

    #[test]
    fn the_ring_is_shared_out_evenly_enough() {
        let owned = assign(&names(1..9));
        let counts: Vec<u32> = owned.iter().map(Slots::len).collect();
        assert_eq!(counts.iter().sum::<u32>(), SLOTS);
        assert!(counts.iter().all(|count| (SLOTS / 16..SLOTS / 4).contains(count)), "{counts:?}");
    }

    /// These are in the state of clusters: they must never change.
    #[test]
    fn keys_and_points_stay_where_they_are() {
        assert_eq!(["", "a", "b", "customer-17"].map(slot_of), [980, 11, 248, 358]);
        assert_eq!(assign(&names(1..4)).iter().map(Slots::len).collect::<Vec<_>>(), [383, 320, 321]);
    }

    #[test]
    fn keys_are_spread() {
        let mut used = Slots::default();
        (0..10_000).for_each(|n| used.add(slot_of(&format!("key-{n}"))));
        assert!(used.len() > SLOTS * 99 / 100, "{}", used.len());
    }

    #[test]
    fn the_first_from_goes_around() {
        let mut slots = Slots::default();
        assert_eq!(slots.first_from(0), None);
        for slot in [3, 64, 1_023] {
            slots.add(slot);
        }
        let found = [0, 3, 4, 64, 65, 1_023].map(|from| slots.first_from(from));
        assert_eq!(found, [3, 3, 64, 64, 1_023, 1_023].map(Some));
        slots.remove(1_023);
        assert_eq!(slots.first_from(65), Some(3));
        assert_eq!(slots.runs(), [(3, 3), (64, 64)]);
    }

    proptest! {
        #[test]
        fn only_what_has_to_move_moves(names in btree_set("[a-z]{1,6}", 1..12), gone in any::<prop::sample::Index>()) {
            let all: Vec<String> = names.into_iter().collect();
            let gone = gone.index(all.len());
            let mut fewer = all.clone();
            fewer.remove(gone);
            let (before, mut after) = (assign(&all), assign(&fewer));
            if !fewer.is_empty() {
                after.insert(gone, Slots::default());
                for slot in 0..SLOTS {
                    let owner = |owned: &[Slots]| owned.iter().position(|slots| slots.has(slot));
                    prop_assert!(owner(&before).is_some() && owner(&after).is_some());
                    prop_assert!(owner(&before) == owner(&after) || owner(&before) == Some(gone));
                }
            }
        }
    }
}
