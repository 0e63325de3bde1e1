//! Files that claim much and hold little: refused, and without the memory that they claim.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use inlay_converter::footprint::{MEMORY_FLOOR, MEMORY_PER_BYTE};
use inlay_converter::proto::{
    EXTERNAL, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, StringStringEntryProto, TensorProto,
    TensorShapeProto, TensorTypeProto, TypeProto, ValueInfoProto,
};
use inlay_converter::{canonicalize, read};
use inlay_runtime::npz::{EXPANSION_FLOOR, MAX_EXPANSION};
use inlay_runtime::{Adapter, Base, Verify, npz};
use peak_alloc::PeakAlloc;
use prost::Message;
use zip::write::SimpleFileOptions;

#[global_allocator]
static HEAP: PeakAlloc = PeakAlloc;

/// What any of these readers takes whatever the file (bytes).
const FLOOR: usize = 1 << 20;

/// What `work` gives, and the bytes that it takes on the heap. One at a time.
fn peak_of<T>(work: impl FnOnce() -> T) -> (T, usize) {
    static ALONE: Mutex<()> = Mutex::new(());
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    HEAP.reset_peak_usage();
    let before = HEAP.current_usage();
    let done = work();
    (done, HEAP.peak_usage().saturating_sub(before))
}

/// The error of reading `onnx`, which takes no more memory than a file of its size may.
fn refused(onnx: &ModelProto) -> String {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.onnx");
    let bytes = onnx.encode_to_vec();
    fs::write(&path, &bytes).unwrap();
    let (read, peak) = peak_of(|| read::read(&path).map(|model| canonicalize::inlined(&model).map(drop)));
    let limit = bytes.len() * MEMORY_PER_BYTE as usize + MEMORY_FLOOR as usize;
    assert!(peak < limit, "a file of {} bytes took {peak}", bytes.len());
    match read {
        Ok(Ok(())) => "accepted".to_owned(),
        Ok(Err(error)) | Err(error) => error.to_string(),
    }
}

fn node(op_type: &str, input: &[&str], output: &str) -> NodeProto {
    let input = input.iter().map(|&name| name.into()).collect();
    NodeProto { op_type: op_type.into(), input, output: vec![output.into()], ..NodeProto::default() }
}

fn model(node: Vec<NodeProto>, initializer: Vec<TensorProto>) -> ModelProto {
    let value = |name: &str| {
        let tensor_type = Some(TensorTypeProto { elem_type: 1, shape: Some(TensorShapeProto::default()) });
        ValueInfoProto { name: name.into(), r#type: Some(TypeProto { tensor_type }) }
    };
    ModelProto {
        ir_version: 10,
        opset_import: vec![OperatorSetIdProto { domain: String::new(), version: 21 }],
        graph: Some(GraphProto {
            node,
            initializer,
            input: vec![value("x")],
            output: vec![value("y")],
            ..GraphProto::default()
        }),
        ..ModelProto::default()
    }
}

#[test]
fn shapes_do_not_become_memory() {
    let add = || vec![node("Add", &["x", "w"], "y")];
    for dims in [vec![1 << 40], vec![1 << 62, 4], vec![i64::MAX, i64::MAX], vec![1 << 20, 1 << 20], vec![-1]] {
        let weight = TensorProto { name: "w".into(), data_type: 1, dims, ..TensorProto::default() };
        assert!(refused(&model(add(), vec![weight.clone()])).contains("\"w\""));
        let entry = |key: &str, value: &str| StringStringEntryProto { key: key.into(), value: value.into() };
        let external_data = vec![entry("location", "m.onnx"), entry("length", "18446744073709551615")];
        let external = TensorProto { data_location: EXTERNAL, external_data, ..weight };
        assert!(refused(&model(add(), vec![external])).contains("\"w\""));
    }
    // Asked for by an operator.
    let ints = |name: &str, values: &[i64]| TensorProto {
        name: name.into(),
        data_type: 7,
        dims: vec![values.len() as i64],
        int64_data: values.to_vec(),
        ..TensorProto::default()
    };
    let shape = vec![ints("shape", &[1 << 30, 1 << 30])];
    for op in ["ConstantOfShape", "Expand"] {
        let inputs: &[&str] = if op == "Expand" { &["x", "shape"] } else { &["shape"] };
        let text = refused(&model(vec![node(op, inputs, "h"), node("Add", &["x", "h"], "y")], shape.clone()));
        assert!(text.contains("too many elements"), "{text}");
    }
}

#[test]
fn empty_messages_do_not_become_memory() {
    let few = 100_000;
    let empty = refused(&model(vec![NodeProto::default(); 2 * few], vec![]));
    assert!(empty.contains("of memory"), "{empty}");
    let many = refused(&model(vec![NodeProto::default(); 4 * few], vec![]));
    assert!(many.contains("400000 nodes"), "{many}");
    let tensors = refused(&model(vec![], vec![TensorProto::default(); 4 * few]));
    assert!(tensors.contains("constants"), "{tensors}");
    let mut names = node("Concat", &[], "y");
    names.input = vec![String::new(); 4 * few];
    assert!(refused(&model(vec![names.clone()], vec![])).contains("at one node"));
    names.attribute = vec![Default::default(); 4 * few];
    let attributes = refused(&model(vec![names], vec![]));
    assert!(attributes.contains("of memory"), "{attributes}");
}

#[test]
fn the_smallest_nodes_take_what_is_stated() {
    // As dense as valid files get: names of a few letters, one after the other.
    let chain = |count: usize| {
        let name = |i: usize| {
            if i == 0 {
                "x".to_owned()
            } else if i == count {
                "y".into()
            } else {
                format!("{i:x}")
            }
        };
        (0..count).map(|i| node("Abs", &[&name(i)], &name(i + 1))).collect()
    };
    assert_eq!(refused(&model(chain(20_000), vec![])), "accepted");
    assert!(refused(&model(chain(100_001), vec![])).contains("one after another"));
    // All of one name: this took quadratic time.
    let named = |n: NodeProto| NodeProto { name: "n".into(), ..n };
    assert_eq!(refused(&model(chain(20_000).into_iter().map(named).collect(), vec![])), "accepted");
}

#[test]
fn overlapping_initializers_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("w"), vec![0; 1 << 16]).unwrap();
    let weight = |i: usize| TensorProto {
        name: format!("w{i}"),
        data_type: 1,
        dims: vec![1 << 14],
        data_location: EXTERNAL,
        external_data: vec![StringStringEntryProto { key: "location".into(), value: "w".into() }],
        ..TensorProto::default()
    };
    let path = folder.path().join("m.onnx");
    fs::write(&path, model(vec![node("Abs", &["x"], "y")], (0..20).map(weight).collect()).encode_to_vec()).unwrap();
    let error = read::read(&path).unwrap_err().to_string();
    assert!(error.contains("overlap"), "{error}");
}

