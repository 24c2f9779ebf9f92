//! `quorate chat`: a chat at the terminal, or in a pipe.

mod cursor;
mod printer;
mod words;

use std::io::{BufRead as _, IsTerminal as _};
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use regex::RegexBuilder;
use rustyline::error::ReadlineError;
use rustyline::{DefaultEditor, ExternalPrinter};
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval};

use self::cursor::Cursor;
use self::printer::{Printer, plain};
use self::words::{HELP, Line};
use super::connect::{ConnectFlags, background_runtime};
use super::output::{CliError, Exit, Output};
use super::shown::cell;
use crate::client::{Chat, ChatEvent, ChatLine, Client, Error, Failure, is_refusal};
use crate::config::{self, Config};
use crate::services::chat::{DEFAULT_DEVICE, MAX_TEXT_BYTES};

/// A client that is gone is logged out after this time.
const SESSION_TTL: Duration = Duration::from_secs(10);
/// How often it is looked whether there is something to tell the cluster.
const MARK: Duration = Duration::from_secs(1);
/// So long the end waits for each answer of the cluster.
const LEAVE: Duration = Duration::from_secs(2);
/// Before the events are asked for again when no server has them.
const PAUSE: Duration = Duration::from_millis(500);
/// A pattern's program takes at most so many bytes.
const PATTERN_MAX: usize = 1 << 20;
/// What `/history` shows when it is not said how much.
const HISTORY: u32 = 20;
/// What is said besides when a login is refused because there is another one.
const ELSEWHERE: &str =
    " (a client that was killed is logged out after its --session-ttl, 10s unless it was set otherwise)";
/// What to do when it is not known whether a line was carried out.
const LOOK: &str = "/history and /list show whether it was done";
const PROMPT: &str = "> ";

const EXAMPLE: &str = "\
Examples:
  quorate chat --name ada
  quorate chat --name ada --device phone
  echo 'hello, all' | quorate chat --name bot

What you type goes to all; `>> bob: text` to bob alone. /help lists the commands.";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLE)]
pub(crate) struct ChatArgs {
    #[command(flatten)]
    connect: ConnectFlags,
    /// The account; a new name makes one
    #[arg(long)]
    name: Option<String>,
    /// One of the account's devices, each of which is given every message once [default: default]
    #[arg(long)]
    device: Option<String>,
    /// A client that is gone is logged out after this time [default: 10s]
    #[arg(long, value_name = "TIME", value_parser = config::timeout)]
    session_ttl: Option<Duration>,
    /// Let /delete take anybody's account
    #[arg(long)]
    admin: bool,
    /// The file with what this device has shown [default: below ~/.local/state/quorate]
    #[arg(long, value_name = "FILE")]
    cursor: Option<PathBuf>,
}

pub(crate) fn run(arguments: ChatArgs, config: &Config) -> Result<Exit, CliError> {
    let connection = arguments.connect.resolve(config)?;
    let name: String = config.require("name", arguments.name, config::parsed)?;
    let device = arguments.device.unwrap_or_else(|| DEFAULT_DEVICE.to_owned());
    let ttl = arguments.session_ttl.unwrap_or(SESSION_TTL);
    let client = connection.builder().session_ttl(ttl).build()?;
    super::log_to_stderr("warn")?;
    let settings = Settings { name, device, ttl, admin: arguments.admin, json: connection.json };
    background_runtime()?.block_on(async {
        let (talk, lines, shower) = Talk::begin(&client, settings, arguments.cursor).await?;
        let ended = talk.run(lines, shower).await;
        let _ = client.with_timeout(LEAVE).close().await;
        ended
    })
}

struct Settings {
    name: String,
    device: String,
    ttl: Duration,
    admin: bool,
    json: bool,
}

/// One client's stay in the chat.
struct Talk {
    chat: Chat,
    settings: Settings,
    printer: Printer,
    /// All up to this message was read.
    read: u64,
    /// What the cluster was told last, and when.
    marked: ((u64, u64), Instant),
    ended: Exit,
}

