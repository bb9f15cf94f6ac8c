//! The ladder of a call: who sent what to whom, over which edge; as text and as SVG.
//!
//! Columns from left to right: ua1, edge 1, concentrator, edge 2, ua2. A phone's message is two
//! arrows, to the edge and in the tunnel to the concentrator; an answer is one, because it goes
//! past the edges.

use std::fmt::Write as _;

use crate::call::CallRecord;
use crate::frame::{Packet, Segment};
use crate::service::KEY1;
use crate::topology::two_edges::{NAT_A, SERVICE};
use crate::verdict::Figures;

const NAMES: [&str; 5] = ["ua1", "edge 1", "concentrator", "edge 2", "ua2"];
const UA1: usize = 0;
const EDGE1: usize = 1;
const CONCENTRATOR: usize = 2;
const EDGE2: usize = 3;
const UA2: usize = 4;

/// One line of the ladder.
#[derive(Debug)]
pub(crate) struct Row {
    /// Microseconds since the first row.
    at: u64,
    what: What,
}

#[derive(Debug)]
enum What {
    /// A phone's message through an edge, with key and mark.
    Up {
        phone: usize,
        edge: usize,
        line: String,
        tunnel: String,
    },
    /// A message from the service address, directly.
    Down { phone: usize, line: String },
    /// Something that is not a message.
    Note(String),
}

/// The rows of a call.
pub(crate) fn rows(record: &CallRecord, figures: &Figures) -> Vec<Row> {
    let mut rows: Vec<Row> = record
        .seen
        .concentrator
        .iter()
        .filter_map(message)
        .collect();
    if let Some(at) = record.flipped_at {
        rows.push(note(
            at,
            "the route of ua1 to the service address flips from edge 1 to edge 2",
        ));
    }
    let media: Vec<&Packet> = record
        .seen
        .edge1
        .iter()
        .filter(|packet| packet.udp().is_some_and(|segment| segment.rtp().is_some()))
        .collect();
    if let (Some(first), Some(last)) = (media.first(), media.last()) {
        rows.push(note(first.at, "first RTP packet at the relay of edge 1"));
        rows.push(note(
            last.at,
            &format!(
                "last RTP packet; relayed by edge 1: {} to ua2, {} to ua1",
                figures.to_callee.relayed[0], figures.to_caller.relayed[0]
            ),
        ));
    }
    rows.sort_by_key(|row| row.at);
    let start = rows.first().map_or(0, |row| row.at);
    for row in &mut rows {
        row.at -= start;
    }
    rows
}

fn note(at: u64, text: &str) -> Row {
    Row {
        at,
        what: What::Note(text.to_owned()),
    }
}

fn message(packet: &Packet) -> Option<Row> {
    let what = if let Some((key, inner)) = packet.gre() {
        let segment = inner.transport()?;
        What::Up {
            phone: phone_of(inner.source),
            edge: if key == KEY1 { EDGE1 } else { EDGE2 },
            line: label(&segment)?,
            tunnel: format!("{key:#x} mark {}", inner.mark()),
        }
    } else if packet.source == SERVICE {
        What::Down {
            phone: phone_of(packet.destination),
            line: label(&packet.transport()?)?,
        }
    } else {
        return None;
    };
    Some(Row {
        at: packet.at,
        what,
    })
}

fn phone_of(address: std::net::Ipv4Addr) -> usize {
    if address == NAT_A { UA1 } else { UA2 }
}

/// `INVITE`, or `200 OK (INVITE)`.
fn label(segment: &Segment<'_>) -> Option<String> {
    let line = segment.sip_start_line()?;
    let Some(status) = line.strip_prefix("SIP/2.0 ") else {
        return line.split(' ').next().map(str::to_owned);
    };
    let cseq = segment.sip_header("CSeq").unwrap_or_default();
    let method = cseq.split(' ').next_back().unwrap_or_default();
    let mut status = status.to_owned();
    status.truncate(11);
    Some(format!("{} ({method})", status.trim_end()))
}

