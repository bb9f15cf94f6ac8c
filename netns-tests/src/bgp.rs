//! BGP speakers of the topology `internet`: the routers' BIRD, and on the edges the recipes of
//! `configs/`, of which only the values of the edge are replaced.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::command;
use crate::namespace::Namespace;
use crate::process::Process;
use crate::topology::internet::Internet;
use crate::wait;

const BIRD_RECIPE: &str = include_str!("../../configs/bird.conf");
const FRR_RECIPE: &str = include_str!("../../configs/frr.conf");
/// Where Debian's package has FRR's daemons.
const FRR_PROGRAMS: &str = "/usr/lib/frr";
/// /run is the lab's own, and its paths are short enough for sockets.
const FRR_SOCKETS: &str = "/run/frr";
const READY: Duration = Duration::from_secs(30);

/// All speakers, running; those that nobody asks are held for their drop.
#[derive(Debug)]
pub(crate) struct Speakers {
    _routers: Vec<Process>,
    /// Of edge 1 and edge 3.
    pub(crate) birds: [Process; 2],
    _frr: Frr,
    folder: PathBuf,
}

/// FRR's daemons on edge 2, in the order of their end.
#[derive(Debug)]
struct Frr {
    _daemons: Vec<Process>,
}

/// How t1 finds out that edge 1 is dead.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Timers {
    pub(crate) bfd: bool,
    pub(crate) hold_s: u32,
}

impl Timers {
    /// Those of the recipes.
    pub(crate) const FAST: Self = Self {
        bfd: true,
        hold_s: 9,
    };

    fn apply(self, config: &str) -> String {
        let bfd = if self.bfd { "bfd on;" } else { "bfd off;" };
        let hold = format!("hold time {};", self.hold_s);
        // A third of it at most (RFC 4271 section 4.4).
        let keepalive = format!("keepalive time {};", (self.hold_s / 4).max(1));
        config
            .replace("bfd on;", bfd)
            .replace("hold time 9;", &hold)
            .replace("keepalive time 3;", &keepalive)
    }
}

/// Makes the config of a router or an edge, by name, another one.
pub(crate) type Edit<'a> = &'a dyn Fn(&str, String) -> Result<String>;

impl Speakers {
    /// Starts all and waits until every router knows its way to the concentrator and to every edge.
    pub(crate) fn start(
        net: &Internet,
        timers: Timers,
        edit: Edit<'_>,
        folder: &Path,
    ) -> Result<Self> {
        let folder = folder.join("bgp");
        fs::create_dir_all(&folder)?;
        let router = |namespace: &Namespace, config: String| {
            let config = edit(namespace.name(), config)?;
            start_bird(namespace, namespace.name(), &config, &folder)
        };
        let routers = vec![
            router(
                &net.t1,
                timers.apply(&router_config(
                    64501,
                    "10.1.12.1",
                    &[
                        ("edge1", "10.0.1.2", 65001),
                        ("t2", "10.1.12.2", 64502),
                        ("core", "10.1.91.9", 65010),
                    ],
                    "protocol bgp edge1v6 from peer6 { neighbor 2001:db8:e1::2 as 65001; }",
                )),
            )?,
            router(
                &net.t2,
                router_config(
                    64502,
                    "10.1.12.2",
                    &[
                        ("edge2", "10.0.2.2", 65002),
                        ("t1", "10.1.12.1", 64501),
                        ("r3", "10.1.23.3", 64503),
                        ("core", "10.1.92.9", 65010),
                    ],
                    "protocol bgp edge2v6 from peer6 { neighbor 2001:db8:e2::2 as 65002; }",
                ),
            )?,
            router(
                &net.r3,
                router_config(
                    64503,
                    "10.1.23.3",
                    &[("edge3", "10.0.3.2", 65003), ("t2", "10.1.23.2", 64502)],
                    "protocol static { ipv4; route 100.65.4.0/24 via 100.64.4.2; }",
                ),
            )?,
            router(
                &net.core,
                router_config(
                    65010,
                    "10.1.91.9",
                    &[("t1", "10.1.91.1", 64501), ("t2", "10.1.92.2", 64502)],
                    "",
                ),
            )?,
        ];
        let speakers = Self {
            _routers: routers,
            birds: [
                router(&net.edges[0], timers.apply(BIRD_RECIPE))?,
                router(&net.edges[2], local_recipe()?)?,
            ],
            _frr: Frr::start(
                &net.edges[1],
                &edit("edge2", FRR_RECIPE.to_owned())?,
                &folder,
            )?,
            folder,
        };
        Self::wait_for_ways(net)?;
        Ok(speakers)
    }

