//! What `--adapter-budget` takes on a transformer: kinds that the small base of the unit tests has no place for.

use conformance::adapters::export;
use conformance::root;
use inlay_runtime::Dtype;
use inlay_runtime::adapters::Budget;

#[test]
fn a_transformer_gets_ia3_and_a_basis_where_they_fit() {
    let folder = tempfile::tempdir().unwrap();
    let source = root().join("tests/golden/encoder/model.onnx");
    let base = export(&source, folder.path(), &["--kinds", "lora,ia3", "--basis", "8"]);
    // From plenty downwards, a byte less than what was taken each time.
    let (mut budget, mut taken) = (1 << 20, Vec::new());
    while let Ok(chosen) = Budget::choose(&base, budget, 1) {
        assert!(chosen.bytes <= budget && chosen.adapter.record_bytes(chosen.dtype).unwrap() == chosen.bytes);
        budget = chosen.bytes - 1;
        taken.push((chosen.what, chosen.dtype, chosen.bytes));
    }
    eprintln!("{taken:#?}");
    let ia3: Vec<Dtype> =
        taken.iter().filter(|(what, ..)| what.contains("(IA)3")).map(|(_, dtype, _)| *dtype).collect();
    assert_eq!(ia3, [Dtype::Int8, Dtype::Int4]);
    let place = |what: &str| taken.iter().position(|(found, ..)| found.contains(what)).unwrap();
    assert!(place("(IA)3") > place("LoRA of rank 4 at *{query,value}"));

    // Without those places they are not taken.
    let plain = tempfile::tempdir().unwrap();
    let base = export(&source, plain.path(), &[]);
    let chosen = Budget::choose(&base, 2 << 10, 1).unwrap();
    assert!(chosen.what.starts_with("LoRA of"), "{}", chosen.what);
}
