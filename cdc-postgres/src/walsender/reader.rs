//! The reading half of a replication stream. Owns framing and the read buffer; payloads are slices of that buffer.

use super::feedback::Shared;
use super::{WalError, parse, server_error};
use crate::connection::Stream;
use bytes::{Buf as _, Bytes, BytesMut};
use postgres_protocol::message::backend::Message;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use tokio::io::{AsyncReadExt as _, ReadHalf};

/// Size of a fresh read buffer, in bytes.
const BUFFER: usize = 128 << 10;
/// With less room than this the buffer is renewed before reading, in bytes.
const MIN_ROOM: usize = 16 << 10;
/// A buffer larger than this, left over from a large message, is given back, in bytes.
const MAX_KEPT: usize = 1 << 20;
/// Bound of a message within the stream: the server's own limit of 1 GiB, and headers.
const MAX_FRAME: usize = (1 << 30) + 64;
/// Tag, length, kind, start LSN, end LSN, server clock.
const DATA_HEADER: usize = 5 + 1 + 8 + 8 + 8;

/// What the server sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WalEvent {
    /// One pgoutput message.
    Data {
        /// Position of the change; 0 for messages that have none.
        start: u64,
        /// End of WAL as the server knows it for this message.
        end: u64,
        /// The message. It shares the read buffer and keeps all of it in memory: copy what is to stay for long.
        payload: Bytes,
    },
    /// The server has nothing to send up to `end`.
    Keepalive {
        /// Everything before this position has been sent or does not concern the stream.
        end: u64,
        /// The server wants a status at once; it has been asked for already.
        reply_requested: bool,
    },
}

/// Reads a replication stream. If nobody reads, the server waits (R42); feedback goes on meanwhile (R27).
#[derive(Debug)]
pub struct WalReader {
    half: ReadHalf<Stream>,
    buffer: BytesMut,
    shared: Arc<Shared>,
    received: u64,
    ended: bool,
}

impl WalReader {
    pub(super) fn new(half: ReadHalf<Stream>, buffer: BytesMut, shared: Arc<Shared>) -> Self {
        Self { half, buffer, shared, received: 0, ended: false }
    }

    /// Waits for the next event. Cancel-safe.
    ///
    /// # Errors
    /// See [`WalError`]; the stream has ended then, also if the cause was the feedback.
    #[inline]
    pub async fn next(&mut self) -> Result<WalEvent, WalError> {
        loop {
            if let Some(event) = self.take_event()? {
                return Ok(event);
            }
            self.make_room();
            let read = self.half.read_buf(&mut self.buffer).await;
            self.check_read(read)?;
        }
    }

    /// The next event if it has arrived: looks at the buffer, then reads once without waiting. On a busy stream the
    /// socket is read about once a millisecond; in between it counts as empty.
    ///
    /// # Errors
    /// As [`next`](Self::next).
    #[inline]
    pub fn try_next(&mut self) -> Result<Option<WalEvent>, WalError> {
        loop {
            if let Some(event) = self.take_event()? {
                return Ok(Some(event));
            }
            self.make_room();
            let read = {
                let read = pin!(self.half.read_buf(&mut self.buffer));
                read.poll(&mut Context::from_waker(Waker::noop()))
            };
            match read {
                Poll::Ready(read) => self.check_read(read)?,
                Poll::Pending => return Ok(None),
            }
        }
    }

    /// Highest position received so far.
    #[must_use]
    pub fn received(&self) -> u64 {
        self.received
    }

    /// Reads and drops everything until the server closes the connection.
    pub(super) async fn drain(&mut self) -> Result<(), WalError> {
        loop {
            self.buffer.clear();
            self.buffer.reserve(BUFFER);
            match self.half.read_buf(&mut self.buffer).await {
                Ok(0) => return Ok(()),
                Ok(_) => {}
                Err(error) => return Err(WalError::Io(error)),
            }
        }
    }

