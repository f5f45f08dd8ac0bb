//! Each fault of the proxy, seen from both sides: what the client is told and what the upstream did.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::Method;
use bytes::Bytes;
use testkit::fault_proxy::{Canned, Fault, FaultProxy, Landing, Rule, When};
use testkit::http;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// A server with one register: PUT appends to it and answers with the whole, GET reads it.
#[derive(Clone, Default)]
struct Register(Arc<Mutex<Vec<String>>>);

impl Register {
    fn written(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }
}

async fn register(State(register): State<Register>, method: Method, body: Bytes) -> String {
    let mut values = register.0.lock().unwrap();
    if method == Method::PUT {
        values.push(String::from_utf8_lossy(&body).into_owned());
    }
    values.join(",")
}

async fn start() -> (Register, FaultProxy, Caller) {
    let state = Register::default();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let upstream = format!("http://{}", listener.local_addr().unwrap());
    let router = Router::new().fallback(register).with_state(state.clone());
    tokio::spawn(async move { axum::serve(listener, router).await });
    let proxy = FaultProxy::start(&upstream);
    let caller = Caller { uri: proxy.uri() };
    (state, proxy, caller)
}

struct Caller {
    uri: String,
}

impl Caller {
    /// Status and body, or nothing when there was no whole answer.
    async fn put(&self, value: &str) -> Option<(u16, String)> {
        let answer = http::send("PUT", &format!("{}/register", self.uri), value).await.ok()?;
        Some((answer.status, answer.body))
    }

    async fn get(&self) -> Option<(u16, String)> {
        let answer = http::send("GET", &format!("{}/register?x=1", self.uri), "").await.ok()?;
        Some((answer.status, answer.body))
    }
}

fn ok(body: &str) -> Option<(u16, String)> {
    Some((200, body.to_owned()))
}

/// One PUT under one fault: what the client sees, what the upstream has afterwards.
async fn check(fault: Fault, told: Option<(u16, String)>, written: &[&str]) {
    let (register, proxy, caller) = start().await;
    let name = format!("{fault:?}");
    let hits = proxy.add(Rule::new(When::Next(1), "PUT", "/register", fault));
    assert_eq!(caller.put("a").await, told, "{name}");
    assert_eq!(register.written(), written, "{name}");
    assert_eq!(hits.count(), 1, "{name}");
    // Once means once, and the proxy goes on.
    let both: Vec<String> = written.iter().map(|&value| value.to_owned()).chain(["b".to_owned()]).collect();
    assert_eq!(caller.put("b").await, ok(&both.join(",")), "{name}");
}

#[tokio::test]
async fn a_lost_request_has_no_effect() {
    check(Fault::LoseRequest, None, &[]).await;
}

#[tokio::test]
async fn a_lost_answer_has_its_effect() {
    check(Fault::LoseAnswer, None, &["a"]).await;
}

#[tokio::test]
async fn a_duplicate_shows_its_second_answer() {
    check(Fault::SendTwice, ok("a,a"), &["a", "a"]).await;
}

#[tokio::test]
async fn a_refusal_comes_before_or_after_the_effect() {
    for canned in [
        Canned::xml(503, "SlowDown"),
        Canned::json(429, "TooManyRequestsException"),
        Canned::iceberg(500, "InternalServerError"),
        Canned::html(502),
        Canned::expired_token(),
        Canned::expired_token_json(),
    ] {
        let told = Some((canned.status, canned.body.clone()));
        check(Fault::Refuse(canned.clone()), told.clone(), &[]).await;
        check(Fault::RefuseAfter(canned), told, &["a"]).await;
    }
}

#[tokio::test]
async fn a_truncated_answer_is_no_answer() {
    check(Fault::Truncate, None, &["a"]).await;
}

#[tokio::test]
async fn one_bit_is_turned_on_the_way() {
    check(Fault::FlipRequest, ok("`"), &["`"]).await;
    check(Fault::FlipAnswer, ok("`"), &["a"]).await;
}

#[tokio::test]
async fn a_late_request_lands_when_it_is_told() {
    let (register, proxy, caller) = start().await;
    proxy.add(Rule::new(When::Next(2), "PUT", "", Fault::LandLate(Landing::WhenTold)));
    assert_eq!(caller.put("a").await, None);
    assert_eq!(caller.put("b").await, None);
    assert_eq!(caller.put("successor").await, ok("successor"));
    assert_eq!(proxy.parked(), 2);
    assert_eq!(proxy.land().await, [200, 200]);
    assert_eq!(register.written(), ["successor", "a", "b"]);
    assert_eq!(proxy.parked(), 0);
}

#[tokio::test]
async fn a_late_request_lands_by_itself() {
    let (register, proxy, caller) = start().await;
    let landing = Landing::After(Duration::from_millis(300));
    proxy.add(Rule::new(When::Next(1), "PUT", "", Fault::LandLate(landing)));
    assert_eq!(caller.put("a").await, None);
    assert_eq!(caller.put("successor").await, ok("successor"));
    let landed = async {
        while register.written().len() < 2 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), landed).await.unwrap();
    assert_eq!(register.written(), ["successor", "a"]);
}

