//! Reading a TOML config file, and saying exactly what is wrong with it.
//!
//! Two kinds of mistake are found. What the file's shape forbids (a misspelt key, text where a
//! number belongs) is reported by the TOML reader with line, column and the expected keys. What
//! only the program can judge (two edges with one key) is reported by [`ConfigError::invalid`],
//! which finds the line of the key by itself.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::DeserializeOwned;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::logging::Filter;

/// Reads and parses the file. Give `T` the attribute `#[serde(deny_unknown_fields)]`.
pub fn load<T: DeserializeOwned>(path: &Path) -> Result<T, ConfigError> {
    let text = std::fs::read_to_string(path).map_err(|error| ConfigError::Read {
        file: path.to_owned(),
        error,
    })?;
    parse(path, &text)
}

/// Parses the text of the file; `path` is only named in errors.
pub fn parse<T: DeserializeOwned>(path: &Path, text: &str) -> Result<T, ConfigError> {
    toml::from_str(text).map_err(|error| ConfigError::Shape {
        file: path.to_owned(),
        error: Box::new(error),
    })
}

/// Why a config file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{}: cannot read the configuration file: {error}", file.display())]
    Read {
        /// The file as the operator named it.
        file: PathBuf,
        /// What the system said.
        error: std::io::Error,
    },
    /// Not TOML, an unknown key, a missing key or a value of the wrong type.
    #[error("{}: {error}", file.display())]
    Shape {
        /// The file as the operator named it.
        file: PathBuf,
        /// With line, column, the line itself and what was expected.
        error: Box<toml::de::Error>,
    },
    /// Well-formed, but the program cannot work with this value.
    #[error("{}{place}: {key}: {message}", file.display())]
    Invalid {
        /// The file as the operator named it.
        file: PathBuf,
        /// Where the key is, if it is there at all.
        place: Place,
        /// The key's path, for example `edges[1].key`.
        key: String,
        /// What to change.
        message: String,
    },
}

impl ConfigError {
    /// A value that the program cannot work with. `key` is a path such as `tunnel.mtu` or
    /// `edges[1].relays[0].mark`; the line is found in the file. `message` says what to change.
    pub fn invalid(file: &Path, key: &str, message: impl Into<String>) -> Self {
        let text = std::fs::read_to_string(file).unwrap_or_default();
        Self::Invalid {
            file: file.to_owned(),
            place: Place::of(&text, key),
            key: key.to_owned(),
            message: message.into(),
        }
    }
}

/// The place of a key in the file, printed as `:line:column`, or as nothing when unknown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place(Option<(usize, usize)>);

impl Place {
    /// Where the value of this key path stands; of the nearest parent if the key is left out.
    fn of(text: &str, key: &str) -> Self {
        let Some(offset) = offset_of(text, key) else {
            return Self(None);
        };
        let before = text.get(..offset).unwrap_or_default();
        let line = before.matches('\n').count() + 1;
        let column = before
            .rsplit('\n')
            .next()
            .unwrap_or_default()
            .chars()
            .count()
            + 1;
        Self(Some((line, column)))
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some((line, column)) => write!(f, ":{line}:{column}"),
            None => Ok(()),
        }
    }
}

fn offset_of(text: &str, key: &str) -> Option<usize> {
    let root = DeTable::parse(text).ok()?;
    let mut steps = key.split(['.', '[']).map(|step| step.trim_end_matches(']'));
    let mut found: &Spanned<DeValue<'_>> = root.get_ref().get(steps.next()?)?;
    for step in steps {
        let child = match found.get_ref() {
            DeValue::Table(table) => table.get(step),
            DeValue::Array(array) => step.parse().ok().and_then(|index: usize| array.get(index)),
            DeValue::String(_)
            | DeValue::Integer(_)
            | DeValue::Float(_)
            | DeValue::Boolean(_)
            | DeValue::Datetime(_) => None,
        };
        match child {
            Some(child) => found = child,
            None => break,
        }
    }
    Some(found.span().start)
}