    fn wait_for_ways(net: &Internet) -> Result<()> {
        for (router, network) in [
            (&net.r3, "10.0.9.0/24"),
            (&net.core, "10.0.3.0/24"),
            (&net.core, "10.0.1.0/24"),
            (&net.core, "100.64.1.0/24"),
            (&net.core, "100.65.4.0/24"),
        ] {
            wait::until(&format!("{network} at {}", router.name()), READY, || {
                let routes = router.run(&format!("ip route show {network}"))?;
                Ok((!routes.trim().is_empty()).then_some(()))
            })?;
        }
        Ok(())
    }

    /// Changes the config of a BIRD while it runs.
    pub(crate) fn change(&self, namespace: &Namespace, changes: &[(&str, &str)]) -> Result<()> {
        let file = self.folder.join(format!("{}.conf", namespace.name()));
        let config = changed(fs::read_to_string(&file)?, changes)?;
        fs::write(&file, config)?;
        let answer = self.ask(namespace, "configure")?;
        ensure!(
            answer.contains("Reconfigur"),
            "{} does not take {changes:?}: {answer}",
            namespace.name()
        );
        Ok(())
    }

    /// The same with the FRR of edge 2, which only forgets what is told to it with `no`.
    pub(crate) fn change_frr(&self, net: &Internet, changes: &[(&str, &str)]) -> Result<()> {
        let file = self.folder.join("frr.conf");
        let config = changed(fs::read_to_string(&file)?, changes)?;
        fs::write(&file, config)?;
        load_frr(&net.edges[1], &file)
    }

    /// Starts the BIRD of edge 1 again, which was killed.
    pub(crate) fn restart_bird1(&mut self, net: &Internet) -> Result<()> {
        self.birds[0] = start_bird(&net.edges[0], "edge1", BIRD_RECIPE, &self.folder)?;
        Ok(())
    }

    /// What a router or an edge with BIRD says to a command of `birdc`.
    pub(crate) fn ask(&self, namespace: &Namespace, question: &str) -> Result<String> {
        let socket = bird_socket(namespace.name());
        namespace.run(&format!("birdc -s {socket} {question}"))
    }

    /// The route of a BIRD for an address, with all its attributes.
    pub(crate) fn route(&self, namespace: &Namespace, prefix: &str) -> Result<String> {
        self.ask(namespace, &format!("show route all {prefix}"))
    }
}

/// The recipe as it is for a local node at r3.
fn local_recipe() -> Result<String> {
    let changes = [
        ("ROUTER_ID = 10.0.1.2;", "ROUTER_ID = 10.0.3.2;"),
        ("OUR_AS = 65001;", "OUR_AS = 65003;"),
        ("PROVIDER_AS = 64501;", "PROVIDER_AS = 64503;"),
        ("PROVIDER4 = 10.0.1.1;", "PROVIDER4 = 10.0.3.1;"),
        ("LOCAL_NODE = 0;", "LOCAL_NODE = 1;"),
        ("MARK_AS = 0;", "MARK_AS = 64503;"),
        ("MARK_VALUE = 0;", "MARK_VALUE = 120;"),
    ];
    let mut recipe = changed(BIRD_RECIPE.to_owned(), &changes)?;
    // There is no IPv6 between edge 3 and r3.
    let begin = recipe
        .find("protocol bgp provider6")
        .context("no provider6")?;
    recipe.truncate(begin);
    Ok(recipe)
}

/// A config with each of these replaced where it is first.
pub(crate) fn changed(mut config: String, changes: &[(&str, &str)]) -> Result<String> {
    for (from, to) in changes {
        ensure!(config.contains(from), "a config has no `{from}`");
        config = config.replacen(from, to, 1);
    }
    Ok(config)
}