#[tokio::test]
async fn a_stalled_request_gets_no_answer_and_has_no_effect() {
    let (register, proxy, caller) = start().await;
    proxy.add(Rule::new(When::Next(1), "", "", Fault::Stall));
    let answer = tokio::time::timeout(Duration::from_millis(300), caller.put("a")).await;
    assert!(answer.is_err());
    assert_eq!(register.written(), Vec::<String>::new());
    proxy.add(Rule::new(When::Next(1), "", "", Fault::Slow(Duration::from_millis(100))));
    assert_eq!(caller.put("b").await, ok("b"));
}

#[tokio::test]
async fn a_stale_read_shows_what_was_read_before() {
    let (_, proxy, caller) = start().await;
    let hits = proxy.add(Rule::new(When::Next(2), "", "", Fault::StaleRead));
    caller.put("a").await;
    assert_eq!(caller.get().await, ok("a"), "nothing older is known");
    assert_eq!(hits.count(), 0);
    caller.put("b").await;
    assert_eq!(caller.get().await, ok("a"));
    assert_eq!(caller.get().await, ok("a"));
    assert_eq!(caller.get().await, ok("a,b"));
    assert_eq!(hits.count(), 2);
}

#[tokio::test]
async fn chance_is_decided_by_its_seed() {
    let outcomes = async |seed| {
        let (_, proxy, caller) = start().await;
        proxy.add(Rule::new(When::Chance { probability: 0.5, seed }, "GET", "", Fault::Refuse(Canned::html(503))));
        let mut outcomes = Vec::new();
        for _ in 0..32 {
            outcomes.push(caller.get().await.unwrap().0);
        }
        outcomes
    };
    let first = outcomes(7).await;
    assert_eq!(first, outcomes(7).await);
    assert_ne!(first, outcomes(8).await);
    assert!(first.contains(&200) && first.contains(&503));
}

#[tokio::test]
async fn rules_act_in_order_and_end_with_healing() {
    let (register, proxy, caller) = start().await;
    proxy.add(Rule::new(When::After(1), "PUT", "", Fault::Refuse(Canned::html(500))));
    proxy.add(Rule::new(When::Always, "PUT", "elsewhere", Fault::Refuse(Canned::html(501))));
    assert_eq!(caller.put("a").await, ok("a"));
    assert_eq!(caller.put("b").await.unwrap().0, 500);
    assert_eq!(caller.put("c").await, ok("a,c"));
    proxy.add(Rule::new(When::Always, "", "", Fault::LoseRequest));
    assert_eq!(caller.get().await, None);
    proxy.heal();
    assert_eq!(caller.get().await, ok("a,c"));
    assert_eq!(register.written(), ["a", "c"]);
}

#[tokio::test]
async fn requests_are_counted_by_kind_also_when_they_are_lost() {
    let (_, proxy, caller) = start().await;
    proxy.add(Rule::new(When::Next(1), "PUT", "", Fault::LoseRequest));
    caller.put("a").await;
    caller.put("b").await;
    caller.get().await;
    let requests = proxy.requests();
    assert_eq!((requests.total(), requests.of("PUT", ""), requests.of("GET", "bucket")), (3, 2, 1), "{requests}");
    proxy.reset_requests();
    assert_eq!(proxy.requests().total(), 0);
}

/// The upstream sees exactly the client's bytes, and the client exactly the upstream's, chunks and odd paths included.
#[tokio::test]
async fn messages_pass_byte_for_byte() {
    const REQUEST: &[u8] = b"PUT /a%2Fb/../c//d?x=%20+&y HTTP/1.1\r\nhOsT: signed.example:1\r\nX-Odd:  two  spaces\r\n\
        Transfer-Encoding: chunked\r\n\r\n5;name=value\r\nhello\r\n0\r\nTrailer: 1\r\n\r\n";
    const ANSWER: &[u8] = b"HTTP/1.1 203 Odd Reason\r\nx-a: 1\r\nX-A: 2\r\ntransfer-encoding: chunked\r\n\r\n\
        3\r\nabc\r\n0\r\n\r\n";
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxy = FaultProxy::start(&format!("http://{}", listener.local_addr().unwrap()));
    let upstream = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut seen = vec![0; REQUEST.len()];
        stream.read_exact(&mut seen).await.unwrap();
        stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await.unwrap();
        stream.write_all(ANSWER).await.unwrap();
        seen
    });
    let mut client = TcpStream::connect(proxy.uri().trim_start_matches("http://")).await.unwrap();
    client.write_all(REQUEST).await.unwrap();
    let mut answer = vec![0; ANSWER.len()];
    client.read_exact(&mut answer).await.unwrap();
    assert_eq!(answer, ANSWER);
    assert_eq!(upstream.await.unwrap(), REQUEST);
}
