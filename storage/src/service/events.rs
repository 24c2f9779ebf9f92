//! Events: what an apply publishes, and how it is encoded.

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};

use crate::codec::{self, Raw};

/// An event's place: the delta's revision, and its number within the delta, from 0.
pub type Position = (u64, u32);

/// An event that an apply published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// The service that emitted it.
    pub service: String,
    /// The topic.
    pub topic: String,
    /// The event as JSON text.
    pub data: String,
}

/// An event's data may take at most this many bytes of JSON; longer ones are cut off, and say so.
pub const MAX_EVENT_BYTES: usize = 64 << 10;

/// A block with so many bytes is full.
pub(crate) const BLOCK_BYTES: usize = 64 << 10;

/// An event as it stands in a block: position, service, topic, data.
type Stored<'a> = (Position, &'a str, &'a str, &'a str);

/// Events on their way into rows, in the encoding of [`Block`]s. One row of a few thousand events costs a fraction of
/// a few thousand rows.
#[derive(Default)]
pub(crate) struct Emitted {
    full: Vec<(Extent, Vec<u8>)>,
    /// The block under construction.
    encoded: Vec<u8>,
    extent: Option<Extent>,
    /// The place of the last event of all: the next one of its revision follows it.
    last: Position,
}

impl Emitted {
    pub(crate) fn push(&mut self, revision: u64, service: &str, topic: &str, event: &impl Serialize) {
        let position = match self.last {
            (last, number) if last == revision => (revision, number + 1),
            _ => (revision, 0),
        };
        // A `Stored`, piece by piece: bytes are encoded as text is.
        codec::push_item(&(position, service, topic), &mut self.encoded);
        codec::push_sized(&mut self.encoded, |out| push_json(event, out));
        self.last = position;
        let extent =
            self.extent.get_or_insert(Extent { first: position, last: position, events: 0, bytes: 0 });
        extent.last = position;
        extent.events += 1;
        extent.bytes = self.encoded.len();
        if extent.bytes >= BLOCK_BYTES {
            self.full.push((*extent, std::mem::take(&mut self.encoded)));
            self.extent = None;
        }
    }

    /// Whether so much is here that it should not wait for the log entry's end.
    pub(crate) fn is_much(&self) -> bool {
        !self.full.is_empty()
    }

    /// Hands what is here to `store`, block by block, each in the encoding of a [`Block`].
    pub(crate) fn finish(&mut self, mut store: impl FnMut(Extent, Raw<'_>)) {
        for (extent, encoded) in self.full.drain(..) {
            store(extent, Raw(&encoded));
        }
        if let Some(extent) = self.extent.take() {
            store(extent, Raw(&self.encoded));
            self.encoded.clear();
        }
    }
}

/// Appends the event as JSON, or why it is not there.
fn push_json(event: &impl Serialize, out: &mut Vec<u8>) {
    let start = out.len();
    let is_json = serde_json::to_writer(&mut *out, event).is_ok();
    let length = out.len() - start;
    if !is_json {
        out.truncate(start);
        out.extend_from_slice(b"{\"event_not_json\":true}");
    } else if length > MAX_EVENT_BYTES {
        out.truncate(start);
        out.extend_from_slice(format!("{{\"event_too_large\":{length}}}").as_bytes());
    }
}

/// Where a block's events are, and how much they are.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Extent {
    pub(crate) first: Position,
    pub(crate) last: Position,
    pub(crate) events: usize,
    pub(crate) bytes: usize,
}

/// Events in order.
pub(crate) struct Block {
    pub(crate) events: Vec<(Position, Event)>,
    pub(crate) bytes: usize,
}

impl<'de> Deserialize<'de> for Block {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let encoded = bytes::Bytes::deserialize(deserializer)?;
        let events = codec::items(&encoded).map(|item| {
            let (position, service, topic, data): Stored<'_> = item.map_err(D::Error::custom)?;
            let event = Event { service: service.to_owned(), topic: topic.to_owned(), data: data.to_owned() };
            Ok((position, event))
        });
        Ok(Self { events: events.collect::<Result<_, _>>()?, bytes: encoded.len() })
    }
}

impl Block {
    /// Its extent; `None` for a block without events, which nobody writes.
    pub(crate) fn extent(&self) -> Option<Extent> {
        let ((first, _), (last, _)) = (self.events.first()?, self.events.last()?);
        Some(Extent { first: *first, last: *last, events: self.events.len(), bytes: self.bytes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_round_trips_and_its_bytes_are_pinned() {
        let mut emitted = Emitted::default();
        emitted.push(7, "a", "t", &1);
        emitted.push(7, "b", "u", &"x");
        emitted.push(8, "a", "t", &2);
        let mut encoded = Vec::new();
        emitted.finish(|extent, block| {
            assert_eq!((extent.first, extent.last, extent.events), ((7, 0), (8, 0), 3));
            encoded = codec::encode(&block);
        });
        let wanted = [
            &[1, 26][..],
            b"\x07\x00\x01a\x01t\x011",
            b"\x07\x01\x01b\x01u\x03\"x\"",
            b"\x08\x00\x01a\x01t\x012",
        ];
        assert_eq!(encoded, wanted.concat(), "the format has changed: old blocks would not be read");
        let block: Block = codec::decode(&encoded).unwrap();
        let positions: Vec<Position> = block.events.iter().map(|(position, _)| *position).collect();
        assert_eq!(positions, [(7, 0), (7, 1), (8, 0)]);
        assert_eq!(block.events[1].1.data, "\"x\"");
        emitted.finish(|_, _| panic!("nothing was emitted since"));
    }

    #[test]
    fn a_topic_is_one_line() {
        let mut emitted = Emitted::default();
        crate::service::Context::new("a", 7, 0, 0, &mut emitted).emit("one\r\ntwo", &1);
        emitted.finish(|_, block| {
            let block: Block = codec::decode(&codec::encode(&block)).unwrap();
            assert_eq!(block.events[0].1.topic, "one  two");
        });
    }

    #[test]
    fn a_damaged_block_is_refused() {
        assert!(codec::decode::<Block>(&[1, 2, 7, 0]).is_err());
    }
}
