//! What was found out from one vantage point, and the table of several.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::prober::{Asked, Edge, Outcome, Told};

/// One vantage point.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Report {
    pub(crate) vantage: String,
    pub(crate) service: SocketAddr,
    pub(crate) transport: String,
    /// The edge of the last answer.
    pub(crate) edge: Option<Edge>,
    /// How often it changed.
    pub(crate) changes: u32,
    pub(crate) sent: u32,
    pub(crate) lost: u32,
    pub(crate) rtt_min_ms: Option<f64>,
    pub(crate) rtt_median_ms: Option<f64>,
    pub(crate) rtt_max_ms: Option<f64>,
    /// Where the service sees it: behind a NAT the NAT's address.
    pub(crate) seen_as: Option<SocketAddr>,
    /// What is wrong, and what to do about it.
    pub(crate) error: Option<String>,
}

/// Gathers a report.
#[derive(Debug)]
pub(crate) struct Tally {
    pub(crate) report: Report,
    round_trips: Vec<Duration>,
    told: Option<Told>,
}

impl Tally {
    pub(crate) fn new(vantage: &str, service: SocketAddr, transport: String) -> Self {
        Self {
            report: Report::empty(vantage, service, transport),
            round_trips: Vec::new(),
            told: None,
        }
    }

    /// The edge before, where this one is another.
    pub(crate) fn note(&mut self, asked: &Asked) -> Option<Told> {
        self.report.sent += 1;
        let Outcome::Answered {
            round_trip,
            told,
            seen_as,
        } = &asked.outcome
        else {
            self.report.lost += 1;
            return None;
        };
        self.round_trips.push(*round_trip);
        self.report.seen_as = *seen_as;
        self.report.edge = match told {
            Told::By(edge) => Some(edge.clone()),
            Told::NoEdge | Told::Nothing => None,
        };
        let before = self.told.replace(told.clone());
        let before = before.filter(|before| before != told)?;
        self.report.changes += 1;
        Some(before)
    }

    /// The report; `trouble` is what the system said.
    pub(crate) fn finish(mut self, trouble: Option<&std::io::Error>) -> Report {
        self.round_trips.sort();
        let times = &self.round_trips;
        let report = &mut self.report;
        let milliseconds = |time: Option<&Duration>| time.map(|time| time.as_secs_f64() * 1000.0);
        report.rtt_min_ms = milliseconds(times.first());
        report.rtt_median_ms = milliseconds(times.get(times.len() / 2));
        report.rtt_max_ms = milliseconds(times.last());
        report.error = match &self.told {
            Some(Told::By(_)) => None,
            Some(Told::NoEdge) => Some(
                "the service answers, but the questions came to it without a tunnel or without a mark"
                    .to_owned(),
            ),
            Some(Told::Nothing) => Some(format!(
                "the service answers, but does not say by which edge: it sees this host as {}, which \
                 is not in sip.reveal_edge_to of its concentrator.toml",
                report.seen_as.map_or("?".to_owned(), |at| at.ip().to_string())
            )),
            None => Some(no_answer(report, trouble)),
        };
        self.report
    }
}

