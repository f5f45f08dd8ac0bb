//! One address, and the connections that come in there: HTTP/1.1, in TLS where the address has it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::GRACE;
use super::tls::Tls;
use crate::failure::Failure;

/// Open connections of one listener (S6); more wait in the system's queue.
const CONNECTIONS: usize = 256;
/// How long a client may take to send its request's head (S6).
const HEAD_TIME: Duration = Duration::from_secs(10);
/// The longest head of a request (S6).
const HEAD_BYTES: usize = 16 << 10;
/// After an error of the system's own, such as too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

pub(super) struct Listener {
    listener: TcpListener,
    router: Router,
    tls: Option<Arc<Tls>>,
}

impl Listener {
    /// # Errors
    /// `LISTEN` for an address that cannot be had.
    pub(super) async fn bind(
        key: &str,
        address: SocketAddr,
        router: Router,
        tls: Option<Arc<Tls>>,
    ) -> Result<Self, Failure> {
        let listener = TcpListener::bind(address).await.map_err(|error| {
            let message = format!("the address cannot be listened on: {error}");
            let remedy = format!("end what listens there, or set {key} in [api] to another address");
            Failure::failed("LISTEN", address.to_string(), message, remedy)
        })?;
        let address = listener.local_addr().map_or_else(|_| address.to_string(), |address| address.to_string());
        info!(key, address, tls = tls.is_some(), "listening");
        Ok(Self { listener, router, tls })
    }

    /// Takes connections until it is stopped, then ends what is under way.
    pub(super) async fn serve(self, stop: CancellationToken) {
        let Self { listener, router, tls } = self;
        let graceful = GracefulShutdown::new();
        let permits = Arc::new(Semaphore::new(CONNECTIONS));
        let next = async || {
            let permit = Arc::clone(&permits).acquire_owned().await.expect("the semaphore is never closed");
            (listener.accept().await, permit)
        };
        loop {
            // Biased: a stop is not kept waiting. A connection that was not accepted yet stays in the system's queue.
            let (accepted, permit) = tokio::select! {
                biased;
                () = stop.cancelled() => break,
                accepted = next() => accepted,
            };
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    warn!(%error, "a connection cannot be accepted");
                    sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let connection = Connection { router: router.clone(), watcher: graceful.watcher() };
            let (tls, stop) = (tls.clone(), stop.clone());
            tokio::spawn(async move {
                match tls {
                    None => connection.converse(stream).await,
                    Some(tls) => connection.converse_in_tls(stream, &tls, &stop).await,
                }
                drop(permit);
            });
        }
        drop(listener);
        if timeout(GRACE, graceful.shutdown()).await.is_err() {
            warn!("answers under way have not ended in time and are cut off");
        }
    }
}

/// What one connection needs of its listener.
struct Connection {
    router: Router,
    watcher: Watcher,
}

impl Connection {
    /// A handshake that is under way when the service stops has nothing to lose.
    async fn converse_in_tls(self, stream: TcpStream, tls: &Tls, stop: &CancellationToken) {
        match stop.run_until_cancelled(tls.handshake(stream)).await {
            Some(Ok(stream)) => self.converse(stream).await,
            Some(Err(error)) => debug!(%error, "a connection has not come to TLS"),
            None => {}
        }
    }

    async fn converse(self, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
        let mut protocol = http1::Builder::new();
        protocol.timer(TokioTimer::new()).header_read_timeout(HEAD_TIME).max_buf_size(HEAD_BYTES);
        let service = TowerToHyperService::new(self.router);
        let connection = protocol.serve_connection(TokioIo::new(stream), service);
        if let Err(error) = self.watcher.watch(connection).await {
            debug!(%error, "a connection has ended early");
        }
    }
}
