use inlay_devices::kernels::{Col2im, Depthwise, DepthwiseGrad, Im2col, ReduceOp};

use super::conv::{Factor, Sizes, pixel_order, pixels, zero};
use super::matmul::transposed;
use super::window::transposed_window;
use super::{Case, CaseInput, NodeView, Op, OpError, Simplified, TensorType};
use crate::graph::Attributes;
use crate::plan::{Backward, Forward, Lowering, Operand, View, accumulated};

/// Transposed convolution in one or two dimensions: what the gradient of a convolution is, its gradient is a convolution.
///
/// x [B, C_in, ..] as rows, times the weight [C_in, C_out k], are patches that overlap in the result [B, C_out, ..]. The
/// frozen weight lies as that of a convolution from C_out to C_in, and takes the same kernels the other way round.
pub struct ConvTranspose;

/// Sizes of the convolution whose gradient this is: its channels are C_out here, its output channels C_in.
fn sizes(node: &NodeView<'_>) -> Result<Sizes, OpError> {
    let (x, w) = (node.shape(0)?, node.shape(1)?);
    let groups = usize::try_from(node.attributes.int("group", 1)).unwrap_or(0);
    if x.len() < 3 || w.len() != x.len() || groups == 0 || x[1] != w[0] || !w[0].is_multiple_of(groups) {
        return Err(node.shape_error("x is [B, C, ..] and the weight [C, C_out / group, ..]"));
    }
    if node.attributes.ints("kernel_shape").is_some_and(|k| k.iter().zip(&w[2..]).any(|(&k, &w)| k != w as i64)) {
        return Err(node.shape_error("kernel_shape is that of the weight"));
    }
    let window = transposed_window(node, &x[2..], &w[2..])?;
    let sizes = Sizes { batch: x[0], channels: w[1] * groups, out_channels: x[1], groups, window };
    let area = sizes.window.size[0].checked_mul(sizes.window.size[1]);
    let result = area.and_then(|area| area.checked_mul(sizes.batch)?.checked_mul(sizes.channels));
    if [sizes.k().checked_mul(sizes.m()), result].iter().any(|len| len.is_none_or(|n| n > i32::MAX as usize)) {
        return Err(node.shape_error("patches fit the memory; use a smaller batch"));
    }
    Ok(sizes)
}

