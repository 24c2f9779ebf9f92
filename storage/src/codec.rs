//! The one place that calls bincode.
//!
//! Every record starts with a version byte, so that a later version can tell an old record from a
//! new one. bincode numbers enum variants and struct fields by position: append at the end only;
//! the tests beside each record pin its bytes.

use std::ops::Deref;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use smallvec::SmallVec;

/// The version byte before every record written today.
pub const RECORD_VERSION: u8 = 1;

/// A record that cannot be read. On disk this is damage; from a peer, a malformed message.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
pub enum CodecError {
    /// No bytes at all, not even the version.
    #[error("the record is empty")]
    Empty,
    /// Written by a version of Quorate that this one does not know.
    #[error("the record has version {0}, this build reads version {RECORD_VERSION}")]
    Version(u8),
    /// The bytes are not a record of the wanted type.
    #[error("the record does not decode: {0}")]
    Malformed(String),
}

const CONFIG: bincode::config::Configuration = bincode::config::standard();

/// Decoded collections may claim at most this many bytes, so that a hostile length cannot allocate.
const DECODE_LIMIT: usize = 64 << 20;

/// Encodes `value` behind a version byte.
pub fn encode<T: Serialize + ?Sized>(value: &T) -> Vec<u8> {
    let mut out = Vec::with_capacity(64);
    encode_into(value, &mut out);
    out
}

/// Appends a version byte and `value` to `out`.
pub fn encode_into<T: Serialize + ?Sized>(value: &T, out: &mut Vec<u8>) {
    out.push(RECORD_VERSION);
    push_item(value, out);
}

/// Decodes a whole record. What can borrow from it does.
///
/// # Errors
/// [`CodecError`] when the record is empty, of another version, malformed, or longer than its value.
pub fn decode<'a, T: Deserialize<'a>>(record: &'a [u8]) -> Result<T, CodecError> {
    let mut rest = body(record)?;
    let value = take(&mut rest)?;
    match rest.len() {
        0 => Ok(value),
        left => Err(CodecError::Malformed(format!("{left} bytes left over"))),
    }
}

/// Bytes of which the first `N` need no allocation. Encoded as text is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SmallBytes<const N: usize>(SmallVec<[u8; N]>);

impl<const N: usize> From<&[u8]> for SmallBytes<N> {
    fn from(bytes: &[u8]) -> Self {
        Self(SmallVec::from_slice(bytes))
    }
}

impl<const N: usize> Deref for SmallBytes<N> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl<const N: usize> Serialize for SmallBytes<N> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de, const N: usize> Deserialize<'de> for SmallBytes<N> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        <&[u8]>::deserialize(deserializer).map(Self::from)
    }
}

/// Bytes, encoded as text is: a `[u8]` would be encoded byte by byte.
pub(crate) struct Raw<'a>(pub(crate) &'a [u8]);

impl Serialize for Raw<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(self.0)
    }
}

/// Appends `item` to a list that [`take`] and [`items`] read. The record that holds the list has the version byte.
pub(crate) fn push_item<T: Serialize + ?Sized>(item: &T, list: &mut Vec<u8>) {
    // Writing to a Vec cannot fail, and our types have no serializer that refuses.
    bincode::serde::encode_into_writer(item, VecWriter(list), CONFIG)
        .expect("encoding to memory cannot fail");
}

/// Lengths below this take one byte.
const LONG: usize = 251;

/// Appends the bytes that `write` appends, behind their length: as [`Raw`] is, without a copy. Gives the length.
pub(crate) fn push_sized(list: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) -> usize {
    let at = list.len();
    list.push(0);
    write(list);
    let length = list.len() - at - 1;
    if length < LONG {
        list[at] = length as u8;
    } else {
        let mut head = Vec::new();
        push_item(&length, &mut head);
        list.splice(at..=at, head);
    }
    length
}

/// Appends to a Vec. Most of what is written is a byte: a small number, a length, a variant.
struct VecWriter<'a>(&'a mut Vec<u8>);

impl bincode::enc::write::Writer for VecWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> Result<(), bincode::error::EncodeError> {
        match bytes {
            [byte] => self.0.push(*byte),
            bytes => self.0.extend_from_slice(bytes),
        }
        Ok(())
    }
}

/// Takes the first item from the front of a list.
///
/// # Errors
/// [`CodecError::Malformed`]; the list stays as it is.
pub(crate) fn take<'a, T: Deserialize<'a>>(list: &mut &'a [u8]) -> Result<T, CodecError> {
    let item = bincode::serde::borrow_decode_from_slice(list, CONFIG.with_limit::<DECODE_LIMIT>());
    let (item, used) = item.map_err(|e| CodecError::Malformed(e.to_string()))?;
    *list = &list[used..];
    Ok(item)
}

/// The items of a list, until the first that does not decode.
pub(crate) fn items<'a, T: Deserialize<'a>>(
    mut list: &'a [u8],
) -> impl Iterator<Item = Result<T, CodecError>> {
    std::iter::from_fn(move || {
        if list.is_empty() {
            return None;
        }
        let item = take(&mut list);
        if item.is_err() {
            list = &[];
        }
        Some(item)
    })
}

/// What follows a record's version byte.
pub(crate) fn body(record: &[u8]) -> Result<&[u8], CodecError> {
    match record.split_first() {
        None => Err(CodecError::Empty),
        Some((&RECORD_VERSION, body)) => Ok(body),
        Some((&version, _)) => Err(CodecError::Version(version)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_a_version_byte_and_its_body() {
        assert_eq!(encode(&("ab", 7u64)), [1, 2, b'a', b'b', 7]);
        assert_eq!(decode::<(String, u64)>(&[1, 2, b'a', b'b', 7]), Ok(("ab".to_owned(), 7)));
    }

    #[test]
    fn empty_unknown_malformed_and_overlong_records_are_refused() {
        assert_eq!(decode::<u64>(&[]), Err(CodecError::Empty));
        assert_eq!(decode::<u64>(&[9, 1]), Err(CodecError::Version(9)));
        assert!(matches!(decode::<String>(&[1, 200, b'a']), Err(CodecError::Malformed(_))));
        assert!(matches!(decode::<u64>(&[1, 1, 1]), Err(CodecError::Malformed(_))));
    }

    #[test]
    fn bytes_behind_their_length_are_as_raw_ones() {
        for length in [0, 1, LONG - 1, LONG, 300, 70_000] {
            let bytes = vec![7; length];
            let (mut sized, mut raw) = (vec![1, 2], vec![1, 2]);
            assert_eq!(push_sized(&mut sized, |list| list.extend_from_slice(&bytes)), length);
            push_item(&Raw(&bytes), &mut raw);
            assert_eq!(sized, raw);
        }
    }

    #[test]
    fn a_hostile_length_allocates_nothing() {
        // 253 announces a u64 length; 2^60 bytes are claimed and none follow.
        let record = [1, 253, 0, 0, 0, 0, 0, 0, 0, 16];
        assert!(matches!(decode::<Vec<u8>>(&record), Err(CodecError::Malformed(_))));
    }
}
