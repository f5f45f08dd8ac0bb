//! The table format's own files (metadata, manifests) in the same storage: what Iceberg's `FileIO` reads and writes by.
//! Its kinds are chosen by a location's scheme.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use futures::stream::BoxStream;
use iceberg::io::{
    FileIO, FileIOBuilder, FileMetadata, FileRead, FileWrite, InputFile, LocalFsStorage, OutputFile,
    Storage as IcebergStorage, StorageConfig, StorageFactory,
};
use iceberg::{Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};

use super::objects::{Objects, is_object};
use super::recent::Recent;
use crate::error::Problem;

/// Local files, and objects where a client is given.
#[derive(Clone, Serialize, Deserialize)]
struct Mixed {
    local: LocalFsStorage,
    /// A client is not data: what travels as text has none.
    #[serde(skip)]
    objects: Option<Objects>,
    #[serde(skip)]
    recent: Recent,
}

pub(super) fn file_io(objects: Objects) -> FileIO {
    FileIOBuilder::new(Arc::new(Mixed {
        local: LocalFsStorage::new(),
        objects: Some(objects),
        recent: Recent::default(),
    }))
    .build()
}

impl Mixed {
    /// The client for an object; `None` for a local file.
    fn objects(&self, path: &str) -> Result<Option<&Objects>> {
        match (is_object(path), &self.objects) {
            (false, _) => Ok(None),
            (true, Some(objects)) => Ok(Some(objects)),
            (true, None) => Err(Error::new(ErrorKind::FeatureUnsupported, "no object store is configured")),
        }
    }
}

impl fmt::Debug for Mixed {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Mixed")
    }
}

#[typetag::serde(name = "LakehouseStorageFactory")]
impl StorageFactory for Mixed {
    fn build(&self, _: &StorageConfig) -> Result<Arc<dyn IcebergStorage>> {
        Ok(Arc::new(self.clone()))
    }
}

#[async_trait]
#[typetag::serde(name = "LakehouseStorage")]
impl IcebergStorage for Mixed {
    async fn exists(&self, path: &str) -> Result<bool> {
        match self.objects(path)? {
            Some(objects) => Ok(objects.length(path).await.map_err(wrap)?.is_some()),
            None => self.local.exists(path).await,
        }
    }

    async fn metadata(&self, path: &str) -> Result<FileMetadata> {
        match self.objects(path)? {
            Some(objects) => match objects.length(path).await.map_err(wrap)? {
                Some(size) => Ok(FileMetadata { size }),
                None => Err(Error::new(ErrorKind::DataInvalid, format!("no object {path}"))),
            },
            None => self.local.metadata(path).await,
        }
    }

    async fn read(&self, path: &str) -> Result<Bytes> {
        match self.objects(path)? {
            Some(objects) => {
                if let Some(bytes) = self.recent.get(path) {
                    return Ok(bytes);
                }
                let bytes = objects.get(path).await.map_err(wrap)?;
                self.recent.keep(path, &bytes);
                Ok(bytes)
            }
            None => self.local.read(path).await,
        }
    }

    async fn reader(&self, path: &str) -> Result<Box<dyn FileRead>> {
        match self.objects(path)? {
            Some(objects) => Ok(Box::new(ObjectRead { objects: objects.clone(), location: path.to_owned() })),
            None => self.local.reader(path).await,
        }
    }

    async fn write(&self, path: &str, bytes: Bytes) -> Result<()> {
        match self.objects(path)? {
            Some(objects) => objects.put(path, bytes).await.map_err(wrap),
            None => self.local.write(path, bytes).await,
        }
    }

    async fn writer(&self, path: &str) -> Result<Box<dyn FileWrite>> {
        match self.objects(path)? {
            Some(objects) => {
                let (objects, recent) = (objects.clone(), self.recent.clone());
                Ok(Box::new(ObjectWrite { objects, recent, location: path.to_owned(), held: BytesMut::new() }))
            }
            None => self.local.writer(path).await,
        }
    }

    async fn delete(&self, path: &str) -> Result<()> {
        match self.objects(path)? {
            Some(_) => Err(never_deletes()),
            None => self.local.delete(path).await,
        }
    }

    async fn delete_prefix(&self, path: &str) -> Result<()> {
        match self.objects(path)? {
            Some(_) => Err(never_deletes()),
            None => self.local.delete_prefix(path).await,
        }
    }

    async fn delete_stream(&self, mut paths: BoxStream<'static, String>) -> Result<()> {
        while let Some(path) = paths.next().await {
            self.delete(&path).await?;
        }
        Ok(())
    }

    fn new_input(&self, path: &str) -> Result<InputFile> {
        Ok(InputFile::new(Arc::new(self.clone()), path.to_owned()))
    }

    fn new_output(&self, path: &str) -> Result<OutputFile> {
        Ok(OutputFile::new(Arc::new(self.clone()), path.to_owned()))
    }
}

struct ObjectRead {
    objects: Objects,
    location: String,
}

#[async_trait]
impl FileRead for ObjectRead {
    async fn read(&self, range: Range<u64>) -> Result<Bytes> {
        Ok(self.objects.get_range(&self.location, range).await.map_err(wrap)?.0)
    }
}

/// Manifests and metadata are small: held in memory, sent whole when they are complete.
struct ObjectWrite {
    objects: Objects,
    recent: Recent,
    location: String,
    held: BytesMut,
}

#[async_trait]
impl FileWrite for ObjectWrite {
    async fn write(&mut self, bytes: Bytes) -> Result<()> {
        self.held.extend_from_slice(&bytes);
        Ok(())
    }

    async fn close(&mut self) -> Result<()> {
        let bytes = std::mem::take(&mut self.held).freeze();
        self.objects.put(&self.location, bytes.clone()).await.map_err(wrap)?;
        self.recent.keep(&self.location, &bytes);
        Ok(())
    }
}

fn never_deletes() -> Error {
    Error::new(ErrorKind::FeatureUnsupported, "objects are never deleted by a writer")
}

/// The problem travels inside the library's error and is taken out again by `iceberg_problem`.
fn wrap(problem: Problem) -> Error {
    Error::new(ErrorKind::Unexpected, problem.message.clone()).with_source(problem)
}
