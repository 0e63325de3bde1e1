use super::{Case, CaseInput, Input, NodeView, Op, OpError, Simplified, TensorType};
use crate::graph::Attributes;
use crate::plan::{Backward, Forward, Lowering, View, broadcast};

/// Product over the last two dimensions, leading ones broadcast. With a frozen matrix it is fused to
/// [`LINEAR`](super::LINEAR).
pub struct MatMul;

/// Shapes of a product: each operand with at least two dimensions, and the result.
fn shapes(a: &[usize], b: &[usize]) -> Option<[Vec<usize>; 3]> {
    if a.is_empty() || b.is_empty() {
        return None;
    }
    let a = if a.len() == 1 { [&[1], a].concat() } else { a.to_vec() };
    let b = if b.len() == 1 { [b, &[1]].concat() } else { b.to_vec() };
    let (la, lb) = (a.len() - 2, b.len() - 2);
    if a[la + 1] != b[lb] {
        return None;
    }
    let mut c = broadcast(&a[..la], &b[..lb])?;
    c.extend([a[la], b[lb + 1]]);
    Some([a, b, c])
}

/// Whether an input is known to be zero everywhere.
pub(super) fn is_zero(input: &Input<'_>) -> bool {
    let known = |value: &crate::graph::HostTensor| {
        !value.is_empty() && value.floats().is_some_and(|x| x.iter().all(|&x| x == 0.0))
    };
    input.zero || input.value.is_some_and(known)
}

impl Op for MatMul {
    fn op_type(&self) -> &'static str {
        "MatMul"
    }

    fn infer(&self, node: &NodeView<'_>) -> Result<Vec<TensorType>, OpError> {
        let (a, b) = (node.ty(0)?, node.ty(1)?);
        let [.., mut c] = shapes(&a.shape, &b.shape).ok_or_else(|| node.shape_error("inner dimensions must agree"))?;
        // The 1 that a vector was given is taken away again.
        if a.shape.len() == 1 {
            c.remove(c.len() - 2);
        }
        if b.shape.len() == 1 {
            c.pop();
        }
        Ok(vec![TensorType::new(a.dtype, c)])
    }

    fn simplify(&self, node: &NodeView<'_>) -> Result<Option<Simplified>, OpError> {
        let (a, b) = (node.input(0)?, node.input(1)?);
        let empty = a.ty.shape.last() == Some(&0);
        Ok((empty || is_zero(a) || is_zero(b)).then_some(Simplified::Zero))
    }

    fn differentiable(&self, _: usize) -> bool {
        true
    }

    fn forward(&self, cx: &mut Forward<'_, '_>) -> Result<(), OpError> {
        let y = cx.output(0);
        let operands = Operands::new(cx, 0, 1, &y)?;
        operands.product(cx, 1.0, &y)
    }

    fn backward(&self, cx: &mut Backward<'_, '_>) -> Result<(), OpError> {
        let Some(dy) = cx.contiguous_gradient(0) else { return Ok(()) };
        let (a, b) = (cx.input(0)?, cx.input(1)?);
        let [sa, sb, sc] = shapes(a.shape(), b.shape()).expect("checked by infer");
        let (a, b) = (as_matrix(cx, &a, &sa), as_matrix(cx, &b, &sb));
        let dy = dy.reshaped(&sc).expect("it is row-major");
        for (input, shape, left) in [(0, &sa, true), (1, &sb, false)] {
            if !cx.wants(input) {
                continue;
            }
            // da = dc b^T, db = a^T dc, summed over what was broadcast.
            let whole = [&sc[..sc.len() - 2], &shape[shape.len() - 2..]].concat();
            let product = |l: &mut Lowering<'_>, to: &View, acc: bool| {
                if left {
                    l.matmul(1.0, [&dy, &transposed(&b)], to, acc)
                } else {
                    l.matmul(1.0, [&transposed(&a), &dy], to, acc)
                }
            };
            if whole == *shape {
                cx.add_strided(input, shape, product)?;
            } else if shape.len() == 2 {
                // One matrix for all of the batch: its products add up in one.
                let joined = |view: &View, l: &mut Lowering<'_>| {
                    let [rows, columns] = [
                        view.shape()[..view.shape().len() - 1].iter().product(),
                        *view.shape().last().expect("a matrix"),
                    ];
                    view.reshaped(&[rows, columns])
                        .unwrap_or_else(|| l.contiguous(view).reshaped(&[rows, columns]).expect("it is row-major"))
                };
                if left {
                    let temporary = cx.scratch(&whole);
                    product(cx, &temporary, false)?;
                    cx.add(input, |l, to, acc| l.reduce_broadcast(&temporary, to, acc))?;
                } else {
                    let (a, dy) = (joined(&a, cx), joined(&dy, cx));
                    cx.add_strided(input, shape, |l, to, acc| l.matmul(1.0, [&transposed(&a), &dy], to, acc))?;
                }
            } else {
                let temporary = cx.scratch(&whole);
                product(cx, &temporary, false)?;
                cx.add(input, |l, to, acc| {
                    let to = to.reshaped(shape).expect("it is row-major");
                    l.reduce_broadcast(&temporary, &to, acc)
                })?;
            }
        }
        Ok(())
    }

    fn samples(&self) -> Vec<Case> {
        let case = |label: &str, a, b| Case::new(label, Attributes::default(), vec![a, b]);
        vec![
            case("two steps", CaseInput::step(1, &[3, 5]), CaseInput::step(2, &[5, 4])),
            case("a batch and one matrix", CaseInput::step(1, &[2, 3, 5]), CaseInput::step(2, &[5, 4])),
            case("heads", CaseInput::step(1, &[2, 3, 4, 5]), CaseInput::step(2, &[2, 3, 5, 6])),
            case("one left matrix", CaseInput::step(1, &[4, 5]), CaseInput::step(2, &[3, 5, 2])),
            case("broadcast batches", CaseInput::step(1, &[2, 1, 4, 5]), CaseInput::step(2, &[3, 5, 2])),
            case("vectors", CaseInput::step(1, &[5]), CaseInput::step(2, &[5])),
            case("a matrix and a vector", CaseInput::step(1, &[2, 3, 5]), CaseInput::step(2, &[5])),
            case("a vector and matrices", CaseInput::step(1, &[5]), CaseInput::step(2, &[2, 5, 3])),
            case("int8", CaseInput::step(1, &[2, 3, 17]), CaseInput::int8(2, &[17, 9], 1)),
            case("f32", CaseInput::step(1, &[3, 7]), CaseInput::constant(2, &[7, 5])),
        ]
    }
}

