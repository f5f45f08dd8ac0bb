//! The whole story on real parts: a PostgreSQL full of payments, the service beside it, a live load, another engine that
//! reads the lake now and in the past, and the verdict.
//!
//! Here is what happens and what is told. Each part is a module: the source (`database`), what happens in it
//! (`workload`), the app's own data in DynamoDB (`app_data`), where tables are (`catalog`), the product (`service`), other engines (`duckdb`, `pyiceberg`), the way back behind a mistake (`bad_release`), and the
//! looks (`screen`). The demo uses nothing that its reader cannot use: the binary, its configuration, SQL, a few lines of
//! Python.

mod app_data;
mod bad_release;
mod catalog;
mod database;
mod duckdb;
mod pyiceberg;
mod screen;
mod service;
mod workload;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;
use testkit::postgres::{self, Cluster};
use tokio::signal::unix::{SignalKind, signal};
use tokio_postgres::{Client, SimpleQueryMessage};

use app_data::{AppData, Traffic};
use catalog::{Catalog, Kind};
use database::{DATABASE, Sizes};
use duckdb::{DuckDb, Table};
use pyiceberg::PyIceberg;
use screen::{Screen, Style, bars, count, rate, seconds, yen};
use service::{Lakehouse, Service, Snapshot, Status};
use workload::{Shop, Tally, Workload};

/// Of the story; servers of a catalog are one more, and staying up is.
const STEPS: usize = 11;
const DEFAULT_ROWS: u64 = 1_000_000;
const FEWEST_ROWS: u64 = 1_000;
/// The live part.
const LIVE: Duration = Duration::from_secs(20);
const WRITERS: u64 = 8;
const WRITER_PACE: u64 = 75;
/// What goes on when the story is told: enough to see that it lives.
const TRICKLE_PACE: u64 = 10;
/// Writes of the app, a second.
const APP_PACE: u64 = 80;
/// The pipeline that the story follows.
const PIPELINE: &str = "fuji";
/// Bound of the copy and of catching up.
const LONGEST_WAIT: Duration = Duration::from_secs(1_800);
/// Exit code of `interface.md` section 1: compared and found different.
const DIFFERENT: u8 = 5;
const INTERRUPTED: u8 = 130;

/// What the demo is asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// End with the verdict, and do not stay up.
    pub once: bool,
    /// Rows to load, at least.
    pub rows: u64,
    /// Where tables are.
    pub catalog: Kind,
}

const USAGE: &str = "usage: demo [--once] [--rows N] [--catalog sqlite|s3-tables|rest]";

impl Options {
    /// `[--once] [--rows N] [--catalog KIND]`.
    ///
    /// # Errors
    /// What is wrong, with the usage.
    pub fn parse(arguments: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut options = Self { once: false, rows: DEFAULT_ROWS, catalog: Kind::Sqlite };
        let mut arguments = arguments;
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--once" => options.once = true,
                "--rows" => {
                    let rows = arguments.next().and_then(|rows| rows.replace(['_', ','], "").parse().ok());
                    options.rows = rows.filter(|rows| *rows >= FEWEST_ROWS).ok_or("--rows takes a number from 1000")?;
                }
                "--catalog" => {
                    let kind = arguments.next().and_then(|name| Kind::named(&name));
                    options.catalog = kind.ok_or("--catalog takes sqlite, s3-tables or rest")?;
                }
                other => return Err(format!("unknown option {other}; {USAGE}")),
            }
        }
        Ok(options)
    }
}

/// Why the story cannot go on.
#[derive(Debug)]
pub(crate) struct Failed {
    exit: u8,
    message: String,
}

impl Failed {
    fn new(message: impl Into<String>) -> Self {
        Self { exit: 1, message: message.into() }
    }

    /// A verb's error object, as three lines.
    fn of_verb(verb: &str, exit: Option<i32>, answer: &Value) -> Self {
        let text = |key: &str| answer[key].as_str().unwrap_or("-").to_owned();
        let message = match answer["code"].as_str() {
            Some(code) => {
                format!(
                    "lakehouse {verb}: {code}: {}\n  at: {}\n  do: {}",
                    text("message"),
                    text("subject"),
                    text("remedy")
                )
            }
            None => format!("lakehouse {verb}: {answer}"),
        };
        Self { exit: exit.and_then(|exit| u8::try_from(exit).ok()).unwrap_or(1), message }
    }
}

impl From<tokio_postgres::Error> for Failed {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::new(match error.as_db_error() {
            Some(error) => format!("PostgreSQL: {} {}", error.code().code(), error.message()),
            None => format!("PostgreSQL: {error}"),
        })
    }
}

impl From<io::Error> for Failed {
    fn from(error: io::Error) -> Self {
        Self::new(error.to_string())
    }
}

/// How `verify`, and DuckDB's answers beside PostgreSQL's, came out.
struct Verdict {
    /// What differs; nothing is equal.
    differences: Vec<String>,
}

impl Verdict {
    fn exit(&self) -> u8 {
        if self.differences.is_empty() { 0 } else { DIFFERENT }
    }

    fn show(&self, screen: &mut Screen) {
        match self.differences.is_empty() {
            true => screen.verdict("verdict: equal", true),
            false => screen.verdict(&format!("verdict: different: {}", self.differences.join("; ")), false),
        }
    }
}

