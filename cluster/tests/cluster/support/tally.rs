//! A service to drive clusters with: numbers by key.

use std::time::Instant;

use quorate_cluster::error::NodeError;
use quorate_cluster::node::{Node, ReadLevel};
use quorate_storage::codec;
use quorate_storage::delta::{Command, DeltaResult, Outcome};
use quorate_storage::service::{Context, QueryContext, Refusal, Service};
use quorate_storage::tables::{Table, Tables, View};
use serde::{Deserialize, Serialize};

const NUMBERS: Table<String, u64> = Table::new("numbers");
const TEXTS: Table<String, String> = Table::new("texts");

pub(crate) struct Tally;

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum TallyCommand {
    /// Adds one.
    Add { key: String },
    /// Stores a text, to make the state large.
    Put { key: String, text: String },
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum TallyQuery {
    Get { key: String },
}

impl Service for Tally {
    const NAME: &'static str = "tally";
    type Command = TallyCommand;
    type Reply = u64;
    type Query = TallyQuery;
    type Answer = u64;

    fn apply(
        &self,
        tables: &mut Tables<'_>,
        _: &mut Context<'_>,
        command: TallyCommand,
    ) -> Result<u64, Refusal> {
        match command {
            TallyCommand::Add { key } => {
                let value = tables.get(&NUMBERS, &key).unwrap_or(0) + 1;
                tables.put(&NUMBERS, &key, &value);
                Ok(value)
            }
            TallyCommand::Put { key, text } => {
                tables.put(&TEXTS, &key, &text);
                Ok(0)
            }
        }
    }

    fn query(
        &self,
        tables: &View<'_>,
        _: &QueryContext,
        TallyQuery::Get { key }: TallyQuery,
    ) -> Result<u64, Refusal> {
        Ok(tables.get(&NUMBERS, &key).unwrap_or(0))
    }
}

/// An add without a session.
pub(crate) fn add(key: &str) -> Command {
    Command::sessionless(Tally::NAME, codec::encode(&TallyCommand::Add { key: key.to_owned() }))
}

/// A text of `bytes` bytes.
pub(crate) fn put(key: &str, bytes: usize) -> Command {
    let command = TallyCommand::Put { key: key.to_owned(), text: "x".repeat(bytes) };
    Command::sessionless(Tally::NAME, codec::encode(&command))
}

/// The reply in an outcome.
pub(crate) fn value(outcome: &Outcome) -> u64 {
    match &outcome.result {
        DeltaResult::Reply(reply) => codec::decode(reply).unwrap(),
        other => panic!("no reply: {other:?}"),
    }
}

/// What `node` holds now, without asking anybody.
pub(crate) fn held(node: &Node, key: &str) -> u64 {
    let answer = node.state().read(|machine| machine.query(Tally::NAME, "get", &format!("key={key}")));
    let answer = answer.unwrap().unwrap();
    std::str::from_utf8(&answer).unwrap().parse().unwrap()
}

/// A read through `node`.
pub(crate) async fn read(
    node: &Node,
    key: &str,
    level: ReadLevel,
    deadline: Instant,
) -> Result<u64, NodeError> {
    node.read_point(level, deadline).await?;
    Ok(held(node, key))
}
