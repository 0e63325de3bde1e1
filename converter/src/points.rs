//! Where adapters can be inserted: every linear and convolution with a frozen weight, and what stands in the way.

use std::collections::{HashMap, HashSet};

use globset::{Glob, GlobMatcher};
use inlay_format::points::{MAX_KERNEL_DIMS, PointOp};

use crate::error::{Error, Result};
use crate::graph::{Graph, Links, Node};
use crate::paths::{PathSource, module_path};
use crate::support;
use crate::tensor::DType;

/// A linear or convolution with a frozen weight, or the lookup of word embeddings.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// Module path, unique.
    pub path: String,
    /// Where the path was found.
    pub source: PathSource,
    /// Linear, convolution or lookup.
    pub op: PointOp,
    /// Name of the MatMul, Gemm, Conv or Gather node.
    pub node: String,
    /// Name of the constant that holds the weight.
    pub weight: String,
    /// Input features, C_in, or rows of the table.
    pub d_in: usize,
    /// Output features, or C_out.
    pub d_out: usize,
    /// Kernel of a convolution.
    pub kernel: Vec<usize>,
    /// Whether the exporter folded a BatchNormalization into the weight, by factors that the file does not tell.
    pub folded_norm: bool,
    /// Why no adapter can be trained here.
    pub obstacle: Option<Obstacle>,
}

/// Why no adapter can be trained at a candidate.
#[derive(Clone, Debug)]
pub struct Obstacle {
    /// The node in the way.
    pub node: String,
    /// Its operator.
    pub op_type: String,
    /// What is wrong.
    pub reason: String,
    /// What to do.
    pub way_out: &'static str,
}

impl Candidate {
    /// Parameters of a LoRA adapter of rank 1.
    pub fn parameters_per_rank(&self) -> usize {
        self.d_in * self.kernel.iter().product::<usize>() + self.d_out
    }
}

/// The frozen weight of a MatMul, Gemm, Conv or ConvTranspose: its name, and the axis of its output channels; of a
/// ConvTranspose that of its input channels, which are the outputs of the convolution that it is the gradient of.
pub(crate) fn frozen_weight<'a>(graph: &'a Graph, links: &Links, node: &'a Node) -> Option<(&'a str, usize)> {
    let name = node.input(1)?;
    if let Some(t) = graph.constants.get(name) {
        let rank = t.dims().len();
        return match node.op_type.as_str() {
            "Conv" | "ConvTranspose" if rank >= 3 => Some((name, 0)),
            "MatMul" if rank == 2 => Some((name, 1)),
            "Gemm" if rank == 2 => Some((name, if node.int("transB").unwrap_or(0) == 0 { 1 } else { 0 })),
            _ => None,
        };
    }
    let transpose = &graph.nodes[links.producer(name)?];
    let source = transpose.input(0).filter(|_| node.is("MatMul") && transpose.is("Transpose"))?;
    (graph.constants.get(source)?.dims().len() == 2).then_some((source, 0))
}

/// Every linear and convolution with a frozen float weight, in the order of the graph.
pub fn candidates(graph: &Graph) -> Vec<Candidate> {
    let links = graph.links();
    let reach = Reach::new(graph, &links);
    let mut taken = HashSet::new();
    let mut found = Vec::new();
    for node in &graph.nodes {
        let Some((weight, axis)) = frozen_weight(graph, &links, node) else { continue };
        let tensor = &graph.constants[weight];
        let dims = tensor.dims();
        let (op, d_in, d_out, kernel) = match node.op_type.as_str() {
            "Conv" => (PointOp::Conv, dims[1], dims[0], dims[2..].to_vec()),
            "ConvTranspose" => {
                let groups = usize::try_from(node.int("group").unwrap_or(1)).unwrap_or(1);
                (PointOp::Conv, dims[0], dims[1] * groups, dims[2..].to_vec())
            }
            _ => (PointOp::Linear, dims[1 - axis], dims[axis], Vec::new()),
        };
        let (path, source) = module_path(graph, &links, node, weight);
        let path = std::iter::once(path.clone())
            .chain((1..).map(|i| format!("{path}_{i}")))
            .find(|p| taken.insert(p.clone()))
            .expect("the suffixes are endless");
        let obstacle = unsupported(node, &kernel, tensor.dtype).or_else(|| reach.obstacle(node));
        let (folded_norm, node, weight) = (node.folded_norm, node.name.clone(), weight.to_owned());
        found.push(Candidate { path, source, op, node, weight, d_in, d_out, kernel, folded_norm, obstacle });
    }
    found
}

