//! HTTP/1.1 on one connection, as little of it as a load generator needs: no allocation per request.

use std::io::{self, Error, ErrorKind};
use std::ops::Range;
use std::pin::Pin;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep, timeout};

const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);
/// A request without an answer for this long is given up...
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);
/// ...which is looked at so often only, since setting a timer for each request would cost more than it is worth.
const TICK: Duration = Duration::from_millis(500);
const BUFFER: usize = 16 << 10;
const BODY_MAX: usize = 64 << 20;
const HEADERS_MAX: usize = 24;

/// A keep-alive connection with one request in flight.
#[derive(Debug)]
pub(super) struct Wire {
    stream: TcpStream,
    buffer: Vec<u8>,
    filled: usize,
    tick: Pin<Box<Sleep>>,
}

/// An answer; its body lies in the connection's buffer until the next request.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    body: Range<usize>,
    /// Will the server take another request on this connection?
    pub(super) keep: bool,
}

impl Wire {
    pub(super) async fn open(address: &str) -> io::Result<Self> {
        let stream = timeout(CONNECT_TIMEOUT, TcpStream::connect(address))
            .await
            .map_err(|_| Error::new(ErrorKind::TimedOut, "no connection in time"))??;
        stream.set_nodelay(true)?;
        Ok(Self { stream, buffer: vec![0; BUFFER], filled: 0, tick: Box::pin(sleep(TICK)) })
    }

    /// Sends a request and reads its answer.
    pub(super) async fn exchange(&mut self, request: &[u8], started: Instant) -> io::Result<Answer> {
        self.filled = 0;
        if request.len() <= BUFFER {
            self.stream.write_all(request).await?;
        } else {
            // A large request can fill the socket of a server that hangs.
            timeout(ANSWER_TIMEOUT, self.stream.write_all(request)).await.map_err(|_| no_answer())??;
        }
        loop {
            self.read_more(started).await?;
            let Some((mut answer, length)) = parse_head(&self.buffer[..self.filled])? else {
                continue;
            };
            let head = answer.body.start;
            if length > BODY_MAX {
                return Err(bad("the answer is too large"));
            }
            if self.buffer.len() < head + length {
                self.buffer.resize(head + length, 0);
            }
            while self.filled < head + length {
                self.read_more(started).await?;
            }
            answer.body.end = head + length;
            return Ok(answer);
        }
    }

    pub(super) fn body(&self, answer: &Answer) -> &[u8] {
        &self.buffer[answer.body.clone()]
    }

    async fn read_more(&mut self, started: Instant) -> io::Result<()> {
        if self.filled == self.buffer.len() {
            return Err(bad("the answer's head is too large"));
        }
        loop {
            tokio::select! {
                biased;
                read = self.stream.read(&mut self.buffer[self.filled..]) => {
                    return match read? {
                        0 => Err(Error::new(ErrorKind::UnexpectedEof, "the server closed the connection")),
                        read => {
                            self.filled += read;
                            Ok(())
                        }
                    };
                }
                () = self.tick.as_mut() => {
                    let now = Instant::now();
                    self.tick.as_mut().reset(now + TICK);
                    if now - started >= ANSWER_TIMEOUT {
                        return Err(no_answer());
                    }
                }
            }
        }
    }
}

/// The head of an answer, once it is complete, with the length of the body that follows.
fn parse_head(bytes: &[u8]) -> io::Result<Option<(Answer, usize)>> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut response = httparse::Response::new(&mut headers);
    let head = match response.parse(bytes) {
        Ok(httparse::Status::Complete(head)) => head,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(error) => return Err(bad(&format!("the answer is no HTTP: {error}"))),
    };
    let status = response.code.unwrap_or_default();
    let mut length = if status == 204 { Some(0) } else { None };
    let mut keep = true;
    for header in response.headers.iter() {
        if header.name.eq_ignore_ascii_case("content-length") {
            length = std::str::from_utf8(header.value).ok().and_then(|text| text.trim().parse().ok());
        } else if header.name.eq_ignore_ascii_case("connection") {
            keep = !header.value.eq_ignore_ascii_case(b"close");
        }
    }
    let length: usize = length.ok_or_else(|| bad("the answer has no Content-Length"))?;
    Ok(Some((Answer { status, body: head..head, keep }, length)))
}

fn bad(cause: &str) -> Error {
    Error::new(ErrorKind::InvalidData, cause)
}

fn no_answer() -> Error {
    Error::new(ErrorKind::TimedOut, "no answer in time")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads() {
        assert!(parse_head(b"HTTP/1.1 200 OK\r\nContent-Le").unwrap().is_none());
        let (answer, length) =
            parse_head(b"HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\n{\"v").unwrap().unwrap();
        assert_eq!((answer.status, answer.body.start, answer.keep, length), (200, 39, true, 12));
        let (answer, length) =
            parse_head(b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n").unwrap().unwrap();
        assert_eq!((answer.status, answer.keep, length), (204, false, 0));
        assert!(parse_head(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").is_err());
        assert!(parse_head(b"SSH-2.0-OpenSSH\r\n\r\n").is_err());
    }
}
