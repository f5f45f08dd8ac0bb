//! The simulator of S3 Tables, driven by Amazon's client, by PyIceberg and by DuckDB.

use std::time::Duration;

use aws_sdk_s3tables::Client;
use aws_sdk_s3tables::error::ProvideErrorMetadata;
use aws_sdk_s3tables::operation::RequestId;
use aws_sdk_s3tables::types::{
    IcebergCompactionSettings, MaintenanceStatus, OpenTableFormat, TableMaintenanceConfigurationValue,
    TableMaintenanceSettings, TableMaintenanceType,
};
use serde_json::json;
use testkit::emulators::Ministack;
use testkit::http;
use testkit::objects::Objects;
use testkit::rest_engine::RestEngine;
use testkit::s3_tables::{Committer, Compaction, Expiry, S3Tables, TableId, client};

struct World {
    tables: S3Tables,
    client: Client,
    bucket: String,
    /// Behind the simulator, without its restrictions.
    objects: Objects,
    _ministack: Ministack,
}

impl World {
    async fn start() -> Self {
        let ministack = Ministack::start().await;
        let objects = ministack.objects();
        let tables = S3Tables::start(&objects);
        let bucket = tables.create_table_bucket("lake");
        let client = client(&tables.endpoint());
        client.create_namespace().table_bucket_arn(&bucket).namespace("ns").send().await.unwrap();
        Self { tables, client, bucket, objects, _ministack: ministack }
    }

    fn id(&self, name: &str) -> TableId {
        TableId { bucket: self.bucket.clone(), namespace: "ns".to_owned(), name: name.to_owned() }
    }

    /// Creates `ns.name`; its warehouse.
    async fn create(&self, name: &str) -> String {
        let create = self.client.create_table().table_bucket_arn(&self.bucket).namespace("ns").name(name);
        create.format(OpenTableFormat::Iceberg).send().await.unwrap();
        self.read(name).await.1
    }

    /// Token, warehouse and metadata location.
    async fn read(&self, name: &str) -> (String, String, Option<String>) {
        let read = self.client.get_table_metadata_location().table_bucket_arn(&self.bucket).namespace("ns").name(name);
        let read = read.send().await.unwrap();
        (read.version_token, read.warehouse_location, read.metadata_location)
    }

    async fn put(&self, location: &str, content: &[u8]) {
        let (bucket, key) = location.strip_prefix("s3://").unwrap().split_once('/').unwrap();
        let put = self.tables.objects().client().put_object().bucket(bucket).key(key);
        put.body(content.to_vec().into()).send().await.unwrap();
    }

    /// The error's code, or the new token.
    async fn swap(&self, name: &str, token: &str, location: &str) -> Result<String, String> {
        swap(&self.client, &self.bucket, name, token, location).await
    }

    fn engine(&self) -> RestEngine {
        RestEngine::new(&self.tables.rest_uri(), &self.bucket, &self.tables.objects())
    }
}

