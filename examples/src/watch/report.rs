//! One person's figures, as a table and as JSON.

use std::fmt::Write as _;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::Result;

/// One person's figures. Accuracies are fractions of the windows that came after calibration.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Row {
    /// The person, from 1.
    pub person: u32,
    /// Accuracy of the shared base.
    pub base: f64,
    /// Accuracy as the person gets it: with their own adapter, or of the base where the adapter was refused.
    pub own: f64,
    /// Accuracy with the adapter of another person whom this base never saw.
    pub other: f64,
    /// Size of the stored adapter (bytes); 0 where it was refused.
    pub bytes: u64,
    /// Optimizer steps.
    pub steps: usize,
    /// Time of one step (ms).
    pub ms_per_step: f64,
    /// The device that trained.
    pub device: String,
    /// Accuracy that the person's adapter would have had, where it was refused. For people, not part of the figures.
    #[serde(skip)]
    pub if_accepted: Option<f64>,
}

impl Row {
    /// Gained accuracy (percentage points).
    pub fn lift(&self) -> f64 {
        100.0 * (self.own - self.base)
    }

    /// Whether the person's adapter did not beat the base on held-back calibration windows.
    pub fn refused(&self) -> bool {
        self.bytes == 0
    }
}

/// Mean of `value` over `rows`; 0 when there are none.
pub fn mean(rows: &[Row], value: impl Fn(&Row) -> f64) -> f64 {
    rows.iter().map(value).sum::<f64>() / rows.len().max(1) as f64
}

/// The row that gained least.
pub fn worst(rows: &[Row]) -> Option<&Row> {
    rows.iter().min_by(|a, b| a.lift().total_cmp(&b.lift()))
}

/// The figures as a table for a terminal, with the mean and the worst row.
pub fn table(rows: &[Row]) -> String {
    let mut text = String::new();
    let rule = "─".repeat(82);
    let _ = writeln!(text, "person    base     own    lift   other   bytes  steps  ms/step  device");
    let _ = writeln!(text, "{rule}");
    for row in rows {
        let _ = writeln!(
            text,
            "{:>6} {:>5.1} % {:>5.1} % {:>+7.1} {:>5.1} % {:>7} {:>6} {:>8.2}  {}{}",
            row.person,
            100.0 * row.base,
            100.0 * row.own,
            row.lift(),
            100.0 * row.other,
            row.bytes,
            row.steps,
            row.ms_per_step,
            row.device,
            row.if_accepted.map_or(String::new(), |x| format!(" (keeps the base; refused: {:.1} %)", 100.0 * x)),
        );
    }
    let _ = writeln!(text, "{rule}");
    let _ = writeln!(
        text,
        "  mean {:>5.1} % {:>5.1} % {:>+7.1} {:>5.1} %",
        100.0 * mean(rows, |row| row.base),
        100.0 * mean(rows, |row| row.own),
        mean(rows, Row::lift),
        100.0 * mean(rows, |row| row.other),
    );
    if let Some(row) = worst(rows) {
        let _ = writeln!(text, " worst  person {}, {:+.1} points", row.person, row.lift());
    }
    text
}

/// Writes the figures as a JSON list.
///
/// # Errors
/// When the file cannot be written.
pub fn write_json(rows: &[Row], path: &Path) -> Result<()> {
    let mut text = serde_json::to_vec_pretty(rows)?;
    text.push(b'\n');
    std::fs::write(path, text).map_err(|error| format!("{}: {error}", path.display()).into())
}
