//! The service is killed while it does what an operator has asked for over HTTP: a rollback of all tables, its undo, a
//! replay, a resync; and in most lives the worker with it. Started again, they bring it to its end, or it has never begun:
//! both tables are always at one end, and in the end every change of the source is in them once.
//!
//! `LAKEHOUSE_KILLS` sets the number of kills, `LAKEHOUSE_SEED` the seed.

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

use crate::kills::watch;
use crate::live::books::Books;
use crate::live::{DEADLINE, PIPELINE, Site, stop};
use crate::operate_http::{Scene, serve};
use fastrand::Rng;
use serde_json::{Value, json};
use testkit::http::exchange;
use testkit::lakehouse::Process;
use testkit::tier;
use tokio::task::JoinHandle;

/// In the order in which an operation goes through them.
const TABLES: [&str; 2] = ["beside", "t"];
/// So that a copy takes a moment.
const ROWS: u32 = 5_000;
const POLL: Duration = Duration::from_millis(50);
/// How long a step is waited for that may not come: longer than a fenced worker rests.
const LONGEST: Duration = Duration::from_secs(5);

/// Both tables of an operation, held or not.
const HELD: [&str; 2] = ["paused_diverged"; 2];
const STREAMING: [&str; 2] = ["streaming"; 2];

const CONTROL: &str = "lakehouse_control/app";
const BESIDE: &str = "app/beside";
const T: &str = "app/t";

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Verb {
    Rollback,
    Undo,
    Replay,
    Resync,
}

/// A table's folder, and which one of its metadata files since the request: written, and named by the catalog right behind.
type Step = (&'static str, usize);

impl Verb {
    const ALL: [Verb; 4] = [Verb::Rollback, Verb::Undo, Verb::Replay, Verb::Resync];

    /// Its steps, as far as metadata shows them.
    fn steps(self) -> &'static [Step] {
        match self {
            // The journal opens; tag and forward commit of each table; the journal closes.
            Verb::Rollback => &[(CONTROL, 1), (BESIDE, 1), (BESIDE, 2), (T, 1), (T, 2), (CONTROL, 2)],
            // The journal turns; each table goes back; it closes. A worker takes over, each table catches up; a cut.
            Verb::Undo => {
                &[(CONTROL, 1), (BESIDE, 1), (T, 1), (CONTROL, 2), (CONTROL, 3), (BESIDE, 2), (T, 2), (CONTROL, 4)]
            }
            // It is asked for; a worker takes over, each table catches up; a cut.
            Verb::Replay => &[(CONTROL, 1), (CONTROL, 2), (BESIDE, 1), (T, 1), (CONTROL, 3)],
            // It is asked for; a worker takes over, each table is copied, swapped and in a cut again.
            Verb::Resync => &[(CONTROL, 1), (CONTROL, 2), (BESIDE, 1), (CONTROL, 3), (T, 1), (CONTROL, 4)],
        }
    }
}

/// Metadata files of a table.
fn metadata_files(site: &Site, folder: &str) -> usize {
    let folder = site.path().join("lake/warehouse").join(folder).join("metadata");
    let entries = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let is_metadata = |name: &str| name.ends_with(".metadata.json");
    entries.flatten().filter(|entry| entry.file_name().to_str().is_some_and(is_metadata)).count()
}

/// A property that is a JSON document; null where there is none.
fn property(metadata: &Value, key: &str) -> Value {
    let text = metadata["properties"][key].as_str();
    text.map_or(Value::Null, |text| serde_json::from_str(text).unwrap_or_else(|error| panic!("{key}: {error}: {text}")))
}

struct Desk {
    scene: Scene,
    worker: Process,
    books: Books,
    rng: Rng,
}

/// A request of the operator.
struct Request {
    target: String,
    headers: Vec<(&'static str, String)>,
    body: Value,
}

impl Request {
    fn new(target: String, body: Value) -> Self {
        Self { target, headers: Vec::new(), body }
    }
}

/// What both tables hold.
type Rows = [Vec<String>; 2];

impl Desk {
    async fn begin(rng: Rng) -> Self {
        let (scene, worker) = Scene::begin().await;
        let desk = Self { scene, worker, books: Books::open().await, rng };
        desk.change(&format!(
            "INSERT INTO t SELECT n, 0 FROM generate_series(101, {ROWS}) n;
             INSERT INTO beside SELECT n, 0 FROM generate_series(11, {ROWS}) n"
        ))
        .await;
        desk
    }

    /// A transaction at the source, in the lake.
    async fn change(&self, sql: &str) {
        self.scene.live.transaction(sql).await;
        self.scene.live.site.caught_up().await;
    }

