use inlay_format::kinds::{BOTTLENECK, parameters};
use inlay_format::points::Point;

use super::{interpose, name};
use crate::graph::{Graph, Node};
use crate::kinds::Activation;

/// `y = h + f(h down + down_bias) up + up_bias`, where h is what the base computes, bias included (Houlsby et al., 2019).
pub(super) fn insert(graph: &mut Graph, point: &Point<String>, result: &str, activation: Activation) {
    let inputs: Vec<String> = parameters(BOTTLENECK, point, 0).iter().map(|p| name(point, p.suffix)).collect();
    let [down, down_bias, up, up_bias] = inputs.as_slice() else { unreachable!("a bottleneck has four parameters") };
    interpose(graph, result, &name(point, "bottleneck_base"), |graph, h| {
        let steps = ["down_product", "down_sum", "hidden", "up_product", "up_sum"];
        let [a, b, c, d, e] = steps.map(|s| graph.fresh_name(&name(point, &format!("bottleneck_{s}"))));
        vec![
            Node::new("MatMul", &a, &[h, down], &a),
            Node::new("Add", &b, &[&a, down_bias], &b),
            Node::new(activation.op_type(), &c, &[&b], &c),
            Node::new("MatMul", &d, &[&c, up], &d),
            Node::new("Add", &e, &[&d, up_bias], &e),
            Node::new("Add", &name(point, "bottleneck_add"), &[h, &e], result),
        ]
    });
}
