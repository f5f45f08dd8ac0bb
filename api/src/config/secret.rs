//! References to secrets. Owns where a secret stands; the secret itself is read at use and handed on at once.

use std::fs::File;
use std::io::Read;
use std::path::PathBuf;

use cdc_postgres::connection::Secret;
use lakehouse_core::error::Problem;
use serde::Serialize;

/// The longest secret that is read from a file, in bytes: a guard against a path that points at something else.
const LONGEST: u64 = 64 << 10;

/// Where a secret stands. Holds no secret, so it may be printed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum SecretReference {
    /// An environment variable's name.
    Env(String),
    /// A file; one line break at its end does not count.
    File(PathBuf),
    /// The name or ARN of a secret in AWS Secrets Manager.
    AwsSecret(String),
    /// A token of RDS IAM authentication.
    RdsIam(bool),
}

impl SecretReference {
    /// The secret as it stands now (R4: read anew for every connection attempt).
    ///
    /// # Errors
    /// `SECRET_UNREADABLE`; `SECRET_UNSUPPORTED` for references that this release cannot follow.
    pub(crate) fn read(&self) -> Result<Secret, Problem> {
        match self {
            Self::Env(name) => match std::env::var(name) {
                Ok(text) if !text.is_empty() => Ok(Secret::new(text)),
                Ok(_) => Err(unreadable(format!("environment variable {name}"), "it is empty")),
                Err(std::env::VarError::NotPresent) => {
                    Err(unreadable(format!("environment variable {name}"), "it is not set"))
                }
                // The error's own text would show the value.
                Err(std::env::VarError::NotUnicode(_)) => {
                    Err(unreadable(format!("environment variable {name}"), "it is not UTF-8"))
                }
            },
            Self::File(path) => {
                let subject = || format!("file {}", path.display());
                let mut text = String::new();
                let read = File::open(path).and_then(|file| file.take(LONGEST + 1).read_to_string(&mut text));
                read.map_err(|error| unreadable(subject(), &error.to_string()))?;
                if text.len() as u64 > LONGEST {
                    return Err(unreadable(subject(), "it is longer than a secret can be"));
                }
                let end = text.strip_suffix("\r\n").or(text.strip_suffix('\n')).map_or(text.len(), str::len);
                text.truncate(end);
                match text.is_empty() {
                    true => Err(unreadable(subject(), "it is empty")),
                    false => Ok(Secret::new(text)),
                }
            }
            Self::AwsSecret(name) => Err(unsupported("aws_secret", name)),
            Self::RdsIam(_) => Err(unsupported("rds_iam", "true")),
        }
    }
}

fn unreadable(subject: String, why: &str) -> Problem {
    let remedy = "set it for the user that runs this process, or correct the reference in the configuration";
    Problem::halt("SECRET_UNREADABLE", subject, format!("the secret cannot be read: {why}"), remedy)
}

fn unsupported(kind: &str, name: &str) -> Problem {
    let message = format!("this release does not read {kind} references");
    let remedy = "refer to the secret by { env = \"…\" } or { file = \"…\" }";
    Problem::halt("SECRET_UNSUPPORTED", format!("{kind} = {name}"), message, remedy)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_anew_and_loses_one_line_break() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("password");
        let reference = SecretReference::File(path.clone());
        assert_eq!(reference.read().unwrap_err().code, "SECRET_UNREADABLE");
        for (text, secret) in [("a\n", "a"), ("b\r\n", "b"), ("c\n\n", "c\n"), (" d ", " d ")] {
            std::fs::write(&path, text).unwrap();
            assert_eq!(reference.read().unwrap().expose(), secret);
        }
        std::fs::write(&path, "\n").unwrap();
        assert_eq!(reference.read().unwrap_err().code, "SECRET_UNREADABLE");
        std::fs::write(&path, vec![b'x'; 70_000]).unwrap();
        assert_eq!(reference.read().unwrap_err().code, "SECRET_UNREADABLE");
    }

    #[test]
    fn references_of_later_releases_are_named_and_refused() {
        for reference in [SecretReference::AwsSecret("name".into()), SecretReference::RdsIam(true)] {
            assert_eq!(reference.read().unwrap_err().code, "SECRET_UNSUPPORTED");
        }
    }
}
