//! Each of the three files wrong in each way, and the message that an operator gets.

use std::path::PathBuf;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};

use super::*;

#[test]
fn three_good_files_are_read() {
    let folder = Folder::new("good");
    let credentials = folder.load().unwrap();
    assert_eq!(
        (
            credentials.certificates.len(),
            credentials.authorities.len()
        ),
        (1, 1)
    );
}

#[test]
fn the_wrong_file_is_named_with_its_key_and_what_is_wrong() {
    let damaged = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n";
    let key_damaged = "-----BEGIN PRIVATE KEY-----\nMIIB\n-----END PRIVATE KEY-----\n";
    for (file, content, key, expected) in [
        ("c1.pem", "", "certificate", "holds no certificate"),
        ("c1.pem", damaged, "certificate", "is damaged"),
        (
            "c1.pem",
            "-----BEGIN CERTIFICATE-----\nMIIB\n",
            "certificate",
            "is not PEM",
        ),
        ("c1.key", "no key\n", "private_key", "holds no private key"),
        ("c1.key", key_damaged, "private_key", "cannot be used"),
        ("ca.pem", "\n", "ca", "holds no certificate"),
        ("ca.pem", damaged, "ca", "is damaged"),
    ] {
        let folder = Folder::new("wrong");
        std::fs::write(folder.path(file), content).unwrap();
        let error = folder.load().unwrap_err();
        assert_eq!(error.key, key, "{error}");
        assert!(error.message.contains(expected), "{error}");
        assert!(error.message.contains(file), "{error}");
    }
}

#[test]
fn a_missing_file_is_named_and_how_to_get_one() {
    for (file, key) in [
        ("c1.pem", "certificate"),
        ("c1.key", "private_key"),
        ("ca.pem", "ca"),
    ] {
        let folder = Folder::new("missing");
        std::fs::remove_file(folder.path(file)).unwrap();
        let error = folder.load().unwrap_err();
        assert_eq!(error.key, key);
        assert!(error.message.contains("sipcast-lab certs"), "{error}");
    }
}

#[test]
fn the_key_of_another_certificate_is_found_out() {
    let folder = Folder::new("mixed");
    let other = KeyPair::generate().unwrap();
    std::fs::write(folder.path("c1.key"), other.serialize_pem()).unwrap();
    let error = folder.load().unwrap_err();
    assert_eq!(error.key, "private_key");
    assert!(
        error.message.contains("not the key of the certificate"),
        "{error}"
    );
}

/// A folder with good files, removed when dropped.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let name = format!("sipcast-credentials-{name}-{}", std::process::id());
        let folder = Self(std::env::temp_dir().join(name));
        std::fs::create_dir_all(&folder.0).unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let authority = params.self_signed(&key).unwrap();
        std::fs::write(folder.path("ca.pem"), authority.pem()).unwrap();
        let issuer = Issuer::new(params, key);
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec!["c1".to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &issuer).unwrap();
        std::fs::write(folder.path("c1.pem"), certificate.pem()).unwrap();
        std::fs::write(folder.path("c1.key"), key.serialize_pem()).unwrap();
        folder
    }

    fn path(&self, file: &str) -> PathBuf {
        self.0.join(file)
    }

    fn load(&self) -> Result<Credentials, CredentialsError> {
        let files = Files {
            certificate: &self.path("c1.pem"),
            private_key: &self.path("c1.key"),
            ca: &self.path("ca.pem"),
        };
        Credentials::load(&files, &Arc::new(rustls::crypto::ring::default_provider()))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
