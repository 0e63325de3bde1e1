//! Max, Min and Sum of any number of inputs become a chain of Max, Min and Add of two.

use super::replacement;
use crate::error::Result;
use crate::graph::{Graph, Node};

pub(super) fn run(graph: &mut Graph) -> Result<()> {
    let mut i = 0;
    while i < graph.nodes.len() {
        let node = &graph.nodes[i];
        let of_two = match node.op_type.as_str() {
            _ if !node.domain.is_empty() => None,
            "Sum" => Some("Add"),
            "Max" if node.inputs.len() != 2 => Some("Max"),
            "Min" if node.inputs.len() != 2 => Some("Min"),
            _ => None,
        };
        match of_two {
            Some(op) => {
                let parts = chain(graph, &graph.nodes[i].clone(), op)?;
                let count = parts.len();
                graph.nodes.splice(i..=i, parts);
                i += count;
            }
            None => i += 1,
        }
    }
    Ok(())
}

fn chain(graph: &Graph, node: &Node, of_two: &str) -> Result<Vec<Node>> {
    if node.inputs.iter().any(String::is_empty) {
        return Err(node.unsupported("an input is missing"));
    }
    let Some((first, rest)) = node.inputs.split_first() else {
        return Err(node.unsupported("it has no input"));
    };
    if rest.is_empty() {
        return Ok(vec![replacement("Identity", node, &[first])]);
    }
    let mut parts = Vec::with_capacity(rest.len());
    let mut so_far = first.clone();
    for (i, input) in rest.iter().enumerate() {
        if i + 1 == rest.len() {
            parts.push(replacement(of_two, node, &[&so_far, input]));
            break;
        }
        let part = graph.fresh_name(&format!("{}.{i}", node.name));
        parts.push(Node::new(of_two, &part, &[&so_far, input], &part));
        so_far = part;
    }
    Ok(parts)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{graph, ops, run};
    use super::*;

    #[test]
    fn many_inputs_become_a_chain() {
        for (op, expected) in [("Sum", "Add"), ("Max", "Max")] {
            let mut g = graph(&[4], &[], vec![Node::new(op, "n", &["x", "x", "x"], "y")]);
            run(&mut g, super::run);
            assert_eq!(ops(&g), [expected, expected]);
            assert_eq!((g.nodes[1].inputs[0].as_str(), g.nodes[1].output()), (g.nodes[0].output(), "y"));
        }
        let mut g = graph(&[4], &[], vec![Node::new("Min", "n", &["x"], "y")]);
        run(&mut g, super::run);
        assert_eq!(ops(&g), ["Identity"]);
        let mut none = graph(&[4], &[], vec![Node::new("Sum", "n", &[], "y")]);
        assert!(super::run(&mut none).unwrap_err().to_string().contains("no input"));
    }
}
