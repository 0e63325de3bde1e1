//! A head that holds a copy of the token table, as exporters write tied weights, becomes that table: stored once.

use crate::error::Result;
use crate::graph::{Attribute, Graph, Node};
use crate::tensor::{DType, Tensor};

/// Elements that are compared first.
const PROBES: usize = 256;

pub(super) fn run(graph: &mut Graph) -> Result<()> {
    let tables: Vec<String> = graph
        .nodes
        .iter()
        .filter(|n| n.is("Gather") && n.int("axis").unwrap_or(0) == 0)
        .filter_map(|n| n.input(0).filter(|w| graph.constants.contains_key(*w)).map(str::to_owned))
        .collect();
    let mut i = 0;
    while i < graph.nodes.len() {
        let node = &graph.nodes[i];
        let copy = node.input(1).filter(|_| node.is("MatMul"));
        let tied = copy.and_then(|copy| {
            let weight = graph.constants.get(copy)?;
            let table = tables.iter().find(|table| is_transpose(&graph.constants[*table], weight))?;
            Some((copy.to_owned(), weight.origin.clone(), table.clone()))
        });
        if let Some((copy, origin, table)) = tied {
            let name = graph.fresh_name(&format!("{copy}.tied"));
            let transpose = Node::new("Transpose", &name, &[&table], &name).with("perm", Attribute::Ints(vec![1, 0]));
            graph.nodes[i].inputs[1] = name;
            graph.nodes.insert(i, transpose);
            graph.tied.extend(origin.map(|origin| (origin, table)));
            i += 1;
        }
        i += 1;
    }
    Ok(())
}

/// Whether both are f32 matrices as the source has them, and one is the other's transpose, bit for bit.
fn is_transpose(table: &Tensor, weight: &Tensor) -> bool {
    let (&[rows, columns], &[k, n]) = (table.dims(), weight.dims()) else { return false };
    let plain = |t: &Tensor| t.dtype == DType::F32 && t.rewrites().is_empty();
    if (rows, columns) != (n, k) || !plain(table) || !plain(weight) || table.is_empty() {
        return false;
    }
    let (table, weight) = (table.bytes(), weight.bytes());
    let same = |i: usize| {
        let (row, column) = (i / columns, i % columns);
        table[4 * i..4 * i + 4] == weight[4 * (column * rows + row)..][..4]
    };
    let count = rows * columns;
    (0..count).step_by(count.div_ceil(PROBES)).all(same) && (0..count).all(same)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{graph, ops, run};
    use super::*;

    #[test]
    fn only_a_copy_is_tied() {
        for (last, tied) in [(6.0, true), (7.0, false)] {
            let table = Tensor::from_f32(&[3, 2], &[1., 2., 3., 4., 5., 6.]);
            let mut head = Tensor::from_f32(&[2, 3], &[1., 3., 5., 2., 4., last]);
            head.origin = Some("head".into());
            let ids = Tensor::from_i64(&[1], &[1]);
            let nodes = vec![
                Node::new("Gather", "embed", &["table", "ids"], "e"),
                Node::new("Add", "add", &["x", "e"], "h"),
                Node::new("MatMul", "m", &["h", "head"], "y"),
            ];
            let mut g = graph(&[2], &[("table", table), ("head", head), ("ids", ids)], nodes);
            // Small tables are folded where the ids are constant.
            g.constants.get_mut("table").unwrap().origin = Some("table".into());
            super::run(&mut g).unwrap();
            assert_eq!(ops(&g).contains(&"Transpose"), tied);
            assert_eq!(g.tied.get("head").map(String::as_str), tied.then_some("table"));
            run(&mut g, |_| Ok(()));
            assert_eq!(g.constants.contains_key("head"), !tied);
        }
    }
}
