//! `Clip` whose bounds are computed becomes Max and Min: devices want those of a Clip when the plan is made.

use super::replacement;
use crate::error::Result;
use crate::graph::Graph;

pub(super) fn run(graph: &mut Graph) -> Result<()> {
    for node in std::mem::take(&mut graph.nodes) {
        let bound = |i: usize| node.input(i).map(str::to_owned);
        let bounds = [("Max", bound(1)), ("Min", bound(2))];
        let computed = |bound: &Option<String>| bound.as_ref().is_some_and(|b| !graph.constants.contains_key(b));
        if !node.is("Clip") || !bounds.iter().any(|(_, b)| computed(b)) {
            graph.nodes.push(node);
            continue;
        }
        let mut value = node.inputs[0].clone();
        let present: Vec<(&str, String)> = bounds.into_iter().filter_map(|(op, b)| Some((op, b?))).collect();
        for (i, (op, bound)) in present.iter().enumerate() {
            let mut limited = replacement(op, &node, &[&value, bound]);
            if i + 1 < present.len() {
                limited.name = format!("{}/{op}", node.name);
                limited.outputs = vec![limited.name.clone()];
            }
            value = limited.output().to_owned();
            graph.nodes.push(limited);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::testing::{graph, ops, run, scalar};
    use crate::graph::Node;

    #[test]
    fn computed_bounds_are_max_and_min() {
        let most = Node::new("ReduceMax", "most", &["x"], "most");
        let mut g = graph(&[4], &[("c", scalar(1.0))], vec![most, Node::new("Clip", "clip", &["x", "c", "most"], "y")]);
        run(&mut g, super::run);
        assert_eq!(ops(&g), ["ReduceMax", "Max", "Min"]);
        assert_eq!((&g.nodes[1].inputs[..], g.nodes[2].output()), (&["x".to_owned(), "c".to_owned()][..], "y"));
        let constant = Node::new("Clip", "clip", &["x", "", "c"], "y");
        let mut g = graph(&[4], &[("c", scalar(1.0))], vec![constant]);
        run(&mut g, super::run);
        assert_eq!(ops(&g), ["Clip"]);
    }
}
