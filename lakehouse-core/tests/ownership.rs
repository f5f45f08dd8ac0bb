//! Who owns maintenance of a table in S3 Tables: what is not ours is refused at the start, and noticed while a worker runs.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::support::bank::{self, Load};
use crate::support::block_on;
use crate::support::rig::{Kind, Rig};
use crate::support::world::{Worker, World};
use aws_sdk_s3tables::types::{MaintenanceStatus, TableMaintenanceConfigurationValue, TableMaintenanceType};
use lakehouse_core::owner_watch::OwnerWatch;
use lakehouse_core::pipeline::run;
use lakehouse_core::planted::Planted;
use lakehouse_core::schema::TableName;
use testkit::s3_tables::client;
use tokio_util::sync::CancellationToken;

/// Somebody gives compaction of a table to the service.
async fn switch_compaction_on(rig: &Rig, table: &TableName) {
    let on = TableMaintenanceConfigurationValue::builder().status(MaintenanceStatus::Enabled).build();
    let client = client(&rig.address.uri);
    let put = client.put_table_maintenance_configuration().table_bucket_arn(&rig.address.bucket);
    let put = put.namespace(&table.namespace).name(&table.name).r#type(TableMaintenanceType::IcebergCompaction);
    put.value(on).send().await.expect("switched on");
}

#[test]
fn a_duty_that_was_given_away_is_noticed_by_a_worker_at_work_and_refused_by_the_next() {
    let test = "a_duty_that_was_given_away_is_noticed_by_a_worker_at_work_and_refused_by_the_next";
    block_on(async {
        let Some(rig) = Rig::start(Kind::Simulator, test).await else { return };
        let simulator = rig.simulator.as_ref().expect("a simulator");
        let script = bank::script(1, Load { transactions: 12, wide: false });
        let catalog = || Arc::clone(&rig.clean);
        let mut world = World::on(catalog(), catalog(), rig.storage.clone(), script, Planted::none());
        world.owner_interval = Duration::ZERO;
        let table = TableName::new("lake", "left");
        let looks = || simulator.requests().of("GET", "maintenance");

        let catalog = world.faulty(&Worker::plain(0), &Arc::default());
        let lakehouse = world.start(catalog, "local").await.expect("a worker");
        let mut watch = OwnerWatch::every(Duration::ZERO);
        watch.add(table.clone(), Instant::now());
        assert!(watch.look(rig.clean.as_ref(), Instant::now()).await.is_none());
        switch_compaction_on(&rig, &table).await;
        let found = watch.look(rig.clean.as_ref(), Instant::now()).await;
        assert_eq!(found.map(|problem| problem.code), Some("MAINTENANCE_OWNER"));

        // The worker looks with each cut, and goes on.
        let before = looks();
        let worker = Worker { bytes: 1, ..Worker::plain(0) };
        let mut source = world.source(&worker, lakehouse.resume_position());
        run(&mut source, lakehouse, world.limits(&worker), CancellationToken::new()).await.expect("the end");
        assert!(looks() > before, "no look at {before}");
        world.end().await.unwrap_or_else(|violation| panic!("{violation}"));

        let refused = world.start(world.faulty(&Worker::plain(1), &Arc::default()), "local").await;
        assert_eq!(refused.err().map(|problem| problem.code), Some("MAINTENANCE_OWNER"));
    });
}
