//! `quorate chat`: a chat at the terminal, or in a pipe.

mod cursor;
mod input;
mod printer;
mod shower;
mod words;

use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use futures_util::future::select_all;
use regex::RegexBuilder;
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, MissedTickBehavior, interval};

use self::cursor::Cursor;
use self::input::{Input, Terminal};
use self::printer::{Printer, plain};
use self::shower::Shower;
use self::words::{HELP, Line};
use super::connect::{ConnectFlags, background_runtime};
use super::lines::{Lines, Typed};
use super::output::{CliError, Exit, Output};
use super::shown::cell;
use crate::client::{Chat, ChatLine, Client, Error, Failure, is_refusal};
use crate::config::{self, Config};
use crate::services::chat::{DEFAULT_DEVICE, MAX_TEXT_BYTES, check_name};

/// A client that is gone is logged out after this time.
const SESSION_TTL: Duration = Duration::from_secs(10);
/// How often it is looked whether there is something to tell the cluster.
const MARK: Duration = Duration::from_secs(1);
/// So long the end waits for each answer of the cluster.
const LEAVE: Duration = Duration::from_secs(2);
/// A pattern's program takes at most so many bytes.
const PATTERN_MAX: usize = 1 << 20;
/// What `/history` shows when it is not said how much.
const HISTORY: u32 = 20;
/// What is said besides when a login is refused because there is another one.
const ELSEWHERE: &str =
    " (a client that was killed is logged out after its --session-ttl, 10s unless it was set otherwise)";
/// What to do when it is not known whether a line was carried out.
const LOOK: &str = "/history and /list show whether it was done";

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
    terminal: Terminal,
    /// The line that is being carried out.
    under_way: Option<String>,
    /// The own account is deleted, because it was asked for.
    deletes_own: bool,
    ended: Exit,
}

/// How a stay ends.
enum End {
    /// There is no more input, or the last line said so.
    Left,
    /// It could not go on.
    Cut(String),
    /// Somebody outside said so.
    Signal,
}

impl Talk {
    async fn begin(
        client: &Client,
        settings: Settings,
        file: Option<PathBuf>,
    ) -> Result<(Self, Lines, Shower), CliError> {
        let Settings { name, device, .. } = &settings;
        // Before a file has such a name.
        for (what, name) in [("account", name), ("device", device)] {
            check_name(what, name).map_err(|refusal| CliError::usage(refusal.detail))?;
        }
        let cluster = client.cluster().await?.cluster_id.as_str().unwrap_or("unknown").to_owned();
        let file = match file {
            Some(file) => file,
            None => {
                let home = config::state_dir();
                let dir =
                    home.ok_or_else(|| CliError::usage("there is no HOME: name a file with --cursor"))?;
                let dir = dir.join(&cluster);
                std::fs::create_dir_all(&dir)
                    .map_err(|error| CliError::failed(format!("{}: {error}", dir.display())))?;
                dir.join(format!("{name}@{device}.chat"))
            }
        };
        let whose = format!("{cluster} {name} {device}");
        let cursor = Cursor::open(&file, &whose).map_err(|error| {
            CliError::failed(format!("{error} ({} is to keep what was shown)", file.display()))
        })?;
        let terminal = Terminal::keep();
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
        let (lines, above) = input.read_lines();
        let printer = Printer::start(above, cursor, after, settings.json);
        let shower = Shower { chat: chat.clone(), printer: printer.clone(), after, repeated };
        let marked = ((0, 0), Instant::now());
        let talk = Self {
            chat,
            settings,
            printer,
            read: 0,
            marked,
            terminal,
            under_way: None,
            deletes_own: false,
            ended: Exit::Done,
        };
        Ok((talk, lines, shower))
    }

    async fn run(mut self, mut lines: Lines, shower: Shower) -> Result<Exit, CliError> {
        let mut signals = [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::hangup()]
            .map(signal)
            .into_iter()
            .collect::<Result<Vec<_>, _>>()?;
        let mut told = async || {
            select_all(signals.iter_mut().map(|signal| Box::pin(signal.recv()))).await;
        };
        let showing = tokio::spawn(shower.run());
        let printer = self.printer.clone();
        let talking = async {
            self.talk(&mut lines).await;
            self.show_the_rest().await;
        };
        let end = tokio::select! {
            () = talking => End::Left,
            why = printer.over() => End::Cut(why),
            () = told() => End::Signal,
        };
        showing.abort();
        self.printer.finish().await;
        lines.close();
        self.terminal.restore();
        match end {
            End::Left => {}
            End::Cut(_) if self.deletes_own => {}
            End::Cut(why) => {
                self.cut_short(&mut lines);
                let exit = if self.ended == Exit::Unknown { Exit::Unknown } else { Exit::Failed };
                return Err(CliError::new(exit, why));
            }
            End::Signal => self.cut_short(&mut lines),
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
            () = told() => {}
        }
        Ok(self.ended)
    }

    /// A script is to know what of its lines was not carried out.
    fn cut_short(&mut self, lines: &mut Lines) {
        if let Some(line) = self.under_way.take() {
            self.note_end(Exit::Unknown);
            Output::note(&format!("`{}`: outcome unknown, as the chat was ended; {LOOK}", line.trim()));
        }
        if lines.try_recv().is_ok() {
            self.note_end(Exit::Failed);
            Output::note("the chat was ended: what was left of its input was not said");
        }
    }

    /// Carries out what is typed, until there is no more of it.
    async fn talk(&mut self, lines: &mut Lines) {
        let mut marks = interval(MARK);
        marks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                line = lines.recv() => match line {
                    None => return,
                    Some(Typed::Broken(error)) => {
                        self.printer.note(format!("the input cannot be read: {error}")).await;
                        return self.note_end(Exit::Failed);
                    }
                    Some(Typed::TooLong(bytes)) => {
                        self.printer.note(too_long(bytes)).await;
                        self.note_end(Exit::Failed);
                    }
                    Some(Typed::Line(line)) => {
                        // Who types has read what is there.
                        self.read = self.printer.shown();
                        self.under_way = Some(line.clone());
                        let goes_on = self.carry_out(&line).await;
                        self.under_way = None;
                        if !goes_on {
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
            Ok(Line::Delete(name)) => {
                self.deletes_own = name == self.settings.name;
                match self.chat.delete(name, self.settings.admin).await {
                    Ok(()) => {
                        self.printer.note(format!("the account {} is deleted", cell(name))).await;
                        if self.deletes_own {
                            return false;
                        }
                        Ok(())
                    }
                    Err(error) => Err(Trouble::Error(error)),
                }
            }
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
            return Err(Trouble::Mistake(too_long(text.len())));
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

fn too_long(bytes: usize) -> String {
    format!(
        "not sent: the text takes {bytes} bytes, and a message at most {MAX_TEXT_BYTES}; send it in parts"
    )
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
