use super::*;
use crate::graph::{Attribute, Port, ValueType};

const C: usize = 6;

fn dims(names: &[&str]) -> ValueType {
    let dim = |d: &&str| d.parse().map_or_else(|_| Dim::Symbol((*d).to_owned()), Dim::Known);
    ValueType { dtype: DType::F32, dims: Some(names.iter().map(dim).collect()) }
}

/// A graph from `x` to `y`; constants by shape, and shapes of values.
fn graph(nodes: Vec<Node>, constants: &[(&str, &[usize])], shapes: &[(&str, &[&str])]) -> Graph {
    let port = |name: &str| Port { name: name.into(), ty: dims(&["b", "t", "6"]) };
    let tensor = |shape: &[usize]| Tensor::from_f32(shape, &vec![1.0; shape.iter().product()]);
    Graph {
        nodes,
        inputs: vec![port("x")],
        outputs: vec![port("y")],
        constants: constants.iter().map(|(name, shape)| ((*name).to_owned(), tensor(shape))).collect(),
        types: shapes.iter().map(|(name, shape)| ((*name).to_owned(), dims(shape))).collect(),
        ..Graph::default()
    }
}

/// What is divided for `v`: the name of each constant, and its axis.
fn folded(graph: &Graph) -> Result<Vec<(String, Axis)>, String> {
    let divided = fold(graph, &graph.links(), "v", C)?;
    Ok(divided.into_iter().map(|d| (graph.nodes[d.node].inputs[d.input].clone(), d.axis)).collect())
}

fn last(names: &[&str]) -> Vec<(String, Axis)> {
    names.iter().map(|name| ((*name).to_owned(), Axis::Last)).collect()
}

#[test]
fn norms_take_factors_into_gain_and_bias() {
    let norm = |axis| Node::new("LayerNormalization", "norm", &["x", "g", "b"], "v").with("axis", Attribute::Int(axis));
    let constants: &[(&str, &[usize])] = &[("g", &[C]), ("b", &[C])];
    assert_eq!(folded(&graph(vec![norm(-1)], constants, &[])).unwrap(), last(&["g", "b"]));
    assert_eq!(folded(&graph(vec![norm(2)], constants, &[("v", &["b", "t", "6"])])).unwrap(), last(&["g", "b"]));
    assert!(folded(&graph(vec![norm(1)], constants, &[("v", &["b", "t", "6"])])).is_err());
    assert!(folded(&graph(vec![norm(-1)], &[("g", &[C]), ("b", &[2, 3])], &[])).is_err());
    // The gain of an RMS normalization is the last of its primitives.
    let rms = vec![Node::new("Div", "normal", &["x", "root"], "n"), Node::new("Mul", "gain", &["g", "n"], "v")];
    assert_eq!(folded(&graph(rms, &[("g", &[C])], &[])).unwrap(), last(&["g"]));
}

#[test]
fn linears_take_factors_into_outputs_and_bias() {
    let constants: &[(&str, &[usize])] = &[("w", &[4, C]), ("b", &[C])];
    let between = |op: &str, more: &[&str]| {
        let inputs: Vec<&str> = std::iter::once("l").chain(more.iter().copied()).collect();
        vec![
            Node::new("MatMul", "linear", &["x", "w"], "m"),
            Node::new("Add", "bias", &["b", "m"], "l"),
            Node::new(op, "between", &inputs, "v"),
        ]
    };
    assert_eq!(folded(&graph(between("Relu", &[]), constants, &[])).unwrap(), last(&["b", "w"]));
    assert!(folded(&graph(between("Gelu", &[]), constants, &[])).unwrap_err().contains("Gelu"));
    assert!(folded(&graph(between("Add", &["x"]), constants, &[])).unwrap_err().contains("Add"));
    let gemm = Node::new("Gemm", "linear", &["x", "w", "b"], "v").with("transB", Attribute::Int(1));
    let found = folded(&graph(vec![gemm.clone()], &[("w", &[C, 4]), ("b", &[C])], &[])).unwrap();
    assert_eq!(found, [("w".to_owned(), Axis::First), ("b".to_owned(), Axis::Last)]);
    // A weight that something else reads, or a bias that is one number, stays.
    let other = vec![gemm.clone(), Node::new("MatMul", "other", &["x", "w"], "y")];
    assert!(folded(&graph(other, &[("w", &[C, 4]), ("b", &[C])], &[])).unwrap_err().contains("more than once"));
    assert!(folded(&graph(vec![gemm], &[("w", &[C, 4]), ("b", &[1])], &[])).is_err());
}

