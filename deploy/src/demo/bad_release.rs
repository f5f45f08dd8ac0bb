//! A bad release writes garbage while business goes on. The operator finds the moment, takes two tables back to the cut
//! before it, brings back all changes but those of the release, and in the end takes all of that back, too.
//!
//! The release cancels passes and makes their payments worth nothing, in transactions of its own over both tables. Rows that
//! it has spoilt are left alone by everybody else, so what can be mended is known to the row.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio_postgres::Client;

use super::duckdb::{DuckDb, Table};
use super::screen::{count, seconds};
use super::service::{Lakehouse, Snapshot};
use super::workload::Shop;
use super::{Demo, Failed, LONGEST_WAIT, PIPELINE, TRICKLE_PACE, Verdict, ask_postgres, during};

/// How long the release is out.
const OUT: Duration = Duration::from_secs(60);
/// The same where nobody looks on.
const OUT_ONCE: Duration = Duration::from_secs(8);
/// Between two of its transactions.
const PACE: Duration = Duration::from_millis(500);
/// A preview that somebody has been quicker than, mostly maintenance, is made again.
const TRIES: u32 = 5;
/// Exit code of `interface.md` section 1: a precondition has moved, nothing was changed.
const MOVED: i32 = 3;

/// What it spoils.
const PAYMENTS: &str = "fuji.payments";
const PASSES: &str = "fuji.entry_passes";
/// Names of the snapshots before and behind it.
const BEFORE: &str = "before-release-42";
const BEHIND: &str = "behind-release-42";

/// One statement over both tables is one transaction; few rows each, as a diff shows them whole. What is cancelled and refunded is touched by nobody any more.
const SPOIL: &str = "
    WITH spoilt AS (
        UPDATE payments SET amount = 0, state = 'refunded' WHERE id % 5000 = $1 AND state = 'captured' RETURNING pass_id)
    UPDATE entry_passes SET state = 'cancelled', entered_at = NULL WHERE id IN (SELECT pass_id FROM spoilt)";
/// How many rows of each table are spoilt at the source, and no others are.
const SPOILT: &str = "SELECT count(*), count(DISTINCT pass_id) FROM payments WHERE amount = 0";

/// What the story needs of all that is there.
pub(super) struct Scene<'a> {
    pub(super) client: &'a Client,
    pub(super) lakehouse: &'a Lakehouse,
    pub(super) duckdb: &'a DuckDb,
    pub(super) shop: &'a Arc<Shop>,
}

impl Demo {
    pub(super) async fn back_from_a_bad_release(
        &mut self,
        scene: &Scene<'_>,
        once: bool,
        verdict: &mut Verdict,
    ) -> Result<(), Failed> {
        self.screen.step("A bad release, and the way back");
        let lakehouse = scene.lakehouse;
        let before = self.tag(lakehouse, BEFORE).await?;
        self.go_wrong(scene, if once { OUT_ONCE } else { OUT }).await?;
        self.tag(lakehouse, BEHIND).await?;
        let spoilt = ask_postgres(scene.client, SPOILT).await?.concat();
        let spoilt: Vec<u64> = spoilt.iter().filter_map(|number| number.parse().ok()).collect();
        let [payments, passes] = spoilt[..] else { return Err(Failed::new("PostgreSQL does not count")) };
        self.screen.say(&format!("spoilt: {} payments, {} passes", count(payments), count(passes)));

        let cut = self.find_the_moment(lakehouse, &before).await?;
        let operation = self.go_back(lakehouse, &["--cut", &cut], "release 42 was wrong").await?;
        self.look_by_duckdb(scene.duckdb, "at the cut before the release", verdict).await?;
        self.replay_the_rest(lakehouse, &operation).await?;
        self.look_by_duckdb(scene.duckdb, "with all changes since but the release's", verdict).await?;
        self.compare(lakehouse, &[(PAYMENTS, payments), (PASSES, passes)], verdict).await?;

        self.screen.say("and all of it taken back: to the state behind the release, and every change since");
        let operation = self.go_back(lakehouse, &["--tag", BEHIND], "as the source has it, after all").await?;
        let replay =
            ["replay", &operation, "--pipeline", PIPELINE, "--yes", "--reason", "as the source has it, after all"];
        self.release(lakehouse, &replay).await
    }

