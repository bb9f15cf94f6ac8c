//! What must not harm two concentrators that share registrations: a start without NATS, a bucket full of
//! nonsense, of entries of a newer build and of registrations that are long over, a clock that is seven minutes
//! slow, another cookie key, certificates of strangers. Each is said, counted and survived, and the callee that
//! has registered once is called after each.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::core_link::section;
use super::restart::{KEY, registers_of, write_key};
use super::second_concentrator::{SECOND, call, start_second, wire_second, with_both};
use crate::namespace::Namespace;
use crate::nats::{Access, Nats};
use crate::phone::{self, Script, Transport};
use crate::process::Process;
use crate::registrations::{Registered, records};
use crate::service::{Program, Service, binary};
use crate::topology::two_edges::{CONCENTRATOR, TwoEdges};
use crate::{certs, wait};

const NATS: Ipv4Addr = Ipv4Addr::new(10, 0, 9, 1);
const PATIENCE: Duration = Duration::from_secs(40);
/// Entries of each kind of nonsense.
const NONSENSE: usize = 500;
/// Registrations that are over, half of them for so long that nothing is to be known of them.
const STALE: u32 = 3_000;
/// Behind the first one's.
const SLOW_S: i64 = 420;
const FAKETIME: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1";

struct Rig {
    net: TwoEdges,
    service: Service,
    other: Program,
    second: Namespace,
    nats: Nats,
    calls: usize,
}

#[derive(Clone, Copy)]
enum Which {
    First,
    Second,
}

const BOTH: [Which; 2] = [Which::First, Which::Second];

pub(super) fn run(folder: &Path) -> Result<String> {
    let mut rig = Rig::start_without_nats(folder)?;
    let mut callee = phone::callee(&rig.net.ua2, Transport::Udp, Script::Plain, 1, folder)?;
    rig.wait_for_user(Which::First)
        .context("ua2 without NATS")?;
    rig.call(folder).context("without NATS")?;
    rig.nats.start_missing(&rig.net.core)?;
    for which in BOTH {
        rig.wait_for_state(which, "connected")?;
        rig.wait_for_user(which)
            .context("ua2 after NATS has come")?;
    }

    let overwritten = rig.overwrite_the_callee()?;
    let nonsense = rig.fill_with_nonsense()?;
    rig.start_first_with_empty_disk()?;
    rig.counts_nonsense(nonsense)?;
    rig.wait_for_user(Which::First)
        .context("ua2, on an empty disk, beside nonsense")?;
    rig.call(folder).context("beside nonsense")?;

    let offset_ms = rig.second_is_slow()?;
    rig.call(folder).context("with a clock that is slow")?;
    rig.second_has_another_key()?;
    rig.call(folder).context("with another cookie key")?;
    let refused = rig.strangers_on_the_core_link()?;
    rig.call(folder)
        .context("with strangers on the core link")?;

    let registers = registers_of(folder)?;
    ensure!(registers == 1, "ua2 has registered {registers} times");
    callee.stop()?;
    rig.service.check_alive()?;
    Ok(format!(
        "ua2 registered once and was called {} times: without NATS, its entry overwritten ({overwritten} times \
         repaired) among {} entries of nonsense and {STALE} stale ones, beside a clock off by {offset_ms} ms, \
         another cookie key, {refused} strange certificates refused",
        rig.calls,
        nonsense.unreadable + nonsense.newer,
    ))
}

#[derive(Clone, Copy)]
struct Nonsense {
    unreadable: u64,
    newer: u64,
}

impl Rig {
    fn start_without_nats(folder: &Path) -> Result<Self> {
        let net = TwoEdges::build()?;
        let second = wire_second(&net)?;
        let nats = Nats::prepare(NATS, Access::Open, folder)?;
        write_key(folder)?;
        let address: Ipv4Addr = SECOND.parse()?;
        let of_first = section("c1", CONCENTRATOR, "c2", address);
        let of_second = section("c2", address, "c1", CONCENTRATOR);
        let config = format!(
            "{KEY}[location]\nfile = \"location.db\"\n[cluster]\nid = 1\nstart_wait_s = 2\n\
             {}{of_first}",
            nats.keys()
        );
        let service = Service::start_edited(&net, folder, &config, |config| with_both(&config))?;
        let other = start_second(&second, folder, |config| {
            config.replace(&of_first, &of_second)
        })?;
        let rig = Self {
            net,
            service,
            other,
            second,
            nats,
            calls: 0,
        };
        for which in BOTH {
            rig.wait_for_state(which, "degraded")?;
            let trouble = rig.status(which)?["cluster"]["trouble"].to_string();
            ensure!(
                trouble.contains("no NATS server lets us in"),
                "it does not say why: {trouble}"
            );
        }
        Ok(rig)
    }

