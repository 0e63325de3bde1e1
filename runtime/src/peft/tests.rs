use inlay_format::points;
use tempfile::TempDir;

use super::*;

const NO_SCALES: Factors<'static> = &|_| None;

fn linear(path: &str, d_in: u32, d_out: u32) -> Point<String> {
    Point {
        path: path.into(),
        op: PointOp::Linear,
        node: format!("{path}.node"),
        weight: format!("{path}.weight"),
        d_in,
        d_out,
        kernel: heapless_vec(&[]),
        kinds: [LORA.to_owned()].into_iter().collect(),
        row_scale: None,
        input_scale: None,
        feedforward: false,
    }
}

fn conv(path: &str, c_in: u32, c_out: u32, kernel: &[u32]) -> Point<String> {
    Point { op: PointOp::Conv, kernel: heapless_vec(kernel), ..linear(path, c_in, c_out) }
}

fn heapless_vec<V: FromIterator<u32>>(values: &[u32]) -> V {
    values.iter().copied().collect()
}

/// Tensors by key, as PEFT would save them.
struct Saved {
    folder: TempDir,
    tensors: BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>,
    settings: serde_json::Value,
}

impl Saved {
    fn new() -> Self {
        let settings = serde_json::json!({"peft_type": "LORA", "r": 2, "lora_alpha": 6, "use_rslora": false});
        Self { folder: tempfile::tempdir().unwrap(), tensors: BTreeMap::new(), settings }
    }

    /// Adds `key` with the values 1, 2, 3, ... times `unit`.
    fn tensor(mut self, key: &str, shape: &[usize], unit: f32) -> Self {
        let values = (1..=shape.iter().product()).map(|i| i as f32 * unit);
        let bytes = values.flat_map(f32::to_le_bytes).collect();
        self.tensors.insert(key.into(), (Dtype::F32, shape.to_vec(), bytes));
        self
    }

    fn module(self, module: &str, a: &[usize], b: &[usize]) -> Self {
        self.tensor(&format!("base_model.model.{module}.lora_A.weight"), a, 1.0).tensor(
            &format!("base_model.model.{module}.lora_B.weight"),
            b,
            0.5,
        )
    }

    fn save(&self) -> &Path {
        let views = self
            .tensors
            .iter()
            .map(|(key, (dtype, shape, bytes))| (key, TensorView::new(*dtype, shape.clone(), bytes).unwrap()));
        fs::write(self.folder.path().join(TENSORS_FILE), safetensors::serialize(views, None).unwrap()).unwrap();
        fs::write(self.folder.path().join(CONFIG_FILE), self.settings.to_string()).unwrap();
        self.folder.path()
    }

    fn read(&self, points: &[Point<String>]) -> Result<(PeftLora, Prefix), PeftError> {
        read(self.save(), points, NO_SCALES)
    }
}

#[test]
fn linears_are_transposed() {
    let saved = Saved::new().module("fc1", &[2, 3], &[4, 2]);
    let (adapter, prefix) = saved.read(&[linear("fc1", 3, 4), linear("fc2", 4, 5)]).unwrap();
    assert_eq!(prefix, Prefix::None);
    assert!(!adapter.rslora && adapter.saved.is_empty());
    let [LoraTensors { path, rank: 2, alpha: 6.0, a, b }] = adapter.points.as_slice() else { panic!("{adapter:?}") };
    assert_eq!(path, "fc1");
    // PEFT's A is [[1, 2, 3], [4, 5, 6]], its B [[0.5, 1], [1.5, 2], [2.5, 3], [3.5, 4]].
    assert_eq!(*a, [1.0, 4.0, 2.0, 5.0, 3.0, 6.0]);
    assert_eq!(*b, [0.5, 1.5, 2.5, 3.5, 1.0, 2.0, 3.0, 4.0]);
}

