//! `[authentication]`: the file's shape, its checks, and the users it names.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnetwork::IpNetwork;
use serde::Deserialize;
use sip::digest::Users;
use sip::proxy::authenticate::{self, ForeignCallers, Network, Trunk};

use super::checks::{check_networks, is_host_name};
use super::file::SipFile;
use super::{Problem, problem, read};

/// Nonces that live shorter are over before a slow phone has answered.
const MIN_NONCE_LIFETIME_S: u32 = 10;
/// Nonces that live longer are remembered in vain.
const MAX_NONCE_LIFETIME_S: u32 = 86_400;
/// Longer realms make long challenges.
const MAX_REALM: usize = 128;

/// `[authentication]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuthenticationFile {
    /// The realm; the first domain where absent.
    pub realm: Option<String>,
    /// `user:realm:HA1[:algorithm]`, one a line.
    pub users_file: PathBuf,
    /// How long a nonce may be used.
    #[serde(default = "default_nonce_lifetime_s")]
    pub nonce_lifetime_s: u32,
    /// `refuse` or `allow`.
    #[serde(default = "default_foreign_callers")]
    pub foreign_callers: String,
    /// Who needs no digest.
    #[serde(default)]
    pub trusted: Vec<TrustedFile>,
}

fn default_nonce_lifetime_s() -> u32 {
    300
}

fn default_foreign_callers() -> String {
    "refuse".to_owned()
}

/// `[[authentication.trusted]]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrustedFile {
    /// The name of the trunk.
    pub name: String,
    /// Where it sends from.
    #[serde(default)]
    pub addresses: Vec<IpNetwork>,
    /// Names of which its certificate has one.
    #[serde(default)]
    pub certificates: Vec<String>,
}

/// Who must authenticate, and how.
#[derive(Debug, Clone)]
pub struct Authentication {
    /// The realm.
    pub realm: String,
    /// The users' file.
    pub users_file: PathBuf,
    /// How long a nonce may be used.
    pub nonce_lifetime: Duration,
    /// What may be done by those who claim no domain of ours.
    pub foreign_callers: ForeignCallers,
    /// Who needs no digest.
    pub trunks: Vec<Trunk>,
}

impl Authentication {
    /// Reads the users. The error names the file, and the line if it is one line's fault.
    pub fn load_users(&self) -> Result<Users, String> {
        let key = "authentication.users_file";
        let text = read(key, &self.users_file).map_err(|problem| problem.message)?;
        Users::parse(&text, &self.realm).map_err(|error| {
            let (file, realm) = (self.users_file.display(), &self.realm);
            match error.line {
                0 => format!("{file}: {} (realm {realm:?})", error.fault),
                _ => format!("{file}: {error}"),
            }
        })
    }

    /// What the proxy is given.
    pub fn open(&self) -> Result<authenticate::Authentication, String> {
        Ok(authenticate::Authentication {
            realm: self.realm.clone(),
            users: self.load_users()?,
            nonce_lifetime: self.nonce_lifetime,
            foreign_callers: self.foreign_callers,
            trunks: self.trunks.clone(),
        })
    }
}

pub(super) fn check_authentication(
    file: &AuthenticationFile,
    domains: &[String],
    sip: &SipFile,
    folder: &Path,
) -> Result<Authentication, Problem> {
    let client_ca = sip.tls.as_ref().is_some_and(|tls| tls.client_ca.is_some());
    let realm = file.realm.as_ref().or(domains.first()).cloned();
    let realm = realm.unwrap_or_default();
    let fits = (1..=MAX_REALM).contains(&realm.len());
    if !fits || realm.contains(['"', '\\', ':']) || realm.contains(char::is_control) {
        return problem(
            "authentication.realm",
            format!(
                "{realm:?} cannot be a realm; use 1 to {MAX_REALM} letters without \" \\ and :"
            ),
        );
    }
    let lifetime_s = file.nonce_lifetime_s;
    if !(MIN_NONCE_LIFETIME_S..=MAX_NONCE_LIFETIME_S).contains(&lifetime_s) {
        return problem(
            "authentication.nonce_lifetime_s",
            format!(
                "{lifetime_s} is not between {MIN_NONCE_LIFETIME_S} and {MAX_NONCE_LIFETIME_S}; use 300"
            ),
        );
    }
    let foreign_callers = match file.foreign_callers.as_str() {
        "refuse" => ForeignCallers::Refuse,
        "allow" => ForeignCallers::Allow,
        other => {
            return problem(
                "authentication.foreign_callers",
                format!("{other:?} is not known; use \"refuse\" or \"allow\""),
            );
        }
    };
    Ok(Authentication {
        realm,
        users_file: folder.join(&file.users_file),
        nonce_lifetime: Duration::from_secs(lifetime_s.into()),
        foreign_callers,
        trunks: check_trusted(&file.trusted, client_ca)?,
    })
}

fn check_trusted(trusted: &[TrustedFile], client_ca: bool) -> Result<Vec<Trunk>, Problem> {
    let mut names = HashSet::new();
    let mut trunks = Vec::with_capacity(trusted.len());
    for (index, trunk) in trusted.iter().enumerate() {
        let at = format!("authentication.trusted[{index}]");
        if trunk.name.trim().is_empty() {
            return problem(format!("{at}.name"), "is empty; give the trunk a name");
        }
        if !names.insert(&trunk.name) {
            let name = &trunk.name;
            return problem(
                format!("{at}.name"),
                format!("{name:?} is there twice; change one"),
            );
        }
        let key = format!("{at}.addresses");
        if trunk.addresses.is_empty() && trunk.certificates.is_empty() {
            let way_out = "is empty; name the addresses that the trunk sends from, or the names in \
                           its certificate as certificates";
            return problem(key, way_out);
        }
        check_certificates(trunk, &at, client_ca)?;
        check_networks(&trunk.addresses, &key)?;
        if let Some(position) = trunk.addresses.iter().position(|net| net.prefix() == 0) {
            return problem(
                format!("{key}[{position}]"),
                "is everybody; leave out [authentication] if nobody shall authenticate",
            );
        }
        let networks = trunk.addresses.iter().map(|net| Network {
            address: net.ip(),
            prefix: net.prefix(),
        });
        trunks.push(Trunk {
            name: trunk.name.clone(),
            networks: networks.collect(),
            certificates: trunk.certificates.clone(),
        });
    }
    Ok(trunks)
}

fn check_certificates(trunk: &TrustedFile, at: &str, client_ca: bool) -> Result<(), Problem> {
    if !trunk.certificates.is_empty() && !client_ca {
        return problem(
            format!("{at}.certificates"),
            "nobody checks certificates; name the trunks' authorities as sip.tls.client_ca",
        );
    }
    let names = trunk.certificates.iter().enumerate();
    for (position, name) in names {
        if !is_host_name(name) {
            return problem(
                format!("{at}.certificates[{position}]"),
                format!("{name:?} is not a name as in a certificate (a DNS name)"),
            );
        }
    }
    Ok(())
}