/// Every lookup of rows of a frozen float table, in the order of the graph, with paths that none of `others` has.
///
/// They carry LoRA only where `--targets` names them; see [`select`].
pub fn lookups(graph: &Graph, others: &[Candidate]) -> Vec<Candidate> {
    let links = graph.links();
    let reach = Reach::new(graph, &links);
    let mut taken: HashSet<String> = others.iter().map(|c| c.path.clone()).collect();
    let mut found = Vec::new();
    for node in graph.nodes.iter().filter(|n| n.is("Gather") && n.int("axis").unwrap_or(0) == 0) {
        let Some((weight, table)) = node.input(0).and_then(|name| Some((name, graph.constants.get(name)?))) else {
            continue;
        };
        let (&[d_in, d_out], DType::F32, None) = (table.dims(), table.dtype, graph.constant_input(node, 1)) else {
            continue;
        };
        let (path, source) = module_path(graph, &links, node, weight);
        let path = std::iter::once(path.clone())
            .chain((1..).map(|i| format!("{path}_{i}")))
            .find(|p| taken.insert(p.clone()))
            .expect("the suffixes are endless");
        let (obstacle, kernel, op) = (reach.obstacle(node), Vec::new(), PointOp::Embedding);
        let (node, weight) = (node.name.clone(), weight.to_owned());
        found.push(Candidate { path, source, op, node, weight, d_in, d_out, kernel, folded_norm: false, obstacle });
    }
    found
}

fn unsupported(node: &Node, kernel: &[usize], dtype: DType) -> Option<Obstacle> {
    let because =
        |reason, way_out| Some(Obstacle { node: node.name.clone(), op_type: node.op_type.clone(), reason, way_out });
    if dtype != DType::F32 {
        return because(format!("its weight is {dtype:?}"), "export the model in float32");
    }
    let group = node.int("group").unwrap_or(1);
    let dilated = node.ints("dilations").is_some_and(|d| d.iter().any(|&d| d != 1));
    let reason = if node.is("ConvTranspose") {
        "the convolution is transposed".to_owned()
    } else if !node.is("Conv") {
        return None;
    } else if group != 1 {
        format!("the convolution has {group} groups")
    } else if dilated {
        "the convolution is dilated".to_owned()
    } else if kernel.len() > MAX_KERNEL_DIMS {
        format!("the convolution has {} spatial dimensions", kernel.len())
    } else {
        return None;
    };
    let way_out =
        "adapters are inserted at ungrouped, undilated convolutions that are not transposed; leave it out of --targets";
    because(reason, way_out)
}

/// From which values a gradient of some output can come back.
pub(crate) struct Reach<'a> {
    graph: &'a Graph,
    links: &'a Links,
    values: HashSet<&'a str>,
}

impl<'a> Reach<'a> {
    pub(crate) fn new(graph: &'a Graph, links: &'a Links) -> Self {
        let float = |name: &str| graph.dtype(name).is_none_or(DType::is_float);
        let outputs = graph.outputs.iter().map(|o| o.name.as_str());
        let mut values: HashSet<&str> = outputs.filter(|o| float(o)).collect();
        for node in graph.nodes.iter().rev() {
            if node.outputs.iter().any(|o| values.contains(o.as_str())) {
                let inputs = node.inputs.iter().enumerate();
                values.extend(inputs.filter(|(i, v)| support::flows(node, *i) && float(v)).map(|(_, v)| v.as_str()));
            }
        }
        Reach { graph, links, values }
    }

    /// The nearest node after `node` that stops its gradient, if no gradient reaches it.
    pub(crate) fn obstacle(&self, node: &Node) -> Option<Obstacle> {
        if self.values.contains(node.output()) {
            return None;
        }
        let mut seen = HashSet::new();
        let mut level = vec![node.output()];
        while !level.is_empty() {
            let mut next = Vec::new();
            for value in level {
                for &user in self.links.consumers(value) {
                    let user = &self.graph.nodes[user];
                    let through = user.inputs.iter().enumerate().any(|(i, v)| v == value && support::flows(user, i));
                    if !through || user.outputs.iter().all(|o| self.graph.dtype(o).is_some_and(|t| !t.is_float())) {
                        return Some(blocked(user));
                    }
                    next.extend(user.outputs.iter().map(String::as_str).filter(|o| seen.insert(*o)));
                }
            }
            level = next;
        }
        Some(blocked(node))
    }
}

fn blocked(node: &Node) -> Obstacle {
    Obstacle {
        node: node.name.clone(),
        op_type: node.op_type.clone(),
        reason: "no gradient flows back through it from any output".to_owned(),
        way_out: "leave the module out of --targets, or export the model so that a float output follows it",
    }
}

