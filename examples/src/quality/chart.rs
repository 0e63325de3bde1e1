use inlay_runtime::Dtype;

use super::case::Case;
use super::figures::{Figures, Row, Spread, Stored};
use crate::svg::{GRID, INK, MUTED, Page};

const WIDTH: f64 = 1240.0;
/// A panel with its title and the labels of its axes, and the space left of it.
const PANEL: (f64, f64) = (572.0, 452.0);
const LEFT: f64 = 48.0;
const TOP: f64 = 132.0;
/// The axes' rectangle within a panel: left, top, right, bottom.
const AXES: (f64, f64, f64, f64) = (44.0, 52.0, 448.0, 392.0);
/// Height of a label (units of the SVG).
const LABEL: f64 = 13.0;

/// Colours, by the first kind of a family.
const COLORS: &[(&str, &str)] = &[
    ("lora", "#0d9488"),
    ("lora-xs", "#2563eb"),
    ("ia3", "#d97706"),
    ("bias", "#9333ea"),
    ("norm", "#c026d3"),
    ("head", "#e11d48"),
    ("lora+head", "#db2777"),
    ("bottleneck", "#65a30d"),
    ("prompt", "#0891b2"),
    ("dense", "#64748b"),
    ("dense+bias", "#0f172a"),
];

/// Gained accuracy against the bytes of a record as an SVG document, a panel a case: int8 with the spread over people and
/// seeds, and paler the means at int4 and f16.
pub fn svg(cases: &[(Case, Figures)]) -> String {
    let height = TOP + PANEL.1 * cases.len().div_ceil(2) as f64 + 40.0;
    let mut page = Page::new(WIDTH, height);
    page.text(LEFT, 58.0, ("start", 28, 600, INK), "What a person gains, and what it weighs");
    let legend = "Gained accuracy (points) against the size of the adapter's record (bytes). Solid: int8, mean ± sd over people and seeds. Pale: the same adapters at int4 (left) and f16 (right).";
    page.text(LEFT, 86.0, ("start", 14, 400, MUTED), legend);
    for (at, (case, figures)) in cases.iter().enumerate() {
        let origin = (LEFT + (PANEL.0 + 12.0) * (at % 2) as f64, TOP + PANEL.1 * (at / 2) as f64);
        Panel::new(origin, figures).draw(&mut page, case, figures);
    }
    page.finish()
}

/// From bytes and points to places on the sheet.
struct Panel {
    origin: (f64, f64),
    bytes: (f64, f64),
    lift: (f64, f64),
}

impl Panel {
    fn new(origin: (f64, f64), figures: &Figures) -> Self {
        let stored =
            || figures.rows.iter().flat_map(|row| &row.stored).filter(|stored| stored.dtype != Dtype::F32.name());
        let log = |bytes: usize| (bytes.max(1) as f64).log10();
        let low = stored().map(|stored| log(stored.bytes)).fold(f64::INFINITY, f64::min);
        let high = stored().map(|stored| log(stored.bytes)).fold(f64::NEG_INFINITY, f64::max);
        let ends = |row: &Row| {
            row.at(Dtype::Int8).map(|stored| (Spread::of(&stored.lifts).mean, Spread::of(&stored.lifts).sd))
        };
        let ends: Vec<(f64, f64)> = figures.rows.iter().filter_map(ends).collect();
        let top = ends.iter().map(|(mean, sd)| mean + sd).fold(1.0, f64::max);
        let bottom = ends.iter().map(|(mean, sd)| mean - sd).fold(0.0, f64::min);
        // What falls far below the base would squeeze all the rest.
        let bottom = bottom.max(-0.5 * top);
        Panel { origin, bytes: (low - 0.1, high + 0.1), lift: (bottom - 0.5, top + 0.5) }
    }

    fn x(&self, bytes: f64) -> f64 {
        let part = (bytes.log10() - self.bytes.0) / (self.bytes.1 - self.bytes.0);
        self.origin.0 + AXES.0 + part * (AXES.2 - AXES.0)
    }

    /// Kept within the axes.
    fn y(&self, lift: f64) -> f64 {
        let part = ((lift - self.lift.0) / (self.lift.1 - self.lift.0)).clamp(0.0, 1.0);
        self.origin.1 + AXES.3 - part * (AXES.3 - AXES.1)
    }

    fn draw(&self, page: &mut Page, case: &Case, figures: &Figures) {
        let (left, top) = (self.origin.0 + AXES.0, self.origin.1);
        page.text(left, top + 22.0, ("start", 18, 600, INK), case.title);
        let base = Spread::of(&figures.base).mean;
        let runs = figures.base.len() as u64 * figures.seeds;
        let subtitle = format!("base {base:.1} %, {} people, {runs} runs a point", figures.base.len());
        page.text(left, top + 41.0, ("start", 13, 400, MUTED), &subtitle);
        self.axes(page);
        let mut labels = Vec::new();
        for family in families(&figures.rows) {
            let color = color(&family[0].kind);
            let place = |stored: &Stored| (self.x(stored.bytes as f64), self.y(Spread::of(&stored.lifts).mean));
            let points: Vec<(f64, f64)> = family.iter().filter_map(|row| row.at(Dtype::Int8)).map(place).collect();
            for pair in points.windows(2) {
                page.line(pair[0], pair[1], color, 2.0);
            }
            for row in family {
                self.point(page, row, color, place);
            }
            if let Some(&(_, y)) = points.last() {
                labels.push((y, format!("{}, {}", family[0].kind, family[0].place), color));
            }
        }
        self.labels(page, labels);
    }

