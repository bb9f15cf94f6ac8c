//! What can happen to the rig of two concentrators, how it is repaired, and how to tell that all is well again.
//!
//! The routes of `two-edges` are the lab's, so where an edge withdraws the service address, or where its
//! neighbours find out that it is gone, the lab moves the route as BGP and BFD would (`withdraw`).
//! A hung ingress goes on announcing; whoever runs one has a watchdog, and so has the lab.

use std::fmt;
use std::net::Ipv4Addr;
use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::namespace::Namespace;
use crate::process::Process;
use crate::scenario::internet::accidents::DEAD;
use crate::scenario::second_concentrator::SECOND;
use crate::service::{Program, binary};
use crate::topology::two_edges::{CONCENTRATOR, EDGE2, NAT_A, NAT_B, SERVICE};
use crate::two_concentrators::{TwoConcentrators, Which};
use crate::wait;

const PATIENCE: Duration = Duration::from_secs(60);
/// Until a neighbour's BFD has noticed that an edge is gone.
const BFD: Duration = Duration::from_millis(300);
/// The stream of the registrations.
pub(crate) const STREAM: &str = "KV_sipcast";

/// Which way a cut goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// Neither hears the other.
    Both,
    /// It hears nothing.
    Deaf,
    /// It is not heard.
    Mute,
}

/// One thing that happens. Edges and relays are those of the first or the second edge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Accident {
    KillConcentrator(Which),
    StopConcentrator(Which),
    /// All its links.
    CutConcentrator(Which),
    DrainConcentrator(Which),
    KillIngress(Which),
    StopIngress(Which),
    /// All links of the edge, the relay's too.
    CutEdge(Which),
    DrainIngress(Which),
    KillRelay(Which),
    StopRelay(Which),
    KillNats(usize),
    StopNats(usize),
    CutNats(usize),
    /// Between the concentrators.
    CutCore(Which, Way),
    /// Between this concentrator and all NATS servers.
    CutFromNats(Which, Way),
    /// The NAT of the first or the second phone forgets.
    RebindNat(Which),
    /// The phones of an edge reach the other one for a while.
    FlipRoute(Which),
}

impl fmt::Display for Accident {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = |which: &Which| match which {
            Which::First => 1,
            Which::Second => 2,
        };
        match self {
            Self::KillConcentrator(which) => write!(f, "kill-concentrator{}", number(which)),
            Self::StopConcentrator(which) => write!(f, "stop-concentrator{}", number(which)),
            Self::CutConcentrator(which) => write!(f, "cut-concentrator{}", number(which)),
            Self::DrainConcentrator(which) => write!(f, "drain-concentrator{}", number(which)),
            Self::KillIngress(which) => write!(f, "kill-ingress{}", number(which)),
            Self::StopIngress(which) => write!(f, "stop-ingress{}", number(which)),
            Self::CutEdge(which) => write!(f, "cut-edge{}", number(which)),
            Self::DrainIngress(which) => write!(f, "drain-ingress{}", number(which)),
            Self::KillRelay(which) => write!(f, "kill-relay{}", number(which)),
            Self::StopRelay(which) => write!(f, "stop-relay{}", number(which)),
            Self::KillNats(server) => write!(f, "kill-nats{server}"),
            Self::StopNats(server) => write!(f, "stop-nats{server}"),
            Self::CutNats(server) => write!(f, "cut-nats{server}"),
            Self::CutCore(which, way) => write!(f, "cut-core{}{way}", number(which)),
            Self::CutFromNats(which, way) => write!(f, "cut-from-nats{}{way}", number(which)),
            Self::RebindNat(which) => write!(f, "rebind-nat{}", number(which)),
            Self::FlipRoute(which) => write!(f, "flip-route{}", number(which)),
        }
    }
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Both => "",
            Self::Deaf => "-deaf",
            Self::Mute => "-mute",
        })
    }
}

