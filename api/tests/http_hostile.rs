//! Two hundred reads at once that mean harm, of the one process that also replicates: its memory stays within bounds, others
//! are served meanwhile, and what is committed at the source arrives.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;
use testkit::http::exchange;
use testkit::lakehouse::Process;
use testkit::postgres::Options;
use testkit::tier;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::http::{free_address, text};
use crate::live::{Live, stop, until};

/// SHA-256 of `hostile-token` and `reader-token`.
const CONFIG: &str = r#"
[maintenance]
owner = "none"
[api]
scan_time = "3s"
[api.auth.tokens.hostile]
sha256 = "1f841e8d3bdb2cf6414041d370166c597f54d9d18bf8ad302a4cff2ca2ad48b7"
role = "reader"
[api.auth.tokens.reader]
sha256 = "ba5005a40cf5212e4ac0190104cc127edab013294bb71279a975b27a80982d45"
role = "reader"
"#;
/// More than half of the connections that the service takes.
const CLIENTS: usize = 200;
/// Of the whole process, replication included.
const MEMORY: u64 = 512 << 20;
/// How long others may wait for their answers and for their changes, on a machine that other tests have for themselves, too.
const PATIENCE: Duration = Duration::from_secs(120);
/// Rows of 256 KiB each.
const WIDE_ROWS: u32 = 400;

/// How a client takes what it is sent.
#[derive(Clone, Copy)]
enum Taking {
    All,
    /// A little now and then.
    Slowly,
    /// It has gone when the answer begins.
    Nothing,
}

/// Everybody's way to the service.
#[derive(Clone)]
struct Way {
    address: String,
    stop: Arc<AtomicBool>,
    /// Bytes of answers that hostile clients have seen.
    taken: Arc<AtomicU64>,
}

impl Way {
    fn goes_on(&self) -> bool {
        !self.stop.load(Ordering::Relaxed)
    }

    /// Sends a request as the hostile caller, and takes what is answered in its own way.
    async fn hurt(&self, request: &str, body: &str, taking: Taking) -> std::io::Result<()> {
        let mut stream = TcpStream::connect(&self.address).await?;
        let head = format!(
            "{request} HTTP/1.1\r\nhost: {}\r\nauthorization: Bearer hostile-token\r\nconnection: close\r\n\
             accept: application/x-ndjson\r\ncontent-length: {}\r\n\r\n",
            self.address,
            body.len()
        );
        stream.write_all(head.as_bytes()).await?;
        stream.write_all(body.as_bytes()).await?;
        let mut piece = vec![0; 64 << 10];
        while self.goes_on() {
            let length = stream.read(&mut piece).await?;
            self.taken.fetch_add(length as u64, Ordering::Relaxed);
            match taking {
                _ if length == 0 => break,
                Taking::Nothing => break,
                Taking::Slowly => tokio::time::sleep(Duration::from_millis(300)).await,
                Taking::All => {}
            }
        }
        Ok(())
    }

    /// One of the ways to do harm, over and over. That a connection ends early is what such a client must expect.
    async fn attack(self, kind: usize) {
        const ALL: &str = "GET /v1/tables/app/wide/rows";
        const ORDERED: &str = "GET /v1/tables/app/wide/rows?order=pad:desc,id";
        const QUERY: &str = "POST /v1/tables/app/wide/rows:query";
        let part = |number: usize| {
            let values: Vec<usize> = (0..1_000).map(|n| n + number).collect();
            json!({"in": {"column": "id", "values": values}})
        };
        let lists = |parts: usize| json!({"or": (0..parts).map(part).collect::<Vec<_>>()});
        let (open, close) = ("{\"not\":".repeat(5_000), "}".repeat(5_000));
        let (request, body, taking) = match kind % 8 {
            0 => (ALL, String::new(), Taking::Slowly),
            1 => (ALL, String::new(), Taking::Nothing),
            2 => (ALL, String::new(), Taking::All),
            3 => (ORDERED, String::new(), Taking::All),
            // The largest filter that is taken, and one beyond.
            4 => (QUERY, json!({"filter": lists(10), "select": ["id"]}).to_string(), Taking::All),
            5 => (QUERY, json!({"filter": lists(150)}).to_string(), Taking::All),
            6 => (QUERY, format!("{{\"filter\":{open}{{\"is_null\":{{\"column\":\"id\"}}}}{close}}}"), Taking::All),
            _ => (QUERY, format!("{{\"tag\":\"{}\"}}", "x".repeat(2 << 20)), Taking::All),
        };
        while self.goes_on() {
            let done = self.hurt(request, &body, taking).await;
            let pause = if done.is_err() { 100 } else { 10 };
            tokio::time::sleep(Duration::from_millis(pause)).await;
        }
    }

