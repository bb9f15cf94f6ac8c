//! The load: SIPp over UDP, phones over TCP, and users that register once each.

use std::collections::BTreeSet;
use std::fs;
use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, Result, anyhow, ensure};

use super::Plan;
use crate::namespace::Namespace;
use crate::phone;
use crate::process::Process;
use crate::tcp_phone::{Habits, Heard, Phones, callee_name};
use crate::topology::two_edges::{PHONE, SERVICE};
use crate::two_concentrators::{TwoConcentrators, Which};
use crate::{registrations, wait};

const RING_MS: u32 = 500;
const TALK_MS: u32 = 1_500;
/// How often the called phone registers, over UDP.
const REGISTER_MS: u32 = 5_000;
const PAIRS: u32 = 10;
/// Users that register, one each so long at least.
const USERS_EVERY: Duration = Duration::from_secs(1);
/// So many at most: with the phones no more than `/status` lists.
const MOST_USERS: u32 = 900;
const PATIENCE: Duration = Duration::from_secs(60);
/// SIPp waits so long for an answer after a provisional one, and the rest of a call.
const LAST_CALL: Duration = Duration::from_secs(phone::PATIENCE_MS as u64 / 1000 + 60);

/// What SIPp says of a call that gets a BYE before it has sent one.
const HUNG_UP_ON: &str = "Aborting call on an unexpected BYE";

/// All of it, running.
pub(super) struct Load {
    caller: Process,
    callee: Process,
    phones: Phones,
    users: Users,
    begun: SystemTime,
    plan: Plan,
    folder: PathBuf,
}

/// What SIPp says of one of its calls.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct SippFailure {
    pub(super) begun: SystemTime,
    pub(super) ended: SystemTime,
    pub(super) why: String,
}

/// What came of it.
#[derive(Debug)]
pub(super) struct Calls {
    pub(super) udp_offered: u64,
    pub(super) udp_completed: u64,
    pub(super) udp_failures: Vec<SippFailure>,
    pub(super) tcp: Heard,
    /// Users whose REGISTER was answered 200.
    pub(super) acknowledged: BTreeSet<String>,
}

impl Load {
    pub(super) fn start(rig: &TwoConcentrators, plan: &Plan, folder: &Path) -> Result<Self> {
        let (ua1, ua2) = (&rig.net.ua1, &rig.net.ua2);
        let callee = phone::lasting_callee(ua2, RING_MS, REGISTER_MS, folder)?;
        let habits = Habits {
            first: 0,
            pairs: PAIRS,
            calls_per_s: plan.tcp_calls_per_s,
            ring: Duration::from_millis(u64::from(RING_MS)),
            talk: Duration::from_millis(u64::from(TALK_MS)),
        };
        let mut phones = Phones::called(ua1, ua2, habits)?;
        rig.wait_for_user("ua2@")?;
        for pair in 0..PAIRS {
            rig.wait_for_user(&format!("{}@", callee_name(pair)))?;
        }
        let period = Duration::from_secs(u64::from(plan.seconds)) / MOST_USERS;
        let users = Users::start(ua1, period.max(USERS_EVERY))?;
        let calls = plan.calls_per_s * plan.seconds;
        let begun = SystemTime::now();
        let caller = phone::lasting_caller(ua1, calls, plan.calls_per_s, TALK_MS, folder)?;
        phones.call()?;
        Ok(Self {
            caller,
            callee,
            phones,
            users,
            begun,
            plan: plan.clone(),
            folder: folder.to_owned(),
        })
    }

    /// How it goes, in a few words.
    pub(super) fn so_far(&mut self) -> Result<String> {
        self.caller.check_alive()?;
        self.callee.check_alive()?;
        let statistics = fs::read_to_string(self.folder.join("ua1/calls.csv"))?;
        let of = |name| last_of(&statistics, name).unwrap_or(0);
        let (offered, failed) = self.phones.so_far();
        Ok(format!(
            "UDP {} calls, {} failed; TCP {offered}, {failed} failed; {} users",
            of("TotalCallCreated"),
            of("FailedCall(C)"),
            self.users.acknowledged().len()
        ))
    }

    /// Waits until all phones that are called have been heard of since now.
    pub(super) fn wait_until_well(&mut self, rig: &TwoConcentrators) -> Result<()> {
        let since = Instant::now();
        // Whatever their NAT has forgotten, they have registered within this time.
        let (register, ping) = (u64::from(REGISTER_MS), 3_000);
        thread::sleep(Duration::from_millis(register.max(ping)));
        for user in (0..PAIRS).map(callee_name).chain(["ua2".to_owned()]) {
            rig.wait_for_user(&format!("{user}@"))?;
        }
        ensure!(since.elapsed() < PATIENCE, "phones do not come back");
        Ok(())
    }