    /// Returns the snapshot of the payments that has the name.
    async fn tag(&mut self, lakehouse: &Lakehouse, name: &str) -> Result<Value, Failed> {
        let begun = Instant::now();
        let mut tagged = lakehouse.must(&["tag", PAYMENTS, "--name", name]).await?;
        lakehouse.must(&["tag", PASSES, "--name", name]).await?;
        self.screen.done(&format!("lakehouse tag {PAYMENTS} --name {name}, and {PASSES}"), begun.elapsed());
        Ok(tagged["snapshot_id"].take())
    }

    /// Business and the release, and then quiet.
    async fn go_wrong(&mut self, scene: &Scene<'_>, out: Duration) -> Result<(), Failed> {
        let spoil = scene.client.prepare(SPOIL).await?;
        let before = scene.shop.tally();
        let begun = Instant::now();
        self.workload = Some(scene.shop.open(1, TRICKLE_PACE).await?);
        let mut number = 0_i64;
        while begun.elapsed() < out {
            // Business was there first.
            tokio::time::sleep(PACE).await;
            number += 1;
            scene.client.execute(&spoil, &[&number]).await?;
            self.screen.progress(&format!("release 42 is out, {}", seconds(begun.elapsed())));
            if let Some(service) = &mut self.service {
                service.check()?;
            }
        }
        if let Some(workload) = self.workload.take() {
            workload.stop().await?;
        }
        let took = begun.elapsed();
        let good = scene.shop.tally().committed - before.committed;
        let caught_up = ["wait", "--pipeline", PIPELINE, "--caught-up", "--timeout", "600s"];
        during(&mut self.screen, "catching up", scene.lakehouse.must(&caught_up)).await?;
        let text = format!("release 42 is out: {number} transactions of its own among {} of the business", count(good));
        self.screen.done(&text, took);
        Ok(())
    }

    /// The position of the last cut before the first snapshot with garbage.
    async fn find_the_moment(&mut self, lakehouse: &Lakehouse, before: &Value) -> Result<String, Failed> {
        let begun = Instant::now();
        let changed = lakehouse.must(&["diff", PAYMENTS, BEFORE, "main", "--counts"]).await?;
        self.screen.code(&format!("lakehouse diff {PAYMENTS} {BEFORE} main --counts"));
        let [inserted, updated, deleted] =
            ["inserted", "updated", "deleted"].map(|kind| count(changed[kind].as_u64().unwrap_or_default()));
        self.screen.say(&format!("{inserted} inserted, {updated} updated, {deleted} deleted"));
        let known = lakehouse.snapshots(PAYMENTS).await?;
        let since = known.iter().skip_while(|one| *before != *one.id).skip(1);
        let since: Vec<&Snapshot> = since.filter(|one| one.from.is_some()).collect();
        // Garbage stays: once it is there, it is in every later one.
        let (mut clean, mut spoilt, mut looks) = (0, since.len(), 0);
        while clean < spoilt {
            let middle = usize::midpoint(clean, spoilt);
            let look = ["diff", PAYMENTS, BEFORE, &since[middle].id];
            let diff = during(&mut self.screen, "lakehouse diff", lakehouse.must(&look)).await?;
            looks += 1;
            match has_garbage(&diff) {
                true => spoilt = middle,
                false => clean = middle + 1,
            }
        }
        let first = since.get(spoilt).ok_or_else(|| Failed::new("no snapshot has what the release wrote"))?;
        let cut = first.from.clone().unwrap_or_default();
        let text = format!(
            "the first snapshot with payments of ¥0, found by {looks} diffs of {} snapshots: {}, behind {cut}",
            since.len(),
            first.id
        );
        self.screen.done(&text, begun.elapsed());
        Ok(cut)
    }

