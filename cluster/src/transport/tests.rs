//! Both ends of a lane, over loopback TCP and over streams that a test holds the other end of.

mod strangers;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use quorate_storage::codec;
use quorate_storage::delta::{Command, DeltaResult, Outcome};
use quorate_storage::raft_types::{NodeId, NodeInfo, log_id};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio::net::TcpListener;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::time::timeout;

use super::frame::{Frame, FrameReader, Kind, MAX_FRAME, Route};
use super::lane::{CallError, Lane, PendingReply};
use super::server::{Handler, Local, Ordered, serve};
use super::*;
use crate::error::{Attempt, Code, NodeError};
use crate::message::{JoinRequest, Reply, Request};

const LOCAL: Local = Local { cluster: [7; 16], node: 2 };
const ROUTE: Route = Route { cluster: [7; 16], from: 1, to: 2 };
const SLOW: Request = Request::ReadIndex { lease: true };
const QUICK: Request = Request::ReadIndex { lease: false };
const LIMIT: Duration = Duration::from_secs(20);
const MOMENT: Duration = Duration::from_millis(100);

/// Answers quick requests at once, and a slow one when the gate is opened for it.
#[derive(Default)]
struct Gate {
    open: Arc<Notify>,
}

impl Handler for Gate {
    type Pipe = u64;

    fn handle(&self, from: NodeId, request: Request) -> BoxFuture<'_, Result<Reply, NodeError>> {
        Box::pin(async move {
            assert_eq!(from, ROUTE.from);
            match request {
                Request::ReadIndex { lease: true } => self.open.notified().await,
                // Each command is its own reply, twice.
                Request::Propose(commands) => {
                    let outcome =
                        |c: Command| Outcome { revision: 1, result: DeltaResult::Reply((&*c.body).into()) };
                    let outcomes: Vec<_> = commands.into_iter().map(outcome).collect();
                    return Ok(Reply::Propose([outcomes.clone(), outcomes].concat()));
                }
                _ => {}
            }
            Ok(Reply::ReadIndex(None))
        })
    }

    /// Replies with the request's number on its connection.
    fn handle_ordered<'a>(
        &'a self,
        _: NodeId,
        request: Request,
        pipe: &'a mut Option<u64>,
    ) -> BoxFuture<'a, Ordered> {
        Box::pin(async move {
            let number = *pipe.insert(pipe.unwrap_or(0) + 1);
            let (reply, receiver) = oneshot::channel();
            let open = Arc::clone(&self.open);
            tokio::spawn(async move {
                if let Request::ReadIndex { lease: true } = request {
                    open.notified().await;
                }
                reply.send(Ok(Reply::ReadIndex(Some(log_id(1, number)))))
            });
            Ordered(receiver)
        })
    }
}

/// A server; it stops when the sender says so.
struct Server {
    address: String,
    gate: Arc<Notify>,
    stop: watch::Sender<bool>,
}

impl Server {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (handler, stop) = (Arc::new(Gate::default()), watch::Sender::new(false));
        let gate = Arc::clone(&handler.open);
        tokio::spawn(serve(listener, LOCAL, handler, stop.subscribe()));
        Self { address, gate, stop }
    }

    fn lane(&self, route: Route) -> Lane {
        Lane::new(Arc::new(TcpDial), self.address.clone(), route)
    }
}

