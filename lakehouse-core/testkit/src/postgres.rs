//! A private, temporary PostgreSQL cluster: made, started, crashed, restarted and removed by the test that asked for it.
//!
//! Not here: what is written into it (`bank`) and what must come out of it (`oracle`).
//!
//! Each cluster has a keeper, a shell that waits for the end of its standard input. That end comes when the
//! [`Cluster`] is dropped, but also when the test process exits, panics or is killed, so neither a server nor its
//! folder outlives the test, and only this cluster's own server is ever stopped.

use std::fs;
use std::io::ErrorKind;
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use tokio_postgres::{NoTls, SimpleQueryMessage};

const DEFAULT_BINARIES: &str = "/usr/lib/postgresql/15/bin";
const INSTALL: &str = "run deploy/test, which installs postgresql-15, or set LAKEHOUSE_POSTGRES_BIN to a bin folder";

/// What differs from a plain cluster.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Lines for `postgresql.conf`, after the kit's own, so that they win.
    pub config: Vec<String>,
    /// Throughput tests only: no fsync and no synchronous commit. Such a cluster must not be crashed.
    pub unsafe_but_fast: bool,
    /// The certificate that the server shows; `None` is a server without TLS.
    pub certificate: Option<Certificate>,
}

/// The server's certificate, each kind a different reason for a client to refuse it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Certificate {
    /// For `localhost` and `127.0.0.1`, signed by the cluster's own authority.
    Good,
    /// Signed by that authority, for `elsewhere.invalid`.
    WrongHost,
    /// Signed by that authority, valid through the year 2020.
    Expired,
    /// Signed by itself.
    SelfSigned,
}

/// A running (or crashed) cluster. Superuser `postgres`, SCRAM passwords, loopback only, `wal_level = logical`.
#[derive(Debug)]
pub struct Cluster {
    binaries: PathBuf,
    dir: PathBuf,
    port: u16,
    superuser_password: String,
    account: Option<Account>,
    keeper: Child,
}

/// The ordinary account that runs the server when the test itself is root, which PostgreSQL refuses.
#[derive(Clone, Debug)]
struct Account {
    user: u32,
    group: u32,
}

impl Cluster {
    /// Makes and starts a cluster; returns when it takes connections.
    ///
    /// # Panics
    /// When PostgreSQL is not installed or does not start, with the reason and its log.
    pub async fn start(options: Options) -> Self {
        blocking(move || Self::make(&options)).await
    }

    /// The TCP port on 127.0.0.1; it stays the same over restarts.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Password of the superuser `postgres`.
    #[must_use]
    pub fn superuser_password(&self) -> &str {
        &self.superuser_password
    }

    /// The cluster's data folder.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The authority that signed the server's certificate, as a PEM file (of a self-signed server: one that did not).
    #[must_use]
    pub fn root_certificate(&self) -> PathBuf {
        self.dir.join("ca.crt")
    }

