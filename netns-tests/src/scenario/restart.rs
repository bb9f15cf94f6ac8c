//! The concentrator is killed and started again. Between calls: a phone is called that has not
//! registered since, so the binding came from the file. In a call: the media go on, and the BYE finds
//! its way by the cookie alone.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::baresip::bindings;
use crate::phone::{self, Script, Transport};
use crate::service::{FOLDER, Service};
use crate::topology::two_edges::TwoEdges;
use crate::wait;

const SECONDS: u32 = 1;
const PATIENCE: Duration = Duration::from_secs(10);
const LOCATION: &str = "\n[location]\nfile = \"location.db\"\n";

pub(super) fn run(folder: &Path) -> Result<String> {
    let net = TwoEdges::build()?;
    let mut service = Service::start_with(&net, folder, LOCATION)?;
    let mut callee = phone::callee(&net.ua2, Transport::Udp, Script::Plain, SECONDS, folder)?;
    wait::until("the binding of ua2 on the disk", PATIENCE, || {
        callee.check_alive()?;
        let status = service.concentrator.status(&net.concentrator)?;
        let written = status.pointer("/location/written").and_then(Value::as_u64);
        Ok((written >= Some(1)).then_some(()))
    })?;
    let before = registers_of(folder)?;

    let crash = Instant::now();
    service.crash_concentrator(&net, folder)?;
    let away = crash.elapsed();
    let status = service.concentrator.status(&net.concentrator)?;
    ensure!(
        status.pointer("/location/restored") == Some(&Value::from(1)),
        "the binding was not restored: {status}"
    );

    let mut caller = phone::caller(&net.ua1, Transport::Udp, Script::Plain, SECONDS, 0, folder)?;
    let ended = caller.wait(Duration::from_secs(20))?;
    let complaints = std::fs::read_to_string(folder.join("ua1/errors.txt")).unwrap_or_default();
    ensure!(ended.success(), "the call failed: {complaints}");
    let after = registers_of(folder)?;
    ensure!(
        after == before,
        "ua2 has registered {after} times, before the crash {before} times"
    );
    callee.stop()?;
    service.check_alive()?;
    Ok(format!(
        "1 binding restored, called after {} ms, with {after} REGISTER",
        away.as_millis()
    ))
}

/// Of audio in the call that outlives the concentrator.
const LONG: u32 = 10;
pub(crate) const KEY: &str = "\n[cookie]\nkey_file = \"cookie.key\"\n";

pub(super) fn in_mid_call(folder: &Path) -> Result<String> {
    let net = TwoEdges::build()?;
    write_key(folder)?;
    let mut service = Service::start_with(&net, folder, KEY)?;
    let mut callee = phone::callee(&net.ua2, Transport::Udp, Script::Plain, LONG, folder)?;
    wait::until("ua2 to register", PATIENCE, || {
        callee.check_alive()?;
        Ok((!bindings(&net, &service)?.is_empty()).then_some(()))
    })?;
    let mut caller = phone::caller(&net.ua1, Transport::Udp, Script::Plain, LONG, 0, folder)?;
    let relayed = |service: &Service| {
        let name = "sipcast_relay_rtp_packets_sent_total";
        service.relay1.gauge(&net.edge1, name)
    };
    wait::until("RTP through relay 1", PATIENCE, || {
        caller.check_alive()?;
        Ok((relayed(&service)? > 50).then_some(()))
    })?;
    let crash = Instant::now();
    service.crash_concentrator(&net, folder)?;
    let away = crash.elapsed();
    let before = relayed(&service)?;
    let ended = caller.wait(Duration::from_secs(30))?;
    let complaints = std::fs::read_to_string(folder.join("ua1/errors.txt")).unwrap_or_default();
    ensure!(ended.success(), "the call failed: {complaints}");
    let after = relayed(&service)? - before;
    ensure!(after > 50, "{after} RTP packets passed after the crash");
    callee.stop()?;
    service.check_alive()?;
    Ok(format!(
        "away for {} ms; {after} RTP packets after that, and the BYE was answered",
        away.as_millis()
    ))
}

/// A key that is there before and after the crash.
pub(crate) fn write_key(folder: &Path) -> Result<()> {
    let folder = folder.join(FOLDER);
    std::fs::create_dir_all(&folder)?;
    let key = folder.join("cookie.key");
    std::fs::write(&key, [7; 32])?;
    let owner_only = std::fs::Permissions::from_mode(0o600);
    Ok(std::fs::set_permissions(key, owner_only)?)
}

/// REGISTERs that ua2 has sent.
pub(super) fn registers_of(folder: &Path) -> Result<usize> {
    let messages = folder.join("ua2/messages.txt");
    let messages =
        std::fs::read_to_string(&messages).with_context(|| messages.display().to_string())?;
    Ok(messages.matches("REGISTER sip:example.com SIP/2.0").count())
}
