//! The rules behind the torture messages, each with a message of our own, so that they are tested
//! where the corpus is missing.

use bytes::Bytes;

use crate::judge::{Row, finish, judge};
use crate::torture::ROWS;

/// A well-formed message: `METHOD` is to be replaced.
const PLAIN: &str = "METHOD sip:callee@example.com SIP/2.0\r\n\
    Via: SIP/2.0/UDP 192.0.2.9;branch=z9hG4bKrule\r\n\
    Max-Forwards: 70\r\n\
    From: \"A. Caller\" <sip:caller@example.org>;tag=f1\r\n\
    To: <sip:callee@example.com>\r\n\
    Call-ID: rule@192.0.2.9\r\n\
    CSeq: 7 METHOD\r\n\
    Contact: <sip:caller@192.0.2.9>\r\n\
    Content-Type: text/plain\r\n\
    Content-Length: 5\r\n\
    \r\n\
    12345";

const RESPONSE: &str = "SIP/2.0 200 OK";

/// A rule: what it says, the torture messages that it is behind, how a plain message is changed to
/// be its case, and what becomes of that.
struct Rule {
    says: &'static str,
    torture: &'static str,
    method: &'static str,
    changes: &'static [(&'static str, &'static str)],
    udp: &'static str,
    tcp: &'static str,
}

const fn rule(
    says: &'static str,
    torture: &'static str,
    method: &'static str,
    changes: &'static [(&'static str, &'static str)],
    outcome: &'static str,
) -> Rule {
    Rule {
        says,
        torture,
        method,
        changes,
        udp: outcome,
        tcp: outcome,
    }
}

const fn over_tcp(tcp: &'static str, rule: Rule) -> Rule {
    Rule { tcp, ..rule }
}

const TO_REGISTRAR: (&str, &str) = (
    "REGISTER sip:callee@example.com",
    "REGISTER sip:example.com",
);
const IN_DIALOG_OF_NOBODY: (&str, &str) = (
    "To: <sip:callee@example.com>",
    "To: <sip:callee@example.com>;tag=t",
);