    /// The server's log so far.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.join("server.log")).unwrap_or_default()
    }

    /// Runs any number of statements as superuser and returns all their rows, each value as PostgreSQL's text.
    ///
    /// # Panics
    /// When a statement fails; [`Cluster::try_sql`] returns the error instead.
    pub async fn sql(&self, database: &str, text: &str) -> Vec<Vec<Option<String>>> {
        self.try_sql(database, text).await.unwrap_or_else(|error| panic!("{text}: {}", reason(&error)))
    }

    /// As [`Cluster::sql`].
    ///
    /// # Errors
    /// The server's refusal, or the lost connection.
    pub async fn try_sql(&self, database: &str, text: &str) -> Result<Vec<Vec<Option<String>>>, tokio_postgres::Error> {
        let client = self.try_connect(database).await?;
        let messages = client.simple_query(text).await?;
        Ok(messages
            .iter()
            .filter_map(|message| match message {
                SimpleQueryMessage::Row(row) => {
                    Some((0..row.len()).map(|column| row.get(column).map(str::to_owned)).collect())
                }
                _ => None,
            })
            .collect())
    }

    /// The single value of a query's single row.
    ///
    /// # Panics
    /// When the statement fails, or its answer is not one value that is not NULL.
    pub async fn value(&self, database: &str, text: &str) -> String {
        let rows = self.sql(database, text).await;
        match rows.as_slice() {
            [row] if row.len() == 1 => row[0].clone().unwrap_or_else(|| panic!("{text}: NULL")),
            _ => panic!("{text}: {} rows, one value expected", rows.len()),
        }
    }

    /// A superuser connection of one's own, for transactions that stay open.
    ///
    /// # Panics
    /// When the server refuses it.
    pub async fn connect(&self, database: &str) -> tokio_postgres::Client {
        self.try_connect(database).await.unwrap_or_else(|error| panic!("connect to {database}: {}", reason(&error)))
    }

    /// How to connect as superuser, for a task that outlives a borrow of the cluster.
    #[must_use]
    pub fn config(&self, database: &str) -> tokio_postgres::Config {
        let mut config = tokio_postgres::Config::new();
        config.host("127.0.0.1").port(self.port).user("postgres").password(&self.superuser_password);
        config.dbname(database).application_name("testkit");
        config
    }

    async fn try_connect(&self, database: &str) -> Result<tokio_postgres::Client, tokio_postgres::Error> {
        let (client, connection) = self.config(database).connect(NoTls).await?;
        // Ends when the client is dropped or the server goes; either shows at the client's next call.
        tokio::spawn(connection);
        Ok(client)
    }

    /// Crashes the server: no checkpoint, no farewell, recovery at the next start.
    ///
    /// # Panics
    /// When the server was not running.
    pub async fn stop_immediate(&mut self) {
        self.control(&["stop", "-m", "immediate"]).await;
    }

    /// Starts the server again; one that still runs is stopped cleanly first.
    ///
    /// # Panics
    /// When it does not stop or start, with its log.
    pub async fn restart(&mut self) {
        if self.dir.join("postmaster.pid").exists() {
            self.control(&["stop", "-m", "fast"]).await;
        }
        self.control(&["start"]).await;
    }

    /// Appends lines to `postgresql.conf`; they count from the next [`Cluster::restart`] or `pg_reload_conf()` on.
    ///
    /// # Panics
    /// When the file cannot be written.
    pub fn configure(&self, lines: &[&str]) {
        append(&self.dir.join("postgresql.conf"), &lines.join("\n"));
    }

    /// `pg_ctl` off the runtime's thread: a clean stop waits for walsenders, whose clients may run on that thread.
    async fn control(&self, arguments: &[&str]) {
        let mut command = pg_ctl(&self.binaries, &self.dir, self.account.as_ref(), arguments);
        let output = blocking(move || command.output()).await;
        let output = output.unwrap_or_else(|error| panic!("pg_ctl: {error}"));
        assert!(output.status.success(), "pg_ctl {arguments:?}: {}{}", text(&output), self.log());
    }

    fn make(options: &Options) -> Self {
        let binaries = std::env::var_os("LAKEHOUSE_POSTGRES_BIN").map_or(DEFAULT_BINARIES.into(), PathBuf::from);
        assert!(binaries.join("initdb").exists(), "no initdb in {}: {INSTALL}", binaries.display());
        let account = unprivileged();
        let (dir, keeper) = folder_and_keeper(&binaries, account.as_ref());
        let superuser_password = std::iter::repeat_with(fastrand::alphanumeric).take(24).collect();
        let mut cluster = Self { binaries, dir, port: 0, superuser_password, account, keeper };
        cluster.initialize(options);
        cluster.listen();
        cluster
    }

    fn initialize(&self, options: &Options) {
        let password_file = self.dir.with_extension("password");
        self.give(&password_file, &self.superuser_password);
        let mut initdb = run_as(self.account.as_ref(), &self.binaries.join("initdb"));
        let dir = self.dir.to_str().expect("the temporary folder's path is UTF-8");
        let pwfile = format!("--pwfile={}", password_file.display());
        initdb.args(["-D", dir, "-U", "postgres", "-A", "scram-sha-256", &pwfile]);
        initdb.args(["-E", "UTF8", "--no-locale", "--no-sync"]);
        must(&mut initdb);
        fs::remove_file(&password_file).expect("remove the password file");
        let mut lines = vec![
            "listen_addresses = '127.0.0.1'".to_owned(),
            // The folder is the server's own, so a socket in it is as private as the data.
            format!("unix_socket_directories = '{dir}'"),
            "wal_level = logical".to_owned(),
            "max_wal_senders = 20".to_owned(),
            "max_replication_slots = 20".to_owned(),
            "logical_decoding_work_mem = 64MB".to_owned(),
            "timezone = 'UTC'".to_owned(),
            "log_timezone = 'UTC'".to_owned(),
        ];
        if options.unsafe_but_fast {
            lines.push("fsync = off\nsynchronous_commit = off\nfull_page_writes = off".to_owned());
        }
        if let Some(certificate) = options.certificate {
            self.certify(certificate);
            lines.push("ssl = on\nssl_cert_file = 'server.crt'\nssl_key_file = 'server.key'".to_owned());
        }
        lines.extend(options.config.iter().cloned());
        append(&self.dir.join("postgresql.conf"), &lines.join("\n"));
    }

    /// Starts the server on a free port; another process may take the port first, so there are several attempts.
    fn listen(&mut self) {
        const ATTEMPTS: usize = 5;
        for _ in 0..ATTEMPTS {
            self.port = free_port();
            append(&self.dir.join("postgresql.conf"), &format!("port = {}", self.port));
            let output = pg_ctl(&self.binaries, &self.dir, self.account.as_ref(), &["start"]).output();
            let output = output.unwrap_or_else(|error| panic!("pg_ctl: {error}"));
            if output.status.success() {
                return;
            }
            let log = self.log();
            assert!(log.contains("Address already in use"), "pg_ctl start: {}{log}", text(&output));
        }
        panic!("no free port in {ATTEMPTS} attempts");
    }

    /// An authority and a server certificate in the data folder.
    fn certify(&self, kind: Certificate) {
        let host = match kind {
            Certificate::WrongHost => "DNS:elsewhere.invalid",
            _ => "DNS:localhost,IP:127.0.0.1",
        };
        // `openssl ca` because it alone can date a certificate into the past.
        self.give(
            &self.dir.join("ca.cnf"),
            &format!(
                "[ca]\ndefault_ca=own\n[own]\ndatabase=index.txt\nserial=serial\nnew_certs_dir=.\ndefault_md=sha256\n\
                 policy=any\nunique_subject=no\n[any]\ncommonName=supplied\n\
                 [req]\ndistinguished_name=name\nprompt=no\n[name]\nCN=test authority\n\
                 [authority]\nbasicConstraints=critical,CA:TRUE\nkeyUsage=critical,keyCertSign\n\
                 [server]\nbasicConstraints=critical,CA:FALSE\nextendedKeyUsage=serverAuth\nsubjectAltName={host}\n"
            ),
        );
        self.give(&self.dir.join("index.txt"), "");
        self.give(&self.dir.join("serial"), "01");
        let key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-config", "ca.cnf"];
        self.openssl(&["req", "-x509", "-days", "3650", "-extensions", "authority"], &key, &["ca.key", "ca.crt"]);
        if kind == Certificate::SelfSigned {
            let own = ["req", "-x509", "-days", "3650", "-extensions", "server", "-subj", "/CN=localhost"];
            return self.openssl(&own, &key, &["server.key", "server.crt"]);
        }
        self.openssl(&["req", "-new", "-subj", "/CN=localhost"], &key, &["server.key", "server.csr"]);
        let (from, until) = match kind {
            Certificate::Expired => ("20200101000000Z", "20201231000000Z"),
            _ => ("20200101000000Z", "20491231000000Z"),
        };
        let mut sign = run_as(self.account.as_ref(), Path::new("openssl"));
        sign.current_dir(&self.dir).args(["ca", "-batch", "-notext", "-config", "ca.cnf", "-extensions", "server"]);
        sign.args(["-cert", "ca.crt", "-keyfile", "ca.key", "-startdate", from, "-enddate", until]);
        must(sign.args(["-in", "server.csr", "-out", "server.crt"]));
    }

    fn openssl(&self, verb: &[&str], key: &[&str], outputs: &[&str; 2]) {
        let mut command = run_as(self.account.as_ref(), Path::new("openssl"));
        must(command.current_dir(&self.dir).args(verb).args(key).args(["-keyout", outputs[0], "-out", outputs[1]]));
        restrict(&self.dir.join(outputs[0]), 0o600);
    }

    /// Writes a file that only the server's account can read.
    fn give(&self, path: &Path, content: &str) {
        fs::write(path, content).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        restrict(path, 0o600);
        hand_over(path, self.account.as_ref());
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            eprintln!("PostgreSQL log, last lines:\n{}", crate::lakehouse::last_lines(&log, 40));
        }
        drop(self.keeper.stdin.take());
        let _ = self.keeper.wait();
    }
}