    /// Waits for the last call.
    pub(super) fn finish(mut self) -> Result<Calls> {
        let due = self.begun + Duration::from_secs(u64::from(self.plan.seconds)) + LAST_CALL;
        let left = due.duration_since(SystemTime::now()).unwrap_or_default();
        self.caller.wait(left).context("SIPp's last call")?;
        let tcp = self.phones.finish()?;
        let acknowledged = self.users.finish()?;
        self.callee.stop()?;
        let statistics = fs::read_to_string(self.folder.join("ua1/calls.csv"))?;
        let of = |name| last_of(&statistics, name).with_context(|| format!("no {name}"));
        let errors = errors_of(&self.folder.join("ua1"))?;
        let udp_failures = failures(&errors, self.begun, self.plan.calls_per_s);
        Ok(Calls {
            udp_offered: of("TotalCallCreated")?,
            udp_completed: of("SuccessfulCall(C)")?,
            udp_failures,
            tcp,
            acknowledged,
        })
    }
}

/// What a SIPp has said went wrong.
fn errors_of(folder: &Path) -> Result<String> {
    let mut errors = String::new();
    for file in fs::read_dir(folder)? {
        let file = file?.path();
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        if name.contains("errors") {
            errors.push_str(&String::from_utf8_lossy(&fs::read(&file)?));
        }
    }
    Ok(errors)
}

/// A column of the last line of SIPp's statistics.
fn last_of(statistics: &str, name: &str) -> Option<u64> {
    let mut lines = statistics.lines();
    let column = lines.next()?.split(';').position(|column| column == name)?;
    lines
        .next_back()?
        .split(';')
        .nth(column)?
        .trim()
        .parse()
        .ok()
}

/// What SIPp writes of calls that fail: when, and which, in the order in which they were begun.
pub(super) fn failures(errors: &str, begun: SystemTime, rate: u32) -> Vec<SippFailure> {
    let mut failures = Vec::new();
    for event in events(errors) {
        // `date time epoch: message`, and the message has the Call-ID, mostly in quotation marks.
        let Some((time, message)) = event.split_once(": ") else {
            continue;
        };
        let epoch = time.split_whitespace().next_back();
        let epoch = epoch.and_then(|epoch| epoch.parse::<f64>().ok());
        let number = message.split(['\'', ' ', ',']).find_map(|word| {
            let (number, rest) = word.split_once('-')?;
            rest.contains('@').then(|| number.parse::<u32>().ok())?
        });
        let (Some(epoch), Some(number)) = (epoch, number) else {
            continue;
        };
        if !message.contains("borting call") {
            continue;
        }
        failures.push(SippFailure {
            begun: begun + Duration::from_secs(1) * number.saturating_sub(1) / rate.max(1),
            ended: SystemTime::UNIX_EPOCH + Duration::from_secs_f64(epoch.max(0.0)),
            why: reason(message),
        });
    }
    failures
}

/// What SIPp writes of one thing each: it ends lines or not, and messages of phones have some.
fn events(errors: &str) -> Vec<&str> {
    const DATE: usize = "2026-11-30".len();
    let is_date = |text: &[u8]| {
        text.iter().enumerate().all(|(place, octet)| match place {
            4 | 7 => *octet == b'-',
            _ => octet.is_ascii_digit(),
        })
    };
    let tabs = errors.match_indices('\t').map(|(place, _)| place);
    let starts = tabs.filter_map(|tab| tab.checked_sub(DATE));
    let mut starts: Vec<usize> = starts
        .filter(|start| is_date(&errors.as_bytes()[*start..start + DATE]))
        .collect();
    starts.push(errors.len());
    let pairs = starts.windows(2);
    pairs.map(|pair| &errors[pair[0]..pair[1]]).collect()
}

/// A message less what only this call has.
fn reason(message: &str) -> String {
    if let Some((_, received)) = message.split_once("received '") {
        let line: String = received.split(['\r', '\n', '\'']).take(1).collect();
        let line = line.split(" sip:").next().unwrap_or_default();
        return format!("received {}", line.trim());
    }
    if message.contains(HUNG_UP_ON) {
        return "hung up on".to_owned();
    }
    if message.contains("receive timeout") {
        return "no final answer".to_owned();
    }
    if message.contains("etransmission") {
        return "no answer to repeated requests".to_owned();
    }
    message.chars().take(60).collect()
}

