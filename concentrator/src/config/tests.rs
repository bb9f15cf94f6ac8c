use admin::run::Config as _;

use super::*;

/// Every section once; the tests replace a line.
const GOOD: &str = r#"
name = "c1"
service_addresses = ["198.51.100.1", "2001:db8::1"]
domains = ["Example.com"]
[tunnel]
listen = "10.0.9.2"
[[edges]]
name = "edge1"
sources = ["10.0.1.2/32"]
key = 0x1001
old_key = 0x0f01
[[edges.relays]]
mark = 1
agent = "relay1"
[[edges.relays]]
mark = 2
agent = "relay1b"
[[edges]]
name = "edge2"
sources = ["10.0.2.0/24"]
key = 0x1002
[[edges.relays]]
mark = 1
agent = "relay2"
[relay_control]
listen = "10.0.9.2:7060"
certificate = "c1.pem"
private_key = "c1.key"
ca = "ca.pem"
"#;

#[test]
fn a_good_file_becomes_checked_types() {
    let config = checked(GOOD).unwrap();
    assert_eq!(config.domains, ["example.com"]);
    assert_eq!(config.tunnel.mtu, 1472);
    assert_eq!(config.sip.port, 5060);
    let relays: Vec<String> = config
        .relays()
        .map(|(id, relay, edge)| format!("{id} {} {}", relay.agent, edge.name))
        .collect();
    assert_eq!(
        relays,
        [
            "0x1001/1 relay1 edge1",
            "0x1001/2 relay1b edge1",
            "0x1002/1 relay2 edge2"
        ]
    );
}

#[test]
fn a_relay_may_be_an_rtpengine_and_needs_no_certificates_then() {
    let control = GOOD.find("[relay_control]").unwrap();
    let text = GOOD[..control]
        .replace("agent = \"relay1\"", "rtpengine = \"10.0.1.9:22222\"")
        .replace(
            "agent = \"relay1b\"",
            "rtpengine = \"[2001:db8::9]:2223\"\ninterface = \"pub\"",
        )
        .replace("agent = \"relay2\"", "rtpengine = \"10.0.1.9:22222\"");
    let config = checked(&text).unwrap();
    let names: Vec<String> = config
        .rtpengines()
        .iter()
        .map(ToString::to_string)
        .collect();
    let names_wanted = [
        "rtpengine@10.0.1.9:22222",
        "rtpengine@[2001:db8::9]:2223/pub",
    ];
    assert_eq!(names, names_wanted, "each once");
    let agents: Vec<&str> = config
        .relays()
        .map(|(_, relay, _)| relay.agent.as_str())
        .collect();
    assert_eq!(agents, [names_wanted[0], names_wanted[1], names_wanted[0]]);
}

#[test]
fn the_examples_that_we_ship_are_in_order() {
    for (name, routes) in [("concentrator.toml", 0), ("edge-of-kamailio.toml", 1)] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../configs")
            .join(name);
        let file: File = admin::config::load(&path).unwrap();
        let config = Config::check(&path, &file).unwrap();
        assert!(config.relays().count() > 0);
        assert_eq!(config.routing.routes.len(), routes, "{name}");
    }
}

