use inlay_devices::kernels::{BinaryOp, Pool, PoolGrad, PoolOp, PoolParams, ReduceOp};

use super::host;
use super::{Case, CaseInput, NodeView, Op, OpError, TensorType, axis_of};
use crate::graph::{Attributes, DType, HostData, HostTensor};
use crate::plan::{Backward, Forward, View, accumulated, contiguous_strides, u};

/// `ReduceSum`, `ReduceMean` and `ReduceMax` over some axes.
pub struct Reduce {
    op_type: &'static str,
    kind: Kind,
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Sum,
    Mean,
    Max,
}

/// The ops of this family.
pub static REDUCE: [Reduce; 3] = [
    Reduce { op_type: "ReduceSum", kind: Kind::Sum },
    Reduce { op_type: "ReduceMean", kind: Kind::Mean },
    Reduce { op_type: "ReduceMax", kind: Kind::Max },
];

/// The reduced axes, in order.
fn axes(node: &NodeView<'_>) -> Result<Vec<usize>, OpError> {
    let rank = node.shape(0)?.len();
    let listed = match node.optional_ints(1)? {
        Some(axes) => Some(axes),
        None => node.attributes.ints("axes").map(<[i64]>::to_vec),
    };
    let mut axes = match listed {
        Some(axes) if !axes.is_empty() => axes.into_iter().map(|a| axis_of(a, rank)).collect::<Result<Vec<_>, _>>()?,
        _ if node.attributes.int("noop_with_empty_axes", 0) != 0 => Vec::new(),
        _ => (0..rank).collect(),
    };
    axes.sort_unstable();
    axes.dedup();
    Ok(axes)
}

/// The shape of the result with reduced axes of length 1.
fn kept_shape(shape: &[usize], axes: &[usize]) -> Vec<usize> {
    shape.iter().enumerate().map(|(i, &d)| if axes.contains(&i) { 1 } else { d }).collect()
}

impl Reduce {
    fn scale(&self, shape: &[usize], axes: &[usize]) -> f32 {
        match self.kind {
            Kind::Mean => 1.0 / axes.iter().map(|&a| shape[a]).product::<usize>() as f32,
            _ => 1.0,
        }
    }
}

/// The order of dimensions that puts reduced ones last.
fn reduced_last(rank: usize, axes: &[usize]) -> Vec<usize> {
    (0..rank).filter(|i| !axes.contains(i)).chain(axes.iter().copied()).collect()
}

/// The maximum of each row as a pool, whose gradient goes to the first of equal elements.
fn rows_pool(x: &View, reduced: usize, flags: u32) -> PoolParams {
    let planes = x.count() / reduced.max(1);
    PoolParams {
        planes: u(planes),
        h: 1,
        w: u(reduced),
        out_h: 1,
        out_w: 1,
        kernel_h: 1,
        kernel_w: u(reduced),
        stride_h: 1,
        stride_w: 1,
        pad_top: 0,
        pad_left: 0,
        pad_bottom: 0,
        pad_right: 0,
        dilation_h: 1,
        dilation_w: 1,
        op: PoolOp::Max as u32,
        flags,
    }
}

