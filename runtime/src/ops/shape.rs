use super::host;
use super::{Case, CaseInput, NodeView, Op, OpError, TensorType};
use crate::graph::{Attributes, DType, HostData, HostTensor};
use crate::plan::{Backward, Forward, broadcast};

/// Most elements that a host op may make.
const MAX_ELEMENTS: usize = 1 << 24;

/// Ops that are only ever done by the host: from shapes and numbers to integers, masks and constants.
pub struct HostOp {
    op_type: &'static str,
    infer: fn(&NodeView<'_>) -> Result<TensorType, OpError>,
    evaluate: fn(&NodeView<'_>) -> Result<HostTensor, OpError>,
    samples: fn() -> Vec<Case>,
}

/// The ops of this family.
pub static HOST: [HostOp; 6] = [
    HostOp {
        op_type: "Shape",
        infer: |node| Ok(TensorType::new(DType::I64, [dims(node)?.len()])),
        evaluate: |node| {
            let dims = dims(node)?;
            Ok(HostTensor::of([dims.len()], dims))
        },
        samples: || {
            let part = Attributes::default().with_int("start", -2).with_int("end", -1);
            vec![
                Case::new("all", Attributes::default(), vec![CaseInput::step(1, &[2, 3, 4])]),
                Case::new("part", part, vec![CaseInput::step(1, &[2, 3, 4])]),
            ]
        },
    },
    HostOp {
        op_type: "Size",
        infer: |_| Ok(TensorType::new(DType::I64, [])),
        evaluate: |node| Ok(HostTensor::of([], vec![node.ty(0)?.len() as i64])),
        samples: || vec![Case::new("plain", Attributes::default(), vec![CaseInput::step(1, &[2, 3, 4])])],
    },
    HostOp {
        op_type: "ConstantOfShape",
        infer: |node| {
            let dtype = node.attributes.tensor("value").map_or(DType::F32, HostTensor::dtype);
            Ok(TensorType::new(dtype, filled_shape(node)?))
        },
        evaluate: |node| {
            let shape = filled_shape(node)?;
            let count = shape.iter().product();
            let data: HostData = match node.attributes.tensor("value").map(HostTensor::data) {
                None => vec![0f32; count].into(),
                Some(HostData::F32(x)) if x.len() == 1 => vec![x[0]; count].into(),
                Some(HostData::I64(x)) if x.len() == 1 => vec![x[0]; count].into(),
                Some(HostData::I32(x)) if x.len() == 1 => vec![x[0]; count].into(),
                Some(HostData::Bool(x)) if x.len() == 1 => vec![x[0]; count].into(),
                Some(_) => return Err(node.shape_error("value is one number")),
            };
            Ok(HostTensor::of(shape, data))
        },
        samples: || vec![Case::new("zeros", Attributes::default(), vec![CaseInput::ints(&[2, 3])])],
    },
    HostOp {
        op_type: "Range",
        infer: |node| Ok(TensorType::new(node.ty(0)?.dtype, [range(node)?.len()])),
        evaluate: range,
        samples: || {
            let numbers = vec![CaseInput::int(7), CaseInput::int(-2), CaseInput::int(-3)];
            vec![Case::new("downwards", Attributes::default(), numbers)]
        },
    },
    HostOp {
        op_type: "Mod",
        infer: |node| {
            let (a, b) = (node.ty(0)?, node.ty(1)?);
            let shape = broadcast(&a.shape, &b.shape).ok_or_else(|| node.shape_error("they must broadcast"))?;
            Ok(TensorType::new(a.dtype, shape))
        },
        evaluate: |node| {
            // The sign is that of the divisor, or with fmod that of the dividend.
            let fmod = node.attributes.int("fmod", 0) != 0;
            let float = |a: f32, b: f32| {
                let r = a % b;
                if !fmod && r != 0.0 && (r < 0.0) != (b < 0.0) { r + b } else { r }
            };
            let floored =
                |a: i64, b: i64| a.checked_rem(b).map(|r| if r != 0 && (r < 0) != (b < 0) { r + b } else { r });
            host::binary(node.value(0)?, node.value(1)?, float, if fmod { i64::checked_rem } else { floored })
        },
        samples: || {
            let numbers = |values: &[i64]| CaseInput::Fed(HostTensor::of([values.len()], values.to_vec()));
            let fmod = Attributes::default().with_int("fmod", 1);
            let (a, b) = ([-7, 7, 6, -6], [3, -3, 3, 3]);
            vec![
                Case::new("floored", Attributes::default(), vec![numbers(&a), numbers(&b)]),
                Case::new("fmod", fmod, vec![numbers(&a), numbers(&b)]),
            ]
        },
    },
    HostOp {
        op_type: "Trilu",
        infer: |node| match node.ty(0)? {
            ty if ty.shape.len() >= 2 => Ok(ty.clone()),
            _ => Err(node.shape_error("the input is a matrix, or several")),
        },
        evaluate: trilu,
        samples: || {
            let mask = CaseInput::Fed(HostTensor::of([2, 3, 3], vec![true; 18]));
            vec![Case::new("causal", Attributes::default().with_int("upper", 0), vec![mask])]
        },
    },
];

fn dims(node: &NodeView<'_>) -> Result<Vec<i64>, OpError> {
    let shape = node.shape(0)?;
    let len = shape.len() as i64;
    let bound = |name: &str, default: i64| {
        let at = node.attributes.int(name, default);
        (if at < 0 { at + len } else { at }).clamp(0, len) as usize
    };
    let (start, end) = (bound("start", 0), bound("end", len));
    Ok(shape.get(start..end).unwrap_or(&[]).iter().map(|&d| d as i64).collect())
}

fn filled_shape(node: &NodeView<'_>) -> Result<Vec<usize>, OpError> {
    let bad = || node.shape_error("a shape of sensible size");
    let shape: Vec<usize> =
        node.ints(0)?.into_iter().map(usize::try_from).collect::<Result<_, _>>().map_err(|_| bad())?;
    let count = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
    if count.is_some_and(|n| n <= MAX_ELEMENTS) { Ok(shape) } else { Err(bad()) }
}

fn range(node: &NodeView<'_>) -> Result<HostTensor, OpError> {
    let wrong = |found: String| OpError::Value { what: "a range", found, expected: "one of sensible length" };
    let [start, limit, delta] = [node.value(0)?, node.value(1)?, node.value(2)?];
    if let [Some(&[start]), Some(&[limit]), Some(&[delta])] = [start.floats(), limit.floats(), delta.floats()] {
        let count = ((f64::from(limit) - f64::from(start)) / f64::from(delta)).ceil().max(0.0);
        if count.is_nan() || count > MAX_ELEMENTS as f64 {
            return Err(wrong(format!("{start}..{limit} by {delta}")));
        }
        let values: Vec<f32> = (0..count as usize).map(|i| start + i as f32 * delta).collect();
        return Ok(HostTensor::of([values.len()], values));
    }
    let one = |input: usize| node.ints(input).map(|x| x.first().copied().unwrap_or(0));
    let (start, limit, delta) = (one(0)?, one(1)?, one(2)?);
    let count = match delta {
        0 => None,
        1.. => limit.checked_sub(start).map(|span| span.max(0).unsigned_abs().div_ceil(delta.unsigned_abs())),
        _ => start.checked_sub(limit).map(|span| span.max(0).unsigned_abs().div_ceil(delta.unsigned_abs())),
    };
    let count =
        count.filter(|&n| n <= MAX_ELEMENTS as u64).ok_or_else(|| wrong(format!("{start}..{limit} by {delta}")))?;
    let values: Vec<i64> = (0..count as i64).map(|i| start + i * delta).collect();
    let data: HostData = match node.ty(0)?.dtype {
        DType::I32 => values.iter().map(|&x| x as i32).collect::<Vec<_>>().into(),
        _ => values.into(),
    };
    Ok(HostTensor::of([data.len()], data))
}

fn trilu(node: &NodeView<'_>) -> Result<HostTensor, OpError> {
    let x = node.value(0)?;
    let k = node.optional_ints(1)?.and_then(|k| k.first().copied()).unwrap_or(0);
    let upper = node.attributes.int("upper", 1) != 0;
    let [.., rows, columns] = *x.shape() else { return Err(node.shape_error("a matrix")) };
    let keep = |i: usize| {
        let (row, column) = ((i / columns % rows) as i64, (i % columns) as i64);
        if upper { column - row >= k } else { column - row <= k }
    };
    fn masked<T: Copy + Default>(x: &[T], keep: impl Fn(usize) -> bool) -> Vec<T> {
        x.iter().enumerate().map(|(i, &x)| if keep(i) { x } else { T::default() }).collect()
    }
    let data: HostData = match x.data() {
        HostData::F32(x) => masked(x, keep).into(),
        HostData::I64(x) => masked(x, keep).into(),
        HostData::I32(x) => masked(x, keep).into(),
        HostData::Bool(x) => masked(x, keep).into(),
    };
    Ok(HostTensor::of(x.shape(), data))
}

impl Op for HostOp {
    fn op_type(&self) -> &'static str {
        self.op_type
    }

    fn infer(&self, node: &NodeView<'_>) -> Result<Vec<TensorType>, OpError> {
        Ok(vec![(self.infer)(node)?])
    }

    fn needs_values(&self) -> bool {
        !matches!(self.op_type, "Shape" | "Size")
    }

    fn on_host(&self) -> bool {
        true
    }

    fn evaluate(&self, node: &NodeView<'_>) -> Result<Vec<HostTensor>, OpError> {
        Ok(vec![(self.evaluate)(node)?])
    }

    fn differentiable(&self, _: usize) -> bool {
        false
    }

    fn forward(&self, _: &mut Forward<'_, '_>) -> Result<(), OpError> {
        Err(OpError::Unsupported { what: "this op on computed floats", way_out: "re-export the model without it" })
    }

    fn backward(&self, _: &mut Backward<'_, '_>) -> Result<(), OpError> {
        Err(OpError::NotDifferentiable { what: "this node" })
    }

    fn samples(&self) -> Vec<Case> {
        (self.samples)()
    }
}
