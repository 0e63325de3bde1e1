//! Prompt tuning: virtual tokens `[p, d]` before the embedded ones, as PEFT's `PROMPT_TUNING` puts them.
//!
//! Whatever follows the sequence sees it p tokens longer: the attention mask gets p ones, token types p zeros, and what is
//! computed from the shape of the ids, such as positions, follows by itself. Outputs that run along the sequence lose
//! their first p elements again, so that they keep the shape they had.

use inlay_format::kinds::{PROMPT, parameters};
use inlay_format::points::{Point, PointOp};

use super::{interpose, name};
use crate::error::{Error, Result};
use crate::graph::{Attribute, Dim, Graph, Node, Port};
use crate::paths::module_path;
use crate::points::{Candidate, Obstacle, Reach};
use crate::tensor::{DType, Tensor};

/// Inputs along the sequence beside the ids, and what they hold at virtual tokens.
const COMPANIONS: [(&str, i64); 2] = [("attention_mask", 1), ("token_type_ids", 0)];
/// The types of inputs that can be made longer.
const FILLED: [DType; 4] = [DType::F32, DType::I64, DType::I32, DType::Bool];
/// The name that decides where several tables are looked up by inputs.
const IDS: &str = "input_ids";

/// The lookup of word embeddings, as a module.
///
/// # Errors
/// If there is none, or if the graph uses its ids or its sequence in a way that virtual tokens cannot follow.
pub fn candidate(graph: &Graph) -> Result<Candidate> {
    let sequence = Sequence::find(graph)?;
    let links = graph.links();
    let node = &graph.nodes[sequence.lookup];
    let weight = node.inputs[0].clone();
    let (path, source) = module_path(graph, &links, node, &weight);
    if let Some(Obstacle { node, op_type, reason, .. }) = Reach::new(graph, &links).obstacle(node) {
        return Err(refused(format!("node {node:?} ({op_type}): {reason}"), "leave prompt out of --kinds"));
    }
    let dims = graph.constants[&weight].dims();
    Ok(Candidate {
        path,
        source,
        op: PointOp::Embedding,
        node: node.name.clone(),
        d_in: dims[0],
        d_out: dims[1],
        weight,
        kernel: Vec::new(),
        folded_norm: false,
        obstacle: None,
    })
}

/// Puts the virtual tokens of `point` into the graph.
pub(super) fn insert(graph: &mut Graph, point: &Point<String>) -> Result<()> {
    let sequence = Sequence::find(graph)?;
    let prompt = name(point, parameters(PROMPT, point, 0)[0].suffix);
    let part = |what: &str| name(point, &format!("prompt_{what}"));
    let width = graph.add_constant(&part("width"), Tensor::from_i64(&[1], &[i64::from(point.d_out)]));
    let ids = sequence.ids.name.clone();
    let [batch, length, added, shape, tokens] =
        ["batch", "length", "added", "shape", "tokens"].map(|what| graph.fresh_name(&part(what)));
    let first = |input: &str, output: &str| {
        Node::new("Shape", output, &[input], output).with("start", Attribute::Int(0)).with("end", Attribute::Int(1))
    };
    let joined = |inputs: &[&str], axis: i64, output: &str| {
        Node::new("Concat", output, inputs, output).with("axis", Attribute::Int(axis))
    };
    let mut before = vec![
        first(&ids, &batch),
        first(&prompt, &length),
        joined(&[&batch, &length], 0, &added),
        joined(&[&batch, &length, &width], 0, &shape),
        Node::new("Expand", &tokens, &[&prompt, &shape], &tokens),
    ];
    let lookup = graph.nodes[sequence.lookup].name.clone();
    let embedded = graph.nodes[sequence.lookup].output().to_owned();
    // Everything but the lookup sees longer inputs.
    for (port, value) in sequence.companions.iter().map(|(port, value)| (port, *value)).chain([(&sequence.ids, 0)]) {
        let filled = graph.fresh_name(&part(&format!("of_{}", port.name)));
        let longer = graph.fresh_name(&part(&port.name));
        for node in graph.nodes.iter_mut().filter(|n| n.name != lookup) {
            node.inputs.iter_mut().filter(|i| **i == port.name).for_each(|i| i.clone_from(&longer));
        }
        let value = filler(port.ty.dtype, value);
        before.push(Node::new("ConstantOfShape", &filled, &[&added], &filled).with("value", Attribute::Tensor(value)));
        before.push(joined(&[&filled, &port.name], 1, &longer));
    }
    interpose(graph, &embedded, &part("base"), |_, e| {
        vec![Node::new("Concat", &part("concat"), &[&tokens, e], &embedded).with("axis", Attribute::Int(1))]
    });
    if !sequence.outputs.is_empty() {
        let end = graph.add_constant(&part("end"), Tensor::from_i64(&[1], &[i64::MAX]));
        for (output, axis) in &sequence.outputs {
            let axes = graph.add_constant(&part(&format!("axis_{axis}")), Tensor::from_i64(&[1], &[*axis as i64]));
            let cut = graph.fresh_name(&part(&format!("cut_{output}")));
            interpose(graph, output, &part(&format!("with_{output}")), |_, longer| {
                vec![Node::new("Slice", &cut, &[longer, &length, &end, &axes], output)]
            });
        }
    }
    graph.nodes.splice(0..0, before);
    Ok(())
}

