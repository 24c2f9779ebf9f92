//! Registers: texts by name. An absent register is null, which is not the empty text.
//!
//! - A register holds at most 256 KiB: an append copies the text, and an entry of 4,096 appends must not keep a node
//!   from its heartbeats. Replies and events are stored and sent many times, so they repeat a
//!   text of up to 1 KiB only; for a longer one they have null and its `length`. `get` and `list` give
//!   whole texts. The reply to an append leaves out the text before, which the text after begins with.
//! - An event goes out on the topic of the register's name when its text changes, and only then. A delete
//!   reports null, with a `length` of null.

use serde::{Deserialize, Deserializer, Serialize};

use super::names::{self, Listing, default_name};
use crate::{Context, QueryContext, Refusal, Service, Table, Tables, View};

const REGISTERS: Table<String, String> = Table::new("registers");

/// A register holds at most this many bytes.
pub const MAX_TEXT_BYTES: usize = 1 << 18;
/// Replies, refusals and events repeat texts of at most this many bytes.
pub const MAX_REPEATED_BYTES: usize = 1 << 10;

/// The service `register`.
#[derive(Debug, Clone, Copy, Default)]
pub struct Register;

/// What a register can be told. Stored by position: append variants and fields only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Command {
    /// Sets the text.
    Set {
        /// Which register.
        #[serde(default = "default_name")]
        name: String,
        /// The new text.
        text: String,
    },
    /// Appends to the text; an absent register counts as empty.
    Append {
        /// Which register.
        #[serde(default = "default_name")]
        name: String,
        /// What to append.
        text: String,
    },
    /// Sets the text if it is `expect` now.
    CompareAndSet {
        /// Which register.
        #[serde(default = "default_name")]
        name: String,
        /// The text that it must have; null: it must be absent. Never left out by mistake.
        #[serde(deserialize_with = "required")]
        expect: Option<String>,
        /// The new text.
        text: String,
    },
    /// Removes the register.
    Delete {
        /// Which register.
        #[serde(default = "default_name")]
        name: String,
    },
}

/// serde takes a missing `Option` for null unless it is deserialized by a function.
fn required<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    Option::deserialize(deserializer)
}

/// What a command came to. A length without a text: the text is too long to repeat.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reply {
    /// The text before; null if there was none, or it is not repeated.
    pub previous: Option<String>,
    /// The length of the text before, in bytes; null if there was none.
    pub previous_length: Option<u64>,
    /// The text after; null if there is none, or it is not repeated.
    pub text: Option<String>,
    /// The length of the text after, in bytes; null if there is none.
    pub length: Option<u64>,
}

/// What can be asked.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Query {
    /// One register's text.
    Get {
        /// Which register.
        #[serde(default = "default_name")]
        name: String,
    },
    /// Registers in the order of their names. A page may end before its limit, after 1 MiB of text.
    List(Listing),
}

/// The answer to a [`Query`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Answer {
    /// To [`Query::Get`].
    Get {
        /// The text; null if there is none.
        text: Option<String>,
    },
    /// To [`Query::List`].
    List {
        /// The registers.
        registers: Vec<Row>,
        /// The name to pass as `after` for the next page, when there is one.
        next: Option<String>,
    },
}

/// A register in a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Row {
    /// Its name.
    pub name: String,
    /// Its text.
    pub text: String,
}

/// The event of a change.
#[derive(Serialize)]
struct Changed<'a> {
    name: &'a str,
    text: Option<&'a str>,
    length: Option<u64>,
}

impl Service for Register {
    const NAME: &'static str = "register";
    type Command = Command;
    type Reply = Reply;
    type Query = Query;
    type Answer = Answer;

    fn apply(
        &self,
        tables: &mut Tables<'_>,
        context: &mut Context<'_>,
        command: Command,
    ) -> Result<Reply, Refusal> {
        let (Command::Set { name, .. }
        | Command::Append { name, .. }
        | Command::CompareAndSet { name, .. }
        | Command::Delete { name }) = &command;
        names::check(name)?;
        let previous = tables.get(&REGISTERS, name);
        let appends = matches!(command, Command::Append { .. });
        let (name, text) = text_after(command, previous.as_deref())?;
        let mut reply = Reply {
            previous: repeated(previous.as_deref()).map(str::to_owned),
            previous_length: length(previous.as_deref()),
            text: repeated(text.as_deref()).map(str::to_owned),
            length: length(text.as_deref()),
        };
        if appends {
            reply.previous = None;
        }
        if text != previous {
            match &text {
                Some(text) => tables.put(&REGISTERS, &name, text),
                None => tables.remove(&REGISTERS, &name),
            }
            let changed = Changed { name: &name, text: repeated(text.as_deref()), length: reply.length };
            context.emit(name.as_str(), &changed);
        }
        Ok(reply)
    }

    fn query(&self, view: &View<'_>, _: &QueryContext, query: Query) -> Result<Answer, Refusal> {
        match query {
            Query::Get { name } => {
                names::check(&name)?;
                Ok(Answer::Get { text: view.get(&REGISTERS, &name) })
            }
            Query::List(listing) => {
                let page = names::page(view, &REGISTERS, &listing, String::len)?;
                let registers = page.rows.into_iter().map(|(name, text)| Row { name, text }).collect();
                Ok(Answer::List { registers, next: page.next })
            }
        }
    }
}

/// The register's name, and the text that follows `previous`.
fn text_after(command: Command, previous: Option<&str>) -> Result<(String, Option<String>), Refusal> {
    match command {
        Command::Set { name, text } => {
            check_length(text.len())?;
            Ok((name, Some(text)))
        }
        Command::Append { name, text } => {
            let previous = previous.unwrap_or_default();
            check_length(previous.len() + text.len())?;
            Ok((name, Some([previous, &text].concat())))
        }
        Command::CompareAndSet { name, expect, text } => {
            check_length(text.len())?;
            if expect.as_deref() != previous {
                return Err(compare_failed(previous));
            }
            Ok((name, Some(text)))
        }
        Command::Delete { name } => Ok((name, None)),
    }
}

fn check_length(length: usize) -> Result<(), Refusal> {
    if length <= MAX_TEXT_BYTES {
        return Ok(());
    }
    let detail = format!(
        "the text would take {length} bytes, and a register holds at most {MAX_TEXT_BYTES}; \
         spread it over several registers"
    );
    Err(Refusal::new("too_large", detail).with_status(413))
}

/// The current text comes with it, unless it is too long: then only the detail speaks of it.
fn compare_failed(current: Option<&str>) -> Refusal {
    let is = match current {
        None => "the register is absent".to_owned(),
        Some(text) => format!("the register holds another text, of {} bytes", text.len()),
    };
    let refusal = Refusal::new("compare_failed", format!("{is}; read it again and decide anew"));
    match repeated(current) {
        None if current.is_some() => refusal,
        told => refusal.with_current(told),
    }
}

fn repeated(text: Option<&str>) -> Option<&str> {
    text.filter(|text| text.len() <= MAX_REPEATED_BYTES)
}

fn length(text: Option<&str>) -> Option<u64> {
    text.map(|text| text.len() as u64)
}