type Lines = mpsc::UnboundedReceiver<Result<String, String>>;

impl Talk {
    async fn begin(
        client: &Client,
        settings: Settings,
        file: Option<PathBuf>,
    ) -> Result<(Self, Lines, Shower), CliError> {
        let Settings { name, device, .. } = &settings;
        let cluster = client.cluster().await?.cluster_id.as_str().unwrap_or("unknown").to_owned();
        let file = match file {
            Some(file) => file,
            None => config::state_dir()
                .ok_or_else(|| CliError::usage("there is no HOME: name a file with --cursor"))?
                .join(&cluster)
                .join(format!("{name}@{device}.chat")),
        };
        let whose = format!("{cluster} {name} {device}");
        let cursor = Cursor::open(&file, &whose).map_err(|error| {
            CliError::failed(format!("what was shown cannot be kept in {}: {error}", file.display()))
        })?;
        let (typed, lines) = mpsc::unbounded_channel();
        let input = Input::open()?;
        // The login is last: who cannot begin is not active.
        let (chat, login) = client.chat(name, device).await.map_err(|error| {
            let elsewhere = is_refusal(&error, "active_elsewhere");
            let error = CliError::from(error);
            match elsewhere {
                true => CliError { message: format!("{}{ELSEWHERE}", error.message), ..error },
                false => error,
            }
        })?;
        let (after, repeated) = cursor.resume(login.delivered);
        let what = if login.created { "a new account" } else { "logged in" };
        // Others' private messages are among them.
        let since = match login.newest.saturating_sub(after) {
            0 => "nothing was said since you were here".to_owned(),
            waiting => format!("up to {waiting} messages since you were here"),
        };
        Output::note(&format!("{name}: {what}; {since}. /help lists the commands"));
        if login.dropped > 0 {
            Output::note(&format!("up to {} older messages are no longer kept", login.dropped));
        }
        let printer = Printer::start(input.read_lines(typed), cursor, settings.json);
        let shower = Shower { chat: chat.clone(), printer: printer.clone(), after, repeated };
        let marked = ((0, 0), Instant::now());
        Ok((Self { chat, settings, printer, read: 0, marked, ended: Exit::Done }, lines, shower))
    }

