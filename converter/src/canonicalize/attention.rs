//! Attention becomes primitives: `softmax(scale q k^T + mask) v`.
//!
//! A boolean mask says who takes part. Rows that are masked all over give 0, as in PyTorch. Where several query heads
//! share a key head, the key is repeated.
//! <https://onnx.ai/onnx/operators/onnx__Attention.html>,
//! <https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md#com.microsoft.GroupQueryAttention>

use super::primitives::Primitives;
use super::rotary;
use crate::error::Result;
use crate::graph::{Attribute, Dim};
use crate::tensor::DType;

/// The attributes of operator set 23.
const ATTRIBUTES: [&str; 7] =
    ["is_causal", "kv_num_heads", "q_num_heads", "qk_matmul_output_mode", "scale", "softcap", "softmax_precision"];
const NO_CACHE: &str = "export with --no-kv-cache, or export the model without a cache";
const WAY_OUT: &str = "export the model with opset_version=21 or lower, so that attention is written as primitives";
const NOT_FUSED: &str = "export the model without graph fusion";

/// Queries, keys and values, and how they meet.
struct Heads {
    /// [B, H, T, d].
    q: String,
    /// [B, kv heads, S, d].
    k: String,
    /// [B, kv heads, S, dv].
    v: String,
    /// How many query heads share a key head.
    group: usize,
    /// H, d and dv, where queries share keys.
    sizes: [usize; 3],
    scale: f32,
    /// T and S, where a query only meets keys that are no later.
    causal: Option<[Option<Dim>; 2]>,
    /// Numbers to add to the scores.
    masks: Vec<String>,
}

/// Of operator set 23.
pub(super) fn standard(p: &mut Primitives<'_>) -> Result<()> {
    expect_plain(p)?;
    let (q, k, v) = (p.input(0)?, p.input(1)?, p.input(2)?);
    if [&q, &k, &v].iter().any(|x| p.dtype(x) != Some(DType::F32)) {
        return Err(p.unsupported("q, k and v have to be float32"));
    }
    let rank = p.rank(&q);
    if [&k, &v].iter().any(|x| p.rank(x) != rank) {
        return Err(p.unsupported("q, k and v have to have as many dimensions as each other"));
    }
    let split = match (rank, p.old.int("q_num_heads"), p.old.int("kv_num_heads")) {
        (Some(4), ..) => None,
        (Some(3), Some(heads), kv_heads) if heads > 0 => Some([heads, kv_heads.unwrap_or(heads).max(1)]),
        (Some(3), ..) => return Err(p.unsupported("attribute q_num_heads is missing")),
        _ => return Err(p.unsupported("q has to have 3 or 4 dimensions")),
    };
    let [q_heads, k_heads, v_heads] = match split {
        Some([heads, kv_heads]) => [heads, kv_heads, kv_heads].map(|n| usize::try_from(n).ok()),
        None => [&q, &k, &v].map(|x| p.size(x, 1)),
    };
    if let (Some(a), Some(b)) = (k_heads, v_heads)
        && a != b
    {
        return Err(p.unsupported(&format!("{a} heads of k with {b} of v are not supported; {WAY_OUT}")));
    }
    let width =
        |x: &str, heads: Option<usize>| p.size(x, -1).map(|n| if split.is_some() { n / heads.unwrap_or(1) } else { n });
    let (d, dv) = (width(&q, q_heads), width(&v, v_heads));
    let (group, sizes) = grouped(p, q_heads, k_heads, [d, dv])?;
    let scale = scale(p, d)?;
    let tokens = if split.is_some() { 1 } else { 2 };
    let causal = (p.old.int("is_causal").unwrap_or(0) != 0).then(|| [p.dim(&q, tokens), p.dim(&k, tokens)]);
    let [q, k, v] = [("q", q, 0), ("k", k, 1), ("v", v, 1)].map(|(name, x, kind)| match split {
        Some(heads) => heads_first(p, name, &x, heads[kind]),
        None => x,
    });
    let masks = p.optional(3).map(|mask| numbers(p, &mask)).transpose()?.into_iter().collect();
    let heads = Heads { q, k, v, group, sizes, scale, causal, masks };
    attend(p, &heads, split.is_some());
    Ok(())
}

