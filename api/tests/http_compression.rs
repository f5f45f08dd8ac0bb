//! Rows come compressed for who asks for it: the same bytes inside, the same bounds, and what is cut off is seen to be.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use fastrand::Rng;
use flate2::read::GzDecoder;
use serde_json::{Value, json};
use testkit::http::exchange;

use crate::http::{LEFT, Service, problem, text};
use crate::support::{Installation, lake};

const CODINGS: [&str; 3] = ["zstd", "br", "gzip"];
const FORMATS: [&str; 4] =
    ["application/json", "application/x-ndjson", "text/csv", "application/vnd.apache.arrow.stream"];
const ROWS: &str = "/v1/tables/app/orders/rows";
const ANONYMOUS: &str = "[api]\nallow_anonymous = true\n";
/// How long a socket may have nothing to say.
const SILENCE: Duration = Duration::from_secs(30);

/// What is inside; all of it, or the test fails.
fn decoded(coding: &str, bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    match coding {
        "zstd" => zstd::stream::copy_decode(bytes, &mut out),
        "br" => brotli::Decompressor::new(bytes, 4_096).read_to_end(&mut out).map(drop),
        "gzip" => GzDecoder::new(bytes).read_to_end(&mut out).map(drop),
        _ => panic!("{coding} is none of {CODINGS:?}"),
    }
    .unwrap_or_else(|error| panic!("{coding}: {error}"));
    out
}

/// So many rows with a text of so many letters each, which no coding makes much of.
async fn wide(config: &str, rows: usize, letters: usize) -> Installation {
    let mut rng = Rng::with_seed(1);
    let mut text = || std::iter::repeat_with(|| rng.alphanumeric()).take(letters).collect();
    let texts: Vec<String> = (0..rows).map(|_| text()).collect();
    with_texts(config, &texts).await
}

async fn with_texts(config: &str, texts: &[String]) -> Installation {
    let rows: Vec<lake::Row<'_>> = (10..).zip(texts).map(|(id, text)| (id, Some(text.as_str()), None)).collect();
    lake::installation_with(&format!("{ANONYMOUS}{config}"), &rows).await
}

