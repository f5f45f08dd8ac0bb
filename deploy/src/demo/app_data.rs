//! What the app knows of its users, in DynamoDB: profiles with nested preferences, and entry reservations.
//!
//! Users are customers of the payments database, by the same id, so both sides can be joined in the lake. Items are made
//! from one seed. Not here: what is told of it (`demo`).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use fastrand::Rng;
use serde_json::{Value, json};
use testkit::dynamodb::{call, scan};
use testkit::emulators::Ministack;
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval};
use tokio_postgres::Client;

use super::Failed;

/// The pipeline, and its namespace.
pub(crate) const PIPELINE: &str = "app";
pub(crate) const MIRRORS: [&str; 2] = ["app.profiles", "app.reservations"];
const PROFILES: &str = "profiles";
const RESERVATIONS: &str = "reservations";

/// One user in so many customers, and no more users than this.
const USERS_IN: u64 = 40;
const MOST_USERS: u64 = 4_000;
/// Writes of one request.
const BATCH: usize = 25;
const TRAILS: [&str; 4] = ["yoshida", "subashiri", "gotemba", "fujinomiya"];
const SEED: u64 = 3_776;

/// The section of the configuration file.
pub(crate) const CONFIG: &str = r#"
[pipelines.app]
commit_interval_seconds = 1

[pipelines.app.dynamodb]
region = "us-east-1"
endpoint = "{dynamodb}"         # only for the emulator
tables = ["profiles", "reservations"]
idle_cut_seconds = 1            # a minute without it: cuts of a quiet stream cost requests

[pipelines.app.tables."profiles"]
columns = { plan = "string", level = "long", prefs = "struct<theme: string, notifications: struct<weather: boolean, crowding: boolean>>" }

[pipelines.app.tables."reservations"]
columns = { trail = "string", party = "int", state = "string", deposit = "decimal(12,2)", gear = "list<struct<item: string, count: int>>" }
"#;

/// Three tables of two databases, in one query of one engine.
pub(crate) const JOINED: &str = "\
WITH booked AS (SELECT user_id, sum(party) AS heads FROM reservations WHERE state = 'booked' GROUP BY user_id),
     paid AS (SELECT customer_id::VARCHAR AS user_id, count(*) AS payments, sum(amount) AS revenue
              FROM payments WHERE state = 'captured' GROUP BY customer_id)
SELECT u.plan, count(*) AS users, count(*) FILTER (u.prefs.notifications.weather) AS weather_alerts,
       sum(b.heads) AS heads_booked, sum(p.payments) AS payments, sum(p.revenue) AS revenue
FROM profiles u LEFT JOIN booked b USING (user_id) LEFT JOIN paid p USING (user_id)
GROUP BY u.plan ORDER BY u.plan";

/// The columns of [`JOINED`].
pub(crate) const COLUMNS: [&str; 6] = ["plan", "users", "weather alerts", "heads booked", "payments", "revenue"];

/// The emulator with its tables. It ends when it is dropped.
#[derive(Debug)]
pub(crate) struct AppData {
    ministack: Ministack,
    users: Arc<Vec<String>>,
    pub(crate) profiles: u64,
    pub(crate) reservations: u64,
    writes: Arc<AtomicU64>,
}

/// The app at work. Dropping it lets it go on until the emulator ends.
#[derive(Debug)]
pub(crate) struct Traffic {
    stop: Arc<AtomicBool>,
    task: JoinHandle<Result<(), Failed>>,
}

impl AppData {
    /// Starts the emulator and fills its tables with users of the payments database.
    pub(crate) async fn start(client: &Client) -> Result<Self, Failed> {
        let ministack = Ministack::start().await;
        let endpoint = ministack.endpoint();
        let picked = "SELECT md5('customer' || n)::uuid::text FROM generate_series(1, \
             (SELECT least($1, count(DISTINCT customer_id) / $2) FROM entry_passes)) AS n";
        let rows = client.query(picked, &[&MOST_USERS.cast_signed(), &USERS_IN.cast_signed()]).await?;
        let users: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
        create(&endpoint, PROFILES, &["user_id"]).await?;
        create(&endpoint, RESERVATIONS, &["user_id", "entry_day"]).await?;
        let mut rng = Rng::with_seed(SEED);
        let profiles: Vec<Value> = users.iter().map(|user| profile(user, &mut rng)).collect();
        let mut reservations = BTreeMap::new();
        for user in &users {
            for _ in 0..rng.usize(..3) {
                let item = reservation(user, &mut rng);
                // The later one of a day stands.
                reservations.insert((user.clone(), item["entry_day"].to_string()), item);
            }
        }
        let reservations: Vec<Value> = reservations.into_values().collect();
        for (table, items) in [(PROFILES, &profiles), (RESERVATIONS, &reservations)] {
            for some in items.chunks(BATCH) {
                let puts: Vec<Value> = some.iter().map(|item| json!({"PutRequest": {"Item": item}})).collect();
                ask(&endpoint, "BatchWriteItem", &json!({"RequestItems": {table: puts}})).await?;
            }
        }
        Ok(Self {
            ministack,
            users: Arc::new(users),
            profiles: profiles.len() as u64,
            reservations: reservations.len() as u64,
            writes: Arc::default(),
        })
    }