impl Accident {
    /// It happens. What BGP makes of it has happened too when this returns.
    pub(crate) fn happen(self, rig: &mut TwoConcentrators) -> Result<()> {
        match self {
            Self::KillConcentrator(which) => rig.program(which).process.kill(),
            Self::StopConcentrator(which) => rig.program(which).process.signal(Signal::SIGSTOP),
            Self::CutConcentrator(which) => rig.namespace(which).nft(DEAD),
            Self::DrainConcentrator(which) => rig.program(which).process.signal(Signal::SIGUSR1),
            Self::KillIngress(edge) => {
                rig.ingress(edge).process.kill()?;
                rig.wait_for_withdrawal(edge)?;
                rig.withdraw(edge)
            }
            Self::StopIngress(edge) => {
                rig.ingress(edge).process.signal(Signal::SIGSTOP)?;
                // A watchdog that asks for the health page, and waits 3 s for it.
                ensure!(!rig.ingress_is_healthy(edge), "a stopped ingress answers");
                rig.ingress(edge).process.kill()?;
                rig.wait_for_withdrawal(edge)?;
                rig.withdraw(edge)
            }
            Self::CutEdge(edge) => {
                rig.edge(edge).nft(DEAD)?;
                thread::sleep(BFD);
                rig.withdraw(edge)
            }
            Self::DrainIngress(edge) => {
                rig.ingress(edge).process.signal(Signal::SIGUSR1)?;
                rig.wait_for_withdrawal(edge)?;
                rig.withdraw(edge)
            }
            Self::KillRelay(edge) => rig.relay(edge).process.kill(),
            Self::StopRelay(edge) => rig.relay(edge).process.signal(Signal::SIGSTOP),
            Self::KillNats(server) => rig.nats.kill(server),
            Self::StopNats(server) => rig.nats.signal(server, Signal::SIGSTOP),
            Self::CutNats(server) => rig.nats.home(server)?.nft(DEAD),
            Self::CutCore(which, way) => {
                let other = [rig.tunnel_end(which.other())?];
                rig.namespace(which).nft(&cut(&other, way))
            }
            Self::CutFromNats(which, way) => {
                let servers = rig.nats.addresses();
                rig.namespace(which).nft(&cut(&servers, way))
            }
            Self::RebindNat(phone) => rig.forget_mappings(phone),
            Self::FlipRoute(edge) => rig.withdraw(edge),
        }
    }

    /// Puts right what happened; does not wait until all is well.
    pub(crate) fn repair(self, rig: &mut TwoConcentrators) -> Result<()> {
        match self {
            Self::KillConcentrator(which) => rig.start_concentrator(which),
            Self::StopConcentrator(which) => rig.program(which).process.signal(Signal::SIGCONT),
            Self::CutConcentrator(which) => reconnect(rig.namespace(which), "dead"),
            Self::DrainConcentrator(which) => rig.program(which).process.signal(Signal::SIGUSR2),
            Self::KillIngress(edge) | Self::StopIngress(edge) => {
                rig.start_ingress(edge)?;
                rig.announce_when_ready(edge)
            }
            Self::CutEdge(edge) => {
                reconnect(rig.edge(edge), "dead")?;
                rig.announce_when_ready(edge)
            }
            Self::DrainIngress(edge) => {
                rig.ingress(edge).process.signal(Signal::SIGUSR2)?;
                rig.announce_when_ready(edge)
            }
            Self::KillRelay(edge) => rig.start_relay(edge),
            Self::StopRelay(edge) => rig.relay(edge).process.signal(Signal::SIGCONT),
            Self::KillNats(_) => rig.nats.start_missing(&rig.net.core),
            Self::StopNats(server) => rig.nats.signal(server, Signal::SIGCONT),
            Self::CutNats(server) => reconnect(rig.nats.home(server)?, "dead"),
            Self::CutCore(which, _) | Self::CutFromNats(which, _) => {
                reconnect(rig.namespace(which), "cut")
            }
            Self::RebindNat(_) => Ok(()),
            Self::FlipRoute(edge) => rig.announce(edge),
        }
    }
}

