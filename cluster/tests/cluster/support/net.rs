//! A network between nodes that the test controls: TCP over loopback, behind links that can be cut,
//! slowed and broken, each direction by itself. Existing connections are affected as new ones are.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::future::BoxFuture;
use quorate_cluster::transport::{Dial, Stream};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until, timeout};

/// As for plain TCP.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);
const CHUNK: usize = 16 << 10;

/// One direction between two servers.
#[derive(Debug, Clone, Copy, Default)]
struct Link {
    /// A black hole: what is sent waits, and arrives after the link is healed, as with TCP.
    cut: bool,
    /// Connections are refused.
    refused: bool,
    delay: Duration,
    /// Bytes per second and connection.
    rate: Option<u64>,
    /// Counts how often existing connections were broken.
    breaks: u64,
}

type Links = HashMap<(String, String), Link>;

/// The network. Clones share it.
#[derive(Clone)]
pub(crate) struct Net {
    links: Arc<watch::Sender<Links>>,
    /// Who is at which address.
    names: Arc<Mutex<BTreeMap<String, String>>>,
}

impl Net {
    pub(crate) fn new() -> Self {
        let links = Arc::new(watch::Sender::new(Links::new()));
        let names = Arc::default();
        Self { links, names }
    }

    /// From now on `name` is at `address`.
    pub(crate) fn place(&self, name: &str, address: &str) {
        let mut names = self.names.lock().unwrap();
        names.retain(|_, known| known != name);
        names.insert(address.to_owned(), name.to_owned());
    }

    /// Connections from `name` go through this network.
    pub(crate) fn dial_from(&self, name: &str) -> Arc<dyn Dial> {
        let (net, from) = (self.clone(), name.to_owned());
        Arc::new(NetDial { net, from })
    }

    /// What `from` sends to `to` is not delivered.
    pub(crate) fn cut(&self, from: &str, to: &str) {
        self.change(from, to, |link| link.cut = true);
    }

    /// Nothing passes between `name` and the others.
    pub(crate) fn isolate(&self, name: &str) {
        for other in self.others(name) {
            self.cut(name, &other);
            self.cut(&other, name);
        }
    }

    /// Both directions pass again, at full speed.
    pub(crate) fn heal_between(&self, a: &str, b: &str) {
        for (from, to) in [(a, b), (b, a)] {
            self.change(from, to, |link| *link = Link { breaks: link.breaks, ..Link::default() });
        }
    }

    /// Everything passes again, at full speed.
    pub(crate) fn heal(&self) {
        self.links.send_modify(|links| {
            for link in links.values_mut() {
                *link = Link { breaks: link.breaks, ..Link::default() };
            }
        });
    }

    /// Breaks the connections between two servers; they may connect anew.
    pub(crate) fn reset(&self, a: &str, b: &str) {
        for (from, to) in [(a, b), (b, a)] {
            self.change(from, to, |link| link.breaks += 1);
        }
    }

    /// Breaks the connections between two servers, and refuses new ones.
    pub(crate) fn refuse(&self, a: &str, b: &str) {
        for (from, to) in [(a, b), (b, a)] {
            self.change(from, to, |link| link.refused = true);
        }
        self.reset(a, b);
    }

    /// Each connection from `from` to `to` carries so many bytes per second.
    pub(crate) fn limit(&self, from: &str, to: &str, bytes_per_second: u64) {
        self.change(from, to, |link| link.rate = Some(bytes_per_second));
    }

    /// What `from` sends to `to` takes so long.
    pub(crate) fn delay(&self, from: &str, to: &str, delay: Duration) {
        self.change(from, to, |link| link.delay = delay);
    }

    fn others(&self, name: &str) -> Vec<String> {
        let names = self.names.lock().unwrap();
        names.values().filter(|other| *other != name).cloned().collect()
    }

    fn change(&self, from: &str, to: &str, change: impl FnOnce(&mut Link)) {
        let key = (from.to_owned(), to.to_owned());
        self.links.send_modify(|links| change(links.entry(key).or_default()));
    }
}

struct NetDial {
    net: Net,
    from: String,
}

impl Dial for NetDial {
    fn dial<'a>(&'a self, peer: &'a str) -> BoxFuture<'a, io::Result<Box<dyn Stream>>> {
        Box::pin(async move {
            let to = self.net.names.lock().unwrap().get(peer).cloned();
            // Nobody is there any more.
            let to = to.ok_or(io::ErrorKind::ConnectionRefused)?;
            let view = |from: &str, to: &str| View {
                key: (from.to_owned(), to.to_owned()),
                links: self.net.links.subscribe(),
            };
            let (mut there, mut back) = (view(&self.from, &to), view(&to, &self.from));
            if there.now().refused {
                return Err(io::ErrorKind::ConnectionRefused.into());
            }
            let open = async {
                there.passable().await;
                back.passable().await;
            };
            timeout(CONNECT_TIMEOUT, open).await.map_err(|_| io::ErrorKind::TimedOut)?;
            let stream = TcpStream::connect(peer).await?;
            stream.set_nodelay(true)?;
            let (near, far) = tokio::io::duplex(4 * CHUNK);
            let (far_reader, far_writer) = tokio::io::split(far);
            let (reader, writer) = stream.into_split();
            tokio::spawn(pump(far_reader, writer, there));
            tokio::spawn(pump(reader, far_writer, back));
            Ok(Box::new(near) as Box<dyn Stream>)
        })
    }
}

/// One direction as one connection sees it.
#[derive(Clone)]
struct View {
    key: (String, String),
    links: watch::Receiver<Links>,
}

impl View {
    fn now(&self) -> Link {
        self.links.borrow().get(&self.key).copied().unwrap_or_default()
    }

    async fn until(&mut self, mut test: impl FnMut(Link) -> bool) {
        let key = self.key.clone();
        let state = |links: &Links| links.get(&key).copied().unwrap_or_default();
        let gone = self.links.wait_for(|links| test(state(links))).await.is_err();
        if gone {
            // The network is gone, and the test with it.
            std::future::pending::<()>().await;
        }
    }

    async fn passable(&mut self) {
        self.until(|link| !link.cut).await;
    }
}

/// Carries one direction of one connection until either end closes it, or the link is broken.
async fn pump<R, W>(mut from: R, mut to: W, link: View)
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let (queue, mut queued) = mpsc::channel::<(Instant, Bytes)>(64);
    let (mut watched, mut passing) = (link.clone(), link.clone());
    let breaks = link.now().breaks;
    let reading = async move {
        loop {
            let mut chunk = BytesMut::with_capacity(CHUNK);
            match from.read_buf(&mut chunk).await {
                Ok(0) | Err(_) => return,
                Ok(_) if queue.send((Instant::now(), chunk.freeze())).await.is_err() => return,
                Ok(_) => {}
            }
        }
    };
    let delivering = async move {
        let mut free = Instant::now();
        while let Some((sent, chunk)) = queued.recv().await {
            let Link { delay, rate, .. } = link.now();
            if !delay.is_zero() {
                sleep_until(sent + delay).await;
            }
            if let Some(rate) = rate {
                // From one appointment to the next, so that rounding does not add up.
                let cost = Duration::from_micros(chunk.len() as u64 * 1_000_000 / rate);
                free = free.max(sent) + cost;
                sleep_until(free).await;
            }
            passing.passable().await;
            if to.write_all(&chunk).await.is_err() {
                return;
            }
        }
        passing.passable().await;
        let _ = to.shutdown().await;
    };
    tokio::select! {
        _ = futures_util::future::join(reading, delivering) => {}
        () = watched.until(|link| link.breaks != breaks) => {}
    }
}
