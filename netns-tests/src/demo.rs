//! `sipcast-lab demo`: a call over UDP and one over TCP, each with a route flip in its middle.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail};

use crate::call::{self, CallRecord, Middle, Plan};
use crate::command;
use crate::ladder;
use crate::phone::{Script, Transport};
use crate::service::Service;
use crate::topology::two_edges::TwoEdges;
use crate::verdict::{self, Criterion, Direction, Figures};

/// Runs it; an error names what fell short.
pub(crate) fn run(out: &Path, seconds: u32) -> Result<()> {
    fs::create_dir_all(out)?;
    let out = out.canonicalize()?;
    let progress = |line: &str| println!("  ... {line}");
    println!("Building the network `two-edges`");
    let work = out.join("work");
    if work.exists() {
        fs::remove_dir_all(&work)?;
    }
    fs::create_dir_all(&work)?;
    let net = TwoEdges::build()?;
    let mut short = Vec::new();
    for transport in [Transport::Udp, Transport::Tcp] {
        println!("\nA call over {transport}: {seconds} s of audio each way");
        let plan = Plan {
            transport,
            script: Script::Plain,
            seconds,
            padding: 0,
            middle: Middle::Flip,
        };
        let folder = work.join(transport.to_string());
        fs::create_dir_all(&folder)?;
        // Fresh programs: else the phones' bindings of the first call would be called too.
        let mut service = Service::start(&net, &folder)?;
        progress("ingress and relay on both edges, and the concentrator, are up");
        let record = call::place(&net, &mut service, plan, &folder, &progress)?;
        short.extend(show(&record, &out)?);
    }
    if !short.is_empty() {
        bail!("fell short:\n  {}", short.join("\n  "));
    }
    Ok(())
}

/// Prints and writes everything about a call; gives back the criteria that were not met.
fn show(record: &CallRecord, out: &Path) -> Result<Vec<String>> {
    let figures = verdict::figures(record);
    let criteria = verdict::criteria(record, &figures);
    let rows = ladder::rows(record, &figures);
    println!("\n{}", ladder::text(&rows));
    println!("{}", table(record, &figures));
    for criterion in &criteria {
        let sign = if criterion.met { "ok   " } else { "SHORT" };
        println!("  {sign} {} ({})", criterion.what, criterion.seen);
    }
    let short: Vec<String> = criteria
        .iter()
        .filter(|criterion| !criterion.met)
        .map(|criterion| {
            format!(
                "{}: {} ({})",
                record.plan.transport, criterion.what, criterion.seen
            )
        })
        .collect();
    if !record.complaints.is_empty() {
        println!("\n  the caller's SIPp says:\n{}", record.complaints);
    }
    let sentence = sentence(record, &figures, short.is_empty());
    println!("\n{sentence}");
    let name = format!("demo-{}", record.plan.transport);
    let picture = ladder::svg(&rows);
    fs::write(out.join(format!("{name}.svg")), &picture)?;
    let page = page(record, &figures, &criteria, &picture, &sentence);
    fs::write(out.join(format!("{name}.html")), page)?;
    merge(record, &out.join(format!("{name}.pcapng")))?;
    println!(
        "Ladder: {0}/{name}.html   capture: {0}/{name}.pcapng",
        out.display()
    );
    Ok(short)
}

/// The facts in rows of name and value.
fn facts(record: &CallRecord, figures: &Figures) -> Vec<(String, String)> {
    let hop = |method: &str| {
        let message = figures
            .tunnelled
            .iter()
            .find(|message| message.line.starts_with(method));
        verdict::show(message.map(|message| (message.key, message.mark)))
    };
    let mut facts = vec![
        ("INVITE came through".into(), hop("INVITE")),
        ("BYE came through".into(), hop("BYE")),
        ("relay before the flip".into(), relays(figures, false)),
        ("relay after the flip".into(), relays(figures, true)),
        (
            "post-dial delay (INVITE to 180)".into(),
            figures
                .post_dial_ms
                .map_or_else(|| "none".into(), |delay| format!("{delay:.1} ms")),
        ),
    ];
    if record.plan.transport == Transport::Tcp {
        facts.push((
            "TCP connections of ua1".into(),
            figures.connections.to_string(),
        ));
    }
    for (name, way) in [
        ("ua1 to ua2", &figures.to_callee),
        ("ua2 to ua1", &figures.to_caller),
    ] {
        facts.push((
            format!("RTP {name}"),
            format!(
                "sent {}, relayed {}, received {}, loss {:.2} %",
                way.sent,
                way.relayed[0] + way.relayed[1],
                way.received,
                way.loss() * 100.0
            ),
        ));
    }
    facts
}

