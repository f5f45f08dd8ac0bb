//! The configuration as files, variables and flags make it.

use std::fs;
use std::path::PathBuf;

use ::maintenance::budget::Budgets;
use ::maintenance::plan::Order;
use serde_json::{Value, json};

use super::*;

const CANARY: &str = "canary-4f1d";

const APP: &str = r#"
    [pipelines.app.postgres]
    host = "db.internal"
    database = "fuji"
    user = "lakehouse"
"#;

struct Case {
    folder: tempfile::TempDir,
    environment: Vec<(String, String)>,
    flags: Vec<String>,
}

impl Case {
    fn new(text: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("lakehouse.toml"), text).unwrap();
        Self { folder, environment: Vec::new(), flags: Vec::new() }
    }

    fn variable(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    fn flag(mut self, flag: &str) -> Self {
        self.flags.push(flag.to_owned());
        self
    }

    fn load(&self) -> Result<Config, Failure> {
        let file = self.folder.path().join("lakehouse.toml");
        Config::load(&Sources { file: &file, environment: &self.environment, flags: &self.flags })
    }

    /// The whole configuration as `validate` shows it.
    fn shown(&self) -> Value {
        serde_json::to_value(self.load().unwrap()).unwrap()
    }

    fn refused(&self) -> (String, String) {
        let failure = self.load().unwrap_err();
        assert_eq!(failure.exit, crate::failure::Exit::Usage);
        let problem = failure.problem;
        let all = format!("{} {} {} {}", problem.code, problem.subject, problem.message, problem.remedy);
        assert!(!all.contains(CANARY), "{all}");
        (problem.code.to_owned(), all)
    }
}

/// The code, and every text that must be in the error.
fn check(text: &str, code: &str, parts: &[&str]) {
    let (found, all) = Case::new(text).refused();
    assert_eq!(found, code, "{all}");
    parts.iter().for_each(|part| assert!(all.contains(part), "{part} is not in {all}"));
}

fn app(more: &str) -> String {
    format!("{APP}\n{more}")
}

#[test]
fn the_example_of_the_interface_is_understood() {
    let text = r#"
        [catalog]
        kind = "sqlite"
        path = "lake/catalog.db"
        warehouse = "lake/warehouse"
        [pipelines.payments]
        namespace = "payments"
        commit_interval_seconds = 5
        history = true
        local_state = "state"
        memory = "512MiB"
        [pipelines.payments.postgres]
        host = "db.internal"
        port = 5432
        database = "fuji"
        user = "lakehouse"
        password = { env = "PAYMENTS_PASSWORD" }
        tls = "verify-full"
        root_certificate = "rds-ca.pem"
        slot = "lakehouse_payments"
        publication = "lakehouse_payments"
        tables = ["public.*"]
        exclude = ["public.secret"]
        [pipelines.payments.tables."public.payments"]
        partition = ["day(paid_at)", "bucket(16, customer_id)"]
        key = ["id"]
        history = false
        name = "pay"
        columns.card_no = { policy = "hash", key = { env = "CARD_KEY" } }
        [pipelines.app.dynamodb]
        region = "ap-northeast-1"
        tables = ["profiles", "reservations"]
        endpoint = "http://127.0.0.1:8000"
        [pipelines.app.tables."profiles"]
        columns = { user_id = "string", level = "long", updated_at = "timestamptz" }
        key = ["user_id"]
        [maintenance]
        owner = "self"
        every = "60s"
        [api]
        listen = "127.0.0.1:8080"
        metrics_listen = "127.0.0.1:9100"
    "#;
    let case = Case::new(text);
    let shown = case.shown();
    let folder = case.folder.path();
    assert_eq!(shown["catalog"]["path"], json!(folder.join("lake/catalog.db")));
    assert_eq!(shown["catalog"]["warehouse"], json!(folder.join("lake/warehouse")));
    assert_eq!(shown["pipelines"]["payments"]["postgres"]["root_certificate"], json!(folder.join("rds-ca.pem")));
    assert_eq!(shown["pipelines"]["payments"]["postgres"]["password"], json!({"env": "PAYMENTS_PASSWORD"}));
    assert_eq!(shown["pipelines"]["app"]["namespace"], "app");
    let config = case.load().unwrap();
    let Source::Dynamodb(app) = config.pipelines["app"].source("app").unwrap() else { panic!("a DynamoDB source") };
    assert_eq!((app.tables.len(), app.copy_workers), (2, 4));
    assert_eq!(app.options["profiles"].columns["level"], "long");
    assert_eq!(app.aws.endpoint.as_deref(), Some("http://127.0.0.1:8000"));
}

