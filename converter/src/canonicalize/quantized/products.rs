//! Products with quantized weights.

use super::{Rewriter, shares};
use crate::canonicalize::primitives::MICROSOFT;
use crate::error::{Error, Result};
use crate::graph::Node;
use crate::integers::{Integers, Shares};
use crate::tensor::{DType, Rewrite, Tensor};

/// onnxruntime's `MatMulNBits`: `x W^T + bias` with W [N, K] in blocks of K.
pub(super) fn n_bits(r: &mut Rewriter<'_>, i: usize) -> Result<bool> {
    let node = r.graph.nodes[i].clone();
    if node.op_type != "MatMulNBits" || node.domain != MICROSOFT {
        return Ok(false);
    }
    let size = |name: &str| usize::try_from(node.int(name).unwrap_or(0)).unwrap_or(0);
    let (n, k, block, bits) = (size("N"), size("K"), size("block_size"), node.int("bits").unwrap_or(4));
    let (dtype, middle) = match bits {
        2 => (DType::U2, 2),
        4 => (DType::U4, 8),
        8 => (DType::U8, 128),
        _ => return Err(node.unsupported(format!("{bits} bits are not supported; quantize it to 2, 4 or 8"))),
    };
    if n == 0 || k == 0 || block < 16 || !block.is_power_of_two() || size("weight_prepacked") != 0 {
        return Err(node.unsupported("N, K and block_size are not those of a plain weight"));
    }
    let (Some(b), Some(scales)) = (r.constant(&node, 1), r.constant(&node, 2)) else {
        return Err(node.unsupported("its weight or its scales are computed; give constants"));
    };
    let blocks = k.div_ceil(block);
    let in_order = |g: &Tensor| g.to_i64().is_some_and(|g| g.iter().enumerate().all(|(k, g)| *g == (k / block) as i64));
    if node.input(4).is_some() && !r.constant(&node, 4).is_some_and(in_order) {
        return Err(node.unsupported("the inputs are in another order (g_idx); quantize without reordering"));
    }
    let expected = [n, blocks, block, bits as usize].iter().try_fold(1u64, |bits, &x| bits.checked_mul(x as u64));
    if b.dtype != DType::U8 || expected != Some(8 * b.byte_len() as u64) {
        return Err(node.unsupported("its weight is not [N, blocks, block_size * bits / 8] of uint8"));
    }
    let whole = Tensor::new(dtype, vec![n, blocks * block], b.bytes())?;
    let elements = if blocks * block == k { whole } else { cut(&whole, k)? };
    let zero = match r.constant(&node, 3) {
        None if node.input(3).is_some() => return Err(node.unsupported("its zero points are computed; give constants")),
        None => Tensor::from_i64(&[n, blocks], &vec![middle; n * blocks]),
        // As half-quadratic quantizers write them.
        Some(z) if z.dtype.is_float() => z.clone(),
        Some(z) => {
            let row = (blocks * bits as usize).div_ceil(8);
            let rows = (8 / bits as usize) * row;
            if z.dtype != DType::U8 || z.byte_len() != n * row {
                return Err(node.unsupported("its zero points are not packed like its weight; quantize it again"));
            }
            let z = Tensor::new(dtype, vec![n, rows], z.bytes())?.to_i64().expect("integers");
            let z: Vec<i64> = z.chunks(rows).flat_map(|row| &row[..blocks]).copied().collect();
            Tensor::from_i64(&[n, blocks], &z)
        }
    };
    let integers = Integers::new(elements, scales, Some(&zero), Shares::Blocks { axis: 1, block });
    let weight = Tensor::from_integers(integers.map_err(|e| node.unsupported(e.to_string()))?);
    let name = r.constant_of(&node.inputs[1], weight.rewritten(Rewrite::Transpose));
    product(r, i, &node, &name, node.input(5))
}

/// The first `k` elements of each row, a byte each.
fn cut(whole: &Tensor, k: usize) -> Result<Tensor> {
    let [rows, columns] = <[usize; 2]>::try_from(whole.dims()).expect("a matrix");
    let codes = whole.to_i64().expect("integers");
    let codes: Vec<u8> = codes.chunks(columns).flat_map(|row| row[..k].iter().map(|&q| q as u8)).collect();
    Tensor::new(DType::U8, vec![rows, k], codes.into())
}

/// The node at `i` becomes `x weight + bias`.
fn product(r: &mut Rewriter<'_>, i: usize, node: &Node, weight: &str, bias: Option<&str>) -> Result<bool> {
    let made = |op: &str, name: &str, inputs: &[&str], output: &str| Node {
        opset: r.opset,
        scope: node.scope.clone(),
        ..Node::new(op, name, inputs, output)
    };
    let product = match bias {
        None => made("MatMul", &node.name, &[&node.inputs[0], weight], node.output()),
        Some(bias) => {
            let product = r.graph.fresh_name(&format!("{}.product", node.name));
            let add = made("Add", &format!("{}.bias", node.name), &[&product, bias], node.output());
            r.graph.nodes.insert(i + 1, add);
            made("MatMul", &node.name, &[&node.inputs[0], weight], &product)
        }
    };
    r.graph.nodes[i] = product;
    Ok(true)
}