    pub(crate) fn endpoint(&self) -> String {
        self.ministack.endpoint()
    }

    /// Items written since the start.
    pub(crate) fn writes(&self) -> u64 {
        self.writes.load(Ordering::Relaxed)
    }

    /// Opens the app, with at most `per_second` writes.
    pub(crate) fn open(&self, per_second: u64) -> Traffic {
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, users, writes) = (Arc::clone(&stop), Arc::clone(&self.users), Arc::clone(&self.writes));
        let endpoint = self.endpoint();
        let task = tokio::spawn(async move {
            let mut rng = Rng::with_seed(SEED + writes.load(Ordering::Relaxed) + 1);
            let mut pace = interval(Duration::from_micros(1_000_000 / per_second));
            pace.set_missed_tick_behavior(MissedTickBehavior::Skip);
            while !stopped.load(Ordering::Relaxed) {
                pace.tick().await;
                let user = &users[rng.usize(..users.len())];
                match rng.u8(..10) {
                    0..5 => put(&endpoint, PROFILES, &profile(user, &mut rng)).await?,
                    5..9 => put(&endpoint, RESERVATIONS, &reservation(user, &mut rng)).await?,
                    _ => {
                        let key = json!({"user_id": {"S": user}, "entry_day": {"S": day(&mut rng)}});
                        ask(&endpoint, "DeleteItem", &json!({"TableName": RESERVATIONS, "Key": key})).await?;
                    }
                }
                writes.fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        });
        Traffic { stop, task }
    }

    /// The answer to [`JOINED`] from both databases themselves, without the lake and without an engine.
    pub(crate) async fn truth(&self, client: &Client) -> Result<Vec<Vec<String>>, Failed> {
        const PAID: &str = "SELECT customer_id::text, count(*), sum(amount)::bigint FROM payments
            WHERE state = 'captured' AND customer_id = ANY($1::text[]::uuid[]) GROUP BY 1";
        let mut paid: BTreeMap<String, (i64, i64)> = BTreeMap::new();
        for row in client.query(PAID, &[&*self.users]).await? {
            paid.insert(row.get(0), (row.get(1), row.get(2)));
        }
        let mut booked: BTreeMap<String, i64> = BTreeMap::new();
        for item in self.items(RESERVATIONS).await? {
            if item["state"]["S"] == "booked" {
                *booked.entry(text(&item["user_id"])).or_default() += number(&item["party"]);
            }
        }
        let mut plans: BTreeMap<String, [i64; 5]> = BTreeMap::new();
        for item in self.items(PROFILES).await? {
            let user = text(&item["user_id"]);
            let (payments, revenue) = paid.get(&user).copied().unwrap_or_default();
            let wants = item["prefs"]["M"]["notifications"]["M"]["weather"]["BOOL"] == true;
            let more = [1, i64::from(wants), booked.get(&user).copied().unwrap_or_default(), payments, revenue];
            let sums = plans.entry(text(&item["plan"])).or_default();
            sums.iter_mut().zip(more).for_each(|(sum, more)| *sum += more);
        }
        let row =
            |(plan, sums): (String, [i64; 5])| std::iter::once(plan).chain(sums.map(|sum| sum.to_string())).collect();
        Ok(plans.into_iter().map(row).collect())
    }

    async fn items(&self, table: &str) -> Result<Vec<Value>, Failed> {
        scan(&self.endpoint(), table).await.map_err(failed)
    }
}

impl Traffic {
    /// Lets the write that is on its way end.
    pub(crate) async fn stop(self) -> Result<(), Failed> {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.unwrap_or(Ok(()))
    }
}