#[test]
fn a_dynamodb_pipeline_says_what_to_do_in_trouble() {
    let text = r#"
        [pipelines.app.dynamodb]
        tables = ["profiles", "orders"]
        s3_endpoint = "http://127.0.0.1:8000"
        export_bucket = "exports"
        export_prefix = "a/b"
        copy = "export"
        on_gap = "incremental_export"
        copy_read_units = 500
        lease_table = "leases"
        [pipelines.app.tables."profiles"]
        copy = "scan"
        on_gap = "resync"
        mismatch = "fail"
        ttl_deletes = "keep"
        infer = true
        infer_items = 500
        columns = { level = "long", at = { type = "timestamptz", mismatch = "rest" } }
    "#;
    let config = Case::new(text).load().unwrap();
    let Source::Dynamodb(app) = config.pipelines["app"].source("app").unwrap() else { panic!("a DynamoDB source") };
    let settings = &app.settings;
    assert_eq!((settings.on_gap, settings.copy), (OnGap::IncrementalExport, CopyRoad::Export));
    assert_eq!(settings.exports, Some(ExportPlace::new("exports", Some("a/b".to_owned()))));
    let lease = LeaseSettings { table: "leases".to_owned(), duration: Duration::from_secs(20) };
    assert_eq!((settings.lease.clone(), settings.copy_read_units), (Some(lease), Some(500)));
    assert_eq!(app.aws.s3_endpoint.as_deref(), Some("http://127.0.0.1:8000"));
    let profiles = &app.options["profiles"];
    assert_eq!((profiles.on_gap, profiles.copy), (Some(OnGap::Resync), Some(CopyRoad::Scan)));
    assert_eq!((profiles.ttl_deletes, profiles.infer_items), (TtlDeletes::Keep, Some(500)));
    assert_eq!((profiles.default_mismatch, profiles.mismatch["at"]), (Mismatch::Fail, Mismatch::Rest));
    assert!(!profiles.mismatch.contains_key("level"));
}

#[test]
fn a_table_and_a_column_may_send_what_they_cannot_hold_to_the_quarantine() {
    for (table, default, of_column) in [
        ("mismatch = \"quarantine\"", Mismatch::Quarantine, None),
        (
            "columns = { v = { type = \"long\", mismatch = \"quarantine\" } }",
            Mismatch::Rest,
            Some(Mismatch::Quarantine),
        ),
    ] {
        let text = format!("[pipelines.app.dynamodb]\ntables = [\"t\"]\n[pipelines.app.tables.t]\n{table}");
        let Source::Dynamodb(source) = Case::new(&text).load().unwrap().pipelines["app"].source("app").unwrap() else {
            panic!("a DynamoDB source")
        };
        let options = &source.options["t"];
        assert_eq!((options.default_mismatch, options.mismatch.get("v").copied()), (default, of_column), "{table}");
    }
}

#[test]
fn a_quarantine_has_a_limit_of_rows_and_of_a_share() {
    let limit = |table: &str| {
        let text = format!("[pipelines.app.dynamodb]\ntables = [\"t\"]\n[pipelines.app.tables.t]\n{table}");
        let Source::Dynamodb(source) = Case::new(&text).load().unwrap().pipelines["app"].source("app").unwrap() else {
            panic!("a DynamoDB source")
        };
        source.options["t"].quarantine_limit
    };
    assert_eq!(limit("mismatch = \"quarantine\""), QuarantineLimit { rows: 10_000, percent: 10 });
    let own = "quarantine_rows = 7\nquarantine_percent = 100";
    assert_eq!(limit(own), QuarantineLimit { rows: 7, percent: 100 });
}

