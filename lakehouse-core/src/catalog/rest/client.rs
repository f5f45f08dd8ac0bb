//! Requests to a REST catalog and what their answers mean. Bodies that are no Iceberg error (a proxy's page, bare XML)
//! are never shown, only described.

use std::collections::HashMap;
use std::time::Duration;

use iceberg_catalog_rest::ErrorModel;
use reqwest::header::{CONTENT_TYPE, ETAG, HeaderMap, IF_NONE_MATCH};
use reqwest::{Method, Request, StatusCode, Url};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::RestConfig;
use super::auth::Auth;
use crate::aws::pause;
use crate::error::Problem;

const CONNECT_DEADLINE: Duration = Duration::from_secs(10);
/// One request with its answer.
const DEADLINE: Duration = Duration::from_secs(60);
/// Attempts of a request that only reads.
const ATTEMPTS: u32 = 5;

pub(super) struct Client {
    http: reqwest::Client,
    auth: Auth,
    /// `<uri>/v1`, or with the prefix that the catalog has asked for.
    base: Url,
}

/// An answer to a request that reads.
pub(super) enum Answer {
    Body { subject: String, headers: HeaderMap, bytes: Vec<u8> },
    Unchanged,
    NotFound,
}

/// Why a request that changes something has no answer.
pub(super) enum Refusal {
    /// 409: what was asserted is not so.
    Conflict,
    /// A plain no, before any effect.
    Refused(Problem),
    /// Everything else: it may have happened, or may happen yet (protocol B6).
    Unknown(String),
}

#[derive(serde::Deserialize)]
struct Config {
    #[serde(default)]
    defaults: HashMap<String, String>,
    #[serde(default)]
    overrides: HashMap<String, String>,
}

#[derive(serde::Deserialize)]
struct ErrorBody {
    error: ErrorModel,
}

impl Client {
    pub(super) async fn open(config: &RestConfig) -> Result<Self, Problem> {
        // Whoever is first chooses the provider of the whole process; there is but one.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let http = reqwest::Client::builder().connect_timeout(CONNECT_DEADLINE).timeout(DEADLINE).build();
        let http = http.map_err(|error| refused(&config.uri, format!("no client can be made: {error}")))?;
        let base = base(&config.uri, None)?;
        let mut client = Self { auth: Auth::new(config, http.clone(), &base).await?, http, base };
        let warehouse = config.warehouse.iter().map(|name| ("warehouse", name.clone())).collect::<Vec<_>>();
        let asked: Config = client.get(&["config"], &warehouse).await?.body("the catalog's configuration")?;
        let setting = |key: &str| asked.overrides.get(key).or_else(|| asked.defaults.get(key));
        let uri = asked.overrides.get("uri").unwrap_or(&config.uri);
        client.base = self::base(uri, setting("prefix").map(String::as_str))?;
        Ok(client)
    }

    pub(super) async fn get(&self, path: &[&str], query: &[(&str, String)]) -> Result<Answer, Problem> {
        self.get_unless(path, query, None).await
    }

    /// Reads, unless the catalog still has what `tag` names. Repeated while time may heal it.
    pub(super) async fn get_unless<V: AsRef<str>>(
        &self,
        path: &[&str],
        query: &[(&str, V)],
        tag: Option<&str>,
    ) -> Result<Answer, Problem> {
        let url = self.url(path, query);
        let subject = path.join("/");
        let mut attempt = 1;
        loop {
            let mut request = Request::new(Method::GET, url.clone());
            if let Some(tag) = tag.and_then(|tag| tag.parse().ok()) {
                request.headers_mut().insert(IF_NONE_MATCH, tag);
            }
            let (why, settled) = match self.send(request).await {
                Ok((StatusCode::OK, headers, bytes)) => return Ok(Answer::Body { subject, headers, bytes }),
                Ok((StatusCode::NOT_MODIFIED, ..)) => return Ok(Answer::Unchanged),
                Ok((StatusCode::NOT_FOUND, _, bytes)) if is_iceberg_error(&bytes) => {
                    return Ok(Answer::NotFound);
                }
                Ok((status, headers, bytes)) => (describe(status, &headers, &bytes), plain_no(status)),
                Err(error) => (error, None),
            };
            if let Some(code) = settled {
                return Err(no(code, &subject, &why));
            }
            if attempt >= ATTEMPTS {
                return Err(Problem::retry("CATALOG", subject, why));
            }
            tokio::time::sleep(pause(attempt)).await;
            attempt += 1;
        }
    }

