use super::{Case, CaseInput, NodeView, Op, OpError, Simplified, TensorType};
use crate::graph::{Attributes, HostData, HostTensor};
use crate::plan::{Backward, Forward};

/// Joins inputs along an axis.
pub struct Concat;

fn axis(node: &NodeView<'_>) -> Result<usize, OpError> {
    node.axis(node.attributes.int("axis", 0), node.shape(0)?.len())
}

impl Op for Concat {
    fn op_type(&self) -> &'static str {
        "Concat"
    }

    fn infer(&self, node: &NodeView<'_>) -> Result<Vec<TensorType>, OpError> {
        let axis = axis(node)?;
        let mut ty = node.ty(0)?.clone();
        for i in 1..node.inputs.len() {
            let other = node.ty(i)?;
            let agrees = |d: usize| d == axis || other.shape.get(d) == ty.shape.get(d);
            if other.shape.len() != ty.shape.len() || !(0..ty.shape.len()).all(agrees) {
                return Err(node.shape_error("all but the joined axis agree"));
            }
            if other.dtype != ty.dtype {
                return Err(OpError::DType { input: i, found: other.dtype, expected: "the type of input 0" });
            }
            ty.shape[axis] += other.shape[axis];
        }
        Ok(vec![ty])
    }

    fn simplify(&self, node: &NodeView<'_>) -> Result<Option<Simplified>, OpError> {
        let mut full = (0..node.inputs.len()).filter(|&i| node.ty(i).is_ok_and(|ty| !ty.is_empty()));
        Ok(match (full.next(), full.next()) {
            (Some(only), None) => Some(Simplified::Same(only)),
            _ => None,
        })
    }

    fn on_host(&self) -> bool {
        true
    }

    fn evaluate(&self, node: &NodeView<'_>) -> Result<Vec<HostTensor>, OpError> {
        let axis = axis(node)?;
        let ty = self.infer(node)?.remove(0);
        let inputs = (0..node.inputs.len()).map(|i| node.value(i)).collect::<Result<Vec<_>, _>>()?;
        let outer: usize = ty.shape[..axis].iter().product();
        let row = |x: &HostTensor| x.shape()[axis..].iter().product::<usize>();
        // Positions in all inputs one after the other, in the order of the result.
        let starts = inputs.iter().scan(0, |at, x| Some(std::mem::replace(at, *at + x.len())));
        let parts: Vec<(usize, usize)> = starts.zip(inputs.iter().map(|x| row(x))).collect();
        let positions: Vec<usize> = (0..outer)
            .flat_map(|o| parts.iter().flat_map(move |&(start, row)| start + o * row..start + (o + 1) * row))
            .collect();
        let end_to_end = inputs.iter().skip(1).fold(inputs[0].data().clone(), |mut all, x| {
            match (&mut all, x.data()) {
                (HostData::F32(all), HostData::F32(x)) => all.extend(x),
                (HostData::I64(all), HostData::I64(x)) => all.extend(x),
                (HostData::I32(all), HostData::I32(x)) => all.extend(x),
                (HostData::Bool(all), HostData::Bool(x)) => all.extend(x),
                _ => unreachable!("infer checked that all have one type"),
            }
            all
        });
        let all = HostTensor::of([end_to_end.len()], end_to_end);
        Ok(vec![all.select(&ty.shape, &positions)])
    }

    fn differentiable(&self, _: usize) -> bool {
        true
    }

    fn forward(&self, cx: &mut Forward<'_, '_>) -> Result<(), OpError> {
        let axis = axis(&cx.node())?;
        let y = cx.output(0);
        let mut start = 0;
        for i in 0..cx.node().inputs.len() {
            let x = cx.input(i)?;
            let len = x.shape()[axis];
            if len > 0 {
                cx.copy(&x, &y.sliced(axis, start, 1, len), false);
            }
            start += len;
        }
        Ok(())
    }

    fn backward(&self, cx: &mut Backward<'_, '_>) -> Result<(), OpError> {
        let axis = axis(&cx.node())?;
        let Some(dy) = cx.gradient(0) else { return Ok(()) };
        let mut start = 0;
        for i in 0..cx.node().inputs.len() {
            let len = cx.node().shape(i)?[axis];
            if cx.wants(i) && len > 0 {
                let (target, accumulate) = cx.target(i)?;
                cx.copy(&dy.sliced(axis, start, 1, len), &target, accumulate);
            }
            start += len;
        }
        Ok(())
    }

    fn samples(&self) -> Vec<Case> {
        let axis = |a: i64| Attributes::default().with_int("axis", a);
        vec![
            Case::new("leading", axis(0), vec![CaseInput::step(1, &[2, 3]), CaseInput::step(2, &[4, 3])]),
            Case::new(
                "last, with a constant",
                axis(-1),
                vec![CaseInput::step(1, &[2, 3]), CaseInput::constant(2, &[2, 1]), CaseInput::step(3, &[2, 5])],
            ),
        ]
    }
}