struct Operands {
    a: View,
    b: View,
    c: Vec<usize>,
}

impl Operands {
    fn new(cx: &mut Forward<'_, '_>, a: usize, b: usize, y: &View) -> Result<Self, OpError> {
        let (a, b) = (cx.input(a)?, cx.input(b)?);
        let [sa, sb, sc] = shapes(a.shape(), b.shape()).expect("checked by infer");
        debug_assert_eq!(sc.iter().product::<usize>(), y.count());
        Ok(Operands { a: as_matrix(cx, &a, &sa), b: as_matrix(cx, &b, &sb), c: sc })
    }

    fn product(self, cx: &mut Forward<'_, '_>, alpha: f32, y: &View) -> Result<(), OpError> {
        let (mut a, mut c) = (self.a, self.c);
        if self.b.shape().len() == 2 && a.shape().len() > 2 {
            // Rows of all of the batch at once.
            let (k, n) = (a.shape()[a.shape().len() - 1], c[c.len() - 1]);
            let rows = a.count() / k.max(1);
            if let Some(joined) = a.reshaped(&[rows, k]) {
                (a, c) = (joined, vec![rows, n]);
            }
        }
        let y = y.reshaped(&c).expect("outputs are row-major");
        cx.matmul(alpha, [&a, &self.b], &y, false)
    }
}

/// A view with at least two dimensions.
fn as_matrix(lowering: &mut Lowering<'_>, view: &View, shape: &[usize]) -> View {
    view.reshaped(shape).unwrap_or_else(|| lowering.contiguous(view).reshaped(shape).expect("it is row-major"))
}

/// The view with its last two dimensions exchanged.
pub(super) fn transposed(view: &View) -> View {
    let mut perm: Vec<usize> = (0..view.shape().len()).collect();
    let rank = perm.len();
    perm.swap(rank - 2, rank - 1);
    view.permuted(&perm)
}
