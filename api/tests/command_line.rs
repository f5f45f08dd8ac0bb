//! The command line as people and scripts meet it: verbs, exit codes, errors, configuration.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::support::Installation;
use crate::support::lake::{self, CONFIG};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

const CANARY: &str = "canary-77c2";

#[test]
fn help_lists_the_verbs_of_this_release_and_no_other() {
    let answer = Installation::new("").run(&["--help"]);
    assert_eq!(answer.code, 0);
    let (_, commands) = answer.text().split_once("Commands:\n").expect("a list of verbs");
    let (commands, _) = commands.split_once("\n\n").expect("an end of the list");
    let name = |line: &&str| line.starts_with("  ") && !line.starts_with("   ");
    let verbs: Vec<&str> = commands.lines().filter(name).filter_map(|line| line.split_whitespace().next()).collect();
    let expected = [
        "run",
        "replicate",
        "maintain",
        "serve",
        "validate",
        "status",
        "wait",
        "tables",
        "snapshots",
        "rows",
        "diff",
        "verify",
        "fsck",
        "health",
        "quarantine",
        "resync",
        "rollback",
        "undo",
        "abort",
        "replay",
        "accept",
        "tag",
        "protect",
        "operations",
        "pause",
        "resume",
        "audit",
        "openapi",
        "completions",
        "version",
    ];
    assert_eq!(verbs, expected);
    let rows = Installation::new("").run(&["rows", "--help"]);
    assert_eq!(rows.code, 0);
    assert!(rows.text().contains("--as-of") && rows.text().contains("--where"), "{}", rows.text());
}

#[test]
fn version_and_completions_need_no_configuration() {
    let nowhere = Installation::new("this is not TOML");
    assert_eq!(nowhere.run(&["version"]).text(), format!("lakehouse {}\n", env!("CARGO_PKG_VERSION")));
    assert_eq!(nowhere.ask(&["version"])["version"], env!("CARGO_PKG_VERSION"));
    for shell in ["bash", "zsh", "fish"] {
        let answer = nowhere.run(&["completions", shell]);
        assert_eq!(answer.code, 0);
        assert!(answer.text().contains("snapshots"), "{shell}");
    }
}

#[test]
fn a_verb_of_a_later_release_says_so() {
    let installation = Installation::new(CONFIG);
    for verb in ["adopt", "doctor", "healthcheck"] {
        assert_eq!(installation.json(&[verb]).error(), (2, "NOT_YET".to_owned()), "{verb}");
    }
}

#[test]
fn an_error_is_three_lines_on_standard_error() {
    let installation = Installation::new(CONFIG);
    for (arguments, first) in [
        (&["snapshot", "app.t"][..], "error USAGE: unrecognized subcommand 'snapshot'"),
        (&["rows"], "error USAGE: the following required arguments were not provided: <TABLE>"),
        (&["wait"], "error USAGE: "),
        (&["doctor"], "error NOT_YET: "),
        (&["status", "--pipeline", "ap"], "error PIPELINE_UNKNOWN: "),
        (&["--config", "nowhere.toml", "status"], "error CONFIG_FILE: "),
    ] {
        let answer = installation.run(arguments);
        assert_eq!((answer.code, answer.text()), (2, ""), "{arguments:?}");
        let lines: Vec<&str> = answer.stderr.lines().collect();
        assert!(lines[0].starts_with(first), "{}", answer.stderr);
        assert!(
            lines[1].starts_with("  at: ") && lines[2].starts_with("  do: ") && lines.len() == 3,
            "{}",
            answer.stderr
        );
    }
    let unknown = installation.json(&["snapshot"]);
    assert_eq!(unknown.error(), (2, "USAGE".to_owned()));
    assert!(unknown.json()["remedy"].as_str().is_some_and(|remedy| remedy.contains("snapshots")), "{unknown:?}");
}

