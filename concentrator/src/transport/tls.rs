//! TLS for SIP (RFC 3261 section 26.3.1): our certificate, whose certificates we believe, and the
//! names in them.
//!
//! An [`Identity`] can be read again while connections are open. Those keep what they were made
//! with; only new ones see the change. A file that cannot be used changes nothing.
//!
//! Phones have no certificate and need none. A client that shows one must pass its check, and
//! then [`verified_names`] says who it is.

use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};

use admin::credentials::{CredentialsError, Pair, authorities};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::CertificateDer;
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, ServerConfig};
use tokio::signal::unix::{SignalKind, signal};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::config::Tls;
use crate::metrics::{Metrics, reason};

/// What phones are shown, and whom we believe.
pub struct Identity {
    files: Tls,
    current: RwLock<Configs>,
}

struct Configs {
    server: Arc<ServerConfig>,
    /// For next hops, where we know whose certificates to believe.
    client: Option<Arc<ClientConfig>>,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Identity").field(&self.files).finish()
    }
}

impl Identity {
    /// Reads and checks the files.
    pub fn load(files: &Tls) -> Result<Self, CredentialsError> {
        Ok(Self {
            files: files.clone(),
            current: RwLock::new(read(files)?),
        })
    }

    /// Reads the files again, for connections from now on.
    pub fn reload(&self) -> Result<(), CredentialsError> {
        let fresh = read(&self.files)?;
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = fresh;
        Ok(())
    }

    /// The file of the certificate, for logs.
    pub fn certificate(&self) -> &PathBuf {
        &self.files.certificate
    }

    pub(super) fn acceptor(&self) -> TlsAcceptor {
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
        TlsAcceptor::from(Arc::clone(&current.server))
    }

    pub(super) fn connector(&self) -> Option<TlsConnector> {
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
        current.client.clone().map(TlsConnector::from)
    }
}

/// Reloads at every SIGHUP. Ends only when signals cannot be had.
pub async fn reload_on_hangup(identity: Arc<Identity>, metrics: Arc<Metrics>) {
    let mut hangups = match signal(SignalKind::hangup()) {
        Ok(hangups) => hangups,
        Err(error) => {
            tracing::error!(%error, "no SIGHUP: certificates are not read again");
            return;
        }
    };
    while hangups.recv().await.is_some() {
        let result = match identity.reload() {
            Ok(()) => {
                let certificate = identity.certificate().display();
                tracing::info!(%certificate, "certificate read again");
                "taken"
            }
            Err(error) => {
                tracing::error!("sip.tls.{}: {error}; the one from before stays", error.key);
                "refused"
            }
        };
        metrics.tls_reloads.get_or_create(&reason(result)).inc();
    }
}

fn read(files: &Tls) -> Result<Configs, CredentialsError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let pair = Pair::load(&files.certificate, &files.private_key, &provider)?;
    Ok(Configs {
        client: client_config(files, &pair, &provider)?,
        server: Arc::new(server_config(files, pair, &provider)?),
    })
}

fn unusable(key: &'static str, error: impl std::fmt::Display) -> CredentialsError {
    CredentialsError {
        key,
        message: format!("cannot be used: {error}"),
    }
}

/// What next hops are shown: the same certificate, should they ask.
fn client_config(
    files: &Tls,
    pair: &Pair,
    provider: &Arc<CryptoProvider>,
) -> Result<Option<Arc<ClientConfig>>, CredentialsError> {
    let Some(file) = &files.server_ca else {
        return Ok(None);
    };
    let config = ClientConfig::builder_with_provider(Arc::clone(provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| unusable("server_ca", error))?
        .with_root_certificates(authorities("server_ca", file)?)
        .with_client_auth_cert(pair.certificates.clone(), pair.private_key.clone_key())
        .map_err(|error| unusable("private_key", error))?;
    Ok(Some(Arc::new(config)))
}

fn server_config(
    files: &Tls,
    pair: Pair,
    provider: &Arc<CryptoProvider>,
) -> Result<ServerConfig, CredentialsError> {
    // TLS 1.2 as well: many a phone has nothing newer.
    let builder = ServerConfig::builder_with_provider(Arc::clone(provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| unusable("certificate", error))?;
    let builder = match &files.client_ca {
        None => builder.with_no_client_auth(),
        Some(file) => {
            let roots = Arc::new(authorities("client_ca", file)?);
            let verifier = WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(provider))
                .allow_unauthenticated()
                .build()
                .map_err(|error| unusable("client_ca", error))?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    builder
        .with_single_cert(pair.certificates, pair.private_key)
        .map_err(|error| unusable("private_key", error))
}

/// The SIP domains that a certificate speaks for (RFC 5922 section 7.1): the hosts of its `sip:`
/// URIs, and only where it has none its DNS names. In lower case.
pub(super) fn verified_names(certificate: &CertificateDer<'_>) -> Vec<String> {
    let Ok(parsed) = webpki::EndEntityCert::try_from(certificate) else {
        return Vec::new();
    };
    let domains: Vec<String> = parsed.valid_uri_names().filter_map(domain_of).collect();
    if !domains.is_empty() {
        return domains;
    }
    let names = parsed.valid_dns_names();
    names.map(str::to_ascii_lowercase).collect()
}

/// The domain of a `sip:` URI that names a whole domain: "Any URI with a user part … MUST NOT be
/// accepted" (RFC 5922 section 7.1).
fn domain_of(uri: &str) -> Option<String> {
    let (scheme, rest) = uri.split_once(':')?;
    let is_domain = scheme.eq_ignore_ascii_case("sip") && !rest.is_empty();
    (is_domain && !rest.contains(['@', ';', '?', ':'])).then(|| rest.to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_are_the_domains_of_sip_uris_or_else_the_dns_names() {
        use rcgen::SanType;
        let dns = SanType::DnsName("Trunk.example.net".try_into().unwrap());
        let uri = |uri: &str| SanType::URI(uri.try_into().unwrap());
        let cases = [
            (vec![dns.clone()], vec!["trunk.example.net"]),
            (
                vec![dns.clone(), uri("sip:Example.org")],
                vec!["example.org"],
            ),
            (
                vec![
                    dns,
                    uri("sip:alice@example.org"),
                    uri("https://example.org"),
                ],
                vec!["trunk.example.net"],
            ),
        ];
        for (names, expected) in cases {
            let mut params = rcgen::CertificateParams::default();
            params.subject_alt_names = names;
            let key = rcgen::KeyPair::generate().unwrap();
            let certificate = params.self_signed(&key).unwrap();
            assert_eq!(verified_names(certificate.der()), expected);
        }
    }
}