const TAKEN: &[Rule] = &[
    rule(
        "white space and folding wherever the grammar has it",
        "wsinv",
        "INVITE",
        &[
            (
                "Via: SIP/2.0/UDP 192.0.2.9;",
                "vIa  :\r\n  SIP  / 2.0 /\r\n UDP   192.0.2.9 ;\r\n\t ",
            ),
            ("CSeq: 7 INVITE", "cseq :\r\n 0007\r\n  INVITE"),
            (";tag=f1", " ;\r\n  TAG =  f1"),
            ("Content-Length: 5", "l  :\t 5\r\nX-New:  a\r\n b\r\ns :"),
        ],
        "forward",
    ),
    rule(
        "any token is a method, any word a Call-ID, and NUL may be quoted",
        "intmeth",
        "!odd-_*+`.%'~",
        &[
            ("rule@192.0.2.9", "w~)(><:\\/\"][?}{@x`%"),
            ("\"A. Caller\"", "\"nul \\\0 del \\\u{7f}\""),
        ],
        "forward",
    ),
    rule(
        "escapes stay as they are",
        "esc01",
        "INVITE",
        &[
            (
                "sip:callee@example.com SIP",
                "sip:sips%3Acallee%40x@example.com;a%25%34%31 SIP",
            ),
            (
                "sip:caller@192.0.2.9",
                "sip:c%61ller@192.0.2.9;n%61me=%25%34%31",
            ),
        ],
        "forward",
    ),
    rule(
        "an escape in a method or in a header's name is none",
        "esc02",
        "RE%47ISTER",
        &[("Contact:", "C%6Fntact: <sip:x@192.0.2.9>\r\nContact:")],
        "forward",
    ),
    rule(
        "an escaped NUL is an octet like others",
        "escnull",
        "REGISTER",
        &[
            TO_REGISTRAR,
            ("caller@192.0.2.9>", "%00@h>, <sip:%00%00@h>"),
            ("sip:callee@", "sip:nul-%00-@"),
        ],
        "200",
    ),
    rule(
        "no space is needed before an angle bracket",
        "lwsdisp",
        "OPTIONS",
        &[("\"A. Caller\" <", "caller<")],
        "forward",
    ),
    rule(
        "a top Via without a branch may be followed by any number of Vias",
        "longreq",
        "INVITE",
        &[
            (
                "z9hG4bKrule\r\n",
                "z9hG4bKrule\r\nVia: SIP/2.0/TCP a;branch=z9hG4bK1, SIP/2.0/UDP b\r\nv: SIP/2.0/SCTP c\r\n",
            ),
            (";branch=z9hG4bKrule", ""),
        ],
        "forward",
    ),
    over_tcp(
        "200 404 closed",
        rule(
            "what follows a message in its datagram is ignored; in a stream it is the next message",
            "dblreq",
            "REGISTER",
            &[
                TO_REGISTRAR,
                (
                    "\r\n\r\n12345",
                    "\r\n\r\n12345INVITE sip:x@example.com SIP/2.0\r\nVia: SIP/2.0/TCP 192.0.2.9;branch=z9hG4bKb\r\nFrom: <sip:a@h>;tag=1\r\nTo: <sip:b@h>\r\nCall-ID: 2\r\nCSeq: 1 INVITE\r\nContent-Length: 0\r\n\r\nno message\r\n\r\n",
                ),
            ],
            "200",
        ),
    ),
    rule(
        "a semicolon in the user part belongs to it",
        "semiuri",
        "OPTIONS",
        &[(
            "sip:callee@example.com SIP",
            "sip:user;par=u%40example.net@example.com SIP",
        )],
        "forward",
    ),
    rule(
        "a Via may name a transport that nobody knows",
        "transports",
        "OPTIONS",
        &[(
            "Max-Forwards",
            "Via: SIP/2.0/UNKNOWN t5;branch=z9hG4bK5\r\nVia: SIP/2.0/TLS t3;branch=z9hG4bK3\r\nMax-Forwards",
        )],
        "forward",
    ),
    rule(
        "a body may hold any octets",
        "mpart01",
        "MESSAGE",
        &[("12345", "\0\n\r\n\u{1}")],
        "forward",
    ),
    rule(
        "a proxy does not read Date",
        "baddate",
        "INVITE",
        &[(
            "Contact:",
            "Date: Fri, 01 Jan 2010 16:00:00 EST\r\nContact:",
        )],
        "forward",
    ),
    rule(
        "a proxy does not read Content-Type and Accept",
        "invut sdp01",
        "INVITE",
        &[(
            "text/plain",
            "application/unknownformat\r\nAccept: text/nobodyKnowsThis",
        )],
        "forward",
    ),
    over_tcp(
        "nothing closed",
        rule(
            "an INVITE of RFC 2543: no branch, tag, Max-Forwards, Contact or Content-Length",
            "inv2543",
            "INVITE",
            &[
                (";branch=z9hG4bKrule", ""),
                (";tag=f1", ""),
                ("Max-Forwards: 70\r\n", ""),
                ("Contact: <sip:caller@192.0.2.9>\r\n", ""),
                ("Content-Length: 5\r\n", ""),
            ],
            "forward",
        ),
    ),
    rule(
        "an unknown authorization scheme is no reason for an error",
        "regaut01",
        "REGISTER",
        &[
            TO_REGISTRAR,
            (
                "Contact:",
                "Authorization: NoOneKnowsThisScheme opaque-data=here\r\nContact:",
            ),
        ],
        "200",
    ),
    rule(
        "parameters within the brackets of a contact are its URI's, those behind are the field's",
        "cparam01 cparam02",
        "REGISTER",
        &[
            TO_REGISTRAR,
            (
                "<sip:caller@192.0.2.9>",
                "<sip:a@h;p>, <sip:b@h>;p, sip:c@h;p",
            ),
        ],
        "200",
    ),
    rule(
        "a contact may have header fields where it has brackets",
        "regescrt",
        "REGISTER",
        &[
            TO_REGISTRAR,
            (
                "sip:caller@192.0.2.9",
                "sip:caller@192.0.2.9?Route=%3Csip:x%3E",
            ),
        ],
        "200",
    ),
];

