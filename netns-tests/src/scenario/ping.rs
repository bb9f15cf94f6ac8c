//! The concentrator pings a phone behind a symmetric NAT; as long as it answers it stays, and when it
//! is gone, so is its binding.

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};

use crate::phone;
use crate::service::Service;
use crate::topology::two_edges::TwoEdges;
use crate::wait;

const PATIENCE: Duration = Duration::from_secs(20);
const EVERY_SECOND: &str = "\n[registrar]\nping_interval_s = 1\nping_misses = 3\n";

pub(super) fn run(folder: &Path) -> Result<String> {
    let net = TwoEdges::build()?;
    let mut service = Service::start_with(&net, folder, EVERY_SECOND)?;
    let event = |service: &Service, name: &str| -> Result<f64> {
        let metrics = service.concentrator.metrics(&net.concentrator)?;
        let label = format!("\"{name}\"");
        let sample = metrics.iter().find(|(sample, _)| sample.contains(&label));
        Ok(sample.map_or(0.0, |(_, value)| *value))
    };
    let mut phone = phone::alive(&net.ua2, folder)?;
    wait::until("three pings to be answered", PATIENCE, || {
        phone.check_alive()?;
        Ok((event(&service, "ping_answered")? >= 3.0).then_some(()))
    })?;
    let lost = event(&service, "binding_unreachable")?;
    ensure!(
        lost == 0.0,
        "the binding was given up while the phone answered"
    );
    phone.kill()?;
    wait::until("the binding to be given up", PATIENCE, || {
        Ok((event(&service, "binding_unreachable")? == 1.0).then_some(()))
    })?;
    let (sent, answered) = (event(&service, "ping")?, event(&service, "ping_answered")?);
    service.check_alive()?;
    Ok(format!(
        "{sent} pings, {answered} answered, then the phone was gone and its binding too"
    ))
}
