//! The torture messages of RFC 4475 and RFC 5118. They lie beside the project and not in it:
//! `SIPCAST_TORTURE` names their folder, by default `../shared/torture` seen from the workspace.
//!
//! Where they are missing a test says so and is passed over; the rules that they stand for have
//! messages of our own in `bad_input/rules.rs`.

#![allow(
    dead_code,
    clippy::print_stderr,
    reason = "each test crate uses a part of it; what is skipped must be seen"
)]

use std::path::{Path, PathBuf};

use bytes::Bytes;

/// The folder, or `None` after saying why not.
pub(crate) fn folder() -> Option<PathBuf> {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let named = std::env::var_os("SIPCAST_TORTURE");
    let folder = workspace.join(named.map_or_else(|| "../shared/torture".into(), PathBuf::from));
    if folder.join("index.tsv").is_file() {
        return Some(folder);
    }
    eprintln!(
        "SKIPPED: no torture messages in {}; set SIPCAST_TORTURE",
        folder.display()
    );
    None
}

/// One message by its name, such as `rfc4475/wsinv`; `None` where the corpus is missing.
pub(crate) fn read(name: &str) -> Option<Bytes> {
    let path = folder()?.join(format!("{name}.dat"));
    let bytes = std::fs::read(&path);
    Some(
        bytes
            .unwrap_or_else(|error| panic!("{}: {error}", path.display()))
            .into(),
    )
}

/// The names in the index, such as `rfc4475/wsinv`; `None` where the corpus is missing.
pub(crate) fn indexed() -> Option<Vec<String>> {
    let index = std::fs::read_to_string(folder()?.join("index.tsv"));
    let index = index.unwrap_or_else(|error| panic!("index.tsv: {error}"));
    let name = |row: &str| Some(row.split('\t').nth(3)?.strip_suffix(".dat")?.to_owned());
    Some(index.lines().skip(1).filter_map(name).collect())
}
