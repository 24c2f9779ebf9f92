//! `quorate client`: counters and registers.

use std::time::Duration;

use clap::{Args, Subcommand};

use super::common::{CommonFlags, Defaults, Uses};
use super::connect::{CONNECTION, ConnectFlags, background_runtime, runtime};
use super::output::{CliError, Exit, Output, Printed};
use super::shown::{cell, whole};
use super::{console, repeat, watch};
use crate::client::{Call, Client, Error, Group, Hooks, ListQuery, SessionMode};
use crate::config::{self, Config};
use crate::transcript::Transcript;

const EXAMPLE: &str = "\
Examples:
  quorate client add 5                        # counter \"default\"
  quorate client add -5 --counter hits
  quorate client get --read stale --max-age 1s
  quorate client register set hello --name greeting
  quorate client console";

/// How long the end of a session may keep a command that is done already.
const CLOSE_TIMEOUT: Duration = Duration::from_millis(500);

#[derive(Debug, Args)]
#[command(after_help = EXAMPLE)]
pub(crate) struct ClientArgs {
    #[command(flatten)]
    connect: ConnectFlags,
    #[command(flatten)]
    common: CommonFlags,
    /// Work in the session of this name, one client at a time: two that use it at once take each other's commands for
    /// retries of their own. `off` works without (a lost reply is then an unknown outcome)
    #[arg(long, global = true, value_name = "NAME|off", help_heading = CONNECTION)]
    session: Option<String>,
    /// To which servers a command goes: one, or all of them at once, and the first reply wins [default: one]
    #[arg(long, global = true, value_name = "one|all", value_parser = fanout, help_heading = CONNECTION)]
    fanout: Option<Fanout>,
    /// Print on stdout each command that is sent and each reply that is received
    #[arg(long, global = true)]
    transcript: bool,
    /// With --fanout all, tell of duplicate replies on stderr
    #[arg(long, global = true)]
    verbose: bool,
    #[command(subcommand)]
    action: Action,
}

/// To which servers a command goes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Fanout {
    #[default]
    One,
    All,
}

fn fanout(text: &str) -> Result<Fanout, String> {
    match text {
        "one" => Ok(Fanout::One),
        "all" => Ok(Fanout::All),
        _ => Err(format!("`{text}` is none of one, all")),
    }
}

/// Tells a person what goes out and what comes in.
#[derive(Debug)]
struct Teller {
    transcript: Transcript,
    verbose: bool,
    /// The session's name.
    client: Option<String>,
}

impl Teller {
    fn client(&self, call: &Call) -> String {
        self.client.clone().unwrap_or_else(|| call.session.to_string())
    }
}

impl Hooks for Teller {
    fn before_call(&self, call: &Call) {
        self.transcript.sent(&self.client(call), &call.server, call.sequence);
    }

    fn after_reply(&self, call: &Call) {
        self.transcript.received(&self.client(call), &call.server, call.sequence);
    }

    fn duplicate(&self, call: &Call) {
        if self.verbose {
            let Call { server, sequence, .. } = call;
            Output::note(&format!("duplicate reply from {server} to request {sequence} discarded"));
        }
    }
}

#[derive(Debug, Subcommand)]
enum Action {
    #[command(flatten)]
    Single(Single),
    /// Print events as they happen
    #[command(after_help = "Example:\n  quorate client watch hits --from 42")]
    Watch(watch::WatchArgs),
    /// Work with history, completion and help
    #[command(after_help = "Example:\n  quorate client console")]
    Console,
    /// Set the register to text and count, again and again
    #[command(
        after_help = "Example:\n  quorate client loop --every 1s --text hello_world\n\nIt ends at the first text that fails: --timeout is how long an outage may last."
    )]
    Loop(repeat::LoopArgs),
}

impl Action {
    fn uses(&self) -> Uses {
        match self {
            Self::Single(single) => single.uses(),
            Self::Watch(_) => Uses { counter: true, read: false },
            Self::Console => Uses { counter: true, read: true },
            Self::Loop(_) => Uses::default(),
        }
    }
}

