use inlay_devices::kernels::{Resample, ResampleParams};

use super::resize_bands::{Band, Coordinates, Filter, Nearest, Sampling};
use super::{Case, CaseInput, NodeView, Op, OpError, Simplified, TensorType};
use crate::graph::{Attributes, DType};
use crate::plan::{Backward, Forward, Lowering, View, accumulated, u};

/// Resampling to other sizes: a product with a banded matrix along each axis, made when the plan is. Sizes or scales follow
/// from constants and shapes. The gradient is the product with the transposed matrices.
///
/// <https://onnx.ai/onnx/operators/onnx__Resize.html>
pub struct Resize;

/// The matrix of an axis.
struct Axis {
    axis: usize,
    band: Band,
}

/// The new length of an axis, and the scale that coordinates are divided by.
#[derive(Clone, Copy)]
struct Size {
    axis: usize,
    len: usize,
    scale: f32,
}

/// The longest axis that is made: matrices are held while the plan is made.
const MAX_LEN: usize = 1 << 20;

/// The value of an attribute that is one of a few words.
fn word<T: Copy>(node: &NodeView<'_>, what: &'static str, default: &str, known: &[(&str, T)]) -> Result<T, OpError> {
    let found = node.attributes.string(what, default);
    let matching = known.iter().find(|(word, _)| *word == found).map(|(_, value)| *value);
    matching.ok_or_else(|| OpError::Value { what, found: found.to_owned(), expected: "a mode that ONNX knows" })
}

fn sampling(node: &NodeView<'_>) -> Result<Sampling, OpError> {
    if node.attributes.string("coordinate_transformation_mode", "") == "tf_crop_and_resize" {
        return Err(OpError::Unsupported {
            what: "coordinate_transformation_mode tf_crop_and_resize",
            way_out: "cut the region out with Slice before a Resize of another mode",
        });
    }
    let flag = |name: &str| node.attributes.int(name, 0) != 0;
    let nearest = word(
        node,
        "nearest_mode",
        "round_prefer_floor",
        &[
            ("round_prefer_floor", Nearest::RoundPreferFloor),
            ("round_prefer_ceil", Nearest::RoundPreferCeil),
            ("floor", Nearest::Floor),
            ("ceil", Nearest::Ceil),
        ],
    )?;
    let cubic = Filter::Cubic { a: node.attributes.float("cubic_coeff_a", -0.75).into() };
    let modes = [("nearest", Filter::Nearest(nearest)), ("linear", Filter::Linear), ("cubic", cubic)];
    Ok(Sampling {
        filter: word(node, "mode", "nearest", &modes)?,
        coordinates: word(node, "coordinate_transformation_mode", "half_pixel", Coordinates::ALL)?,
        antialias: flag("antialias"),
        exclude_outside: flag("exclude_outside"),
    })
}

/// Every axis that is named, with its new length.
fn sizes(node: &NodeView<'_>) -> Result<Vec<Size>, OpError> {
    let x = node.shape(0)?;
    let axes: Vec<usize> = match node.attributes.ints("axes") {
        Some(axes) => axes.iter().map(|&axis| node.axis(axis, x.len())).collect::<Result<_, _>>()?,
        None => (0..x.len()).collect(),
    };
    if (1..axes.len()).any(|i| axes[..i].contains(&axes[i])) {
        return Err(node.shape_error("each axis is named once"));
    }
    // An empty list is an absent one.
    let present = |input: usize| node.optional(input).is_some_and(|i| !i.ty.is_empty());
    let rule = || node.shape_error("there is either a scale or a size for each of the axes");
    let sizes: Vec<Size> = match (present(2), present(3)) {
        (true, false) => {
            let scales = node.value(2)?;
            let found = || OpError::DType { input: 2, found: scales.dtype(), expected: "float" };
            let scales = scales.floats().ok_or_else(found)?;
            if scales.len() != axes.len() {
                return Err(rule());
            }
            let size = |(&axis, &scale): (&usize, &f32)| Size { axis, len: (x[axis] as f32 * scale) as usize, scale };
            axes.iter().zip(scales).map(size).collect()
        }
        (false, true) => {
            let lens = node.ints(3)?;
            if lens.len() != axes.len() {
                return Err(rule());
            }
            let one = |(&axis, &len): (&usize, &i64)| {
                let len = usize::try_from(len).unwrap_or(0);
                Size { axis, len, scale: len as f32 / x[axis] as f32 }
            };
            let wanted = axes.iter().zip(&lens).map(one);
            type Pick = fn(f32, f32) -> f32;
            let pick = |pick: Pick| wanted.clone().map(|size| size.scale).reduce(pick);
            let policies: [(&str, Option<Pick>); 3] =
                [("stretch", None), ("not_larger", Some(f32::min)), ("not_smaller", Some(f32::max))];
            match word(node, "keep_aspect_ratio_policy", "stretch", &policies)?.and_then(pick) {
                None => wanted.collect(),
                Some(scale) => {
                    wanted.map(|s| Size { len: (x[s.axis] as f32 * scale).round() as usize, scale, ..s }).collect()
                }
            }
        }
        _ => return Err(rule()),
    };
    let fits = |s: &Size| match x[s.axis] {
        0 => s.len == 0,
        _ => (1..=MAX_LEN).contains(&s.len) && s.scale.is_finite() && s.scale > 0.0,
    };
    if !sizes.iter().all(fits) {
        return Err(node.shape_error("scales are positive, and every axis keeps 1 to 2^20 elements"));
    }
    Ok(sizes)
}

