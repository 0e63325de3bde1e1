use inlay_devices::kernels::{BinaryOp, Pool as PoolKernel, PoolGrad, PoolOp, PoolParams, ReduceOp};

use super::window::{Window, window};
use super::{Case, CaseInput, NodeView, Op, OpError, TensorType};
use crate::graph::Attributes;
use crate::plan::{Backward, Forward, Operand, accumulated, u};

/// `MaxPool`, `AveragePool`, and both over whole planes: `GlobalMaxPool`, `GlobalAveragePool`.
pub struct Pool {
    op_type: &'static str,
    op: PoolOp,
    global: bool,
}

/// The ops of this family.
pub static POOL: [Pool; 4] = [
    Pool { op_type: "MaxPool", op: PoolOp::Max, global: false },
    Pool { op_type: "AveragePool", op: PoolOp::Average, global: false },
    Pool { op_type: "GlobalMaxPool", op: PoolOp::Max, global: true },
    Pool { op_type: "GlobalAveragePool", op: PoolOp::Average, global: true },
];

impl Pool {
    fn is_mean_of_planes(&self) -> bool {
        self.global && self.op == PoolOp::Average
    }

    fn window(&self, node: &NodeView<'_>) -> Result<Window, OpError> {
        let shape = node.shape(0)?;
        if shape.len() < 3 {
            return Err(node.shape_error("x is [B, C, ..]"));
        }
        let size = &shape[2..];
        if self.global {
            // All dimensions as one row.
            let all = size.iter().product::<usize>();
            if all == 0 {
                return Err(node.shape_error("there is something to pool"));
            }
            return window(&NodeView { attributes: &Attributes::default(), ..node.clone() }, &[all], &[all]);
        }
        let kernel = node.attributes.ints("kernel_shape").unwrap_or_default();
        let kernel: Vec<usize> = kernel.iter().map(|&k| usize::try_from(k).unwrap_or(0)).collect();
        window(node, size, &kernel)
    }

    fn params(&self, node: &NodeView<'_>, flags: u32) -> Result<PoolParams, OpError> {
        let shape = node.shape(0)?;
        let w = self.window(node)?;
        let include = node.attributes.int("count_include_pad", 0) != 0 && self.op == PoolOp::Average;
        Ok(PoolParams {
            planes: u(shape[0] * shape[1]),
            h: u(w.size[0]),
            w: u(w.size[1]),
            out_h: u(w.out[0]),
            out_w: u(w.out[1]),
            kernel_h: u(w.kernel[0]),
            kernel_w: u(w.kernel[1]),
            stride_h: u(w.stride[0]),
            stride_w: u(w.stride[1]),
            pad_top: u(w.pad[0]),
            pad_left: u(w.pad[1]),
            pad_bottom: u(w.pad[2]),
            pad_right: u(w.pad[3]),
            dilation_h: u(w.dilation[0]),
            dilation_w: u(w.dilation[1]),
            op: self.op as u32,
            flags: flags | if include { PoolParams::COUNT_INCLUDE_PAD } else { 0 },
        })
    }
}

/// The axes of a plane of x [B, C, ..], and one over its number of elements.
fn planes(shape: &[usize]) -> (Vec<usize>, f32) {
    ((2..shape.len()).collect(), 1.0 / shape[2..].iter().product::<usize>() as f32)
}

impl Op for Pool {
    fn op_type(&self) -> &'static str {
        self.op_type
    }

    fn limits(&self) -> &'static str {
        match (self.global, self.op) {
            (true, _) => "",
            (false, PoolOp::Max) => "one or two spatial dimensions; no Indices",
            (false, _) => "one or two spatial dimensions",
        }
    }

    fn infer(&self, node: &NodeView<'_>) -> Result<Vec<TensorType>, OpError> {
        if node.outputs > 1 {
            return Err(OpError::Unsupported { what: "indices as an output", way_out: "re-export the model" });
        }
        let x = node.ty(0)?;
        let w = self.window(node)?;
        let mut shape = x.shape[..2].to_vec();
        let spatial = x.shape.len() - 2;
        if self.global {
            shape.extend(vec![1; spatial]);
        } else {
            shape.extend(&w.out[2 - spatial..]);
        }
        Ok(vec![TensorType::new(x.dtype, shape)])
    }

    fn differentiable(&self, _: usize) -> bool {
        true
    }

    fn forward(&self, cx: &mut Forward<'_, '_>) -> Result<(), OpError> {
        let params = self.params(&cx.node(), 0)?;
        if self.is_mean_of_planes() {
            // Planes are read as they lie.
            let x = cx.input(0)?;
            let (axes, scale) = planes(x.shape());
            let y = cx.output(0);
            return cx.reduce(ReduceOp::Sum, &x, &axes, scale, &y, false);
        }
        let x = cx.contiguous_input(0)?;
        let y = cx.output(0);
        cx.call::<PoolKernel>(&params, &[x.into(), y.into()]);
        Ok(())
    }

    fn backward(&self, cx: &mut Backward<'_, '_>) -> Result<(), OpError> {
        let node = cx.node();
        let Some(dy) = cx.contiguous_gradient(0) else { return Ok(()) };
        if self.is_mean_of_planes() {
            let shape = node.shape(0)?;
            let scale = cx.constant(&[], &[planes(shape).1]);
            return cx.add(0, |l, dx, acc| l.binary(BinaryOp::Mul, [&dy.broadcast_to(shape), &scale], dx, acc));
        }
        let x = match self.op {
            PoolOp::Max => Operand::from(cx.contiguous_input(0)?),
            PoolOp::Average => Operand::ABSENT,
        };
        cx.add(0, |l, dx, acc| {
            l.call::<PoolGrad>(&self.params(&node, accumulated(acc))?, &[x, dy.into(), dx.into()]);
            Ok(())
        })
    }

    fn samples(&self) -> Vec<Case> {
        let plain = Attributes::default();
        let case = |label: &str, attributes: Attributes, shape: &[usize]| {
            Case::new(label, attributes, vec![CaseInput::step(1, shape)])
        };
        if self.global {
            return vec![case("signal", plain.clone(), &[2, 3, 7]), case("image", plain, &[2, 3, 4, 5])];
        }
        let signal = plain.clone().with_ints("kernel_shape", &[3]).with_ints("strides", &[2]);
        let image = plain
            .with_ints("kernel_shape", &[2, 3])
            .with_ints("strides", &[3, 1])
            .with_ints("pads", &[1, 0, 0, 1])
            .with_int("ceil_mode", 1);
        let mut cases = vec![
            case("signal", signal.clone(), &[2, 3, 9]),
            case("padded", signal.clone().with_ints("pads", &[1, 1]), &[2, 3, 8]),
            case("image", image, &[2, 2, 5, 4]),
            case("same padding", signal.clone().with_string("auto_pad", "SAME_UPPER"), &[2, 3, 8]),
        ];
        if self.op == PoolOp::Average {
            let included = signal.with_ints("pads", &[1, 1]).with_int("count_include_pad", 1);
            cases.push(case("padding counts", included, &[2, 3, 8]));
        }
        cases
    }
}