/// MultiHeadAttention of onnxruntime, on queries, keys and values apart.
pub(super) fn multi_head(p: &mut Primitives<'_>) -> Result<()> {
    for (index, name) in [(6, "past_key"), (7, "past_value")] {
        if p.optional(index).is_some() {
            return Err(p.unsupported(&format!("input {name} is not supported; {NO_CACHE}")));
        }
    }
    p.refuse_output(1, "present_key", NO_CACHE)?;
    p.refuse_output(2, "present_value", NO_CACHE)?;
    p.refuse_output(3, "qk", NOT_FUSED)?;
    let packed =
        |p: &Primitives<'_>| p.unsupported(&format!("packed queries, keys and values are not supported; {NOT_FUSED}"));
    let q = p.input(0)?;
    let (Some(k), Some(v)) = (p.optional(1), p.optional(2)) else { return Err(packed(p)) };
    if [&q, &k, &v].iter().any(|x| p.rank(x) != Some(3)) {
        return Err(packed(p));
    }
    let heads = num_heads(p, "num_heads")?;
    let (width, v_width) = (p.size(&q, 2), p.size(&v, 2));
    let scale = scale(p, width.map(|n| n / heads as usize))?;
    let biased = match (p.optional(3), width, v_width) {
        (None, ..) => [q.clone(), k.clone(), v.clone()],
        (Some(bias), Some(width), Some(v_width)) => {
            let (width, end) = (width as i64, (2 * width + v_width) as i64);
            let parts = [("q", &q, 0, width), ("k", &k, width, 2 * width), ("v", &v, 2 * width, end)];
            parts.map(|(name, x, from, to)| {
                let part = p.slice(&format!("{name}_bias"), &bias, 0, from, to);
                p.push("Add", &format!("{name}_biased"), &[x, &part])
            })
        }
        _ => return Err(p.unsupported("the width of q and v is not known")),
    };
    let mut masks = Vec::new();
    if let Some(mask) = p.optional(4) {
        let axes: &[i64] = match p.rank(&mask) {
            Some(2) => &[1, 2],
            Some(3) => &[1],
            _ => {
                return Err(
                    p.unsupported("key_padding_mask has to have 2 or 3 dimensions; export without graph fusion")
                );
            }
        };
        let filter = p.old.float("mask_filter_value").unwrap_or(-10000.0);
        let kept = p.push_with("Cast", "kept", &[&mask], ("to", Attribute::Int(DType::Bool.onnx().into())));
        let (zero, filter) = (p.number("zero", 0.0), p.number("filter", filter));
        let numbers = p.push("Where", "padding", &[&kept, &zero, &filter]);
        masks.push(p.unsqueeze("padding_heads", &numbers, axes));
    }
    masks.extend(p.optional(5));
    let causal = (p.old.int("unidirectional").unwrap_or(0) != 0).then(|| [p.dim(&q, 1), p.dim(&k, 1)]);
    let [q, k, v] = [("q", 0), ("k", 1), ("v", 2)].map(|(name, i)| heads_first(p, name, &biased[i], heads));
    attend(p, &Heads { q, k, v, group: 1, sizes: [0; 3], scale, causal, masks }, true);
    Ok(())
}