/// How many of the users, and of the phones, are missing at one concentrator or the other.
pub(super) fn bindings_lost(
    rig: &TwoConcentrators,
    acknowledged: &BTreeSet<String>,
) -> Result<Vec<String>> {
    let phones = (0..PAIRS).map(callee_name).chain(["ua2".to_owned()]);
    let expected: BTreeSet<String> = phones
        .map(|user| format!("{user}@example.com"))
        .filter(|user| user.starts_with("ua2"))
        .chain(acknowledged.iter().cloned())
        .collect();
    let mut lost = Vec::new();
    for which in [Which::First, Which::Second] {
        let mut missing = Vec::new();
        // What was written last is under way.
        let all = wait::until("all bindings", PATIENCE, || {
            let known: BTreeSet<String> = rig.users(which)?.into_iter().collect();
            missing = expected.difference(&known).cloned().collect();
            Ok(missing.is_empty().then_some(()))
        });
        if all.is_err() {
            lost.extend(missing.iter().map(|user| format!("{user} at {which:?}")));
        }
    }
    Ok(lost)
}

/// One user after the other registers, one each period, over UDP, and repeats its REGISTER until it is answered.
struct Users {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<Mutex<BTreeSet<String>>>,
    thread: JoinHandle<Result<()>>,
}

impl Users {
    fn start(namespace: &Namespace, period: Duration) -> Result<Self> {
        let socket = namespace.inside(|| {
            let socket = UdpSocket::bind((PHONE, 5070))?;
            socket.set_read_timeout(Some(Duration::from_millis(500)))?;
            Ok(socket)
        })?;
        let (stop, acknowledged) = (Arc::<AtomicBool>::default(), Arc::default());
        let (stopped, known) = (Arc::clone(&stop), Arc::clone(&acknowledged));
        let thread = thread::spawn(move || register_all(&socket, period, &stopped, &known));
        Ok(Self {
            stop,
            acknowledged,
            thread,
        })
    }

    fn acknowledged(&self) -> BTreeSet<String> {
        let users = self.acknowledged.lock();
        users.unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn finish(self) -> Result<BTreeSet<String>> {
        self.stop.store(true, Ordering::Relaxed);
        let acknowledged = self.acknowledged();
        self.thread
            .join()
            .map_err(|_| anyhow!("the users' thread panicked"))??;
        Ok(acknowledged)
    }
}

fn register_all(
    socket: &UdpSocket,
    period: Duration,
    stop: &AtomicBool,
    acknowledged: &Mutex<BTreeSet<String>>,
) -> Result<()> {
    for number in 0_u32.. {
        let user = format!("user{number}");
        let since = Instant::now();
        while !stop.load(Ordering::Relaxed) {
            // While its host is cut off a packet may not even leave.
            let _lost = socket.send_to(
                registrations::of_user(&user, 90_000).as_bytes(),
                (SERVICE, 5060),
            );
            let mut buffer = [0; 2048];
            let Ok((length, _)) = socket.recv_from(&mut buffer) else {
                continue;
            };
            let answer = String::from_utf8_lossy(&buffer[..length]);
            if answer.starts_with("SIP/2.0 200") && answer.contains(&format!("Call-ID: {user}\r\n"))
            {
                let mut users = acknowledged.lock().unwrap_or_else(PoisonError::into_inner);
                users.insert(format!("{user}@example.com"));
                break;
            }
        }
        if stop.load(Ordering::Relaxed) {
            return Ok(());
        }
        thread::sleep(period.saturating_sub(since.elapsed()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_call_is_found_by_its_number() {
        let errors = "2026-11-29\t06:44:59.900000\t1764391499.900000: Aborting call on unexpected message \
                      for Call-Id '51-737@192.168.1.10': while expecting '200' (index 3), received \
                      'SIP/2.0 503 Service Unavailable\r\nVia: x'\n\
                      2026-11-29\t06:45:00.900000\t1764391500.900000: Discarding message\n\
                      2026-11-29\t06:45:09.900000\t1764391509.900000: Call-Id: 76-737@192.168.1.10, receive timeout \
                      on message quick caller:3 without label to jump to (ontimeout attribute): aborting call\
                      2026-11-29\t06:45:19.900000\t1764391519.900000: Aborting call on an unexpected BYE for call: \
                      101-737@192.168.1.102026-11-29\t06:45:19.900000\t1764391519.900000: Dead call\n";
        let begun = SystemTime::UNIX_EPOCH + Duration::from_secs(1_764_391_490);
        let found = failures(errors, begun, 25);
        assert_eq!(found.len(), 3);
        assert_eq!(found[0].begun, begun + Duration::from_secs(2));
        assert_eq!(found[0].why, "received SIP/2.0 503 Service Unavailable");
        assert_eq!(found[1].begun, begun + Duration::from_secs(3));
        assert_eq!(found[1].why, "no final answer");
        assert_eq!(found[2].begun, begun + Duration::from_secs(4));
        assert_eq!(found[2].why, "hung up on");
    }

    #[test]
    fn the_last_line_of_the_statistics_counts() {
        let statistics = "A;FailedCall(C);B\n1;2;3\n4;5;6\n";
        assert_eq!(last_of(statistics, "FailedCall(C)"), Some(5));
        assert_eq!(last_of(statistics, "C"), None);
    }
}
