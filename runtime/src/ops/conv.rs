use inlay_devices::kernels::{
    Col2im, Depthwise, DepthwiseGrad, DepthwiseParams, Im2col, Im2colParams, Linear, LinearParams, ReduceOp,
};

use super::matmul::{is_zero, transposed};
use super::window::{Window, window};
use super::{Case, CaseInput, NodeView, Op, OpError, Simplified, TensorType};
use crate::graph::Attributes;
use crate::plan::{Backward, Forward, Frozen, Lowering, Operand, View, accumulated, u};

/// Convolution in one or two dimensions, as a product of patches [B Ho Wo, C k] with the weight [C_out, C k].
///
/// The result lies as [B, Ho, Wo, C_out]. A frozen depthwise weight, one input channel a group, has a kernel of its own
/// that reads pixels as they lie. Other groups work forward and for the gradient of the input, with float weights; a
/// grouped weight has no gradient.
pub struct Conv;

/// Sizes of a convolution, or of the one whose gradient a transposed convolution is.
pub(super) struct Sizes {
    pub batch: usize,
    pub channels: usize,
    pub out_channels: usize,
    pub groups: usize,
    pub window: Window,
}

impl Sizes {
    /// Rows of the product.
    pub fn m(&self) -> usize {
        self.batch * self.window.out[0] * self.window.out[1]
    }

    /// Contracted length: elements of a patch.
    pub fn k(&self) -> usize {
        self.channels * self.window.kernel[0] * self.window.kernel[1]
    }

    /// Whether patches are single pixels in their places.
    fn is_pointwise(&self) -> bool {
        let w = &self.window;
        w.kernel == [1, 1] && w.stride == [1, 1] && w.pad == [0; 4]
    }

    /// Whether each group is one input channel.
    pub fn is_depthwise(&self) -> bool {
        self.groups > 1 && self.groups == self.channels
    }

    pub fn depthwise(&self, flags: u32) -> DepthwiseParams {
        let w = &self.window;
        DepthwiseParams {
            batch: u(self.batch),
            channels: u(self.channels),
            multiplier: u(self.out_channels / self.channels),
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
            dilation_h: u(w.dilation[0]),
            dilation_w: u(w.dilation[1]),
            flags,
        }
    }

    pub fn params(&self, flags: u32) -> Im2colParams {
        let w = &self.window;
        Im2colParams {
            batch: u(self.batch),
            channels: u(self.channels),
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
            dilation_h: u(w.dilation[0]),
            dilation_w: u(w.dilation[1]),
            flags,
        }
    }
}

fn sizes(node: &NodeView<'_>) -> Result<Sizes, OpError> {
    let (x, w) = (node.shape(0)?, node.shape(1)?);
    let groups = usize::try_from(node.attributes.int("group", 1)).unwrap_or(0);
    if x.len() < 3 || w.len() != x.len() || groups == 0 || x[1] != w[1] * groups || !w[0].is_multiple_of(groups) {
        return Err(node.shape_error("x is [B, C, ..] and the weight [C_out, C / group, ..]"));
    }
    if node.attributes.ints("kernel_shape").is_some_and(|k| k.iter().zip(&w[2..]).any(|(&k, &w)| k != w as i64)) {
        return Err(node.shape_error("kernel_shape is that of the weight"));
    }
    let window = window(node, &x[2..], &w[2..])?;
    let sizes = Sizes { batch: x[0], channels: x[1], out_channels: w[0], groups, window };
    let patches = sizes.k().checked_mul(sizes.m());
    if patches.is_none_or(|n| n > i32::MAX as usize) {
        return Err(node.shape_error("patches fit the memory; use a smaller batch"));
    }
    Ok(sizes)
}