/// GroupQueryAttention of onnxruntime without a cache: causal, maybe with rotary positions. Keys after the last of
/// `seqlens_k` are padding.
pub(super) fn group_query(p: &mut Primitives<'_>) -> Result<()> {
    for (index, name, way_out) in [(3, "past_key", NO_CACHE), (4, "past_value", NO_CACHE), (11, "head_sink", NOT_FUSED)]
    {
        if p.optional(index).is_some() {
            return Err(p.unsupported(&format!("input {name} is not supported; {way_out}")));
        }
    }
    p.refuse_output(1, "present_key", NO_CACHE)?;
    p.refuse_output(2, "present_value", NO_CACHE)?;
    p.refuse_output(3, "output_qk", NOT_FUSED)?;
    if p.old.int("local_window_size").unwrap_or(-1) != -1
        || p.old.float("softcap").unwrap_or(0.0) != 0.0
        || p.old.int("smooth_softmax").unwrap_or(0) > 0
    {
        let what = "attributes local_window_size, softcap and smooth_softmax are not supported";
        return Err(p.unsupported(&format!("{what}; {NOT_FUSED}")));
    }
    let (heads, kv_heads) = (num_heads(p, "num_heads")?, num_heads(p, "kv_num_heads")?);
    let q = p.input(0)?;
    if p.rank(&q) != Some(3) {
        return Err(p.unsupported("q has to have 3 dimensions"));
    }
    let parts = if p.optional(1).is_some() { heads } else { heads + 2 * kv_heads };
    let d = p.size(&q, 2).map(|n| n / parts as usize);
    let (group, sizes) = grouped(p, usize::try_from(heads).ok(), usize::try_from(kv_heads).ok(), [d, d])?;
    let scale = match p.old.float("scale") {
        Some(0.0) | None => scale(p, d)?,
        Some(scale) => scale,
    };
    let tokens = p.dim(&q, 1);
    let [mut q, mut k, v] = match (p.optional(1), p.optional(2)) {
        (Some(k), Some(v)) => [("q", q, heads), ("k", k, kv_heads), ("v", v, kv_heads)]
            .map(|(name, x, heads)| heads_first(p, name, &x, heads)),
        _ => {
            let all = heads_first(p, "packed", &q, parts);
            [("q", 0, heads), ("k", heads, heads + kv_heads), ("v", heads + kv_heads, parts)]
                .map(|(name, from, to)| p.slice(name, &all, 1, from, to))
        }
    };
    if p.old.int("do_rotary").unwrap_or(0) != 0 {
        let interleaved = p.old.int("rotary_interleaved").unwrap_or(0) != 0;
        let (cos, sin) = (p.input(7)?, p.input(8)?);
        let rotated = p.size(&cos, -1).map(|half| 2 * half).filter(|r| Some(*r) != d).map(|r| r as i64);
        let positions = match p.optional(9) {
            Some(positions) => positions,
            None => {
                let key = tokens.as_ref().filter(|t| **t != Dim::Unknown).map(|t| format!("positions {t:?}"));
                p.shared(key, |p| {
                    let size = p.size_of("tokens", &q, 2);
                    let range = p.range("positions", &size);
                    p.unsqueeze("positions_row", &range, &[0])
                })
            }
        };
        let [cos, sin] = [("cos", cos), ("sin", sin)].map(|(name, t)| rotary::angles(p, name, &t, Some(&positions)));
        [q, k] = [q, k].map(|x| rotary::rotate(p, &x, [&cos, &sin], rotated, interleaved));
    }
    let lasts = p.input(5)?;
    let key = tokens.as_ref().filter(|t| **t != Dim::Unknown).map(|t| format!("padding {lasts} {t:?}"));
    let padding = p.shared(key, |p| {
        let size = p.size_of("key_count", &k, 2);
        let keys = p.range("keys", &size);
        let lasts = p.push_with("Cast", "last_keys", &[&lasts], ("to", Attribute::Int(DType::I64.onnx().into())));
        let lasts = p.reshape("last_keys_of_heads", &lasts, &[-1, 1, 1, 1]);
        let kept = p.push("LessOrEqual", "kept", &[&keys, &lasts]);
        let (zero, never) = (p.number("zero", 0.0), p.number("never", f32::NEG_INFINITY));
        p.push("Where", "padding", &[&kept, &zero, &never])
    });
    let masks = [padding].into_iter().chain(p.optional(10)).collect();
    let causal = Some([tokens.clone(), tokens]);
    attend(p, &Heads { q, k, v, group, sizes, scale, causal, masks }, true);
    Ok(())
}

/// Refuses what the primitives do not do.
fn expect_plain(p: &Primitives<'_>) -> Result<()> {
    let refuse = |what: &str, way_out: &str| Err(p.unsupported(&format!("{what} is not supported; {way_out}")));
    // What a later operator set adds changes the numbers.
    if let Some(unknown) = p.old.attributes.keys().find(|name| !ATTRIBUTES.contains(&name.as_str())) {
        return refuse(&format!("attribute {unknown}"), WAY_OUT);
    }
    if p.old.int("qk_matmul_output_mode").unwrap_or(0) != 0 {
        return refuse("attribute qk_matmul_output_mode", WAY_OUT);
    }
    if p.old.float("softcap").unwrap_or(0.0) != 0.0 {
        return refuse("attribute softcap", WAY_OUT);
    }
    if !matches!(p.old.int("softmax_precision"), None | Some(0 | 1)) {
        return refuse("attribute softmax_precision other than float32", WAY_OUT);
    }
    for (index, name) in [(4, "past_key"), (5, "past_value")] {
        if p.optional(index).is_some() {
            return refuse(&format!("input {name}"), NO_CACHE);
        }
    }
    if p.optional(6).is_some() {
        return refuse("input nonpad_kv_seqlen", WAY_OUT);
    }
    p.refuse_output(1, "present_key", NO_CACHE)?;
    p.refuse_output(2, "present_value", NO_CACHE)?;
    p.refuse_output(3, "qk_matmul_output", WAY_OUT)
}

