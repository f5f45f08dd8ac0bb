//! Visitors at work: several connections, each with its own seed, in transactions over one to three tables.
//!
//! Passes are sold, used, refunded and left to lapse, customers come, move and go, and some transactions are rolled
//! back. The order of the writers is the machine's; what each of them tries follows from its number.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use fastrand::Rng;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};
use tokio_postgres::{Client, Config, Error, NoTls, Statement};

use super::Failed;
use super::database::{HELD_EVERY, Sizes};

/// The shop as all its writers see it.
#[derive(Debug)]
pub(crate) struct Shop {
    config: Config,
    sizes: Sizes,
    next_customer: AtomicI64,
    /// Writers that were ever opened: each draws other lots.
    writers: AtomicU64,
    committed: AtomicU64,
    without_effect: AtomicU64,
    changes: AtomicU64,
    last_refund: AtomicI64,
}

/// What was done so far.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tally {
    /// Transactions.
    pub(crate) committed: u64,
    /// Transactions that were rolled back, or found nothing to do.
    pub(crate) without_effect: u64,
    /// Rows inserted, updated and deleted by the committed ones.
    pub(crate) changes: u64,
}

/// Writers at work. Dropping it stops them in mid-transaction.
#[derive(Debug)]
pub(crate) struct Workload {
    stop: Arc<AtomicBool>,
    writers: JoinSet<Result<(), Error>>,
}

impl Shop {
    pub(crate) fn new(config: Config, sizes: Sizes) -> Arc<Self> {
        Arc::new(Self {
            config,
            sizes,
            next_customer: AtomicI64::new(sizes.customers.cast_signed() + 1),
            committed: AtomicU64::new(0),
            writers: AtomicU64::new(0),
            without_effect: AtomicU64::new(0),
            changes: AtomicU64::new(0),
            last_refund: AtomicI64::new(0),
        })
    }

    /// Starts `writers`, each with at most `per_second` transactions.
    pub(crate) async fn open(self: &Arc<Self>, writers: u64, per_second: u64) -> Result<Workload, Failed> {
        let stop = Arc::new(AtomicBool::new(false));
        let mut tasks = JoinSet::new();
        for _ in 0..writers {
            let number = self.writers.fetch_add(1, Ordering::Relaxed);
            let (writer, stop) = (Writer::new(Arc::clone(self), number).await?, Arc::clone(&stop));
            tasks.spawn(writer.work(Duration::from_micros(1_000_000 / per_second), stop));
        }
        Ok(Workload { stop, writers: tasks })
    }

    pub(crate) fn tally(&self) -> Tally {
        Tally {
            committed: self.committed.load(Ordering::Relaxed),
            without_effect: self.without_effect.load(Ordering::Relaxed),
            changes: self.changes.load(Ordering::Relaxed),
        }
    }

    /// A payment that existed at first and was refunded by a writer.
    pub(crate) fn last_refund(&self) -> Option<i64> {
        Some(self.last_refund.load(Ordering::Relaxed)).filter(|&id| id > 0)
    }
}

impl Workload {
    /// Lets every writer end its transaction.
    pub(crate) async fn stop(mut self) -> Result<(), Failed> {
        self.stop.store(true, Ordering::Relaxed);
        while let Some(ended) = self.writers.join_next().await {
            ended.unwrap_or(Ok(()))?;
        }
        Ok(())
    }
}

/// One writer with its connection.
struct Writer {
    shop: Arc<Shop>,
    client: Client,
    sql: Prepared,
    rng: Rng,
}

struct Prepared {
    register: Statement,
    issue: Statement,
    pay: Statement,
    enter: Statement,
    refund: Statement,
    cancel: Statement,
    move_house: Statement,
    lapse: Statement,
    forget: Statement,
}

impl Prepared {
    async fn new(client: &Client) -> Result<Self, Error> {
        Ok(Self {
            register: client.prepare(REGISTER).await?,
            issue: client.prepare(ISSUE).await?,
            pay: client.prepare(PAY).await?,
            enter: client.prepare(ENTER).await?,
            refund: client.prepare(REFUND).await?,
            cancel: client.prepare(CANCEL).await?,
            move_house: client.prepare(MOVE_HOUSE).await?,
            lapse: client.prepare(LAPSE).await?,
            forget: client.prepare(FORGET).await?,
        })
    }
}

impl Writer {
    async fn new(shop: Arc<Shop>, number: u64) -> Result<Self, Error> {
        let (client, connection) = shop.config.connect(NoTls).await?;
        // Ends when the client is dropped or the server goes; either shows at the client's next call.
        tokio::spawn(connection);
        let sql = Prepared::new(&client).await?;
        Ok(Self { shop, client, sql, rng: Rng::with_seed(3_776 + number) })
    }

    async fn work(mut self, pace: Duration, stop: Arc<AtomicBool>) -> Result<(), Error> {
        let mut pace = interval(pace);
        pace.set_missed_tick_behavior(MissedTickBehavior::Skip);
        while !stop.load(Ordering::Relaxed) {
            pace.tick().await;
            let changes = match self.rng.u8(..100) {
                0..50 => self.sell().await?,
                50..72 => self.enter().await?,
                72..82 => self.refund().await?,
                82..92 => self.move_house().await?,
                92..97 => self.lapse().await?,
                _ => self.forget().await?,
            };
            match changes {
                0 => self.shop.without_effect.fetch_add(1, Ordering::Relaxed),
                _ => self.shop.committed.fetch_add(1, Ordering::Relaxed),
            };
            self.shop.changes.fetch_add(changes, Ordering::Relaxed);
        }
        Ok(())
    }

