//! Exactly once: the replies that sessions keep for retries.
//!
//! After Raft's client sessions (Ongaro, *Consensus: Bridging Theory and Practice*, 2014, §6.3), with many requests in
//! flight: the state keeps a reply for each sequence above `acked`, and a delta whose sequence is known gets the kept
//! reply and applies nothing.
//!
//! Invariants:
//! - a reply is in one of three places: with the open session while an entry is applied, in the session
//!   (`inline`), or in a row of its own or with others that came in the same entry ([`REPLIES`]);
//! - a session that deltas have changed is in memory alone until [`Live::settle`]: its row is older. Nobody else
//!   looks at the rows of sessions before;
//! - a row of replies has the lowest of their sequences as its key.

use std::collections::HashMap;
use std::ops::{Bound, ControlFlow};

use bytes::Bytes;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use super::sessions::{SESSIONS, Session};
use crate::codec::{self, CodecError, Raw, SmallBytes};
use crate::delta::{Delta, DeltaResult, Millis, Outcome};
use crate::tables::{Table, Tables};

/// A session keeps at most this many replies that its client has not acknowledged.
pub const MAX_REPLIES: u32 = 1024;
/// And at most this many bytes of them.
pub const MAX_REPLY_BYTES: u64 = 4 << 20;
/// Up to this number and size, all together, they are in the session's own row.
const INLINE: (u32, usize) = (4, 512);
/// Up to this many newly acknowledged sequences are looked for one by one.
const FEW: u64 = 64;

/// Replies as a list of [`Kept`].
const REPLIES: Table<(u64, u64), Bytes> = Table::new("replies");

/// Sequence, hash of service and body, and the encoded outcome.
type Kept<'a> = (u64, u64, &'a [u8]);

/// The key of the row that holds it, by sequence.
type Places = HashMap<u64, u64, foldhash::fast::RandomState>;

/// At most so many sessions are newer than their rows.
const UNSETTLED: usize = 4_096;

/// The sessions as deltas change them. To read and write a row for each delta would cost more than the delta.
#[derive(Default)]
pub(super) struct Live {
    /// The session whose delta was applied last: closed between entries.
    open: Option<(u64, Session)>,
    /// Sessions that are newer than their rows.
    unsettled: HashMap<u64, Session, foldhash::fast::RandomState>,
    /// The replies of this entry's deltas.
    fresh: Vec<u8>,
    fresh_count: u32,
    /// In which row, by its key, the open session keeps which sequence. Made when one is looked for among rows of
    /// several: an entry may ask for thousands.
    places: Option<Places>,
    buffer: Vec<u8>,
}

/// A service's part in the hash of its deltas.
pub(super) fn service_hash(service: &str) -> u64 {
    xxh3_64(service.as_bytes())
}

/// What a delta's session says of it.
pub(super) enum Admission {
    /// Apply it, then [`Live::remember`] the outcome under this hash.
    Apply(u64),
    /// Apply nothing: this is the result.
    Answer(Outcome),
}

impl Live {
    /// Looks a delta up in its session.
    pub(super) fn admit(
        &mut self,
        tables: &mut Tables<'_>,
        delta: &Delta<'_>,
        service_hash: u64,
        revision: u64,
        time: Millis,
    ) -> Result<Admission, CodecError> {
        let answer = |result| Ok(Admission::Answer(Outcome { revision, result }));
        if self.open.as_ref().is_none_or(|(id, _)| *id != delta.session) {
            self.close(tables)?;
            let session = self.unsettled.remove(&delta.session);
            let session = session.or_else(|| tables.get(&SESSIONS, &delta.session));
            self.open = session.map(|session| (delta.session, session));
        }
        let Some((_, session)) = &mut self.open else {
            return answer(DeltaResult::SessionExpired);
        };
        if delta.sequence <= session.acked {
            return answer(DeltaResult::SequenceAcked);
        }
        let body_hash = xxh3_64_with_seed(delta.body, service_hash);
        // Sequences mostly rise: only one that is not the highest so far can have been used before.
        if delta.sequence <= session.max_sequence
            && let Some((hash, outcome)) = find(tables, delta, session, &self.fresh, &mut self.places)?
        {
            return match hash == body_hash {
                true => Ok(Admission::Answer(outcome)),
                false => answer(DeltaResult::SequenceReused),
            };
        }
        session.last_used = time;
        session.max_sequence = session.max_sequence.max(delta.sequence);
        self.forget_acked(tables, delta)?;
        match &self.open {
            Some((_, session)) if session.replies < MAX_REPLIES && session.reply_bytes < MAX_REPLY_BYTES => {
                Ok(Admission::Apply(body_hash))
            }
            _ => answer(DeltaResult::SessionFull),
        }
    }

