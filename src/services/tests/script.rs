//! Runs the golden scripts.

use std::error::Error;

use quorate_storage::codec;
use quorate_storage::delta::{Command, DeltaResult, Millis, Outcome, SESSION_SERVICE, SYSTEM_SERVICE};
use quorate_storage::machine::{Position, QueryError, SessionCommand, SystemCommand};

use serde_json::Value;

use super::replicas::Replicas;
use crate::Refusal;

/// Runs of one character from this length on are written `<x*5000>`.
const LONG: usize = 40;

pub(super) struct Runner {
    replicas: Replicas,
    seen: Position,
    time: Millis,
    session: u64,
    /// What came back, the last one last.
    replies: Vec<Value>,
}

impl Runner {
    pub(super) fn new() -> Self {
        Self { replicas: Replicas::new(), seen: (0, 0), time: 0, session: 0, replies: Vec::new() }
    }

    /// `counter/add {"amount":5}`
    fn post(&mut self, request: &str) -> Result<String, Box<dyn Error>> {
        let (path, json) = request.split_once(' ').unwrap_or((request, ""));
        let (service, command) = path.split_once('/').ok_or("no SERVICE/COMMAND")?;
        let body = match self.replicas.encode(service, command, json) {
            Ok(body) => body,
            Err(problem) => return Ok(format!("400 bad_request: {problem}")),
        };
        // Without a sequence: what a retry comes to is the session's business, not a service's.
        let command = Command { session: self.session, ..Command::sessionless(service.to_owned(), body) };
        let Outcome { revision, result } = self.apply(command)?;
        let line = match &result {
            DeltaResult::Reply(reply) => {
                let service = self.replicas.machine().registry().get(service).ok_or("no service")?;
                let mut json = Vec::new();
                service.reply_to_json(reply, &mut json)?;
                self.replies.push(serde_json::from_slice(&json)?);
                let json = String::from_utf8(json)?;
                // As the gateway adds it.
                let json = json.strip_suffix('}').ok_or("the reply is not an object")?;
                let comma = if json == "{" { "" } else { "," };
                format!("200 {json}{comma}\"revision\":{revision}}}")
            }
            DeltaResult::Refused(refusal) => format!("{} (revision {revision})", refused(refusal)),
            other => return Err(format!("{other:?}").into()),
        };
        Ok(line + &self.events()?)
    }

    /// A command of a built-in service, and the events that it brings about.
    fn built_in(&mut self, service: &'static str, body: Vec<u8>) -> Result<String, Box<dyn Error>> {
        let Outcome { revision, result } = self.apply(Command::sessionless(service, body))?;
        match result {
            DeltaResult::Reply(_) => Ok(format!("done (revision {revision}){}", self.events()?)),
            other => Err(format!("{other:?}").into()),
        }
    }

    fn apply(&mut self, command: Command) -> Result<Outcome, Box<dyn Error>> {
        let mut outcomes = self.replicas.apply(self.time, &[command]);
        self.replicas.flush_second();
        outcomes.pop().filter(|_| outcomes.is_empty()).ok_or_else(|| "not one outcome".into())
    }

    /// What was emitted since the last time, a line each.
    fn events(&mut self) -> Result<String, Box<dyn Error>> {
        let mut lines = String::new();
        let events = self.replicas.machine().events(self.seen, usize::MAX, |_| true)?;
        let (events, next) = events.map_err(|e| format!("{e:?}"))?;
        self.seen = next;
        for ((revision, number), event) in events {
            lines +=
                &format!("\n  event {revision}.{number} {}/{} {}", event.service, event.topic, event.data);
        }
        Ok(lines)
    }

    /// `counter/list?limit=2`
    fn get(&self, request: &str) -> Result<String, Box<dyn Error>> {
        let (path, params) = request.split_once('?').unwrap_or((request, ""));
        let (service, query) = path.split_once('/').ok_or("no SERVICE/QUERY")?;
        // Both replicas answer alike, from memory and from disk.
        match self.replicas.query(service, query, params) {
            Ok(json) => Ok(format!("200 {json}")),
            Err(_) => match self.replicas.machine().query(service, query, params) {
                Err(QueryError::Refused(refusal)) => Ok(refused(&refusal)),
                Err(problem) => Ok(format!("400 bad_request: {problem}")),
                Ok(_) => Err("an answer after a refusal".into()),
            },
        }
    }
}