/// What keeps a host from these others.
fn cut(others: &[Ipv4Addr], way: Way) -> String {
    let list: Vec<String> = others.iter().map(Ipv4Addr::to_string).collect();
    let list = list.join(", ");
    let hears = format!(
        "chain in {{ type filter hook input priority -300; ip saddr {{ {list} }} drop; }}\n"
    );
    let says = format!(
        "chain out {{ type filter hook output priority -300; ip daddr {{ {list} }} drop; }}\n"
    );
    let chains = match way {
        Way::Both => hears + &says,
        Way::Deaf => hears,
        Way::Mute => says,
    };
    format!("table inet cut {{\n{chains}}}\n")
}

fn reconnect(namespace: &Namespace, table: &str) -> Result<()> {
    namespace.run(&format!("nft delete table inet {table}"))?;
    Ok(())
}

impl TwoConcentrators {
    pub(crate) fn ingress(&mut self, edge: Which) -> &mut Program {
        match edge {
            Which::First => &mut self.service.ingress1,
            Which::Second => &mut self.service.ingress2,
        }
    }

    pub(crate) fn relay(&mut self, edge: Which) -> &mut Program {
        match edge {
            Which::First => &mut self.service.relay1,
            Which::Second => &mut self.service.relay2,
        }
    }

    pub(crate) const fn edge(&self, edge: Which) -> &Namespace {
        match edge {
            Which::First => &self.net.edge1,
            Which::Second => &self.net.edge2,
        }
    }

    fn tunnel_end(&self, which: Which) -> Result<Ipv4Addr> {
        Ok(match which {
            Which::First => CONCENTRATOR,
            Which::Second => SECOND.parse()?,
        })
    }

    /// Starts one that has ended; [`Self::wait_until_well`] waits for it.
    pub(crate) fn start_concentrator(&mut self, which: Which) -> Result<()> {
        let file = match which {
            Which::First => "concentrator",
            Which::Second => "concentrator2",
        };
        let process = self.start_again(self.namespace(which), "sipcast-concentrator", file)?;
        self.program(which).process = process;
        Ok(())
    }

    fn start_ingress(&mut self, edge: Which) -> Result<()> {
        let file = match edge {
            Which::First => "ingress1",
            Which::Second => "ingress2",
        };
        let process = self.start_again(self.edge(edge), "sipcast-ingress", file)?;
        self.ingress(edge).process = process;
        Ok(())
    }

    fn start_relay(&mut self, edge: Which) -> Result<()> {
        let file = match edge {
            Which::First => "relay1",
            Which::Second => "relay2",
        };
        let process = self.start_again(self.edge(edge), "sipcast-rtp-agent", file)?;
        self.relay(edge).process = process;
        Ok(())
    }

    /// With the config that it had; its log is the next of its name that there is not yet.
    fn start_again(&self, namespace: &Namespace, program: &str, file: &str) -> Result<Process> {
        let folder = self.service.folder();
        let names = (2_u32..).map(|life| format!("{file}-life{life}"));
        let name = names
            .into_iter()
            .find(|name| !folder.join(format!("{name}.log")).exists())
            .unwrap_or_default();
        let arguments = ["--config", &format!("{file}.toml")];
        let program = binary(program)?;
        Process::start(
            namespace,
            &name,
            &program.to_string_lossy(),
            &arguments,
            folder,
        )
    }

    /// The neighbours of this edge send the service address to the other edge.
    fn withdraw(&self, edge: Which) -> Result<()> {
        match edge {
            Which::First => self.net.flip(),
            Which::Second => self
                .net
                .r2
                .run(&format!("ip route replace {SERVICE}/32 via 10.0.12.1"))
                .map(drop),
        }
    }

    /// They send it to this edge again.
    fn announce(&self, edge: Which) -> Result<()> {
        match edge {
            Which::First => self.net.unflip(),
            Which::Second => self
                .net
                .r2
                .run(&format!("ip route replace {SERVICE}/32 via {EDGE2}"))
                .map(drop),
        }
    }

