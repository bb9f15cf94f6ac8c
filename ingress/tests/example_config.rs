//! The example configuration that ships with the project is accepted.

use std::path::Path;

use admin::run::Config as _;
use ingress::config::Config;

#[test]
fn the_shipped_example_is_in_order() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/ingress.toml");
    let config = Config::load(&file).unwrap();
    assert_eq!(config.service_addresses.len(), 2);
    assert_eq!(config.relay.to_string(), "0x1001/1");
    assert_eq!(config.tunnel.device, "sipcast0");
}
