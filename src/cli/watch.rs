//! `quorate client watch`: events as they happen.

use clap::Args;
use serde_json::{Value, json};

use super::connect::Connection;
use super::output::{CliError, Exit, Output};
use crate::client::{Client, Position};

#[derive(Debug, Args)]
pub(crate) struct WatchArgs {
    /// Only this topic: for a counter or register its name [default: all]
    topic: Option<String>,
    /// The service
    #[arg(long, default_value = "counter")]
    service: String,
    /// Only what came after this REVISION or REVISION.N [default: from now on]
    #[arg(long, value_name = "POSITION")]
    from: Option<Position>,
    /// Stop after so many events
    #[arg(long, value_name = "N")]
    count: Option<u64>,
}

/// Prints events until there were enough, or nobody reads them, or Ctrl-C.
pub(crate) async fn run(
    client: &Client,
    arguments: &WatchArgs,
    connection: &Connection,
) -> Result<Exit, CliError> {
    let mut watch = client.watch(&arguments.service, arguments.topic.as_deref(), arguments.from);
    let mut left = arguments.count.unwrap_or(u64::MAX);
    let mut last = None;
    while left > 0 {
        let event = tokio::select! {
            event = watch.next() => event,
            _ = tokio::signal::ctrl_c() => return Ok(Exit::Done),
        };
        let event = match event {
            Ok(event) => event,
            Err(error) => {
                connection.output().refusal(&error)?;
                if let Some(last) = last {
                    Output::note(&format!("the watch goes on behind what it has shown with --from {last}"));
                }
                return Err(error.into());
            }
        };
        last = Some(event.position);
        let line = if connection.json {
            let id = event.position.to_string();
            json!({"id": id, "event": event.topic, "data": event.data}).to_string()
        } else {
            format!("{}\t{}\t{}", event.position, event.topic, shown(&event.data))
        };
        if !Output::is_wanted(&line)? {
            return Ok(Exit::Done);
        }
        left -= 1;
    }
    Ok(Exit::Done)
}

/// The part of an event that a person looks for.
fn shown(data: &Value) -> String {
    match data.get("value").or_else(|| data.get("text")) {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Null) => String::new(),
        Some(value) => value.to_string(),
        None => data.to_string(),
    }
}
