//! The answering end, on `--peer-listen`.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::future::BoxFuture;
use quorate_storage::codec;
use quorate_storage::node_disk::max_connections;
use quorate_storage::raft_types::NodeId;
use tokio::io::{AsyncWriteExt as _, WriteHalf};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::time::{Instant, timeout, timeout_at};

use super::Stream;
use super::frame::{ClusterId, Frame, FrameReader, Kind, MAX_CONTENT, Route};
use crate::error::{Code, NodeError};
use crate::message::{Reply, Request};

/// Connections at once, if the system allows three times as many. For one more, the oldest stranger's is ended; without
/// strangers it waits.
const MAX_CONNECTIONS: usize = 512;
/// Requests of one connection that are handled at once.
const MAX_REQUESTS: usize = 1024;
/// A frame must have arrived, and a reply must have been taken, within this time and what its length needs. A new
/// connection must begin a frame within it.
const FRAME_TIMEOUT: Duration = Duration::from_secs(10);
/// What the slowest link that is of use carries: a full append of 4 MiB has a minute.
const BYTES_PER_SECOND: usize = 64 << 10;
/// A member's connection without any frame for so long is closed: lanes dial again when they need to.
const IDLE_TIMEOUT: Duration = Duration::from_secs(120);
/// Replies are gathered into writes of about this size.
const WRITE_BYTES: usize = 256 << 10;
/// What a client is told that took this port for the one of `--listen`. It closes the connection on purpose.
const NOT_FOR_CLIENTS: &str = r#"{"code":"peer_port","detail":"this is a peer port, where only the other servers of the cluster are answered; ask the server's HTTP address, that of --listen","outcome":"not_applied"}"#;

/// Who this server is: what an incoming frame must name.
#[derive(Debug, Clone, Copy)]
pub struct Local {
    /// The cluster's id.
    pub cluster: ClusterId,
    /// This node's id.
    pub node: NodeId,
}

/// A reply that is under way while the next request may be handled.
pub struct Ordered(pub oneshot::Receiver<Result<Reply, NodeError>>);

/// What answers requests.
pub trait Handler: Send + Sync + 'static {
    /// What the handler keeps for one connection's ordered requests.
    type Pipe: Send;

    /// Handles one request; many run at once.
    fn handle(&self, from: NodeId, request: Request) -> BoxFuture<'_, Result<Reply, NodeError>>;

    /// Handles a request that must keep its order with the others of its connection; returns when
    /// the next one may come. `pipe` lives as long as the connection.
    fn handle_ordered<'a>(
        &'a self,
        from: NodeId,
        request: Request,
        pipe: &'a mut Option<Self::Pipe>,
    ) -> BoxFuture<'a, Ordered>;
}

/// The connections that have brought no frame of this cluster yet, oldest first: who keeps slots without being a member
/// must not keep members out.
#[derive(Clone, Default)]
pub(super) struct Strangers(Arc<Mutex<BTreeMap<u64, oneshot::Sender<()>>>>);

/// A connection's place among the strangers, until this is dropped.
pub(super) struct Stranger {
    number: u64,
    all: Strangers,
}

impl Strangers {
    /// The place of connection `number`, and what tells it to end.
    pub(super) fn admit(&self, number: u64) -> (Stranger, oneshot::Receiver<()>) {
        let (end, ended) = oneshot::channel();
        self.lock().insert(number, end);
        (Stranger { number, all: self.clone() }, ended)
    }

