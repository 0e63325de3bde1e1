//! Nodes of operator sets 13 to 23 take the form of operator set 21.
//!
//! Between those sets the supported operators differ in: `axes` of Reduce* (an input since 18), `num_outputs` of Split
//! (since 18), empty lists of Resize, and types that no supported model uses. <https://github.com/onnx/onnx/blob/main/docs/Changelog.md>
//! CastLike becomes Cast.

use std::collections::BTreeMap;

use crate::error::Result;
use crate::graph::{Attribute, Graph, OPSET};
use crate::tensor::Tensor;

pub(super) fn run(graph: &mut Graph) -> Result<()> {
    for i in 0..graph.nodes.len() {
        let node = &mut graph.nodes[i];
        if !node.domain.is_empty() {
            continue;
        }
        let version = std::mem::replace(&mut node.opset, OPSET);
        if node.op_type.starts_with("Reduce") && version < 18 && node.op_type != "ReduceSum" {
            if let Some(Attribute::Ints(axes)) = node.attributes.remove("axes") {
                let stem = format!("{}.axes", node.name);
                let name = graph.add_constant(&stem, Tensor::from_i64(&[axes.len()], &axes));
                graph.nodes[i].inputs.truncate(1);
                graph.nodes[i].inputs.push(name);
            }
        } else if node.op_type == "Split" && version < 18 && node.input(1).is_none() {
            let outputs = node.outputs.len() as i64;
            node.attributes.insert("num_outputs".into(), Attribute::Int(outputs));
        } else if node.op_type == "Resize" {
            plain_resize(graph, i)?;
        } else if node.op_type == "CastLike" {
            let to = graph.nodes[i].input(1).and_then(|like| graph.dtype(like));
            let node = &mut graph.nodes[i];
            let to = to.ok_or_else(|| node.unsupported("the type of its second input is not known"))?;
            node.op_type = "Cast".into();
            node.inputs.truncate(1);
            node.attributes = BTreeMap::from([("to".to_owned(), Attribute::Int(to.onnx().into()))]);
        } else if node.op_type == "BatchNormalization" && node.int("training_mode").unwrap_or(0) != 0 {
            return Err(node.unsupported("training_mode is on; export the model after model.eval()"));
        }
    }
    Ok(())
}

/// A Resize whose lists are absent where they say nothing: exporters write such as empty ones, too.
fn plain_resize(graph: &mut Graph, i: usize) -> Result<()> {
    let node = &graph.nodes[i];
    if node.string("coordinate_transformation_mode") == Some("tf_crop_and_resize") {
        let detail =
            "tf_crop_and_resize is not supported; cut the region out with Slice before a Resize of another mode";
        return Err(node.unsupported(detail));
    }
    let is_empty =
        |input: usize| node.input(input).is_some_and(|name| graph.constants.get(name).is_some_and(Tensor::is_empty));
    // Only that mode reads the region of interest.
    let unused = [true, is_empty(2), is_empty(3)];
    let inputs = &mut graph.nodes[i].inputs;
    for (input, _) in inputs.iter_mut().skip(1).zip(unused).filter(|(_, unused)| *unused) {
        input.clear();
    }
    while inputs.last().is_some_and(String::is_empty) {
        inputs.pop();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::testing::graph;
    use super::*;
    use crate::graph::Node;

    #[test]
    fn axes_become_an_input() {
        let mut mean = Node::new("ReduceMean", "m", &["x"], "y").with("axes", Attribute::Ints(vec![-1]));
        mean.opset = 13;
        let mut g = graph(&[4], &[], vec![mean]);
        run(&mut g).unwrap();
        assert_eq!(g.constant_ints(&g.nodes[0], 1), Some(vec![-1]));
        assert_eq!(g.nodes[0].attributes.len(), 0);
        assert_eq!(g.nodes[0].opset, OPSET);
    }

    #[test]
    fn what_resize_does_not_use_is_gone() {
        let list = |values: &[f32]| Tensor::from_f32(&[values.len()], values);
        let sizes = Tensor::from_i64(&[2], &[1, 8]);
        let constants = [("roi", list(&[])), ("none", list(&[])), ("twice", list(&[1.0, 2.0])), ("sizes", sizes)];
        let inputs = |inputs: &[&str]| {
            let mut g = graph(&[4], &constants, vec![Node::new("Resize", "r", inputs, "y")]);
            run(&mut g).unwrap();
            g.nodes[0].inputs.clone()
        };
        assert_eq!(inputs(&["x", "roi", "twice"]), ["x", "", "twice"]);
        assert_eq!(inputs(&["x", "roi", "none", "sizes"]), ["x", "", "", "sizes"]);
        assert_eq!(inputs(&["x", "", "twice", ""]), ["x", "", "twice"]);
        let mode = Attribute::String("tf_crop_and_resize".into());
        let crop = Node::new("Resize", "r", &["x", "roi", "twice"], "y").with("coordinate_transformation_mode", mode);
        let refused = run(&mut graph(&[4], &constants, vec![crop])).unwrap_err().to_string();
        assert!(refused.contains("tf_crop_and_resize") && refused.contains("Slice"), "{refused}");
    }

    #[test]
    fn split_says_how_many() {
        let mut split = Node::new("Split", "s", &["x"], "y");
        split.opset = 13;
        split.outputs.push("z".into());
        let mut g = graph(&[4], &[], vec![split]);
        run(&mut g).unwrap();
        assert_eq!(g.nodes[0].int("num_outputs"), Some(2));
    }
}
