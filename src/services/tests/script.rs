//! Runs the golden scripts.

use std::error::Error;

use quorate_storage::delta::{Command, DeltaResult, Outcome};
use quorate_storage::machine::{Position, QueryError};

use super::replicas::Replicas;
use crate::Refusal;

/// Runs of one character from this length on are written `<x*5000>`.
const LONG: usize = 40;

pub(super) struct Runner {
    replicas: Replicas,
    seen: Position,
}

impl Runner {
    pub(super) fn new() -> Self {
        Self { replicas: Replicas::new(), seen: (0, 0) }
    }

    /// `counter/add {"amount":5}`
    fn post(&mut self, request: &str) -> Result<String, Box<dyn Error>> {
        let (path, json) = request.split_once(' ').unwrap_or((request, ""));
        let (service, command) = path.split_once('/').ok_or("no SERVICE/COMMAND")?;
        let body = match self.replicas.encode(service, command, json) {
            Ok(body) => body,
            Err(problem) => return Ok(format!("400 bad_request: {problem}")),
        };
        let outcomes = self.replicas.apply(0, &[Command::sessionless(service.to_owned(), body)]);
        self.replicas.flush_second();
        let [Outcome { revision, result }] = &outcomes[..] else {
            return Err("not one outcome".into());
        };
        let mut lines = match result {
            DeltaResult::Reply(reply) => {
                let service = self.replicas.machine().registry().get(service).ok_or("no service")?;
                let mut json = Vec::new();
                service.reply_to_json(reply, &mut json)?;
                let json = String::from_utf8(json)?;
                // As the gateway adds it.
                let json = json.strip_suffix('}').ok_or("the reply is not an object")?;
                format!("200 {json},\"revision\":{revision}}}")
            }
            DeltaResult::Refused(refusal) => format!("{} (revision {revision})", refused(refusal)),
            other => return Err(format!("{other:?}").into()),
        };
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
        let line = expand(&command.name)?;
        let output = match line.split_once(' ') {
            Some(("POST", request)) => self.post(request),
            Some(("GET", request)) => self.get(request),
            // `FILL register a 10 <x*200000>`: sets a0 to a9 to that text.
            Some(("FILL", request)) => self.fill(request),
            _ => Err("neither POST nor GET nor FILL".into()),
        }?;
        Ok(shorten(&output))
    }
}

impl Runner {
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
