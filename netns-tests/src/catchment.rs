//! `sipcast-lab catchment`: which edge the routers lead a host to, asked from there.
//!
//! A vantage point is this host, or any on which a command can be run: `--via 'ssh host1 --'` runs the
//! same program there and reads its answer. The service says by which edge a question came to those
//! that are on its list only (`sip.reveal_edge_to`), in a header field of its answer to OPTIONS; no
//! other means is needed, and no privilege.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::process::{Command, ExitCode, Stdio};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, anyhow, ensure};
use concentrator::cdr::rfc3339;
use serde_json::json;

pub(crate) mod prober;
pub(crate) mod report;

use prober::{Asked, Outcome, Prober, Question, Told, Transport};
use report::{Report, Tally};

/// Without an answer for so long, a watcher says so.
const SILENCE: Duration = Duration::from_secs(1);

/// What to ask, from where.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// The anycast address, IPv4 or IPv6
    #[arg(long)]
    service: IpAddr,
    #[arg(long, default_value_t = 5060)]
    port: u16,
    /// udp or tcp
    #[arg(long, value_enum, default_value_t = Transport::Udp)]
    transport: Transport,
    /// Questions from each vantage point; with --watch there is no end without this
    #[arg(long)]
    count: Option<u32>,
    #[arg(long, default_value_t = 200)]
    interval_ms: u64,
    /// An answer that takes longer counts as lost
    #[arg(long, default_value_t = 1000)]
    timeout_ms: u64,
    /// The address of this host to ask from
    #[arg(long)]
    from: Option<IpAddr>,
    /// What to call this host
    #[arg(long, default_value = "here")]
    name: String,
    /// Ask from another host: a command that runs one there, such as 'ssh host1 --'; NAME=COMMAND gives
    /// it a name. May be there several times; all ask at once
    #[arg(long)]
    via: Vec<String>,
    /// What this program is called there
    #[arg(long, default_value = "sipcast-lab")]
    program: String,
    /// JSON instead of a table
    #[arg(long)]
    json: bool,
    /// Print a line at each change of the edge, and at each silence, with the time
    #[arg(long)]
    watch: bool,
}

/// Asks, and prints what was found; fails where some vantage point got no good answer.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    if options.watch {
        return watch(options);
    }
    let reports = if options.via.is_empty() {
        vec![ask_here(options)?]
    } else {
        ask_there(options)?
    };
    if options.json {
        println!("{}", serde_json::to_string(&reports)?);
    } else {
        print!("{}", report::table(&reports));
    }
    Ok(verdict(reports.iter().all(|report| report.error.is_none())))
}

