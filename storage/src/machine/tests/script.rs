//! Runs the golden scripts.
//!
//! ```text
//! at 5000                                 the time of the entries that follow
//! open [name=N] [ttl=MS]                  the session commands
//! keepalive ID | close ID
//! tally add 5 [session=1 seq=2 acked=1]   a command of a service, its fields in order
//! collect … apply                         what is in between goes into one entry
//! fill session=1 from=1 to=1024           one entry of `tally add 1`
//! open_many N [ttl=MS]                    one entry of `open`
//! tick | allocate NAME | set NAME VALUE   the system commands
//! query SERVICE QUERY [PARAMS]
//! events [after=1.0] [limit=N] [topic=T]  what is kept
//! state                                   revision, logged time, next deadline
//! settings                                the revision of their last change, and all of them
//! restart                                 the second replica, from its last flush
//! ```

use std::error::Error;
use std::fmt::Write as _;

use goldenscript::ArgumentConsumer;
use serde_json::{Value, json};

use super::replicas::Replicas;
use crate::codec;
use crate::delta::{Command, DeltaResult, Millis, Outcome, SESSION_SERVICE, SYSTEM_SERVICE};
use crate::machine::{Position, SessionCommand, SessionReply, SystemCommand, SystemReply};

/// More outcomes of one entry, or more events, than this are summed up.
const MANY: usize = 8;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

pub(super) struct Runner {
    replicas: Replicas,
    time: Millis,
    collected: Option<Vec<Command>>,
}

pub(super) fn open(name: Option<&str>, ttl_ms: Option<Millis>) -> Command {
    session_command(&SessionCommand::Open { name: name.map(str::to_owned), ttl_ms })
}

fn session_command(command: &SessionCommand) -> Command {
    Command::sessionless(SESSION_SERVICE, codec::encode(command))
}

fn system_command(command: &SystemCommand) -> Command {
    Command::sessionless(SYSTEM_SERVICE, codec::encode(command))
}

impl Runner {
    pub(super) fn new() -> Self {
        Self { replicas: Replicas::new(), time: 0, collected: None }
    }

    /// The delta that a line stands for, or `None` if the line is something else.
    fn delta(&self, name: &str, args: &mut ArgumentConsumer<'_>) -> Result<Option<Command>> {
        let mut command = match name {
            "open" => open(args.take_key("name"), parsed(args.take_key("ttl"))?),
            "keepalive" => session_command(&SessionCommand::KeepAlive { session: next(args)?.parse()? }),
            "close" => session_command(&SessionCommand::Close { session: next(args)?.parse()? }),
            "tick" => system_command(&SystemCommand::Tick),
            "checkpoint" => system_command(&SystemCommand::Checkpoint),
            "allocate" => system_command(&SystemCommand::AllocateNodeId { name: next(args)?.to_owned() }),
            "set" => {
                let (name, value) = (next(args)?.to_owned(), next(args)?.to_owned());
                system_command(&SystemCommand::Set { name, value })
            }
            service if self.replicas.machine().registry().get(service).is_some() => {
                self.service_command(service, args)?
            }
            _ => return Ok(None),
        };
        command.session = parsed(args.take_key("session"))?.unwrap_or(0);
        command.sequence = parsed(args.take_key("seq"))?.unwrap_or(0);
        command.acked = parsed(args.take_key("acked"))?.unwrap_or(0);
        Ok(Some(command))
    }

    fn service_command(&self, service: &str, args: &mut ArgumentConsumer<'_>) -> Result<Command> {
        let name = next(args)?;
        let fields = match (service, name) {
            ("tally", "add") => json!({"amount": next(args)?.parse::<u64>()?}),
            ("tally", "refuse") => json!({"why": next(args)?}),
            ("tally", "emit") => {
                json!({"count": next(args)?.parse::<u64>()?, "bytes": next(args)?.parse::<u64>()?})
            }
            ("tally", "speak") => json!({"bytes": next(args)?.parse::<u64>()?}),
            ("tally", "context") => json!({}),
            (_, "set") => json!({"at": next(args)?.parse::<u64>()?}),
            _ => return Err(format!("{service} has no {name}").into()),
        };
        let erased = self.replicas.machine().registry().get(service).ok_or("no service")?;
        let body = erased.command_from_json(name, fields.to_string().as_bytes())?;
        Ok(Command::sessionless(service.to_owned(), body))
    }