#[test]
fn what_a_dynamodb_pipeline_cannot_do_is_refused() {
    let dynamodb = |more: &str| format!("[pipelines.app.dynamodb]\ntables = [\"t\"]\n{more}");
    check(&dynamodb("copy = \"export\""), "CONFIG_MISSING_KEY", &["dynamodb.export_bucket"]);
    check(&dynamodb("on_gap = \"incremental_export\""), "CONFIG_MISSING_KEY", &["dynamodb.export_bucket"]);
    check(&dynamodb("on_gap = \"repair\""), "CONFIG_VALUE", &["on_gap", "incremental_export"]);
    check(&dynamodb("export_bucket = \"b\"\nexport_prefix = \"/a\""), "CONFIG_VALUE", &["export_prefix", "slash"]);
    check(&dynamodb("copy_read_units = 0"), "CONFIG_VALUE", &["copy_read_units"]);
    check(&dynamodb("lease_seconds = 1"), "CONFIG_VALUE", &["lease_seconds", "5 to 600"]);
    check(&dynamodb("[pipelines.app.tables.t]\ncopy = \"export\""), "CONFIG_VALUE", &["t.copy", "export_bucket"]);
    check(&dynamodb("[pipelines.app.tables.t]\nmismatch = \"drop\""), "CONFIG_VALUE", &["t.mismatch", "quarantine"]);
    let percent = "[pipelines.app.tables.t]\nquarantine_percent = 101";
    check(&dynamodb(percent), "CONFIG_VALUE", &["t.quarantine_percent", "1 to 100"]);
    // Keys of DynamoDB tables are none of PostgreSQL's.
    check(&app("[pipelines.app.tables.\"public.t\"]\non_gap = \"fail\""), "CONFIG_UNKNOWN_KEY", &["on_gap"]);
}

fn postgres_of(source: Source) -> PostgresSource {
    match source {
        Source::Postgres(source) => source,
        Source::Dynamodb(_) => panic!("a PostgreSQL source"),
    }
}

#[test]
fn what_is_left_out_has_its_default() {
    let case = Case::new(APP);
    let shown = case.shown();
    let postgres = &shown["pipelines"]["app"]["postgres"];
    assert_eq!(shown["catalog"]["kind"], "sqlite");
    assert_eq!(shown["pipelines"]["app"]["memory"], "512MiB");
    assert_eq!(shown["pipelines"]["app"]["local_state"], json!(case.folder.path().join("state")));
    assert_eq!((&postgres["port"], &postgres["tls"]), (&json!(5432), &json!("verify-full")));
    assert_eq!((&postgres["slot"], &postgres["publication"]), (&json!("lakehouse_app"), &json!("lakehouse_app")));
    assert_eq!(postgres["tables"], json!(["public.*"]));
    let source = case.load().unwrap().pipelines["app"].source("app").map(postgres_of).unwrap();
    assert_eq!((source.namespace.as_str(), source.copy_workers, source.memory), ("app", 4, 512 << 20));
    assert_eq!(source.connection.password.expose(), "");
}

