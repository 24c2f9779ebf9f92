//! Frames: `length u32, CRC-32 u32`, then `version u8, kind u8, id u64, cluster [16], from u64, to u64`
//! and the content. Numbers are little-endian; the length counts all behind the checksum.

use std::io;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use quorate_storage::raft_types::NodeId;
use tokio::io::{AsyncRead, AsyncReadExt};

use crate::PROTOCOL_VERSION;

/// The largest frame: a read of the log (4 MiB) or one entry, with room to spare.
pub const MAX_FRAME: usize = 24 << 20;
/// The largest frame of who is not of this cluster: a server that joins, or one that is mistaken.
const STRANGER_FRAME: usize = 64 << 10;
const PREFIX: usize = 8;
const HEADER: usize = 42;
/// The longest content that a frame carries.
pub const MAX_CONTENT: usize = MAX_FRAME - HEADER;

/// A cluster's id.
pub type ClusterId = [u8; 16];

/// Who sends a frame to whom, in which cluster. A server that joins does not know yet: zeros.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    /// The cluster.
    pub cluster: ClusterId,
    /// The sender's node id.
    pub from: NodeId,
    /// The target's node id; 0 for whoever listens there.
    pub to: NodeId,
}

/// What a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A request that may be handled beside others.
    Request = 0,
    /// A request to be handled in order with the others of its connection.
    Ordered = 1,
    /// The reply to the request of the same id.
    Reply = 2,
}

/// A frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// What it is.
    pub kind: Kind,
    /// Pairs a reply with its request.
    pub id: u64,
    /// Who to whom.
    pub route: Route,
    /// The message, encoded.
    pub content: Bytes,
}

impl Frame {
    /// Appends the frame's bytes to `out`.
    pub fn encode_into(&self, out: &mut BytesMut) {
        let length = HEADER + self.content.len();
        out.reserve(PREFIX + length);
        out.put_u32_le(length as u32);
        let checksum_at = out.len();
        out.put_u32_le(0);
        out.put_u8(PROTOCOL_VERSION);
        out.put_u8(self.kind as u8);
        out.put_u64_le(self.id);
        out.put_slice(&self.route.cluster);
        out.put_u64_le(self.route.from);
        out.put_u64_le(self.route.to);
        out.put_slice(&self.content);
        let checksum = crc32fast::hash(&out[checksum_at + 4..]);
        out[checksum_at..checksum_at + 4].copy_from_slice(&checksum.to_le_bytes());
    }

    /// Takes one frame off `buffer`; `None` until it is there wholly.
    ///
    /// # Errors
    /// `InvalidData` when what is there is not a frame: the connection is of no use any more.
    pub fn decode(buffer: &mut BytesMut) -> io::Result<Option<Self>> {
        let Some(prefix) = buffer.get(..PREFIX) else {
            return Ok(None);
        };
        let (mut length, mut checksum) = prefix.split_at(4);
        let (length, checksum) = (length.get_u32_le() as usize, checksum.get_u32_le());
        if !(HEADER..=MAX_FRAME).contains(&length) {
            if prefix.starts_with(b"HTTP/") {
                let text = "it answers in HTTP, so it is the address for clients; peers use --peer-listen";
                return Err(invalid(text.to_owned()));
            }
            return Err(invalid(format!("a frame claims {length} bytes")));
        }
        // The version stands first, so that a peer of another version is named as such.
        if let Some(&version) = buffer.get(PREFIX)
            && version != PROTOCOL_VERSION
        {
            return Err(invalid(format!(
                "the peer speaks protocol version {version}, this build speaks {PROTOCOL_VERSION}"
            )));
        }
        if buffer.len() < PREFIX + length {
            return Ok(None);
        }
        buffer.advance(PREFIX);
        let mut bytes = buffer.split_to(length).freeze();
        if crc32fast::hash(&bytes) != checksum {
            return Err(invalid("a frame fails its checksum".to_owned()));
        }
        bytes.advance(1);
        let kind = match bytes.get_u8() {
            0 => Kind::Request,
            1 => Kind::Ordered,
            2 => Kind::Reply,
            other => return Err(invalid(format!("a frame has the unknown kind {other}"))),
        };
        let id = bytes.get_u64_le();
        let mut cluster = [0; 16];
        bytes.copy_to_slice(&mut cluster);
        let route = Route { cluster, from: bytes.get_u64_le(), to: bytes.get_u64_le() };
        Ok(Some(Self { kind, id, route, content: bytes }))
    }
}

/// Reads frames off a stream. Cancelling a read loses nothing.
pub struct FrameReader<S> {
    stream: S,
    buffer: BytesMut,
    /// The cluster whose members may send large frames.
    home: Option<ClusterId>,
}