    #[inline]
    fn take_event(&mut self) -> Result<Option<WalEvent>, WalError> {
        if self.ended {
            return Err(WalError::Closed);
        }
        loop {
            let Some(length) = frame_length(&self.buffer, MAX_FRAME).inspect_err(|_| self.ended = true)? else {
                return Ok(None);
            };
            if self.buffer.len() < length {
                return Ok(None);
            }
            let frame = self.buffer.split_to(length);
            if frame.first() == Some(&b'd') {
                return self.copy_data(frame.freeze()).inspect_err(|_| self.ended = true).map(Some);
            }
            self.other_message(frame).inspect_err(|_| self.ended = true)?;
        }
    }

    #[inline]
    fn copy_data(&mut self, mut frame: Bytes) -> Result<WalEvent, WalError> {
        match frame.get(5..) {
            Some([b'w', rest @ ..]) => {
                let (start, rest) = number(rest)?;
                let (end, _) = number(rest)?;
                if frame.len() < DATA_HEADER {
                    return Err(short());
                }
                frame.advance(DATA_HEADER);
                self.note_received(start.max(end));
                Ok(WalEvent::Data { start, end, payload: frame })
            }
            Some([b'k', rest @ ..]) => {
                let (end, rest) = number(rest)?;
                let (_clock, rest) = number(rest)?;
                let reply_requested = rest.first().ok_or_else(short)? == &1;
                self.note_received(end);
                if reply_requested {
                    self.shared.request_status();
                }
                Ok(WalEvent::Keepalive { end, reply_requested })
            }
            _ => Err(WalError::Protocol("unknown kind of replication message".to_owned())),
        }
    }

    #[inline]
    fn note_received(&mut self, lsn: u64) {
        if lsn > self.received {
            self.received = lsn;
            self.shared.note_received(lsn);
        }
    }

    #[cold]
    fn other_message(&mut self, mut frame: BytesMut) -> Result<(), WalError> {
        match parse(&mut frame)? {
            Message::ErrorResponse(body) => Err(WalError::Server(server_error(&body))),
            Message::NoticeResponse(_) | Message::ParameterStatus(_) => Ok(()),
            Message::CopyDone | Message::CommandComplete(_) | Message::ReadyForQuery(_) => Err(WalError::Closed),
            _ => Err(WalError::Protocol("unexpected message within the stream".to_owned())),
        }
    }

    /// Grows with what has arrived, never with what a header promises.
    fn make_room(&mut self) {
        if self.buffer.capacity() - self.buffer.len() >= MIN_ROOM {
            return;
        }
        self.buffer.reserve(BUFFER.max(self.buffer.len()));
        if self.buffer.capacity() > MAX_KEPT && self.buffer.len() < BUFFER {
            let mut fresh = BytesMut::with_capacity(2 * BUFFER);
            fresh.extend_from_slice(&self.buffer);
            self.buffer = fresh;
        }
    }

    fn check_read(&mut self, read: io::Result<usize>) -> Result<(), WalError> {
        let error = match read {
            Ok(1..) => return Ok(()),
            Ok(0) => io::ErrorKind::UnexpectedEof.into(),
            Err(error) => error,
        };
        self.ended = true;
        // The feedback's error came first: what is seen here is its consequence.
        Err(WalError::Io(self.shared.take_failure().unwrap_or(error)))
    }
}

/// Length of the message at the start of `buffer`, with its tag; `None` if not even the length has arrived.
#[inline]
pub(super) fn frame_length(buffer: &[u8], bound: usize) -> Result<Option<usize>, WalError> {
    let Some([_tag, length @ ..]) = buffer.first_chunk::<5>() else {
        return Ok(None);
    };
    let length = u32::from_be_bytes(*length) as usize;
    if length < 4 || length > bound {
        return Err(WalError::Protocol(format!("message length {length}")));
    }
    Ok(Some(length + 1))
}

#[inline]
fn number(bytes: &[u8]) -> Result<(u64, &[u8]), WalError> {
    let (head, rest) = bytes.split_first_chunk::<8>().ok_or_else(short)?;
    Ok((u64::from_be_bytes(*head), rest))
}

#[cold]
fn short() -> WalError {
    WalError::Protocol("a replication message is too short".to_owned())
}