fn ordered(reply: Result<Reply, CallError>) -> u64 {
    match reply.unwrap() {
        Reply::ReadIndex(Some(id)) => id.index,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_quick_request_overtakes_a_slow_one() {
    let server = Server::start().await;
    let lane = server.lane(ROUTE);
    let slow = lane.send(Kind::Request, &SLOW).unwrap();
    lane.call(&QUICK, LIMIT).await.unwrap();
    server.gate.notify_one();
    slow.within(LIMIT).await.unwrap();
}

#[tokio::test]
async fn ordered_requests_are_handled_and_answered_in_order() {
    let server = Server::start().await;
    let lane = server.lane(ROUTE);
    let slow = lane.send(Kind::Ordered, &SLOW).unwrap();
    let next: Vec<PendingReply> = (0..5).map(|_| lane.send(Kind::Ordered, &QUICK).unwrap()).collect();
    let held_back = lane.send(Kind::Ordered, &QUICK).unwrap().within(MOMENT).await;
    assert!(matches!(held_back, Err(CallError::TimedOut { .. })), "{held_back:?}");
    lane.call(&QUICK, LIMIT).await.unwrap();
    server.gate.notify_one();
    assert_eq!(ordered(slow.within(LIMIT).await), 1);
    for (number, pending) in (2..).zip(next) {
        assert_eq!(ordered(pending.within(LIMIT).await), number);
    }
    // What belongs to a connection ends with it: another one counts from 1.
    let other = server.lane(ROUTE);
    assert_eq!(ordered(other.send(Kind::Ordered, &QUICK).unwrap().within(LIMIT).await), 1);
}

#[tokio::test]
async fn cluster_and_target_are_checked_on_every_request() {
    let server = Server::start().await;
    let (other, nobody) = ([8; 16], [0; 16]);
    let join = || Request::Join(JoinRequest { info: NodeInfo::default(), services: Vec::new() });
    let cases = [
        (ROUTE, QUICK, None),
        (Route { cluster: other, ..ROUTE }, QUICK, Some("two clusters' addresses are mixed up")),
        (Route { cluster: nobody, ..ROUTE }, QUICK, Some("two clusters' addresses are mixed up")),
        (Route { to: 3, ..ROUTE }, QUICK, Some("another server took over its address")),
        (Route { to: 0, ..ROUTE }, QUICK, Some("another server took over its address")),
        (Route { to: 0, ..ROUTE }, Request::Status, None),
        (
            Route { cluster: other, to: 0, ..ROUTE },
            Request::Status,
            Some("two clusters' addresses are mixed up"),
        ),
        (Route { cluster: nobody, to: 0, ..ROUTE }, join(), None),
        (Route { cluster: other, to: 0, ..ROUTE }, join(), Some("two clusters' addresses are mixed up")),
    ];
    for (route, request, refused) in cases {
        let lane = server.lane(route);
        for kind in [Kind::Request, Kind::Ordered] {
            let reply = lane.send(kind, &request).unwrap().within(LIMIT).await;
            match (refused, reply) {
                (None, Ok(_)) => {}
                (Some(cause), Err(CallError::Peer(e))) if e.code == Code::Misdirected => {
                    assert!(e.detail.contains(cause), "{e}");
                }
                (_, reply) => panic!("{route:?} {request:?}: {reply:?}"),
            }
        }
    }
}

#[tokio::test]
async fn a_malformed_request_is_refused_and_the_connection_goes_on() {
    let server = Server::start().await;
    let mut stream = TcpStream::connect(&server.address).await.unwrap();
    let mut bytes = BytesMut::new();
    for (id, content) in [(1, Bytes::from_static(b"\xff\xffwhat")), (2, codec::encode(&QUICK).into())] {
        Frame { kind: Kind::Request, id, route: ROUTE, content }.encode_into(&mut bytes);
    }
    stream.write_all(&bytes).await.unwrap();
    let mut frames = FrameReader::new(stream);
    let mut replies = [frames.next().await.unwrap().unwrap(), frames.next().await.unwrap().unwrap()];
    replies.sort_by_key(|frame| frame.id);
    let replies = replies.map(|frame| codec::decode::<Result<Reply, NodeError>>(&frame.content).unwrap());
    assert!(replies[0].as_ref().is_err_and(|e| e.detail.contains("malformed request")), "{replies:?}");
    assert!(replies[1].is_ok(), "{replies:?}");
}

#[tokio::test]
async fn a_reply_that_no_frame_carries_is_an_error_and_the_connection_goes_on() {
    let server = Server::start().await;
    let lane = server.lane(ROUTE);
    let slow = lane.send(Kind::Request, &SLOW).unwrap();
    let propose = |bytes: usize| Request::Propose(vec![Command::sessionless("echo", vec![0; bytes])]);
    let reply = lane.call(&propose(MAX_FRAME / 2), LIMIT).await;
    let Err(CallError::Peer(error)) = reply else { panic!("{reply:?}") };
    assert_eq!((error.code, error.attempt), (Code::Failed, Attempt::Unknown));
    assert!(error.detail.contains("was applied") && error.detail.contains("one by one"), "{error}");
    lane.call(&propose(MAX_FRAME / 2 - 1000), LIMIT).await.unwrap();
    server.gate.notify_one();
    slow.within(LIMIT).await.expect("what was in flight beside it is not lost");
}

/// Three connections that are of no use: garbage, half a frame, and nothing at all.
#[tokio::test]
async fn connections_that_speak_no_frames_are_closed_and_the_server_goes_on() {
    let server = Server::start().await;
    let mut half = BytesMut::new();
    Frame { kind: Kind::Request, id: 1, route: ROUTE, content: codec::encode(&QUICK).into() }
        .encode_into(&mut half);
    half.truncate(half.len() - 1);
    let connections = [(&[0xff; 32][..], true), (&half[..], false), (&[], false)];
    let closed = connections.map(async |(sent, soon)| {
        let mut stream = TcpStream::connect(&server.address).await.unwrap();
        stream.write_all(sent).await.unwrap();
        let begun = Instant::now();
        let ended = timeout(LIMIT, stream.read(&mut [0; 64])).await.expect("it is closed");
        assert!(matches!(ended, Ok(0) | Err(_)), "{ended:?}");
        assert_eq!(begun.elapsed() < Duration::from_secs(3), soon, "after {:?}", begun.elapsed());
    });
    futures_util::future::join_all(closed).await;
    server.lane(ROUTE).call(&QUICK, LIMIT).await.unwrap();
}

#[tokio::test]
async fn a_server_that_stops_closes_its_connections() {
    let server = Server::start().await;
    let lane = server.lane(ROUTE);
    lane.call(&QUICK, LIMIT).await.unwrap();
    let slow = lane.send(Kind::Request, &SLOW).unwrap();
    server.stop.send_replace(true);
    // The request may have been handled.
    let lost = slow.within(LIMIT).await.unwrap_err();
    assert!(matches!(lost, CallError::Lost { .. }) && !lost.not_sent(), "{lost:?}");
    let refused = lane.call(&QUICK, LIMIT).await.unwrap_err();
    assert!(refused.not_sent(), "{refused:?}");
}

/// Gives the other end of each connection to the test.
struct HandOut {
    dialled: AtomicUsize,
    ends: mpsc::UnboundedSender<DuplexStream>,
    buffer: usize,
}

impl HandOut {
    fn lane(buffer: usize) -> (Lane, Arc<Self>, mpsc::UnboundedReceiver<DuplexStream>) {
        let (ends, taken) = mpsc::unbounded_channel();
        let dial = Arc::new(Self { dialled: AtomicUsize::new(0), ends, buffer });
        (Lane::new(Arc::clone(&dial) as _, "peer".to_owned(), ROUTE), dial, taken)
    }
}

impl Dial for HandOut {
    fn dial<'a>(&'a self, _: &'a str) -> BoxFuture<'a, io::Result<Box<dyn Stream>>> {
        Box::pin(async move {
            self.dialled.fetch_add(1, Ordering::Relaxed);
            let (near, far) = tokio::io::duplex(self.buffer);
            match self.ends.send(far) {
                Ok(()) => Ok(Box::new(near) as Box<dyn Stream>),
                Err(_) => Err(io::ErrorKind::ConnectionRefused.into()),
            }
        })
    }
}

/// Answers all requests of one connection but those called slow.
async fn answer(end: DuplexStream) {
    let (reader, mut writer) = tokio::io::split(end);
    let mut frames = FrameReader::new(reader);
    while let Ok(Some(frame)) = frames.next().await {
        if let Ok(Request::ReadIndex { lease: true }) = codec::decode(&frame.content) {
            continue;
        }
        let reply: Result<Reply, NodeError> = Ok(Reply::ReadIndex(None));
        let mut bytes = BytesMut::new();
        Frame { kind: Kind::Reply, content: codec::encode(&reply).into(), ..frame }.encode_into(&mut bytes);
        let _ = writer.write_all(&bytes).await;
    }
}

#[tokio::test]
async fn what_could_not_be_sent_is_told_from_what_was_lost() {
    let (lane, dial, mut ends) = HandOut::lane(1 << 16);
    let pending = lane.send(Kind::Request, &QUICK).unwrap();
    let mut end = ends.recv().await.unwrap();
    end.read_u8().await.unwrap();
    drop(end);
    let lost = pending.within(LIMIT).await.unwrap_err();
    assert!(matches!(lost, CallError::Lost { .. }) && !lost.not_sent(), "{lost:?}");
    // The next request dials anew.
    let pending = lane.send(Kind::Request, &QUICK).unwrap();
    tokio::spawn(answer(ends.recv().await.unwrap()));
    pending.within(LIMIT).await.unwrap();

    let (lane, dial_refused, ends) = HandOut::lane(1 << 16);
    drop(ends);
    for _ in 0..200 {
        let refused = lane.call(&QUICK, LIMIT).await.unwrap_err();
        assert!(refused.not_sent() && refused.to_string().contains("cannot be reached"), "{refused}");
    }
    assert_eq!(dial.dialled.load(Ordering::Relaxed), 2);
    // Requests that fail do not each dial.
    assert!(dial_refused.dialled.load(Ordering::Relaxed) < 100);
}

#[tokio::test]
async fn a_connection_that_fell_silent_is_given_up_however_its_callers_give_up() {
    for by_drop in [false, true] {
        let (lane, dial, mut ends) = HandOut::lane(1 << 16);
        let first = lane.send(Kind::Request, &QUICK).unwrap();
        let black_hole = ends.recv().await.unwrap();
        drop(first);
        let deadline = Instant::now() + LIMIT;
        let second = loop {
            assert!(Instant::now() < deadline, "the silent connection is kept (by_drop: {by_drop})");
            let pending = lane.send(Kind::Request, &QUICK).unwrap();
            if by_drop {
                // A caller with a time limit of its own drops what it waits for.
                assert!(timeout(MOMENT, pending.within(LIMIT)).await.map_or(true, |reply| reply.is_err()));
            } else {
                assert!(pending.within(MOMENT).await.is_err());
            }
            if let Ok(end) = ends.try_recv() {
                break end;
            }
        };
        tokio::spawn(answer(second));
        lane.call(&QUICK, LIMIT).await.unwrap();
        assert_eq!(dial.dialled.load(Ordering::Relaxed), 2);
        drop(black_hole);
    }
}

#[tokio::test]
async fn a_slow_request_alone_does_not_make_a_connection_silent() {
    let (lane, dial, mut ends) = HandOut::lane(1 << 16);
    let slow = lane.send(Kind::Request, &SLOW).unwrap();
    tokio::spawn(answer(ends.recv().await.unwrap()));
    let end = Instant::now() + Duration::from_secs(2);
    while Instant::now() < end {
        let _ = lane.send(Kind::Request, &SLOW).unwrap().within(MOMENT).await;
        lane.call(&QUICK, LIMIT).await.unwrap();
    }
    assert_eq!(dial.dialled.load(Ordering::Relaxed), 1);
    drop(slow);
}

#[tokio::test]
async fn what_waits_in_a_lane_is_bounded() {
    let (lane, _, mut ends) = HandOut::lane(64);
    let mut waiting = vec![lane.send(Kind::Request, &QUICK).unwrap()];
    let _black_hole = ends.recv().await.unwrap();
    let refused = loop {
        match lane.send(Kind::Request, &QUICK) {
            Ok(pending) => waiting.push(pending),
            Err(e) => break e,
        }
        assert!(waiting.len() < 10_000);
    };
    assert!(refused.not_sent() && refused.to_string().contains("waiting already"), "{refused}");
}
