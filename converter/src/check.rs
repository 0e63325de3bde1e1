//! A verdict on a model before it is exported: what blocks it, where adapters could go. Reads the graph, not the weights.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::canonicalize::{canonicalize_flat, flattened};
use crate::error::{Error, Result};
use crate::graph::Graph;
use crate::inspect::{OpReport, ops};
use crate::points::{candidates, select};
use crate::read::read;
use crate::report::{PointReport, Skipped, bytes, points_table};
use crate::support;

/// A verdict on a model.
#[derive(Clone, Debug, Serialize)]
pub struct Verdict {
    /// The file.
    pub file: PathBuf,
    /// The tool that wrote it.
    pub producer: String,
    /// Version of the ai.onnx operator set.
    pub opset: i64,
    /// Bytes, with external data.
    pub bytes: u64,
    /// Whether nothing stands in the way of an export. Its numbers are compared only when it is made.
    pub exportable: bool,
    /// What stands in the way.
    pub blockers: Vec<Blocker>,
    /// Where adapters can be inserted.
    pub points: Vec<PointReport>,
    /// Linears and convolutions that cannot carry an adapter, and why.
    pub skipped: Vec<Skipped>,
    /// The operators: as the export would write them, or as the file has them if it cannot be exported.
    pub ops: Vec<OpReport>,
}

/// Something that stands in the way of an export.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Blocker {
    /// What it is and what to do; about the first node, where there are several.
    pub detail: String,
    /// How many nodes it is about; 0 if it is about the model.
    pub nodes: usize,
}

/// Checks the ONNX file at `path`.
///
/// # Errors
/// If it cannot be read at all.
pub fn check(path: &Path) -> Result<Verdict> {
    let model = read(path)?;
    let mut verdict = Verdict {
        file: path.to_owned(),
        producer: model.producer.clone(),
        opset: model.opset,
        bytes: model.bytes,
        exportable: false,
        blockers: Vec::new(),
        points: Vec::new(),
        skipped: Vec::new(),
        ops: ops(&model.graph),
    };
    let looked = flattened(&model).and_then(|flat| {
        verdict.blockers = unsupported(&flat);
        if verdict.blockers.is_empty() { look_for_points(flat, model.opset, &mut verdict) } else { Ok(()) }
    });
    if let Err(error) = looked {
        verdict.blockers.push(Blocker { detail: error.to_string(), nodes: 0 });
    }
    verdict.exportable = verdict.blockers.is_empty();
    Ok(verdict)
}

/// The operators that are not supported, each once.
fn unsupported(graph: &Graph) -> Vec<Blocker> {
    let mut found: BTreeMap<(&str, &str), (Error, usize)> = BTreeMap::new();
    for node in &graph.nodes {
        if let Err(error) = support::check_source(node) {
            found.entry((&node.domain, &node.op_type)).or_insert((error, 0)).1 += 1;
        }
    }
    found.into_values().map(|(error, nodes)| Blocker { detail: error.to_string(), nodes }).collect()
}

fn look_for_points(flat: Graph, opset: i64, verdict: &mut Verdict) -> Result<()> {
    let graph = canonicalize_flat(flat, opset)?;
    let all = candidates(&graph);
    verdict.points = all.iter().filter(|c| c.obstacle.is_none()).map(Into::into).collect();
    verdict.skipped = all.iter().filter_map(Skipped::of).collect();
    verdict.ops = ops(&graph);
    select(&all, &[]).map(|_| ())
}

impl Verdict {
    /// For a terminal.
    pub fn text(&self) -> String {
        let verdict = if self.exportable { "can be exported" } else { "cannot be exported" };
        let mut text = format!(
            "{}: {verdict}\n{}, operator set {}, by {}\n\n",
            self.file.display(),
            bytes(self.bytes),
            self.opset,
            if self.producer.is_empty() { "an unnamed tool" } else { &self.producer }
        );
        for blocker in &self.blockers {
            let more = if blocker.nodes > 1 { format!(" (and {} more)", blocker.nodes - 1) } else { String::new() };
            let _ = writeln!(text, "blocked: {}{more}", blocker.detail);
        }
        if !self.points.is_empty() || !self.skipped.is_empty() {
            text.push_str(&points_table(&self.points, &self.skipped));
        }
        if !text.ends_with("\n\n") {
            text.push('\n');
        }
        text.push_str(&crate::inspect::ops_table(&self.ops));
        text
    }
}
