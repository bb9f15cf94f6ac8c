//! The checks of `[registrar]` and `[location]`.

use std::path::Path;
use std::time::Duration;

use super::file::{LocationFile, RegistrarFile};
use super::{Location, OnCorrupt, Problem, Registrar, problem};

pub(super) fn check_registrar(registrar: &RegistrarFile) -> Result<Registrar, Problem> {
    let (min, default, max) = (
        registrar.min_expires_s,
        registrar.default_expires_s,
        registrar.max_expires_s,
    );
    if min > default || default > max {
        return problem(
            "registrar.default_expires_s",
            format!("{default} is not between min_expires_s {min} and max_expires_s {max}"),
        );
    }
    if default == 0 {
        return problem("registrar.default_expires_s", "is 0; use 3600");
    }
    if registrar.flow_timer_s == 0 {
        return problem("registrar.flow_timer_s", "is 0; use 120");
    }
    for (name, value) in [
        ("max_bindings", registrar.max_bindings),
        ("max_contacts_per_user", registrar.max_contacts_per_user),
    ] {
        if value == 0 {
            return problem(format!("registrar.{name}"), "is 0; use 1 or more");
        }
    }
    Ok(Registrar {
        min_expires: Duration::from_secs(u64::from(min)),
        default_expires: Duration::from_secs(u64::from(default)),
        max_expires: Duration::from_secs(u64::from(max)),
        max_bindings: registrar.max_bindings,
        max_contacts_per_user: registrar.max_contacts_per_user,
        path_without_support: registrar.path_without_support,
        flow_timer: Duration::from_secs(u64::from(registrar.flow_timer_s)),
        ping_interval: Duration::from_secs(u64::from(registrar.ping_interval_s)),
        ping_misses: registrar.ping_misses,
    })
}

pub(super) fn check_location(
    location: Option<&LocationFile>,
    folder: &Path,
) -> Result<Option<Location>, Problem> {
    let Some(location) = location else {
        return Ok(None);
    };
    if location.file.as_os_str().is_empty() {
        return problem(
            "location.file",
            "is empty; name a file, or leave the section out to keep bindings in memory only",
        );
    }
    let on_corrupt = match location.on_corrupt.as_str() {
        "fail" => OnCorrupt::Fail,
        "empty" => OnCorrupt::Empty,
        other => {
            return problem(
                "location.on_corrupt",
                format!("{other:?} is not known; use \"fail\" or \"empty\""),
            );
        }
    };
    Ok(Some(Location {
        file: folder.join(&location.file),
        on_corrupt,
    }))
}