fn verdict(good: bool) -> ExitCode {
    if good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

impl Options {
    fn service(&self) -> SocketAddr {
        SocketAddr::new(self.service, self.port)
    }

    fn question(&self) -> Question {
        Question {
            service: self.service(),
            transport: self.transport,
            from: self.from.map(|address| SocketAddr::new(address, 0)),
            interval: Duration::from_millis(self.interval_ms),
            timeout: Duration::from_millis(self.timeout_ms),
        }
    }

    fn tally(&self) -> Tally {
        Tally::new(&self.name, self.service(), self.transport.to_string())
    }

    /// The same questions as an argument list, for another host.
    fn arguments(&self, name: &str) -> Vec<String> {
        let mut arguments = vec!["catchment".to_owned()];
        let mut add = |flag: &str, value: String| arguments.extend([flag.to_owned(), value]);
        add("--service", self.service.to_string());
        add("--port", self.port.to_string());
        add("--transport", self.transport.to_string());
        add("--interval-ms", self.interval_ms.to_string());
        add("--timeout-ms", self.timeout_ms.to_string());
        add("--name", name.to_owned());
        if let Some(count) = self.count {
            add("--count", count.to_string());
        }
        arguments
    }
}

fn ask_here(options: &Options) -> Result<Report> {
    let count = options.count.unwrap_or(5);
    let mut prober = Prober::new(options.question())?;
    let mut tally = options.tally();
    prober.run(
        |sent| sent < count,
        |asked| {
            tally.note(&asked);
            Ok(())
        },
    )?;
    Ok(tally.finish(prober.trouble.as_ref()))
}

/// From all other hosts at once.
fn ask_there(options: &Options) -> Result<Vec<Report>> {
    thread::scope(|scope| {
        let vias = options.via.iter();
        let asking: Vec<_> = vias
            .map(|via| scope.spawn(move || ask_via(options, via)))
            .collect();
        let answers = asking.into_iter().map(|asking| {
            let answer = asking.join();
            answer.map_err(|_| anyhow!("a vantage point's thread panicked"))
        });
        answers.collect()
    })
}

fn ask_via(options: &Options, via: &str) -> Report {
    let (name, _) = name_and_command(via);
    let answer = || -> Result<Report> {
        let output = command(options, via, &["--json"])?
            .output()
            .with_context(|| format!("cannot start `{via}`"))?;
        let said = String::from_utf8_lossy(&output.stderr);
        let reports: Vec<Report> = serde_json::from_slice(&output.stdout).with_context(|| {
            format!("no answer from there ({}): {}", output.status, said.trim())
        })?;
        reports.into_iter().next().context("an empty answer")
    };
    answer().unwrap_or_else(|error| {
        let (service, transport) = (options.service(), options.transport.to_string());
        Report::failed(name, service, transport, format!("{error:#}"))
    })
}

/// `host1=ssh -p 22 host1 --`; a command without a name is its own.
fn name_and_command(via: &str) -> (&str, &str) {
    let is_name = |text: &str| {
        let fits = |c: char| c.is_ascii_alphanumeric() || ".-_".contains(c);
        !text.is_empty() && text.chars().all(fits)
    };
    match via.split_once('=') {
        Some((name, command)) if is_name(name) => (name, command),
        Some(_) | None => (via, via),
    }
}

fn command(options: &Options, via: &str, more: &[&str]) -> Result<Command> {
    let (name, line) = name_and_command(via);
    let mut words = line.split_whitespace();
    let mut command = Command::new(words.next().context("an empty --via")?);
    command.args(words).arg(&options.program);
    // What ssh joins with spaces must not fall apart there.
    let name = name.replace(char::is_whitespace, "_");
    command.args(options.arguments(&name)).args(more);
    command.stdin(Stdio::null());
    Ok(command)
}

/// Prints changes as they come, here or from other hosts.
fn watch(options: &Options) -> Result<ExitCode> {
    if options.via.is_empty() {
        return watch_here(options);
    }
    let mut more = vec!["--watch"];
    more.extend(options.json.then_some("--json"));
    let mut children = Vec::new();
    for via in &options.via {
        let mut child = command(options, via, &more)?
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start `{via}`"))?;
        let lines = child.stdout.take().context("no output")?;
        let reading = thread::spawn(move || {
            for line in BufReader::new(lines).lines().map_while(Result::ok) {
                println!("{line}");
            }
        });
        children.push((child, reading));
    }
    let mut good = true;
    for (mut child, reading) in children {
        good &= child.wait()?.success();
        ensure!(reading.join().is_ok(), "a vantage point's thread panicked");
    }
    Ok(verdict(good))
}

fn watch_here(options: &Options) -> Result<ExitCode> {
    let mut prober = Prober::new(options.question())?;
    let mut watcher = Watcher {
        options,
        tally: options.tally(),
        last: None,
        silent: false,
    };
    prober.run(
        |sent| options.count.is_none_or(|count| sent < count),
        |asked| watcher.note(&asked),
    )?;
    let report = watcher.tally.finish(prober.trouble.as_ref());
    if let Some(error) = &report.error {
        eprintln!("sipcast-lab: {}: {error}", report.vantage);
    }
    Ok(verdict(report.error.is_none()))
}

struct Watcher<'a> {
    options: &'a Options,
    tally: Tally,
    /// When the last question was sent that was answered.
    last: Option<Instant>,
    silent: bool,
}

impl Watcher<'_> {
    fn note(&mut self, asked: &Asked) -> Result<()> {
        let before = self.tally.note(asked);
        let quiet = self
            .last
            .map(|last| asked.sent.saturating_duration_since(last));
        let Outcome::Answered { told, .. } = &asked.outcome else {
            let long = quiet.is_none_or(|quiet| quiet >= SILENCE);
            if long && !std::mem::replace(&mut self.silent, true) {
                self.say(asked, "no answer", None, None)?;
            }
            return Ok(());
        };
        let was_silent = std::mem::replace(&mut self.silent, false);
        let first = self.last.is_none();
        self.last = Some(self.last.map_or(asked.sent, |last| last.max(asked.sent)));
        if before.is_some() || first || was_silent {
            let what = if before.is_some() {
                "changed"
            } else {
                "answers"
            };
            self.say(asked, what, before.as_ref(), Some(told))?;
        }
        Ok(())
    }

    fn say(
        &self,
        asked: &Asked,
        what: &str,
        before: Option<&Told>,
        told: Option<&Told>,
    ) -> Result<()> {
        let at = rfc3339(
            SystemTime::now()
                .duration_since(UNIX_EPOCH)?
                .saturating_sub(asked.sent.elapsed()),
        );
        let name = &self.options.name;
        let mut out = std::io::stdout().lock();
        if self.options.json {
            let edge = |told: Option<&Told>| told.map(words);
            let line = json!({
                "at": at, "vantage": name, "what": what, "before": edge(before), "edge": edge(told),
            });
            writeln!(out, "{line}")?;
        } else {
            let before = before.map_or(String::new(), |told| format!("{} -> ", words(told)));
            let told = told.map_or(String::new(), words);
            let line = format!("{at}  {name}: {what}  {before}{told}");
            writeln!(out, "{}", line.trim_end())?;
        }
        Ok(out.flush()?)
    }
}

fn words(told: &Told) -> String {
    match told {
        Told::By(edge) => edge.to_string(),
        Told::NoEdge => "no edge".to_owned(),
        Told::Nothing => "an edge that is not revealed to this host".to_owned(),
    }
}