    /// Keeps the outcome of an admitted delta for retries.
    pub(super) fn remember(&mut self, delta: &Delta<'_>, body_hash: u64, outcome: &Outcome) {
        let Some((_, session)) = &mut self.open else { return };
        // A `Kept`, piece by piece.
        codec::push_item(&(delta.sequence, body_hash), &mut self.fresh);
        let bytes = codec::push_sized(&mut self.fresh, |list| codec::encode_into(outcome, list));
        self.fresh_count += 1;
        session.replies += 1;
        session.reply_bytes += size(bytes);
    }

    /// Forgets replies up to the delta's `acked`. A client cannot have acknowledged the very request.
    fn forget_acked(&mut self, tables: &mut Tables<'_>, delta: &Delta<'_>) -> Result<(), CodecError> {
        let Some((id, session)) = &mut self.open else { return Ok(()) };
        let acked = delta.acked.min(delta.sequence - 1);
        if acked <= session.acked {
            return Ok(());
        }
        let before = std::mem::replace(&mut session.acked, acked);
        if acked + 1 == session.max_sequence {
            // Mostly a client has all replies before it sends again, and the delta, of the highest sequence, has
            // none yet: so nothing is left, and nothing need be read.
            forget_rows_unread(tables, *id, session, before);
            session.inline = SmallBytes::default();
            (session.replies, session.reply_bytes, session.rows, session.blocks) = (0, 0, 0, 0);
            self.fresh.clear();
            self.fresh_count = 0;
            self.places = None;
            return Ok(());
        }
        if !session.inline.is_empty() {
            let mut left = Vec::new();
            let inline = std::mem::take(&mut session.inline);
            retain(&inline, &mut left, session)?;
            session.inline = left[..].into();
        }
        if self.fresh_count > 0 {
            self.buffer.clear();
            let forgotten = retain(&self.fresh, &mut self.buffer, session)?;
            std::mem::swap(&mut self.fresh, &mut self.buffer);
            self.fresh_count -= forgotten;
        }
        if session.rows > 0 {
            self.places = None;
            forget_rows(tables, *id, session, before)?;
        }
        Ok(())
    }

    /// Puts the open session back, and writes the replies that it cannot hold.
    pub(super) fn close(&mut self, tables: &mut Tables<'_>) -> Result<(), CodecError> {
        let Some((id, mut session)) = self.open.take() else { return Ok(()) };
        let bytes = session.inline.len() + self.fresh.len();
        if session.rows == 0 && session.replies <= INLINE.0 && bytes <= INLINE.1 {
            session.inline = match session.inline.is_empty() {
                true => self.fresh[..].into(),
                false => [&session.inline[..], &self.fresh].concat()[..].into(),
            };
        } else if self.fresh_count > 0 {
            let mut lowest = u64::MAX;
            for kept in codec::items::<Kept<'_>>(&self.fresh) {
                lowest = lowest.min(kept?.0);
            }
            session.rows += 1;
            session.blocks += u32::from(self.fresh_count > 1);
            // `admit` has found no reply to any of these sequences.
            tables.put_new_as(&REPLIES, &(id, lowest), &Raw(&self.fresh));
        }
        self.unsettled.insert(id, session);
        self.fresh.clear();
        self.fresh_count = 0;
        self.places = None;
        if self.unsettled.len() >= UNSETTLED {
            self.settle(tables)?;
        }
        Ok(())
    }

    /// Brings the rows up to date.
    pub(super) fn settle(&mut self, tables: &mut Tables<'_>) -> Result<(), CodecError> {
        self.close(tables)?;
        for (id, session) in self.unsettled.drain() {
            tables.put(&SESSIONS, &id, &session);
        }
        Ok(())
    }
}

/// The reply that is kept for the delta's sequence, and its hash.
fn find(
    tables: &Tables<'_>,
    delta: &Delta<'_>,
    session: &Session,
    fresh: &[u8],
    places: &mut Option<Places>,
) -> Result<Option<(u64, Outcome)>, CodecError> {
    let within = |list: &[u8]| {
        for kept in codec::items::<Kept<'_>>(list) {
            let (sequence, hash, outcome) = kept?;
            if sequence == delta.sequence {
                return Ok(Some((hash, codec::decode(outcome)?)));
            }
        }
        Ok(None)
    };
    let mut found = within(fresh)?;
    if found.is_none() {
        found = within(&session.inline)?;
    }
    let own = (delta.session, delta.sequence);
    if found.is_none()
        && session.rows > 0
        && let Some(list) = tables.get(&REPLIES, &own)
    {
        found = within(&list)?;
    }
    if found.is_none() && session.blocks > 0 {
        let places = match places {
            Some(places) => places,
            None => places.insert(places_of(tables, delta.session)?),
        };
        if let Some(lowest) = places.get(&delta.sequence)
            && let Some(list) = tables.get(&REPLIES, &(delta.session, *lowest))
        {
            found = within(&list)?;
        }
    }
    Ok(found)
}

