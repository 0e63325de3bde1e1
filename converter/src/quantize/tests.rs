use super::*;
use crate::graph::{Attribute, Node, Port, ValueType};

fn port(name: &str) -> Port {
    Port { name: name.into(), ty: ValueType { dtype: DType::F32, dims: None } }
}

fn tied(transposed: bool) -> Graph {
    let mut nodes = vec![Node::new("Gather", "embed", &["table", "ids"], "e")];
    if transposed {
        nodes.push(Node::new("Transpose", "t", &["table"], "head"));
    }
    nodes.push(Node::new("MatMul", "m", &["e", if transposed { "head" } else { "table" }], "y"));
    let mut g = Graph { inputs: vec![port("ids")], outputs: vec![port("y")], nodes, ..Graph::default() };
    g.constants.insert("table".into(), Tensor::from_f32(&[32, 32], &[0.5; 1024]));
    g
}

/// Two linears and a head; the second linear is a Gemm with a bias.
fn linears() -> Graph {
    let nodes = vec![
        Node::new("MatMul", "/a/MatMul", &["x", "a.weight"], "h"),
        Node::new("Gemm", "/b/Gemm", &["h", "b.weight", "b.bias"], "g").with("transB", Attribute::Int(1)),
        Node::new("Relu", "/relu/Relu", &["g"], "r"),
        Node::new("MatMul", "/head/MatMul", &["r", "head.weight"], "l"),
        Node::new("Add", "/head/Add", &["l", "b.bias"], "y"),
    ];
    let mut g = Graph { inputs: vec![port("x")], outputs: vec![port("y")], nodes, ..Graph::default() };
    let values: Vec<f32> = (0..48 * 32).map(|i| (i as f32 * 0.37).sin()).collect();
    g.constants.insert("a.weight".into(), Tensor::from_f32(&[48, 32], &values));
    g.constants.insert("b.weight".into(), Tensor::from_f32(&[32, 32], &values[..1024]));
    g.constants.insert("b.bias".into(), Tensor::from_f32(&[32], &values[..32]));
    g.constants.insert("head.weight".into(), Tensor::from_f32(&[32, 32], &values[..1024]));
    g
}

fn run(graph: &mut Graph, options: &Quantization) -> Result<Packing> {
    let sites = Site::all(graph);
    quantize(graph, &sites, options)
}

fn int4(block: usize) -> Quantization {
    Quantization { int4_block: block, ..Quant::Int4.into() }
}

fn schemes(packing: &Packing) -> Vec<(&str, &str)> {
    packing.weights.iter().map(|(name, s)| (name.as_str(), s.scheme.name())).collect()
}

#[test]
fn a_tied_head_shares_the_scales_of_its_table() {
    let mut g = tied(true);
    let packing = run(&mut g, &Quant::Int8.into()).unwrap();
    assert_eq!(packing.weights["table"].layout, Layout::NK);
    assert_eq!(packing.weights["table"].scheme.name(), "int8");
    assert_eq!(g.nodes[0].op_type, "DequantizeLinear");
    assert_eq!(g.nodes[0].int("axis"), Some(0));
    assert_eq!(g.nodes[1].inputs[0], "table.dequantized");
}

#[test]
fn int4_in_vain_is_an_error() {
    for options in [int4(32), int4(16), Quantization { qdq: true, ..Quant::Int8.into() }] {
        assert!(matches!(run(&mut tied(true), &options), Err(Error::NoInt4)), "{options:?}");
    }
}

#[test]
fn contradicting_axes_stay_float() {
    let packing = run(&mut tied(false), &Quant::Int8.into()).unwrap();
    assert!(packing.weights.is_empty());
    assert!(packing.kept[0].reason.contains("different axes"));
}