#[test]
fn a_table_says_how_it_is_kept() {
    let text = app(r#"
        [pipelines.app.tables."public.Orders"]
        name = "orders_all"
        partition = ["day(at)", "country"]
        key = ["Id"]
        history = false
        time_as_string = true
        columns."Total €" = { name = "total" }
    "#);
    let source = Case::new(&text).load().unwrap().pipelines["app"].source("app").map(postgres_of).unwrap();
    let options = &source.options["public.Orders"];
    assert_eq!(
        (options.name.as_deref(), options.history, options.time_as_string),
        (Some("orders_all"), Some(false), true)
    );
    assert_eq!((options.partition.len(), options.key.clone()), (2, Some(vec!["Id".to_owned()])));
    assert_eq!(options.column_names["Total €"], "total");
}

#[test]
fn an_unknown_key_is_named_with_file_path_and_the_nearest_key() {
    let unknown = "CONFIG_UNKNOWN_KEY";
    check(&app("hots = \"x\""), unknown, &["lakehouse.toml: pipelines.app.postgres.hots", "known key is host"]);
    check("[catalog]\nwarehose = \"x\"", unknown, &["catalog.warehose", "warehouse"]);
    check("[pipline.app]", unknown, &[": pipline", "pipelines"]);
    check(
        &app("[pipelines.app.tables.\"public.t\"]\npartitions = []"),
        unknown,
        &["pipelines.app.tables.\"public.t\".partitions", "partition"],
    );
    check("[maintenance]\nevry = \"1s\"", unknown, &["maintenance.evry", "every"]);
    check("[api]\nlisten_metrics = \"x\"", unknown, &["api.listen_metrics", "listen"]);
    check(&app("password = { environment = \"X\" }"), unknown, &["postgres.password.environment", "env"]);
    // An unknown key comes before a missing one: it is often the missing one, mistyped.
    check("[pipelines.app.postgres]\nhst = \"x\"", unknown, &["host"]);
}

#[test]
fn values_are_checked() {
    let value = "CONFIG_VALUE";
    let pipeline = |text: &str| format!("[pipelines.app]\n{text}\n{APP}");
    check(&pipeline("commit_interval_seconds = 0"), value, &["commit_interval_seconds", "1 to 600"]);
    check(&pipeline("commit_interval_seconds = \"5\""), value, &["a whole number"]);
    check(&pipeline("memory = \"512MB\""), value, &["memory", "MiB"]);
    check(&pipeline("memory = \"1MiB\""), value, &["memory"]);
    check(&pipeline("history = 1"), value, &["true or false"]);
    check(&pipeline("namespace = \"lakehouse_control\""), value, &["namespace"]);
    check(&app("port = 70000"), value, &["postgres.port"]);
    check(&app("tls = \"require\""), value, &["require", "verify-full, verify-ca, disable"]);
    check(&app("tables = [\"orders\"]"), value, &["orders", "schema.table"]);
    check(&app("connect_timeout = \"10\""), value, &["connect_timeout", "such as 60s"]);
    check("[maintenance]\nowner = \"glue\"", value, &["maintenance.owner", "s3-tables"]);
    for (key, part) in [
        ("target_file_size = \"512KiB\"", "1MiB to 4GiB"),
        ("small_files = 1", "2 to 10000"),
        ("deleted_share = 0.0", "above 0"),
        ("deleted_share = 2", "such as 0.1"),
        ("read_cost_share = 0.0", "above 0"),
        ("dense_window = \"59m\"", "1h or more"),
        ("min_snapshots = 0", "1 to"),
        ("orphan_age = \"23h\"", "24h or more"),
        ("bytes_per_hour = \"1KiB\"", "1MiB or more"),
        ("read_cost_bytes_per_hour = \"1KiB\"", "1MiB or more"),
        ("every = \"0s\"", "1s or more"),
    ] {
        let name = key.split(' ').next().unwrap();
        check(&format!("[maintenance]\n{key}"), value, &[&format!("maintenance.{name}"), part]);
    }
    check("[maintenance.tables.\"a.b\"]\norphan_age = \"1h\"", value, &["maintenance.tables.\"a.b\".orphan_age"]);
    let two = "[maintenance.tables.\"a.b\"]\nsort_by = [\"c\"]\nzorder_by = [\"c\"]";
    check(two, value, &["maintenance.tables.\"a.b\".zorder_by"]);
    check("[maintenance.tables.orders]\nowner = \"none\"", "CONFIG_NAME", &["maintenance.tables.orders"]);
    check("[maintenance]\nowner = \"s3-tables\"", value, &["maintenance", "the catalog kind s3-tables"]);
    check("[maintenance.spark]\ncommand = [\"\"]", value, &["maintenance.spark.command"]);
    check(&APP.replace("app", "maintenance_runs"), "CONFIG_NAME", &["maintenance_runs"]);
    check("[api]\nlisten = \"8080\"", value, &["api.listen"]);
    check("[api]\nlisten = \"0.0.0.0:80\"\nallow_anonymous = true", value, &["allow_anonymous"]);
    check("[api]\nscans = 0", value, &["api.scans"]);
    check("[api]\nlisten = \"0.0.0.0:80\"", value, &["api.listen", "[api.tls]", "behind_proxy = true"]);
    check("[api.tls]\nkey = \"tls.key\"", "CONFIG_MISSING_KEY", &["api.tls.certificate"]);
    check("[api.tls]\ncertificate = \"tls.crt\"", "CONFIG_MISSING_KEY", &["api.tls.key"]);
    check("[api.auth.tokens.a]\nrole = \"reader\"", "CONFIG_MISSING_KEY", &["api.auth.tokens.a.sha256"]);
    let token = |more: &str| format!("[api.auth.tokens.a]\nsha256 = \"{}\"\n{more}", "0a".repeat(32));
    check(&token(""), "CONFIG_MISSING_KEY", &["api.auth.tokens.a.role"]);
    check(&token("role = \"root\""), value, &["api.auth.tokens.a.role", "reader"]);
    check(&token("role = \"reader\"\ntables = [\"orders\"]"), value, &["api.auth.tokens.a.tables"]);
    check(&token("role = \"reader\"\nexpires = \"soon\""), value, &["api.auth.tokens.a.expires"]);
    check("[api.auth.tokens.a]\nsha256 = \"abc\"\nrole = \"reader\"", value, &["64 hexadecimal digits"]);
    check("[pipelines.app]\nnamespace = \"a\"", value, &["no source"]);
    check("catalog = 1", value, &["a section"]);
    let partition = app("[pipelines.app.tables.\"public.t\"]\npartition = [\"week(a)\"]");
    check(&partition, "CONFIG_PARTITION", &["week(a)", "bucket(N, c)"]);
    for name in ["Pay", "a-b", "", &"x".repeat(64)] {
        check(&pipeline(&format!("namespace = {name:?}")), "CONFIG_NAME", &["pipelines.app.namespace"]);
        check(&app(&format!("slot = {name:?}")), "CONFIG_NAME", &["postgres.slot"]);
        check(&APP.replace("app", &format!("{name:?}")), "CONFIG_NAME", &["pipelines."]);
    }
    check("[pipelines.app.postgres]\nhost = \"x\"", "CONFIG_MISSING_KEY", &["postgres.database"]);
    check("[catalog]\nkind = \"rest\"", "CONFIG_MISSING_KEY", &["catalog.uri"]);
    let shared = format!("{APP}slot = \"s\"\n{}slot = \"s\"", APP.replace("app", "other"));
    check(&shared, "CONFIG_SLOT_SHARED", &["app", "other"]);
}

#[test]
fn an_address_beyond_this_machine_has_tls_or_a_proxy() {
    for more in ["behind_proxy = true", "[api.tls]\ncertificate = \"tls.crt\"\nkey = \"tls.key\""] {
        let shown = Case::new(&format!("[api]\nlisten = \"0.0.0.0:443\"\n{more}")).shown();
        assert_eq!(shown["api"]["listen"], "0.0.0.0:443", "{more}");
    }
}

const OIDC: &str = r#"
    [api.auth.oidc]
    issuer = "https://id.example"
    audience = "lakehouse"
    jwks_uri = "https://id.example/keys"
    [api.auth.oidc.grants."lake operators"]
    role = "operator"
    tables = ["shop.*"]
"#;

#[test]
fn an_issuer_has_defaults_that_are_safe() {
    let oidc = &Case::new(OIDC).shown()["api"]["auth"]["oidc"];
    assert_eq!((&oidc["algorithms"], &oidc["leeway"]), (&json!(["RS256"]), &json!("30s")));
    assert_eq!((&oidc["claim"], &oidc["jwks_uri"]), (&json!("groups"), &json!("https://id.example/keys")));
    assert_eq!(oidc["grants"]["lake operators"], json!({"role": "operator", "tables": ["shop.*"]}));
}

#[test]
fn an_issuer_is_checked() {
    let value = "CONFIG_VALUE";
    let changed = |from: &str, to: &str| OIDC.replace(from, to);
    for key in ["issuer", "audience", "jwks_uri"] {
        check(&changed(&format!("    {key} ="), &format!("    # {key} =")), "CONFIG_MISSING_KEY", &[key]);
    }
    check(OIDC.split("    [api.auth.oidc.grants").next().unwrap(), "CONFIG_MISSING_KEY", &["oidc.grants"]);
    check(&changed("role = \"operator\"", ""), "CONFIG_MISSING_KEY", &["role"]);
    check(&changed("\"operator\"", "\"root\""), value, &["role", "reader, operator, admin"]);
    check(&changed("shop.*", "shop"), value, &["tables"]);
    check(&changed("role =", "rol = 1\nrole ="), "CONFIG_UNKNOWN_KEY", &["rol", "role"]);
    let keys = |uri: &str| changed("https://id.example/keys", uri);
    for uri in [
        "http://id.example/keys",
        "http://127.0.0.1.id.example/keys",
        "http://10.0.0.1/keys",
        "ftp://127.0.0.1/keys",
        "file:///keys",
        "data:,keys",
    ] {
        check(&keys(uri), value, &["jwks_uri", "https://"]);
    }
    check(&keys(&format!("https://id:{CANARY}@id.example/keys")), value, &["jwks_uri"]);
    check(&keys("/keys"), value, &["jwks_uri"]);
    for uri in ["http://127.0.0.1:8080/keys", "http://[::1]:8080/keys", "http://localhost/keys"] {
        assert_eq!(Case::new(&keys(uri)).shown()["api"]["auth"]["oidc"]["jwks_uri"], uri);
    }
    let with = |more: &str| changed("[api.auth.oidc]", &format!("[api.auth.oidc]\n{more}"));
    for name in ["none", "HS256", "HS384", "HS512", "rs256", "RS1", ""] {
        check(&with(&format!("algorithms = [\"RS256\", {name:?}]")), value, &["algorithms", "EdDSA"]);
    }
    check(&with("algorithms = []"), value, &["algorithms"]);
    check(&with("leeway = \"6m\""), value, &["leeway", "5m"]);
}

#[test]
fn a_table_is_maintained_by_its_own_section_over_the_general_one() {
    let text = r#"
        [catalog]
        kind = "s3-tables"
        table_bucket = "arn:aws:s3tables:eu-central-1:111122223333:bucket/lake"
        [maintenance]
        small_files = 4
        deleted_share = 0.25
        bytes_per_hour = "10GiB"
        owner = { compact = "spark", clean = "none" }
        [maintenance.tables."app.orders"]
        owner = "s3-tables"
        dense_window = "2h"
        sort_by = ["customer"]
        [maintenance.tables."app.ledger"]
        owner = { expire = "none" }
        bytes_per_hour = "1GiB"
        [maintenance.tables."app.hot"]
        owner = "self"
        read_cost_share = 0.01
        quiet_after = "1h"
        cold_after = "7d"
        read_cost_bytes_per_hour = "2GiB"
    "#;
    let config = Case::new(text).load().unwrap().maintenance;
    let table = |name: &str| config.of(&name.parse().unwrap()).clone();
    let words = |name: &str| {
        let Owners { compact, expire, clean } = table(name).owner;
        [compact, expire, clean].map(Owner::as_str)
    };
    assert_eq!(words("app.other"), ["spark", "self", "none"]);
    assert_eq!(words("app.orders"), ["s3-tables", "s3-tables", "s3-tables"]);
    assert_eq!(words("app.ledger"), ["spark", "none", "none"]);
    let (ours, spark) = (table("app.other").settings(Owner::Ours), table("app.other").settings(Owner::Spark));
    assert_eq!((ours.compact, ours.expire, ours.tag, ours.clean), (false, true, false, false));
    assert_eq!((spark.compact, spark.expire, spark.tag, spark.clean), (true, false, false, false));
    assert_eq!((ours.targets.fan, ours.targets.deleted_share), (4, 0.25));
    let managed = table("app.orders").settings(Owner::Ours);
    assert!(managed.tag && !managed.expire, "we tag for the jobs that expire");
    assert!(managed.drop_dangling && !ours.drop_dangling);
    assert_eq!(managed.targets.order, Order::Sorted(vec!["customer".to_owned()]));
    assert_eq!(managed.retention.dense, Duration::from_secs(7_200));
    let bounds = |budgets: Budgets| (budgets.all.bytes_per_hour, budgets.read_cost.bytes_per_hour);
    assert_eq!(bounds(config.budgets()), (Some(10 << 30), Some(10 << 30)));
    let own: Vec<_> = config.own_budgets().map(|(name, budgets)| (name.to_string(), bounds(budgets))).collect();
    let bounded = |name: &str, all: u64, read_cost: u64| (name.to_owned(), (Some(all << 30), Some(read_cost << 30)));
    assert_eq!(own, [bounded("app.hot", 10, 2), bounded("app.ledger", 1, 10)]);
    let hot = table("app.hot").settings(Owner::Ours).targets;
    let hours = |hours: u64| Duration::from_secs(hours * 3_600);
    assert_eq!((hot.read_cost_share, hot.quiet_after, hot.cold_after), (0.01, hours(1), hours(7 * 24)));
    assert_eq!(spark.targets.read_cost_share, 1.0, "no job of Spark's for readers' sake alone");
    let jobs = config.managed();
    assert_eq!((jobs.jobs.compaction, jobs.jobs.snapshots), (false, false));
    assert!(jobs.tables[&"app.orders".parse().unwrap()].compaction);
    assert!(config.is_wanted());
    assert!(!Case::new("[maintenance]\nowner = \"none\"").load().unwrap().maintenance.is_wanted());
    assert!(Case::new("").load().unwrap().maintenance.is_wanted(), "ours by default");
}

#[test]
fn what_is_not_toml_is_named_by_line_without_showing_it() {
    check(&format!("[catalog]\npath = {CANARY}"), "CONFIG_SYNTAX", &["line 2"]);
    let missing = Case::new("");
    fs::remove_file(missing.folder.path().join("lakehouse.toml")).unwrap();
    assert_eq!(missing.refused().0, "CONFIG_FILE");
}

#[test]
fn a_secret_in_the_configuration_is_refused_and_not_shown() {
    check(&app(&format!("password = {CANARY:?}")), "CONFIG_SECRET_INLINE", &["postgres.password", "env"]);
    let table = app(&format!("[pipelines.app.tables.\"public.t\"]\ncolumns.c = {{ key = {CANARY:?} }}"));
    check(&table, "CONFIG_SECRET_INLINE", &["columns.c.key"]);
    let rest = format!("[catalog]\nkind = \"rest\"\nuri = \"x\"\ncredential = {CANARY:?}");
    check(&rest, "CONFIG_SECRET_INLINE", &["catalog.credential"]);
    check(&app(&format!("passwort = {CANARY:?}")), "CONFIG_UNKNOWN_KEY", &["password"]);
    check(&app("password = { env = \"A\", file = \"b\" }"), "CONFIG_VALUE", &["not exactly one"]);
    check(&app("password = {}"), "CONFIG_VALUE", &["not exactly one"]);
    let variable = Case::new(APP).variable("LAKEHOUSE__PIPELINES__APP__POSTGRES__PASSWORD", CANARY);
    let (code, all) = variable.refused();
    assert_eq!(code, "CONFIG_SECRET_INLINE");
    assert!(all.contains("environment variable LAKEHOUSE__PIPELINES__APP__POSTGRES__PASSWORD"), "{all}");
    let flag = Case::new(APP).flag(&format!("pipelines.app.postgres.password={CANARY}"));
    assert_eq!(flag.refused().0, "CONFIG_SECRET_INLINE");
}

#[test]
fn a_secret_is_read_at_use_and_never_printed() {
    let case = Case::new(&app("password = { file = \"password\" }"));
    let config = case.load().unwrap();
    let source = || config.pipelines["app"].source("app").map(postgres_of);
    let failure = source().unwrap_err();
    assert_eq!((failure.problem.code, failure.exit), ("SECRET_UNREADABLE", crate::failure::Exit::Usage));
    let file: PathBuf = case.folder.path().join("password");
    for secret in [CANARY, "canary-changed"] {
        fs::write(&file, secret).unwrap();
        let source = source().unwrap();
        assert_eq!(source.connection.password.expose(), secret);
        let printed = format!("{source:?} {config:?} {}", case.shown());
        assert!(!printed.contains("canary"), "{printed}");
    }
}

#[test]
fn a_column_policy_is_not_silently_left_out() {
    let text = app("[pipelines.app.tables.\"public.t\"]\ncolumns.c = { policy = \"drop\" }");
    let failure = Case::new(&text).load().unwrap().pipelines["app"].source("app").map(postgres_of).unwrap_err();
    assert_eq!((failure.problem.code, failure.problem.subject.as_str()), ("NOT_YET", "public.t.c"));
}

#[test]
fn a_reference_of_a_higher_layer_replaces_another_kind_below() {
    let case = Case::new(&app("password = { env = \"A\" }"));
    let case = case.variable("LAKEHOUSE__PIPELINES__APP__POSTGRES__PASSWORD__FILE", "/run/secret");
    assert_eq!(case.shown()["pipelines"]["app"]["postgres"]["password"], json!({"file": "/run/secret"}));
}

#[test]
fn an_override_finds_names_that_a_variable_cannot_spell() {
    let case = Case::new(&app("[pipelines.app.tables.\"public.Orders\"]\nhistory = true"));
    let case = case.variable("LAKEHOUSE__PIPELINES__APP__TABLES__PUBLIC.ORDERS__HISTORY", "false");
    let case = case.flag("pipelines.app.tables.\"public.Orders\".key=id, at");
    let orders = case.shown()["pipelines"]["app"]["tables"]["public.Orders"].clone();
    assert_eq!((&orders["history"], &orders["key"]), (&json!(false), &json!(["id", "at"])));
}

#[test]
fn an_unknown_override_names_its_layer() {
    let case = Case::new(APP).variable("LAKEHOUSE__CATALOG__PAHT", "x");
    let (code, all) = case.refused();
    assert_eq!(code, "CONFIG_UNKNOWN_KEY");
    assert!(all.contains("environment variable LAKEHOUSE__CATALOG__PAHT") && all.contains("path"), "{all}");
    for flag in ["catalog.path", "=x", "a b=c"] {
        assert_eq!(Case::new(APP).flag(flag).refused().0, "CONFIG_FLAG", "{flag}");
    }
}

#[test]
fn an_audit_trail_has_a_file_beside_the_configuration_or_is_none() {
    assert_eq!(Case::new(APP).shown().get("audit"), None);
    let case = Case::new(&app("[audit]\nfile = \"audit.jsonl\""));
    let file = case.folder.path().join("audit.jsonl");
    assert_eq!(case.shown()["audit"], json!({"file": file, "rows": true}));
    let case = Case::new(&app("[audit]\nfile = \"/var/log/audit.jsonl\"\nrows = false"));
    assert_eq!(case.shown()["audit"], json!({"file": "/var/log/audit.jsonl", "rows": false}));
    let case = Case::new(APP).variable("LAKEHOUSE__AUDIT__FILE", "/a").flag("audit.rows=false");
    assert_eq!(case.shown()["audit"], json!({"file": "/a", "rows": false}));
    check("[audit]", "CONFIG_MISSING_KEY", &["audit.file"]);
    check("[audit]\nflie = \"a\"", "CONFIG_UNKNOWN_KEY", &["audit.flie", "the nearest known key is file"]);
    check("[audit]\nfile = 1", "CONFIG_VALUE", &["audit.file"]);
}

/// Keys of all types: place in the answer, default, and values as TOML.
const KEYS: [(&str, &str, &[&str]); 8] = [
    ("pipelines.app.commit_interval_seconds", "5", &["1", "77", "600"]),
    ("pipelines.app.history", "true", &["false", "true"]),
    ("pipelines.app.namespace", "\"app\"", &["\"n1\"", "\"n_2\"", "\"3\"", "\"true\""]),
    ("pipelines.app.memory", "\"512MiB\"", &["\"1GiB\"", "\"64MiB\""]),
    ("pipelines.app.rollback_tags", "\"7d\"", &["\"30d\"", "\"90s\""]),
    ("pipelines.app.postgres.port", "5432", &["1", "5433"]),
    ("pipelines.app.postgres.tables", "[\"public.*\"]", &["[\"a.b\"]", "[\"a.*\", \"b.c\"]"]),
    ("maintenance.every", "\"1m\"", &["\"2s\"", "\"7d\""]),
];

#[test]
fn the_highest_layer_that_has_a_key_decides() {
    let mut random = fastrand::Rng::with_seed(20_261_121);
    for trial in 0..500 {
        let (mut file, mut case) = (String::new(), Case::new(""));
        let mut expected = Vec::new();
        for (key, default, values) in KEYS {
            let mut winner = default;
            if random.bool() {
                winner = values[random.usize(..values.len())];
                file.push_str(&format!("{key} = {winner}\n"));
            }
            // A text may also come without quotes.
            let mut text = |value: &str| match random.bool() {
                true if value.starts_with('"') => value.trim_matches('"').to_owned(),
                _ => value.to_owned(),
            };
            if fastrand::Rng::with_seed(trial * 31 + key.len() as u64).bool() {
                winner = values[usize::try_from(trial).unwrap() % values.len()];
                let name = format!("LAKEHOUSE__{}", key.to_uppercase().replace('.', "__"));
                case.environment.push((name, text(winner)));
            }
            if fastrand::Rng::with_seed(trial * 37 + key.len() as u64).bool() {
                winner = values[usize::try_from(trial / 3).unwrap() % values.len()];
                case.flags.push(format!("{key}={}", text(winner)));
            }
            let winner: toml::Table = toml::from_str(&format!("value = {winner}")).unwrap();
            expected.push((key, serde_json::to_value(&winner["value"]).unwrap()));
        }
        for (key, value) in [("host", "h"), ("database", "d"), ("user", "u")] {
            file.push_str(&format!("pipelines.app.postgres.{key} = \"{value}\"\n"));
        }
        fs::write(case.folder.path().join("lakehouse.toml"), &file).unwrap();
        let shown = case.shown();
        for (key, value) in expected {
            let pointer = format!("/{}", key.replace('.', "/"));
            assert_eq!(
                shown.pointer(&pointer),
                Some(&value),
                "trial {trial}, {key}\n{file}{:?}{:?}",
                case.environment,
                case.flags
            );
        }
    }
}
