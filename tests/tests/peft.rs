//! PEFT folders as PEFT itself saved them: the adapters of the golden runs, read and written again.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use inlay_format::points::{LORA, Point, PointOp};
use inlay_runtime::peft::{self, CONFIG_FILE, Prefix, TENSORS_FILE};
use safetensors::SafeTensors;

/// Values and shape by key.
type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

fn folders() -> Vec<PathBuf> {
    let golden = conformance::root().join("tests/golden");
    let mut folders: Vec<PathBuf> =
        fs::read_dir(golden).unwrap().map(|run| run.unwrap().path().join("adapter")).filter(|f| f.is_dir()).collect();
    folders.sort();
    assert!(folders.len() >= 3, "golden runs are missing: {folders:?}");
    folders
}

fn tensors(folder: &Path) -> Tensors {
    let bytes = fs::read(folder.join(TENSORS_FILE)).unwrap();
    let parsed = SafeTensors::deserialize(&bytes).unwrap();
    let values = |data: &[u8]| data.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
    parsed.iter().map(|(key, view)| (key.to_owned(), (view.shape().to_vec(), values(view.data())))).collect()
}

/// The insertion points that tensors of these shapes belong to.
fn points(tensors: &Tensors) -> Vec<Point<String>> {
    let modules = tensors.keys().filter_map(|key| key.strip_suffix(".lora_A.weight"));
    let point = |module: &str| {
        let (a, b) = (&tensors[&format!("{module}.lora_A.weight")].0, &tensors[&format!("{module}.lora_B.weight")].0);
        let path = module.strip_prefix("base_model.model.").unwrap();
        Point {
            path: path.into(),
            op: if a.len() == 2 { PointOp::Linear } else { PointOp::Conv },
            node: path.into(),
            weight: path.into(),
            d_in: a[1] as u32,
            d_out: b[0] as u32,
            kernel: a[2..].iter().map(|extent| *extent as u32).collect(),
            kinds: [LORA.to_owned()].into_iter().collect(),
            row_scale: None,
            feedforward: false,
        }
    };
    modules.map(point).collect()
}

#[test]
fn every_golden_adapter_is_read_in_the_layout_of_the_file() {
    let mut convolutions = 0;
    for folder in folders() {
        let tensors = tensors(&folder);
        let points = points(&tensors);
        let (adapter, prefix) = peft::read(&folder, &points, &|_| None).unwrap_or_else(|e| panic!("{folder:?}: {e}"));
        assert_eq!(prefix, Prefix::None);
        assert_eq!(adapter.points.len(), points.len(), "{folder:?}");
        let rank = usize::from(adapter.rank);
        for point in &points {
            let read = adapter.points.iter().find(|read| read.path == point.path).unwrap();
            let saved = |half: &str| &tensors[&format!("base_model.model.{}.{half}.weight", point.path)].1;
            let (a, b) = (saved("lora_A"), saved("lora_B"));
            if point.op == PointOp::Conv {
                convolutions += 1;
                assert_eq!((&read.a, &read.b), (a, b), "{folder:?} {}", point.path);
                continue;
            }
            let (d_in, d_out) = (point.d_in as usize, point.d_out as usize);
            for r in 0..rank {
                let column: Vec<f32> = (0..d_in).map(|i| read.a[i * rank + r]).collect();
                assert_eq!(column, a[r * d_in..][..d_in], "{folder:?} {}.lora_A row {r}", point.path);
                let column: Vec<f32> = (0..d_out).map(|o| b[o * rank + r]).collect();
                assert_eq!(read.b[r * d_out..][..d_out], column, "{folder:?} {}.lora_B column {r}", point.path);
            }
        }
    }
    assert!(convolutions > 0, "no golden adapter has a convolution");
}

#[test]
fn every_golden_adapter_is_written_as_peft_wrote_it() {
    for folder in folders() {
        let saved = tensors(&folder);
        let points = points(&saved);
        let (adapter, _) = peft::read(&folder, &points, &|_| None).unwrap();
        let written = tempfile::tempdir().unwrap();
        peft::write(written.path(), &adapter, &points, &|_| None).unwrap();
        assert_eq!(tensors(written.path()), saved, "{folder:?}");

        let settings = |folder: &Path| -> serde_json::Value {
            serde_json::from_slice(&fs::read(folder.join(CONFIG_FILE)).unwrap()).unwrap()
        };
        let (ours, theirs) = (settings(written.path()), settings(&folder));
        for (name, value) in ours.as_object().unwrap() {
            // PEFT's list of targets is as the user wrote it, ours names every module.
            if name != "target_modules" {
                assert_eq!(value, &theirs[name], "{folder:?}: {name}");
            }
        }
    }
}