    async fn metadata(&mut self, table: &str) -> Value {
        self.books.metadata(&self.scene.live.site, table).await
    }

    async fn rows(&mut self) -> Rows {
        let mut rows = Rows::default();
        for (rows, table) in rows.iter_mut().zip(TABLES) {
            *rows = self.books.rows(&self.scene.live.site, &format!("app.{table}"), &["id", "n"]).await;
        }
        rows
    }

    /// Copies of each table that have come to their end.
    async fn copies(&mut self) -> [usize; 2] {
        let mut copies = [0; 2];
        for (copies, table) in copies.iter_mut().zip(TABLES) {
            let ranges = self.books.ranges(&self.scene.live.site, &format!("app.{table}")).await;
            *copies = ranges.iter().filter(|range| range.kind == "copy" && range.to.is_some()).count();
        }
        copies
    }

    async fn states(&self) -> [String; 2] {
        let pipeline = self.scene.get("/v1/pipelines/app").await;
        let tables = pipeline["tables"].as_array().expect("tables");
        TABLES.map(|name| {
            let table = tables.iter().find(|table| table["table"] == format!("app.{name}"));
            table.expect("a table")["state"].as_str().expect("a state").to_owned()
        })
    }

    /// Until both tables are in this state.
    async fn both(&self, wanted: [&str; 2]) {
        let wait = async {
            while self.states().await != wanted {
                tokio::time::sleep(POLL).await;
            }
        };
        let done = tokio::time::timeout(DEADLINE, wait).await;
        done.unwrap_or_else(|_| panic!("not {wanted:?}; {}", self.worker.stderr()));
    }

    async fn last_operation(&self) -> Option<Value> {
        let known = self.scene.get("/v1/operations?page_size=1000").await;
        known["operations"].as_array().expect("operations").last().cloned()
    }

    /// The last operation and its stage, once that is none in which somebody is at work.
    async fn closed_operation(&self) -> Option<(String, String)> {
        let wait = async {
            loop {
                let last = self.last_operation().await;
                let text = |key: &str| last.as_ref().and_then(|last| last[key].as_str()).map(str::to_owned);
                match text("stage").as_deref() {
                    Some("forward" | "back") => tokio::time::sleep(POLL).await,
                    _ => return text("id").zip(text("stage")),
                }
            }
        };
        tokio::time::timeout(DEADLINE, wait).await.expect("an operation stays open")
    }

    async fn plan(&self, cut: &str) -> Value {
        let (status, plan) = self.scene.post("operator", "/v1/rollbacks", json!({"pipeline": "app", "cut": cut})).await;
        assert_eq!(status, 200, "{plan}");
        plan
    }

    /// Asked, and answered that it is begun.
    async fn begun(&self, target: &str, body: Value) {
        let (status, answer) = self.scene.post("operator", target, body).await;
        assert_eq!(status, 202, "{target}: {answer}");
    }

    /// What is going to be asked for, once everything stands ready for it.
    async fn request(&mut self, verb: Verb, cut: &str, key: &str) -> Request {
        let reason = json!({"reason": "test"});
        match verb {
            Verb::Rollback => {
                let plan = self.plan(cut).await;
                let text = |field: &str| plan[field].as_str().expect("a text").to_owned();
                let headers = vec![("if-match", text("etag")), ("idempotency-key", key.to_owned())];
                Request { target: format!("/v1/rollbacks/{}/confirm", text("id")), headers, body: reason }
            }
            Verb::Undo | Verb::Replay => {
                let plan = self.plan(cut).await;
                let operation = self.scene.rolled_back(&plan, key).await;
                self.both(HELD).await;
                let way = if verb == Verb::Undo { "undo" } else { "replay" };
                let id = operation["id"].as_str().expect("an id");
                Request::new(format!("/v1/operations/{id}/{way}"), reason)
            }
            Verb::Resync => {
                let body = json!({"tables": ["app.beside", "app.t"], "reason": "test"});
                Request::new("/v1/pipelines/app/resync".to_owned(), body)
            }
        }
    }

    /// Sends it from a client that waits for the answer, which may never come.
    fn send(&self, request: &Request) -> JoinHandle<Option<u16>> {
        let uri = format!("{}{}", self.scene.uri, request.target);
        let (headers, body) = (request.headers.clone(), request.body.to_string());
        tokio::spawn(async move {
            let own = [("authorization", "Bearer operator-token"), ("content-type", "application/json")];
            let more = headers.iter().map(|(name, value)| (*name, value.as_str()));
            let headers: Vec<_> = own.into_iter().chain(more).collect();
            exchange("POST", &uri, &headers, &body).await.ok().map(|answer| answer.status())
        })
    }

