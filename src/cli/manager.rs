//! `quorate rm`: run a replication manager, or ask one what it would do.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use clap::{Args, Subcommand};
use reqwest::Url;
use serde::Deserialize;

use super::connect::runtime;
use super::output::{CliError, Exit, Output};
use super::{addresses, log_to_stderr};
use crate::config::{self, Config};
use crate::manager::RmArgs;
use crate::transcript::Transcript;

const LOG_LEVEL: &str = "info";
const DEFAULT_RM: &str = "127.0.0.1:8102";
const ASK_TIMEOUT: Duration = Duration::from_secs(5);

/// The flags of `quorate rm`.
#[derive(Debug, Clone, Default, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(super) struct RmFlags {
    #[command(subcommand)]
    action: Option<RmAction>,
    /// The address to listen on, such as 127.0.0.1:8102
    #[arg(long, value_name = "IP:PORT", value_parser = addresses::socket)]
    listen: Option<SocketAddr>,
    /// The global fault detector, such as 127.0.0.1:8101
    #[arg(long, value_name = "HOST:PORT")]
    gfd: Option<String>,
    /// The mode that the cluster is to have: active or passive [default: as it is]
    #[arg(long, value_name = "MODE", value_parser = ["active", "passive"])]
    mode: Option<String>,
    /// Change nothing: only say what it would do
    #[arg(long)]
    dry_run: bool,
    /// Print what an operator follows on stdout
    #[arg(long)]
    transcript: bool,
    /// What to log on stderr: error, warn, info, debug, trace, or directives [default: info]
    #[arg(long, value_name = "LEVEL")]
    log_level: Option<String>,
}

#[derive(Debug, Clone, Subcommand)]
enum RmAction {
    /// Say what the manager would do next and why, and what it waits for
    #[command(after_help = "Example:\n  quorate rm explain --rm 127.0.0.1:8102")]
    Explain {
        /// The manager [default: 127.0.0.1:8102]
        #[arg(long, value_name = "HOST:PORT")]
        rm: Option<String>,
        /// Print the HTTP body
        #[arg(long)]
        json: bool,
    },
}

pub(super) fn run(flags: RmFlags, config: &Config) -> Result<Exit, CliError> {
    if let Some(RmAction::Explain { rm, json }) = flags.action {
        let rm: String = config.pick("rm", rm, config::parsed)?.unwrap_or_else(|| DEFAULT_RM.to_owned());
        return explain(&addresses::url_of("--rm", &rm)?, json);
    }
    let gfd: String = config.require("gfd", flags.gfd, config::parsed)?;
    let arguments = RmArgs {
        listen: config.require("listen", flags.listen, addresses::socket)?,
        gfd: addresses::url_of("--gfd", &gfd)?,
        mode: flags.mode,
        dry_run: flags.dry_run,
        transcript: Transcript { on: flags.transcript },
    };
    let log_level = config.pick("log-level", flags.log_level, config::parsed)?;
    log_to_stderr(log_level.as_deref().unwrap_or(LOG_LEVEL))?;
    crate::detectors::run(crate::manager::run(arguments)).map_err(CliError::failed)?;
    Ok(Exit::Done)
}

/// Of `GET /v1/rm`, what is told.
#[derive(Deserialize)]
struct Thoughts {
    dry_run: bool,
    primary: Option<String>,
    membership: Option<String>,
    view_revision: Option<u64>,
    view: BTreeMap<String, String>,
    settled: bool,
    launch: Vec<String>,
    next: Option<Next>,
    waits: Vec<String>,
    notes: Vec<String>,
    doing: Option<String>,
    last: Option<String>,
}

#[derive(Deserialize)]
struct Next {
    change: String,
    why: String,
}

fn explain(rm: &Url, json: bool) -> Result<Exit, CliError> {
    let body = runtime()?.block_on(ask(rm)).map_err(|error| {
        CliError::failed(format!(
            "no replication manager answers at {rm}: {error}. Is it running (`quorate rm`)? --rm names another one"
        ))
    })?;
    if json {
        Output::raw(&body)?;
        return Ok(Exit::Done);
    }
    let thoughts: Thoughts = serde_json::from_slice(&body)
        .map_err(|error| CliError::failed(format!("{rm} is no replication manager: {error}")))?;
    Output::raw(thoughts.lines().join("\n").as_bytes())?;
    Output::raw(b"\n")?;
    Ok(Exit::Done)
}

async fn ask(rm: &Url) -> Result<Vec<u8>, reqwest::Error> {
    let client = reqwest::Client::builder().no_proxy().build()?;
    let answer = client.get(format!("{rm}v1/rm")).timeout(ASK_TIMEOUT).send().await?;
    Ok(answer.error_for_status()?.bytes().await?.into())
}

impl Thoughts {
    fn lines(&self) -> Vec<String> {
        let or_none = |text: Option<String>| text.unwrap_or_else(|| "none".to_owned());
        let states = self.view.iter().map(|(name, state)| format!("{name} {state}"));
        let view = self.view_revision.map_or_else(
            || "cannot be had: the global fault detector does not answer".to_owned(),
            |revision| format!("{revision}: {}", states.collect::<Vec<_>>().join(", ")),
        );
        let mut lines = vec![
            format!(
                "sees: primary {}, membership {}",
                or_none(self.primary.clone()),
                or_none(self.membership.clone())
            ),
            format!("view {view}"),
        ];
        if self.dry_run {
            lines.push("dry run: it does nothing of this".to_owned());
        }
        lines.extend(self.doing.iter().map(|doing| format!("doing: {doing}")));
        lines.extend(self.launch.iter().map(|name| format!("launches: {name}")));
        lines.extend(self.next.iter().map(|next| format!("next: {}, because {}", next.change, next.why)));
        lines.extend(self.waits.iter().map(|wait| format!("waits: {wait}")));
        lines.extend(self.notes.iter().map(|note| format!("note: {note}")));
        lines.extend(self.last.iter().map(|last| format!("last: {last}")));
        if self.settled {
            lines.push("settled: nothing is to be done".to_owned());
        }
        lines
    }
}
