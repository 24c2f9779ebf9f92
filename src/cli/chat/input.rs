//! Where lines are typed: a terminal, or a pipe.

use std::io::{self, IsTerminal as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};
use rustyline::error::ReadlineError;
use rustyline::{DefaultEditor, ExternalPrinter};
use tokio::sync::mpsc;

use super::words::Line;
use crate::cli::lines::{self, Lines, Typed};
use crate::cli::output::{CliError, Output};

const PROMPT: &str = "> ";
/// What is longer is no line of a chat.
const MAX_LINE_BYTES: usize = 16_384;
pub(super) enum Input {
    Terminal(Box<DefaultEditor>, Above),
    Pipe,
}

/// Prints above the line that is being typed.
pub(super) struct Above {
    printer: Box<dyn ExternalPrinter + Send>,
    /// Odd while a line is being typed; it counts on with each beginning and end.
    turns: Arc<AtomicU64>,
}

impl Input {
    pub(super) fn open() -> Result<Self, CliError> {
        if !io::stdin().is_terminal() || !io::stdout().is_terminal() {
            return Ok(Self::Pipe);
        }
        let cannot = |error: ReadlineError| CliError::failed(format!("the chat cannot start: {error}"));
        let mut editor = DefaultEditor::new().map_err(cannot)?;
        let printer = Box::new(editor.create_external_printer().map_err(cannot)?);
        Ok(Self::Terminal(Box::new(editor), Above { printer, turns: Arc::default() }))
    }

    /// Begins to read, on a thread: nobody can be kept from typing nothing. Gives what prints above the line, if one is typed.
    pub(super) fn read_lines(self) -> (Lines, Option<Above>) {
        match self {
            Self::Pipe => (lines::from_stdin(MAX_LINE_BYTES), None),
            Self::Terminal(mut editor, above) => {
                let (typed, lines) = mpsc::channel(lines::WAITING);
                let turns = Arc::clone(&above.turns);
                std::thread::spawn(move || {
                    loop {
                        turns.fetch_add(1, Ordering::SeqCst);
                        let line = editor.readline(PROMPT);
                        turns.fetch_add(1, Ordering::SeqCst);
                        // Ctrl-C and Ctrl-D end it, and so the channel.
                        let Ok(line) = line else { return };
                        let _ = editor.add_history_entry(&line);
                        // The terminal is not to be taken again by a line that nobody reads.
                        let last = matches!(Line::parse(&line), Ok(Line::Logout));
                        if typed.blocking_send(Typed::Line(line)).is_err() || last {
                            return;
                        }
                    }
                });
                (lines, Some(above))
            }
        }
    }
}

impl Above {
    /// Prints a line. False: it is not certain that it is to be seen, as typing has begun or ended meanwhile.
    ///
    /// What is printed while a line is typed waits for the thread that reads the keys, in a queue with room for one, so a
    /// second one that goes in tells that the first is out, and a third one that the first was written. Those two show
    /// nothing: up to the line that was printed, and down again.
    pub(super) fn print(&mut self, line: &str) -> io::Result<bool> {
        const NOTHING: &str = "\u{1b}[A\n";
        let before = self.turns.load(Ordering::SeqCst);
        for text in [format!("{line}\n"), NOTHING.to_owned(), NOTHING.to_owned()] {
            match self.printer.print(text) {
                // The last line was typed while this waited.
                Err(_) if self.has_ended() => return Ok(false),
                printed => printed.map_err(io::Error::other)?,
            }
        }
        Ok(self.turns.load(Ordering::SeqCst) == before)
    }

    /// Nobody reads keys any more: prints at once.
    pub(super) fn has_ended(&self) -> bool {
        self.turns.load(Ordering::SeqCst).is_multiple_of(2)
    }
}

/// How the terminal was before lines were typed; it is so again when this ends. (The thread that reads the keys cannot see to that
/// when the chat ends while it waits for one.)
pub(super) struct Terminal(Option<Termios>);

impl Terminal {
    pub(super) fn keep() -> Self {
        Self(tcgetattr(io::stdin()).ok())
    }

    pub(super) fn restore(&self) {
        let Some(before) = &self.0 else { return };
        let changed = tcgetattr(io::stdin()).is_ok_and(|now| now.local_modes != before.local_modes);
        if changed {
            // There is no other way to do it, nor anybody to tell.
            let _ = tcsetattr(io::stdin(), OptionalActions::Now, before);
            // Pasting in brackets ends, and so does the line that was typed.
            let _ = Output::raw(b"\x1b[?2004l\n");
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        self.restore();
    }
}
