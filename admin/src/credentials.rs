//! A certificate, its private key and the authorities to believe, read from PEM files.
//!
//! [`Credentials::load`] says which of the three files is wrong and what is wrong with it, so that
//! `--check` finds it and not the first connection. It has no clock and does not look at the dates of
//! certificates.

use std::path::Path;
use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::ParsedCertificate;
use rustls::sign::CertifiedKey;
use rustls::{Error, InconsistentKeys, RootCertStore};

use crate::config::ConfigError;

/// Where the PEM files are.
#[derive(Debug, Clone, Copy)]
pub struct Files<'a> {
    /// Our certificate, first, and its chain.
    pub certificate: &'a Path,
    /// Its private key.
    pub private_key: &'a Path,
    /// The authorities whose certificates are believed.
    pub ca: &'a Path,
}

/// What the files hold, each checked and the key fitting the certificate.
#[derive(Debug)]
pub struct Credentials {
    /// Our certificate and its chain.
    pub certificates: Vec<CertificateDer<'static>>,
    /// Its private key.
    pub private_key: PrivateKeyDer<'static>,
    /// The authorities.
    pub authorities: RootCertStore,
}

/// Which file cannot be used, and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct CredentialsError {
    /// The key of the file in its section, for example `certificate`.
    pub key: &'static str,
    /// With the file's name and what to change.
    pub message: String,
}

impl CredentialsError {
    /// As an error of this section of the configuration file.
    pub fn in_section(self, config: &Path, section: &str) -> ConfigError {
        ConfigError::invalid(config, &format!("{section}.{}", self.key), self.message)
    }
}

impl Credentials {
    /// Reads and checks the three files.
    pub fn load(
        files: &Files<'_>,
        provider: &Arc<CryptoProvider>,
    ) -> Result<Self, CredentialsError> {
        let pair = Pair::load(files.certificate, files.private_key, provider)?;
        Ok(Self {
            certificates: pair.certificates,
            private_key: pair.private_key,
            authorities: authorities("ca", files.ca)?,
        })
    }
}

/// A certificate with its chain and the key that fits it.
#[derive(Debug)]
pub struct Pair {
    /// The certificate and its chain.
    pub certificates: Vec<CertificateDer<'static>>,
    /// Its private key.
    pub private_key: PrivateKeyDer<'static>,
}

impl Pair {
    /// Reads and checks the two files.
    pub fn load(
        certificate: &Path,
        private_key: &Path,
        provider: &Arc<CryptoProvider>,
    ) -> Result<Self, CredentialsError> {
        let pair = Self {
            certificates: certificates("certificate", certificate)?,
            private_key: read_private_key(private_key)?,
        };
        pair.check(certificate, private_key, provider)?;
        Ok(pair)
    }

    fn check(
        &self,
        certificate: &Path,
        private_key: &Path,
        provider: &Arc<CryptoProvider>,
    ) -> Result<(), CredentialsError> {
        let key = provider
            .key_provider
            .load_private_key(self.private_key.clone_key())
            .map_err(|error| {
                let what = format!("holds a private key that cannot be used: {error}");
                wrong("private_key", private_key, &what)
            })?;
        let pair = CertifiedKey::new(self.certificates.clone(), key);
        match pair.keys_match() {
            Err(Error::InconsistentKeys(InconsistentKeys::KeyMismatch)) => {
                let what = format!(
                    "is not the key of the certificate in {}; take the one that was made with it",
                    certificate.display()
                );
                Err(wrong("private_key", private_key, &what))
            }
            // Anything else means that this kind of key cannot tell.
            Ok(()) | Err(_) => Ok(()),
        }
    }
}

/// The authorities in a file; `key` is what its section calls it.
pub fn authorities(key: &'static str, file: &Path) -> Result<RootCertStore, CredentialsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(key, file)? {
        roots
            .add(certificate)
            .map_err(|error| wrong(key, file, &format!("holds no CA certificate: {error}")))?;
    }
    Ok(roots)
}

fn certificates(
    key: &'static str,
    file: &Path,
) -> Result<Vec<CertificateDer<'static>>, CredentialsError> {
    let wrong = |what: &str| Err(wrong(key, file, what));
    let read = CertificateDer::pem_file_iter(file)
        .and_then(Iterator::collect::<Result<Vec<_>, pem::Error>>);
    let certificates = match read {
        Ok(certificates) => certificates,
        Err(error) => return Err(unreadable(key, file, &error)),
    };
    if certificates.is_empty() {
        return wrong("holds no certificate; it must have a \"BEGIN CERTIFICATE\" block (PEM)");
    }
    if certificates
        .iter()
        .any(|der| ParsedCertificate::try_from(der).is_err())
    {
        return wrong("holds a certificate that is damaged; copy or make it again");
    }
    Ok(certificates)
}

fn read_private_key(file: &Path) -> Result<PrivateKeyDer<'static>, CredentialsError> {
    PrivateKeyDer::from_pem_file(file).map_err(|error| {
        if !matches!(error, pem::Error::NoItemsFound) {
            return unreadable("private_key", file, &error);
        }
        let what =
            "holds no private key; it must have a \"BEGIN PRIVATE KEY\" block (PEM, no password)";
        wrong("private_key", file, what)
    })
}

fn wrong(key: &'static str, file: &Path, what: &str) -> CredentialsError {
    let message = format!("{} {what}", file.display());
    CredentialsError { key, message }
}

fn unreadable(key: &'static str, file: &Path, error: &pem::Error) -> CredentialsError {
    let message = if let pem::Error::Io(error) = error {
        format!(
            "cannot read {}: {error}; make certificates with `sipcast-lab certs` or your own \
             authority, and give the path of the PEM file",
            file.display()
        )
    } else {
        format!("{} is not PEM: {error}", file.display())
    };
    CredentialsError { key, message }
}

#[cfg(test)]
mod tests;
