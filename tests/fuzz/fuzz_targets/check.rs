//! What holds for any bytes. Shared by the fuzz targets and by the test that replays their corpus.
#![allow(dead_code, reason = "each target checks one of them")]

use std::collections::HashSet;
use std::fs;
use std::io::{Cursor, Write};
use std::path::Path;

use inlay_converter::graph::{Graph, Node};
use inlay_converter::proto::{
    EXTERNAL, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, StringStringEntryProto, TensorProto,
    TensorShapeProto, TensorTypeProto, TypeProto, ValueInfoProto,
};
use inlay_converter::{canonicalize, encode, kv_cache, points, read};
use inlay_format::metadata;
use inlay_format::record::{self, BaseId};
use inlay_runtime::store::{AdapterStore, StoreKey};
use inlay_runtime::{Adapter, Base, Dtype, Verify, npz as archive};
use prost::Message;
use tempfile::TempDir;

thread_local! {
    static FOLDER: TempDir = tempfile::tempdir().expect("there is a temporary folder");
}

/// Runs `check` in a folder of this thread's own, with what earlier runs left in it.
fn in_folder(check: impl FnOnce(&Path)) {
    FOLDER.with(|folder| check(folder.path()));
}

/// ONNX files: what is read is a sorted graph whose constants have the bytes they say, it can be looked at, and it is read
/// again when it is written.
pub fn onnx(bytes: &[u8]) {
    in_folder(|folder| {
        let path = folder.join("m.onnx");
        fs::write(&path, bytes).unwrap();
        let Ok(mut model) = read::read(&path) else { return };
        expect_sorted(&model.graph);
        if let Ok(graph) = canonicalize::inlined(&model) {
            expect_sorted(&graph);
            points::candidates(&graph);
            expect_read_again(&graph, model.opset, folder);
        }
        let _ = canonicalize::canonicalize(&model).map(|graph| points::candidates(&graph).len());
        let _ = kv_cache::remove(&mut model);
    });
}

fn expect_sorted(graph: &Graph) {
    let mut known: HashSet<&str> = graph.constants.keys().map(String::as_str).collect();
    known.extend(graph.inputs.iter().map(|port| port.name.as_str()));
    for node in &graph.nodes {
        assert!(node.inputs.iter().filter(|i| !i.is_empty()).all(|i| known.contains(i.as_str())));
        known.extend(node.outputs.iter().map(String::as_str));
    }
    assert!(graph.outputs.iter().all(|port| known.contains(port.name.as_str())));
    for tensor in graph.constants.values() {
        assert_eq!(tensor.dtype.bytes(tensor.dims()), Some(tensor.bytes().len()));
    }
}

fn expect_read_again(graph: &Graph, opset: i64, folder: &Path) {
    let mut proto = encode::model(graph, opset);
    let constants = graph.constants.iter().map(|(name, tensor)| encode::tensor(name, tensor));
    proto.graph.as_mut().expect("it has one").initializer.extend(constants);
    let path = folder.join("again.onnx");
    fs::write(&path, proto.encode_to_vec()).unwrap();
    let again = read::read(&path).expect("what was written is read").graph;
    let parts = |node: &Node| (node.op_type.clone(), node.inputs.clone(), node.outputs.clone());
    assert!(graph.nodes.iter().map(parts).eq(again.nodes.iter().map(parts)));
    assert!(graph.constants.keys().eq(again.constants.keys()));
}

const INSIDE: u8 = 0x11;
const OUTSIDE: u8 = 0xEE;

