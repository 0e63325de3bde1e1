//! Adapter kinds in the exported file: where they go, what they are called, and that they change nothing until they are fed.
//! That the exported model still computes what its source does is checked by every export.

use std::path::{Path, PathBuf};

use inlay_converter::error::Error;
use inlay_converter::export::{Options, export};
use inlay_converter::inspect::inspect;
use inlay_converter::kinds::{Activation, Kind, Kinds, Places};
use inlay_converter::quantize::Quant;
use inlay_runtime::{Base, Dim, Verify};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures")
}

fn try_export(name: &str, out: &Path, quant: Quant, kinds: Kinds) -> Result<Base, Error> {
    let options = Options {
        model: fixtures().join(format!("{name}.onnx")),
        out: out.to_owned(),
        quant: quant.into(),
        targets: Vec::new(),
        kinds,
        samples: Some(fixtures().join(format!("{name}.inputs.npz"))),
        max_error: None,
        report: None,
        calibrate: None,
        basis: None,
        no_kv_cache: false,
    };
    export(&options, &|_| ())?;
    Ok(Base::open(out, Verify::Full).unwrap())
}

fn of(chosen: &[Kind]) -> Kinds {
    Kinds { chosen: chosen.to_vec(), ..Kinds::default() }
}

/// The paths of the points that offer a kind, sorted.
fn offering(base: &Base, kind: Kind) -> Vec<String> {
    let mut paths: Vec<String> =
        base.points().iter().filter(|p| p.offers(kind.name())).map(|p| p.path.clone()).collect();
    paths.sort();
    paths
}

fn refused(name: &str, kinds: Kinds) -> String {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let error = try_export(name, &out, Quant::None, kinds).unwrap_err().to_string();
    assert!(!out.exists(), "nothing is written");
    error
}

#[test]
fn every_exporter_s_encoder_carries_every_kind() {
    let houlsby = |chosen: &[Kind]| Kinds { bottleneck_places: Places::Houlsby, ..of(chosen) };
    for name in [
        "encoder_ts13",
        "encoder_ts17_sdpa",
        "encoder_ts20",
        "encoder_dyn18",
        "encoder_dyn20_tanh",
        "encoder_dyn21_sdpa",
        "encoder_dyn23",
        "encoder_dyn23_sdpa",
    ] {
        let folder = tempfile::tempdir().unwrap();
        let base = try_export(name, &folder.path().join("out"), Quant::Int8, houlsby(&Kind::ALL))
            .unwrap_or_else(|e| panic!("{name}: {e}"));
        let layers = |suffixes: &[&str]| {
            let paths = (0..2).flat_map(|i| suffixes.iter().map(move |s| format!("bert.encoder.layer.{i}.{s}")));
            let mut paths: Vec<String> = paths.collect();
            paths.sort();
            paths
        };
        let ia3 = layers(&["attention.self.key", "attention.self.value", "output.dense"]);
        assert_eq!(offering(&base, Kind::Ia3), ia3, "{name}");
        let bottlenecks = layers(&["attention.output.dense", "output.dense"]);
        assert_eq!(offering(&base, Kind::Bottleneck), bottlenecks, "{name}");
        assert_eq!(offering(&base, Kind::Prompt), ["bert.embeddings.word_embeddings"], "{name}");
        assert_eq!(offering(&base, Kind::Lora).len(), 13, "{name}");
        let feedforward: Vec<bool> = base.points().iter().filter(|p| p.offers("ia3")).map(|p| p.feedforward).collect();
        assert_eq!(feedforward.iter().filter(|f| **f).count(), 2, "{name}");
    }
}

#[test]
fn parameters_have_the_documented_names_and_shapes() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let base = try_export("encoder_ts17", &out, Quant::None, of(&[Kind::Ia3, Kind::Bottleneck, Kind::Prompt])).unwrap();
    let shape = |name: &str| {
        let port = base.parameters().iter().find(|p| p.name == name).unwrap_or_else(|| panic!("no {name}"));
        let dim = |d: &Dim| match d {
            Dim::Fixed(n) => n.to_string(),
            Dim::Symbol(s) => s.clone(),
        };
        port.shape.iter().map(dim).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(shape("bert.encoder.layer.0.attention.self.key.ia3_l"), "32");
    assert_eq!(shape("bert.encoder.layer.1.output.dense.ia3_l"), "64", "a feed-forward point scales inputs");
    let point = "bert.encoder.layer.1.output.dense";
    let width = format!("{point}.width");
    assert_eq!(shape(&format!("{point}.bottleneck_down")), format!("32 {width}"));
    assert_eq!(shape(&format!("{point}.bottleneck_down_bias")), width);
    assert_eq!(shape(&format!("{point}.bottleneck_up")), format!("{width} 32"));
    assert_eq!(shape(&format!("{point}.bottleneck_up_bias")), "32");
    let words = "bert.embeddings.word_embeddings";
    assert_eq!(shape(&format!("{words}.prompt_embeddings")), format!("{words}.length 32"));
    assert!(!base.parameters().iter().any(|p| p.name.ends_with("lora_A")), "lora was not asked for");

    let inspection = inspect(&out).unwrap();
    let at = |path: &str| inspection.points.iter().find(|p| p.path == path).unwrap();
    let kinds: Vec<(&str, u64, u64)> =
        at(point).kinds.iter().map(|k| (k.kind.as_str(), k.parameters, k.parameters_per_size)).collect();
    assert_eq!(kinds, [("ia3", 64, 0), ("bottleneck", 32, 65)]);
    let text = inspection.text();
    assert!(text.contains("ia3 128 B, bottleneck 130 B/width + 64 B") && text.contains("prompt 64 B/length"), "{text}");
}

#[test]
fn places_can_be_named() {
    let folder = tempfile::tempdir().unwrap();
    let kinds = Kinds {
        ia3_targets: vec!["*.query".into()],
        ia3_feedforward: vec!["*output.dense".into()],
        bottleneck_targets: vec!["classifier".into()],
        bottleneck_activation: Activation::Gelu,
        ..of(&[Kind::Ia3, Kind::Bottleneck])
    };
    let base = try_export("encoder_dyn18", &folder.path().join("out"), Quant::None, kinds).unwrap();
    assert_eq!(offering(&base, Kind::Ia3).len(), 6);
    assert_eq!(base.points().iter().filter(|p| p.feedforward).count(), 4);
    assert_eq!(offering(&base, Kind::Bottleneck), ["classifier"]);
}

#[test]
fn what_has_no_place_is_refused() {
    let text = refused("mlp_ts13", of(&[Kind::Ia3]));
    assert!(text.contains("--ia3-targets"), "{text}");
    let text = refused("mlp_ts13", of(&[Kind::Bottleneck]));
    assert!(text.contains("--bottleneck-targets"), "{text}");
    let text = refused("mlp_ts13", of(&[Kind::Prompt]));
    assert!(text.contains("prompt tuning") && text.contains("leave prompt out"), "{text}");
    let text = refused("cnn_ts13", Kinds { ia3_targets: vec!["conv*".into()], ..of(&[Kind::Ia3]) });
    assert!(text.contains("\"conv*\"") && text.contains("no linear"), "{text}");
    let text = refused("encoder_ts13", Kinds { ia3_targets: vec!["nose".into()], ..of(&[Kind::Ia3]) });
    assert!(text.contains("\"nose\""), "{text}");
}
