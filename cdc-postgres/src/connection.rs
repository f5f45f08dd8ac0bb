//! Connections to a PostgreSQL server. Owns the settings both kinds of connection share, the session settings pinned on
//! both, and the SQL connection. The replication connection is `walsender.rs`; sockets and TLS are in the sub-modules.

mod error;
mod socket;
mod stream;
mod tls;

pub use error::{ConnectError, ServerError};
pub use lakehouse_core::secret::Secret;
pub(crate) use stream::{Stream, dial, refused_method};

use std::error::Error as _;
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;
use stream::{Connected, SqlStream};
use tokio::time::timeout;
use tokio_postgres::config::{SslMode, SslNegotiation};

/// The session settings of R8 as start-up options. They outrank whatever the server, database or role has as default.
pub(crate) const SESSION_OPTIONS: &str = "-c datestyle=ISO -c intervalstyle=iso_8601 -c timezone=UTC \
    -c extra_float_digits=3 -c bytea_output=hex -c standard_conforming_strings=on -c statement_timeout=0 \
    -c idle_in_transaction_session_timeout=0 -c idle_session_timeout=0";

/// Where and as whom to connect. One value serves both kinds of connection (R1).
#[derive(Debug, Clone)]
pub struct ConnectionSettings {
    /// Host name, address, or the directory of a Unix socket (begins with `/`).
    pub host: String,
    /// TCP port; with a Unix socket, the number in its name.
    pub port: u16,
    /// Database name.
    pub database: String,
    /// Role name.
    pub user: String,
    /// Password or token, as of this connection attempt (R4).
    pub password: Secret,
    /// Encryption and verification. Unix sockets are never encrypted.
    pub tls: Tls,
    /// Whether the login must be bound to the TLS connection (R3).
    pub channel_binding: ChannelBinding,
    /// Shown in `pg_stat_activity` and `pg_stat_replication`.
    pub application_name: String,
    /// Bound of each step: name resolution, each address, TLS, login.
    pub connect_timeout: Duration,
}

/// What is demanded of TLS (R2). There is no "encrypt but do not verify".
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tls {
    /// Certificate chain and host name are verified.
    VerifyFull {
        /// PEM file of trusted roots; the system's store if absent.
        root: Option<PathBuf>,
    },
    /// Only the certificate chain is verified.
    VerifyCa {
        /// PEM file of trusted roots; the system's store if absent.
        root: Option<PathBuf>,
    },
    /// No TLS; refused unless the host is loopback or a Unix socket.
    Disable,
}

/// Whether SCRAM must be bound to the TLS connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChannelBinding {
    /// Bound wherever both sides can.
    Prefer,
    /// Bound, or no connection.
    Require,
}

impl ConnectionSettings {
    /// Settings with the defaults: port 5432, `verify-full` by the system's roots, 10 s per step.
    #[must_use]
    pub fn new(host: &str, database: &str, user: &str, password: Secret) -> Self {
        Self {
            host: host.to_owned(),
            port: 5432,
            database: database.to_owned(),
            user: user.to_owned(),
            password,
            tls: Tls::VerifyFull { root: None },
            channel_binding: ChannelBinding::Prefer,
            application_name: "lakehouse".to_owned(),
            connect_timeout: Duration::from_secs(10),
        }
    }

    pub(crate) fn uses_unix_socket(&self) -> bool {
        self.host.starts_with('/')
    }

    pub(crate) fn names_loopback(&self) -> bool {
        let literal = self.host.parse::<IpAddr>();
        self.host.eq_ignore_ascii_case("localhost") || literal.is_ok_and(|address| address.is_loopback())
    }

    /// Refuses what would end a string of the protocol early and so change its meaning.
    pub(crate) fn check(&self) -> Result<(), ConnectError> {
        let texts = [
            ("host", self.host.as_str()),
            ("database", self.database.as_str()),
            ("user", self.user.as_str()),
            ("password", self.password.expose()),
            ("application_name", self.application_name.as_str()),
        ];
        for (name, text) in texts {
            if text.contains('\0') {
                return Err(ConnectError::Settings(format!("{name} contains a zero byte")));
            }
        }
        if self.host.is_empty() || self.user.is_empty() {
            return Err(ConnectError::Settings("host or user is empty".to_owned()));
        }
        Ok(())
    }
}

