//! `[api.tls]`: what the service shows to prove who it is.

use std::path::PathBuf;

use serde::Serialize;

use super::layers::Section;
use crate::failure::Failure;

#[derive(Clone, Debug, Serialize)]
pub(crate) struct TlsConfig {
    /// A chain in PEM form, the service's own certificate first.
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
    /// The address of the metrics has TLS, too.
    pub(crate) metrics: bool,
}

pub(super) fn tls(section: &Section<'_>) -> Result<TlsConfig, Failure> {
    let (certificate, key) = (section.path("certificate")?, section.path("key")?);
    let metrics = section.boolean("metrics")?.unwrap_or(false);
    section.finish()?;
    let certificate = certificate.ok_or_else(|| section.missing("certificate"))?;
    let key = key.ok_or_else(|| section.missing("key"))?;
    Ok(TlsConfig { certificate, key, metrics })
}
