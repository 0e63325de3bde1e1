//! What an export did, as text, JSON or HTML.

use std::collections::BTreeMap;
use std::fmt::Write;

use inlay_format::kinds::{IN_FILE, counts};
use inlay_format::points::{LORA, Point};
use serde::Serialize;

use crate::arithmetic::{self, Trained, section};
use crate::calibrate::CalibrationReport;
use crate::html::{self, row, table};
use crate::points::Candidate;
use crate::quantize::{Kept, Packing, Quant, Rule};
use crate::verify::OutputReport;

/// What an export did.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The source's file name.
    pub source: String,
    /// The tool that wrote the source.
    pub producer: String,
    /// How weights are stored that no rule names.
    pub quant: Quant,
    /// The rules.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<Rule>,
    /// Bytes of the source, with its external data.
    pub source_bytes: u64,
    /// Bytes of the exported `.onnx`.
    pub model_bytes: u64,
    /// Bytes of the exported `.onnx.data`.
    pub data_bytes: u64,
    /// The packed weights.
    pub packed: Vec<PackedWeight>,
    /// The float constants that are not packed, and why.
    pub kept: Vec<Kept>,
    /// The insertion points.
    pub points: Vec<PointReport>,
    /// What each kind trains, wherever it sits by default.
    pub trained: Vec<Trained>,
    /// Linears and convolutions that cannot carry an adapter, and why.
    pub skipped: Vec<Skipped>,
    /// How the outputs compare with the source; empty if they were not compared.
    pub outputs: Vec<OutputReport>,
    /// What calibration did, if it was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub calibration: Option<CalibrationReport>,
    /// Why the outputs were not compared, if so.
    pub not_verified: Option<String>,
    /// What the user should know.
    pub notes: Vec<String>,
    /// The graph with its points as SVG, for the page.
    #[serde(skip)]
    pub drawing: Option<String>,
}

/// A packed weight.
#[derive(Clone, Debug, Serialize)]
pub struct PackedWeight {
    /// Its name.
    pub name: String,
    /// Paths of the modules that use it.
    pub paths: Vec<String>,
    /// Its shape.
    pub shape: Vec<usize>,
    /// How it is stored.
    pub scheme: &'static str,
    /// Bytes as the source has it.
    pub source_bytes: u64,
    /// Bytes as it is stored, with scales and zero points.
    pub bytes: u64,
    /// Norm of the difference from the source's values, relative to their norm.
    pub error: f32,
    /// Why it is not stored as was asked for, if so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// An insertion point.
#[derive(Clone, Debug, Serialize)]
pub struct PointReport {
    /// Module path.
    pub path: String,
    /// Where the path was found.
    pub path_source: &'static str,
    /// `linear`, `conv` or `embedding`.
    pub op: String,
    /// Input features, C_in, or rows of a table.
    pub d_in: usize,
    /// Output features, or C_out.
    pub d_out: usize,
    /// Kernel of a convolution.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub kernel: Vec<usize>,
    /// Bytes of a LoRA adapter per unit of rank, stored as f32; 0 where LoRA is not offered.
    pub bytes_per_rank_f32: usize,
    /// Bytes of a LoRA adapter per unit of rank, stored as f16; 0 where LoRA is not offered.
    pub bytes_per_rank_f16: usize,
    /// The adapter kinds that the point offers.
    pub kinds: Vec<KindReport>,
}

/// What an adapter kind costs at a point.
#[derive(Clone, Debug, Serialize)]
pub struct KindReport {
    /// The kind's name.
    pub kind: String,
    /// Trainable numbers whatever the size.
    pub parameters: u64,
    /// Trainable numbers that each unit of size adds.
    pub parameters_per_size: u64,
    /// What the size is called: rank, width or length; nothing for kinds that have none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<&'static str>,
}

impl KindReport {
    fn new(kind: &str, point: &Point<String>) -> Self {
        let (parameters, parameters_per_size) = counts(kind, point);
        let size = IN_FILE.iter().find_map(|(name, size)| if *name == kind { *size } else { None });
        KindReport { kind: kind.to_owned(), parameters, parameters_per_size, size }
    }

