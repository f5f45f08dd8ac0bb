//! What is wrong around a pipeline ends with an exit code, three lines that name code, place and remedy, and nothing
//! written; or it halts and resumes as `deploy/docs/troubleshooting.md` says.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::live::{Live, PIPELINE, Site, stop, until};
use serde_json::Value;
use testkit::lakehouse::Answer;
use testkit::postgres::{Certificate, Cluster, Options};

const CANARY: &str = "canary-5a1f";

/// Three lines with this code, and only them where no log belongs.
fn assert_error(answer: &Answer, exit: i32, code: &str) {
    assert_eq!(answer.code, Some(exit), "{code}: {answer:?}");
    let lines: Vec<&str> = answer.stderr.lines().collect();
    let [first, place, remedy] = lines[lines.len().saturating_sub(3)..] else {
        panic!("{code}: three lines expected: {answer:?}");
    };
    assert!(first.starts_with(&format!("error {code}: ")), "{code}: {answer:?}");
    assert!(place.starts_with("  at: ") && place.len() > 6, "{code}: {answer:?}");
    assert!(remedy.starts_with("  do: ") && remedy.len() > 6, "{code}: {answer:?}");
    assert_eq!(answer.stdout, "", "{code}");
    assert!(!format!("{answer:?}").contains(CANARY), "{code}: a secret is shown: {answer:?}");
}

/// The lake has no table, and the source no trace.
async fn assert_nothing_written(site: &Site, cluster: &Cluster) {
    if site.database().exists() {
        let tables = site.lakehouse.ask(&["tables"]).await;
        assert_eq!(tables["tables"], Value::Array(Vec::new()));
    }
    assert_eq!(files_below(&site.path().join("lake/warehouse/app")), 0);
    let left = "SELECT (SELECT count(*) FROM pg_replication_slots WHERE slot_name LIKE 'lakehouse%')
                     + (SELECT count(*) FROM pg_publication WHERE pubname LIKE 'lakehouse%')";
    assert_eq!(cluster.value("postgres", left).await, "0");
}

fn files_below(folder: &Path) -> usize {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| if entry.path().is_dir() { files_below(&entry.path()) } else { 1 }).sum()
}

/// The worker refuses to start with this code, `validate` finds the same, and nothing is written.
async fn assert_refused(live: &Live, flags: &[&str], code: &str) -> Value {
    let answer = live.site.ended(flags).await;
    assert_error(&answer, 4, code);
    assert_nothing_written(&live.site, &live.cluster).await;
    let (exit, validated) = live.site.lakehouse.json(&[flags, &["validate"]].concat()).await;
    assert_eq!(exit, Some(2), "{validated}");
    finding(&validated, code)
}

/// The one finding with this code.
fn finding(validated: &Value, code: &str) -> Value {
    let findings = validated["findings"].as_array().expect("findings");
    let found: Vec<&Value> = findings.iter().filter(|finding| finding["code"] == code).collect();
    assert_eq!(found.len(), 1, "{code}: {validated}");
    found[0].clone()
}

async fn with_table() -> Live {
    with_table_and(Options::default()).await
}

async fn with_table_and(options: Options) -> Live {
    let live = Live::new(options).await;
    live.sql("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT n, 'v' FROM generate_series(1, 100) n")
        .await;
    live
}

#[tokio::test]
async fn a_wrong_login_or_place_is_refused() {
    let mut live = with_table().await;
    live.site.lakehouse.set_environment("WRONG", CANARY);
    let section = format!("pipelines.{PIPELINE}.postgres");
    let wrong = format!("{section}.password.env=WRONG");
    assert_refused(&live, &["--set", &wrong], "AUTH").await;
    assert_refused(&live, &["--set", &format!("{section}.user=nobody_at_all")], "AUTH").await;
    assert_refused(&live, &["--set", &format!("{section}.database=nowhere")], "DB").await;
    assert_refused(&live, &["--set", &format!("{section}.tables=elsewhere.*")], "NO_TABLES").await;
    // The same settings without the mistakes are good, so that each refusal was for its mistake.
    let validated = live.site.lakehouse.ask(&["validate"]).await;
    assert_eq!(validated["verdict"], "valid", "{validated}");
}