/// A command with one reply.
#[derive(Debug, Clone, PartialEq, Eq, Subcommand)]
pub(crate) enum Single {
    /// Add to the counter
    #[command(after_help = "Example:\n  quorate client add -5 --counter hits")]
    Add {
        /// How much; may be negative
        #[arg(value_name = "N", allow_negative_numbers = true)]
        amount: i64,
    },
    /// Subtract from the counter
    #[command(after_help = "Example:\n  quorate client minus 3")]
    Minus {
        /// How much; may be negative
        #[arg(value_name = "N", allow_negative_numbers = true)]
        amount: i64,
    },
    /// Read the counter
    #[command(after_help = "Example:\n  quorate client get --counter hits")]
    Get,
    /// Set the counter
    #[command(after_help = "Example:\n  quorate client set 100")]
    Set {
        /// The value
        #[arg(value_name = "N", allow_negative_numbers = true)]
        value: i64,
    },
    /// Set the counter if it has a certain value
    #[command(after_help = "Example:\n  quorate client cas 100 101")]
    Cas {
        /// The value that it must have; an absent counter has 0
        #[arg(value_name = "OLD", allow_negative_numbers = true)]
        expect: i64,
        /// The value that it gets
        #[arg(value_name = "NEW", allow_negative_numbers = true)]
        value: i64,
    },
    /// Delete the counter
    #[command(after_help = "Example:\n  quorate client delete --counter hits")]
    Delete,
    /// Work with a register
    #[command(after_help = "Example:\n  quorate client register set hello --name greeting")]
    Register(RegisterArgs),
    /// List the counters
    #[command(after_help = "Example:\n  quorate client list --prefix page/")]
    List(ListArgs),
}