#[test]
fn a_gated_network_takes_factors_into_its_linear_without_nonlinearity() {
    let nodes = |first: &str, second: &str| {
        vec![
            Node::new("MatMul", "gate", &["x", "wg"], "g"),
            Node::new("Sigmoid", "sigmoid", &["g"], "s"),
            Node::new("Mul", "silu", &["g", "s"], "a"),
            Node::new("MatMul", "up", &["x", "wu"], "u"),
            Node::new("Mul", "product", &[first, second], "v"),
        ]
    };
    let constants: &[(&str, &[usize])] = &[("wg", &[4, C]), ("wu", &[4, C])];
    for (first, second) in [("a", "u"), ("u", "a")] {
        assert_eq!(folded(&graph(nodes(first, second), constants, &[])).unwrap(), last(&["wu"]));
    }
    // Whoever asks for the shape alone does not mind.
    let mut shape_read = nodes("a", "u");
    shape_read.push(Node::new("Shape", "shape", &["u"], "y"));
    assert_eq!(folded(&graph(shape_read, constants, &[])).unwrap(), last(&["wu"]));
    let mut read_twice = nodes("a", "u");
    read_twice.push(Node::new("Gelu", "other", &["u"], "y"));
    assert!(folded(&graph(read_twice, constants, &[])).unwrap_err().contains("read elsewhere"));
}

#[test]
fn attention_takes_factors_into_values_of_heads_of_their_own() {
    let perm = || Attribute::Ints(vec![0, 2, 1, 3]);
    let nodes = || {
        vec![
            Node::new("MatMul", "value", &["x", "w"], "l"),
            Node::new("Reshape", "split", &["l", "s4"], "h"),
            Node::new("Transpose", "heads", &["h"], "ht").with("perm", perm()),
            Node::new("MatMul", "mix", &["p", "ht"], "m"),
            Node::new("Transpose", "back", &["m"], "mt").with("perm", perm()),
            Node::new("Reshape", "join", &["mt", "s3"], "v"),
        ]
    };
    let heads = |sizes: &'static [&'static str]| -> Vec<(&str, &[&str])> { vec![("h", sizes)] };
    let constants: &[(&str, &[usize])] = &[("w", &[4, C]), ("s3", &[3])];
    let two = heads(&["b", "t", "2", "3"]);
    assert_eq!(folded(&graph(nodes(), constants, &two)).unwrap(), last(&["w"]));
    // The sizes of a shape that is computed are at its end.
    let mut computed = nodes();
    computed.insert(1, Node::new("Concat", "shape", &["n", "sizes"], "s4"));
    let mut g = graph(computed, constants, &[]);
    assert!(folded(&g).unwrap_err().contains("split"));
    g.constants.insert("sizes".into(), Tensor::from_i64(&[2], &[2, 3]));
    assert_eq!(folded(&g).unwrap(), last(&["w"]));
    // Keys that heads share are repeated before the product, or there are fewer of them.
    let mut shared = nodes();
    shared.insert(3, Node::new("Expand", "repeat", &["ht", "s5"], "hr"));
    shared[4].inputs[1] = "hr".into();
    assert!(folded(&graph(shared, constants, &two)).unwrap_err().contains("Expand"));
    assert!(folded(&graph(nodes(), constants, &heads(&["b", "t", "1", "3"]))).is_err());
    // Another order of the axes is another meaning.
    let mut turned = nodes();
    turned[4] = Node::new("Transpose", "back", &["m"], "mt").with("perm", Attribute::Ints(vec![0, 2, 3, 1]));
    assert!(folded(&graph(turned, constants, &two)).unwrap_err().contains("back"));
}

#[test]
fn an_input_of_the_model_takes_none() {
    let g = graph(vec![Node::new("Relu", "relu", &["x"], "v")], &[], &[]);
    assert!(folded(&g).unwrap_err().contains("input of the model"));
}
