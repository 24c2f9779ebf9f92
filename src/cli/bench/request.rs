//! Requests as bytes: built once, then patched.

use std::io::Write;

use super::super::common::ReadName;

/// The counters' names begin with this and go on with a number of fixed width, so that a name can be patched in place.
const KEY: &str = "bench-";

/// A place of `width` digits that gets a random key for each request.
fn patch(bytes: &mut [u8], at: usize, width: usize, mut number: u32) {
    for digit in bytes[at..at + width].iter_mut().rev() {
        *digit = b'0' + (number % 10) as u8;
        number /= 10;
    }
}

fn push_number(bytes: &mut Vec<u8>, number: u64) {
    // Writing into a vector cannot fail.
    let _ = write!(bytes, "{number}");
}

/// A fast generator of random keys (xorshift64*); nothing here needs more than an even spread.
#[derive(Debug)]
pub(super) struct Keys {
    state: u64,
    keys: u32,
}

impl Keys {
    pub(super) fn new(keys: u32, seed: u64) -> Self {
        Self { state: seed | 1, keys }
    }

    fn width(&self) -> usize {
        (self.keys - 1).to_string().len()
    }

    fn next(&mut self) -> u32 {
        self.state ^= self.state >> 12;
        self.state ^= self.state << 25;
        self.state ^= self.state >> 27;
        let random = self.state.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 32;
        ((random * u64::from(self.keys)) >> 32) as u32
    }
}

/// The commands of one client.
#[derive(Debug)]
pub(super) struct Commands {
    path: &'static str,
    /// How many commands a request has.
    batch: usize,
    /// Head and body as they go out.
    bytes: Vec<u8>,
    /// How much of the head stays the same from one request to the next.
    fixed: usize,
    body: Vec<u8>,
    /// Where the body's first key is, and how far it is to the next.
    first: usize,
    step: usize,
    keys: Keys,
}

