//! The byte stream under both kinds of connection. Owns name resolution, sockets, and the TLS request. Knows nothing of
//! logins or messages but the first authentication request.

use super::error::ConnectError;
use super::socket::Socket;
use super::{ConnectionSettings, Tls, tls};
use bytes::BytesMut;
use postgres_protocol::message::frontend;
use socket2::{SockRef, TcpKeepalive};
use std::future::{Ready, ready};
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;
use tokio_rustls::client::TlsStream;

/// A silent peer is probed after this time (R9).
const KEEPALIVE_IDLE: Duration = Duration::from_secs(30);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_PROBES: u32 = 3;
/// Data that the peer's machine does not acknowledge for this time breaks the connection (R9).
#[cfg(target_os = "linux")]
const USER_TIMEOUT: Duration = Duration::from_secs(60);

/// A connected stream on which nothing of the login has been sent yet.
#[derive(Debug)]
pub(crate) struct Stream {
    transport: Transport,
    /// The hash for channel binding; `None` without TLS.
    pub(crate) binding: Option<Vec<u8>>,
}

#[derive(Debug)]
enum Transport {
    Tcp(Socket),
    Unix(UnixStream),
    Tls(Box<TlsStream<Socket>>),
}

/// Connects and, unless the settings disable it, encrypts. Each step is bounded by `connect_timeout`.
pub(crate) async fn dial(settings: &ConnectionSettings) -> Result<Stream, ConnectError> {
    if settings.uses_unix_socket() {
        return dial_unix(settings).await;
    }
    let only_loopback = settings.tls == Tls::Disable;
    if only_loopback && !settings.names_loopback() {
        return Err(ConnectError::TlsRequired { host: settings.host.clone() });
    }
    let addresses = resolve(settings, only_loopback).await?;
    let tcp = connect_any(settings, &addresses).await?;
    let (root, certificate) = match &settings.tls {
        Tls::Disable => {
            return Ok(Stream { transport: Transport::Tcp(Socket::Prompt(tcp)), binding: None });
        }
        Tls::VerifyCa { root } => (root, tls::Match::Chain),
        Tls::VerifyFull { root } => (root, tls::Match::ChainAndName),
    };
    let secure = async {
        let tcp = request_tls(tcp).await?;
        tls::handshake(tcp, &settings.host, root.as_deref(), certificate).await
    };
    let (stream, binding) = timeout(settings.connect_timeout, secure)
        .await
        .map_err(|_| ConnectError::Timeout { step: "negotiating tls" })??;
    Ok(Stream { transport: Transport::Tls(Box::new(stream)), binding })
}

async fn dial_unix(settings: &ConnectionSettings) -> Result<Stream, ConnectError> {
    let path = format!("{}/.s.PGSQL.{}", settings.host.trim_end_matches('/'), settings.port);
    match timeout(settings.connect_timeout, UnixStream::connect(&path)).await {
        Ok(Ok(stream)) => Ok(Stream { transport: Transport::Unix(stream), binding: None }),
        Ok(Err(error)) if matches!(error.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound) => {
            Err(ConnectError::Refused { address: path })
        }
        Ok(Err(error)) => Err(error.into()),
        Err(_) => Err(ConnectError::Timeout { step: "connecting" }),
    }
}

/// The addresses of the host, looked up anew for each connection (R9).
async fn resolve(settings: &ConnectionSettings, only_loopback: bool) -> Result<Vec<SocketAddr>, ConnectError> {
    let unresolved = |detail: String| ConnectError::Dns { host: settings.host.clone(), detail };
    let lookup = tokio::net::lookup_host((settings.host.as_str(), settings.port));
    let found = timeout(settings.connect_timeout, lookup)
        .await
        .map_err(|_| ConnectError::Timeout { step: "resolving the host name" })?
        .map_err(|error| unresolved(error.to_string()))?
        .collect::<Vec<_>>();
    if found.is_empty() {
        return Err(unresolved("it has no address".to_owned()));
    }
    // A hosts file may give `localhost` any address.
    if only_loopback && !found.iter().all(|address| address.ip().is_loopback()) {
        return Err(ConnectError::TlsRequired { host: settings.host.clone() });
    }
    Ok(found)
}

