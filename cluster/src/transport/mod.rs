//! The peer transport: framed, pipelined requests over long-lived TCP connections.
//!
//! A [`lane::Lane`] is one connection to one peer for one purpose, so that heartbeats and votes
//! never queue behind bulk: each replication stream, each snapshot, the control messages and the
//! forwarded requests have lanes of their own. [`server`] answers on `--peer-listen`. Every frame
//! names the protocol version, the cluster, the sender and the target, and each is checked.

pub mod frame;
pub mod lane;
pub mod server;

#[cfg(test)]
mod tests;

use std::io;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

/// How long a connection attempt may take.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);

/// A connection.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// Opens connections to peers: TCP, or a network that a test controls.
pub trait Dial: Send + Sync + 'static {
    /// Connects to `peer`, a `host:port`.
    fn dial<'a>(&'a self, peer: &'a str) -> BoxFuture<'a, io::Result<Box<dyn Stream>>>;
}

/// Plain TCP.
#[derive(Debug, Clone, Copy, Default)]
pub struct TcpDial;

impl Dial for TcpDial {
    fn dial<'a>(&'a self, peer: &'a str) -> BoxFuture<'a, io::Result<Box<dyn Stream>>> {
        Box::pin(async move {
            let connect = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(peer));
            let stream = connect.await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
            stream.set_nodelay(true)?;
            Ok(Box::new(stream) as Box<dyn Stream>)
        })
    }
}
