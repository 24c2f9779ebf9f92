//! The asking end: one connection to one peer, dialled when it is needed, pipelined.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use futures_util::FutureExt as _;
use quorate_storage::codec;
use tokio::io::{AsyncWriteExt as _, ReadHalf, WriteHalf};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::timeout;

use super::frame::{Frame, FrameReader, Kind, Route};
use super::{Dial, Stream};
use crate::error::NodeError;
use crate::message::{Reply, Request};

/// Requests that wait to be written, or for their reply. More are refused.
const MAX_WAITING: usize = 4096;
/// A call that ends on a connection that has been silent for so long gives the connection up.
const SILENT: Duration = Duration::from_millis(1500);
/// After a failed dial, requests fail at once for so long, instead of each dialling anew.
const REDIAL_PAUSE: Duration = Duration::from_millis(50);
/// Frames are gathered into writes of about this size.
const WRITE_BYTES: usize = 256 << 10;

/// Why a call brought no reply.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CallError {
    /// The request was not sent.
    #[error("{peer} cannot be reached: {cause}")]
    Unreachable {
        /// The peer's address.
        peer: String,
        /// What the network said.
        cause: String,
    },
    /// The request was sent, perhaps; the connection broke before the reply.
    #[error("the connection to {peer} broke: {cause}")]
    Lost {
        /// The peer's address.
        peer: String,
        /// What the network said.
        cause: String,
    },
    /// No reply in time.
    #[error("{peer} did not answer within {after:?}")]
    TimedOut {
        /// The peer's address.
        peer: String,
        /// The time limit.
        after: Duration,
    },
    /// The peer answered with an error.
    #[error("{0}")]
    Peer(#[from] NodeError),
}

impl CallError {
    /// True when the peer certainly did not get the request.
    pub fn not_sent(&self) -> bool {
        matches!(self, Self::Unreachable { .. })
    }
}

/// A lane to a peer. Dropping it closes the connection.
pub struct Lane {
    peer: String,
    route: Route,
    next_id: AtomicU64,
    outbox: mpsc::Sender<Outgoing>,
    health: Arc<Health>,
}

/// What tells a silent connection from a slow request.
#[derive(Default)]
struct Health {
    /// Since when requests have waited without any frame coming in.
    silent_since: Mutex<Option<Instant>>,
    /// Give the connection up.
    reset: Notify,
}

impl Health {
    fn silent_since(&self) -> std::sync::MutexGuard<'_, Option<Instant>> {
        self.silent_since.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A partition that drops packets shows in nothing else than silence.
    fn check(&self) {
        if self.silent_since().is_some_and(|since| since.elapsed() >= SILENT) {
            self.reset.notify_one();
        }
    }
}

struct Outgoing {
    frame: Frame,
    reply: ReplyTo,
}

type Answer = Result<Bytes, CallError>;
type ReplyTo = oneshot::Sender<Answer>;
type Pending = Arc<Mutex<HashMap<u64, ReplyTo>>>;

/// A reply that has not arrived yet.
pub struct PendingReply {
    peer: String,
    health: Arc<Health>,
    reply: oneshot::Receiver<Answer>,
}

impl Lane {
    /// A lane to `peer` (`host:port`); connects at the first call.
    pub fn new(dial: Arc<dyn Dial>, peer: String, route: Route) -> Self {
        let (outbox, inbox) = mpsc::channel(MAX_WAITING);
        let health = Arc::new(Health::default());
        tokio::spawn(Worker { dial, peer: peer.clone(), inbox, health: Arc::clone(&health) }.run());
        Self { peer, route, next_id: AtomicU64::new(1), outbox, health }
    }

    /// The peer's address.
    pub fn peer(&self) -> &str {
        &self.peer
    }

    /// Asks, and waits for the reply for at most `limit`.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn call(&self, request: &Request, limit: Duration) -> Result<Reply, CallError> {
        self.send(Kind::Request, request)?.within(limit).await
    }

    /// Asks without waiting.
    ///
    /// # Errors
    /// [`CallError::Unreachable`] when too much is waiting already.
    pub fn send(&self, kind: Kind, request: &Request) -> Result<PendingReply, CallError> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let frame = Frame { kind, id, route: self.route, content: codec::encode(request).into() };
        let (reply, receiver) = oneshot::channel();
        self.outbox.try_send(Outgoing { frame, reply }).map_err(|_| CallError::Unreachable {
            peer: self.peer.clone(),
            cause: format!("{MAX_WAITING} requests are waiting already"),
        })?;
        Ok(PendingReply { peer: self.peer.clone(), health: Arc::clone(&self.health), reply: receiver })
    }
}

