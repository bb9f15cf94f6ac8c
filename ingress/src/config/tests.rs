use super::*;

const GOOD: &str = r#"
    service_addresses = ["198.51.100.1"]
    mark = 1
    [tunnel]
    key = 0x1001
    source = "10.0.1.2"
    concentrators = ["10.0.9.2"]
"#;

fn check(text: &str) -> Result<Config, String> {
    let path = Path::new("ingress.toml");
    admin::config::parse(path, text)
        .and_then(|file| Config::check(path, file))
        .map_err(|error| error.to_string())
}

#[test]
fn what_is_left_out_has_its_documented_default() {
    let config = check(GOOD).unwrap();
    assert_eq!(config.relay.to_string(), "0x1001/1");
    assert_eq!(config.tunnel.mtu, 1_472);
    assert_eq!(config.tunnel.outer_dscp, 0);
    assert_eq!(config.tunnel.device, "sipcast0");
    assert_eq!(config.admin_listen.to_string(), "127.0.0.1:9101");
}

#[test]
fn a_tunnel_over_ipv6_has_a_smaller_default_mtu() {
    let text = GOOD
        .replace("10.0.1.2", "2001:db8::1")
        .replace("10.0.9.2", "2001:db8::2");
    assert_eq!(check(&text).unwrap().tunnel.mtu, 1_452);
}

#[test]
fn gre_in_udp_has_a_smaller_default_mtu_by_its_header() {
    let in_udp = "key = 0x1001\n    encapsulation = \"gre-udp\"";
    let text = GOOD.replace("key = 0x1001", in_udp);
    assert_eq!(check(&text).unwrap().tunnel.mtu, 1_464);
    let text = text
        .replace("10.0.1.2", "2001:db8::1")
        .replace("10.0.9.2", "2001:db8::2");
    assert_eq!(check(&text).unwrap().tunnel.mtu, 1_444);
}

#[test]
fn each_mistake_is_reported_under_its_key() {
    let cases = [
        (
            "[\"198.51.100.1\"]",
            "[]",
            "service_addresses: name at least one",
        ),
        (
            "[\"198.51.100.1\"]",
            "[\"224.0.0.1\"]",
            "service_addresses[0]: 224.0.0.1",
        ),
        (
            "[\"198.51.100.1\"]",
            "[\"198.51.100.1\", \"198.51.100.1\"]",
            "named twice",
        ),
        ("mark = 1", "mark = 0", "mark: 0 is not a mark; use 1 to 63"),
        ("mark = 1", "mark = 64", "mark: 64 is not a mark"),
        ("mark = 1", "marks = 1", "unknown field `marks`"),
        ("mark = 1", "mark = -1", "line 3"),
        (
            "[\"10.0.9.2\"]",
            "[\"10.0.9.2\", \"10.0.9.3\"]",
            "tunnel.hash_key: name 32 hexadecimal digits",
        ),
        (
            "[\"10.0.9.2\"]",
            "[\"10.0.9.2\", \"10.0.9.3\"]\nhash_key = \"0011\"",
            "tunnel.hash_key: not 32 hexadecimal digits",
        ),
        (
            "[\"10.0.9.2\"]",
            "[\"10.0.9.2\", \"10.0.9.2\"]",
            "10.0.9.2 is named twice",
        ),
        (
            "[\"10.0.9.2\"]",
            "[{ address = \"10.0.9.2\", weight = 0 }]",
            "all are standbys",
        ),
        (
            "[\"10.0.9.2\"]",
            "[{ addres = \"10.0.9.2\" }]",
            "or { address = ",
        ),
        (
            "[\"10.0.9.2\"]",
            "[]",
            "name 1 to 16 concentrators, there are 0",
        ),
        ("[\"10.0.9.2\"]", "[\"2001:db8::2\"]", "same IP version"),
        (
            "[\"10.0.9.2\"]",
            "[\"198.51.100.1\"]",
            "is a service address",
        ),
        ("\"10.0.1.2\"", "\"0.0.0.0\"", "tunnel.source: 0.0.0.0"),
        (
            "key = 0x1001",
            "key = 0x1001\nmtu = 500",
            "tunnel.mtu: 500 is too small",
        ),
        (
            "key = 0x1001",
            "key = 0x1001\nouter_dscp = 64",
            "tunnel.outer_dscp: 64",
        ),
        (
            "key = 0x1001",
            "key = 0x1001\ndevice = \"0123456789012345\"",
            "tunnel.device",
        ),
        ("key = 0x1001", "key = 0x1_0000_0000", "line 5"),
    ];
    each_is_reported(&cases);
}

fn each_is_reported(cases: &[(&str, &str, &str)]) {
    for (good, bad, expected) in cases {
        let error = check(&GOOD.replace(good, bad)).unwrap_err();
        assert!(error.starts_with("ingress.toml: "), "{error}");
        assert!(error.contains(expected), "{expected:?} is not in {error}");
    }
}

#[test]
fn mistakes_about_keys_and_how_packets_are_wrapped_are_reported_too() {
    each_is_reported(&[
        (
            "key = 0x1001",
            "key = 0x1001\nold_key = 0x1001",
            "tunnel.old_key: is tunnel.key",
        ),
        (
            "key = 0x1001",
            "key = 0x1001\nencapsulation = \"vxlan\"",
            "unknown variant `vxlan`, expected `gre` or `gre-udp`",
        ),
        (
            "key = 0x1001",
            "key = 0x1001\nextra_sources = [\"10.0.1.2\"]",
            "tunnel.extra_sources: 10.0.1.2 is named twice",
        ),
        (
            "key = 0x1001",
            "key = 0x1001\nextra_sources = [\"2001:db8::2\"]",
            "differ in IP version",
        ),
        (
            "key = 0x1001",
            "key = 0x1001\nextra_sources = [\"10.0.1.3\"]\nencapsulation = \"gre-udp\"",
            "tunnel.extra_sources: are of no use",
        ),
    ]);
}