/// Tells the story, and cleans up behind it however it ends. The exit code.
pub async fn run(options: &Options) -> u8 {
    let steps = STEPS + usize::from(options.catalog != Kind::Sqlite) + usize::from(!options.once);
    let mut demo = Demo { screen: Screen::new(steps), service: None, workload: None, traffic: None, verdict: None };
    // They outlive the service.
    let mut servers = Servers::default();
    let folder = match tempfile::Builder::new().prefix("demo-").tempdir() {
        Ok(folder) => folder,
        Err(error) => {
            demo.screen.wrong(&format!("no temporary folder: {error}"));
            return 1;
        }
    };
    let ended = tokio::select! {
        biased;
        () = told_to_stop() => None,
        ended = demo.tell(options, folder.path(), &mut servers) => Some(ended),
    };
    if ended.is_none() {
        demo.screen.say("stopping what was started, and removing it");
    }
    if let Some(traffic) = demo.traffic.take() {
        let _ = traffic.stop().await;
    }
    if let Some(workload) = demo.workload.take() {
        // Its connections may be gone already, and nobody counts on what it did last.
        let _ = workload.stop().await;
    }
    if let Some(service) = demo.service.take() {
        service.stop().await;
    }
    match (ended, &demo.verdict) {
        (Some(Ok(())), Some(verdict)) => {
            verdict.show(&mut demo.screen);
            verdict.exit()
        }
        (Some(Err(failed)), _) => {
            demo.screen.wrong(&failed.message);
            failed.exit
        }
        // Ended by a person who had seen the verdict.
        (None, Some(verdict)) => verdict.exit(),
        (_, None) => INTERRUPTED,
    }
}

/// Ctrl-C, or SIGTERM.
async fn told_to_stop() {
    let (Ok(mut interrupt), Ok(mut terminate)) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        return std::future::pending().await;
    };
    // Either will do; both arms may be dropped.
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
}

/// What the service stands on.
#[derive(Default)]
struct Servers {
    cluster: Option<Cluster>,
    app: Option<AppData>,
    catalog: Option<Catalog>,
}

/// What must be ended in order when the story ends, in the middle too.
struct Demo {
    screen: Screen,
    service: Option<Service>,
    workload: Option<Workload>,
    traffic: Option<Traffic>,
    verdict: Option<Verdict>,
}

/// Somebody else's engines.
struct Readers {
    duckdb: DuckDb,
    pyiceberg: PyIceberg,
}

/// A moment to come back to: what the databases answered, and where the mirrors stood.
struct Moment {
    revenue: Vec<Vec<String>>,
    /// Of the app's users with their payments.
    users: Vec<Vec<String>>,
    /// Snapshot by table.
    snapshots: BTreeMap<String, String>,
}

/// Runs the same in PostgreSQL and in DuckDB.
const REVENUE: &str = "\
SELECT p.trail, count(*) AS payments, sum(y.amount) AS revenue
FROM payments y JOIN entry_passes p ON p.id = y.pass_id
WHERE y.state = 'captured'
GROUP BY p.trail";

const MIRRORS: [&str; 4] = ["fuji.customers", "fuji.entry_passes", "fuji.payments", "fuji.refunds"];

impl Demo {
    async fn tell(&mut self, options: &Options, folder: &Path, servers: &mut Servers) -> Result<(), Failed> {
        self.screen.title(
            "PostgreSQL into Apache Iceberg: exactly once, seconds behind, every commit a point in time",
            &[
                "Entry management of Mt. Fuji: customers, entry passes, payments, refunds; and the app's users in DynamoDB.",
                "Everything is private and temporary: loopback only, one folder, gone at the end.",
            ],
        );
        let catalog: &Catalog = servers.catalog.insert(self.start_catalog(options.catalog, folder).await);
        let lakehouse = Lakehouse::new(folder, &catalog.environment)?;
        let readers = Readers { duckdb: DuckDb::new(&catalog.query)?, pyiceberg: PyIceberg::new(&catalog.pyiceberg)? };
        let (started, client, sizes) = self.start_source(options).await?;
        let cluster: &Cluster = servers.cluster.insert(started);
        let app: &AppData = servers.app.insert(self.start_app(&client).await?);
        let config = format!("{CONFIG}{}", app_data::CONFIG).replace("{port}", &cluster.port().to_string());
        let config = config.replace("{catalog}", &catalog.section).replace("{dynamodb}", &app.endpoint());
        self.grant(&config, &client, &lakehouse, folder).await?;
        self.copy(&lakehouse).await?;
        let then = self.remember(&client, &lakehouse, app).await?;
        let shop = Shop::new(cluster.config(DATABASE), sizes);
        self.live(&lakehouse, &shop, app).await?;
        let mut verdict = Verdict { differences: Vec::new() };
        self.travel(&client, &lakehouse, &readers, &shop, &then, &mut verdict).await?;
        self.join(&client, &lakehouse, &readers.duckdb, app, &then, &mut verdict).await?;
        let scene = bad_release::Scene { client: &client, lakehouse: &lakehouse, duckdb: &readers.duckdb, shop: &shop };
        self.back_from_a_bad_release(&scene, options.once, &mut verdict).await?;
        self.verify(&lakehouse, &mut verdict).await?;
        self.verdict = Some(verdict);
        if options.once {
            return Ok(());
        }
        self.traffic = Some(app.open(TRICKLE_PACE));
        self.stay(cluster, &lakehouse, catalog, &readers.duckdb, &shop, folder).await
    }