    async fn run(mut self, mut lines: Lines, shower: Shower) -> Result<Exit, CliError> {
        let [mut terminate, mut interrupt] =
            [signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?];
        let showing = tokio::spawn(shower.run());
        let printer = self.printer.clone();
        let talking = async {
            self.talk(&mut lines).await;
            self.show_the_rest().await;
        };
        let over = tokio::select! {
            () = talking => None,
            why = printer.over() => Some(why),
            _ = terminate.recv() => None,
            _ = interrupt.recv() => None,
        };
        showing.abort();
        self.printer.finish().await;
        if let Some(why) = over {
            return Err(CliError::failed(why));
        }
        let leaving = async {
            let chat = self.chat.with_timeout(LEAVE);
            let _ = chat.mark(self.printer.shown(), self.read).await;
            match chat.logout().await {
                Err(error) if !is_refusal(&error, "not_logged_in") => {
                    Output::note(&format!("logging out: {error}"));
                }
                _ => {}
            }
        };
        tokio::select! {
            () = leaving => {}
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        Ok(self.ended)
    }

    /// Carries out what is typed, until there is no more of it.
    async fn talk(&mut self, lines: &mut Lines) {
        let mut marks = interval(MARK);
        marks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                line = lines.recv() => match line {
                    None => return,
                    Some(Err(error)) => {
                        self.printer.note(format!("the input cannot be read: {error}")).await;
                        return self.note_end(Exit::Failed);
                    }
                    Some(Ok(line)) => {
                        // Who types has read what is there.
                        self.read = self.printer.shown();
                        if !self.carry_out(&line).await {
                            return;
                        }
                    }
                },
                _ = marks.tick() => self.mark().await,
            }
        }
    }

    /// What was said up to now, by this client too, is still shown: input from a pipe may end before.
    async fn show_the_rest(&self) {
        // Where nobody answers, it comes with the next login.
        if let Ok(last) = self.chat.with_timeout(LEAVE).history(None, 1).await
            && let Some(last) = last.last()
        {
            self.printer.until_shown(last.message.number).await;
        }
    }

    /// Tells the cluster what was shown and read. Also when that is nothing new, once in a while: that notices that
    /// the session has expired while nobody could be reached, and logs in again.
    async fn mark(&mut self) {
        let now = (self.printer.shown(), self.read);
        let (marked, at) = self.marked;
        if now == marked && at.elapsed() < self.settings.ttl / 2 {
            return;
        }
        match self.chat.mark(now.0, now.1).await {
            Ok(()) => self.marked = (now, Instant::now()),
            Err(error) if error.refused().is_some_and(|refused| refused.is_by_service()) => {
                self.printer.end(format!("logged out: {error}"));
            }
            // It is with the next time.
            Err(_) => {}
        }
    }

    /// False when it was the last one.
    async fn carry_out(&mut self, line: &str) -> bool {
        let result = match Line::parse(line) {
            Ok(Line::Nothing) => Ok(()),
            Ok(Line::Say { to, text }) => self.say(to, text).await,
            Ok(Line::List(pattern)) => self.list(pattern).await,
            Ok(Line::History { with, limit }) => self.history(with, limit.unwrap_or(HISTORY)).await,
            Ok(Line::Delete(name)) => match self.chat.delete(name, self.settings.admin).await {
                Ok(()) if name == self.settings.name => return false,
                result => result.map_err(Trouble::Error),
            },
            Ok(Line::Forget(device)) => self.chat.forget(device).await.map_err(Trouble::Error),
            Ok(Line::Help) => {
                self.printer.print(HELP.to_owned()).await;
                Ok(())
            }
            Ok(Line::Logout) => return false,
            Err(mistake) => Err(Trouble::Mistake(mistake)),
        };
        match result {
            Ok(()) => {}
            Err(Trouble::Mistake(text)) => {
                self.printer.note(text).await;
                self.note_end(Exit::Failed);
            }
            Err(Trouble::Error(error)) => {
                self.note_end(if error.is_unknown() { Exit::Unknown } else { Exit::Failed });
                let error = match error {
                    Error::Unknown(failure) => Error::Unknown(Box::new(Failure { next: LOOK, ..*failure })),
                    error => error,
                };
                self.printer.note(format!("`{}`: {error}", line.trim())).await;
            }
        }
        true
    }

    async fn say(&self, to: Option<&str>, text: &str) -> Result<(), Trouble> {
        if text.len() > MAX_TEXT_BYTES {
            let text = format!(
                "not sent: the text takes {} bytes, and a message at most {MAX_TEXT_BYTES}; send it in parts",
                text.len()
            );
            return Err(Trouble::Mistake(text));
        }
        self.chat.say(to, text).await?;
        Ok(())
    }

    async fn list(&self, pattern: Option<&str>) -> Result<(), Trouble> {
        let compile = |pattern: &str| RegexBuilder::new(pattern).size_limit(PATTERN_MAX).build();
        let pattern = pattern.unwrap_or_default();
        // Alone first: a parenthesis too many would end the anchored group.
        let anchored = compile(pattern).and_then(|_| compile(&format!("^(?:{pattern})")));
        let pattern = anchored.map_err(|error| {
            Trouble::Mistake(format!("/list takes a regular expression, and this is none: {error}"))
        })?;
        for account in self.chat.accounts().await? {
            if pattern.is_match(&account.name) {
                let line = match self.settings.json {
                    true => json!({ "account": account }).to_string(),
                    false => format!("{}{}", account.name, if account.online { " (online)" } else { "" }),
                };
                self.printer.print(line).await;
            }
        }
        Ok(())
    }

    async fn history(&self, with: Option<&str>, limit: u32) -> Result<(), Trouble> {
        let lines = self.chat.history(with, limit as usize).await?;
        if lines.is_empty() {
            let whose = with.map_or_else(String::new, |name| format!(" from or to {}", cell(name)));
            self.printer.note(format!("there are no messages{whose}")).await;
        }
        for line in lines {
            let text = match self.settings.json {
                true => json!({ "history": line }).to_string(),
                false => {
                    let ChatLine { message, delivered, read, of } = &line;
                    format!("{}  (delivered to {delivered} of {of}, read by {read})", plain(message))
                }
            };
            self.printer.print(text).await;
        }
        Ok(())
    }

    /// For a script; a person has seen what went wrong.
    fn note_end(&mut self, exit: Exit) {
        if !std::io::stdin().is_terminal() && self.ended != Exit::Unknown {
            self.ended = exit;
        }
    }
}