    /// Decades and points, with the line of the base.
    fn axes(&self, page: &mut Page) {
        let (left, right) = (self.origin.0 + AXES.0, self.origin.0 + AXES.2);
        let (top, bottom) = (self.origin.1 + AXES.1, self.origin.1 + AXES.3);
        for decade in self.bytes.0.ceil() as i32..=self.bytes.1.floor() as i32 {
            let x = self.x(10f64.powi(decade));
            page.line((x, top), (x, bottom), GRID, 1.0);
            page.text(x, bottom + 18.0, ("middle", 12, 400, MUTED), &bytes_label(decade));
        }
        let step = [1.0, 2.0, 5.0, 10.0, 20.0, 50.0].into_iter().find(|step| (self.lift.1 - self.lift.0) / step <= 8.0);
        let step = step.unwrap_or(100.0);
        let (first, last) = ((self.lift.0 / step).ceil() as i64, (self.lift.1 / step).floor() as i64);
        for tick in first..=last {
            let y = self.y(tick as f64 * step);
            page.line((left, y), (right, y), if tick == 0 { MUTED } else { GRID }, 1.0);
            let label = format!("{:+.0}", tick as f64 * step).replace('-', "−");
            page.text(left - 8.0, y + 4.0, ("end", 12, 400, MUTED), if tick == 0 { "base" } else { &label });
        }
    }

    /// int8 with its spread, and the means at int4 and f16.
    fn point(&self, page: &mut Page, row: &Row, color: &str, place: impl Fn(&Stored) -> (f64, f64)) {
        for stored in [Dtype::Int4, Dtype::F16].into_iter().filter_map(|dtype| row.at(dtype)) {
            let (x, y) = place(stored);
            page.push(format_args!(r#"<circle cx="{x:.1}" cy="{y:.1}" r="2.5" fill="{color}" opacity="0.4"/>"#));
        }
        let Some(stored) = row.at(Dtype::Int8) else { return };
        let (x, y) = place(stored);
        let Spread { mean, sd, .. } = Spread::of(&stored.lifts);
        let (low, high) = (self.y(mean - sd), self.y(mean + sd));
        page.push(format_args!(
            r#"<path d="M{x:.1} {low:.1}L{x:.1} {high:.1}" stroke="{color}" stroke-width="1" opacity="0.5"/>"#
        ));
        page.push(format_args!(
            r##"<circle cx="{x:.1}" cy="{y:.1}" r="5" fill="{color}" stroke="#ffffff" stroke-width="1.5"/>"##
        ));
    }

    /// The families' names right of the axes, as near to the height of their largest size as there is room.
    fn labels(&self, page: &mut Page, mut labels: Vec<(f64, String, &str)>) {
        labels.sort_by(|a, b| a.0.total_cmp(&b.0));
        let mut next = self.origin.1 + AXES.1;
        let last = self.origin.1 + AXES.3;
        for at in 0..labels.len() {
            let below = (labels.len() - at) as f64 * LABEL;
            let y = labels[at].0.max(next).min((last - below + LABEL).max(next));
            page.text(self.origin.0 + AXES.2 + 8.0, y + 4.0, ("start", 12, 400, labels[at].2), &labels[at].1);
            next = y + LABEL;
        }
    }
}

/// Rows of one kind and place, which follow each other.
fn families(rows: &[Row]) -> impl Iterator<Item = &[Row]> {
    rows.chunk_by(|a, b| a.kind == b.kind && a.place == b.place)
}

fn color(kind: &str) -> &'static str {
    COLORS.iter().find(|(name, _)| *name == kind).map_or(INK, |(_, color)| color)
}

fn bytes_label(decade: i32) -> String {
    match decade {
        ..3 => format!("{} B", 10u64.pow(decade.max(0).unsigned_abs())),
        3..6 => format!("{} KB", 10u64.pow((decade - 3).unsigned_abs())),
        _ => format!("{} MB", 10u64.pow((decade - 6).unsigned_abs())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quality::cases;

    #[test]
    fn every_family_is_drawn_in_a_colour_of_its_own_kind() {
        for case in cases::ALL {
            for family in case.families {
                assert!(COLORS.iter().any(|(kind, _)| *kind == family.kind), "{}: no colour", family.kind);
            }
        }
    }

    #[test]
    fn labels_do_not_overlap_and_are_in_the_fonts() {
        let stored = |dtype: Dtype, bytes| Stored {
            dtype: dtype.name().into(),
            bytes,
            lifts: vec![1.0, 5.0],
            standard: Vec::new(),
            refused: 0,
        };
        let row = |at: u16| Row {
            kind: "lora".into(),
            size: 1,
            place: format!("place {at}"),
            lr: 0.01,
            parameters: 10,
            ms_per_step: 1.0,
            stored: Dtype::ALL.into_iter().map(|dtype| stored(dtype, 100 * usize::from(at + 1))).collect(),
        };
        let rows = (0..10).map(row).collect();
        let figures = Figures {
            case: "watch".into(),
            base: vec![50.0],
            base_standard: vec![],
            enrolment: None,
            seeds: 2,
            is_development: false,
            rows,
        };
        let document = svg(&[(cases::ALL[0], figures)]);
        let height =
            |line: &str| line.split("y=\"").nth(1).and_then(|rest| rest.split('"').next()?.parse::<f64>().ok());
        let mut heights: Vec<f64> =
            document.lines().filter(|line| line.contains("lora, place")).filter_map(height).collect();
        heights.sort_by(f64::total_cmp);
        assert_eq!(heights.len(), 10);
        assert!(heights.windows(2).all(|pair| pair[1] - pair[0] >= LABEL - 0.11), "{heights:?}");
        assert_eq!(document.chars().filter(|c| !crate::svg::is_in_fonts(*c)).collect::<String>(), "");
    }
}
