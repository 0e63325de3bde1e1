use inlay_format::kinds::{IA3, parameters};
use inlay_format::points::Point;

use super::{interpose, name, node};
use crate::graph::{Graph, Node};

/// `y = l * base(x)`, bias included; at a feed-forward point `y = base(l * x)` (Liu et al., 2022).
pub(super) fn insert(graph: &mut Graph, point: &Point<String>, result: &str) {
    let factors = name(point, parameters(IA3, point, 0)[0].suffix);
    let scale = name(point, "ia3_scale");
    if point.feedforward {
        let scaled = graph.fresh_name(&name(point, "ia3_input"));
        let i = node(graph, point);
        let x = std::mem::replace(&mut graph.nodes[i].inputs[0], scaled.clone());
        graph.nodes.insert(i, Node::new("Mul", &scale, &[&x, &factors], &scaled));
    } else {
        interpose(graph, result, &name(point, "ia3_base"), |_, y| {
            vec![Node::new("Mul", &scale, &[y, &factors], result)]
        });
    }
}