const IPV6: &[Rule] = &[
    rule(
        "an IPv6 reference is a host",
        "ipv6-good port-ambiguous",
        "REGISTER",
        &[
            ("sip:callee@example.com SIP", "sip:[2001:db8::10:5070] SIP"),
            ("192.0.2.9;", "[2001:db8::9]:5070;"),
        ],
        "200",
    ),
    rule(
        "what follows an IPv6 reference is its port",
        "port-unambiguous",
        "REGISTER",
        &[("sip:callee@example.com SIP", "sip:[2001:db8::10]:5070 SIP")],
        "403",
    ),
    rule(
        "an IPv6 address without its brackets is no host",
        "ipv6-bad",
        "REGISTER",
        &[("sip:callee@example.com SIP", "sip:2001:db8::10 SIP")],
        "400",
    ),
    rule(
        "received may have brackets or none",
        "via-received-param-with-delim via-received-param-no-delim",
        "OPTIONS",
        &[(
            "z9hG4bKrule",
            "z9hG4bKrule\r\nVia: SIP/2.0/UDP [2001:db8::9]:5060;received=[2001:db8::9:255];branch=z9hG4bKa, SIP/2.0/UDP h;received=2001:db8::9:255",
        )],
        "forward",
    ),
    rule(
        "a request in a dialog that is not ours to know goes to the user in its URI, or nowhere",
        "via-received-param-with-delim",
        "BYE",
        &[
            ("sip:callee@example.com SIP", "sip:[2001:db8::10] SIP"),
            IN_DIALOG_OF_NOBODY,
        ],
        "404|481",
    ),
    rule(
        "addresses of both families in one message",
        "mult-ip-in-header mult-ip-in-sdp ipv6-in-sdp",
        "BYE",
        &[
            ("192.0.2.9;", "[2001:db8::9:1];received=[2001:db8::9:255];"),
            (
                "z9hG4bKrule\r\n",
                "z9hG4bKrule\r\nVia: SIP/2.0/UDP 192.0.2.1;branch=z9hG4bK2\r\n",
            ),
        ],
        "forward",
    ),
    rule(
        "an IPv4-mapped address",
        "ipv4-mapped-ipv6",
        "INVITE",
        &[(
            "<sip:caller@192.0.2.9>",
            "<sip:caller@[::ffff:192.0.2.10]:19823>",
        )],
        "forward",
    ),
    rule(
        "three colons before an IPv4 part are two",
        "ipv6-bug-abnf-3-colons ipv6-correct-abnf-2-colons",
        "OPTIONS",
        &[
            (
                "sip:callee@example.com SIP",
                "sip:callee@[2001:db8:::192.0.2.1] SIP",
            ),
            (
                "<sip:callee@example.com>",
                "<sip:callee@[2001:db8::192.0.2.1]>",
            ),
        ],
        "forward",
    ),
];

