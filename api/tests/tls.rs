//! TLS of the service's own: who connects, who does not, and how a certificate is renewed.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, KeyUsagePurpose};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::ServerName;
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::http::Service;
use crate::support::{Installation, lake};

/// More than a start takes, or the service takes to look at its files again.
const DEADLINE: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(100);

const CONFIG: &str = r#"
    [api]
    allow_anonymous = true
    [api.tls]
    certificate = "tls.crt"
    key = "tls.key"
"#;

/// An authority that signs what the service shows.
struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("an authority"))
    }

    /// A new certificate for this machine, and its key, where the configuration has them.
    fn certify(&self, folder: &Path) {
        let key = KeyPair::generate().expect("a key");
        let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
        let certificate = CertificateParams::new(names).expect("names").signed_by(&key, &self.0).expect("signed");
        fs::write(folder.join("tls.crt"), certificate.pem()).expect("written");
        fs::write(folder.join("tls.key"), key.serialize_pem()).expect("written");
    }

    fn client(&self, version: &'static SupportedProtocolVersion) -> TlsConnector {
        let mut roots = RootCertStore::empty();
        roots.add(self.0.der().clone()).expect("a root");
        let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_protocol_versions(&[version])
            .expect("a version")
            .with_root_certificates(roots)
            .with_no_client_auth();
        TlsConnector::from(Arc::new(config))
    }
}

fn address(uri: &str) -> &str {
    uri.trim_start_matches("http://")
}

/// The head of the answer to a probe, and the certificate that was shown.
async fn probe(client: &TlsConnector, name: &'static str, address: &str) -> io::Result<(String, Vec<u8>)> {
    let stream = TcpStream::connect(address).await?;
    let mut stream = client.connect(ServerName::try_from(name).expect("a name"), stream).await?;
    let shown = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first()).expect("a certificate").to_vec();
    stream.write_all(format!("GET /livez HTTP/1.1\r\nhost: {name}\r\n\r\n").as_bytes()).await?;
    let mut head = Vec::new();
    while !head.windows(4).any(|window| window == b"\r\n\r\n") {
        if stream.read_buf(&mut head).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok((String::from_utf8(head).expect("text"), shown))
}

async fn installation(authority: &Authority, config: &str) -> Installation {
    let installation = lake::installation_with(config, &[]).await;
    authority.certify(installation.path());
    installation
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_knows_the_authority_is_answered_and_nobody_else() {
    let authority = Authority::new();
    let installation = installation(&authority, CONFIG).await;
    let service = Service::start(&installation).await;
    let address = address(&service.uri);
    for version in [&TLS12, &TLS13] {
        for name in ["localhost", "127.0.0.1"] {
            let (head, _) = probe(&authority.client(version), name, address).await.expect(name);
            assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
        }
    }
    let elsewhere = probe(&authority.client(&TLS13), "lake.internal", address).await;
    assert!(elsewhere.is_err_and(|error| error.kind() == io::ErrorKind::InvalidData), "another name");
    let stranger = probe(&Authority::new().client(&TLS13), "localhost", address).await;
    assert!(stranger.is_err_and(|error| error.kind() == io::ErrorKind::InvalidData), "another authority");
    // Plain HTTP gets no answer in HTTP, and who says nothing gets none at all.
    for said in ["GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n", ""] {
        let mut stream = TcpStream::connect(address).await.expect("a connection");
        stream.write_all(said.as_bytes()).await.expect("sent");
        let mut told = Vec::new();
        // The service may cut the connection off while there is something unread.
        let ended = tokio::time::timeout(DEADLINE, stream.read_to_end(&mut told)).await;
        assert!(ended.is_ok(), "the connection stays open");
        assert!(!told.windows(4).any(|window| window == b"HTTP"), "{told:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_is_renewed_without_a_restart() {
    let authority = Authority::new();
    let installation = installation(&authority, CONFIG).await;
    let service = Service::start(&installation).await;
    let (address, client) = (address(&service.uri), authority.client(&TLS13));
    let shown = async || probe(&client, "localhost", address).await.expect("an answer").1;
    let first = shown().await;
    authority.certify(installation.path());
    let begun = Instant::now();
    while shown().await == first {
        assert!(begun.elapsed() < DEADLINE, "the old certificate is still shown");
        tokio::time::sleep(POLL).await;
    }
    let second = shown().await;
    // Half a renewal changes nothing: neither a key that does not fit, nor one that is not there.
    let logged = async |reason: &str| {
        let begun = Instant::now();
        while !installation.log().contains(reason) {
            assert!(begun.elapsed() < DEADLINE, "{reason}: {}", installation.log());
            tokio::time::sleep(POLL).await;
        }
    };
    let key = installation.path().join("tls.key");
    let other = KeyPair::generate().expect("a key").serialize_pem();
    fs::write(&key, other).expect("written");
    logged("do not go together").await;
    assert!(shown().await == second, "a certificate without its key is shown");
    fs::remove_file(&key).expect("removed");
    logged("tls.key cannot be read").await;
    assert!(shown().await == second, "nothing is shown any more");
    assert!(!installation.log().contains("PRIVATE KEY"), "{}", installation.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_have_tls_where_they_are_told_to() {
    let authority = Authority::new();
    let installation = installation(&authority, &format!("{CONFIG}metrics = true\n")).await;
    let service = Service::spawn(&installation);
    let client = authority.client(&TLS13);
    let begun = Instant::now();
    for uri in [&service.uri, &service.metrics] {
        while probe(&client, "localhost", address(uri)).await.is_err() {
            assert!(begun.elapsed() < DEADLINE, "{uri} does not answer");
            tokio::time::sleep(POLL).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_are_no_certificate_stop_the_start() {
    let authority = Authority::new();
    let installation = installation(&authority, CONFIG).await;
    let (certificate, key) = (installation.path().join("tls.crt"), installation.path().join("tls.key"));
    let good = [&certificate, &key].map(|path| fs::read(path).expect("a file"));
    let other = KeyPair::generate().expect("a key").serialize_pem().into_bytes();
    let huge = vec![b'x'; (1 << 20) + 1];
    for (path, bytes, part) in [
        (&key, other.as_slice(), "do not go together"),
        (&key, b"", "tls.key"),
        (&key, &good[0], "tls.key"),
        (&certificate, b"", "tls.crt"),
        (&certificate, &good[1], "tls.crt"),
        (&certificate, &huge, "tls.crt"),
    ] {
        fs::write(path, bytes).expect("written");
        let answer = installation.json(&["serve"]);
        assert_eq!(answer.error(), (1, "TLS_CERTIFICATE".to_owned()), "{part}: {answer:?}");
        assert!(answer.text().contains(part) && !answer.text().contains("PRIVATE"), "{answer:?}");
        for (path, bytes) in [&certificate, &key].into_iter().zip(&good) {
            fs::write(path, bytes).expect("written");
        }
    }
    fs::remove_file(&key).expect("removed");
    assert_eq!(installation.json(&["serve"]).error(), (1, "TLS_CERTIFICATE".to_owned()));
}