#[test]
fn the_configuration_comes_from_file_variables_and_flags() {
    let interval = |installation: &Installation, flags: &[&str]| {
        let answer = installation.json(&[flags, &["validate"]].concat()).json();
        answer["configuration"]["pipelines"]["app"]["commit_interval_seconds"].clone()
    };
    let key = "LAKEHOUSE__PIPELINES__APP__COMMIT_INTERVAL_SECONDS";
    let file = Installation::new(CONFIG);
    assert_eq!(interval(&file, &[]), 5);
    let both = Installation::new(CONFIG).variable(key, "7");
    assert_eq!(interval(&both, &[]), 7);
    assert_eq!(interval(&both, &["--set", "pipelines.app.commit_interval_seconds=9"]), 9);

    let elsewhere = tempfile::tempdir().expect("a temporary folder");
    let path = elsewhere.path().join("other.toml");
    fs::write(&path, CONFIG.replace("app", "other")).expect("a configuration file");
    let named = Installation::new("").variable("LAKEHOUSE_CONFIG", path.to_str().expect("a path in UTF-8"));
    assert_eq!(named.ask(&["status"])["pipelines"][0]["name"], "other");
    let answer = named.json(&["validate"]).json();
    assert_eq!(answer["configuration"]["catalog"]["path"], json!(elsewhere.path().join("lake/catalog.db")));
}

#[test]
fn a_wrong_configuration_is_refused_before_anything_starts() {
    for (config, code, part) in [
        (format!("{CONFIG}\nhots = 1"), "CONFIG_UNKNOWN_KEY", "host"),
        (format!("{CONFIG}\npassword = \"{CANARY}\""), "CONFIG_SECRET_INLINE", "env"),
        (
            format!("{CONFIG}\npassword = {{ env = \"LAKEHOUSE_TEST_NOT_SET\" }}"),
            "SECRET_UNREADABLE",
            "LAKEHOUSE_TEST_NOT_SET",
        ),
        (format!("{CONFIG}\npassword = {{ rds_iam = true }}"), "SECRET_UNSUPPORTED", "file"),
        (format!("[pipelines.app]\ncommit_interval_seconds = 601\n{CONFIG}"), "CONFIG_VALUE", "600"),
        ("[pipelines.App.postgres]".to_owned(), "CONFIG_NAME", "a-z"),
        ("[catalog".to_owned(), "CONFIG_SYNTAX", "line 1"),
        (String::new(), "CONFIG_NO_PIPELINE", "[pipelines.NAME]"),
        (format!("[api.tls]\n{CONFIG}"), "CONFIG_MISSING_KEY", "certificate"),
        ("[pipelines.app.dynamodb]\nregion = \"x\"".to_owned(), "CONFIG_MISSING_KEY", "tables"),
        (format!("[catalog]\nkind = \"s3-tables\"\n{CONFIG}"), "CONFIG_MISSING_KEY", "table_bucket"),
    ] {
        let installation = Installation::new(&config);
        let answer = installation.json(&["run"]);
        assert_eq!(answer.error(), (2, code.to_owned()), "{answer:?}");
        assert!(answer.text().contains(part), "{answer:?}");
        assert!(!format!("{answer:?}").contains(CANARY), "{answer:?}");
        assert!(!installation.path().join("lake").exists(), "{code}: nothing is created");
    }
}

#[test]
fn a_secret_is_never_printed() {
    let config = format!("{CONFIG}\npassword = {{ env = \"THE_PASSWORD\" }}");
    let installation = Installation::new(&config).variable("THE_PASSWORD", CANARY).variable("RUST_LOG", "trace");
    for arguments in [&["validate"][..], &["status"], &["--json", "validate"], &["--json", "status"], &["verify"]] {
        let answer = installation.run(arguments);
        assert!(!format!("{answer:?}").contains(CANARY), "{answer:?}");
    }
    let validated = installation.json(&["validate"]).json();
    assert_eq!(validated["configuration"]["pipelines"]["app"]["postgres"]["password"], json!({"env": "THE_PASSWORD"}));
}