fn places_of(tables: &Tables<'_>, session: u64) -> Result<Places, CodecError> {
    let (mut places, mut read) = (Places::default(), Ok(()));
    let (from, to) = ((session, 0), (session, u64::MAX));
    tables.range(&REPLIES, (Bound::Included(&from), Bound::Included(&to)), |(_, lowest), list| {
        for kept in codec::items::<Kept<'_>>(&list) {
            match kept {
                Ok((sequence, ..)) => drop(places.insert(sequence, lowest)),
                Err(error) => {
                    read = Err(error);
                    return ControlFlow::Break(());
                }
            }
        }
        ControlFlow::Continue(())
    });
    read.map(|()| places)
}

/// Copies what is not acknowledged from `list`; counts the rest out of the session and returns how many they were.
fn retain(list: &[u8], left: &mut Vec<u8>, session: &mut Session) -> Result<u32, CodecError> {
    let mut forgotten = 0;
    for kept in codec::items::<Kept<'_>>(list) {
        let kept = kept?;
        if kept.0 > session.acked {
            codec::push_item(&kept, left);
        } else {
            forgotten += 1;
            session.replies = session.replies.saturating_sub(1);
            session.reply_bytes = session.reply_bytes.saturating_sub(size(kept.2.len()));
        }
    }
    Ok(forgotten)
}

/// Forgets what is acknowledged now in rows; `before` was acknowledged earlier.
fn forget_rows(
    tables: &mut Tables<'_>,
    id: u64,
    session: &mut Session,
    before: u64,
) -> Result<(), CodecError> {
    let mut rows = Vec::new();
    if few_rows(session, before) {
        for sequence in before + 1..=session.acked {
            rows.extend(tables.get(&REPLIES, &(id, sequence)).map(|list| (sequence, list)));
        }
    } else {
        let (from, to) = ((id, 0), (id, session.acked));
        tables.range(&REPLIES, (Bound::Included(&from), Bound::Included(&to)), |(_, lowest), list| {
            rows.push((lowest, list));
            ControlFlow::Continue(())
        });
    }
    for (lowest, list) in rows {
        let (mut left, mut left_lowest, mut left_count) = (Vec::new(), u64::MAX, 0);
        let forgotten = retain(&list, &mut left, session)?;
        for kept in codec::items::<Kept<'_>>(&left) {
            left_lowest = left_lowest.min(kept?.0);
            left_count += 1;
        }
        tables.remove(&REPLIES, &(id, lowest));
        session.rows -= 1;
        session.blocks -= u32::from(forgotten + left_count > 1);
        if left_count > 0 {
            // Under a sequence that was in the middle of this row until now.
            tables.put_new_as(&REPLIES, &(id, left_lowest), &Raw(&left));
            session.rows += 1;
            session.blocks += u32::from(left_count > 1);
        }
    }
    Ok(())
}

/// Whether the rows of newly acknowledged sequences are looked for one by one: the overlay has them, and a range would
/// ask sled too.
fn few_rows(session: &Session, before: u64) -> bool {
    session.blocks == 0 && session.acked - before <= FEW
}

/// Forgets all rows, as [`forget_rows`] does when everything is acknowledged.
fn forget_rows_unread(tables: &mut Tables<'_>, id: u64, session: &Session, before: u64) {
    if session.rows > 0 && few_rows(session, before) {
        for sequence in before + 1..=session.acked {
            tables.remove(&REPLIES, &(id, sequence));
        }
    } else {
        forget_all(tables, id, session);
    }
}

/// Removes all of the session's rows.
pub(super) fn forget_all(tables: &mut Tables<'_>, id: u64, session: &Session) {
    if session.rows == 0 {
        return;
    }
    let mut rows = Vec::with_capacity(session.rows as usize);
    let (from, to) = ((id, 0), (id, u64::MAX));
    tables.range(&REPLIES, (Bound::Included(&from), Bound::Included(&to)), |key, _| {
        rows.push(key);
        ControlFlow::Continue(())
    });
    for key in &rows {
        tables.remove(&REPLIES, key);
    }
}

/// What a reply counts for: its outcome's bytes, and a bit.
fn size(outcome: usize) -> u64 {
    outcome as u64 + 32
}
