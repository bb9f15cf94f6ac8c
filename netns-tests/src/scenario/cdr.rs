//! Records of calls: one that is answered, one to nobody, one that the concentrator's crash comes between.
//! The file is renamed in between, as logrotate does, and opened anew at SIGHUP.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::phone::{self, Script, Transport};
use crate::process::Process;
use crate::service::{FOLDER, Service};
use crate::topology::two_edges::TwoEdges;
use crate::wait;

/// A section of concentrator.toml.
pub(super) const CDR: &str = "\n[cdr]\nfile = \"cdr.jsonl\"\n";
const COOKIE: &str = "\n[cookie]\nkey_file = \"cookie.key\"\n";
const PATIENCE: Duration = Duration::from_secs(20);
const SECONDS: u32 = 2;
/// Of the call that a crash comes between: it must last until the concentrator is back.
const LONG_S: u32 = 8;

pub(super) fn run(folder: &Path) -> Result<String> {
    let net = TwoEdges::build()?;
    fs::create_dir_all(folder.join(FOLDER))?;
    fs::write(folder.join(FOLDER).join("cookie.key"), [7; 32])?;
    let mut service = Service::start_with(&net, folder, &format!("{CDR}{COOKIE}"))?;

    let mut callee = registered(&net, &service, Script::Plain, SECONDS, folder)?;
    let mut caller = phone::caller(&net.ua1, Transport::Udp, Script::Plain, SECONDS, 0, folder)?;
    ensure!(caller.wait(PATIENCE)?.success(), "the first call failed");
    let answered = next_line(folder, "cdr.jsonl", 1)?;
    check_answered(&answered).with_context(|| answered.to_string())?;
    callee.stop()?;

    let (here, there) = (
        folder.join(FOLDER).join("cdr.jsonl"),
        folder.join(FOLDER).join("cdr.1.jsonl"),
    );
    fs::rename(&here, &there)?;
    service.concentrator.process.hang_up()?;
    wait::until("a new file", PATIENCE, || Ok(here.exists().then_some(())))?;

    let nobody = folder.join("nobody");
    let mut caller = phone::call_to(&net.ua1, "nobody", "example.com", false, false, &nobody)?;
    let ended = caller.wait(PATIENCE)?;
    ensure!(!ended.success(), "a call to nobody succeeded");
    let failed = next_line(folder, "cdr.jsonl", 1)?;
    ensure!(
        failed["status"] == 404
            && failed["ended_by"] == "failed"
            && failed["answer"].is_null()
            && failed["callee"] == "sip:nobody@example.com",
        "a call to nobody is recorded as {failed}"
    );

    let long = folder.join("long");
    let mut callee = registered(&net, &service, Script::Plain, LONG_S, &long)?;
    let mut caller = phone::caller(&net.ua1, Transport::Udp, Script::Plain, LONG_S, 0, &long)?;
    wait::until("the third call to be answered", PATIENCE, || {
        caller.check_alive()?;
        let status = service.concentrator.status(&net.concentrator)?;
        Ok((status.pointer("/calls/0/answered") == Some(&Value::Bool(true))).then_some(()))
    })?;
    service.crash_concentrator(&net, folder)?;
    let ended = caller.wait(PATIENCE)?;
    let complaints = fs::read_to_string(long.join("ua1/errors.txt")).unwrap_or_default();
    ensure!(
        ended.success(),
        "the third call was not ended: {complaints}"
    );
    let partial = next_line(folder, "cdr.jsonl", 2)?;
    ensure!(
        partial["partial"] == true
            && partial["ended_by"] == "caller"
            && partial["caller"] == "sip:ua1@example.com"
            && partial["answer"].is_null(),
        "the call that a crash came between is recorded as {partial}"
    );
    callee.stop()?;
    service.check_alive()?;
    let once = lines(folder, "cdr.1.jsonl")?.len();
    ensure!(once == 1, "the renamed file has {once} lines");
    let caller = &answered["media"][0]["caller"];
    Ok(format!(
        "{} ms with {} packets of the caller, MOS {}; a 404; a partial one over a restart",
        answered["duration_ms"], caller["packets"], caller["mos"]
    ))
}

fn check_answered(line: &Value) -> Result<()> {
    for (key, expected) in [
        ("caller", "sip:ua1@example.com"),
        ("callee", "sip:ua2@example.com"),
        ("ended_by", "caller"),
        ("concentrator", "c1"),
    ] {
        ensure!(line[key] == expected, "{key} is {}", line[key]);
    }
    let times: Vec<&str> = ["start", "ring", "answer", "end"]
        .iter()
        .filter_map(|key| line[*key].as_str())
        .collect();
    ensure!(
        times.len() == 4 && times.is_sorted(),
        "the times are {times:?}"
    );
    let talk = line["duration_ms"].as_u64().context("no duration")?;
    // The audio and two seconds of silence.
    ensure!((3500..6000).contains(&talk), "it lasted {talk} ms");
    for (party, edge, mark) in [("caller", "edge1", 1), ("callee", "edge2", 2)] {
        let place = &line[format!("{party}_place")];
        ensure!(
            place["edge"] == edge && place["mark"] == mark,
            "the {party} is at {place}"
        );
        let media = &line["media"][0];
        ensure!(
            media["relay"] == "relay1",
            "the relay is {}",
            media["relay"]
        );
        let side = &media[party];
        let packets = side["packets"].as_u64().context("no packets")?;
        ensure!(packets >= 95, "{packets} packets of the {party}");
        ensure!(side["lost"] == 0, "{} lost of the {party}", side["lost"]);
        let mos = side["mos"].as_f64().context("no MOS")?;
        ensure!((4.0..=4.41).contains(&mos), "MOS {mos} of the {party}");
        ensure!(
            side["first_packet"].is_string(),
            "no first packet of the {party}"
        );
    }
    Ok(())
}

/// The callee, once the concentrator knows it.
pub(super) fn registered(
    net: &TwoEdges,
    service: &Service,
    script: Script,
    seconds: u32,
    folder: &Path,
) -> Result<Process> {
    let before = registrations(service, net)?;
    let mut callee = phone::callee(&net.ua2, Transport::Udp, script, seconds, folder)?;
    wait::until("the registration of ua2", PATIENCE, || {
        callee.check_alive()?;
        Ok((registrations(service, net)? > before).then_some(()))
    })?;
    Ok(callee)
}

fn registrations(service: &Service, net: &TwoEdges) -> Result<f64> {
    let metrics = service.concentrator.metrics(&net.concentrator)?;
    let registered = metrics.iter().filter(|(name, _)| {
        name.contains("\"binding_added\"") || name.contains("\"binding_refreshed\"")
    });
    Ok(registered.map(|(_, count)| count).sum())
}

/// The last line, once there are so many.
pub(super) fn next_line(folder: &Path, file: &str, count: usize) -> Result<Value> {
    wait::until("the record of a call", PATIENCE, || {
        let mut lines = lines(folder, file)?;
        ensure!(lines.len() <= count, "{} lines, not {count}", lines.len());
        Ok((lines.len() == count).then(|| lines.pop()).flatten())
    })
}

/// The lines of a file of records.
pub(super) fn lines(folder: &Path, file: &str) -> Result<Vec<Value>> {
    let text = fs::read_to_string(folder.join(FOLDER).join(file))?;
    // The last line may be half written.
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    whole
        .lines()
        .map(|line| serde_json::from_str(line).with_context(|| line.to_owned()))
        .collect()
}
