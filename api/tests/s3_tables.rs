//! The real binary on S3 Tables: kills on the whole path, and a table bucket for each domain.
//!
//! Catalog and objects are the simulator's (`testkit::s3_tables`), which refuses to list and to delete objects of tables.
//! What was written is read back by DuckDB and PyIceberg through its REST side. `LAKEHOUSE_KILLS` sets the number of
//! kills, `LAKEHOUSE_SEED` the seed.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use crate::live::books::{assert_joined, ranged, recorded_cut, snapshots_of};
use crate::live::{PIPELINE, Site, stop};
use aws_sdk_s3tables::types::{MaintenanceStatus, TableMaintenanceConfigurationValue, TableMaintenanceType};
use fastrand::Rng;
use serde_json::{Value, json};
use testkit::bank::Bank;
use testkit::emulators::Ministack;
use testkit::http;
use testkit::postgres::{Cluster, Options};
use testkit::rest_engine::RestEngine;
use testkit::s3_tables::{Committer, S3Tables, TableId, client};
use testkit::tier;

const ACCOUNTS: u64 = 25;
const PAUSE: Duration = Duration::from_millis(10);
/// The longest life of a worker that waits for a commit to be killed at.
const LONGEST: Duration = Duration::from_millis(4_000);
const TABLES: [&str; 4] = ["account", "account_history", "ledger", "ledger_history"];
/// Snapshots that one query reads.
const AT_ONCE: usize = 40;

/// The services of one region.
struct Region {
    tables: S3Tables,
    /// Where objects really are; used through `tables` only.
    _ministack: Ministack,
}

impl Region {
    async fn start() -> Self {
        let ministack = Ministack::start().await;
        Self { tables: S3Tables::start(&ministack.objects()), _ministack: ministack }
    }

    /// The configuration's section, but for the table bucket.
    fn section(&self) -> String {
        format!(
            "kind = \"s3-tables\"\nendpoint = \"{}\"\ns3_endpoint = \"{}\"",
            self.tables.endpoint(),
            self.tables.s3_endpoint()
        )
    }

    /// An installation with this region's keys.
    fn site(&self, cluster: &Cluster, catalog: &str, pipelines: &[(&str, &str, &str)]) -> Site {
        let mut site = Site::on(cluster, catalog, pipelines);
        let objects = self.tables.objects();
        site.lakehouse.set_environment("AWS_ACCESS_KEY_ID", &objects.access_key);
        site.lakehouse.set_environment("AWS_SECRET_ACCESS_KEY", &objects.secret_key);
        site.lakehouse.set_environment("AWS_REGION", &objects.region);
        site
    }

    /// Other engines on a table bucket.
    fn engine(&self, bucket: &str) -> RestEngine {
        RestEngine::new(&self.tables.rest_uri(), bucket, &self.tables.objects())
    }

    /// Swaps that were asked for so far, on all tables.
    fn swaps(&self) -> u64 {
        self.tables.requests().of("PUT", "metadata-location")
    }

    /// The snapshots of `namespace.table`, in the order in which they were committed.
    async fn snapshots(&self, bucket: &str, table: &str) -> Vec<Value> {
        let (namespace, table) = table.split_once('.').expect("namespace.table");
        let prefix = bucket.replace(':', "%3A").replace('/', "%2F");
        let uri = format!("{}/v1/{prefix}/namespaces/{namespace}/tables/{table}", self.tables.rest_uri());
        let answer = http::send("GET", &uri, "").await.unwrap_or_else(|error| panic!("{uri}: {error}"));
        let loaded: Value = serde_json::from_str(&answer.body).unwrap_or_else(|error| panic!("{uri}: {error}"));
        snapshots_of(&loaded["metadata"])
    }

