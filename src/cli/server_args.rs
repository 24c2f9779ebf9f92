//! The flags of `quorate server` and `quorate cluster init`, and what they come to with environment and file.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use quorate_cluster::node::{LOG_KEEP, Timing};
use reqwest::Url;

use super::addresses;
use crate::config::{self, Config, ConfigError};
use crate::transcript::Transcript;

/// What keeps free on the disk when nothing else is said.
const DEFAULT_DISK_RESERVE: u64 = 256 << 20;
const DEFAULT_LOG_LEVEL: &str = "info";
// The parts of the help.
const IDENTITY: &str = "Identity";
const ADDRESSES: &str = "Addresses";
const DISK: &str = "Disk";
const TIMING: &str = "Timing";

/// Everything that `quorate server` was told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerArgs {
    /// The server's stable name.
    pub name: String,
    /// Its directory on disk.
    pub data: PathBuf,
    /// Where it serves clients.
    pub listen: SocketAddr,
    /// Where it serves the other servers.
    pub peer_listen: SocketAddr,
    /// What it is in the cluster.
    pub role: Role,
    /// Servers of the cluster to join, as `HOST:PORT` of their peer ports.
    pub join: Vec<String>,
    /// The URL that clients reach it under; made from `listen` when absent.
    pub advertise: Option<String>,
    /// The `HOST:PORT` that the other servers reach it under; `peer_listen` when absent.
    pub peer_advertise: Option<String>,
    /// Below so many free bytes on the disk, writes are refused.
    pub disk_reserve: u64,
    /// Entries that the log keeps behind a flush.
    pub log_keep: u64,
    /// The shortest election time-out; the node's default when absent.
    pub election_timeout: Option<Duration>,
    /// The interval of the primary's heartbeats; the node's default when absent.
    pub heartbeat: Option<Duration>,
    /// What is logged: a level, or directives such as `quorate=debug,info`.
    pub log_level: String,
    /// The global fault detector, whose view the cluster's status shows.
    pub gfd: Option<Url>,
    /// Which launch this is, when a local fault detector has launched it; else 0.
    pub incarnation: u64,
    /// What is printed for an operator to follow.
    pub transcript: Transcript,
    /// Where it answers lines of text.
    pub text_listen: Option<SocketAddr>,
}

/// Everything that `quorate cluster init` was told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InitArgs {
    /// The first server's name.
    pub name: String,
    /// Its directory, which must be empty or absent.
    pub data: PathBuf,
    /// Where it will serve clients.
    pub listen: SocketAddr,
    /// Where it will serve the other servers.
    pub peer_listen: SocketAddr,
    /// The URL that clients reach it under; made from `listen` when absent.
    pub advertise: Option<String>,
    /// The `HOST:PORT` that the other servers reach it under; `peer_listen` when absent.
    pub peer_advertise: Option<String>,
}

/// Who a server is and where it is found: what `server` and `cluster init` have in common.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct IdentityFlags {
    /// The server's stable name, such as S1
    #[arg(long, help_heading = IDENTITY)]
    name: Option<String>,
    /// The directory that holds its log and state
    #[arg(long, value_name = "DIR", help_heading = IDENTITY)]
    data: Option<PathBuf>,
    /// The address to serve clients on, such as 127.0.0.1:8001
    #[arg(long, value_name = "IP:PORT", value_parser = addresses::socket, help_heading = ADDRESSES)]
    listen: Option<SocketAddr>,
    /// The address to serve the other servers on, such as 127.0.0.1:9001
    #[arg(long, value_name = "IP:PORT", value_parser = addresses::socket, help_heading = ADDRESSES)]
    peer_listen: Option<SocketAddr>,
    /// The URL that clients reach this server under [default: http:// and --listen]
    #[arg(long, value_name = "URL", help_heading = ADDRESSES)]
    advertise: Option<String>,
    /// The address that other servers reach this one under [default: --peer-listen]
    #[arg(long, value_name = "HOST:PORT", help_heading = ADDRESSES)]
    peer_advertise: Option<String>,
}

