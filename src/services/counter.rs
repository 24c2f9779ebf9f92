//! Counters: signed 64-bit numbers by name. An absent counter is 0.
//!
//! - An overflow is refused and changes nothing.
//! - A counter that was set exists and is listed, with value 0 too, until it is deleted.
//! - An event goes out on the topic of the counter's name when its value changes, and only then: adding 0
//!   is silent. A delete reports 0.

use serde::{Deserialize, Serialize};

use super::names::{self, Listing, default_name};
use crate::{Context, QueryContext, Refusal, Service, Table, Tables, View};

const COUNTERS: Table<String, i64> = Table::new("counters");

/// The service `counter`.
#[derive(Debug, Clone, Copy, Default)]
pub struct Counter;

/// What a counter can be told. Stored by position: append variants and fields only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Command {
    /// Adds an amount, which may be negative.
    Add {
        /// Which counter.
        #[serde(default = "default_name")]
        name: String,
        /// How much.
        amount: i64,
    },
    /// Subtracts an amount, which may be negative.
    Minus {
        /// Which counter.
        #[serde(default = "default_name")]
        name: String,
        /// How much.
        amount: i64,
    },
    /// Sets the value.
    Set {
        /// Which counter.
        #[serde(default = "default_name")]
        name: String,
        /// The new value.
        value: i64,
    },
    /// Sets the value if it is `expect` now; an absent counter is 0.
    CompareAndSet {
        /// Which counter.
        #[serde(default = "default_name")]
        name: String,
        /// The value that it must have.
        expect: i64,
        /// The new value.
        value: i64,
    },
    /// Removes the counter.
    Delete {
        /// Which counter.
        #[serde(default = "default_name")]
        name: String,
    },
}

impl Command {
    fn name(&self) -> &String {
        match self {
            Self::Add { name, .. }
            | Self::Minus { name, .. }
            | Self::Set { name, .. }
            | Self::CompareAndSet { name, .. }
            | Self::Delete { name } => name,
        }
    }

    /// The value that follows `previous`.
    fn value_after(&self, previous: i64) -> Result<i64, Refusal> {
        match self {
            Self::Add { amount, .. } => {
                previous.checked_add(*amount).ok_or_else(|| overflow("adding", *amount, previous))
            }
            Self::Minus { amount, .. } => {
                previous.checked_sub(*amount).ok_or_else(|| overflow("subtracting", *amount, previous))
            }
            Self::CompareAndSet { expect, .. } if *expect != previous => {
                let detail = format!("the value is {previous}, not {expect}; read it again and decide anew");
                Err(Refusal::new("compare_failed", detail).with_current(previous))
            }
            Self::Set { value, .. } | Self::CompareAndSet { value, .. } => Ok(*value),
            Self::Delete { .. } => Ok(0),
        }
    }
}

fn overflow(what: &str, amount: i64, previous: i64) -> Refusal {
    let detail = format!(
        "{what} {amount} leaves the range of a counter, {} to {}; its value stays {previous}",
        i64::MIN,
        i64::MAX
    );
    Refusal::new("overflow", detail).with_current(previous)
}

/// What a command came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reply {
    /// The value before.
    pub previous: i64,
    /// The value after; 0 after a delete.
    pub value: i64,
}

/// What can be asked.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Query {
    /// One counter's value.
    Get {
        /// Which counter.
        #[serde(default = "default_name")]
        name: String,
    },
    /// Counters in the order of their names.
    List(Listing),
}

/// The answer to a [`Query`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Answer {
    /// To [`Query::Get`].
    Get {
        /// The value.
        value: i64,
    },
    /// To [`Query::List`].
    List {
        /// The counters.
        counters: Vec<Row>,
        /// The name to pass as `after` for the next page, when there is one.
        next: Option<String>,
    },
}

/// A counter in a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Row {
    /// Its name.
    pub name: String,
    /// Its value.
    pub value: i64,
}

/// The event of a change.
#[derive(Serialize)]
struct Changed<'a> {
    name: &'a str,
    value: i64,
}

impl Service for Counter {
    const NAME: &'static str = "counter";
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
        let name = command.name();
        names::check(name)?;
        let stored = tables.get(&COUNTERS, name);
        let previous = stored.unwrap_or(0);
        let value = command.value_after(previous)?;
        if matches!(command, Command::Delete { .. }) {
            tables.remove(&COUNTERS, name);
        } else if stored != Some(value) {
            tables.put(&COUNTERS, name, &value);
        }
        if value != previous {
            context.emit(name.as_str(), &Changed { name, value });
        }
        Ok(Reply { previous, value })
    }

    fn query(&self, view: &View<'_>, _: &QueryContext, query: Query) -> Result<Answer, Refusal> {
        match query {
            Query::Get { name } => {
                names::check(&name)?;
                Ok(Answer::Get { value: view.get(&COUNTERS, &name).unwrap_or(0) })
            }
            Query::List(listing) => {
                let page = names::page(view, &COUNTERS, &listing, |_| size_of::<i64>())?;
                let counters = page.rows.into_iter().map(|(name, value)| Row { name, value }).collect();
                Ok(Answer::List { counters, next: page.next })
            }
        }
    }
}