    /// A file needs no server; everything else is told.
    async fn start_catalog(&mut self, kind: Kind, folder: &Path) -> Catalog {
        if kind == Kind::Sqlite {
            return Catalog::start(kind, folder).await;
        }
        self.screen.step("The catalog");
        let begun = Instant::now();
        let catalog = during(&mut self.screen, "starting its servers", Catalog::start(kind, folder)).await;
        if let Some((first, others)) = catalog.servers.split_first() {
            self.screen.done(first, begun.elapsed());
            others.iter().for_each(|server| self.screen.say(server));
        }
        catalog
    }

    async fn start_source(&mut self, options: &Options) -> Result<(Cluster, Client, Sizes), Failed> {
        self.screen.step("A private PostgreSQL");
        let begun = Instant::now();
        let config =
            ["shared_buffers = 256MB", "max_wal_size = 4GB", "max_slot_wal_keep_size = 8GB", "wal_compression = on"];
        let config = config.map(str::to_owned).to_vec();
        let starting = Cluster::start(postgres::Options { config, ..postgres::Options::default() });
        let cluster = during(&mut self.screen, "initdb and start", starting).await;
        let version = cluster.value("postgres", "SHOW server_version").await;
        self.screen.done(&format!("PostgreSQL {version} on 127.0.0.1:{}", cluster.port()), begun.elapsed());
        self.screen.look("wal_level = logical is all that the server's own settings need");

        self.screen.step("A payments database");
        let sizes = Sizes::of(options.rows);
        let begun = Instant::now();
        let client = database::create(&cluster).await?;
        let mut rows = 0;
        for number in 0..database::TABLES.len() {
            let text = format!("loading {}", database::TABLES[number]);
            let filled = during(&mut self.screen, &text, database::fill(&client, number, sizes)).await?;
            rows += filled.rows;
            let text =
                format!("{:<13} {:>10} rows, {}", filled.table, count(filled.rows), rate(filled.rows, filled.took));
            self.screen.done(&text, filled.took);
        }
        let keyed = Instant::now();
        during(&mut self.screen, "foreign keys, indexes, statistics", database::add_keys(&client)).await?;
        self.screen.done("foreign keys, indexes, statistics", keyed.elapsed());
        self.screen.done(&format!("{} rows, the same on every machine", count(rows)), begun.elapsed());
        self.screen.look("uuid, numeric(12,2), timestamptz, date, jsonb, text[], enum, inet, boolean, char(n)");
        self.screen.look("payments is partitioned by range on paid_at; the mirror is one table");
        Ok((cluster, client, sizes))
    }

    async fn start_app(&mut self, client: &Client) -> Result<AppData, Failed> {
        self.screen.step("The app's users, in DynamoDB");
        let begun = Instant::now();
        let app = during(&mut self.screen, "starting an emulator and filling it", AppData::start(client)).await?;
        let text = format!("{} profiles and {} entry reservations", count(app.profiles), count(app.reservations));
        self.screen.done(&text, begun.elapsed());
        self.screen.look(&format!("an emulator (ministack) on {}, one stream with both images each", app.endpoint()));
        self.screen
            .look("nested preferences, lists of maps, sets, numbers; users are customers of the payments database");
        Ok(app)
    }

    /// A role without rights; `validate` says what it lacks, and what it says is done.
    async fn grant(
        &mut self,
        config: &str,
        client: &Client,
        lakehouse: &Lakehouse,
        folder: &Path,
    ) -> Result<(), Failed> {
        self.screen.step("A role with the least rights, and what validate says");
        let password: String = std::iter::repeat_with(fastrand::alphanumeric).take(24).collect();
        client.batch_execute(&format!("CREATE ROLE lakehouse LOGIN REPLICATION PASSWORD '{password}'")).await?;
        write_private(&folder.join("password"), &password)?;
        fs::write(lakehouse.config(), config)?;
        self.screen.say("lakehouse.toml:");
        self.screen.code(config);

        let begun = Instant::now();
        let (_, answer) = lakehouse.ask(&["validate"]).await?;
        let (errors, fixes) = errors_of(&answer);
        if fixes.len() < errors.len() {
            return Err(Failed::new(format!("validate found what it cannot mend: {}", errors.join("; "))));
        }
        self.screen.done(
            &format!("errors found by lakehouse validate: {}; it prints what mends them", errors.len()),
            begun.elapsed(),
        );
        self.screen.code(&fixes.iter().map(|fix| format!("{fix};")).collect::<Vec<_>>().join("\n"));
        let begun = Instant::now();
        for fix in &fixes {
            client.batch_execute(fix).await?;
        }
        let (exit, answer) = lakehouse.ask(&["validate"]).await?;
        let (errors, _) = errors_of(&answer);
        if exit != Some(0) {
            return Err(Failed::new(format!("validate is not content: {} {}", errors.join("; "), answer["message"])));
        }
        self.screen.done("run as the tables' owner; lakehouse validate: valid", begun.elapsed());
        Ok(())
    }