/// External data, by its location, offset, length and extents (bytes): what is read lies in the model's folder, and is all
/// that the shape asks for.
pub fn external(bytes: &[u8]) {
    in_folder(|folder| {
        let inside = folder.join("model");
        if !inside.exists() {
            fs::create_dir_all(inside.join("sub")).unwrap();
            fs::write(folder.join("secret"), [OUTSIDE; 64]).unwrap();
            fs::write(inside.join("w"), [INSIDE; 64]).unwrap();
            fs::write(inside.join("sub/w"), [INSIDE; 16]).unwrap();
            #[cfg(unix)]
            for (to, link) in [("../secret", "out"), ("..", "up"), ("sub/w", "in")] {
                std::os::unix::fs::symlink(to, inside.join(link)).unwrap();
            }
        }
        let mut fields = bytes.split(|b| *b == b'\n').map(|field| String::from_utf8_lossy(field).into_owned());
        let keys = ["location", "offset", "length"];
        // A field that is not there leaves its entry out.
        let entries =
            keys.map(|key| StringStringEntryProto { key: key.into(), value: fields.next().unwrap_or_default() });
        let external_data: Vec<_> = entries.into_iter().filter(|entry| !entry.value.is_empty()).collect();
        let dims: Vec<i64> = fields.next().unwrap_or_default().split(',').filter_map(|dim| dim.parse().ok()).collect();
        let elements: Option<i64> = dims.iter().try_fold(1, |n: i64, dim| n.checked_mul(*dim));
        let weight = TensorProto {
            name: "w".into(),
            data_type: 1,
            dims,
            external_data,
            data_location: EXTERNAL,
            ..TensorProto::default()
        };
        let path = inside.join("m.onnx");
        fs::write(&path, one_add(weight).encode_to_vec()).unwrap();
        let Ok(model) = read::read(&path) else { return };
        let found = model.graph.constants["w"].bytes();
        assert_eq!(found.len() as i64, elements.expect("it was read") * 4);
        assert!(found.iter().all(|b| *b == INSIDE), "bytes from outside of the folder");
    });
}

/// `y = x + weight`.
fn one_add(weight: TensorProto) -> ModelProto {
    let value = |name: &str| {
        let tensor_type = Some(TensorTypeProto { elem_type: 1, shape: Some(TensorShapeProto::default()) });
        ValueInfoProto { name: name.into(), r#type: Some(TypeProto { tensor_type }) }
    };
    let add = NodeProto {
        op_type: "Add".into(),
        input: vec!["x".into(), weight.name.clone()],
        output: vec!["y".into()],
        ..NodeProto::default()
    };
    ModelProto {
        ir_version: 10,
        opset_import: vec![OperatorSetIdProto { domain: String::new(), version: 21 }],
        graph: Some(GraphProto {
            node: vec![add],
            initializer: vec![weight],
            input: vec![value("x")],
            output: vec![value("y")],
            ..GraphProto::default()
        }),
        ..ModelProto::default()
    }
}

/// Archives, as they are and as the array of a valid one: arrays have as many values as their shape says, and are the same
/// after they were written.
pub fn npz(bytes: &[u8]) {
    in_folder(|folder| {
        let (path, again) = (folder.join("a.npz"), folder.join("again.npz"));
        // No mutation finds the checksum of an entry.
        let mut valid = zip::ZipWriter::new(Cursor::new(Vec::new()));
        let stored = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
        valid.start_file("x.npy", stored).unwrap();
        valid.write_all(bytes).unwrap();
        for file in [bytes, valid.finish().unwrap().get_ref()] {
            fs::write(&path, file).unwrap();
            let Ok(arrays) = archive::read(&path) else { continue };
            for (_, array) in &arrays {
                assert_eq!(array.len(), array.shape().iter().product::<usize>());
            }
            archive::write(&again, arrays.iter().map(|(name, array)| (name.as_str(), array))).unwrap();
            let twice = archive::read(&again).expect("what was written is read");
            // NaN is not equal to itself.
            assert_eq!(format!("{arrays:?}"), format!("{twice:?}"));
        }
    });
}

const BASE: &[u8] = include_bytes!("../../../runtime/tests/data/tiny/model.onnx");

thread_local! {
    /// A small base, for adapters of strangers.
    static OPENED: Base = {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("model.onnx"), BASE).unwrap();
        Base::open(folder.path(), Verify::Graph).unwrap()
    };
}

/// PEFT folders, as two bytes with the length of the settings, these, and the tensors: an adapter that is read has finite
/// values.
pub fn peft(bytes: &[u8]) {
    let Some((len, rest)) = bytes.split_first_chunk::<2>() else { return };
    let (config, tensors) = rest.split_at(rest.len().min(usize::from(u16::from_le_bytes(*len))));
    in_folder(|folder| {
        fs::write(folder.join("adapter_config.json"), config).unwrap();
        fs::write(folder.join("adapter_model.safetensors"), tensors).unwrap();
        OPENED.with(|base| {
            let Ok((adapter, _)) = Adapter::from_peft(base, folder) else { return };
            assert!(adapter.tensors().all(|(_, values)| values.iter().all(|value| value.is_finite())));
            assert!(adapter.parameter_count() > 0);
        });
    });
}

