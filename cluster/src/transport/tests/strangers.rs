//! Who holds the peer port open: strangers who are slow, silent or many.

use tokio::time::{Instant, sleep};

use super::super::frame::ClusterId;
use super::super::server::{Strangers, connection, serve_at_most};
use super::*;

const SECOND: Duration = Duration::from_secs(1);
const OTHER: ClusterId = [8; 16];
const NOBODY: ClusterId = [0; 16];

fn request(cluster: ClusterId, content: impl Into<Bytes>) -> BytesMut {
    let mut bytes = BytesMut::new();
    let route = Route { cluster, ..ROUTE };
    Frame { kind: Kind::Request, id: 1, route, content: content.into() }.encode_into(&mut bytes);
    bytes
}

/// The far end of a connection that is served.
fn served(buffer: usize) -> DuplexStream {
    let (near, far) = tokio::io::duplex(buffer);
    let (stranger, _) = Strangers::default().admit(1);
    tokio::spawn(connection(Box::new(near), LOCAL, Arc::new(Gate::default()), stranger));
    far
}

/// Sends `bytes` piece by piece, one a `pause`; how long it took until the connection ended, or a reply came.
async fn trickle(bytes: &[u8], piece: usize, pause: Duration) -> (Duration, bool) {
    let (mut reader, mut writer) = tokio::io::split(served(1 << 16));
    let begun = Instant::now();
    let writing = async {
        for piece in bytes.chunks(piece) {
            if writer.write_all(piece).await.is_err() {
                break;
            }
            sleep(pause).await;
        }
        std::future::pending().await
    };
    let answered = tokio::select! {
        read = reader.read_u8() => read.is_ok(),
        () = writing => false,
    };
    (begun.elapsed(), answered)
}

#[tokio::test(start_paused = true)]
async fn only_a_frame_of_the_cluster_gives_leave_to_be_quiet() {
    for (cluster, quiet) in [(OTHER, 10), (NOBODY, 10), (LOCAL.cluster, 120)] {
        let mut far = served(1 << 16);
        far.write_all(&request(cluster, codec::encode(&QUICK))).await.unwrap();
        let begun = Instant::now();
        let mut replies = Vec::new();
        timeout(1000 * SECOND, far.read_to_end(&mut replies)).await.expect("it ends").unwrap();
        assert!(!replies.is_empty());
        assert_eq!(begun.elapsed().as_secs(), quiet, "after a frame of {cluster:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn who_speaks_http_is_told_that_this_is_no_port_for_clients() {
    for request in ["GET /v1/cluster HTTP/1.1\r\nhost: x\r\n\r\n", "POST /v1/sessions HTTP/1.1\r\n\r\n{}"] {
        let mut far = served(1 << 16);
        far.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        timeout(SECOND, far.read_to_string(&mut answer)).await.expect("it ends").unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
        assert!(head.starts_with("HTTP/1.1 400 "), "{head}");
        assert!(head.contains(&format!("content-length: {}", body.len())), "{head}");
        assert!(body.contains("peer_port") && body.contains("--listen"), "{body}");
    }
    let mut far = served(1 << 16);
    far.write_all(&[0xff; 64]).await.unwrap();
    let mut answer = Vec::new();
    timeout(SECOND, far.read_to_end(&mut answer)).await.expect("it ends").unwrap();
    assert!(answer.is_empty(), "what speaks neither is told nothing");
}

#[tokio::test(start_paused = true)]
async fn a_frame_has_the_time_that_its_length_needs_and_no_more() {
    let stranger = request(OTHER, vec![0; 60 << 10]);
    let (took, answered) = trickle(&stranger, 1, 4 * SECOND).await;
    assert!(!answered && took <= 12 * SECOND, "{took:?}");
    // Not even its header is there, so nobody believes its length.
    let (took, answered) = trickle(&request(LOCAL.cluster, vec![0; 4 << 20]), 1, SECOND).await;
    assert!(!answered && took <= 12 * SECOND, "{took:?}");
    let append = request(LOCAL.cluster, vec![0; 4 << 20]);
    let (took, answered) = trickle(&append, 70 << 10, SECOND).await;
    assert!(answered && took > 50 * SECOND, "a link of 70 KiB a second is of use: {took:?}");
    let (took, answered) = trickle(&append, 10 << 10, SECOND).await;
    assert!(!answered && took <= 80 * SECOND, "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn who_does_not_take_the_replies_is_hung_up_on() {
    for cluster in [OTHER, LOCAL.cluster] {
        let mut far = served(256);
        let frame = request(cluster, codec::encode(&QUICK));
        let begun = Instant::now();
        let sending = async { while far.write_all(&frame).await.is_ok() {} };
        timeout(1000 * SECOND, sending).await.expect("it ends");
        assert!(begun.elapsed() <= 20 * SECOND, "{:?}", begun.elapsed());
    }
}

/// Asks over a connection of its own, which stays open.
async fn ask(stream: &mut TcpStream) -> bool {
    let _ = stream.write_all(&request(LOCAL.cluster, codec::encode(&QUICK))).await;
    let reply = timeout(5 * SECOND, FrameReader::new(stream).next()).await;
    matches!(reply, Ok(Ok(Some(_))))
}

#[tokio::test]
async fn when_all_places_are_taken_strangers_make_room() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let stop = watch::Sender::new(false);
    tokio::spawn(serve_at_most(4, listener, LOCAL, Arc::new(Gate::default()), stop.subscribe()));
    let mut members = Vec::new();
    for _ in 0..3 {
        let mut member = TcpStream::connect(address).await.unwrap();
        assert!(ask(&mut member).await);
        members.push(member);
        // More than there are places, by what says nothing and by what says too little.
        for n in 0..6 {
            let mut stranger = TcpStream::connect(address).await.unwrap();
            stranger.write_all(&request(OTHER, vec![0; 100])[..40 * (n % 2)]).await.unwrap();
            tokio::spawn(async move { stranger.read(&mut [0; 64]).await });
        }
    }
    for member in &mut members {
        assert!(ask(member).await, "a member's connection was ended for a stranger");
    }
    // With no stranger left, one more waits until a member goes.
    let mut fourth = TcpStream::connect(address).await.unwrap();
    assert!(ask(&mut fourth).await);
    let mut fifth = TcpStream::connect(address).await.unwrap();
    assert!(timeout(SECOND, ask(&mut fifth)).await.is_err());
    drop(members.pop());
    let reply = timeout(LIMIT, FrameReader::new(&mut fifth).next()).await;
    assert!(matches!(reply, Ok(Ok(Some(_)))), "{reply:?}");
}