    /// Starts the service and waits until the copy is done.
    async fn copy(&mut self, lakehouse: &Lakehouse) -> Result<(), Failed> {
        self.screen.step("lakehouse run: the copy");
        let begun = Instant::now();
        let service = self.service.insert(lakehouse.start()?);
        self.screen.look(&format!("its log: {}", service.log().display()));
        let mut told = BTreeMap::new();
        let status = loop {
            service.check()?;
            let status = lakehouse.status().await?;
            check_state(&status)?;
            let rows: u64 = status.tables.iter().map(|table| table.rows).sum();
            let took = begun.elapsed();
            self.screen.progress(&format!("{} rows in the lake, {}, {}", count(rows), rate(rows, took), seconds(took)));
            for table in status.tables.iter().filter(|table| table.state == "streaming") {
                if told.insert(table.name.clone(), table.rows).is_none() {
                    self.screen.done(&format!("{:<18} {:>10} rows", table.name, count(table.rows)), took);
                }
            }
            if told.len() == MIRRORS.len() {
                break status;
            }
            if took > LONGEST_WAIT {
                return Err(Failed::new("the copy has not ended in time"));
            }
            tokio::time::sleep(Duration::from_millis(250)).await;
        };
        let rows: u64 = status.tables.iter().map(|table| table.rows).sum();
        let took = begun.elapsed();
        self.screen.done(&format!("{} rows copied, {}", count(rows), rate(rows, took)), took);
        let arguments = ["wait", "--pipeline", app_data::PIPELINE, "--caught-up", "--timeout", "600s"];
        during(&mut self.screen, "waiting for the app's tables", lakehouse.must(&arguments)).await?;
        for table in lakehouse.status_of(app_data::PIPELINE).await?.tables {
            self.screen
                .done(&format!("{:<18} {:>10} rows, from DynamoDB", table.name, count(table.rows)), begun.elapsed());
        }
        self.screen.look("the copy is one moment of all four tables, and takes no lock that business would notice");
        Ok(())
    }

    /// PostgreSQL's own answer, and the snapshots that stand for this moment.
    async fn remember(&mut self, client: &Client, lakehouse: &Lakehouse, app: &AppData) -> Result<Moment, Failed> {
        self.screen.step("A moment to come back to");
        let begun = Instant::now();
        let revenue = ask_postgres(client, REVENUE).await?;
        let users = app.truth(client).await?;
        let mut tables = lakehouse.status().await?.tables;
        tables.extend(lakehouse.status_of(app_data::PIPELINE).await?.tables);
        let snapshots: BTreeMap<_, _> = tables.into_iter().map(|table| (table.name, table.snapshot)).collect();
        self.screen.done(&format!("PostgreSQL says: revenue {}", yen(&total(&revenue))), begun.elapsed());
        let rows: Vec<_> = snapshots.iter().map(|(table, id)| [table.clone(), id.clone()]).collect();
        self.screen.table(["table", "snapshot now"], &rows);
        Ok(Moment { revenue, users, snapshots })
    }

    async fn live(&mut self, lakehouse: &Lakehouse, shop: &Arc<Shop>, app: &AppData) -> Result<(), Failed> {
        self.screen.step(&format!("{} s of business on {WRITERS} connections", LIVE.as_secs()));
        self.screen
            .look("inserts, updates, deletes; most transactions write two or three tables, some are rolled back");
        let mut watch = Watch::new(lakehouse).await?;
        let begun = Instant::now();
        self.workload = Some(shop.open(WRITERS, WRITER_PACE).await?);
        self.traffic = Some(app.open(APP_PACE));
        let pause = Duration::from_secs(if self.screen.is_terminal() { 1 } else { 2 });
        while begun.elapsed() < LIVE {
            tokio::time::sleep(pause.min(LIVE.saturating_sub(begun.elapsed()))).await;
            if let Some(service) = &mut self.service {
                service.check()?;
            }
            watch.look(lakehouse).await?;
            watch.show(&mut self.screen, shop.tally(), begun.elapsed());
        }
        if let Some(traffic) = self.traffic.take() {
            traffic.stop().await?;
        }
        if let Some(workload) = self.workload.take() {
            workload.stop().await?;
        }
        let took = begun.elapsed();
        let quiet = Instant::now();
        let timeout = format!("{}s", LONGEST_WAIT.as_secs());
        let arguments = |pipeline| ["wait", "--pipeline", pipeline, "--caught-up", "--timeout", &timeout];
        during(&mut self.screen, "catching up", lakehouse.must(&arguments(PIPELINE))).await?;
        let caught_up = quiet.elapsed();
        during(&mut self.screen, "catching up with DynamoDB", lakehouse.must(&arguments(app_data::PIPELINE))).await?;
        let app_caught_up = quiet.elapsed();
        watch.look(lakehouse).await?;
        watch.show(&mut self.screen, shop.tally(), took);
        self.screen.leave_panel();
        let Tally { committed, without_effect, changes } = shop.tally();
        let text = format!(
            "{} transactions ({}), {} changed rows; {} more were rolled back or found nothing to do",
            count(committed),
            rate(committed, took),
            count(changes),
            count(without_effect)
        );
        self.screen.done(&text, took);
        let (middle, worst) = watch.lags();
        self.screen.done(
            &format!("caught up after the last commit; lag seen: {middle:.1} s in the middle, {worst:.1} s at worst"),
            caught_up,
        );
        let text = format!("the app: {} items written or deleted, all in the lake", count(app.writes()));
        self.screen.done(&text, app_caught_up);
        Ok(())
    }

