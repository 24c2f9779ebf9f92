//! The text port (`--text-listen`): one request a line, one answer a line, so that `nc` is a client.
//!
//! ```text
//! <C1, S1, 8, add 5, request>      ->  <C1, S1, 8, 12, reply>       counter "default"
//! <C1, S1, 9, hello, request>      ->  <C1, S1, 9, hello, reply>    register "default"
//! <LFD1, S1, 3, heartbeat>         ->  <LFD1, S1, 3, heartbeat>
//! ```
//!
//! The client's name is its session, the number its sequence: the same line again is answered alike and applied once, at
//! whichever server. The last 1,024 numbers can be asked for again; what is not carried out is answered
//! `<C1, S1, 8, why, refused>`, and `<C1, S1, 8, why, unknown>` where it may have been.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use quorate_cluster::error::{Attempt, NodeError};
use quorate_cluster::node::Node;
use quorate_storage::codec;
use quorate_storage::delta::{Command, DeltaResult, SESSION_SERVICE};
use quorate_storage::machine::{SessionCommand, SessionReply, TTL_BOUNDS};
use serde_json::{Value, json};
use tokio::io::{AsyncBufRead, AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;

use crate::hooks::Hooked;
use crate::http::{MAX_SEQUENCE, Problem, accept};
use crate::transcript::Transcript;

/// A line, its end included.
const MAX_LINE: usize = 4096;
/// So many numbers back the reply is still kept.
const KEPT: u64 = 1024;
const MAX_CONNECTIONS: usize = 256;
/// Who says nothing for so long is hung up on, as is who takes no answer.
const SILENCE: Duration = Duration::from_secs(600);
const STALL: Duration = Duration::from_secs(20);
/// One request, an election included.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
const NO_PRIMARY_PATIENCE: Duration = Duration::from_millis(800);
/// Names whose session is remembered. When there are more, they are asked for again.
const MAX_NAMES: usize = 4096;
const MAX_NAME: usize = 256;

/// What the connections share.
pub(crate) struct TextPort {
    node: Node,
    transcript: Transcript,
    hooked: Hooked,
    sessions: Mutex<HashMap<String, u64>>,
}

/// A request, taken apart.
#[derive(Debug, PartialEq, Eq)]
struct Request<'a> {
    client: &'a str,
    server: &'a str,
    number: &'a str,
    body: &'a str,
}

