//! Rotary positions: pairs of features turn by angles that grow with the position.
//! <https://onnx.ai/onnx/operators/onnx__RotaryEmbedding.html>,
//! <https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md#com.microsoft.RotaryEmbedding>

use super::primitives::Primitives;
use crate::error::Result;
use crate::graph::Attribute;

/// Of operator set 23: x, cos, sin, position_ids.
pub(super) fn standard(p: &mut Primitives<'_>) -> Result<()> {
    let (x, cos, sin) = (p.input(0)?, p.input(1)?, p.input(2)?);
    let positions = p.optional(3);
    embed(p, &x, [&cos, &sin], positions.as_deref())
}

/// Of onnxruntime: x, position_ids, cos, sin.
pub(super) fn microsoft(p: &mut Primitives<'_>) -> Result<()> {
    if p.old.float("scale").unwrap_or(1.0) != 1.0 || p.old.int("is_packed_batching").unwrap_or(0) != 0 {
        return Err(p.unsupported("attributes scale and is_packed_batching are not supported"));
    }
    let (x, mut positions, cos, sin) = (p.input(0)?, p.input(1)?, p.input(2)?, p.input(3)?);
    if p.rank(&positions).ok_or_else(|| p.unsupported("the rank of position_ids is not known"))? == 1 {
        // The position of the first token.
        let axis = if p.rank(&x) == Some(4) { 2 } else { 1 };
        let size = p.size_of("tokens", &x, axis);
        let range = p.range("range", &size);
        let from_first = p.push("Add", "positions", &[&range, &positions]);
        positions = p.unsqueeze("row", &from_first, &[0]);
    }
    embed(p, &x, [&cos, &sin], Some(&positions))
}

/// Cosines or sines [B, 1, T, r / 2]: the rows of `table` at `positions` [B, T], or `table` itself.
pub(super) fn angles(p: &mut Primitives<'_>, name: &str, table: &str, positions: Option<&str>) -> String {
    let key = format!("angles {table} {}", positions.unwrap_or_default());
    p.shared(Some(key), |p| {
        let rows = match positions {
            Some(positions) => p.push("Gather", name, &[table, positions]),
            None => table.to_owned(),
        };
        p.unsqueeze(&format!("{name}_heads"), &rows, &[1])
    })
}

/// Turns x: [B, H, T, d] or [B, T, H d], and makes the first output of it.
fn embed(p: &mut Primitives<'_>, x: &str, tables: [&str; 2], positions: Option<&str>) -> Result<()> {
    let interleaved = p.old.int("interleaved").unwrap_or(0) != 0;
    let rotated = p.old.int("rotary_embedding_dim").filter(|n| *n > 0);
    let half = p.size(tables[0], -1);
    let [cos, sin] = [("cos", tables[0]), ("sin", tables[1])].map(|(name, table)| angles(p, name, table, positions));
    match p.rank(x) {
        Some(4) => {
            let rotated = rotated.filter(|r| p.size(x, 3) != usize::try_from(*r).ok());
            let y = rotate(p, x, [&cos, &sin], rotated, interleaved);
            p.finish("Identity", &[&y]);
        }
        Some(3) => {
            let heads = match (p.old.int("num_heads").filter(|n| *n > 0), p.size(x, 2), half) {
                (Some(heads), ..) => heads,
                (None, Some(width), Some(half)) if half > 0 => (width / (2 * half)) as i64,
                _ => return Err(p.unsupported("attribute num_heads is missing")),
            };
            let rotated = rotated.filter(|r| p.size(x, 2).is_none_or(|width| width as i64 != r * heads));
            let apart = p.reshape("apart", x, &[0, 0, heads, -1]);
            let heads_first = p.transpose("heads", &apart, &[0, 2, 1, 3]);
            let y = rotate(p, &heads_first, [&cos, &sin], rotated, interleaved);
            let tokens_first = p.transpose("tokens_first", &y, &[0, 2, 1, 3]);
            let shape = p.ints("joined_shape", &[0, 0, -1]);
            p.finish("Reshape", &[&tokens_first, &shape]);
        }
        _ => return Err(p.unsupported("x has to have 3 or 4 dimensions")),
    }
    Ok(())
}

/// The first `rotated` features of x: [B, H, T, d], or all, turned by angles with cosines and sines [B, 1, T, r / 2].
pub(super) fn rotate(
    p: &mut Primitives<'_>,
    x: &str,
    [cos, sin]: [&str; 2],
    rotated: Option<i64>,
    interleaved: bool,
) -> String {
    let rest = rotated.map(|r| p.slice("rest", x, -1, r, i64::MAX));
    let x = rotated.map_or_else(|| x.to_owned(), |r| p.slice("rotated", x, -1, 0, r));
    let (first, second, cos, sin) = if interleaved {
        let pairs = p.reshape("pairs", &x, &[0, 0, 0, -1, 2]);
        let [first, second] = [("even", 0), ("odd", 1)].map(|(name, at)| p.slice(name, &pairs, -1, at, at + 1));
        let [cos, sin] = [("cos_pairs", cos), ("sin_pairs", sin)].map(|(name, x)| p.unsqueeze(name, x, &[-1]));
        (first, second, cos, sin)
    } else {
        let [first, second] = p.halves(&x);
        (first, second, cos.to_owned(), sin.to_owned())
    };
    let product = |p: &mut Primitives<'_>, name: &str, a: &str, b: &str| p.push("Mul", name, &[a, b]);
    let (a, b) = (product(p, "first_cos", &first, &cos), product(p, "second_sin", &second, &sin));
    let new_first = p.push("Sub", "turned_first", &[&a, &b]);
    let (a, b) = (product(p, "second_cos", &second, &cos), product(p, "first_sin", &first, &sin));
    let new_second = p.push("Add", "turned_second", &[&a, &b]);
    let joined = p.push_with("Concat", "turned", &[&new_first, &new_second], ("axis", Attribute::Int(-1)));
    let turned = if interleaved { p.reshape("turned_pairs", &joined, &[0, 0, 0, -1]) } else { joined };
    match rest {
        Some(rest) => p.push_with("Concat", "with_rest", &[&turned, &rest], ("axis", Attribute::Int(-1))),
        None => turned,
    }
}
