//! XDP in the lab: the fast path of the ingress, and the program that its neighbours need.
//!
//! A veth end takes what the XDP program at the other end sends only while it has an XDP program itself
//! (drivers/net/veth.c), so each neighbour of such an interface gets one that lets everything pass. The
//! senders' checksums are made in software ([`crate::link`]): what XDP sends on is on the wire as it is.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::command;
use crate::namespace::Namespace;

/// Which `xdp.mode` the ingresses of `two-edges` have in all scenarios: that of this variable, if it is set.
pub(crate) const XDP: &str = "SIPCAST_LAB_XDP";

const PASS: &str = r#"
__attribute__((section("xdp"), used)) int pass(void *ctx)
{
    return 2;
}
char _license[] __attribute__((section("license"), used)) = "Dual MIT/GPL";
"#;

/// The same for the relays of `two-edges`. An interface has one XDP program, and an edge one interface.
pub(crate) const XDP_RELAY: &str = "SIPCAST_LAB_XDP_RELAY";

/// The mode of [`XDP_RELAY`].
pub(crate) fn relays_wanted() -> Option<String> {
    std::env::var(XDP_RELAY).ok()
}

/// The mode of [`XDP`].
pub(crate) fn wanted() -> Option<String> {
    std::env::var(XDP).ok()
}

/// The section of ingress.toml or rtp-agent.toml for this mode, on the one interface of an edge.
pub(crate) fn section(mode: &str) -> String {
    format!("[xdp]\nmode = \"{mode}\"\ninterfaces = [\"eth0\"]\n")
}

/// Lets everything pass at this device.
pub(crate) fn let_pass(namespace: &Namespace, device: &str) -> Result<()> {
    // The lab's own, gone with it.
    let (source, object) = (Path::new("/run/pass.bpf.c"), "/run/pass.bpf.o");
    if !source.exists() {
        fs::write(source, PASS)?;
        let compile = format!(
            "clang -target bpf -O2 -g -c {} -o {object}",
            source.display()
        );
        command::run(&compile).context("for the neighbours of XDP")?;
    }
    namespace
        .run(&format!(
            "ip link set dev {device} xdp obj {object} sec xdp"
        ))
        .map(drop)
}

/// The number of the XDP program on this device.
pub(crate) fn program_on(namespace: &Namespace, device: &str) -> Result<u64> {
    let shown = namespace.run(&format!("ip -j link show dev {device}"))?;
    let shown: Value = serde_json::from_str(&shown)?;
    let program = shown.pointer("/0/xdp/prog/id").and_then(Value::as_u64);
    program.with_context(|| format!("no XDP program on {device}: {shown}"))
}

/// Takes away the XDP program on this device, whose owner goes on, as an operator would.
pub(crate) fn take_away(namespace: &Namespace, device: &str) -> Result<()> {
    let program = program_on(namespace, device)?;
    // Links are the whole machine's, and others may have some.
    let links: Vec<Value> = serde_json::from_str(&command::run("bpftool -j link show")?)?;
    let of_program = |link: &&Value| link.get("prog_id").and_then(Value::as_u64) == Some(program);
    let link = links
        .iter()
        .find(of_program)
        .and_then(|link| link.get("id"));
    let link = link.context("the program has no link")?;
    command::run(&format!("bpftool link detach id {link}")).map(drop)
}
