use std::fmt::Write as _;

use inlay_runtime::Dtype;

use super::case::Case;
use super::cases::FULL;
use super::figures::{Figures, Row, Spread};

/// The figures as a page of Markdown, case by case.
pub fn page(cases: &[(Case, Figures)]) -> String {
    let mut text = String::from(INTRODUCTION);
    payloads(&mut text, cases);
    enrolments(&mut text, cases);
    for (case, figures) in cases {
        section(&mut text, case, figures);
    }
    text
}

const INTRODUCTION: &str = "\
# Quality against bytes

What each adapter kind gains on people whom the base never saw, at which size of the record. Made by `./dev quality --docs .`.

![Gained accuracy against the bytes of a record, a panel a case](../images/quality.svg)

## How it is measured

- **Base**: exported to int8, frozen; of each case several models, each of which never saw the people it is tested on.
- **Adapter**: trained through the public API on a person's calibration samples, written as a record at each payload dtype, read back, and tested on samples that
  neither base nor adapter has seen. One training a person and seed; the dtypes are of the same training. No verdict: an adapter that harms is counted, not refused.
- **Learning rate**: for each kind and place the one of 0.001, 0.003, 0.01, 0.03 that does best on a part of the calibration that is held back, in a rehearsal of one to five of the people with the middle size and seed 1. AdamW, constant
  rate, the same steps for every kind of a case.
- **full** is `dense+bias` everywhere: full fine-tuning of every linear and convolution, as an adapter. A head starts from the means of the classes, all else at the base.
- **lift**: gained accuracy in percentage points, mean over people and seeds; sd and range over these runs; *worse* is the part of the runs that end below the base.
  Columns int8 and int4 are the mean difference to the lift at f32.
- **ms a step**: CPU, one thread, the median step of the fastest run, on a machine that had other work to do: compare within a table only. *of full* is the fraction of full fine-tuning's lift, bytes and time.
";

fn payloads(text: &mut String, cases: &[(Case, Figures)]) {
    let _ = writeln!(text, "\n## Payload dtypes\n");
    let _ = writeln!(
        text,
        "Difference of the lift to that at f32, in percentage points, over all rows of a case: the mean, and the row that loses most.\n"
    );
    let _ =
        writeln!(text, "| case | f16 | int8 | int8, worst row | int4 | int4, worst row |\n|---|---|---|---|---|---|");
    for (case, figures) in cases {
        let mean = |dtype| Spread::of(&figures.rows.iter().map(|row| loss(row, dtype)).collect::<Vec<_>>()).mean;
        let worst = |dtype| {
            let row = figures.rows.iter().min_by(|a, b| loss(a, dtype).total_cmp(&loss(b, dtype)));
            row.map_or(String::new(), |row| format!("{} ({})", points(loss(row, dtype)), row.label()))
        };
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} | {} | {} |",
            case.title,
            points(mean(Dtype::F16)),
            points(mean(Dtype::Int8)),
            worst(Dtype::Int8),
            points(mean(Dtype::Int4)),
            worst(Dtype::Int4),
        );
    }
}

fn enrolments(text: &mut String, cases: &[(Case, Figures)]) {
    let _ = writeln!(text, "\n## A class that comes later\n");
    let _ = writeln!(
        text,
        "A head from the class means of all classes but the last, to which the last is then added by `prototypes`: no training. Accuracy on test samples, mean over people.\n"
    );
    let _ = writeln!(
        text,
        "| case | samples of the new class | the new class | the others before | and after |\n|---|---|---|---|---|"
    );
    for (case, found) in cases.iter().filter_map(|(case, figures)| Some((case, figures.enrolment?))) {
        let _ = writeln!(
            text,
            "| {} | {} | {:.1} % | {:.1} % | {:.1} % |",
            case.title, found.samples, found.new, found.others_before, found.others_after
        );
    }
}