    fn end_oldest(&self) {
        if let Some((_, end)) = self.lock().pop_first() {
            let _ = end.send(());
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, oneshot::Sender<()>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        self.all.lock().remove(&self.number);
    }
}

/// Accepts connections until `stop` turns true; then closes them all.
pub async fn serve<H: Handler>(
    listener: TcpListener,
    local: Local,
    handler: Arc<H>,
    stop: watch::Receiver<bool>,
) {
    let most = MAX_CONNECTIONS.min((max_connections() / 3).max(1));
    serve_at_most(most, listener, local, handler, stop).await;
}

pub(super) async fn serve_at_most<H: Handler>(
    most: usize,
    listener: TcpListener,
    local: Local,
    handler: Arc<H>,
    mut stop: watch::Receiver<bool>,
) {
    let slots = Arc::new(Semaphore::new(most));
    let strangers = Strangers::default();
    for number in 0.. {
        let accepted = tokio::select! {
            _ = stop.wait_for(|stop| *stop) => return,
            accepted = listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(e) => {
                // Out of file descriptors, usually: connections that end free some.
                tracing::warn!(error = %e, "cannot accept a peer's connection");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        if slots.available_permits() == 0 {
            strangers.end_oldest();
        }
        let slot = tokio::select! {
            _ = stop.wait_for(|stop| *stop) => return,
            slot = Arc::clone(&slots).acquire_owned() => slot,
        };
        let _ = stream.set_nodelay(true);
        let (handler, mut stop) = (Arc::clone(&handler), stop.clone());
        let (stranger, ended) = strangers.admit(number);
        tokio::spawn(async move {
            let _slot = slot;
            let peer = stream.peer_addr();
            let served = tokio::select! {
                _ = stop.wait_for(|stop| *stop) => Ok(()),
                Ok(()) = ended => Err(io::Error::other("its place was needed, and it is no member's")),
                served = connection(Box::new(stream), local, handler, stranger) => served,
            };
            if let Err(e) = served {
                tracing::debug!(?peer, error = %e, "a peer's connection ended");
            }
        });
    }
}

/// Serves one connection until it ends.
pub(super) async fn connection<H: Handler>(
    stream: Box<dyn Stream>,
    local: Local,
    handler: Arc<H>,
    stranger: Stranger,
) -> io::Result<()> {
    let (reader, mut writer) = tokio::io::split(stream);
    let (outbox, replies) = mpsc::channel(MAX_REQUESTS);
    let mut frames = FrameReader::new(reader).at_home_in(local.cluster);
    let ended = tokio::select! {
        ended = read_requests(&mut frames, local, handler, outbox, stranger) => ended,
        ended = write_replies(&mut writer, replies) => ended,
    };
    if ended.is_err() && frames.looks_like_http() {
        return answer_http(&mut writer).await;
    }
    ended
}

/// Tells a client that it is at the wrong port, instead of leaving it to guess why it was hung up on.
async fn answer_http(writer: &mut WriteHalf<Box<dyn Stream>>) -> io::Result<()> {
    let answer = format!(
        "HTTP/1.1 400 Bad Request\r\ncontent-type: application/problem+json\r\ncontent-length: {}\r\n\
         connection: close\r\n\r\n{NOT_FOR_CLIENTS}",
        NOT_FOR_CLIENTS.len()
    );
    let answering = async {
        writer.write_all(answer.as_bytes()).await?;
        writer.shutdown().await
    };
    timeout(FRAME_TIMEOUT, answering).await.unwrap_or(Ok(()))
}

async fn read_requests<H: Handler, R: tokio::io::AsyncRead + Unpin>(
    frames: &mut FrameReader<R>,
    local: Local,
    handler: Arc<H>,
    outbox: mpsc::Sender<Frame>,
    stranger: Stranger,
) -> io::Result<()> {
    let slots = Arc::new(Semaphore::new(MAX_REQUESTS));
    let mut pipe = None;
    let (ordered, waiting) = mpsc::channel(MAX_REQUESTS);
    let ordering = tokio::spawn(send_in_order(waiting, outbox.clone()));
    let _stop_ordering = AbortOnDrop(ordering);
    let mut stranger = Some(stranger);
    while let Some(frame) = next_frame(frames, stranger.is_none()).await? {
        if frame.route.cluster == local.cluster {
            stranger = None;
        }
        let Frame { kind, id, route, content } = frame;
        let back = Route { cluster: local.cluster, from: local.node, to: route.from };
        let request = match check(route, local, &content) {
            Ok(request) => request,
            Err(refused) => {
                let _ = outbox.send(reply_frame(id, back, Err(refused))).await;
                continue;
            }
        };
        match kind {
            Kind::Reply => {}
            Kind::Ordered => {
                let Ordered(reply) = handler.handle_ordered(route.from, request, &mut pipe).await;
                let _ = ordered.send((id, back, reply)).await;
            }
            Kind::Request => {
                let Ok(slot) = Arc::clone(&slots).acquire_owned().await else {
                    return Ok(());
                };
                let (handler, outbox) = (Arc::clone(&handler), outbox.clone());
                tokio::spawn(async move {
                    let reply = handler.handle(route.from, request).await;
                    let _ = outbox.send(reply_frame(id, back, reply)).await;
                    drop(slot);
                });
            }
        }
    }
    Ok(())
}

/// The next frame; `None` when the connection ended, or was quiet for too long. A member's may be quiet a while.
async fn next_frame<R: tokio::io::AsyncRead + Unpin>(
    frames: &mut FrameReader<R>,
    member: bool,
) -> io::Result<Option<Frame>> {
    let patience = if member { IDLE_TIMEOUT } else { FRAME_TIMEOUT };
    let quiet_since = Instant::now();
    let mut begun = None;
    loop {
        if let Some(frame) = frames.take()? {
            return Ok(Some(frame));
        }
        let until = match frames.arriving() {
            Some(length) => *begun.get_or_insert_with(Instant::now) + time_for(length),
            None => quiet_since + patience,
        };
        match timeout_at(until, frames.fill()).await {
            Ok(Ok(true)) => {}
            Ok(ended) => return ended.map(|_| None),
            Err(_) if begun.is_some() => {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "a frame took too long"));
            }
            Err(_) => return Ok(None),
        }
    }
}

/// How long so many bytes may take on their way.
fn time_for(bytes: usize) -> Duration {
    FRAME_TIMEOUT + Duration::from_secs((bytes / BYTES_PER_SECOND) as u64)
}

/// Checks cluster and target, and decodes. A server that joins knows neither.
fn check(route: Route, local: Local, content: &Bytes) -> Result<Request, NodeError> {
    let misdirected = |detail: String| Err(NodeError::not_applied(Code::Misdirected, detail));
    let request: Request = match codec::decode(content) {
        Ok(request) => request,
        Err(e) => {
            return Err(NodeError::not_applied(Code::BadRequest, format!("malformed request: {e}")));
        }
    };
    let joins = matches!(request, Request::Join(_));
    if route.cluster != local.cluster && !(joins && route.cluster == [0; 16]) {
        return misdirected(format!(
            "the request is for cluster {}, this server belongs to cluster {}: two clusters' addresses are mixed up",
            hex(&route.cluster),
            hex(&local.cluster)
        ));
    }
    let open = matches!(
        request,
        Request::Join(_) | Request::Announce { .. } | Request::StillMember { .. } | Request::Status
    );
    if route.to != local.node && !(open && route.to == 0) {
        return misdirected(format!(
            "the request is for node {}, this is node {}: another server took over its address",
            route.to, local.node
        ));
    }
    Ok(request)
}

/// A cluster id as text.
pub fn hex(id: &ClusterId) -> String {
    id.iter().map(|byte| format!("{byte:02x}")).collect()
}

type Waiting = (u64, Route, oneshot::Receiver<Result<Reply, NodeError>>);

async fn send_in_order(mut waiting: mpsc::Receiver<Waiting>, outbox: mpsc::Sender<Frame>) {
    while let Some((id, back, reply)) = waiting.recv().await {
        let reply = reply.await.unwrap_or_else(|_| {
            Err(NodeError::unknown(
                Code::Failed,
                "the request was dropped: the node stops, or the stream was reset",
            ))
        });
        if outbox.send(reply_frame(id, back, reply)).await.is_err() {
            return;
        }
    }
}

/// A reply that is too long becomes an error: the peer would end the connection, and with it all that is in flight there.
fn reply_frame(id: u64, route: Route, reply: Result<Reply, NodeError>) -> Frame {
    let mut content = codec::encode(&reply);
    if content.len() > MAX_CONTENT {
        let text = format!(
            "the request was applied, but its replies have {} bytes, and one message between servers carries \
             {MAX_CONTENT}: retry the commands one by one, with the same session and sequence, for their replies",
            content.len()
        );
        content = codec::encode(&Err::<Reply, _>(NodeError::unknown(Code::Failed, text)));
    }
    Frame { kind: Kind::Reply, id, route, content: content.into() }
}

async fn write_replies(
    writer: &mut WriteHalf<Box<dyn Stream>>,
    mut replies: mpsc::Receiver<Frame>,
) -> io::Result<()> {
    let mut buffer = BytesMut::with_capacity(16 << 10);
    while let Some(frame) = replies.recv().await {
        buffer.clear();
        frame.encode_into(&mut buffer);
        while buffer.len() < WRITE_BYTES {
            match replies.try_recv() {
                Ok(frame) => frame.encode_into(&mut buffer),
                Err(_) => break,
            }
        }
        let written = timeout(time_for(buffer.len()), writer.write_all(&buffer)).await;
        written
            .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "the peer does not take its replies"))??;
    }
    Ok(())
}

struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}
