//! Takes out of a graph what was inserted: a base without insertion points, as the source model was.

use inlay_format::kinds::{BOTTLENECK, IA3, IN_FILE, PROMPT, parameters};
use inlay_format::points::{LORA, Point};

use super::name;
use crate::graph::{Graph, Node};

/// Takes every kind of a point out; `None` when the graph is not as the converter writes it. What nothing uses any more is
/// left for [`Graph::sweep`].
pub(crate) fn remove(graph: &mut Graph, point: &Point<String>) -> Option<()> {
    for (kind, _) in IN_FILE.iter().filter(|(kind, _)| point.offers(kind)) {
        let inputs: Vec<String> = parameters(kind, point, 0).iter().map(|p| name(point, p.suffix)).collect();
        match *kind {
            IA3 => factors(graph, point, &inputs[0])?,
            LORA | BOTTLENECK => branch(graph, inputs.last()?)?,
            PROMPT => prompt(graph, &inputs[0])?,
            _ => return None,
        }
    }
    Some(())
}

/// The node that reads a value.
fn user(graph: &Graph, value: &str) -> Option<usize> {
    graph.nodes.iter().position(|node| node.inputs.iter().any(|input| input == value))
}

/// Takes out a node that was put after `input`: the maker of `input` makes its output, of the source model's name, instead.
fn undo_after(graph: &mut Graph, node: usize, input: &str) -> Option<()> {
    let output = graph.nodes.remove(node).outputs.into_iter().next()?;
    let made = graph.nodes.iter_mut().flat_map(|maker| &mut maker.outputs).find(|made| *made == input)?;
    made.clone_from(&output);
    graph.replace_uses(input, &output);
    Some(())
}

/// Takes out a node that was put before the users of `input`: they read `input` again.
fn undo_before(graph: &mut Graph, node: usize, input: &str) {
    let output = graph.nodes.remove(node).output().to_owned();
    graph.replace_uses(&output, input);
}

/// What else a node reads.
fn beside(graph: &Graph, node: usize, input: &str) -> Option<String> {
    graph.nodes[node].inputs.iter().find(|other| *other != input).cloned()
}

fn factors(graph: &mut Graph, point: &Point<String>, factors: &str) -> Option<()> {
    let scale = user(graph, factors)?;
    let input = beside(graph, scale, factors)?;
    if point.feedforward {
        undo_before(graph, scale, &input);
        return Some(());
    }
    undo_after(graph, scale, &input)
}

/// The addition of what a branch computes whose last parameter is `last`.
fn branch(graph: &mut Graph, last: &str) -> Option<()> {
    let result = graph.nodes[user(graph, last)?].output().to_owned();
    let add = user(graph, &result).filter(|&add| graph.nodes[add].is("Add"))?;
    let base = beside(graph, add, &result)?;
    undo_after(graph, add, &base)
}

/// The virtual tokens: of the embedded sequence, the inputs along it and the outputs.
fn prompt(graph: &mut Graph, embeddings: &str) -> Option<()> {
    let find = |graph: &Graph, op: &str, inputs: usize, at: usize, value: &str| {
        let is = |node: &Node| node.is(op) && node.inputs.len() == inputs && node.inputs[at] == value;
        graph.nodes.iter().position(is)
    };
    let output = |graph: &Graph, node: Option<usize>| Some(graph.nodes[node?].output().to_owned());
    let length = output(graph, find(graph, "Shape", 1, 0, embeddings))?;
    let tokens = output(graph, find(graph, "Expand", 2, 0, embeddings))?;
    let added = output(graph, find(graph, "Concat", 2, 1, &length))?;
    let concat = user(graph, &tokens)?;
    let embedded = beside(graph, concat, &tokens)?;
    undo_after(graph, concat, &embedded)?;
    while let Some(fill) = find(graph, "ConstantOfShape", 1, 0, &added) {
        let filled = graph.nodes.remove(fill).output().to_owned();
        let longer = user(graph, &filled)?;
        let input = beside(graph, longer, &filled)?;
        undo_before(graph, longer, &input);
    }
    while let Some(cut) = find(graph, "Slice", 4, 1, &length) {
        let longer = graph.nodes[cut].inputs[0].clone();
        undo_after(graph, cut, &longer)?;
    }
    Some(())
}
