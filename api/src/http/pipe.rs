//! From blocking work to a client: the work writes, the client reads, and neither is far ahead of the other.
//!
//! The work ends early when the client has gone, when the time of a scan is over, or with an error of its own. An answer
//! that has begun is cut off then: the connection ends without the mark of a whole one.

use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use futures::stream::{self, StreamExt};
use lakehouse_core::error::Problem;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};
use tracing::error;

use super::Service;
use super::problem::HttpProblem;
use super::scans::ScanPermit;
use crate::failure::Failure;

/// Bytes that are sent at once.
const CHUNK: usize = 64 << 10;
/// Chunks that the work may be ahead.
const CHUNKS_AHEAD: usize = 4;
/// How long a client may take for one (S6): whoever is slower has left, or holds a scan that others wait for.
const CHUNK_TIME: Duration = Duration::from_secs(10);

/// The work's end.
pub(super) struct Pipe {
    sender: mpsc::Sender<Bytes>,
    buffer: Vec<u8>,
    deadline: Instant,
    sent: Arc<AtomicU64>,
    runtime: Handle,
}

/// Says whether the work is still wanted.
pub(super) struct Wanted {
    sender: mpsc::Sender<Bytes>,
    deadline: Instant,
    /// Bytes so far, and how many it may be.
    sent: Arc<AtomicU64>,
    most: u64,
}

/// The client's end.
pub(super) struct Answer {
    receiver: mpsc::Receiver<Bytes>,
    failure: Arc<OnceLock<Failure>>,
}

/// Starts work that writes an answer, and gives the pipe back behind its last byte. The permit is free when it ends.
pub(super) fn start(
    service: &Service,
    permit: ScanPermit,
    work: impl FnOnce(Pipe, &Wanted) -> Result<Pipe, Failure> + Send + 'static,
) -> Answer {
    let (sender, receiver) = mpsc::channel(CHUNKS_AHEAD);
    let (failure, sent) = (Arc::new(OnceLock::new()), Arc::new(AtomicU64::new(0)));
    let most = service.api.max_bytes.map_or(u64::MAX, |bytes| bytes.0);
    let deadline = Instant::now() + service.api.scan_time.0;
    let wanted = Wanted { sender: sender.clone(), deadline, sent: Arc::clone(&sent), most };
    let pipe = Pipe { sender, buffer: Vec::with_capacity(CHUNK), deadline, sent, runtime: Handle::current() };
    let noted = Arc::clone(&failure);
    let counted = service.metrics.scan();
    tokio::task::spawn_blocking(move || {
        let ended = work(pipe, &wanted).and_then(|mut pipe| Ok(pipe.send()?));
        if let Err(failure) = ended {
            // Noted before the last sender goes, so that no end is taken for a good one.
            noted.set(failure).expect("work fails once");
        }
        // Free before the client can see the end and ask again.
        drop((permit, counted));
        drop(wanted);
    });
    Answer { receiver, failure }
}

impl Wanted {
    /// # Errors
    /// `OUTPUT_CLOSED` when the client has gone, `SCAN_TIME` when the time is over, `ROWS_LIMIT` behind more bytes than an
    /// answer may have.
    pub(super) fn check(&self) -> Result<(), Failure> {
        if self.sender.is_closed() {
            return Err(io::Error::from(io::ErrorKind::BrokenPipe).into());
        }
        if Instant::now() > self.deadline {
            return Err(out_of_time());
        }
        if self.sent.load(Ordering::Relaxed) > self.most {
            return Err(too_much(&format!("more than {} bytes", self.most)));
        }
        Ok(())
    }

    /// True once something has been sent: what goes wrong from then on cannot have a status of its own.
    pub(super) fn has_begun(&self) -> bool {
        self.sent.load(Ordering::Relaxed) > 0
    }
}

fn out_of_time() -> Failure {
    let message = "the answer took longer than a scan may";
    Problem::retry("SCAN_TIME", "rows", message).into()
}

impl Pipe {
    fn send(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let chunk = Bytes::from(std::mem::replace(&mut self.buffer, Vec::with_capacity(CHUNK)));
        self.sent.fetch_add(chunk.len() as u64, Ordering::Relaxed);
        let deadline = self.deadline.min(Instant::now() + CHUNK_TIME);
        let sent = self.runtime.block_on(timeout_at(deadline, self.sender.send(chunk)));
        sent.map_err(|_| io::ErrorKind::TimedOut)?.map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

impl Write for Pipe {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= CHUNK {
            self.send()?;
        }
        Ok(bytes.len())
    }

    /// Chunks go when they are full, and not with each message of a format: what goes wrong in the first one can still have
    /// a status of its own.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Answer {
    /// All of it, in memory.
    ///
    /// # Errors
    /// What the work has met; `ROWS_LIMIT` beyond so many bytes.
    pub(super) async fn whole(mut self, most: usize) -> Result<Vec<u8>, HttpProblem> {
        let mut all = Vec::new();
        while let Some(chunk) = self.receiver.recv().await {
            if all.len() + chunk.len() > most {
                return Err(too_much(&format!("more than {} MiB", most >> 20)).into());
            }
            all.extend_from_slice(&chunk);
        }
        match self.failure.get() {
            Some(failure) => Err(failure.problem.clone().into()),
            None => Ok(all),
        }
    }

    /// As it comes.
    ///
    /// # Errors
    /// What the work has met before it wrote anything.
    pub(super) async fn streamed(mut self) -> Result<Body, HttpProblem> {
        let first = self.receiver.recv().await;
        if let (None, Some(failure)) = (&first, self.failure.get()) {
            return Err(failure.problem.clone().into());
        }
        let rest = stream::unfold(Some(self), |answer| async move {
            let mut answer = answer?;
            match (answer.receiver.recv().await, answer.failure.get()) {
                (Some(chunk), _) => Some((Ok(chunk), Some(answer))),
                (None, None) => None,
                (None, Some(Failure { problem, .. })) => {
                    error!(
                        code = problem.code,
                        subject = problem.subject,
                        reason = problem.message,
                        "an answer is cut off"
                    );
                    Some((Err(io::Error::other("the answer is cut off")), None))
                }
            }
        });
        // Whoever compresses it asks again behind its end.
        Ok(Body::from_stream(stream::iter(first.map(Ok)).chain(rest).fuse()))
    }
}

/// The client asks for more than one answer may hold.
pub(super) fn too_much(what: &str) -> Failure {
    let message = format!("the answer has {what}");
    Failure::failed(
        "ROWS_LIMIT",
        "rows",
        message,
        "set a limit, a filter or a selection, or take a format that streams",
    )
}
