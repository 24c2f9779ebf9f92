//! `quorate client loop`: a client that never stops asking.

use std::time::Duration;

use clap::Args;
use tokio::time::{Instant, sleep_until};

use super::common::Defaults;
use super::output::{CliError, Exit, Output, Printed};
use super::shown::whole;
use crate::client::{Client, Error};
use crate::config;

#[derive(Debug, Args)]
pub(crate) struct LoopArgs {
    /// The time from one sending to the next
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = config::duration)]
    every: Duration,
    /// What to send, followed by the count
    #[arg(long, default_value = "hello_world")]
    text: String,
    /// Which register [default: default]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Stop after so many [default: never]
    #[arg(long, value_name = "N")]
    count: Option<u64>,
}

/// Sends text and count to the register. The count goes on when the reply has come, and not before.
pub(crate) async fn run(
    client: &Client,
    arguments: &LoopArgs,
    defaults: &Defaults,
    output: Output,
) -> Result<Exit, CliError> {
    let register = client.register(arguments.name.as_ref().unwrap_or(&defaults.register));
    let mut due = Instant::now();
    for count in 1..=arguments.count.unwrap_or(u64::MAX) {
        let text = format!("{}{count}", arguments.text);
        let reply = tokio::select! {
            reply = register.set(&text) => reply,
            _ = tokio::signal::ctrl_c() => return Ok(Exit::Done),
        };
        match reply {
            Ok(reply) => {
                let printed = Printed::new(whole(reply.data.text.unwrap_or_default()), reply.body);
                if !output.reply(&printed)? {
                    return Ok(Exit::Done);
                }
            }
            Err(error) => {
                output.refusal(&error)?;
                return Err(failed(error, &text));
            }
        }
        // A reply that took longer than the interval is followed by the next sending at once, not by several.
        due = (due + arguments.every).max(Instant::now());
        if Some(count) == arguments.count {
            break;
        }
        tokio::select! {
            () = sleep_until(due) => {}
            _ = tokio::signal::ctrl_c() => return Ok(Exit::Done),
        }
    }
    Ok(Exit::Done)
}

/// The error of a single command, with the text that it speaks of. Where all servers are silent, whoever follows the loop
/// knows less than its last line says: the cluster may be there and go on without us.
fn failed(error: Error, text: &str) -> CliError {
    let silent = error.finds_no_server() && error.refused().is_none();
    let CliError { exit, message, no_server } = CliError::from(error);
    let exit = if silent { Exit::Unknown } else { exit };
    CliError { exit, message: format!("at {text}: {message}"), no_server }
}