/// The flags of `quorate server`.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct ServerFlags {
    #[command(flatten)]
    identity: IdentityFlags,
    /// Peer addresses of servers to join through, when DIR is empty
    #[arg(long, value_name = "HOST:PORT,…", value_delimiter = ',', help_heading = ADDRESSES)]
    join: Vec<String>,
    /// What it is in the cluster: data, or witness, which replicates and votes when it must, and serves no clients
    /// [default: data]
    #[arg(long, value_name = "ROLE", value_parser = role, help_heading = IDENTITY)]
    role: Option<Role>,
    /// Refuse writes when less than this is free on the disk [default: 256MiB]
    #[arg(long, value_name = "BYTES", value_parser = config::bytes, help_heading = DISK)]
    disk_reserve: Option<u64>,
    /// How many log entries to keep behind a flush; a server that lacks older ones gets a snapshot [default: 10000]
    #[arg(long, value_name = "N", help_heading = DISK)]
    log_keep: Option<u64>,
    /// The shortest time without a primary before an election, such as 300ms
    #[arg(long, value_name = "TIME", value_parser = config::duration, help_heading = TIMING)]
    election_timeout: Option<Duration>,
    /// The interval of the primary's heartbeats, such as 100ms
    #[arg(long, value_name = "TIME", value_parser = config::duration, help_heading = TIMING)]
    heartbeat: Option<Duration>,
    /// What to log on stderr: error, warn, info, debug, trace, or directives [default: info]
    #[arg(long, value_name = "LEVEL")]
    log_level: Option<String>,
    /// Print on stdout what an operator follows: heartbeats, requests with the state before and after, checkpoints, roles
    #[arg(long)]
    transcript: bool,
    /// Answer lines of text here, for `nc`: <client, server, number, body, request> [default: nowhere]
    #[arg(long, value_name = "IP:PORT", value_parser = addresses::socket, help_heading = ADDRESSES)]
    text_listen: Option<SocketAddr>,
    /// The global fault detector, such as 127.0.0.1:8101: the cluster's status shows its view [default: as a local
    /// detector says]
    #[arg(long, value_name = "HOST:PORT", help_heading = ADDRESSES)]
    gfd: Option<String>,
    /// Which launch this is: said by a local fault detector
    #[arg(long, value_name = "N", hide = true)]
    incarnation: Option<u64>,
}

/// What a server is in its cluster.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Role {
    /// It serves clients.
    #[default]
    Data,
    /// It replicates, and votes when it must.
    Witness,
}

fn role(text: &str) -> Result<Role, String> {
    match text {
        "data" => Ok(Role::Data),
        "witness" => Ok(Role::Witness),
        _ => Err(format!("`{text}` is none of data, witness")),
    }
}

impl ServerFlags {
    pub(crate) fn resolve(self, config: &Config) -> Result<ServerArgs, ConfigError> {
        let identity = self.identity.resolve(config, false)?;
        let join = config.pick_list("join", self.join)?;
        join.iter().try_for_each(|address| addresses::host_and_port("--join", address))?;
        let heartbeat = config.pick("heartbeat", self.heartbeat, config::duration)?;
        let election_timeout = config.pick("election-timeout", self.election_timeout, config::duration)?;
        check_timing(heartbeat, election_timeout)?;
        Ok(ServerArgs {
            name: identity.name,
            data: identity.data,
            listen: identity.listen,
            peer_listen: identity.peer_listen,
            role: config.pick("role", self.role, role)?.unwrap_or_default(),
            join,
            advertise: identity.advertise,
            peer_advertise: identity.peer_advertise,
            disk_reserve: config
                .pick("disk-reserve", self.disk_reserve, config::bytes)?
                .unwrap_or(DEFAULT_DISK_RESERVE),
            log_keep: config.pick("log-keep", self.log_keep, config::parsed)?.unwrap_or(LOG_KEEP),
            election_timeout,
            heartbeat,
            log_level: config
                .pick("log-level", self.log_level, config::parsed)?
                .unwrap_or_else(|| DEFAULT_LOG_LEVEL.to_owned()),
            gfd: config
                .pick("gfd", self.gfd, config::parsed::<String>)?
                .map(|gfd| addresses::url_of("--gfd", &gfd))
                .transpose()?,
            incarnation: self.incarnation.unwrap_or_default(),
            transcript: Transcript { on: self.transcript },
            text_listen: config.pick("text-listen", self.text_listen, addresses::socket)?,
        })
    }
}

/// Asked before the server takes its place in a cluster: one that expects heartbeats more often than they come would hold
/// elections all the time.
fn check_timing(heartbeat: Option<Duration>, election_timeout: Option<Duration>) -> Result<(), ConfigError> {
    let default = Timing::default();
    let (heartbeat, election) =
        (heartbeat.unwrap_or(default.heartbeat), election_timeout.unwrap_or(default.election.0));
    // An election begins three election time-outs after the last heartbeat, at the earliest.
    if heartbeat >= Duration::from_millis(1) && election * 2 >= heartbeat * 3 {
        return Ok(());
    }
    Err(ConfigError::Value {
        origin: "--heartbeat and --election-timeout".to_owned(),
        cause: format!(
            "a heartbeat every {heartbeat:?} and elections after {election:?} without one do not go together; the \
             heartbeat takes at least 1ms, and the election time-out one and a half heartbeats"
        ),
    })
}

impl IdentityFlags {
    /// With `written`, for `cluster init`, which writes the addresses down before the server has taken its ports.
    pub(crate) fn resolve(self, config: &Config, written: bool) -> Result<InitArgs, ConfigError> {
        let args = InitArgs {
            name: config.require("name", self.name, config::parsed)?,
            data: config.require("data", self.data, config::parsed)?,
            listen: config.require("listen", self.listen, addresses::socket)?,
            peer_listen: config.require("peer-listen", self.peer_listen, addresses::socket)?,
            advertise: config.pick("advertise", self.advertise, config::parsed)?,
            peer_advertise: config.pick("peer-advertise", self.peer_advertise, config::parsed)?,
        };
        addresses::check(&args, written)?;
        Ok(args)
    }
}
