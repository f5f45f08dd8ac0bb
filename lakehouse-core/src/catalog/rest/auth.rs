//! Who we are to a REST catalog: nobody, a bearer token, a token by OAuth2's client credentials, or AWS's signatures.

use std::time::{Duration, Instant, SystemTime};

use aws_credential_types::provider::{ProvideCredentials, SharedCredentialsProvider};
use aws_sigv4::http_request::{SignableBody, SignableRequest, SigningSettings, sign};
use aws_sigv4::sign::v4;
use reqwest::header::{AUTHORIZATION, HeaderName, HeaderValue};
use reqwest::{Request, Url};
use tokio::sync::Mutex;

use super::RestConfig;
use crate::aws;
use crate::error::Problem;
use crate::secret::Secret;

/// A token is renewed this long before it ends.
const MARGIN: Duration = Duration::from_secs(60);
/// How long a token lives whose issuer does not say.
const DEFAULT_LIFE: Duration = Duration::from_secs(3_600);

pub(super) enum Auth {
    None,
    Bearer(Secret),
    ClientCredentials(Box<ClientCredentials>),
    SigV4(Box<SigV4>),
}

/// Client credentials, exchanged for a token when one is needed.
pub(super) struct ClientCredentials {
    http: reqwest::Client,
    endpoint: Url,
    id: String,
    secret: Secret,
    token: Mutex<Option<(Secret, Instant)>>,
}

pub(super) struct SigV4 {
    credentials: SharedCredentialsProvider,
    region: String,
    service: &'static str,
}

#[derive(serde::Deserialize)]
struct Token {
    access_token: String,
    expires_in: Option<u64>,
}

impl Auth {
    pub(super) async fn new(config: &RestConfig, http: reqwest::Client, base: &Url) -> Result<Self, Problem> {
        if config.sigv4 {
            return Ok(Self::SigV4(Box::new(SigV4::new(config, base).await?)));
        }
        let Some(credential) = &config.credential else { return Ok(Self::None) };
        let Some((id, secret)) = credential.expose().split_once(':') else {
            return Ok(Self::Bearer(credential.clone()));
        };
        let mut endpoint = base.clone();
        endpoint.path_segments_mut().expect("an http URL has a path").extend(["oauth", "tokens"]);
        let (id, secret) = (id.to_owned(), Secret::new(secret.to_owned()));
        Ok(Self::ClientCredentials(Box::new(ClientCredentials { http, endpoint, id, secret, token: Mutex::default() })))
    }

    pub(super) async fn sign(&self, request: &mut Request) -> Result<(), Problem> {
        match self {
            Self::None => Ok(()),
            Self::Bearer(token) => bear(request, token),
            Self::ClientCredentials(issuer) => bear(request, &issuer.token().await?),
            Self::SigV4(keys) => keys.sign(request).await,
        }
    }

    /// The catalog does not take our token any more; the next request gets a new one.
    pub(super) async fn forget(&self) {
        if let Self::ClientCredentials(issuer) = self {
            *issuer.token.lock().await = None;
        }
    }
}

fn bear(request: &mut Request, token: &Secret) -> Result<(), Problem> {
    let value = HeaderValue::from_str(&format!("Bearer {}", token.expose()));
    let mut value = value.map_err(|_| denied("the token has characters that no header takes"))?;
    value.set_sensitive(true);
    request.headers_mut().insert(AUTHORIZATION, value);
    Ok(())
}

impl ClientCredentials {
    async fn token(&self) -> Result<Secret, Problem> {
        let mut held = self.token.lock().await;
        if let Some((token, until)) = held.as_ref()
            && Instant::now() < *until
        {
            return Ok(token.clone());
        }
        let form = [
            ("grant_type", "client_credentials"),
            ("client_id", &self.id),
            ("client_secret", self.secret.expose()),
            ("scope", "catalog"),
        ];
        let lost = |error: reqwest::Error| {
            Problem::retry("CREDENTIALS", self.endpoint.as_str(), format!("no token: {}", error.without_url()))
        };
        let answer = self.http.post(self.endpoint.clone()).form(&form).send().await.map_err(lost)?;
        if answer.status().is_client_error() {
            return Err(denied(&format!("the token endpoint answers {}", answer.status().as_u16())));
        }
        let token: Token = answer.error_for_status().map_err(lost)?.json().await.map_err(lost)?;
        let life = token.expires_in.map_or(DEFAULT_LIFE, Duration::from_secs);
        let secret = Secret::new(token.access_token);
        *held = Some((secret.clone(), Instant::now() + life.saturating_sub(MARGIN)));
        Ok(secret)
    }
}

impl SigV4 {
    async fn new(config: &RestConfig, base: &Url) -> Result<Self, Problem> {
        let shared = aws::load(&config.aws).await;
        let missing = |what: &str| {
            let message = format!("requests are to be signed, and there is no {what}");
            Problem::halt(
                "CREDENTIALS",
                base.as_str(),
                message,
                "set `region` in [catalog], and credentials as for any AWS program",
            )
        };
        let region = shared.region().ok_or_else(|| missing("region"))?.to_string();
        let credentials = shared.credentials_provider().ok_or_else(|| missing("credential"))?;
        let service = match base.host_str().is_some_and(|host| host.starts_with("glue.")) {
            true => "glue",
            false => "s3tables",
        };
        Ok(Self { credentials, region, service })
    }

    async fn sign(&self, request: &mut Request) -> Result<(), Problem> {
        let failed = |why: String| Problem::retry("CREDENTIALS", request_subject(self), why);
        let credentials = self.credentials.provide_credentials().await;
        let identity = credentials.map_err(|error| failed(format!("no credentials: {error}")))?.into();
        let parameters = v4::SigningParams::builder()
            .identity(&identity)
            .region(&self.region)
            .name(self.service)
            .time(SystemTime::now())
            .settings(SigningSettings::default())
            .build()
            .map_err(|error| failed(error.to_string()))?
            .into();
        let body = request.body().and_then(|body| body.as_bytes()).unwrap_or_default();
        let headers = request.headers().iter().filter_map(|(name, value)| Some((name.as_str(), value.to_str().ok()?)));
        let signable =
            SignableRequest::new(request.method().as_str(), request.url().as_str(), headers, SignableBody::Bytes(body));
        let signed = signable.and_then(|signable| sign(signable, &parameters));
        let (instructions, _) = signed.map_err(|error| failed(error.to_string()))?.into_parts();
        for (name, value) in instructions.headers() {
            let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::from_str(value)) else { continue };
            request.headers_mut().insert(name, value);
        }
        Ok(())
    }
}

fn request_subject(keys: &SigV4) -> String {
    format!("signature for {} in {}", keys.service, keys.region)
}

fn denied(message: &str) -> Problem {
    Problem::halt(
        "ACCESS_DENIED",
        "[catalog] credential",
        message,
        "correct the credential that the configuration names",
    )
}
