use inlay_devices::kernels::{Gather, GatherGrad, GatherParams};

use super::{Case, CaseInput, NodeView, Op, OpError, Simplified, TensorType, axis_of};
use crate::graph::{Attributes, DType, HostData, HostTensor};
use crate::plan::{Backward, Forward, View, accumulated, contiguous_strides, u};

/// Elements put before and behind along some axes: one value, or copies of what is there. Negative pads cut off.
pub struct Pad;

/// What stands in the padding.
#[derive(Clone, Copy, PartialEq)]
enum PadMode {
    Constant,
    Edge,
    Reflect,
    Wrap,
}

/// The padding of one axis.
#[derive(Clone, Copy)]
struct Padded {
    len: usize,
    before: i64,
    out: usize,
}

impl Padded {
    /// The indices of x that both x and the result have, and the first one's place in the result.
    fn shared(self) -> (std::ops::Range<usize>, usize) {
        let (len, out) = (self.len as i64, self.out as i64);
        let start = (-self.before).clamp(0, len);
        let end = (out - self.before).clamp(start, len);
        (start as usize..end as usize, (start + self.before).clamp(0, out) as usize)
    }

    /// The index of x that each index of the result copies; `None` where a constant stands.
    fn sources(self, mode: PadMode) -> impl Iterator<Item = Option<usize>> {
        let len = self.len as i64;
        (0..self.out as i64).map(move |i| {
            let at = i - self.before;
            let source = match mode {
                PadMode::Constant => return usize::try_from(at).ok().filter(|&at| at < self.len),
                PadMode::Edge => at.clamp(0, len - 1),
                PadMode::Wrap => at.rem_euclid(len),
                PadMode::Reflect if len == 1 => 0,
                PadMode::Reflect => {
                    let at = at.rem_euclid(2 * (len - 1));
                    at.min(2 * (len - 1) - at)
                }
            };
            Some(source as usize)
        })
    }

    fn is_none(self) -> bool {
        self.before == 0 && self.out == self.len
    }
}

fn mode(node: &NodeView<'_>) -> Result<PadMode, OpError> {
    Ok(match node.attributes.string("mode", "constant") {
        "constant" => PadMode::Constant,
        "edge" => PadMode::Edge,
        "reflect" => PadMode::Reflect,
        "wrap" => PadMode::Wrap,
        other => {
            let expected = "constant, edge, reflect or wrap";
            return Err(OpError::Value { what: "mode", found: other.to_owned(), expected });
        }
    })
}

fn paddings(node: &NodeView<'_>) -> Result<Vec<Padded>, OpError> {
    let (shape, pads, mode) = (node.shape(0)?, node.ints(1)?, mode(node)?);
    let axes = match node.optional_ints(3)? {
        Some(axes) => axes.into_iter().map(|a| axis_of(a, shape.len())).collect::<Result<Vec<_>, _>>()?,
        None => (0..shape.len()).collect(),
    };
    if pads.len() != 2 * axes.len() {
        return Err(node.shape_error("there are two pads an axis"));
    }
    let mut paddings: Vec<Padded> = shape.iter().map(|&len| Padded { len, before: 0, out: len }).collect();
    for (i, &axis) in axes.iter().enumerate() {
        let (before, after, len) = (pads[i], pads[axes.len() + i], shape[axis]);
        let out = (len as i64).checked_add(before).and_then(|n| n.checked_add(after));
        let out = out.and_then(|n| usize::try_from(n).ok()).filter(|&n| n <= i32::MAX as usize);
        let out =
            out.ok_or_else(|| node.shape_error("pads leave a length that is not negative, and not beyond 31 bits"))?;
        if mode != PadMode::Constant && len == 0 && out > 0 {
            return Err(node.shape_error("there is something to copy into the padding"));
        }
        paddings[axis] = Padded { len, before, out };
    }
    Ok(paddings)
}

/// The value in the padding.
fn constant(node: &NodeView<'_>) -> Result<f32, OpError> {
    match node.optional(2) {
        None => Ok(0.0),
        Some(_) => node.value(2)?.scalar().ok_or_else(|| node.shape_error("the value of the padding is one number")),
    }
}

/// The part of `view` that `range` says for every axis.
fn part(view: &View, ranges: impl Iterator<Item = (usize, usize)>) -> View {
    ranges.enumerate().fold(view.clone(), |view, (axis, (start, len))| view.sliced(axis, start, 1, len))
}

/// The parts of x and of the result that hold the same elements.
fn shared([x, y]: [&View; 2], paddings: &[Padded]) -> [View; 2] {
    let shared: Vec<_> = paddings.iter().map(|p| p.shared()).collect();
    let of_x = part(x, shared.iter().map(|(range, _)| (range.start, range.len())));
    [of_x, part(y, shared.iter().map(|(range, at)| (*at, range.len())))]
}

fn along(shape: &[usize], axis: usize, count: usize, flags: u32) -> GatherParams {
    GatherParams {
        outer: u(shape[..axis].iter().product()),
        axis_len: u(shape[axis]),
        count: u(count),
        inner: u(shape[axis + 1..].iter().product()),
        flags,
    }
}