impl Op for Conv {
    fn op_type(&self) -> &'static str {
        "Conv"
    }

    fn limits(&self) -> &'static str {
        "one or two spatial dimensions; insertion points at ungrouped, undilated ones"
    }

    fn infer(&self, node: &NodeView<'_>) -> Result<Vec<TensorType>, OpError> {
        let sizes = sizes(node)?;
        let mut shape = vec![sizes.batch, sizes.out_channels];
        shape.extend(&sizes.window.out[2 - (node.shape(0)?.len() - 2)..]);
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
        let y = cx.scratch(&[sizes.m(), sizes.out_channels]);
        let out = &cx.output_type(0).shape;
        cx.set_output(0, channels_second(&y, out));
        if let Some(frozen) = cx.frozen(1).filter(|_| sizes.is_depthwise()) {
            let (w, weight) = cx.weight(&frozen, 0)?;
            let flags = weight.form_flags() | if bias.is_some() { DepthwiseParams::BIAS } else { 0 };
            let params = sizes.depthwise(flags);
            let x = cx.contiguous(&pixels(&x));
            cx.call::<Depthwise>(&params, &[x.into(), w, bias.as_ref().into(), (&y).into()]);
            return Ok(());
        }
        let cols = patches(cx, &sizes, &x);
        if let Some(frozen) = cx.frozen(1).filter(|_| sizes.groups == 1) {
            let (w, layout) = weight(cx, &frozen)?;
            let flags = layout | if bias.is_some() { LinearParams::BIAS } else { 0 };
            let params = LinearParams { m: u(sizes.m()), k: u(sizes.k()), n: u(sizes.out_channels), flags };
            cx.call::<Linear>(&params, &[(&cols).into(), w, bias.as_ref().into(), (&y).into()]);
        } else {
            let w = cx.input(1)?;
            let w = if w.shape().len() == x.shape().len() { cx.contiguous(&w) } else { w };
            let [cols, w, y] = if w.shape().len() == x.shape().len() {
                grouped(&sizes, [&cols, &w, &y])
            } else {
                per_sample(&sizes, [&cols, &w, &y])
            };
            if let Some(bias) = &bias {
                // The product adds to the bias.
                let whole = View {
                    shape: vec![sizes.m(), sizes.out_channels],
                    strides: vec![sizes.out_channels, 1],
                    ..y.clone()
                };
                let rows = bias.broadcast_to(whole.shape());
                cx.copy(&rows, &whole, false);
            }
            cx.matmul(1.0, [&cols, &transposed(&w)], &y, bias.is_some())?;
        }
        Ok(())
    }

    fn backward(&self, cx: &mut Backward<'_, '_>) -> Result<(), OpError> {
        let sizes = sizes(&cx.node())?;
        let Some(dy) = cx.gradient(0) else { return Ok(()) };
        let dy = rows(cx, &dy, &sizes);
        if cx.wants(2) {
            cx.add(2, |l, dbias, acc| l.reduce(ReduceOp::Sum, &dy, &[0], 1.0, dbias, acc))?;
        }
        if cx.wants(1) {
            if sizes.groups != 1 {
                return Err(OpError::NotDifferentiable { what: "the weight of a grouped convolution" });
            }
            let x = cx.input(0)?;
            let cols = patches(cx, &sizes, &x);
            let shape = [sizes.out_channels, sizes.k()];
            cx.add_strided(1, &shape, |l, dw, acc| l.matmul(1.0, [&transposed(&dy), &cols], dw, acc))?;
        }
        if !cx.wants(0) {
            return Ok(());
        }
        if let Some(frozen) = cx.frozen(1).filter(|_| sizes.is_depthwise()) {
            let (w, weight) = cx.weight(&frozen, 0)?;
            return add_pixels(cx, |l, dx, acc| {
                let params = sizes.depthwise(weight.form_flags() | accumulated(acc));
                l.call::<DepthwiseGrad>(&params, &[(&dy).into(), w, dx.into()]);
                Ok(())
            });
        }
        let factor = Factor::new(cx.frozen(1), &sizes, || cx.contiguous_input(1))?;
        if sizes.is_pointwise() {
            return add_pixels(cx, |l, pixels, acc| {
                let dcols = pixels.reshaped(&[sizes.m(), sizes.k()]).expect("it is row-major");
                factor.patches(l, &sizes, [&dy, &dcols], acc)
            });
        }
        let dcols = cx.scratch(&[sizes.m(), sizes.k()]);
        factor.patches(cx, &sizes, [&dy, &dcols], false)?;
        cx.add(0, |l, dx, acc| {
            l.call::<Col2im>(&sizes.params(accumulated(acc)), &[dcols.into(), dx.into()]);
            Ok(())
        })
    }

    fn samples(&self) -> Vec<Case> {
        let ints = |name: &'static str, list: &'static [i64]| move |a: Attributes| a.with_ints(name, list);
        let plain = Attributes::default();
        let strided = ints("strides", &[2])(ints("pads", &[1, 2])(plain.clone()));
        let square = ints("pads", &[1, 0, 0, 1])(plain.clone());
        let dilated = ints("dilations", &[2])(ints("pads", &[2, 2])(plain.clone()));
        let signal = || CaseInput::step(1, &[2, 3, 9]);
        let case = |label: &str, attributes: &Attributes, inputs| Case::new(label, attributes.clone(), inputs);
        let grouped = plain.clone().with_int("group", 2);
        vec![
            case("signal", &plain, vec![signal(), CaseInput::constant(2, &[4, 3, 3]), CaseInput::constant(3, &[4])]),
            case(
                "int8, strides, pads",
                &strided,
                vec![signal(), CaseInput::int8(2, &[5, 3, 4], 0), CaseInput::constant(3, &[5])],
            ),
            case("trained", &strided, vec![signal(), CaseInput::step(2, &[5, 3, 4]), CaseInput::step(3, &[5])]),
            case("pointwise", &plain, vec![signal(), CaseInput::step(2, &[5, 3, 1])]),
            case("frozen pointwise", &plain, vec![signal(), CaseInput::constant(2, &[5, 3, 1])]),
            case("image", &square, vec![CaseInput::step(1, &[2, 3, 5, 4]), CaseInput::step(2, &[4, 3, 3, 2])]),
            case("dilated", &dilated, vec![signal(), CaseInput::constant(2, &[4, 3, 3])]),
            case(
                "grouped",
                &grouped,
                vec![CaseInput::step(1, &[2, 4, 7]), CaseInput::constant(2, &[6, 2, 3]), CaseInput::constant(3, &[6])],
            ),
            case(
                "depthwise, int8",
                &square.clone().with_int("group", 3).with_ints("strides", &[2, 1]),
                vec![CaseInput::step(1, &[2, 3, 5, 4]), CaseInput::int8(2, &[3, 1, 3, 2], 0), CaseInput::step(3, &[3])],
            ),
            case(
                "depthwise, two outputs a channel",
                &dilated.clone().with_int("group", 3),
                vec![signal(), CaseInput::constant(2, &[6, 1, 3])],
            ),
            case(
                "same padding",
                &plain.with_ints("strides", &[2, 2]).with_string("auto_pad", "SAME_LOWER"),
                vec![CaseInput::step(1, &[1, 2, 5, 6]), CaseInput::constant(2, &[3, 2, 2, 3])],
            ),
        ]
    }
}