#[cfg(test)]
mod tests {
    use super::super::{ProtocolOptions, Replication, Walsender, fake};
    use super::*;
    use crate::connection::{ConnectError, ConnectionSettings};
    use std::time::Duration;
    use tokio::io::AsyncWriteExt as _;
    use tokio::net::TcpStream;
    use tokio::time::timeout;

    async fn stream() -> (Replication, TcpStream) {
        let (listener, settings) = fake::listen().await;
        let client = async {
            let walsender = Walsender::connect(&settings).await.expect("login");
            let options = ProtocolOptions::default();
            walsender.start("s", 5, &["p"], options, Duration::from_secs(3600)).await.expect("started")
        };
        tokio::join!(client, fake::accept_stream(&listener))
    }

    async fn event_or_error(bytes: &[u8]) -> Result<WalEvent, WalError> {
        let (mut client, mut server) = stream().await;
        server.write_all(bytes).await.expect("a client");
        let event = client.reader.next().await;
        if event.is_err() {
            assert!(matches!(client.reader.next().await, Err(WalError::Closed)), "an error ends the stream");
        }
        event
    }

    #[tokio::test]
    async fn events_arrive_whole_however_the_bytes_are_cut() {
        let (mut client, mut server) = stream().await;
        let bytes = [fake::data(7, 9, b"payload"), fake::keepalive(11, false), fake::data(0, 0, b"")].concat();
        let writing = async {
            for byte in &bytes {
                server.write_all(&[*byte]).await.expect("a client");
                tokio::task::yield_now().await;
            }
            server
        };
        let reading = async {
            let mut events = Vec::new();
            while events.len() < 3 {
                // Cancelled over and over: nothing may get lost by that.
                if let Ok(event) = timeout(Duration::from_micros(100), client.reader.next()).await {
                    events.push(event.expect("an event"));
                }
            }
            (events, client)
        };
        let (_server, (events, client)) = tokio::join!(writing, reading);
        let expected = [
            WalEvent::Data { start: 7, end: 9, payload: Bytes::from_static(b"payload") },
            WalEvent::Keepalive { end: 11, reply_requested: false },
            WalEvent::Data { start: 0, end: 0, payload: Bytes::new() },
        ];
        assert_eq!(events, expected);
        assert_eq!(client.reader.received(), 11);
    }

    #[tokio::test]
    async fn try_next_takes_what_has_arrived_and_does_not_wait() {
        let (mut client, mut server) = stream().await;
        assert!(matches!(client.reader.try_next(), Ok(None)));
        let bytes = [fake::data(1, 1, b"a"), fake::data(2, 2, b"b")].concat();
        server.write_all(&bytes).await.expect("a client");
        assert!(matches!(client.reader.next().await, Ok(WalEvent::Data { start: 1, .. })));
        assert!(matches!(client.reader.try_next(), Ok(Some(WalEvent::Data { start: 2, .. }))));
        assert!(matches!(client.reader.try_next(), Ok(None)));
        server.write_all(&fake::data(3, 3, b"c")).await.expect("a client");
        assert!(matches!(client.reader.next().await, Ok(WalEvent::Data { start: 3, .. })));
    }

    #[tokio::test]
    async fn a_length_beyond_the_bound_is_refused_and_not_allocated() {
        for length in [0_u32, 3, (1 << 30) + 65, u32::MAX] {
            let bytes = [&b"d"[..], &length.to_be_bytes()].concat();
            assert!(matches!(event_or_error(&bytes).await, Err(WalError::Protocol(_))), "{length}");
        }
        let (mut client, mut server) = stream().await;
        server.write_all(&[&b"d"[..], &(1_u32 << 30).to_be_bytes(), b"w"].concat()).await.expect("a client");
        let waiting = timeout(Duration::from_millis(50), client.reader.next()).await;
        assert!(waiting.is_err());
        assert!(client.reader.buffer.capacity() <= 2 * BUFFER, "a promise of 1 GiB must not be believed");
    }

