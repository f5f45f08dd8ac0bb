//! The S3 that clients of a table bucket see: objects can be read and written, but neither listed nor deleted.
//!
//! Buckets that belong to no table pass untouched, as they would on Amazon under the same address.

use std::sync::Arc;

use crate::wire::{Message, Reply, forward};

pub(super) async fn pass(upstream: Arc<str>, request: Message) -> Reply {
    if let Some((status, code)) = refusal(request.method(), request.target(), &request) {
        return Reply::Answer(error(status, code));
    }
    match forward(&upstream, &request).await {
        Ok(answer) => Reply::Answer(answer),
        Err(_) => Reply::Close,
    }
}

fn refusal(method: &str, target: &str, request: &Message) -> Option<(u16, &'static str)> {
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    if escapes(path) {
        return Some((400, "InvalidURI"));
    }
    let (bucket, key) = path.trim_start_matches('/').split_once('/').unwrap_or((path.trim_start_matches('/'), ""));
    if !bucket.ends_with("--table-s3") {
        return None;
    }
    let has = |name: &str| query.split('&').any(|pair| pair.split('=').next() == Some(name));
    let allowed = match method {
        // Listing objects, uploads or versions, and every operation on the bucket itself.
        _ if key.is_empty() => false,
        "GET" | "HEAD" => !has("acl") && !has("tagging") && !has("torrent"),
        "PUT" => request.header("x-amz-copy-source").is_none() && !has("acl") && !has("tagging"),
        "POST" => has("uploads") || has("uploadId"),
        // Only a multipart upload can be given up.
        "DELETE" => has("uploadId"),
        _ => false,
    };
    (!allowed).then_some((405, "MethodNotAllowed"))
}

/// A path that leaves its bucket by dots, in any spelling, or that hides a separator.
fn escapes(path: &str) -> bool {
    let plain = path.to_ascii_lowercase().replace("%2e", ".").replace("%5c", "\\").replace("%2f", "/");
    plain.split(['/', '\\']).any(|part| matches!(part, "." | ".."))
}

fn error(status: u16, code: &str) -> Message {
    let message = match status {
        405 => "The specified method is not allowed against this resource.",
        _ => "Couldn't parse the specified URI.",
    };
    let body = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>{code}</Code><Message>{message}</Message></Error>"
    );
    Message::answer(status, &[("content-type", "application/xml")], body.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::{Message, refusal};

    #[test]
    fn only_reading_and_writing_of_objects_is_allowed() {
        let status =
            |method: &str, target: &str| refusal(method, target, &Message::default()).map(|(status, _)| status);
        for (method, target) in [
            ("GET", "/t--table-s3/data/a.parquet"),
            ("HEAD", "/t--table-s3/data/a.parquet"),
            ("PUT", "/t--table-s3/data/a.parquet?partNumber=1&uploadId=x"),
            ("POST", "/t--table-s3/data/a.parquet?uploads"),
            ("POST", "/t--table-s3/data/a.parquet?uploadId=x"),
            ("DELETE", "/t--table-s3/data/a.parquet?uploadId=x"),
            ("GET", "/other?list-type=2"),
            ("DELETE", "/other/key"),
        ] {
            assert_eq!(status(method, target), None, "{method} {target}");
        }
        for (method, target) in [
            ("DELETE", "/t--table-s3/data/a.parquet"),
            ("GET", "/t--table-s3?list-type=2"),
            ("GET", "/t--table-s3/?list-type=2&prefix=data"),
            ("GET", "/t--table-s3?uploads"),
            ("POST", "/t--table-s3?delete"),
            ("PUT", "/t--table-s3"),
            ("DELETE", "/t--table-s3"),
        ] {
            assert_eq!(status(method, target), Some(405), "{method} {target}");
        }
        for target in ["/other/../t--table-s3/key", "/other/%2e%2E/t--table-s3/key", "/other/..%2Ft--table-s3/key"] {
            assert_eq!(status("DELETE", target), Some(400), "{target}");
        }
    }
}
