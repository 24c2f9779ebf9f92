//! A delta: a command as it stands in the log; and its outcome.

use std::borrow::Cow;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::codec::{self, CodecError, SmallBytes};
use crate::service::Refusal;

/// Milliseconds: of the Unix epoch in a delta's time, a duration elsewhere.
pub type Millis = u64;

/// At most this many deltas stand in one log entry.
pub const MAX_DELTAS_PER_ENTRY: usize = 4096;

/// A command before it is in the log: what a gateway hands to the proposer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Command {
    /// The session, or 0 for a request without one.
    pub session: u64,
    /// The request's number within its session, from 1; 0 without a session.
    pub sequence: u64,
    /// Every reply up to this sequence has arrived.
    pub acked: u64,
    /// Whose command it is: a service's name, or [`SESSION_SERVICE`] / [`SYSTEM_SERVICE`].
    pub service: Cow<'static, str>,
    /// The service's command, encoded by [`codec`].
    pub body: Bytes,
}

impl Command {
    /// A command without a session: a lost reply leaves its outcome unknown.
    pub fn sessionless(service: impl Into<Cow<'static, str>>, body: impl Into<Bytes>) -> Self {
        Self { session: 0, sequence: 0, acked: 0, service: service.into(), body: body.into() }
    }

    /// Its share of a log entry, in bytes, roughly: what the queues count.
    pub fn size(&self) -> usize {
        self.body.len() + self.service.len() + 32
    }

    /// Whether `next` continues a run that began with this command, as its `nth` from 0.
    fn is_followed_by(&self, next: &Self, nth: u64) -> bool {
        next.session == self.session
            && Some(next.sequence) == sequence_in_run(self.session, self.sequence, nth)
            && next.acked == self.acked
            && next.service == self.service
    }
}

/// The built-in service that opens, keeps alive and closes sessions.
pub const SESSION_SERVICE: &str = "session";
/// The built-in service for ticks, node ids and settings.
pub const SYSTEM_SERVICE: &str = "system";

/// A command as it stands in the log. Borrowed from the entry, because apply reads each once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Delta<'a> {
    /// See [`Command::session`].
    pub session: u64,
    /// See [`Command::sequence`].
    pub sequence: u64,
    /// See [`Command::acked`].
    pub acked: u64,
    /// The primary's time when it proposed the delta. Never goes backwards along the log.
    pub time: Millis,
    /// See [`Command::service`].
    pub service: &'a str,
    /// See [`Command::body`].
    pub body: &'a [u8],
    /// Whether it begins a run: up to the next that does, deltas are of the same session, `acked` and service.
    pub begins: bool,
}

/// Encodes one log entry from `commands`, all at the primary's `time`.
///
/// Commands of one session that follow each other, as those of a batch do, are a run: what they have in common stands
/// once. An entry: version, time, number of deltas, runs. A run: session, first sequence, acked, service, number of deltas;
/// then the bodies.
pub fn encode_entry<'a, I>(time: Millis, commands: I) -> Bytes
where
    I: IntoIterator<Item = &'a Command, IntoIter: Clone>,
{
    let mut commands = commands.into_iter();
    let mut entry = Vec::with_capacity(commands.clone().map(Command::size).sum());
    codec::encode_into(&(time, commands.clone().count()), &mut entry);
    while let Some(first) = commands.next() {
        let more = commands.clone().zip(1..).take_while(|(command, nth)| first.is_followed_by(command, *nth));
        let more = more.count();
        let Command { session, sequence, acked, ref service, ref body } = *first;
        let head: Head<'_> = (session, sequence, acked, service, more + 1);
        codec::push_item(&head, &mut entry);
        codec::push_item(&codec::Raw(body), &mut entry);
        for command in commands.by_ref().take(more) {
            codec::push_item(&codec::Raw(&command.body), &mut entry);
        }
    }
    entry.into()
}

/// What a run's deltas have in common: session, the first one's sequence, acked, service, how many there are.
type Head<'a> = (u64, u64, u64, &'a str, usize);

/// The sequence of a run's `nth` delta, from 0.
fn sequence_in_run(session: u64, first: u64, nth: u64) -> Option<u64> {
    if session == 0 { Some(first) } else { first.checked_add(nth) }
}

/// Decodes a log entry's deltas one by one, in order. One that does not decode is the last.
pub struct EntryReader<'a> {
    rest: &'a [u8],
    time: Millis,
    /// Deltas to come.
    left: usize,
    head: Head<'a>,
    /// How many of the run were read.
    nth: usize,
}

impl<'a> EntryReader<'a> {
    /// # Errors
    /// [`CodecError`]: the entry is damaged, or of another version.
    pub fn new(entry: &'a [u8]) -> Result<Self, CodecError> {
        let mut rest = codec::body(entry)?;
        let (time, left) = codec::take(&mut rest)?;
        Ok(Self { rest, time, left, head: (0, 0, 0, "", 0), nth: 0 })
    }

    /// How many deltas are to come, by the entry's word.
    pub fn left(&self) -> usize {
        self.left
    }

    fn read(&mut self) -> Result<Delta<'a>, CodecError> {
        let begins = self.nth == self.head.4;
        if begins {
            self.head = codec::take(&mut self.rest)?;
            self.nth = 0;
        }
        let (session, first, acked, service, length) = self.head;
        let sequence = sequence_in_run(session, first, self.nth as u64);
        let possible = self.nth < length && length - self.nth <= self.left;
        let (Some(sequence), true) = (sequence, possible) else {
            return Err(CodecError::Malformed("a run of deltas is longer than it can be".to_owned()));
        };
        let body = codec::take(&mut self.rest)?;
        self.nth += 1;
        self.left -= 1;
        if self.left == 0 && !self.rest.is_empty() {
            return Err(CodecError::Malformed("there is something behind the last delta".to_owned()));
        }
        Ok(Delta { session, sequence, acked, time: self.time, service, body, begins })
    }
}