/// The error of reading an archive, which takes no more memory than one of its size may.
fn refused_archive(bytes: &[u8]) -> String {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.npz");
    fs::write(&path, bytes).unwrap();
    let (read, peak) = peak_of(|| npz::read(&path).map(drop));
    // The bytes of an array, in a list that grew, beside the arrays.
    let limit = 4 * (bytes.len() as u64 * MAX_EXPANSION).max(EXPANSION_FLOOR);
    assert!((peak as u64) < limit, "an archive of {} bytes took {peak}", bytes.len());
    read.map_or_else(|error| error.to_string(), |()| "accepted".to_owned())
}

/// An array whose header says `descr` and `shape`.
fn npy(descr: &str, shape: &str, data: &[u8]) -> Vec<u8> {
    let header = format!("{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}\n");
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((header.len() as u16).to_le_bytes());
    bytes.extend(header.as_bytes());
    bytes.extend(data);
    bytes
}

/// An archive of `entries`.
fn archive(entries: &[(&str, &[u8])], deflated: bool) -> Vec<u8> {
    let method = if deflated { zip::CompressionMethod::Deflated } else { zip::CompressionMethod::Stored };
    let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    for (name, bytes) in entries {
        zip.start_file(format!("{name}.npy"), SimpleFileOptions::default().compression_method(method)).unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

#[test]
fn archives_do_not_unpack_without_end() {
    for shape in ["(1152921504606846976,)", "(4294967296, 4294967296, 4294967296)", "(1099511627776,)", "(0, 1, -1)"] {
        let array = npy("'<f4'", shape, &[0; 16]);
        assert_ne!(refused_archive(&archive(&[("x", &array)], false)), "accepted", "{shape}");
        // With a directory that claims as much: of an entry, it holds the sizes at byte 20 and 24.
        let mut claiming = archive(&[("x", &array)], false);
        let at = claiming.windows(4).rposition(|four| four == b"PK\x01\x02").unwrap();
        claiming[at + 20..at + 28].fill(0xfe);
        assert_ne!(refused_archive(&claiming), "accepted", "{shape}");
    }
    // 128 MiB of zeros, which pack to a thousandth; as bytes they would take 1 GiB.
    let zeros = vec![0; 128 << 20];
    let bomb = archive(&[("x", &npy("'|u1'", "(134217728,)", &zeros))], true);
    assert!(bomb.len() < 1 << 18);
    let error = refused_archive(&bomb);
    assert!(error.contains("unpacks to more than 1032 times"), "{error}");
    // Honest zeros are read.
    let masks = npy("'<i8'", "(4194304,)", &zeros[..32 << 20]);
    assert_eq!(refused_archive(&archive(&[("mask", &masks)], true)), "accepted");
}

#[test]
fn entries_of_an_archive_that_overlap_are_refused() {
    let zeros = vec![0; 8 << 20];
    let one = archive(&[("0", &npy("'<f4'", "(2097152,)", &zeros))], true);
    // The directory's only entry, five hundred times under other names.
    let start = one.windows(4).rposition(|four| four == b"PK\x01\x02").unwrap();
    let end = one.windows(4).rposition(|four| four == b"PK\x05\x06").unwrap();
    let mut bomb = one[..start].to_vec();
    let count = 500u16;
    for i in 0..count {
        let mut entry = one[start..end].to_vec();
        let name = format!("{i:03}.npy");
        entry.splice(46..46 + "0.npy".len(), name.bytes());
        entry[28..30].copy_from_slice(&(name.len() as u16).to_le_bytes());
        bomb.extend(entry);
    }
    let size = bomb.len() - start;
    let mut tail = one[end..].to_vec();
    for at in [8, 10] {
        tail[at..at + 2].copy_from_slice(&count.to_le_bytes());
    }
    tail[12..16].copy_from_slice(&(size as u32).to_le_bytes());
    bomb.extend(tail);
    assert_ne!(refused_archive(&bomb), "accepted");
}

#[test]
fn pickled_arrays_are_refused() {
    for descr in ["'|O'", "'O'", "[('a', '|O')]", "'|V8'", "'<U4'"] {
        let error = refused_archive(&archive(&[("x", &npy(descr, "(1,)", b"\x80\x04cos\nsystem\n."))], false));
        assert!(error.contains("is not supported"), "{descr}: {error}");
    }
}

fn tiny() -> Base {
    Base::open(concat!(env!("CARGO_MANIFEST_DIR"), "/../runtime/tests/data/tiny"), Verify::Full).unwrap()
}

#[test]
fn peft_folders_do_not_claim_memory() {
    let base = tiny();
    let folder = tempfile::tempdir().unwrap();
    let refused = |config: &[u8], tensors: &[u8]| {
        fs::write(folder.path().join("adapter_config.json"), config).unwrap();
        fs::write(folder.path().join("adapter_model.safetensors"), tensors).unwrap();
        let (read, peak) = peak_of(|| Adapter::from_peft(&base, folder.path()).map(drop));
        let len = config.len() + tensors.len();
        assert!(peak < 128 * len + FLOOR, "{len} bytes took {peak}");
        read.unwrap_err();
    };
    let config = br#"{"peft_type": "LORA", "r": 1, "lora_alpha": 1}"#;
    for len in [1u64 << 60, u64::MAX, 100_000_000, 1 << 20] {
        refused(config, &[&len.to_le_bytes()[..], b"{}"].concat());
    }
    let tensors = |header: &str| [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &[0; 4]].concat();
    let offsets = ["[0, 4]", "[0, 18446744073709551615]", "[4, 0]"];
    for (shape, offsets) in
        [("[1152921504606846976]", offsets[0]), ("[4294967296, 4294967296]", offsets[1]), ("[1]", offsets[2])]
    {
        refused(
            config,
            &tensors(&format!(r#"{{"a": {{"dtype": "F32", "shape": {shape}, "data_offsets": {offsets}}}}}"#)),
        );
    }
    refused(config, &tensors(&"[".repeat(1 << 20)));
    refused(format!(r#"{{"peft_type": "LORA", "r": {}"#, "[".repeat(1 << 20)).as_bytes(), b"");
    refused(
        format!(r#"{{"peft_type": "LORA", "r": 1, "lora_alpha": 1, "x": [{}0]}}"#, "0,".repeat(1 << 19)).as_bytes(),
        b"",
    );
}

/// `onnx` is refused as a base, and takes no more memory than a file of its size may.
fn refused_base(onnx: &[u8]) {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("model.onnx"), onnx).unwrap();
    fs::write(folder.path().join("model.onnx.data"), [0; 64]).unwrap();
    let (opened, peak) = peak_of(|| Base::open(folder.path(), Verify::Full).map(drop));
    assert!(peak < 128 * onnx.len() + FLOOR, "a file of {} bytes took {peak}", onnx.len());
    opened.unwrap_err();
}

#[test]
fn bases_do_not_claim_memory() {
    let tiny = fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("../runtime/tests/data/tiny/model.onnx")).unwrap();
    for cut in (0..tiny.len()).step_by(7) {
        refused_base(&tiny[..cut]);
    }
    let encoded = |nodes, tensors| model(nodes, tensors).encode_to_vec();
    refused_base(&encoded(vec![NodeProto::default(); 1 << 17], vec![]));
    refused_base(&encoded(vec![], vec![TensorProto::default(); 1 << 17]));
    refused_base(&encoded(vec![node("A", &[], ""); 1 << 16], vec![]));
    let small = TensorProto { data_type: 1, ..TensorProto::default() };
    refused_base(&encoded(vec![], vec![small; 1 << 16]));
    let mut crowded = node("A", &[], "y");
    crowded.attribute = vec![Default::default(); 250];
    refused_base(&encoded(vec![crowded; 1000], vec![]));
}