#[tokio::test]
async fn a_certificate_that_proves_nothing_is_refused_before_the_password() {
    let stranger = Cluster::start(Options { certificate: Some(Certificate::Good), ..Options::default() }).await;
    let section = format!("pipelines.{PIPELINE}.postgres");
    let set = |key: &str, value: &str| format!("{section}.{key}={value}");
    for (certificate, expected) in [
        (Some(Certificate::Good), None),
        (Some(Certificate::WrongHost), Some("TLS_HOST_NAME")),
        (Some(Certificate::Expired), Some("TLS_EXPIRED")),
        (Some(Certificate::SelfSigned), Some("TLS_SELF_SIGNED")),
        (None, Some("TLS_REFUSED")),
    ] {
        let live = with_table_and(Options { certificate, ..Options::default() }).await;
        let roots = if certificate.is_some() { live.cluster.root_certificate() } else { stranger.root_certificate() };
        let roots = set("root_certificate", roots.to_str().expect("UTF-8"));
        let (host, tls) = (set("host", "localhost"), set("tls", "verify-full"));
        let flags = ["--set", &host, "--set", &tls, "--set", &roots];
        match expected {
            Some(code) => {
                assert_refused(&live, &flags, code).await;
            }
            None => {
                let strange = set("root_certificate", stranger.root_certificate().to_str().expect("UTF-8"));
                let distrusting = ["--set", &host, "--set", &tls, "--set", &strange];
                assert_refused(&live, &distrusting, "TLS_UNTRUSTED").await;
                let validated = live.site.lakehouse.ask(&[&flags[..], &["validate"]].concat()).await;
                assert_eq!(validated["verdict"], "valid", "{validated}");
            }
        }
    }
    let live = with_table().await;
    let (host, tls) = (set("host", "db.example.com"), set("tls", "disable"));
    assert_refused(&live, &["--set", &host, "--set", &tls], "TLS_REQUIRED").await;
}

#[tokio::test]
async fn a_server_without_logical_wal_or_a_free_slot_is_refused() {
    let config = vec!["wal_level = replica".to_owned()];
    let live = with_table_and(Options { config, ..Options::default() }).await;
    let found = assert_refused(&live, &[], "WAL_LEVEL").await;
    assert!(found["fix"].as_str().is_some_and(|fix| fix.contains("ALTER SYSTEM SET wal_level = logical")), "{found}");

    let config = vec!["max_replication_slots = 1".to_owned()];
    let live = with_table_and(Options { config, ..Options::default() }).await;
    live.sql("SELECT pg_create_physical_replication_slot('somebody_else')").await;
    let found = assert_refused(&live, &[], "SLOTS").await;
    assert!(found["fix"].as_str().is_some_and(|fix| fix.contains("max_replication_slots")), "{found}");
    live.sql("SELECT pg_drop_replication_slot('somebody_else')").await;
    assert_eq!(live.site.lakehouse.ask(&["validate"]).await["verdict"], "valid");
}

/// Runs what `validate` prints as superuser, over and over, until it is content.
async fn follow_advice(live: &Live, flags: &[&str]) -> Vec<String> {
    let mut followed = Vec::new();
    for _ in 0..5 {
        let (exit, validated) = live.site.lakehouse.json(&[flags, &["validate"]].concat()).await;
        if exit == Some(0) {
            assert_eq!(validated["verdict"], "valid");
            return followed;
        }
        for finding in validated["findings"].as_array().expect("findings") {
            if finding["severity"] == "error" {
                let fix = finding["fix"].as_str().unwrap_or_else(|| panic!("no fix: {finding}"));
                live.sql(fix).await;
                followed.push(fix.to_owned());
            }
        }
    }
    panic!("validate is never content: {followed:?}");
}