#[test]
fn before_the_first_start_a_pipeline_is_new_and_nothing_is_created() {
    let installation = Installation::new(CONFIG);
    let status = installation.ask(&["status"]);
    let expected = json!({"pipelines": [{
        "name": "app", "source": "postgres", "state": "new", "code": null, "epoch": 0, "position": null,
        "source_position": null, "lag_seconds": null, "lag_bytes": null, "cut": null, "tables": [],
    }]});
    assert_eq!(status, expected);
    assert_eq!(installation.run(&["status"]).code, 0);
    for verb in [&["tables"][..], &["snapshots", "app.t"], &["rows", "app.t"], &["fsck"], &["verify"], &["health"]] {
        assert_eq!(installation.json(verb).error(), (1, "CATALOG_MISSING".to_owned()), "{verb:?}");
    }
    for flag in ["--once", "--dry-run"] {
        assert_eq!(installation.json(&["maintain", flag]).error(), (1, "CATALOG_MISSING".to_owned()), "{flag}");
    }
    let waited = installation.json(&["wait", "--position", "0/1", "--timeout", "10ms"]);
    assert_eq!(waited.error(), (1, "WAIT_TIMEOUT".to_owned()));
    assert!(!installation.path().join("lake").exists());
}

#[test]
fn validation_names_what_is_wrong_with_code_and_remedy() {
    let installation = Installation::new(CONFIG);
    let answer = installation.json(&["validate"]);
    assert_eq!((answer.code, &answer.json()["verdict"]), (2, &json!("invalid")));
    let finding = &answer.json()["findings"][0];
    let text = |key: &str| finding[key].as_str().unwrap_or_default().to_owned();
    assert_eq!((text("pipeline"), text("code"), text("severity")), ("app".into(), "REFUSED".into(), "error".into()));
    assert!(!text("message").is_empty() && !text("fix").is_empty());
    let answer = installation.run(&["validate"]);
    assert!(answer.text().contains("error REFUSED: ") && answer.text().ends_with("verdict: invalid\n"), "{answer:?}");
}