    fn program(&mut self, which: Which) -> &mut Program {
        match which {
            Which::First => &mut self.service.concentrator,
            Which::Second => &mut self.other,
        }
    }

    fn at(&self, which: Which) -> (&Program, &Namespace) {
        match which {
            Which::First => (&self.service.concentrator, &self.net.concentrator),
            Which::Second => (&self.other, &self.second),
        }
    }

    fn status(&self, which: Which) -> Result<Value> {
        let (program, namespace) = self.at(which);
        program.status(namespace)
    }

    /// A sample of `/metrics`; 0 where there is none.
    fn sample(&self, which: Which, name: &str) -> Result<u64> {
        let (program, namespace) = self.at(which);
        let metrics = program.metrics(namespace)?;
        let sample = metrics.into_iter().find(|(sample, _)| *sample == name);
        Ok(sample.map_or(0, |(_, value)| value as u64))
    }

    fn events(&self, which: Which, event: &str) -> Result<u64> {
        let name = format!("sipcast_concentrator_events_total{{event=\"{event}\"}}");
        self.sample(which, &name)
    }

    fn wait_for_state(&self, which: Which, state: &str) -> Result<()> {
        let mut last = Value::Null;
        wait::until("the state of the cluster", PATIENCE, || {
            last = self.status(which)?["cluster"].clone();
            Ok((last["state"] == state).then_some(()))
        })
        .with_context(|| format!("it is not {state}: {last}"))
    }

    fn wait_for_user(&self, which: Which) -> Result<()> {
        wait::until("ua2 to be known", PATIENCE, || {
            let status = self.status(which)?;
            let bindings = status["bindings"].as_array();
            let users = bindings.into_iter().flatten();
            let mut users = users.filter_map(|binding| binding["user"].as_str());
            Ok(users.any(|user| user.starts_with("ua2@")).then_some(()))
        })
    }

    fn call(&mut self, folder: &Path) -> Result<()> {
        self.calls += 1;
        call(&self.net, &folder.join(format!("call{}", self.calls)))
    }

    /// Somebody puts nonsense in the place of ua2's entry; it is written again, so that one which starts without
    /// anything has it.
    fn overwrite_the_callee(&self) -> Result<u64> {
        let subjects = self.nats.subjects(&self.net.core, "KV_sipcast")?;
        let of_callee: BTreeSet<&String> = subjects
            .iter()
            .filter(|subject| subject.starts_with("$KV.sipcast.b."))
            .collect();
        ensure!(of_callee.len() == 2, "ua1 and ua2 have {of_callee:?}");
        let before = self.events(Which::First, "cluster_written")?;
        for subject in &of_callee {
            self.nats.put(&self.net.core, subject, b"no record")?;
        }
        let overwritten = of_callee.len() as u64;
        wait::until("the entries to be written again", PATIENCE, || {
            let seen = self.events(Which::First, "cluster_overwritten")?;
            let written = self.events(Which::First, "cluster_written")?;
            Ok((seen == overwritten && written >= before + overwritten).then_some(()))
        })?;
        Ok(overwritten)
    }

