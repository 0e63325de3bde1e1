//! What an export did, as text, JSON or HTML.

use std::fmt::Write;

use serde::Serialize;

use crate::html::{self, row, table};
use crate::points::Candidate;
use crate::quantize::{Kept, Quant};
use crate::verify::OutputReport;

/// What an export did.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The source's file name.
    pub source: String,
    /// The tool that wrote the source.
    pub producer: String,
    /// How weights are stored.
    pub quant: Quant,
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
    /// Linears and convolutions that cannot carry an adapter, and why.
    pub skipped: Vec<Skipped>,
    /// How the outputs compare with the source; empty if they were not compared.
    pub outputs: Vec<OutputReport>,
    /// Why the outputs were not compared, if so.
    pub not_verified: Option<String>,
    /// What the user should know.
    pub notes: Vec<String>,
}

/// A packed weight.
#[derive(Clone, Debug, Serialize)]
pub struct PackedWeight {
    /// Its name.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
}

/// An insertion point.
#[derive(Clone, Debug, Serialize)]
pub struct PointReport {
    /// Module path.
    pub path: String,
    /// Where the path was found.
    pub path_source: &'static str,
    /// `linear` or `conv`.
    pub op: String,
    /// Input features, or C_in.
    pub d_in: usize,
    /// Output features, or C_out.
    pub d_out: usize,
    /// Kernel of a convolution.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub kernel: Vec<usize>,
    /// Bytes of a LoRA adapter per unit of rank, stored as f32.
    pub bytes_per_rank_f32: usize,
    /// Bytes of a LoRA adapter per unit of rank, stored as f16.
    pub bytes_per_rank_f16: usize,
}

impl From<&Candidate> for PointReport {
    fn from(c: &Candidate) -> Self {
        PointReport {
            path: c.path.clone(),
            path_source: c.source.describe(),
            op: format!("{:?}", c.op).to_lowercase(),
            d_in: c.d_in,
            d_out: c.d_out,
            kernel: c.kernel.clone(),
            bytes_per_rank_f32: 4 * c.parameters_per_rank(),
            bytes_per_rank_f16: 2 * c.parameters_per_rank(),
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
    let mut text = format!("{:width$}  op      d_in -> d_out  bytes/rank f16    f32  path from\n", "path");
    for p in points {
        let kernel = if p.kernel.is_empty() { String::new() } else { format!(" kernel {:?}", p.kernel) };
        let (f16, f32, from) = (p.bytes_per_rank_f16, p.bytes_per_rank_f32, p.path_source);
        let _ = writeln!(
            text,
            "{:width$}  {:6} {:5} -> {:5}  {f16:14} {f32:6}  {from}{kernel}",
            p.path, p.op, p.d_in, p.d_out
        );
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
pub fn notes(quant: Quant, chosen: &[Candidate]) -> Vec<String> {
    let mut notes = Vec::new();
    let folded: Vec<&str> = chosen.iter().filter(|c| c.folded_norm).map(|c| c.path.as_str()).collect();
    if !folded.is_empty() {
        notes.push(format!(
            "the exporter folded BatchNormalization into {}: adapters made by PEFT on the PyTorch model do not carry over \
             there exactly; to keep it apart export with optimize=False (dynamo), or training=TrainingMode.PRESERVE and \
             do_constant_folding=False (TorchScript)",
            folded.join(", ")
        ));
    }
    if quant == Quant::Int8 {
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
            "source": self.source,
            "source_bytes": self.source_bytes,
            "packed": self.packed,
            "kept": self.kept,
            "skipped": self.skipped,
            "outputs": self.outputs,
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
        for (reason, names) in self.kept_by_reason() {
            let shown = names.iter().take(3).copied().collect::<Vec<_>>().join(", ");
            let more = if names.len() > 3 { ", ..." } else { "" };
            let _ = writeln!(text, "  {}: {} ({shown}{more})", reason, names.len());
        }
        let _ = writeln!(text, "\n{} insertion points", self.points.len());
        text.push_str(&points_table(&self.points, &self.skipped));
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
        for note in &self.notes {
            let _ = writeln!(text, "note: {note}");
        }
        text
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
        let packed = self.packed.iter().map(|p| row(&[p.name.clone(), format!("{:?}", p.shape)]));
        let kept = self.kept.iter().map(|k| row(&[k.name.clone(), format!("{:?}", k.shape), k.reason.clone()]));
        let outputs = self.outputs.iter().map(|o| {
            let number = |x: f32| format!("{x:.2e}");
            let cosine = format!("{:.6}", o.cosine);
            let structure = o.structure.map_or("not compared".to_owned(), number);
            row(&[o.name.clone(), structure, number(o.max_abs), number(o.relative_l2), cosine])
        });
        let bar = |label: &str, n: u64| {
            let width = 100.0 * n as f64 / self.source_bytes.max(self.bytes()).max(1) as f64;
            format!("<div class=bar><i style='width:{width:.1}%'></i><span>{label}: {}</span></div>\n", bytes(n))
        };
        let body = [
            bar("source", self.source_bytes),
            bar("exported", self.bytes()),
            self.not_verified.as_ref().map_or(String::new(), |w| html::paragraph(&format!("Not verified: {w}"))),
            self.notes.iter().map(|n| html::paragraph(n)).collect(),
            table("Outputs", &["output", "structure", "max error", "relative L2", "cosine"], outputs),
            html::points(&self.points, &self.skipped),
            table("Packed", &["weight", "shape"], packed),
            table("Stayed float", &["constant", "shape", "why"], kept),
        ];
        html::page(&self.source, &body)
    }
}