const REFUSED: &[Rule] = &[
    rule(
        "separators without values",
        "badinv01",
        "INVITE",
        &[("z9hG4bKrule", "z9hG4bKrule;;,;,,")],
        "400",
    ),
    over_tcp(
        "nothing waits",
        rule(
            "a body shorter than its Content-Length",
            "clerr ipv6-in-sdp",
            "INVITE",
            &[("Length: 5", "Length: 9999")],
            "400",
        ),
    ),
    over_tcp(
        "400 closed",
        rule(
            "a negative Content-Length",
            "ncl",
            "INVITE",
            &[("Length: 5", "Length: -999")],
            "400",
        ),
    ),
    over_tcp(
        "400 closed",
        rule(
            "two Content-Lengths that differ",
            "mcl01",
            "OPTIONS",
            &[(
                "Content-Length: 5",
                "Content-Length: 5\r\nContent-Length: 3",
            )],
            "400",
        ),
    ),
    rule(
        "a CSeq beyond 32 bits",
        "scalar02",
        "REGISTER",
        &[
            TO_REGISTRAR,
            ("CSeq: 7", "CSeq: 36893488147419103232"),
            ("0.2.9>", "0.2.9>;expires=280297596632815"),
        ],
        "400",
    ),
    rule(
        "an unterminated quote",
        "quotbal",
        "INVITE",
        &[("\"A. Caller\"", "\"Mr. J. Caller")],
        "400",
    ),
    rule(
        "brackets around the Request-URI",
        "ltgtruri",
        "INVITE",
        &[("sip:callee@example.com SIP", "<sip:callee@example.com> SIP")],
        "400",
    ),
    rule(
        "a space in the Request-URI",
        "lwsruri",
        "INVITE",
        &[(
            "sip:callee@example.com SIP",
            "sip:callee@example.com; lr SIP",
        )],
        "400",
    ),
    rule(
        "two spaces in the request line",
        "lwsstart",
        "INVITE",
        &[("INVITE sip", "INVITE  sip")],
        "400",
    ),
    rule(
        "a space at the end of the request line",
        "trws",
        "OPTIONS",
        &[("SIP/2.0\r\nVia", "SIP/2.0 \r\nVia")],
        "400",
    ),
    rule(
        "header fields in the Request-URI",
        "escruri",
        "INVITE",
        &[(
            "sip:callee@example.com SIP",
            "sip:callee@example.com?Route=%3Csip:x%3E SIP",
        )],
        "400",
    ),
    rule(
        "header fields in a contact without brackets",
        "regbadct",
        "REGISTER",
        &[
            TO_REGISTRAR,
            (
                "<sip:caller@192.0.2.9>",
                "sip:caller@192.0.2.9?Route=%3Csip:x%3E",
            ),
        ],
        "400",
    ),
    rule(
        "spaces within the brackets",
        "badaspec",
        "OPTIONS",
        &[("<sip:callee@example.com>", "< sip:callee@example.com >")],
        "400",
    ),
    rule(
        "a comma in an unquoted display name",
        "baddn-terminated",
        "OPTIONS",
        &[("\"A. Caller\"", "Caller, A.")],
        "400",
    ),
    over_tcp(
        "nothing waits",
        rule(
            "a head without its empty line",
            "baddn",
            "OPTIONS",
            &[("\r\n\r\n12345", "\r\n")],
            "400",
        ),
    ),
    rule(
        "another version",
        "badvers",
        "OPTIONS",
        &[("SIP/2.0\r\nVia", "SIP/7.0\r\nVia")],
        "505",
    ),
    rule(
        "another method in the CSeq",
        "mismatch01",
        "OPTIONS",
        &[("7 OPTIONS", "7 INVITE")],
        "400",
    ),
    rule(
        "another method in the CSeq of an unknown method",
        "mismatch02",
        "NEWMETHOD",
        &[("7 NEWMETHOD", "7 INVITE")],
        "501",
    ),
    rule(
        "a branch that is the magic cookie and no more",
        "badbranch",
        "OPTIONS",
        &[("z9hG4bKrule", "z9hG4bK")],
        "400",
    ),
    rule(
        "no Call-ID, From or To",
        "insuf",
        "INVITE",
        &[
            ("Call-ID: rule@192.0.2.9\r\n", ""),
            (
                "From: \"A. Caller\" <sip:caller@example.org>;tag=f1\r\n",
                "",
            ),
            ("To: <sip:callee@example.com>\r\n", ""),
        ],
        "400",
    ),
    rule(
        "a scheme that nobody knows",
        "unkscm",
        "OPTIONS",
        &[(
            "sip:callee@example.com SIP",
            "nobodyKnowsThisScheme:totallyopaquecontent SIP",
        )],
        "416",
    ),
    rule(
        "a scheme that is not SIP's",
        "novelsc",
        "OPTIONS",
        &[(
            "sip:callee@example.com SIP",
            "soap.beep://192.0.2.103:3002 SIP",
        )],
        "416",
    ),
    rule(
        "an address-of-record that is not SIP's",
        "unksm2",
        "REGISTER",
        &[
            TO_REGISTRAR,
            ("<sip:callee@example.com>", "<isbn:2983792873>"),
        ],
        "400",
    ),
    rule(
        "an extension that the proxy has not",
        "bext01",
        "OPTIONS",
        &[(
            "Contact:",
            "Require: a\r\nProxy-Require: noProxiesSupportThis\r\nContact:",
        )],
        "420",
    ),
    rule(
        "two of what there must be one of",
        "multi01",
        "INVITE",
        &[("Call-ID: ", "Call-ID: other\r\nCall-ID: ")],
        "400",
    ),
    rule(
        "no hop is left",
        "zeromf",
        "MESSAGE",
        &[("Max-Forwards: 70", "Max-Forwards: 0")],
        "483",
    ),
];