    /// No record at all, records that end too early, records of a newer build, registrations that are over.
    fn fill_with_nonsense(&self) -> Result<Nonsense> {
        let subject = |number: usize| format!("$KV.sipcast.b.{number:032x}");
        let noise = (0..NONSENSE).map(|n| (subject(n), format!("nonsense {n}").into_bytes()));
        let cut = (0..NONSENSE).map(|n| (subject(NONSENSE + n), vec![0x8f, 0x01, 0x41]));
        let newer = (0..NONSENSE).map(|n| (subject(2 * NONSENSE + n), vec![0x82, 0x02, 0x01]));
        let hours = |ago, expires_s| Registered {
            ago: Duration::from_secs(ago),
            expires_s,
        };
        let long_over = records(0..STALE / 2, hours(3 * 3600, 3600));
        let over = records(STALE / 2..STALE, hours(5400, 3600));
        let all = noise.chain(cut).chain(newer).chain(long_over).chain(over);
        self.nats.publish(&self.net.core, all)?;
        let nonsense = Nonsense {
            unreadable: 2 * NONSENSE as u64,
            newer: NONSENSE as u64,
        };
        Ok(nonsense)
    }

    fn counts_nonsense(&self, nonsense: Nonsense) -> Result<()> {
        for (event, count) in [
            ("cluster_unreadable", nonsense.unreadable),
            ("cluster_newer_version", nonsense.newer),
            ("cluster_stale", STALE.into()),
        ] {
            let mut last = 0;
            wait::until("nonsense to be counted", PATIENCE, || {
                last = self.events(Which::First, event)?;
                Ok((last == count).then_some(()))
            })
            .with_context(|| format!("{event}: {last} and not {count}"))?;
        }
        let past = "sipcast_concentrator_state{kind=\"bindings_past\"}";
        let past = self.sample(Which::First, past)?;
        ensure!(
            past == u64::from(STALE / 2),
            "{past} ends are remembered, of which half is of no use"
        );
        Ok(())
    }

    fn start_first_with_empty_disk(&mut self) -> Result<()> {
        let folder = self.service.folder().to_owned();
        self.service.concentrator.process.kill()?;
        std::fs::remove_file(folder.join("location.db"))?;
        self.service.concentrator.process = Process::start(
            &self.net.concentrator,
            "concentrator-again",
            &binary("sipcast-concentrator")?.to_string_lossy(),
            &["--config", "concentrator.toml"],
            &folder,
        )?;
        let first = &mut self.service.concentrator;
        first.wait_until_healthy(&self.net.concentrator)?;
        self.wait_for_relays()?;
        self.wait_for_state(Which::First, "connected")
    }

    fn wait_for_relays(&self) -> Result<()> {
        wait::until("leases", PATIENCE, || {
            let status = self.status(Which::First)?;
            let relays = status["relays"].as_array();
            let ready = |relay: &&Value| relay["leases"].as_u64() > Some(0);
            let count = relays.into_iter().flatten().filter(ready).count();
            Ok((count == 2).then_some(()))
        })
    }

    /// Starts the second one again, with its config changed and these words before its command.
    fn start_second_again(
        &mut self,
        name: &str,
        before: &[&str],
        edit: impl Fn(String) -> String,
    ) -> Result<()> {
        let folder = self.service.folder().to_owned();
        self.other.process.kill()?;
        let config = edit(std::fs::read_to_string(folder.join("concentrator2.toml"))?);
        let file = format!("{name}.toml");
        std::fs::write(folder.join(&file), config)?;
        let program = binary("sipcast-concentrator")?;
        let program = program.to_string_lossy();
        let arguments = [before, &[&*program, "--config", &file]].concat();
        self.other.process = Process::start(&self.second, name, "env", &arguments, &folder)?;
        self.other.wait_until_healthy(&self.second)?;
        self.wait_for_state(Which::Second, "connected")
    }

