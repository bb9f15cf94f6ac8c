//! A phone registers, the concentrator is killed and started again, and the phone is called: it has
//! not registered since, so the binding came from the file.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::phone::{self, Script, Transport};
use crate::service::Service;
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

/// REGISTERs that ua2 has sent.
fn registers_of(folder: &Path) -> Result<usize> {
    let messages = folder.join("ua2/messages.txt");
    let messages =
        std::fs::read_to_string(&messages).with_context(|| messages.display().to_string())?;
    Ok(messages.matches("REGISTER sip:example.com SIP/2.0").count())
}