    /// The same question to PostgreSQL and to DuckDB, now and then.
    async fn travel(
        &mut self,
        client: &Client,
        lakehouse: &Lakehouse,
        readers: &Readers,
        shop: &Shop,
        then: &Moment,
        verdict: &mut Verdict,
    ) -> Result<(), Failed> {
        let duckdb = &readers.duckdb;
        self.screen.step("DuckDB and PyIceberg read the lake, now and then");
        let table =
            |name: &str, snapshot: Option<&String>| Table { name: name.to_owned(), snapshot: snapshot.cloned() };
        let names = ["fuji.payments", "fuji.entry_passes"];
        let truth = ask_postgres(client, REVENUE).await?;
        let now = during(&mut self.screen, "asking DuckDB", duckdb.ask(&names.map(|name| table(name, None)), REVENUE))
            .await?;
        let past = names.map(|name| table(name, then.snapshots.get(name)));
        let past = during(&mut self.screen, "asking DuckDB", duckdb.ask(&past, REVENUE)).await?;
        self.screen.say("as of the moment before the business, in any DuckDB after INSTALL iceberg; LOAD iceberg:");
        self.screen.code(&past.sql);
        self.screen.say("and now the same without the snapshots");
        let rows: Vec<[String; 5]> = by_trail(&past.rows, &now.rows);
        self.screen.table(["trail", "payments then", "revenue then", "payments now", "revenue now"], &rows);
        for (when, answer, truth) in [("then", &past, &then.revenue), ("now", &now, &truth)] {
            let (found, expected) = (total(&answer.rows), total(truth));
            if sorted(&answer.rows) == sorted(truth) {
                let text = format!("DuckDB {when}: {}, to the yen what PostgreSQL said", yen(&found));
                self.screen.done(&text, Duration::from_secs_f64(answer.seconds));
            } else {
                let text = format!("DuckDB reads {} {when}, PostgreSQL said {}", yen(&found), yen(&expected));
                self.screen.wrong(&text);
                verdict.differences.push(text);
            }
        }
        if let Some(id) = shop.last_refund() {
            let query = format!("SELECT state FROM payments WHERE id = {id}");
            let name = "fuji.payments";
            let past = duckdb.ask(&[table(name, then.snapshots.get(name))], &query).await?;
            let now = duckdb.ask(&[table(name, None)], &query).await?;
            let state = |rows: &[Vec<String>]| rows.concat().join(", ");
            self.screen.say(&format!("payment {id}: {} then, {} now", state(&past.rows), state(&now.rows)));
        }
        let asked = readers.pyiceberg.ask(&then.snapshots["fuji.payments"]);
        let asked = during(&mut self.screen, "asking PyIceberg", asked).await?;
        self.screen.say("a third engine, in Python:");
        self.screen.code(&asked.program);
        let expected = [&then.revenue, &truth].map(|revenue| (payments(revenue), total(revenue)));
        let found = asked.sums.iter().map(|(number, sum)| (number.clone(), whole(sum).to_owned()));
        let found: Vec<_> = found.collect();
        if found == expected {
            let text = format!("PyIceberg: {} then, {} now, the same again", yen(&found[0].1), yen(&found[1].1));
            self.screen.done(&text, Duration::from_secs_f64(asked.seconds));
        } else {
            let text = format!("PyIceberg reads {found:?}, PostgreSQL said {expected:?}");
            self.screen.wrong(&text);
            verdict.differences.push(text);
        }
        let kept = lakehouse.snapshots("fuji.payments").await?;
        if let (Some(first), Some(last)) = (kept.first(), kept.last()) {
            let text = format!(
                "fuji.payments has {} snapshots to travel to, of {} to {}",
                count(kept.len() as u64),
                first.committed_at,
                last.committed_at
            );
            self.screen.look(&text);
        }
        Ok(())
    }

    /// Payments of PostgreSQL and users of DynamoDB in one query at one moment, now and then.
    async fn join(
        &mut self,
        client: &Client,
        lakehouse: &Lakehouse,
        duckdb: &DuckDb,
        app: &AppData,
        then: &Moment,
        verdict: &mut Verdict,
    ) -> Result<(), Failed> {
        self.screen.step("Payments and the app's users, joined");
        let truth = app.truth(client).await?;
        let mut now = lakehouse.status().await?.tables;
        now.extend(lakehouse.status_of(app_data::PIPELINE).await?.tables);
        let now: BTreeMap<String, String> = now.into_iter().map(|table| (table.name, table.snapshot)).collect();
        let names = ["fuji.payments", app_data::MIRRORS[0], app_data::MIRRORS[1]];
        let at = |snapshots: &BTreeMap<String, String>| {
            names.map(|name| Table { name: name.to_owned(), snapshot: snapshots.get(name).cloned() })
        };
        for (when, snapshots, truth) in [("then", &then.snapshots, &then.users), ("now", &now, &truth)] {
            let tables = at(snapshots);
            let answer = during(&mut self.screen, "asking DuckDB", duckdb.ask(&tables, app_data::JOINED)).await?;
            if when == "then" {
                self.screen.say("as of the moment before the business:");
                self.screen.code(&answer.sql);
            }
            let found = app_data::plain(&answer.rows);
            let row = |row: &Vec<String>| -> [String; 6] {
                std::array::from_fn(|place| match (place, row.get(place).and_then(|cell| cell.parse().ok())) {
                    (5, Some(_)) => yen(&row[place]),
                    (_, Some(number)) => count(number),
                    (_, None) => row.get(place).cloned().unwrap_or_default(),
                })
            };
            self.screen.table(app_data::COLUMNS, &found.iter().map(row).collect::<Vec<_>>());
            if found == *truth {
                let text = format!("DuckDB {when}: exactly what PostgreSQL and DynamoDB say together");
                self.screen.done(&text, Duration::from_secs_f64(answer.seconds));
            } else {
                let text = format!("DuckDB reads {found:?} {when}, the databases said {truth:?}");
                self.screen.wrong(&text);
                verdict.differences.push(text);
            }
        }
        Ok(())
    }