    /// Both tables to one point, shown first; returns the operation that holds them.
    async fn go_back(&mut self, lakehouse: &Lakehouse, point: &[&str], reason: &str) -> Result<String, Failed> {
        let begun = Instant::now();
        let rollback = [&["rollback", PAYMENTS, PASSES, "--pipeline", PIPELINE], point].concat();
        self.screen.code(&format!("lakehouse {} --dry-run", rollback.join(" ")));
        for _ in 0..TRIES {
            let (exit, shown) = lakehouse.ask(&[&rollback[..], &["--dry-run"]].concat()).await?;
            if exit == Some(MOVED) {
                tokio::time::sleep(PACE).await;
                continue;
            }
            if exit != Some(0) {
                return Err(Failed::of_verb("rollback", exit, &shown));
            }
            let (exit, done) = lakehouse.ask(&[&rollback[..], &["--yes", "--reason", reason]].concat()).await?;
            match (exit, done["operation"].as_str()) {
                (Some(0), Some(operation)) => {
                    let rows: Vec<[String; 5]> =
                        shown["tables"].as_array().into_iter().flatten().map(preview).collect();
                    self.screen.table(["table", "snapshots undone", "inserted", "updated", "deleted"], &rows);
                    self.screen.done(&format!("shown, and done on what was shown: {operation}"), begun.elapsed());
                    return Ok(operation.to_owned());
                }
                (Some(MOVED), _) => tokio::time::sleep(PACE).await,
                _ => return Err(Failed::of_verb("rollback", exit, &done)),
            }
        }
        Err(Failed::new("the tables do not rest long enough for a rollback"))
    }

    /// The release's transactions are known by what they wrote into the history.
    async fn replay_the_rest(&mut self, lakehouse: &Lakehouse, operation: &str) -> Result<(), Failed> {
        let select = ["--select", "_cdc_transaction_id", "--where", "amount = 0"];
        let written = lakehouse.must(&[&["rows", "fuji.payments_history"], &select[..]].concat()).await?;
        let without = transactions(&written);
        if without.is_empty() {
            return Err(Failed::new("the history has nothing of the release"));
        }
        self.screen.say(&format!("the history knows who wrote ¥0: {} transactions", without.len()));
        let without: Vec<String> = without.iter().map(|number| format!("--without={number}")).collect();
        let mut replay = vec!["replay", operation, "--pipeline", PIPELINE, "--yes", "--reason", "all but release 42"];
        replay.extend(without.iter().map(String::as_str));
        self.release(lakehouse, &replay).await
    }

    /// Asks for a way out, and waits until both tables go on.
    async fn release(&mut self, lakehouse: &Lakehouse, arguments: &[&str]) -> Result<(), Failed> {
        let begun = Instant::now();
        lakehouse.must(arguments).await?;
        loop {
            if let Some(service) = &mut self.service {
                service.check()?;
            }
            let tables = lakehouse.status().await?.tables;
            let held = tables.iter().filter(|table| [PAYMENTS, PASSES].contains(&table.name.as_str()));
            if held.clone().all(|table| table.state == "streaming") {
                self.screen.done(&format!("lakehouse {}: both tables go on", arguments[0]), begun.elapsed());
                return Ok(());
            }
            if let Some(halted) = held.clone().find(|table| table.state == "halted") {
                return Err(Failed { exit: 4, message: format!("table {} is halted", halted.name) });
            }
            if begun.elapsed() > LONGEST_WAIT {
                return Err(Failed::new("the tables have not come back in time"));
            }
            self.screen.progress(&format!("catching up from the histories, {}", seconds(begun.elapsed())));
            tokio::time::sleep(Duration::from_millis(250)).await;
        }
    }

    /// Another engine finds no garbage.
    async fn look_by_duckdb(&mut self, duckdb: &DuckDb, when: &str, verdict: &mut Verdict) -> Result<(), Failed> {
        let table = Table { name: PAYMENTS.to_owned(), snapshot: None };
        let query = "SELECT count(*) FROM payments WHERE amount = 0";
        let answer = during(&mut self.screen, "asking DuckDB", duckdb.ask(&[table], query)).await?;
        match answer.rows.concat().concat().as_str() {
            "0" => {
                self.screen.done(&format!("DuckDB {when}: no payment of ¥0"), Duration::from_secs_f64(answer.seconds))
            }
            found => self.differs(format!("DuckDB {when}: {found} payments of ¥0"), verdict),
        }
        Ok(())
    }