fn section(text: &mut String, case: &Case, figures: &Figures) {
    let base = Spread::of(&figures.base);
    let _ = writeln!(text, "\n## {}\n\n{}\n", case.title, case.about);
    let _ = writeln!(
        text,
        "{} people, {} seeds each, {} steps of {} samples. Base: {:.1} % (people from {:.1} to {:.1} %).",
        figures.base.len(),
        figures.seeds,
        case.steps,
        case.batch_size,
        base.mean,
        base.min,
        base.max,
    );
    if figures.is_development {
        let _ = writeln!(
            text,
            "Run by a development build, in which large products are many times slower: times are no measure of a release."
        );
    }
    let has_standard = !figures.base_standard.is_empty();
    if has_standard {
        let standard = Spread::of(&figures.base_standard).mean;
        let _ = writeln!(
            text,
            "On what everybody does the base has {standard:.1} %; column *standard* is what an adapter adds to or takes from that."
        );
    }
    if let Some(ceiling) = ceiling(&figures.rows).filter(|row| row.kind != FULL.kind) {
        let _ = writeln!(
            text,
            "Full fine-tuning was not run, for what it would take here in time and memory; *of full* compares with the largest dense adapter instead: {}.",
            ceiling.label()
        );
    }
    let standard = if has_standard { [" standard |", "---|"] } else { ["", ""] };
    let _ = writeln!(
        text,
        "\n| kind | size | where | numbers | f32 (B) | f16 (B) | int8 (B) | int4 (B) | lift at f32 | sd | range | worse |{} int8 | int4 | ms a step | of full: lift | bytes | time |",
        standard[0]
    );
    let _ = writeln!(text, "|---|---|---|---|---|---|---|---|---|---|---|---|{}---|---|---|---|---|---|", standard[1]);
    let full = ceiling(&figures.rows);
    for row in &figures.rows {
        line(text, row, full, has_standard);
    }
    let refused: usize = figures.rows.iter().flat_map(|row| &row.stored).map(|stored| stored.refused).sum();
    if refused > 0 {
        let _ = writeln!(
            text,
            "\n{refused} records were refused, since their dtype rounds the adapter to nothing; they count as the base."
        );
    }
}

/// What the others are compared with: full fine-tuning, or where that was not run the largest dense adapter.
fn ceiling(rows: &[Row]) -> Option<&Row> {
    let full = rows.iter().find(|row| row.kind == FULL.kind && row.place == FULL.place);
    full.or_else(|| rows.iter().filter(|row| row.kind == "dense").max_by_key(|row| row.parameters))
}

fn line(text: &mut String, row: &Row, full: Option<&Row>, has_standard: bool) {
    let lifts = row.at(Dtype::F32).map_or(&[][..], |stored| &stored.lifts);
    let lift = Spread::of(lifts);
    let worse = lifts.iter().filter(|lift| **lift < -1e-9).count();
    let bytes = |dtype| row.at(dtype).map_or(String::new(), |stored| stored.bytes.to_string());
    let size = if row.size == 0 { "–".to_owned() } else { row.size.to_string() };
    let standard = if has_standard {
        let change = row.at(Dtype::F32).map_or(0.0, |stored| Spread::of(&stored.standard).mean);
        format!(" {} |", points(change))
    } else {
        String::new()
    };
    let of_full = full.map_or_else(
        || "– | – | –".to_owned(),
        |full| {
            let whole =
                |row: &Row| row.at(Dtype::F32).map_or((0.0, 1.0), |s| (Spread::of(&s.lifts).mean, s.bytes as f64));
            let ((lift, bytes), (full_lift, full_bytes)) = (whole(row), whole(full));
            format!(
                "{:.0} % | {} % | {:.0} %",
                100.0 * lift / full_lift,
                two_digits(100.0 * bytes / full_bytes),
                100.0 * row.ms_per_step / full.ms_per_step
            )
        },
    );
    let _ = writeln!(
        text,
        "| {} | {size} | {} | {} | {} | {} | {} | {} | **{}** | {:.1} | {} to {} | {:.0} % |{standard} {} | {} | {:.2} | {of_full} |",
        row.kind,
        row.place,
        row.parameters,
        bytes(Dtype::F32),
        bytes(Dtype::F16),
        bytes(Dtype::Int8),
        bytes(Dtype::Int4),
        points(lift.mean),
        lift.sd,
        points(lift.min),
        points(lift.max),
        100.0 * worse as f64 / lifts.len().max(1) as f64,
        points(loss(row, Dtype::Int8)),
        points(loss(row, Dtype::Int4)),
        row.ms_per_step,
    );
}

/// How much the lift at `dtype` differs from that at f32 (percentage points).
pub fn loss(row: &Row, dtype: Dtype) -> f64 {
    let mean = |dtype| row.at(dtype).map_or(0.0, |stored| Spread::of(&stored.lifts).mean);
    mean(dtype) - mean(Dtype::F32)
}

/// Signed, one digit after the point unless that is zero.
fn points(value: f64) -> String {
    let digits = if value.abs() < 0.095 { format!("{value:+.2}") } else { format!("{value:+.1}") };
    if digits.contains(|c: char| ('1'..='9').contains(&c)) { digits.replace('-', "−") } else { "0".into() }
}

/// Two digits that mean something.
fn two_digits(value: f64) -> String {
    let digits = (1 - value.abs().log10().floor().max(-6.0) as i32).clamp(0, 6);
    format!("{value:.*}", usize::try_from(digits).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_written_for_people() {
        assert_eq!([points(3.12), points(-0.04), points(0.001), points(-12.0)], ["+3.1", "−0.04", "0", "−12.0"]);
        assert_eq!([two_digits(0.123), two_digits(4.56), two_digits(100.0)], ["0.12", "4.6", "100"]);
    }
}