/// The matrices of the axes that change, in the order in which they take least: what shrinks comes first.
fn axes(node: &NodeView<'_>) -> Result<Vec<Axis>, OpError> {
    let (x, sampling) = (node.shape(0)?, sampling(node)?);
    let mut sizes = sizes(node)?;
    sizes.sort_by(|a, b| a.scale.total_cmp(&b.scale));
    let band = |s: Size| Axis { axis: s.axis, band: sampling.band(x[s.axis], s.len, s.scale) };
    Ok(sizes.into_iter().map(band).filter(|axis| !axis.band.is_identity()).collect())
}

/// Whether samples along the first axis stay apart.
pub(crate) fn keeps_first_axis(node: &NodeView<'_>) -> Result<bool, OpError> {
    Ok(axes(node)?.iter().all(|axis| axis.axis != 0))
}

impl Op for Resize {
    fn op_type(&self) -> &'static str {
        "Resize"
    }

    fn limits(&self) -> &'static str {
        "sizes or scales from constants and shapes; no tf_crop_and_resize"
    }

    fn infer(&self, node: &NodeView<'_>) -> Result<Vec<TensorType>, OpError> {
        let x = node.ty(0)?;
        if x.dtype != DType::F32 {
            return Err(OpError::DType { input: 0, found: x.dtype, expected: "float" });
        }
        sampling(node)?;
        let mut shape = x.shape.clone();
        for size in sizes(node)? {
            shape[size.axis] = size.len;
        }
        let len = shape.iter().try_fold(1usize, |product, &dim| product.checked_mul(dim));
        if len.is_none_or(|len| len > i32::MAX as usize) {
            return Err(node.shape_error("the result fits the memory; use a smaller batch or scale"));
        }
        Ok(vec![TensorType::new(x.dtype, shape)])
    }

    fn simplify(&self, node: &NodeView<'_>) -> Result<Option<Simplified>, OpError> {
        if node.input(0)?.zero {
            return Ok(Some(Simplified::Zero));
        }
        Ok(axes(node)?.is_empty().then_some(Simplified::Same(0)))
    }

    fn differentiable(&self, input: usize) -> bool {
        input == 0
    }

    fn forward(&self, cx: &mut Forward<'_, '_>) -> Result<(), OpError> {
        let axes = axes(&cx.node())?;
        let x = cx.input(0)?;
        let x = cx.dense(&x);
        // As x lies, so does the result: nothing is moved for the sake of an order.
        let order = x.memory_order();
        let mut from = x.permuted(&order);
        for Axis { axis, band } in &axes {
            let at = position(&order, *axis);
            let mut shape = from.shape().to_vec();
            shape[at] = band.rows();
            let to = cx.scratch(&shape);
            resample(cx, band, at, [&from, &to], false);
            from = to;
        }
        cx.set_output(0, from.permuted(&inverse(&order)));
        Ok(())
    }

    fn backward(&self, cx: &mut Backward<'_, '_>) -> Result<(), OpError> {
        let axes = axes(&cx.node())?;
        let Some(dy) = cx.gradient(0) else { return Ok(()) };
        let order = dy.memory_order();
        let mut from = cx.contiguous_copy(&dy.permuted(&order));
        let Some((first, others)) = axes.split_first() else { return Ok(()) };
        for Axis { axis, band } in others.iter().rev() {
            let (at, band) = (position(&order, *axis), band.transposed());
            let mut shape = from.shape().to_vec();
            shape[at] = band.rows();
            let to = cx.scratch(&shape);
            resample(cx, &band, at, [&from, &to], false);
            from = to;
        }
        let (at, band) = (position(&order, first.axis), first.band.transposed());
        cx.add_in_order(0, &order, |l, dx, acc| {
            resample(l, &band, at, [&from, dx], acc);
            Ok(())
        })
    }

    fn samples(&self) -> Vec<Case> {
        let mode = |mode: &str| Attributes::default().with_string("mode", mode);
        let at = |a: Attributes, coordinates: &str| a.with_string("coordinate_transformation_mode", coordinates);
        let scaled = |label: &str, attributes: Attributes, shape: &[usize], scales: &[f32]| {
            let scales = crate::graph::HostTensor::of([scales.len()], scales.to_vec());
            let inputs = vec![CaseInput::step(1, shape), CaseInput::Absent, CaseInput::Constant(scales)];
            Case::new(label, attributes, inputs)
        };
        let sized = |label: &str, attributes: Attributes, shape: &[usize], sizes: &[i64]| {
            let inputs = vec![CaseInput::step(1, shape), CaseInput::Absent, CaseInput::Absent, CaseInput::ints(sizes)];
            Case::new(label, attributes, inputs)
        };
        let floor = at(mode("nearest"), "asymmetric").with_string("nearest_mode", "floor");
        let smaller = mode("linear").with_ints("axes", &[-1, 2]).with_string("keep_aspect_ratio_policy", "not_larger");
        let cubic = mode("cubic").with_int("exclude_outside", 1).with_float("cubic_coeff_a", -0.5);
        vec![
            scaled("twice as large", floor.clone(), &[2, 3, 4, 5], &[1.0, 1.0, 2.0, 2.0]),
            scaled("a signal, fractions", floor, &[2, 3, 7], &[1.0, 1.0, 1.6]),
            sized("nearest, both ways", mode("nearest"), &[2, 2, 7, 3], &[2, 2, 4, 8]),
            scaled("linear", mode("linear"), &[2, 3, 4, 5], &[1.0, 1.0, 2.0, 2.0]),
            sized("linear, corners, one pixel", at(mode("linear"), "align_corners"), &[1, 2, 1, 5], &[1, 2, 6, 3]),
            sized("linear, three axes", at(mode("linear"), "pytorch_half_pixel"), &[1, 2, 3, 4, 5], &[1, 2, 1, 7, 2]),
            scaled("antialias", mode("linear").with_int("antialias", 1), &[2, 2, 9, 8], &[1.0, 1.0, 0.4, 0.5]),
            scaled("cubic", cubic, &[1, 2, 4, 5], &[1.0, 1.0, 0.8, 2.5]),
            sized("the same ratio", smaller, &[2, 2, 3, 4], &[7, 7]),
        ]
    }
}

/// `to (=|+=)` the matrix times `from` along the axis `at`, both row-major.
fn resample(l: &mut Lowering<'_>, band: &Band, at: usize, [from, to]: [&View; 2], accumulate: bool) {
    let shape = from.shape();
    let params = ResampleParams {
        outer: u(shape[..at].iter().product()),
        x_len: u(shape[at]),
        y_len: u(band.rows()),
        inner: u(shape[at + 1..].iter().product()),
        taps: u(band.taps()),
        flags: accumulated(accumulate),
    };
    let first = l.known_integers(band.first().to_vec(), shape[at]);
    let w = l.constant(&[band.rows(), band.taps()], band.weights());
    l.call::<Resample>(&params, &[from.into(), first.into(), w.into(), to.into()]);
}

fn position(order: &[usize], axis: usize) -> usize {
    order.iter().position(|&o| o == axis).expect("an order has every axis")
}

fn inverse(order: &[usize]) -> Vec<usize> {
    (0..order.len()).map(|axis| position(order, axis)).collect()
}