impl Op for Reduce {
    fn op_type(&self) -> &'static str {
        self.op_type
    }

    fn infer(&self, node: &NodeView<'_>) -> Result<Vec<TensorType>, OpError> {
        let x = node.ty(0)?;
        let axes = axes(node)?;
        if self.kind != Kind::Sum && axes.iter().any(|&a| x.shape[a] == 0) {
            return Err(node.shape_error("there is nothing to reduce"));
        }
        let shape = if node.attributes.int("keepdims", 1) != 0 {
            kept_shape(&x.shape, &axes)
        } else {
            (0..x.shape.len()).filter(|i| !axes.contains(i)).map(|i| x.shape[i]).collect()
        };
        Ok(vec![TensorType::new(x.dtype, shape)])
    }

    fn on_host(&self) -> bool {
        true
    }

    fn evaluate(&self, node: &NodeView<'_>) -> Result<Vec<HostTensor>, OpError> {
        let x = node.value(0)?;
        let axes = axes(node)?;
        let ty = self.infer(node)?.remove(0);
        let perm = reduced_last(x.shape().len(), &axes);
        let strides = contiguous_strides(x.shape());
        let shape: Vec<usize> = perm.iter().map(|&p| x.shape()[p]).collect();
        let order = host::positions(&shape, &perm.iter().map(|&p| strides[p] as isize).collect::<Vec<_>>(), 0);
        let count: usize = axes.iter().map(|&a| x.shape()[a]).product();
        let data: HostData = match x.data() {
            HostData::F32(floats) => {
                let scale = self.scale(x.shape(), &axes);
                let row = |row: &[usize]| {
                    let values = row.iter().map(|&p| floats[p]);
                    match self.kind {
                        Kind::Max => values.fold(f32::NEG_INFINITY, f32::max),
                        _ => values.sum::<f32>() * scale,
                    }
                };
                rows(&order, count, ty.len()).map(row).collect::<Vec<f32>>().into()
            }
            HostData::I64(ints) if self.kind != Kind::Mean => {
                let row = |row: &[usize]| {
                    let values = row.iter().map(|&p| ints[p]);
                    match self.kind {
                        Kind::Max => values.max().unwrap_or(i64::MIN),
                        _ => values.fold(0i64, i64::wrapping_add),
                    }
                };
                rows(&order, count, ty.len()).map(row).collect::<Vec<i64>>().into()
            }
            _ => return Err(OpError::DType { input: 0, found: x.dtype(), expected: "floats, or 64-bit integers" }),
        };
        Ok(vec![HostTensor::of(ty.shape, data)])
    }

    fn differentiable(&self, input: usize) -> bool {
        input == 0
    }

    fn forward(&self, cx: &mut Forward<'_, '_>) -> Result<(), OpError> {
        let node = cx.node();
        if node.ty(0)?.dtype != DType::F32 {
            return Err(OpError::DType { input: 0, found: node.ty(0)?.dtype, expected: "floats" });
        }
        let axes = axes(&node)?;
        let x = cx.input(0)?;
        let y = cx.output(0);
        if self.kind == Kind::Max {
            let rows = x.permuted(&reduced_last(x.shape().len(), &axes));
            let rows = cx.contiguous(&rows);
            let reduced = axes.iter().map(|&a| x.shape()[a]).product();
            cx.call::<Pool>(&rows_pool(&x, reduced, 0), &[rows.into(), y.into()]);
            return Ok(());
        }
        cx.reduce(ReduceOp::Sum, &x, &axes, self.scale(x.shape(), &axes), &y, false)
    }

    fn backward(&self, cx: &mut Backward<'_, '_>) -> Result<(), OpError> {
        let axes = axes(&cx.node())?;
        let Some(dy) = cx.contiguous_gradient(0) else { return Ok(()) };
        let x = cx.input(0)?;
        if self.kind == Kind::Max {
            let perm = reduced_last(x.shape().len(), &axes);
            let rows = cx.contiguous(&x.permuted(&perm));
            let reduced = axes.iter().map(|&a| x.shape()[a]).product();
            let drows = cx.scratch(rows.shape());
            let params = rows_pool(&x, reduced, accumulated(false));
            cx.call::<PoolGrad>(&params, &[(&rows).into(), (&dy).into(), (&drows).into()]);
            let (target, accumulate) = cx.target(0)?;
            cx.copy(&drows, &target.permuted(&perm), accumulate);
            return Ok(());
        }
        let dy = dy.reshaped(&kept_shape(x.shape(), &axes)).expect("it is row-major").broadcast_to(x.shape());
        let scale = self.scale(x.shape(), &axes);
        if scale == 1.0 {
            let (target, accumulate) = cx.target(0)?;
            cx.copy(&dy, &target, accumulate);
            return Ok(());
        }
        let scale = cx.constant(&[], &[scale]);
        cx.add(0, |l, dx, acc| l.binary(BinaryOp::Mul, [&dy, &scale], dx, acc))
    }

    fn samples(&self) -> Vec<Case> {
        let case = |label: &str, attributes, inputs| Case::new(label, attributes, inputs);
        let keep = || Attributes::default().with_int("keepdims", 1);
        let drop = || Attributes::default().with_int("keepdims", 0);
        let x = || CaseInput::step(1, &[2, 3, 4, 5]);
        vec![
            case("last", keep(), vec![x(), CaseInput::ints(&[-1])]),
            case("inner", drop(), vec![x(), CaseInput::ints(&[1])]),
            case("first and third", drop(), vec![x(), CaseInput::ints(&[2, 0])]),
            case("all", drop(), vec![x()]),
        ]
    }
}

/// The elements that each result is made of.
fn rows(order: &[usize], count: usize, results: usize) -> impl Iterator<Item = &[usize]> {
    (0..results).map(move |i| &order[i * count..(i + 1) * count])
}