fn no_answer(report: &Report, trouble: Option<&std::io::Error>) -> String {
    let Report {
        service,
        transport,
        sent,
        ..
    } = report;
    match trouble {
        Some(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => format!(
            "{service} refuses {transport}: a host has this address, and nothing listens there"
        ),
        Some(error) => format!("no answer from {service} over {transport}: {error}"),
        None => format!(
            "no answer from {service} over {transport} to {sent} questions: no edge announces it to \
             this host, or a firewall is in the way"
        ),
    }
}

impl Report {
    fn empty(vantage: &str, service: SocketAddr, transport: String) -> Self {
        Self {
            vantage: vantage.to_owned(),
            service,
            transport,
            edge: None,
            changes: 0,
            sent: 0,
            lost: 0,
            rtt_min_ms: None,
            rtt_median_ms: None,
            rtt_max_ms: None,
            seen_as: None,
            error: None,
        }
    }

    /// One that could not even ask.
    pub(crate) fn failed(
        vantage: &str,
        service: SocketAddr,
        transport: String,
        error: String,
    ) -> Self {
        Self {
            error: Some(error),
            ..Self::empty(vantage, service, transport)
        }
    }

    fn row(&self) -> [String; 8] {
        let (name, mark) = match &self.edge {
            Some(edge) => (edge.name.clone(), edge.mark.to_string()),
            None => ("-".to_owned(), "-".to_owned()),
        };
        let times = [self.rtt_min_ms, self.rtt_median_ms, self.rtt_max_ms];
        let times = times.map(|time| time.map_or("-".to_owned(), |time| format!("{time:.1}")));
        [
            self.vantage.clone(),
            name,
            mark,
            times.join(" / "),
            format!("{} of {}", self.lost, self.sent),
            self.changes.to_string(),
            self.transport.clone(),
            self.seen_as.map_or("-".to_owned(), |at| at.to_string()),
        ]
    }
}

/// All of them in columns, and below what is wrong.
pub(crate) fn table(reports: &[Report]) -> String {
    let head = [
        "vantage point",
        "edge",
        "mark",
        "RTT min / median / max, ms",
        "lost",
        "changes",
        "over",
        "seen as",
    ];
    let mut rows = vec![head.map(str::to_owned)];
    rows.extend(reports.iter().map(Report::row));
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.max().unwrap_or(0)
    };
    let widths: [usize; 8] = std::array::from_fn(width);
    let mut text = String::new();
    for row in &rows {
        let cells = row.iter().zip(widths);
        let line: String = cells
            .map(|(cell, width)| format!("{cell:<width$}  "))
            .collect();
        // A string takes whatever is written to it.
        let _ = writeln!(text, "{}", line.trim_end());
    }
    for report in reports {
        if let Some(error) = &report.error {
            let _ = writeln!(text, "{}: {error}", report.vantage);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use std::io::{Error, ErrorKind};
    use std::time::Instant;

    use super::*;

    #[test]
    fn a_report_has_the_last_edge_and_counts_changes_and_losses() {
        let mut tally = tally();
        assert_eq!(tally.note(&answered(30, by("edge1"))), None);
        assert_eq!(tally.note(&answered(10, by("edge1"))), None);
        assert_eq!(tally.note(&lost()), None);
        assert_eq!(
            tally.note(&answered(20, by("edge2"))),
            Some(by("edge1")),
            "a change, from where"
        );
        let report = tally.finish(None);
        assert_eq!(report.edge.as_ref().unwrap().name, "edge2");
        assert_eq!((report.changes, report.sent, report.lost), (1, 4, 1));
        assert_eq!(report.error, None);
        let line = table(&[report]);
        assert!(line.contains("10.0 / 20.0 / 30.0"), "{line}");
    }

    #[test]
    fn what_is_wrong_is_said_with_what_to_do() {
        let error = |told: Option<Told>, trouble: Option<ErrorKind>| {
            let mut tally = tally();
            match told {
                Some(told) => tally.note(&answered(1, told)),
                None => tally.note(&lost()),
            };
            let trouble = trouble.map(Error::from);
            tally.finish(trouble.as_ref()).error.unwrap()
        };
        assert!(error(Some(Told::Nothing), None).contains("sees this host as 192.0.2.1"));
        assert!(error(Some(Told::NoEdge), None).contains("without a tunnel"));
        assert!(error(None, None).contains("no edge announces it"));
        assert!(error(None, Some(ErrorKind::ConnectionRefused)).contains("refuses udp"));
        assert!(error(None, Some(ErrorKind::NetworkUnreachable)).contains("no answer"));
    }

    fn tally() -> Tally {
        let service = SocketAddr::from(([198, 51, 100, 1], 5060));
        Tally::new("here", service, "udp".to_owned())
    }

    fn by(name: &str) -> Told {
        let name = name.to_owned();
        Told::By(Edge { name, mark: 1 })
    }

    fn answered(milliseconds: u64, told: Told) -> Asked {
        Asked {
            sent: Instant::now(),
            outcome: Outcome::Answered {
                round_trip: Duration::from_millis(milliseconds),
                told,
                seen_as: Some(SocketAddr::from(([192, 0, 2, 1], 40_000))),
            },
        }
    }

    fn lost() -> Asked {
        Asked {
            sent: Instant::now(),
            outcome: Outcome::Lost,
        }
    }
}
