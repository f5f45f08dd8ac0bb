//! Why a connection could not be made. Owns the stable codes, the remedies and the split into transient and permanent.

use std::io;

/// An error the server reported: its message and hint pass (R5), its DETAIL, which may hold row values, does not.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message} (SQLSTATE {sqlstate})")]
pub struct ServerError {
    /// Five characters, empty if the server sent none.
    pub sqlstate: String,
    /// The primary message, in the server's language.
    pub message: String,
    /// The server's advice.
    pub hint: Option<String>,
    /// The server function that raised it; the same in every language.
    pub routine: Option<String>,
}

impl ServerError {
    /// Whether trying again later can help (R25): connection exceptions, shutdown and start-up, a busy slot, used-up
    /// connections, and a lock timeout, because this crate bounds lock waits itself (R8).
    #[must_use]
    pub fn is_transient(&self) -> bool {
        let state = self.sqlstate.as_str();
        state.starts_with("08") || matches!(state, "57P01" | "57P02" | "57P03" | "55006" | "53300" | "55P03")
    }
}

/// Why a connection could not be made. Each variant has a stable [`code`](Self::code).
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// A setting that the protocol cannot carry.
    #[error("a connection setting cannot be sent: {0}")]
    Settings(String),
    /// TLS disabled for a host that is neither loopback nor a Unix socket (R2).
    #[error("tls is disabled for host {host}, which is not on this machine")]
    TlsRequired {
        /// The host as configured.
        host: String,
    },
    /// The root certificates could not be read.
    #[error("no usable root certificate: {0}")]
    TlsRoots(String),
    /// The host name has no address.
    #[error("host name {host} could not be resolved: {detail}")]
    Dns {
        /// The host as configured.
        host: String,
        /// The resolver's words.
        detail: String,
    },
    /// Nobody listens there.
    #[error("{address} refused the connection")]
    Refused {
        /// Address and port, or socket path.
        address: String,
    },
    /// A step took longer than `connect_timeout`.
    #[error("the connection timed out while {step}")]
    Timeout {
        /// What was being done.
        step: &'static str,
    },
    /// The server does not speak TLS.
    #[error("the server does not offer tls")]
    TlsRefused,
    /// The certificate does not lead to a trusted root.
    #[error("the server's certificate is not trusted: {0}")]
    TlsUntrusted(String),
    /// The server signed its certificate itself.
    #[error("the server's certificate is signed by itself")]
    TlsSelfSigned,
    /// The certificate is for other names.
    #[error("the server's certificate is not valid for host {host}")]
    TlsHostName {
        /// The host as configured.
        host: String,
    },
    /// The certificate is outside its validity period.
    #[error("the server's certificate has expired or is not valid yet")]
    TlsExpired,
    /// The handshake failed for another reason.
    #[error("the tls handshake failed: {0}")]
    Tls(String),
    /// User or password not accepted (28P01, 28000).
    #[error("the server rejected the login: {0}")]
    Auth(ServerError),
    /// The server asks for a kind of login that would expose the password, or that is not supported (R3).
    #[error("the server asks for {0} authentication, which is not allowed on this connection")]
    AuthMethod(&'static str),
    /// Channel binding was required and the server cannot do it.
    #[error("the server did not use channel binding")]
    ChannelBinding,
    /// The database does not exist (3D000).
    #[error("the database cannot be opened: {0}")]
    Database(ServerError),
    /// The role may not replicate (42501 at connect).
    #[error("the role lacks the REPLICATION attribute: {0}")]
    RoleReplication(ServerError),
    /// The server is older than 14 (R12): it does not know a setting that 14 introduced.
    #[error("the server is older than PostgreSQL 14: {0}")]
    Version(ServerError),
    /// A connection pooler answered in place of the server (R10).
    #[error("a connection pooler stands in front of the server: {0}")]
    Pooler(String),
    /// Any other error of the server.
    #[error("the server refused the connection: {0}")]
    Server(ServerError),
    /// The peer broke the protocol.
    #[error("the server broke the protocol: {0}")]
    Protocol(String),
    /// The connection broke.
    #[error("the connection broke: {0}")]
    Io(#[from] io::Error),
}

impl ConnectError {
    /// The stable code of the finding (R24).
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Settings(_) => "SETTINGS",
            Self::TlsRequired { .. } => "TLS_REQUIRED",
            Self::TlsRoots(_) => "TLS_ROOTS",
            Self::Dns { .. } => "DNS",
            Self::Refused { .. } => "REFUSED",
            Self::Timeout { .. } => "TIMEOUT",
            Self::TlsRefused => "TLS_REFUSED",
            Self::TlsUntrusted(_) => "TLS_UNTRUSTED",
            Self::TlsSelfSigned => "TLS_SELF_SIGNED",
            Self::TlsHostName { .. } => "TLS_HOST_NAME",
            Self::TlsExpired => "TLS_EXPIRED",
            Self::Tls(_) => "TLS_HANDSHAKE",
            Self::Auth(_) => "AUTH",
            Self::AuthMethod(_) => "AUTH_METHOD",
            Self::ChannelBinding => "CHANNEL_BINDING",
            Self::Database(_) => "DB",
            Self::RoleReplication(_) => "ROLE_REPLICATION",
            Self::Version(_) => "VERSION",
            Self::Pooler(_) => "POOLER",
            Self::Server(_) => "SERVER",
            Self::Protocol(_) => "PROTOCOL",
            Self::Io(_) => "IO",
        }
    }

    /// One sentence on what to do.
    #[must_use]
    pub fn remedy(&self) -> &'static str {
        match self {
            Self::Settings(_) => "Correct the setting that is named.",
            Self::TlsRequired { .. } => "Set tls to verify-full, or connect through loopback or a Unix socket.",
            Self::TlsRoots(_) => "Name a readable PEM file that holds the certificate of the server's authority.",
            Self::Dns { .. } => "Check the host name and this machine's resolver.",
            Self::Refused { .. } => {
                "Check that the server runs, listens on this address (listen_addresses, port) and no firewall rejects it."
            }
            Self::Timeout { .. } => "Check network routes, security groups and firewalls between here and the server.",
            Self::TlsRefused => "Switch ssl on in the server, or connect through loopback or a Unix socket.",
            Self::TlsUntrusted(_) => "Name the root certificate of the authority that issued the server's certificate.",
            Self::TlsSelfSigned => {
                "Have an authority issue the server's certificate, and name that authority's root certificate."
            }
            Self::TlsHostName { .. } => {
                "Connect by a name that the certificate lists under subjectAltName, or use verify-ca."
            }
            Self::TlsExpired => "Renew the server's certificate, and check the clock of this machine.",
            Self::Tls(_) => "Check that the server accepts TLS 1.2 or 1.3 and that no proxy alters the connection.",
            Self::Auth(_) => "Check user, password and the server's pg_hba.conf.",
            Self::AuthMethod(_) => {
                "Store the password with password_encryption = scram-sha-256 and use that method in pg_hba.conf."
            }
            Self::ChannelBinding => {
                "Use TLS and a scram-sha-256 password, with an RSA or ECDSA server certificate, or prefer binding only."
            }
            Self::Database(_) => "Check the name of the database.",
            Self::RoleReplication(_) => {
                "Run ALTER ROLE <user> REPLICATION (on Amazon RDS: GRANT rds_replication TO <user>)."
            }
            Self::Version(_) => "Upgrade the server to PostgreSQL 14 or newer.",
            Self::Pooler(_) => "Connect to the server itself: replication and session settings do not pass a pooler.",
            Self::Server(_) => "See the server's message.",
            Self::Protocol(_) => "Check that host and port belong to a PostgreSQL server.",
            Self::Io(_) => "Check the network between here and the server; the connection is tried again.",
        }
    }

    /// Whether trying again later can help (R25, last line).
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Dns { .. } | Self::Refused { .. } | Self::Timeout { .. } | Self::Io(_) => true,
            Self::Server(error) => error.is_transient(),
            _ => false,
        }
    }

    /// Sorts an error that the server sent before the session was ready.
    pub(crate) fn from_server(error: ServerError, replication: bool) -> Self {
        if names_a_pooler(&error.message) {
            return Self::Pooler(error.to_string());
        }
        match error.sqlstate.as_str() {
            "28P01" | "28000" => Self::Auth(error),
            "3D000" => Self::Database(error),
            "42704" if error.message.contains("idle_session_timeout") => Self::Version(error),
            // The same state from `CheckMyDatabase` means that CONNECT on the database is missing.
            "42501" if replication && error.routine.as_deref() != Some("CheckMyDatabase") => {
                Self::RoleReplication(error)
            }
            _ => Self::Server(error),
        }
    }
}

