use inlay_devices::kernels::{BinaryOp, UnaryOp};

use super::host;
use super::{Case, CaseInput, NodeView, Op, OpError, TensorType};
use crate::graph::{Attributes, DType, HostTensor};
use crate::plan::{Backward, Forward, broadcast};

/// Truth of two inputs that broadcast. On devices truth is 1.0 or 0.0.
pub struct Compare {
    op_type: &'static str,
    op: BinaryOp,
    int: fn(i64, i64) -> bool,
    logical: bool,
}

/// The ops of this family.
pub static COMPARE: [Compare; 7] = [
    Compare { op_type: "Equal", op: BinaryOp::Eq, int: |a, b| a == b, logical: false },
    Compare { op_type: "Greater", op: BinaryOp::Gt, int: |a, b| a > b, logical: false },
    Compare { op_type: "GreaterOrEqual", op: BinaryOp::Ge, int: |a, b| a >= b, logical: false },
    Compare { op_type: "Less", op: BinaryOp::Lt, int: |a, b| a < b, logical: false },
    Compare { op_type: "LessOrEqual", op: BinaryOp::Le, int: |a, b| a <= b, logical: false },
    Compare { op_type: "And", op: BinaryOp::Mul, int: |a, b| a != 0 && b != 0, logical: true },
    Compare { op_type: "Or", op: BinaryOp::Max, int: |a, b| a != 0 || b != 0, logical: true },
];

impl Op for Compare {
    fn op_type(&self) -> &'static str {
        self.op_type
    }

    fn infer(&self, node: &NodeView<'_>) -> Result<Vec<TensorType>, OpError> {
        let (a, b) = (node.ty(0)?, node.ty(1)?);
        for (input, ty) in [(0, a), (1, b)] {
            if self.logical && ty.dtype != DType::Bool {
                return Err(OpError::DType { input, found: ty.dtype, expected: "bool" });
            }
        }
        let shape = broadcast(&a.shape, &b.shape).ok_or_else(|| node.shape_error("they must broadcast"))?;
        Ok(vec![TensorType::new(DType::Bool, shape)])
    }

    fn on_host(&self) -> bool {
        true
    }

    fn evaluate(&self, node: &NodeView<'_>) -> Result<Vec<HostTensor>, OpError> {
        let float = |a, b| self.op.value::<f32>(a, b) != 0.0;
        Ok(vec![host::compare(node.value(0)?, node.value(1)?, float, self.int)?])
    }

    fn differentiable(&self, _: usize) -> bool {
        false
    }

    fn forward(&self, cx: &mut Forward<'_, '_>) -> Result<(), OpError> {
        for input in 0..2 {
            refuse_integers(cx, input)?;
        }
        let (a, b) = (cx.input(0)?, cx.input(1)?);
        let y = cx.output(0);
        cx.binary(self.op, [&a, &b], &y, false)
    }

    fn backward(&self, _: &mut Backward<'_, '_>) -> Result<(), OpError> {
        Ok(())
    }

    fn samples(&self) -> Vec<Case> {
        let input = |seed, shape: &[usize]| match (self.logical, CaseInput::step(seed, shape)) {
            (true, CaseInput::Step(x)) => {
                CaseInput::Fed(HostTensor::of(shape, x.to_floats().iter().map(|x| *x > 0.0).collect::<Vec<_>>()))
            }
            (_, input) => input,
        };
        vec![Case::new("broadcast", Attributes::default(), vec![input(1, &[3, 1, 5]), input(2, &[4, 1])])]
    }
}

/// The device has no integers to compute with; 64-bit ones would lose digits as floats.
fn refuse_integers(cx: &Forward<'_, '_>, input: usize) -> Result<(), OpError> {
    let found = cx.node().ty(input)?.dtype;
    if matches!(found, DType::F32 | DType::Bool) {
        return Ok(());
    }
    Err(OpError::DType { input, found, expected: "floats, where the other input is computed from floats" })
}

/// `Not` and `IsNaN`.
pub struct Test {
    op_type: &'static str,
}

/// Logical negation.
pub static NOT: Test = Test { op_type: "Not" };
/// Which floats are NaN.
pub static IS_NAN: Test = Test { op_type: "IsNaN" };

impl Op for Test {
    fn op_type(&self) -> &'static str {
        self.op_type
    }

    fn infer(&self, node: &NodeView<'_>) -> Result<Vec<TensorType>, OpError> {
        Ok(vec![TensorType::new(DType::Bool, node.shape(0)?)])
    }

    fn on_host(&self) -> bool {
        true
    }

    fn evaluate(&self, node: &NodeView<'_>) -> Result<Vec<HostTensor>, OpError> {
        let x = node.value(0)?;
        let not = self.op_type == "Not";
        let truth = x.to_floats().iter().map(|x| if not { *x == 0.0 } else { x.is_nan() }).collect::<Vec<_>>();
        Ok(vec![HostTensor::of(x.shape(), truth)])
    }

    fn differentiable(&self, _: usize) -> bool {
        false
    }

    fn forward(&self, cx: &mut Forward<'_, '_>) -> Result<(), OpError> {
        let mut x = cx.contiguous_input(0)?;
        if self.op_type == "IsNaN" {
            // Only NaN differs from itself.
            let same = cx.scratch(x.shape());
            cx.binary(BinaryOp::Eq, [&x, &x], &same, false)?;
            x = same;
        }
        let y = cx.output(0);
        cx.unary(UnaryOp::Affine, [-1.0, 1.0], &x, &y, false);
        Ok(())
    }

    fn backward(&self, _: &mut Backward<'_, '_>) -> Result<(), OpError> {
        Ok(())
    }

    fn samples(&self) -> Vec<Case> {
        let input = if self.op_type == "Not" {
            CaseInput::Fed(HostTensor::of([3], vec![true, false, true]))
        } else {
            CaseInput::step(1, &[2, 3])
        };
        vec![Case::new("plain", Attributes::default(), vec![input])]
    }
}
