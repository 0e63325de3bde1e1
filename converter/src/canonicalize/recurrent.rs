//! LSTM, GRU and RNN lose attributes that say what is usual anyway.

use crate::error::Result;
use crate::graph::{Attribute, Graph, Node};

/// Each operator, and the activations that it has where nothing is said.
const USUAL: &[(&str, &[&str])] =
    &[("LSTM", &["sigmoid", "tanh", "tanh"]), ("GRU", &["sigmoid", "tanh"]), ("RNN", &["tanh"])];

pub(super) fn run(graph: &mut Graph) -> Result<()> {
    for node in &mut graph.nodes {
        let Some((_, usual)) = USUAL.iter().find(|(op, _)| node.is(op)) else { continue };
        if let Some(Attribute::Strings(found)) = node.attributes.remove("activations") {
            let mut expected = usual.iter().cycle();
            if found.iter().any(|name| Some(name.to_lowercase().as_str()) != expected.next().copied()) {
                return Err(unusual(node, &found, usual));
            }
        }
        if node.int("layout").unwrap_or(0) != 0
            || node.int("input_forget").unwrap_or(0) != 0
            || node.float("clip").is_some()
            || (node.is("LSTM") && node.input(7).is_some())
        {
            return Err(node.unsupported("layout = 1, clip, input_forget and peepholes are not supported"));
        }
        for name in ["activation_alpha", "activation_beta"] {
            // The usual activations have no factors.
            node.attributes.remove(name);
        }
    }
    Ok(())
}

fn unusual(node: &Node, found: &[String], usual: &[&str]) -> crate::error::Error {
    node.unsupported(format!("its activations are {}, only {} are supported", found.join(", "), usual.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_activations_are_refused() {
        let rnn = |names: &[&str]| {
            let names = names.iter().map(|&s| s.to_owned()).collect();
            let node = Node::new("RNN", "rnn", &["x", "w", "r"], "y").with("activations", Attribute::Strings(names));
            Graph { nodes: vec![node], ..Graph::default() }
        };
        let mut g = rnn(&["Tanh", "tanh"]);
        run(&mut g).unwrap();
        assert!(g.nodes[0].attributes.is_empty());
        let text = run(&mut rnn(&["Relu"])).unwrap_err().to_string();
        assert!(text.contains("Relu") && text.contains("\"rnn\""), "{text}");
    }
}
