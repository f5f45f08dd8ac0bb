//! What all clients of Amazon's services share: region, endpoints, credentials from the usual chain.

use std::time::Duration;

use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_credential_types::provider::SharedCredentialsProvider;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_smithy_types::error::display::DisplayErrorContext;

/// Where the services are; what is not named comes from the environment, as with every AWS program.
#[derive(Clone, Debug, Default)]
pub struct AwsConfig {
    pub region: Option<String>,
    /// Of S3 Tables, where it is not Amazon's.
    pub endpoint: Option<String>,
    /// Of S3, where it is not Amazon's.
    pub s3_endpoint: Option<String>,
    /// Instead of the chain.
    pub credentials: Option<SharedCredentialsProvider>,
}

/// How long a connection may take to open.
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);

/// Region, credentials and connection deadline for any of the services.
pub async fn load(config: &AwsConfig) -> SdkConfig {
    let timeouts = aws_config::timeout::TimeoutConfig::builder().connect_timeout(CONNECT_DEADLINE).build();
    let mut loader = aws_config::defaults(BehaviorVersion::latest()).timeout_config(timeouts);
    if let Some(region) = &config.region {
        loader = loader.region(Region::new(region.clone()));
    }
    if let Some(credentials) = &config.credentials {
        loader = loader.credentials_provider(credentials.clone());
    }
    loader.load().await
}

/// A pause before the next attempt: exponential, at most 10 s, with full jitter.
pub fn pause(attempt: u32) -> Duration {
    let longest = Duration::from_millis(100 << attempt.min(10)).min(Duration::from_secs(10));
    longest.mul_f64(fastrand::f64())
}

/// The HTTP status of a failed call, if there was an answer.
pub fn status<E>(error: &SdkError<E>) -> Option<u16> {
    error.raw_response().map(|response| response.status().as_u16())
}

/// What the service said, or how the call failed; without the request, which holds a signature.
pub fn describe<E>(error: &SdkError<E>) -> String
where
    E: std::error::Error + ProvideErrorMetadata + 'static,
{
    match (error.code(), error.message()) {
        (Some(code), Some(message)) => format!("{code}: {}", shorten(message)),
        (Some(code), None) => code.to_owned(),
        _ => shorten(&DisplayErrorContext(error).to_string()),
    }
}

/// True where new credentials are all that is missing.
pub fn credentials_expired<E: ProvideErrorMetadata>(error: &SdkError<E>) -> bool {
    matches!(error.code(), Some("ExpiredToken" | "ExpiredTokenException" | "RequestExpired"))
}

/// The beginning of a text that may be a page of HTML, as one line.
pub fn shorten(text: &str) -> String {
    const LENGTH: usize = 300;
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(LENGTH) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}