impl<S: AsyncRead + Unpin> FrameReader<S> {
    /// A reader of `stream`.
    pub fn new(stream: S) -> Self {
        Self { stream, buffer: BytesMut::with_capacity(STRANGER_FRAME), home: None }
    }

    /// Does not wait for, or keep, large frames of other clusters: the memory is for members.
    #[must_use]
    pub fn at_home_in(mut self, cluster: ClusterId) -> Self {
        self.home = Some(cluster);
        self
    }

    /// The next frame; `None` at the stream's end.
    ///
    /// # Errors
    /// As [`Frame::decode`], and as the stream gives them.
    pub async fn next(&mut self) -> io::Result<Option<Frame>> {
        loop {
            if let Some(frame) = self.take()? {
                return Ok(Some(frame));
            }
            if !self.fill().await? {
                return Ok(None);
            }
        }
    }

    /// The next frame, if all of it has been read.
    ///
    /// # Errors
    /// As [`Frame::decode`].
    pub fn take(&mut self) -> io::Result<Option<Frame>> {
        if let Some(frame) = Frame::decode(&mut self.buffer)? {
            return Ok(Some(frame));
        }
        if let Some(home) = self.home {
            self.check_stranger(home)?;
        }
        Ok(None)
    }

    /// Reads what has come; false at the stream's end.
    ///
    /// # Errors
    /// As the stream gives them; `UnexpectedEof` when it ends within a frame.
    pub async fn fill(&mut self) -> io::Result<bool> {
        if self.stream.read_buf(&mut self.buffer).await? > 0 {
            return Ok(true);
        }
        match self.buffer.is_empty() {
            true => Ok(false),
            false => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    /// By what an unfinished frame's header says. Nobody guesses a cluster's id, 128 random bits.
    fn check_stranger(&self, home: ClusterId) -> io::Result<()> {
        let Some(header) = self.buffer.get(..PREFIX + HEADER) else {
            return Ok(());
        };
        let (mut length, cluster) = (&header[..4], &header[PREFIX + 10..][..16]);
        let length = length.get_u32_le() as usize;
        if length <= STRANGER_FRAME || cluster == home {
            return Ok(());
        }
        Err(invalid(format!("a frame of another cluster claims {length} bytes")))
    }

    /// Whether what is there begins as an HTTP request does: no frame is as long as such letters would say.
    pub fn looks_like_http(&self) -> bool {
        const METHODS: [&[u8]; 7] =
            [b"GET ", b"POST ", b"PUT ", b"DELETE ", b"HEAD ", b"PATCH ", b"OPTIONS "];
        METHODS.iter().any(|method| self.buffer.starts_with(method))
    }

    /// How long the frame is whose beginning is there: 0 until its header is, and has been checked. `None` between
    /// frames.
    pub fn arriving(&self) -> Option<usize> {
        match self.buffer.get(..PREFIX + HEADER) {
            Some(mut header) => Some(header.get_u32_le() as usize),
            None => (!self.buffer.is_empty()).then_some(0),
        }
    }
}

fn invalid(text: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame() -> Frame {
        let route = Route { cluster: [7; 16], from: 1, to: 2 };
        Frame { kind: Kind::Ordered, id: 9, route, content: Bytes::from_static(b"hello") }
    }

    fn bytes() -> BytesMut {
        let mut out = BytesMut::new();
        frame().encode_into(&mut out);
        out
    }

    #[test]
    fn round_trip_byte_by_byte() {
        let all = bytes();
        let mut buffer = BytesMut::new();
        for (n, byte) in all.iter().enumerate() {
            buffer.put_u8(*byte);
            let decoded = Frame::decode(&mut buffer).unwrap();
            assert_eq!(decoded.is_some(), n + 1 == all.len());
            if let Some(decoded) = decoded {
                assert_eq!(decoded, frame());
            }
        }
    }

    #[test]
    fn every_flipped_bit_is_refused_or_waits_for_more() {
        for bit in 0..bytes().len() * 8 {
            let mut bad = bytes();
            bad[bit / 8] ^= 1 << (bit % 8);
            let decoded = Frame::decode(&mut bad);
            assert!(!matches!(decoded, Ok(Some(_))), "bit {bit} went unseen");
        }
    }

    #[test]
    fn hostile_lengths_and_foreign_versions_are_refused_at_once() {
        let mut long = BytesMut::from(&[0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0][..]);
        assert!(Frame::decode(&mut long).is_err());
        let mut foreign = bytes();
        foreign.truncate(9);
        foreign[8] = 77;
        assert!(Frame::decode(&mut foreign).unwrap_err().to_string().contains("version 77"));
        let mut http = BytesMut::from(&b"GET / HTTP/1.1\r\n\r\n"[..]);
        assert!(Frame::decode(&mut http).is_err());
    }
}
