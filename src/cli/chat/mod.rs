//! `quorate chat`: a chat at the terminal, or in a pipe.

mod cursor;
mod words;

use std::io::{BufRead as _, IsTerminal as _};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use clap::Args;
use regex::RegexBuilder;
use rustyline::error::ReadlineError;
use rustyline::{DefaultEditor, ExternalPrinter};
use serde_json::json;
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval};

use self::cursor::Cursor;
use self::words::{HELP, Line};
use super::connect::{ConnectFlags, Connection, background_runtime};
use super::output::{CliError, Exit, Output};
use super::shown::cell;
use crate::client::{Chat, ChatEvent, ChatLine, Client, Error};
use crate::config::{self, Config};
use crate::services::chat::{DEFAULT_DEVICE, MAX_TEXT_BYTES, Message};

/// A client that is gone is logged out after this time.
const SESSION_TTL: Duration = Duration::from_secs(10);
/// How often the cluster is told what was shown.
const MARK: Duration = Duration::from_secs(1);
/// Before the events are asked for again when no server has them.
const PAUSE: Duration = Duration::from_millis(500);
/// A pattern's program takes at most so many bytes.
const PATTERN_MAX: usize = 1 << 20;
/// What `/history` shows when it is not said how much.
const HISTORY: u32 = 20;
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
    let client = connection.builder().session_ttl(arguments.session_ttl.unwrap_or(SESSION_TTL)).build()?;
    super::log_to_stderr("warn")?;
    let runtime = background_runtime()?;
    runtime.block_on(async {
        let talk = Talk::begin(client, &name, &device, connection, arguments.admin, arguments.cursor).await?;
        talk.run().await
    })
}

/// One client's stay in the chat.
struct Talk {
    chat: Chat,
    connection: Connection,
    admin: bool,
    printer: Printer,
    cursor: Arc<Mutex<Cursor>>,
    /// Messages behind this one are to be shown.
    after: u64,
    /// That one may have been shown already.
    repeated: Option<u64>,
    /// The first thing that went wrong.
    ended: Exit,
}

impl Talk {
    async fn begin(
        client: Client,
        name: &str,
        device: &str,
        connection: Connection,
        admin: bool,
        file: Option<PathBuf>,
    ) -> Result<Self, CliError> {
        let (chat, login) = client.chat(name, device).await?;
        let cluster = client.cluster().await?.cluster_id.as_str().unwrap_or("unknown").to_owned();
        let file = match file {
            Some(file) => file,
            None => config::state_dir()
                .ok_or_else(|| CliError::usage("there is no HOME: name a file with --cursor"))?
                .join(cluster)
                .join(format!("{name}@{device}.chat")),
        };
        let cursor = Cursor::open(&file).map_err(|error| {
            CliError::failed(format!("what was shown cannot be kept in {}: {error}", file.display()))
        })?;
        let (after, repeated) = cursor.resume(login.delivered);
        let what = if login.created { "a new account" } else { "logged in" };
        let waiting = login.newest.saturating_sub(after);
        Output::note(&format!(
            "{name}: {what}; {waiting} messages since you were here. /help lists the commands"
        ));
        if login.dropped > 0 {
            Output::note(&format!("{} older messages are no longer kept", login.dropped));
        }
        let cursor = Arc::new(Mutex::new(cursor));
        let printer = Printer::new(connection.json);
        Ok(Self { chat, connection, admin, printer, cursor, after, repeated, ended: Exit::Done })
    }

