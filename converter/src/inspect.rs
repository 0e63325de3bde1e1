//! What a model offers: its points and its operators. Works on exported folders and on plain ONNX files.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};

use inlay_format::metadata::POINTS_KEY;
use inlay_format::points::{Point, check_all};
use inlay_runtime::{Base, Verify};
use serde::Serialize;

use crate::arithmetic::{Trained, section, table, trained, trained_on};
use crate::canonicalize::canonicalize;
use crate::drawing;
use crate::error::{Error, Result};
use crate::graph::Graph;
use crate::html;
use crate::points::candidates;
use crate::read::{Model, read};
use crate::report::{PointReport, Skipped, bytes, points_table};
use crate::support;
use crate::write::MODEL_FILE;

/// What the drawing shows.
const DRAWN: &str = "From inputs above to outputs below. Blue: a weight. Orange: a possible insertion point.";

/// What a model offers.
#[derive(Clone, Debug, Serialize)]
pub struct Inspection {
    /// The file.
    pub file: PathBuf,
    /// Whether `converter export` wrote it.
    pub exported: bool,
    /// Bytes, with external data.
    pub bytes: u64,
    /// The points of an exported file; the possible points of another.
    pub points: Vec<PointReport>,
    /// What each kind trains at all of them.
    pub trained: Vec<Trained>,
    /// Linears and convolutions that cannot carry an adapter, and why.
    pub skipped: Vec<Skipped>,
    /// The operators.
    pub ops: Vec<OpReport>,
    /// Why a plain file cannot be exported, if so; its operators are then listed as the exporter wrote them.
    pub not_exportable: Option<String>,
    /// The graph with its points as SVG, for the page.
    #[serde(skip)]
    pub drawing: Option<String>,
}

/// An operator of the model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct OpReport {
    /// Its name, after its domain if that is not ai.onnx.
    pub op_type: String,
    /// How many nodes apply it.
    pub count: usize,
    /// Whether it is supported.
    pub supported: bool,
    /// Whether a gradient flows through it.
    pub differentiable: bool,
}

/// Inspects an exported folder, the `.onnx` inside it, or any ONNX file.
///
/// # Errors
/// If it cannot be read.
pub fn inspect(path: &Path) -> Result<Inspection> {
    let file = if path.is_dir() { path.join(MODEL_FILE) } else { path.to_owned() };
    let model = read(&file)?;
    let mut inspection = Inspection {
        exported: model.metadata.contains_key(POINTS_KEY),
        bytes: model.bytes,
        points: Vec::new(),
        trained: Vec::new(),
        skipped: Vec::new(),
        ops: ops(&model.graph),
        not_exportable: None,
        drawing: None,
        file,
    };
    if inspection.exported {
        inspection.points = exported_points(&model, &inspection.file)?;
    } else {
        match canonicalize(&model) {
            Ok(graph) => {
                let all = candidates(&graph);
                inspection.points = all.iter().filter(|c| c.obstacle.is_none()).map(Into::into).collect();
                inspection.skipped = all.iter().filter_map(Skipped::of).collect();
                inspection.ops = ops(&graph);
                let points = inspection.points.iter().map(|p| p.path.as_str()).collect();
                inspection.drawing = drawing::svg(&graph, &points);
            }
            Err(e) => inspection.not_exportable = Some(e.to_string()),
        }
    }
    inspection.trained = match inspection.exported {
        true => trained_on(&Base::open(&inspection.file, Verify::Graph)?, &inspection.points),
        false => trained(&inspection.points),
    };
    Ok(inspection)
}

fn exported_points(model: &Model, file: &Path) -> Result<Vec<PointReport>> {
    let bad = |detail: String| Error::NotExported { path: file.to_owned(), detail: format!("{POINTS_KEY}: {detail}") };
    let json = &model.metadata[POINTS_KEY];
    let points: Vec<Point<String>> = serde_json::from_str(json).map_err(|e| bad(e.to_string()))?;
    check_all(&points).map_err(|(i, e)| bad(format!("point {i}: {e}")))?;
    Ok(points.iter().map(|point| PointReport::new(point, "the export")).collect())
}

/// The operators of a graph, by name.
pub(crate) fn ops(graph: &Graph) -> Vec<OpReport> {
    let mut reports: BTreeMap<(&str, &str), OpReport> = BTreeMap::new();
    for node in &graph.nodes {
        let (domain, op_type) = (node.domain.as_str(), node.op_type.as_str());
        let report = reports.entry((domain, op_type)).or_insert_with(|| OpReport {
            op_type: if domain.is_empty() { op_type.to_owned() } else { format!("{domain}.{op_type}") },
            count: 0,
            supported: support::supported(domain, op_type),
            differentiable: false,
        });
        report.count += 1;
        report.differentiable |= (0..node.inputs.len()).any(|i| support::flows(node, i));
    }
    reports.into_values().collect()
}

/// Operators for a terminal, one a line.
pub(crate) fn ops_table(ops: &[OpReport]) -> String {
    let width = ops.iter().map(|o| o.op_type.len()).max().unwrap_or(2);
    ops.iter().fold(String::new(), |mut text, op| {
        let _ = writeln!(text, "{:width$} {:5}  {}", op.op_type, op.count, op.gradient());
        text
    })
}

impl OpReport {
    fn gradient(&self) -> &'static str {
        match (self.supported, self.differentiable) {
            (false, _) => "not supported",
            (true, true) => "differentiable",
            (true, false) => "no gradient",
        }
    }
}

impl Inspection {
    /// For a terminal.
    pub fn text(&self) -> String {
        let mut text = format!("{}: {}, {}\n\n", self.file.display(), self.kind(), bytes(self.bytes));
        if let Some(why) = &self.not_exportable {
            let _ = writeln!(text, "cannot be exported: {why}\n");
        } else {
            text.push_str(&points_table(&self.points, &self.skipped));
            text.push('\n');
            text.push_str(&table(&self.trained));
            text.push('\n');
        }
        text + &ops_table(&self.ops)
    }

    /// As one self-contained page.
    pub fn html(&self) -> String {
        let ops =
            self.ops.iter().map(|o| html::row(&[o.op_type.clone(), o.count.to_string(), o.gradient().to_owned()]));
        let why = self.not_exportable.as_ref().map(|why| html::paragraph(&format!("Cannot be exported: {why}")));
        let body = [
            html::paragraph(&format!("{}, {}", self.kind(), bytes(self.bytes))),
            why.unwrap_or_default(),
            html::points(&self.points, &self.skipped),
            section(&self.trained),
            self.drawing.as_ref().map_or_else(String::new, |svg| html::figure("Graph", DRAWN, svg)),
            html::table("Operators", &["operator", "nodes", "gradient"], ops),
        ];
        html::page(&self.file.display().to_string(), &body)
    }

    fn kind(&self) -> &'static str {
        if self.exported { "exported base" } else { "ONNX model" }
    }
}