impl Single {
    /// Which of the common flags say something to it.
    pub(crate) fn uses(&self) -> Uses {
        let register = |register: &RegisterArgs| {
            matches!(register.action, RegisterAction::Get | RegisterAction::List(_))
        };
        match self {
            Self::Add { .. } | Self::Minus { .. } | Self::Set { .. } | Self::Cas { .. } | Self::Delete => {
                Uses { counter: true, read: false }
            }
            Self::Get => Uses { counter: true, read: true },
            Self::List(_) => Uses { counter: false, read: true },
            Self::Register(arguments) => Uses { counter: false, read: register(arguments) },
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub(crate) struct RegisterArgs {
    /// Which register [default: default]
    #[arg(long, global = true, value_name = "NAME")]
    name: Option<String>,
    #[command(subcommand)]
    action: RegisterAction,
}

#[derive(Debug, Clone, PartialEq, Eq, Subcommand)]
pub(crate) enum RegisterAction {
    /// Read the register
    #[command(after_help = "Example:\n  quorate client register get")]
    Get,
    /// Set the register
    #[command(after_help = "Example:\n  quorate client register set hello")]
    Set {
        /// The text
        #[arg(allow_hyphen_values = true)]
        text: String,
    },
    /// Append to the register
    #[command(after_help = "Example:\n  quorate client register append ' world'")]
    Append {
        /// The text
        #[arg(allow_hyphen_values = true)]
        text: String,
    },
    /// Set the register if it has a certain text, or none
    #[command(after_help = "Examples:\n  quorate client register cas hello goodbye\n  \
                            quorate client register cas --absent hello")]
    Cas {
        /// It must be absent; then only NEW is given
        #[arg(long)]
        absent: bool,
        /// The text that it must have
        #[arg(value_name = "OLD", allow_hyphen_values = true)]
        first: String,
        /// The text that it gets
        #[arg(value_name = "NEW", allow_hyphen_values = true)]
        second: Option<String>,
    },
    /// Delete the register
    #[command(after_help = "Example:\n  quorate client register delete")]
    Delete,
    /// List the registers
    #[command(after_help = "Example:\n  quorate client register list --prefix user/")]
    List(ListArgs),
}

#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub(crate) struct ListArgs {
    /// Only names that begin with this
    #[arg(long, default_value = "")]
    prefix: String,
    /// Only names after this one
    #[arg(long, value_name = "NAME")]
    after: Option<String>,
    /// At most so many
    #[arg(long, value_name = "N", default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    limit: u32,
}

pub(crate) fn run(arguments: ClientArgs, config: &Config) -> Result<Exit, CliError> {
    arguments.common.check(arguments.action.uses())?;
    match &arguments.action {
        Action::Single(Single::Register(register)) => register.check()?,
        Action::Watch(events) => events.check(arguments.common.counter.as_deref())?,
        Action::Single(_) | Action::Console | Action::Loop(_) => {}
    }
    let topic = arguments.common.counter.clone();
    let connection = arguments.connect.resolve(config)?;
    let defaults = Defaults::resolve(arguments.common, config)?;
    let session = match config.pick("session", arguments.session, config::parsed)?.as_deref() {
        None => SessionMode::Anonymous,
        Some("off") => SessionMode::Off,
        Some(name) => SessionMode::Named(name.to_owned()),
    };
    let fanout = config.pick("fanout", arguments.fanout, fanout)?.unwrap_or_default();
    if fanout == Fanout::All && session == SessionMode::Off {
        return Err(CliError::usage(
            "--fanout all needs a session: without one a command would be applied several times",
        ));
    }
    let teller = Teller {
        transcript: Transcript { on: arguments.transcript },
        verbose: arguments.verbose,
        client: match &session {
            SessionMode::Named(name) => Some(name.clone()),
            SessionMode::Anonymous | SessionMode::Off => None,
        },
    };
    let client = connection.builder().session(session).hooks(teller).build()?;
    let client = if fanout == Fanout::All { client.group(Group::First) } else { client };
    super::log_to_stderr("warn")?;
    if matches!(arguments.action, Action::Console) {
        return console::run(&background_runtime()?, &client, &defaults, &connection);
    }
    runtime()?.block_on(async {
        let result = match arguments.action {
            Action::Single(single) => print_single(&client, &single, &defaults, connection.output()).await,
            Action::Watch(events) => watch::run(&client, &events, topic.as_deref(), &connection).await,
            Action::Loop(every) => repeat::run(&client, &every, &defaults, connection.output()).await,
            Action::Console => Ok(Exit::Done),
        };
        close(&client).await;
        result
    })
}

/// Ends the session. It would expire by itself, so nobody is kept waiting for long and no failure is reported. A named
/// session stays: the next command of that name goes on with it.
pub(crate) async fn close(client: &Client) {
    client.settle_duplicates().await;
    if client.session_name().is_some() {
        return;
    }
    let _ = client.with_timeout(CLOSE_TIMEOUT).close().await;
}

/// Carries out one command and prints what it brought.
pub(crate) async fn print_single(
    client: &Client,
    single: &Single,
    defaults: &Defaults,
    output: Output,
) -> Result<Exit, CliError> {
    match perform(client, single, defaults).await {
        Ok(printed) => {
            let shown = output.reply(&printed);
            // Who sees an exit code of 1 may do it again.
            shown.map_err(|error| if single.changes() { CliError::unseen(&error) } else { error.into() })?;
        }
        Err(error) => {
            output.refusal(&error)?;
            let hint = single.hint_after(&error);
            let error = CliError::from(error);
            return Err(CliError { message: error.message + hint, ..error });
        }
    }
    Ok(Exit::Done)
}

async fn perform(client: &Client, single: &Single, defaults: &Defaults) -> Result<Printed, Error> {
    let counter = client.counter(&defaults.counter);
    let reply = match single {
        Single::Add { amount } => counter.add(*amount).await?,
        Single::Minus { amount } => counter.minus(*amount).await?,
        Single::Set { value } => counter.set(*value).await?,
        Single::Cas { expect, value } => counter.compare_and_set(*expect, *value).await?,
        Single::Delete => counter.delete().await?,
        Single::Get => {
            let reply = counter.get(defaults.level).await?;
            return Ok(Printed::new(reply.value.to_string(), reply.body));
        }
        Single::List(list) => {
            let reply = client.counters(&list.query(), defaults.level).await?;
            let rows: Vec<_> =
                reply.counters.iter().map(|row| format!("{}\t{}", cell(&row.name), row.value)).collect();
            let more = more_after(reply.next.as_deref());
            return Ok(Printed { note: more, ..Printed::new(rows.join("\n"), reply.body) });
        }
        Single::Register(register) => return register.perform(client, defaults).await,
    };
    Ok(Printed::new(reply.value.to_string(), reply.body))
}

impl Single {
    /// What the command line can do about an error beyond what the service's words say.
    fn hint_after(&self, error: &Error) -> &'static str {
        let absent = error.refused().is_some_and(|refused| {
            refused.refusal.as_deref() == Some("compare_failed") && refused.problem["current"].is_null()
        });
        match self {
            Self::Register(RegisterArgs { action: RegisterAction::Cas { absent: false, .. }, .. })
                if absent =>
            {
                ". `register cas --absent NEW` sets one that is absent"
            }
            _ => "",
        }
    }

    fn changes(&self) -> bool {
        match self {
            Self::Add { .. } | Self::Minus { .. } | Self::Set { .. } | Self::Cas { .. } | Self::Delete => {
                true
            }
            Self::Get | Self::List(_) => false,
            Self::Register(register) => {
                !matches!(register.action, RegisterAction::Get | RegisterAction::List(_))
            }
        }
    }
}

impl RegisterArgs {
    /// What clap cannot check by itself.
    pub(crate) fn check(&self) -> Result<(), CliError> {
        match &self.action {
            RegisterAction::Cas { absent, second, .. } if second.is_some() == *absent => {
                Err(CliError::usage(
                    "register cas takes OLD and NEW, or --absent and NEW; for example: register cas hello goodbye",
                ))
            }
            RegisterAction::List(_) if self.name.is_some() => Err(CliError::usage(
                "--name is for one register; `register list --prefix` chooses among them",
            )),
            _ => Ok(()),
        }
    }

