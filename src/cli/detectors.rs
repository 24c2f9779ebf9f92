//! The flags of `quorate lfd` and `quorate gfd`, and what they come to with environment and file.

use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use clap::{Args, Parser};
use quorate_cluster::detect::supervisor::Restart;

use super::addresses;
use super::output::CliError;
use super::server_args::ServerFlags;
use crate::config::{self, Config, ConfigError};
use crate::detectors::gfd::GfdArgs;
use crate::detectors::lfd::LfdArgs;
use crate::transcript::Transcript;

const HEARTBEAT: Duration = Duration::from_millis(250);
const TIMEOUT: Duration = Duration::from_secs(1);
const LOG_LEVEL: &str = "info";

/// What the detectors have in common.
#[derive(Debug, Clone, Default, Args)]
struct DetectorFlags {
    /// The address to listen on, such as 127.0.0.1:8101 (GFD) or 127.0.0.1:8201 (LFD1)
    #[arg(long, value_name = "IP:PORT", value_parser = addresses::socket)]
    listen: Option<SocketAddr>,
    /// From one heartbeat's sending to the next [default: 250ms]
    #[arg(long, value_name = "TIME", value_parser = config::timeout)]
    heartbeat: Option<Duration>,
    /// Whoever has been silent for so long is dead [default: 1s]
    #[arg(long, value_name = "TIME", value_parser = config::timeout)]
    timeout: Option<Duration>,
    /// Print each heartbeat on stdout
    #[arg(long)]
    transcript: bool,
    /// What to log on stderr: error, warn, info, debug, trace, or directives [default: info]
    #[arg(long, value_name = "LEVEL")]
    log_level: Option<String>,
}

struct Common {
    listen: SocketAddr,
    heartbeat: Duration,
    timeout: Duration,
    transcript: Transcript,
    log_level: String,
}

impl DetectorFlags {
    fn resolve(self, config: &Config) -> Result<Common, ConfigError> {
        let heartbeat =
            config.pick("detector-heartbeat", self.heartbeat, config::timeout)?.unwrap_or(HEARTBEAT);
        let timeout = config.pick("detector-timeout", self.timeout, config::timeout)?.unwrap_or(TIMEOUT);
        if heartbeat < Duration::from_millis(10) || timeout < heartbeat * 2 {
            return Err(ConfigError::Value {
                origin: "--heartbeat and --timeout".to_owned(),
                cause: format!(
                    "a heartbeat every {heartbeat:?} and death after {timeout:?} without an answer do not go together; the \
                     heartbeat takes at least 10ms, and the time-out two heartbeats"
                ),
            });
        }
        Ok(Common {
            listen: config.require("listen", self.listen, addresses::socket)?,
            heartbeat,
            timeout,
            transcript: Transcript { on: self.transcript },
            log_level: config
                .pick("log-level", self.log_level, config::parsed)?
                .unwrap_or_else(|| LOG_LEVEL.to_owned()),
        })
    }
}

/// The flags of `quorate gfd`.
#[derive(Debug, Clone, Default, Args)]
pub(super) struct GfdFlags {
    #[command(flatten)]
    detector: DetectorFlags,
}

impl GfdFlags {
    /// What it is to do, and what to log.
    pub(super) fn resolve(self, config: &Config) -> Result<(GfdArgs, String), ConfigError> {
        let Common { listen, heartbeat, timeout, transcript, log_level } = self.detector.resolve(config)?;
        Ok((GfdArgs { listen, heartbeat, timeout, transcript }, log_level))
    }
}

/// The flags of `quorate lfd`.
#[derive(Debug, Clone, Default, Args)]
pub(super) struct LfdFlags {
    /// The detector's name, such as LFD1
    #[arg(long)]
    name: Option<String>,
    #[command(flatten)]
    detector: DetectorFlags,
    /// The URL that others reach this detector under [default: http:// and --listen]
    #[arg(long, value_name = "URL")]
    advertise: Option<String>,
    /// The global fault detector, such as 127.0.0.1:8101
    #[arg(long, value_name = "HOST:PORT")]
    gfd: Option<String>,
    /// When to launch a server that has ended: always, on-command, never [default: on-command]
    #[arg(long, value_name = "WHEN", value_parser = restart)]
    restart: Option<Restart>,
    /// The server to launch: `server` and its flags
    #[arg(last = true, required = true, value_name = "server …")]
    command: Vec<OsString>,
}

fn restart(text: &str) -> Result<Restart, String> {
    Restart::parse(text).ok_or_else(|| format!("`{text}` is none of {}", Restart::NAMES.join(", ")))
}

/// What stands behind `--`, to learn the server's name and address from.
#[derive(Debug, Parser)]
#[command(name = "server", no_binary_name = false)]
struct Launched {
    #[command(flatten)]
    flags: ServerFlags,
}

/// Where a server on this machine is reached that listens on `address`.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

impl LfdFlags {
    /// What it is to do, and what to log. `server` is the configuration as the server will see it, from `file`.
    pub(super) fn resolve(
        self,
        config: &Config,
        server: &Config,
        file: Option<&Path>,
    ) -> Result<(LfdArgs, String), CliError> {
        if self.command.first().is_none_or(|first| first != "server") {
            let text = "what stands behind -- is to begin with the word server, for example: \
                        quorate lfd … -- server --name S1 --data d1 --listen … --peer-listen …";
            return Err(CliError::usage(text));
        }
        let launched = Launched::try_parse_from(&self.command)
            .map_err(|error| CliError::usage(format!("behind --: {error}")))?;
        let launched = launched.flags.resolve(server)?;
        if launched.listen.port() == 0 {
            return Err(CliError::usage(
                "behind --: the server's --listen takes a port of its own, lest it be another one after each launch",
            ));
        }
        let Common { listen, heartbeat, timeout, transcript, log_level } = self.detector.resolve(config)?;
        let gfd: String = config.require("gfd", self.gfd, config::parsed)?;
        let mut command = self.command;
        if launched.gfd.is_none() {
            command.extend(["--gfd".into(), OsString::from(&gfd)]);
        }
        command.extend(file.into_iter().flat_map(|file| ["--config".into(), file.into()]));
        let args = LfdArgs {
            name: config.require("name", self.name, config::parsed)?,
            listen,
            url: self.advertise,
            gfd: addresses::url_of("--gfd", &gfd)?,
            heartbeat,
            timeout,
            restart: config.pick("restart", self.restart, restart)?.unwrap_or(Restart::OnCommand),
            transcript,
            server: launched.name,
            server_url: launched.advertise.unwrap_or(format!("http://{}", launched.listen)),
            heartbeat_url: addresses::url_of("--listen", &reachable(launched.listen).to_string())?,
            command,
        };
        Ok((args, log_level))
    }
}