    async fn verify(&mut self, lakehouse: &Lakehouse, verdict: &mut Verdict) -> Result<(), Failed> {
        self.screen.step("lakehouse verify: source against mirror, every row");
        let begun = Instant::now();
        let (mut tables, mut different, mut position) = (Vec::new(), false, Value::Null);
        for pipeline in [PIPELINE, app_data::PIPELINE] {
            let arguments = ["verify", "--pipeline", pipeline];
            let asked = lakehouse.ask(&arguments);
            let (exit, mut answer) = during(&mut self.screen, "comparing every row of all tables", asked).await?;
            if !matches!(exit, Some(0 | 5)) || !answer["verdict"].is_string() {
                return Err(Failed::of_verb("verify", exit, &answer));
            }
            different |= exit != Some(0);
            if pipeline == PIPELINE {
                position = answer["position"].take();
            }
            if let Value::Array(more) = answer["tables"].take() {
                tables.extend(more);
            }
        }
        let text = |value: &Value| match value {
            Value::String(text) => text.clone(),
            Value::Number(number) => number.as_u64().map_or_else(|| number.to_string(), count),
            // A list of keys.
            Value::Array(keys) => count(keys.len() as u64),
            _ => "-".to_owned(),
        };
        let columns =
            ["table", "verdict", "source_rows", "mirror_rows", "only_in_source", "only_in_mirror", "differing"];
        let rows: Vec<_> = tables.iter().map(|table| columns.map(|column| text(&table[column]))).collect();
        self.screen.table(columns.map(heading), &rows);
        for [table, own, _, _, source, mirror, differing] in &rows {
            if own != "equal" {
                verdict.differences.push(format!(
                    "{table} ({source} rows only in the source, {mirror} only in the mirror, {differing} differing)"
                ));
            }
        }
        if different && verdict.differences.is_empty() {
            verdict.differences.push("verify answered exit code 5".to_owned());
        }
        let rows: u64 = tables.iter().filter_map(|table| table["source_rows"].as_u64()).sum();
        let took = begun.elapsed();
        let text = format!("{} rows compared at {}, {}", count(rows), text(&position), rate(rows, took));
        self.screen.done(&text, took);
        Ok(())
    }

    /// Until somebody ends it.
    async fn stay(
        &mut self,
        cluster: &Cluster,
        lakehouse: &Lakehouse,
        catalog: &Catalog,
        duckdb: &DuckDb,
        shop: &Arc<Shop>,
        folder: &Path,
    ) -> Result<(), Failed> {
        self.screen.step("Look around");
        if let Some(verdict) = &self.verdict {
            verdict.show(&mut self.screen);
        }
        let passfile = folder.join("pgpass");
        write_private(
            &passfile,
            &format!("127.0.0.1:{}:*:postgres:{}\n", cluster.port(), cluster.superuser_password()),
        )?;
        self.screen
            .say(&format!("business goes on at {TRICKLE_PACE} transactions/s; Ctrl-C ends everything and removes it"));
        self.screen.say("the database:");
        let source = format!("host=127.0.0.1 port={} user=postgres dbname={DATABASE}", cluster.port());
        self.screen.code(&format!("psql '{source} passfile={}'", passfile.display()));
        self.screen.say("the lake, from any other terminal:");
        let variables = catalog.environment.iter().map(|(name, value)| format!("{name}={value}"));
        let variables: Vec<String> = variables.collect();
        if !variables.is_empty() {
            self.screen.code(&format!("export {}", variables.join(" ")));
        }
        self.screen.code(&format!(
            "alias lakehouse='{}'\nexport LAKEHOUSE_CONFIG={}\nlakehouse status\nlakehouse tables\n\
             lakehouse snapshots fuji.payments\nlakehouse rows fuji.refunds --limit 5\n\
             lakehouse rows fuji.payments_history --limit 5\nlakehouse rows fuji.refunds --as-of TIME --limit 5\n\
             lakehouse rows app.profiles --limit 5\nlakehouse rows app.reservations_history --limit 5\n\
             lakehouse verify --pipeline fuji\nlakehouse verify --pipeline app",
            lakehouse.binary().display(),
            lakehouse.config().display()
        ));
        self.screen.say("and through DuckDB:");
        self.screen.code(
            &duckdb.command_line("fuji.payments", "SELECT state, count(*), sum(amount) FROM payments GROUP BY 1"),
        );
        self.workload = Some(shop.open(1, TRICKLE_PACE).await?);
        loop {
            tokio::time::sleep(Duration::from_secs(5)).await;
            if let Some(service) = &mut self.service {
                service.check()?;
            }
            // In a pipe nobody reads on.
            if self.screen.is_terminal() {
                let status = lakehouse.status().await?;
                let rows: u64 = status.tables.iter().map(|table| table.rows).sum();
                let lag = status.lag_seconds.unwrap_or_default();
                self.screen.progress(&format!("{}, lag {lag:.1} s, {} rows in the mirrors", status.state, count(rows)));
            }
        }
    }
}

/// What the lake shows while business goes on.
struct Watch {
    status: Status,
    /// By table: how many there were at first, and the newest.
    snapshots: BTreeMap<String, (usize, Vec<Snapshot>)>,
    /// Tables with a new snapshot since they were shown last.
    news: Vec<String>,
    lags: Vec<f64>,
}

