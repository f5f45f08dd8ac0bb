//! The writing half of a replication stream: standby status messages. Owns a task that no consumer can hold up (R27) and
//! the rule that only durable positions are reported as flushed and applied (R28).

use super::{WalError, WalReader};
use crate::connection::Stream;
use bytes::{BufMut as _, BytesMut};
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};
use tokio::io::{AsyncWriteExt as _, WriteHalf};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval, timeout};

/// The server is asked for a sign of life at least this often (R27).
const REPLY_EVERY: Duration = Duration::from_secs(10);
/// Seconds from the Unix epoch to that of the server, 2000-01-01.
const SERVER_EPOCH: Duration = Duration::from_secs(946_684_800);

/// What reader, feedback task and handle share.
#[derive(Debug)]
pub(super) struct Shared {
    received: AtomicU64,
    /// 0 until the consumer has vouched for a position: the server takes that for "unknown".
    durable: AtomicU64,
    stopping: AtomicBool,
    wake: Notify,
    failure: Mutex<Option<io::Error>>,
}

impl Shared {
    pub(super) fn note_received(&self, lsn: u64) {
        self.received.store(lsn, Ordering::Relaxed);
    }

    pub(super) fn request_status(&self) {
        self.wake.notify_one();
    }

    pub(super) fn take_failure(&self) -> Option<io::Error> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// Tells the server how far the consumer is. Dropping it ends the feedback and so, in time, the stream.
#[derive(Debug)]
pub struct FeedbackHandle {
    start: u64,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

pub(super) fn spawn(write: WriteHalf<Stream>, start: u64, pace: Duration) -> (FeedbackHandle, Arc<Shared>) {
    let shared = Arc::new(Shared {
        received: AtomicU64::new(start),
        durable: AtomicU64::new(0),
        stopping: AtomicBool::new(false),
        wake: Notify::new(),
        failure: Mutex::new(None),
    });
    let task = tokio::spawn(run(write, shared.clone(), pace));
    (FeedbackHandle { start, shared: shared.clone(), task }, shared)
}

impl FeedbackHandle {
    /// Everything before `lsn` is durable at the consumer; sent with the next status. Never goes back, and not below the
    /// position the stream was started at. Until the first call no position is reported at all, so that the slot stands
    /// unchanged while the caller compares it with its own state (R32): older servers would even move it back.
    pub fn durable(&self, lsn: u64) {
        self.shared.durable.fetch_max(lsn.max(self.start), Ordering::AcqRel);
    }

    /// The position reported as durable; 0 if none was.
    #[must_use]
    pub fn reported(&self) -> u64 {
        self.shared.durable.load(Ordering::Acquire)
    }

