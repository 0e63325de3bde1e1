//! The figures as a picture: one line a person, from the base's accuracy to their own adapter's.

use std::fmt::Write as _;
use std::path::Path;

use super::report::{Row, mean};
use crate::Result;
use crate::svg::{GRID, INK, MUTED, Page, png};

const WIDTH: f64 = 1200.0;
/// Left and right end of the accuracy axis.
const AXIS: (f64, f64) = (184.0, 916.0);
/// Where the first row's centre lies, below title and key figures.
const TOP: f64 = 268.0;
const ROW: f64 = 40.0;
/// Right edges of the columns beside the axis.
const COLUMNS: [f64; 3] = [1000.0, 1066.0, 1136.0];

const BAND: &str = "#f8fafc";
const BASE: &str = "#94a3b8";
const GAIN: &str = "#0d9488";
const LOSS: &str = "#e11d48";
const OTHER: &str = "#f59e0b";

/// Draws `rows`, best gain first, as an SVG document.
pub fn svg(rows: &[Row]) -> String {
    let mut rows = rows.to_vec();
    rows.sort_by(|a, b| b.lift().total_cmp(&a.lift()).then(a.person.cmp(&b.person)));
    let lowest = rows.iter().flat_map(|row| [row.base, row.own, row.other]).fold(1.0, f64::min);
    let scale = Scale { low: (lowest * 10.0 - 0.2).floor().clamp(0.0, 9.0) / 10.0 };
    let mean_y = TOP + ROW * rows.len() as f64 + 16.0;
    let height = mean_y + 142.0;

    let mut page = Page::new(WIDTH, height);
    header(&mut page, &rows);
    for index in (0..rows.len()).step_by(2) {
        let top = TOP + ROW * index as f64 - ROW / 2.0;
        page.push(format_args!(r##"<rect x="48" y="{top}" width="1104" height="{ROW}" rx="8" fill="{BAND}"/>"##));
    }
    axis(&mut page, scale, mean_y + 30.0);
    for (index, row) in rows.iter().enumerate() {
        person(&mut page, scale, TOP + ROW * index as f64, row);
    }
    total(&mut page, scale, mean_y, &rows);
    footer(&mut page, height, &rows);
    page.finish()
}

/// Draws `rows` to `watch.svg` and `watch.png` in `folder`.
///
/// # Errors
/// When a file cannot be written.
pub fn draw(rows: &[Row], folder: &Path) -> Result<()> {
    let document = svg(rows);
    std::fs::write(folder.join("watch.png"), png(&document)?)?;
    std::fs::write(folder.join("watch.svg"), document)?;
    Ok(())
}

/// From an accuracy to a place on the axis, which ends at 100 %.
#[derive(Clone, Copy)]
struct Scale {
    low: f64,
}

impl Scale {
    fn x(self, accuracy: f64) -> f64 {
        AXIS.0 + (accuracy - self.low) / (1.0 - self.low) * (AXIS.1 - AXIS.0)
    }
}

fn base_mark(page: &mut Page, x: f64, y: f64) {
    page.push(format_args!(
        r##"<circle cx="{x:.1}" cy="{y:.1}" r="6.5" fill="#ffffff" stroke="{BASE}" stroke-width="3"/>"##
    ));
}

fn own_mark(page: &mut Page, x: f64, y: f64, color: &str) {
    page.push(format_args!(
        r##"<circle cx="{x:.1}" cy="{y:.1}" r="8.5" fill="{color}" stroke="#ffffff" stroke-width="2"/>"##
    ));
}

fn other_mark(page: &mut Page, x: f64, y: f64) {
    page.line((x - 4.5, y - 4.5), (x + 4.5, y + 4.5), OTHER, 2.5);
    page.line((x - 4.5, y + 4.5), (x + 4.5, y - 4.5), OTHER, 2.5);
}

fn percent(accuracy: f64) -> String {
    format!("{:.1} %", 100.0 * accuracy)
}

/// Signed points, with a minus sign as wide as the plus.
fn points(lift: f64) -> String {
    if lift.abs() < 0.05 { "±0.0".into() } else { format!("{lift:+.1}").replace('-', "−") }
}

fn color(row: &Row) -> &'static str {
    match row.lift() {
        lift if lift > 0.0 => GAIN,
        lift if lift < 0.0 => LOSS,
        _ => BASE,
    }
}

/// Title, key figures, legend.
fn header(page: &mut Page, rows: &[Row]) {
    page.text(64.0, 74.0, ("start", 34, 600, INK), "A watch that learns how you move");
    let bytes = rows.iter().map(|row| row.bytes).max().unwrap_or(0);
    let subtitle =
        format!("One frozen int8 model. People it never saw. An adapter of {bytes} bytes each, trained on the device.");
    page.text(64.0, 106.0, ("start", 17, 400, MUTED), &subtitle);

    let means = [
        ("start", 64.0, "shared base", MUTED, mean(rows, |row| row.base)),
        ("start", 250.0, "with their own adapter", GAIN, mean(rows, |row| row.own)),
        ("start", 476.0, "with another person's adapter", OTHER, mean(rows, |row| row.other)),
    ];
    for (index, (anchor, x, label, fill, value)) in means.into_iter().enumerate() {
        match index {
            0 => base_mark(page, x + 7.0, 156.0),
            1 => own_mark(page, x + 8.0, 156.0, GAIN),
            _ => other_mark(page, x + 6.0, 156.0),
        }
        page.text(x + 24.0, 165.0, (anchor, 26, 600, if index == 0 { INK } else { fill }), &percent(value));
        page.text(x + 24.0, 187.0, (anchor, 14, 400, MUTED), label);
    }
    for (x, label) in COLUMNS.into_iter().zip(["base", "own", "points"]) {
        page.text(x, TOP - 34.0, ("end", 13, 400, MUTED), label);
    }
}

/// Grid lines every 10 %, with their labels above the rows.
fn axis(page: &mut Page, scale: Scale, bottom: f64) {
    let first = (scale.low * 10.0).round() as u32;
    for tenth in first..=10 {
        let x = scale.x(f64::from(tenth) / 10.0);
        page.text(x, TOP - 34.0, ("middle", 13, 400, MUTED), &format!("{} %", tenth * 10));
        page.line((x, TOP - 22.0), (x, bottom), GRID, 1.0);
    }
}

/// One person's line.
fn person(page: &mut Page, scale: Scale, y: f64, row: &Row) {
    page.text(64.0, y + 5.5, ("start", 16, 600, INK), &format!("Person {}", row.person));
    dumbbell(page, scale, y, (row.base, row.own, row.other), color(row));
    page.text(COLUMNS[0], y + 5.5, ("end", 15, 400, MUTED), &format!("{:.1}", 100.0 * row.base));
    page.text(COLUMNS[1], y + 5.5, ("end", 15, 600, INK), &format!("{:.1}", 100.0 * row.own));
    page.text(COLUMNS[2], y + 5.5, ("end", 15, 600, color(row)), &points(row.lift()));
}

fn dumbbell(page: &mut Page, scale: Scale, y: f64, (base, own, other): (f64, f64, f64), color: &str) {
    page.line((scale.x(base), y), (scale.x(own), y), color, 5.0);
    other_mark(page, scale.x(other), y);
    base_mark(page, scale.x(base), y);
    if own != base {
        own_mark(page, scale.x(own), y, color);
    }
}

/// The mean of all people, set off by a line.
fn total(page: &mut Page, scale: Scale, y: f64, rows: &[Row]) {
    let (base, own, other) = (mean(rows, |row| row.base), mean(rows, |row| row.own), mean(rows, |row| row.other));
    let color = if own >= base { GAIN } else { LOSS };
    page.line((64.0, y - 28.0), (1136.0, y - 28.0), BASE, 1.0);
    page.text(64.0, y + 5.5, ("start", 16, 600, INK), "Mean");
    dumbbell(page, scale, y, (base, own, other), color);
    page.text(COLUMNS[0], y + 5.5, ("end", 15, 400, MUTED), &format!("{:.1}", 100.0 * base));
    page.text(COLUMNS[1], y + 5.5, ("end", 15, 600, INK), &format!("{:.1}", 100.0 * own));
    page.text(COLUMNS[2], y + 5.5, ("end", 15, 600, color), &points(100.0 * (own - base)));
}

/// What was measured, and on what.
fn footer(page: &mut Page, height: f64, rows: &[Row]) {
    let mut devices: Vec<&str> = rows.iter().map(|row| row.device.as_str()).collect();
    devices.dedup();
    let steps = rows.iter().map(|row| row.steps).max().unwrap_or(0);
    let ms = mean(rows, |row| row.ms_per_step);
    let kept: Vec<String> = rows.iter().filter(|row| row.refused()).map(|row| row.person.to_string()).collect();
    let mut trained = format!("At most {steps} steps, {ms:.1} ms each, on {}.", devices.join(", "));
    if !kept.is_empty() {
        let kept = kept.join(", ");
        let _ = write!(trained, " Keeps the base, since no gain showed on held-back calibration data: person {kept}.");
    }
    let lines = [
        "Accuracy on what was recorded after the calibration (the first quarter of each recording). Chance is 14 %.",
        &trained,
        "Data: seglearn 1.2.5 (BSD), 7 shoulder exercises, 6-axis motion at the wrist, 50 Hz.",
    ];
    for (index, line) in lines.iter().enumerate() {
        page.text(64.0, height - 68.0 + 22.0 * index as f64, ("start", 13, 400, MUTED), line);
    }
}

#[cfg(test)]
mod tests {
    use resvg::tiny_skia::Pixmap;

    use super::*;

    fn rows() -> Vec<Row> {
        let figures =
            [(0.942, 0.959, 0.77), (0.681, 0.826, 0.68), (0.865, 0.985, 0.74), (0.928, 0.907, 0.85), (0.98, 0.98, 0.9)];
        let row = |(index, (base, own, other)): (usize, (f64, f64, f64))| Row {
            person: index as u32 + 1,
            base,
            own,
            other,
            bytes: if base == own { 0 } else { 914 },
            steps: 200,
            ms_per_step: 1.4,
            device: "CPU & <friends>".into(),
            if_accepted: None,
        };
        figures.into_iter().enumerate().map(row).collect()
    }

    #[test]
    fn everybody_is_drawn_best_gain_first() {
        let document = svg(&rows());
        let at = |person: u32| document.find(&format!(">Person {person}<")).expect("every person has a line");
        assert!(at(2) < at(3) && at(3) < at(1) && at(1) < at(5) && at(5) < at(4), "{document}");
        assert!(document.contains("−2.1") && document.contains("±0.0"), "a loss and a refusal are shown");
    }

    #[test]
    fn every_character_is_in_the_vendored_fonts() {
        let missing: String = svg(&rows()).chars().filter(|c| !crate::svg::is_in_fonts(*c)).collect();
        assert_eq!(missing, "");
    }

    #[test]
    fn text_is_drawn_without_fonts_of_the_system() {
        let all = png(&svg(&rows())).expect("a chart");
        let pixels = Pixmap::decode_png(&all).expect("a PNG");
        let dark = pixels.pixels().iter().filter(|p| p.red() < 40 && p.green() < 50 && p.blue() < 70).count();
        assert!(dark > 3000, "the title and the names are not there: {dark} dark pixels");
    }
}