    /// A binding ends at both at the same time although one's clock is minutes behind.
    fn second_is_slow(&mut self) -> Result<i64> {
        ensure!(
            Path::new(FAKETIME).is_file(),
            "{FAKETIME} is missing (Debian package faketime); scripts/setup.sh installs it"
        );
        let preload = format!("LD_PRELOAD={FAKETIME}");
        let fake = format!("FAKETIME=-{SLOW_S}s");
        let before = [&*preload, &*fake, "FAKETIME_DONT_FAKE_MONOTONIC=1"];
        self.start_second_again("concentrator2-slow", &before, |config| config)?;
        self.wait_for_user(Which::Second)?;
        let offset = |rig: &Self, which| -> Result<i64> {
            let offset = rig.status(which)?["cluster"]["clock_offset_ms"].as_i64();
            offset.context("no offset")
        };
        let offset_ms = offset(self, Which::Second)?;
        ensure!(
            (offset_ms - SLOW_S * 1000).abs() < 5_000 && offset(self, Which::First)?.abs() < 5_000,
            "the clocks are off by {} and {offset_ms} ms",
            offset(self, Which::First)?
        );
        let expires = |rig: &Self, which| -> Result<i64> {
            let status = rig.status(which)?;
            let bindings = status["bindings"].as_array();
            let mut of_callee = bindings.into_iter().flatten().filter(|binding| {
                let user = binding["user"].as_str().unwrap_or_default();
                user.starts_with("ua2@")
            });
            let binding = of_callee.next().context("ua2 is not there")?;
            binding["expires_in_ms"].as_i64().context("no end")
        };
        let (first, second) = (expires(self, Which::First)?, expires(self, Which::Second)?);
        ensure!(
            (first - second).abs() < 60_000,
            "ua2 ends in {first} ms at one and in {second} ms at the other"
        );
        Ok(offset_ms)
    }

    fn second_has_another_key(&mut self) -> Result<()> {
        let folder = self.service.folder().to_owned();
        let key = folder.join("other.key");
        std::fs::write(&key, [9; 32])?;
        let owner_only = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        std::fs::set_permissions(key, owner_only)?;
        self.start_second_again("concentrator2-key", &[], |config| {
            config.replace("\"cookie.key\"", "\"other.key\"")
        })?;
        let level = "sipcast_concentrator_state{kind=\"cluster_other_keys\"}";
        for which in BOTH {
            wait::until("the other key to be seen", PATIENCE, || {
                Ok((self.sample(which, level)? == 1).then_some(()))
            })?;
            let others = &self.status(which)?["cluster"]["others"];
            ensure!(others[0]["other_cookie_key"] == true, "{others}");
            let log = self.program(which).process.log();
            let lines = log.matches("has another cookie key").count();
            ensure!(lines == 1, "{lines} lines say that the key is another");
        }
        self.start_second_again("concentrator2-key-again", &[], |config| config)?;
        for which in BOTH {
            wait::until("the key to be the same", PATIENCE, || {
                Ok((self.sample(which, level)? == 0).then_some(()))
            })?;
        }
        Ok(())
    }

    /// The second one comes with the certificate of another authority, then with a name that nobody knows.
    fn strangers_on_the_core_link(&mut self) -> Result<u64> {
        let folder = self.service.folder().to_owned();
        let theirs = folder.join("theirs");
        certs::write(&theirs, &["c2".to_owned()])?;
        let refused = "sipcast_concentrator_core_link_total{event=\"refused\"}";
        let before = self.sample(Which::First, refused)?;
        for (name, certificate) in [("stranger", "theirs/c2"), ("nameless", "relay1")] {
            let so_far = self.sample(Which::First, refused)?;
            self.start_second_again(&format!("concentrator2-{name}"), &[], |config| {
                let (own, link) = config.split_at(config.find("[core_link]").unwrap_or(0));
                let link = link
                    .replace("\"c2.pem\"", &format!("\"{certificate}.pem\""))
                    .replace("\"c2.key\"", &format!("\"{certificate}.key\""));
                own.to_owned() + &link
            })
            .with_context(|| format!("with the certificate {certificate}"))?;
            wait::until("strangers to be refused", PATIENCE, || {
                Ok((self.sample(Which::First, refused)? >= so_far + 3).then_some(()))
            })
            .with_context(|| format!("with the certificate {certificate}"))?;
            for which in BOTH {
                let status = self.status(which)?;
                let up = &status["core_link"]["peers"][0]["up"];
                ensure!(*up == false, "there is a link with {certificate}: {status}");
            }
        }
        let log = self.service.concentrator.process.log();
        let lines = log.matches("core link: refused").count();
        ensure!(
            (2..6).contains(&lines),
            "{lines} lines about strangers, who come twice a second"
        );
        Ok(self.sample(Which::First, refused)? - before)
    }
}
