//! The TCP socket under a stream. Owns when the kernel is asked for data.
//!
//! The server sends every change in a packet of its own. A socket registered with the event loop wakes it for each of
//! them, which costs several times what reading and decoding the change does. A collecting socket is therefore registered
//! only while the stream is silent; on a busy stream it is read at a fixed pace, and the kernel's buffers collect.

use std::io::{self, Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::task::coop::poll_proceed;
use tokio::time::{Instant, Sleep, sleep};

/// Pace of reading a busy stream.
const PAUSE: Duration = Duration::from_millis(1);
/// Bounds of what is asked for at once, in bytes.
const MIN_PORTION: usize = 16 << 10;
const MAX_PORTION: usize = 128 << 10;
/// A read that brought at least this much is followed by the next one at once, in bytes.
const LARGE_READ: usize = 32 << 10;

#[derive(Debug)]
pub(super) enum Socket {
    Prompt(TcpStream),
    Collecting(Collecting),
}

impl Socket {
    /// From now on prefers large reads to early ones: a read may come a millisecond or two late.
    pub(super) fn collect(&mut self) -> io::Result<()> {
        if let Self::Prompt(stream) = self {
            let stream = std::net::TcpStream::from(stream.as_fd().try_clone_to_owned()?);
            *self = Self::Collecting(Collecting::new(stream));
        }
        Ok(())
    }
}

#[derive(Debug)]
pub(super) struct Collecting {
    stream: std::net::TcpStream,
    reading: Reading,
    pause: Pin<Box<Sleep>>,
    /// How much to ask for at once. The memory has to be cleared before each read, so asking for much costs time.
    portion: usize,
    /// Present while a write has to wait.
    writable: Option<TcpStream>,
}

#[derive(Debug)]
enum Reading {
    /// Ask the kernel next.
    Probe,
    /// The stream is busy: not before the pause is over.
    Paused,
    /// The stream is silent: not before the kernel reports data.
    Waiting(TcpStream),
}

impl Collecting {
    fn new(stream: std::net::TcpStream) -> Self {
        Self { stream, reading: Reading::Probe, pause: Box::pin(sleep(PAUSE)), portion: MIN_PORTION, writable: None }
    }

    fn poll_read(&mut self, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        // Reads that always succeed must not keep other tasks of the thread from running.
        let budget = ready!(poll_proceed(context));
        loop {
            match &self.reading {
                Reading::Probe => {
                    if self.probe(buffer)? {
                        budget.made_progress();
                        return Poll::Ready(Ok(()));
                    }
                }
                Reading::Paused => {
                    ready!(self.pause.as_mut().poll(context));
                    self.reading = Reading::Probe;
                }
                Reading::Waiting(readable) => {
                    ready!(readable.poll_read_ready(context))?;
                    self.reading = Reading::Probe;
                }
            }
        }
    }

    /// Reads what the kernel holds, at most one portion; `false` if it holds nothing.
    fn probe(&mut self, buffer: &mut ReadBuf<'_>) -> io::Result<bool> {
        let room = self.portion.min(buffer.remaining());
        match self.stream.read(buffer.initialize_unfilled_to(room)) {
            Ok(read) => {
                buffer.advance(read);
                self.plan(read, room);
                Ok(true)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.reading = Reading::Waiting(self.register()?);
                Ok(false)
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Chooses time and size of the next read. A read that filled its room has left something behind.
    fn plan(&mut self, read: usize, room: usize) {
        if read == room {
            self.portion = (self.portion * 2).min(MAX_PORTION);
        } else if read < LARGE_READ {
            self.portion = (self.portion / 2).max(MIN_PORTION).max(read.next_power_of_two());
            self.pause.as_mut().reset(Instant::now() + PAUSE);
            self.reading = Reading::Paused;
        }
    }

    fn poll_write(&mut self, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            match self.stream.write(bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                outcome => return Poll::Ready(outcome),
            }
            if self.writable.is_none() {
                self.writable = Some(self.register()?);
            }
            if let Some(writable) = &self.writable {
                ready!(writable.poll_write_ready(context))?;
            }
            self.writable = None;
        }
    }

    /// Registers the socket with the event loop until the result is dropped, under a descriptor of its own because each
    /// can be registered only once.
    fn register(&self) -> io::Result<TcpStream> {
        TcpStream::from_std(self.stream.try_clone()?)
    }
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Prompt(stream) => Pin::new(stream).poll_read(context, buffer),
            Self::Collecting(stream) => stream.poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Prompt(stream) => Pin::new(stream).poll_write(context, bytes),
            Self::Collecting(stream) => stream.poll_write(context, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(())) // TCP sockets have no buffer of ours to flush
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Prompt(stream) => Pin::new(stream).poll_shutdown(context),
            Self::Collecting(stream) => Poll::Ready(stream.stream.shutdown(std::net::Shutdown::Write)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    async fn pair() -> (Socket, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let (client, server) = tokio::join!(TcpStream::connect(address), listener.accept());
        let mut socket = Socket::Prompt(client.expect("connected"));
        socket.collect().expect("a second descriptor");
        (socket, server.expect("connected").0)
    }

    fn pattern(length: usize) -> Vec<u8> {
        (0..length).map(|at| u8::try_from(at % 251).expect("small")).collect()
    }

    #[tokio::test]
    async fn much_and_little_data_arrives_unchanged() {
        let (mut socket, mut server) = pair().await;
        let sent = pattern(5_000_000);
        let writing = async {
            for part in sent.chunks(70_000).chain([&b"one"[..], b"by", b"one"]) {
                server.write_all(part).await.expect("open");
            }
            drop(server);
        };
        let mut received = Vec::new();
        let (read, ()) = tokio::join!(socket.read_to_end(&mut received), writing);
        read.expect("until the end");
        assert_eq!(received, [&sent[..], b"onebyone"].concat());
    }

    #[tokio::test]
    async fn a_write_waits_until_the_peer_reads() {
        let (mut socket, mut server) = pair().await;
        let sent = pattern(50_000_000);
        let writing = async {
            socket.write_all(&sent).await.expect("open");
            socket.shutdown().await.expect("open");
        };
        let mut received = Vec::new();
        let ((), read) = tokio::join!(writing, server.read_to_end(&mut received));
        read.expect("until the end");
        assert!(received == sent);
    }

    #[tokio::test]
    async fn a_silent_socket_is_woken_by_data() {
        let (mut socket, mut server) = pair().await;
        let mut byte = [0];
        for round in 0..3 {
            let silence = tokio::time::timeout(Duration::from_millis(20), socket.read(&mut byte)).await;
            assert!(silence.is_err());
            let answer = async {
                tokio::time::sleep(Duration::from_millis(5)).await;
                server.write_all(&[round]).await.expect("open");
            };
            let (read, ()) = tokio::join!(socket.read(&mut byte), answer);
            assert_eq!((read.expect("open"), byte), (1, [round]));
        }
    }
}