/// What a line is.
#[derive(Debug, PartialEq, Eq)]
enum Line<'a> {
    Request(Request<'a>),
    /// The server that it is for.
    Heartbeat(&'a str),
    Other,
}

impl<'a> Line<'a> {
    fn parse(line: &'a str) -> Self {
        let parsed = || {
            let inner = line.trim().strip_prefix('<')?;
            if let Some(fields) = inner.strip_suffix(", heartbeat>") {
                let mut fields = fields.splitn(3, ',');
                let (_, server, number) = (fields.next()?, fields.next()?, fields.next()?);
                return number.trim().parse::<u64>().is_ok().then(|| Self::Heartbeat(server.trim()));
            }
            let mut fields = inner.strip_suffix(", request>")?.splitn(4, ',');
            let mut next = || fields.next();
            let (client, server, number, body) = (next()?.trim(), next()?.trim(), next()?.trim(), next()?);
            Some(Self::Request(Request {
                client,
                server,
                number,
                body: body.strip_prefix(' ').unwrap_or(body),
            }))
        };
        parsed().unwrap_or(Self::Other)
    }
}

/// A body as a command: the service, its command, and the fields.
fn command_of(body: &str) -> (&'static str, &'static str, Value) {
    let amount = |word: &str| {
        let rest = body.strip_prefix(word)?.strip_prefix(' ')?;
        rest.trim().parse::<i64>().ok()
    };
    match (amount("add"), amount("minus")) {
        (Some(amount), _) => ("counter", "add", json!({ "amount": amount })),
        (_, Some(amount)) => ("counter", "minus", json!({ "amount": amount })),
        _ => ("register", "set", json!({ "text": body })),
    }
}

/// Why there is no reply.
struct Failed {
    why: String,
    maybe_applied: bool,
}

impl Failed {
    fn refused(why: impl Into<String>) -> Self {
        Self { why: why.into(), maybe_applied: false }
    }
}

impl From<NodeError> for Failed {
    fn from(error: NodeError) -> Self {
        let primary = error.primary.map_or_else(String::new, |url| format!(" (the primary is {url})"));
        Self { why: format!("{}{primary}", error.detail), maybe_applied: error.attempt == Attempt::Unknown }
    }
}

impl TextPort {
    pub(crate) fn new(node: Node, transcript: Transcript, hooked: Hooked) -> Self {
        Self { node, transcript, hooked, sessions: Mutex::default() }
    }

    /// Serves until `stop` turns true.
    pub(crate) async fn serve(self, listener: TcpListener, stop: watch::Receiver<bool>) {
        let (port, slots) = (Arc::new(self), Arc::new(Semaphore::new(MAX_CONNECTIONS)));
        let accepting = async {
            loop {
                let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
                let stream = accept(&listener).await;
                let (port, mut stop) = (Arc::clone(&port), stop.clone());
                tokio::spawn(async move {
                    tokio::select! {
                        _ = stop.wait_for(|stop| *stop) => {}
                        ended = port.talk(stream) => {
                            if let Err(error) = ended {
                                tracing::debug!(%error, "a text connection ended");
                            }
                        }
                    }
                    drop(slot);
                });
            }
        };
        let mut ended = stop.clone();
        tokio::select! {
            _ = ended.wait_for(|stop| *stop) => {}
            () = accepting => {}
        }
    }

    async fn talk(&self, mut stream: TcpStream) -> io::Result<()> {
        let (reader, mut writer) = stream.split();
        let mut reader = BufReader::with_capacity(MAX_LINE, reader);
        let mut line = Vec::with_capacity(256);
        while timeout(SILENCE, read_line(&mut reader, &mut line)).await?? {
            let answer = match std::str::from_utf8(&line) {
                _ if line.len() > MAX_LINE => {
                    Some(self.nameless(&format!("a line has at most {MAX_LINE} bytes")))
                }
                Err(_) => Some(self.nameless("the line is not UTF-8")),
                Ok(text) if text.trim().is_empty() => None,
                Ok(text) => Some(self.answer(text).await),
            };
            if let Some(mut answer) = answer {
                answer.push('\n');
                timeout(STALL, writer.write_all(answer.as_bytes())).await??;
            }
        }
        Ok(())
    }

    /// To a line that nobody can be told from.
    fn nameless(&self, why: &str) -> String {
        format!("<-, {}, 0, {why}, refused>", self.node.name())
    }

    async fn answer(&self, line: &str) -> String {
        let own = self.node.name();
        let request = match Line::parse(line) {
            Line::Heartbeat(server) if server == own => return line.trim().to_owned(),
            Line::Heartbeat(server) => return self.nameless(&format!("this server is {own}, not {server}")),
            Line::Request(request) => request,
            Line::Other => {
                return self.nameless(&format!(
                    "a request is <client, {own}, number, body, request>, or a heartbeat <name, {own}, number, heartbeat>"
                ));
            }
        };
        let Request { client, number, .. } = request;
        match self.carry_out(&request).await {
            Ok(reply) => format!("<{client}, {own}, {number}, {reply}, reply>"),
            Err(Failed { why, maybe_applied }) => {
                // An answer is one line.
                let why = why.replace(['\r', '\n'], " ");
                let outcome = if maybe_applied { "unknown" } else { "refused" };
                format!("<{client}, {own}, {number}, {why}, {outcome}>")
            }
        }
    }

    async fn carry_out(&self, request: &Request<'_>) -> Result<String, Failed> {
        let &Request { client, server, number, body } = request;
        let own = self.node.name();
        if server != own {
            return Err(Failed::refused(format!("this server is {own}")));
        }
        if client.is_empty() || client.len() > MAX_NAME {
            return Err(Failed::refused(format!("a client's name has 1 to {MAX_NAME} bytes")));
        }
        let Some(sequence) = number.parse().ok().filter(|number| (1..=MAX_SEQUENCE).contains(number)) else {
            return Err(Failed::refused(format!("a number is from 1 to {MAX_SEQUENCE}")));
        };
        self.node.check_serves(NO_PRIMARY_PATIENCE).await?;
        self.node.await_primary(NO_PRIMARY_PATIENCE).await?;
        let (service, name, fields) = command_of(body);
        let Some(service) = self.node.state().registry().get(service) else {
            return Err(Failed::refused(format!("this server has no service called {service}")));
        };
        let encoded = service.command_from_json(name, fields.to_string().as_bytes());
        let encoded = encoded.map_err(|error| Failed::refused(error.to_string()))?;
        let session = self.session(client).await?;
        let acked = sequence.saturating_sub(KEPT);
        let command = Command { session, sequence, acked, ..Command::sessionless(service.name(), encoded) };
        let registry = self.node.state().registry();
        let call =
            self.hooked.before(registry, &command).map_err(|refusal| Failed::refused(refusal.detail))?;
        let outcome = self.node.propose(command, deadline()).await?;
        self.hooked.after(registry, call.as_ref(), &outcome.result);
        let DeltaResult::Reply(reply) = &outcome.result else {
            let expired = outcome.result == DeltaResult::SessionExpired;
            if expired {
                self.sessions().remove(client);
            }
            let why = match &outcome.result {
                DeltaResult::SequenceAcked => format!(
                    "the number is {KEPT} or more below the highest that {client} has used: go on above that"
                ),
                other => Problem::of_result(other).map_or_else(String::new, |problem| problem.detail()),
            };
            // Under the session that is gone it may have been applied.
            return Err(Failed { why, maybe_applied: expired });
        };
        let mut text = Vec::new();
        let unreadable = |error: String| Failed { why: error, maybe_applied: true };
        service.reply_to_json(reply, &mut text).map_err(|error| unreadable(error.to_string()))?;
        let reply: Value = serde_json::from_slice(&text).map_err(|error| unreadable(error.to_string()))?;
        self.transcript.processed(own, &reply, || format!("<{client}, {own}, {number}, {body}, request>"));
        Ok(if name == "set" { body.to_owned() } else { reply["value"].to_string() })
    }

    /// The session of a client's name, opened when it is not there.
    async fn session(&self, client: &str) -> Result<u64, Failed> {
        if let Some(session) = self.sessions().get(client) {
            return Ok(*session);
        }
        let open = SessionCommand::Open { name: Some(client.to_owned()), ttl_ms: Some(TTL_BOUNDS.1) };
        let open = Command::sessionless(SESSION_SERVICE, codec::encode(&open));
        let outcome = self.node.propose(open, deadline()).await.map_err(|error| {
            // The request itself was not sent.
            Failed { maybe_applied: false, ..error.into() }
        })?;
        let reply = match &outcome.result {
            DeltaResult::Reply(reply) => codec::decode::<SessionReply>(reply).map_err(|e| e.to_string()),
            other => Err(Problem::of_result(other).map_or_else(String::new, |problem| problem.detail())),
        };
        let session = reply.map_err(Failed::refused)?.session;
        let mut sessions = self.sessions();
        if sessions.len() >= MAX_NAMES {
            sessions.clear();
        }
        sessions.insert(client.to_owned(), session);
        Ok(session)
    }

    fn sessions(&self) -> MutexGuard<'_, HashMap<String, u64>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn deadline() -> Instant {
    Instant::now() + REQUEST_TIMEOUT
}

/// Reads up to the next line's end, of which one byte more than [`MAX_LINE`] is kept at most. False at the end of all.
async fn read_line(reader: &mut (impl AsyncBufRead + Unpin), line: &mut Vec<u8>) -> io::Result<bool> {
    line.clear();
    loop {
        let bytes = reader.fill_buf().await?;
        if bytes.is_empty() {
            return Ok(!line.is_empty());
        }
        let end = bytes.iter().position(|byte| *byte == b'\n');
        let taken = end.map_or(bytes.len(), |end| end + 1);
        let room = (MAX_LINE + 1).saturating_sub(line.len());
        line.extend_from_slice(&bytes[..taken.min(room)]);
        reader.consume(taken);
        if end.is_some() {
            return Ok(true);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request<'a>(client: &'a str, server: &'a str, number: &'a str, body: &'a str) -> Line<'a> {
        Line::Request(Request { client, server, number, body })
    }

    #[test]
    fn a_body_runs_from_the_third_comma_to_the_last_word() {
        assert_eq!(Line::parse("<C1, S1, 8, add 5, request>"), request("C1", "S1", "8", "add 5"));
        assert_eq!(Line::parse("<C1,S1,8,add 5, request>\r\n"), request("C1", "S1", "8", "add 5"));
        assert_eq!(
            Line::parse("<C1, S1, 8, a, b, request>, <c>, request>"),
            request("C1", "S1", "8", "a, b, request>, <c>")
        );
        assert_eq!(Line::parse("<C1, S1, 8, , request>"), request("C1", "S1", "8", ""));
        assert_eq!(Line::parse("<C1, S1, eight, x, request>"), request("C1", "S1", "eight", "x"));
        assert_eq!(Line::parse("<LFD1, S1, 8, heartbeat>"), Line::Heartbeat("S1"));
        for other in
            ["", "hello", "<>", "<C1, S1, 8, request>", "<C1, S1, 8, x, reply>", "<LFD1, S1, heartbeat>"]
        {
            assert_eq!(Line::parse(other), Line::Other, "{other:?}");
        }
    }

    #[test]
    fn what_is_no_sum_is_a_text() {
        assert_eq!(command_of("add 5"), ("counter", "add", json!({ "amount": 5 })));
        assert_eq!(command_of("minus -3"), ("counter", "minus", json!({ "amount": -3 })));
        for text in ["add", "add five", "added 5", "add 9223372036854775808", "", " add 5"] {
            assert_eq!(command_of(text), ("register", "set", json!({ "text": text })), "{text:?}");
        }
    }

    #[tokio::test]
    async fn long_lines_take_bounded_memory_and_the_next_one_is_read() {
        let text = format!("short\n{}\nnext\nlast", "x".repeat(3 * MAX_LINE));
        let mut reader = BufReader::with_capacity(100, text.as_bytes());
        let mut line = Vec::new();
        let mut lengths = Vec::new();
        while read_line(&mut reader, &mut line).await.unwrap() {
            lengths.push(line.len());
        }
        assert_eq!(lengths, [6, MAX_LINE + 1, 5, 4]);
    }
}