    /// Bytes of a record's payload in f16: `ia3 768 B`, `bottleneck 1538 B/width + 768 B`.
    fn cost(&self) -> String {
        let (fixed, each) = (2 * self.parameters, 2 * self.parameters_per_size);
        match (self.size, fixed) {
            (None, _) => format!("{} {fixed} B", self.kind),
            (Some(size), 0) => format!("{} {each} B/{size}", self.kind),
            (Some(size), _) => format!("{} {each} B/{size} + {fixed} B", self.kind),
        }
    }
}

impl PointReport {
    /// A point, and where its path was found.
    pub fn new(point: &Point<String>, path_source: &'static str) -> Self {
        let lora = if point.offers(LORA) { point.lora_parameters_per_rank() } else { 0 };
        let lora = usize::try_from(lora).unwrap_or(usize::MAX);
        PointReport {
            path: point.path.clone(),
            path_source,
            op: format!("{:?}", point.op).to_lowercase(),
            d_in: point.d_in as usize,
            d_out: point.d_out as usize,
            kernel: point.kernel.iter().map(|&k| k as usize).collect(),
            bytes_per_rank_f32: lora.saturating_mul(4),
            bytes_per_rank_f16: lora.saturating_mul(2),
            kinds: point.kinds.iter().map(|kind| KindReport::new(kind, point)).collect(),
        }
    }

    /// Whether the point offers adapters of `kind`.
    pub(crate) fn offers(&self, kind: &str) -> bool {
        self.kinds.iter().any(|k| k.kind == kind)
    }

    /// What the kinds beside LoRA cost.
    pub(crate) fn other_kinds(&self) -> String {
        // Bases for LoRA-XS are counted elsewhere.
        let others = self.kinds.iter().filter(|k| k.kind != LORA && (k.parameters, k.parameters_per_size) != (0, 0));
        others.map(KindReport::cost).collect::<Vec<_>>().join(", ")
    }
}

impl From<&Candidate> for PointReport {
    fn from(c: &Candidate) -> Self {
        let parameters = c.parameters_per_rank();
        let (kind, size) = (LORA.to_owned(), Some("rank"));
        PointReport {
            path: c.path.clone(),
            path_source: c.source.describe(),
            op: format!("{:?}", c.op).to_lowercase(),
            d_in: c.d_in,
            d_out: c.d_out,
            kernel: c.kernel.clone(),
            bytes_per_rank_f32: 4 * parameters,
            bytes_per_rank_f16: 2 * parameters,
            kinds: vec![KindReport { kind, parameters: 0, parameters_per_size: parameters as u64, size }],
        }
    }
}

/// A linear or convolution without an adapter.
#[derive(Clone, Debug, Serialize)]
pub struct Skipped {
    /// Module path.
    pub path: String,
    /// The node in the way.
    pub node: String,
    /// Why.
    pub reason: String,
}

impl Skipped {
    /// What stands in the way of `candidate`, if anything does.
    pub fn of(candidate: &Candidate) -> Option<Skipped> {
        let o = candidate.obstacle.as_ref()?;
        let reason = format!("{} ({})", o.reason, o.op_type);
        Some(Skipped { path: candidate.path.clone(), node: o.node.clone(), reason })
    }
}

/// The points as a table, one line each.
pub fn points_table(points: &[PointReport], skipped: &[Skipped]) -> String {
    let width = points.iter().map(|p| p.path.len()).max().unwrap_or(4).max(4);
    let mut text = format!("{:width$}  op         d_in -> d_out  bytes/rank f16    f32  path from\n", "path");
    for p in points {
        let kernel = if p.kernel.is_empty() { String::new() } else { format!(" kernel {:?}", p.kernel) };
        let (f16, f32, from) = (p.bytes_per_rank_f16, p.bytes_per_rank_f32, p.path_source);
        let _ = writeln!(
            text,
            "{:width$}  {:9} {:5} -> {:5}  {f16:14} {f32:6}  {from}{kernel}",
            p.path, p.op, p.d_in, p.d_out
        );
        if !p.other_kinds().is_empty() {
            let _ = writeln!(text, "{:width$}  {}", "", p.other_kinds());
        }
    }
    for s in skipped {
        let _ = writeln!(text, "{:width$}  skipped: node {:?}: {}", s.path, s.node, s.reason);
    }
    text
}

/// A number of bytes for people.
pub fn bytes(n: u64) -> String {
    match n {
        0..1_000 => format!("{n} B"),
        1_000..1_000_000 => format!("{:.1} KB", n as f64 / 1e3),
        _ => format!("{:.2} MB", n as f64 / 1e6),
    }
}

/// What the user should know about a base with these points.
pub fn notes<'a>(packing: &Packing, chosen: impl Iterator<Item = &'a Candidate>) -> Vec<String> {
    let mut notes = Vec::new();
    let folded: Vec<&str> = chosen.filter(|c| c.folded_norm).map(|c| c.path.as_str()).collect();
    if !folded.is_empty() {
        notes.push(format!(
            "the exporter folded BatchNormalization into {}: adapters made by PEFT on the PyTorch model do not carry over \
             there exactly; to keep it apart export with optimize=False (dynamo), or training=TrainingMode.PRESERVE and \
             do_constant_folding=False (TorchScript)",
            folded.join(", ")
        ));
    }
    let kept = packing.weights.values().filter(|storage| storage.kept).count();
    if kept > 0 {
        notes.push(format!(
            "{kept} weights keep the integers that the source has; --quant-rule 'GLOB=SCHEME' quantizes them anew. \
             Activations are f32, cut off where the source cuts them off"
        ));
    }
    if packing.weights.values().any(|storage| storage.scheme.name() == "int8") {
        notes.push(
            "onnxruntime: use basic graph optimization, or session.qdq_matmulnbits_accuracy_level=1; its default \
             quantizes activations too"
                .to_owned(),
        );
    }
    notes
}