    async fn run(mut self) -> Result<Exit, CliError> {
        let (typed, mut lines) = mpsc::channel(1);
        read_lines(self.printer.clone(), typed)?;
        let broken = Arc::new(AtomicBool::new(false));
        let showing = tokio::spawn(self.shower(Arc::clone(&broken)).run());
        let mut marks = interval(MARK);
        marks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut marked = (0, 0);
        let mut read = 0;
        let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
        loop {
            tokio::select! {
                line = lines.recv() => match line {
                    None => break,
                    Some(line) => {
                        // Who types has read what is there.
                        read = self.shown();
                        if !self.carry_out(&line).await {
                            break;
                        }
                    }
                },
                _ = marks.tick() => {
                    // What cannot be marked now is with the next time.
                    let now = (self.shown(), read);
                    if now != marked && self.chat.mark(now.0, now.1).await.is_ok() {
                        marked = now;
                    }
                }
                _ = tokio::signal::ctrl_c() => break,
                _ = terminate.recv() => break,
            }
            if broken.load(Ordering::Relaxed) {
                self.ended = Exit::Failed;
                break;
            }
        }
        showing.abort();
        let _ = self.chat.mark(self.shown(), read).await;
        if let Err(error) = self.chat.logout().await
            && !crate::client::is_refusal(&error, "not_logged_in")
        {
            self.failed("logging out", &error);
        }
        let _ = self.chat.client().close().await;
        Ok(self.ended)
    }

    fn shown(&self) -> u64 {
        self.cursor.lock().unwrap_or_else(PoisonError::into_inner).shown()
    }

    fn shower(&self, broken: Arc<AtomicBool>) -> Shower {
        Shower {
            chat: self.chat.clone(),
            printer: self.printer.clone(),
            cursor: Arc::clone(&self.cursor),
            after: self.after,
            repeated: self.repeated,
            broken,
        }
    }