#[test]
fn int4_is_for_linears_whose_inputs_fill_blocks_and_not_for_the_head() {
    let packing = run(&mut linears(), &int4(32)).unwrap();
    assert_eq!(schemes(&packing), [("a.weight", "int8"), ("b.weight", "int4"), ("head.weight", "int8")]);
    assert!(packing.weights["a.weight"].reason.as_ref().unwrap().contains("48 inputs"));
    assert!(packing.weights["head.weight"].reason.as_ref().unwrap().contains("head"));
    let mut g = linears();
    let packing = run(&mut g, &int4(16)).unwrap();
    assert_eq!(schemes(&packing)[0], ("a.weight", "int4"));
    let [a, b] = ["/a/MatMul", "/b/Gemm"].map(|name| g.nodes.iter().find(|n| n.name == name).unwrap());
    assert_eq!((a.op_type.as_str(), a.domain.as_str()), ("MatMulNBits", "com.microsoft"));
    assert_eq!(a.inputs, ["x", "a.weight", "a.weight.scale"]);
    assert_eq!([a.int("K"), a.int("N"), a.int("block_size")], [Some(48), Some(32), Some(16)]);
    assert_eq!(b.inputs, ["h", "b.weight", "b.weight.scale", "", "", "b.bias"]);
    assert_eq!(g.constants["a.weight"].dims(), [32, 48]);
}

#[test]
fn int4_as_dequantize_linear_turns_what_needs_turning() {
    let mut g = linears();
    run(&mut g, &Quantization { qdq: true, hqq: true, ..int4(16) }).unwrap();
    let find = |name: &str| g.nodes.iter().find(|n| n.name == name).unwrap();
    assert_eq!(find("a.weight.dequantized").int("block_size"), Some(16));
    assert_eq!(find("/a/MatMul").inputs[1], "a.weight.dequantized.transposed");
    assert_eq!(find("/b/Gemm").inputs[1], "b.weight.dequantized");
    assert!(g.nodes.iter().all(|n| n.name != "b.weight.dequantized.transposed"), "nothing uses it");
}

#[test]
fn rules_are_by_path_and_the_last_one_counts() {
    let rules = |list: &[&str]| list.iter().map(|r| r.parse().unwrap()).collect();
    let with = |list: &[&str], default: Quant| {
        let options = Quantization { rules: rules(list), ..default.into() };
        run(&mut linears(), &options)
            .map(|p| p.weights.iter().map(|(name, s)| format!("{name} {:?}", s.scheme)).collect::<Vec<_>>())
    };
    let expected = ["b.weight int4", "head.weight f16"];
    assert_eq!(with(&["b=int4", "*=none", "b=int4", "head=f16"], Quant::Int8).unwrap(), expected);
    assert_eq!(with(&["head=int4"], Quant::None).unwrap(), ["head.weight int4"]);
    let refused = |list: &[&str]| with(list, Quant::Int8).unwrap_err().to_string();
    assert!(refused(&["c=int4"]).contains("a, b, head"), "{}", refused(&["c=int4"]));
    assert!(refused(&["a=int4"]).contains("no multiple"), "{}", refused(&["a=int4"]));
    assert!(refused(&["[=int4"]).contains("[=int4"));
    assert!("a".parse::<Rule>().is_err() && "a=int3".parse::<Rule>().unwrap_err().contains("int4"));
}

#[test]
fn what_is_packed_is_what_was_asked_for() {
    let options = [
        Quant::Int8.into(),
        Quant::F16.into(),
        int4(16),
        Quantization { hqq: true, ..int4(16) },
        Quantization { qdq: true, ..int4(16) },
        Quantization { qdq: true, hqq: true, ..int4(16) },
    ];
    for options in options {
        let mut g = linears();
        let packing = run(&mut g, &options).unwrap();
        let mut written = Graph::default();
        for (name, storage) in &packing.weights {
            let tensor = &g.constants[name];
            let packed = pack(name, tensor, storage).unwrap();
            let bytes = packed.data.byte_len();
            written.constants.insert(name.clone(), packed.data);
            written.constants.extend(packed.scales.map(|s| (scale_name(name), s)));
            written.constants.extend(packed.zero_points.map(|z| (zero_point_name(name), z)));
            let values = dequantized(name, tensor, storage, &written).unwrap();
            let worst = values.iter().zip(tensor.to_f32()).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
            let allowed = if storage.scheme.name() == "int4" { 0.15 } else { 0.005 };
            assert!(worst < allowed && packed.error < 0.1, "{options:?} {name}: {worst}, {}", packed.error);
            if storage.scheme.name() == "int4" {
                assert_eq!(bytes, tensor.len() / 2, "{options:?}");
            }
        }
    }
}