/// Makes the cluster's folder and starts its keeper, in the order that leaves nothing behind.
fn folder_and_keeper(binaries: &Path, account: Option<&Account>) -> (PathBuf, Child) {
    // `$0` is the parent folder of the data folder: PostgreSQL wants the data folder empty.
    const KEEP: &str = r#"
        trap '' HUP INT TERM
        read -r _
        [ ! -e "$0/data/postmaster.pid" ] || "$@" >"$0/keeper.log" 2>&1
        rm -rf "$0"
    "#;
    let holder = tempfile::Builder::new().prefix("pg-").tempdir().expect("make a temporary folder").keep();
    // Others may enter, none may list: the data folder itself is 0700.
    restrict(&holder, 0o711);
    let dir = holder.join("data");
    fs::create_dir(&dir).expect("make the data folder");
    restrict(&dir, 0o700);
    hand_over(&dir, account);
    let stop = pg_ctl(binaries, &dir, account, &["stop", "-m", "immediate"]);
    let keeper = Command::new("/bin/sh")
        .args(["-c", KEEP])
        .arg(&holder)
        .arg(stop.get_program())
        .args(stop.get_args())
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .current_dir("/")
        // A group of its own: the terminal's interrupt must not end the keeper before the test.
        .process_group(0)
        .spawn()
        .expect("start /bin/sh");
    (dir, keeper)
}

