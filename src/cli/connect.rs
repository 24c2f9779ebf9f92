//! The flags that say which cluster is meant, the same for every command that talks to one.

use std::time::Duration;

use clap::Args;
use tokio::runtime::{Builder, Runtime};

use super::output::{CliError, Output};
use crate::client::{Client, ClientBuilder, DEFAULT_SERVERS, DEFAULT_TIMEOUT};
use crate::config::{self, Config, ConfigError};

/// Flags that say whom a command talks to, and how.
pub(crate) const CONNECTION: &str = "Connection";

#[derive(Debug, Clone, Default, Args)]
pub(crate) struct ConnectFlags {
    /// The servers to ask [default: http://127.0.0.1:8001,…8002,…8003]
    #[arg(long, global = true, value_name = "URL,…", value_delimiter = ',', help_heading = CONNECTION)]
    servers: Vec<String>,
    /// How long a request may take, all its retries included [default: 5s]
    #[arg(long, global = true, value_name = "TIME", value_parser = config::timeout, help_heading = CONNECTION)]
    timeout: Option<Duration>,
    /// Print the HTTP body
    #[arg(long, global = true)]
    json: bool,
}

/// The flags, completed by environment, file and defaults.
#[derive(Debug, Clone)]
pub(crate) struct Connection {
    pub(crate) servers: Vec<String>,
    pub(crate) timeout: Duration,
    pub(crate) json: bool,
}

impl ConnectFlags {
    /// One of the flags that were given, for a command that has no use for any.
    pub(crate) fn given(&self) -> Option<&'static str> {
        let flags = [
            ("--servers", !self.servers.is_empty()),
            ("--timeout", self.timeout.is_some()),
            ("--json", self.json),
        ];
        flags.into_iter().find_map(|(flag, given)| given.then_some(flag))
    }

    pub(crate) fn resolve(self, config: &Config) -> Result<Connection, ConfigError> {
        self.resolve_with(config, DEFAULT_TIMEOUT)
    }

    /// The same, for commands that take longer.
    pub(crate) fn resolve_with(self, config: &Config, timeout: Duration) -> Result<Connection, ConfigError> {
        Ok(Connection {
            servers: servers(config, self.servers)?,
            timeout: config.pick("timeout", self.timeout, config::timeout)?.unwrap_or(timeout),
            json: self.json,
        })
    }
}

/// The servers of a command.
pub(crate) fn servers(config: &Config, flag: Vec<String>) -> Result<Vec<String>, ConfigError> {
    let servers = config.pick_list("servers", flag)?;
    Ok(if servers.is_empty() { DEFAULT_SERVERS.iter().map(ToString::to_string).collect() } else { servers })
}

impl Connection {
    pub(crate) fn builder(&self) -> ClientBuilder {
        Client::builder().servers(&self.servers).timeout(self.timeout)
    }

    pub(crate) fn output(&self) -> Output {
        Output::new(self.json)
    }
}

/// A runtime for a command that does one thing at a time.
pub(crate) fn runtime() -> Result<Runtime, CliError> {
    Builder::new_current_thread().enable_all().build().map_err(|error| cannot_start(&error))
}

/// A runtime that goes on working while its owner waits for a person.
pub(crate) fn background_runtime() -> Result<Runtime, CliError> {
    Builder::new_multi_thread().worker_threads(1).enable_all().build().map_err(|error| cannot_start(&error))
}

fn cannot_start(error: &std::io::Error) -> CliError {
    CliError::failed(format!("cannot start: {error}"))
}
