//! The checks of `[cluster]`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::file::ClusterFile;
use super::{Problem, problem};

/// Longer than any phone waits before it repeats a REGISTER (RFC 3261 section 17.1.2.2: 500 ms).
const MAX_ACK_WAIT_MS: u64 = 400;
/// As nats-server has them: an odd number of servers, five at most.
const REPLICAS: [u8; 3] = [1, 3, 5];

/// Several concentrators that are one service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cluster {
    /// The number of this concentrator, which no other has.
    pub id: u16,
    /// Where registrations are shared; `None`: nowhere.
    pub bucket: Option<Bucket>,
}

/// The JetStream key-value bucket that holds registrations.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bucket {
    /// The servers, as `nats://host:port` or `tls://host:port`.
    pub servers: Vec<String>,
    /// Who we are to them.
    pub access: Access,
    /// TLS to them.
    pub tls: Option<BucketTls>,
    /// The name of the bucket.
    pub name: String,
    /// On how many servers it is kept, where we make it.
    pub replicas: u8,
    /// How long the answer to a REGISTER waits for the acknowledgement.
    pub ack_wait: Duration,
    /// In how much of the granted time, in percent, a refresh that moved only the time is written.
    pub coalesce_percent: u8,
    /// How long the start waits for more of a replica that is not complete.
    pub start_wait: Duration,
}

/// Who we are to the NATS servers.
#[derive(Clone, PartialEq, Eq)]
pub enum Access {
    /// They ask nobody.
    Open,
    /// With name and password.
    Password(String, String),
    /// With a token.
    Token(String),
    /// With the file that `nsc` makes: a JWT and its seed.
    Credentials(PathBuf),
}

/// Secrets are not printed.
impl std::fmt::Debug for Access {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Open => "Open",
            Self::Password(..) => "Password",
            Self::Token(_) => "Token",
            Self::Credentials(_) => "Credentials",
        })
    }
}

/// TLS to the NATS servers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BucketTls {
    /// PEM, the authorities whose servers are believed.
    pub ca: PathBuf,
    /// PEM, our certificate and its key, where the servers ask for one.
    pub identity: Option<(PathBuf, PathBuf)>,
}

/// Reads the files of secrets as well, and no other.
pub(super) fn check_cluster(
    cluster: Option<&ClusterFile>,
    folder: &Path,
) -> Result<Option<Cluster>, Problem> {
    let Some(cluster) = cluster else {
        return Ok(None);
    };
    if cluster.id == 0 {
        return problem(
            "cluster.id",
            "is 0; give each concentrator a number of its own from 1 to 65535",
        );
    }
    let bucket = (!cluster.nats.is_empty()).then(|| check_bucket(cluster, folder));
    Ok(Some(Cluster {
        id: cluster.id,
        bucket: bucket.transpose()?,
    }))
}

fn check_bucket(cluster: &ClusterFile, folder: &Path) -> Result<Bucket, Problem> {
    for (index, server) in cluster.nats.iter().enumerate() {
        let rest = ["nats://", "tls://"]
            .iter()
            .find_map(|scheme| server.strip_prefix(scheme));
        if rest.is_none_or(|rest| rest.is_empty() || rest.contains('@')) {
            return problem(
                format!("cluster.nats[{index}]"),
                format!("{server:?} is no server; write nats://host:4222 or tls://host:4222"),
            );
        }
    }
    let name = &cluster.bucket;
    let fits = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if name.is_empty() || name.len() > 64 || !name.chars().all(fits) {
        return problem(
            "cluster.bucket",
            format!("{name:?} cannot name a bucket; use letters, digits, - and _"),
        );
    }
    if !REPLICAS.contains(&cluster.replicas) {
        let replicas = cluster.replicas;
        return problem(
            "cluster.replicas",
            format!("{replicas} is not a number of replicas; use 1, 3 or 5"),
        );
    }
    if cluster.ack_wait_ms > MAX_ACK_WAIT_MS {
        let wait = cluster.ack_wait_ms;
        return problem(
            "cluster.ack_wait_ms",
            format!("{wait} is more than {MAX_ACK_WAIT_MS}: phones would repeat their REGISTER"),
        );
    }
    if cluster.coalesce_percent > 50 {
        let percent = cluster.coalesce_percent;
        return problem(
            "cluster.coalesce_percent",
            format!("{percent} is more than 50: bindings of a dead concentrator would end early"),
        );
    }
    Ok(Bucket {
        servers: cluster.nats.clone(),
        access: check_access(cluster, folder)?,
        tls: check_tls(cluster, folder)?,
        name: name.clone(),
        replicas: cluster.replicas,
        ack_wait: Duration::from_millis(cluster.ack_wait_ms),
        coalesce_percent: cluster.coalesce_percent,
        start_wait: Duration::from_secs(cluster.start_wait_s),
    })
}

