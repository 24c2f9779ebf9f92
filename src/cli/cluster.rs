//! `quorate cluster`: make a cluster, look at it, change it.

use std::path::Path;
use std::time::Duration;

use clap::{Args, Subcommand};
use quorate_storage::service::Registry;
use serde_json::Value;

use super::connect::{ConnectFlags, Connection, runtime};
use super::output::{CliError, Exit, Output, Printed};
use super::server_args::IdentityFlags;
use super::status;
use crate::client::{Client, Error, LogPage, MembershipChange};
use crate::config::Config;

const EXAMPLE: &str = "\
Examples:
  quorate cluster status
  quorate cluster promote S4
  quorate cluster set mode active";
const INIT_EXAMPLE: &str = "\
Example:
  quorate cluster init --name S1 --data d1 --listen 127.0.0.1:8001 --peer-listen 127.0.0.1:9001

It makes a new cluster of one server in an empty directory, once, and exits. Then start `quorate server` with the same
flags, and more servers with --join.";
/// A membership change waits for a server to catch up and for two commits: it takes longer than a command.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(35);

#[derive(Debug, Args)]
#[command(after_help = EXAMPLE)]
pub(crate) struct ClusterArgs {
    #[command(flatten)]
    connect: ConnectFlags,
    #[command(subcommand)]
    action: ClusterAction,
}

#[derive(Debug, Subcommand)]
enum ClusterAction {
    /// Make a new cluster of one server
    #[command(after_help = INIT_EXAMPLE)]
    Init(IdentityFlags),
    /// Show servers, roles and progress
    #[command(after_help = "Example:\n  quorate cluster status --json")]
    Status,
    /// Show who votes and who learns
    #[command(after_help = "Example:\n  quorate cluster members")]
    Members,
    /// Show the commands that were applied, the newest last
    #[command(
        after_help = "Examples:\n  quorate cluster log --limit 20\n  quorate cluster log --from 100 --limit 20"
    )]
    Log {
        /// The first revision [default: so that the newest are shown]
        #[arg(long, value_name = "REVISION")]
        from: Option<u64>,
        /// At most so many
        #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
        limit: u32,
    },
    /// Make a learner a voter
    #[command(after_help = "Example:\n  quorate cluster promote S4")]
    Promote(Change),
    /// Make a voter a learner
    #[command(after_help = "Example:\n  quorate cluster demote S2")]
    Demote(Change),
    /// Drop a server
    #[command(after_help = "Example:\n  quorate cluster remove S2")]
    Remove(Change),
    /// Hand the primary's office over
    #[command(after_help = "Example:\n  quorate cluster transfer S2")]
    Transfer {
        /// To whom [default: the best one]
        name: Option<String>,
        /// Only if the membership is still the one with this log id (`membership.log_id` of `status --json`)
        #[arg(long, value_name = "LOG_ID")]
        if_membership: Option<String>,
    },
    /// Write a snapshot, as a backup
    #[command(after_help = "Example:\n  quorate cluster snapshot")]
    Snapshot,
    /// Change a replicated setting
    #[command(after_help = "Example:\n  quorate cluster set mode active")]
    Set {
        /// The setting: mode, target-size, stabilization, restart, checkpoint-interval
        name: String,
        /// Its value
        #[arg(allow_hyphen_values = true)]
        value: String,
    },
}

#[derive(Debug, Args)]
struct Change {
    /// The server's name
    name: String,
    /// Only if the membership is still the one with this log id (`membership.log_id` of `status --json`)
    #[arg(long, value_name = "LOG_ID")]
    if_membership: Option<String>,
}

