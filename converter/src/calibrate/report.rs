//! What calibration did, as text, JSON or HTML.

use std::fmt::Write;

use serde::Serialize;

use crate::html::{row, table};

/// What calibration did.
#[derive(Clone, Debug, Serialize)]
pub struct CalibrationReport {
    /// The linears whose inputs were given factors, by the value that they read.
    pub groups: Vec<GroupReport>,
    /// Those that were not, and why.
    pub skipped: Vec<SkippedGroup>,
    /// How the outputs compare with the float model on the calibration inputs.
    pub outputs: Vec<OutputError>,
}

/// Linears that read one value.
#[derive(Clone, Debug, Serialize)]
pub struct GroupReport {
    /// Paths of the modules.
    pub modules: Vec<String>,
    /// The exponent of the factors; 0 where no factors are better.
    pub alpha: f32,
    /// Error of the quantized linears' outputs without factors: its norm, relative to that of the outputs.
    pub before: f32,
    /// The same with factors.
    pub after: f32,
}

/// Linears that stayed as they were.
#[derive(Clone, Debug, Serialize)]
pub struct SkippedGroup {
    /// Paths of the modules.
    pub modules: Vec<String>,
    /// Why.
    pub reason: String,
}

/// How an output of the quantized model compares with the float model's, on the calibration inputs.
#[derive(Clone, Debug, Serialize)]
pub struct OutputError {
    /// Its name.
    pub name: String,
    /// Without factors.
    pub before: Closeness,
    /// With them.
    pub after: Closeness,
}

/// How close two tensors are.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Closeness {
    /// The cosine between them.
    pub cosine: f32,
    /// Norm of the difference, relative to the norm of the float one.
    pub relative_l2: f32,
}

impl CalibrationReport {
    /// The report for a terminal.
    pub fn text(&self) -> String {
        let scaled: Vec<&GroupReport> = self.groups.iter().filter(|group| group.alpha > 0.0).collect();
        let mut text = format!("calibration: {} of {} groups of linears scaled", scaled.len(), self.total());
        text.push('\n');
        for group in &self.groups {
            let GroupReport { modules, alpha, before, after } = group;
            let _ = writeln!(text, "  {}: alpha {alpha:.2}, error {before:.4} -> {after:.4}", modules.join(", "));
        }
        for SkippedGroup { modules, reason } in &self.skipped {
            let _ = writeln!(text, "  {}: not scaled, {reason}", modules.join(", "));
        }
        for OutputError { name, before, after } in &self.outputs {
            let _ = writeln!(
                text,
                "  output {name:?} on the calibration inputs: relative L2 {:.2e} -> {:.2e}, cosine {:.6} -> {:.6}",
                before.relative_l2, after.relative_l2, before.cosine, after.cosine
            );
        }
        text
    }

    /// The report as parts of a page.
    pub(crate) fn html(&self) -> String {
        let number = |x: f32| format!("{x:.4}");
        let scaled = self.groups.iter().map(|group| {
            let GroupReport { modules, alpha, before, after } = group;
            row(&[modules.join(", "), format!("{alpha:.2}"), number(*before), number(*after), String::new()])
        });
        let skipped = self.skipped.iter().map(|SkippedGroup { modules, reason }| {
            row(&[modules.join(", "), String::new(), String::new(), String::new(), reason.clone()])
        });
        let outputs = self.outputs.iter().map(|OutputError { name, before, after }| {
            let [l2, cosine] = [[before.relative_l2, after.relative_l2], [before.cosine, after.cosine]];
            row(&[name.clone(), number(l2[0]), number(l2[1]), format!("{:.6}", cosine[0]), format!("{:.6}", cosine[1])])
        });
        [
            table(
                "Calibration: linears by their input",
                &["modules", "alpha", "error before", "error after", "not scaled because"],
                scaled.chain(skipped),
            ),
            table(
                "Outputs on the calibration inputs",
                &["output", "relative L2 before", "after", "cosine before", "after"],
                outputs,
            ),
        ]
        .concat()
    }

    fn total(&self) -> usize {
        self.groups.len() + self.skipped.len()
    }
}

/// Sums over the elements of two tensors.
#[derive(Clone, Copy, Default)]
pub(super) struct Sums {
    difference: f64,
    expected: f64,
    found: f64,
    product: f64,
}

impl Sums {
    pub fn add(&mut self, expected: &[f32], found: &[f32]) {
        for (&a, &b) in expected.iter().zip(found) {
            let (a, b) = (f64::from(a), f64::from(b));
            self.difference += (a - b).powi(2);
            self.expected += a * a;
            self.found += b * b;
            self.product += a * b;
        }
    }

    pub fn closeness(self) -> Closeness {
        let least = f64::MIN_POSITIVE;
        Closeness {
            cosine: (self.product / (self.expected * self.found).sqrt().max(least)) as f32,
            relative_l2: (self.difference / self.expected.max(least)).sqrt() as f32,
        }
    }
}
