use inlay_devices::kernels::{Attention as AttentionKernel, AttentionGrad, AttentionGradParams, AttentionParams};

use super::{Case, CaseInput, INLAY, NodeView, Op, OpError, TensorType};
use crate::graph::{Attributes, HostTensor};
use crate::plan::{Backward, Forward, Lowering, Operand, View, u};

/// `softmax(factor q k + mask) v` of H heads: q [B, H, Tq, d], k [B, H, d, Tk] as the graph transposes it,
/// v [B, H, Tk, dv], mask broadcasting to [B, H, Tq, Tk]. Made by fusion.
///
/// The result lies as [B, Tq, H, dv], so that joining the heads costs nothing. The mask has no gradient.
pub struct Attention;

impl Op for Attention {
    fn op_type(&self) -> &'static str {
        "Attention"
    }

    fn domain(&self) -> &'static str {
        INLAY
    }

    fn infer(&self, node: &NodeView<'_>) -> Result<Vec<TensorType>, OpError> {
        let (q, k, v) = (node.ty(0)?, node.shape(1)?, node.shape(2)?);
        match (q.shape.as_slice(), k, v) {
            (&[b, h, t, d], &[_, _, kd, tk], &[_, _, vt, dv]) if d == kd && tk == vt => {
                Ok(vec![TensorType::new(q.dtype, [b, h, t, dv])])
            }
            _ => Err(node.shape_error("q, k and v have heads")),
        }
    }

    fn differentiable(&self, input: usize) -> bool {
        input < 3
    }

    fn forward(&self, cx: &mut Forward<'_, '_>) -> Result<(), OpError> {
        let [q, k, v] = operands(cx, |cx, i| cx.input(i))?;
        let &[b, h, tq, dv] = cx.output_type(0).shape.as_slice() else { return Err(OpError::Missing { input: 0 }) };
        let (tk, d) = (k.shape()[2], q.shape()[3]);
        let mask = match cx.node().optional(3) {
            Some(_) => {
                let mask = cx.contiguous_input(3)?;
                Some(mask.broadcast_to(&[b, h, tq, tk]))
            }
            None => None,
        };
        let room = cx.scratch(&[b, tq, h, dv]);
        let o = room.permuted(&[0, 2, 1, 3]);
        let p = cx.scratch(&[b, h, tq, tk]);
        let params = AttentionParams {
            batch: u(b),
            heads: u(h),
            tq: u(tq),
            tk: u(tk),
            d: u(d),
            dv: u(dv),
            q: strides(&q),
            k: strides(&k),
            v: strides(&v),
            o: written_strides(&o),
            mask: mask.as_ref().map_or([0; 4], |m| std::array::from_fn(|i| u(m.strides()[i]))),
            scale: cx.attributes().float("factor", 1.0),
            flags: if mask.is_some() { AttentionParams::MASK } else { 0 },
        };
        let operands: [Operand; 6] =
            [(&q).into(), (&k).into(), (&v).into(), mask.as_ref().into(), (&o).into(), (&p).into()];
        cx.call::<AttentionKernel>(&params, &operands);
        cx.save(p);
        cx.set_output(0, o);
        Ok(())
    }

    fn backward(&self, cx: &mut Backward<'_, '_>) -> Result<(), OpError> {
        let Some(dy) = cx.gradient(0) else { return Ok(()) };
        let dy = rows(cx, &dy);
        let [q, k, v] = operands(cx, |cx, i| cx.input(i))?;
        let p = cx.saved(0);
        let [b, h, tq, tk] = [0, 1, 2, 3].map(|i| p.shape()[i]);
        let mut flags = 0;
        let mut targets: [Option<Target>; 3] = [None, None, None];
        let bits = [
            (AttentionGradParams::DQ, AttentionGradParams::ACCUMULATE_DQ),
            (AttentionGradParams::DK, AttentionGradParams::ACCUMULATE_DK),
            (AttentionGradParams::DV, AttentionGradParams::ACCUMULATE_DV),
        ];
        for (input, (present, accumulates)) in bits.into_iter().enumerate() {
            if !cx.wants(input) {
                continue;
            }
            flags |= present;
            let (target, accumulate) = cx.target(input)?;
            let target = if input == 1 { target.permuted(&[0, 1, 3, 2]) } else { target };
            // Parts of one packed projection share a buffer, and a kernel's results may not overlap: the first is written in place.
            let shares = |other: &Target| other.place().buffer == target.buffer;
            if is_rows(cx, &target) && !targets.iter().flatten().any(shares) {
                flags |= if accumulate { accumulates } else { 0 };
                targets[input] = Some(Target { written: target, copied_to: None });
            } else {
                let written = cx.scratch(target.shape());
                targets[input] = Some(Target { written, copied_to: Some((target, accumulate)) });
            }
        }
        let grad = |i: usize| targets[i].as_ref().map(|target| &target.written);
        let grad_strides = |i: usize| grad(i).map_or([0; 3], written_strides);
        let ds = cx.scratch(p.shape());
        let params = AttentionGradParams {
            batch: u(b),
            heads: u(h),
            tq: u(tq),
            tk: u(tk),
            d: u(q.shape()[3]),
            dv: u(v.shape()[3]),
            grad_o: strides(&dy),
            q: strides(&q),
            k: strides(&k),
            v: strides(&v),
            grad_q: grad_strides(0),
            grad_k: grad_strides(1),
            grad_v: grad_strides(2),
            scale: cx.attributes().float("factor", 1.0),
            flags,
        };
        let operands: [Operand; 9] = [
            (&dy).into(),
            (&q).into(),
            (&k).into(),
            (&v).into(),
            (&p).into(),
            grad(0).into(),
            grad(1).into(),
            grad(2).into(),
            (&ds).into(),
        ];
        cx.call::<AttentionGrad>(&params, &operands);
        for Target { written, copied_to } in targets.into_iter().flatten() {
            if let Some((to, accumulate)) = copied_to {
                cx.copy(&written, &to, accumulate);
            }
        }
        Ok(())
    }

    fn samples(&self) -> Vec<Case> {
        let attributes = Attributes::default().with_float("factor", 0.6);
        let qkv = || {
            vec![
                CaseInput::step(1, &[2, 3, 4, 5]),
                CaseInput::step(2, &[2, 3, 5, 7]),
                CaseInput::step(3, &[2, 3, 7, 6]),
            ]
        };
        let mut padding = qkv();
        let mut mask = vec![0.0; 2 * 7];
        mask[5] = f32::NEG_INFINITY;
        mask[7..].fill(-1e9);
        mask[8] = 0.0;
        padding.push(CaseInput::Constant(HostTensor::of([2, 1, 1, 7], mask)));
        let mut masked = qkv();
        masked.push(CaseInput::Constant(HostTensor::of([1, 1, 4, 7], vec![f32::NEG_INFINITY; 28])));
        vec![
            Case::new("no mask", attributes.clone(), qkv()),
            Case::new("padding", attributes.clone(), padding),
            Case::new("fully masked", attributes, masked),
        ]
    }
}

