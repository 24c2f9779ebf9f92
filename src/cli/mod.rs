//! The command line.
//!
//! stdout carries the value and a newline (with `--json` the HTTP body); everything else goes to stderr. The exit
//! code is 0 when it was done, 1 when it was refused or failed for certain, 2 for a mistake in the command line or the
//! configuration, and 3 when the outcome is unknown.

mod addresses;
mod bench;
mod chat;
mod client;
mod cluster;
mod common;
mod connect;
mod console;
mod detectors;
mod exchange;
mod jobs;
mod lines;
mod manager;
mod output;
mod repeat;
pub mod server_args;
mod shown;
mod status;
#[cfg(test)]
mod tests;
mod watch;
mod words;

use std::ffi::OsString;
use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, LazyLock};

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{CommandFactory, Parser, Subcommand};
use clap_complete::Shell;

use quorate_storage::service::Registry;

use crate::config::Config;
use crate::server::{Hooks, Services};
use output::{CliError, Exit, Output};
use server_args::ServerFlags;

/// What `--version` prints after the name.
static LONG_VERSION: LazyLock<String> = LazyLock::new(|| {
    format!(
        "{}\ncommit {}\ndisk format {}\npeer protocol {}",
        env!("CARGO_PKG_VERSION"),
        env!("QUORATE_COMMIT"),
        quorate_storage::FORMAT_VERSION,
        quorate_cluster::PROTOCOL_VERSION
    )
});

const ABOUT: &str = "Replicated state machines that people can simply run";
const EXAMPLE: &str = "\
Examples:
  quorate cluster init --name S1 --data d1 --listen 127.0.0.1:8001 --peer-listen 127.0.0.1:9001
  quorate server --name S1 --data d1 --listen 127.0.0.1:8001 --peer-listen 127.0.0.1:9001
  quorate client add 5
  quorate chat --name ada
  quorate exchange catalog
  quorate jobs submit 'to: ada'
  quorate cluster status

Settings: flags, then QUORATE_* (QUORATE_SERVERS for --servers), then the --config file, then defaults.
Exit codes: 0 done, 1 refused or failed for certain, 2 usage, 3 outcome unknown.";
const SERVER_EXAMPLE: &str = "\
Example:
  quorate server --name S2 --data d2 --listen 127.0.0.1:8002 --peer-listen 127.0.0.1:9002 --join 127.0.0.1:9001

The first server of a cluster is made by `quorate cluster init`; the others join through --join. A server that has
its data goes on as who it is.";
const LFD_EXAMPLE: &str = "\
Example:
  quorate lfd --name LFD1 --listen 127.0.0.1:8201 --gfd 127.0.0.1:8101 -- \\
      server --name S1 --data d1 --listen 127.0.0.1:8001 --peer-listen 127.0.0.1:9001

SIGTERM takes the server down with it. A server whose detector was killed goes on, and a new detector adopts it.
GET /v1/lfd shows what it sees; POST /v1/launch, /v1/stop and /v1/hold say what the server is to do.";
const GFD_EXAMPLE: &str = "\
Example:
  quorate gfd --listen 127.0.0.1:8101

GET /v1/view shows who is alive, GET /v1/view/watch streams the changes.";
const RM_EXAMPLE: &str = "\
Example:
  quorate rm --listen 127.0.0.1:8102 --gfd 127.0.0.1:8101
  quorate rm explain

It makes learners voters, replaces and removes dead servers, and has them launched again. Any number may run, and none is
needed for serving. GET /v1/rm shows what it sees and would do, GET /v1/hello where a client begins.";
const COMPLETIONS_EXAMPLE: &str = "\
Example:
  quorate completions bash > ~/.local/share/bash-completion/completions/quorate";

#[derive(Debug, Parser)]
#[command(name = "quorate", about = ABOUT, version, long_version = LONG_VERSION.as_str(), after_help = EXAMPLE)]
#[command(subcommand_required = true, arg_required_else_help = true)]
struct Cli {
    /// A TOML file with settings [env: QUORATE_CONFIG]
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a server
    #[command(after_help = SERVER_EXAMPLE)]
    Server(Box<ServerFlags>),
    /// Run a local fault detector, which launches a server and watches it
    #[command(after_help = LFD_EXAMPLE)]
    Lfd(Box<detectors::LfdFlags>),
    /// Run the global fault detector, which watches the local ones and keeps the view
    #[command(after_help = GFD_EXAMPLE)]
    Gfd(Box<detectors::GfdFlags>),
    /// Run a replication manager, which keeps the membership, or ask one
    #[command(after_help = RM_EXAMPLE)]
    Rm(Box<manager::RmFlags>),
    /// Make, look at and change a cluster
    Cluster(Box<cluster::ClusterArgs>),
    /// Work with counters and registers
    Client(Box<client::ClientArgs>),
    /// Talk to others
    Chat(Box<chat::ChatArgs>),
    /// Trade stocks
    Exchange(Box<exchange::ExchangeArgs>),
    /// Queue jobs, and work on them
    Jobs(Box<jobs::JobsArgs>),
    /// Measure a cluster's speed
    Bench(Box<bench::BenchArgs>),
    /// Print completions for a shell
    #[command(after_help = COMPLETIONS_EXAMPLE)]
    Completions {
        /// Which shell
        shell: Shell,
    },
}

/// Runs the command line with the services that ship with Quorate and says how it ended.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    run_with(arguments, crate::services::registry())
}