pub(crate) fn run(
    arguments: ClusterArgs,
    file: Option<&Path>,
    registry: &Registry,
) -> Result<Exit, CliError> {
    if let ClusterAction::Init(flags) = arguments.action {
        if let Some(flag) = arguments.connect.given() {
            return Err(CliError::usage(format!(
                "{flag} says nothing to `cluster init`: it talks to no server"
            )));
        }
        let arguments = flags.resolve(&Config::load(file, "server")?, true)?;
        super::log_to_stderr("info")?;
        let done = format!(
            "{} is the first server of a new cluster, in {}; start it with `server` in place of `cluster init`, and the same flags",
            arguments.name,
            arguments.data.display()
        );
        crate::server::init(arguments, registry).map_err(CliError::failed)?;
        Output::note(&done);
        return Ok(Exit::Done);
    }
    let config = Config::load(file, "cluster")?;
    let changes = matches!(
        arguments.action,
        ClusterAction::Promote(_)
            | ClusterAction::Demote(_)
            | ClusterAction::Remove(_)
            | ClusterAction::Transfer { .. }
    );
    let connection = if changes {
        arguments.connect.resolve_with(&config, CHANGE_TIMEOUT)?
    } else {
        arguments.connect.resolve(&config)?
    };
    let client = connection.builder().build()?;
    super::log_to_stderr("warn")?;
    match runtime()?.block_on(perform(&client, &arguments.action)) {
        Ok(printed) => drop(connection.output().reply(&printed)?),
        Err(error) => return Err(report(&connection, error)?),
    }
    Ok(Exit::Done)
}

fn report(connection: &Connection, error: Error) -> Result<CliError, CliError> {
    connection.output().refusal(&error)?;
    Ok(error.into())
}

async fn perform(client: &Client, action: &ClusterAction) -> Result<Printed, Error> {
    match action {
        // Handled before a client is needed.
        ClusterAction::Init(_) => Ok(Printed::new(String::new(), String::new())),
        ClusterAction::Status => {
            let reply = client.cluster().await?;
            Ok(Printed::new(status::render(&reply), reply.body))
        }
        ClusterAction::Members => {
            let reply = client.cluster().await?;
            Ok(Printed::new(status::render_members(&reply), reply.body))
        }
        ClusterAction::Log { from, limit } => log(client, *from, *limit).await,
        ClusterAction::Promote(change) => change.carry_out(client, MembershipChange::Promote).await,
        ClusterAction::Demote(change) => change.carry_out(client, MembershipChange::Demote).await,
        ClusterAction::Remove(change) => change.carry_out(client, MembershipChange::Remove).await,
        ClusterAction::Transfer { name, if_membership } => {
            let condition = if_membership.clone().map(Value::String);
            let reply = client.transfer(name.as_deref(), condition.as_ref()).await?;
            let value = text_of(&reply, "primary").unwrap_or_else(|| "transferred".to_owned());
            Ok(Printed::new(value, reply.body))
        }
        ClusterAction::Snapshot => {
            let reply = client.snapshot().await?;
            let (server, revision) = (&reply["server"], &reply["revision"]);
            let note = Some(format!("written by {} at revision {revision}", status::plain(server)));
            let value = text_of(&reply, "file").unwrap_or_else(|| reply.body.clone());
            Ok(Printed { note, ..Printed::new(value, reply.body) })
        }
        ClusterAction::Set { name, value } => {
            // `true` and `3` are what they look like; anything else is a text.
            let value: Value = serde_json::from_str(value).unwrap_or_else(|_| Value::String(value.clone()));
            let reply = client.set_setting(name, &value).await?;
            Ok(Printed::new(format!("{name} = {}", status::plain(&value)), reply.body))
        }
    }
}

/// From a revision on, or the newest. Asks for page after page: a server ends one early when its commands are long.
async fn log(client: &Client, from: Option<u64>, limit: u32) -> Result<Printed, Error> {
    let newest = client.applied_revision().await?.data;
    let begin = from.unwrap_or((newest + 1).saturating_sub(u64::from(limit)).max(1));
    let first = client.log(Some(begin), Some(limit)).await?;
    let (mut page, mut body) = (first.data, first.body);
    while let Some(next) = page.next.filter(|_| page.deltas.len() < limit as usize) {
        let more = client.log(Some(next), Some(limit - page.deltas.len() as u32)).await?;
        if more.deltas.is_empty() {
            break;
        }
        body = joined(&body, &more.body);
        page.next = more.next;
        page.deltas.extend(more.data.deltas);
    }
    let note = other_pages(&page, begin, newest, limit);
    Ok(Printed { note, ..Printed::new(status::render_log(&page), body) })
}