/// The candidates that `targets` choose: all linears and convolutions that can be trained if there are none. A pattern chooses
/// lookups only where it matches nothing else, since an adapter of a table has a row for each word.
///
/// # Errors
/// If a pattern is no glob, matches nothing, or names what cannot be trained; if nothing is left.
pub fn select(candidates: &[Candidate], targets: &[String]) -> Result<Vec<Candidate>> {
    let mut chosen: HashMap<&str, &Candidate> = HashMap::new();
    if targets.is_empty() {
        let default = candidates.iter().filter(|c| c.obstacle.is_none() && c.op != PointOp::Embedding);
        chosen.extend(default.map(|c| (c.path.as_str(), c)));
    }
    for pattern in targets {
        let glob = matcher(pattern)?;
        let mut matching: Vec<&Candidate> = candidates.iter().filter(|c| glob.is_match(&c.path)).collect();
        if matching.iter().any(|c| c.op != PointOp::Embedding) {
            matching.retain(|c| c.op != PointOp::Embedding);
        }
        if matching.is_empty() {
            return Err(Error::TargetMatchesNothing { pattern: pattern.clone(), available: some_paths(candidates) });
        }
        for candidate in matching {
            if let Some(o) = &candidate.obstacle {
                return Err(Error::TargetNotTrainable {
                    path: candidate.path.clone(),
                    node: o.node.clone(),
                    op_type: o.op_type.clone(),
                    reason: o.reason.clone(),
                    way_out: o.way_out.to_owned(),
                });
            }
            chosen.insert(&candidate.path, candidate);
        }
    }
    if chosen.is_empty() {
        let reason = candidates.first().and_then(|c| c.obstacle.as_ref()).map_or_else(
            || "it has none with a constant weight".to_owned(),
            |o| format!("node {:?} ({}): {}", o.node, o.op_type, o.reason),
        );
        return Err(Error::NoPoints(reason));
    }
    Ok(candidates.iter().filter(|c| chosen.contains_key(c.path.as_str())).cloned().collect())
}

pub(crate) fn matcher(pattern: &str) -> Result<GlobMatcher> {
    let glob = Glob::new(pattern);
    Ok(glob.map_err(|source| Error::TargetPattern { pattern: pattern.to_owned(), source })?.compile_matcher())
}

fn some_paths(candidates: &[Candidate]) -> String {
    const SHOWN: usize = 12;
    let mut paths: Vec<&str> = candidates.iter().take(SHOWN).map(|c| c.path.as_str()).collect();
    if candidates.len() > SHOWN {
        paths.push("...");
    }
    if paths.is_empty() { "none".to_owned() } else { paths.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::{Attribute, Port, ValueType};
    use crate::tensor::Tensor;

    fn graph() -> Graph {
        let port = |name: &str, dtype| Port { name: name.into(), ty: ValueType { dtype, dims: None } };
        let mut g = Graph {
            inputs: vec![port("x", DType::F32)],
            outputs: vec![port("y", DType::F32), port("z", DType::F32)],
            nodes: vec![
                Node::new("MatMul", "/a/MatMul", &["x", "wa"], "a"),
                Node::new("Less", "less", &["a", "x"], "mask"),
                Node::new("Conv", "/c/Conv", &["x", "wc"], "c").with("group", Attribute::Int(2)),
                Node::new("Where", "where", &["mask", "c", "x"], "w"),
                Node::new("MatMul", "/b/MatMul", &["w", "wa"], "y"),
                Node::new("ConvTranspose", "/t/ConvTranspose", &["w", "wc"], "z"),
            ],
            ..Graph::default()
        };
        g.constants.insert("wa".into(), Tensor::from_f32(&[4, 4], &[0.0; 16]));
        g.constants.insert("wc".into(), Tensor::from_f32(&[4, 2, 3], &[0.0; 24]));
        g
    }

    #[test]
    fn what_cannot_be_trained_is_skipped_or_refused() {
        let all = candidates(&graph());
        assert_eq!(all.iter().map(|c| c.path.as_str()).collect::<Vec<_>>(), ["a", "c", "b", "t"]);
        let paths = |targets: &[&str]| {
            let targets: Vec<String> = targets.iter().map(|s| (*s).to_owned()).collect();
            select(&all, &targets).map(|c| c.into_iter().map(|c| c.path).collect::<Vec<_>>())
        };
        assert_eq!(paths(&[]).unwrap(), ["b"]);
        assert_eq!(paths(&["b"]).unwrap(), ["b"]);
        let text = paths(&["a"]).unwrap_err().to_string();
        assert!(text.contains("\"less\"") && text.contains("Less") && text.contains("leave the module out"), "{text}");
        assert!(paths(&["c"]).unwrap_err().to_string().contains("2 groups"));
        assert!(paths(&["t"]).unwrap_err().to_string().contains("is transposed"));
        assert!(paths(&["b", "nothing.*"]).unwrap_err().to_string().contains("a, c, b"));
        assert!(paths(&["[a"]).is_err());
    }
}
