//! S3 in this process's memory, as far as the files of a table need it, with what no emulator has: a copy of everything,
//! a clock that a test turns, and an end at any call, before its effect or after it.
//!
//! Not here: multipart uploads (files above 16 MiB), conditional writes, signatures, pages of a listing.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use aws_sdk_s3::primitives::{DateTime, DateTimeFormat};

use crate::fault_proxy::Canned;
use crate::host::Host;
use crate::objects::Objects;
use crate::wire::{Message, Reply, serve};

/// A running store; it ends when it is dropped.
#[derive(Debug)]
pub struct ObjectStore {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    _host: Host,
}

/// All objects of a store at one moment.
#[derive(Clone, Debug, Default)]
pub struct Contents(BTreeMap<String, Object>);

/// A call that the store has heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    Get,
    Head,
    List,
    Put,
    Delete,
}

/// Where the life of a client ends: this call, counted from 0, and every later one is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct End {
    pub call: usize,
    /// The call itself has its effect; only its answer is withheld.
    pub after: bool,
}

#[derive(Clone, Debug)]
struct Object {
    bytes: Arc<[u8]>,
    modified: SystemTime,
}

#[derive(Debug, Default)]
struct State {
    /// By bucket and key.
    objects: BTreeMap<String, Object>,
    calls: Vec<Call>,
    end: Option<End>,
}

impl Call {
    /// Whether anything is different after it.
    #[must_use]
    pub fn changes(self) -> bool {
        matches!(self, Self::Put | Self::Delete)
    }
}

impl ObjectStore {
    /// A store that holds this; every bucket is there.
    #[must_use]
    pub fn start(contents: Contents) -> Self {
        let host = Host::start("object-store");
        let (address, listener) = host.listen();
        let state = Arc::new(Mutex::new(State { objects: contents.0, ..State::default() }));
        let shared = Arc::clone(&state);
        host.spawn(serve(listener, move |request| {
            let answer = Reply::Answer(lock(&shared).answer(&request));
            async move { answer }
        }));
        Self { address, state, _host: host }
    }

    /// How clients reach it.
    #[must_use]
    pub fn objects(&self) -> Objects {
        Objects::at(&format!("http://{}", self.address))
    }

    /// A copy of all that it holds; objects are not copied themselves.
    #[must_use]
    pub fn contents(&self) -> Contents {
        Contents(self.state().objects.clone())
    }

    /// Every object, as `s3://bucket/key`.
    #[must_use]
    pub fn locations(&self) -> BTreeSet<String> {
        self.state().objects.keys().map(|place| format!("s3://{place}")).collect()
    }

    /// Puts an object that nobody has sent.
    ///
    /// # Panics
    /// When the location is not `s3://bucket/key`.
    pub fn put(&self, location: &str, content: &[u8]) {
        let place = location.strip_prefix("s3://").unwrap_or_else(|| panic!("{location}: s3:// expected"));
        self.state().objects.insert(place.to_owned(), Object { bytes: content.into(), modified: SystemTime::now() });
    }

    /// All objects become older by this much.
    pub fn age(&self, by: Duration) {
        self.state().objects.values_mut().for_each(|object| object.modified -= by);
    }

    /// What clients have asked since the last [`ObjectStore::end_at`].
    #[must_use]
    pub fn calls(&self) -> Vec<Call> {
        self.state().calls.clone()
    }

    /// Counts calls from zero, and refuses them from the end on; `None`: there is no end any more.
    pub fn end_at(&self, end: Option<End>) {
        let mut state = self.state();
        (state.calls, state.end) = (Vec::new(), end);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().expect("no panic under the lock")
}

impl State {
    fn answer(&mut self, request: &Message) -> Message {
        let (path, query) = request.target().split_once('?').unwrap_or((request.target(), ""));
        let place = decoded(path.trim_start_matches('/'));
        let call = match request.method() {
            "GET" if query.contains("list-type=2") => Call::List,
            "GET" => Call::Get,
            "HEAD" => Call::Head,
            "PUT" => Call::Put,
            "DELETE" => Call::Delete,
            _ => return Canned::xml(405, "MethodNotAllowed").message(),
        };
        let number = self.calls.len();
        self.calls.push(call);
        // A refusal that no client repeats.
        let refused = || Canned::xml(403, "AccessDenied").message();
        match self.end {
            Some(End { call: last, after }) if number > last || (number == last && !after) => refused(),
            Some(End { call: last, .. }) if number == last => {
                self.act(call, &place, query, request);
                refused()
            }
            _ => self.act(call, &place, query, request),
        }
    }

    fn act(&mut self, call: Call, place: &str, query: &str, request: &Message) -> Message {
        match call {
            Call::Get => self.get(place, request.header("range")),
            Call::Head => self.get(place, None).without_content(),
            Call::List => self.list(place.trim_end_matches('/'), query),
            Call::Put => {
                let object = Object { bytes: request.content().into(), modified: SystemTime::now() };
                self.objects.insert(place.to_owned(), object);
                Message::answer(200, &[("etag", "\"1\"")], &[])
            }
            Call::Delete => {
                self.objects.remove(place);
                Message::answer(204, &[], &[])
            }
        }
    }