#[test]
fn convolutions_keep_their_layout_and_take_the_folded_factor() {
    let saved = Saved::new().module("conv", &[2, 3, 5], &[4, 2, 1]);
    let mut point = conv("conv", 3, 4, &[5]);
    let plain = saved.read(&[point.clone()]).unwrap().0;
    assert_eq!(plain.points[0].a, (1..=30).map(|i| i as f32).collect::<Vec<_>>());
    assert_eq!(plain.points[0].b, [0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0]);

    point.row_scale = Some("conv.row_scale".into());
    let factors = |name: &str| (name == "conv.row_scale").then(|| vec![2.0, -1.0, 0.5, 10.0]);
    let points = [point];
    let (scaled, _) = read(saved.save(), &points, &factors).unwrap();
    assert_eq!(scaled.points[0].a, plain.points[0].a);
    assert_eq!(scaled.points[0].b, [1.0, 2.0, -1.5, -2.0, 1.25, 1.5, 35.0, 40.0]);

    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), &scaled, &points, &factors).unwrap();
    assert_eq!(read(folder.path(), &points, &factors).unwrap().0, scaled);
    let unscaled = read(folder.path(), &[conv("conv", 3, 4, &[5])], NO_SCALES).unwrap().0;
    assert_eq!(unscaled, plain);

    let bad: [Factors<'_>; 3] = [NO_SCALES, &|_| Some(vec![1.0; 3]), &|_| Some(vec![f32::INFINITY; 4])];
    for factors in bad {
        assert!(matches!(read(saved.save(), &points, factors), Err(PeftError::Factor { .. })));
    }
    let zero = write(folder.path(), &scaled, &points, &|_| Some(vec![0.0; 4])).unwrap_err();
    assert!(matches!(zero, PeftError::Factor { .. }), "{zero}");
    assert_eq!(read(folder.path(), &points, &factors).unwrap().0, scaled, "a refused export changed the folder");
}

#[test]
fn linears_with_a_folded_factor() {
    let saved = Saved::new().module("fc", &[2, 1], &[2, 2]);
    let mut point = linear("fc", 1, 2);
    point.row_scale = Some("s".into());
    let (adapter, _) = read(saved.save(), &[point], &|_| Some(vec![10.0, 100.0])).unwrap();
    // PEFT's B [[0.5, 1], [1.5, 2]], its rows scaled, then transposed.
    assert_eq!(adapter.points[0].b, [5.0, 150.0, 10.0, 200.0]);
}

#[test]
fn calibrated_linears_take_factors_of_inputs_and_outputs() {
    let saved = Saved::new().module("fc", &[2, 3], &[4, 2]);
    let plain = [linear("fc", 3, 4)];
    let original = saved.read(&plain).unwrap().0;
    let mut point = linear("fc", 3, 4);
    (point.input_scale, point.row_scale) = (Some("in".into()), Some("out".into()));
    let points = [point];
    let factors = |name: &str| match name {
        "in" => Some(vec![2.0, 4.0, 0.5]),
        "out" => Some(vec![1.0, 10.0, 0.25, 1.0]),
        _ => None,
    };
    let scaled = read(saved.save(), &points, &factors).unwrap().0;
    // A is [d_in, r] here, 1 to 6 in PEFT's order [r, d_in]; B is [r, d_out].
    assert_eq!(scaled.points[0].a, [2.0, 8.0, 8.0, 20.0, 1.5, 3.0]);
    assert_eq!(scaled.points[0].b, [0.5, 15.0, 0.625, 3.5, 1.0, 20.0, 0.75, 4.0]);
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), &scaled, &points, &factors).unwrap();
    assert_eq!(read(folder.path(), &plain, NO_SCALES).unwrap().0, original);
    let bad: [Factors<'_>; 3] =
        [NO_SCALES, &|_| Some(vec![1.0; 4]), &|name| Some(vec![f32::INFINITY; if name == "in" { 3 } else { 4 }])];
    for factors in bad {
        assert!(matches!(read(saved.save(), &points, factors), Err(PeftError::Factor { .. })));
    }
}