/// Where the kernel writes a gradient, and where it has to be copied when that is not its place, maybe adding.
struct Target {
    written: View,
    copied_to: Option<(View, bool)>,
}

impl Target {
    /// Where the gradient ends up.
    fn place(&self) -> &View {
        self.copied_to.as_ref().map_or(&self.written, |(to, _)| to)
    }
}

/// q, k and v as [B, H, T, ..] with contiguous rows.
fn operands<'a, C>(cx: &mut C, input: impl Fn(&mut C, usize) -> Result<View, OpError>) -> Result<[View; 3], OpError>
where
    C: std::ops::DerefMut<Target = Lowering<'a>>,
{
    let q = input(cx, 0)?;
    let k = input(cx, 1)?.permuted(&[0, 1, 3, 2]);
    let v = input(cx, 2)?;
    Ok([rows(cx, &q), rows(cx, &k), rows(cx, &v)])
}

fn is_rows(lowering: &Lowering<'_>, view: &View) -> bool {
    (view.strides()[3] == 1 || view.shape()[3] == 1) && lowering.is_bindable(view)
}

/// The view, or a copy whose rows are contiguous.
fn rows(lowering: &mut Lowering<'_>, view: &View) -> View {
    if is_rows(lowering, view) { view.clone() } else { lowering.contiguous(view) }
}

fn strides(view: &View) -> [u32; 3] {
    std::array::from_fn(|i| u(view.strides()[i]))
}

/// A written operand has no stride of 0, even where there is one index.
fn written_strides(view: &View) -> [u32; 3] {
    std::array::from_fn(|i| u(view.strides()[i].max(1)))
}