const RESPONSES: &[Rule] = &[
    rule(
        "a stray response, whatever its reason",
        "unreason",
        RESPONSE,
        &[("200 OK", "200 = 2**3 * 5**2 \u{43d}\u{43e}")],
        "nothing",
    ),
    rule(
        "a stray response without a reason",
        "noreason",
        RESPONSE,
        &[("200 OK", "200 ")],
        "nothing",
    ),
    rule(
        "a response whose CSeq is beyond 32 bits",
        "scalarlg",
        RESPONSE,
        &[("CSeq: 7", "CSeq: 9292394834772304023312")],
        "nothing",
    ),
    rule(
        "a stray response whose Via has the broadcast address",
        "bcast",
        RESPONSE,
        &[(
            "192.0.2.9;",
            "192.0.2.198;branch=z9hG4bKup, SIP/2.0/UDP 255.255.255.255;",
        )],
        "nothing",
    ),
    over_tcp(
        "nothing closed",
        rule(
            "a status code of ten digits",
            "bigcode",
            RESPONSE,
            &[("200 OK", "4294967301 better not break the receiver")],
            "nothing",
        ),
    ),
    over_tcp(
        "nothing closed",
        rule(
            "a request line without a version",
            "test",
            "INVITE",
            &[(" SIP/2.0\r\nVia", "\r\nVia")],
            "nothing",
        ),
    ),
];

fn message(rule: &Rule) -> Bytes {
    let mut text = if rule.method == RESPONSE {
        PLAIN
            .replace("METHOD sip:callee@example.com SIP/2.0", RESPONSE)
            .replace("METHOD", "INVITE")
    } else {
        PLAIN.replace("METHOD", rule.method)
    };
    for (from, to) in rule.changes {
        assert!(text.contains(from), "{}: {from}", rule.says);
        text = text.replacen(from, to, 1);
    }
    text.into()
}

fn all() -> impl Iterator<Item = &'static Rule> {
    [TAKEN, IPV6, REFUSED, RESPONSES].into_iter().flatten()
}

#[test]
fn every_rule_holds_over_both_transports() {
    for rule in all() {
        let bytes = message(rule);
        let row = Row {
            name: rule.says,
            udp: rule.udp,
            tcp: rule.tcp,
        };
        let seen = judge(&row, &bytes);
        finish(seen, &bytes, rule.says);
    }
}

#[test]
fn every_torture_message_has_a_rule() {
    for row in &ROWS {
        let name = row.name.split('/').next_back().unwrap_or_default();
        let known = all().any(|rule| rule.torture.split(' ').any(|torture| torture == name));
        assert!(known, "{name}");
    }
}