impl<'a> Iterator for EntryReader<'a> {
    type Item = Result<Delta<'a>, CodecError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.left == 0 {
            return None;
        }
        let delta = self.read();
        if delta.is_err() {
            self.left = 0;
        }
        Some(delta)
    }
}

/// Decodes all of a log entry's deltas.
///
/// # Errors
/// As [`EntryReader::new`], and when one of them does not decode.
pub fn decode_entry(entry: &[u8]) -> Result<Vec<Delta<'_>>, CodecError> {
    EntryReader::new(entry)?.collect()
}

/// What became of one delta.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// The delta's revision; for a replayed reply, the revision of its first application.
    pub revision: u64,
    /// The reply, or why there is none.
    pub result: DeltaResult,
}

/// An encoded reply. Nearly all are short.
pub type EncodedReply = SmallBytes<24>;

/// The result of one delta. Append variants only: it is stored and travels.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeltaResult {
    /// The service's reply, encoded by [`codec`].
    Reply(EncodedReply),
    /// The service's refusal, remembered like a reply. Boxed: outcomes are mostly replies, and move often.
    Refused(Box<Refusal>),
    /// The session is unknown or has expired. Nothing was applied *by this delta*.
    SessionExpired,
    /// The sequence was used before with another body.
    SequenceReused,
    /// The client said before that it had this sequence's reply, so the reply is forgotten.
    SequenceAcked,
    /// The session holds as many unacknowledged replies as it may; nothing was applied.
    SessionFull,
    /// The primary's build does not know the command, so it was not logged. Neither applied nor stored, it only travels.
    Unsupported(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(session: u64, sequence: u64, acked: u64, body: u8) -> Command {
        Command { session, sequence, acked, ..Command::sessionless("counter", vec![body]) }
    }

    #[test]
    fn an_entry_round_trips_and_its_bytes_are_pinned() {
        let entry = encode_entry(250, &[command(3, 2, 1, 7), command(3, 3, 1, 8), command(4, 4, 1, 9)]);
        let wanted = [
            &[1, 250, 3][..],
            b"\x03\x02\x01\x07counter\x02\x01\x07\x01\x08",
            b"\x04\x04\x01\x07counter\x01\x01\x09",
        ];
        assert_eq!(
            entry.as_ref(),
            wanted.concat(),
            "the log's format has changed: old logs would not be read"
        );
        let deltas = decode_entry(&entry).unwrap();
        assert_eq!(deltas.iter().map(|delta| delta.begins).collect::<Vec<_>>(), [true, false, true]);
        assert!(
            deltas.iter().all(|delta| delta.service == "counter" && delta.time == 250 && delta.acked == 1)
        );
    }

    #[test]
    fn a_run_is_of_one_session_with_rising_sequences() {
        let other = Command { service: "register".into(), ..command(3, 7, 1, 0) };
        let commands = [
            command(0, 0, 0, 1),
            command(0, 0, 0, 2),
            command(3, 1, 0, 3),
            command(3, 2, 0, 4),
            command(3, 4, 0, 5),
            command(3, 5, 1, 6),
            command(3, 6, 1, 7),
            other,
            command(3, u64::MAX, 1, 8),
            command(3, 0, 1, 9),
        ];
        let entry = encode_entry(1, &commands);
        let deltas = decode_entry(&entry).unwrap();
        let begins: Vec<u8> =
            deltas.iter().filter(|d| d.begins).map(|d| d.body.first().copied().unwrap_or(0)).collect();
        assert_eq!(begins, [1, 3, 5, 6, 0, 8, 9]);
        let read: Vec<_> =
            deltas.iter().map(|d| (d.session, d.sequence, d.acked, d.service, d.body)).collect();
        let made = commands.iter().map(|c| (c.session, c.sequence, c.acked, &*c.service, &*c.body));
        assert_eq!(read, made.collect::<Vec<_>>());
    }

    #[test]
    fn a_damaged_entry_is_refused() {
        let good = encode_entry(250, &[command(3, 2, 1, 7), command(3, 3, 1, 8)]);
        assert!(decode_entry(&[]).is_err());
        for length in 1..good.len() {
            assert!(decode_entry(&good[..length]).is_err(), "cut at {length}");
        }
        assert!(decode_entry(&[&good[..], &[0]].concat()).is_err());
        // More in a run than in the entry, none in a run, one less in the entry than there is.
        for (at, byte) in [(14, 3), (14, 0), (2, 1)] {
            let mut bad = good.to_vec();
            bad[at] = byte;
            assert!(decode_entry(&bad).is_err(), "{byte} at {at}");
        }
    }

    #[test]
    fn outcome_variants_keep_their_numbers() {
        let numbers: Vec<u8> = [
            DeltaResult::Reply(EncodedReply::default()),
            DeltaResult::Refused(Refusal::new("c", "d").into()),
            DeltaResult::SessionExpired,
            DeltaResult::SequenceReused,
            DeltaResult::SequenceAcked,
            DeltaResult::SessionFull,
            DeltaResult::Unsupported(String::new()),
        ]
        .iter()
        .map(|result| codec::encode(result)[1])
        .collect();
        assert_eq!(numbers, [0, 1, 2, 3, 4, 5, 6]);
    }
}
