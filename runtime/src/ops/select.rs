use super::host;
use super::{Case, CaseInput, NodeView, Op, OpError, TensorType};
use crate::graph::{Attributes, DType, HostData, HostTensor};
use crate::plan::{Backward, Forward, View, broadcast};

/// `cond ? a : b`, element by element, with broadcasting.
pub struct Where;

impl Op for Where {
    fn op_type(&self) -> &'static str {
        "Where"
    }

    fn infer(&self, node: &NodeView<'_>) -> Result<Vec<TensorType>, OpError> {
        let (cond, a, b) = (node.ty(0)?, node.ty(1)?, node.ty(2)?);
        if cond.dtype != DType::Bool {
            return Err(OpError::DType { input: 0, found: cond.dtype, expected: "bool" });
        }
        if a.dtype != b.dtype {
            return Err(OpError::DType { input: 2, found: b.dtype, expected: "the type of input 1" });
        }
        let shape = broadcast(&cond.shape, &a.shape).and_then(|s| broadcast(&s, &b.shape));
        Ok(vec![TensorType::new(a.dtype, shape.ok_or_else(|| node.shape_error("they must broadcast"))?)])
    }

    fn on_host(&self) -> bool {
        true
    }

    fn evaluate(&self, node: &NodeView<'_>) -> Result<Vec<HostTensor>, OpError> {
        fn pick<T: Copy>(cond: &[bool], a: &[T], b: &[T]) -> Vec<T> {
            cond.iter().zip(a.iter().zip(b)).map(|(&c, (&a, &b))| if c { a } else { b }).collect()
        }
        let ty = self.infer(node)?.remove(0);
        let [cond, a, b] = [node.value(0)?, node.value(1)?, node.value(2)?].map(|x| host::expand(x, &ty.shape));
        let HostData::Bool(cond) = cond.data() else { unreachable!("infer checked the type") };
        let data: HostData = match (a.data(), b.data()) {
            (HostData::F32(a), HostData::F32(b)) => pick(cond, a, b).into(),
            (HostData::I64(a), HostData::I64(b)) => pick(cond, a, b).into(),
            (HostData::I32(a), HostData::I32(b)) => pick(cond, a, b).into(),
            (HostData::Bool(a), HostData::Bool(b)) => pick(cond, a, b).into(),
            _ => unreachable!("infer checked that both have one type"),
        };
        Ok(vec![HostTensor::of(ty.shape, data)])
    }

    fn differentiable(&self, _: usize) -> bool {
        true
    }

    fn forward(&self, cx: &mut Forward<'_, '_>) -> Result<(), OpError> {
        let [cond, a, b] = [cx.input(0)?, cx.input(1)?, cx.input(2)?];
        let y = cx.output(0);
        cx.select(&cond, [&a, &b], &y, false)
    }

    fn backward(&self, cx: &mut Backward<'_, '_>) -> Result<(), OpError> {
        let Some(dy) = cx.contiguous_gradient(0) else { return Ok(()) };
        let cond = cx.input(0)?;
        let zero = cx.constant(&[], &[0.0]);
        for input in [1, 2] {
            if !cx.wants(input) {
                continue;
            }
            let pair: [&View; 2] = if input == 1 { [&dy, &zero] } else { [&zero, &dy] };
            if cx.input(input)?.shape() == dy.shape() {
                cx.add(input, |l, dx, acc| l.select(&cond, pair, dx, acc))?;
            } else {
                let whole = cx.scratch(dy.shape());
                cx.select(&cond, pair, &whole, false)?;
                cx.add(input, |l, dx, acc| l.reduce_broadcast(&whole, dx, acc))?;
            }
        }
        Ok(())
    }

    fn samples(&self) -> Vec<Case> {
        let cond = || CaseInput::Fed(HostTensor::of([2, 1, 3], vec![true, false, true, false, false, true]));
        let case = |label: &str, inputs| Case::new(label, Attributes::default(), inputs);
        vec![
            case("same shape", vec![cond(), CaseInput::step(1, &[2, 4, 3]), CaseInput::step(2, &[2, 4, 3])]),
            case("broadcast", vec![cond(), CaseInput::step(1, &[4, 1]), CaseInput::step(2, &[3])]),
            case("a number", vec![cond(), CaseInput::float(-7.0), CaseInput::step(2, &[2, 4, 3])]),
        ]
    }
}