#[test]
fn narrow_dtypes_are_widened() {
    let mut saved = Saved::new().module("fc1", &[2, 3], &[4, 2]);
    for (dtype, bytes) in [
        (Dtype::F16, [1.5, -2.0, 0.25, 0.0, 3.0, 1.0].map(|v| f16::from_f32(v).to_le_bytes())),
        (Dtype::BF16, [1.5, -2.0, 0.25, 0.0, 3.0, 1.0].map(|v| bf16::from_f32(v).to_le_bytes())),
    ] {
        let key = "base_model.model.fc1.lora_A.weight";
        saved.tensors.insert(key.into(), (dtype, vec![2, 3], bytes.concat()));
        let (adapter, _) = saved.read(&[linear("fc1", 3, 4)]).unwrap();
        assert_eq!(adapter.points[0].a, [1.5, 0.0, -2.0, 3.0, 0.25, 1.0], "{dtype:?}");
    }
    let key = "base_model.model.fc1.lora_A.weight";
    saved.tensors.insert(key.into(), (Dtype::I8, vec![2, 3], vec![0; 6]));
    assert!(matches!(saved.read(&[linear("fc1", 3, 4)]), Err(PeftError::Dtype { .. })));
    let infinite = [f16::INFINITY; 6].map(|v| v.to_le_bytes()).concat();
    saved.tensors.insert(key.into(), (Dtype::F16, vec![2, 3], infinite));
    assert!(matches!(saved.read(&[linear("fc1", 3, 4)]), Err(PeftError::NotFinite { .. })));
}

#[test]
fn a_common_prefix_is_returned() {
    let points = [linear("encoder.q", 3, 4), linear("encoder.v", 3, 4)];
    let with = |prefix: &str| {
        Saved::new().module(&format!("{prefix}q"), &[2, 3], &[4, 2]).module(&format!("{prefix}v"), &[2, 3], &[4, 2])
    };
    for (modules, expected) in [
        ("encoder.", Prefix::None),
        ("", Prefix::Added("encoder".into())),
        ("model.encoder.", Prefix::Removed("model".into())),
    ] {
        let (adapter, prefix) = with(modules).read(&points).unwrap();
        assert_eq!(prefix, expected);
        let paths: Vec<&str> = adapter.points.iter().map(|point| point.path.as_str()).collect();
        assert_eq!(paths, ["encoder.q", "encoder.v"]);
    }
    assert!(matches!(with("decoder.").read(&points), Err(PeftError::NoMatch { .. })));
}

#[test]
fn points_that_do_not_offer_lora_do_not_match() {
    let mut point = linear("fc1", 3, 4);
    point.kinds.clear();
    let refused = Saved::new().module("fc1", &[2, 3], &[4, 2]).read(&[point]).unwrap_err();
    assert!(matches!(refused, PeftError::NoMatch { .. }), "{refused}");
}

#[test]
fn nothing_is_left_over_in_silence() {
    let points = [linear("fc1", 3, 4), linear("fc2", 3, 4)];
    let whole = || Saved::new().module("fc1", &[2, 3], &[4, 2]);
    for key in [
        "base_model.model.head.weight",
        "base_model.model.fc1.lora_magnitude_vector",
        "base_model.model.fc1.lora_A.default.weight",
        "base_model.model.fc1.base_layer.bias",
    ] {
        let refused = whole().tensor(key, &[2], 1.0).read(&points).unwrap_err();
        assert!(matches!(refused, PeftError::OtherTensors { .. }) && refused.to_string().contains(key), "{refused}");
    }
    let refused = whole().tensor("base_model.model.emb.lora_embedding_A", &[2, 9], 1.0).read(&points).unwrap_err();
    assert!(matches!(&refused, PeftError::HalfAModule { module, .. } if module == "emb"), "{refused}");
    for half in ["A", "B"] {
        let key = format!("base_model.model.fc2.lora_{half}.weight");
        let refused = whole().tensor(&key, &[2, 3], 1.0).read(&points).unwrap_err();
        assert!(matches!(&refused, PeftError::HalfAModule { module, .. } if module == "fc2"), "{refused}");
    }
    let twice = whole().tensor("fc1.lora_A.weight", &[2, 3], 1.0).read(&points).unwrap_err();
    assert!(matches!(twice, PeftError::SameModule { .. }), "{twice}");
    assert!(matches!(Saved::new().read(&points), Err(PeftError::Empty)));
}

