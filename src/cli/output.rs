//! What goes to stdout, what goes to stderr, and the exit code.

use std::fmt::Display;
use std::io::{self, ErrorKind, Write};
use std::process::ExitCode;

use super::shown;
use crate::client::{BuildError, Error};
use crate::config::ConfigError;

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    /// It was done.
    Done = 0,
    /// It was refused or failed, for certain.
    Failed = 1,
    /// The command line or the configuration is wrong.
    Usage = 2,
    /// It may or may not have been applied.
    Unknown = 3,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Why a command ended early.
#[derive(Debug)]
pub(crate) struct CliError {
    pub(crate) exit: Exit,
    pub(crate) message: String,
    /// No server was found, so any other command would end the same.
    pub(crate) no_server: bool,
}

impl CliError {
    pub(crate) fn new(exit: Exit, cause: impl Display) -> Self {
        Self { exit, message: cause.to_string(), no_server: false }
    }

    pub(crate) fn failed(cause: impl Display) -> Self {
        Self::new(Exit::Failed, cause)
    }

    /// It was done, and its result could not be told.
    pub(crate) fn unseen(error: &io::Error) -> Self {
        Self::new(
            Exit::Unknown,
            format!("it was done, but its result cannot be written to the output: {error}"),
        )
    }

    pub(crate) fn usage(cause: impl Display) -> Self {
        Self::new(Exit::Usage, cause)
    }
}

impl From<Error> for CliError {
    fn from(error: Error) -> Self {
        let exit = if error.is_unknown() { Exit::Unknown } else { Exit::Failed };
        Self { no_server: error.finds_no_server(), ..Self::new(exit, &error) }
    }
}

impl From<ConfigError> for CliError {
    fn from(error: ConfigError) -> Self {
        Self::usage(error)
    }
}

impl From<BuildError> for CliError {
    fn from(error: BuildError) -> Self {
        Self::usage(error)
    }
}

impl From<io::Error> for CliError {
    fn from(error: io::Error) -> Self {
        Self::failed(format!("cannot write the output: {error}"))
    }
}

/// What a request brought: the value for a person, the body for a program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Printed {
    pub(crate) value: String,
    pub(crate) body: String,
    /// What a person is told after it, on stderr.
    pub(crate) note: Option<String>,
}

impl Printed {
    pub(crate) fn new(value: String, body: String) -> Self {
        Self { value, body, note: None }
    }
}

/// The two streams of a command.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output {
    json: bool,
}

impl Output {
    pub(crate) fn new(json: bool) -> Self {
        Self { json }
    }

    /// Prints a reply; false when the reader of stdout went away and wants no more.
    pub(crate) fn reply(self, printed: &Printed) -> io::Result<bool> {
        let wanted = Self::is_wanted(if self.json { &printed.body } else { &printed.value })?;
        if let Some(note) = &printed.note {
            Self::note(note);
        }
        Ok(wanted)
    }

    /// With `--json`, a body that a person is told of in other words.
    pub(crate) fn body(self, body: &str) -> io::Result<()> {
        if self.json { Self::line(body) } else { Ok(()) }
    }

    /// With `--json`, a refusal's body is what the program reads.
    pub(crate) fn refusal(self, error: &Error) -> io::Result<()> {
        match error.refused() {
            Some(refused) if self.json && !refused.problem.is_null() => {
                Self::line(&refused.problem.to_string())
            }
            _ => Ok(()),
        }
    }

    /// One line on stdout.
    pub(crate) fn line(text: &str) -> io::Result<()> {
        Self::is_wanted(text).map(drop)
    }

    /// One line of many; false when its reader went away and wants no more.
    pub(crate) fn is_wanted(text: &str) -> io::Result<bool> {
        let text = text.strip_suffix('\n').unwrap_or(text);
        Self::written(format!("{text}\n").as_bytes())
    }

    /// Bytes on stdout. A reader that went away (`| head`) wants no more, and that is no error.
    pub(crate) fn raw(bytes: &[u8]) -> io::Result<()> {
        Self::written(bytes).map(drop)
    }

    fn written(bytes: &[u8]) -> io::Result<bool> {
        let mut stdout = io::stdout().lock();
        match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
            Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(false),
            result => result.map(|()| true),
        }
    }

    /// A remark for a person, on stderr.
    pub(crate) fn note(text: &str) {
        // There is nobody left to tell when stderr is closed.
        let _ = writeln!(io::stderr().lock(), "{}", shown::remark(text));
    }

    /// An error, on stderr.
    pub(crate) fn error(text: &str) {
        Self::note(&format!("quorate: {text}"));
    }
}