    fn get(&self, place: &str, range: Option<&str>) -> Message {
        let Some(Object { bytes, .. }) = self.objects.get(place) else {
            return Canned::xml(404, "NoSuchKey").message();
        };
        let Some((from, to)) = range.map(|range| bounds(range, bytes.len())) else {
            return Message::answer(200, &[("etag", "\"1\"")], bytes);
        };
        match bytes.get(from..to).filter(|part| !part.is_empty()) {
            Some(part) => {
                let of = format!("bytes {from}-{}/{}", to - 1, bytes.len());
                Message::answer(206, &[("etag", "\"1\""), ("content-range", &of)], part)
            }
            None => Canned::xml(416, "InvalidRange").message(),
        }
    }

    fn list(&self, bucket: &str, query: &str) -> Message {
        let prefix = query.split('&').find_map(|part| part.strip_prefix("prefix="));
        let below = format!("{bucket}/{}", decoded(prefix.unwrap_or_default()));
        let found = self.objects.iter().filter(|(place, _)| place.starts_with(&below));
        let entries: String = found.map(|(place, object)| entry(&place[bucket.len() + 1..], object)).collect();
        let text = format!(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\
             <ListBucketResult><IsTruncated>false</IsTruncated>{entries}</ListBucketResult>"
        );
        Message::answer(200, &[("content-type", "application/xml")], text.as_bytes())
    }
}

fn entry(key: &str, object: &Object) -> String {
    let modified = DateTime::from(object.modified).fmt(DateTimeFormat::DateTime).expect("a time of this century");
    let size = object.bytes.len();
    format!("<Contents><Key>{key}</Key><LastModified>{modified}</LastModified><Size>{size}</Size></Contents>")
}

/// `bytes=first-last`, `bytes=first-` or `bytes=-count` of an object, the end excluded.
fn bounds(range: &str, length: usize) -> (usize, usize) {
    let (first, last) = range.strip_prefix("bytes=").and_then(|range| range.split_once('-')).unwrap_or_default();
    match (first.parse::<usize>(), last.parse::<usize>()) {
        (Ok(first), Ok(last)) => (first, (last + 1).min(length)),
        (Ok(first), Err(_)) => (first, length),
        (Err(_), Ok(count)) => (length.saturating_sub(count), length),
        (Err(_), Err(_)) => (0, length),
    }
}

/// Text of a path or query, in which some bytes are written as `%41`.
fn decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let coded = tail.get(..2).filter(|_| *first == b'%').and_then(|code| std::str::from_utf8(code).ok());
        match coded.and_then(|code| u8::from_str_radix(code, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &tail[2..];
            }
            None => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objects;

    #[tokio::test]
    async fn amazons_client_writes_reads_lists_and_removes() {
        let store = ObjectStore::start(Contents::default());
        let client = store.objects().client();
        let location = "s3://lake/a b/1=2.parquet";
        objects::put(&client, location, b"0123456789".to_vec()).await.expect("written");
        assert_eq!(&objects::get(&client, location).await.expect("read")[..], b"0123456789");
        assert_eq!(objects::size(&client, location).await, Some(10));
        for (range, expected) in [("bytes=2-4", "234"), ("bytes=7-", "789"), ("bytes=-3", "789"), ("bytes=8-90", "89")]
        {
            let call = client.get_object().bucket("lake").key("a b/1=2.parquet").range(range);
            let part = call.send().await.expect("a part").body.collect().await.expect("whole").into_bytes();
            assert_eq!(&part[..], expected.as_bytes(), "{range}");
        }
        store.age(Duration::from_secs(86_400));
        let listed = client.list_objects_v2().bucket("lake").prefix("a b/").send().await.expect("a list");
        let [object] = listed.contents() else { panic!("one object: {listed:?}") };
        assert_eq!((object.key(), object.size()), (Some("a b/1=2.parquet"), Some(10)));
        let modified = SystemTime::try_from(*object.last_modified().expect("a time")).expect("after 1970");
        assert!(SystemTime::now().duration_since(modified).expect("in the past") >= Duration::from_secs(86_399));
        client.delete_object().bucket("lake").key("a b/1=2.parquet").send().await.expect("removed");
        assert!(objects::get(&client, location).await.is_err());
    }

    #[tokio::test]
    async fn from_its_end_on_it_refuses_whatever_had_its_effect() {
        for after in [false, true] {
            let store = ObjectStore::start(Contents::default());
            let client = store.objects().client();
            store.end_at(Some(End { call: 1, after }));
            objects::put(&client, "s3://lake/0", Vec::new()).await.expect("before the end");
            assert!(objects::put(&client, "s3://lake/1", Vec::new()).await.is_err());
            assert!(objects::get(&client, "s3://lake/0").await.is_err());
            assert_eq!(store.calls(), [Call::Put, Call::Put, Call::Get]);
            assert_eq!(store.locations().contains("s3://lake/1"), after);
            store.end_at(None);
            assert!(objects::get(&client, "s3://lake/0").await.is_ok());
        }
    }
}