impl Watch {
    async fn new(lakehouse: &Lakehouse) -> Result<Self, Failed> {
        let mut snapshots = BTreeMap::new();
        for table in MIRRORS {
            let known = lakehouse.snapshots(table).await?;
            snapshots.insert(table.to_owned(), (known.len(), known));
        }
        Ok(Self { status: lakehouse.status().await?, snapshots, news: Vec::new(), lags: Vec::new() })
    }

    async fn look(&mut self, lakehouse: &Lakehouse) -> Result<(), Failed> {
        self.status = lakehouse.status().await?;
        check_state(&self.status)?;
        self.lags.extend(self.status.lag_seconds);
        self.news.clear();
        for table in &self.status.tables {
            let Some((_, known)) = self.snapshots.get_mut(&table.name) else {
                continue;
            };
            if known.last().is_none_or(|last| last.id != table.snapshot) {
                *known = lakehouse.snapshots(&table.name).await?;
                self.news.push(table.name.clone());
            }
        }
        Ok(())
    }

    fn show(&self, screen: &mut Screen, tally: Tally, elapsed: Duration) {
        let lag = self.status.lag_seconds.map_or("unknown".to_owned(), |lag| format!("{lag:.1} s"));
        let cut = self.status.cut.as_deref().unwrap_or("-");
        let speed = rate(tally.committed, elapsed);
        if !screen.is_terminal() {
            let second = elapsed.as_secs();
            screen.say(&format!("{second} s: {} transactions, {speed}, lag {lag}, cut {cut}", count(tally.committed)));
            for name in &self.news {
                if let Some(Snapshot { id, kind, inserted, updated, deleted, .. }) = self.newest(name) {
                    screen.say(&format!("{second} s: {name} snapshot {id}, {kind}, +{inserted} ~{updated} -{deleted}"));
                }
            }
            return;
        }
        let top = self.lags.iter().copied().fold(1.0, f64::max);
        let recent = &self.lags[self.lags.len().saturating_sub(24)..];
        let behind = self.status.lag_bytes.map_or(String::new(), |bytes| format!(", {} bytes of WAL", count(bytes)));
        let row = |table: &service::TableStatus| {
            let (before, known) = self.snapshots.get(&table.name)?;
            let last = known.last()?;
            Some([
                table.name.clone(),
                count(table.rows),
                format!("+{}", known.len().saturating_sub(*before)),
                last.id.clone(),
                format!("+{} ~{} −{}", count(last.inserted), count(last.updated), count(last.deleted)),
            ])
        };
        let rows: Vec<_> = self.status.tables.iter().filter_map(row).collect();
        let table = screen::aligned(["table", "rows", "snapshots", "newest snapshot", "it changed"], &rows);
        let mut lines = vec![
            (
                Style::Plain,
                format!(
                    "source   {} transactions, {speed}, {} rows changed",
                    count(tally.committed),
                    count(tally.changes)
                ),
            ),
            (Style::Plain, format!("mirror   lag {lag}{behind}, cut {cut}")),
            (Style::Cyan, format!("lag      {}", bars(recent, top))),
            (Style::Plain, String::new()),
        ];
        lines.extend(table.into_iter().enumerate().map(|(number, line)| match number {
            0 => (Style::Bold, line),
            _ => (Style::Plain, line),
        }));
        screen.panel(&format!("live, {} of {} s", elapsed.as_secs().min(LIVE.as_secs()), LIVE.as_secs()), &lines);
    }

    fn newest(&self, table: &str) -> Option<&Snapshot> {
        self.snapshots.get(table)?.1.last()
    }

    /// The median and the largest, in seconds.
    fn lags(&self) -> (f64, f64) {
        let mut lags = self.lags.clone();
        lags.sort_by(f64::total_cmp);
        (lags.get(lags.len() / 2).copied().unwrap_or(0.0), lags.last().copied().unwrap_or(0.0))
    }
}

const CONFIG: &str = r#"[catalog]
{catalog}

[pipelines.fuji]
commit_interval_seconds = 1

[pipelines.fuji.postgres]
host = "127.0.0.1"
port = {port}
database = "fuji"
user = "lakehouse"
password = { file = "password" }
tls = "disable"                 # allowed over loopback only

[pipelines.fuji.tables."public.payments"]
partition = ["month(paid_at)"]
"#;

/// Waits, and shows for how long.
async fn during<T>(screen: &mut Screen, text: &str, work: impl Future<Output = T>) -> T {
    let begun = Instant::now();
    tokio::pin!(work);
    loop {
        // Biased: the answer comes first. The pause may be dropped.
        tokio::select! {
            biased;
            answer = &mut work => return answer,
            () = tokio::time::sleep(Duration::from_millis(100)) => {
                screen.progress(&format!("{text}, {}", seconds(begun.elapsed())));
            }
        }
    }
}

/// A halted pipeline does not get better by waiting.
fn check_state(status: &Status) -> Result<(), Failed> {
    let halted = status.tables.iter().find(|table| table.state == "halted");
    match (status.state.as_str(), halted) {
        ("halted", _) => {
            let code = status.code.as_deref().unwrap_or("no code");
            Err(Failed { exit: 4, message: format!("the pipeline is halted: {code}") })
        }
        (_, Some(table)) => Err(Failed { exit: 4, message: format!("table {} is halted", table.name) }),
        _ => Ok(()),
    }
}

