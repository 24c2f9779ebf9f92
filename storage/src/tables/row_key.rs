//! A row's key, laid out for searching: most of apply's time goes into finding rows in the overlay.

use std::cmp::Ordering;
use std::hash::{Hash, Hasher};

/// Bytes that are compared as words, without a call or a detour.
const INLINE: usize = 40;
const WORDS: usize = INLINE / 8;

/// A row's key. Ordered like its bytes.
#[derive(Clone, Eq)]
pub struct RowKey {
    /// The first bytes, big-endian and padded with zeros, so that words compare like bytes.
    words: [u64; WORDS],
    length: u32,
    /// What does not fit; mostly empty, and then without an allocation.
    rest: Box<[u8]>,
}

impl RowKey {
    /// The key's bytes.
    pub fn to_vec(&self) -> Vec<u8> {
        let mut bytes: Vec<u8> = self.words.iter().flat_map(|word| word.to_be_bytes()).collect();
        bytes.truncate(self.length as usize);
        bytes.extend_from_slice(&self.rest);
        bytes
    }
}

impl From<&[u8]> for RowKey {
    fn from(key: &[u8]) -> Self {
        let (first, rest) = key.split_at(key.len().min(INLINE));
        let mut padded = [0; INLINE];
        padded[..first.len()].copy_from_slice(first);
        let mut words = [0; WORDS];
        for (word, bytes) in words.iter_mut().zip(padded.chunks_exact(8)) {
            let mut eight = [0; 8];
            eight.copy_from_slice(bytes);
            *word = u64::from_be_bytes(eight);
        }
        // The length without `rest`: a key that ends in zeros differs from its padding by it.
        Self { words, length: first.len() as u32, rest: rest.into() }
    }
}

impl PartialEq for RowKey {
    fn eq(&self, other: &Self) -> bool {
        // Without a call: `==` on the words would be one of memcmp, and the rest is mostly empty.
        let differing = self.words.iter().zip(&other.words).fold(0, |bits, (a, b)| bits | (a ^ b));
        differing == 0
            && self.length == other.length
            && self.rest.len() == other.rest.len()
            && (self.rest.is_empty() || self.rest == other.rest)
    }
}

impl Hash for RowKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        for word in self.words {
            state.write_u64(word);
        }
        state.write_u32(self.length);
        if !self.rest.is_empty() {
            state.write(&self.rest);
        }
    }
}

impl Ord for RowKey {
    fn cmp(&self, other: &Self) -> Ordering {
        self.words.cmp(&other.words).then_with(|| self.length.cmp(&other.length)).then_with(|| {
            match (self.rest.is_empty(), other.rest.is_empty()) {
                // Without a call.
                (true, true) => Ordering::Equal,
                _ => self.rest.cmp(&other.rest),
            }
        })
    }
}

impl PartialOrd for RowKey {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn ordered_like_its_bytes(
            common in proptest::collection::vec(0u8..3, 0..45),
            a in proptest::collection::vec(0u8..3, 0..6),
            b in proptest::collection::vec(0u8..3, 0..6),
        ) {
            let (a, b) = ([&common[..], &a].concat(), [&common[..], &b].concat());
            let (ka, kb) = (RowKey::from(&a[..]), RowKey::from(&b[..]));
            prop_assert_eq!(ka.cmp(&kb), a.cmp(&b));
            prop_assert_eq!(ka == kb, a == b);
            prop_assert_eq!(ka.to_vec(), a);
        }
    }
}