    #[tokio::test]
    async fn what_is_not_a_replication_message_ends_the_stream() {
        for body in [&b""[..], b"w", b"w1234567", b"k12345678", b"k1234567812345678", b"x"] {
            let event = event_or_error(&fake::message(b'd', body)).await;
            assert!(matches!(event, Err(WalError::Protocol(_))), "{body:?}");
        }
        for message in [fake::message(b'?', b""), fake::message(b'T', b"\0\0")] {
            assert!(matches!(event_or_error(&message).await, Err(WalError::Protocol(_))));
        }
    }

    #[tokio::test]
    async fn the_ways_a_stream_ends_are_told_apart() {
        assert!(matches!(event_or_error(&fake::message(b'c', b"")).await, Err(WalError::Closed)));
        let error = event_or_error(&fake::message(b'E', b"C57P01\0Mstopping\0\0")).await.expect_err("an error");
        assert_eq!((error.sqlstate(), error.is_transient()), (Some("57P01"), true));
        let (mut client, server) = stream().await;
        drop(server);
        assert!(matches!(client.reader.next().await, Err(WalError::Io(_))));
    }

    async fn login_error(first_answer: &[u8]) -> (ConnectError, Vec<u8>) {
        let (listener, settings) = fake::listen().await;
        let server = async {
            let (mut server, _) = listener.accept().await.expect("a client");
            fake::read_startup(&mut server).await;
            server.write_all(first_answer).await.expect("a client");
            let mut sent = Vec::new();
            let _ = server.read_to_end(&mut sent).await;
            sent
        };
        let (client, sent) = tokio::join!(Walsender::connect(&settings), server);
        (client.expect_err("must be refused"), sent)
    }

    #[tokio::test]
    async fn a_login_that_exposes_the_password_is_refused_before_anything_is_sent() {
        for (kind, salt) in [(3, &b""[..]), (5, b"salt")] {
            let body = [&[0, 0, 0, kind], salt].concat();
            let (error, sent) = login_error(&fake::message(b'R', &body)).await;
            assert_eq!((error.code(), sent.len()), ("AUTH_METHOD", 0));
            let error = sql_error(&fake::message(b'R', &body)).await;
            assert_eq!(error.code(), "AUTH_METHOD");
        }
    }

    async fn sql_error(first_answer: &[u8]) -> ConnectError {
        let (listener, settings) = fake::listen().await;
        let server = async {
            let (mut server, _) = listener.accept().await.expect("a client");
            fake::read_startup(&mut server).await;
            server.write_all(first_answer).await.expect("a client");
            let mut sent = Vec::new();
            let _ = server.read_to_end(&mut sent).await;
            assert_eq!(sent, b"", "nothing may be sent");
        };
        let (client, ()) = tokio::join!(crate::connection::connect_sql(&settings), server);
        client.expect_err("must be refused")
    }

    #[tokio::test]
    async fn a_pooler_is_told_from_a_server() {
        let refusal = fake::message(b'E', b"SFATAL\0C08P01\0Munsupported startup parameter: replication\0\0");
        assert_eq!(login_error(&refusal).await.0.code(), "POOLER");
        assert_eq!(sql_error(&refusal).await.code(), "POOLER");

        let (listener, settings) = fake::listen().await;
        let server = async {
            let mut server = fake::accept(&listener).await;
            fake::read_message(&mut server).await;
            let error = fake::message(b'E', b"C42601\0Msyntax error\0\0");
            server.write_all(&[error, fake::message(b'Z', b"I")].concat()).await.expect("a client");
            server
        };
        let (client, _server) = tokio::join!(Walsender::connect(&settings), server);
        assert_eq!(client.expect_err("must be refused").code(), "POOLER");
    }

    #[tokio::test]
    async fn garbage_and_silence_instead_of_a_login_are_errors() {
        let (error, _) = login_error(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
        assert_eq!(error.code(), "PROTOCOL");
        let (error, _) = login_error(b"R\x7F\xFF\xFF\xFF").await;
        assert_eq!(error.code(), "PROTOCOL");

        let (listener, settings) = fake::listen().await;
        let settings = ConnectionSettings { connect_timeout: Duration::from_millis(50), ..settings };
        let error = Walsender::connect(&settings).await.expect_err("nobody answers");
        assert_eq!((error.code(), error.is_transient()), ("TIMEOUT", true));
        drop(listener);
    }
}