/// Where the pages before and after this one begin, as far as there are any.
fn other_pages(page: &LogPage, begin: u64, newest: u64, limit: u32) -> Option<String> {
    let first = page.deltas.first().map_or(begin.min(newest + 1), |delta| delta.revision);
    let older = page
        .oldest
        .filter(|oldest| *oldest < first)
        .map(|oldest| format!("older ones: --from {}", oldest.max(first.saturating_sub(u64::from(limit)))));
    let newer = page.next.filter(|next| *next <= newest).map(|next| format!("newer ones: --from {next}"));
    let pages: Vec<String> = [older, newer].into_iter().flatten().collect();
    (!pages.is_empty()).then(|| format!("there are {}", pages.join("; ")))
}

/// The bodies of two pages of the log as one: the fields that this version does not know stay.
fn joined(first: &str, second: &str) -> String {
    let [mut page, mut more]: [Value; 2] =
        [first, second].map(|body| serde_json::from_str(body).unwrap_or_default());
    if let (Some(deltas), Some(rest)) = (page["deltas"].as_array_mut(), more["deltas"].as_array_mut()) {
        deltas.append(rest);
    }
    page["next"] = more["next"].take();
    page.to_string()
}

impl Change {
    async fn carry_out(&self, client: &Client, change: MembershipChange) -> Result<Printed, Error> {
        let guard = self.if_membership.clone().map(Value::String);
        let reply = client.change_membership(change, &self.name, guard.as_ref()).await?;
        let done = match change {
            MembershipChange::Promote => "is a voter",
            MembershipChange::Demote => "is a learner",
            MembershipChange::Remove => "is removed",
        };
        let voters = reply.get("voters").and_then(Value::as_array).map(Vec::len);
        let fragile = voters.filter(|_| change != MembershipChange::Promote).and_then(fragile);
        // Who has a view has a manager, most likely.
        let undone = match change {
            MembershipChange::Promote => None,
            MembershipChange::Demote => Some(STAYS_DEMOTED),
            MembershipChange::Remove => Some(STAYS_REMOVED),
        };
        let managed = undone.is_some() && client.cluster().await.is_ok_and(|status| !status.view.is_null());
        let again = undone.filter(|_| managed);
        let notes: Vec<&str> = fragile.into_iter().chain(again).collect();
        let note = (!notes.is_empty()).then(|| notes.join("\n"));
        Ok(Printed { note, ..Printed::new(format!("{} {done}", self.name), reply.body) })
    }
}

/// What whoever demotes a server should know.
const STAYS_DEMOTED: &str = "a replication manager makes a learner a voter again while fewer than target-size vote: set \
                             target-size, or run no manager";
/// What whoever removes a server should know.
const STAYS_REMOVED: &str =
    "a replication manager takes a removed server back while it runs: stop it for good, or run no manager";

/// What whoever takes votes away should know about those that are left.
fn fragile(voters: usize) -> Option<&'static str> {
    match voters {
        1 => Some(
            "warning: one voter is left. When it stops the service stops, and its disk alone holds what is \
             acknowledged from now on; `quorate cluster promote` makes more",
        ),
        2 => Some(
            "warning: two voters are left, and both must be up: the failure of either stops the service. \
             `quorate cluster promote` makes a third",
        ),
        _ => None,
    }
}

fn text_of(value: &Value, key: &str) -> Option<String> {
    value.get(key).and_then(Value::as_str).map(str::to_owned)
}
