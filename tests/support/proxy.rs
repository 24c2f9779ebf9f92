//! A TCP proxy before one server that loses replies: the request goes through, its reply does not come back.

use std::sync::Arc;
use std::sync::Mutex;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::http::Reply;

/// Ends with the value: connections that it holds are closed.
#[derive(Debug)]
pub(crate) struct Proxy {
    port: u16,
    plan: Arc<Mutex<Plan>>,
    task: JoinHandle<()>,
}

/// Which replies are lost.
#[derive(Debug, Default)]
struct Plan {
    /// Who waits for the next reply, which is lost.
    next: Option<oneshot::Sender<Reply>>,
    /// Each n-th reply is lost.
    every: Option<u64>,
    replies: u64,
    lost: u64,
}

/// What to do with a reply.
enum Fate {
    Pass,
    Lose(Option<oneshot::Sender<Reply>>),
}

impl Proxy {
    /// A proxy before the server that listens on `target`, now or later.
    pub(crate) async fn start(target: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let port = listener.local_addr().expect("the port").port();
        let plan = Arc::new(Mutex::new(Plan::default()));
        let task = tokio::spawn(accept(listener, target, Arc::clone(&plan)));
        Self { port, plan, task }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// The next reply, to whatever request, is lost: the connection closes instead. It comes out of what this
    /// returns, so that a test knows that the request was carried out, and what the reply was.
    pub(crate) fn lose_next(&self) -> oneshot::Receiver<Reply> {
        let (sender, receiver) = oneshot::channel();
        self.plan.lock().expect("the plan's lock").next = Some(sender);
        receiver
    }

    /// Each `n`-th reply is lost from now on.
    pub(crate) fn lose_every(&self, n: u64) {
        self.plan.lock().expect("the plan's lock").every = Some(n);
    }

    /// Loses nothing from now on; returns how many replies were lost so far.
    pub(crate) fn heal(&self) -> u64 {
        let mut plan = self.plan.lock().expect("the plan's lock");
        (plan.every, plan.next) = (None, None);
        plan.lost
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Plan {
    fn fate(&mut self) -> Fate {
        self.replies += 1;
        let next = self.next.take();
        if next.is_some() || self.every.is_some_and(|n| self.replies.is_multiple_of(n)) {
            self.lost += 1;
            return Fate::Lose(next);
        }
        Fate::Pass
    }
}

async fn accept(listener: TcpListener, target: String, plan: Arc<Mutex<Plan>>) {
    while let Ok((client, _)) = listener.accept().await {
        let (target, plan) = (target.clone(), Arc::clone(&plan));
        tokio::spawn(async move {
            // A server that is down is a closed connection, as without a proxy it would be a refused one.
            let Ok(server) = TcpStream::connect(target).await else { return };
            let _ = (client.set_nodelay(true), server.set_nodelay(true));
            let (from_client, to_client) = client.into_split();
            let (from_server, to_server) = server.into_split();
            // Whichever side ends, both connections close.
            tokio::select! {
                () = pass_requests(from_client, to_server) => {}
                () = pass_replies(from_server, to_client, plan) => {}
            }
        });
    }
}

async fn pass_requests(mut from: OwnedReadHalf, mut to: OwnedWriteHalf) {
    let _ = tokio::io::copy(&mut from, &mut to).await;
}

/// Passes on whole replies, one at a time; ends with the first that is to be lost. A reply without a length (a stream
/// of events) is passed on as it comes.
async fn pass_replies(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, plan: Arc<Mutex<Plan>>) {
    let mut read = Vec::new();
    loop {
        let length = match whole_reply(&read) {
            Some(Framed::Whole { head, length, status }) => {
                let fate = plan.lock().expect("the plan's lock").fate();
                if let Fate::Lose(told) = fate {
                    let body = String::from_utf8_lossy(&read[head..length]).into_owned();
                    if let Some(told) = told {
                        let _ = told.send(Reply { status, body });
                    }
                    return;
                }
                length
            }
            Some(Framed::Endless) => read.len(),
            None => 0,
        };
        if length > 0 {
            if to.write_all(&read[..length]).await.is_err() {
                return;
            }
            if matches!(whole_reply(&read), Some(Framed::Endless)) {
                let _ = tokio::io::copy(&mut from, &mut to).await;
                return;
            }
            read.drain(..length);
            continue;
        }
        if !matches!(from.read_buf(&mut read).await, Ok(1..)) {
            return;
        }
    }
}

enum Framed {
    Whole { head: usize, length: usize, status: u16 },
    Endless,
}

/// The first reply in `bytes`, if all of it is there.
fn whole_reply(bytes: &[u8]) -> Option<Framed> {
    let head = bytes.windows(4).position(|window| window == b"\r\n\r\n")? + 4;
    let text = String::from_utf8_lossy(&bytes[..head]).to_ascii_lowercase();
    let status = text.split_whitespace().nth(1)?.parse().ok()?;
    let length =
        text.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse::<usize>().ok());
    match length {
        None => Some(Framed::Endless),
        Some(length) if bytes.len() >= head + length => {
            Some(Framed::Whole { head, length: head + length, status })
        }
        Some(_) => None,
    }
}
