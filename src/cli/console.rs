//! `quorate client console`: the same commands as on the command line, with history, completion and help.

use std::io::IsTerminal as _;

use clap::{CommandFactory, Parser, Subcommand};
use rustyline::completion::{Completer, Pair};
use rustyline::error::ReadlineError;
use rustyline::hint::HistoryHinter;
use rustyline::history::FileHistory;
use rustyline::{CompletionType, Config, Context, Editor, Helper, Highlighter, Hinter, Validator};
use tokio::runtime::Runtime;

use super::client::{Single, close, print_single};
use super::common::{CommonFlags, Defaults, Uses};
use super::connect::Connection;
use super::output::{CliError, Exit, Output};
use super::{status, words};
use crate::client::Client;
use crate::config;

const WELCOME: &str = "quorate console: `help` lists the commands, Tab completes, Ctrl-D ends.";
/// How many lines the history file keeps.
const HISTORY_MAX: usize = 1_000;

/// One line of the console.
#[derive(Debug, Parser)]
#[command(no_binary_name = true, name = "", disable_help_flag = true, about = "Commands of the console")]
#[command(override_usage = "<COMMAND> [OPTIONS]")]
struct Line {
    #[command(flatten)]
    common: CommonFlags,
    #[command(subcommand)]
    action: LineAction,
}

#[derive(Debug, Subcommand)]
enum LineAction {
    #[command(flatten)]
    Single(Single),
    /// Show the cluster
    Status,
    /// Leave
    #[command(alias = "exit")]
    Quit,
}

pub(crate) fn run(
    runtime: &Runtime,
    client: &Client,
    defaults: &Defaults,
    connection: &Connection,
) -> Result<Exit, CliError> {
    let settings = Config::builder().completion_type(CompletionType::List).max_history_size(HISTORY_MAX);
    let mut editor = settings
        .map(|settings| settings.auto_add_history(true).build())
        .and_then(Editor::<Assistant, FileHistory>::with_config)
        .map_err(|error| CliError::failed(format!("the console cannot start: {error}")))?;
    editor.set_helper(Some(Assistant { completer: Words::new(), hinter: HistoryHinter::new() }));
    let history = config::history_file();
    if let Some(file) = &history {
        // The first time there is none yet.
        let _ = editor.load_history(file);
    }
    if std::io::stdin().is_terminal() {
        Output::note(WELCOME);
    }
    let result = read_lines(&mut editor, runtime, client, defaults, connection);
    runtime.block_on(close(client));
    if let Some(file) = &history
        && let Err(error) = editor.append_history(file)
    {
        Output::note(&format!("the history could not be kept in {}: {error}", file.display()));
    }
    result
}

fn read_lines(
    editor: &mut Editor<Assistant, FileHistory>,
    runtime: &Runtime,
    client: &Client,
    defaults: &Defaults,
    connection: &Connection,
) -> Result<Exit, CliError> {
    let script = !std::io::stdin().is_terminal();
    // A script that pipes its lines learns by the exit code that one of them failed: the first one's.
    let mut ended = Exit::Done;
    for number in 1_u64.. {
        let line = match editor.readline("quorate> ") {
            Ok(line) => line,
            // Ctrl-C drops the line; the console goes on.
            Err(ReadlineError::Interrupted) => continue,
            Err(ReadlineError::Eof) => break,
            Err(error) => return Err(CliError::failed(format!("cannot read the next line: {error}"))),
        };
        let error = match carry_out(&line, runtime, client, defaults, connection) {
            Ok(Next::Line) => continue,
            Ok(Next::End) => break,
            Err(error) => error,
        };
        if !script {
            Output::note(&error.message);
            continue;
        }
        Output::note(&format!("line {number}, `{}`: {}", line.trim(), error.message));
        if ended == Exit::Done {
            ended = error.exit;
        }
        if error.no_server {
            // Each further line would take as long to fail.
            Output::note("the lines after it are not run");
            break;
        }
    }
    Ok(ended)
}

/// What follows a line that was carried out.
enum Next {
    Line,
    End,
}