#[test]
fn each_mistake_in_the_optional_sections_is_reported_under_its_key() {
    let cases = [
        ("[probes]\ninterval_ms = 19", "probes.interval_ms: 19"),
        ("[probes]\nmisses = 1", "probes.misses: 1"),
        ("[probes]\npad_every = 1", "probes.pad_every: 1"),
        ("[probes]\nport = 0", "probes.port: 0"),
        (
            "[announcement]\nprefixes = [\"198.51.100.1/24\"]",
            "announcement.prefixes: 198.51.100.1/24 has bits behind its length",
        ),
        (
            "[announcement]\nprefixes = [\"198.51.101.0/24\"]",
            "no service address in 198.51.101.0/24",
        ),
        (
            "[announcement]\nprefixes = []",
            "198.51.100.1 is in none of them",
        ),
        (
            "[announcement]\nprotocol = 4",
            "announcement.protocol: 4 is the kernel's own",
        ),
        ("[announcement]\ntable = 254", "announcement.table: 254"),
        ("[announcement]\nmetric = 0", "announcement.metric: 0"),
        (
            "[announcement]\nmetric = 200",
            "announcement.drain_metric: it must differ",
        ),
        (
            "[announcement]\nhold_down_s = 301",
            "announcement.hold_down_max_s",
        ),
        ("[announcement]\nlinger_s = 100000", "announcement.linger_s"),
    ];
    for (section, expected) in cases {
        let text = GOOD.replace("[tunnel]", &format!("{section}\n[tunnel]"));
        let error = check(&text).unwrap_err();
        assert!(error.contains(expected), "{expected:?} is not in {error}");
    }
}

#[test]
fn an_ipv6_service_address_needs_an_mtu_of_1280() {
    let text = GOOD
        .replace(
            "[\"198.51.100.1\"]",
            "[\"198.51.100.1\", \"2001:db8:a::1\"]",
        )
        .replace("key = 0x1001", "key = 0x1001\nmtu = 1279");
    assert!(check(&text).unwrap_err().contains("at least 1280"));
}

#[test]
fn several_concentrators_have_their_weights_and_one_key() {
    let several = r#"["10.0.9.2", { address = "10.0.9.3", weight = 0 }]
    hash_key = "00112233445566778899AAbbccddeeff""#;
    let config = check(&GOOD.replace("[\"10.0.9.2\"]", several)).unwrap();
    let weights: Vec<u16> = config
        .tunnel
        .concentrators
        .iter()
        .map(|one| one.weight)
        .collect();
    assert_eq!(weights, [100, 0]);
    assert_eq!(config.tunnel.hash_key.0[..3], [0x00, 0x11, 0x22]);
    assert_eq!(format!("{:?}", config.tunnel.hash_key), "HashKey");
}

#[test]
fn limits_become_intervals_and_there_are_none_by_default() {
    assert_eq!(check(GOOD).unwrap().limits, Limits::default());
    let text = format!(
        "{GOOD}[limits]\nsource_packets_per_s = 1000\ntotal_packets_per_s = 10\ntotal_burst = 1\n\
         deny = [\"192.0.2.9/24\"]\nallow = [\"2001:db8::1\"]\n"
    );
    let limits = check(&text).unwrap().limits;
    let rate = |interval_ns, tolerance_ns| {
        Some(crate::limits::Rate {
            interval_ns,
            tolerance_ns,
        })
    };
    assert_eq!(limits.source, rate(1_000_000, 999_000_000));
    assert_eq!(limits.total, rate(100_000_000, 0));
    let expected = [
        ("2001:db8::1", 128, crate::limits::Rule::Allow),
        ("192.0.2.0", 24, crate::limits::Rule::Deny),
    ];
    let expected = expected.map(|(prefix, length, rule)| (prefix.parse().unwrap(), length, rule));
    assert_eq!(limits.rules, expected);
}

#[test]
fn mistakes_in_limits_and_xdp_are_reported_under_their_keys() {
    for (section, expected) in [
        (
            "[limits]\nsource_burst = 5",
            "limits.source_burst: a burst without a limit; set limits.source_packets_per_s too",
        ),
        (
            "[limits]\ntotal_packets_per_s = 9\ntotal_burst = 0",
            "limits.total_burst: 0 would let nothing through",
        ),
        (
            "[limits]\ntotal_packets_per_s = 4000000000",
            "limits.total_packets_per_s: 4000000000 is more",
        ),
        (
            "[limits]\nallow = [\"192.0.2.0/24\"]\ndeny = [\"192.0.2.1/24\"]",
            "limits.deny: 192.0.2.1/24 is named twice",
        ),
        ("[limits]\ndeny = [\"192.0.2.0/33\"]", "deny"),
        (
            "[xdp]\nmode = \"auto\"",
            "xdp.interfaces: name the interfaces",
        ),
        ("[xdp]\nmode = \"fast\"", "unknown variant `fast`"),
        (
            "[xdp]\nmode = \"native\"\ninterfaces = [\"eth0\", \"eth0\"]",
            "xdp.interfaces: eth0 is named twice",
        ),
        (
            "[xdp]\nmode = \"native\"\ninterfaces = [\"a/b\"]",
            "xdp.interfaces: \"a/b\" is not a device name",
        ),
    ] {
        let error = check(&format!("{GOOD}{section}\n")).unwrap_err();
        assert!(error.contains(expected), "{section}: {error}");
    }
}
