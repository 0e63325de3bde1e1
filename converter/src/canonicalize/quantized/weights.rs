//! Quantized constants, with what makes floats of them.

use super::{Rewriter, shares};
use crate::error::Result;
use crate::graph::{Attribute, Node};
use crate::integers::{Integers, Shares};
use crate::tensor::{DType, Tensor};

/// `QuantizeLinear` of a float constant: the integers are computed, as quantization-aware training exports them.
pub(super) fn quantize_constant(r: &mut Rewriter<'_>, i: usize) -> Result<bool> {
    let node = &r.graph.nodes[i];
    let (Some(x), Some(scale), true) = (r.constant(node, 0), r.constant(node, 1), node.is("QuantizeLinear")) else {
        return Ok(false);
    };
    let zero = r.constant(node, 2);
    let dtype = zero.map_or(DType::U8, |z| z.dtype);
    let range = match dtype {
        DType::U8 => 0.0..=255.0f32,
        DType::I8 => -128.0..=127.0,
        _ => return Ok(false),
    };
    let shared = shares(scale, x.dims().len(), node.int("axis").unwrap_or(1), node.int("block_size").unwrap_or(0));
    let Some(shared) = shared.filter(|s| !matches!(s, Shares::Blocks { .. }) && x.dtype.is_float()) else {
        return Ok(false);
    };
    let (dims, values, scales) = (x.dims().to_vec(), x.to_f32(), scale.to_f32());
    let zeros = zero.map_or_else(|| vec![0.0; scales.len()], Tensor::to_f32);
    let (length, inner) = match shared {
        Shares::Axis(axis) => (dims[axis], dims[axis + 1..].iter().product::<usize>()),
        _ => (1, 1),
    };
    if scales.len() != length || zeros.len() != length {
        return Err(node.unsupported("there are not as many scales and zero points as its axis is long"));
    }
    let at = |i: usize| i / inner.max(1) % length;
    let code = |(i, x): (usize, f32)| {
        let q = ((x / scales[at(i)]).round_ties_even() + zeros[at(i)]).clamp(*range.start(), *range.end());
        if dtype == DType::I8 { (q as i8).cast_unsigned() } else { q as u8 }
    };
    let codes: Vec<u8> = values.into_iter().enumerate().map(code).collect();
    let name = r.graph.fresh_name(&format!("{}_quantized", node.inputs[0]));
    r.graph.constants.insert(name.clone(), Tensor::new(dtype, dims, codes.into())?);
    r.becomes_constant(i, &name);
    Ok(true)
}

/// `DequantizeLinear` of a constant, per tensor, per axis or in blocks.
pub(super) fn dequantize(r: &mut Rewriter<'_>, i: usize) -> Result<bool> {
    let node = r.graph.nodes[i].clone();
    let (Some(q), Some(scale), true) = (r.constant(&node, 0), r.constant(&node, 1), node.is("DequantizeLinear")) else {
        return Ok(false);
    };
    if node.input(2).is_some() && r.constant(&node, 2).is_none() {
        return Err(node.unsupported("its zero point is computed; quantize the model with constant zero points"));
    }
    let rank = q.dims().len();
    let shared = shares(scale, rank, node.int("axis").unwrap_or(1), node.int("block_size").unwrap_or(0));
    let shared = shared.ok_or_else(|| node.unsupported("its axis is beyond the rank of its input"))?;
    let integers = Integers::new(q.clone(), scale, r.constant(&node, 2), shared);
    let integers = integers.map_err(|e| node.unsupported(e.to_string()))?;
    let name = if rank < 2 {
        let floats = Tensor::from_f32(integers.dims(), &integers.floats());
        r.graph.add_constant(&format!("{}.floats", node.inputs[0]), floats)
    } else {
        r.weight(&node.inputs[0], integers)
    };
    r.becomes_constant(i, &name);
    Ok(true)
}

/// `Mul` of a constant scale and the `Cast` of constant integers, from which `Sub` may take a constant zero point.
pub(super) fn scaled_cast(r: &mut Rewriter<'_>, i: usize) -> Result<bool> {
    let node = r.graph.nodes[i].clone();
    if !node.is("Mul") {
        return Ok(false);
    }
    let made = |value: &str| r.links.producer(value).map(|i| &r.graph.nodes[i]);
    for (scaled, scale) in [(0, 1), (1, 0)] {
        let (Some(mut cast), Some(scale)) = (node.input(scaled).and_then(made), r.constant(&node, scale)) else {
            continue;
        };
        let zero = if cast.is("Sub") {
            let Some(zero) = r.constant(cast, 1) else { continue };
            let Some(before) = cast.input(0).and_then(made) else { continue };
            cast = before;
            Some(zero)
        } else {
            None
        };
        let (Some(q), true) = (r.constant(cast, 0), cast.is("Cast")) else { continue };
        let rank = q.dims().len();
        if !matches!(q.dtype, DType::I8 | DType::U8 | DType::I4 | DType::U4) || rank < 2 {
            continue;
        }
        // The one axis along which the scale changes.
        let axes = broadcast_axes(scale, rank);
        let shared = match axes.as_deref() {
            Some([]) => Shares::All,
            Some([axis]) if scale.len() == q.dims()[*axis] => Shares::Axis(*axis),
            _ => continue,
        };
        let zero = match zero.map(|zero| (zero, zero.to_f32())) {
            None => None,
            Some((_, zeros)) if zeros.iter().any(|z| z.fract() != 0.0 || z.abs() > 255.0) => continue,
            Some((zero, zeros)) if zeros.len() == 1 || broadcast_axes(zero, rank) == axes => {
                let whole = (0..scale.len()).map(|i| zeros[i % zeros.len()] as i64).collect::<Vec<_>>();
                Some(Tensor::from_i64(&[whole.len()], &whole))
            }
            _ => continue,
        };
        let integers = Integers::new(q.clone(), scale, zero.as_ref(), shared)?;
        let name = cast.inputs[0].clone();
        let name = r.weight(&name, integers);
        r.becomes_constant(i, &name);
        return Ok(true);
    }
    Ok(false)
}

