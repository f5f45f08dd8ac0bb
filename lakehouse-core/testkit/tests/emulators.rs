//! The servers that other people wrote: they start, they race as their headers say, and they end with the test.

use std::io::{BufRead, BufReader};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_sdk_s3tables::error::ProvideErrorMetadata;
use aws_sdk_s3tables::types::OpenTableFormat;
use serde_json::{Value, json};
use testkit::emulators::{Ministack, Moto, RestCatalog, Warehouse};
use testkit::http;
use testkit::rest_engine::RestEngine;
use testkit::s3_tables::client;

const WRITERS: usize = 16;
const ROUNDS: usize = 10;

#[tokio::test(flavor = "multi_thread")]
async fn conditional_writes_of_ministack_have_one_winner() {
    let ministack = Ministack::start().await;
    let objects = ministack.objects();
    objects.create_bucket("race").await;
    let s3 = objects.client();
    for round in 0..ROUNDS {
        let key = format!("k{round}");
        let puts = (0..WRITERS).map(|writer| {
            let put = s3.put_object().bucket("race").key(&key).if_none_match("*");
            put.body(format!("{writer}").into_bytes().into()).send()
        });
        let winners = futures::future::join_all(puts).await.iter().filter(|outcome| outcome.is_ok()).count();
        assert_eq!(winners, 1, "round {round}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn moto_compares_version_tokens() {
    let moto = Moto::start().await;
    let client = client(&moto.endpoint());
    let bucket = client.create_table_bucket().name("lake").send().await.unwrap().arn;
    client.create_namespace().table_bucket_arn(&bucket).namespace("ns").send().await.unwrap();
    let create = client.create_table().table_bucket_arn(&bucket).namespace("ns").name("t");
    create.format(OpenTableFormat::Iceberg).send().await.unwrap();
    for round in 0..ROUNDS {
        let table = client.get_table().table_bucket_arn(&bucket).namespace("ns").name("t").send().await.unwrap();
        let updates = (0..WRITERS).map(|writer| {
            let update = client.update_table_metadata_location().table_bucket_arn(&bucket).namespace("ns").name("t");
            let location = format!("{}/{round}-{writer}.metadata.json", table.warehouse_location);
            update.version_token(&table.version_token).metadata_location(location).send()
        });
        let outcomes = futures::future::join_all(updates).await;
        assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 1, "round {round}");
        let refusals = outcomes.iter().filter_map(|outcome| outcome.as_ref().err());
        assert!(refusals.into_iter().all(|refusal| refusal.code() == Some("ConflictException")));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_rest_catalog_compares_what_is_required() {
    let Some(catalog) =
        RestCatalog::start_or_skip("the_rest_catalog_compares_what_is_required", &Warehouse::Files).await
    else {
        return;
    };
    let base = format!("{}/v1/namespaces", catalog.uri());
    let post =
        async |path: &str, body: Value| http::send("POST", &format!("{base}{path}"), &body.to_string()).await.unwrap();
    assert_eq!(post("", json!({"namespace": ["ns"]})).await.status, 200);
    let schema = json!({"type": "struct", "schema-id": 0, "fields": []});
    assert_eq!(post("/ns/tables", json!({"name": "t", "schema": schema})).await.status, 200);
    let mut head = Value::Null;
    for round in 1..=ROUNDS {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis();
        let now = u64::try_from(now).unwrap();
        let commits = (0..WRITERS).map(|writer| {
            let id = round * 100 + writer;
            let mut snapshot = json!({
                "snapshot-id": id, "sequence-number": round, "timestamp-ms": now,
                "manifest-list": "file:/none", "summary": {"operation": "append"}, "schema-id": 0,
            });
            if !head.is_null() {
                snapshot["parent-snapshot-id"] = head.clone();
            }
            let body = json!({
                "requirements": [{"type": "assert-ref-snapshot-id", "ref": "main", "snapshot-id": head}],
                "updates": [
                    {"action": "add-snapshot", "snapshot": snapshot},
                    {"action": "set-snapshot-ref", "ref-name": "main", "type": "branch", "snapshot-id": id},
                ],
            });
            async move { (id, post("/ns/tables/t", body).await) }
        });
        let outcomes = futures::future::join_all(commits).await;
        let winners: Vec<_> = outcomes.iter().filter(|(_, answer)| answer.status == 200).collect();
        let [(winner, _)] = winners[..] else { panic!("round {round}: {outcomes:?}") };
        assert!(outcomes.iter().all(|(_, answer)| matches!(answer.status, 200 | 409)), "{outcomes:?}");
        head = json!(winner);
    }
}

#[tokio::test]
async fn other_engines_use_the_rest_catalog_with_files_and_with_s3() {
    const NAME: &str = "other_engines_use_the_rest_catalog_with_files_and_with_s3";
    let Some(on_files) = RestCatalog::start_or_skip(NAME, &Warehouse::Files).await else { return };
    let ministack = Ministack::start().await;
    let objects = ministack.objects();
    objects.create_bucket("lake").await;
    let warehouse = Warehouse::S3 { objects: objects.clone(), bucket: "lake".to_owned() };
    let Some(on_s3) = RestCatalog::start_or_skip(NAME, &warehouse).await else { return };
    let engines = [RestEngine::on_files(&on_files.uri()), RestEngine::new(&on_s3.uri(), "", &objects)];
    let checks = engines.iter().map(async |engine| {
        engine.create("ns.t").await.unwrap();
        engine.append("ns.t", "{\"id\": 1, \"name\": \"a\"}\n{\"id\": 2, \"name\": null}").await.unwrap();
        engine.delete("ns.t", "id == 2").await.unwrap();
        assert_eq!(engine.rows("ns.t").await.unwrap(), [json!([1, "a"])]);
        assert_eq!(engine.duckdb("SELECT id, name FROM lake.ns.t").await.unwrap(), [json!([1, "a"])]);
    });
    futures::future::join_all(checks).await;
    assert!(on_files.dir().join("warehouse").exists());
}

#[tokio::test]
async fn a_server_ends_with_its_test() {
    let moto = Moto::start().await;
    let address = moto.endpoint().trim_start_matches("http://").to_owned();
    assert!(TcpStream::connect(&address).is_ok());
    drop(moto);
    assert!(TcpStream::connect(&address).is_err());
}

/// Set for the process that [`a_killed_test_leaves_no_server`] kills.
const VICTIM: &str = "TESTKIT_VICTIM";

#[tokio::test]
async fn a_killed_test_leaves_no_server() {
    if std::env::var_os(VICTIM).is_some() {
        let moto = Moto::start().await;
        println!("\nlistening {}", moto.endpoint());
        return std::future::pending().await;
    }
    let mut victim = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_killed_test_leaves_no_server", "--nocapture"])
        .env(VICTIM, "1")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(victim.stdout.take().unwrap()).lines();
    let line = lines.map(Result::unwrap).find(|line| line.starts_with("listening ")).unwrap();
    let address = line.trim_start_matches("listening http://").to_owned();
    assert!(TcpStream::connect(&address).is_ok());
    victim.kill().unwrap();
    victim.wait().unwrap();
    let gone = async {
        while TcpStream::connect(&address).is_ok() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), gone).await.expect("the keeper kills the server");
}