    /// Asks, and kills at the step, or at any moment: the service, and mostly the worker too. Returns whether both died.
    async fn killed(&mut self, request: &Request, step: Option<Step>) -> bool {
        let site = &self.scene.live.site;
        let written = step.map_or(0, |(folder, _)| metadata_files(site, folder));
        let asked = self.send(request);
        match step {
            Some((folder, nth)) => {
                let site = &self.scene.live.site;
                watch(Instant::now() + LONGEST, || metadata_files(site, folder) >= written + nth).await;
                // Before the catalog names the file, or behind it.
                tokio::time::sleep(Duration::from_micros(self.rng.u64(..8_000))).await;
            }
            None => tokio::time::sleep(Duration::from_millis(self.rng.u64(..1_500))).await,
        }
        let both = self.rng.u8(..3) > 0;
        self.scene.service.kill().await;
        if both {
            self.worker.kill().await;
        }
        let answered = asked.await.expect("a client");
        assert!(answered.is_none_or(|status| status == 202), "{}: {answered:?}", request.target);
        both
    }

    async fn start_again(&mut self, worker_too: bool) {
        if worker_too {
            self.worker = self.scene.live.site.start();
        }
        (self.scene.service, self.scene.uri) = serve(&self.scene.live).await;
    }

    /// Where the tables stand for the cut: by name, in one word.
    fn places(cut: &Value) -> [&'static str; 2] {
        TABLES.map(|table| match &cut["left"][format!("public.{table}")] {
            Value::Null => "in the cut",
            left if left["code"] == "RESYNC_REQUESTED" => "to be copied",
            left if left["release"].is_object() => "to be released",
            _ => "held",
        })
    }

    /// What the kill has left behind, by the metadata alone.
    async fn found(&mut self, verb: Verb, known: Option<&str>) -> String {
        let control = self.metadata(&format!("lakehouse_control.{PIPELINE}")).await;
        let (journal, places) = (property(&control, "cdc.journal"), Self::places(&property(&control, "cdc.cut")));
        if verb == Verb::Resync {
            return format!("beside {}, t {}", places[0], places[1]);
        }
        let id = journal["id"].as_str();
        if verb == Verb::Rollback && id == known {
            return "not begun".to_owned();
        }
        let undo = format!("undo/{}", id.expect("an operation"));
        let mut found = journal["stage"].as_str().expect("a stage").to_owned();
        for (table, place) in TABLES.into_iter().zip(places) {
            let metadata = self.metadata(&format!("app.{table}")).await;
            let mark = property(&metadata, "cdc.operation");
            let done = match mark["mark"].as_str().filter(|_| mark["id"].as_str() == id) {
                Some(done) => done,
                None if metadata["refs"][&undo].is_object() => "tagged",
                None => "untouched",
            };
            found += &format!("; {table} {done}, {place}");
        }
        found
    }

    /// One request, one kill, and everything that must be true afterwards. Returns what the kill hit, and how it ended.
    async fn round(&mut self, verb: Verb, step: Option<Step>, number: u64) -> (String, &'static str) {
        let pipeline = self.scene.get("/v1/pipelines/app").await;
        let cut = pipeline["cut"]["position"].as_str().expect("a cut").to_owned();
        let before = self.rows().await;
        self.change(&format!(
            "UPDATE t SET n = n + 1 WHERE id % 20 = {0}; DELETE FROM t WHERE id = 100 + {number};
             UPDATE beside SET n = n + 1 WHERE id % 20 = {0}; INSERT INTO beside VALUES (100000 + {number}, {number})",
            number % 20
        ))
        .await;
        let after = self.rows().await;
        assert!(before != after);
        let request = self.request(verb, &cut, &format!("kill-{number}")).await;
        let known = self.last_operation().await.and_then(|last| last["id"].as_str().map(str::to_owned));
        let copies = self.copies().await;

        let both = self.killed(&request, step).await;
        let found = self.found(verb, known.as_deref()).await;
        if both && verb != Verb::Rollback {
            // Asked for both tables, or for none; a resync ends for one after the other.
            let halves = ["held", "to be released"].map(|place| found.matches(place).count());
            assert!(halves.iter().all(|count| *count != 1), "{found}");
        }
        self.start_again(both).await;
        let end = match verb {
            Verb::Rollback => self.end_of_rollback(known.as_deref(), &before, &after, number).await,
            Verb::Undo | Verb::Replay => self.end_of_hold(verb, &request, &before).await,
            Verb::Resync => {
                self.both(STREAMING).await;
                let made: Vec<bool> = self.copies().await.iter().zip(copies).map(|(now, then)| *now > then).collect();
                assert_eq!(made[0], made[1], "one of two tables is copied anew: {found}");
                if made[0] { "done" } else { "not begun" }
            }
        };
        self.both(STREAMING).await;
        assert!(self.rows().await == after, "{verb:?}, {found}: not the source's rows");
        // The stream goes on.
        self.change("UPDATE t SET n = n + 1 WHERE id = 1; UPDATE beside SET n = n + 1 WHERE id = 1").await;
        self.scene.live.site.assert_equal().await;
        (found, end)
    }