/// The ladder for a terminal, 106 columns wide.
pub(crate) fn text(rows: &[Row]) -> String {
    let mut lines = vec![Line::names()];
    for row in rows {
        match &row.what {
            What::Note(note) => lines.push(Line::note(row.at, note)),
            What::Down { phone, line } => {
                let mut drawn = Line::lifelines(Some(row.at));
                drawn.arrow(CONCENTRATOR, *phone, line, '─');
                lines.push(drawn);
            }
            What::Up {
                phone,
                edge,
                line,
                tunnel,
            } => {
                let mut drawn = Line::lifelines(Some(row.at));
                drawn.arrow(*phone, *edge, line, '─');
                let crosses = phone.abs_diff(*edge) > 1;
                if crosses {
                    lines.push(std::mem::replace(&mut drawn, Line::lifelines(None)));
                }
                drawn.arrow(*edge, CONCENTRATOR, tunnel, '═');
                lines.push(drawn);
            }
        }
    }
    lines.into_iter().fold(String::new(), |mut text, line| {
        text.extend(line.0);
        while text.ends_with(' ') {
            text.pop();
        }
        text.push('\n');
        text
    })
}

/// A line of characters under construction.
#[derive(Debug)]
struct Line(Vec<char>);

impl Line {
    const TIME: usize = 11;
    const STEP: usize = 23;

    fn column(participant: usize) -> usize {
        Self::TIME + participant * Self::STEP
    }

    fn lifelines(at: Option<u64>) -> Self {
        let mut line = Self(vec![' '; Self::column(UA2) + 14]);
        if let Some(at) = at {
            line.put(0, &format!("{:>8.1}", at as f64 / 1000.0));
        }
        for participant in 0..NAMES.len() {
            line.0[Self::column(participant)] = '│';
        }
        line
    }

    fn names() -> Self {
        let mut line = Self(vec![' '; Self::column(UA2) + 14]);
        line.put(6, "ms");
        for (participant, name) in NAMES.iter().enumerate() {
            line.put(
                Self::column(participant).saturating_sub(name.len() / 2),
                name,
            );
        }
        line
    }

    fn note(at: u64, note: &str) -> Self {
        let mut line = Self(vec!['·'; Self::column(UA2) + 1]);
        line.put(0, &format!("{:>8.1}   ", at as f64 / 1000.0));
        line.put(Self::TIME + 4, &format!(" {note} "));
        line
    }

    fn arrow(&mut self, from: usize, to: usize, label: &str, stroke: char) {
        let (left, right) = (Self::column(from.min(to)), Self::column(from.max(to)));
        for place in left + 1..right {
            self.0[place] = stroke;
        }
        if from < to {
            self.0[right - 1] = '▶';
        } else {
            self.0[left + 1] = '◀';
        }
        let room = right - left - 3;
        let label: String = label.chars().take(room).collect();
        let start = left + 1 + (right - left - label.chars().count()) / 2;
        self.put(start, &label);
    }

    fn put(&mut self, at: usize, text: &str) {
        for (place, character) in self.0.iter_mut().skip(at).zip(text.chars()) {
            *place = character;
        }
    }
}

/// The ladder as a picture.
pub(crate) fn svg(rows: &[Row]) -> String {
    const STEP: usize = 34;
    let height = 70 + rows.len() * STEP;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 1080 {height}\" width=\"1080\" \
         height=\"{height}\" font-family=\"sans-serif\" font-size=\"13\">\n\
         <rect width=\"1080\" height=\"{height}\" fill=\"#ffffff\"/>\n"
    );
    for (participant, name) in NAMES.iter().enumerate() {
        let (x, end) = (place(participant), height - 12);
        let color = color(participant);
        // Writing to a String cannot fail; the same below.
        let _ = writeln!(
            out,
            "<line x1=\"{x}\" y1=\"42\" x2=\"{x}\" y2=\"{end}\" stroke=\"#c4cad2\" stroke-width=\"2\"/>\
             <rect x=\"{}\" y=\"12\" width=\"124\" height=\"30\" rx=\"5\" fill=\"{color}\"/>\
             <text x=\"{x}\" y=\"32\" text-anchor=\"middle\" fill=\"#ffffff\" font-weight=\"bold\">{name}</text>",
            x - 62,
        );
    }
    for (index, row) in rows.iter().enumerate() {
        svg_row(&mut out, 76 + index * STEP, row);
    }
    out.push_str("</svg>\n");
    out
}

