//! What a rule of the fault proxy matches, how often it acts, and what it does.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use fastrand::Rng;

use crate::wire::Message;

/// Acts on requests with this method (empty: any) whose path and query contain this text (empty: any).
#[derive(Clone, Debug)]
pub struct Rule {
    pub method: &'static str,
    /// Compared with the path and query as they were sent: `/` in a name is `%2F` there.
    pub path: String,
    pub when: When,
    pub fault: Fault,
}

/// Which of the matching requests.
#[derive(Clone, Copy, Debug)]
pub enum When {
    /// The next so many.
    Next(usize),
    /// One, after so many were let through.
    After(usize),
    /// Each with this probability, by a seeded choice.
    Chance {
        probability: f64,
        seed: u64,
    },
    Always,
}

/// What happens to a request.
#[derive(Clone, Debug)]
pub enum Fault {
    /// The connection ends; the upstream never hears of it.
    LoseRequest,
    /// The upstream acts; its answer is dropped and the connection ends.
    LoseAnswer,
    /// The connection ends at once; the upstream gets the request later.
    LandLate(Landing),
    /// The upstream gets it twice; the client sees the second answer.
    SendTwice,
    /// This answer; the upstream never hears of it.
    Refuse(Canned),
    /// The upstream acts, the client sees this answer.
    RefuseAfter(Canned),
    /// Half the answer's body, then the end of the connection.
    Truncate,
    /// Neither forwarded nor answered, and the connection stays open.
    Stall,
    /// Forwarded after this time.
    Slow(Duration),
    /// A read is answered as it was the last time it passed; one that never passed is forwarded, and is no hit.
    StaleRead,
    /// One bit of the request's body is turned on the way.
    FlipRequest,
    /// One bit of the answer's body is turned on the way.
    FlipAnswer,
}

/// When a late request is delivered.
#[derive(Clone, Copy, Debug)]
pub enum Landing {
    After(Duration),
    /// By `FaultProxy::land`: after whatever the test lets happen first.
    WhenTold,
}

/// A made-up answer.
#[derive(Clone, Debug)]
pub struct Canned {
    pub status: u16,
    pub content_type: &'static str,
    /// Amazon's JSON protocols name the error in the header `x-amzn-errortype`.
    pub error_type: Option<&'static str>,
    pub body: String,
}

/// How often a rule has acted.
#[derive(Clone, Debug, Default)]
pub struct Hits(Arc<AtomicUsize>);

impl Rule {
    /// A rule for requests with this method and text in their path.
    pub fn new(when: When, method: &'static str, path: impl Into<String>, fault: Fault) -> Self {
        Self { method, path: path.into(), when, fault }
    }
}

impl Canned {
    /// As S3 refuses.
    #[must_use]
    pub fn xml(status: u16, code: &str) -> Self {
        let body = format!(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>{code}</Code><Message>{code}</Message></Error>"
        );
        Self { status, content_type: "application/xml", error_type: None, body }
    }

    /// As S3 Tables refuses.
    #[must_use]
    pub fn json(status: u16, code: &'static str) -> Self {
        let body = format!("{{\"message\":\"{code}\"}}");
        Self { status, content_type: "application/json", error_type: Some(code), body }
    }

    /// As an Iceberg REST catalog refuses.
    #[must_use]
    pub fn iceberg(status: u16, kind: &str) -> Self {
        let body = format!("{{\"error\":{{\"message\":\"{kind}\",\"type\":\"{kind}\",\"code\":{status}}}}}");
        Self { status, content_type: "application/json", error_type: None, body }
    }

    /// As a gateway in between refuses.
    #[must_use]
    pub fn html(status: u16) -> Self {
        let body = format!("<html><head><title>{status}</title></head><body><h1>{status}</h1></body></html>");
        Self { status, content_type: "text/html", error_type: None, body }
    }

    /// As S3 says that the session's credentials have ended.
    #[must_use]
    pub fn expired_token() -> Self {
        let body = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>ExpiredToken</Code>\
                    <Message>The provided token has expired.</Message></Error>";
        Self { status: 403, content_type: "application/xml", error_type: None, body: body.to_owned() }
    }

    /// The same from S3 Tables.
    #[must_use]
    pub fn expired_token_json() -> Self {
        let body = "{\"message\":\"The security token included in the request is expired\"}".to_owned();
        Self { status: 403, content_type: "application/json", error_type: Some("ExpiredTokenException"), body }
    }

    pub(crate) fn message(&self) -> Message {
        let mut headers = vec![("content-type", self.content_type)];
        headers.extend(self.error_type.map(|kind| ("x-amzn-errortype", kind)));
        Message::answer(self.status, &headers, self.body.as_bytes())
    }
}

impl Hits {
    #[must_use]
    pub fn count(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

/// A rule at work.
#[derive(Debug)]
pub(super) struct Active {
    rule: Rule,
    dice: Rng,
    /// Requests that matched so far.
    matched: usize,
    hits: Hits,
}

impl Active {
    pub(super) fn new(rule: Rule) -> Self {
        let seed = if let When::Chance { seed, .. } = rule.when { seed } else { 0 };
        Self { rule, dice: Rng::with_seed(seed), matched: 0, hits: Hits::default() }
    }

    pub(super) fn hits(&self) -> Hits {
        self.hits.clone()
    }

    /// The fault, if this rule acts on this request. `remembered`: a stale read has something to say.
    pub(super) fn apply(&mut self, request: &Message, remembered: bool) -> Option<Fault> {
        let Rule { method, path, when, fault } = &self.rule;
        let matches = (method.is_empty() || *method == request.method()) && request.target().contains(path.as_str());
        let possible = !matches!(fault, Fault::StaleRead) || (request.method() == "GET" && remembered);
        if !matches || !possible {
            return None;
        }
        self.matched += 1;
        let acts = match *when {
            When::Next(count) => self.matched <= count,
            When::After(count) => self.matched == count + 1,
            When::Chance { probability, .. } => self.dice.f64() < probability,
            When::Always => true,
        };
        acts.then(|| {
            self.hits.0.fetch_add(1, Ordering::SeqCst);
            fault.clone()
        })
    }
}
