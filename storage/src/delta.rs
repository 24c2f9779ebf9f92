//! A delta: a command as it stands in the log; and its outcome.

use std::borrow::Cow;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::codec::{self, CodecError};
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
}

/// Encodes one log entry from `commands`, all at the primary's `time`.
pub fn encode_entry<'a, I>(time: Millis, commands: I) -> Bytes
where
    I: IntoIterator<Item = &'a Command, IntoIter: Clone>,
{
    let commands = commands.into_iter();
    let mut entry = Vec::with_capacity(commands.clone().map(Command::size).sum());
    let deltas = commands.map(|command| {
        let Command { session, sequence, acked, service, body } = command;
        (session, sequence, acked, service, codec::Raw(body))
    });
    codec::encode_list(&time, deltas, &mut entry);
    entry.into()
}

/// A delta as it is encoded: session, sequence, acked, service, body. The time stands once, before all of them.
type Stored<'a> = (u64, u64, u64, &'a str, &'a [u8]);

/// Decodes a log entry's deltas one by one, in order; says first how many there should be.
///
/// # Errors
/// [`CodecError`]: the entry is damaged, or of another version.
pub fn deltas(
    entry: &[u8],
) -> Result<(usize, impl Iterator<Item = Result<Delta<'_>, CodecError>>), CodecError> {
    let (time, count, stored) = codec::decode_list::<Millis, Stored<'_>>(entry)?;
    let deltas = stored.map(move |delta| {
        let (session, sequence, acked, service, body) = delta?;
        Ok(Delta { session, sequence, acked, time, service, body })
    });
    Ok((count.min(MAX_DELTAS_PER_ENTRY), deltas))
}

/// Decodes all of a log entry's deltas.
///
/// # Errors
/// As [`deltas`].
pub fn decode_entry(entry: &[u8]) -> Result<Vec<Delta<'_>>, CodecError> {
    deltas(entry)?.1.collect()
}

/// What became of one delta.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// The delta's revision; for a replayed reply, the revision of its first application.
    pub revision: u64,
    /// The reply, or why there is none.
    pub result: DeltaResult,
}

/// The result of one delta. Append variants only: it is stored and travels.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeltaResult {
    /// The service's reply, encoded by [`codec`].
    Reply(Bytes),
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
    /// No such service on this replica, or its command does not decode: nothing was applied.
    Unsupported(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_round_trips_and_its_bytes_are_pinned() {
        let mut command = Command::sessionless("counter", vec![7u8, 8]);
        command.session = 3;
        command.sequence = 2;
        command.acked = 1;
        let entry = encode_entry(250, [&command]);
        assert_eq!(
            entry.as_ref(),
            [1, 250, 1, 3, 2, 1, 7, b'c', b'o', b'u', b'n', b't', b'e', b'r', 2, 7, 8],
            "the log's format has changed: old logs would not be read"
        );
        let deltas = decode_entry(&entry).unwrap();
        assert_eq!(deltas[0].service, "counter");
        assert_eq!((deltas[0].session, deltas[0].sequence, deltas[0].acked, deltas[0].time), (3, 2, 1, 250));
    }

    #[test]
    fn outcome_variants_keep_their_numbers() {
        let numbers: Vec<u8> = [
            DeltaResult::Reply(Bytes::new()),
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