async fn swap(client: &Client, bucket: &str, name: &str, token: &str, location: &str) -> Result<String, String> {
    let update = client.update_table_metadata_location().table_bucket_arn(bucket).namespace("ns").name(name);
    let update = update.version_token(token).metadata_location(location).send().await;
    update.map(|answer| answer.version_token).map_err(|error| error.code().unwrap_or("no code").to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn one_of_many_holders_of_a_token_wins() {
    const ROUNDS: usize = 40;
    const WRITERS: usize = 16;
    let world = World::start().await;
    let warehouse = world.create("t").await;
    let locations: Vec<String> =
        (0..WRITERS).map(|writer| format!("{warehouse}/metadata/{writer}.metadata.json")).collect();
    for location in &locations {
        world.put(location, b"{}").await;
    }
    for round in 0..ROUNDS {
        let token = world.read("t").await.0;
        let attempts = locations.iter().map(|location| world.swap("t", &token, location));
        let outcomes = futures::future::join_all(attempts).await;
        let winners: Vec<usize> = (0..WRITERS).filter(|&writer| outcomes[writer].is_ok()).collect();
        let [winner] = winners[..] else { panic!("round {round}: winners {winners:?}") };
        assert!(outcomes.iter().flat_map(|outcome| outcome.as_ref().err()).all(|code| code == "ConflictException"));
        let (next, _, current) = world.read("t").await;
        assert_eq!((outcomes[winner].as_ref(), current.as_ref()), (Ok(&next), Some(&locations[winner])));
    }
    let swaps = world.tables.swaps(&world.id("t"));
    assert_eq!(swaps.len(), ROUNDS);
    assert!(swaps.iter().all(|swap| swap.by == Committer::Native));
    let requests = world.tables.requests();
    assert_eq!(requests.of("PUT", "metadata-location"), (ROUNDS * WRITERS) as u64);
}

#[tokio::test]
async fn a_swap_needs_the_current_token_and_a_metadata_file_of_the_table() {
    let world = World::start().await;
    let warehouse = world.create("t").await;
    let (first, _, metadata) = world.read("t").await;
    assert_eq!(metadata, None, "tables begin without metadata");
    let good = format!("{warehouse}/metadata/1.metadata.json");
    world.put(&good, b"{}").await;
    for wrong in [
        format!("{warehouse}/metadata/1.json"),
        format!("{warehouse}-other/1.metadata.json"),
        format!("{warehouse}/../1.metadata.json"),
        format!("{warehouse}/metadata/absent.metadata.json"),
    ] {
        assert_eq!(world.swap("t", &first, &wrong).await, Err("BadRequestException".to_owned()), "{wrong}");
    }
    let second = world.swap("t", &first, &good).await.unwrap();
    assert_eq!(world.swap("t", &first, &good).await, Err("ConflictException".to_owned()));
    assert_eq!(world.swap("t", &second, &good).await.map(drop), Ok(()), "the same location by a fresh token");
    assert_eq!(world.swap("absent", &second, &good).await, Err("NotFoundException".to_owned()));
}

#[tokio::test]
async fn metadata_over_50_mb_is_refused() {
    let world = World::start().await;
    let warehouse = world.create("t").await;
    let token = world.read("t").await.0;
    let location = format!("{warehouse}/metadata/1.metadata.json");
    world.put(&location, &vec![b' '; 50_000_001]).await;
    assert_eq!(world.swap("t", &token, &location).await, Err("BadRequestException".to_owned()));
    world.put(&location, &vec![b' '; 50_000_000]).await;
    assert_eq!(world.swap("t", &token, &location).await.map(drop), Ok(()));
}

#[tokio::test]
async fn names_are_checked_and_listed_in_pages() {
    let world = World::start().await;
    let (client, bucket) = (&world.client, &world.bucket);
    for name in ["Upper", "has-hyphen", "_begins", "ends_", ""] {
        let create = client.create_table().table_bucket_arn(bucket).namespace("ns").name(name);
        let refused = create.format(OpenTableFormat::Iceberg).send().await.unwrap_err();
        assert_eq!(refused.code(), Some("BadRequestException"), "{name}");
        let refused = client.create_namespace().table_bucket_arn(bucket).namespace(name).send().await.unwrap_err();
        assert_eq!(refused.code(), Some("BadRequestException"), "{name}");
    }
    let again = client.create_namespace().table_bucket_arn(bucket).namespace("ns").send().await.unwrap_err();
    assert_eq!(again.code(), Some("ConflictException"));
    let other = client.create_table_bucket().name("lake-2").send().await.unwrap().arn;
    let absent = client.get_namespace().table_bucket_arn(&other).namespace("ns").send().await.unwrap_err();
    assert_eq!(absent.code(), Some("NotFoundException"));
    assert!(client.list_namespaces().table_bucket_arn(&other).send().await.unwrap().namespaces.is_empty());
    assert_eq!(client.get_table_bucket().table_bucket_arn(&other).send().await.unwrap().name, "lake-2");
    assert_eq!(client.list_table_buckets().send().await.unwrap().table_buckets.len(), 2);

    let names: Vec<String> = (0..7).map(|number| format!("t{number}")).collect();
    for name in &names {
        world.create(name).await;
    }
    let mut listed = Vec::new();
    let mut next = None;
    loop {
        let page = client.list_tables().table_bucket_arn(bucket).namespace("ns").max_tables(3);
        let page = page.set_continuation_token(next).send().await.unwrap();
        listed.extend(page.tables.iter().map(|table| table.name.clone()));
        next = page.continuation_token;
        if next.is_none() {
            break;
        }
    }
    assert_eq!(listed, names);

    let table = client.get_table().table_bucket_arn(bucket).namespace("ns").name("t0").send().await.unwrap();
    assert!(table.warehouse_location.ends_with("--table-s3"));
    assert_ne!(table.warehouse_location, world.read("t1").await.1, "each table has a warehouse of its own");
    let by_arn = client.get_table().table_arn(&table.table_arn).send().await.unwrap();
    assert_eq!((by_arn.name(), by_arn.managed_by_service()), ("t0", None));
    client.delete_table().table_bucket_arn(bucket).namespace("ns").name("t0").send().await.unwrap();
    let gone = client.get_table().table_arn(&table.table_arn).send().await.unwrap_err();
    assert_eq!(gone.code(), Some("NotFoundException"));
    assert_eq!(gone.request_id(), None);
}

#[tokio::test]
async fn maintenance_is_on_until_it_is_switched_off() {
    let world = World::start().await;
    world.create("t").await;
    let (client, bucket) = (&world.client, &world.bucket);
    let read = async || {
        let read = client.get_table_maintenance_configuration().table_bucket_arn(bucket).namespace("ns").name("t");
        read.send().await.unwrap().configuration
    };
    let write = async |kind: TableMaintenanceType, value: TableMaintenanceConfigurationValue| {
        let write = client.put_table_maintenance_configuration().table_bucket_arn(bucket).namespace("ns").name("t");
        write.r#type(kind).value(value).send().await.map_err(|error| error.code().map(str::to_owned))
    };
    let compaction = TableMaintenanceType::IcebergCompaction;
    let snapshots = TableMaintenanceType::IcebergSnapshotManagement;
    let before = read().await;
    assert_eq!(before[&compaction].status(), Some(&MaintenanceStatus::Enabled));
    let management = before[&snapshots].settings().unwrap().as_iceberg_snapshot_management().unwrap();
    assert_eq!((management.min_snapshots_to_keep(), management.max_snapshot_age_hours()), (Some(1), Some(120)));

    let off = TableMaintenanceConfigurationValue::builder().status(MaintenanceStatus::Disabled).build();
    write(compaction.clone(), off).await.unwrap();
    let after = read().await;
    assert_eq!(after[&compaction].status(), Some(&MaintenanceStatus::Disabled));
    assert_eq!(after[&snapshots], before[&snapshots]);
    let sized = |megabytes| {
        let settings = IcebergCompactionSettings::builder().target_file_size_mb(megabytes).build();
        TableMaintenanceConfigurationValue::builder()
            .status(MaintenanceStatus::Enabled)
            .settings(TableMaintenanceSettings::IcebergCompaction(settings))
            .build()
    };
    write(compaction.clone(), sized(128)).await.unwrap();
    let settings = read().await[&compaction].settings().unwrap().as_iceberg_compaction().unwrap().clone();
    assert_eq!(settings.target_file_size_mb(), Some(128));
    assert_eq!(write(compaction, sized(1)).await, Err(Some("BadRequestException".to_owned())));
    let status = client.get_table_maintenance_job_status().table_bucket_arn(bucket).namespace("ns").name("t");
    assert_eq!(status.send().await.unwrap().status.len(), 3);
}

#[tokio::test]
async fn objects_of_a_table_can_be_neither_listed_nor_deleted() {
    let world = World::start().await;
    let warehouse = world.create("t").await;
    world.put(&format!("{warehouse}/data/a"), b"content").await;
    let bucket = warehouse.trim_start_matches("s3://");
    let s3 = world.tables.objects().client();
    let listed = s3.list_objects_v2().bucket(bucket).send().await.unwrap_err();
    assert_eq!(listed.raw_response().unwrap().status().as_u16(), 405);
    let deleted = s3.delete_object().bucket(bucket).key("data/a").send().await.unwrap_err();
    assert_eq!(deleted.raw_response().unwrap().status().as_u16(), 405);
    let object = s3.get_object().bucket(bucket).key("data/a").range("bytes=3-6").send().await.unwrap();
    assert_eq!(object.body.collect().await.unwrap().into_bytes().as_ref(), b"tent");
    let twice = s3.put_object().bucket(bucket).key("data/a").if_none_match("*").body(b"other".to_vec().into());
    assert_eq!(twice.send().await.unwrap_err().raw_response().unwrap().status().as_u16(), 412);
    let upload = s3.create_multipart_upload().bucket(bucket).key("data/b").send().await.unwrap();
    let abort = s3.abort_multipart_upload().bucket(bucket).key("data/b").upload_id(upload.upload_id().unwrap());
    abort.send().await.unwrap();
    // Other buckets under the same address are ordinary ones.
    world.objects.create_bucket("ordinary").await;
    s3.list_objects_v2().bucket("ordinary").send().await.unwrap();
}

#[tokio::test]
async fn the_service_throttles_reads_stale_and_lands_late() {
    let world = World::start().await;
    let warehouse = world.create("t").await;
    let first = world.read("t").await.0;
    let location = |number: usize| format!("{warehouse}/metadata/{number}.metadata.json");
    for number in 1..=3 {
        world.put(&location(number), b"{}").await;
    }
    world.tables.habits(|habits| habits.throttled = 1);
    assert_eq!(world.swap("t", &first, &location(1)).await, Err("TooManyRequestsException".to_owned()));
    let second = world.swap("t", &first, &location(1)).await.unwrap();

    world.tables.habits(|habits| (habits.stale_reads, habits.stale_by) = (1, 1));
    assert_eq!(world.read("t").await, (first.clone(), warehouse.clone(), None));
    assert_eq!(world.read("t").await.0, second);

    // Late, and overtaken: the successor's swap wins, the late one does nothing.
    let late = Duration::from_millis(500);
    world.tables.habits(|habits| (habits.late_updates, habits.late_by) = (1, late));
    assert_eq!(world.swap("t", &second, &location(2)).await, Err("InternalServerErrorException".to_owned()));
    let third = world.swap("t", &second, &location(3)).await.unwrap();
    settle(&world.tables).await;
    assert_eq!(world.read("t").await, (third.clone(), warehouse.clone(), Some(location(3))));

    // Late, and nobody came in between: an error was told, and the commit has landed.
    world.tables.habits(|habits| (habits.late_updates, habits.late_by) = (1, Duration::ZERO));
    assert_eq!(world.swap("t", &third, &location(2)).await, Err("InternalServerErrorException".to_owned()));
    settle(&world.tables).await;
    assert_eq!(world.read("t").await.2, Some(location(2)));
    let swaps = world.tables.swaps(&world.id("t"));
    assert_eq!(swaps.iter().map(|swap| &swap.metadata).collect::<Vec<_>>(), [&location(1), &location(3), &location(2)]);
}

async fn settle(tables: &S3Tables) {
    let settled = async {
        while tables.late_updates() > 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), settled).await.expect("a late update lands or fails");
}

#[tokio::test]
async fn other_engines_read_and_commit_through_rest() {
    let world = World::start().await;
    let engine = world.engine();
    engine.create("ns.made").await.unwrap();
    let lines = ["{\"id\": 1, \"name\": \"a\"}", "{\"id\": 2, \"name\": \"b\"}", "{\"id\": 3, \"name\": null}"];
    engine.append("ns.made", &lines.join("\n")).await.unwrap();

    // A table of the native API, its metadata pointing at files that an engine has written.
    let warehouse = world.create("native").await;
    let made = world.read("made").await;
    let metadata = world.tables.objects().client();
    let source = made.2.unwrap();
    let (bucket, key) = source.strip_prefix("s3://").unwrap().split_once('/').unwrap();
    let content = metadata.get_object().bucket(bucket).key(key).send().await.unwrap();
    let content = content.body.collect().await.unwrap().into_bytes();
    let location = format!("{warehouse}/metadata/00000-copy.metadata.json");
    world.put(&location, &content).await;
    let token = world.read("native").await.0;
    world.swap("native", &token, &location).await.unwrap();

    let rows = [json!([1, "a"]), json!([2, "b"]), json!([3, null])];
    let sql = "SELECT id, name FROM lake.ns.native ORDER BY id";
    let (pyiceberg, duckdb) = tokio::join!(engine.rows("ns.native"), engine.duckdb(sql));
    assert_eq!(pyiceberg.unwrap(), rows);
    assert_eq!(duckdb.unwrap(), rows);

    engine.delete("ns.made", "id == 2").await.unwrap();
    let (left, absent) = tokio::join!(engine.rows("ns.made"), engine.rows("ns.absent"));
    assert_eq!(left.unwrap(), [json!([1, "a"]), json!([3, null])]);
    let absent = absent.unwrap_err();
    assert!(absent.contains("NoSuchTableError"), "{absent}");
    let swaps = world.tables.swaps(&world.id("made"));
    assert!(swaps.iter().all(|swap| swap.by == Committer::Rest) && swaps.len() == 2, "{swaps:?}");
}

#[tokio::test]
async fn compaction_is_a_writer_like_any_other() {
    let world = World::start().await;
    let engine = world.engine();
    engine.create("ns.t").await.unwrap();
    for id in 1..=2 {
        engine.append("ns.t", &format!("{{\"id\": {id}, \"name\": \"n\"}}")).await.unwrap();
    }
    let id = world.id("t");
    let outcome = world.tables.compact(&id).await;
    let Compaction::Committed { metadata } = &outcome else { panic!("{outcome:?}") };
    assert_eq!(world.read("t").await.2.as_ref(), Some(metadata));
    assert_eq!(world.tables.swaps(&id).last().unwrap().by, Committer::Maintenance);
    let files = "SELECT count(*) FROM iceberg_metadata(lake.ns.t) WHERE status <> 'DELETED'";
    let both = format!("SELECT ({files}), (SELECT count(*) FROM lake.ns.t)");
    assert_eq!(engine.duckdb(&both).await.unwrap(), [json!([1, 2])], "one file, two rows");

    // A swap after it has begun: it loses, and nothing changes. One request against its dozen comes first.
    let (token, warehouse, current) = world.read("t").await;
    let next = format!("{warehouse}/metadata/99999-same.metadata.json");
    let (bucket, key) = current.as_ref().unwrap().strip_prefix("s3://").unwrap().split_once('/').unwrap();
    let object = world.objects.client().get_object().bucket(bucket).key(key).send().await.unwrap();
    world.put(&next, &object.body.collect().await.unwrap().into_bytes()).await;
    let (outcome, swapped) = tokio::join!(world.tables.compact(&id), world.swap("t", &token, &next));
    assert_eq!((outcome, swapped.map(drop)), (Compaction::Conflict, Ok(())));
    assert_eq!(world.read("t").await.2, Some(next));

    let off = TableMaintenanceConfigurationValue::builder().status(MaintenanceStatus::Disabled).build();
    let put = world.client.put_table_maintenance_configuration().table_bucket_arn(&world.bucket).namespace("ns");
    put.name("t").r#type(TableMaintenanceType::IcebergCompaction).value(off).send().await.unwrap();
    assert_eq!(world.tables.compact(&id).await, Compaction::Disabled);
}

#[tokio::test]
async fn old_snapshots_go_unless_somebody_retains_them() {
    let world = World::start().await;
    let engine = world.engine();
    engine.create("ns.t").await.unwrap();
    engine.append("ns.t", "{\"id\": 1, \"name\": \"a\"}").await.unwrap();
    engine.append("ns.t", "{\"id\": 2, \"name\": \"b\"}").await.unwrap();
    let (id, week) = (world.id("t"), Duration::from_secs(7 * 24 * 3_600));
    assert_eq!(world.tables.expire(&id, Duration::ZERO).await, Expiry::Nothing);
    let outcome = world.tables.expire(&id, week).await;
    let Expiry::Committed { removed: 1, metadata } = &outcome else { panic!("{outcome:?}") };
    assert_eq!(world.read("t").await.2.as_ref(), Some(metadata));
    assert_eq!(engine.rows("ns.t").await.unwrap().len(), 2);

    let off = TableMaintenanceConfigurationValue::builder().status(MaintenanceStatus::Disabled).build();
    let put = world.client.put_table_maintenance_configuration().table_bucket_arn(&world.bucket).namespace("ns");
    put.name("t").r#type(TableMaintenanceType::IcebergSnapshotManagement).value(off).send().await.unwrap();
    assert_eq!(world.tables.expire(&id, week).await, Expiry::Disabled);
}

#[tokio::test]
async fn rest_refuses_what_the_live_service_refuses() {
    let world = World::start().await;
    let rest = world.tables.rest_uri();
    let config = http::send("GET", &format!("{rest}/v1/config?warehouse={}", world.bucket), "").await.unwrap();
    let config: serde_json::Value = serde_json::from_str(&config.body).unwrap();
    let prefix = config["overrides"]["prefix"].as_str().unwrap();
    assert_eq!(prefix, world.bucket.replace(':', "%3A").replace('/', "%2F"));
    assert!(config["endpoints"].is_null());
    let base = format!("{rest}/v1/{prefix}");
    let schema = json!({"type": "struct", "schema-id": 0, "fields": []});
    let staged = |stage| json!({"name": "t", "schema": schema, "stage-create": stage}).to_string();
    let unsaid = json!({"name": "t", "schema": schema}).to_string();
    for (method, path, body, status) in [
        ("POST", "/namespaces/ns/tables", unsaid.as_str(), 400),
        ("POST", "/namespaces/ns/tables", &staged(true), 400),
        ("POST", "/namespaces/ns/tables", &staged(false), 200),
        ("POST", "/namespaces/ns/tables", &staged(false), 409),
        ("POST", "/namespaces/ns/properties", "{}", 400),
        ("POST", "/namespaces/ns/tables/t/metrics", "{}", 400),
        ("HEAD", "/namespaces/ns/tables/t", "", 204),
        ("DELETE", "/namespaces/ns/tables/t", "", 400),
        ("DELETE", "/namespaces/ns/tables/t?purgeRequested=true", "", 204),
        ("HEAD", "/namespaces/ns/tables/t", "", 404),
        ("POST", "/namespaces", r#"{"namespace": ["a", "b"]}"#, 400),
    ] {
        let answer = http::send(method, &format!("{base}{path}"), body).await.unwrap();
        assert_eq!(answer.status, status, "{method} {path} {body}: {}", answer.body);
    }
    let transaction = http::send("POST", &format!("{base}/transactions/commit"), "{}").await.unwrap();
    assert_eq!(transaction.status, 404);
    assert!(transaction.body.starts_with("<ErrorResponse>"));
    // Natively, what is not signed for the service is not heard.
    let unsigned = http::send("GET", &format!("{}/buckets", world.tables.endpoint()), "").await.unwrap();
    assert_eq!(unsigned.status, 403);
}