/// Each row: what is replaced in the good file, by what, and what the message must name.
const MISTAKES: &[(&str, &str, &[&str])] = &[
    (
        "[relay_control]",
        "[[routes]]\nto = \"pstn\"\n[relay_control]",
        &["routes[0].to", "pstn", "not a group"],
    ),
    (
        "[relay_control]",
        "[[routes]]\ndomain = \"carrier.example\"\nfrom = \"anyone\"\nto = \"dns\"\n[relay_control]",
        &["routes[0].from", "open relay"],
    ),
    (
        "[relay_control]",
        "[[groups]]\nname = \"g\"\nmembers = [{ uri = \"10.0.9.20\" }]\n[relay_control]",
        &["groups[0].members[0].uri", "10.0.9.20", "sip:"],
    ),
    (
        "[relay_control]",
        "[[groups]]\nname = \"g\"\nmembers = [{ uri = \"sip:a.example\" }]\ndialog_address = \"unicast\"\n[relay_control]",
        &["groups[0].dialog_address", "sip.unicast_address"],
    ),
    (
        "[relay_control]",
        "[sip]\nudp_request_max_bytes = 70000\n[relay_control]",
        &["sip.udp_request_max_bytes", "70000", "65535"],
    ),
    (
        "[relay_control]",
        "[dns]\nservers = [\"ns.example.com\"]\n[relay_control]",
        &["dns.servers[0]", "not an address"],
    ),
    (
        "mark = 2",
        "mark = 1",
        &["edges[0].relays[1].mark", "relay1", "own mark"],
    ),
    (
        "mark = 2",
        "mark = 64",
        &["edges[0].relays[1].mark", "1 to 63"],
    ),
    (
        "mark = 2",
        "mark = 0",
        &["edges[0].relays[1].mark", "1 to 63"],
    ),
    (
        "key = 0x1002",
        "key = 0x1001",
        &["edges[1].key", "0x1001", "edges[0].key"],
    ),
    (
        "key = 0x1002",
        "key = 0x0f01",
        &["edges[1].key", "edges[0].old_key"],
    ),
    (
        "old_key = 0x0f01",
        "old_key = 0x1001",
        &["edges[0].old_key", "edges[0].key"],
    ),
    (
        "10.0.2.0/24",
        "10.0.1.0/24",
        &["edges[1].sources[0]", "10.0.1.2/32", "edges[0]"],
    ),
    (
        "10.0.2.0/24",
        "10.0.2.7/24",
        &["edges[1].sources[0]", "10.0.2.0/24", "10.0.2.7/32"],
    ),
    (
        "10.0.2.0/24",
        "2001:db8::/64",
        &["edges[1].sources[0]", "10.0.9.2"],
    ),
    ("[\"10.0.2.0/24\"]", "[]", &["edges[1].sources", "empty"]),
    (
        "name = \"edge2\"",
        "name = \"edge1\"",
        &["edges[1].name", "edges[0]"],
    ),
    (
        "\"2001:db8::1\"",
        "\"198.51.100.1\"",
        &["service_addresses[1]", "twice"],
    ),
    (
        "\"2001:db8::1\"",
        "\"10.0.9.2\"",
        &["service_addresses[1]", "tunnel.listen"],
    ),
    (
        "\"2001:db8::1\"",
        "\"224.0.0.1\"",
        &["service_addresses[1]", "224.0.0.1"],
    ),
    (
        "\"198.51.100.1\", \"2001:db8::1\"",
        "",
        &["service_addresses", "empty"],
    ),
    ("\"Example.com\"", "", &["domains", "empty"]),
    (
        "Example.com",
        "sip:example.com",
        &["domains[0]", "without scheme"],
    ),
    (
        "\"Example.com\"",
        "\"a.net\", \"A.net\"",
        &["domains[1]", "twice"],
    ),
    (
        "\"10.0.9.2\"",
        "\"0.0.0.0\"",
        &["tunnel.listen", "the edges send to"],
    ),
    (
        "[[edges]]\nname = \"edge1\"",
        "mtu = 1000\n[[edges]]\nname = \"edge1\"",
        &["tunnel.mtu", "1280"],
    ),
    (
        "[relay_control]",
        "[sip]\nport = 0\n[relay_control]",
        &["sip.port", "5060"],
    ),
    (
        "[relay_control]",
        "[sip]\nudp = false\ntcp = false\n[relay_control]",
        &["sip", "switch one on"],
    ),
    (
        "[relay_control]",
        "[sip]\nmax_tcp_connections = 0\n[relay_control]",
        &["sip.max_tcp_connections"],
    ),
    (
        "[relay_control]",
        "[sip]\ntls_port = 5060\n[sip.tls]\ncertificate = \"c1.pem\"\nprivate_key = \"c1.key\"\n[relay_control]",
        &["sip.tls_port", "sip.port"],
    ),
    (
        "[relay_control]",
        "[sip]\nws_port = 80\nwss_port = 443\n[relay_control]",
        &["sip.wss_port", "[sip.tls]"],
    ),
    (
        "[relay_control]",
        "[sip]\noutbound_address = \"198.51.100.1\"\n[relay_control]",
        &["sip.outbound_address", "service address"],
    ),
    (
        "[relay_control]",
        "[sip]\nws_port = 0\n[relay_control]",
        &["sip.ws_port"],
    ),
    (
        "[relay_control]",
        "[sip.tls]\ncertificate = \"none.pem\"\nprivate_key = \"c1.key\"\n[relay_control]",
        &["sip.tls.certificate", "none.pem"],
    ),
    (
        "[relay_control]",
        "[sip.tls]\ncertificate = \"c1.pem\"\nprivate_key = \"c1.key\"\nclient_ca = \"c1.key\"\n[relay_control]",
        &["sip.tls.client_ca", "c1.key"],
    ),
    (
        "[relay_control]",
        "[media]\nrelay = \"maybe\"\n[relay_control]",
        &["media.relay", "\"always\""],
    ),
    (
        "[relay_control]",
        "[media]\nanchor = \"middle\"\n[relay_control]",
        &["media.anchor", "\"caller\"", "\"both\""],
    ),
    (
        "[relay_control]",
        "[[media.pins]]\naccount = \"sip:a@b\"\nagent = \"relay9\"\n[relay_control]",
        &["media.pins[0].agent", "relay9"],
    ),
    (
        "[relay_control]",
        "[[media.pins]]\naccount = \"alice\"\nagent = \"relay1\"\n[relay_control]",
        &["media.pins[0].account", "user@domain"],
    ),
    (
        "[relay_control]",
        "[[media.pins]]\ntrunk = \"carrier\"\nanchor = \"both\"\n[relay_control]",
        &["media.pins[0].trunk", "carrier"],
    ),
    (
        "[relay_control]",
        "[[media.pins]]\naccount = \"a@b\"\n[relay_control]",
        &["media.pins[0]", "says nothing"],
    ),
    (
        "[relay_control]",
        "[[media.pins]]\nagent = \"relay1\"\n[relay_control]",
        &["media.pins[0]", "account", "trunk"],
    ),
    (
        "[relay_control]",
        "[[media.pins]]\naccount = \"a@b\"\nrelay = \"never\"\n[[media.pins]]\naccount = \"a@B\"\nagent = \"relay1\"\n[relay_control]",
        &["media.pins[1]", "second pin"],
    ),
    (
        "key = 0x1002",
        "key = 0x1002\nfallback = [\"relay9\"]",
        &["edges[1].fallback[0]", "relay9"],
    ),
    (
        "agent = \"relay2\"",
        "agent = \"relay2\"\nfallback = [\"relay1\", \"relay1\"]",
        &["edges[1].relays[0].fallback[1]", "twice"],
    ),
    (
        "agent = \"relay2\"",
        "agent = \"relay2\"\nmedia_addresses = [\"10.0.2.2/24\"]",
        &["edges[1].relays[0].media_addresses[0]", "10.0.2.0/24"],
    ),
    (
        "10.0.9.2:7060\"",
        "10.0.9.2:7060\"\nmin_stock = 0",
        &["relay_control.min_stock", "first call"],
    ),
    (
        "10.0.9.2:7060\"",
        "10.0.9.2:7060\"\nmax_stock = 10",
        &["relay_control.max_stock", "64"],
    ),
    (
        "10.0.9.2:7060\"",
        "10.0.9.2:7060\"\nlease_wait_ms = 9000",
        &["relay_control.lease_wait_ms", "4000"],
    ),
    (
        "[relay_control]",
        "[media]\nsource = \"everywhere\"\n[relay_control]",
        &["media.source", "\"subnet\""],
    ),
    (
        "[relay_control]",
        "[cdr]\nfile = \"\"\n[relay_control]",
        &["cdr.file", "empty"],
    ),
    (
        "[relay_control]",
        "[cdr]\nfile = \"c\"\nmax_calls = 0\n[relay_control]",
        &["cdr.max_calls", "1 or more"],
    ),
    (
        "[relay_control]",
        "[cdr]\nfile = \"c\"\nmax_duration_s = 0\n[relay_control]",
        &["cdr.max_duration_s", "86400"],
    ),
    (
        "[relay_control]",
        "[registrar]\nmin_expires_s = 9000\n[relay_control]",
        &["registrar.default_expires_s", "9000"],
    ),
    (
        "[relay_control]",
        "[authentication]\nrealm = \"a\\\"b\"\nusers_file = \"users\"\n[relay_control]",
        &["authentication.realm", "without"],
    ),
    (
        "[relay_control]",
        "[authentication]\nnonce_lifetime_s = 5\nusers_file = \"users\"\n[relay_control]",
        &["authentication.nonce_lifetime_s", "10", "300"],
    ),
    (
        "[relay_control]",
        "[authentication]\nforeign_callers = \"no\"\nusers_file = \"users\"\n[relay_control]",
        &["authentication.foreign_callers", "\"refuse\""],
    ),
    (
        "[relay_control]",
        "[authentication]\nforeign_callers = \"allow\"\n[relay_control]",
        &["users_file"],
    ),
    (
        "[relay_control]",
        "[authentication]\nusers_file = \"users\"\n[relay_control]",
        &["authentication.users_file", "cannot read", "users"],
    ),
    (
        "[relay_control]",
        "[authentication]\nusers_file = \"u\"\n[[authentication.trusted]]\nname = \"t\"\naddresses = []\n[relay_control]",
        &["authentication.trusted[0].addresses", "empty"],
    ),
    (
        "[relay_control]",
        "[authentication]\nusers_file = \"u\"\n[[authentication.trusted]]\nname = \"t\"\ncertificates = [\"t.net\"]\n[relay_control]",
        &[
            "authentication.trusted[0].certificates",
            "sip.tls.client_ca",
        ],
    ),
    (
        "[relay_control]",
        "[sip.tls]\ncertificate = \"a\"\nprivate_key = \"b\"\nclient_ca = \"c\"\n[authentication]\nusers_file = \"u\"\n[[authentication.trusted]]\nname = \"t\"\ncertificates = [\"sip:t.net\"]\n[relay_control]",
        &["authentication.trusted[0].certificates[0]", "DNS name"],
    ),
    (
        "[relay_control]",
        "[authentication]\nusers_file = \"u\"\n[[authentication.trusted]]\nname = \"t\"\naddresses = [\"0.0.0.0/0\"]\n[relay_control]",
        &["authentication.trusted[0].addresses[0]", "everybody"],
    ),
    (
        "[relay_control]",
        "[authentication]\nusers_file = \"u\"\n[[authentication.trusted]]\nname = \"t\"\naddresses = [\"192.0.2.1/24\"]\n[relay_control]",
        &["authentication.trusted[0].addresses[0]", "192.0.2.0/24"],
    ),
    (
        "10.0.9.2:7060",
        "10.0.9.2:0",
        &["relay_control.listen", "7060"],
    ),
    (
        "agent = \"relay2\"",
        "agent = \"relay 2\"",
        &["edges[1].relays[0].agent", "certificate"],
    ),
    (
        "agent = \"relay2\"",
        "",
        &["edges[1].relays[0]", "rtpengine"],
    ),
    (
        "agent = \"relay2\"",
        "agent = \"relay2\"\nrtpengine = \"10.0.1.9:22222\"",
        &["edges[1].relays[0].rtpengine", "not both"],
    ),
    (
        "agent = \"relay2\"",
        "rtpengine = \"10.0.1.9\"",
        &["edges[1].relays[0].rtpengine", "listen-ng"],
    ),
    (
        "agent = \"relay2\"",
        "rtpengine = \"10.0.1.9:0\"",
        &["edges[1].relays[0].rtpengine", "port"],
    ),
    (
        "agent = \"relay2\"",
        "rtpengine = \"0.0.0.0:22222\"",
        &["edges[1].relays[0].rtpengine", "one host"],
    ),
    (
        "agent = \"relay2\"",
        "agent = \"relay2\"\ninterface = \"pub\"",
        &["edges[1].relays[0].interface", "media.addresses"],
    ),
    (
        "agent = \"relay2\"",
        "rtpengine = \"10.0.1.9:22222\"\ninterface = \"pub/10.0.1.9\"",
        &["edges[1].relays[0].interface", "NAME/ADDRESS"],
    ),
    (
        "[relay_control]",
        "[core_link]\nlisten = \"10.0.9.2:7063\"\ncertificate = \"c1.pem\"\nprivate_key = \"c1.key\"\nca = \"ca.pem\"\npeers = []\n[relay_control]",
        &["core_link.peers", "leave the section out"],
    ),
    (
        "[relay_control]",
        "[core_link]\nlisten = \"10.0.9.2:7063\"\ncertificate = \"c1.pem\"\nprivate_key = \"c1.key\"\nca = \"ca.pem\"\npeers = [{ name = \"c1\", address = \"10.0.10.2:7063\", tunnel = \"10.0.10.2\" }]\n[relay_control]",
        &["core_link.peers[0].name", "this concentrator"],
    ),
    (
        "[relay_control]",
        "[core_link]\nlisten = \"10.0.9.2:7063\"\ncertificate = \"c1.pem\"\nprivate_key = \"c1.key\"\nca = \"ca.pem\"\npeers = [{ name = \"c2\", address = \"10.0.10.2:7063\", tunnel = \"10.0.1.2\" }]\n[relay_control]",
        &["core_link.peers[0].tunnel", "an edge's"],
    ),
    (
        "[relay_control]",
        "[core_link]\nlisten = \"10.0.9.2:7063\"\ncertificate = \"missing.pem\"\nprivate_key = \"c1.key\"\nca = \"ca.pem\"\npeers = [{ name = \"c2\", address = \"10.0.10.2:7063\", tunnel = \"10.0.10.2\" }]\n[relay_control]",
        &["core_link.certificate", "missing.pem"],
    ),
];

