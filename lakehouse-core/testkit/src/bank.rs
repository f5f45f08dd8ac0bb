//! The bank (load W1): transactions that touch two accounts and a ledger, under which sums and balances are known at
//! every moment.
//!
//! What must hold of the copy: at **every** snapshot of `account` the balances add up to the bank's total, and at every
//! cut each balance is what the ledger says. Closing an account deletes its row, opening one inserts it again; some
//! transactions roll back, on purpose or because the account is gone.
//!
//! Not here: reading the lake (`readers`).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use fastrand::Rng;
use tokio::task::JoinSet;
use tokio_postgres::{Client, Config, NoTls, SimpleQueryMessage};

use crate::postgres::Cluster;

/// What each account holds at the start, in cents.
const INITIAL: i64 = 100_000;

/// The tables, in their schema `public`; their columns in [`ACCOUNT_COLUMNS`] and [`LEDGER_COLUMNS`].
pub const TABLES: [&str; 2] = ["public.account", "public.ledger"];
/// What [`Bank::check_snapshot`] and [`Bank::check_cut`] want to see of `account`.
pub const ACCOUNT_COLUMNS: [&str; 2] = ["id", "balance"];
/// What [`Bank::check_cut`] wants to see of `ledger`.
pub const LEDGER_COLUMNS: [&str; 3] = ["source", "target", "amount"];

/// An open bank. Cloning it gives another writer the same bank.
#[derive(Clone, Debug)]
pub struct Bank {
    config: Config,
    seed: u64,
    accounts: u64,
}

/// What writers did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Done {
    /// Transactions whose commit was acknowledged.
    pub committed: u64,
    /// Transactions rolled back or of unknown outcome.
    pub abandoned: u64,
}

/// Writers at work in the background.
#[derive(Debug)]
pub struct Load {
    stop: Arc<AtomicBool>,
    writers: JoinSet<Done>,
}

impl Bank {
    /// Makes the two tables in a database and fills them. The seed is `LAKEHOUSE_SEED` or random, and printed.
    ///
    /// # Panics
    /// When the tables exist already or cannot be made.
    pub async fn open(cluster: &Cluster, database: &str, accounts: u64) -> Self {
        assert!(accounts >= 2, "a transfer needs two accounts");
        let seed = match std::env::var("LAKEHOUSE_SEED") {
            Ok(seed) => seed.parse().expect("LAKEHOUSE_SEED is a number"),
            Err(_) => fastrand::u64(..),
        };
        eprintln!("bank: LAKEHOUSE_SEED={seed}");
        let script = format!(
            "CREATE TABLE account (id int8 PRIMARY KEY, balance numeric(18,2) NOT NULL, touched timestamptz DEFAULT now());
             CREATE TABLE ledger (id int8 GENERATED ALWAYS AS IDENTITY PRIMARY KEY, source int8 NOT NULL,
                target int8 NOT NULL, amount numeric(18,2) NOT NULL);
             INSERT INTO account (id, balance) SELECT id, {} FROM generate_series(1, {accounts}) AS id",
            money(INITIAL)
        );
        cluster.sql(database, &script).await;
        Self { config: cluster.config(database), seed, accounts }
    }

    /// Runs a number of transactions as one writer; its choices follow from seed and writer number alone.
    /// A lost connection is opened again, for a minute.
    ///
    /// # Panics
    /// When the server stays away or refuses a statement for a reason that is not the bank's.
    pub async fn work(&self, writer: u64, transactions: u64) -> Done {
        let mut clerk = self.clerk(writer).await;
        for _ in 0..transactions {
            clerk.transaction().await;
        }
        clerk.done
    }

    /// Starts writers that work until [`Load::stop`], each with a pause between its transactions.
    #[must_use]
    pub fn start(&self, writers: u64, pause: Duration) -> Load {
        let stop = Arc::new(AtomicBool::new(false));
        let mut tasks = JoinSet::new();
        for writer in 0..writers {
            let (bank, stop) = (self.clone(), Arc::clone(&stop));
            tasks.spawn(async move {
                let mut clerk = bank.clerk(writer).await;
                while !stop.load(Ordering::Relaxed) {
                    clerk.transaction().await;
                    tokio::time::sleep(pause).await;
                }
                clerk.done
            });
        }
        Load { stop, writers: tasks }
    }

    /// Checks one snapshot of `account` (lines of [`ACCOUNT_COLUMNS`]): the balances add up to the bank's total.
    ///
    /// # Errors
    /// The sum that was found.
    pub fn check_snapshot(&self, accounts: &[String]) -> Result<(), String> {
        let (sum, total) = (balances(accounts)?.values().sum::<i64>(), INITIAL * self.accounts.cast_signed());
        if sum == total { Ok(()) } else { Err(format!("the balances add up to {} of {}", money(sum), money(total))) }
    }