    /// A pass and its payment, and the customer if it is a new one: two or three tables in one transaction. Some cards
    /// are declined, and nothing of that may ever be seen.
    async fn sell(&mut self) -> Result<u64, Error> {
        let (is_new, declined) = (self.rng.u8(..100) < 25, self.rng.u8(..100) < 3);
        let trail = ["yoshida", "yoshida", "yoshida", "fujinomiya", "subashiri", "gotemba"][self.rng.usize(..6)];
        let method = ["card", "card", "qr", "konbini", "transit_ic"][self.rng.usize(..5)];
        let party: i16 = self.rng.i16(1..=5);
        let customer = match is_new {
            true => self.shop.next_customer.fetch_add(1, Ordering::Relaxed),
            false => self.buyer(),
        };
        let transaction = self.client.transaction().await?;
        let mut changes = 2;
        if is_new {
            changes += transaction.execute(&self.sql.register, &[&customer]).await?;
        }
        let pass: i64 = transaction.query_one(&self.sql.issue, &[&customer, &trail, &party]).await?.get(0);
        transaction.execute(&self.sql.pay, &[&pass, &customer, &party, &method]).await?;
        if declined {
            transaction.rollback().await?;
            return Ok(0);
        }
        transaction.commit().await?;
        Ok(changes)
    }

    async fn enter(&mut self) -> Result<u64, Error> {
        let pass = self.pass();
        let gate = self.rng.i32(1..=4);
        self.client.execute(&self.sql.enter, &[&pass, &gate]).await
    }

    /// Payment, refund and pass: three tables in one transaction.
    async fn refund(&mut self) -> Result<u64, Error> {
        let payment = self.pass();
        let reason = ["trail closed", "typhoon", "illness", "changed plans"][self.rng.usize(..4)];
        let transaction = self.client.transaction().await?;
        // Held passes have no payment, and some are refunded already.
        if transaction.execute(&self.sql.refund, &[&payment, &reason]).await? == 0 {
            transaction.rollback().await?;
            return Ok(0);
        }
        let cancelled = transaction.execute(&self.sql.cancel, &[&payment]).await?;
        transaction.commit().await?;
        self.shop.last_refund.store(payment, Ordering::Relaxed);
        Ok(2 + cancelled)
    }

    async fn move_house(&mut self) -> Result<u64, Error> {
        let customer = self.buyer();
        let address = format!("100.{}.{}.{}", self.rng.u8(64..128), self.rng.u8(..), self.rng.u8(1..255));
        self.client.execute(&self.sql.move_house, &[&customer, &address]).await
    }

    /// A pass that was held and never paid.
    async fn lapse(&mut self) -> Result<u64, Error> {
        let pass = (self.rng.u64(1..=self.shop.sizes.passes / HELD_EVERY) * HELD_EVERY).cast_signed();
        self.client.execute(&self.sql.lapse, &[&pass]).await
    }

    /// A customer without passes who wants to be forgotten.
    async fn forget(&mut self) -> Result<u64, Error> {
        let customer = self.rng.u64(self.shop.sizes.buyers + 1..=self.shop.sizes.customers).cast_signed();
        self.client.execute(&self.sql.forget, &[&customer]).await
    }

    fn buyer(&mut self) -> i64 {
        self.rng.u64(1..=self.shop.sizes.buyers).cast_signed()
    }

    fn pass(&mut self) -> i64 {
        self.rng.u64(1..=self.shop.sizes.passes).cast_signed()
    }
}

const REGISTER: &str = "
    INSERT INTO customers
    VALUES (md5('customer' || $1::bigint)::uuid, 'Visitor ' || $1, 'visitor' || $1 || '@example.com', 'JP', NULL, true,
            '{ja,en}', jsonb_build_object('newsletter', $1 % 3 = 0), '100.64.0.1', now(), now())";

const ISSUE: &str = "
    INSERT INTO entry_passes (customer_id, trail, state, valid_on, party_size, overnight, equipment, issued_at)
    VALUES (md5('customer' || $1::bigint)::uuid, $2::text::trail, 'paid', current_date + 7, $3, false, '{headlamp}', now())
    RETURNING id";

const PAY: &str = "
    INSERT INTO payments (paid_at, pass_id, customer_id, amount, currency, method, state, client_address, details)
    VALUES (now(), $1, md5('customer' || $2::bigint)::uuid, 4000 * $3::smallint, 'JPY', $4::text::payment_method, 'captured',
            '100.64.0.2', jsonb_build_object('terminal', 'web', 'attempts', 1))";

const ENTER: &str = "
    UPDATE entry_passes
    SET state = 'entered', entered_at = now(), checks = coalesce(checks, '{}') || jsonb_build_object('gate', $2::int)
    WHERE id = $1 AND state IN ('paid', 'entered')";

const REFUND: &str = "
    WITH refunded AS (
        UPDATE payments SET state = 'refunded', details = details || jsonb_build_object('refund', $2::text)
        WHERE id = $1 AND state = 'captured' RETURNING id, paid_at, amount)
    INSERT INTO refunds SELECT md5('refund' || id)::uuid, id, paid_at, amount, $2::text, now() FROM refunded";

const CANCEL: &str =
    "UPDATE entry_passes SET state = 'cancelled', entered_at = NULL WHERE id = $1 AND state <> 'cancelled'";

const MOVE_HOUSE: &str = "
    UPDATE customers SET last_address = $2::text::inet, updated_at = now() WHERE id = md5('customer' || $1::bigint)::uuid";

const LAPSE: &str = "DELETE FROM entry_passes WHERE id = $1 AND state = 'held'";

const FORGET: &str = "DELETE FROM customers WHERE id = md5('customer' || $1::bigint)::uuid";
