//! TLS to the server. Owns trust (roots, what of a certificate is verified), the sorting of handshake errors and the
//! channel binding hash. Does not own when TLS is asked for: that is `stream.rs`.

use super::error::ConnectError;
use super::socket::Socket;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{WebPkiSupportedAlgorithms, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, OtherError, RootCertStore, SignatureScheme};
use sha2::{Digest as _, Sha224, Sha256, Sha384, Sha512};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use x509_cert::der::asn1::ObjectIdentifier;
use x509_cert::der::{Decode as _, Encode as _, Reader as _, SliceReader, TagNumber, asn1::ContextSpecific};
use x509_cert::spki::{AlgorithmIdentifierOwned, AlgorithmIdentifierRef};

/// What of the server's certificate is verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Match {
    Chain,
    ChainAndName,
}

/// Does the handshake on a connection whose server has agreed to TLS. Also returns the `tls-server-end-point` binding.
pub(super) async fn handshake(
    tcp: TcpStream,
    host: &str,
    root: Option<&Path>,
    certificate: Match,
) -> Result<(TlsStream<Socket>, Option<Vec<u8>>), ConnectError> {
    let name = ServerName::try_from(host.to_owned())
        .map_err(|_| ConnectError::Settings(format!("{host} is not a host name or address")))?;
    let config = client_config(load_roots(root.map(Path::to_path_buf)).await?, certificate)?;
    let stream = TlsConnector::from(Arc::new(config))
        .connect(name, Socket::Prompt(tcp))
        .await
        .map_err(|error| sort_error(error, host))?;
    let binding = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first()).and_then(end_point_binding);
    Ok((stream, binding))
}

async fn load_roots(file: Option<PathBuf>) -> Result<RootCertStore, ConnectError> {
    tokio::task::spawn_blocking(move || match file {
        Some(path) => roots_of_file(&path),
        None => roots_of_system(),
    })
    .await
    .map_err(|error| ConnectError::TlsRoots(error.to_string()))?
}

fn roots_of_file(path: &Path) -> Result<RootCertStore, ConnectError> {
    let pem = std::fs::read(path).map_err(|error| ConnectError::TlsRoots(format!("{}: {error}", path.display())))?;
    let certificates = CertificateDer::pem_slice_iter(&pem).filter_map(Result::ok).collect::<Vec<_>>();
    store(certificates, || format!("{} holds no certificate in PEM form", path.display()))
}

fn roots_of_system() -> Result<RootCertStore, ConnectError> {
    store(rustls_native_certs::load_native_certs().certs, || "the system store is empty".to_owned())
}

fn store(
    certificates: Vec<CertificateDer<'static>>,
    empty: impl FnOnce() -> String,
) -> Result<RootCertStore, ConnectError> {
    let mut roots = RootCertStore::empty();
    let (added, _ignored) = roots.add_parsable_certificates(certificates);
    if added == 0 { Err(ConnectError::TlsRoots(empty())) } else { Ok(roots) }
}

fn client_config(roots: RootCertStore, certificate: Match) -> Result<ClientConfig, ConnectError> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let algorithms = provider.signature_verification_algorithms;
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| ConnectError::Tls(error.to_string()))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Verifier { roots, algorithms, certificate }))
        .with_no_client_auth();
    Ok(config)
}

/// The stock verification of rustls, with two differences: the name is optional (`verify-ca`), and a certificate that
/// signs itself is told from one by an unknown authority (R2).
#[derive(Debug)]
struct Verifier {
    roots: RootCertStore,
    algorithms: WebPkiSupportedAlgorithms,
    certificate: Match,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let parsed = ParsedCertificate::try_from(end_entity)?;
        verify_server_cert_signed_by_trust_anchor(&parsed, &self.roots, intermediates, now, self.algorithms.all)
            .map_err(|error| name_self_signed(error, end_entity))?;
        if self.certificate == Match::ChainAndName {
            verify_server_name(&parsed, server_name)?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

#[derive(Debug, thiserror::Error)]
#[error("the certificate is signed by itself")]
struct SelfSigned;

fn name_self_signed(error: rustls::Error, certificate: &CertificateDer<'_>) -> rustls::Error {
    // `Other` covers a certificate that claims to be an authority, which self-made ones do by default.
    let suspect = matches!(
        &error,
        rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::Other(_))
    );
    if suspect && is_self_signed(certificate) {
        return CertificateError::Other(OtherError(Arc::new(SelfSigned))).into();
    }
    error
}

fn is_self_signed(certificate: &CertificateDer<'_>) -> bool {
    x509_cert::Certificate::from_der(certificate)
        .is_ok_and(|parsed| parsed.tbs_certificate.issuer == parsed.tbs_certificate.subject)
}

fn sort_error(error: io::Error, host: &str) -> ConnectError {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(rustls::Error::InvalidCertificate(reason)) => sort_certificate_error(reason, host),
        Some(other) => ConnectError::Tls(other.to_string()),
        None => ConnectError::Io(error),
    }
}

