//! `docs/ops.md` says what `ops::ALL` says. `./dev docs` writes it anew.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::{env, fs};

use conformance::root;
use inlay_converter::canonicalize::EXPANSIONS;
use inlay_converter::support::{REPLACED, REWRITTEN};
use inlay_runtime::ops::{self, INLAY, Op};

/// Inputs that are asked for their gradient: more than any operator here names.
const INPUTS: usize = 4;

fn page() -> String {
    let mut page = "# Operators

What happens to each operator of ONNX, as `runtime/src/ops` and the converter have it. A test holds this page to the code;
`./dev docs` writes it anew. Operator sets 13 to 23 are read. `converter check MODEL.onnx` says the same about a model.

Values are f32; i64, i32 and bool where they are computed on the host: shapes, masks, positions and ids, which depend on
shapes, constants and integer inputs only.

## Run

*Gradient*: whether a loss can be differentiated through the operator, to an insertion point below it.

| operator | gradient | limits |
|---|---|---|
"
    .to_owned();
    let mut known: Vec<&dyn Op> = ops::ALL.iter().copied().filter(|op| op.domain() != INLAY).collect();
    known.sort_by_key(|op| (op.domain(), op.op_type()));
    for op in &known {
        let domain = if op.domain().is_empty() { String::new() } else { format!("{}.", op.domain()) };
        let _ = writeln!(
            page,
            "| {domain}{} | {} | {} |",
            op.op_type(),
            if (0..INPUTS).any(|i| op.differentiable(i)) { "yes" } else { "no" },
            op.limits()
        );
    }
    page.push_str("\n## Rewritten at export\n\n| operator | becomes |\n|---|---|\n");
    let mut rewritten: Vec<_> = REWRITTEN.iter().chain(REPLACED).collect();
    rewritten.sort();
    for (op, becomes) in rewritten {
        let _ = writeln!(page, "| {op} | {becomes} |");
    }
    let mut expansions: Vec<_> = EXPANSIONS.iter().collect();
    expansions.sort_by_key(|e| (e.domain, e.op_type));
    for e in &expansions {
        let domain = if e.domain.is_empty() { String::new() } else { format!("{}.", e.domain) };
        let _ = writeln!(page, "| {domain}{} | primitives, which the plan fuses again where it can |", e.op_type);
    }
    let supported: BTreeSet<&str> = known
        .iter()
        .filter(|op| op.domain().is_empty())
        .map(|op| op.op_type())
        .chain(REWRITTEN.iter().chain(REPLACED).map(|(op, _)| *op))
        .chain(expansions.iter().filter(|e| e.domain.is_empty()).map(|e| e.op_type))
        .collect();
    page.push_str("\n## Refused\n\nAn error at export names the node and the way out.\n\n");
    let refused: Vec<&str> =
        include_str!("../node/operators.txt").lines().filter(|op| !supported.contains(op)).collect();
    for line in refused.chunks(8) {
        let _ = writeln!(page, "{},", line.join(", "));
    }
    page.truncate(page.trim_end_matches([',', '\n']).len());
    page + ".\n"
}

#[test]
fn the_page_says_what_the_code_does() {
    let (path, page) = (root().join("docs/ops.md"), page());
    if env::var_os("INLAY_WRITE_DOCS").is_some() {
        fs::write(&path, &page).expect("docs can be written");
    }
    let committed = fs::read_to_string(&path).unwrap_or_default();
    assert!(committed == page, "docs/ops.md is not what ops::ALL says; run ./dev docs");
}