    /// Changes something: sent once, whatever comes of it (protocol B5).
    pub(super) async fn post_once(&self, path: &[&str], body: &impl Serialize) -> Result<Answer, Refusal> {
        let subject = path.join("/");
        let text = serde_json::to_vec(body).map_err(|error| Refusal::Refused(refused(&subject, error.to_string())))?;
        let mut request = Request::new(Method::POST, self.url::<&str>(path, &[]));
        request.headers_mut().insert(CONTENT_TYPE, reqwest::header::HeaderValue::from_static("application/json"));
        *request.body_mut() = Some(text.into());
        match self.send(request).await {
            Ok((status, headers, bytes)) if status.is_success() => Ok(Answer::Body { subject, headers, bytes }),
            Ok((StatusCode::CONFLICT, ..)) => Err(Refusal::Conflict),
            Ok((status, headers, bytes)) => {
                let why = describe(status, &headers, &bytes);
                Err(match plain_no(status) {
                    Some(code) => Refusal::Refused(no(code, &subject, &why)),
                    None => Refusal::Unknown(why),
                })
            }
            Err(error) => Err(Refusal::Unknown(error)),
        }
    }

    async fn send(&self, mut request: Request) -> Result<(StatusCode, HeaderMap, Vec<u8>), String> {
        self.auth.sign(&mut request).await.map_err(|problem| problem.message)?;
        let text = |error: reqwest::Error| {
            let error = error.without_url();
            let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
            format!("no answer: {error}{cause}")
        };
        let answer = self.http.execute(request).await.map_err(text)?;
        let (status, headers) = (answer.status(), answer.headers().clone());
        if matches!(status.as_u16(), 401 | 419) {
            self.auth.forget().await;
        }
        let bytes = answer.bytes().await.map_err(text)?;
        Ok((status, headers, bytes.into()))
    }

    fn url<V: AsRef<str>>(&self, path: &[&str], query: &[(&str, V)]) -> Url {
        let mut url = self.base.clone();
        url.path_segments_mut().expect("checked when the client was made").extend(path);
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query.iter().map(|(key, value)| (key, value.as_ref())));
        }
        url
    }
}

impl Answer {
    pub(super) fn if_found(self) -> Option<Self> {
        match self {
            Self::NotFound => None,
            other => Some(other),
        }
    }

    /// What the catalog calls this state of the table; empty if it does not say.
    pub(super) fn tag(&self) -> String {
        match self {
            Self::Body { headers, .. } => {
                headers.get(ETAG).and_then(|tag| tag.to_str().ok()).unwrap_or_default().to_owned()
            }
            _ => String::new(),
        }
    }

    /// Bytes of the answer: near enough the length of the metadata in it.
    pub(super) fn length(&self) -> u64 {
        match self {
            Self::Body { bytes, .. } => bytes.len() as u64,
            _ => 0,
        }
    }

    pub(super) fn body<T: DeserializeOwned>(&self, what: &str) -> Result<T, Problem> {
        match self {
            Self::Body { subject, bytes, .. } => serde_json::from_slice(bytes).map_err(|error| {
                Problem::retry("CATALOG", subject.as_str(), format!("{what} cannot be read from the answer: {error}"))
            }),
            Self::Unchanged | Self::NotFound => Err(Problem::halt(
                "CATALOG_MISSING",
                what,
                "the catalog does not have it",
                "correct `uri` in [catalog]",
            )),
        }
    }
}

/// `<uri>/v1[/<prefix>]`; the prefix comes ready for a URL.
fn base(uri: &str, prefix: Option<&str>) -> Result<Url, Problem> {
    let prefix = prefix.filter(|prefix| !prefix.is_empty()).map(|prefix| format!("/{prefix}")).unwrap_or_default();
    let url = Url::parse(&format!("{}/v1{prefix}", uri.trim_end_matches('/')));
    let url = url.map_err(|error| refused(uri, format!("not a URL: {error}")))?;
    match url.scheme() {
        "http" | "https" => Ok(url),
        _ => Err(refused(uri, "not an http or https URL".to_owned())),
    }
}

/// The code of an answer that says no for good, before any effect.
fn plain_no(status: StatusCode) -> Option<&'static str> {
    match status.as_u16() {
        403 => Some("ACCESS_DENIED"),
        404 => Some("CATALOG_MISSING"),
        400 | 405 | 406 | 422 => Some("CATALOG_REFUSED"),
        _ => None,
    }
}

fn no(code: &'static str, subject: &str, why: &str) -> Problem {
    let remedy = match code {
        "ACCESS_DENIED" => "grant the service's identity in the catalog what its duty needs",
        "CATALOG_MISSING" => "correct `uri` and `warehouse` in [catalog]",
        _ => "correct what the catalog names",
    };
    Problem::halt(code, subject, why, remedy)
}

fn refused(subject: &str, message: String) -> Problem {
    Problem::halt("CATALOG_REFUSED", subject, message, "correct `uri` in [catalog]")
}

fn is_iceberg_error(bytes: &[u8]) -> bool {
    serde_json::from_slice::<ErrorBody>(bytes).is_ok()
}

/// An error answer in a line.
fn describe(status: StatusCode, headers: &HeaderMap, bytes: &[u8]) -> String {
    match serde_json::from_slice::<ErrorBody>(bytes) {
        Ok(ErrorBody { error }) => {
            format!("{} {}: {}", status.as_u16(), error.r#type, crate::aws::shorten(&error.message))
        }
        Err(_) => {
            let kind = headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or("no content type");
            format!("{} with {} bytes of {kind}, not an Iceberg error", status.as_u16(), bytes.len())
        }
    }
}
