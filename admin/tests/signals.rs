//! A program that does not end when it is asked to: the second signal ends it.
//!
//! The test starts itself again as that program.
#![expect(clippy::unwrap_used, reason = "in a test a failure is a panic")]

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use admin::cli::Arguments;
use admin::config::{ConfigError, LogSection};
use admin::run::{Config, Shutdown, Threads, program};

const STUBBORN: &str = "SIPCAST_TEST_STUBBORN";

struct Nothing(LogSection);

impl Config for Nothing {
    fn load(_: &Path) -> Result<Self, ConfigError> {
        Ok(Self(LogSection::default()))
    }

    fn log(&self) -> &LogSection {
        &self.0
    }
}

#[test]
fn the_first_signal_asks_and_the_second_ends_a_program_that_does_not_listen() {
    if std::env::var_os(STUBBORN).is_some() {
        be_stubborn();
    }
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "--nocapture"])
        .arg("the_first_signal_asks_and_the_second_ends_a_program_that_does_not_listen")
        .env(STUBBORN, "1")
        .env("RUST_LOG", "info")
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let log = child.stderr.take().expect("it is piped");
    let mut log = BufReader::new(log).lines().map_while(Result::ok);
    assert!(log.any(|line| line.contains("ready")));
    interrupt(&child);
    assert!(log.any(|line| line.contains("shutting down")));
    assert_eq!(child.try_wait().unwrap(), None, "it does not listen");
    interrupt(&child);
    assert!(log.any(|line| line.contains("ending at once")));
    assert_eq!(child.wait().unwrap().code(), Some(1));
}

fn be_stubborn() -> ! {
    let arguments = Arguments {
        config: PathBuf::new(),
        check: false,
    };
    program(
        &arguments,
        Threads::One,
        |_: Nothing, _: Shutdown| async move {
            tracing::info!("ready");
            std::future::pending().await
        },
    );
    unreachable!("it never ends by itself");
}

fn interrupt(child: &Child) {
    let sent = Command::new("kill")
        .args(["-INT", &child.id().to_string()])
        .status();
    assert!(sent.unwrap().success());
}
