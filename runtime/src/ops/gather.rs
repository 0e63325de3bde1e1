use inlay_devices::kernels::{Gather as GatherKernel, GatherGrad, GatherParams, GatherRows, GatherRowsParams};

use inlay_format::quant::{Form, ZeroPoints};

use super::{Case, CaseInput, NodeView, Op, OpError, TensorType};
use crate::graph::{Attributes, HostTensor};
use crate::plan::{Backward, Forward, accumulated, u};

/// Slices of an axis by number: rows of a frozen table (an embedding), or slices of a computed value.
pub struct Gather;

fn axis(node: &NodeView<'_>) -> Result<usize, OpError> {
    node.axis(node.attributes.int("axis", 0), node.shape(0)?.len())
}

fn params(node: &NodeView<'_>, flags: u32) -> Result<GatherParams, OpError> {
    let (shape, axis) = (node.shape(0)?, axis(node)?);
    Ok(GatherParams {
        outer: u(shape[..axis].iter().product()),
        axis_len: u(shape[axis]),
        count: u(node.ty(1)?.len()),
        inner: u(shape[axis + 1..].iter().product()),
        flags,
    })
}

/// The only index, where it is one that is known.
fn single(node: &NodeView<'_>) -> Result<Option<usize>, OpError> {
    let index = node.input(1)?;
    let (Some(value), true) = (index.value, index.ty.shape.is_empty()) else { return Ok(None) };
    let len = node.shape(0)?[axis(node)?];
    let ints = value.ints().ok_or(OpError::DType { input: 1, found: value.dtype(), expected: "integers" })?;
    within(ints[0], len).map(Some)
}

fn within(index: i64, len: usize) -> Result<usize, OpError> {
    let from_front = if index < 0 { index.saturating_add(len as i64) } else { index };
    usize::try_from(from_front).ok().filter(|&i| i < len).ok_or_else(|| OpError::Value {
        what: "an index",
        found: format!("{index} of {len}"),
        expected: "one that exists",
    })
}

impl Op for Gather {
    fn op_type(&self) -> &'static str {
        "Gather"
    }

    fn infer(&self, node: &NodeView<'_>) -> Result<Vec<TensorType>, OpError> {
        let x = node.ty(0)?;
        let axis = axis(node)?;
        let shape = [&x.shape[..axis], node.shape(1)?, &x.shape[axis + 1..]].concat();
        Ok(vec![TensorType::new(x.dtype, shape)])
    }

    fn on_host(&self) -> bool {
        true
    }

    fn evaluate(&self, node: &NodeView<'_>) -> Result<Vec<HostTensor>, OpError> {
        let x = node.value(0)?;
        let ty = self.infer(node)?.remove(0);
        let GatherParams { outer, axis_len, inner, .. } = params(node, 0)?;
        let (outer, axis_len, inner) = (outer as usize, axis_len as usize, inner as usize);
        let indices = node.ints(1)?.into_iter().map(|i| within(i, axis_len)).collect::<Result<Vec<_>, _>>()?;
        let positions: Vec<usize> = (0..outer)
            .flat_map(|o| indices.iter().flat_map(move |i| (0..inner).map(move |c| (o * axis_len + i) * inner + c)))
            .collect();
        Ok(vec![x.select(&ty.shape, &positions)])
    }

    fn differentiable(&self, input: usize) -> bool {
        input == 0
    }

    fn forward(&self, cx: &mut Forward<'_, '_>) -> Result<(), OpError> {
        let node = cx.node();
        let axis = axis(&node)?;
        if let (Some(frozen), &[rows, width], 0) = (cx.frozen(0), node.shape(0)?, axis) {
            let ids = cx.integers(1, rows)?;
            let y = cx.output(0);
            let (table, weight) = cx.weight(&frozen, 0)?;
            let flags = weight.form_flags();
            let params = GatherRowsParams { count: u(ids.count()), width: u(width), rows: u(rows), flags };
            cx.call::<GatherRows>(&params, &[table, ids.into(), y.into()]);
            return Ok(());
        }
        if let Some(index) = single(&node)? {
            let mut view = cx.input(0)?.sliced(axis, index, 1, 1);
            view.shape.remove(axis);
            view.strides.remove(axis);
            cx.set_output(0, view);
            return Ok(());
        }
        let x = cx.contiguous_input(0)?;
        let ids = cx.integers(1, x.shape()[axis])?;
        let y = cx.output(0);
        cx.call::<GatherKernel>(&params(&node, 0)?, &[x.into(), ids.into(), y.into()]);
        Ok(())
    }

    fn backward(&self, cx: &mut Backward<'_, '_>) -> Result<(), OpError> {
        let node = cx.node();
        if single(&node)?.is_some() {
            // The gradient is a part of that of the input.
            return Ok(());
        }
        let Some(dy) = cx.contiguous_gradient(0) else { return Ok(()) };
        let ids = cx.integers(1, node.shape(0)?[axis(&node)?])?;
        cx.add(0, |l, dx, acc| {
            l.call::<GatherGrad>(&params(&node, accumulated(acc))?, &[dy.into(), ids.into(), dx.into()]);
            Ok(())
        })
    }

    fn samples(&self) -> Vec<Case> {
        let axis = |a: i64| Attributes::default().with_int("axis", a);
        let ids = || CaseInput::Fed(HostTensor::of([2, 3], vec![4i64, 0, -1, 2, 2, 6]));
        vec![
            Case::new("int8 table", axis(0), vec![CaseInput::int8(1, &[7, 5], 0), ids()]),
            Case::new(
                "int4 table",
                axis(0),
                vec![CaseInput::int4(1, [7, 48], Form { block: 16, zero_points: ZeroPoints::Integer }), ids()],
            ),
            Case::new("f32 table", axis(0), vec![CaseInput::constant(1, &[7, 5]), ids()]),
            Case::new("computed rows, one twice", axis(0), vec![CaseInput::step(1, &[7, 5]), ids()]),
            Case::new("inner axis", axis(1), vec![CaseInput::step(1, &[3, 7, 2]), ids()]),
            Case::new("one index", axis(1), vec![CaseInput::step(1, &[3, 7, 2]), CaseInput::int(-2)]),
            Case::new("constant ids", axis(1), vec![CaseInput::step(1, &[3, 7]), CaseInput::ints(&[6, 1, 1])]),
        ]
    }
}