fn refused(refusal: &Refusal) -> String {
    let Refusal { code, detail, status, current } = refusal;
    let current = current.as_ref().map(|json| format!(" current={json}")).unwrap_or_default();
    format!("{status} {code}: {detail}{current}")
}

impl goldenscript::Runner for Runner {
    type Command = goldenscript::Command;

    fn run(
        &mut self,
        command: &goldenscript::Command,
        _: &goldenscript::Context,
    ) -> Result<String, Box<dyn Error>> {
        let line = self.recall(&expand(&command.name)?)?;
        let output = match line.split_once(' ') {
            Some(("POST", request)) => self.post(request),
            // `REPEAT 20 counter/add {"name":"a#"}`: with # from 1 to 20; what comes of the last one is shown.
            Some(("REPEAT", request)) => self.repeat(request),
            Some(("GET", request)) => self.get(request),
            // `FILL register a 10 <x*200000>`: sets a0 to a9 to that text.
            Some(("FILL", request)) => self.fill(request),
            Some(("OPEN", ttl)) => {
                let open = SessionCommand::Open { name: None, ttl_ms: Some(ttl.parse()?) };
                self.built_in(SESSION_SERVICE, codec::encode(&open))
            }
            Some(("CLOSE", session)) => {
                let close = SessionCommand::Close { session: session.parse()? };
                self.built_in(SESSION_SERVICE, codec::encode(&close))
            }
            None if line == "TICK" => self.built_in(SYSTEM_SERVICE, codec::encode(&SystemCommand::Tick)),
            // Whose commands follow, and when they are sent.
            Some(("SESSION", session)) => {
                self.session = session.parse()?;
                Ok(String::new())
            }
            Some(("TIME", time)) => {
                self.time = time.parse()?;
                Ok(String::new())
            }
            _ => Err("none of POST, GET, REPEAT, FILL, OPEN, CLOSE, TICK, SESSION, TIME".into()),
        }?;
        Ok(shorten(&output))
    }
}

impl Runner {
    /// `$job/token` becomes that field of the last reply that has it.
    fn recall(&self, line: &str) -> Result<String, Box<dyn Error>> {
        let Some((before, rest)) = line.split_once('$') else { return Ok(line.to_owned()) };
        let end = rest.find(|c: char| !(c.is_alphanumeric() || c == '/')).unwrap_or(rest.len());
        let (field, after) = rest.split_at(end);
        let found = self.replies.iter().rev().find_map(|reply| reply.pointer(&format!("/{field}")));
        let found = found.ok_or_else(|| format!("no reply has {field}"))?;
        Ok(format!("{before}{found}{}", self.recall(after)?))
    }

    fn repeat(&mut self, request: &str) -> Result<String, Box<dyn Error>> {
        let (times, request) = request.split_once(' ').ok_or("REPEAT TIMES REQUEST")?;
        let mut last = String::new();
        for n in 1..=times.parse::<u64>()? {
            last = self.post(&request.replace('#', &n.to_string()))?;
        }
        Ok(last)
    }

    fn fill(&mut self, request: &str) -> Result<String, Box<dyn Error>> {
        let [prefix, count, text] = request.split(' ').collect::<Vec<_>>()[..] else {
            return Err("FILL PREFIX COUNT TEXT".into());
        };
        for n in 0..count.parse::<usize>()? {
            let line =
                self.post(&format!("register/set {{\"name\":\"{prefix}{n}\",\"text\":\"{text}\"}}"))?;
            assert!(line.starts_with("200 "), "{line}");
        }
        Ok(format!("{count} registers of {} bytes", text.len()))
    }
}

/// `<x*3>` becomes `xxx`.
fn expand(line: &str) -> Result<String, Box<dyn Error>> {
    let mut expanded = String::new();
    let mut rest = line;
    while let Some((before, from)) = rest.split_once('<') {
        let (run, after) = from.split_once('>').ok_or("'<' without '>'")?;
        let (text, count) = run.split_once('*').ok_or("'<' without '*'")?;
        expanded += before;
        expanded += &text.repeat(count.parse()?);
        rest = after;
    }
    Ok(expanded + rest)
}

/// The reverse of [`expand`] for runs of one character.
fn shorten(text: &str) -> String {
    let mut short = String::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let run = rest.chars().take_while(|c| *c == first).count();
        let (taken, after) = rest.split_at(run * first.len_utf8());
        match run >= LONG {
            true => short += &format!("<{first}*{run}>"),
            false => short += taken,
        }
        rest = after;
    }
    short
}