impl Op for Pad {
    fn op_type(&self) -> &'static str {
        "Pad"
    }

    fn infer(&self, node: &NodeView<'_>) -> Result<Vec<TensorType>, OpError> {
        let shape: Vec<usize> = paddings(node)?.iter().map(|p| p.out).collect();
        Ok(vec![TensorType::new(node.ty(0)?.dtype, shape)])
    }

    fn simplify(&self, node: &NodeView<'_>) -> Result<Option<Simplified>, OpError> {
        Ok(paddings(node)?.iter().all(|p| p.is_none()).then_some(Simplified::Same(0)))
    }

    fn on_host(&self) -> bool {
        true
    }

    fn evaluate(&self, node: &NodeView<'_>) -> Result<Vec<HostTensor>, OpError> {
        fn pick<T: Copy>(x: &[T], positions: &[Option<usize>], fill: T) -> Vec<T> {
            positions.iter().map(|p| p.map_or(fill, |p| x[p])).collect()
        }
        let (x, paddings, mode) = (node.value(0)?, paddings(node)?, mode(node)?);
        let mut positions = vec![Some(0)];
        for (p, stride) in paddings.iter().zip(contiguous_strides(x.shape())) {
            let sources: Vec<_> = p.sources(mode).collect();
            let step = |at: Option<usize>, source: Option<usize>| Some(at? + source? * stride);
            positions = positions.iter().flat_map(|&at| sources.iter().map(move |&s| step(at, s))).collect();
        }
        let fill = constant(node)?;
        let data: HostData = match x.data() {
            HostData::F32(x) => pick(x, &positions, fill).into(),
            HostData::I64(x) => pick(x, &positions, fill as i64).into(),
            HostData::I32(x) => pick(x, &positions, fill as i32).into(),
            HostData::Bool(x) => pick(x, &positions, fill != 0.0).into(),
        };
        Ok(vec![HostTensor::of(paddings.iter().map(|p| p.out).collect::<Vec<_>>(), data)])
    }

    fn differentiable(&self, input: usize) -> bool {
        input == 0
    }

    fn forward(&self, cx: &mut Forward<'_, '_>) -> Result<(), OpError> {
        let node = cx.node();
        if node.ty(0)?.dtype != DType::F32 {
            return Err(OpError::DType { input: 0, found: node.ty(0)?.dtype, expected: "floats" });
        }
        let (paddings, mode) = (paddings(&node)?, mode(&node)?);
        if mode == PadMode::Constant {
            let (x, value) = (cx.input(0)?, constant(&node)?);
            let y = cx.output(0);
            cx.fill(&y, value);
            let [from, to] = shared([&x, &y], &paddings);
            if from.count() > 0 {
                cx.copy(&from, &to, false);
            }
            return Ok(());
        }
        // One axis after the other.
        let mut x = cx.contiguous_input(0)?;
        for (axis, p) in paddings.into_iter().enumerate().filter(|(_, p)| !p.is_none()) {
            let sources = p.sources(mode).map(|s| s.expect("only a constant comes from nowhere") as i64).collect();
            let sources = cx.known_integers(sources, p.len);
            let mut shape = x.shape().to_vec();
            shape[axis] = p.out;
            let y = cx.scratch(&shape);
            cx.call::<Gather>(&along(x.shape(), axis, p.out, 0), &[x.into(), (&sources).into(), (&y).into()]);
            cx.save(sources);
            x = y;
        }
        cx.set_output(0, x);
        Ok(())
    }

    fn backward(&self, cx: &mut Backward<'_, '_>) -> Result<(), OpError> {
        let node = cx.node();
        let paddings = paddings(&node)?;
        if mode(&node)? == PadMode::Constant {
            let Some(dy) = cx.gradient(0) else { return Ok(()) };
            let cuts = paddings.iter().any(|p| p.shared().0 != (0..p.len));
            return cx.add(0, |l, dx, acc| {
                if cuts && !acc {
                    l.fill(dx, 0.0);
                }
                let [to, from] = shared([dx, &dy], &paddings);
                if from.count() > 0 {
                    l.copy(&from, &to, acc || cuts);
                }
                Ok(())
            });
        }
        let Some(mut dy) = cx.contiguous_gradient(0) else { return Ok(()) };
        let padded: Vec<_> = paddings.into_iter().enumerate().filter(|(_, p)| !p.is_none()).collect();
        for (i, &(axis, p)) in padded.iter().enumerate().rev() {
            let sources = cx.saved(i);
            let mut shape = dy.shape().to_vec();
            shape[axis] = p.len;
            if i == 0 {
                return cx.add(0, |l, dx, acc| {
                    let params = along(&shape, axis, p.out, accumulated(acc));
                    l.call::<GatherGrad>(&params, &[dy.into(), sources.into(), dx.into()]);
                    Ok(())
                });
            }
            let dx = cx.scratch(&shape);
            let params = along(&shape, axis, p.out, 0);
            cx.call::<GatherGrad>(&params, &[dy.into(), sources.into(), (&dx).into()]);
            dy = dx;
        }
        Ok(())
    }

    fn samples(&self) -> Vec<Case> {
        let mode = |mode: &str| Attributes::default().with_string("mode", mode);
        let x = || CaseInput::step(1, &[2, 3, 4]);
        let pads = || CaseInput::ints(&[0, 2, 1, 0, 1, 3]);
        vec![
            Case::new("zeros", Attributes::default(), vec![x(), pads()]),
            Case::new(
                "a number, some axes, cut",
                mode("constant"),
                vec![x(), CaseInput::ints(&[1, -1, -1, 2]), CaseInput::float(0.5), CaseInput::ints(&[-1, 1])],
            ),
            Case::new("edge", mode("edge"), vec![x(), pads()]),
            Case::new("reflect", mode("reflect"), vec![x(), pads()]),
            Case::new("wrap", mode("wrap"), vec![x(), pads()]),
        ]
    }
}