/// Elements or slices by a list of index tuples; on the host only.
pub struct GatherNd;

impl Op for GatherNd {
    fn op_type(&self) -> &'static str {
        "GatherND"
    }

    fn infer(&self, node: &NodeView<'_>) -> Result<Vec<TensorType>, OpError> {
        let (x, indices) = (node.ty(0)?, node.shape(1)?);
        let batch = usize::try_from(node.attributes.int("batch_dims", 0)).unwrap_or(usize::MAX);
        let depth = *indices.last().ok_or_else(|| node.shape_error("indices have a last axis"))?;
        if batch.checked_add(depth).is_none_or(|d| d > x.shape.len()) || indices.len() <= batch {
            return Err(node.shape_error("indices have no more elements than the data has axes"));
        }
        let shape = [&indices[..indices.len() - 1], &x.shape[batch + depth..]].concat();
        Ok(vec![TensorType::new(x.dtype, shape)])
    }

    fn on_host(&self) -> bool {
        true
    }

    fn evaluate(&self, node: &NodeView<'_>) -> Result<Vec<HostTensor>, OpError> {
        let x = node.value(0)?;
        let ty = self.infer(node)?.remove(0);
        let indices = node.value(1)?;
        let batch = node.attributes.int("batch_dims", 0) as usize;
        let depth = *indices.shape().last().expect("infer checked");
        let list = node.ints(1)?;
        let inner: usize = x.shape()[batch + depth..].iter().product();
        let batches: usize = x.shape()[..batch].iter().product();
        let tuples = list.len().checked_div(depth).unwrap_or(0);
        let per_batch = tuples / batches.max(1);
        let mut positions = Vec::with_capacity(tuples * inner);
        for (t, tuple) in list.chunks_exact(depth.max(1)).enumerate() {
            let mut at = t / per_batch.max(1);
            for (i, &index) in tuple.iter().enumerate() {
                let len = x.shape()[batch + i];
                at = at * len + within(index, len)?;
            }
            positions.extend(at * inner..(at + 1) * inner);
        }
        if positions.len() != ty.len() {
            return Err(node.shape_error("leading dimensions agree"));
        }
        Ok(vec![x.select(&ty.shape, &positions)])
    }

    fn differentiable(&self, _: usize) -> bool {
        false
    }

    fn forward(&self, _: &mut Forward<'_, '_>) -> Result<(), OpError> {
        Err(OpError::Unsupported { what: "GatherND of computed floats", way_out: "use Gather in the model" })
    }

    fn backward(&self, _: &mut Backward<'_, '_>) -> Result<(), OpError> {
        Err(OpError::NotDifferentiable { what: "GatherND" })
    }

    fn samples(&self) -> Vec<Case> {
        let indices = HostTensor::of([2, 1, 2], vec![0i64, 1, 2, -1]);
        let mask = CaseInput::Fed(HostTensor::of([3, 2], vec![true, false, true, true, false, true]));
        vec![Case::new("a mask", Attributes::default(), vec![mask, CaseInput::Constant(indices)])]
    }
}