fn pg_ctl(binaries: &Path, dir: &Path, account: Option<&Account>, arguments: &[&str]) -> Command {
    let mut command = run_as(account, &binaries.join("pg_ctl"));
    command.args(arguments).arg("-D").arg(dir).arg("-l").arg(dir.join("server.log")).args(["-w", "-s", "-t", "120"]);
    // The server inherits these; a pipe would stay open for as long as it runs.
    command.current_dir(dir).stdin(Stdio::null());
    command
}

/// A command of the server's account, with nothing of this process's environment but the path.
fn run_as(account: Option<&Account>, program: &Path) -> Command {
    let mut command = match account {
        None => Command::new(program),
        Some(Account { user, group }) => {
            let mut command = Command::new("setpriv");
            command.arg(format!("--reuid={user}")).arg(format!("--regid={group}")).arg("--clear-groups").arg(program);
            command
        }
    };
    command.env_clear().env("LC_ALL", "C").env("TZ", "UTC");
    command.env("PATH", std::env::var_os("PATH").unwrap_or_else(|| "/usr/bin:/bin".into()));
    command
}

/// The account to drop to: `postgres` when this process is root, none otherwise.
fn unprivileged() -> Option<Account> {
    let id = |arguments: &[&str]| -> Option<u32> {
        let output = Command::new("id").args(arguments).output().ok()?;
        text(&output).trim().parse().ok()
    };
    if id(&["-u"]) != Some(0) {
        return None;
    }
    match (id(&["-u", "postgres"]), id(&["-g", "postgres"])) {
        (Some(user), Some(group)) => Some(Account { user, group }),
        _ => panic!("PostgreSQL does not run as root and there is no account postgres: {INSTALL}"),
    }
}

fn hand_over(path: &Path, account: Option<&Account>) {
    if let Some(Account { user, group }) = account {
        chown(path, Some(*user), Some(*group)).unwrap_or_else(|error| panic!("chown {}: {error}", path.display()));
    }
}

fn restrict(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
        .unwrap_or_else(|error| panic!("chmod {}: {error}", path.display()));
}