/// DuckDB's answer in the form of [`AppData::truth`]: sums of nothing are zero, amounts have no fraction but zeros.
pub(crate) fn plain(rows: &[Vec<String>]) -> Vec<Vec<String>> {
    let cell = |cell: &String| match cell.split('.').next() {
        Some("") | None => "0".to_owned(),
        Some(whole) => whole.to_owned(),
    };
    rows.iter().map(|row| row.iter().map(cell).collect()).collect()
}

async fn create(endpoint: &str, table: &str, keys: &[&str]) -> Result<(), Failed> {
    let definition = |name: &&str| json!({"AttributeName": name, "AttributeType": "S"});
    let element = |(name, role): (&&str, &str)| json!({"AttributeName": name, "KeyType": role});
    let request = json!({
        "TableName": table,
        "AttributeDefinitions": keys.iter().map(definition).collect::<Vec<_>>(),
        "KeySchema": keys.iter().zip(["HASH", "RANGE"]).map(element).collect::<Vec<_>>(),
        "BillingMode": "PAY_PER_REQUEST",
        "StreamSpecification": {"StreamEnabled": true, "StreamViewType": "NEW_AND_OLD_IMAGES"},
    });
    ask(endpoint, "CreateTable", &request).await
}

async fn put(endpoint: &str, table: &str, item: &Value) -> Result<(), Failed> {
    ask(endpoint, "PutItem", &json!({"TableName": table, "Item": item})).await
}

async fn ask(endpoint: &str, operation: &str, request: &Value) -> Result<(), Failed> {
    call(endpoint, operation, request).await.map(drop).map_err(failed)
}

fn failed(message: String) -> Failed {
    Failed::new(format!("DynamoDB: {message}"))
}

fn text(value: &Value) -> String {
    value["S"].as_str().unwrap_or_default().to_owned()
}

fn number(value: &Value) -> i64 {
    value["N"].as_str().and_then(|number| number.parse().ok()).unwrap_or(0)
}

/// Attributes of all kinds; what is not declared stays in `_rest`.
fn profile(user: &str, rng: &mut Rng) -> Value {
    let theme = ["light", "dark", "富士"][rng.usize(..3)];
    let plan = ["free", "free", "plus", "guide"][rng.usize(..4)];
    let mut badges: Vec<&str> = ["summit", "sunrise", "winter", "eight trails"].to_vec();
    badges.truncate(rng.usize(1..=4));
    let mut item = json!({
        "user_id": {"S": user},
        "plan": {"S": plan},
        "level": {"N": rng.u32(1..60).to_string()},
        "badges": {"SS": badges},
        "prefs": {"M": {
            "theme": {"S": theme},
            "notifications": {"M": {"weather": {"BOOL": rng.bool()}, "crowding": {"BOOL": rng.bool()}}},
            "favourites": {"L": [{"S": TRAILS[rng.usize(..4)]}, {"S": TRAILS[rng.usize(..4)]}]},
        }},
    });
    if rng.bool() {
        item["pace"] = json!({"N": format!("{}.{}", rng.u32(1..5), rng.u32(1..100))});
    }
    item
}

fn reservation(user: &str, rng: &mut Rng) -> Value {
    let gear =
        |item: &str, rng: &mut Rng| json!({"M": {"item": {"S": item}, "count": {"N": rng.u32(1..5).to_string()}}});
    let gear: Vec<Value> =
        ["headlamp", "rain jacket", "oxygen"][..rng.usize(..=3)].iter().map(|item| gear(item, rng)).collect();
    let state = ["booked", "booked", "booked", "waiting", "cancelled"][rng.usize(..5)];
    json!({
        "user_id": {"S": user},
        "entry_day": {"S": day(rng)},
        "trail": {"S": TRAILS[rng.usize(..4)]},
        "party": {"N": rng.u32(1..6).to_string()},
        "state": {"S": state},
        "deposit": {"N": (rng.u32(1..9) * 1_000).to_string()},
        "gear": {"L": gear},
        "expires_at": {"N": (1_790_000_000 + rng.u32(..10_000_000)).to_string()},
    })
}

fn day(rng: &mut Rng) -> String {
    format!("2026-{:02}-{:02}", rng.u32(7..=9), rng.u32(1..=28))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_engines_sums_are_compared_as_whole_numbers() {
        let rows = [["plus", "2", "1", "", "7", "8000.00"].map(str::to_owned).to_vec()];
        assert_eq!(plain(&rows), [["plus", "2", "1", "0", "7", "8000"].map(str::to_owned).to_vec()]);
    }
}