/// The entries of an audit trail.
fn entries(installation: &Installation) -> Vec<Value> {
    let text = fs::read_to_string(installation.path().join("audit.jsonl")).expect("a trail");
    text.lines().map(|line| serde_json::from_str(line).expect("an entry")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operators_verb_leaves_its_intent_and_its_outcome() {
    let installation = lake::installation_with("[audit]\nfile = \"audit.jsonl\"\n", &[]).await;
    let installation = installation.variable("USER", "ann");
    installation.ask(&["pause", "--reason", "maintenance of the source"]);
    installation.ask(&["resume"]);
    // What is refused before anything could be changed has no entry, nor has what only looks.
    for (verb, code) in [
        (&["resync", "app.orders", "--reason=x"][..], "NOT_CONFIRMED"),
        (&["resync", "app.nothing", "--yes", "--reason=x"], "TABLE_UNKNOWN"),
        (&["undo", "none", "--yes", "--reason=x"], "OPERATION_UNKNOWN"),
    ] {
        assert_eq!(installation.json(verb).error().1, code);
    }
    installation.ask(&["status"]);
    let resync = installation.ask(&["resync", "app.orders", "--yes", "--reason", "lost a replace"]);
    let entries = entries(&installation);
    let told: Vec<_> = entries
        .iter()
        .map(|entry| ["kind", "action", "reason"].map(|key| entry[key].as_str().unwrap_or("-")))
        .collect();
    let expected = [
        ["intent", "pause", "maintenance of the source"],
        ["outcome", "pause", "-"],
        ["intent", "resume", "-"],
        ["outcome", "resume", "-"],
        ["intent", "resync", "lost a replace"],
        ["outcome", "resync", "-"],
    ];
    assert_eq!(told, expected);
    for (number, entry) in entries.iter().enumerate() {
        assert_eq!(
            (&entry["principal"], &entry["via"], &entry["subject"], &entry["sequence"]),
            (&json!("ann"), &json!("command_line"), &json!("app"), &json!(number + 1))
        );
        let pair = &entries[number ^ 1];
        assert_eq!(entry["request_id"], pair["request_id"]);
    }
    assert_eq!(entries[4]["detail"]["tables"], resync["tables"]);
    assert_eq!(entries[5]["detail"]["code"], Value::Null);
    let report = installation.ask(&["audit", "verify"]);
    assert_eq!((&report["verdict"], &report["entries"]), (&json!("sound"), &json!(6)), "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollback_is_written_down_with_its_snapshots_before_and_after() {
    let installation = lake::installation_with("[audit]\nfile = \"audit.jsonl\"\n", &[]).await;
    let snapshots = || {
        let told = installation.ask(&["snapshots", "app.orders"]);
        let id = |snapshot: &Value| snapshot["snapshot_id"].as_str().expect("an id").to_owned();
        told["snapshots"].as_array().expect("snapshots").iter().map(id).collect::<Vec<_>>()
    };
    let before = snapshots();
    let (target, head) = (&before[0], &before[before.len() - 1]);
    let rollback = ["rollback", "app.orders", "--snapshot", target.as_str(), "--reason", "import 17 was wrong"];
    installation.ask(&[&rollback[..], &["--dry-run"]].concat());
    assert!(!installation.path().join("audit.jsonl").exists(), "a look changes nothing");
    let done = installation.ask(&[&rollback[..], &["--yes"]].concat());
    let operation = done["operation"].as_str().expect("an id");
    let rolled_back = snapshots().pop().expect("a snapshot");
    let undo = ["undo", operation, "--yes", "--reason", "not that one"];
    installation.ask(&undo);
    let undone = snapshots().pop().expect("a snapshot");
    assert_eq!(installation.json(&undo).error(), (1, "NOT_HELD".to_owned()));

    let entries = entries(&installation);
    let told: Vec<_> = entries.iter().map(|entry| ["kind", "action"].map(|key| entry[key].as_str().unwrap())).collect();
    let pairs = ["rollback", "undo", "undo"].map(|action| [["intent", action], ["outcome", action]]);
    assert_eq!(told, pairs.concat());
    let detail = |number: usize| &entries[number]["detail"];
    assert_eq!((&entries[0]["subject"], &entries[0]["reason"]), (&json!("app"), &json!("import 17 was wrong")));
    let table = &detail(0)["tables"]["app.orders"];
    assert_eq!((table["head"].as_str(), table["target"].as_str()), (Some(head.as_str()), Some(target.as_str())));
    assert_eq!((&table["position"], &detail(0)["cut"]), (&done["tables"][0]["position"], &done["cut"]));
    let after = |snapshot: &str| json!({"app.orders": snapshot});
    assert_eq!(*detail(1), json!({"operation": operation, "snapshots": after(&rolled_back), "code": null}));
    assert_eq!((&entries[2]["subject"], &detail(2)["stage"]), (&json!(operation), &json!("rolled_back")));
    assert_eq!(*detail(3), json!({"snapshots": after(&undone), "code": null}));
    assert_eq!(detail(5)["code"], "NOT_HELD");
    assert_eq!(installation.ask(&["audit", "verify"])["entries"], 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_written_down_is_not_done() {
    let full = lake::installation_with("[audit]\nfile = \"/dev/full\"\n", &[]).await;
    let verbs = [&["pause", "--reason=x"][..], &["resume"], &["resync", "app.orders", "--yes", "--reason=x"]];
    for verb in verbs {
        assert_eq!(full.json(verb).error(), (1, "AUDIT_UNWRITABLE".to_owned()), "{verb:?}");
    }
    let torn = lake::installation_with("[audit]\nfile = \"audit.jsonl\"\n", &[]).await;
    fs::write(torn.path().join("audit.jsonl"), "{\"sequence\":1,").expect("a torn trail");
    for verb in verbs {
        assert_eq!(torn.json(verb).error(), (1, "AUDIT_DAMAGED".to_owned()), "{verb:?}");
    }
    for installation in [&full, &torn] {
        let status = installation.ask(&["status"]);
        assert_ne!(status["pipelines"][0]["state"], "paused", "{status}");
    }
}

#[test]
fn an_audit_trail_is_verified_with_and_without_a_configuration() {
    let installation = Installation::new("this is not TOML");
    let file = installation.path().join("copy.jsonl");
    // Two entries as `deploy/docs/audit.md` describes them, made here by hand.
    let line = |sequence: u32, previous: &str| {
        let body = format!(
            "{{\"sequence\":{sequence},\"at\":\"2026-11-21T09:30:00.000000Z\",\"kind\":\"read\",\"via\":\"http\",\
             \"action\":\"rows\",\"principal\":\"ann\",\"subject\":\"app.orders\",\"request_id\":\"r\",\
             \"reason\":null,\"detail\":{{}},\"previous\":\"{previous}\""
        );
        let hash: String = Sha256::digest(format!("{body}}}")).iter().map(|byte| format!("{byte:02x}")).collect();
        (format!("{body},\"hash\":\"{hash}\"}}\n"), hash)
    };
    let (first, one) = line(1, &"0".repeat(64));
    let (second, two) = line(2, &one);
    fs::write(&file, format!("{first}{second}")).expect("a copy");
    let verify = |more: &[&str]| installation.json(&[&["audit", "verify", "copy.jsonl"], more].concat());
    let sound = verify(&[]);
    assert_eq!(sound.code, 0, "{sound:?}");
    let expected = json!({"file": "copy.jsonl", "verdict": "sound", "entries": 2, "sequence": 2, "hash": two,
                          "at": "2026-11-21T09:30:00.000000Z", "line": null, "flaw": null});
    assert_eq!(sound.json(), expected);
    let (capitals, other) = (two.to_uppercase(), "1".repeat(64));
    for (more, code) in [
        (&["--expect-head", one.as_str()][..], 0),
        (&["--expect-head", capitals.as_str()], 0),
        (&["--expect-at-least", "2"], 0),
        (&["--expect-at-least", "3"], 5),
        (&["--expect-head", other.as_str()], 5),
        (&["--expect-head", "1"], 2),
    ] {
        assert_eq!(verify(more).code, code, "{more:?}");
    }
    let told = installation.run(&["audit", "verify", "copy.jsonl"]);
    assert!(told.text().contains("2 entries") && told.text().contains(&two), "{told:?}");
    assert!(told.text().ends_with("verdict: sound\n"), "{told:?}");
    fs::write(&file, format!("{first}{}", second.replace("ann", "bob"))).expect("a changed copy");
    let changed = verify(&[]);
    assert_eq!((changed.code, &changed.json()["line"], &changed.json()["hash"]), (5, &json!(2), &json!(one)));
    let told = installation.run(&["audit", "verify", "copy.jsonl"]);
    assert_eq!(told.code, 5);
    assert!(told.text().starts_with("line 2: ") && told.text().ends_with("verdict: unsound\n"), "{told:?}");
    assert_eq!(installation.json(&["audit", "verify", "nowhere"]).error(), (1, "AUDIT_UNREADABLE".to_owned()));
    let without = Installation::new(CONFIG);
    assert_eq!(without.json(&["audit", "verify"]).error(), (2, "CONFIG_MISSING_KEY".to_owned()));
}

#[test]
fn a_pipeline_that_only_a_person_can_help_halts_with_its_code() {
    let config = CONFIG.replace("127.0.0.1", "db.example.com");
    let installation = Installation::new(&config);
    let answer = installation.json(&["replicate"]);
    assert_eq!(answer.error(), (4, "TLS_REQUIRED".to_owned()));
    let pipeline = &installation.ask(&["status"])["pipelines"][0];
    assert_eq!((&pipeline["state"], &pipeline["code"]), (&json!("halted"), &json!("TLS_REQUIRED")));
}

#[test]
fn a_worker_retries_what_time_heals_and_stops_when_told() {
    let installation = Installation::new(CONFIG);
    let mut worker = installation.spawn(&["run"]);
    let file = installation.path().join("state/app/worker.json");
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let state: Option<Value> = fs::read(&file).ok().and_then(|text| serde_json::from_slice(&text).ok());
        if state.is_some_and(|state| state["state"] == "retrying" && state["code"] == "REFUSED") {
            break;
        }
        assert!(Instant::now() < deadline, "the worker has not said that it retries");
        std::thread::sleep(Duration::from_millis(20));
    }
    let told = Command::new("kill").args(["-TERM", &worker.id().to_string()]).status().expect("kill starts");
    assert!(told.success());
    assert_eq!(worker.wait().expect("the worker ends").code(), Some(0));
    let pipeline = &installation.ask(&["status"])["pipelines"][0];
    assert_eq!((&pipeline["state"], &pipeline["code"]), (&json!("new"), &Value::Null));
}