fn svg_row(out: &mut String, y: usize, row: &Row) {
    let time = row.at as f64 / 1000.0;
    let _ = writeln!(
        out,
        "<text x=\"88\" y=\"{}\" text-anchor=\"end\" fill=\"#6b7280\" font-size=\"11\">{time:.1} ms</text>",
        y + 4
    );
    match &row.what {
        What::Note(note) => {
            let _ = writeln!(
                out,
                "<rect x=\"98\" y=\"{}\" width=\"964\" height=\"22\" rx=\"3\" fill=\"#fff4d6\" stroke=\"#e0b84c\"/>\
                 <text x=\"580\" y=\"{}\" text-anchor=\"middle\" fill=\"#5c4400\">{}</text>",
                y - 12,
                y + 4,
                escape(note)
            );
        }
        What::Down { phone, line } => {
            svg_arrow(out, y, CONCENTRATOR, *phone, line, "#374151", false)
        }
        What::Up {
            phone,
            edge,
            line,
            tunnel,
        } => {
            svg_arrow(out, y - 4, *phone, *edge, line, color(*edge), false);
            let lower = if phone.abs_diff(*edge) > 1 {
                y + 14
            } else {
                y - 4
            };
            svg_arrow(out, lower, *edge, CONCENTRATOR, tunnel, color(*edge), true);
        }
    }
}

fn svg_arrow(
    out: &mut String,
    y: usize,
    from: usize,
    to: usize,
    label: &str,
    color: &str,
    tunnel: bool,
) {
    let (start, end) = (place(from), place(to));
    let (tip, back) = if start < end {
        (end - 2, end - 11)
    } else {
        (end + 2, end + 11)
    };
    let width = if tunnel { 5 } else { 2 };
    let opacity = if tunnel { "0.55" } else { "1" };
    let _ = writeln!(
        out,
        "<line x1=\"{start}\" y1=\"{y}\" x2=\"{back}\" y2=\"{y}\" stroke=\"{color}\" \
         stroke-width=\"{width}\" stroke-opacity=\"{opacity}\"/>\
         <polygon points=\"{tip},{y} {back},{} {back},{}\" fill=\"{color}\"/>\
         <text x=\"{}\" y=\"{}\" text-anchor=\"middle\" fill=\"{color}\" \
         stroke=\"#ffffff\" stroke-width=\"3\" paint-order=\"stroke\">{}</text>",
        y - 5,
        y + 5,
        (start + end) / 2,
        y - 5,
        escape(label)
    );
}

fn place(participant: usize) -> usize {
    160 + participant * 210
}

fn color(participant: usize) -> &'static str {
    match participant {
        EDGE1 => "#1d6fb8",
        EDGE2 => "#b4481e",
        _ => "#374151",
    }
}

/// Text for SVG and HTML.
pub(crate) fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_over_the_far_edge_takes_two_lines_and_meets_both_columns() {
        let rows = [Row {
            at: 1500,
            what: What::Up {
                phone: UA1,
                edge: EDGE2,
                line: "BYE".into(),
                tunnel: "0x1002 mark 2".into(),
            },
        }];
        let text = text(&rows);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3);
        assert!(lines[1].contains("BYE") && lines[1].contains('▶'));
        assert!(lines[2].contains("0x1002 mark 2") && lines[2].contains('◀'));
    }
}