/// A port below the range from which the system hands out ports by itself, so that it stays free while the server
/// is down.
fn free_port() -> u16 {
    for _ in 0..1000 {
        let port = fastrand::u16(20_000..32_000);
        match TcpListener::bind(("127.0.0.1", port)) {
            Ok(_) => return port,
            Err(error) if error.kind() == ErrorKind::AddrInUse => {}
            Err(error) => panic!("bind 127.0.0.1: {error}"),
        }
    }
    panic!("no free port between 20000 and 32000");
}

fn append(path: &Path, lines: &str) {
    let old = fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    fs::write(path, format!("{old}\n{lines}\n")).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
}

fn must(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", text(&output));
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn reason(error: &tokio_postgres::Error) -> String {
    error
        .as_db_error()
        .map_or_else(|| error.to_string(), |error| format!("{} {}", error.code().code(), error.message()))
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

/// Waits until the query's first value is `true`; for what the server does in its own time.
///
/// # Panics
/// When it is not within `deadline`.
pub async fn wait_until(cluster: &Cluster, database: &str, query: &str, deadline: Duration) {
    let wait = async {
        while cluster.value(database, query).await != "t" {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(deadline, wait).await.unwrap_or_else(|_| panic!("not within {deadline:?}: {query}"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_crash_keeps_what_was_committed_and_the_port() {
        let mut cluster = Cluster::start(Options::default()).await;
        cluster.sql("postgres", "create table t (a int); insert into t select generate_series(1, 3)").await;
        let port = cluster.port();
        cluster.stop_immediate().await;
        assert!(cluster.try_sql("postgres", "select 1").await.is_err());
        cluster.restart().await;
        assert_eq!(cluster.port(), port);
        assert_eq!(cluster.value("postgres", "select sum(a) from t").await, "6");
        assert!(cluster.log().contains("was not properly shut down"));
    }

    #[tokio::test]
    async fn own_configuration_lines_win() {
        let config = vec!["max_wal_senders = 3".to_owned(), "wal_sender_timeout = 3s".to_owned()];
        let cluster = Cluster::start(Options { config, ..Options::default() }).await;
        assert_eq!(cluster.value("postgres", "show max_wal_senders").await, "3");
        assert_eq!(cluster.value("postgres", "show wal_level").await, "logical");
        assert_eq!(cluster.value("postgres", "show fsync").await, "on");
        assert_eq!(cluster.sql("postgres", "select null, 'a'").await, [[None, Some("a".to_owned())]]);
    }

    #[tokio::test]
    async fn nothing_is_left_behind() {
        let cluster = Cluster::start(Options::default()).await;
        let (dir, port) = (cluster.dir().to_owned(), cluster.port());
        drop(cluster);
        assert!(!dir.parent().is_some_and(Path::exists));
        TcpListener::bind(("127.0.0.1", port)).expect("the port is free again");
    }

    #[tokio::test]
    async fn a_panic_stops_the_server() {
        let test = tokio::spawn(async {
            let cluster = Cluster::start(Options::default()).await;
            panic!("{}", cluster.dir().display());
        });
        let panic = test.await.expect_err("it panics").into_panic();
        let dir = panic.downcast_ref::<String>().expect("a message");
        assert!(!Path::new(dir).exists());
    }

    #[tokio::test]
    async fn each_certificate_fails_for_its_own_reason() {
        for (kind, expected) in [
            (Certificate::Good, "Verification: OK"),
            (Certificate::WrongHost, "hostname mismatch"),
            (Certificate::Expired, "certificate has expired"),
            (Certificate::SelfSigned, "self-signed certificate"),
        ] {
            let cluster = Cluster::start(Options { certificate: Some(kind), ..Options::default() }).await;
            let address = format!("127.0.0.1:{}", cluster.port());
            let output = Command::new("openssl")
                .args(["s_client", "-starttls", "postgres", "-verify_hostname", "localhost", "-connect", &address])
                .arg("-CAfile")
                .arg(cluster.root_certificate())
                .stdin(Stdio::null())
                .output()
                .expect("openssl");
            assert!(text(&output).contains(expected), "{kind:?}: {}", text(&output));
        }
    }
}
