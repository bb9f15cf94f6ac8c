//! The limit of open files, raised for tens of thousands of sockets.

use anyhow::{Context as _, bail};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tracing::info;

/// Raises the limit to at least `needed`: the soft one as far as the hard one allows, the hard one
/// where the program may.
pub(crate) fn raise(needed: u64) -> anyhow::Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).context("cannot read RLIMIT_NOFILE")?;
    let limit = hard.max(needed);
    if setrlimit(Resource::RLIMIT_NOFILE, limit, limit).is_err() {
        bail!(
            "{needed} open files are needed and the hard limit is {hard}: raise it (LimitNOFILE of \
             the unit, and fs.nr_open), or make media.ports smaller"
        );
    }
    info!(limit, needed, "open files");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_within_the_hard_limit_is_granted_and_what_no_system_allows_is_refused() {
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        raise(16).unwrap();
        assert_eq!(getrlimit(Resource::RLIMIT_NOFILE).unwrap(), (hard, hard));
        let refused = raise(u64::MAX / 2).unwrap_err().to_string();
        assert!(refused.contains("LimitNOFILE"), "{refused}");
    }
}