/// Nothing is left of a convolution, either way round, of no channels, of zeros or with a weight of zeros, unless it has a
/// bias.
pub(super) fn zero(node: &NodeView<'_>) -> Result<Option<Simplified>, OpError> {
    let (x, w) = (node.input(0)?, node.input(1)?);
    let zero = x.ty.shape.get(1) == Some(&0) || x.zero || is_zero(w);
    let no_bias = node.optional(2).is_none_or(is_zero);
    Ok((zero && no_bias).then_some(Simplified::Zero))
}

/// The weight of a product with patches.
pub(super) enum Factor {
    Frozen(Frozen),
    Floats(View),
}

impl Factor {
    /// The weight as it is frozen, else as row-major `floats`; of groups always those.
    pub fn new(
        frozen: Option<Frozen>,
        sizes: &Sizes,
        floats: impl FnOnce() -> Result<View, OpError>,
    ) -> Result<Self, OpError> {
        match frozen.filter(|_| sizes.groups == 1) {
            Some(frozen) => Ok(Factor::Frozen(frozen)),
            None => Ok(Factor::Floats(floats()?)),
        }
    }

    /// Patches from rows: `cols (=|+=) y W`, cols: [M, C k], y: [M, C_out].
    pub fn patches(
        &self,
        l: &mut Lowering<'_>,
        sizes: &Sizes,
        [y, cols]: [&View; 2],
        accumulate: bool,
    ) -> Result<(), OpError> {
        match self {
            Factor::Frozen(frozen) => {
                let (w, layout) = weight(l, frozen)?;
                let flags = LinearParams::TRANSPOSE | layout | accumulated(accumulate);
                let params = LinearParams { m: u(sizes.m()), k: u(sizes.k()), n: u(sizes.out_channels), flags };
                l.call::<Linear>(&params, &[y.into(), w, Operand::ABSENT, cols.into()]);
                Ok(())
            }
            Factor::Floats(w) => {
                let [cols, w, y] = grouped(sizes, [cols, w, y]);
                l.matmul(1.0, [&y, &w], &cols, accumulate)
            }
        }
    }