/// Records of this base, as a byte that chooses the version and what follows the base's identity: an adapter that is read has
/// finite values, and is the same after it was written.
pub fn stranger(bytes: &[u8]) {
    let Some((version, rest)) = bytes.split_first() else { return };
    OPENED.with(|base| {
        let version = 1 + version % record::VERSION;
        let mut bytes = [&record::MAGIC[..], &[version], &BaseId::from(base.fingerprint()).0, rest].concat();
        // No mutation finds a checksum.
        let checksum = *blake3::hash(&bytes).as_bytes();
        bytes.extend_from_slice(&checksum[..record::CHECKSUM_BYTES]);
        let Ok(adapter) = Adapter::from_record(base, &bytes) else { return };
        assert!(adapter.tensors().all(|(_, values)| values.iter().all(|value| value.is_finite())));
        assert!(adapter.parameter_count() > 0);
        let Ok(again) = adapter.to_record(Dtype::F32) else { return };
        assert_eq!(Adapter::from_record(base, &again).expect("it was just written"), adapter);
    });
}

const SEALED: &[u8] = include_bytes!("../../../runtime/format/tests/golden/v1.sealed");

/// Encrypted files of a store, as they are and as changes to a whole one: nothing but the whole one is read.
pub fn sealed_file(bytes: &[u8]) {
    in_folder(|folder| {
        let store = AdapterStore::open(folder.join("store")).unwrap();
        let key: [u8; StoreKey::BYTES] = std::array::from_fn(|i| i as u8);
        let keyed = store.clone().with_key(StoreKey::new(key));
        let mut changed = SEALED.to_vec();
        changed.resize(SEALED.len().max(bytes.len()), 0);
        changed.iter_mut().zip(bytes).for_each(|(b, change)| *b ^= change);
        let cut = changed.len() - usize::from(bytes.last().copied().unwrap_or_default()).min(changed.len());
        for file in [bytes, &changed, &changed[..cut]] {
            fs::write(store.path_of("anna").unwrap(), file).unwrap();
            assert_eq!(keyed.load("anna").is_ok(), file == SEALED);
            assert!(!file.starts_with(b"INLX") || store.load("anna").is_err(), "read without the key");
            fs::write(store.dir().join("anna.state"), file).unwrap();
            assert!(keyed.load_state("anna").is_err(), "a record in the place of a state");
        }
    });
}

/// Exported files, as they are and with a valid checksum: points that are accepted obey their rules.
pub fn base(bytes: &[u8]) {
    in_folder(|folder| {
        // Small enough to be left by many mutations.
        fs::write(folder.join("model.onnx.data"), [0; 64]).unwrap();
        for file in [bytes, &sealed(bytes)] {
            fs::write(folder.join("model.onnx"), file).unwrap();
            let Ok(base) = Base::open(folder, Verify::Full).or_else(|_| Base::open(folder, Verify::Graph)) else {
                continue;
            };
            inlay_format::points::check_all(base.points()).expect("they were checked");
            assert!(base.inputs().iter().all(|port| port.shape.len() <= inlay_runtime::onnx::MAX_RANK));
            let _ =
                Adapter::new(&base, &inlay_runtime::AdapterOptions::lora(1)).map(|adapter| adapter.parameter_count());
        }
    });
}

/// `bytes` with the checksum that they should have, where they state one.
fn sealed(bytes: &[u8]) -> Vec<u8> {
    let mut file = bytes.to_vec();
    let entry = [metadata::CHECKSUM_KEY.as_bytes(), &[0x12, metadata::HEX_DIGITS as u8]].concat();
    if let Some(at) = file.windows(entry.len()).rposition(|window| window == entry) {
        let value = at + entry.len()..at + entry.len() + metadata::HEX_DIGITS;
        if let Some(checksum) = metadata::checksum(&file, value.clone()) {
            file[value].copy_from_slice(checksum.to_string().as_bytes());
        }
    }
    file
}