/// The one element that ConstantOfShape repeats.
fn filler(dtype: DType, value: i64) -> Tensor {
    let bytes = match dtype {
        DType::F32 => (value as f32).to_le_bytes().to_vec(),
        DType::I64 => value.to_le_bytes().to_vec(),
        DType::I32 => (value as i32).to_le_bytes().to_vec(),
        _ => vec![u8::from(value != 0)],
    };
    Tensor::new(dtype, vec![1], bytes.into()).expect("one element has its type's size")
}

/// What runs along the sequence of tokens.
struct Sequence {
    /// The node that looks words up.
    lookup: usize,
    ids: Port,
    /// Other inputs along the sequence, and what they hold at virtual tokens.
    companions: Vec<(Port, i64)>,
    /// Outputs along the sequence, and their axis.
    outputs: Vec<(String, usize)>,
}

impl Sequence {
    fn find(graph: &Graph) -> Result<Sequence> {
        let lookup = lookup(graph)?;
        let ids = input(graph, &graph.nodes[lookup].inputs[1]).expect("lookups are of inputs").clone();
        let Some([_, length]) = ids.ty.dims.as_deref() else {
            return Err(refused(
                format!("input {:?} is not of shape [batch, sequence]", ids.name),
                "export a model that reads a batch of sequences",
            ));
        };
        let Dim::Symbol(length) = length else {
            return Err(refused(
                format!("the sequence of input {:?} has a fixed or unnamed length", ids.name),
                "export the model with a named dynamic axis for the sequence",
            ));
        };
        follow_shape_only(graph, &ids.name, lookup)?;
        let outputs = graph.outputs.iter().map(|o| Ok((o.name.clone(), sequence_axis(graph, o, length)?)));
        let outputs = outputs.collect::<Result<Vec<_>>>()?.into_iter().filter_map(|(o, axis)| Some((o, axis?)));
        Ok(Sequence { lookup, companions: companions(graph, &ids, length)?, outputs: outputs.collect(), ids })
    }
}

fn refused(reason: String, way_out: &'static str) -> Error {
    Error::NoPrompt { reason, way_out }
}

fn input<'a>(graph: &'a Graph, name: &str) -> Option<&'a Port> {
    graph.inputs.iter().find(|p| p.name == name && !graph.constants.contains_key(name))
}

/// The Gather of rows of a constant table by an input: by `input_ids` if there are several.
fn lookup(graph: &Graph) -> Result<usize> {
    let is_lookup = |n: &Node| {
        n.is("Gather")
            && n.int("axis").unwrap_or(0) == 0
            && graph.constant_input(n, 0).is_some_and(|t| t.dtype == DType::F32 && t.dims().len() == 2)
            && n.input(1).is_some_and(|ids| input(graph, ids).is_some())
    };
    let found: Vec<usize> = (0..graph.nodes.len()).filter(|&i| is_lookup(&graph.nodes[i])).collect();
    let by_name: Vec<usize> = found.iter().copied().filter(|&i| graph.nodes[i].inputs[1] == IDS).collect();
    match (found.as_slice(), by_name.as_slice()) {
        ([one], _) | (_, [one]) => Ok(*one),
        ([], _) => Err(refused(
            "no table of f32 embeddings is looked up by an input".to_owned(),
            "prompt tuning is for models that read token ids; leave prompt out of --kinds",
        )),
        _ => Err(refused(
            "several tables are looked up by inputs, and none, or more than one, by \"input_ids\"".to_owned(),
            "name the input with the token ids input_ids, and look them up once",
        )),
    }
}

/// The ids may say how long the sequence is, and nothing else beside the lookup.
fn follow_shape_only(graph: &Graph, ids: &str, lookup: usize) -> Result<()> {
    let other = |(i, n): &(usize, &Node)| *i != lookup && !n.is("Shape") && n.inputs.iter().any(|i| i == ids);
    match graph.nodes.iter().enumerate().find(other) {
        None => Ok(()),
        Some((_, node)) => Err(refused(
            format!(
                "the token ids also go to node {:?} ({}), which would not see virtual tokens",
                node.name, node.op_type
            ),
            "export a model whose positions and masks do not depend on the ids; leave prompt out of --kinds for RoBERTa",
        )),
    }
}

