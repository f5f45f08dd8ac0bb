//! The role that answers over HTTP.

use tokio_util::sync::CancellationToken;

use super::watch_signals;
use crate::config::Config;
use crate::failure::{Exit, Failure};
use crate::http::Server;
use crate::lake::Lake;
use crate::upkeep::Metrics;

/// Answers until a signal.
pub(crate) async fn serve(config: &Config) -> Result<Exit, Failure> {
    let Some(api) = &config.api else {
        let remedy = "add [api] with an address to listen on";
        return Err(Failure::usage("CONFIG_MISSING_KEY", "[api]", "no HTTP service is configured", remedy));
    };
    let server = Server::bind(config, api, Lake::open(config).await?, Metrics::default()).await?;
    let stop = CancellationToken::new();
    watch_signals(stop.clone())?;
    server.serve(stop).await;
    Ok(Exit::Done)
}
