//! `quorate client watch`: events as they happen.

use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};

use super::connect::Connection;
use super::output::{CliError, Exit, Output};
use super::shown::cell;
use crate::client::{Client, Position};

/// How long a look at the present revision may take.
const LOOK_TIMEOUT: Duration = Duration::from_secs(1);

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

impl WatchArgs {
    /// `--counter NAME` is another word for the topic of a counter.
    pub(crate) fn check(&self, counter: Option<&str>) -> Result<(), CliError> {
        match (counter, &self.topic) {
            (Some(_), _) if self.service != "counter" => Err(CliError::usage(format!(
                "--counter is for --service counter; a topic of {} is named without a flag",
                self.service
            ))),
            (Some(_), Some(_)) => {
                Err(CliError::usage("the topic and --counter say the same; give one of the two"))
            }
            _ => Ok(()),
        }
    }
}

/// Prints events until there were enough, or nobody reads them, or Ctrl-C.
pub(crate) async fn run(
    client: &Client,
    arguments: &WatchArgs,
    counter: Option<&str>,
    connection: &Connection,
) -> Result<Exit, CliError> {
    let topic = arguments.topic.as_deref().or(counter);
    let mut watch = client.watch(&arguments.service, topic.as_slice(), arguments.from);
    if let Some(from) = arguments.from {
        note_ahead(client, from, connection.timeout.min(LOOK_TIMEOUT)).await;
    }
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
            format!("{}\t{}\t{}", event.position, cell(&event.topic), cell(&shown(&event.data)))
        };
        if !Output::is_wanted(&line)? {
            return Ok(Exit::Done);
        }
        left -= 1;
    }
    Ok(Exit::Done)
}

/// A watch from a position that nothing has reached yet would only be silent. That it begins there all the same is
/// right, so nothing depends on this look.
async fn note_ahead(client: &Client, from: Position, timeout: Duration) {
    if let Ok(now) = client.with_timeout(timeout).applied_revision().await
        && from.revision > now.data
    {
        Output::note(&format!(
            "--from {from} lies ahead: {} is at revision {}. What comes after {from} is shown when it happens",
            now.server, now.data
        ));
    }
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
