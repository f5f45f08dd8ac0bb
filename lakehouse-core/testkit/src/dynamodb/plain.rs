//! Calls in the service's own JSON, for who writes items and wants no library's types.

use serde_json::{Value, json};

use super::REGION;
use super::front::JSON;
use crate::host::authority;
use crate::wire::{Message, forward};

/// One operation of DynamoDB's, `PutItem` and the like; sent once.
///
/// # Errors
/// What the service said instead, or that it said nothing.
pub async fn call(endpoint: &str, operation: &str, request: &Value) -> Result<Value, String> {
    let host = authority(endpoint);
    let target = format!("DynamoDB_20120810.{operation}");
    // The emulators do not look at signatures, only for one.
    let signed = format!(
        "AWS4-HMAC-SHA256 Credential=testing/20260101/{REGION}/dynamodb/aws4_request, SignedHeaders=host, Signature=0"
    );
    let headers = [
        ("host", host.as_str()),
        ("content-type", JSON),
        ("x-amz-target", target.as_str()),
        ("authorization", signed.as_str()),
    ];
    let message = Message::request("POST", "/", &headers, request.to_string().as_bytes());
    let answer = forward(&host, &message).await.map_err(|error| format!("{operation}: {error}"))?;
    let content = String::from_utf8_lossy(&answer.content()).into_owned();
    match answer.status() {
        200 => serde_json::from_str(&content).map_err(|error| format!("{operation}: {error}")),
        status => Err(format!("{operation}: {status} {content}")),
    }
}

/// All items of a table, by consistent reads.
///
/// # Errors
/// As [`call`].
pub async fn scan(endpoint: &str, table: &str) -> Result<Vec<Value>, String> {
    let mut items = Vec::new();
    let mut after = Value::Null;
    loop {
        let mut request = json!({"TableName": table, "ConsistentRead": true});
        if !after.is_null() {
            request["ExclusiveStartKey"] = after;
        }
        let mut page = call(endpoint, "Scan", &request).await?;
        if let Value::Array(some) = page["Items"].take() {
            items.extend(some);
        }
        after = page["LastEvaluatedKey"].take();
        if after.is_null() {
            return Ok(items);
        }
    }
}
