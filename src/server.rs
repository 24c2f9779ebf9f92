//! The process of one server: bind, start the node, serve, stop in order.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use quorate_cluster::clock::SystemClock;
use quorate_cluster::node::{Node, NodeOptions, StartError, Timing};
use quorate_cluster::transport::TcpDial;
use quorate_storage::FORMAT_VERSION;
use quorate_storage::identity::Identity;
use quorate_storage::log::LogOptions;
use quorate_storage::node_disk::{self, DiskError};
use quorate_storage::raft_types::NodeInfo;
use quorate_storage::service::Registry;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::cli::server_args::{InitArgs, Role, ServerArgs};
use crate::hooks::Hooked;
pub use crate::hooks::{Call, Hooks};
use crate::http;
use crate::text_port::TextPort;

/// Why a server ended, or did not begin.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// An address cannot be listened on.
    #[error(
        "cannot listen on {address}: {error}. Is another server running there? `ss -ltnp` shows which process"
    )]
    Listen {
        /// The address.
        address: std::net::SocketAddr,
        /// What the system said.
        error: io::Error,
    },
    /// The node does not start.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The directory cannot be made.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The node could not go on.
    #[error(
        "this server stopped because it could not go on: {0}. Nothing that was acknowledged is lost; the other servers go on"
    )]
    Failed(String),
    /// The global fault detector cannot be asked.
    #[error("--gfd: {0}")]
    Detectors(String),
    /// The system refused something.
    #[error("{what}: {error}")]
    System {
        /// What was tried.
        what: &'static str,
        /// What the system said.
        error: io::Error,
    },
}

/// Makes a new cluster of one server in an empty directory: the only bootstrap there is.
///
/// # Errors
/// [`ServerError`]; a directory with anything in it is left as it is.
pub fn init(args: InitArgs, registry: &Registry) -> Result<(), ServerError> {
    let identity = Identity {
        cluster_id: format!("{:032x}", rand::random::<u128>()),
        node_id: quorate_storage::machine::FIRST_NODE_ID,
        name: args.name.clone(),
        format_version: FORMAT_VERSION,
        seeds: Vec::new(),
        services: registry.names(),
    };
    let info = NodeInfo {
        name: args.name,
        url: args.advertise.unwrap_or_else(|| format!("http://{}", args.listen)),
        peer: args.peer_advertise.unwrap_or_else(|| args.peer_listen.to_string()),
        witness: false,
    };
    runtime()?.block_on(node_disk::create(&args.data, &identity, Some(info)))?;
    Ok(())
}

/// What a server runs.
#[derive(Default)]
pub struct Services {
    /// Its services.
    pub registry: Registry,
    /// What is asked before and told after each command.
    pub hooks: Option<Arc<dyn Hooks>>,
}

/// Runs a server until SIGTERM or SIGINT.
///
/// # Errors
/// [`ServerError`].
pub fn run(args: ServerArgs, services: Services) -> Result<(), ServerError> {
    runtime()?.block_on(serve(args, services))
}

/// One thread beats more on small requests (docs/performance.md); blocking disk work has threads of its own.
fn runtime() -> Result<tokio::runtime::Runtime, ServerError> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| ServerError::System { what: "cannot start the runtime", error })
}

async fn serve(args: ServerArgs, Services { registry, hooks }: Services) -> Result<(), ServerError> {
    let hooked = Hooked(hooks);
    let listener = listen(args.listen).await?;
    let peer_listener = listen(args.peer_listen).await?;
    let text_listener = match args.text_listen {
        Some(address) => Some(listen(address).await?),
        None => None,
    };
    let mut terminate = signal(SignalKind::terminate()).map_err(signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(signals)?;
    let bound = |listener: &TcpListener| {
        listener.local_addr().map_err(|error| ServerError::System { what: "cannot tell the address", error })
    };
    let url = args.advertise.unwrap_or(format!("http://{}", bound(&listener)?));
    let peer = args.peer_advertise.unwrap_or(bound(&peer_listener)?.to_string());
    let info = NodeInfo { name: args.name, url, peer, witness: args.role == Role::Witness };
    let doing = match node_disk::inhabited(&args.data)? {
        true => "reads its state and applies its log again",
        false => "is still joining its cluster",
    };
    let view = match args.gfd {
        None => None,
        Some(gfd) => {
            let client = crate::detectors::client().map_err(|e| ServerError::Detectors(e.to_string()))?;
            Some(http::view::ViewSource::new(client, gfd))
        }
    };
    let said = http::Said {
        name: info.name.clone(),
        incarnation: args.incarnation,
        transcript: args.transcript,
        view,
        hooked: hooked.clone(),
    };
    let starting = Node::start(NodeOptions {
        dir: args.data,
        info,
        join: args.join,
        registry,
        peer_listener,
        dial: Arc::new(TcpDial),
        clock: Arc::new(SystemClock),
        timing: timing(args.heartbeat, args.election_timeout),
        disk_reserve: args.disk_reserve,
        log: LogOptions::default(),
        log_keep: args.log_keep,
    });
    let node = tokio::select! {
        node = starting => node?,
        never = http::starting::answer(&listener, doing, &said) => match never {},
        // Still joining: there is nothing to hand over yet.
        _ = terminate.recv() => return Ok(()),
        _ = interrupt.recv() => return Ok(()),
    };
    tracing::info!(name = node.name(), listen = %bound(&listener)?, "serving");
    let stop = watch::Sender::new(false);
    tokio::spawn(args.transcript.follow(node.clone()));
    if let Some(text_listener) = text_listener {
        tracing::info!(listen = %bound(&text_listener)?, "serving text");
        let text = TextPort::new(node.clone(), args.transcript, hooked);
        tokio::spawn(text.serve(text_listener, stop.subscribe()));
    }
    let serving = tokio::spawn(http::serve(listener, node.clone(), said, stop.subscribe()));
    let result = tokio::select! {
        cause = node.failed() => Err(ServerError::Failed(cause)),
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
    };
    if let Err(error) = &result {
        // What failed may hang as well: a disk, say. The end must come all the same.
        let text = error.to_string();
        std::thread::spawn(move || {
            std::thread::sleep(END_LIMIT);
            tracing::error!("{text}");
            std::process::exit(1);
        });
    } else {
        tracing::info!("stopping: no new requests, leadership is handed over, the state is flushed");
        node.drain();
        node.hand_over(Duration::from_secs(2)).await;
    }
    stop.send_replace(true);
    let _ = serving.await;
    node.shutdown().await;
    result
}

async fn listen(address: std::net::SocketAddr) -> Result<TcpListener, ServerError> {
    TcpListener::bind(address).await.map_err(|error| ServerError::Listen { address, error })
}

/// A server that has failed ends within this time.
const END_LIMIT: Duration = Duration::from_secs(10);

/// The longest election time-out is twice the shortest.
fn timing(heartbeat: Option<Duration>, election: Option<Duration>) -> Timing {
    let default = Timing::default();
    let shortest = election.unwrap_or(default.election.0);
    Timing { heartbeat: heartbeat.unwrap_or(default.heartbeat), election: (shortest, shortest * 2) }
}

fn signals(error: io::Error) -> ServerError {
    ServerError::System { what: "cannot listen for signals", error }
}