/// `Mul(Cast(MatMulInteger(q, W)), Mul(scale of q, scale of W))` with q from `DynamicQuantizeLinear`, or the same with
/// `ConvInteger`: the product of what was quantized and the dequantized weight.
pub(super) fn integer(r: &mut Rewriter<'_>, i: usize) -> Result<bool> {
    let node = r.graph.nodes[i].clone();
    if !node.is("MatMulInteger") && !node.is("ConvInteger") {
        return Ok(false);
    }
    let links = &r.links;
    let at = |index: Option<usize>| index.map(|i| &r.graph.nodes[i]);
    let expected =
        || node.unsupported("it is not of the form that dynamic quantization writes; export the float model");
    let quantized = node.input(0).and_then(|q| at(links.producer(q))).filter(|n| n.is("DynamicQuantizeLinear"));
    let quantized = quantized.filter(|n| n.outputs.len() == 3 && node.input(2) == Some(&n.outputs[2]));
    let quantized = quantized.ok_or_else(expected)?;
    let cast = at(links.only_consumer(node.output())).filter(|n| n.is("Cast")).ok_or_else(expected)?;
    let last = links.only_consumer(cast.output()).ok_or_else(expected)?;
    let scaled = Some(&r.graph.nodes[last]).filter(|n| n.is("Mul")).ok_or_else(expected)?;
    let scales = scaled.inputs.iter().find(|i| *i != cast.output()).and_then(|s| at(links.producer(s)));
    let scales = scales.filter(|n| n.is("Mul")).ok_or_else(expected)?;
    let scale = scales.inputs.iter().find(|i| **i != quantized.outputs[1]).ok_or_else(expected)?;
    if !scales.inputs.contains(&quantized.outputs[1]) {
        return Err(expected());
    }
    let (weight, scale) = (r.constant(&node, 1), r.graph.constants.get(scale));
    let (Some(weight), Some(scale)) = (weight, scale) else { return Err(expected()) };
    let axis = if node.is("ConvInteger") { 0 } else { weight.dims().len() as i64 - 1 };
    let zero = r.constant(&node, 3);
    if zero.is_none() && node.input(3).is_some() {
        return Err(expected());
    }
    let integers = of_axis(weight, scale, zero, axis).map_err(|e| node.unsupported(e.to_string()))?;
    let (x, output, name) = (quantized.inputs[0].clone(), scaled.output().to_owned(), node.inputs[1].clone());
    let name = r.weight(&name, integers);
    let op_type = if node.is("ConvInteger") { "Conv" } else { "MatMul" };
    let opset = r.opset;
    r.graph.nodes[i] = Node {
        op_type: op_type.into(),
        name: plain_name(&node.name, &node.op_type, op_type),
        inputs: vec![x, name],
        outputs: vec![output.clone()],
        opset,
        ..node
    };
    // The old maker of the value is swept.
    let unused = r.graph.fresh_name(&format!("{output}.quantized"));
    r.graph.nodes[last].outputs[0] = unused;
    Ok(true)
}

/// The name of a node without what the quantizer of onnxruntime appends.
fn plain_name(name: &str, old: &str, new: &str) -> String {
    name.strip_suffix("_quant").unwrap_or(name).replace(old, new)
}

/// Integers with one scale, or one for each index of an axis; one zero point stands for all.
fn of_axis(weight: &Tensor, scale: &Tensor, zero: Option<&Tensor>, axis: i64) -> Result<Integers> {
    let shared = shares(scale, weight.dims().len(), axis, 0);
    let shared = shared.ok_or_else(|| Error::Invalid("a quantized weight has no axis for its scales".into()))?;
    let repeated = zero.filter(|z| z.len() == 1 && scale.len() > 1).and_then(Tensor::to_i64);
    let repeated = repeated.map(|z| Tensor::from_i64(&[scale.len()], &vec![z[0]; scale.len()]));
    // Scales of convolutions come as [N, 1, 1].
    Integers::new(weight.clone(), scale, repeated.as_ref().or(zero), shared)
}

/// onnxruntime's `DynamicQuantizeMatMul`: the product of a float value and an integer weight.
pub(super) fn dynamic(r: &mut Rewriter<'_>, i: usize) -> Result<bool> {
    let node = r.graph.nodes[i].clone();
    if node.op_type != "DynamicQuantizeMatMul" || node.domain != MICROSOFT {
        return Ok(false);
    }
    let (Some(weight), Some(scale)) = (r.constant(&node, 1), r.constant(&node, 2)) else {
        return Err(node.unsupported("its weight or its scale is computed; give constants"));
    };
    if node.input(3).is_some() && r.constant(&node, 3).is_none() {
        return Err(node.unsupported("its zero point is computed; give a constant"));
    }
    let axis = weight.dims().len() as i64 - 1;
    let integers = of_axis(weight, scale, r.constant(&node, 3), axis).map_err(|e| node.unsupported(e.to_string()))?;
    let name = r.weight(&node.inputs[1], integers);
    product(r, i, &node, &name, node.input(4))
}