/// The axes of a value of rank `rank` along which `factor` is longer than one; `None` if it has more axes.
fn broadcast_axes(factor: &Tensor, rank: usize) -> Option<Vec<usize>> {
    let missing = rank.checked_sub(factor.dims().len())?;
    let long = factor.dims().iter().enumerate().filter(|(_, d)| **d != 1);
    Some(long.map(|(i, _)| i + missing).collect())
}

/// `DequantizeLinear` of rows that are gathered from a constant: the table is dequantized, then its rows gathered.
pub(super) fn dequantized_rows(r: &mut Rewriter<'_>, i: usize) -> Result<bool> {
    let node = r.graph.nodes[i].clone();
    let gather = node.input(0).filter(|_| node.is("DequantizeLinear")).and_then(|q| r.links.producer(q));
    let Some((at, gather)) = gather.map(|at| (at, r.graph.nodes[at].clone())).filter(|(_, g)| g.is("Gather")) else {
        return Ok(false);
    };
    let (Some(table), Some(scale)) = (r.constant(&gather, 0), r.constant(&node, 1).filter(|s| s.len() == 1)) else {
        return Ok(false);
    };
    let zero = r.constant(&node, 2);
    if zero.is_none() && node.input(2).is_some() {
        return Ok(false);
    }
    let integers = Integers::new(table.clone(), scale, zero, Shares::All);
    let integers = integers.map_err(|e| node.unsupported(e.to_string()))?;
    let name = r.weight(&gather.inputs[0], integers);
    let rows = Node { name: gather.name.clone(), ..gather };
    let inputs = vec![name, rows.inputs[1].clone()];
    r.graph.nodes[i] = Node { inputs, outputs: node.outputs, name: node.name, ..rows };
    debug_assert!(at < i, "nodes are sorted");
    Ok(true)
}

/// onnxruntime's `GatherBlockQuantized`: rows of a table in blocks along its rows.
pub(super) fn gathered_blocks(r: &mut Rewriter<'_>, i: usize) -> Result<bool> {
    let node = r.graph.nodes[i].clone();
    if node.op_type != "GatherBlockQuantized" || node.domain != super::super::primitives::MICROSOFT {
        return Ok(false);
    }
    let (Some(data), Some(scales)) = (r.constant(&node, 0), r.constant(&node, 2)) else {
        return Err(node.unsupported("its table or its scales are computed"));
    };
    let (block, axis) = (node.int("block_size").unwrap_or(128), node.int("quantize_axis").unwrap_or(1));
    if node.int("gather_axis").unwrap_or(0) != 0 || data.dims().len() != 2 || data.dims().contains(&0) || axis != 1 {
        return Err(node.unsupported("only rows of a matrix, quantized along its second axis, are supported"));
    }
    let data = match (data.dtype, node.int("bits").unwrap_or(4)) {
        (DType::U8, 4) => {
            let dims = vec![data.dims()[0], 2 * data.dims()[1]];
            Tensor::new(DType::U4, dims, data.bytes())?
        }
        (DType::U8, 8) | (DType::U4 | DType::I4, _) => data.clone(),
        _ => return Err(node.unsupported("only 4 and 8 bits are supported")),
    };
    let zero = match r.constant(&node, 3) {
        None if node.input(3).is_some() => return Err(node.unsupported("its zero points are computed")),
        Some(z) if z.dtype == DType::U8 && data.dtype == DType::U4 => {
            Some(Tensor::new(DType::U4, scales.dims().to_vec(), z.bytes())?)
        }
        Some(z) => Some(z.clone()),
        // Unsigned elements lie around the middle.
        None => match data.dtype {
            DType::U4 => Some(Tensor::from_i64(scales.dims(), &vec![8; scales.len()])),
            DType::U8 => Some(Tensor::from_i64(scales.dims(), &vec![128; scales.len()])),
            _ => None,
        },
    };
    let shared = shares(scales, 2, axis, block).ok_or_else(|| node.unsupported("its blocks have no axis"))?;
    let integers = Integers::new(data, scales, zero.as_ref(), shared).map_err(|e| node.unsupported(e.to_string()))?;
    let name = r.weight(&node.inputs[0], integers);
    let gather = Node::new("Gather", &node.name, &[&name, &node.inputs[1]], node.output());
    r.graph.nodes[i] = Node { opset: r.opset, scope: node.scope, ..gather.with("axis", Attribute::Int(0)) };
    Ok(true)
}