    /// Waits until the ingress has taken the route back that a BGP speaker would announce.
    fn wait_for_withdrawal(&self, edge: Which) -> Result<()> {
        self.wait_for_route(edge, false)
    }

    fn announce_when_ready(&mut self, edge: Which) -> Result<()> {
        self.wait_for_route(edge, true)?;
        self.announce(edge)
    }

    fn wait_for_route(&self, edge: Which, there: bool) -> Result<()> {
        let what = format!("the announced route of {edge:?} to be there: {there}");
        wait::until(&what, PATIENCE, || {
            let routes = self.edge(edge).run("ip route show proto 60")?;
            Ok((routes.contains(&SERVICE.to_string()) == there).then_some(()))
        })
    }

    fn ingress_is_healthy(&mut self, edge: Which) -> bool {
        let service = &self.service;
        let (ingress, namespace) = match edge {
            Which::First => (&service.ingress1, &self.net.edge1),
            Which::Second => (&service.ingress2, &self.net.edge2),
        };
        ingress.is_healthy(namespace).is_ok()
    }

    /// Taking the address away makes the kernel forget what it masqueraded behind it.
    fn forget_mappings(&self, phone: Which) -> Result<()> {
        let (nat, own, router) = match phone {
            Which::First => (&self.net.nat_a, NAT_A, "203.0.113.1"),
            Which::Second => (&self.net.nat_b, NAT_B, "192.0.2.1"),
        };
        for line in [
            format!("ip addr del {own}/24 dev wan"),
            format!("ip addr add {own}/24 dev wan"),
            format!("ip route add default via {router}"),
        ] {
            nat.run(&line)?;
        }
        Ok(())
    }

    /// Waits until nothing tells that anything has happened.
    pub(crate) fn wait_until_well(&mut self) -> Result<()> {
        for (program, namespace) in [
            (&mut self.service.concentrator, &self.net.concentrator),
            (&mut self.other, &self.second),
            (&mut self.service.ingress1, &self.net.edge1),
            (&mut self.service.ingress2, &self.net.edge2),
            (&mut self.service.relay1, &self.net.edge1),
            (&mut self.service.relay2, &self.net.edge2),
        ] {
            program.wait_until_healthy(namespace)?;
        }
        self.nats.wait_until_led(&self.net.core)?;
        self.nats.wait_until_current(&self.net.core, STREAM)?;
        for which in [Which::First, Which::Second] {
            self.wait_until_whole(which)?;
            wait::until("a concentrator to have nothing to write", PATIENCE, || {
                self.program(which).process.check_alive()?;
                let status = self.status(which)?;
                let written = status.pointer("/cluster/backlog").and_then(Value::as_u64) == Some(0);
                let relays = status.get("relays").and_then(Value::as_array);
                let stocked = relays.into_iter().flatten().filter(|relay| {
                    relay.get("leases").and_then(Value::as_u64) > Some(0)
                        && relay.get("draining") != Some(&Value::Bool(true))
                });
                Ok((written && stocked.count() == 2).then_some(()))
            })?;
        }
        self.wait_for_shares(2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_goes_one_way_or_both() {
        let others = [CONCENTRATOR, EDGE2];
        let deaf = cut(&others, Way::Deaf);
        assert!(deaf.contains("hook input") && !deaf.contains("hook output"));
        assert!(deaf.contains("ip saddr { 10.0.9.2, 10.0.2.2 } drop"));
        let mute = cut(&others, Way::Mute);
        assert!(!mute.contains("hook input") && mute.contains("ip daddr"));
        let both = cut(&others, Way::Both);
        assert!(both.contains("hook input") && both.contains("hook output"));
    }

    #[test]
    fn names_tell_where_it_happened() {
        let name = |accident: Accident| accident.to_string();
        assert_eq!(
            name(Accident::CutCore(Which::Second, Way::Deaf)),
            "cut-core2-deaf"
        );
        assert_eq!(name(Accident::KillNats(1)), "kill-nats1");
    }
}
