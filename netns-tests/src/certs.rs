//! A certificate authority and certificates: for the relay-control channel, and what phones see.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};

/// Writes `ca.pem`, `ca.key`, and `NAME.pem`, `NAME.key` for every name (its only DNS name).
pub(crate) fn write(folder: &Path, names: &[String]) -> Result<()> {
    let one_each: Vec<(&str, Vec<String>)> = names
        .iter()
        .map(|name| (name.as_str(), vec![name.clone()]))
        .collect();
    write_all(folder, &one_each)
}

/// The same for certificates with several names each, DNS names and addresses; the first word is
/// the file's.
pub(crate) fn write_all(folder: &Path, certificates: &[(&str, Vec<String>)]) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    let mut params = CertificateParams::new(Vec::new())?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
        .distinguished_name
        .push(DnType::CommonName, "sipcast lab CA");
    let key = KeyPair::generate()?;
    let certificate = params.self_signed(&key)?;
    put(folder, "ca", &certificate.pem(), &key)?;
    let issuer = Issuer::new(params, key);
    for (name, subjects) in certificates {
        let mut params = CertificateParams::new(subjects.clone())?;
        params.distinguished_name.push(DnType::CommonName, *name);
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        // Either end of the channel may be the TLS server.
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &issuer)?;
        put(folder, name, &certificate.pem(), &key)?;
    }
    Ok(())
}

fn put(folder: &Path, name: &str, certificate: &str, key: &KeyPair) -> Result<()> {
    fs::write(folder.join(format!("{name}.pem")), certificate)?;
    let path = folder.join(format!("{name}.key"));
    fs::write(&path, key.serialize_pem())?;
    restrict(&path).with_context(|| path.display().to_string())
}

/// A private key is its owner's to read.
fn restrict(path: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    Ok(fs::set_permissions(
        path,
        fs::Permissions::from_mode(0o600),
    )?)
}
