//! TLS in front of HTTP (S10): version 1.2 or 1.3, by the certificate and key of the configuration, which are read again
//! when they have changed. A renewal needs no restart; files that do not fit together change nothing, since of two that are
//! being replaced one comes first.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tracing::{error, info};
use zeroize::Zeroizing;

use crate::config::TlsConfig;
use crate::digest::sha256_of_parts;
use crate::failure::Failure;

/// Handshakes under way of all listeners; each is a signature.
const HANDSHAKES: usize = 64;
/// How long a client may take for its handshake, waiting for others' included.
const HANDSHAKE_TIME: Duration = Duration::from_secs(10);
/// How often the files are looked at.
const LOOK: Duration = Duration::from_secs(10);
/// The longest file: a guard against a path that points at something else.
const LONGEST: u64 = 1 << 20;

pub(super) struct Tls {
    config: TlsConfig,
    acceptor: RwLock<TlsAcceptor>,
    handshakes: Semaphore,
}

impl Tls {
    /// # Errors
    /// `TLS_CERTIFICATE`
    pub(super) fn open(config: &TlsConfig) -> Result<Self, Failure> {
        let acceptor = Files::read(config).and_then(|files| files.acceptor(config)).map_err(|reason| {
            Failure::failed("TLS_CERTIFICATE", config.certificate.display().to_string(), reason, REMEDY)
        })?;
        let config = config.clone();
        Ok(Self { config, acceptor: RwLock::new(acceptor), handshakes: Semaphore::new(HANDSHAKES) })
    }

    /// # Errors
    /// Whatever the client has done instead.
    pub(super) async fn handshake(&self, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        let handshake = async {
            let _permit = self.handshakes.acquire().await.expect("the semaphore is never closed");
            let acceptor = self.acceptor.read().unwrap_or_else(PoisonError::into_inner).clone();
            acceptor.accept(stream).await
        };
        timeout(HANDSHAKE_TIME, handshake).await?
    }

    /// Follows the files until it is stopped.
    pub(super) async fn follow(&self, stop: CancellationToken) {
        stop.run_until_cancelled(self.look_again()).await;
    }

    async fn look_again(&self) {
        // What was read last, whether it was of any use or not: nobody is told twice.
        let mut seen = None;
        loop {
            let config = self.config.clone();
            let read = tokio::task::spawn_blocking(move || Files::read(&config)).await;
            let read = read.unwrap_or_else(|error| Err(error.to_string()));
            let digest = read.as_ref().map(Files::digest).map_err(String::clone);
            if seen.as_ref() != Some(&digest) {
                match read.and_then(|files| files.acceptor(&self.config)) {
                    Ok(acceptor) => {
                        *self.acceptor.write().unwrap_or_else(PoisonError::into_inner) = acceptor;
                        info!(certificate = %self.config.certificate.display(), "certificate in use");
                    }
                    Err(reason) => error!(
                        code = "TLS_CERTIFICATE",
                        subject = %self.config.certificate.display(),
                        reason,
                        remedy = REMEDY,
                        "the certificate before stays in use"
                    ),
                }
                seen = Some(digest);
            }
            sleep(LOOK).await;
        }
    }
}

const REMEDY: &str =
    "write the certificate with its chain, and its own key, in PEM form, readable by the service's user";

/// As they stand.
struct Files {
    certificate: Vec<u8>,
    key: Zeroizing<Vec<u8>>,
}

impl Files {
    fn read(config: &TlsConfig) -> Result<Self, String> {
        Ok(Self { certificate: read(&config.certificate)?, key: read(&config.key)?.into() })
    }

    fn digest(&self) -> String {
        sha256_of_parts(&[&self.certificate, &*self.key])
    }

    /// What is wrong with a key is never told by what is in it.
    fn acceptor(&self, config: &TlsConfig) -> Result<TlsAcceptor, String> {
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&self.certificate).collect();
        let chain = chain.ok().filter(|chain| !chain.is_empty());
        let chain = chain.ok_or_else(|| format!("{} holds no certificate", config.certificate.display()))?;
        let key = PrivateKeyDer::from_pem_slice(&self.key);
        let key = key.map_err(|_| format!("{} holds no private key", config.key.display()))?;
        let server = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?
            .with_no_client_auth()
            .with_single_cert(chain, key);
        let mut server = server.map_err(|error| format!("certificate and key do not go together: {error}"))?;
        server.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(TlsAcceptor::from(Arc::new(server)))
    }
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(LONGEST + 1).read_to_end(&mut bytes));
    read.map_err(|error| format!("{} cannot be read: {error}", path.display()))?;
    match bytes.len() as u64 > LONGEST {
        true => Err(format!("{} is longer than a certificate or a key can be", path.display())),
        false => Ok(bytes),
    }
}