fn num_heads(p: &Primitives<'_>, attribute: &str) -> Result<i64> {
    let heads = p.old.int(attribute).filter(|n| *n > 0);
    heads.ok_or_else(|| p.unsupported(&format!("attribute {attribute} is missing")))
}

/// How many query heads share a key head, and then H, d and dv.
fn grouped(
    p: &Primitives<'_>,
    heads: Option<usize>,
    kv_heads: Option<usize>,
    widths: [Option<usize>; 2],
) -> Result<(usize, [usize; 3])> {
    let (Some(heads), Some(kv_heads)) = (heads, kv_heads) else { return Ok((1, [0; 3])) };
    if heads == kv_heads {
        return Ok((1, [0; 3]));
    }
    if kv_heads == 0 || heads % kv_heads != 0 {
        return Err(
            p.unsupported(&format!("{heads} heads of q with {kv_heads} of k or v are not supported; {WAY_OUT}"))
        );
    }
    match widths {
        [Some(d), Some(dv)] => Ok((heads / kv_heads, [heads, d, dv])),
        _ => Err(p.unsupported("the size of a head is not known")),
    }
}

/// The attribute, or one over the root of the size of a head.
fn scale(p: &Primitives<'_>, d: Option<usize>) -> Result<f32> {
    match (p.old.float("scale"), d) {
        (Some(scale), _) => Ok(scale),
        (None, Some(d)) if d > 0 => Ok(1.0 / (d as f32).sqrt()),
        _ => Err(p.unsupported("attribute scale is missing, and the size of a head is not known")),
    }
}

/// The mask as numbers to add.
fn numbers(p: &mut Primitives<'_>, mask: &str) -> Result<String> {
    match p.dtype(mask) {
        Some(DType::F32) => Ok(mask.to_owned()),
        Some(DType::Bool) => {
            let (zero, never) = (p.number("zero", 0.0), p.number("never", f32::NEG_INFINITY));
            Ok(p.shared(Some(format!("numbers {mask}")), |p| p.push("Where", "mask", &[mask, &zero, &never])))
        }
        _ => Err(p.unsupported("attn_mask has to be float32 or boolean")),
    }
}

/// [B, T, H d] as [B, H, T, d].
fn heads_first(p: &mut Primitives<'_>, name: &str, x: &str, heads: i64) -> String {
    let apart = p.reshape(&format!("{name}_split"), x, &[0, 0, heads, -1]);
    p.transpose(name, &apart, &[0, 2, 1, 3])
}

/// [B, kv heads, S, d], each head `group` times: [B, H, S, d].
fn repeated(p: &mut Primitives<'_>, name: &str, x: &str, group: usize, heads: usize, d: usize) -> String {
    if group == 1 {
        return x.to_owned();
    }
    let apart = p.unsqueeze(&format!("{name}_apart"), x, &[2]);
    let times = p.ints("times", &[1, 1, group as i64, 1, 1]);
    let all = p.push("Expand", &format!("{name}_each"), &[&apart, &times]);
    p.reshape(&format!("{name}_repeated"), &all, &[0, heads as i64, -1, d as i64])
}

/// Makes the first output of the heads; `joined` as [B, T, H dv], else as [B, H, T, dv].
fn attend(p: &mut Primitives<'_>, heads: &Heads, joined: bool) {
    let [h, d, dv] = heads.sizes;
    let k = repeated(p, "k", &heads.k, heads.group, h, d);
    let v = repeated(p, "v", &heads.v, heads.group, h, dv);
    let k = p.transpose("k_transposed", &k, &[0, 1, 3, 2]);
    let scale = p.number("scale", heads.scale);
    let q = p.push("Mul", "scaled", &[&heads.q, &scale]);
    let mut scores = p.push("MatMul", "scores", &[&q, &k]);
    let causal = heads.causal.as_ref().map(|tokens| causal_mask(p, &heads.q, &heads.k, tokens));
    let mut masks = heads.masks.iter().cloned().chain(causal);
    if let Some(mut mask) = masks.next() {
        for other in masks {
            mask = p.shared(Some(format!("both {mask} {other}")), |p| p.push("Add", "masks", &[&mask, &other]));
        }
        scores = p.push("Add", "masked", &[&scores, &mask]);
    }
    let mut weights = p.push_with("Softmax", "softmax", &[&scores], ("axis", Attribute::Int(-1)));
    if !heads.masks.is_empty() {
        let zero = p.number("zero", 0.0);
        let nan = p.push("IsNaN", "nan", &[&weights]);
        weights = p.push("Where", "probabilities", &[&nan, &zero, &weights]);
    }
    if !joined {
        p.finish("MatMul", &[&weights, &v]);
        return;
    }
    let y = p.push("MatMul", "heads", &[&weights, &v]);
    let y = p.transpose("joined", &y, &[0, 2, 1, 3]);
    let shape = p.ints("joined_shape", &[0, 0, -1]);
    p.finish("Reshape", &[&y, &shape]);
}