/// The words with which poolers refuse what only a server can do.
fn names_a_pooler(message: &str) -> bool {
    const WORDS: [&str; 8] = [
        "unsupported startup parameter",
        "pgbouncer",
        "rds proxy",
        "supavisor",
        "odyssey",
        "pgcat",
        "pooler",
        "connection pool",
    ];
    // Quoted parts are names of users and databases, which may contain any of the words.
    let message = message.split('"').step_by(2).collect::<String>().to_lowercase();
    WORDS.iter().any(|words| message.contains(words))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(sqlstate: &str, message: &str) -> ServerError {
        ServerError { sqlstate: sqlstate.to_owned(), message: message.to_owned(), hint: None, routine: None }
    }

    fn code(sqlstate: &str, message: &str) -> &'static str {
        ConnectError::from_server(server(sqlstate, message), true).code()
    }

    #[test]
    fn server_errors_get_their_own_codes() {
        assert_eq!(code("28P01", "password authentication failed for user \"u\""), "AUTH");
        assert_eq!(code("28000", "no pg_hba.conf entry"), "AUTH");
        assert_eq!(code("3D000", "database \"x\" does not exist"), "DB");
        assert_eq!(code("42501", "permission denied to start WAL sender"), "ROLE_REPLICATION");
        assert_eq!(code("42704", "unrecognized configuration parameter \"idle_session_timeout\""), "VERSION");
        assert_eq!(code("53300", "sorry, too many clients already"), "SERVER");
        let sql = ConnectError::from_server(server("42501", "permission denied for database"), false);
        assert_eq!(sql.code(), "SERVER");
        let mut no_connect = server("42501", "permission denied for database");
        no_connect.routine = Some("CheckMyDatabase".to_owned());
        assert_eq!(ConnectError::from_server(no_connect, true).code(), "SERVER");
    }

    #[test]
    fn a_pooler_is_recognised_by_its_refusal() {
        for message in [
            "unsupported startup parameter: replication",
            "unsupported startup parameter in options: extra_float_digits",
            "Feature not supported: RDS Proxy currently doesn't support command-line options.",
        ] {
            assert_eq!(code("08P01", message), "POOLER", "{message}");
        }
        assert_eq!(code("08P01", "invalid startup packet layout"), "SERVER");
        assert_eq!(code("3D000", "database \"pgbouncer\" does not exist"), "DB");
    }

    #[test]
    fn only_passing_troubles_are_transient() {
        for state in ["08006", "08P01", "57P01", "57P02", "57P03", "55006", "53300", "55P03"] {
            assert!(ConnectError::Server(server(state, "m")).is_transient(), "{state}");
        }
        for state in ["42704", "55000", "42501", "XX000", "22023", ""] {
            assert!(!ConnectError::Server(server(state, "m")).is_transient(), "{state}");
        }
        assert!(ConnectError::Io(io::ErrorKind::ConnectionReset.into()).is_transient());
        assert!(ConnectError::Timeout { step: "connecting" }.is_transient());
        assert!(!ConnectError::Auth(server("28P01", "m")).is_transient());
        assert!(!ConnectError::TlsExpired.is_transient());
    }
}
