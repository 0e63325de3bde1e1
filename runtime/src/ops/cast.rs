use super::{Case, CaseInput, NodeView, Op, OpError, Simplified, TensorType};
use crate::graph::{Attributes, DType, HostData, HostTensor};
use crate::plan::{Backward, Forward, Frozen};

/// Another element type.
pub struct Cast;

fn target(node: &NodeView<'_>) -> Result<DType, OpError> {
    let number = node.attributes.int("to", 0);
    i32::try_from(number)
        .ok()
        .and_then(DType::from_onnx)
        .filter(|d| matches!(d, DType::F32 | DType::I64 | DType::I32 | DType::Bool))
        .ok_or_else(|| OpError::Value {
            what: "the element type",
            found: format!("number {number} of ONNX"),
            expected: "float, int64, int32 or bool",
        })
}

impl Op for Cast {
    fn op_type(&self) -> &'static str {
        "Cast"
    }

    fn infer(&self, node: &NodeView<'_>) -> Result<Vec<TensorType>, OpError> {
        Ok(vec![TensorType::new(target(node)?, node.shape(0)?)])
    }

    fn simplify(&self, node: &NodeView<'_>) -> Result<Option<Simplified>, OpError> {
        let target = target(node)?;
        if node.ty(0)?.dtype == target {
            return Ok(Some(Simplified::Same(0)));
        }
        let halves = node.input(0)?.frozen.filter(|_| target == DType::F32).and_then(Frozen::halves);
        Ok(halves.map(Simplified::Frozen))
    }

    fn on_host(&self) -> bool {
        true
    }

    fn evaluate(&self, node: &NodeView<'_>) -> Result<Vec<HostTensor>, OpError> {
        let x = node.value(0)?;
        let ints = || match x.data() {
            // Truncation towards zero, as ONNX says.
            HostData::F32(floats) => floats.iter().map(|&x| x as i64).collect(),
            _ => x.ints().expect("all but floats are integers"),
        };
        let data: HostData = match target(node)? {
            DType::F32 => x.to_floats().into(),
            DType::I64 => ints().into(),
            DType::I32 => ints()
                .into_iter()
                .map(|x| {
                    i32::try_from(x).map_err(|_| OpError::Value {
                        what: "a number cast to int32",
                        found: x.to_string(),
                        expected: "one that fits",
                    })
                })
                .collect::<Result<Vec<_>, _>>()?
                .into(),
            _ => x.to_floats().into_iter().map(|x| x != 0.0).collect::<Vec<_>>().into(),
        };
        Ok(vec![HostTensor::of(x.shape(), data)])
    }

    fn differentiable(&self, _: usize) -> bool {
        false
    }

    fn forward(&self, cx: &mut Forward<'_, '_>) -> Result<(), OpError> {
        // On devices truth is 1.0 or 0.0 already.
        if cx.node().ty(0)?.dtype == DType::Bool && cx.output_type(0).dtype == DType::F32 {
            let x = cx.input(0)?;
            cx.set_output(0, x);
            return Ok(());
        }
        Err(OpError::Unsupported {
            what: "a cast of computed floats to integers or truth",
            way_out: "compare with a number instead",
        })
    }

    fn backward(&self, _: &mut Backward<'_, '_>) -> Result<(), OpError> {
        Ok(())
    }

    fn samples(&self) -> Vec<Case> {
        let to = |to: i64| Attributes::default().with_int("to", to);
        let ids = CaseInput::Fed(HostTensor::of([3], vec![0i64, 5, -2]));
        vec![Case::new("i64 to f32", to(1), vec![ids.clone()]), Case::new("i64 to bool", to(9), vec![ids])]
    }
}
