//! HTTP: JSON 1.0 with the operation in a header, tables and streams at one address.

use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use bytes::Bytes;
use serde_json::Value;
use tokio::time::sleep;

use super::calls::Operation;
use super::iterator::ShardIterator;
use super::operations;
use super::refusal::Refusal;
use super::world::World;

pub(super) const JSON: &str = "application/x-amz-json-1.0";

/// The service takes 16 MB.
const LARGEST_REQUEST: usize = 16 << 20;

pub(super) type Shared = Arc<Mutex<World>>;

pub(super) fn router(world: &Shared) -> Router {
    Router::new()
        .route("/", post(serve))
        .route("/{bucket}/{*key}", get(super::exports::object))
        .layer(DefaultBodyLimit::max(LARGEST_REQUEST))
        .with_state(Arc::clone(world))
}

async fn serve(State(world): State<Shared>, headers: HeaderMap, body: Bytes) -> Response {
    match call(&world, &headers, &body).await {
        Ok(answer) => ([(header::CONTENT_TYPE, JSON)], answer).into_response(),
        Err(refusal) => refusal.into_response(),
    }
}

async fn call(world: &Shared, headers: &HeaderMap, body: &[u8]) -> Result<String, Refusal> {
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    // Whether the signature is right is not checked.
    if !header("authorization").contains("/dynamodb/aws4_request") {
        return Err(Refusal::unsigned());
    }
    let target = header("x-amz-target");
    let operation = Operation::of(target).ok_or_else(|| Refusal::unknown_operation(target))?;
    let request: Value = serde_json::from_slice(body).map_err(|error| Refusal::validation(error.to_string()))?;
    let latency = lock(world).habits.latency;
    let reading = Reading::begin(world, operation, &request);
    if !latency.is_zero() {
        sleep(latency).await;
    }
    let mut inside = lock(world);
    let answer = inside.admit(operation).and_then(|()| operations::answer(&mut inside, operation, &request));
    drop(inside);
    drop(reading);
    answer
}

fn lock(world: &Shared) -> std::sync::MutexGuard<'_, World> {
    world.lock().expect("no panic under the lock")
}

/// A call that reads a shard, until it is answered or its client has gone.
struct Reading<'a> {
    world: &'a Shared,
    iterator: ShardIterator,
}

impl<'a> Reading<'a> {
    fn begin(world: &'a Shared, operation: Operation, request: &Value) -> Option<Self> {
        let iterator = operations::iterator_of(request).filter(|_| operation == Operation::GetRecords)?;
        let mut inside = lock(world);
        let shard = inside.streams.get(&iterator.stream)?.shards.get(iterator.shard)?.id.clone();
        inside.calls.reading(&iterator.stream, iterator.shard, iterator.chain, &shard);
        Some(Self { world, iterator })
    }
}

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        lock(self.world).calls.has_read(&self.iterator.stream, self.iterator.shard);
    }
}
