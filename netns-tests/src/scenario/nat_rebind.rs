//! In mid-call the NAT of the called phone forgets its mappings; the phone registers again, from a new
//! port, and the caller's BYE must reach it there.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::phone::{self, Script, Transport};
use crate::service::Service;
use crate::topology::two_edges::TwoEdges;
use crate::wait;

/// The phone registers again so long after the first time; by then the call is up and the NAT has
/// forgotten.
const AGAIN_MS: u32 = 8_000;
/// The call lasts two seconds longer, so that the BYE comes after that.
const SECONDS: u32 = 8;
const PATIENCE: Duration = Duration::from_secs(20);
const NO_MEDIA: &str = "\n[media]\nrelay = \"never\"\n";

pub(super) fn run(folder: &Path) -> Result<String> {
    let net = TwoEdges::build()?;
    let mut service = Service::start_with(&net, folder, NO_MEDIA)?;
    let mut callee = phone::callee_again(&net.ua2, Transport::Udp, SECONDS, AGAIN_MS, folder)?;
    let before = flow_of_ua2(&service, &net, "")?;
    let mut caller = phone::caller(&net.ua1, Transport::Udp, Script::Plain, SECONDS, 0, folder)?;
    wait::until("the call to be answered", PATIENCE, || {
        caller.check_alive()?;
        let answered = event(&service, &net, "call_answered")?;
        Ok((answered == 1.0).then_some(()))
    })?;
    // Taking the address away makes the kernel forget what it masqueraded behind it.
    for line in [
        "ip addr del 192.0.2.2/24 dev wan",
        "ip addr add 192.0.2.2/24 dev wan",
        "ip route add default via 192.0.2.1",
    ] {
        net.nat_b.run(line)?;
    }
    let after = flow_of_ua2(&service, &net, &before)?;
    let ended = caller.wait(PATIENCE)?;
    let complaints = std::fs::read_to_string(folder.join("ua1/errors.txt")).unwrap_or_default();
    ensure!(ended.success(), "the BYE was not answered: {complaints}");
    let followed = event(&service, &net, "flow_followed")?;
    ensure!(followed >= 1.0, "the BYE went to the old flow");
    callee.stop()?;
    service.check_alive()?;
    Ok(format!("{before} became {after}, and the BYE went there"))
}

/// The flow of ua2's binding, once it is another than this.
fn flow_of_ua2(service: &Service, net: &TwoEdges, not: &str) -> Result<String> {
    wait::until("a new flow of ua2", PATIENCE, || {
        let status = service.concentrator.status(&net.concentrator)?;
        let bindings = status.get("bindings").and_then(Value::as_array);
        let bindings = bindings.with_context(|| format!("no bindings in {status}"))?;
        let flow = bindings
            .iter()
            .find(|binding| binding["user"] == "ua2@example.com")
            .and_then(|binding| binding["flow"].as_str());
        Ok(flow.filter(|flow| *flow != not).map(str::to_owned))
    })
}

/// How often something has happened at the concentrator.
fn event(service: &Service, net: &TwoEdges, name: &str) -> Result<f64> {
    let metrics = service.concentrator.metrics(&net.concentrator)?;
    let label = format!("\"{name}\"");
    let sample = metrics.iter().find(|(sample, _)| sample.contains(&label));
    Ok(sample.map_or(0.0, |(_, value)| *value))
}