#[tokio::test]
async fn each_missing_right_is_named_and_the_printed_statements_are_enough() {
    let mut live = with_table().await;
    live.sql(
        "CREATE SCHEMA shop; CREATE TABLE shop.orders (id int, at date, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);
         CREATE TABLE shop.orders_2025 PARTITION OF shop.orders FOR VALUES FROM ('2025-01-01') TO ('2026-01-01');
         CREATE TABLE shop.\"Orders 2026\" PARTITION OF shop.orders FOR VALUES FROM ('2026-01-01') TO ('2027-01-01');
         INSERT INTO shop.orders VALUES (1, '2025-05-05'), (2, '2026-06-06');
         CREATE ROLE \"Reader-1\" LOGIN PASSWORD 'reader'",
    )
    .await;
    live.site.lakehouse.set_environment("READER", "reader");
    let section = format!("pipelines.{PIPELINE}.postgres");
    let user = format!("{section}.user=Reader-1");
    let password = format!("{section}.password.env=READER");
    let tables = format!("{section}.tables=public.*, shop.*");
    let flags = ["--set", &user, "--set", &password, "--set", &tables];

    assert_refused(&live, &flags, "ROLE_REPLICATION").await;
    live.sql("ALTER ROLE \"Reader-1\" REPLICATION").await;
    assert_refused(&live, &flags, "PUBLICATION_MISSING").await;
    live.sql(
        "CREATE PUBLICATION lakehouse_app FOR TABLE public.t, shop.orders WITH (publish_via_partition_root = true)",
    )
    .await;

    // All rights but one, on one partition that the copy reads by itself.
    live.sql(
        "GRANT SELECT ON t TO \"Reader-1\"; GRANT USAGE ON SCHEMA shop TO \"Reader-1\";
         GRANT SELECT ON shop.orders, shop.orders_2025 TO \"Reader-1\"",
    )
    .await;
    let answer = live.site.ended(&flags).await;
    assert_error(&answer, 4, "PERM");
    let (_, validated) = live.site.lakehouse.json(&[&flags[..], &["validate"]].concat()).await;
    let found = finding(&validated, "PERM");
    let grant = "GRANT SELECT ON TABLE \"shop\".\"Orders 2026\" TO \"Reader-1\"";
    assert!(found["fix"].as_str().is_some_and(|fix| fix.ends_with(grant)), "{found}");

    // From no right at all: what is printed is all that is needed, and what is needed only.
    live.sql(
        "DROP PUBLICATION lakehouse_app; ALTER ROLE \"Reader-1\" NOREPLICATION;
         REVOKE ALL ON ALL TABLES IN SCHEMA public, shop FROM \"Reader-1\"; REVOKE ALL ON SCHEMA shop FROM \"Reader-1\"",
    )
    .await;
    let followed = follow_advice(&live, &flags).await;
    assert_eq!(followed.len(), 4, "replication, publication, two tables: {followed:?}");
    let superuser = live.cluster.value("postgres", "SELECT rolsuper FROM pg_roles WHERE rolname = 'Reader-1'").await;
    assert_eq!(superuser, "f");

    let worker = live.site.lakehouse.spawn(&[&flags[..], &["replicate"]].concat());
    live.sql("INSERT INTO shop.orders VALUES (3, '2026-07-07'); UPDATE t SET v = 'w' WHERE id = 1").await;
    live.site.caught_up().await;
    let verified = live.site.lakehouse.ask(&[&flags[..], &["verify"]].concat()).await;
    assert_eq!(verified["verdict"], "equal", "{verified}");
    stop(worker).await;
}

#[tokio::test]
async fn a_publication_that_is_gone_or_younger_than_the_slot_halts() {
    let live = with_table().await;
    let worker = live.site.start();
    live.site.caught_up().await;
    stop(worker).await;

    live.sql("DROP PUBLICATION lakehouse_app; INSERT INTO t VALUES (101, 'between')").await;
    let tables = live.site.lakehouse.ask(&["status"]).await["pipelines"][0]["tables"].clone();
    let answer = live.site.ended(&[]).await;
    assert_error(&answer, 4, "PUBLICATION_MISSING");
    let (exit, validated) = live.site.lakehouse.json(&["validate"]).await;
    assert_eq!(exit, Some(2));
    finding(&validated, "PUBLICATION_MISSING");

    // Made again it looks right, but the slot holds changes from before it.
    live.sql("CREATE PUBLICATION lakehouse_app FOR TABLE t").await;
    let answer = live.site.ended(&[]).await;
    assert_error(&answer, 4, "PUBLICATION_MISSING");
    assert_eq!(live.site.status().await, ("halted".to_owned(), Some("PUBLICATION_MISSING".to_owned())));
    assert_eq!(live.site.lakehouse.ask(&["status"]).await["pipelines"][0]["tables"], tables, "nothing was written");
}