/// [T, S]: 0 where a key is no later than the query, else -inf. One for all nodes with as many tokens.
fn causal_mask(p: &mut Primitives<'_>, q: &str, k: &str, tokens: &[Option<Dim>; 2]) -> String {
    let known = |dim: &Option<Dim>| dim.as_ref().is_some_and(|dim| *dim != Dim::Unknown);
    let key = tokens.iter().all(known).then(|| format!("causal {tokens:?}"));
    p.shared(key, |p| {
        let [queries, keys] = [("queries", q), ("keys", k)].map(|(name, x)| {
            let size = p.size_of(&format!("{name}_count"), x, 2);
            p.range(name, &size)
        });
        let queries = p.unsqueeze("queries_column", &queries, &[1]);
        let allowed = p.push("LessOrEqual", "allowed", &[&keys, &queries]);
        let (zero, never) = (p.number("zero", 0.0), p.number("never", f32::NEG_INFINITY));
        p.push("Where", "causal", &[&allowed, &zero, &never])
    })
}

#[cfg(test)]
mod tests {
    use super::super::primitives::run;
    use super::super::testing::{graph, ops};
    use super::*;
    use crate::graph::{Node, Port, ValueType};
    use crate::oracle::{self, Feed, Values};
    use crate::tensor::Tensor;

    fn attention(inputs: &[&str]) -> Node {
        Node { opset: 23, ..Node::new("Attention", "sdpa", inputs, "y") }
    }

    /// Two queries and keys of one head of size 4, as `dims` have them.
    fn attend(dims: &[usize], node: Node, mask: Tensor) -> Vec<f32> {
        let mut g = graph(dims, &[("mask", mask)], vec![node]);
        run(&mut g, 23).unwrap();
        g.sort().unwrap();
        assert!(g.nodes.iter().all(|n| !n.is("Attention")));
        let x = vec![2.0, 0.0, 0.0, 0.0, 0.0, 2.0, 0.0, 0.0];
        let feed = Feed { name: "x".into(), dims: [&[1], dims].concat(), values: Values::F32(x) };
        oracle::run(&g, 23, &[feed], "the primitives").unwrap().remove(0).values
    }

    #[test]
    fn masks_of_both_types_and_a_row_without_a_key() {
        let never = f32::NEG_INFINITY;
        let float = Tensor::from_f32(&[2, 2], &[0.0, never, never, never]);
        let boolean = Tensor::new(DType::Bool, vec![2, 2], vec![1, 0, 0, 0].into()).unwrap();
        for mask in [float, boolean] {
            let y = attend(&[1, 2, 4], attention(&["x", "x", "x", "mask"]), mask);
            assert_eq!(y, [2.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]);
        }
    }

    #[test]
    fn three_dimensions_and_the_default_scale() {
        let unused = Tensor::from_f32(&[1], &[0.0]);
        let heads = |n: Node| n.with("q_num_heads", Attribute::Int(1)).with("kv_num_heads", Attribute::Int(1));
        let three = attend(&[2, 4], heads(attention(&["x", "x", "x"])), unused.clone());
        let four = attend(&[1, 2, 4], attention(&["x", "x", "x"]), unused);
        // Scores are 4 and 0, times 1 / 2.
        let own = 2.0 / (1.0 + (-2f32).exp());
        assert_eq!(three, four);
        assert!((four[0] - own).abs() < 1e-5 && (four[1] - (2.0 - own)).abs() < 1e-5, "{four:?}");
    }

    #[test]
    fn no_mask_needs_no_guard() {
        let mut g = graph(&[1, 2, 4], &[], vec![attention(&["x", "x", "x"])]);
        run(&mut g, 23).unwrap();
        assert_eq!(ops(&g), ["Transpose", "Mul", "MatMul", "Softmax", "MatMul"]);
        assert_eq!((g.nodes[4].name.as_str(), g.nodes[4].output()), ("sdpa", "y"));
    }