/// Opens a SQL connection. Its driver runs as a task that ends when the client is dropped.
///
/// # Errors
/// See [`ConnectError`].
pub async fn connect_sql(settings: &ConnectionSettings) -> Result<tokio_postgres::Client, ConnectError> {
    settings.check()?;
    let stream = SqlStream::new(dial(settings).await?);
    let config = sql_config(settings);
    let (client, connection) = timeout(settings.connect_timeout, config.connect_raw(stream, Connected))
        .await
        .map_err(|_| ConnectError::Timeout { step: "logging in" })?
        .map_err(sort_sql_error)?;
    check_pinned(|name| connection.parameter(name))?;
    let major = major_version(connection.parameter("server_version"));
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "sql connection ended");
        }
    });
    if let Some(sql) = late_settings(major) {
        let sent = timeout(settings.connect_timeout, client.batch_execute(sql));
        sent.await.map_err(|_| ConnectError::Timeout { step: "setting up the session" })?.map_err(sort_sql_error)?;
    }
    Ok(client)
}

/// Asks the server to cancel what the client of `token` is running. The server does not say whether it did.
///
/// # Errors
/// See [`ConnectError`].
pub async fn cancel_sql(
    settings: &ConnectionSettings,
    token: &tokio_postgres::CancelToken,
) -> Result<(), ConnectError> {
    let stream = SqlStream::new(dial(settings).await?);
    timeout(settings.connect_timeout, token.cancel_query_raw(stream, Connected))
        .await
        .map_err(|_| ConnectError::Timeout { step: "cancelling" })?
        .map_err(sort_sql_error)
}

fn sql_config(settings: &ConnectionSettings) -> tokio_postgres::Config {
    let mut config = tokio_postgres::Config::new();
    config
        .user(&settings.user)
        .password(settings.password.expose())
        .dbname(&settings.database)
        .application_name(&settings.application_name)
        .options(SESSION_OPTIONS)
        .channel_binding(match settings.channel_binding {
            ChannelBinding::Prefer => tokio_postgres::config::ChannelBinding::Prefer,
            ChannelBinding::Require => tokio_postgres::config::ChannelBinding::Require,
        })
        // The stream is encrypted already where it has to be: "direct" makes the driver skip its own request for TLS.
        .ssl_mode(SslMode::Require)
        .ssl_negotiation(SslNegotiation::Direct);
    config
}

fn sort_sql_error(error: tokio_postgres::Error) -> ConnectError {
    if let Some(db) = error.as_db_error() {
        let server = ServerError {
            sqlstate: db.code().code().to_owned(),
            message: db.message().to_owned(),
            hint: db.hint().map(str::to_owned),
            routine: db.routine().map(str::to_owned),
        };
        return ConnectError::from_server(server, false);
    }
    let text = error.to_string();
    let cause = error.source().map(ToString::to_string).unwrap_or_default();
    if text == "authentication error" && cause == "server did not use channel binding" {
        return ConnectError::ChannelBinding;
    }
    match error.into_source().map(|source| source.downcast::<io::Error>()) {
        Some(Ok(io)) => sort_io_error(*io),
        _ if text == "connection closed" => ConnectError::Io(io::ErrorKind::UnexpectedEof.into()),
        _ => ConnectError::Protocol(if cause.is_empty() { text } else { format!("{text}: {cause}") }),
    }
}

/// Unwraps what the watch of `SqlStream` has put into an input error.
fn sort_io_error(error: io::Error) -> ConnectError {
    match error.downcast::<ConnectError>() {
        Ok(inner) => inner,
        Err(error) if matches!(error.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData) => {
            ConnectError::Protocol(error.to_string())
        }
        Err(error) => ConnectError::Io(error),
    }
}