/// Runs the command line; a server runs the services of `registry`.
pub fn run_with(arguments: impl IntoIterator<Item = OsString>, registry: Registry) -> ExitCode {
    run_services(arguments, Services { registry, hooks: None })
}

/// The same; a server asks `hooks` before each command, and tells them after.
pub fn run_with_hooks(
    arguments: impl IntoIterator<Item = OsString>,
    registry: Registry,
    hooks: Arc<dyn Hooks>,
) -> ExitCode {
    run_services(arguments, Services { registry, hooks: Some(hooks) })
}

fn run_services(arguments: impl IntoIterator<Item = OsString>, services: Services) -> ExitCode {
    let cli = match Cli::try_parse_from(arguments).map_err(without_dash_tip) {
        Ok(cli) => cli,
        Err(error) => {
            let exit = if error.use_stderr() { Exit::Usage } else { Exit::Done };
            // There is nobody left to tell when this cannot be printed.
            let _ = error.print();
            return exit.into();
        }
    };
    match dispatch(cli, services) {
        Ok(exit) => exit.into(),
        Err(error) => {
            Output::error(&error.message);
            error.exit.into()
        }
    }
}

/// clap advises `-- -x` for any word that it does not know. Here only texts may begin with a dash, and they need no `--`; a
/// number that may be negative neither.
fn without_dash_tip(mut error: clap::Error) -> clap::Error {
    if error.kind() == ErrorKind::UnknownArgument {
        error.remove(ContextKind::Suggested);
        let is_number =
            |word: &str| word.starts_with('-') && word[1..].starts_with(|c: char| c.is_ascii_digit());
        if let Some(ContextValue::String(word)) = error.get(ContextKind::InvalidArg)
            && is_number(word)
        {
            let tip = ContextValue::StyledStrs(vec!["what is asked for here is not negative".into()]);
            error.insert(ContextKind::Suggested, tip);
        }
    }
    error
}

fn dispatch(cli: Cli, services: Services) -> Result<Exit, CliError> {
    let file = cli.config.as_deref();
    match cli.command {
        Command::Server(flags) => {
            let arguments = flags.resolve(&Config::load(file, "server")?)?;
            log_to_stderr(&arguments.log_level)?;
            crate::server::run(arguments, services).map_err(CliError::failed)?;
            Ok(Exit::Done)
        }
        Command::Lfd(flags) => {
            let (arguments, log_level) =
                flags.resolve(&Config::load(file, "lfd")?, &Config::load(file, "server")?, file)?;
            log_to_stderr(&log_level)?;
            crate::detectors::run(crate::detectors::lfd::run(arguments)).map_err(CliError::failed)?;
            Ok(Exit::Done)
        }
        Command::Gfd(flags) => {
            let (arguments, log_level) = flags.resolve(&Config::load(file, "gfd")?)?;
            log_to_stderr(&log_level)?;
            crate::detectors::run(crate::detectors::gfd::run(arguments)).map_err(CliError::failed)?;
            Ok(Exit::Done)
        }
        Command::Rm(flags) => manager::run(*flags, &Config::load(file, "rm")?),
        Command::Cluster(arguments) => cluster::run(*arguments, file, &services.registry),
        Command::Client(arguments) => client::run(*arguments, &Config::load(file, "client")?),
        Command::Chat(arguments) => chat::run(*arguments, &Config::load(file, "chat")?),
        Command::Exchange(arguments) => exchange::run(*arguments, &Config::load(file, "exchange")?),
        Command::Jobs(arguments) => jobs::run(*arguments, &Config::load(file, "jobs")?),
        Command::Bench(arguments) => bench::run(*arguments, &Config::load(file, "bench")?),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "quorate", &mut script);
            Output::raw(&script)?;
            Ok(Exit::Done)
        }
    }
}

/// What says nothing at the levels `info` and `warn` that this program does not say itself. openraft tells every heartbeat to
/// a server that is away, twenty a second, and calls it an error that its own stop ends what is under way; a core that
/// stops for any other reason ends the server, with the cause.
const QUIET: &str = "openraft=error,openraft::raft=off,openraft::core::heartbeat=off,openraft::core::sm::handle=off,\
                     raft_log=warn,chunked_wal=warn";

/// Sends the log to stderr. `directives` is a level, or for example `quorate=debug,info`.
fn log_to_stderr(directives: &str) -> Result<(), CliError> {
    let directives = match directives {
        "info" | "warn" => format!("{directives},{QUIET}"),
        other => other.to_owned(),
    };
    // The filter would take a misspelt level for the name of a module.
    const LEVELS: [&str; 6] = ["error", "warn", "info", "debug", "trace", "off"];
    let known =
        |word: &str| word.contains('=') || LEVELS.iter().any(|level| word.eq_ignore_ascii_case(level));
    if let Some(word) = directives.split(',').find(|word| !known(word.trim())) {
        let text = format!(
            "--log-level: {word:?} is no level (they are {}), and not TARGET=LEVEL",
            LEVELS.join(", ")
        );
        return Err(CliError::usage(text));
    }
    let filter = tracing_subscriber::EnvFilter::try_new(&directives)
        .map_err(|error| CliError::usage(format!("--log-level {directives}: {error}")))?;
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    // A second call in one process (a test) keeps the first log.
    let _ = subscriber.try_init();
    Ok(())
}
