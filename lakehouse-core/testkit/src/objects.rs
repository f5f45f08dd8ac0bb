//! An S3 service and the keys to it.

use aws_credential_types::Credentials;
use aws_sdk_s3::Client;
use aws_sdk_s3::config::{BehaviorVersion, Region};
use aws_sdk_s3::error::DisplayErrorContext;
use aws_sdk_s3::primitives::ByteStream;
use bytes::Bytes;

/// Where objects lie, addressed by path (`http://host/bucket/key`).
#[derive(Clone, Debug)]
pub struct Objects {
    /// Such as `http://127.0.0.1:4566`.
    pub endpoint: String,
    pub region: String,
    pub access_key: String,
    pub secret_key: String,
}

impl Objects {
    /// At an endpoint that takes any keys, as emulators do.
    #[must_use]
    pub fn at(endpoint: &str) -> Self {
        Self {
            endpoint: endpoint.to_owned(),
            region: "us-east-1".to_owned(),
            // Twelve digits would name an account at some emulators.
            access_key: "testing".to_owned(),
            secret_key: "testing".to_owned(),
        }
    }

    /// The same service behind something else, such as a fault proxy.
    #[must_use]
    pub fn behind(&self, endpoint: &str) -> Self {
        Self { endpoint: endpoint.to_owned(), ..self.clone() }
    }

    /// Amazon's own client.
    #[must_use]
    pub fn client(&self) -> Client {
        let config = aws_sdk_s3::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new(self.region.clone()))
            .endpoint_url(&self.endpoint)
            .force_path_style(true)
            .credentials_provider(Credentials::new(&self.access_key, &self.secret_key, None, None, "testkit"))
            .build();
        Client::from_conf(config)
    }

    /// Makes a bucket.
    ///
    /// # Panics
    /// When the service refuses.
    pub async fn create_bucket(&self, name: &str) {
        let made = self.client().create_bucket().bucket(name).send().await;
        made.unwrap_or_else(|error| panic!("create bucket {name}: {}", DisplayErrorContext(error)));
    }
}

/// `s3://bucket/key` as bucket and key.
pub(crate) fn parse(location: &str) -> Option<(&str, &str)> {
    location.strip_prefix("s3://")?.split_once('/')
}

pub(crate) async fn get(client: &Client, location: &str) -> Result<Bytes, String> {
    let (bucket, key) = parse(location).ok_or_else(|| format!("{location}: not an object"))?;
    let object = client.get_object().bucket(bucket).key(key).send().await;
    let object = object.map_err(|error| format!("{location}: {}", DisplayErrorContext(error)))?;
    Ok(object.body.collect().await.map_err(|error| format!("{location}: {error}"))?.into_bytes())
}

pub(crate) async fn put(client: &Client, location: &str, content: Vec<u8>) -> Result<(), String> {
    let (bucket, key) = parse(location).ok_or_else(|| format!("{location}: not an object"))?;
    let put = client.put_object().bucket(bucket).key(key).body(ByteStream::from(content)).send().await;
    put.map(drop).map_err(|error| format!("{location}: {}", DisplayErrorContext(error)))
}

/// The size of an object, if it is there.
pub(crate) async fn size(client: &Client, location: &str) -> Option<u64> {
    let (bucket, key) = parse(location)?;
    let head = client.head_object().bucket(bucket).key(key).send().await.ok()?;
    head.content_length().and_then(|length| length.try_into().ok())
}
