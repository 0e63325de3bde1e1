//! The page that `converter export --report` writes: it holds all that it should, and stands alone.

use std::path::{Path, PathBuf};

use inlay_converter::export::{Options, export};
use inlay_converter::inspect::inspect;
use inlay_converter::kinds::{Kind, Kinds};
use inlay_converter::quantize::Quant;
use inlay_converter::report::Report;

fn exported(name: &str, folder: &Path) -> (Report, String) {
    let fixtures: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures");
    let page = folder.join("report.html");
    let options = Options {
        model: fixtures.join(format!("{name}.onnx")),
        out: folder.join("out"),
        quant: Quant::Int8.into(),
        targets: Vec::new(),
        kinds: Kinds { chosen: vec![Kind::Lora, Kind::Ia3], ..Kinds::default() },
        samples: None,
        basis: None,
        max_error: None,
        report: Some(page.clone()),
        calibrate: None,
        no_kv_cache: false,
    };
    let report = export(&options, &|_| ()).unwrap();
    (report, std::fs::read_to_string(page).unwrap())
}

/// The rows of the table under this title.
fn rows<'a>(page: &'a str, title: &str) -> Vec<&'a str> {
    let (_, rest) = page.split_once(&format!("<h2>{title}</h2>")).unwrap_or_else(|| panic!("no table {title:?}"));
    let (table, _) = rest.split_once("</table>").expect("tables end");
    table.split("<tr>").skip(2).collect()
}

/// The one row that begins with this cell.
fn row_of<'a>(rows: &[&'a str], cell: &str) -> &'a str {
    let start = format!("<td>{cell}</td>");
    let found: Vec<&str> = rows.iter().copied().filter(|row| row.starts_with(&start)).collect();
    assert_eq!(found.len(), 1, "rows of {cell}: {rows:?}");
    found[0]
}

#[test]
fn a_report_stands_alone_and_leaves_nothing_out() {
    let folder = tempfile::tempdir().unwrap();
    let (report, page) = exported("encoder_ts17", folder.path());

    assert!(page.starts_with("<!doctype html>"));
    for outside in ["http:", "https:", "src=", "href=", "url(", "@import", "<script", "<link", "<iframe", "<object"] {
        assert!(!page.contains(outside), "the page holds {outside}");
    }

    let packed = rows(&page, "Packed weights");
    assert!(!report.packed.is_empty() && packed.len() == report.packed.len());
    for weight in &report.packed {
        let row = row_of(&packed, &weight.paths.join(", "));
        assert!(row.contains(&format!("<span>{:.4}</span>", weight.error)), "{row}");
        assert!(row.contains(&format!("<td>{}", weight.scheme)), "{row}");
    }

    let points = rows(&page, "Insertion points");
    assert!(!report.points.is_empty() && points.len() == report.points.len());
    for point in &report.points {
        let row = row_of(&points, &point.path);
        let lora = 2 * (point.d_in + point.d_out);
        assert!(row.contains(&format!("<td>{lora}</td>")), "{row}");
        assert!(row.contains("dense ") && row.contains("lora-xs "), "{row}");
        let ia3 = point.kinds.iter().find(|k| k.kind == "ia3");
        assert_eq!(row.contains("ia3 "), ia3.is_some(), "{row}");
    }
    assert!(points.iter().any(|row| row.contains("ia3 64 B, dense 2.0 KB, lora-xs 512 B at rank 16")), "{points:?}");

    let kinds = rows(&page, "What each kind trains");
    assert_eq!(kinds.len(), report.trained.len());
    for kind in ["lora", "lora-xs", "dense", "bias", "norm", "head"] {
        assert!(report.trained.iter().any(|t| t.kind == kind && t.parameters > 0), "{kind}: {:?}", report.trained);
        assert!(kinds.iter().any(|row| row.starts_with(&format!("<td>{kind}</td>"))), "{kind}: {kinds:?}");
    }
    let same = inspect(&folder.path().join("out")).unwrap();
    assert_eq!(same.trained, report.trained);

    let kept = rows(&page, "Stayed float");
    assert!(!report.kept.is_empty() && kept.len() == report.kept.len());
    for constant in &report.kept {
        assert!(row_of(&kept, &constant.name).contains(&constant.reason.replace('"', "&quot;")));
    }

    let outputs = rows(&page, "Outputs against the float source");
    for output in &report.outputs {
        let row = row_of(&outputs, &output.name);
        assert!(row.contains(&format!("<td>{:.2e}</td>", output.max_abs)), "{row}");
        assert!(row.contains(&format!("<td>{:.6}</td>", output.cosine)), "{row}");
    }
    assert_eq!(page.matches("class=point>").count(), report.points.len());
}

#[test]
fn two_reports_are_the_same_bytes() {
    let pages = [(); 2].map(|()| exported("encoder_ts17", tempfile::tempdir().unwrap().path()).1);
    assert_eq!(pages[0], pages[1]);
}
