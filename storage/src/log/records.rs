//! How the delta log's records look inside `raft-log`'s write-ahead log.
//!
//! raft-log checks each record with a CRC and takes a record that ends behind the file's end for a
//! torn tail. A damaged *length* would look like that too, and good records behind it would be cut.
//! So a payload's header has a checksum of its own: a damaged length is damage, not a tail.

use std::cmp::Ordering;
use std::io::{self, Read, Write};

use bytes::Bytes;
use codeq::{Decode, Encode};
use openraft::vote::RaftLeaderId;

use super::flush::Flushed;
use crate::codec;
use crate::raft_types::{self, Deltas, Payload};

/// raft-log's type configuration.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct WalTypes;

impl raft_log::Types for WalTypes {
    type LogId = LogId;
    type LogPayload = StoredPayload;
    type Vote = StoredVote;
    type Callback = Flushed;
    type UserData = ();

    fn log_index(log_id: &LogId) -> u64 {
        log_id.index
    }

    fn payload_size(payload: &StoredPayload) -> u64 {
        payload.size() as u64
    }
}

/// Term and index, 16 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct LogId {
    pub(super) term: u64,
    pub(super) index: u64,
}

impl From<&raft_types::LogId> for LogId {
    fn from(id: &raft_types::LogId) -> Self {
        Self { term: raft_types::term_of(id), index: id.index }
    }
}

impl From<LogId> for raft_types::LogId {
    fn from(id: LogId) -> Self {
        raft_types::log_id(id.term, id.index)
    }
}

impl Encode for LogId {
    fn encode<W: Write>(&self, mut w: W) -> io::Result<usize> {
        w.write_all(&self.term.to_be_bytes())?;
        w.write_all(&self.index.to_be_bytes())?;
        Ok(16)
    }
}

impl Decode for LogId {
    fn decode<R: Read>(mut r: R) -> io::Result<Self> {
        Ok(Self { term: read_u64(&mut r)?, index: read_u64(&mut r)? })
    }
}

/// A vote: term, candidate, and whether a quorum granted it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct StoredVote(pub(super) raft_types::Vote);

/// openraft decides which vote replaces which; raft-log only has to see that terms never go back.
impl PartialOrd for StoredVote {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.0.leader_id.term.cmp(&other.0.leader_id.term))
    }
}

impl Encode for StoredVote {
    fn encode<W: Write>(&self, mut w: W) -> io::Result<usize> {
        w.write_all(&[codec::RECORD_VERSION])?;
        w.write_all(&self.0.leader_id.term.to_be_bytes())?;
        w.write_all(&self.0.leader_id.voted_for.to_be_bytes())?;
        w.write_all(&[u8::from(self.0.committed)])?;
        Ok(18)
    }
}

impl Decode for StoredVote {
    fn decode<R: Read>(mut r: R) -> io::Result<Self> {
        check_version(&mut r)?;
        let leader_id = RaftLeaderId::new(read_u64(&mut r)?, read_u64(&mut r)?);
        let [committed] = read::<1>(&mut r)?;
        Ok(Self(raft_types::Vote { leader_id, committed: committed != 0 }))
    }
}

/// An entry's payload: version, kind, length, checksum of those; then the content and its checksum.
#[derive(Debug, Clone)]
pub(super) struct StoredPayload(pub(super) Payload);

/// A payload above this is refused before it is written. Entries stay far below (proposer bounds).
const MAX_PAYLOAD: usize = 64 << 20;
const HEADER: usize = 6;

const BLANK: u8 = 0;
const DELTAS: u8 = 1;
const MEMBERSHIP: u8 = 2;

impl StoredPayload {
    /// Bytes in the cache, roughly.
    pub(super) fn size(&self) -> usize {
        match &self.0 {
            Payload::Normal(deltas) => deltas.0.len() + 64,
            Payload::Blank | Payload::Membership(_) => 256,
        }
    }
}