fn sort_certificate_error(reason: &CertificateError, host: &str) -> ConnectError {
    use CertificateError as Reason;
    match reason {
        Reason::Expired | Reason::ExpiredContext { .. } | Reason::NotValidYet | Reason::NotValidYetContext { .. } => {
            ConnectError::TlsExpired
        }
        Reason::NotValidForName | Reason::NotValidForNameContext { .. } => {
            ConnectError::TlsHostName { host: host.to_owned() }
        }
        Reason::UnknownIssuer => ConnectError::TlsUntrusted("unknown authority".to_owned()),
        Reason::Other(OtherError(cause)) if cause.is::<SelfSigned>() => ConnectError::TlsSelfSigned,
        other => ConnectError::TlsUntrusted(other.to_string()),
    }
}

/// The hash of the server's certificate by the hash function of its signature (RFC 5929, section 4.1). `None` where the
/// signature has no such function (Ed25519) or the certificate cannot be read: the login then goes without binding.
fn end_point_binding(certificate: &CertificateDer<'_>) -> Option<Vec<u8>> {
    let parsed = x509_cert::Certificate::from_der(certificate).ok()?;
    Some(match signature_hash(&parsed.signature_algorithm)? {
        Hash::Sha224 => Sha224::digest(certificate).to_vec(),
        Hash::Sha256 => Sha256::digest(certificate).to_vec(),
        Hash::Sha384 => Sha384::digest(certificate).to_vec(),
        Hash::Sha512 => Sha512::digest(certificate).to_vec(),
    })
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hash {
    Sha224,
    Sha256,
    Sha384,
    Sha512,
}

fn signature_hash(algorithm: &AlgorithmIdentifierOwned) -> Option<Hash> {
    match algorithm.oid.to_string().as_str() {
        // RSA with MD5, RSA with SHA-1, ECDSA with SHA-1: the RFC replaces these two functions by SHA-256.
        "1.2.840.113549.1.1.4" | "1.2.840.113549.1.1.5" | "1.2.840.10045.4.1" => Some(Hash::Sha256),
        "1.2.840.113549.1.1.14" | "1.2.840.10045.4.3.1" => Some(Hash::Sha224),
        "1.2.840.113549.1.1.11" | "1.2.840.10045.4.3.2" => Some(Hash::Sha256),
        "1.2.840.113549.1.1.12" | "1.2.840.10045.4.3.3" => Some(Hash::Sha384),
        "1.2.840.113549.1.1.13" | "1.2.840.10045.4.3.4" => Some(Hash::Sha512),
        "1.2.840.113549.1.1.10" => pss_hash(algorithm),
        _ => None,
    }
}

/// The hash function named in the parameters of an RSA-PSS signature; SHA-1, the default, counts as SHA-256.
fn pss_hash(algorithm: &AlgorithmIdentifierOwned) -> Option<Hash> {
    let parameters = algorithm.parameters.as_ref()?.to_der().ok()?;
    let mut reader = SliceReader::new(&parameters).ok()?;
    let hash = reader
        .sequence(|fields| {
            let hash = ContextSpecific::<AlgorithmIdentifierRef<'_>>::decode_explicit(fields, TagNumber::N0)?;
            while !fields.is_finished() {
                fields.tlv_bytes()?;
            }
            Ok(hash.map(|hash| hash.value.oid))
        })
        .ok()?;
    hash.map_or(Some(Hash::Sha256), |oid| hash_by_oid(&oid))
}

fn hash_by_oid(oid: &ObjectIdentifier) -> Option<Hash> {
    match oid.to_string().as_str() {
        "1.3.14.3.2.26" | "2.16.840.1.101.3.4.2.1" => Some(Hash::Sha256),
        "2.16.840.1.101.3.4.2.2" => Some(Hash::Sha384),
        "2.16.840.1.101.3.4.2.3" => Some(Hash::Sha512),
        "2.16.840.1.101.3.4.2.4" => Some(Hash::Sha224),
        _ => None,
    }
}