/// Every other input along the sequence.
fn companions(graph: &Graph, ids: &Port, length: &str) -> Result<Vec<(Port, i64)>> {
    let mut found = Vec::new();
    for port in graph.inputs.iter().filter(|p| p.name != ids.name && !graph.constants.contains_key(&p.name)) {
        let along = port.ty.dims.as_deref().is_none_or(|dims| dims.contains(&Dim::Symbol(length.to_owned())));
        let known = COMPANIONS.iter().find(|(name, _)| *name == port.name);
        match known {
            Some((_, value))
                if port.ty.dims.as_ref().is_some_and(|dims| dims.len() == 2) && FILLED.contains(&port.ty.dtype) =>
            {
                found.push((port.clone(), *value));
            }
            None if !along => {}
            _ => {
                return Err(refused(
                    format!("it is not known what input {:?} should hold at virtual tokens", port.name),
                    "export the model with inputs [batch, sequence] named input_ids, attention_mask and token_type_ids only",
                ));
            }
        }
    }
    Ok(found)
}

/// The axis along which an output follows the sequence, if it has one.
fn sequence_axis(graph: &Graph, output: &Port, length: &str) -> Result<Option<usize>> {
    let known = |dims: &Option<Vec<Dim>>| dims.clone().filter(|dims| dims.iter().skip(1).all(|d| *d != Dim::Unknown));
    let inferred = graph.types.get(&output.name).and_then(|ty| known(&ty.dims));
    let dims = known(&output.ty.dims).or(inferred).ok_or_else(|| {
        refused(
            format!("the shape of output {:?} is not known", output.name),
            "export the model with the dynamic axes of its outputs named",
        )
    })?;
    let along: Vec<usize> = (0..dims.len()).filter(|&i| dims[i] == Dim::Symbol(length.to_owned())).collect();
    match along[..] {
        [] => Ok(None),
        [axis] => Ok(Some(axis)),
        _ => Err(refused(
            format!("output {:?} runs along the sequence twice", output.name),
            "export the model without this output, such as attention probabilities",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::ValueType;

    fn port(name: &str, dims: &[&str]) -> Port {
        let dim = |d: &&str| d.parse().map_or_else(|_| Dim::Symbol((*d).to_owned()), Dim::Known);
        Port { name: name.into(), ty: ValueType { dtype: DType::I64, dims: Some(dims.iter().map(dim).collect()) } }
    }

    fn encoder() -> Graph {
        let mut g = Graph {
            inputs: vec![port("input_ids", &["b", "t"]), port("attention_mask", &["b", "t"])],
            outputs: vec![port("y", &["b", "t", "4"])],
            nodes: vec![
                Node::new("Gather", "/words/Gather", &["table", "input_ids"], "e"),
                Node::new("Shape", "shape", &["input_ids"], "s"),
                Node::new("Gelu", "act", &["e"], "y"),
            ],
            ..Graph::default()
        };
        g.constants.insert("table".into(), Tensor::from_f32(&[9, 4], &[0.0; 36]));
        g
    }

    fn refusal(change: impl FnOnce(&mut Graph)) -> String {
        let mut g = encoder();
        change(&mut g);
        Sequence::find(&g).err().expect("it is refused").to_string()
    }

    #[test]
    fn the_sequence_is_found() {
        let sequence = Sequence::find(&encoder()).unwrap();
        assert_eq!(sequence.ids.name, "input_ids");
        assert_eq!(sequence.companions, [(port("attention_mask", &["b", "t"]), 1)]);
        assert_eq!(sequence.outputs, [("y".to_owned(), 1)]);
        assert_eq!(candidate(&encoder()).unwrap().path, "words");
    }

    #[test]
    fn what_virtual_tokens_cannot_follow_is_refused() {
        let text = refusal(|g| g.nodes.push(Node::new("Equal", "pads", &["input_ids", "zero"], "p")));
        assert!(text.contains("\"pads\"") && text.contains("leave prompt out"), "{text}");
        let text = refusal(|g| g.inputs[0] = port("input_ids", &["b", "12"]));
        assert!(text.contains("fixed") && text.contains("dynamic axis"), "{text}");
        let text = refusal(|g| g.inputs.push(port("position_ids", &["b", "t"])));
        assert!(text.contains("\"position_ids\""), "{text}");
        let text = refusal(|g| g.outputs[0] = port("y", &["b", "t", "t"]));
        assert!(text.contains("twice"), "{text}");
        let text = refusal(|g| g.outputs[0].ty.dims = None);
        assert!(text.contains("not known"), "{text}");
        let text = refusal(|g| g.nodes[0].inputs[1] = "s".into());
        assert!(text.contains("no table"), "{text}");
    }
}