/// Connects to the first address that answers; reports the last failure.
async fn connect_any(settings: &ConnectionSettings, addresses: &[SocketAddr]) -> Result<TcpStream, ConnectError> {
    let mut failure = ConnectError::Timeout { step: "connecting" };
    for address in addresses {
        match timeout(settings.connect_timeout, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => {
                tune(&stream)?;
                return Ok(stream);
            }
            Ok(Err(error)) => failure = sort_socket_error(error, address),
            Err(_) => failure = ConnectError::Timeout { step: "connecting" },
        }
    }
    Err(failure)
}

fn sort_socket_error(error: io::Error, address: &SocketAddr) -> ConnectError {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => ConnectError::Refused { address: address.to_string() },
        io::ErrorKind::TimedOut => ConnectError::Timeout { step: "connecting" },
        _ => ConnectError::Io(error),
    }
}

fn tune(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    let keepalive =
        TcpKeepalive::new().with_time(KEEPALIVE_IDLE).with_interval(KEEPALIVE_INTERVAL).with_retries(KEEPALIVE_PROBES);
    socket.set_tcp_keepalive(&keepalive)?;
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(USER_TIMEOUT))?;
    Ok(())
}

/// Asks for TLS. Reads exactly one byte, so bytes that somebody slips in before the handshake end up inside it and fail.
async fn request_tls(mut tcp: TcpStream) -> Result<TcpStream, ConnectError> {
    let mut request = BytesMut::new();
    frontend::ssl_request(&mut request);
    tcp.write_all(&request).await?;
    match tcp.read_u8().await? {
        b'S' => Ok(tcp),
        b'N' => Err(ConnectError::TlsRefused),
        other => Err(ConnectError::Protocol(format!("answer {other:#04x} to the request for tls"))),
    }
}

impl Stream {
    /// Whether the peer has proved its identity by a certificate.
    pub(crate) fn is_verified(&self) -> bool {
        matches!(self.transport, Transport::Tls(_))
    }

    /// From now on prefers large reads to early ones; for the replication stream.
    pub(crate) fn collect(&mut self) -> io::Result<()> {
        match &mut self.transport {
            Transport::Tcp(socket) => socket.collect(),
            Transport::Unix(_) => Ok(()),
            Transport::Tls(stream) => stream.get_mut().0.collect(),
        }
    }
}

/// The stream as `tokio-postgres` gets it: connected already, and watched for a login that would expose the password.
#[derive(Debug)]
pub(crate) struct SqlStream {
    stream: Stream,
    first: FirstMessage,
}

impl SqlStream {
    pub(crate) fn new(stream: Stream) -> Self {
        let first = FirstMessage { head: [0; FirstMessage::LEN], seen: 0, cleartext_allowed: stream.is_verified() };
        Self { stream, first }
    }
}

/// The head of the first message from the server, which alone decides the kind of login. `tokio-postgres` answers a
/// request for a cleartext or MD5 password without asking, so such a request must not reach it (R3).
#[derive(Debug)]
struct FirstMessage {
    head: [u8; Self::LEN],
    seen: usize,
    cleartext_allowed: bool,
}

impl FirstMessage {
    /// Tag, length and kind of an authentication request.
    const LEN: usize = 9;

    fn inspect(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.seen == Self::LEN {
            return Ok(());
        }
        for (slot, byte) in self.head.iter_mut().skip(self.seen).zip(bytes) {
            *slot = *byte;
            self.seen += 1;
        }
        let [tag, _, _, _, _, kind @ ..] = self.head;
        if self.seen < Self::LEN || tag != b'R' {
            return Ok(());
        }
        match refused_method(u32::from_be_bytes(kind), self.cleartext_allowed) {
            Some(method) => Err(io::Error::other(ConnectError::AuthMethod(method))),
            None => Ok(()),
        }
    }
}