impl Encode for StoredPayload {
    fn encode<W: Write>(&self, mut w: W) -> io::Result<usize> {
        let (kind, content) = match &self.0 {
            Payload::Blank => (BLANK, Bytes::new()),
            Payload::Normal(deltas) => (DELTAS, deltas.0.clone()),
            Payload::Membership(membership) => (MEMBERSHIP, codec::encode(membership).into()),
        };
        if content.len() > MAX_PAYLOAD {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "log entry too large"));
        }
        let mut header = [0; HEADER];
        header[0] = codec::RECORD_VERSION;
        header[1] = kind;
        header[2..].copy_from_slice(&(content.len() as u32).to_be_bytes());
        w.write_all(&header)?;
        w.write_all(&crc32fast::hash(&header).to_be_bytes())?;
        w.write_all(&content)?;
        w.write_all(&crc32fast::hash(&content).to_be_bytes())?;
        Ok(HEADER + 4 + content.len() + 4)
    }
}

impl Decode for StoredPayload {
    fn decode<R: Read>(mut r: R) -> io::Result<Self> {
        let header = read::<HEADER>(&mut r)?;
        if read_u32(&mut r)? != crc32fast::hash(&header) {
            return Err(damaged("an entry's header fails its checksum"));
        }
        let [version, kind, length @ ..] = header;
        if version != codec::RECORD_VERSION {
            return Err(damaged(&format!("an entry has record version {version}")));
        }
        let length = u32::from_be_bytes(length) as usize;
        if length > MAX_PAYLOAD {
            return Err(damaged(&format!("an entry claims {length} bytes")));
        }
        let mut content = vec![0; length];
        r.read_exact(&mut content)?;
        if read_u32(&mut r)? != crc32fast::hash(&content) {
            return Err(damaged("an entry's content fails its checksum"));
        }
        match kind {
            BLANK => Ok(Self(Payload::Blank)),
            DELTAS => Ok(Self(Payload::Normal(Deltas(content.into())))),
            MEMBERSHIP => codec::decode(&content)
                .map(|membership| Self(Payload::Membership(membership)))
                .map_err(|e| damaged(&format!("a membership entry: {e}"))),
            other => Err(damaged(&format!("an entry has the unknown kind {other}"))),
        }
    }
}

fn check_version(r: &mut impl Read) -> io::Result<()> {
    match read::<1>(r)? {
        [codec::RECORD_VERSION] => Ok(()),
        [other] => Err(damaged(&format!("a vote has record version {other}"))),
    }
}

fn read<const N: usize>(r: &mut impl Read) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    r.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn read_u64(r: &mut impl Read) -> io::Result<u64> {
    Ok(u64::from_be_bytes(read(r)?))
}

fn read_u32(r: &mut impl Read) -> io::Result<u32> {
    Ok(u32::from_be_bytes(read(r)?))
}

fn damaged(text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(value: &impl Encode) -> Vec<u8> {
        let mut bytes = Vec::new();
        let written = value.encode(&mut bytes).unwrap();
        assert_eq!(written, bytes.len());
        bytes
    }

    fn payload() -> StoredPayload {
        StoredPayload(Payload::Normal(Deltas(Bytes::from_static(b"abc"))))
    }

    #[test]
    fn the_bytes_are_pinned() {
        assert_eq!(encoded(&LogId { term: 2, index: 3 }), [0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 3]);
        let vote = StoredVote(raft_types::Vote { leader_id: RaftLeaderId::new(5, 1), committed: true });
        assert_eq!(encoded(&vote), [1, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 1, 1]);
        assert_eq!(&encoded(&payload())[..6], [1, 1, 0, 0, 0, 3]);
        assert_eq!(&encoded(&StoredPayload(Payload::Blank))[..6], [1, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn every_flipped_bit_is_damage_and_never_a_torn_tail() {
        let good = encoded(&payload());
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            let error = StoredPayload::decode(&bad[..]).expect_err("a flipped bit went unseen");
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "bit {bit}");
        }
    }

    #[test]
    fn every_cut_is_a_torn_tail() {
        let good = encoded(&payload());
        for length in 0..good.len() {
            let error = StoredPayload::decode(&good[..length]).expect_err("a cut went unseen");
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "cut at {length}");
        }
    }
}