    /// False when it was the last one.
    async fn carry_out(&mut self, line: &str) -> bool {
        let result = match Line::parse(line) {
            Ok(Line::Nothing) => Ok(()),
            Ok(Line::Say { to, text }) => self.say(to, text).await,
            Ok(Line::List(pattern)) => self.list(pattern).await,
            Ok(Line::History { with, limit }) => self.history(with, limit.unwrap_or(HISTORY)).await,
            Ok(Line::Delete(name)) => self.chat.delete(name, self.admin).await.map_err(Trouble::Error),
            Ok(Line::Help) => {
                self.printer.print(HELP);
                Ok(())
            }
            Ok(Line::Logout) => return false,
            Err(mistake) => Err(Trouble::Mistake(mistake)),
        };
        match result {
            Ok(()) => {}
            Err(Trouble::Mistake(text)) => self.mistake(&text),
            Err(Trouble::Error(error)) => self.failed(line, &error),
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
        let pattern = format!("^(?:{})", pattern.unwrap_or_default());
        let pattern = RegexBuilder::new(&pattern).size_limit(PATTERN_MAX).build().map_err(|error| {
            Trouble::Mistake(format!("/list takes a regular expression, and this is none: {error}"))
        })?;
        for account in self.chat.accounts().await? {
            if pattern.is_match(&account.name) {
                let line = match self.connection.json {
                    true => json!({ "account": account }).to_string(),
                    false => format!("{}{}", account.name, if account.online { " (online)" } else { "" }),
                };
                self.printer.print(&line);
            }
        }
        Ok(())
    }

    async fn history(&self, with: Option<&str>, limit: u32) -> Result<(), Trouble> {
        for line in self.chat.history(with, limit).await? {
            let text = match self.connection.json {
                true => json!({ "history": line }).to_string(),
                false => {
                    let ChatLine { message, delivered, read, of } = &line;
                    format!("{}  (delivered to {delivered} of {of}, read by {read})", plain(message))
                }
            };
            self.printer.print(&text);
        }
        Ok(())
    }

    fn mistake(&mut self, text: &str) {
        self.printer.note(text);
        self.note_end(Exit::Failed);
    }

    fn failed(&mut self, what: &str, error: &Error) {
        self.printer.note(&format!("`{}`: {error}", what.trim()));
        self.note_end(if error.is_unknown() { Exit::Unknown } else { Exit::Failed });
    }

    /// For a script; a person has seen what went wrong.
    fn note_end(&mut self, exit: Exit) {
        if self.ended == Exit::Done && !std::io::stdin().is_terminal() {
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
    cursor: Arc<Mutex<Cursor>>,
    after: u64,
    repeated: Option<u64>,
    broken: Arc<AtomicBool>,
}

impl Shower {
    async fn run(self) {
        let mut events = self.chat.events(self.after);
        let mut silent = false;
        loop {
            match events.next().await {
                Ok(event) => {
                    if std::mem::take(&mut silent) {
                        self.printer.note("the servers answer again");
                    }
                    if let Err(error) = self.show(event).await {
                        self.printer.note(&format!("what was shown cannot be kept: {error}"));
                        self.broken.store(true, Ordering::Relaxed);
                        return;
                    }
                }
                Err(error) => {
                    if !std::mem::replace(&mut silent, true) {
                        self.printer.note(&format!("no messages come: {error}; it is tried on"));
                    }
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    async fn show(&self, event: ChatEvent) -> std::io::Result<()> {
        match event {
            ChatEvent::Message(message) => {
                let mut cursor = self.cursor.lock().unwrap_or_else(PoisonError::into_inner);
                cursor.showing(message.number)?;
                self.printer.message(&message, self.repeated == Some(message.number));
                cursor.shown_up_to(message.number)
            }
            ChatEvent::Account(account) => {
                if account.name == self.chat.name() && !account.online && account.exists {
                    // The session expired while nobody could be reached.
                    if let Err(error) = self.chat.login_again().await {
                        self.printer.note(&format!("logged out, and no login: {error}"));
                    }
                }
                Ok(())
            }
            ChatEvent::Dropped(count) => {
                self.printer.note(&format!("{count} messages are no longer kept, and were missed"));
                Ok(())
            }
        }
    }
}

fn plain(message: &Message) -> String {
    let to = message.to.as_ref().map_or_else(String::new, |to| format!(" >> {to}"));
    format!("[{}] {}{to}: {}", message.number, message.from, cell(&message.text))
}

/// Prints above the line that is being typed.
#[derive(Clone)]
struct Printer {
    json: bool,
    above: Arc<Mutex<Option<Box<dyn ExternalPrinter + Send>>>>,
}

impl Printer {
    fn new(json: bool) -> Self {
        Self { json, above: Arc::default() }
    }

    fn message(&self, message: &Message, repeated: bool) {
        let line = match self.json {
            true => json!({ "message": message, "repeated": repeated }).to_string(),
            false => format!("{}{}", plain(message), if repeated { "  (repeated)" } else { "" }),
        };
        self.print(&line);
    }

    fn print(&self, line: &str) {
        let mut above = self.above.lock().unwrap_or_else(PoisonError::into_inner);
        let printed = match &mut *above {
            Some(above) => above.print(format!("{line}\n")).is_ok(),
            None => Output::raw(format!("{line}\n").as_bytes()).is_ok(),
        };
        if !printed {
            Output::note("cannot print");
        }
    }

    fn note(&self, text: &str) {
        let mut above = self.above.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *above {
            // It is told on stderr, once the prompt is gone.
            Some(above) => drop(above.print(format!("quorate: {text}\n"))),
            None => Output::note(text),
        }
    }
}

/// Reads what is typed, on a thread of its own: nobody can be kept from typing nothing.
fn read_lines(printer: Printer, typed: mpsc::Sender<String>) -> Result<(), CliError> {
    if !std::io::stdin().is_terminal() {
        std::thread::spawn(move || {
            for line in std::io::stdin().lock().lines().map_while(Result::ok) {
                if typed.blocking_send(line).is_err() {
                    return;
                }
            }
        });
        return Ok(());
    }
    let cannot = |error: ReadlineError| CliError::failed(format!("the chat cannot start: {error}"));
    let mut editor = DefaultEditor::new().map_err(cannot)?;
    let above = editor.create_external_printer().map_err(cannot)?;
    *printer.above.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(above));
    std::thread::spawn(move || {
        while let Ok(line) = editor.readline(PROMPT) {
            // Ctrl-C and Ctrl-D end it, and so the channel.
            let _ = editor.add_history_entry(&line);
            if typed.blocking_send(line).is_err() {
                return;
            }
        }
    });
    Ok(())
}