#[test]
fn each_mistake_is_named_with_file_line_key_and_a_way_out() {
    for (from, to, parts) in MISTAKES {
        let text = GOOD.replacen(from, to, 1);
        assert_ne!(text, GOOD, "{from:?} is not in the good file");
        let Err(error) = loaded(&text) else {
            panic!("{to:?} was accepted");
        };
        for part in parts.iter().chain(&["concentrator.toml:"]) {
            assert!(error.contains(part), "{part:?} is not in {error}");
        }
    }
}

#[test]
fn stand_ins_are_the_edges_others_and_then_its_fallback_or_the_relays_own() {
    let text = GOOD
        .replacen("key = 0x1001", "key = 0x1001\nfallback = [\"relay2\"]", 1)
        .replacen(
            "agent = \"relay2\"",
            "agent = \"relay2\"\nfallback = [\"relay1b\"]",
            1,
        );
    let plan = loaded(&text).unwrap().media_plan();
    let mut order: Vec<String> = plan
        .stand_ins
        .iter()
        .map(|(relay, order)| {
            let order: Vec<String> = order.iter().map(ToString::to_string).collect();
            format!("{relay}: {}", order.join(" "))
        })
        .collect();
    order.sort();
    assert_eq!(
        order,
        [
            // By the key before a rotation, too.
            "0x0f01/1: 0x1001/2 0x1002/1",
            "0x0f01/2: 0x1001/1 0x1002/1",
            "0x1001/1: 0x1001/2 0x1002/1",
            "0x1001/2: 0x1001/1 0x1002/1",
            "0x1002/1: 0x1001/2"
        ]
    );
}

