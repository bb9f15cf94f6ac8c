//! todo
use anyhow::Result;
use std::path::Path;
pub(super) fn run(_folder: &Path) -> Result<String> {
    Ok(String::new())
}
