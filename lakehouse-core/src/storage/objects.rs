//! Objects in S3, and in services that speak its protocol: whole objects and ranges, with checksums, a deadline for every
//! call and bounded retries with jitter. Names are unique, so sending a write again is harmless; nothing here moves a
//! catalog's pointer. Lists and deletes for the [`Cleaner`](super::Cleaner) alone (protocol B10; a table bucket allows
//! neither).

use std::ops::Range;
use std::path::Path;
use std::time::{Duration, SystemTime};

use aws_sdk_s3::Client;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{ChecksumMode, CompletedMultipartUpload, CompletedPart};
use aws_smithy_types::byte_stream::Length;
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};

use super::FoundFile;
use crate::aws::{self, AwsConfig, credentials_expired, describe, status};
use crate::error::Problem;

/// Files up to this size go in one request, larger ones in parts of it.
const PART_BYTES: u64 = 16 << 20;
/// Parts of one file on their way at the same time.
const PARTS_AT_ONCE: usize = 4;
/// One attempt of one call, its answer's body not included.
const ATTEMPT_DEADLINE: Duration = Duration::from_secs(60);
/// A call with all its attempts, or the body of one answer.
const DEADLINE: Duration = Duration::from_secs(300);
const ATTEMPTS: u32 = 5;

/// A client of one object store. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Objects {
    client: Client,
    runtime: tokio::runtime::Handle,
}

/// A place in the object store: `s3://bucket/key`.
struct Place<'a> {
    bucket: &'a str,
    key: &'a str,
}

impl Objects {
    /// A client that takes credentials from the usual AWS chain and keeps them until they expire. To be called within a
    /// runtime, which later calls use too.
    pub(crate) async fn open(config: &AwsConfig) -> Self {
        let shared = aws::load(config).await;
        let timeouts =
            TimeoutConfig::builder().operation_attempt_timeout(ATTEMPT_DEADLINE).operation_timeout(DEADLINE).build();
        let mut builder = aws_sdk_s3::config::Builder::from(&shared)
            .retry_config(RetryConfig::standard().with_max_attempts(ATTEMPTS))
            .timeout_config(timeouts)
            // Emulators and S3-compatible services answer under one host name.
            .force_path_style(config.s3_endpoint.is_some());
        if let Some(endpoint) = &config.s3_endpoint {
            builder = builder.endpoint_url(endpoint);
        }
        let client = Client::from_conf(builder.build());
        Self { client, runtime: tokio::runtime::Handle::current() }
    }

    /// Waits for a call where nothing can be awaited: a Parquet reader pulls its bytes.
    pub(crate) fn wait<F: Future>(&self, call: F) -> F::Output {
        tokio::task::block_in_place(|| self.runtime.block_on(call))
    }

    pub(crate) async fn put(&self, location: &str, bytes: Bytes) -> Result<(), Problem> {
        let Place { bucket, key } = place(location)?;
        let sent = self.client.put_object().bucket(bucket).key(key).body(ByteStream::from(bytes)).send().await;
        sent.map(drop).map_err(|error| problem(location, "written", &error))
    }

    /// Sends a local file, in parts if it is large.
    pub(crate) async fn upload(&self, location: &str, file: &Path) -> Result<(), Problem> {
        let length = std::fs::metadata(file).map_err(|error| super::file_problem(location, "read", &error))?.len();
        if length > PART_BYTES {
            return self.upload_parts(location, file, length).await;
        }
        let bytes = std::fs::read(file).map_err(|error| super::file_problem(location, "read", &error))?;
        self.put(location, bytes.into()).await
    }

    /// An upload that ends early leaves parts that no reader sees; the bucket's lifecycle removes them.
    async fn upload_parts(&self, location: &str, file: &Path, length: u64) -> Result<(), Problem> {
        let Place { bucket, key } = place(location)?;
        let begun = self.client.create_multipart_upload().bucket(bucket).key(key).send().await;
        let begun = begun.map_err(|error| problem(location, "written", &error))?;
        let upload = begun.upload_id().unwrap_or_default();
        let send = |(number, from): (i32, u64)| async move {
            let body = ByteStream::read_from()
                .path(file)
                .offset(from)
                .length(Length::Exact(PART_BYTES.min(length - from)))
                .build()
                .await;
            let body =
                body.map_err(|error| Problem::retry("STORAGE", location, format!("file cannot be read: {error}")))?;
            let call = self.client.upload_part().bucket(bucket).key(key).upload_id(upload).part_number(number);
            let sent = call.body(body).send().await.map_err(|error| problem(location, "written", &error))?;
            Ok::<_, Problem>(
                CompletedPart::builder()
                    .part_number(number)
                    .set_e_tag(sent.e_tag)
                    .set_checksum_crc32(sent.checksum_crc32)
                    .build(),
            )
        };
        let offsets = (0..length).step_by(usize::try_from(PART_BYTES).expect("fits"));
        let parts = stream::iter((1..).zip(offsets)).map(send).buffered(PARTS_AT_ONCE);
        let parts: Vec<CompletedPart> = parts.try_collect().await?;
        let parts = CompletedMultipartUpload::builder().set_parts(Some(parts)).build();
        let call = self.client.complete_multipart_upload().bucket(bucket).key(key).upload_id(upload);
        let ended = call.multipart_upload(parts).send().await;
        ended.map(drop).map_err(|error| problem(location, "written", &error))
    }

    /// The whole object; its checksum is verified.
    pub(crate) async fn get(&self, location: &str) -> Result<Bytes, Problem> {
        Ok(self.fetch(location, None).await?.0)
    }

