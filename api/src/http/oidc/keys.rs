//! The issuer's keys: fetched from the configured address by one task of the server's, and by nobody else, so that callers
//! with made-up names of keys neither hurry it nor can break off a fetch by leaving.
//!
//! A set counts until the next one comes, and for [`KEPT`] while none does: an issuer that is away for a moment locks
//! nobody out, and a key that it has withdrawn ends all the same.

use std::error::Error;
use std::time::Duration;

use jsonwebtoken::{Algorithm, DecodingKey};
use reqwest::redirect::Policy;
use reqwest::{Client, StatusCode, Url};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep, timeout};
use tracing::{error, info};

use super::jwks::KeySet;
use crate::config::OidcConfig;
use crate::failure::Failure;

/// One fetch, from the connection to the last byte.
const FETCH_TIME: Duration = Duration::from_secs(5);
/// How long a caller waits for a fetch: as long as one takes, and a little more.
const WAIT: Duration = Duration::from_secs(6);
/// The longest document (S2).
const DOCUMENT_BYTES: usize = 1 << 20;
/// From one fetch to the next, whoever asks (S2).
const COOL_DOWN: Duration = Duration::from_secs(30);
/// The same, while nobody asks for a key that is not there.
const REFRESH: Duration = Duration::from_secs(600);
/// How long keys count of which the issuer says nothing any more.
const KEPT: Duration = Duration::from_secs(3_600);

pub(super) struct Keys {
    uri: Url,
    algorithms: Vec<Algorithm>,
    http: Client,
    known: watch::Sender<Known>,
    /// Somebody asks for a key that is not there.
    wanted: Notify,
}

#[derive(Debug, Default)]
struct Known {
    keys: KeySet,
    fetched: Option<Instant>,
    /// A fetch has just ended; there will be no other one for a while.
    is_resting: bool,
}

impl Known {
    fn find(&self, id: Option<&str>, algorithm: Algorithm) -> Result<DecodingKey, &'static str> {
        match self.fetched {
            Some(fetched) if fetched.elapsed() < KEPT => self.keys.find(id, algorithm).ok_or("unknown_key"),
            _ => Err("no_keys"),
        }
    }
}

impl Keys {
    pub(super) fn new(config: &OidcConfig) -> Result<Self, Failure> {
        // Whoever is first chooses the provider of the whole process; there is but one.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        // Keys come from the configured address and from nowhere that it points to.
        let http = Client::builder().timeout(FETCH_TIME).redirect(Policy::none());
        // A proxy of the environment has no way to this machine's own addresses.
        let http = if config.jwks_uri.scheme() == "http" { http.no_proxy() } else { http };
        let http = http.build().map_err(|error| {
            let message = format!("no client can be made: {error}");
            let remedy = "look at the system's store of root certificates";
            Failure::failed("JWKS_UNREADABLE", config.jwks_uri.as_str(), message, remedy)
        })?;
        let (uri, algorithms) = (config.jwks_uri.clone(), config.algorithms.clone());
        Ok(Self { uri, algorithms, http, known: watch::Sender::default(), wanted: Notify::new() })
    }

    /// Fetches again and again.
    pub(super) async fn keep(&self) {
        loop {
            let fetched = self.fetch().await;
            let is_fetched = fetched.is_ok();
            match &fetched {
                Ok(_) => info!(uri = %self.uri, "keys of the issuer are fetched"),
                Err(reason) => error!(
                    code = "JWKS_UNREADABLE", uri = %self.uri, reason,
                    remedy = "look at the issuer and the way to it; those that were fetched before count for an hour",
                    "keys of the issuer cannot be fetched"
                ),
            }
            // Whoever waits for the end of a fetch is told, however it has ended.
            self.known.send_modify(|known| {
                known.is_resting = true;
                if let Ok(keys) = fetched {
                    (known.keys, known.fetched) = (keys, Some(Instant::now()));
                }
            });
            sleep(COOL_DOWN).await;
            self.known.send_if_modified(|known| {
                known.is_resting = false;
                false
            });
            if is_fetched {
                // In time, or when a key is missing.
                let _ = timeout(REFRESH - COOL_DOWN, self.wanted.notified()).await;
            }
        }
    }

    /// The key that a token names. One that is not there is asked for, unless that has just been done.
    ///
    /// # Errors
    /// In one word.
    pub(super) async fn find(&self, id: Option<&str>, algorithm: Algorithm) -> Result<DecodingKey, &'static str> {
        let mut known = self.known.subscribe();
        {
            let known = known.borrow_and_update();
            let found = known.find(id, algorithm);
            if found.is_ok() || known.is_resting {
                return found;
            }
        }
        self.wanted.notify_one();
        let _ = timeout(WAIT, known.changed()).await;
        known.borrow().find(id, algorithm)
    }

    async fn fetch(&self) -> Result<KeySet, String> {
        let mut answer = self.http.get(self.uri.clone()).send().await.map_err(told)?;
        if answer.status() != StatusCode::OK {
            return Err(format!("the answer has the status {}", answer.status()));
        }
        let mut text = Vec::new();
        while let Some(part) = answer.chunk().await.map_err(told)? {
            if text.len() + part.len() > DOCUMENT_BYTES {
                return Err("the answer is longer than 1 MiB".to_owned());
            }
            text.extend_from_slice(&part);
        }
        KeySet::parse(&text, &self.algorithms).map_err(|reason| format!("the answer cannot be used: {reason}"))
    }
}

fn told(error: reqwest::Error) -> String {
    let error = error.without_url();
    let cause = error.source().map(|cause| format!(": {cause}")).unwrap_or_default();
    format!("no answer: {error}{cause}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_end_when_the_issuer_is_silent_for_an_hour() {
        let ago = |age| Known { fetched: Instant::now().checked_sub(age), ..Known::default() };
        for (known, reason) in [
            (Known::default(), "no_keys"),
            (ago(Duration::ZERO), "unknown_key"),
            (ago(KEPT - Duration::from_secs(60)), "unknown_key"),
            (ago(KEPT), "no_keys"),
        ] {
            assert_eq!(known.find(None, Algorithm::RS256).err(), Some(reason), "{known:?}");
        }
    }
}