    fn fill(&mut self, args: &mut ArgumentConsumer<'_>) -> Result<String> {
        let mut number =
            |key| -> Result<u64> { Ok(args.take_key(key).ok_or(format!("{key} is missing"))?.parse()?) };
        let (session, from, to) = (number("session")?, number("from")?, number("to")?);
        let erased = self.replicas.machine().registry().get("tally").ok_or("no service")?;
        let body = erased.command_from_json("add", b"{\"amount\":1}")?;
        let entry: Vec<Command> = (from..=to)
            .map(|sequence| Command { session, sequence, ..Command::sessionless("tally", body.clone()) })
            .collect();
        self.apply(&entry)
    }

    fn apply(&mut self, entry: &[Command]) -> Result<String> {
        let outcomes = self.replicas.apply(self.time, entry);
        assert_eq!(outcomes.len(), entry.len());
        let lines = entry
            .iter()
            .zip(&outcomes)
            .map(|(command, outcome)| Ok((outcome.revision, self.shown(command, outcome)?)));
        let lines = lines.collect::<Result<Vec<_>>>()?;
        if lines.len() > MANY {
            let sums = summed_up(&outcomes);
            return Ok(sums);
        }
        let mut output = String::new();
        for (revision, line) in lines {
            writeln!(output, "{revision}: {line}")?;
        }
        Ok(output)
    }

    fn shown(&self, command: &Command, outcome: &Outcome) -> Result<String> {
        Ok(match &outcome.result {
            DeltaResult::Reply(reply) => match &*command.service {
                SESSION_SERVICE => {
                    let SessionReply { session, next_sequence, ttl_ms, created } = codec::decode(reply)?;
                    let created = if created { ", created" } else { "" };
                    format!("session {session}, next sequence {next_sequence}, ttl {ttl_ms} ms{created}")
                }
                SYSTEM_SERVICE => match codec::decode(reply)? {
                    SystemReply::Done => "done".to_owned(),
                    SystemReply::Checkpoint(number) => format!("checkpoint {number}"),
                    SystemReply::NodeId(id) => format!("node id {id}"),
                },
                service => {
                    let erased = self.replicas.machine().registry().get(service).ok_or("no service")?;
                    let mut json = Vec::new();
                    erased.reply_to_json(reply, &mut json)?;
                    shortened(String::from_utf8(json)?)
                }
            },
            DeltaResult::Refused(refusal) => {
                let current =
                    refusal.current.as_ref().map(|json| format!(" current={json}")).unwrap_or_default();
                format!("refused {} {}: {}{current}", refusal.status, refusal.code, refusal.detail)
            }
            other => format!("{other:?}"),
        })
    }

    fn query(&self, args: &mut ArgumentConsumer<'_>) -> Result<String> {
        let (service, query, params) = (next(args)?, next(args)?, args.next_pos().unwrap_or_default());
        let answer = self.replicas.ask(|machine| machine.query(service, query, params));
        Ok(match answer {
            Ok(json) => String::from_utf8(json)?,
            Err(error) => format!("{error:?}"),
        })
    }

    fn events(&self, args: &mut ArgumentConsumer<'_>) -> Result<String> {
        let after = args.take_key("after").map(position).transpose()?.unwrap_or((0, 0));
        let limit = parsed(args.take_key("limit"))?.unwrap_or(usize::MAX);
        let topic = args.take_key("topic");
        let wanted = |event: &crate::service::Event| topic.is_none_or(|topic| event.topic == topic);
        let (events, (revision, number)) = match self.replicas.ask(|m| m.events(after, limit, wanted))? {
            Ok(found) => found,
            Err(compacted) => return Ok(format!("{compacted:?}")),
        };
        let mut output = String::new();
        for ((revision, number), event) in events.iter().take(MANY) {
            let data = shortened(event.data.clone());
            writeln!(output, "{revision}.{number} {}/{} {data}", event.service, event.topic)?;
        }
        if events.len() > MANY {
            writeln!(output, "… {} events in all", events.len())?;
        }
        writeln!(output, "go on after {revision}.{number}")?;
        Ok(output)
    }