/// Makes sure the session settings took effect: a pooler may swallow start-up options without a word.
pub(crate) fn check_pinned<'a>(parameter: impl Fn(&str) -> Option<&'a str>) -> Result<(), ConnectError> {
    const PINNED: [(&str, &str); 5] = [
        ("DateStyle", "ISO"),
        ("IntervalStyle", "iso_8601"),
        ("TimeZone", "UTC"),
        ("client_encoding", "UTF8"),
        ("standard_conforming_strings", "on"),
    ];
    for (name, wanted) in PINNED {
        let value = parameter(name).unwrap_or_default();
        if value.split(',').next() != Some(wanted) {
            return Err(ConnectError::Pooler(format!("{name} is '{value}' although the session asked for {wanted}")));
        }
    }
    Ok(())
}

/// Settings that only newer servers know and older ones would refuse at start-up.
pub(crate) fn late_settings(major: u32) -> Option<&'static str> {
    (major >= 17).then_some("SET transaction_timeout = 0")
}

/// The leading number of `server_version`; 0 if there is none.
pub(crate) fn major_version(text: Option<&str>) -> u32 {
    let text = text.unwrap_or_default();
    let digits = text.find(|character: char| !character.is_ascii_digit()).unwrap_or(text.len());
    text.get(..digits).and_then(|number| number.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(host: &str, tls: Tls) -> ConnectionSettings {
        ConnectionSettings { tls, ..ConnectionSettings::new(host, "db", "u", Secret::new("hunter2".to_owned())) }
    }

    #[tokio::test]
    async fn tls_can_only_be_disabled_on_this_machine() {
        for host in ["db.example.com", "10.0.0.1", "localhost.example.com", "::2"] {
            let error = connect_sql(&settings(host, Tls::Disable)).await.expect_err("must be refused");
            assert_eq!(error.code(), "TLS_REQUIRED", "{host}");
        }
        for host in ["localhost", "LOCALHOST", "127.0.0.1", "127.9.9.9", "::1"] {
            assert!(settings(host, Tls::Disable).names_loopback(), "{host}");
        }
        assert!(settings("/run/postgresql", Tls::Disable).uses_unix_socket());
    }

    #[tokio::test]
    async fn a_zero_byte_in_a_setting_is_refused_before_connecting() {
        let mut injected = settings("localhost", Tls::Disable);
        injected.user = "u\0replication\0true".to_owned();
        let error = connect_sql(&injected).await.expect_err("must be refused");
        assert_eq!(error.code(), "SETTINGS");
        assert!(!error.is_transient());
    }

    #[test]
    fn debug_output_of_the_settings_holds_no_password() {
        assert!(!format!("{:?}", settings("h", Tls::Disable)).contains("hunter2"));
    }

    #[test]
    fn swallowed_session_settings_point_to_a_pooler() {
        let good = |name: &str| match name {
            "DateStyle" => Some("ISO, MDY"),
            "IntervalStyle" => Some("iso_8601"),
            "TimeZone" => Some("UTC"),
            "client_encoding" => Some("UTF8"),
            "standard_conforming_strings" => Some("on"),
            _ => None,
        };
        assert!(check_pinned(good).is_ok());
        let swallowed = |name: &str| {
            if name == "TimeZone" { Some("Europe/Berlin") } else { good(name) }
        };
        assert_eq!(check_pinned(swallowed).expect_err("must be refused").code(), "POOLER");
        assert_eq!(check_pinned(|_| None).expect_err("must be refused").code(), "POOLER");
    }

    #[test]
    fn each_server_version_gets_the_settings_it_knows() {
        assert_eq!(major_version(Some("15.18 (Debian 15.18-0+deb12u1)")), 15);
        assert_eq!(major_version(Some("18beta1")), 18);
        assert_eq!(major_version(Some("x")), 0);
        assert_eq!(major_version(None), 0);
        assert_eq!(late_settings(16), None);
        assert!(late_settings(17).is_some_and(|sql| sql.contains("transaction_timeout")));
    }
}