#[test]
fn a_misspelt_key_is_refused() {
    let error = loaded(&GOOD.replacen("sources", "source", 1)).unwrap_err();
    assert!(error.contains("source"), "{error}");
}

#[test]
fn relays_without_relay_control_are_refused() {
    let text = GOOD.split("[relay_control]").next().unwrap();
    let error = loaded(text).unwrap_err();
    assert!(error.contains("[relay_control]"), "{error}");
}

#[test]
fn edges_are_revealed_to_nobody_unless_the_file_says_to_whom() {
    assert!(checked(GOOD).unwrap().sip.reveal_edge_to.is_empty());
    let with = |networks: &str| checked(&format!("{GOOD}[sip]\nreveal_edge_to = {networks}\n"));
    let config = with(r#"["192.0.2.0/24", "2001:db8::/32"]"#).unwrap();
    let told = config.sip.reveal_edge_to;
    let is_told = |address: &str| {
        told.iter()
            .any(|net| net.contains(address.parse().unwrap()))
    };
    assert!(is_told("192.0.2.7") && is_told("2001:db8::7") && !is_told("192.0.3.7"));
    let error = with(r#"["192.0.2.7/24"]"#).unwrap_err();
    assert!(error.contains("sip.reveal_edge_to[0]"), "{error}");
}

#[test]
fn pins_are_in_the_plan_as_the_file_has_them() {
    let pins = "[[media.pins]]\naccount = \"alice@EXAMPLE.com\"\nagent = \"relay1\"\n\
                [[media.pins]]\naccount = \"bob@example.com\"\nanchor = \"callee\"\nrelay = \"never\"\n";
    let plan = checked(&GOOD.replace("[relay_control]", &format!("{pins}[relay_control]")))
        .unwrap()
        .media_plan();
    assert_eq!(plan.pins.len(), 2);
    let pin = |account: &str| plan.pins[&Pinned::Account(account.to_owned())];
    let relay = pin("alice@example.com").relay.unwrap();
    assert_eq!((relay.key, relay.mark.number()), (TunnelKey(0x1001), 1));
    let bob = pin("bob@example.com");
    assert_eq!(
        (bob.relay, bob.anchor, bob.policy),
        (None, Some(Anchor::Callee), Some(RelayPolicy::Never))
    );
}

#[test]
fn an_edge_is_named_by_its_old_key_too() {
    let names = checked(GOOD).unwrap().edge_names();
    let name = |key| names.get(&TunnelKey(key)).map(String::as_str);
    assert_eq!((name(0x1001), name(0x0f01)), (Some("edge1"), Some("edge1")));
    assert_eq!((name(0x1002), name(0x0f02)), (Some("edge2"), None));
}

#[test]
fn records_of_calls_and_the_end_of_silent_ones_are_as_the_file_says() {
    let plain = checked(GOOD).unwrap();
    assert!(plain.cdr.is_none() && plain.media.end_on_timeout);
    assert_eq!(plain.media.source, GateMode::Exact);
    let more = "[media]\nsource = \"subnet\"\nend_on_timeout = false\n[cdr]\nfile = \"c.jsonl\"\n";
    let config = checked(&format!("{GOOD}{more}")).unwrap();
    assert_eq!(
        (config.media.source, config.media.end_on_timeout),
        (GateMode::Subnet, false)
    );
    let cdr = config.cdr.unwrap();
    assert!(cdr.file.ends_with("c.jsonl"));
    assert_eq!(
        (cdr.max_calls, cdr.max_duration.as_secs()),
        (100_000, 86_400)
    );
}

#[test]
fn each_missing_pem_file_is_named() {
    for (missing, key) in [
        ("c1.pem", "relay_control.certificate"),
        ("c1.key", "relay_control.private_key"),
        ("ca.pem", "relay_control.ca"),
    ] {
        let folder = Folder::new();
        folder.write("concentrator.toml", GOOD.as_bytes());
        folder.write_certificates();
        std::fs::remove_file(folder.0.join(missing)).unwrap();
        let error = folder.load().unwrap_err();
        assert!(error.contains(key) && error.contains(missing), "{error}");
    }
}

#[test]
fn a_file_that_is_not_what_its_key_says_is_named() {
    for (file, key) in [
        ("c1.pem", "relay_control.certificate"),
        ("c1.key", "relay_control.private_key"),
        ("ca.pem", "relay_control.ca"),
    ] {
        let folder = Folder::new();
        folder.write("concentrator.toml", GOOD.as_bytes());
        folder.write_certificates();
        folder.write(file, b"not PEM");
        let error = folder.load().unwrap_err();
        assert!(error.contains(key) && error.contains(file), "{error}");
    }
}

#[test]
fn a_cookie_key_needs_32_bytes_and_is_never_printed() {
    let folder = Folder::new();
    folder.write_certificates();
    folder.write(
        "concentrator.toml",
        format!("{GOOD}[cookie]\nkey_file = \"cookie.key\"\n").as_bytes(),
    );
    folder.write("cookie.key", &[7; 31]);
    let error = folder.load().unwrap_err();
    assert!(
        error.contains("cookie.key_file") && error.contains("32"),
        "{error}"
    );
    folder.write("cookie.key", &[7; 32]);
    let config = folder.load().unwrap();
    assert_eq!(config.cookie_key, Some(CookieKey(vec![7; 32])));
    assert_eq!(
        format!("{:?}", config.cookie_key),
        "Some(CookieKey(32 bytes))"
    );
}

#[test]
fn users_are_read_with_the_configuration_and_again_later() {
    let folder = Folder::new();
    folder.write_certificates();
    folder.write(
        "concentrator.toml",
        format!("{GOOD}[authentication]\nusers_file = \"users\"\n").as_bytes(),
    );
    let alice = format!("alice:example.com:{}\n", "0".repeat(32));
    folder.write("users", alice.as_bytes());
    let authentication = folder.load().unwrap().authentication.unwrap();
    assert_eq!(authentication.realm, "example.com");
    assert_eq!(authentication.load_users().unwrap().len(), 1);
    folder.write("users", alice.replace("alice", "bob").repeat(2).as_bytes());
    let error = authentication.load_users().unwrap_err();
    assert!(error.contains("users: line 2"), "{error}");
    let error = folder.load().unwrap_err();
    assert!(error.contains("authentication.users_file"), "{error}");
    folder.write("users", alice.replace("example.com", "other").as_bytes());
    let error = authentication.load_users().unwrap_err();
    assert!(error.contains("\"example.com\""), "{error}");
}

#[test]
fn the_authentication_that_the_example_shows_is_in_order() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/concentrator.toml");
    let text = std::fs::read_to_string(&path).unwrap();
    let shown = text
        .lines()
        .skip_while(|line| *line != "# [authentication]")
        .take_while(|line| line.starts_with('#'))
        .filter_map(|line| line.strip_prefix("# "))
        .filter(|line| line.starts_with('[') || line.contains(" = "));
    let shown: Vec<&str> = shown.collect();
    let tls = "[sip.tls]\ncertificate = \"a\"\nprivate_key = \"b\"\nclient_ca = \"c\"";
    let config = checked(&format!("{text}\n{tls}\n{}\n", shown.join("\n"))).unwrap();
    let trunks = config.authentication.unwrap().trunks;
    assert_eq!((trunks.len(), trunks[0].certificates.len()), (1, 1));
}

#[test]
fn the_core_link_that_the_example_shows_is_in_order() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/concentrator.toml");
    let text = std::fs::read_to_string(&path).unwrap();
    let shown = text
        .lines()
        .skip_while(|line| *line != "# [core_link]")
        .take_while(|line| line.starts_with('#'))
        .filter_map(|line| line.strip_prefix("# "));
    let shown: Vec<&str> = shown.collect();
    let config = checked(&format!("{text}\n{}\n", shown.join("\n"))).unwrap();
    assert_eq!(config.names_of_peers(), ["c2"]);
    assert_eq!(config.tunnels_of_peers(), [IpAddr::from([10, 0, 10, 2])]);
}

