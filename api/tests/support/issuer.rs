//! An OIDC issuer on loopback: keys that are made for the test, a server that publishes them or does worse, and tokens as
//! good or as bad as they are asked for.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey};
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_RSA_SHA256, SigningKey};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

pub(crate) const ISSUER: &str = "https://id.example/realms/lake";
pub(crate) const AUDIENCE: &str = "lakehouse";

pub(crate) fn base64(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// Seconds since 1970.
pub(crate) fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock behind 1970");
    since.as_secs().try_into().expect("a clock of this age")
}

/// Claims that nothing is wrong with, of somebody in these groups who has just logged in.
pub(crate) fn claims(groups: &[&str]) -> Value {
    let now = now();
    json!({"iss": ISSUER, "aud": AUDIENCE, "sub": "ann", "exp": now + 600, "iat": now, "auth_time": now,
           "groups": groups})
}

/// A key pair under the name by which the issuer publishes it.
pub(crate) struct Key {
    pub(crate) id: &'static str,
    pair: KeyPair,
    algorithm: Algorithm,
}

impl Key {
    /// For ES256.
    pub(crate) fn elliptic(id: &'static str) -> Self {
        let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).expect("a key");
        Self { id, pair, algorithm: Algorithm::ES256 }
    }

    /// For RS256.
    pub(crate) fn rsa(id: &'static str) -> Self {
        let pair = KeyPair::generate_for(&PKCS_RSA_SHA256).expect("a key");
        Self { id, pair, algorithm: Algorithm::RS256 }
    }

    /// What the issuer publishes.
    pub(crate) fn public(&self) -> Value {
        let jwk = match self.algorithm {
            Algorithm::ES256 => Jwk::from_encoding_key(&self.encoding(), self.algorithm),
            _ => Jwk::from_decoding_key(&DecodingKey::from_rsa_der(self.public_bytes()), Some(self.algorithm)),
        };
        let mut jwk = serde_json::to_value(jwk.expect("a key")).expect("JSON");
        jwk["kid"] = json!(self.id);
        jwk["use"] = json!("sig");
        jwk
    }

    pub(crate) fn public_bytes(&self) -> &[u8] {
        self.pair.public_key_raw()
    }

    pub(crate) fn header(&self) -> Value {
        json!({"alg": self.algorithm, "typ": "JWT", "kid": self.id})
    }

    pub(crate) fn token(&self, claims: &Value) -> String {
        self.signed(&self.header(), &claims.to_string())
    }

    /// Signed as this key signs, whatever the header says.
    pub(crate) fn signed(&self, header: &Value, payload: &str) -> String {
        self.signed_text(&base64(header.to_string()), &base64(payload))
    }

    /// The same of parts that are encoded already, or wrongly.
    pub(crate) fn signed_text(&self, header: &str, payload: &str) -> String {
        let message = format!("{header}.{payload}");
        let signature = match self.algorithm {
            Algorithm::ES256 => jsonwebtoken::crypto::sign(message.as_bytes(), &self.encoding(), self.algorithm),
            _ => Ok(base64(self.raw_signature(&message))),
        };
        format!("{message}.{}", signature.expect("a signature"))
    }

    /// As certificates have it: of an elliptic key in DER, which is not what a token has.
    pub(crate) fn raw_signature(&self, message: &str) -> Vec<u8> {
        self.pair.sign(message.as_bytes()).expect("a signature")
    }

    fn encoding(&self) -> EncodingKey {
        EncodingKey::from_ec_der(self.pair.serialized_der())
    }
}

/// What the issuer's server does when it is asked for keys.
#[derive(Clone)]
pub(crate) enum Reply {
    Document(String),
    Status(u16),
    Redirect(String),
    /// The connection stays open, and nothing comes.
    Silence,
}

impl Reply {
    pub(crate) fn keys(keys: &[Value]) -> Self {
        Self::Document(json!({"keys": keys}).to_string())
    }

    fn text(&self) -> Option<String> {
        let answer = |status: u16, header: &str, body: &str| {
            let length = body.len();
            format!("HTTP/1.1 {status} X\r\nconnection: close\r\ncontent-length: {length}\r\n{header}\r\n{body}")
        };
        match self {
            Self::Document(text) => Some(answer(200, "content-type: application/json\r\n", text)),
            Self::Status(status) => Some(answer(*status, "", "")),
            Self::Redirect(to) => Some(answer(302, &format!("location: {to}\r\n"), "")),
            Self::Silence => None,
        }
    }
}

/// The server; it ends with this.
pub(crate) struct Issuer {
    pub(crate) uri: String,
    state: Arc<Mutex<State>>,
    task: JoinHandle<()>,
}

struct State {
    reply: Reply,
    asked: usize,
}

impl Issuer {
    pub(crate) async fn start(reply: Reply) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let uri = format!("http://{}/keys", listener.local_addr().expect("an address"));
        let state = Arc::new(Mutex::new(State { reply, asked: 0 }));
        let task = tokio::spawn(serve(listener, Arc::clone(&state)));
        Self { uri, state, task }
    }

    pub(crate) fn replies(&self, reply: Reply) {
        self.state().reply = reply;
    }

    /// How often it was asked.
    pub(crate) fn asked(&self) -> usize {
        self.state().asked
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nobody has panicked")
    }

    /// The configuration of a service that takes its tokens: a grant for each role, and one for tables that are not there.
    pub(crate) fn config(&self) -> String {
        config(&self.uri)
    }
}

/// The same of an issuer at any address.
pub(crate) fn config(uri: &str) -> String {
    format!(
        r#"
        [api.auth.oidc]
        issuer = "{ISSUER}"
        audience = "{AUDIENCE}"
        jwks_uri = "{uri}"
        algorithms = ["ES256", "RS256"]
        [api.auth.oidc.grants]
        readers = {{ role = "reader" }}
        operators = {{ role = "operator" }}
        admins = {{ role = "admin" }}
        elsewhere = {{ role = "admin", tables = ["other.*"] }}
        "#
    )
}

impl Drop for Issuer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// One request after the other; who is told nothing is kept, so that the connection stays open.
async fn serve(listener: TcpListener, state: Arc<Mutex<State>>) {
    let mut silent = Vec::new();
    loop {
        let Ok((mut stream, _)) = listener.accept().await else { continue };
        let mut head = Vec::new();
        while !head.windows(4).any(|window| window == b"\r\n\r\n") {
            match stream.read_buf(&mut head).await {
                Ok(0) | Err(_) => break,
                Ok(_) => {}
            }
        }
        let reply = {
            let mut state = state.lock().expect("nobody has panicked");
            state.asked += 1;
            state.reply.text()
        };
        match reply {
            // Of a long document the client may want no more than the beginning.
            Some(text) => drop(stream.write_all(text.as_bytes()).await),
            None => silent.push(stream),
        }
    }
}