    /// All tables at the target, or none; then back to the source's rows by one way out or the other.
    async fn end_of_rollback(&mut self, known: Option<&str>, before: &Rows, after: &Rows, number: u64) -> &'static str {
        let last = self.closed_operation().await.filter(|(id, _)| Some(id.as_str()) != known);
        let Some((id, stage)) = last else {
            self.both(STREAMING).await;
            assert!(self.rows().await == *after, "what has not begun has changed rows");
            return "not begun";
        };
        if stage != "rolled_back" {
            assert_eq!(stage, "released");
            self.both(STREAMING).await;
            assert!(self.rows().await == *after, "a rollback that was turned back has left its rows");
            return "turned back";
        }
        self.both(HELD).await;
        assert!(self.rows().await == *before, "not every table is at its target");
        let way = if number.is_multiple_of(8) { "undo" } else { "replay" };
        self.begun(&format!("/v1/operations/{id}/{way}"), json!({"reason": "test"})).await;
        "done"
    }

    /// Asked for again, where the kill came before it was.
    async fn end_of_hold(&mut self, verb: Verb, request: &Request, before: &Rows) -> &'static str {
        let (_, stage) = self.closed_operation().await.expect("an operation");
        let control = self.metadata(&format!("lakehouse_control.{PIPELINE}")).await;
        let begun = match verb {
            Verb::Undo => stage == "released",
            _ => Self::places(&property(&control, "cdc.cut")) != ["held"; 2],
        };
        if begun {
            return "done";
        }
        assert_eq!((stage.as_str(), self.states().await), ("rolled_back", HELD.map(str::to_owned)));
        assert!(self.rows().await == *before, "what has not begun has changed rows");
        self.begun(&request.target, request.body.clone()).await;
        "not begun"
    }

    /// No position has ever gone back, and no change is in a history twice.
    async fn check_histories(&mut self) {
        let site = &self.scene.live.site;
        let cuts = self.books.cuts(site).await;
        assert!(cuts.is_sorted_by_key(|cut| cut.position), "{cuts:?}");
        for table in TABLES {
            for table in [format!("app.{table}"), format!("app.{table}_history")] {
                let reached: Vec<u64> = self.books.ranges(site, &table).await.iter().filter_map(|one| one.to).collect();
                assert!(reached.is_sorted(), "{table}: {reached:?}");
            }
            let doubled = "SELECT count(*) - count(DISTINCT (_cdc_position, _cdc_ordinal)) FROM t";
            let history = format!("app.{table}_history");
            assert_eq!(self.books.sql(site, &history, None, doubled).await, [r#"["0"]"#], "{history}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operation_that_is_killed_at_any_step_ends_in_all_its_tables_or_has_not_begun() {
    let kills = tier::size("LAKEHOUSE_KILLS", 8, 200);
    let seed = tier::seed();
    eprintln!("killed operations: LAKEHOUSE_SEED={seed} LAKEHOUSE_KILLS={kills}");
    let mut desk = Desk::begin(Rng::with_seed(seed)).await;
    let first = desk.rng.usize(..100);
    let (mut steps, mut ends) = (BTreeMap::<_, u64>::new(), BTreeMap::<_, u64>::new());
    for (turn, number) in (0..kills).enumerate() {
        let verb = Verb::ALL[turn % Verb::ALL.len()];
        let own = verb.steps();
        // Every third at no step that anybody has chosen.
        let step = (turn % 3 < 2).then(|| own[(first + turn / Verb::ALL.len()) % own.len()]);
        let (found, end) = desk.round(verb, step, number).await;
        *steps.entry((verb, found)).or_default() += 1;
        *ends.entry((verb, end)).or_default() += 1;
    }
    desk.check_histories().await;
    println!("{kills} kills, by what they have left behind:");
    steps.iter().for_each(|((verb, found), count)| println!("  {count:4} {verb:?}: {found}"));
    println!("and by how it ended: {ends:?}");
    assert!(kills < 100 || steps.len() > 8, "the kills have hit few steps");
    let Desk { worker, .. } = desk;
    stop(worker).await;
}