    async fn perform(&self, client: &Client, defaults: &Defaults) -> Result<Printed, Error> {
        let name = self.name.as_deref().unwrap_or(&defaults.register);
        let register = client.register(name);
        let reply = match &self.action {
            RegisterAction::Set { text } => register.set(text).await?,
            RegisterAction::Append { text } => register.append(text).await?,
            RegisterAction::Cas { first, second, .. } => match second {
                Some(text) => register.compare_and_set(Some(first), text).await?,
                None => register.compare_and_set(None, first).await?,
            },
            RegisterAction::Delete => register.delete().await?,
            RegisterAction::Get => {
                let reply = register.get(defaults.level).await?;
                let note = reply.text.is_none().then(|| format!("register {name} is absent"));
                let text = whole(reply.data.text.unwrap_or_default());
                return Ok(Printed { note, ..Printed::new(text, reply.body) });
            }
            RegisterAction::List(list) => {
                let reply = client.registers(&list.query(), defaults.level).await?;
                let rows: Vec<_> = reply
                    .registers
                    .iter()
                    .map(|row| format!("{}\t{}", cell(&row.name), cell(&row.text)))
                    .collect();
                let more = more_after(reply.next.as_deref());
                return Ok(Printed { note: more, ..Printed::new(rows.join("\n"), reply.body) });
            }
        };
        let note = match (&reply.text, reply.length) {
            (None, Some(length)) => Some(format!(
                "done; the text has {length} bytes, too many to repeat. `register get` prints it"
            )),
            _ => None,
        };
        Ok(Printed { note, ..Printed::new(whole(reply.data.text.unwrap_or_default()), reply.body) })
    }
}

impl ListArgs {
    fn query(&self) -> ListQuery {
        ListQuery { prefix: self.prefix.clone(), after: self.after.clone(), limit: Some(self.limit) }
    }
}

fn more_after(next: Option<&str>) -> Option<String> {
    next.map(|next| format!("there is more: --after {next}"))
}
