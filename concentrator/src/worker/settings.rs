//! The configuration as the core wants it.

use std::time::Duration;

use sha2::Digest as _;
use sip::cookie::{Keys, Owner};
use sip::proxy::{Proxy, TIMER_C};
use sip::timer::Timers;
use tracing::warn;

use super::{MAX_TRANSACTIONS, now, random, unix_time};
use crate::config::{Config, CookieKey};
use crate::reload::log_users;

pub(super) fn authenticate(proxy: &mut Proxy, config: &Config) -> anyhow::Result<()> {
    let Some(authentication) = &config.authentication else {
        warn!(
            "there is no [authentication]: whoever reaches the service address can register and \
             call as anybody"
        );
        return Ok(());
    };
    let authentication = authentication.open().map_err(anyhow::Error::msg)?;
    log_users("users must authenticate", &authentication.users);
    proxy.require_authentication(authentication, now());
    Ok(())
}

pub(super) fn proxy_config(config: &Config, owner: Owner) -> anyhow::Result<sip::proxy::Config> {
    let service = config
        .service_addresses
        .iter()
        .flat_map(|ip| config.sip_ports().map(|port| (*ip, port).into()))
        .collect();
    let seconds = |duration: Duration| u32::try_from(duration.as_secs()).unwrap_or(u32::MAX);
    let limits = &config.registrar;
    Ok(sip::proxy::Config {
        service,
        domains: config.domains.clone(),
        keys: cookie_keys(config)?,
        owner,
        clustered: config.core_link.is_some(),
        timers: Timers::default(),
        timer_c: TIMER_C,
        limits: sip::transaction::Limits {
            max_server: MAX_TRANSACTIONS,
            max_client: MAX_TRANSACTIONS,
            max_of_source: config.sip.max_transactions_per_source,
        },
        registrar: sip::registrar::Limits {
            min_expires_s: seconds(limits.min_expires),
            default_expires_s: seconds(limits.default_expires),
            max_expires_s: seconds(limits.max_expires),
            max_contacts_per_user: limits.max_contacts_per_user,
            max_bindings: limits.max_bindings,
            path_without_support: limits.path_without_support,
            flow_timer_s: seconds(limits.flow_timer),
            ping_interval_s: seconds(limits.ping_interval),
            ping_misses: limits.ping_misses,
        },
        routing: config.routing.clone(),
        epoch: (now(), unix_time().as_secs()),
    })
}

/// The configured keys, whatever their length, as 32 octets each; a random one where there is none.
fn cookie_keys(config: &Config) -> anyhow::Result<Keys> {
    let octets = |key: &CookieKey| sha2::Sha256::digest(&key.0).into();
    let current = config.cookie_key.as_ref().map(octets);
    let previous = config.previous_cookie_key.as_ref().map(octets);
    Ok(Keys::new(current.map_or_else(random, Ok)?, previous))
}