fn relays(figures: &Figures, after: bool) -> String {
    let share = |way: &Direction, edge: usize| {
        if after {
            way.relayed_after_flip[edge]
        } else {
            way.relayed[edge] - way.relayed_after_flip[edge]
        }
    };
    let packets = |edge| share(&figures.to_callee, edge) + share(&figures.to_caller, edge);
    format!("edge 1: {} packets, edge 2: {}", packets(0), packets(1))
}

fn table(record: &CallRecord, figures: &Figures) -> String {
    facts(record, figures)
        .into_iter()
        .map(|(name, value)| format!("  {name:<34}{value}\n"))
        .collect()
}

fn sentence(record: &CallRecord, figures: &Figures, good: bool) -> String {
    if !good {
        return format!(
            "The {} call fell short of what it must show.",
            record.plan.transport
        );
    }
    let connection = match record.plan.transport {
        Transport::Udp => "",
        Transport::Tcp | Transport::Tls => ". The caller used one connection for all of it",
    };
    format!(
        "Shown: two phones behind NATs at the same private address called each other through one \
         anycast address; the caller's route moved from edge 1 to edge 2 in mid-call, all {} + {} \
         RTP packets kept going through the relay of edge 1, and the BYE through edge 2 ended call \
         and session{connection}.",
        figures.to_callee.received, figures.to_caller.received
    )
}

fn page(
    record: &CallRecord,
    figures: &Figures,
    criteria: &[Criterion],
    picture: &str,
    sentence: &str,
) -> String {
    let cell = ladder::escape;
    let facts: String = facts(record, figures)
        .iter()
        .map(|(name, value)| format!("<tr><th>{}</th><td>{}</td></tr>\n", cell(name), cell(value)))
        .collect();
    let criteria: String = criteria
        .iter()
        .map(|criterion| {
            let sign = if criterion.met { "ok" } else { "short" };
            let (what, seen) = (cell(&criterion.what), cell(&criterion.seen));
            format!("<tr class=\"{sign}\"><td>{sign}</td><td>{what}</td><td>{seen}</td></tr>\n")
        })
        .collect();
    let title = format!(
        "sipcast: a call over {} with a route flip",
        record.plan.transport
    );
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{title}</title>\n\
         <style>body{{font-family:sans-serif;max-width:1080px;margin:24px auto;color:#1f2937}}\
         table{{border-collapse:collapse;margin:16px 0}}th,td{{border:1px solid #d1d5db;padding:4px 10px;\
         text-align:left;font-size:14px}}.ok td:first-child{{color:#15803d}}\
         .short td:first-child{{color:#b91c1c;font-weight:bold}}svg{{max-width:100%;height:auto}}</style>\
         </head><body>\n<h1>{title}</h1>\n<p>{}</p>\n<table>\n{facts}</table>\n<table>\n{criteria}</table>\n\
         <p>Thin arrows are SIP, thick ones the GRE tunnel with key and mark; \
         what the concentrator sends goes past the edges.</p>\n{picture}</body></html>\n",
        cell(sentence)
    )
}

/// All captures in one file, each as an interface of its own: ua1, ua2, edge 1, edge 2, concentrator.
fn merge(record: &CallRecord, into: &Path) -> Result<()> {
    let mut merge = Command::new("mergecap");
    merge
        .args(["-F", "pcapng", "-I", "none", "-w"])
        .arg(into)
        .args(&record.files);
    command::finish("lab", "mergecap", merge, "").map(drop)
}
