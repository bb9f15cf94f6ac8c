//! Two concentrators that share the phones of `two-edges` out, with a link between them and one location
//! service on three NATS servers: what a carrier runs so that no process is a single point of failure.

use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::namespace::Namespace;
use crate::nats::{Access, Nats};
use crate::scenario::core_link::section;
use crate::scenario::restart::{KEY, write_key};
use crate::scenario::second_concentrator::{SECOND, start_second, wire_second, with_both};
use crate::service::{ALL_TRANSPORTS, Program, Service};
use crate::topology::two_edges::{CONCENTRATOR, TwoEdges};
use crate::wait;

const PATIENCE: Duration = Duration::from_secs(40);

/// All of it, running.
#[derive(Debug)]
pub(crate) struct TwoConcentrators {
    pub(crate) net: TwoEdges,
    pub(crate) service: Service,
    pub(crate) other: Program,
    pub(crate) second: Namespace,
    pub(crate) nats: Nats,
}

/// What a test changes.
#[derive(Debug, Default)]
pub(crate) struct Setup<'a> {
    /// Sections of both concentrators' files.
    pub(crate) more: &'a str,
    /// Keys in the `[sip]` of both.
    pub(crate) sip: &'a str,
    /// Keys in the `[core_link]` of both.
    pub(crate) core_link: &'a str,
    pub(crate) nats: Access,
}

/// One of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Which {
    First,
    Second,
}

impl Which {
    pub(crate) const fn other(self) -> Self {
        match self {
            Self::First => Self::Second,
            Self::Second => Self::First,
        }
    }
}

impl TwoConcentrators {
    /// Starts everything, and waits until both serve, know each other and share one location service.
    /// `more` are sections of both concentrators' files.
    pub(crate) fn start(more: &str, folder: &Path) -> Result<Self> {
        let setup = Setup {
            more,
            ..Setup::default()
        };
        Self::start_with(&setup, folder)
    }

    /// The same, with more of its own.
    pub(crate) fn start_with(setup: &Setup<'_>, folder: &Path) -> Result<Self> {
        let Setup {
            more,
            sip,
            core_link,
            nats,
        } = setup;
        let net = TwoEdges::build()?;
        let second = wire_second(&net)?;
        let nats = Nats::start_apart(&net.core, *nats, folder)?;
        write_key(folder)?;
        let address: Ipv4Addr = SECOND.parse()?;
        let section = |name, own, peer, address| {
            let section = section(name, own, peer, address);
            section.replacen("[core_link]\n", &format!("[core_link]\n{core_link}"), 1)
        };
        let of_first = section("c1", CONCENTRATOR, "c2", address);
        let of_second = section("c2", address, "c1", CONCENTRATOR);
        let transports = ALL_TRANSPORTS.replacen("[sip]\n", &format!("[sip]\n{sip}"), 1);
        let config = format!(
            "{KEY}{transports}[location]\nfile = \"location.db\"\n\
             [cluster]\nid = 1\n{}{more}{of_first}",
            nats.keys()
        );
        let equal = |config: String| with_both(&config).replace("weight = 0", "weight = 100");
        let service = Service::start_edited(&net, folder, &config, equal)?;
        let other = start_second(&second, folder, |config| {
            config.replace(&of_first, &of_second)
        })?;
        let rig = Self {
            net,
            service,
            other,
            second,
            nats,
        };
        for which in [Which::First, Which::Second] {
            rig.wait_until_whole(which)?;
        }
        rig.wait_for_shares(2)?;
        Ok(rig)
    }

    /// Waits until both edges share the phones out among so many concentrators.
    pub(crate) fn wait_for_shares(&self, among: usize) -> Result<()> {
        for (ingress, edge) in [
            (&self.service.ingress1, &self.net.edge1),
            (&self.service.ingress2, &self.net.edge2),
        ] {
            wait::until("the edges to share the phones out", PATIENCE, || {
                let status = ingress.status(edge)?;
                let paths = status.get("paths").and_then(Value::as_array);
                let chosen = paths
                    .into_iter()
                    .flatten()
                    .filter(|path| path.get("chosen") == Some(&Value::Bool(true)));
                Ok((chosen.count() == among).then_some(()))
            })?;
        }
        Ok(())
    }