enum Trouble {
    Mistake(String),
    Error(Error),
}

impl From<Error> for Trouble {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

/// Shows what is said, as it is said.
struct Shower {
    chat: Chat,
    printer: Printer,
    after: u64,
    /// This message may have been shown already.
    repeated: Option<u64>,
}

impl Shower {
    async fn run(self) {
        let mut events = self.chat.events(self.after);
        let mut silent = false;
        loop {
            match events.next().await {
                Ok(event) => {
                    if std::mem::take(&mut silent) {
                        self.printer.note("the servers answer again".to_owned()).await;
                    }
                    self.show(event).await;
                }
                Err(error) => {
                    if !std::mem::replace(&mut silent, true) {
                        self.printer.note(format!("no messages come: {error}; it is tried on")).await;
                    }
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    async fn show(&self, event: ChatEvent) {
        match event {
            ChatEvent::Message(message) => {
                let repeated = self.repeated == Some(message.number);
                self.printer.message(message, repeated).await;
            }
            ChatEvent::Account(account) if account.name == self.chat.name() && !account.exists => {
                self.printer.end("this account was deleted".to_owned());
            }
            ChatEvent::Account(_) => {}
            ChatEvent::Dropped(count) => {
                self.printer
                    .note(format!("up to {count} messages are no longer kept, and were missed"))
                    .await;
            }
        }
    }
}

/// Where lines are typed.
enum Input {
    Terminal(Box<DefaultEditor>, Box<dyn ExternalPrinter + Send>),
    Pipe,
}

impl Input {
    fn open() -> Result<Self, CliError> {
        if !std::io::stdin().is_terminal() || !std::io::stdout().is_terminal() {
            return Ok(Self::Pipe);
        }
        let cannot = |error: ReadlineError| CliError::failed(format!("the chat cannot start: {error}"));
        let mut editor = DefaultEditor::new().map_err(cannot)?;
        let above = editor.create_external_printer().map_err(cannot)?;
        Ok(Self::Terminal(Box::new(editor), Box::new(above)))
    }

    /// Reads on a thread of its own: nobody can be kept from typing nothing. Gives what prints above the line.
    fn read_lines(
        self,
        typed: mpsc::UnboundedSender<Result<String, String>>,
    ) -> Option<Box<dyn ExternalPrinter + Send>> {
        match self {
            Self::Pipe => {
                std::thread::spawn(move || {
                    for line in std::io::stdin().lock().lines() {
                        let broken = line.is_err();
                        if typed.send(line.map_err(|error| error.to_string())).is_err() || broken {
                            return;
                        }
                    }
                });
                None
            }
            Self::Terminal(mut editor, above) => {
                std::thread::spawn(move || {
                    // Ctrl-C and Ctrl-D end it, and so the channel.
                    while let Ok(line) = editor.readline(PROMPT) {
                        let _ = editor.add_history_entry(&line);
                        if typed.send(Ok(line)).is_err() {
                            return;
                        }
                    }
                });
                Some(above)
            }
        }
    }
}
