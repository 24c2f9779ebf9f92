//! Requests' bodies: within their size, their time, and the memory for all of them.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, BodyDataStream, HttpBody as _};
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::problem::Problem;

/// A request's body. A register's text has at most 256 KiB, and a batch 4,096 commands.
const MAX_BODY: usize = 8 << 20;
/// From a request's header to the end of its body.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
/// The bytes of all larger bodies that are being read.
const MAX_BODIES: usize = 192 << 20;
/// A body up to this size counts as nothing: the number of connections bounds these.
const SMALL: u64 = 16 << 10;
/// What is refused is read on for a while: a connection that is closed over unread bytes loses the answer.
const DISCARD: (usize, Duration) = (64 << 20, Duration::from_secs(3));

/// Reads bodies.
pub(super) struct Bodies {
    room: Arc<Semaphore>,
}

impl Bodies {
    pub(super) fn new() -> Self {
        Self { room: Arc::new(Semaphore::new(MAX_BODIES)) }
    }

    pub(super) async fn read(&self, body: Body) -> Result<Bytes, Problem> {
        let size = body.size_hint();
        let mut stream = body.into_data_stream();
        if size.lower() > MAX_BODY as u64 {
            discard(stream);
            return Err(too_large());
        }
        let Ok(_room) = self.room_for(size.upper().unwrap_or(MAX_BODY as u64)) else {
            discard(stream);
            let text = "this server is reading as many large bodies as it takes; come back later";
            return Err(Problem::new(429, "overloaded", text).retry_after(200));
        };
        match timeout(BODY_TIMEOUT, collect(&mut stream)).await {
            Ok(Ok(Some(bytes))) => Ok(bytes),
            Ok(Ok(None)) => {
                discard(stream);
                Err(too_large())
            }
            Ok(Err(e)) => Err(Problem::bad_request(format!("the body cannot be read: {e}"))),
            Err(_) => {
                let text = format!("the body did not come within {BODY_TIMEOUT:?}");
                Err(Problem::new(408, "bad_request", text))
            }
        }
    }

    fn room_for(&self, bytes: u64) -> Result<Option<OwnedSemaphorePermit>, tokio::sync::TryAcquireError> {
        match bytes {
            0..=SMALL => Ok(None),
            // At most `MAX_BODY`, or it would have been refused.
            _ => Arc::clone(&self.room).try_acquire_many_owned(bytes.min(MAX_BODY as u64) as u32).map(Some),
        }
    }
}

/// The whole body; `None` when it is too large.
async fn collect(stream: &mut BodyDataStream) -> Result<Option<Bytes>, axum::Error> {
    let Some(first) = stream.next().await.transpose()? else { return Ok(Some(Bytes::new())) };
    // Mostly that was all: nothing is copied.
    let Some(mut next) = stream.next().await.transpose()? else {
        return Ok((first.len() <= MAX_BODY).then_some(first));
    };
    let mut whole = BytesMut::from(first);
    loop {
        if whole.len() + next.len() > MAX_BODY {
            return Ok(None);
        }
        whole.extend_from_slice(&next);
        match stream.next().await.transpose()? {
            Some(more) => next = more,
            None => return Ok(Some(whole.freeze())),
        }
    }
}

/// Reads on beside the answer.
fn discard(mut stream: BodyDataStream) {
    let (most, limit) = DISCARD;
    tokio::spawn(timeout(limit, async move {
        let mut seen = 0;
        while let Some(Ok(bytes)) = stream.next().await {
            seen += bytes.len();
            if seen > most {
                break;
            }
        }
    }));
}

fn too_large() -> Problem {
    Problem::new(413, "too_large", format!("a body has at most {MAX_BODY} bytes; send less at once"))
}
