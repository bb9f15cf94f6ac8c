//! The keys of both tunnels change while phones call, and while replies come back through the tunnels: first
//! at the concentrator, which then takes both, then at the edges, and then the old ones go. Every packet that
//! left an edge has arrived, none was refused, and no call has failed.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::baresip::bindings;
use crate::namespace::Namespace;
use crate::phone;
use crate::service::{KEY1, KEY2, Program, Service};
use crate::topology::two_edges::TwoEdges;
use crate::wait;

const CALLS: u32 = 400;
/// A second.
const RATE: u32 = 25;
/// What is added to a key.
const NEXT: u32 = 0x1000;
const PATIENCE: Duration = Duration::from_secs(20);

pub(super) fn run(folder: &Path) -> Result<String> {
    let net = TwoEdges::build()?;
    let back = |config: String| {
        if config.contains("[announcement]") || config.contains("[[edges]]") {
            return config.replace("[tunnel]\n", "[tunnel]\nreturn_path = \"tunnel\"\n");
        }
        config
    };
    let mut service = Service::start_edited(&net, folder, "", back)?;
    let mut callee = phone::quick_callee(&net.ua2, folder)?;
    wait::until("the callee to register", PATIENCE, || {
        Ok((!bindings(&net, &service)?.is_empty()).then_some(()))
    })?;
    let mut caller = phone::quick_caller(&net.ua1, CALLS, RATE, folder)?;
    let mut steps = Vec::new();
    for (step, expected) in [
        (Step::Concentrator, [KEY1, KEY2]),
        (Step::Edges, [KEY1 + NEXT, KEY2 + NEXT]),
        (Step::Forget, [KEY1 + NEXT, KEY2 + NEXT]),
    ] {
        // Some calls before, between and after.
        let arrived = received(&net, &service)?;
        wait::until("some calls", PATIENCE, || {
            caller.check_alive()?;
            Ok((received(&net, &service)? > arrived + 200).then_some(()))
        })?;
        step.take(&net, &service, folder)?;
        for (program, namespace, key) in [
            (&service.ingress1, &net.edge1, expected[0]),
            (&service.ingress2, &net.edge2, expected[1]),
        ] {
            let status = program.status(namespace)?;
            let now = status.pointer("/tunnel/key").and_then(Value::as_u64);
            ensure!(
                now == Some(key.into()),
                "{step:?}: {now:?} instead of {key:#x}"
            );
        }
        steps.push(received(&net, &service)?);
    }
    let complaints = || fs::read_to_string(folder.join("ua1/errors.txt")).unwrap_or_default();
    let status = caller
        .wait(Duration::from_secs(60))
        .with_context(complaints)?;
    ensure!(status.success(), "calls failed: {}", complaints());
    callee.stop()?;
    service.check_alive()?;
    let packets = nothing_is_lost(&net, &service)?;
    Ok(format!(
        "{CALLS} calls, {packets} packets through two tunnels whose keys changed after {steps:?}, none lost"
    ))
}

#[derive(Debug, Clone, Copy)]
enum Step {
    Concentrator,
    Edges,
    Forget,
}

