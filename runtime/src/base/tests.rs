use std::fs;
use std::io::Write;

use inlay_format::metadata::{CHECKSUM_KEY, FINGERPRINT_KEY, FORMAT_KEY, HEX_DIGITS, POINTS_KEY};
use tempfile::TempDir;

use super::*;

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures");

fn field(tag: u8, bytes: &[u8]) -> Vec<u8> {
    let mut out = vec![tag];
    let mut len = bytes.len();
    while len >= 0x80 {
        out.push((len & 0x7f) as u8 | 0x80);
        len >>= 7;
    }
    out.push(len as u8);
    out.extend(bytes);
    out
}

fn entry(key: &str, value: &str) -> Vec<u8> {
    field(0x72, &[field(0x0a, key.as_bytes()), field(0x12, value.as_bytes())].concat())
}

/// A file of an exporter with the metadata of an exported one.
fn exported(onnx: &[u8], data: &[u8]) -> Vec<u8> {
    let model = onnx::read(onnx).unwrap();
    let fingerprint = Fingerprint::of(&onnx[model.graph_range], blake3::hash(data).as_bytes());
    let mut file = onnx.to_vec();
    file.extend(entry(FORMAT_KEY, metadata::FORMAT_VERSION));
    file.extend(entry(POINTS_KEY, "[]"));
    file.extend(entry(FINGERPRINT_KEY, &fingerprint.to_string()));
    file.extend(entry(CHECKSUM_KEY, &"0".repeat(HEX_DIGITS)));
    let at = file.len() - HEX_DIGITS..file.len();
    let checksum = metadata::checksum(&file, at.clone()).unwrap().to_string();
    file[at].copy_from_slice(checksum.as_bytes());
    file
}

/// An exported folder with external data.
fn folder() -> (TempDir, Vec<u8>, Vec<u8>) {
    let read = |name: &str| fs::read(format!("{FIXTURES}/{name}")).unwrap();
    let data = read("cnn_dyn23.onnx.data");
    let onnx = exported(&read("cnn_dyn23.onnx"), &data);
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join(MODEL_FILE), &onnx).unwrap();
    fs::write(folder.path().join("cnn_dyn23.onnx.data"), &data).unwrap();
    (folder, onnx, data)
}

#[test]
fn opens_folders_files_and_ranges() {
    let (folder, onnx, data) = folder();
    let base = Base::open(folder.path(), Verify::Full).unwrap();
    assert_eq!(base.inputs()[0].name, "x");
    assert!(base.parameters().is_empty() && base.points().is_empty());
    let file = Base::open(folder.path().join(MODEL_FILE), Verify::Graph).unwrap();
    assert_eq!(file.fingerprint(), base.fingerprint());

    // Both files one after the other in a container, the data at a multiple of 4 bytes.
    let mut container = tempfile::tempfile().unwrap();
    container.write_all(b"head").unwrap();
    container.write_all(&data).unwrap();
    container.write_all(&onnx).unwrap();
    let (data_len, onnx_len) = (data.len() as u64, onnx.len() as u64);
    let ranges = |onnx_len: u64, data_len: u64| {
        Base::from_file_ranges((&container, 4 + data.len() as u64, onnx_len), (&container, 4, data_len), Verify::Full)
    };
    assert_eq!(ranges(onnx_len, data_len).unwrap().fingerprint(), base.fingerprint());
    assert!(matches!(ranges(onnx_len + 1, data_len), Err(LoadError::Io { .. })));
    assert!(matches!(ranges(u64::MAX, data_len), Err(LoadError::Io { .. })));
    assert!(ranges(onnx_len, data_len - 4).is_err());
    let alone = Base::from_file_range(&container, 4 + data_len, onnx_len, Verify::Full);
    assert!(matches!(alone, Err(LoadError::Tensor { source: TensorError::NoData { .. }, .. })));

    // Everything inline.
    let onnx = exported(&fs::read(format!("{FIXTURES}/mlp_ts13.onnx")).unwrap(), b"");
    let mut single = tempfile::tempfile().unwrap();
    single.write_all(b"odd").unwrap();
    single.write_all(&onnx).unwrap();
    Base::from_file_range(&single, 3, onnx.len() as u64, Verify::Full).unwrap();
}