    fn state(&self) -> Result<String> {
        self.replicas
            .ask(|machine| {
                let deadline = machine.next_deadline()?;
                let deadline = deadline.map_or_else(|| "none".to_owned(), |at| at.to_string());
                Ok::<_, crate::tables::Damage>(format!(
                    "revision {}, time {}, next deadline {deadline}",
                    machine.revision(),
                    machine.time()
                ))
            })
            .map_err(Into::into)
    }
}

impl goldenscript::Runner for Runner {
    type Command = goldenscript::Command;

    fn run(&mut self, command: &goldenscript::Command, _: &goldenscript::Context) -> Result<String> {
        let mut args = command.consume_args();
        if let Some(delta) = self.delta(&command.name, &mut args)? {
            args.reject_next()?;
            return match &mut self.collected {
                Some(collected) => {
                    collected.push(delta);
                    Ok(String::new())
                }
                None => self.apply(&[delta]),
            };
        }
        let output = match &*command.name {
            "at" => {
                self.time = next(&mut args)?.parse()?;
                String::new()
            }
            "collect" => {
                self.collected = Some(Vec::new());
                String::new()
            }
            "apply" => {
                let entry = self.collected.take().ok_or("apply without collect")?;
                self.apply(&entry)?
            }
            "fill" => self.fill(&mut args)?,
            "open_many" => {
                let count: usize = next(&mut args)?.parse()?;
                let ttl = parsed(args.take_key("ttl"))?;
                self.apply(&vec![open(None, ttl); count])?
            }
            "query" => self.query(&mut args)?,
            "events" => self.events(&mut args)?,
            "state" => self.state()?,
            "settings" => {
                let settings = self.replicas.ask(|machine| machine.settings())?;
                let values = settings.values.iter().map(|(name, value)| format!("{name} = {value}"));
                format!("of revision {}: {}", settings.revision, values.collect::<Vec<_>>().join(", "))
            }
            "checkpoints" => {
                let kept = self.replicas.ask(|machine| machine.checkpoints())?;
                let kept = kept.iter().map(|at| format!("{} at {} ({} ms)", at.number, at.revision, at.time));
                kept.collect::<Vec<_>>().join(", ")
            }
            "restart" => {
                self.replicas.restart_second();
                String::new()
            }
            name => return Err(format!("no such line: {name}").into()),
        };
        args.reject_next()?;
        Ok(output)
    }

    /// What is true at the end of every script: a restart changes nothing.
    fn end_script(&mut self) -> Result<()> {
        assert!(self.collected.is_none(), "collect without apply");
        self.replicas.restart_second();
        let add =
            Command::sessionless("tally", codec::encode(&super::services::TallyCommand::Add { amount: 1 }));
        self.apply(&[add]).map(|_| ())
    }
}

fn next<'a>(args: &mut ArgumentConsumer<'a>) -> Result<&'a str> {
    args.next_pos().ok_or_else(|| "an argument is missing".into())
}

fn parsed<T: std::str::FromStr<Err: Error + 'static>>(text: Option<&str>) -> Result<Option<T>> {
    Ok(text.map(str::parse).transpose()?)
}

fn position(text: &str) -> Result<Position> {
    let (revision, number) = text.split_once('.').ok_or("a position is REVISION.N")?;
    Ok((revision.parse()?, number.parse()?))
}

/// Texts of x are long here.
fn shortened(json: String) -> String {
    match serde_json::from_str::<Value>(&json) {
        Ok(Value::String(text)) if text.len() > 16 => format!("a text of {} bytes", text.len()),
        Ok(Value::Object(fields))
            if fields.get("Text").and_then(Value::as_str).is_some_and(|t| t.len() > 16) =>
        {
            format!("a reply of {} bytes", json.len())
        }
        _ => json,
    }
}

/// One line for each run of outcomes of one kind.
fn summed_up(outcomes: &[Outcome]) -> String {
    let kind = |outcome: &Outcome| format!("{:?}", std::mem::discriminant(&outcome.result));
    let mut output = String::new();
    for run in outcomes.chunk_by(|a, b| kind(a) == kind(b)) {
        let name = format!("{:?}", run[0].result);
        let name = name.split(['(', ' ']).next().unwrap_or_default();
        output += &format!(
            "{} x {name}, revisions {} to {}\n",
            run.len(),
            run[0].revision,
            run[run.len() - 1].revision
        );
    }
    output
}