impl Commands {
    /// Adds of 1, `batch` of them in a request.
    pub(super) fn adds(batch: u32, keys: Keys) -> Self {
        if batch == 1 {
            return Self::new("/v1/counter/add", r#"{"name":""#, r#"","amount":1}"#, keys);
        }
        let front = r#"{"counter":{"add":{"name":""#;
        let mut commands = Self::new("/v1/batch", front, r#"","amount":1}}}"#, keys);
        commands.step = commands.body.len() + 1;
        commands.batch = batch as usize;
        let body = [b"[", vec![&commands.body[..]; commands.batch].join(&b',').as_slice(), b"]"].concat();
        commands.body = body;
        commands.first += 1;
        commands
    }

    /// Sales of one stock, which are never refused, on an account for each key.
    pub(super) fn orders(keys: Keys) -> Self {
        let front = r#"{"stock":"GameStart","side":"sell","quantity":1,"client":""#;
        Self::new("/v1/exchange/order", front, r#""}"#, keys)
    }

    /// Messages to all.
    pub(super) fn messages(keys: Keys) -> Self {
        Self::new("/v1/chat/say", r#"{"text":"hello, all, from "#, r#""}"#, keys)
    }

    fn new(path: &'static str, front: &str, back: &str, keys: Keys) -> Self {
        let body = format!("{front}{KEY}{:0width$}{back}", 0, width = keys.width()).into_bytes();
        let first = front.len() + KEY.len();
        Self { path, batch: 1, bytes: Vec::new(), fixed: 0, body, first, step: 0, keys }
    }

    /// For a connection to `host` in a session.
    pub(super) fn connect(&mut self, host: &str, session: u64) {
        self.bytes = format!(
            "POST {} HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\
             quorate-session: {session}\r\nquorate-sequence: ",
            self.path,
            self.body.len()
        )
        .into_bytes();
        self.fixed = self.bytes.len();
    }

    /// Chooses the keys of the next request.
    pub(super) fn choose(&mut self) {
        let width = self.keys.width();
        for add in 0..self.batch {
            let key = self.keys.next();
            patch(&mut self.body, self.first + add * self.step, width, key);
        }
    }

    /// The request with the chosen keys. Every reply before `sequence` has arrived.
    pub(super) fn request(&mut self, sequence: u64) -> &[u8] {
        self.bytes.truncate(self.fixed);
        push_number(&mut self.bytes, sequence);
        self.bytes.extend_from_slice(b"\r\nquorate-acked: ");
        push_number(&mut self.bytes, sequence - 1);
        self.bytes.extend_from_slice(b"\r\n\r\n");
        self.bytes.extend_from_slice(&self.body);
        &self.bytes
    }
}

/// The gets of one client.
#[derive(Debug)]
pub(super) struct Gets {
    bytes: Vec<u8>,
    at: usize,
    read: ReadName,
    keys: Keys,
}

impl Gets {
    pub(super) fn new(read: ReadName, keys: Keys) -> Self {
        Self { bytes: Vec::new(), at: 0, read, keys }
    }

    /// For a connection to `host`.
    pub(super) fn connect(&mut self, host: &str) {
        let read = match self.read {
            ReadName::Linearizable => "linearizable",
            ReadName::Lease => "lease",
            ReadName::Stale => "stale",
        };
        let front = format!("GET /v1/counter/get?name={KEY}");
        self.at = front.len();
        let key = format!("{:0width$}", 0, width = self.keys.width());
        self.bytes = format!("{front}{key}&read={read} HTTP/1.1\r\nhost: {host}\r\n\r\n").into_bytes();
    }

    /// Chooses the counter of the next request.
    pub(super) fn choose(&mut self) {
        let key = self.keys.next();
        patch(&mut self.bytes, self.at, self.keys.width(), key);
    }

    pub(super) fn request(&self) -> &[u8] {
        &self.bytes
    }
}

/// A request that is sent once in a while.
pub(super) fn plain(method: &str, path: &str, host: &str, body: &str) -> Vec<u8> {
    format!(
        "{method} {path} HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    use super::*;

    /// The head and the body of a request, after checking that its Content-Length is right.
    fn parts(request: &[u8]) -> (String, Value) {
        let text = std::str::from_utf8(request).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("content-length: {}\r\n", body.len())), "{head}");
        (head.to_owned(), serde_json::from_str(body).unwrap())
    }

    #[test]
    fn adds_are_whole_requests() {
        let mut adds = Commands::adds(1, Keys::new(1_000, 7));
        adds.connect("h:1", 17);
        let mut names = BTreeSet::new();
        for sequence in 1..=5_000 {
            adds.choose();
            let (head, body) = parts(adds.request(sequence));
            assert!(head.starts_with("POST /v1/counter/add HTTP/1.1\r\nhost: h:1\r\n"), "{head}");
            let numbers =
                format!("session: 17\r\nquorate-sequence: {sequence}\r\nquorate-acked: {}", sequence - 1);
            assert!(head.ends_with(&numbers), "{head}");
            assert_eq!(body["amount"], 1);
            names.insert(body["name"].as_str().unwrap().to_owned());
        }
        assert!(names.len() > 950, "only {} of 1,000 keys were used", names.len());
        assert!(names.iter().all(|name| name.len() == "bench-000".len()));
    }

    #[test]
    fn a_batch_holds_many_adds() {
        let mut adds = Commands::adds(50, Keys::new(10_000, 7));
        adds.connect("h:1", 1);
        adds.choose();
        let (head, body) = parts(adds.request(51));
        assert!(head.starts_with("POST /v1/batch HTTP/1.1\r\n"), "{head}");
        let entries = body.as_array().unwrap();
        assert_eq!(entries.len(), 50);
        let names: BTreeSet<_> =
            entries.iter().map(|entry| entry["counter"]["add"]["name"].as_str().unwrap()).collect();
        assert!(names.len() > 40);
        // A retry has the same body.
        let again = parts(adds.request(51)).1;
        assert_eq!(again, body);
    }

    #[test]
    fn orders_and_messages_are_whole_requests() {
        let mut orders = Commands::orders(Keys::new(10, 7));
        orders.connect("h:1", 1);
        orders.choose();
        let (head, body) = parts(orders.request(1));
        assert!(head.starts_with("POST /v1/exchange/order "), "{head}");
        assert!(body["client"].as_str().unwrap().starts_with("bench-"), "{body}");
        let mut messages = Commands::messages(Keys::new(10, 7));
        messages.connect("h:1", 1);
        messages.choose();
        let (head, body) = parts(messages.request(1));
        assert!(head.starts_with("POST /v1/chat/say "), "{head}");
        assert!(body["text"].as_str().unwrap().starts_with("hello, all, from bench-"), "{body}");
    }

    #[test]
    fn gets_name_their_key() {
        let mut gets = Gets::new(ReadName::Lease, Keys::new(10, 3));
        gets.connect("h:1");
        gets.choose();
        let text = std::str::from_utf8(gets.request()).unwrap();
        assert!(
            text.starts_with("GET /v1/counter/get?name=bench-") && text.contains("&read=lease HTTP/1.1\r\n")
        );
    }
}
