//! Two kinds of pictures as SVG: steps of a distribution, and bars side by side.

use std::fmt::Write as _;

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 360.0;
/// Left, top, right, bottom of what the axes enclose.
const FRAME: [f64; 4] = [60.0, 40.0, 700.0, 310.0];
/// Told apart by people who do not see colours as well: they differ in lightness too.
const COLOURS: [&str; 4] = ["#004488", "#ddaa33", "#bb5566", "#777777"];

/// Values under a name.
#[derive(Debug)]
pub(super) struct Series {
    pub(super) name: String,
    pub(super) values: Vec<f64>,
}

/// For each series which part of its values is not larger than x.
pub(super) fn distribution(title: &str, x_name: &str, series: &[Series]) -> String {
    let most = largest(series);
    let step = round_step(most);
    let top = (most / step).ceil() * step;
    let mut svg = begin(title);
    grid(&mut svg, "share", &[0.0, 0.25, 0.5, 0.75, 1.0], 1.0);
    let [left, _, right, bottom] = FRAME;
    let x = |value: f64| left + (right - left) * value / top;
    let y = |share: f64| height_at(share, 1.0);
    let mut tick = 0.0;
    while tick <= top {
        text(
            &mut svg,
            x(tick),
            bottom + 16.0,
            "middle",
            &format!("{tick}"),
        );
        tick += step;
    }
    let middle = f64::midpoint(left, right);
    text(&mut svg, middle, bottom + 34.0, "middle", x_name);
    for (series, colour) in series.iter().zip(COLOURS) {
        let values = super::sorted(series.values.clone());
        let count = values.len() as f64;
        let mut line = format!("M{:.1} {:.1}", x(0.0), y(0.0));
        let shown = |place: usize| values.get(place).map(|value| format!("H{:.1}", x(*value)));
        for place in 0..values.len() {
            // Of those in one place the last is as high as all of them.
            if let Some(step) = shown(place).filter(|step| shown(place + 1).as_ref() != Some(step))
            {
                let share = (place + 1) as f64 / count;
                let _ = write!(line, "{step}V{:.1}", y(share));
            }
        }
        let _ = write!(line, "H{:.1}", x(top));
        let _ = writeln!(
            svg,
            r#"<path d="{line}" fill="none" stroke="{colour}" stroke-width="2"/>"#
        );
    }
    end(svg, series)
}

/// For each of `groups` one bar of each series; the groups are in `sections` of the same size.
pub(super) fn bars(
    [title, y_name]: [&str; 2],
    sections: &[&str],
    groups: &[String],
    series: &[Series],
) -> String {
    let most = largest(series);
    let step = round_step(most);
    let top = (most / step).ceil() * step;
    let mut svg = begin(title);
    let ticks: Vec<f64> = (0..=(top / step) as u32)
        .map(|tick| f64::from(tick) * step)
        .collect();
    grid(&mut svg, y_name, &ticks, top);
    let [left, _, right, bottom] = FRAME;
    let group_width = (right - left) / groups.len() as f64;
    let bar_width = group_width * 0.8 / series.len() as f64;
    let section_width = (right - left) / sections.len() as f64;
    for (place, section) in sections.iter().enumerate() {
        let start = left + section_width * place as f64;
        let middle = start + section_width / 2.0;
        text(&mut svg, middle, bottom + 34.0, "middle", section);
        let _ = writeln!(
            svg,
            "<path d=\"M{start:.1} {}V40\" stroke=\"#cccccc\"/>",
            bottom + 40.0
        );
    }
    for (place, group) in groups.iter().enumerate() {
        let start = left + group_width * (place as f64 + 0.1);
        let middle = start + group_width * 0.4;
        text(&mut svg, middle, bottom + 16.0, "middle", group);
        for ((number, series), colour) in series.iter().enumerate().zip(COLOURS) {
            let value = series.values.get(place).copied().unwrap_or_default();
            let (x, y) = (start + bar_width * number as f64, height_at(value, top));
            let _ = writeln!(
                svg,
                r#"<rect x="{x:.1}" y="{y:.1}" width="{bar_width:.1}" height="{:.1}" fill="{colour}"/>"#,
                bottom - y
            );
        }
    }
    end(svg, series)
}

fn largest(series: &[Series]) -> f64 {
    let values = series.iter().flat_map(|series| &series.values);
    values.copied().fold(1.0, f64::max)
}

/// 1, 2 or 5 times a power of ten, so that there are five to ten steps.
fn round_step(most: f64) -> f64 {
    let power = 10.0_f64.powf((most / 10.0).log10().floor());
    let factors = [1.0, 2.0, 5.0];
    let fits = |factor: &&f64| most / (**factor * power) <= 10.0;
    factors
        .iter()
        .find(fits)
        .map_or(10.0 * power, |f| f * power)
}

fn height_at(value: f64, top: f64) -> f64 {
    let [_, up, _, bottom] = FRAME;
    bottom - (bottom - up) * value / top
}

fn begin(title: &str) -> String {
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"white\"/>\n"
    );
    text(&mut svg, FRAME[0], 20.0, "start", title);
    svg
}

/// The horizontal lines with their values, and the name of the axis above them.
fn grid(svg: &mut String, name: &str, ticks: &[f64], top: f64) {
    let [left, up, right, _] = FRAME;
    for tick in ticks {
        let y = height_at(*tick, top);
        let _ = writeln!(
            svg,
            "<path d=\"M{left} {y:.1}H{right}\" stroke=\"#cccccc\"/>"
        );
        text(svg, left - 6.0, y + 4.0, "end", &format!("{tick}"));
    }
    text(svg, left - 6.0, up - 12.0, "end", name);
}

/// The legend, right of the title.
fn end(mut svg: String, series: &[Series]) -> String {
    let mut x = FRAME[2];
    for (series, colour) in series.iter().zip(COLOURS).rev() {
        x -= 7.0 * series.name.chars().count() as f64;
        text(&mut svg, x, 36.0, "start", &series.name);
        x -= 16.0;
        let _ = writeln!(
            svg,
            r#"<rect x="{x:.1}" y="26" width="12" height="12" fill="{colour}"/>"#
        );
        x -= 12.0;
    }
    svg + "</svg>\n"
}

fn text(svg: &mut String, x: f64, y: f64, anchor: &str, words: &str) {
    let words = words.replace('&', "&amp;").replace('<', "&lt;");
    let _ = writeln!(
        svg,
        r#"<text x="{x:.1}" y="{y:.1}" text-anchor="{anchor}">{words}</text>"#
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_round_and_few() {
        for (most, step) in [(1.0, 0.1), (9.9, 1.0), (34.0, 5.0), (620.0, 100.0)] {
            assert!((round_step(most) - step).abs() < 1e-9, "{most}");
        }
    }

    #[test]
    fn a_distribution_ends_at_all_of_its_values() {
        let series = Series {
            name: "a<b".to_owned(),
            values: vec![10.0, 5.0],
        };
        let svg = distribution("t", "ms", &[series]);
        let [left, top, right, bottom] = FRAME;
        let (middle, half) = (f64::midpoint(left, right), f64::midpoint(top, bottom));
        assert!(svg.contains(&format!("H{middle:.1}V{half:.1}H{right:.1}V{top:.1}")));
        assert!(svg.contains("a&lt;b"));
    }
}