impl Step {
    /// Changes the files, and waits until the programs have read them.
    fn take(self, net: &TwoEdges, service: &Service, folder: &Path) -> Result<()> {
        let folder = folder.join(crate::service::FOLDER);
        let both = |key: u32| format!("key = {:#x}\nold_key = {key:#x}\n", key + NEXT);
        let old = |key: u32| format!("\nold_key = {key:#x}\n");
        let edit = |file: &str, change: &dyn Fn(String, u32) -> String| -> Result<()> {
            let path = folder.join(file);
            let mut text = fs::read_to_string(&path)?;
            for key in [KEY1, KEY2] {
                text = change(text, key);
            }
            Ok(fs::write(path, text)?)
        };
        let renew = |text: String, key: u32| text.replace(&format!("key = {key:#x}\n"), &both(key));
        let forget = |text: String, key: u32| text.replace(&old(key), "\n");
        match self {
            Self::Concentrator => edit("concentrator.toml", &renew)?,
            Self::Edges => {
                edit("ingress1.toml", &renew)?;
                edit("ingress2.toml", &renew)?;
            }
            Self::Forget => {
                for file in ["concentrator.toml", "ingress1.toml", "ingress2.toml"] {
                    edit(file, &forget)?;
                }
            }
        }
        if !matches!(self, Self::Edges) {
            let expected = match self {
                Self::Concentrator => [Some(KEY1), Some(KEY2)],
                Self::Edges | Self::Forget => [None, None],
            };
            service.concentrator.process.hang_up()?;
            wait::until("the concentrator's keys", PATIENCE, || {
                let status = service.concentrator.status(&net.concentrator)?;
                let is_there = expected.iter().enumerate().all(|(place, old)| {
                    let shown = status.pointer(&format!("/edges/{place}/old_key"));
                    let old = old.map(|key| format!("{key:#06x}"));
                    shown.and_then(Value::as_str) == old.as_deref()
                });
                Ok(is_there.then_some(()))
            })?;
        }
        if matches!(self, Self::Concentrator) {
            return Ok(());
        }
        for (program, namespace) in [
            (&service.ingress1, &net.edge1),
            (&service.ingress2, &net.edge2),
        ] {
            hang_up(program, namespace)?;
        }
        Ok(())
    }
}

/// And waits for its word that it has read its file.
fn hang_up(program: &Program, namespace: &Namespace) -> Result<()> {
    let said = |log: String| log.matches("the keys are read again").count();
    let before = said(program.process.log());
    program.process.hang_up()?;
    wait::until("an edge's keys", PATIENCE, || {
        Ok((said(program.process.log()) > before).then_some(()))
    })
    .with_context(|| namespace.name().to_owned())
}

/// Packets that the concentrator has taken out of each tunnel, together.
fn received(net: &TwoEdges, service: &Service) -> Result<u64> {
    let status = service.concentrator.status(&net.concentrator)?;
    let count = |place: usize| {
        let packets = status.pointer(&format!("/edges/{place}/packets"));
        packets.and_then(Value::as_u64).context("no packets")
    };
    Ok(count(0)? + count(1)?)
}

/// Packets that the edges have sent, when as many have arrived. None was refused, here or there.
fn nothing_is_lost(net: &TwoEdges, service: &Service) -> Result<u64> {
    let mut last = (0, 0);
    wait::until("every packet to arrive", PATIENCE, || {
        let sent = sent(&service.ingress1, &net.edge1)? + sent(&service.ingress2, &net.edge2)?;
        last = (sent, received(net, service)?);
        Ok((last.0 == last.1).then_some(()))
    })
    .with_context(|| format!("{} sent, {} received", last.0, last.1))?;
    for (program, namespace) in [
        (&service.concentrator, &net.concentrator),
        (&service.ingress1, &net.edge1),
        (&service.ingress2, &net.edge2),
    ] {
        let metrics = program.metrics(namespace)?;
        let bad = metrics.iter().filter(|(sample, value)| {
            let refusal = ["tunnel_refused", "tunnel_unreturned", "wrong_key"];
            *value > 0.0 && refusal.iter().any(|name| sample.contains(name))
        });
        let bad: Vec<_> = bad.collect();
        ensure!(bad.is_empty(), "{}: {bad:?}", namespace.name());
    }
    Ok(last.0)
}

/// By either way of the edge.
fn sent(program: &Program, namespace: &Namespace) -> Result<u64> {
    let status = program.status(namespace)?;
    let count = |pointer: &str| status.pointer(pointer).and_then(Value::as_u64).unwrap_or(0);
    let fast = ["/xdp/counters/forward_back", "/xdp/counters/forward_across"].map(count);
    Ok(count("/counters/forwarded_packets") + fast.iter().sum::<u64>())
}