fn carry_out(
    line: &str,
    runtime: &Runtime,
    client: &Client,
    defaults: &Defaults,
    connection: &Connection,
) -> Result<Next, CliError> {
    let words = words::split(line).map_err(CliError::usage)?;
    if words.is_empty() {
        return Ok(Next::Line);
    }
    match Line::try_parse_from(words).map_err(super::without_dash_tip) {
        Ok(Line { action: LineAction::Quit, .. }) => return Ok(Next::End),
        Ok(line) => drop(runtime.block_on(interruptible(client, line, defaults, connection))?),
        // Help and mistakes alike: clap has the words.
        Err(error) if error.use_stderr() => {
            return Err(CliError::usage(error.render().to_string().trim_end()));
        }
        Err(help) => Output::note(help.render().to_string().trim_end()),
    }
    Ok(Next::Line)
}

/// Ctrl-C gives the command up, not the console.
async fn interruptible(
    client: &Client,
    line: Line,
    defaults: &Defaults,
    connection: &Connection,
) -> Result<Exit, CliError> {
    tokio::select! {
        done = perform(client, line, defaults, connection) => done,
        _ = tokio::signal::ctrl_c() => {
            Err(CliError::new(Exit::Unknown, "given up; if it was a change, its outcome is unknown"))
        }
    }
}

async fn perform(
    client: &Client,
    line: Line,
    defaults: &Defaults,
    connection: &Connection,
) -> Result<Exit, CliError> {
    let uses = match &line.action {
        LineAction::Single(single) => single.uses(),
        LineAction::Status | LineAction::Quit => Uses::default(),
    };
    line.common.check(uses)?;
    match line.action {
        LineAction::Single(single) => {
            if let Single::Register(register) = &single {
                register.check()?;
            }
            print_single(client, &single, &defaults.with(line.common)?, connection.output()).await
        }
        LineAction::Status => {
            let reply = client.cluster().await?;
            Output::line(&status::render(&reply))?;
            Ok(Exit::Done)
        }
        LineAction::Quit => Ok(Exit::Done),
    }
}

/// What helps while a line is typed.
#[derive(Helper, Highlighter, Hinter, Validator)]
struct Assistant {
    completer: Words,
    #[rustyline(Hinter)]
    hinter: HistoryHinter,
}

impl Completer for Assistant {
    type Candidate = Pair;

    fn complete(&self, line: &str, at: usize, _: &Context<'_>) -> rustyline::Result<(usize, Vec<Pair>)> {
        let (start, words) = self.completer.complete(line.get(..at).unwrap_or(line));
        let pairs = words.into_iter().map(|word| Pair { display: word.clone(), replacement: word }).collect();
        Ok((start, pairs))
    }
}

/// The words that a line may hold, taken from its grammar, so that they are never out of date.
struct Words {
    grammar: clap::Command,
}

impl Words {
    fn new() -> Self {
        let mut grammar = Line::command();
        grammar.build();
        Self { grammar }
    }

    /// The candidates for the last word, and where that word begins.
    fn complete(&self, typed: &str) -> (usize, Vec<String>) {
        let start = typed.rfind(char::is_whitespace).map_or(0, |at| at + 1);
        let (before, last) = typed.split_at(start);
        let mut command = &self.grammar;
        for word in before.split_whitespace() {
            command = command.find_subcommand(word).unwrap_or(command);
        }
        let flags = command
            .get_arguments()
            .filter_map(|argument| argument.get_long())
            .map(|long| format!("--{long}"));
        let mut words: Vec<String> =
            command.get_subcommands().map(|command| command.get_name().to_owned()).collect();
        if last.starts_with('-') {
            words.extend(flags);
        }
        words.retain(|word| word.starts_with(last));
        words.sort();
        (start, words)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn completion_follows_the_grammar() {
        let words = Words::new();
        assert_eq!(words.complete("de"), (0, vec!["delete".to_owned()]));
        assert_eq!(words.complete("register ap"), (9, vec!["append".to_owned()]));
        assert_eq!(words.complete("get --co"), (4, vec!["--counter".to_owned()]));
        assert!(words.complete("").1.contains(&"status".to_owned()));
    }

    #[test]
    fn a_line_is_a_command_line() {
        let line = Line::try_parse_from(["add", "-5", "--counter", "hits"]).unwrap();
        assert!(matches!(line.action, LineAction::Single(Single::Add { amount: -5 })));
        assert!(matches!(Line::try_parse_from(["exit"]).unwrap().action, LineAction::Quit));
        assert!(Line::try_parse_from(["ad", "5"]).unwrap_err().to_string().contains("add"));
        let help = Line::try_parse_from(["help"]).unwrap_err().to_string();
        assert!(help.contains("register") && help.contains("status"), "{help}");
    }
}
