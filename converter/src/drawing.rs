//! The graph as a drawing: a box for each weight with the operators that follow it, marked where a point is.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use crate::graph::{Graph, Links, Node};
use crate::html::escape;
use crate::paths::module_path;
use crate::points::frozen_weight;

/// More boxes are not drawn.
const MAX_BOXES: usize = 3000;

/// Size and distance of boxes, in pixels.
const WIDTH: usize = 230;
const HEIGHT: usize = 38;
const GAP: [usize; 2] = [16, 22];

/// Letters that fit into a box.
const LETTERS: usize = 32;

/// Nodes that are drawn as one.
struct Group<'a> {
    /// Module path of the weight that it starts with.
    path: Option<String>,
    ops: Vec<&'a str>,
    before: BTreeSet<usize>,
    row: usize,
}

/// `graph` as SVG; `points` are the module paths that carry an insertion point. Nothing if there is too much to draw.
pub(crate) fn svg(graph: &Graph, points: &BTreeSet<&str>) -> Option<String> {
    let groups = groups(graph);
    if groups.is_empty() || groups.len() > MAX_BOXES {
        return None;
    }
    let mut rows: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for (i, group) in groups.iter().enumerate() {
        rows.entry(group.row).or_default().push(i);
    }
    let columns = rows.values().map(Vec::len).max().unwrap_or(1);
    let [step_x, step_y] = [WIDTH + GAP[0], HEIGHT + GAP[1]];
    let (width, height) = (columns * step_x + GAP[0], rows.len() * step_y + GAP[1]);
    let mut places = vec![(0, 0); groups.len()];
    for (&row, members) in &rows {
        let left = (width - members.len() * step_x + GAP[0]) / 2;
        for (column, &i) in members.iter().enumerate() {
            places[i] = (left + column * step_x, GAP[1] + row * step_y);
        }
    }
    // A frame that is narrower shows it smaller, as far as it can be read.
    let mut svg = format!(
        "<svg class=graph style='min-width:{}px;max-width:{width}px' viewBox='0 0 {width} {height}'>\n<g class=edges>",
        width * 3 / 5
    );
    for (i, group) in groups.iter().enumerate() {
        let (x, y) = (places[i].0 + WIDTH / 2, places[i].1);
        for &from in &group.before {
            let (x0, y0) = (places[from].0 + WIDTH / 2, places[from].1 + HEIGHT);
            let middle = (y0 + y) / 2;
            let _ = write!(svg, "<path d='M{x0} {y0}C{x0} {middle} {x} {middle} {x} {y}'/>");
        }
    }
    svg.push_str("</g>\n");
    for (group, (x, y)) in groups.iter().zip(&places) {
        let class = match &group.path {
            Some(path) if points.contains(path.as_str()) => "point",
            Some(_) => "weight",
            None => "plain",
        };
        let ops = group.ops.join(", ");
        let title = group.path.as_ref().map_or_else(|| ops.clone(), |path| format!("{path}: {ops}"));
        let (line, second) = match &group.path {
            Some(path) => (tail(path), head(&ops)),
            None => (head(&ops), String::new()),
        };
        let baseline = if second.is_empty() { 24 } else { 16 };
        let center = x + WIDTH / 2;
        let _ = writeln!(
            svg,
            "<g class={class}><title>{}</title><rect x={x} y={y} width={WIDTH} height={HEIGHT} rx=6 />\
             <text x={center} y={}>{}</text><text class=ops x={center} y={}>{}</text></g>",
            escape(&title),
            y + baseline,
            escape(&line),
            y + 31,
            escape(&second)
        );
    }
    svg.push_str("</svg>\n");
    Some(svg)
}

/// The nodes in order, each joined with what it alone follows and what alone follows it; a weight begins a new group.
fn groups(graph: &Graph) -> Vec<Group<'_>> {
    let links = graph.links();
    let mut groups: Vec<Group<'_>> = Vec::new();
    let mut group_of = vec![0; graph.nodes.len()];
    for (i, node) in graph.nodes.iter().enumerate() {
        let before: BTreeSet<usize> = node.inputs.iter().filter_map(|v| links.producer(v)).collect();
        let path = weight_path(graph, &links, node);
        let alone = match before.iter().collect::<Vec<_>>().as_slice() {
            [one] if path.is_none() && followers(graph, &links, **one) == 1 => Some(group_of[**one]),
            _ => None,
        };
        if let Some(group) = alone {
            group_of[i] = group;
            groups[group].ops.push(&node.op_type);
            continue;
        }
        let before: BTreeSet<usize> = before.into_iter().map(|b| group_of[b]).collect();
        let row = before.iter().map(|&b| groups[b].row + 1).max().unwrap_or(0);
        group_of[i] = groups.len();
        groups.push(Group { path, ops: vec![&node.op_type], before, row });
    }
    groups
}

/// How many nodes use what a node makes.
fn followers(graph: &Graph, links: &Links, node: usize) -> usize {
    let users: BTreeSet<usize> =
        graph.nodes[node].outputs.iter().flat_map(|o| links.consumers(o).iter().copied()).collect();
    users.len()
}

fn weight_path(graph: &Graph, links: &Links, node: &Node) -> Option<String> {
    let weight = match frozen_weight(graph, links, node) {
        Some((weight, _)) => weight,
        None => node.input(0).filter(|table| node.is("Gather") && graph.constants.contains_key(*table))?,
    };
    Some(module_path(graph, links, node, weight).0)
}

fn head(text: &str) -> String {
    if text.chars().count() <= LETTERS {
        return text.to_owned();
    }
    text.chars().take(LETTERS - 1).chain(['…']).collect()
}

/// The end of a path says more than its beginning.
fn tail(text: &str) -> String {
    let letters = text.chars().count();
    if letters <= LETTERS {
        return text.to_owned();
    }
    std::iter::once('…').chain(text.chars().skip(letters + 1 - LETTERS)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::{Port, ValueType};
    use crate::tensor::{DType, Tensor};

    #[test]
    fn weights_begin_boxes_and_points_are_marked() {
        let port = |name: &str| Port { name: name.into(), ty: ValueType { dtype: DType::F32, dims: None } };
        let nodes = vec![
            Node::new("MatMul", "/a/MatMul", &["x", "wa"], "a"),
            Node::new("Relu", "/a/Relu", &["a"], "r"),
            Node::new("MatMul", "/<b>/MatMul", &["r", "wb"], "b"),
            Node::new("Add", "/Add", &["b", "r"], "y"),
        ];
        let mut g = Graph { inputs: vec![port("x")], outputs: vec![port("y")], nodes, ..Graph::default() };
        for name in ["wa", "wb"] {
            g.constants.insert(name.into(), Tensor::from_f32(&[2, 2], &[0.0; 4]));
        }
        let drawn = svg(&g, &BTreeSet::from(["a"])).unwrap();
        assert_eq!(drawn.matches("<rect").count(), 3);
        assert!(drawn.contains("class=point><title>a: MatMul, Relu<"), "{drawn}");
        assert!(drawn.contains("class=weight><title>&lt;b&gt;: MatMul<") && drawn.contains("class=plain><title>Add<"));
        assert_eq!(drawn.matches("<path").count(), 3);
    }
}