    pub(crate) fn program(&mut self, which: Which) -> &mut Program {
        match which {
            Which::First => &mut self.service.concentrator,
            Which::Second => &mut self.other,
        }
    }

    pub(crate) const fn namespace(&self, which: Which) -> &Namespace {
        match which {
            Which::First => &self.net.concentrator,
            Which::Second => &self.second,
        }
    }

    pub(crate) fn status(&self, which: Which) -> Result<Value> {
        match which {
            Which::First => self.service.concentrator.status(&self.net.concentrator),
            Which::Second => self.other.status(&self.second),
        }
    }

    pub(crate) fn metrics(&self, which: Which) -> Result<Vec<(String, f64)>> {
        match which {
            Which::First => self.service.concentrator.metrics(&self.net.concentrator),
            Which::Second => self.other.metrics(&self.second),
        }
    }

    /// How often something has happened on the links of both.
    pub(crate) fn core_link_events(&self, event: &str) -> Result<u64> {
        let name = format!("sipcast_concentrator_core_link_total{{event=\"{event}\"}}");
        let mut events = 0;
        for which in [Which::First, Which::Second] {
            let metrics = self.metrics(which)?;
            let sample = metrics.iter().find(|(sample, _)| *sample == name);
            events += sample.with_context(|| format!("there is no {name}"))?.1 as u64;
        }
        Ok(events)
    }

    /// Waits until it has its link with the other and all registrations.
    pub(crate) fn wait_until_whole(&self, which: Which) -> Result<()> {
        let mut last = Value::Null;
        wait::until("a concentrator to be whole", PATIENCE, || {
            last = self.status(which)?;
            let linked = last.pointer("/core_link/peers/0/up") == Some(&Value::Bool(true));
            let shares =
                last.pointer("/cluster/state").and_then(Value::as_str) == Some("connected");
            Ok((linked && shares).then_some(()))
        })
        .with_context(|| format!("{which:?}: {} {}", last["core_link"], last["cluster"]))
    }

    /// Waits until this user is known at both.
    pub(crate) fn wait_for_user(&self, user: &str) -> Result<()> {
        for which in [Which::First, Which::Second] {
            wait::until(&format!("{user} to be known at both"), PATIENCE, || {
                Ok(self
                    .users(which)?
                    .iter()
                    .any(|known| known.starts_with(user))
                    .then_some(()))
            })?;
        }
        Ok(())
    }

    /// Users with a binding.
    pub(crate) fn users(&self, which: Which) -> Result<Vec<String>> {
        let status = self.status(which)?;
        let bindings = status.get("bindings").and_then(Value::as_array);
        let users = bindings.into_iter().flatten();
        Ok(users
            .filter_map(|binding| Some(binding.get("user")?.as_str()?.to_owned()))
            .collect())
    }

    /// Who has the calls of the caller: that one's counter of calls grows.
    pub(crate) fn owner_of_calls(&self) -> Result<Which> {
        let calls = |which| -> Result<f64> {
            let metrics = self.metrics(which)?;
            let counter = metrics
                .iter()
                .find(|(name, _)| name.contains("event=\"call\""));
            Ok(counter.map_or(0.0, |(_, value)| *value))
        };
        wait::until("calls", PATIENCE, || {
            let (first, second) = (calls(Which::First)?, calls(Which::Second)?);
            ensure!(
                first < 20.0 || second < 20.0,
                "both have calls of one caller: {first} and {second}"
            );
            Ok(if first >= 20.0 {
                Some(Which::First)
            } else if second >= 20.0 {
                Some(Which::Second)
            } else {
                None
            })
        })
    }
}