fn check_access(cluster: &ClusterFile, folder: &Path) -> Result<Access, Problem> {
    let ways = [
        cluster.user.is_some(),
        cluster.token_file.is_some(),
        cluster.credentials_file.is_some(),
    ];
    if ways.iter().filter(|way| **way).count() > 1 {
        return problem(
            "cluster",
            "has more than one of user, token_file and credentials_file; keep one",
        );
    }
    match (&cluster.user, &cluster.password_file) {
        (Some(user), Some(file)) => {
            let password = secret("cluster.password_file", &folder.join(file))?;
            return Ok(Access::Password(user.clone(), password));
        }
        (Some(_), None) => return problem("cluster.user", "needs cluster.password_file"),
        (None, Some(_)) => return problem("cluster.password_file", "needs cluster.user"),
        (None, None) => {}
    }
    if let Some(file) = &cluster.token_file {
        let token = secret("cluster.token_file", &folder.join(file))?;
        return Ok(Access::Token(token));
    }
    let Some(file) = &cluster.credentials_file else {
        return Ok(Access::Open);
    };
    let file = folder.join(file);
    secret("cluster.credentials_file", &file)?;
    Ok(Access::Credentials(file))
}

fn check_tls(cluster: &ClusterFile, folder: &Path) -> Result<Option<BucketTls>, Problem> {
    let (certificate, key) = (&cluster.nats_certificate, &cluster.nats_private_key);
    let identity = match (certificate, key) {
        (Some(certificate), Some(key)) => Some((folder.join(certificate), folder.join(key))),
        (None, None) => None,
        (Some(_), None) => return problem("cluster.nats_certificate", "needs nats_private_key"),
        (None, Some(_)) => return problem("cluster.nats_private_key", "needs nats_certificate"),
    };
    let Some(ca) = &cluster.nats_ca else {
        if identity.is_some() || cluster.nats.iter().any(|s| s.starts_with("tls://")) {
            return problem(
                "cluster.nats_ca",
                "is missing; name the PEM file of who signed the servers' certificates",
            );
        }
        return Ok(None);
    };
    let ca = folder.join(ca);
    let files = [
        ("nats_ca", Some(&ca)),
        ("nats_certificate", identity.as_ref().map(|pair| &pair.0)),
        ("nats_private_key", identity.as_ref().map(|pair| &pair.1)),
    ];
    for (key, file) in files {
        if let Some(file) = file {
            super::read(&format!("cluster.{key}"), file)?;
        }
    }
    Ok(Some(BucketTls { ca, identity }))
}

fn secret(key: &str, file: &Path) -> Result<String, Problem> {
    let bytes = super::read(key, file)?;
    let text = String::from_utf8(bytes).unwrap_or_default();
    let text = text.trim();
    if text.is_empty() {
        return problem(key, format!("{} holds no text", file.display()));
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str) -> Result<Cluster, String> {
        let file: ClusterFile = toml::from_str(text).map_err(|error| error.to_string())?;
        let folder = std::env::temp_dir();
        match check_cluster(Some(&file), &folder) {
            Ok(cluster) => Ok(cluster.unwrap()),
            Err(problem) => Err(format!("{}: {}", problem.key, problem.message)),
        }
    }

    #[test]
    fn an_id_alone_shares_nothing_and_servers_share_with_the_defaults() {
        assert_eq!(check("id = 2").unwrap().bucket, None);
        let cluster = check("id = 2\nnats = [\"nats://10.0.9.11:4222\"]").unwrap();
        let bucket = cluster.bucket.unwrap();
        assert_eq!((bucket.name.as_str(), bucket.replicas), ("sipcast", 3));
        assert_eq!(bucket.ack_wait, Duration::from_millis(200));
        assert_eq!(bucket.access, Access::Open);
        assert_eq!(bucket.tls, None);
    }

    #[test]
    fn what_cannot_be_is_refused_by_its_key() {
        let nats = "id = 1\nnats = [\"nats://10.0.9.11:4222\"]\n";
        for (text, said) in [
            ("id = 0".to_owned(), "cluster.id: "),
            ("id = 70000".to_owned(), "id"),
            (
                "id = 1\nnats = [\"10.0.9.11\"]".to_owned(),
                "cluster.nats[0]: ",
            ),
            (format!("{nats}bucket = \"a.b\""), "cluster.bucket: "),
            (format!("{nats}replicas = 2"), "cluster.replicas: "),
            (format!("{nats}ack_wait_ms = 900"), "cluster.ack_wait_ms: "),
            (
                format!("{nats}coalesce_percent = 60"),
                "cluster.coalesce_percent: ",
            ),
            (format!("{nats}user = \"a\""), "cluster.user: "),
            (
                format!("{nats}token_file = \"no-such-file\""),
                "cluster.token_file: ",
            ),
            (
                format!("{nats}token_file = \"a\"\ncredentials_file = \"b\""),
                "cluster: ",
            ),
            (
                "id = 1\nnats = [\"tls://10.0.9.11:4222\"]".to_owned(),
                "cluster.nats_ca: ",
            ),
            (
                format!("{nats}nats_certificate = \"a\""),
                "cluster.nats_certificate: ",
            ),
        ] {
            let error = check(&text).unwrap_err();
            assert!(error.contains(said), "{text}: {error}");
        }
    }

    #[test]
    fn secrets_are_not_printed() {
        let access = Access::Password("sipcast".to_owned(), "very secret".to_owned());
        assert!(!format!("{access:?}").contains("secret"));
    }
}
