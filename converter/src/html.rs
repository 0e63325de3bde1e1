//! Self-contained pages.

use crate::arithmetic;
use crate::report::{PointReport, Skipped};

const CSS: &str = "\
:root{--text:#1d2733;--soft:#5b6b7b;--line:#dde3e9;--card:#f5f8fa;--accent:#1f6f8b;--bar:#9cc5d6;--point:#d97b29;color-scheme:light dark}\
@media(prefers-color-scheme:dark){:root{--text:#e3e9ef;--soft:#9aa9b8;--line:#36424f;--card:#1f2830;--accent:#6db7d2;--bar:#2f6479;--point:#e09350}\
body{background:#151b21}}\
body{font:15px/1.5 system-ui,sans-serif;max-width:66em;margin:2.5em auto;padding:0 1.2em;color:var(--text)}\
h1{font-size:1.7em;margin-bottom:.2em}h2{font-size:1.15em;margin:2.2em 0 .6em}p{color:var(--soft);margin:.4em 0}\
table{border-collapse:collapse;width:100%;font-size:.9em;font-variant-numeric:tabular-nums}\
th{color:var(--soft);font-weight:600}td,th{text-align:left;padding:.3em .7em .3em 0;border-bottom:1px solid var(--line);overflow-wrap:break-word}\
td:first-child{overflow-wrap:anywhere}\
.cards{display:flex;flex-wrap:wrap;gap:.8em;margin:1.4em 0}.cards div{background:var(--card);border:1px solid var(--line);border-radius:8px;\
padding:.7em 1.1em;min-width:8em}.cards b{display:block;font-size:1.5em;color:var(--accent)}.cards span{color:var(--soft);font-size:.85em}\
.bar{position:relative;background:var(--card);margin:.4em 0;height:1.8em;border-radius:4px;overflow:hidden}\
.bar i{position:absolute;inset:0 auto 0 0;background:var(--bar)}.bar span{position:relative;padding:0 .7em;line-height:1.8em}\
.scroll{overflow:auto;max-height:75vh;border:1px solid var(--line);border-radius:8px;background:var(--card)}\
.graph{display:block;margin:auto;width:100%;height:auto}.graph text{font:12px system-ui,sans-serif;text-anchor:middle;fill:var(--text)}\
.graph .ops{font-size:10px;fill:var(--soft)}.graph rect{fill:var(--card);stroke:var(--line)}.graph .edges path{fill:none;stroke:var(--soft);opacity:.45}\
.graph .weight rect{stroke:var(--accent);stroke-width:1.5}.graph .point rect{stroke:var(--point);stroke-width:2.5}";

/// A page.
pub(crate) fn page(title: &str, body: &[String]) -> String {
    let title = escape(title);
    format!(
        "<!doctype html>\n<meta charset=utf-8>\n<meta name=viewport content='width=device-width'>\n<title>{title}</title>\n<style>{CSS}</style>\n<h1>{title}</h1>\n{}",
        body.concat()
    )
}

/// A paragraph.
pub(crate) fn paragraph(text: &str) -> String {
    format!("<p>{}</p>\n", escape(text))
}

/// Figures side by side: each a value and what it is.
pub(crate) fn cards(cards: &[(String, &str)]) -> String {
    let cards: String =
        cards.iter().map(|(value, what)| format!("<div><b>{}</b><span>{what}</span></div>", escape(value))).collect();
    format!("<div class=cards>{cards}</div>\n")
}

/// A bar as long as `part` of `whole`.
pub(crate) fn bar(label: &str, part: f64, whole: f64) -> String {
    let width = if whole > 0.0 { (100.0 * part / whole).clamp(0.0, 100.0) } else { 0.0 };
    format!("<div class=bar><i style='width:{width:.1}%'></i><span>{}</span></div>\n", escape(label))
}

/// A drawing under a title, in a frame of its own.
pub(crate) fn figure(title: &str, note: &str, svg: &str) -> String {
    format!("<h2>{title}</h2>\n{}<div class=scroll>{svg}</div>\n", paragraph(note))
}

/// A row of a table.
pub(crate) fn row(cells: &[String]) -> String {
    let cells: String = cells.iter().map(|c| format!("<td>{}</td>", escape(c))).collect();
    format!("<tr>{cells}</tr>\n")
}

/// A row of a table that ends in a bar.
pub(crate) fn row_with_bar(cells: &[String], label: &str, part: f64, whole: f64) -> String {
    let row = row(cells);
    row.replace("</tr>", &format!("<td>{}</td></tr>", bar(label, part, whole).trim_end()))
}

/// A table under a title; nothing without rows.
pub(crate) fn table(title: &str, head: &[&str], rows: impl Iterator<Item = String>) -> String {
    let head: String = head.iter().map(|h| format!("<th>{h}</th>")).collect();
    let rows: String = rows.collect();
    if rows.is_empty() { rows } else { format!("<h2>{title}</h2>\n<table><tr>{head}</tr>\n{rows}</table>\n") }
}

/// The points, and what cannot be one.
pub(crate) fn points(points: &[PointReport], skipped: &[Skipped]) -> String {
    let points = points.iter().map(|p| {
        let kernel = if p.kernel.is_empty() { String::new() } else { format!(", kernel {:?}", p.kernel) };
        let size = format!("{}\u{a0}→\u{a0}{}{kernel}", p.d_in, p.d_out);
        let cost = p.bytes_per_rank_f16.to_string();
        let others = [p.other_kinds(), arithmetic::also(p)].into_iter().filter(|kinds| !kinds.is_empty());
        let others = others.collect::<Vec<_>>().join(", ");
        row(&[p.path.clone(), p.op.clone(), size, cost, others, p.path_source.to_owned()])
    });
    let skipped = skipped.iter().map(|s| row(&[s.path.clone(), s.node.clone(), s.reason.clone()]));
    let head = ["path", "op", "size", "bytes/rank (f16)", "other kinds (f16)", "path from"];
    table("Insertion points", &head, points)
        + &table("Without an adapter", &["path", "node in the way", "reason"], skipped)
}

pub(crate) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