    /// Checks both tables at one cut: each balance is what it was at the start and what the ledger moved since.
    ///
    /// # Errors
    /// The first account that is wrong.
    pub fn check_cut(&self, accounts: &[String], ledger: &[String]) -> Result<(), String> {
        let mut expected: BTreeMap<i64, i64> = (1..=self.accounts.cast_signed()).map(|id| (id, INITIAL)).collect();
        for line in ledger {
            let [source, target, amount] = parse(line)?;
            *expected.entry(number(&source)?).or_default() -= cents(&amount)?;
            *expected.entry(number(&target)?).or_default() += cents(&amount)?;
        }
        let found = balances(accounts)?;
        if let Some(id) = found.keys().find(|id| !expected.contains_key(id)) {
            return Err(format!("there was never an account {id}"));
        }
        for (id, expected) in &expected {
            // A closed account has no row, and nothing left.
            let found = found.get(id).copied().unwrap_or_default();
            if found != *expected {
                return Err(format!("account {id} has {}, the ledger says {}", money(found), money(*expected)));
            }
        }
        Ok(())
    }

    async fn clerk(&self, writer: u64) -> Clerk {
        let rng = Rng::with_seed(self.seed ^ writer.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        Clerk { bank: self.clone(), client: self.connect().await, rng, done: Done::default() }
    }

    async fn connect(&self) -> Client {
        const ATTEMPTS: u32 = 600;
        for _ in 0..ATTEMPTS {
            if let Ok((client, connection)) = self.config.connect(NoTls).await {
                tokio::spawn(connection);
                return client;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("the bank's server stays away");
    }
}

impl Load {
    /// Lets every writer end its transaction and adds up what they did.
    ///
    /// # Panics
    /// When a writer did.
    pub async fn stop(self) -> Done {
        self.stop.store(true, Ordering::Relaxed);
        let sum = |sum: Done, done: Done| Done {
            committed: sum.committed + done.committed,
            abandoned: sum.abandoned + done.abandoned,
        };
        self.writers.join_all().await.into_iter().fold(Done::default(), sum)
    }
}

/// One writer with its connection.
struct Clerk {
    bank: Bank,
    client: Client,
    rng: Rng,
    done: Done,
}

/// What a transaction does to its two accounts.
enum Deal {
    Transfer,
    Close,
    Open,
}

impl Clerk {
    async fn transaction(&mut self) {
        let source = self.rng.u64(1..=self.bank.accounts);
        let target = (source + self.rng.u64(1..self.bank.accounts) - 1) % self.bank.accounts + 1;
        let amount = money(self.rng.i64(1..=5_000));
        let deal = match self.rng.u8(0..100) {
            0..=84 => Deal::Transfer,
            85..=91 => Deal::Close,
            _ => Deal::Open,
        };
        let regret = self.rng.u8(0..100) < 5;
        let committed = match self.deal(&deal, source, target, &amount).await {
            Ok(true) if !regret => self.client.batch_execute("COMMIT").await,
            Ok(_) => self.client.batch_execute("ROLLBACK").await.and(Ok(())),
            Err(error) => Err(error),
        };
        match committed {
            Ok(()) if !regret => self.done.committed += 1,
            Ok(()) => self.done.abandoned += 1,
            Err(error) => self.recover(&error).await,
        }
    }

    /// Does everything but the commit; false when an account is not as the deal needs it.
    async fn deal(&self, deal: &Deal, source: u64, target: u64, amount: &str) -> Result<bool, tokio_postgres::Error> {
        self.client.batch_execute("BEGIN").await?;
        let take = format!("UPDATE account SET balance = balance - {amount}, touched = now() WHERE id = {source}");
        let give = format!("UPDATE account SET balance = balance + {amount}, touched = now() WHERE id = {target}");
        let (statements, entry) = match deal {
            // In the order of ids, so that two transfers do not wait for each other.
            Deal::Transfer if source < target => ([take, give], amount.to_owned()),
            Deal::Transfer => ([give, take], amount.to_owned()),
            Deal::Open => (
                [take, format!("INSERT INTO account VALUES ({target}, {amount}) ON CONFLICT DO NOTHING")],
                amount.to_owned(),
            ),
            Deal::Close => {
                let Some(rest) =
                    self.value(&format!("SELECT balance FROM account WHERE id = {source} FOR UPDATE")).await?
                else {
                    return Ok(false);
                };
                let close = format!("DELETE FROM account WHERE id = {source}");
                ([close, format!("UPDATE account SET balance = balance + {rest} WHERE id = {target}")], rest)
            }
        };
        for statement in statements {
            if self.client.execute(&statement, &[]).await? != 1 {
                return Ok(false);
            }
        }
        let entry = format!("INSERT INTO ledger (source, target, amount) VALUES ({source}, {target}, {entry})");
        Ok(self.client.execute(&entry, &[]).await? == 1)
    }

    async fn value(&self, query: &str) -> Result<Option<String>, tokio_postgres::Error> {
        let messages = self.client.simple_query(query).await?;
        Ok(messages.iter().find_map(|message| match message {
            SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
            _ => None,
        }))
    }

    /// A deadlock costs the transaction, a lost server the connection too; anything else is a mistake of the bank's.
    async fn recover(&mut self, error: &tokio_postgres::Error) {
        self.done.abandoned += 1;
        let deadlock = error.code() == Some(&tokio_postgres::error::SqlState::T_R_DEADLOCK_DETECTED);
        if deadlock && self.client.batch_execute("ROLLBACK").await.is_ok() {
            return;
        }
        let server_gone = error.code().is_none_or(|code| code.code().starts_with("57P"));
        assert!(server_gone, "bank: {error:?}");
        self.client = self.bank.connect().await;
    }
}

fn balances(accounts: &[String]) -> Result<BTreeMap<i64, i64>, String> {
    let mut balances = BTreeMap::new();
    for line in accounts {
        let [id, balance] = parse(line)?;
        if balances.insert(number(&id)?, cents(&balance)?).is_some() {
            return Err(format!("account {id} is there twice"));
        }
    }
    Ok(balances)
}

fn parse<const N: usize>(line: &str) -> Result<[String; N], String> {
    let values: Vec<String> = serde_json::from_str(line).map_err(|error| format!("{line}: {error}"))?;
    values.try_into().map_err(|_| format!("{N} columns expected: {line}"))
}

fn number(text: &str) -> Result<i64, String> {
    text.parse().map_err(|_| format!("not a number: {text}"))
}

fn cents(text: &str) -> Result<i64, String> {
    match text.split_once('.') {
        Some((_, fraction)) if fraction.len() == 2 => number(&text.replace('.', "")),
        _ => Err(format!("not an amount with two digits after the point: {text}")),
    }
}

/// Cents as an amount in SQL.
fn money(cents: i64) -> String {
    format!("{}{}.{:02}", if cents < 0 { "-" } else { "" }, cents.abs() / 100, cents.abs() % 100)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::Options;

    async fn lines(cluster: &Cluster, columns: &[&str], table: &str) -> Vec<String> {
        let rows = cluster.sql("postgres", &format!("SELECT {} FROM {table}", columns.join(", "))).await;
        rows.iter().map(|row| serde_json::to_string(row).expect("JSON")).collect()
    }

    #[tokio::test]
    async fn the_bank_balances_over_a_crash_and_wrong_books_are_found() {
        let mut cluster = Cluster::start(Options::default()).await;
        let bank = Bank::open(&cluster, "postgres", 10).await;
        let load = bank.start(3, Duration::ZERO);
        bank.work(100, 200).await;
        cluster.stop_immediate().await;
        cluster.restart().await;
        let own = bank.work(101, 200).await;
        let done = load.stop().await;
        assert_eq!(own.committed + own.abandoned, 200);
        assert!(own.committed > 100 && done.committed > 0 && own.abandoned > 0, "{own:?} {done:?}");

        let mut accounts = lines(&cluster, &ACCOUNT_COLUMNS, TABLES[0]).await;
        let mut ledger = lines(&cluster, &LEDGER_COLUMNS, TABLES[1]).await;
        assert_eq!(bank.check_snapshot(&accounts), Ok(()));
        assert_eq!(bank.check_cut(&accounts, &ledger), Ok(()));

        let lost = ledger.pop().expect("an entry");
        assert!(bank.check_cut(&accounts, &ledger).is_err());
        ledger.push(lost);
        let doubled = accounts[0].clone();
        accounts.push(doubled);
        assert!(bank.check_snapshot(&accounts).is_err());
        accounts.truncate(accounts.len() - 2);
        assert!(bank.check_snapshot(&accounts).is_err());
        assert!(bank.check_cut(&accounts, &ledger).is_err());
    }

    #[test]
    fn money_is_read_as_it_is_written() {
        for amount in [0, 5, 99, 100, -5, -12_345] {
            assert_eq!(cents(&money(amount)), Ok(amount));
        }
        assert!(cents("1.5").is_err() && cents("1").is_err());
    }
}