#[tokio::test]
async fn a_slot_that_this_lake_has_not_made_is_not_touched() {
    let live = with_table().await;
    live.sql("CREATE PUBLICATION lakehouse_app FOR TABLE t").await;
    live.sql("SELECT pg_create_logical_replication_slot('lakehouse_app', 'pgoutput')").await;
    let before = "SELECT confirmed_flush_lsn FROM pg_replication_slots";
    let (slot, answer) = (live.cluster.value("postgres", before).await, live.site.ended(&[]).await);
    assert_error(&answer, 4, "SLOT_FOREIGN");
    assert_eq!(live.cluster.value("postgres", before).await, slot);
    assert_eq!(live.site.lakehouse.ask(&["tables"]).await["tables"], Value::Array(Vec::new()));
}

#[tokio::test]
async fn a_table_without_identity_is_warned_about_and_kept_as_a_history() {
    let live = with_table().await;
    live.sql("CREATE TABLE log (line text); INSERT INTO log VALUES ('before')").await;
    let validated = live.site.lakehouse.ask(&["validate"]).await;
    let found = finding(&validated, "NO_IDENTITY");
    assert_eq!((&found["severity"], &found["subject"]), (&Value::from("warning"), &Value::from("public.log")));
    assert!(found["fix"].as_str().is_some_and(|fix| fix.contains("REPLICA IDENTITY FULL")), "{found}");

    let worker = live.site.start();
    live.site.caught_up().await;
    // The application is not harmed: what cannot be captured can still be done.
    live.sql("INSERT INTO log VALUES ('after'); UPDATE log SET line = 'changed'; DELETE FROM log WHERE line = 'none'")
        .await;
    live.site.caught_up().await;
    let tables = live.site.lakehouse.ask(&["tables"]).await;
    let names: Vec<&str> =
        tables["tables"].as_array().expect("tables").iter().filter_map(|table| table["table"].as_str()).collect();
    assert_eq!(names, ["app.log_history", "app.t", "app.t_history"]);
    let rows = live.site.lakehouse.ask(&["rows", "app.log_history"]).await;
    let lines: Vec<&Value> = rows["rows"].as_array().expect("rows").iter().map(|row| &row["line"]).collect();
    assert_eq!(lines, ["after"]);
    stop(worker).await;
}

#[tokio::test]
async fn a_mistake_in_the_configuration_starts_nothing() {
    let live = with_table().await;
    let section = format!("pipelines.{PIPELINE}");
    let secret = live.site.path().join("secret");
    let reference = format!("password = {{ file = \"{}\" }}", secret.display());
    for (flag, code, part) in [
        (format!("{section}.comit_interval_seconds=1"), "CONFIG_UNKNOWN_KEY", "commit_interval_seconds"),
        (format!("{section}.postgres.password.env=NOT_SET_ANYWHERE"), "SECRET_UNREADABLE", "NOT_SET"),
        (format!("{section}.postgres.password={CANARY}"), "CONFIG_SECRET_INLINE", "env"),
    ] {
        let answer = live.site.ended(&["--set", &flag]).await;
        assert_error(&answer, 2, code);
        assert!(answer.stderr.contains(part), "{answer:?}");
        assert!(!live.site.path().join("lake").exists(), "{code}");
    }
    let config = fs::read_to_string(live.site.lakehouse.config()).expect("the configuration");
    live.site.lakehouse.configure(&config.replace("password = { env = \"SOURCE_PASSWORD\" }", &reference));
    let answer = live.site.ended(&[]).await;
    assert_error(&answer, 2, "SECRET_UNREADABLE");
    assert!(answer.stderr.contains(secret.to_str().expect("UTF-8")), "{answer:?}");
    // The same reference, once there is something behind it.
    fs::write(&secret, format!("{}\n", live.cluster.superuser_password())).expect("write the secret");
    assert_eq!(live.site.lakehouse.ask(&["validate"]).await["verdict"], "valid");
}