    /// Some bytes of an object, and the length of the whole.
    pub(crate) async fn get_range(&self, location: &str, range: Range<u64>) -> Result<(Bytes, u64), Problem> {
        let last = range.end.saturating_sub(1);
        self.fetch(location, Some(format!("bytes={}-{last}", range.start))).await
    }

    /// At most the last `length` bytes of an object, and the length of the whole.
    pub(crate) async fn get_tail(&self, location: &str, length: u64) -> Result<(Bytes, u64), Problem> {
        self.fetch(location, Some(format!("bytes=-{length}"))).await
    }

    async fn fetch(&self, location: &str, range: Option<String>) -> Result<(Bytes, u64), Problem> {
        let Place { bucket, key } = place(location)?;
        let mut attempt = 1;
        loop {
            let call = self.client.get_object().bucket(bucket).key(key).set_range(range.clone());
            let call = match range {
                None => call.checksum_mode(ChecksumMode::Enabled),
                Some(_) => call,
            };
            let answer = call.send().await.map_err(|error| problem(location, "read", &error))?;
            let of_range = answer.content_range().and_then(|range| range.rsplit_once('/')?.1.parse().ok());
            let promised = answer.content_length().and_then(|length| u64::try_from(length).ok());
            // The client's own retries end with the head of the answer.
            let why = match tokio::time::timeout(DEADLINE, answer.body.collect()).await {
                Ok(Ok(body)) => {
                    let bytes = body.into_bytes();
                    let length = bytes.len() as u64;
                    if promised.is_none_or(|promised| promised == length) {
                        return Ok((bytes, of_range.unwrap_or(length)));
                    }
                    "the answer is cut off".to_owned()
                }
                Ok(Err(error)) => error.to_string(),
                Err(_) => "the answer does not end".to_owned(),
            };
            if attempt >= ATTEMPTS {
                return Err(Problem::retry("STORAGE", location, format!("object cannot be read: {why}")));
            }
            tokio::time::sleep(aws::pause(attempt)).await;
            attempt += 1;
        }
    }

    /// All objects below a location.
    pub(super) async fn list(&self, location: &str) -> Result<Vec<FoundFile>, Problem> {
        let Place { bucket, key } = place(location)?;
        let prefix = format!("{}/", key.trim_end_matches('/'));
        let mut pages = self.client.list_objects_v2().bucket(bucket).prefix(prefix).into_paginator().send();
        let mut found = Vec::new();
        while let Some(page) = pages.next().await {
            for object in page.map_err(|error| problem(location, "listed", &error))?.contents.unwrap_or_default() {
                let Some(key) = object.key else { continue };
                found.push(FoundFile {
                    location: format!("s3://{bucket}/{key}"),
                    bytes: object.size.unwrap_or(0).max(0).unsigned_abs(),
                    modified: object.last_modified.and_then(|time| SystemTime::try_from(time).ok()),
                });
            }
        }
        Ok(found)
    }

    pub(super) async fn remove(&self, location: &str) -> Result<(), Problem> {
        let Place { bucket, key } = place(location)?;
        let removed = self.client.delete_object().bucket(bucket).key(key).send().await;
        removed.map(drop).map_err(|error| problem(location, "removed", &error))
    }

    /// The length of an object in bytes; `None` if it does not exist.
    pub(crate) async fn length(&self, location: &str) -> Result<Option<u64>, Problem> {
        let Place { bucket, key } = place(location)?;
        match self.client.head_object().bucket(bucket).key(key).send().await {
            Ok(head) => Ok(Some(head.content_length().unwrap_or(0).max(0).unsigned_abs())),
            Err(error) if status(&error) == Some(404) => Ok(None),
            Err(error) => Err(problem(location, "read", &error)),
        }
    }
}

/// True for locations that an object store keeps. Hadoop's engines write `s3a://` and `s3n://` for the same place.
pub(crate) fn is_object(location: &str) -> bool {
    ["s3://", "s3a://", "s3n://"].iter().any(|scheme| location.starts_with(scheme))
}

fn place(location: &str) -> Result<Place<'_>, Problem> {
    let rest = location.split_once("://").map(|(_, rest)| rest);
    let parts =
        rest.and_then(|rest| rest.split_once('/')).filter(|(bucket, key)| !bucket.is_empty() && !key.is_empty());
    let (bucket, key) = parts.ok_or_else(|| {
        Problem::halt("STORAGE_KIND", location, "this is not an object's location", "run fsck on the table")
    })?;
    Ok(Place { bucket, key })
}

/// A failed call, told by what it means for the operator.
fn problem<E>(location: &str, verb: &str, error: &SdkError<E>) -> Problem
where
    E: std::error::Error + ProvideErrorMetadata + 'static,
{
    let message = format!("object cannot be {verb}: {}", describe(error));
    match (status(error), error.code()) {
        (Some(404), Some("NoSuchBucket")) => {
            let remedy = "correct `warehouse` or `table_bucket` in [catalog], or create the bucket";
            Problem::halt("WAREHOUSE_MISSING", location, message, remedy)
        }
        (Some(404), _) => {
            Problem::halt("FILE_MISSING", location, message, "run fsck; restore the object from a copy of the bucket")
        }
        _ if credentials_expired(error) => Problem::retry("CREDENTIALS_EXPIRED", location, message),
        (Some(401 | 403), _) => {
            let remedy = "grant the service's role s3:GetObject and s3:PutObject here (on a table bucket \
                          s3tables:GetTableData and s3tables:PutTableData), and check its credentials";
            Problem::halt("ACCESS_DENIED", location, message, remedy)
        }
        _ => Problem::retry("STORAGE", location, message),
    }
}
