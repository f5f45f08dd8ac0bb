//! A proxy that understands HTTP and breaks it on purpose: an answer lost after its effect, a request that lands later
//! than its successor, two for one, half an answer. In front of S3, of S3 Tables or of an Iceberg REST catalog.
//!
//! Requests reach the upstream byte for byte: path, query, headers and body are the client's. That includes `Host`, which
//! names the proxy: a signature covers it, and a server that checks signatures takes the name from the request it
//! received. So signatures stay valid, at any server that does not insist on a host name of its own; Amazon does, and
//! is not reached through here. Plain HTTP only; bodies are held in memory.
//!
//! Not here: the bytes on the wire (`wire`), what a rule matches and does (`rule`), counting (`requests`).

mod requests;
mod rule;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::runtime::Handle;
use tokio::time::sleep;

use crate::host::{Host, authority};
use crate::wire::{Message, Reply, forward, serve};

pub use requests::Requests;
pub use rule::{Canned, Fault, Hits, Landing, Rule, When};

/// What stale reads remember: answers up to this size, of so many addresses.
const REMEMBERED_BYTES: usize = 8 << 20;
const REMEMBERED_ADDRESSES: usize = 1_000;

/// A running proxy; it ends when it is dropped.
#[derive(Debug)]
pub struct FaultProxy {
    address: SocketAddr,
    inside: Arc<Inside>,
    _host: Host,
}

#[derive(Debug)]
struct Inside {
    upstream: String,
    state: Mutex<State>,
    runtime: Handle,
}

#[derive(Debug, Default)]
struct State {
    rules: Vec<rule::Active>,
    requests: Requests,
    /// Requests whose clients were told nothing, waiting to be delivered.
    parked: Vec<Message>,
    /// The last good answer of each address that was read.
    remembered: HashMap<String, Message>,
}

impl FaultProxy {
    /// In front of a server such as `http://127.0.0.1:4566`. Without rules it only counts.
    #[must_use]
    pub fn start(upstream: &str) -> Self {
        let host = Host::start("fault-proxy");
        let (address, listener) = host.listen();
        let state = Mutex::default();
        let inside = Arc::new(Inside { upstream: authority(upstream), state, runtime: host.handle() });
        let shared = Arc::clone(&inside);
        host.spawn(serve(listener, move |request| {
            let inside = Arc::clone(&shared);
            async move { inside.pass(request).await }
        }));
        Self { address, inside, _host: host }
    }

    /// What clients connect to instead of the upstream.
    #[must_use]
    pub fn uri(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Adds a rule after those that stand; of several that match a request, the first acts.
    pub fn add(&self, rule: Rule) -> Hits {
        let active = rule::Active::new(rule);
        let hits = active.hits();
        self.inside.state().rules.push(active);
        hits
    }

    /// Forgets all rules. Parked requests stay parked.
    pub fn heal(&self) {
        self.inside.state().rules.clear();
    }

    /// How many requests wait to be delivered ([`Landing::WhenTold`]).
    #[must_use]
    pub fn parked(&self) -> usize {
        self.inside.state().parked.len()
    }

    /// Delivers the parked requests, oldest first, each after the answer to the one before; returns the statuses that
    /// nobody else will see, 0 for a broken connection.
    pub async fn land(&self) -> Vec<u16> {
        let parked = std::mem::take(&mut self.inside.state().parked);
        let mut statuses = Vec::new();
        for request in parked {
            let answer = forward(&self.inside.upstream, &request).await;
            statuses.push(answer.map_or(0, |answer| answer.status()));
        }
        statuses
    }

    /// What clients have sent since the start or the last [`FaultProxy::reset_requests`].
    #[must_use]
    pub fn requests(&self) -> Requests {
        self.inside.state().requests.clone()
    }

    /// Counts from zero again.
    pub fn reset_requests(&self) {
        self.inside.state().requests = Requests::default();
    }
}

impl Inside {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic under the lock")
    }

    async fn pass(self: &Arc<Self>, mut request: Message) -> Reply {
        let fault = self.choose(&request);
        match fault {
            None => self.answer(&request).await,
            Some(Fault::LoseRequest) => Reply::Close,
            Some(Fault::LoseAnswer) => {
                self.answer(&request).await;
                Reply::Close
            }
            Some(Fault::LandLate(landing)) => {
                self.postpone(request, landing);
                Reply::Close
            }
            Some(Fault::SendTwice) => {
                self.answer(&request).await;
                self.answer(&request).await
            }
            Some(Fault::Refuse(canned)) => Reply::Answer(canned.message()),
            Some(Fault::RefuseAfter(canned)) => {
                self.answer(&request).await;
                Reply::Answer(canned.message())
            }
            Some(Fault::Truncate) => match self.answer(&request).await {
                Reply::Answer(answer) => Reply::Fragment(answer.first_half()),
                other => other,
            },
            Some(Fault::Stall) => std::future::pending().await,
            Some(Fault::Slow(duration)) => {
                sleep(duration).await;
                self.answer(&request).await
            }
            Some(Fault::StaleRead) => self.stale(&request).await,
            Some(Fault::FlipRequest) => {
                request.flip_a_bit();
                self.answer(&request).await
            }
            Some(Fault::FlipAnswer) => match self.answer(&request).await {
                Reply::Answer(mut answer) => {
                    answer.flip_a_bit();
                    Reply::Answer(answer)
                }
                other => other,
            },
        }
    }

    /// Counts the request and asks the rules.
    fn choose(&self, request: &Message) -> Option<Fault> {
        let mut state = self.state();
        state.requests.count(request.method(), request.target());
        let key = address(request);
        let remembered = state.remembered.contains_key(&key);
        state.rules.iter_mut().find_map(|rule| rule.apply(request, remembered))
    }

    async fn answer(&self, request: &Message) -> Reply {
        match forward(&self.upstream, request).await {
            Ok(answer) => {
                self.remember(request, &answer);
                Reply::Answer(answer)
            }
            // The upstream is away or has hung up: to the client that is a broken connection too.
            Err(_) => Reply::Close,
        }
    }

    fn postpone(self: &Arc<Self>, request: Message, landing: Landing) {
        match landing {
            Landing::WhenTold => self.state().parked.push(request),
            Landing::After(duration) => {
                let inside = Arc::clone(self);
                self.runtime.spawn(async move {
                    sleep(duration).await;
                    let _ = forward(&inside.upstream, &request).await;
                });
            }
        }
    }

    async fn stale(&self, request: &Message) -> Reply {
        let remembered = self.state().remembered.get(&address(request)).cloned();
        match remembered {
            Some(answer) => Reply::Answer(answer),
            None => self.answer(request).await,
        }
    }

    fn remember(&self, request: &Message, answer: &Message) {
        if request.method() != "GET" || answer.status() != 200 || answer.content_length() > REMEMBERED_BYTES {
            return;
        }
        let mut state = self.state();
        let key = address(request);
        if state.remembered.len() < REMEMBERED_ADDRESSES || state.remembered.contains_key(&key) {
            state.remembered.insert(key, answer.clone());
        }
    }
}

/// What makes two reads the same: address and, of objects, the range.
fn address(request: &Message) -> String {
    format!("{} {}", request.target(), request.header("range").unwrap_or_default())
}
