//! The checks of `[cdr]`.

use std::path::Path;
use std::time::Duration;

use super::file::CdrFile;
use super::{Cdr, Problem, problem};

pub(super) fn check_cdr(cdr: Option<&CdrFile>, folder: &Path) -> Result<Option<Cdr>, Problem> {
    let Some(cdr) = cdr else {
        return Ok(None);
    };
    if cdr.file.as_os_str().is_empty() {
        return problem(
            "cdr.file",
            "is empty; name a file, or leave the section out to keep no records of calls",
        );
    }
    if cdr.max_calls == 0 {
        return problem("cdr.max_calls", "is 0; use 1 or more");
    }
    if cdr.max_duration_s == 0 {
        return problem("cdr.max_duration_s", "is 0; use 86400");
    }
    Ok(Some(Cdr {
        file: folder.join(&cdr.file),
        max_calls: cdr.max_calls,
        max_duration: Duration::from_secs(cdr.max_duration_s),
    }))
}