    /// Ends the stream in good order: a last status, CopyDone, Terminate; what still arrives is dropped (R68). Returns
    /// once the server has closed the connection, so the slot is free then.
    ///
    /// # Errors
    /// [`WalError::Io`] of kind `TimedOut` if the server has not closed within `limit`, for it finishes a transaction that
    /// it is sending. It has most likely read the status by then.
    pub async fn shutdown(mut self, mut reader: WalReader, limit: Duration) -> Result<(), WalError> {
        self.shared.stopping.store(true, Ordering::Release);
        self.shared.wake.notify_one();
        let finish = async {
            let (_, drained) = tokio::join!(&mut self.task, reader.drain());
            drained
        };
        let drained = timeout(limit, finish).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?;
        match self.shared.take_failure() {
            Some(error) => Err(WalError::Io(error)),
            None => drained,
        }
    }
}

impl Drop for FeedbackHandle {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Sends a status at each tick and whenever the server asks, until told to stop. An error is left for the reader, which
/// sees the connection end.
async fn run(mut write: WriteHalf<Stream>, shared: Arc<Shared>, pace: Duration) {
    if let Err(error) = report(&mut write, &shared, pace).await {
        tracing::debug!(%error, "feedback to the server ended");
        *shared.failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
        // Wakes the reader up; whether it succeeds is of no interest on a broken connection.
        let _ = write.shutdown().await;
    }
}

async fn report(write: &mut WriteHalf<Stream>, shared: &Shared, pace: Duration) -> io::Result<()> {
    let mut ticks = interval(pace.max(Duration::from_millis(10)));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut asked = Instant::now();
    let mut output = BytesMut::with_capacity(64);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = shared.wake.notified() => {}
        }
        let stopping = shared.stopping.load(Ordering::Acquire);
        let ask = !stopping && asked.elapsed() >= REPLY_EVERY.saturating_sub(pace);
        if ask {
            asked = Instant::now();
        }
        output.clear();
        put_status(&mut output, shared, ask);
        if stopping {
            output.put_slice(b"c\0\0\0\x04X\0\0\0\x04");
        }
        write.write_all(&output).await?;
        write.flush().await?;
        if stopping {
            return Ok(());
        }
    }
}

/// Standby status update: written, flushed, applied, clock, whether a reply is wanted.
fn put_status(output: &mut BytesMut, shared: &Shared, ask: bool) {
    let durable = shared.durable.load(Ordering::Acquire);
    let written = shared.received.load(Ordering::Relaxed).max(durable);
    output.put_u8(b'd');
    output.put_u32(4 + 1 + 3 * 8 + 8 + 1);
    output.put_u8(b'r');
    output.put_u64(written);
    output.put_u64(durable);
    output.put_u64(durable);
    output.put_i64(server_clock());
    output.put_u8(u8::from(ask));
}

/// Microseconds since 2000-01-01; 0 on a clock that is further back than that.
fn server_clock() -> i64 {
    let since_unix = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since_unix.saturating_sub(SERVER_EPOCH).as_micros()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::super::{ProtocolOptions, Replication, WalEvent, Walsender, fake};
    use super::*;
    use tokio::io::AsyncReadExt as _;
    use tokio::net::TcpStream;

    async fn stream(pace: Duration) -> (Replication, TcpStream) {
        let (listener, settings) = fake::listen().await;
        let client = async {
            let walsender = Walsender::connect(&settings).await.expect("login");
            walsender.start("s", 100, &["p"], ProtocolOptions::default(), pace).await.expect("started")
        };
        tokio::join!(client, fake::accept_stream(&listener))
    }

    #[tokio::test]
    async fn only_durable_positions_are_reported_as_flushed_and_applied() {
        let (mut client, mut server) = stream(Duration::from_millis(10)).await;
        server.write_all(&fake::data(500, 500, b"x")).await.expect("a client");
        client.reader.next().await.expect("an event");
        for _ in 0..3 {
            let (_, flushed, applied, _) = fake::read_status(&mut server).await;
            assert_eq!((flushed, applied), (0, 0), "nobody has vouched for any position yet");
        }
        client.feedback.durable(300);
        client.feedback.durable(200);
        assert_eq!(client.feedback.reported(), 300);
        let mut last = 0;
        while last != 300 {
            let (written, flushed, applied, _) = fake::read_status(&mut server).await;
            assert_eq!((written, flushed), (500, applied));
            assert!([0, 300].contains(&flushed), "{flushed}");
            last = flushed;
        }
    }

    #[tokio::test]
    async fn a_position_below_the_start_is_not_reported() {
        let (client, _server) = stream(Duration::from_millis(10)).await;
        client.feedback.durable(1);
        assert_eq!(client.feedback.reported(), 100);
    }

    #[tokio::test]
    async fn a_request_for_a_reply_is_answered_at_once() {
        let (mut client, mut server) = stream(Duration::from_secs(3600)).await;
        fake::read_status(&mut server).await;
        server.write_all(&fake::keepalive(700, true)).await.expect("a client");
        let event = client.reader.next().await.expect("an event");
        assert_eq!(event, WalEvent::Keepalive { end: 700, reply_requested: true });
        assert_eq!(fake::read_status(&mut server).await.0, 700);
    }

    #[tokio::test]
    async fn a_consumer_that_never_reads_does_not_stop_the_feedback() {
        let (client, server) = stream(Duration::from_millis(10)).await;
        let (mut read, mut write) = server.into_split();
        let flood = tokio::spawn(async move {
            let message = fake::data(1, 1, &[0; 60_000]);
            while write.write_all(&message).await.is_ok() {}
        });
        let mut statuses = vec![0; 39 * 50];
        read.read_exact(&mut statuses).await.expect("fifty statuses");
        assert!(statuses.chunks_exact(39).all(|status| status.starts_with(b"d\0\0\0\x26r")));
        assert!(!flood.is_finished(), "the server must be held up by the unread stream");
        drop(client);
        flood.await.expect("ends when the client is gone");
    }

    #[tokio::test]
    async fn a_shutdown_reports_for_the_last_time_and_waits_for_the_server() {
        let (client, mut server) = stream(Duration::from_secs(3600)).await;
        fake::read_status(&mut server).await;
        client.feedback.durable(400);
        let serve = async {
            let (_, flushed, applied, _) = fake::read_status(&mut server).await;
            assert_eq!((flushed, applied), (400, 400));
            assert_eq!(fake::read_message(&mut server).await, (b'c', Vec::new()));
            assert_eq!(fake::read_message(&mut server).await, (b'X', Vec::new()));
            // A server in the midst of a transaction sends on for a while.
            server.write_all(&fake::data(1, 1, &[0; 1_000_000])).await.expect("a client");
            drop(server);
        };
        let (outcome, ()) = tokio::join!(client.shutdown(Duration::from_secs(30)), serve);
        outcome.expect("in good order");
    }

    #[tokio::test]
    async fn a_shutdown_does_not_wait_for_ever() {
        let (client, _server) = stream(Duration::from_secs(3600)).await;
        let outcome = client.shutdown(Duration::from_millis(50)).await;
        assert!(matches!(outcome, Err(WalError::Io(error)) if error.kind() == io::ErrorKind::TimedOut));
    }
}