#[test]
fn wrong_shapes_are_refused() {
    for (a, b) in
        [(&[3, 2][..], &[4, 2][..]), (&[2, 4], &[4, 2]), (&[1, 3], &[4, 1]), (&[2, 3], &[2, 4]), (&[2, 3, 1], &[4, 2])]
    {
        let refused = Saved::new().module("fc1", a, b).read(&[linear("fc1", 3, 4)]).unwrap_err();
        assert!(matches!(refused, PeftError::Shape { .. }), "{refused}");
    }
    let refused = Saved::new().module("c", &[2, 3], &[4, 2]).read(&[conv("c", 3, 4, &[1])]).unwrap_err();
    assert!(matches!(refused, PeftError::Shape { .. }), "{refused}");
}

#[test]
fn damaged_folders_are_refused() {
    let points = [linear("fc1", 3, 4)];
    let saved = Saved::new().module("fc1", &[2, 3], &[4, 2]);
    let folder = saved.save();
    let tensors = fs::read(folder.join(TENSORS_FILE)).unwrap();
    for damaged in [&tensors[..tensors.len() - 1], &tensors[..20], &[], &[&tensors[..], &[0]].concat(), &[0xFF; 64]] {
        fs::write(folder.join(TENSORS_FILE), damaged).unwrap();
        assert!(matches!(read(folder, &points, NO_SCALES), Err(PeftError::Tensors(_))));
    }
    for missing in [TENSORS_FILE, CONFIG_FILE] {
        saved.save();
        fs::remove_file(folder.join(missing)).unwrap();
        let refused = read(folder, &points, NO_SCALES).unwrap_err();
        assert!(matches!(refused, PeftError::NotAFolder { missing: named, .. } if named == missing), "{refused}");
    }
}

#[test]
fn what_is_written_is_read_back() {
    let points = [linear("head", 5, 3), conv("block.conv", 2, 4, &[3, 2])];
    let counted = |len: usize| (0..len).map(|i| i as f32 - 3.5).collect::<Vec<_>>();
    let tensors = |point: &Point<String>| LoraTensors {
        path: point.path.clone(),
        rank: 3,
        alpha: 1.5,
        a: counted(point.lora_a_shape(3).iter().product()),
        b: counted(point.lora_b_shape(3).iter().product()),
    };
    let mut adapter = PeftLora { rslora: true, points: points.iter().rev().map(tensors).collect(), saved: Vec::new() };
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path().join("new/folder");
    write(&folder, &adapter, &points, NO_SCALES).unwrap();
    assert_eq!(read(&folder, &points, NO_SCALES).unwrap(), (adapter.clone(), Prefix::None));

    let unknown = write(&folder, &adapter, &points[..1], NO_SCALES).unwrap_err();
    assert!(matches!(unknown, PeftError::UnknownPoint { .. }), "{unknown}");
    adapter.points[0].b.pop();
    let short = write(&folder, &adapter, &points, NO_SCALES).unwrap_err();
    assert!(matches!(short, PeftError::Elements { .. }), "{short}");
    assert!(points::check_all(&points).is_ok());
}

#[test]
fn lookups_are_transposed_and_told_from_linears() {
    let keys = |saved: Saved| {
        saved.tensor("base_model.model.words.lora_embedding_A", &[2, 5], 1.0).tensor(
            "base_model.model.words.lora_embedding_B",
            &[3, 2],
            0.5,
        )
    };
    let table = [Point { op: PointOp::Embedding, ..linear("words", 5, 3) }];
    let (adapter, _) = keys(Saved::new()).read(&table).unwrap();
    let [LoraTensors { a, b, .. }] = adapter.points.as_slice() else { panic!("{adapter:?}") };
    assert_eq!(*a, [1.0, 6.0, 2.0, 7.0, 3.0, 8.0, 4.0, 9.0, 5.0, 10.0]);
    assert_eq!(*b, [0.5, 1.5, 2.5, 1.0, 2.0, 3.0]);
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), &adapter, &table, NO_SCALES).unwrap();
    assert_eq!(read(folder.path(), &table, NO_SCALES).unwrap().0, adapter);
    let refused = keys(Saved::new()).read(&[linear("words", 5, 3)]).unwrap_err();
    assert!(matches!(refused, PeftError::OtherOp { op: PointOp::Linear, .. }), "{refused}");
    let refused = Saved::new().module("words", &[2, 5], &[3, 2]).read(&table).unwrap_err();
    assert!(matches!(refused, PeftError::OtherOp { op: PointOp::Embedding, .. }), "{refused}");
}