impl Op for ConvTranspose {
    fn op_type(&self) -> &'static str {
        "ConvTranspose"
    }

    fn limits(&self) -> &'static str {
        "one or two spatial dimensions; no insertion points"
    }

    fn infer(&self, node: &NodeView<'_>) -> Result<Vec<TensorType>, OpError> {
        let sizes = sizes(node)?;
        let mut shape = vec![sizes.batch, sizes.channels];
        shape.extend(&sizes.window.size[4 - node.shape(0)?.len()..]);
        Ok(vec![TensorType::new(node.ty(0)?.dtype, shape)])
    }

    fn simplify(&self, node: &NodeView<'_>) -> Result<Option<Simplified>, OpError> {
        zero(node)
    }

    fn differentiable(&self, _: usize) -> bool {
        true
    }

    fn forward(&self, cx: &mut Forward<'_, '_>) -> Result<(), OpError> {
        let sizes = sizes(&cx.node())?;
        let x = cx.input(0)?;
        let bias = match cx.node().optional(2) {
            Some(_) => Some(cx.contiguous_input(2)?),
            None => None,
        };
        let x = cx.contiguous(&pixels(&x));
        // What is computed adds to the bias.
        let flags = accumulated(bias.is_some());
        if let Some(frozen) = cx.frozen(1).filter(|_| sizes.is_depthwise()) {
            let (w, weight) = cx.weight(&frozen, 0)?;
            let order = pixel_order(x.shape().len());
            let shape: Vec<usize> = order.iter().map(|&d| cx.output_type(0).shape[d]).collect();
            let y = cx.scratch(&shape);
            if let Some(bias) = bias {
                cx.copy(&bias.broadcast_to(&shape), &y, false);
            }
            let params = sizes.depthwise(weight.form_flags() | flags);
            cx.call::<DepthwiseGrad>(&params, &[x.into(), w, (&y).into()]);
            let channels = y.shape().len() - 1;
            let back: Vec<usize> = [0, channels].into_iter().chain(1..channels).collect();
            cx.set_output(0, y.permuted(&back));
            return Ok(());
        }
        let factor = Factor::new(cx.frozen(1), &sizes, || cx.contiguous_input(1))?;
        let cols = cx.scratch(&[sizes.m(), sizes.k()]);
        factor.patches(cx, &sizes, [&rows(&x, &sizes), &cols], false)?;
        let y = cx.output(0);
        if let Some(bias) = bias {
            let shape = [&[sizes.channels], vec![1; x.shape().len() - 2].as_slice()].concat();
            let bias = bias.reshaped(&shape).expect("it is row-major");
            cx.copy(&bias.broadcast_to(y.shape()), &y, false);
        }
        cx.call::<Col2im>(&sizes.params(flags), &[cols.into(), y.into()]);
        Ok(())
    }

    fn backward(&self, cx: &mut Backward<'_, '_>) -> Result<(), OpError> {
        let sizes = sizes(&cx.node())?;
        let Some(dy) = cx.gradient(0) else { return Ok(()) };
        if cx.wants(2) {
            let axes: Vec<usize> = (0..dy.shape().len()).filter(|&axis| axis != 1).collect();
            cx.add(2, |l, dbias, acc| l.reduce(ReduceOp::Sum, &dy, &axes, 1.0, dbias, acc))?;
        }
        let order = pixel_order(dy.shape().len());
        if let Some(frozen) = cx.frozen(1).filter(|_| sizes.is_depthwise()) {
            let (w, weight) = cx.weight(&frozen, 0)?;
            let dy = cx.contiguous_copy(&pixels(&dy));
            return cx.add_in_order(0, &order, |l, dx, acc| {
                own(l, dx, acc, |l, dx| {
                    let params = sizes.depthwise(weight.form_flags());
                    l.call::<Depthwise>(&params, &[(&dy).into(), w, Operand::ABSENT, dx.into()]);
                });
                Ok(())
            });
        }
        let cols = cx.scratch(&[sizes.m(), sizes.k()]);
        let dy = cx.contiguous_copy(&dy);
        cx.call::<Im2col>(&sizes.params(0), &[dy.into(), (&cols).into()]);
        if cx.wants(1) {
            if sizes.groups != 1 {
                return Err(OpError::NotDifferentiable { what: "the weight of a grouped convolution" });
            }
            let x = cx.input(0)?;
            let x = cx.contiguous(&pixels(&x));
            let (x, shape) = (rows(&x, &sizes), [sizes.out_channels, sizes.k()]);
            cx.add_strided(1, &shape, |l, dw, acc| l.matmul(1.0, [&transposed(&x), &cols], dw, acc))?;
        }
        let factor = Factor::new(cx.frozen(1), &sizes, || cx.contiguous_input(1))?;
        cx.add_in_order(0, &order, |l, dx, acc| factor.rows(l, &sizes, [&cols, &rows(dx, &sizes)], acc))
    }

    fn samples(&self) -> Vec<Case> {
        let plain = Attributes::default();
        let signal = || CaseInput::step(1, &[2, 3, 4]);
        let case = |label: &str, attributes: &Attributes, inputs| Case::new(label, attributes.clone(), inputs);
        let doubled = plain.clone().with_ints("strides", &[2, 2]);
        let padded = plain
            .clone()
            .with_ints("strides", &[3])
            .with_ints("pads", &[1, 2])
            .with_ints("output_padding", &[1])
            .with_ints("dilations", &[2]);
        let image = || CaseInput::step(1, &[2, 4, 3, 2]);
        vec![
            case("signal", &plain, vec![signal(), CaseInput::constant(2, &[3, 2, 3]), CaseInput::constant(3, &[2])]),
            case(
                "twice as large, int8",
                &doubled,
                vec![image(), CaseInput::int8(2, &[4, 3, 2, 2], 0), CaseInput::step(3, &[3])],
            ),
            case(
                "strides, pads, dilations",
                &padded,
                vec![signal(), CaseInput::int8(2, &[3, 5, 3], 0), CaseInput::constant(3, &[5])],
            ),
            case("trained", &padded, vec![signal(), CaseInput::step(2, &[3, 2, 4]), CaseInput::step(3, &[2])]),
            case(
                "grouped",
                &doubled.clone().with_int("group", 2).with_ints("output_shape", &[6, 5]),
                vec![image(), CaseInput::constant(2, &[4, 3, 3, 2]), CaseInput::constant(3, &[6])],
            ),
            case(
                "depthwise, int8",
                &doubled.clone().with_int("group", 4).with_ints("pads", &[1, 0, 0, 1]),
                vec![image(), CaseInput::int8(2, &[4, 1, 4, 3], 0), CaseInput::step(3, &[4])],
            ),
            case(
                "depthwise, two inputs a channel",
                &plain.clone().with_int("group", 2),
                vec![image(), CaseInput::constant(2, &[4, 1, 2, 3])],
            ),
            case(
                "same padding",
                &doubled.with_string("auto_pad", "SAME_UPPER"),
                vec![image(), CaseInput::constant(2, &[4, 2, 3, 3])],
            ),
        ]
    }
}

/// Row-major pixels [B, .., C_in] as rows.
fn rows(pixels: &View, sizes: &Sizes) -> View {
    pixels.reshaped(&[sizes.m(), sizes.out_channels]).expect("it is row-major")
}

/// Has `emit`, which cannot add, write into `to`, or beside it to be added.
fn own(l: &mut Lowering<'_>, to: &View, accumulate: bool, emit: impl FnOnce(&mut Lowering<'_>, &View)) {
    if !accumulate {
        return emit(l, to);
    }
    let beside = l.scratch(to.shape());
    emit(l, &beside);
    l.copy(&beside, to, true);
}