/// The errors among the findings of `validate`, and the statements that mend them.
fn errors_of(answer: &Value) -> (Vec<String>, Vec<String>) {
    let findings = answer["findings"].as_array().into_iter().flatten();
    let errors: Vec<&Value> = findings.filter(|finding| finding["severity"] == "error").collect();
    let text = |finding: &&Value| format!("{} at {}", finding["code"], finding["subject"]);
    let fixes = errors.iter().filter_map(|finding| finding["fix"].as_str().map(str::to_owned)).collect();
    (errors.iter().map(text).collect(), fixes)
}

async fn ask_postgres(client: &Client, query: &str) -> Result<Vec<Vec<String>>, Failed> {
    let messages = client.simple_query(query).await?;
    let row = |message: SimpleQueryMessage| match message {
        SimpleQueryMessage::Row(row) => {
            Some((0..row.len()).map(|column| row.get(column).unwrap_or_default().to_owned()).collect())
        }
        _ => None,
    };
    Ok(messages.into_iter().filter_map(row).collect())
}

/// The sum of the third column, in whole yen: amounts of this database have no fraction but zeros.
fn total(revenue: &[Vec<String>]) -> String {
    let amounts = revenue.iter().filter_map(|row| whole(row.get(2)?).parse::<u64>().ok());
    amounts.sum::<u64>().to_string()
}

/// The sum of the second column.
fn payments(revenue: &[Vec<String>]) -> String {
    revenue.iter().filter_map(|row| row.get(1)?.parse::<u64>().ok()).sum::<u64>().to_string()
}

/// An amount without its fraction.
fn whole(amount: &str) -> &str {
    amount.split('.').next().unwrap_or_default()
}

fn sorted(rows: &[Vec<String>]) -> Vec<Vec<String>> {
    let mut rows = rows.to_vec();
    rows.sort();
    rows
}

/// Both answers beside each other, the largest revenue first.
fn by_trail(then: &[Vec<String>], now: &[Vec<String>]) -> Vec<[String; 5]> {
    let cell =
        |row: Option<&Vec<String>>, column: usize| row.and_then(|row| row.get(column)).cloned().unwrap_or_default();
    let grouped = |text: String| text.parse().map_or(text, count);
    let mut now = now.to_vec();
    now.sort_by_key(|row| std::cmp::Reverse(total(std::slice::from_ref(row)).parse::<u64>().unwrap_or(0)));
    let row = |row: &Vec<String>| {
        let before = then.iter().find(|before| before.first() == row.first());
        [
            cell(Some(row), 0),
            grouped(cell(before, 1)),
            yen(&cell(before, 2)),
            grouped(cell(Some(row), 1)),
            yen(&cell(Some(row), 2)),
        ]
    };
    now.iter().map(row).collect()
}

fn heading(column: &str) -> &str {
    match column {
        "source_rows" => "source rows",
        "mirror_rows" => "mirror rows",
        "only_in_source" => "only in source",
        "only_in_mirror" => "only in mirror",
        other => other,
    }
}

/// Only for whoever started the demo.
fn write_private(path: &Path, text: &str) -> Result<(), Failed> {
    fs::write(path, "")?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    Ok(fs::write(path, text)?)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parse(arguments: &str) -> Result<Options, String> {
        Options::parse(arguments.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn options_are_read_and_others_refused() {
        assert_eq!(parse(""), Ok(Options { once: false, rows: 1_000_000, catalog: Kind::Sqlite }));
        assert_eq!(parse("--rows 2_000 --once"), Ok(Options { once: true, rows: 2_000, catalog: Kind::Sqlite }));
        for (name, kind) in [("sqlite", Kind::Sqlite), ("s3-tables", Kind::S3Tables), ("rest", Kind::Rest)] {
            assert_eq!(parse(&format!("--catalog {name}")).map(|options| options.catalog), Ok(kind));
        }
        for refused in ["--rows", "--rows 10", "--rows many", "--often", "--catalog", "--catalog glue"] {
            assert!(parse(refused).is_err(), "{refused}");
        }
    }

    #[test]
    fn answers_stand_beside_each_other() {
        let rows = |rows: &[[&str; 3]]| rows.iter().map(|row| row.map(str::to_owned).to_vec()).collect::<Vec<_>>();
        let then = rows(&[["gotemba", "1", "4000.00"]]);
        let now = rows(&[["gotemba", "2", "8000.00"], ["yoshida", "1500", "6000000.00"]]);
        assert_eq!(total(&now), "6008000");
        let shown = by_trail(&then, &now);
        assert_eq!(shown[0], ["yoshida", "", "", "1,500", "¥6,000,000"].map(str::to_owned));
        assert_eq!(shown[1], ["gotemba", "1", "¥4,000", "2", "¥8,000"].map(str::to_owned));
    }

    #[test]
    fn findings_without_a_remedy_are_not_taken_for_mended() {
        let answer = json!({"findings": [
            {"code": "PERM", "severity": "error", "subject": "t", "fix": "GRANT"},
            {"code": "WAL_LEVEL", "severity": "error", "subject": "h", "fix": null},
            {"code": "SUPERUSER", "severity": "warning", "subject": "h", "fix": "x"},
        ]});
        let (errors, fixes) = errors_of(&answer);
        assert_eq!((errors.len(), fixes), (2, vec!["GRANT".to_owned()]));
    }

    #[test]
    fn a_verbs_error_keeps_its_code_and_exit() {
        let failed =
            Failed::of_verb("wait", Some(4), &json!({"code": "GAP", "message": "m", "subject": "s", "remedy": "r"}));
        assert_eq!((failed.exit, failed.message.as_str()), (4, "lakehouse wait: GAP: m\n  at: s\n  do: r"));
    }
}
