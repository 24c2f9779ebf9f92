//! Clients that do not take what is sent to them.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// For how many ticks a write has waited for the client; 0 when none does.
#[derive(Default)]
pub(super) struct Stall(AtomicU64);

impl Stall {
    fn note(&self, waits: bool) {
        if waits != (self.0.load(Ordering::Relaxed) > 0) {
            self.0.store(u64::from(waits), Ordering::Relaxed);
        }
    }

    /// A tick has passed: whether the client took nothing for `most` of them.
    pub(super) fn tick(&self, most: u64) -> bool {
        let ticks = self.0.load(Ordering::Relaxed);
        if ticks > 0 {
            // It fails when the client takes something right now.
            let _ = self.0.compare_exchange(ticks, ticks + 1, Ordering::Relaxed, Ordering::Relaxed);
        }
        ticks > most
    }
}

/// A connection's stream, whose writes are noted.
pub(super) struct Noted<S> {
    pub(super) stream: S,
    pub(super) stall: Arc<Stall>,
}

impl<S: AsyncRead + Unpin> AsyncRead for Noted<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Noted<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.stall.note(written.is_pending());
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test]
    async fn only_who_takes_nothing_for_long_is_stalled() {
        let (near, mut far) = tokio::io::duplex(4);
        let stall = Arc::new(Stall::default());
        let mut noted = Noted { stream: near, stall: Arc::clone(&stall) };
        noted.write_all(b"1234").await.unwrap();
        assert!((0..9).all(|_| !stall.tick(3)), "nothing waits");
        let writing = tokio::spawn(async move { noted.write_all(b"5678").await });
        while stall.0.load(Ordering::Relaxed) == 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!([0; 4].map(|_| stall.tick(3)), [false, false, false, true]);
        let mut taken = [0; 8];
        far.read_exact(&mut taken).await.unwrap();
        writing.await.unwrap().unwrap();
        assert!((0..9).all(|_| !stall.tick(3)), "all was taken");
    }
}
