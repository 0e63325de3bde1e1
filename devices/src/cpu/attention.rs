//! Attention and its gradient, a task for each head.

use super::Context;
use super::gemm::{Floats, Left, Output, Product, block};
use super::pool::Disjoint;
use super::rows::{add_mask, softmax_grad_row, softmax_row};
use crate::kernels::{Args, Attention, AttentionGrad, AttentionGradParams, AttentionParams, Contract, from_words};

/// A head of an operand with strides over (b, h, t) and a contiguous last axis.
#[derive(Clone, Copy)]
struct Head {
    start: usize,
    row: usize,
}

impl Head {
    fn new(strides: [u32; 3], b: usize, h: usize) -> Self {
        Head { start: b * strides[0] as usize + h * strides[1] as usize, row: strides[2] as usize }
    }

    fn left(self, data: &[f32]) -> Left<'_> {
        Left { data: &data[self.start..], row: self.row, column: 1 }
    }

    /// As a right operand whose k counts rows.
    fn right(self, data: &[f32]) -> Floats<'_> {
        Floats { data: &data[self.start..], row: self.row, column: 1 }
    }

    /// As a right operand whose n counts rows.
    fn turned(self, data: &[f32]) -> Floats<'_> {
        Floats { data: &data[self.start..], row: 1, column: self.row }
    }

    fn output(self, data: &Disjoint) -> Output<'_> {
        Output { data, start: self.start, row: self.row, column: 1 }
    }
}

/// Body of `attention`.
pub fn attention(context: &Context, params: &[u32], args: &mut Args<'_, f32>) {
    let p: AttentionParams = from_words(params);
    let (tq, tk, d, dv, heads) = (p.tq as usize, p.tk as usize, p.d as usize, p.dv as usize, p.heads as usize);
    if tq == 0 || tk == 0 || d == 0 || dv == 0 {
        return Attention::plain(&p, args);
    }
    let (q, k, v, mask) = (args.input(0), args.input(1), args.input(2), args.optional_input(3));
    let (o, probs) = (Disjoint::new(args.output(4)), Disjoint::new(args.output(5)));
    context.pool.run(p.batch as usize * heads, |head, scratch| {
        let (b, h) = (head / heads, head % heads);
        let whole = Head { start: head * tq * tk, row: tk };
        let scores = Product {
            m: tq,
            n: tk,
            k: d,
            a: Head::new(p.q, b, h).left(q),
            c: whole.output(&probs),
            alpha: p.scale,
            accumulate: false,
            bias: None,
        };
        // SAFETY: each task has its own head of p and o, whose elements are distinct (validated).
        let scores = unsafe {
            block(context.isa, &scores, &Head::new(p.k, b, h).turned(k), 0..tq, 0..tk, scratch);
            probs.range(whole.start, tq * tk)
        };
        let mask = mask.map(|mask| &mask[b * p.mask[0] as usize + h * p.mask[1] as usize..]);
        context.isa.run(
            #[inline(always)]
            || {
                for (t, row) in scores.chunks_exact_mut(tk).enumerate() {
                    if let Some(mask) = mask {
                        add_mask(row, &mask[t * p.mask[2] as usize..], p.mask[3] as usize);
                    }
                    softmax_row(row);
                }
            },
        );
        let output = Product {
            m: tq,
            n: dv,
            k: tk,
            a: Left { data: scores, row: tk, column: 1 },
            c: Head::new(p.o, b, h).output(&o),
            alpha: 1.0,
            accumulate: false,
            bias: None,
        };
        // SAFETY: as above.
        unsafe { block(context.isa, &output, &Head::new(p.v, b, h).right(v), 0..tq, 0..dv, scratch) };
    });
}

/// Body of `attention_grad`.
pub fn attention_grad(context: &Context, params: &[u32], args: &mut Args<'_, f32>) {
    type P = AttentionGradParams;
    let p: P = from_words(params);
    let (tq, tk, d, dv, heads) = (p.tq as usize, p.tk as usize, p.d as usize, p.dv as usize, p.heads as usize);
    if tq == 0 || tk == 0 || d == 0 || dv == 0 {
        return AttentionGrad::plain(&p, args);
    }
    let (grad_o, q, k, v, probs) = (args.input(0), args.input(1), args.input(2), args.input(3), args.input(4));
    let [grad_q, grad_k, grad_v] = [5, 6, 7].map(|binding| args.optional_output(binding).map(Disjoint::new));
    let ds = Disjoint::new(args.output(8));
    let has = |flag| p.flags & flag != 0;
    context.pool.run(p.batch as usize * heads, |head, scratch| {
        let (b, h) = (head / heads, head % heads);
        let whole = Head { start: head * tq * tk, row: tk };
        let probs = &probs[whole.start..][..tq * tk];
        let grad_o_head = Head::new(p.grad_o, b, h);
        // Rows of [tq, tk] as the left operand of a product over s, or, turned, over t.
        let over_s = |data| Left { data, row: tk, column: 1 };
        let over_t = |data| Left { data, row: 1, column: tk };
        // SAFETY: each task has its own head of ds, dq, dk and dv, whose elements are distinct (validated).
        unsafe {
            if let Some(grad_v) = &grad_v {
                let product = Product {
                    m: tk,
                    n: dv,
                    k: tq,
                    a: over_t(probs),
                    c: Head::new(p.grad_v, b, h).output(grad_v),
                    alpha: 1.0,
                    accumulate: has(P::ACCUMULATE_DV),
                    bias: None,
                };
                block(context.isa, &product, &grad_o_head.right(grad_o), 0..tk, 0..dv, scratch);
            }
            if grad_q.is_none() && grad_k.is_none() {
                return;
            }
            let product = Product {
                m: tq,
                n: tk,
                k: dv,
                a: grad_o_head.left(grad_o),
                c: whole.output(&ds),
                alpha: 1.0,
                accumulate: false,
                bias: None,
            };
            block(context.isa, &product, &Head::new(p.v, b, h).turned(v), 0..tq, 0..tk, scratch);
            let ds = ds.range(whole.start, tq * tk);
            context.isa.run(
                #[inline(always)]
                || {
                    for (y, dx) in probs.chunks_exact(tk).zip(ds.chunks_exact_mut(tk)) {
                        softmax_grad_row(y, dx);
                    }
                },
            );
            if let Some(grad_q) = &grad_q {
                let product = Product {
                    m: tq,
                    n: d,
                    k: tk,
                    a: over_s(ds),
                    c: Head::new(p.grad_q, b, h).output(grad_q),
                    alpha: p.scale,
                    accumulate: has(P::ACCUMULATE_DQ),
                    bias: None,
                };
                block(context.isa, &product, &Head::new(p.k, b, h).right(k), 0..tq, 0..d, scratch);
            }
            if let Some(grad_k) = &grad_k {
                let product = Product {
                    m: tk,
                    n: d,
                    k: tq,
                    a: over_t(ds),
                    c: Head::new(p.grad_k, b, h).output(grad_k),
                    alpha: p.scale,
                    accumulate: has(P::ACCUMULATE_DK),
                    bias: None,
                };
                block(context.isa, &product, &Head::new(p.q, b, h).right(q), 0..tk, 0..d, scratch);
            }
        }
    });
}