#[tokio::test]
async fn a_lake_that_follows_another_database_is_left_alone() {
    let live = with_table().await;
    let worker = live.site.start();
    live.site.caught_up().await;
    stop(worker).await;
    let before = live.site.lakehouse.ask(&["snapshots", "app.t"]).await;

    // The database beside it, and another server with the same names.
    live.sql("CREATE DATABASE beside").await;
    live.cluster.sql("beside", "CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (7, 'x')").await;
    let beside = format!("pipelines.{PIPELINE}.postgres.database=beside");
    let answer = live.site.ended(&["--set", &beside]).await;
    assert_error(&answer, 4, "SLOT_DB");
    // With a slot name that is free there, nothing but the lake itself tells the two apart.
    let slot = format!("pipelines.{PIPELINE}.postgres.slot=beside");
    let answer = live.site.ended(&["--set", &beside, "--set", &slot]).await;
    assert_error(&answer, 4, "IDENTITY");

    let other = with_table().await;
    let port = format!("pipelines.{PIPELINE}.postgres.port={}", other.cluster.port());
    let password = format!("pipelines.{PIPELINE}.postgres.password.env=OTHER");
    let mut site = live.site;
    site.lakehouse.set_environment("OTHER", other.cluster.superuser_password());
    let answer = site.ended(&["--set", &port, "--set", &password]).await;
    assert_error(&answer, 4, "IDENTITY");
    assert_eq!(site.lakehouse.ask(&["snapshots", "app.t"]).await, before);
    let slots = "SELECT count(*) FROM pg_replication_slots";
    assert_eq!(other.cluster.value("postgres", slots).await, "0");

    // At home again it goes on.
    live.cluster.sql("postgres", "INSERT INTO t VALUES (101, 'home')").await;
    let worker = site.start();
    site.caught_up().await;
    site.assert_equal().await;
    stop(worker).await;
}

#[tokio::test]
async fn a_warehouse_that_cannot_be_written_is_refused() {
    let live = with_table().await;
    let file = live.site.path().join("file");
    fs::write(&file, "no folder").expect("write a file");
    let below = format!("catalog.warehouse={}", file.join("warehouse").display());
    let answer = live.site.ended(&["--set", &below]).await;
    assert_error(&answer, 1, "WAREHOUSE_NOT_WRITABLE");
    assert_nothing_written(&live.site, &live.cluster).await;

    let Some(mount) = Mount::new("size=16m") else {
        eprintln!("SKIP a_read_only_warehouse: only root can mount a file system");
        return;
    };
    mount.remount("ro");
    let read_only = format!("catalog.warehouse={}", mount.folder.display());
    let answer = live.site.ended(&["--set", &read_only]).await;
    assert_error(&answer, 4, "WAREHOUSE_NOT_WRITABLE");
}