#[tokio::test(flavor = "multi_thread")]
async fn every_coding_has_the_same_bytes_inside() {
    let installation = wide("", 60, 8 << 10).await;
    let service = Service::start(&installation).await;
    for target in [ROWS, "/v1/tables/app/orders/diff?from=0/64&to=main"] {
        for format in FORMATS {
            let plain = service.get(target, &[("accept", format)]).await;
            assert_eq!((plain.status(), plain.header("content-encoding")), (200, None), "{target} {format}");
            assert_eq!(plain.header("vary"), Some("accept-encoding"));
            for coding in CODINGS {
                let asked = [("accept", format), ("accept-encoding", coding)];
                let answer = service.get(target, &asked).await;
                assert_eq!((answer.status(), answer.header("content-encoding")), (200, Some(coding)), "{format}");
                assert_eq!((answer.header("content-length"), answer.header("content-type")), (None, Some(format)));
                assert_eq!(answer.header("vary"), Some("accept-encoding"));
                assert!(answer.content().len() < plain.content().len(), "{format} as {coding}");
                assert_eq!(decoded(coding, &answer.content()), plain.content(), "{target} {format} as {coding}");
            }
        }
    }
    let query = r#"{"select":["name"],"limit":50}"#;
    let posted = service.send("POST", &format!("{ROWS}:query"), &[("accept-encoding", "zstd")], query).await;
    let plain = service.send("POST", &format!("{ROWS}:query"), &[], query).await;
    assert_eq!(decoded("zstd", &posted.content()), plain.content());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_coding_is_the_one_that_is_wanted_most_and_only_rows_have_one() {
    let installation = wide("", 2, 8 << 10).await;
    let service = Service::start(&installation).await;
    for (accepted, coding) in [
        ("gzip, br, zstd", Some("zstd")),
        ("gzip, deflate, br", Some("br")),
        ("gzip;q=1, zstd;q=0.5", Some("gzip")),
        ("zstd;q=0", None),
        ("identity", None),
        ("deflate, lzma", None),
        ("", None),
    ] {
        let answer = service.get(ROWS, &[("accept-encoding", accepted)]).await;
        assert_eq!((answer.status(), answer.header("content-encoding")), (200, coding), "{accepted:?}");
    }
    let all = [("accept-encoding", "zstd, br, gzip")];
    for target in ["/v1/tables", "/v1/openapi.json", "/console", &format!("{ROWS}?select=id&limit=1")] {
        let answer = service.get(target, &all).await;
        assert_eq!((answer.status(), answer.header("content-encoding")), (200, None), "{target}");
    }
    let error = service.get(&format!("{ROWS}?select=nmae"), &all).await;
    assert_eq!(error.header("content-encoding"), None);
    assert_eq!(problem(&error), (400, "COLUMN_UNKNOWN".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_compressed_answer_has_a_weak_tag_of_the_same_rows() {
    let installation = wide("", 2, 8 << 10).await;
    let service = Service::start(&installation).await;
    let plain = service.get(ROWS, &[]).await;
    let strong = plain.header("etag").expect("a tag");
    let weak = format!("W/{strong}");
    for coding in CODINGS {
        let answer = service.get(ROWS, &[("accept-encoding", coding)]).await;
        assert_eq!(answer.header("etag"), Some(weak.as_str()), "{coding}");
        for known in [strong, weak.as_str()] {
            let asked = [("accept-encoding", coding), ("if-none-match", known)];
            let again = service.get(ROWS, &asked).await;
            assert_eq!((again.status(), again.content().len()), (304, 0), "{coding} {known}");
            assert_eq!((again.header("vary"), again.header("content-encoding")), (Some("accept-encoding"), None));
        }
    }
}

fn last_line(lines: &str) -> Value {
    serde_json::from_str(lines.lines().last().expect("a last line")).expect("JSON")
}

/// All that comes of an answer until the connection ends.
fn taken(service: &Service, headers: &str) -> Vec<u8> {
    let address = service.uri.trim_start_matches("http://");
    let mut client = TcpStream::connect(address).expect("a connection");
    client.set_read_timeout(Some(SILENCE)).expect("a time");
    let request = format!("GET {ROWS} HTTP/1.1\r\nhost: {address}\r\n{headers}\r\n\r\n");
    client.write_all(request.as_bytes()).expect("sent");
    let mut all = Vec::new();
    client.read_to_end(&mut all).expect("the connection ends");
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_cut_off_is_seen_to_be_in_every_coding() {
    // Of rows of 1 MiB the first batch has sixteen: the answer has begun when it has too many bytes.
    let installation = wide("max_bytes = \"1MiB\"\n", 64, 1 << 20).await;
    let service = Service::start(&installation).await;
    for coding in CODINGS {
        let few = [("accept", "text/csv"), ("accept-encoding", coding)];
        let answer = service.get(&format!("{ROWS}?select=id"), &few).await;
        assert_eq!(answer.status(), 200, "{coding}: {}", text(&answer));
        for format in ["text/csv", "application/vnd.apache.arrow.stream"] {
            let headers = [("accept", format), ("accept-encoding", coding)];
            let whole = exchange("GET", &format!("{}{ROWS}", service.uri), &headers, "").await;
            assert!(whole.is_err(), "{format} as {coding} is taken for whole");
            let all = taken(&service, &format!("accept: {format}\r\naccept-encoding: {coding}"));
            assert!(all.starts_with(b"HTTP/1.1 200 OK\r\n"), "{format} as {coding}");
            assert!(!all.ends_with(b"\r\n0\r\n\r\n"), "{format} as {coding} has its last chunk");
        }
        // Lines end with one that says it.
        let headers = [("accept", "application/x-ndjson"), ("accept-encoding", coding)];
        let lines = service.get(ROWS, &headers).await;
        assert_eq!(lines.header("content-encoding"), Some(coding));
        let lines = String::from_utf8(decoded(coding, &lines.content())).expect("text");
        assert_eq!(last_line(&lines), json!({"_status": "failed", "code": "ROWS_LIMIT"}), "{coding}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_are_counted_before_they_are_compressed() {
    let texts: Vec<String> = (10..74).map(|id| id.to_string().repeat(1 << 19)).collect();
    let installation = with_texts("max_bytes = \"1MiB\"\n", &texts).await;
    let service = Service::start(&installation).await;
    for coding in CODINGS {
        let headers = [("accept", "application/x-ndjson"), ("accept-encoding", coding)];
        let answer = service.get(ROWS, &headers).await;
        assert!(answer.content().len() < 1 << 20, "{coding} has made {} bytes", answer.content().len());
        let lines = String::from_utf8(decoded(coding, &answer.content())).expect("text");
        assert_eq!(last_line(&lines), json!({"_status": "failed", "code": "ROWS_LIMIT"}), "{coding}");
        assert!(lines.lines().count() < texts.len(), "{coding}: all rows have come");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_ends_a_compressed_scan() {
    let installation = wide("scans = 1\n", 64, 1 << 20).await;
    let service = Service::start(&installation).await;
    let address = service.uri.trim_start_matches("http://").to_owned();
    for coding in ["zstd", "gzip"] {
        let mut client = TcpStream::connect(&address).expect("a connection");
        client.set_read_timeout(Some(SILENCE)).expect("a time");
        let request = format!(
            "GET {ROWS} HTTP/1.1\r\nhost: {address}\r\naccept: application/x-ndjson\r\naccept-encoding: {coding}\r\n\r\n"
        );
        client.write_all(request.as_bytes()).expect("sent");
        client.read_exact(&mut [0; 1_024]).expect("the answer begins");
        assert_eq!(problem(&service.get(ROWS, &[]).await), (429, "TOO_MANY_SCANS".to_owned()), "{coding}");
        drop(client);
        let left = Instant::now();
        while service.get(&format!("{ROWS}?select=id&limit=1"), &[]).await.status() != 200 {
            assert!(left.elapsed() < LEFT, "{coding}: the scan goes on without its client");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}