#[test]
fn a_second_cookie_key_is_read_beside_the_first_and_is_of_no_use_alone() {
    let folder = Folder::new();
    folder.write_certificates();
    let write = |keys: &str| {
        let text = format!("{GOOD}[cookie]\n{keys}");
        folder.write("concentrator.toml", text.as_bytes());
    };
    folder.write("cookie.key", &[8; 32]);
    folder.write("cookie.old", &[7; 31]);
    write("key_file = \"cookie.key\"\nprevious_key_file = \"cookie.old\"\n");
    let error = folder.load().unwrap_err();
    assert!(
        error.contains("cookie.previous_key_file") && error.contains("32"),
        "{error}"
    );
    folder.write("cookie.old", &[7; 32]);
    let config = folder.load().unwrap();
    assert_eq!(config.cookie_key, Some(CookieKey(vec![8; 32])));
    assert_eq!(config.previous_cookie_key, Some(CookieKey(vec![7; 32])));
    write("previous_key_file = \"cookie.old\"\n");
    let error = folder.load().unwrap_err();
    assert!(error.contains("cookie.key_file"), "{error}");
}

fn checked(text: &str) -> Result<Config, String> {
    let path = Path::new("concentrator.toml");
    let file: File = admin::config::parse(path, text).map_err(|error| error.to_string())?;
    Config::check(path, &file).map_err(|error| error.to_string())
}

fn loaded(text: &str) -> Result<Config, String> {
    let folder = Folder::new();
    folder.write("concentrator.toml", text.as_bytes());
    folder.write_certificates();
    folder.load()
}

/// A folder of its own for each test, gone with it.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        use std::sync::atomic::{AtomicU32, Ordering};
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("sipcast-config-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn write(&self, name: &str, bytes: &[u8]) {
        std::fs::write(self.0.join(name), bytes).unwrap();
    }

    /// What a certificate and its authority look like; they need not fit to be read.
    fn write_certificates(&self) {
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec!["c1".to_owned()]).unwrap();
        let certificate = params.self_signed(&key).unwrap().pem();
        self.write("c1.pem", certificate.as_bytes());
        self.write("ca.pem", certificate.as_bytes());
        self.write("c1.key", key.serialize_pem().as_bytes());
    }

    fn load(&self) -> Result<Config, String> {
        Config::load(&self.0.join("concentrator.toml")).map_err(|error| error.to_string())
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // A folder left behind in the temporary directory harms nobody.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