#[test]
fn models_that_were_not_exported_say_what_to_do() {
    let error = Base::open(format!("{FIXTURES}/mlp_ts13.onnx"), Verify::Graph).unwrap_err();
    assert!(matches!(error, LoadError::NotExported { .. }));
    assert!(error.to_string().contains("run `converter export"), "{error}");
    let folder = tempfile::tempdir().unwrap();
    assert!(matches!(Base::open(folder.path(), Verify::Graph), Err(LoadError::Io { .. })));
    fs::write(folder.path().join(MODEL_FILE), "# not a model").unwrap();
    assert!(matches!(Base::open(folder.path(), Verify::Graph), Err(LoadError::NotOnnx { .. })));
    fs::create_dir(folder.path().join("dir.onnx")).unwrap();
    assert!(Base::open(folder.path().join("dir.onnx"), Verify::Graph).is_err());
}

#[test]
fn every_altered_bit_of_the_graph_is_noticed() {
    let (folder, onnx, _) = folder();
    let path = folder.path().join(MODEL_FILE);
    let mut file = onnx.clone();
    for at in (0..file.len()).step_by(61).chain(file.len() - 300..file.len()) {
        file[at] ^= 1 << (at % 8);
        fs::write(&path, &file).unwrap();
        assert!(Base::open(&path, Verify::Graph).is_err(), "byte {at}");
        file[at] = onnx[at];
    }
    for len in (0..file.len()).step_by(997) {
        fs::write(&path, &file[..len]).unwrap();
        assert!(Base::open(&path, Verify::Graph).is_err(), "cut to {len} bytes");
    }
}

#[test]
fn altered_weights_are_noticed_when_asked() {
    let (folder, _, mut data) = folder();
    let path = folder.path().join("cnn_dyn23.onnx.data");
    let middle = data.len() / 2;
    data[middle] ^= 4;
    fs::write(&path, &data).unwrap();
    Base::open(folder.path(), Verify::Graph).unwrap();
    assert!(matches!(Base::open(folder.path(), Verify::Full), Err(LoadError::Fingerprint { .. })));
    // Cut short: tensors lie beyond the end, which opening always notices.
    fs::write(&path, &data[..100]).unwrap();
    let error = Base::open(folder.path(), Verify::Graph).unwrap_err();
    assert!(matches!(error, LoadError::Tensor { source: TensorError::Range { .. }, .. }), "{error}");
    fs::remove_file(&path).unwrap();
    assert!(matches!(Base::open(folder.path(), Verify::Graph), Err(LoadError::Io { .. })));
}

#[test]
fn external_data_stays_in_its_folder() {
    let (folder, _, data) = folder();
    let original = fs::read(format!("{FIXTURES}/cnn_dyn23.onnx")).unwrap();
    let name = b"cnn_dyn23.onnx.data";
    // A path of the same length, in every place.
    for bad in [b"../yn23/onnx/data..", b"/nn_dyn23.onnx.data", b"C:n_dyn23.onnx.data", b"a\\n_dyn23.onnx.data"] {
        let mut altered = original.clone();
        for at in 0..altered.len() - name.len() {
            if &altered[at..at + name.len()] == name {
                altered[at..at + name.len()].copy_from_slice(bad);
            }
        }
        assert_ne!(altered, original);
        fs::write(folder.path().join(MODEL_FILE), exported(&altered, &data)).unwrap();
        let error = Base::open(folder.path(), Verify::Graph).unwrap_err();
        assert!(matches!(error, LoadError::Tensor { source: TensorError::Location { .. }, .. }), "{error}");
    }
}

#[test]
fn other_versions_are_refused_by_name() {
    let onnx = fs::read(format!("{FIXTURES}/mlp_ts13.onnx")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let open = |file: Vec<u8>| {
        fs::write(folder.path().join(MODEL_FILE), file).unwrap();
        Base::open(folder.path(), Verify::Full).unwrap_err()
    };
    let error = open([onnx.clone(), entry(FORMAT_KEY, "7")].concat());
    assert!(matches!(&error, LoadError::Version { found, .. } if found == "7"), "{error}");
    let error = open([onnx, entry(FORMAT_KEY, "1")].concat());
    assert!(matches!(&error, LoadError::Metadata { key: CHECKSUM_KEY, .. }), "{error}");
}
