//! A short run of `quality` on the watch: every family is exported, trained, stored at each dtype, opened again and tested.

use conformance::binary;
use examples::quality::case::Family;
use examples::quality::figures::Figures;
use examples::quality::sweep::{Options, Short, run};
use examples::quality::{cases, chart, page};
use inlay_runtime::Dtype;

#[test]
fn every_family_of_the_watch_is_trained_and_comes_back_from_its_records() {
    let out = tempfile::tempdir().expect("a folder");
    let case = cases::ALL.iter().find(|case| case.name == "watch").expect("the watch is a case");
    let options = Options {
        converter: binary("converter"),
        out: out.path().to_owned(),
        threads: 1,
        short: Some(Short { people: 1, steps: 10 }),
    };
    let mut heard = Vec::new();
    let figures = run(case, &options, &mut |row| heard.push(row.label())).expect("the case runs");

    let label = |family: &Family| match family.middle() {
        0 => format!("{}, {}", family.kind, family.place),
        size => format!("{} {size}, {}", family.kind, family.place),
    };
    let expected: Vec<String> = case.families.iter().map(label).collect();
    assert_eq!(heard, expected);
    assert_eq!(figures.base.len(), 1);
    for row in &figures.rows {
        let bytes: Vec<usize> = row.stored.iter().map(|stored| stored.bytes).collect();
        assert!(bytes.is_sorted_by(|wide, narrow| wide > narrow), "{}: {bytes:?} B for {:?}", row.label(), Dtype::ALL);
        assert!(row.stored.iter().all(|stored| stored.lifts.len() == 1), "{}: a run is missing", row.label());
        let f16 = row.at(Dtype::F16).expect("f16 is a dtype");
        assert!(f16.bytes > 2 * row.parameters, "{}: {} B for {} numbers", row.label(), f16.bytes, row.parameters);
    }
    // Ten small steps move some answers, and full fine-tuning has the most numbers.
    assert!(figures.rows.iter().flat_map(|row| &row.stored).flat_map(|s| &s.lifts).any(|lift| *lift != 0.0));
    let largest = figures.rows.iter().max_by_key(|row| row.parameters).expect("there are rows");
    assert_eq!(largest.kind, cases::FULL.kind);

    figures.write(out.path()).expect("figures");
    assert_eq!(Figures::read(out.path(), "watch").expect("figures"), Some(figures.clone()));
    assert_eq!(Figures::read(out.path(), "vowels").expect("no figures are no fault"), None);
    let text = page::page(&[(*case, figures.clone())]);
    let table = text.split("## Smartwatch exercises").nth(1).expect("the case has a section");
    let rows = table.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| kind")).count();
    assert_eq!(rows, expected.len(), "{text}");
    let columns = |line: &str| line.matches('|').count();
    let widths: Vec<usize> = table.lines().filter(|line| line.starts_with('|')).map(columns).collect();
    assert!(widths.iter().all(|width| *width == widths[0]), "{text}");
    assert!(chart::svg(&[(*case, figures)]).contains("dense+bias, everywhere"));
}