impl Report {
    /// Bytes of the exported folder.
    pub fn bytes(&self) -> u64 {
        self.model_bytes + self.data_bytes
    }

    /// What the exported file keeps of this report: nothing that another run would change.
    pub fn metadata(&self) -> String {
        serde_json::to_string(&serde_json::json!({
            "quant": self.quant,
            "rules": self.rules,
            "source": self.source,
            "source_bytes": self.source_bytes,
            "packed": self.packed,
            "kept": self.kept,
            "skipped": self.skipped,
            "outputs": self.outputs,
            "calibration": self.calibration,
            "not_verified": self.not_verified,
            "notes": self.notes,
        }))
        .expect("the report has string keys and plain values")
    }

    /// The report for a terminal.
    pub fn text(&self) -> String {
        let mut text = format!(
            "{} ({}): {} -> {}\n",
            self.source,
            if self.producer.is_empty() { "unknown exporter" } else { &self.producer },
            bytes(self.source_bytes),
            bytes(self.bytes())
        );
        let _ = writeln!(text, "{} weights packed, {} stayed float", self.packed.len(), self.kept.len());
        for (scheme, weights) in self.packed_by_scheme() {
            let sum = |f: fn(&PackedWeight) -> u64| bytes(weights.iter().map(|w| f(w)).sum());
            let worst = weights.iter().max_by(|a, b| a.error.total_cmp(&b.error)).expect("no group is empty");
            let _ = writeln!(
                text,
                "  {scheme}: {} weights, {} -> {}, largest relative error {:.4} ({})",
                weights.len(),
                sum(|w| w.source_bytes),
                sum(|w| w.bytes),
                worst.error,
                worst.paths.first().unwrap_or(&worst.name)
            );
        }
        for weight in &self.packed {
            if let Some(reason) = &weight.reason {
                let _ = writeln!(text, "  {} is {reason}", weight.paths.first().unwrap_or(&weight.name));
            }
        }
        for (reason, names) in self.kept_by_reason() {
            let shown = names.iter().take(3).copied().collect::<Vec<_>>().join(", ");
            let more = if names.len() > 3 { ", ..." } else { "" };
            let _ = writeln!(text, "  {}: {} ({shown}{more})", reason, names.len());
        }
        let _ = writeln!(text, "\n{} insertion points", self.points.len());
        text.push_str(&points_table(&self.points, &self.skipped));
        text.push('\n');
        text.push_str(&arithmetic::table(&self.trained));
        text.push('\n');
        if let Some(why) = &self.not_verified {
            let _ = writeln!(text, "not verified: {why}");
        }
        for o in &self.outputs {
            let _ = writeln!(
                text,
                "output {:?}: structure {}; against the float source: max {:.2e}, relative L2 {:.2e}, cosine {:.6}",
                o.name,
                o.structure.map_or("not compared".to_owned(), |s| format!("{s:.1e}")),
                o.max_abs,
                o.relative_l2,
                o.cosine
            );
        }
        if let Some(calibration) = &self.calibration {
            text.push_str(&calibration.text());
        }
        for note in &self.notes {
            let _ = writeln!(text, "note: {note}");
        }
        text
    }