    /// Somebody else asks, and comes again where it is told to.
    async fn served(&self, target: &str) -> Duration {
        let begun = Instant::now();
        loop {
            let headers = [("authorization", "Bearer reader-token")];
            let answer = exchange("GET", &format!("http://{}{target}", self.address), &headers, "").await;
            match answer {
                Ok(answer) if answer.status() == 200 => return begun.elapsed(),
                Ok(answer) => assert!([429, 503].contains(&answer.status()), "{target}: {}", text(&answer)),
                Err(error) => assert!(begun.elapsed() < PATIENCE, "{target}: {error}"),
            }
            assert!(begun.elapsed() < PATIENCE, "{target}: nobody else is served");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

/// The most memory that was resident at any moment.
fn peak(process: &Process) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", process.id())).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a peak");
    line.trim().trim_end_matches("kB").trim().parse::<u64>().expect("a number") << 10
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_reads_leave_memory_other_readers_and_replication_within_bounds() {
    let live = Live::new(Options::default()).await;
    let base = fs::read_to_string(live.site.lakehouse.config()).expect("a configuration");
    live.site.lakehouse.configure(&format!("{base}{CONFIG}"));
    live.sql(&format!(
        "CREATE TABLE t (id int8 PRIMARY KEY);
         INSERT INTO t SELECT n FROM generate_series(1, 1000) n;
         CREATE TABLE wide (id int8 PRIMARY KEY, pad text);
         INSERT INTO wide SELECT n, repeat(md5(n::text), 8192) FROM generate_series(1, {WIDE_ROWS}) n"
    ))
    .await;
    // What the copy takes is not what is measured here.
    let worker = live.site.start();
    live.site.caught_up().await;
    stop(worker).await;

    let address = free_address();
    let process = live.site.lakehouse.spawn(&["--set", &format!("api.listen={address}"), "run"]);
    until("the service listens", || std::net::TcpStream::connect(&address).is_ok()).await;
    let way = Way { address, stop: Arc::default(), taken: Arc::default() };
    way.served("/v1/tables/app/t/rows?limit=1").await;
    let before = peak(&process);

    let mut hostile = JoinSet::new();
    for client in 0..CLIENTS {
        hostile.spawn(way.clone().attack(client));
    }
    let (begun, mut rounds) = (Instant::now(), 0);
    let length = Duration::from_secs(tier::size("LAKEHOUSE_HOSTILE_SECONDS", 8, 120));
    while begun.elapsed() < length || rounds < 3 {
        rounds += 1;
        live.sql(&format!("INSERT INTO t VALUES ({})", 1_000 + rounds)).await;
        let committed = Instant::now();
        live.site.caught_up().await;
        let lag = committed.elapsed();
        assert!(lag < PATIENCE, "round {rounds}: a change has taken {lag:?}");
        for target in ["/v1/tables", "/v1/pipelines/app", "/v1/tables/app/t/rows?limit=10"] {
            way.served(target).await;
        }
    }
    way.stop.store(true, Ordering::Relaxed);
    while let Some(ended) = hostile.join_next().await {
        ended.expect("no client has panicked");
    }
    let (after, taken) = (peak(&process), way.taken.load(Ordering::Relaxed));
    println!("peak {} MiB, before {} MiB; {} MiB of answers, {rounds} rounds", after >> 20, before >> 20, taken >> 20);
    assert!(after < MEMORY, "{} MiB, before the attack {} MiB", after >> 20, before >> 20);
    assert!(taken > 1 << 20, "the attack has come to nothing: {taken} bytes");
    live.site.assert_equal().await;
    stop(process).await;
}
