//! Wrong config files: each program says what to change and where, and ends with exit code 2
//! before it has started anything.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};

use crate::certs;
use crate::namespace::Namespace;
use crate::process::Process;
use crate::service::{KEY1, MARK1, binary, concentrator_config, ingress_config, relay_config};
use crate::topology::two_edges::EDGE1;

/// A config, and the words that the message about it must have; no words: it is in order.
struct Case {
    name: &'static str,
    program: &'static str,
    config: String,
    words: &'static [&'static str],
}

pub(super) fn run(folder: &Path) -> Result<String> {
    certs::write(folder, &["c1".into(), "relay1".into()])?;
    // Nothing listens in it and it has no addresses, so nothing could start unseen.
    let namespace = Namespace::new("host")?;
    let cases = cases();
    for case in &cases {
        check(&namespace, case, folder)?;
    }
    Ok(format!("{} configs", cases.len()))
}

fn cases() -> Vec<Case> {
    let ingress = ingress_config(KEY1, MARK1, EDGE1);
    let concentrator = concentrator_config();
    let agent = relay_config("relay1", EDGE1);
    let case = |name, program, config: &str, words| Case {
        name,
        program,
        config: config.to_owned(),
        words,
    };
    let (i, c, a) = (
        "sipcast-ingress",
        "sipcast-concentrator",
        "sipcast-rtp-agent",
    );
    vec![
        case("ingress-good", i, &ingress, &[]),
        case("concentrator-good", c, &concentrator, &[]),
        case("agent-good", a, &agent, &[]),
        case(
            "ingress-unknown-key",
            i,
            &format!("colour = 1\n{ingress}"),
            &["colour", "line 1"],
        ),
        case(
            "concentrator-unknown-key",
            c,
            &format!("colour = 1\n{concentrator}"),
            &["colour", "line 1"],
        ),
        case(
            "agent-unknown-key",
            a,
            &format!("colour = 1\n{agent}"),
            &["colour", "line 1"],
        ),
        case(
            "ingress-mark-too-big",
            i,
            &ingress.replace("mark = 1", "mark = 64"),
            &["mark", "63"],
        ),
        case(
            "concentrator-overlapping-mark",
            c,
            &concentrator.replacen(
                "agent = \"relay1\"",
                "agent = \"relay1\"\n[[edges.relays]]\nmark = 1\nagent = \"relay3\"",
                1,
            ),
            &["mark"],
        ),
        case(
            "concentrator-missing-certificate",
            c,
            &concentrator.replace("c1.pem", "nowhere.pem"),
            &["nowhere.pem"],
        ),
        case(
            "agent-missing-certificate",
            a,
            &agent.replace("relay1.pem", "nowhere.pem"),
            &["nowhere.pem"],
        ),
    ]
}

fn check(namespace: &Namespace, case: &Case, folder: &Path) -> Result<()> {
    let file = folder.join(format!("{}.toml", case.name));
    fs::write(&file, &case.config)?;
    let file = file.to_string_lossy();
    let program = binary(case.program)?;
    let good = case.words.is_empty();
    // A wrong config is tried in earnest, a good one only checked.
    let mut arguments = vec!["--config", &*file];
    arguments.extend(good.then_some("--check"));
    let mut process = Process::start(
        namespace,
        case.name,
        &program.to_string_lossy(),
        &arguments,
        folder,
    )?;
    let status = process.wait(Duration::from_secs(10))?;
    let message = process.log();
    let wanted = if good { 0 } else { 2 };
    ensure!(
        status.code() == Some(wanted),
        "{}: {status} instead of {wanted}: {message}",
        case.name
    );
    for word in case.words {
        ensure!(
            message.contains(word),
            "{}: the message lacks `{word}`: {message}",
            case.name
        );
    }
    Ok(())
}
