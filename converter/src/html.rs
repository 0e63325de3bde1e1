//! Self-contained pages.

use crate::report::{PointReport, Skipped};

const CSS: &str = "body{font:15px/1.5 system-ui,sans-serif;max-width:60em;margin:2em auto;padding:0 1em;color:#222}\
table{border-collapse:collapse;width:100%}td,th{text-align:left;padding:.25em .6em;border-bottom:1px solid #ddd;\
overflow-wrap:anywhere}.bar{position:relative;background:#eee;margin:.4em 0;height:1.8em}\
.bar i{position:absolute;inset:0 auto 0 0;background:#7aa6c2}.bar span{position:relative;padding:0 .6em;line-height:1.8em}";

/// A page.
pub(crate) fn page(title: &str, body: &[String]) -> String {
    let title = escape(title);
    format!(
        "<!doctype html>\n<meta charset=utf-8>\n<title>{title}</title>\n<style>{CSS}</style>\n<h1>{title}</h1>\n{}",
        body.concat()
    )
}

/// A paragraph.
pub(crate) fn paragraph(text: &str) -> String {
    format!("<p>{}</p>\n", escape(text))
}

/// A row of a table.
pub(crate) fn row(cells: &[String]) -> String {
    let cells: String = cells.iter().map(|c| format!("<td>{}</td>", escape(c))).collect();
    format!("<tr>{cells}</tr>\n")
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
        let size = format!("{} -> {}", p.d_in, p.d_out);
        let kernel = if p.kernel.is_empty() { String::new() } else { format!("{:?}", p.kernel) };
        let cost = p.bytes_per_rank_f16.to_string();
        row(&[p.path.clone(), p.op.clone(), size, kernel, cost, p.path_source.to_owned()])
    });
    let skipped = skipped.iter().map(|s| row(&[s.path.clone(), s.node.clone(), s.reason.clone()]));
    let head = ["path", "op", "size", "kernel", "bytes/rank (f16)", "path from"];
    table("Insertion points", &head, points)
        + &table("Without an adapter", &["path", "node in the way", "reason"], skipped)
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
