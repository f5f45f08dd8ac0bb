//! Answers with rows, compressed as `Accept-Encoding` asks for: zstd, br or gzip. No other answers: they are small, and who
//! asks for some of them need not have shown who they are.
//!
//! Each encoder takes chunks as the client empties the pipe (`pipe.rs`), and gives out what it has before it waits for
//! the next one: neither rows nor memory pile up in it. What cuts an answer off cuts its encoding off, too.

use axum::extract::Request;
use axum::http::HeaderValue;
use axum::http::header::{ACCEPT_ENCODING, CONTENT_ENCODING, ETAG, VARY};
use axum::middleware::{Next, from_fn};
use axum::response::Response;
use axum::routing::MethodRouter;
use tower_http::CompressionLevel;
use tower_http::compression::CompressionLayer;
use tower_http::compression::predicate::SizeAbove;

use super::Shared;

/// A whole answer of fewer bytes goes as it is: no coding would make fewer packets of it.
const LEAST_BYTES: u16 = 1_024;

/// Around handlers that answer with rows. At the quickest level: the process has changes to follow beside it, and the better
/// ones want some megabytes for each answer.
pub(super) fn around(handlers: MethodRouter<Shared>) -> MethodRouter<Shared> {
    let layer = CompressionLayer::new().quality(CompressionLevel::Fastest);
    let compressed: MethodRouter<Shared> = handlers.layer(layer.compress_when(SizeAbove::new(LEAST_BYTES)));
    compressed.layer(from_fn(mark))
}

/// A strong tag is of bytes (RFC 9110, section 8.8.1), and what is compressed has others: its tag is weak, which
/// `If-None-Match` does not mind. Which of both comes depends on the request, and caches are told so, with 304 as well.
async fn mark(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    headers.insert(VARY, ACCEPT_ENCODING.into());
    if headers.contains_key(CONTENT_ENCODING)
        && let Some(tag) = headers.get(ETAG).and_then(|tag| tag.to_str().ok())
    {
        let weak = HeaderValue::from_str(&format!("W/{tag}")).expect("a tag is ASCII");
        headers.insert(ETAG, weak);
    }
    response
}
