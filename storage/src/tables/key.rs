//! Keys whose encoded order is their own order.

/// A table's key. The encoding keeps the order: `a < b` exactly when `encode(a) < encode(b)`.
pub trait Key: Sized {
    /// Appends the encoding.
    fn encode_into(&self, out: &mut Vec<u8>);

    /// Decodes a whole key; `None` for bytes that no key encodes to.
    fn decode(bytes: &[u8]) -> Option<Self>;
}

impl Key for String {
    fn encode_into(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.as_bytes());
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        String::from_utf8(bytes.to_vec()).ok()
    }
}

impl Key for () {
    fn encode_into(&self, _: &mut Vec<u8>) {}

    fn decode(bytes: &[u8]) -> Option<Self> {
        bytes.is_empty().then_some(())
    }
}

impl Key for u64 {
    fn encode_into(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.to_be_bytes());
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        Some(u64::from_be_bytes(bytes.try_into().ok()?))
    }
}

impl Key for u32 {
    fn encode_into(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.to_be_bytes());
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        Some(u32::from_be_bytes(bytes.try_into().ok()?))
    }
}

/// A number first: it has a fixed width, so that the rest needs no separator.
impl<K: Key> Key for (u64, K) {
    fn encode_into(&self, out: &mut Vec<u8>) {
        self.0.encode_into(out);
        self.1.encode_into(out);
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (first, rest) = bytes.split_at_checked(8)?;
        Some((u64::decode(first)?, K::decode(rest)?))
    }
}

/// A string first: its zero bytes are escaped as `00 ff` and it ends in `00 00`, which keeps the order.
impl<K: Key> Key for (String, K) {
    fn encode_into(&self, out: &mut Vec<u8>) {
        for &byte in self.0.as_bytes() {
            out.push(byte);
            if byte == 0 {
                out.push(0xff);
            }
        }
        out.extend_from_slice(&[0, 0]);
        self.1.encode_into(out);
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let mut text = Vec::new();
        let mut at = 0;
        loop {
            match (*bytes.get(at)?, bytes.get(at + 1)) {
                (0, Some(0)) => break,
                (0, Some(0xff)) => {
                    text.push(0);
                    at += 2;
                }
                (0, _) => return None,
                (byte, _) => {
                    text.push(byte);
                    at += 1;
                }
            }
        }
        Some((String::from_utf8(text).ok()?, K::decode(&bytes[at + 2..])?))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn encode<K: Key>(key: &K) -> Vec<u8> {
        let mut out = Vec::new();
        key.encode_into(&mut out);
        out
    }

    proptest! {
        #[test]
        fn order_and_round_trip(
            a in ("[a-c\0]{0,4}", any::<u64>()),
            b in ("[a-c\0]{0,4}", any::<u64>()),
        ) {
            prop_assert_eq!(a.cmp(&b), encode(&a).cmp(&encode(&b)));
            prop_assert_eq!(a.0.cmp(&b.0), encode(&a.0).cmp(&encode(&b.0)));
            let (ra, rb) = ((a.1, a.0.clone()), (b.1, b.0.clone()));
            prop_assert_eq!(ra.cmp(&rb), encode(&ra).cmp(&encode(&rb)));
            prop_assert_eq!(<(String, u64)>::decode(&encode(&a)), Some(a));
            prop_assert_eq!(<(u64, String)>::decode(&encode(&ra)), Some(ra));
        }

        #[test]
        fn decoding_any_bytes_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..24)) {
            let _ = <(String, u64)>::decode(&bytes);
            let _ = <(u64, u32)>::decode(&bytes);
            let _ = <(u64, String)>::decode(&bytes);
        }
    }
}