/// The name of an authentication request that is not answered, by its number in the protocol.
pub(crate) fn refused_method(kind: u32, cleartext_allowed: bool) -> Option<&'static str> {
    match kind {
        0 | 10 | 11 | 12 => None,
        3 if cleartext_allowed => None,
        3 => Some("cleartext password"),
        5 => Some("md5 password"),
        2 => Some("kerberos 5"),
        6 => Some("scm credential"),
        7 | 8 => Some("gss"),
        9 => Some("sspi"),
        _ => Some("unknown"),
    }
}

/// Hands the connected stream on where `tokio-postgres` would start the handshake.
pub(crate) struct Connected;

impl tokio_postgres::tls::TlsConnect<SqlStream> for Connected {
    type Stream = SqlStream;
    type Error = std::convert::Infallible;
    type Future = Ready<Result<SqlStream, Self::Error>>;

    fn connect(self, stream: SqlStream) -> Self::Future {
        ready(Ok(stream))
    }
}

impl tokio_postgres::tls::TlsStream for SqlStream {
    fn channel_binding(&self) -> tokio_postgres::tls::ChannelBinding {
        match &self.stream.binding {
            Some(hash) => tokio_postgres::tls::ChannelBinding::tls_server_end_point(hash.clone()),
            None => tokio_postgres::tls::ChannelBinding::none(),
        }
    }
}

impl AsyncRead for SqlStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(context, buffer);
        if let Poll::Ready(Ok(())) = polled {
            self.first.inspect(buffer.filled().get(before..).unwrap_or_default())?;
        }
        polled
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().transport {
            Transport::Tcp(stream) => Pin::new(stream).poll_read(context, buffer),
            Transport::Unix(stream) => Pin::new(stream).poll_read(context, buffer),
            Transport::Tls(stream) => Pin::new(stream).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().transport {
            Transport::Tcp(stream) => Pin::new(stream).poll_write(context, bytes),
            Transport::Unix(stream) => Pin::new(stream).poll_write(context, bytes),
            Transport::Tls(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().transport {
            Transport::Tcp(stream) => Pin::new(stream).poll_flush(context),
            Transport::Unix(stream) => Pin::new(stream).poll_flush(context),
            Transport::Tls(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().transport {
            Transport::Tcp(stream) => Pin::new(stream).poll_shutdown(context),
            Transport::Unix(stream) => Pin::new(stream).poll_shutdown(context),
            Transport::Tls(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}

impl AsyncWrite for SqlStream {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
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
    use super::*;

    fn first(cleartext_allowed: bool) -> FirstMessage {
        FirstMessage { head: [0; FirstMessage::LEN], seen: 0, cleartext_allowed }
    }

    fn request(kind: u8) -> [u8; 9] {
        [b'R', 0, 0, 0, 8, 0, 0, 0, kind]
    }

    #[test]
    fn a_request_for_a_weak_login_is_caught_however_it_is_cut() {
        for cut in 0..=9 {
            for (kind, allowed, passes) in [(3, false, false), (3, true, true), (5, true, false), (7, true, false)] {
                let bytes = request(kind);
                let (head, tail) = bytes.split_at(cut);
                let mut message = first(allowed);
                let outcome = message.inspect(head).and_then(|()| message.inspect(tail));
                assert_eq!(outcome.is_ok(), passes, "kind {kind} cut at {cut}");
            }
        }
    }

    #[test]
    fn scram_trust_and_errors_pass_the_watch() {
        assert!(first(false).inspect(&request(10)).is_ok());
        assert!(first(false).inspect(&request(0)).is_ok());
        assert!(first(false).inspect(b"E\0\0\0\x20SFATAL\0").is_ok());
        let mut later = first(false);
        assert!(later.inspect(&request(0)).is_ok());
        assert!(later.inspect(&request(5)).is_ok(), "only the first message is a request for a login");
    }
}