/// A transit router: everything to everybody, and who shuts down gracefully is the last choice.
fn router_config(asn: u32, id: &str, neighbours: &[(&str, &str, u32)], more: &str) -> String {
    let neighbours: String = neighbours
        .iter()
        .map(|(name, address, peer)| {
            format!("protocol bgp {name} from peer {{ neighbor {address} as {peer}; }}\n")
        })
        .collect();
    format!(
        r#"
log stderr all;
router id {id};
protocol device {{ scan time 10; }}
protocol direct {{ ipv4; }}
protocol kernel kernel4 {{ ipv4 {{ import none; export where source = RTS_BGP; }}; }}
protocol kernel kernel6 {{ ipv6 {{ import none; export where source = RTS_BGP; }}; }}
protocol bfd {{
	interface "*" {{ min rx interval 100 ms; min tx interval 100 ms; multiplier 3; }};
}}
filter heard {{
	if (65535, 0) ~ bgp_community then bgp_local_pref = 0;
	accept;
}}
template bgp speaker {{
	local as {asn};
	direct;
	hold time 9;
	keepalive time 3;
	connect delay time 1;
	error wait time 1, 10;
	bfd on;
}}
template bgp peer from speaker {{
	ipv4 {{ import filter heard; export all; }};
}}
template bgp peer6 from speaker {{
	ipv6 {{ import filter heard; export none; }};
}}
{neighbours}{more}
"#
    )
}

fn bird_socket(name: &str) -> String {
    format!("/run/bird-{name}.ctl")
}

fn start_bird(namespace: &Namespace, name: &str, config: &str, folder: &Path) -> Result<Process> {
    fs::write(folder.join(format!("{name}.conf")), config)?;
    let (config, pid) = (format!("{name}.conf"), format!("{name}.pid"));
    let socket = bird_socket(name);
    let arguments = ["-f", "-c", &config, "-s", &socket, "-P", &pid];
    Process::start(
        namespace,
        &format!("bird-{name}"),
        "bird",
        &arguments,
        folder,
    )
}

impl Frr {
    fn start(namespace: &Namespace, recipe: &str, folder: &Path) -> Result<Self> {
        fs::create_dir_all(FRR_SOCKETS)?;
        let script = folder.join("frr.conf");
        fs::write(&script, recipe)?;
        fs::write(folder.join("empty.conf"), "")?;
        fs::write(folder.join("group"), group_with_root()?)?;
        let mut daemons = Vec::new();
        for name in ["zebra", "bfdd", "bgpd"] {
            daemons.push(start_daemon(namespace, name, folder)?);
            let socket = Path::new(FRR_SOCKETS).join(format!("{name}.vty"));
            wait::until(&format!("{name} to listen"), READY, || {
                Ok(socket.exists().then_some(()))
            })?;
        }
        load_frr(namespace, &script)?;
        // bgpd first: its peers hear of the end.
        daemons.reverse();
        Ok(Self { _daemons: daemons })
    }
}

fn load_frr(namespace: &Namespace, script: &Path) -> Result<()> {
    let mut vtysh = namespace.command("vtysh");
    vtysh.args(["--vty_socket", FRR_SOCKETS, "-f"]).arg(script);
    command::finish(namespace.name(), "vtysh -f frr.conf", vtysh, "").map(drop)
}

/// FRR insists that its user is in the group of its sockets. In the daemon's own view of /etc/group
/// root is, and nobody else sees that.
fn start_daemon(namespace: &Namespace, name: &str, folder: &Path) -> Result<Process> {
    const AS_ROOT: &str = r#"mount --bind group /etc/group && exec "$0" "$@""#;
    let program = format!("{FRR_PROGRAMS}/{name}");
    let file = |kind: &str| format!("{FRR_SOCKETS}/{name}.{kind}");
    let (pid, zserv, control) = (
        file("pid"),
        format!("{FRR_SOCKETS}/zserv.api"),
        file("control"),
    );
    let mut arguments = vec!["--mount", "sh", "-c", AS_ROOT, &program];
    arguments.extend(["-f", "empty.conf", "-i", &pid, "-z", &zserv]);
    arguments.extend([
        "--vty_socket",
        FRR_SOCKETS,
        "-P",
        "0",
        "-u",
        "root",
        "-g",
        "root",
    ]);
    arguments.extend(["--log", "stdout"]);
    if name == "bfdd" {
        arguments.extend(["--bfdctl", &control]);
    }
    Process::start(namespace, name, "unshare", &arguments, folder)
}

fn group_with_root() -> Result<String> {
    let groups = fs::read_to_string("/etc/group")?;
    ensure!(
        groups.contains("\nfrrvty:"),
        "there is no group frrvty: Debian's package frr makes it"
    );
    let lines = groups
        .lines()
        .map(|line| match line.strip_prefix("frrvty:") {
            Some(_) if line.ends_with(':') => format!("{line}root\n"),
            Some(_) => format!("{line},root\n"),
            None => format!("{line}\n"),
        });
    Ok(lines.collect())
}
