use super::*;

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures");

fn fixture(name: &str) -> Vec<u8> {
    std::fs::read(format!("{FIXTURES}/{name}.onnx")).unwrap()
}

#[test]
fn reads_what_both_exporters_write() {
    for entry in std::fs::read_dir(FIXTURES).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|e| e == "onnx") {
            let model = read(&std::fs::read(&path).unwrap());
            // Models with functions are for the converter to inline.
            match model {
                Ok(model) => assert!(!model.graph.nodes.is_empty() && !model.opsets.is_empty(), "{path:?}"),
                Err(error) => assert!(matches!(error, WireError::Unsupported { .. }), "{path:?}: {error}"),
            }
        }
    }
    let model = read(&fixture("cnn_dyn18")).unwrap();
    assert_eq!(model.graph.inputs[0].name, "x");
    let dims = model.graph.inputs[0].shape.clone().unwrap();
    assert_eq!(dims, [Dim::Symbol("batch".into()), Dim::Fixed(6), Dim::Fixed(96)]);
    assert!(model.graph.nodes.iter().any(|n| n.op_type == "Conv" && n.attributes.iter().any(|a| a.name == "pads")));
}

#[test]
fn truncated_files_are_errors_or_smaller_models() {
    let file = fixture("cnn_dyn18");
    for len in (0..file.len()).step_by(7) {
        let _ = read(&file[..len]);
    }
    assert!(matches!(read(&file[..file.len() / 2]), Err(WireError::Truncated { .. })));
    assert!(read(&[]).is_err());
    assert!(read(b"this is a text file, not a model").is_err());
}

#[test]
fn flipped_bits_never_panic() {
    let mut file = fixture("mlp_ts13");
    for at in 0..file.len() {
        for bit in 0..8 {
            file[at] ^= 1 << bit;
            let _ = read(&file);
            file[at] ^= 1 << bit;
        }
    }
}

#[test]
fn lengths_are_not_believed() {
    // A graph that claims to be 2^60 bytes long, and one that is nested in itself as often as it fits.
    let huge = [0x3a, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x10];
    assert!(matches!(read(&huge), Err(WireError::Truncated { .. })));
    let graph_of = |node: &[u8]| {
        let mut len = node.len() * (MAX_NODES + 1);
        let mut file = vec![0x3a];
        while len >= 0x80 {
            file.push((len & 0x7f) as u8 | 0x80);
            len >>= 7;
        }
        file.push(len as u8);
        file.extend(node.repeat(MAX_NODES + 1));
        file
    };
    let many = graph_of(&[0x0a, 0x03, 0x22, 0x01, b'A']);
    assert!(matches!(read(&many), Err(WireError::TooMany { of: "nodes", .. })));
    // What takes two bytes of the file and hundreds of memory.
    assert!(matches!(read(&graph_of(&[0x0a, 0x00])), Err(WireError::Malformed { what: "a node", .. })));
}