    /// `namespace.table` of everything in a table bucket, as Amazon's own client lists it.
    async fn list(&self, bucket: &str) -> Vec<String> {
        let listed = client(&self.tables.endpoint()).list_tables().table_bucket_arn(bucket).send().await;
        let listed = listed.unwrap_or_else(|error| panic!("list {bucket}: {error:?}"));
        let names = listed.tables().iter().map(|table| format!("{}.{}", table.namespace().join("."), table.name()));
        let mut names: Vec<String> = names.collect();
        names.sort();
        names
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_doubled_or_split_on_s3_tables_however_often_the_worker_is_killed() {
    let kills = tier::size("LAKEHOUSE_KILLS", 12, 200);
    let seed = tier::seed();
    eprintln!("kills on S3 Tables: LAKEHOUSE_SEED={seed} LAKEHOUSE_KILLS={kills}");
    let begun = Instant::now();
    let mut rng = Rng::with_seed(seed);
    let cluster = Cluster::start(Options::default()).await;
    let bank = Bank::open(&cluster, "postgres", ACCOUNTS).await;
    let region = Region::start().await;
    let bucket = region.tables.create_table_bucket("bank");
    let catalog = format!("{}\ntable_bucket = \"{bucket}\"", region.section());
    let site = region.site(&cluster, &catalog, &[(PIPELINE, "postgres", "memory = \"16MiB\"")]);

    let load = bank.start(2, PAUSE);
    let mut after_commits = 0;
    for _ in 0..kills {
        let before = region.swaps();
        let mut worker = site.start();
        live_until_fate(&region, &mut rng).await;
        assert!(worker.is_running(), "it has ended by itself: {}", worker.stderr());
        worker.kill().await;
        after_commits += u64::from(region.swaps() > before);
    }
    eprintln!("{kills} kills, {after_commits} of workers that had committed, {:?}", begun.elapsed());

    let worker = site.start();
    // Under load first: `verify` compares again what changes meanwhile.
    site.caught_up().await;
    let verified = site.lakehouse.ask(&["verify"]).await;
    assert_eq!(verified["verdict"], "equal", "{verified}");
    let done = load.stop().await;
    // A last change, so that what is waited for is a batch and not the pace of cuts of a silent source.
    bank.work(kills, 1).await;
    site.caught_up().await;
    let read = check(&region, &bucket, &cluster, &bank).await;
    site.assert_equal().await;
    stop(worker).await;
    eprintln!("{done:?}, {read} snapshots and cuts read, {:?} altogether", begun.elapsed());
}

/// Waits for a moment that is worth a kill.
async fn live_until_fate(region: &Region, rng: &mut Rng) {
    match rng.u8(0..100) {
        // Start-up, and what comes right behind it.
        0..=24 => tokio::time::sleep(Duration::from_micros(rng.u64(0..800_000))).await,
        // Around a swap: when it is asked for, and shortly after.
        25..=74 => {
            let (deadline, wanted) = (Instant::now() + LONGEST, region.swaps() + rng.u64(1..=12));
            while region.swaps() < wanted && Instant::now() < deadline {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            tokio::time::sleep(Duration::from_micros(rng.u64(0..8_000))).await;
        }
        _ => tokio::time::sleep(Duration::from_millis(rng.u64(1_500..4_000))).await,
    }
}

/// Everything that must hold of a quiet lake that has caught up. Returns how many snapshots and cuts were read.
async fn check(region: &Region, bucket: &str, cluster: &Cluster, bank: &Bank) -> usize {
    let engine = region.engine(bucket);
    for table in TABLES {
        let snapshots = region.snapshots(bucket, &format!("{PIPELINE}.{table}")).await;
        assert_joined(table, &snapshots.iter().map(ranged).collect::<Vec<_>>());
        let id = TableId { bucket: bucket.to_owned(), namespace: PIPELINE.to_owned(), name: table.to_owned() };
        let swaps = region.tables.swaps(&id);
        assert!(swaps.iter().all(|swap| swap.by == Committer::Native), "{table}: {swaps:?}");
        assert!(swaps.len() >= snapshots.len(), "{table}: more snapshots than swaps");
    }

    let ranges: Vec<_> = region.snapshots(bucket, "app.account").await.iter().map(ranged).collect();
    // The last snapshot of the copy is the first that is whole.
    let copied = ranges.iter().position(|range| range.kind == "change").expect("a batch was committed");
    let whole: Vec<i64> = ranges[copied.saturating_sub(1)..].iter().map(|range| range.snapshot).collect();
    let accounts = at_each(&engine, "app.account", &whole, "id::VARCHAR, balance::VARCHAR", "").await;
    for (snapshot, accounts) in &accounts {
        bank.check_snapshot(accounts).unwrap_or_else(|wrong| panic!("snapshot {snapshot}: {wrong}"));
    }

    let cuts: Vec<_> = region
        .snapshots(bucket, &format!("lakehouse_control.{PIPELINE}"))
        .await
        .iter()
        .filter_map(recorded_cut)
        .collect();
    assert!(cuts.is_sorted_by_key(|cut| cut.position), "{cuts:?}");
    // The first cuts of a pipeline come before its copies.
    let pairs: Vec<(i64, i64)> =
        cuts.iter().filter_map(|cut| Some((*cut.tables.get("app.account")?, *cut.tables.get("app.ledger")?))).collect();
    assert!(!pairs.is_empty(), "no cut was recorded: {cuts:?}");
    let (left, right): (Vec<i64>, Vec<i64>) = pairs.iter().copied().unzip();
    let accounts = at_each(&engine, "app.account", &left, "id::VARCHAR, balance::VARCHAR", "").await;
    // Sums of a pair of accounts are as good as their entries, and few.
    let sums = "source::VARCHAR, target::VARCHAR, sum(amount)::VARCHAR";
    let ledger = at_each(&engine, "app.ledger", &right, sums, "GROUP BY source, target").await;
    for (account, entries) in &pairs {
        let empty = Vec::new();
        let entries = ledger.get(entries).unwrap_or(&empty);
        bank.check_cut(&accounts[account], entries).unwrap_or_else(|wrong| panic!("cut at {account}: {wrong}"));
    }

    // An entry is inserted once and never changed, so its change is in the history once, or it came by the copy.
    for (table, identity) in [("ledger_history", "id"), ("account_history", "(_cdc_position, _cdc_ordinal)")] {
        let doubled = format!("SELECT count(*) - count(DISTINCT {identity}) FROM lake.app.{table}");
        assert_eq!(engine.duckdb(&doubled).await, Ok(vec![json!([0])]), "{table}");
    }

    // PyIceberg says the same as PostgreSQL itself.
    for (table, columns) in [("account", "id, balance"), ("ledger", "id, source, target, amount")] {
        let rows = cluster.sql("postgres", &format!("SELECT {columns} FROM {table}")).await;
        let mut source: Vec<String> =
            rows.into_iter().map(|row| row.into_iter().flatten().collect::<Vec<_>>().join(" ")).collect();
        let read = engine.rows(&format!("app.{table}")).await.expect("PyIceberg reads");
        let width = columns.split(", ").count();
        let mut mirror: Vec<String> = read.iter().map(|row| first(row, width)).collect();
        source.sort();
        mirror.sort();
        assert_eq!(mirror, source, "{table}");
    }
    whole.len() + pairs.len()
}

/// The first values of a row, as text.
fn first(row: &Value, width: usize) -> String {
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    row.as_array().expect("a row")[..width].iter().map(text).collect::<Vec<_>>().join(" ")
}

/// Rows of some columns at each snapshot, read by DuckDB, each as a JSON array of texts.
async fn at_each(
    engine: &RestEngine,
    table: &str,
    snapshots: &[i64],
    columns: &str,
    clause: &str,
) -> BTreeMap<i64, Vec<String>> {
    // Several cuts may hold one snapshot of a table.
    let snapshots: BTreeSet<i64> = snapshots.iter().copied().collect();
    let snapshots: Vec<i64> = snapshots.into_iter().collect();
    let mut found: BTreeMap<i64, Vec<String>> = BTreeMap::new();
    for some in snapshots.chunks(AT_ONCE) {
        let one = |id: &i64| format!("SELECT {id}, {columns} FROM lake.{table} AT (VERSION => {id}) {clause}");
        let query = some.iter().map(one).collect::<Vec<_>>().join("\nUNION ALL\n");
        for row in engine.duckdb(&query).await.unwrap_or_else(|error| panic!("{table}: {error}")) {
            let values = row.as_array().expect("a row");
            let rest = serde_json::to_string(&values[1..]).expect("JSON");
            found.entry(values[0].as_i64().expect("an id")).or_default().push(rest);
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn each_domain_has_its_tables_and_its_control_table_in_its_own_table_bucket() {
    let cluster = Cluster::start(Options::default()).await;
    let domains = ["entry", "payments"];
    let region = Region::start().await;
    let mut buckets = Vec::new();
    let mut banks = Vec::new();
    for domain in domains {
        cluster.sql("postgres", &format!("CREATE DATABASE {domain}")).await;
        banks.push(Bank::open(&cluster, domain, 10).await);
        buckets.push(region.tables.create_table_bucket(&format!("{domain}-lake")));
    }
    let sections: Vec<String> = buckets.iter().map(|bucket| format!("table_bucket = \"{bucket}\"")).collect();
    let pipelines = [0, 1].map(|number| (domains[number], domains[number], sections[number].as_str()));
    let site = region.site(&cluster, &region.section(), &pipelines);

    let worker = site.start();
    for (domain, bank) in domains.iter().zip(&banks) {
        bank.work(1, 100).await;
        site.lakehouse.ask(&["wait", "--pipeline", domain, "--caught-up", "--timeout", "120s"]).await;
    }
    assert_both(&region, &site, &cluster, domains, &buckets).await;
    // Nothing about it is in the process: a new one finds each in its place.
    stop(worker).await;
    let worker = site.start();
    for (domain, bank) in domains.iter().zip(&banks) {
        bank.work(2, 100).await;
        site.lakehouse.ask(&["wait", "--pipeline", domain, "--caught-up", "--timeout", "120s"]).await;
    }
    assert_both(&region, &site, &cluster, domains, &buckets).await;
    assert_eq!(site.lakehouse.ask(&["fsck"]).await["verdict"], "sound");
    stop(worker).await;
}

/// Somebody switches the service's own compaction of a table on, or off again.
async fn switch_compaction(region: &Region, table: &TableId, status: MaintenanceStatus) {
    let value = TableMaintenanceConfigurationValue::builder().status(status).build();
    let client = client(&region.tables.endpoint());
    let put = client.put_table_maintenance_configuration().table_bucket_arn(&table.bucket);
    let put = put.namespace(&table.namespace).name(&table.name).r#type(TableMaintenanceType::IcebergCompaction);
    put.value(value).send().await.expect("switched");
}

#[tokio::test(flavor = "multi_thread")]
async fn maintenance_never_lists_or_deletes_and_leaves_a_table_alone_that_somebody_else_has_taken() {
    let cluster = Cluster::start(Options::default()).await;
    let bank = Bank::open(&cluster, "postgres", 10).await;
    let region = Region::start().await;
    let bucket = region.tables.create_table_bucket("bank");
    let catalog = format!("{}\ntable_bucket = \"{bucket}\"\n[maintenance]\nsmall_files = 2", region.section());
    let site = region.site(&cluster, &catalog, &[(PIPELINE, "postgres", "")]);
    let worker = site.start();
    for round in 1..=4 {
        bank.work(round, 20).await;
        site.caught_up().await;
    }
    let table = TableId { bucket: bucket.clone(), namespace: PIPELINE.to_owned(), name: "account".to_owned() };
    switch_compaction(&region, &table, MaintenanceStatus::Enabled).await;
    let swaps = region.tables.swaps(&table).len();

    let (code, done) = site.lakehouse.json(&["maintain", "--once"]).await;
    let of = |answer: &Value, name: &str| {
        let tables = answer["tables"].as_array().cloned().unwrap_or_default();
        tables.into_iter().find(|entry| entry["table"] == name).unwrap_or_else(|| panic!("no {name}: {answer}"))
    };
    assert_eq!((code, &of(&done, "app.account")["code"]), (Some(4), &json!("MAINTENANCE_OWNER")), "{done}");
    assert_eq!(region.tables.swaps(&table).len(), swaps, "nothing is committed to it");
    let others = of(&done, "app.ledger");
    assert!(others["outcome"]["rewrites"][0]["snapshot_id"].is_string(), "the others are kept: {done}");
    let health = site.lakehouse.ask(&["health"]).await;
    let drift = of(&health, "app.account");
    assert_eq!((&drift["owner_drift"], &drift["code"]), (&json!(true), &json!("MAINTENANCE_OWNER")));
    let role = site.lakehouse.run(&["maintain"]).await;
    assert_eq!(role.code, Some(4), "{role:?}");
    assert!(role.stderr.contains("MAINTENANCE_OWNER"), "{}", role.stderr);

    switch_compaction(&region, &table, MaintenanceStatus::Disabled).await;
    let done = site.lakehouse.ask(&["maintain", "--once"]).await;
    assert!(of(&done, "app.account")["outcome"]["rewrites"][0]["snapshot_id"].is_string(), "{done}");
    let recorded =
        "SELECT count(*)::VARCHAR FROM lake.lakehouse_control.maintenance_runs WHERE operation = 'compaction'";
    let recorded = region.engine(&bucket).duckdb(recorded).await.expect("DuckDB reads");
    assert_ne!(recorded, [json!(["0"])]);
    bank.work(5, 20).await;
    site.caught_up().await;
    site.assert_equal().await;
    stop(worker).await;
}

async fn assert_both(region: &Region, site: &Site, cluster: &Cluster, domains: [&str; 2], buckets: &[String]) {
    let status = site.lakehouse.ask(&["status"]).await;
    let mut all = Vec::new();
    for (number, (domain, bucket)) in domains.iter().zip(buckets).enumerate() {
        let own: Vec<String> = TABLES.iter().map(|table| format!("{domain}.{table}")).collect();
        let control = format!("lakehouse_control.{domain}");
        let mut there = [own.clone(), vec![control]].concat();
        there.sort();
        assert_eq!(region.list(bucket).await, there);
        let pipeline = &status["pipelines"][number];
        assert_eq!(pipeline["name"], *domain, "{status}");
        assert_eq!(pipeline["state"], "streaming", "{status}");
        let mirrors: Vec<&Value> =
            pipeline["tables"].as_array().expect("tables").iter().map(|table| &table["table"]).collect();
        assert_eq!(mirrors, [&json!(format!("{domain}.account")), &json!(format!("{domain}.ledger"))]);
        let verified = site.lakehouse.ask(&["verify", "--pipeline", domain]).await;
        assert_eq!(verified["verdict"], "equal", "{verified}");
        assert_eq!(verified["tables"].as_array().map(Vec::len), Some(2), "{verified}");
        // Each engine is given one bucket, and finds its domain's rows there.
        let entries = cluster.value(domain, "SELECT count(*) FROM ledger").await;
        let counted =
            region.engine(bucket).duckdb(&format!("SELECT count(*)::VARCHAR FROM lake.{domain}.ledger")).await;
        assert_eq!(counted, Ok(vec![json!([entries])]));
        all.extend(own);
    }
    let tables = site.lakehouse.ask(&["tables"]).await;
    let listed: Vec<&str> =
        tables["tables"].as_array().expect("tables").iter().filter_map(|table| table["table"].as_str()).collect();
    assert_eq!(listed, all);
}