    /// The mirror has what the source should have: exactly the spoilt rows differ.
    async fn compare(
        &mut self,
        lakehouse: &Lakehouse,
        spoilt: &[(&str, u64)],
        verdict: &mut Verdict,
    ) -> Result<(), Failed> {
        let begun = Instant::now();
        let asked = lakehouse.ask(&["verify", "--pipeline", PIPELINE]);
        let (exit, answer) = during(&mut self.screen, "comparing every row of all tables", asked).await?;
        if !matches!(exit, Some(0 | 5)) {
            return Err(Failed::of_verb("verify", exit, &answer));
        }
        let before = verdict.differences.len();
        for table in answer["tables"].as_array().into_iter().flatten() {
            let name = table["table"].as_str().unwrap_or_default();
            let expected = spoilt.iter().find(|(spoilt, _)| *spoilt == name).map_or(0, |(_, rows)| *rows);
            let found = ["only_in_source", "only_in_mirror", "differing"].map(|key| table[key].as_u64());
            if found != [Some(0), Some(0), Some(expected)] {
                let text = format!("{name} behind the replay: {found:?} rows differ, {expected} were spoilt");
                self.differs(text, verdict);
            }
        }
        if verdict.differences.len() == before {
            let rows: u64 = spoilt.iter().map(|(_, rows)| rows).sum();
            let text = format!("lakehouse verify: {} spoilt rows differ, and no other row does", count(rows));
            self.screen.done(&text, begun.elapsed());
        }
        Ok(())
    }

    fn differs(&mut self, text: String, verdict: &mut Verdict) {
        self.screen.wrong(&text);
        verdict.differences.push(text);
    }
}

/// A change has made a payment worth nothing.
fn has_garbage(diff: &Value) -> bool {
    let mut changes = diff["changes"].as_array().into_iter().flatten();
    changes.any(|change| change["after"]["amount"] == "0.00")
}

fn transactions(rows: &Value) -> BTreeSet<i64> {
    let rows = rows["rows"].as_array().into_iter().flatten();
    rows.filter_map(|row| row["_cdc_transaction_id"].as_i64()).collect()
}

/// A table of a plan, as it is shown.
fn preview(table: &Value) -> [String; 5] {
    let number = |key: &str| count(table[key].as_u64().unwrap_or_default());
    let name = table["table"].as_str().unwrap_or_default().to_owned();
    [name, number("snapshots_undone"), number("inserted"), number("updated"), number("deleted")]
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn garbage_is_known_by_what_was_written_and_not_by_what_was_there() {
        let diff = |change: Value| json!({"changes": [{"change": "inserted", "after": {"amount": "4000.00"}}, change]});
        assert!(has_garbage(&diff(
            json!({"change": "updated", "before": {"amount": "8000.00"}, "after": {"amount": "0.00"}})
        )));
        assert!(!has_garbage(&diff(
            json!({"change": "updated", "before": {"amount": "0.00"}, "after": {"amount": "8000.00"}})
        )));
        assert!(!has_garbage(&diff(json!({"change": "deleted", "before": {"amount": "0.00"}}))));
        assert!(!has_garbage(&json!({})));
    }

    #[test]
    fn each_transaction_is_left_out_once() {
        let rows =
            json!({"rows": [{"_cdc_transaction_id": 7}, {"_cdc_transaction_id": 9}, {"_cdc_transaction_id": 7}]});
        assert_eq!(transactions(&rows), BTreeSet::from([7, 9]));
    }

    #[test]
    fn a_plan_is_shown_in_numbers() {
        let table =
            json!({"table": "fuji.payments", "snapshots_undone": 1200, "inserted": 0, "updated": 3, "deleted": 4});
        assert_eq!(preview(&table), ["fuji.payments", "1,200", "0", "3", "4"]);
    }
}