    #[test]
    fn what_is_not_supported_is_named() {
        let mut present = attention(&["x", "x", "x"]);
        present.outputs.push("present".into());
        for (node, named) in [
            (attention(&["x", "x", "x"]).with("softcap", Attribute::Float(9.0)), "softcap"),
            (attention(&["x", "x", "x", "", "x"]), "past_key"),
            (attention(&["x", "x", "x", "few"]), "attn_mask"),
            (attention(&["x", "two", "two"]), "1 heads of q with 2"),
            (present, "present_key"),
        ] {
            let two = Tensor::from_f32(&[1, 2, 2, 4], &[0.0; 16]);
            let more = node.outputs.iter().skip(1).cloned();
            let ty = ValueType { dtype: DType::F32, dims: None };
            let more: Vec<Port> = more.map(|name| Port { name, ty: ty.clone() }).collect();
            let mut g = graph(&[1, 2, 4], &[("two", two), ("few", Tensor::from_i64(&[1], &[1]))], vec![node]);
            g.outputs.extend(more);
            let error = run(&mut g, 23).unwrap_err().to_string();
            assert!(error.contains("\"sdpa\"") && error.contains(named), "{error}");
        }
    }

    #[test]
    fn causal_queries_share_keys() {
        // Two query heads on one key head, two tokens: what the first attends is its own value.
        let kv = Tensor::from_f32(&[1, 1, 2, 2], &[1.0, 0.0, 0.0, 1.0]);
        let node =
            attention(&["x", "kv", "kv"]).with("is_causal", Attribute::Int(1)).with("scale", Attribute::Float(1.0));
        let mut g = graph(&[2, 2, 2], &[("kv", kv)], vec![node]);
        run(&mut g, 23).unwrap();
        g.sort().unwrap();
        let x = vec![9.0, -9.0, 0.0, 0.0, 3.0, 1.0, 0.0, 2.0];
        let feed = Feed { name: "x".into(), dims: vec![1, 2, 2, 2], values: Values::F32(x) };
        let y = oracle::run(&g, 23, &[feed], "the primitives").unwrap().remove(0).values;
        let second = 1.0 / (1.0 + (-2f32).exp());
        let expected = [1.0, 0.0, 0.5, 0.5, 1.0, 0.0, 1.0 - second, second];
        assert!(y.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6), "{y:?}");
    }

    /// The same attention, packed for onnxruntime and apart for operator set 23.
    #[test]
    fn packed_heads_are_taken_apart() {
        // 2 query heads and 1 key head of 2: q, q, k, v.
        let packed: Vec<f32> = (0..24).map(|i| ((i * 7 % 11) as f32 - 5.0) / 4.0).collect();
        let part = |from: usize, to: usize| -> Vec<f32> {
            packed.chunks(8).flat_map(|token| token[from..to].to_vec()).collect()
        };
        let mut node = Node::new("GroupQueryAttention", "gqa", &["x", "", "", "", "", "lasts"], "y")
            .with("num_heads", Attribute::Int(2))
            .with("kv_num_heads", Attribute::Int(1));
        node.domain = "com.microsoft".into();
        let mut g = graph(&[3, 8], &[("lasts", Tensor::from_i64(&[1], &[2]))], vec![node]);
        run(&mut g, 17).unwrap();
        g.sort().unwrap();
        let feed = |dims: &[usize], values: &[f32]| Feed {
            name: "x".into(),
            dims: dims.to_vec(),
            values: Values::F32(values.to_vec()),
        };
        let found = oracle::run(&g, 17, &[feed(&[1, 3, 8], &packed)], "the primitives").unwrap().remove(0).values;
        let apart = attention(&["x", "k", "v"])
            .with("is_causal", Attribute::Int(1))
            .with("q_num_heads", Attribute::Int(2))
            .with("kv_num_heads", Attribute::Int(1));
        let kv = |from, to| Tensor::from_f32(&[1, 3, 2], &part(from, to));
        let mut g = graph(&[3, 4], &[("k", kv(4, 6)), ("v", kv(6, 8))], vec![apart]);
        run(&mut g, 23).unwrap();
        g.sort().unwrap();
        let expected =
            oracle::run(&g, 23, &[feed(&[1, 3, 4], &part(0, 4))], "the primitives").unwrap().remove(0).values;
        assert_eq!(found.len(), 12);
        assert!(found.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-6), "{found:?} {expected:?}");
    }
}
