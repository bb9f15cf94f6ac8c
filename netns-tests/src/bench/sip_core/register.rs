//! What an authenticated REGISTER costs inside the SIP core alone: the request that is challenged and the
//! one with credentials, as the phones of `bench signalling/register` send them.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use md5::{Digest as _, Md5};
use serde_json::{Map, json};
use sip::digest::Users;
use sip::proxy::authenticate::{Authentication, ForeignCallers};

use super::{CALLER, Rig, text};
use crate::bench::{Conditions, Outcome};

const REGISTERS: u32 = 100_000;
const USERS: u32 = 1_000;
const REALM: &str = "example.com";
/// Between two, as at 4,000 a second.
const GAP: Duration = Duration::from_micros(250);

pub(super) fn run() -> Result<Outcome> {
    let mut rig = Rig::new();
    let lines: String = (0..USERS).fold(String::new(), |mut lines, number| {
        let _ = writeln!(lines, "{}:{REALM}:{}", user(number), ha1(number));
        lines
    });
    let users = Users::parse(lines.as_bytes(), REALM)?;
    let authentication = Authentication {
        realm: REALM.into(),
        users,
        nonce_lifetime: Duration::from_mins(5),
        foreign_callers: ForeignCallers::Allow,
        trunks: Vec::new(),
    };
    rig.proxy.require_authentication(authentication, rig.now);
    let start = Instant::now();
    for number in 0..REGISTERS {
        rig.register_user(number)
            .with_context(|| format!("REGISTER {number}"))?;
        rig.pass(GAP);
    }
    let took = start.elapsed();
    let n = u64::from(REGISTERS);
    let mut conditions = Conditions::of(n, n, took, 0);
    conditions.more = json!({ "virtual_registers_per_s": 1.0 / GAP.as_secs_f64() });
    Ok(Outcome {
        bench: "sip-core",
        unit: "us_per_register",
        ours: rig.inside.as_secs_f64() * 1e6 / f64::from(REGISTERS),
        peer: None,
        peer_name: None,
        ratio: None,
        beside: Map::new(),
        conditions,
    })
}

impl Rig {
    fn register_user(&mut self, number: u32) -> Result<()> {
        let sent = self.feed(CALLER, request(number, 1, ""))?;
        let challenge = text(&sent, 0)?;
        ensure!(challenge.starts_with("SIP/2.0 401"), "not challenged");
        let (_, nonce) = challenge.split_once("nonce=\"").context("no nonce")?;
        let (nonce, _) = nonce.split_once('"').context("nonce does not end")?;
        let sent = self.feed(CALLER, request(number, 2, &credentials(number, nonce)))?;
        ensure!(text(&sent, 0)?.starts_with("SIP/2.0 200"), "not registered");
        Ok(())
    }
}

fn user(number: u32) -> String {
    format!("user{:04}", number % USERS)
}

fn ha1(number: u32) -> String {
    hex(&format!("{}:{REALM}:secret", user(number)))
}

fn hex(text: &str) -> String {
    Md5::digest(text)
        .iter()
        .fold(String::new(), |mut hex, byte| {
            let _ = write!(hex, "{byte:02x}");
            hex
        })
}

fn request(number: u32, cseq: u32, credentials: &str) -> String {
    let user = user(number);
    format!(
        "REGISTER sip:{REALM} SIP/2.0\r\nVia: SIP/2.0/UDP {CALLER};rport;branch=z9hG4bK-4242-{number}-{cseq}\r\n\
         Max-Forwards: 70\r\nFrom: <sip:{user}@{REALM}>;tag=r4242x{number}\r\nTo: <sip:{user}@{REALM}>\r\n\
         Call-ID: {number}-4242@203.0.113.10\r\nCSeq: {cseq} REGISTER\r\nContact: <sip:{user}@{CALLER}>\r\n\
         {credentials}Expires: 3600\r\nContent-Length: 0\r\n\r\n"
    )
}

/// As SIPp writes them.
fn credentials(number: u32, nonce: &str) -> String {
    let uri = format!("sip:{REALM}");
    let ha2 = hex(&format!("REGISTER:{uri}"));
    let response = hex(&format!(
        "{}:{nonce}:00000001:6b8b4567:auth:{ha2}",
        ha1(number)
    ));
    format!(
        "Authorization: Digest username=\"{}\",realm=\"{REALM}\",cnonce=\"6b8b4567\",nc=00000001,qop=auth,\
         uri=\"{uri}\",nonce=\"{nonce}\",response=\"{response}\",algorithm=MD5\r\n",
        user(number)
    )
}
