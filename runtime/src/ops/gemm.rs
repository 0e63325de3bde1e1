use inlay_devices::kernels::BinaryOp;

use super::matmul::{is_zero, transposed};
use super::{Case, CaseInput, NodeView, Op, OpError, Simplified, TensorType};
use crate::graph::Attributes;
use crate::plan::{Backward, Forward, View, broadcast};

/// `y = alpha A' B' + beta C`, where A' and B' are transposed as `transA` and `transB` say. The usual form with a
/// frozen B is fused to [`LINEAR`](super::LINEAR).
pub struct Gemm;

fn flag(attributes: &Attributes, name: &str) -> bool {
    attributes.int(name, 0) != 0
}

/// `alpha a b (+)= c` operands as they are multiplied.
fn oriented(view: View, transpose: bool) -> View {
    if transpose { transposed(&view) } else { view }
}

impl Op for Gemm {
    fn op_type(&self) -> &'static str {
        "Gemm"
    }

    fn infer(&self, node: &NodeView<'_>) -> Result<Vec<TensorType>, OpError> {
        let a = node.ty(0)?;
        let matrix = |input: usize, transpose: bool| match node.shape(input)? {
            &[rows, columns] => Ok(if transpose { [columns, rows] } else { [rows, columns] }),
            _ => Err(node.shape_error("A and B are matrices")),
        };
        let [m, k] = matrix(0, flag(node.attributes, "transA"))?;
        let [kb, n] = matrix(1, flag(node.attributes, "transB"))?;
        let c_fits = match node.optional(2) {
            Some(c) => broadcast(&c.ty.shape, &[m, n]).as_deref() == Some(&[m, n]),
            None => true,
        };
        if k != kb || !c_fits {
            return Err(node.shape_error("inner dimensions must agree, and C must broadcast"));
        }
        Ok(vec![TensorType::new(a.dtype, [m, n])])
    }

    fn simplify(&self, node: &NodeView<'_>) -> Result<Option<Simplified>, OpError> {
        let (a, b) = (node.input(0)?, node.input(1)?);
        let zero = a.ty.shape.contains(&0) || is_zero(a) || is_zero(b);
        Ok((zero && node.optional(2).is_none()).then_some(Simplified::Zero))
    }

    fn differentiable(&self, _: usize) -> bool {
        true
    }

    fn forward(&self, cx: &mut Forward<'_, '_>) -> Result<(), OpError> {
        let attributes = cx.attributes();
        let a = oriented(cx.input(0)?, flag(attributes, "transA"));
        let b = oriented(cx.input(1)?, flag(attributes, "transB"));
        let y = cx.output(0);
        let has_c = cx.node().optional(2).is_some();
        if has_c {
            let c = cx.input(2)?;
            let beta = cx.constant(&[], &[attributes.float("beta", 1.0)]);
            cx.binary(BinaryOp::Mul, [&c, &beta], &y, false)?;
        }
        cx.matmul(attributes.float("alpha", 1.0), [&a, &b], &y, has_c)
    }

    fn backward(&self, cx: &mut Backward<'_, '_>) -> Result<(), OpError> {
        let attributes = cx.attributes();
        let Some(dy) = cx.contiguous_gradient(0) else { return Ok(()) };
        let (trans_a, trans_b) = (flag(attributes, "transA"), flag(attributes, "transB"));
        let a = oriented(cx.input(0)?, trans_a);
        let b = oriented(cx.input(1)?, trans_b);
        let alpha = attributes.float("alpha", 1.0);
        let (stored_a, stored_b) = (cx.input(0)?.shape().to_vec(), cx.input(1)?.shape().to_vec());
        cx.add_strided(0, &stored_a, |l, da, acc| {
            l.matmul(alpha, [&dy, &transposed(&b)], &oriented(da.clone(), trans_a), acc)
        })?;
        cx.add_strided(1, &stored_b, |l, db, acc| {
            l.matmul(alpha, [&transposed(&a), &dy], &oriented(db.clone(), trans_b), acc)
        })?;
        if !cx.wants(2) {
            return Ok(());
        }
        let beta = cx.constant(&[], &[attributes.float("beta", 1.0)]);
        let scaled = cx.scratch(dy.shape());
        cx.binary(BinaryOp::Mul, [&dy, &beta], &scaled, false)?;
        cx.add(2, |l, dc, acc| l.reduce_broadcast(&scaled, dc, acc))
    }

    fn samples(&self) -> Vec<Case> {
        let mut cases = Vec::new();
        for (trans_a, trans_b) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
            let attributes = Attributes::default()
                .with_int("transA", trans_a)
                .with_int("transB", trans_b)
                .with_float("alpha", 0.7)
                .with_float("beta", -1.3);
            let shape = |transpose: i64, dims: [usize; 2]| if transpose == 1 { [dims[1], dims[0]] } else { dims };
            let (a, b) = (shape(trans_a, [3, 5]), shape(trans_b, [5, 4]));
            for c in [&[4][..], &[3, 1], &[3, 4]] {
                let inputs = vec![CaseInput::step(1, &a), CaseInput::step(2, &b), CaseInput::step(3, c)];
                cases.push(Case::new(format!("transA {trans_a} transB {trans_b} C {c:?}"), attributes.clone(), inputs));
            }
        }
        let transposed = Attributes::default().with_int("transB", 1);
        let frozen = |b| vec![CaseInput::step(1, &[3, 17]), b, CaseInput::constant(3, &[9])];
        cases.push(Case::new("int8 transB", transposed, frozen(CaseInput::int8(2, &[9, 17], 0))));
        cases.push(Case::new("f32", Attributes::default(), frozen(CaseInput::constant(2, &[17, 9]))));
        let frozen =
            vec![CaseInput::step(1, &[3, 5]), CaseInput::constant(2, &[5, 4]), CaseInput::constant(3, &[3, 4])];
        cases.push(Case::new("a frozen B that is no linear", Attributes::default().with_float("alpha", 0.5), frozen));
        cases
    }
}