    /// The packed weights of each scheme.
    fn packed_by_scheme(&self) -> BTreeMap<&str, Vec<&PackedWeight>> {
        let mut groups: BTreeMap<&str, Vec<&PackedWeight>> = BTreeMap::new();
        for weight in &self.packed {
            groups.entry(weight.scheme).or_default().push(weight);
        }
        groups
    }

    fn kept_by_reason(&self) -> Vec<(&str, Vec<&str>)> {
        let mut groups: Vec<(&str, Vec<&str>)> = Vec::new();
        for kept in &self.kept {
            match groups.iter_mut().find(|(reason, _)| *reason == kept.reason) {
                Some((_, names)) => names.push(&kept.name),
                None => groups.push((&kept.reason, vec![&kept.name])),
            }
        }
        groups
    }

    /// The report as one self-contained page.
    pub fn html(&self) -> String {
        let ratio = format!("{:.1} ×", self.source_bytes as f64 / self.bytes().max(1) as f64);
        let mut cards = vec![
            (bytes(self.source_bytes), "source"),
            (bytes(self.bytes()), "exported"),
            (ratio, "smaller"),
            (self.points.len().to_string(), "insertion points"),
        ];
        if let Some(worst) = self.outputs.iter().map(|o| o.cosine).min_by(f32::total_cmp) {
            cards.push((format!("{worst:.5}"), "lowest cosine of an output"));
        }
        let outputs = self.outputs.iter().map(|o| {
            let number = |x: f32| format!("{x:.2e}");
            let cosine = format!("{:.6}", o.cosine);
            let structure = o.structure.map_or("not compared".to_owned(), number);
            row(&[o.name.clone(), structure, number(o.max_abs), number(o.relative_l2), cosine])
        });
        let whole = self.source_bytes.max(self.bytes()) as f64;
        let size = |label: &str, n: u64| html::bar(&format!("{label}: {}", bytes(n)), n as f64, whole);
        let parts = self.packed_by_scheme().into_iter().map(|(scheme, weights)| {
            size(&format!("of which {scheme}, {} weights", weights.len()), weights.iter().map(|w| w.bytes).sum())
        });
        let worst = self.packed.iter().map(|p| p.error).fold(0f32, f32::max);
        let packed = self.packed.iter().map(|p| {
            let name = if p.paths.is_empty() { p.name.clone() } else { p.paths.join(", ") };
            let why = p.reason.as_ref().map_or(String::new(), |r| format!(" ({r})"));
            let sizes = format!("{} → {}", bytes(p.source_bytes), bytes(p.bytes));
            let cells = [name, format!("{:?}", p.shape), format!("{}{why}", p.scheme), sizes];
            html::row_with_bar(&cells, &format!("{:.4}", p.error), p.error.into(), worst.into())
        });
        let kept = self.kept.iter().map(|k| row(&[k.name.clone(), format!("{:?}", k.shape), k.reason.clone()]));
        let drawing = self.drawing.as_ref().map(|svg| {
            let note = "From inputs above to outputs below. Blue: a weight. Orange: a weight with an insertion point.";
            html::figure("Graph", note, svg)
        });
        let body = [
            html::cards(&cards),
            size("source", self.source_bytes),
            size("exported", self.bytes()),
            parts.collect(),
            self.not_verified.as_ref().map_or(String::new(), |w| html::paragraph(&format!("Not verified: {w}"))),
            self.notes.iter().map(|n| html::paragraph(n)).collect(),
            table(
                "Outputs against the float source",
                &["output", "structure (same weights)", "max error", "relative L2", "cosine"],
                outputs,
            ),
            self.calibration.as_ref().map_or(String::new(), CalibrationReport::html),
            html::points(&self.points, &self.skipped),
            section(&self.trained),
            drawing.unwrap_or_default(),
            table("Packed weights", &["module", "shape", "stored as", "bytes", "relative error"], packed),
            table("Stayed float", &["constant", "shape", "why"], kept),
        ];
        html::page(&self.source, &body)
    }
}