    /// Rows from patches: `y (=|+=) cols W^T`, shapes as above.
    pub fn rows(
        &self,
        l: &mut Lowering<'_>,
        sizes: &Sizes,
        [cols, y]: [&View; 2],
        accumulate: bool,
    ) -> Result<(), OpError> {
        match self {
            Factor::Frozen(frozen) => {
                let (w, layout) = weight(l, frozen)?;
                let flags = layout | accumulated(accumulate);
                let params = LinearParams { m: u(sizes.m()), k: u(sizes.k()), n: u(sizes.out_channels), flags };
                l.call::<Linear>(&params, &[cols.into(), w, Operand::ABSENT, y.into()]);
                Ok(())
            }
            Factor::Floats(w) => {
                let [cols, w, y] = grouped(sizes, [cols, w, y]);
                l.matmul(1.0, [&cols, &transposed(&w)], &y, accumulate)
            }
        }
    }
}

/// Has `emit` put the gradient of x into row-major pixels [B, .., C], which then go where x lies.
fn add_pixels<'a>(
    cx: &mut Backward<'_, 'a>,
    emit: impl FnOnce(&mut Lowering<'a>, &View, bool) -> Result<(), OpError>,
) -> Result<(), OpError> {
    let rank = cx.node().shape(0)?.len();
    cx.add_in_order(0, &pixel_order(rank), emit)
}

/// Patches of x as rows: [B Ho Wo, C k]. Made once for all convolutions of x with this window.
fn patches(lowering: &mut Lowering<'_>, sizes: &Sizes, x: &View) -> View {
    let shape = [sizes.m(), sizes.k()];
    if sizes.is_pointwise() {
        let pixels = pixels(x);
        let joined = pixels.reshaped(&shape).filter(View::is_contiguous).filter(|v| lowering.is_bindable(v));
        return joined.unwrap_or_else(|| lowering.contiguous(&pixels).reshaped(&shape).expect("it is row-major"));
    }
    let x = lowering.contiguous(x);
    let params = sizes.params(0);
    lowering.once::<Im2col>(&params, &x, &shape)
}

/// x [B, C, ..] as [B, .., C].
pub(super) fn pixels(x: &View) -> View {
    x.permuted(&pixel_order(x.shape().len()))
}

/// The dimensions of [B, C, ..] as [B, .., C].
pub(super) fn pixel_order(rank: usize) -> Vec<usize> {
    std::iter::once(0).chain(2..rank).chain([1]).collect()
}

/// Rows [B Ho Wo, C_out] as [B, C_out, ..].
fn channels_second(rows: &View, shape: &[usize]) -> View {
    let last: Vec<usize> = [&shape[..1], &shape[2..], &shape[1..2]].concat();
    let rank = shape.len();
    let perm: Vec<usize> = [0, rank - 1].into_iter().chain(1..rank - 1).collect();
    rows.reshaped(&last).expect("it is row-major").permuted(&perm)
}

/// A gradient [B, C_out, ..] as rows [B Ho Wo, C_out].
fn rows(lowering: &mut Lowering<'_>, dy: &View, sizes: &Sizes) -> View {
    let last = pixels(dy);
    let rows = lowering.contiguous_copy(&last);
    rows.reshaped(&[sizes.m(), sizes.out_channels]).expect("it is row-major")
}

/// Patches, weight and result with a leading dimension for groups: [G, M, C k / G], [G, C_out / G, C k / G],
/// [G, M, C_out / G].
fn grouped(sizes: &Sizes, [cols, w, y]: [&View; 3]) -> [View; 3] {
    let (g, m, k, n) = (sizes.groups, sizes.m(), sizes.k() / sizes.groups, sizes.out_channels / sizes.groups);
    let part = |view: &View, shape: [usize; 3], strides: [usize; 3]| View {
        shape: shape.to_vec(),
        strides: strides.to_vec(),
        ..view.clone()
    };
    [part(cols, [g, m, k], [k, g * k, 1]), part(w, [g, n, k], [n * k, k, 1]), part(y, [g, m, n], [n, g * n, 1])]
}

/// Patches, weight and result where each sample has a weight of its own: [B, Ho Wo, C k], [B, C_out, C k],
/// [B, Ho Wo, C_out].
fn per_sample(sizes: &Sizes, [cols, w, y]: [&View; 3]) -> [View; 3] {
    let (b, k, n) = (sizes.batch, sizes.k(), sizes.out_channels);
    let rows = |view: &View, columns| view.reshaped(&[b, sizes.m() / b.max(1), columns]).expect("it is row-major");
    let w = View { shape: vec![b, n, k], strides: vec![w.strides[0], k, 1], ..w.clone() };
    [rows(cols, k), w, rows(y, n)]
}

fn weight(lowering: &mut Lowering<'_>, frozen: &Frozen) -> Result<(Operand, u32), OpError> {
    let (operand, weight) = lowering.weight(frozen, 0)?;
    Ok((operand, LinearParams::weight_flags(&weight)))
}