/// The `[admin]` section.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AdminSection {
    /// Where `/metrics`, `/healthz` and `/status` are served; see [`AdminSection::listen`].
    pub listen: Option<SocketAddr>,
    /// Without this only loopback addresses are accepted: the pages need no password.
    pub allow_remote: bool,
}

impl AdminSection {
    /// The checked address: the configured one, or `default_port` on 127.0.0.1.
    pub fn listen(&self, file: &Path, default_port: u16) -> Result<SocketAddr, ConfigError> {
        let listen = self
            .listen
            .unwrap_or_else(|| SocketAddr::from((Ipv4Addr::LOCALHOST, default_port)));
        if listen.ip().is_loopback() || self.allow_remote {
            return Ok(listen);
        }
        Err(ConfigError::invalid(
            file,
            "admin.listen",
            format!(
                "{listen} is not a loopback address and these pages need no password; \
                 use 127.0.0.1 or [::1], or set allow_remote = true in [admin]"
            ),
        ))
    }
}

/// The `[log]` section.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogSection {
    /// Text for people or JSON for machines.
    pub format: LogFormat,
    /// How much, for example `info` or `info,sip=debug`; the variable `RUST_LOG` overrides it.
    pub level: Filter,
}

/// The form of a log line.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// One readable line.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Example {
        #[serde(rename = "mark")]
        _mark: u8,
        #[serde(default)]
        log: LogSection,
        #[serde(default)]
        admin: AdminSection,
    }

    fn example(text: &str) -> Result<Example, String> {
        parse(Path::new("ingress.toml"), text).map_err(|error| error.to_string())
    }

    #[test]
    fn an_unknown_key_is_named_with_file_line_and_the_known_keys() {
        let error = example("mark = 1\nmrak = 2\n").unwrap_err();
        for part in ["ingress.toml: ", "line 2", "mrak", "expected one of `mark`"] {
            assert!(error.contains(part), "{part:?} is not in {error}");
        }
    }

    #[test]
    fn a_value_of_the_wrong_type_is_named_with_line_and_expectation() {
        let error = example("\nmark = \"one\"\n").unwrap_err();
        for part in ["ingress.toml: ", "line 2, column 8", "mark = \"one\"", "u8"] {
            assert!(error.contains(part), "{part:?} is not in {error}");
        }
    }

    #[test]
    fn a_bad_log_filter_is_refused_at_its_line() {
        let error = example("mark = 1\n[log]\nlevel = \"sip=loud\"\n").unwrap_err();
        assert!(error.contains("line 3"), "{error}");
        assert!(error.contains("RUST_LOG"), "{error}");
    }

    #[test]
    fn a_place_is_found_in_tables_and_arrays() {
        let text = "a = 1\n[[edges]]\nkey = 1\n[[edges]]\nname = \"x\"\nkey = 2\n";
        assert_eq!(Place::of(text, "edges[1].key").to_string(), ":6:7");
        assert_eq!(Place::of(text, "a").to_string(), ":1:5");
        assert_eq!(Place::of(text, "nowhere").to_string(), "");
    }

    #[test]
    fn a_missing_key_is_placed_at_its_table() {
        let text = "a = 1\n[tunnel]\nkey = 1\n";
        assert!(Place::of(text, "tunnel.mtu").to_string().starts_with(":2:"));
    }

    #[test]
    fn the_admin_pages_stay_on_loopback_unless_told_otherwise() {
        let file = Path::new("ingress.toml");
        let parsed = example("mark = 1\n[admin]\nlisten = \"0.0.0.0:9101\"\n").unwrap();
        let error = parsed.admin.listen(file, 9101).unwrap_err().to_string();
        assert!(error.contains("admin.listen"), "{error}");
        assert!(error.contains("allow_remote = true"), "{error}");

        let parsed =
            example("mark = 1\n[admin]\nlisten = \"0.0.0.0:9101\"\nallow_remote = true\n").unwrap();
        assert_eq!(parsed.admin.listen(file, 1).unwrap().port(), 9101);

        let parsed = example("mark = 1\n").unwrap();
        assert_eq!(
            parsed.admin.listen(file, 9101).unwrap().to_string(),
            "127.0.0.1:9101"
        );
        assert_eq!(parsed.log.format, LogFormat::Text);
    }
}