impl PendingReply {
    /// The reply, waited for at most `limit`.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn within(mut self, limit: Duration) -> Result<Reply, CallError> {
        let peer = self.peer.clone();
        let lost = |cause: String| CallError::Lost { peer: peer.clone(), cause };
        let content = match timeout(limit, &mut self.reply).await {
            Err(_) => return Err(CallError::TimedOut { peer, after: limit }),
            Ok(Err(_)) => return Err(lost("the lane was closed".to_owned())),
            Ok(Ok(answer)) => answer?,
        };
        let decoded: Result<Result<Reply, NodeError>, _> = codec::decode(&content);
        Ok(decoded.map_err(|e| lost(e.to_string()))??)
    }
}

/// Whoever stops waiting, by a time limit of its own too, may find that the connection is dead.
impl Drop for PendingReply {
    fn drop(&mut self) {
        self.health.check();
    }
}

struct Worker {
    dial: Arc<dyn Dial>,
    peer: String,
    inbox: mpsc::Receiver<Outgoing>,
    health: Arc<Health>,
}

impl Worker {
    async fn run(mut self) {
        while let Some(first) = self.inbox.recv().await {
            match self.dial.dial(&self.peer).await {
                Ok(stream) => self.serve(stream, first).await,
                Err(e) => self.refuse(first, &e.to_string()).await,
            }
        }
    }

    /// Fails what waits, and what comes within the pause.
    async fn refuse(&mut self, first: Outgoing, cause: &str) {
        let error = CallError::Unreachable { peer: self.peer.clone(), cause: cause.to_owned() };
        let _ = first.reply.send(Err(error.clone()));
        let pause = tokio::time::sleep(REDIAL_PAUSE);
        tokio::pin!(pause);
        loop {
            tokio::select! {
                () = &mut pause => return,
                next = self.inbox.recv() => match next {
                    Some(outgoing) => { let _ = outgoing.reply.send(Err(error.clone())); }
                    None => return,
                },
            }
        }
    }

    /// Runs one connection until it breaks or the lane is dropped.
    async fn serve(&mut self, stream: Box<dyn Stream>, first: Outgoing) {
        let (reader, writer) = tokio::io::split(stream);
        let pending = Pending::default();
        // A reset that was meant for the connection before.
        let _ = self.health.reset.notified().now_or_never();
        let cause = tokio::select! {
            cause = write_requests(writer, &mut self.inbox, &pending, &self.health, first) => cause,
            cause = read_replies(reader, &pending, &self.health) => cause,
            () = self.health.reset.notified() => "it fell silent".to_owned(),
        };
        *self.health.silent_since() = None;
        let waiting = std::mem::take(&mut *lock(&pending));
        for reply in waiting.into_values() {
            let _ = reply.send(Err(CallError::Lost { peer: self.peer.clone(), cause: cause.clone() }));
        }
    }
}

async fn write_requests(
    mut writer: WriteHalf<Box<dyn Stream>>,
    inbox: &mut mpsc::Receiver<Outgoing>,
    pending: &Pending,
    health: &Health,
    first: Outgoing,
) -> String {
    let mut buffer = BytesMut::with_capacity(16 << 10);
    let mut next = Some(first);
    while let Some(outgoing) = next {
        buffer.clear();
        enqueue(outgoing, pending, &mut buffer);
        while buffer.len() < WRITE_BYTES {
            match inbox.try_recv() {
                Ok(outgoing) => enqueue(outgoing, pending, &mut buffer),
                Err(_) => break,
            }
        }
        health.silent_since().get_or_insert_with(Instant::now);
        if let Err(e) = writer.write_all(&buffer).await {
            return e.to_string();
        }
        next = inbox.recv().await;
    }
    "the lane was closed".to_owned()
}

fn enqueue(outgoing: Outgoing, pending: &Pending, buffer: &mut BytesMut) {
    let mut waiting = lock(pending);
    if waiting.len() >= MAX_WAITING {
        // Callers that gave up leave their entries behind until a reply comes.
        waiting.retain(|_, reply| !reply.is_closed());
    }
    waiting.insert(outgoing.frame.id, outgoing.reply);
    drop(waiting);
    outgoing.frame.encode_into(buffer);
}

async fn read_replies(reader: ReadHalf<Box<dyn Stream>>, pending: &Pending, health: &Health) -> String {
    let mut frames = FrameReader::new(reader);
    loop {
        match frames.next().await {
            Err(e) => return e.to_string(),
            Ok(None) => return "closed by the peer".to_owned(),
            Ok(Some(frame)) => {
                let mut waiting = lock(pending);
                let reply = waiting.remove(&frame.id);
                *health.silent_since() = (!waiting.is_empty()).then(Instant::now);
                drop(waiting);
                if let Some(reply) = reply {
                    let _ = reply.send(Ok(frame.content));
                }
            }
        }
    }
}

fn lock(pending: &Pending) -> std::sync::MutexGuard<'_, HashMap<u64, ReplyTo>> {
    pending.lock().unwrap_or_else(PoisonError::into_inner)
}