#[tokio::test]
async fn a_full_disk_is_waited_for_and_nothing_is_lost() {
    let Some(mount) = Mount::new("size=8m") else {
        eprintln!("SKIP a_full_disk_is_waited_for_and_nothing_is_lost: only root can mount a file system");
        return;
    };
    let cluster = Cluster::start(Options::default()).await;
    cluster.sql("postgres", "CREATE TABLE t (id int PRIMARY KEY, v text)").await;
    let mut site = Site::new(&cluster, "");
    let config = fs::read_to_string(site.lakehouse.config()).expect("the configuration");
    site.lakehouse.configure(&config.replace("lake/warehouse", mount.folder.to_str().expect("UTF-8")));
    site.lakehouse.set_environment("RUST_LOG", "info");
    let mut worker = site.start();
    cluster.sql("postgres", "INSERT INTO t VALUES (0, 'small')").await;
    site.caught_up().await;

    // 16 MiB that do not compress.
    let random = "(SELECT string_agg(md5(n::text || m::text), '') FROM generate_series(1, 32) m)";
    let insert = format!("INSERT INTO t SELECT n, {random} FROM generate_series(1, 16384) n");
    cluster.sql("postgres", &insert).await;
    until("the full disk is noticed", || site.worker_state() == ("retrying".into(), Some("DISK_FULL".into()))).await;
    assert!(worker.is_running());
    let rows = site.lakehouse.ask(&["rows", "app.t", "--limit", "10"]).await;
    assert_eq!(rows["rows"].as_array().map(Vec::len), Some(1), "the last cut stays readable: {rows}");

    mount.remount("size=256m");
    site.caught_up().await;
    cluster.sql("postgres", "DELETE FROM t WHERE id % 3 = 0; UPDATE t SET v = 'short' WHERE id % 3 = 1").await;
    site.caught_up().await;
    site.assert_equal().await;
    stop(worker).await;
}

#[tokio::test]
async fn local_state_that_is_damaged_or_gone_is_built_anew() {
    let live = Live::new(Options::default()).await;
    live.sql(
        "CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT n, 'v' FROM generate_series(1, 50000) n",
    )
    .await;
    let state = live.site.path().join("state");
    let worker = live.site.start();
    live.site.caught_up().await;
    stop(worker).await;
    // Where only reading shows it, and the process has long started.
    let damaged = damage(&state);
    assert!(damaged > 0, "the key index has no file of its own");
    live.sql("UPDATE t SET v = 'w' WHERE id % 7 = 0; DELETE FROM t WHERE id % 7 = 1").await;
    let worker = live.site.start();
    live.site.caught_up().await;
    live.site.assert_equal().await;
    stop(worker).await;

    fs::remove_dir_all(&state).expect("delete the local state");
    live.sql("UPDATE t SET v = 'x' WHERE id % 7 = 2").await;
    let worker = live.site.start();
    live.site.caught_up().await;
    live.site.assert_equal().await;
    stop(worker).await;
}

/// Changes bytes in the middle of every larger file below a folder; how many files.
fn damage(folder: &Path) -> usize {
    let mut damaged = 0;
    for entry in fs::read_dir(folder).expect("a folder").flatten() {
        let path = entry.path();
        if path.is_dir() {
            damaged += damage(&path);
            continue;
        }
        let mut bytes = fs::read(&path).expect("a file");
        if bytes.len() > 65_536 {
            let middle = bytes.len() / 4..bytes.len() / 2;
            bytes[middle].iter_mut().step_by(512).for_each(|byte| *byte ^= 0x40);
            fs::write(&path, bytes).expect("damage a file");
            damaged += 1;
        }
    }
    damaged
}

/// A file system of one's own, gone with the test even when the test is killed.
struct Mount {
    folder: PathBuf,
    keeper: Child,
}

impl Mount {
    /// `None` where mounting is not allowed.
    fn new(options: &str) -> Option<Self> {
        // As the kit's PostgreSQL: a shell that cleans up at the end of its input, whatever ended it.
        const KEEP: &str = r#"trap '' HUP INT TERM; read -r _; umount -l "$0"; rmdir "$0""#;
        let folder = tempfile::tempdir().expect("a temporary folder").keep();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(&folder).stderr(Stdio::null());
        if !mount.status().is_ok_and(|status| status.success()) {
            fs::remove_dir(&folder).expect("remove an empty folder");
            return None;
        }
        let mut keeper = Command::new("/bin/sh");
        keeper.args(["-c", KEEP]).arg(&folder).stdin(Stdio::piped()).current_dir("/");
        let keeper = keeper.spawn().expect("start /bin/sh");
        Some(Self { folder, keeper })
    }

    fn remount(&self, options: &str) {
        let options = format!("remount,{options}");
        let status = Command::new("mount").args(["-o", &options]).arg(&self.folder).status().expect("mount starts");
        assert!(status.success(), "mount -o {options}");
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        drop(self.keeper.stdin.take());
        let _ = self.keeper.wait();
    }
}