#[test]
fn patterns_are_for_the_ends_of_paths() {
    let points = [linear("a.fc", 3, 4), linear("a.xfc", 3, 4), linear("b.1.fc", 3, 4), linear("b.2.fc", 3, 4)];
    let saved = |ranks: [usize; 4], settings: serde_json::Value| {
        let mut saved = Saved::new();
        for (point, rank) in points.iter().zip(ranks) {
            saved = saved.module(&point.path, &[rank, 3], &[4, rank]);
        }
        saved.settings.as_object_mut().unwrap().extend(settings.as_object().unwrap().clone());
        saved
    };
    let of = |saved: Saved| {
        saved
            .read(&points)
            .map(|(lora, _)| lora.points.iter().map(|point| (point.rank, point.alpha)).collect::<Vec<_>>())
    };
    let settings = serde_json::json!({"rank_pattern": {"fc": 3, "b.*fc": 5}, "alpha_pattern": {r"^a\.fc": 1.0, r"b\.[0-9]\.fc": 9}});
    let found = of(saved([3, 2, 5, 3], settings)).unwrap();
    assert_eq!(found, [(3, 1.0), (2, 6.0), (5, 9.0), (3, 9.0)]);
    let refused = of(saved([3, 3, 3, 3], serde_json::json!({"rank_pattern": {"fc": 3}}))).unwrap_err();
    assert!(matches!(&refused, PeftError::Shape { key, .. } if key.contains("xfc")), "{refused}");
    let twice = serde_json::json!({"alpha_pattern": {"fc": 3, "1.fc": 4}});
    let refused = of(saved([2; 4], twice)).unwrap_err();
    assert!(matches!(&refused, PeftError::Setting { name, .. } if name == "alpha_pattern"), "{refused}");
    let bad = serde_json::json!({"rank_pattern": {"(fc": 3}});
    assert!(matches!(of(saved([2; 4], bad)), Err(PeftError::Pattern { .. })));

    let different =
        saved([3, 2, 5, 3], serde_json::json!({"rank_pattern": {"fc": 3, "b.*fc": 5}, "alpha_pattern": {"1.fc": 2.5}}));
    let (adapter, _) = different.read(&points).unwrap();
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), &adapter, &points, NO_SCALES).unwrap();
    assert_eq!(read(folder.path(), &points, NO_SCALES).unwrap().0, adapter);
}

#[test]
fn modules_are_saved_whole_where_the_settings_say_so() {
    let points = [linear("fc1", 3, 4), linear("head", 4, 2)];
    let whole = || Saved::new().module("fc1", &[2, 3], &[4, 2]).tensor("base_model.model.head.weight", &[2, 4], 1.0);
    let with = |mut saved: Saved, name: &str, value: serde_json::Value| {
        saved.settings.as_object_mut().unwrap().insert(name.into(), value);
        saved
    };
    let (adapter, _) = with(whole(), "modules_to_save", serde_json::json!(["head"])).read(&points).unwrap();
    let [SavedTensor { name, shape, values }] = adapter.saved.as_slice() else { panic!("{adapter:?}") };
    assert_eq!((name.as_str(), shape.as_slice(), values.len()), ("head.weight", &[2, 4][..], 8));
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), &adapter, &points, NO_SCALES).unwrap();
    assert_eq!(read(folder.path(), &points, NO_SCALES).unwrap().0, adapter);
    for other in [serde_json::json!(["tail"]), serde_json::json!([])] {
        let refused = with(whole(), "modules_to_save", other).read(&points).unwrap_err();
        assert!(matches!(refused, PeftError::OtherTensors { .. }), "{refused}");
    }
    let square = Saved::new().module("fc1", &[2, 3], &[4, 2]).tensor("base_model.model.head.weight", &[4, 4], 1.0);
    let square = with(square, "modules_to_save", serde_json::json!(["head"]));
    let refused = with(square, "fan_in_fan_out", serde_json::json!(true)).read(&points).unwrap_err();
    assert!(matches!(refused, PeftError::Saved { .. }), "{refused}");
}
