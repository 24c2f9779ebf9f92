//! Bytes on a socket: what no well-behaved client would send, and what came back.

use std::io;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Longer than the server waits for anything but a request's header.
const PATIENCE: Duration = Duration::from_secs(20);

/// An HTTP response.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Answer {
    fn parse(bytes: &[u8]) -> io::Result<Self> {
        let text = String::from_utf8_lossy(bytes);
        let (head, body) = text.split_once("\r\n\r\n").ok_or(io::ErrorKind::ConnectionReset)?;
        let status = head.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)?.parse().ok());
        let status = status.ok_or_else(|| io::Error::other(format!("not a response: {head:?}")))?;
        Ok(Self { status, head: head.to_owned(), body: body.to_owned() })
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut pairs = self.head.lines().filter_map(|line| line.split_once(": "));
        pairs.find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{self:?} is not JSON: {e}"))
    }
}

/// A connection that may stay half open. Closed when dropped.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: TcpStream,
}

impl Connection {
    pub(crate) async fn open(address: &str) -> io::Result<Self> {
        Ok(Self { stream: timeout(PATIENCE, TcpStream::connect(address)).await?? })
    }

    pub(crate) async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        timeout(PATIENCE, self.stream.write_all(bytes)).await?
    }

    /// Everything until the server closes the connection, or has said all that its `content-length` announced.
    pub(crate) async fn answer(&mut self) -> io::Result<Answer> {
        let mut bytes = Vec::new();
        let reading = async {
            // What came before the connection broke counts.
            while !whole(&bytes) && self.stream.read_buf(&mut bytes).await? > 0 {}
            Ok(())
        };
        let read = timeout(PATIENCE, reading).await?;
        match (bytes.is_empty(), read) {
            (true, Err(e)) => Err(e),
            (true, Ok(())) => Err(io::ErrorKind::ConnectionReset.into()),
            (false, _) => Answer::parse(&bytes),
        }
    }

    /// Takes up to so many bytes; how many came.
    pub(crate) async fn take(&mut self, most: usize) -> io::Result<usize> {
        timeout(PATIENCE, self.stream.read(&mut vec![0; most])).await?
    }

    /// The head of a response whose body has no end.
    pub(crate) async fn head(&mut self) -> io::Result<String> {
        let mut bytes = Vec::new();
        while !bytes.windows(4).any(|end| end == b"\r\n\r\n") {
            if timeout(PATIENCE, self.stream.read_buf(&mut bytes)).await?? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }
}

fn whole(bytes: &[u8]) -> bool {
    let Ok(answer) = Answer::parse(bytes) else { return false };
    let length = answer.header("content-length").and_then(|length| length.parse::<usize>().ok());
    length.is_some_and(|length| answer.body.len() >= length)
}

/// Sends all of `request`, or as much as the server wants of it, and reads the answer.
pub(crate) async fn exchange(address: &str, request: &[u8]) -> io::Result<Answer> {
    let mut connection = Connection::open(address).await?;
    let sent = connection.send(request).await;
    match connection.answer().await {
        Err(e) if e.kind() != io::ErrorKind::TimedOut => Err(sent.err().unwrap_or(e)),
        answer => answer,
    }
}

/// A process' memory, in bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Memory {
    pub(crate) now: u64,
    pub(crate) peak: u64,
}

pub(crate) fn memory(pid: u32) -> Memory {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("a process that runs");
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
        kib.unwrap_or_else(|| panic!("no {name} in {status}")) << 10
    };
    Memory { now: field("VmRSS:"), peak: field("VmHWM:") }
}

/// How many files this process may open.
pub(crate) fn file_limit() -> usize {
    let limits = std::fs::read_to_string("/proc/self/limits").expect("this process' limits");
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"));
    let soft = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
    soft.unwrap_or(usize::MAX)
}
