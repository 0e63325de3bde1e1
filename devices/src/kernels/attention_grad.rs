use bytemuck::{Pod, Zeroable};

use super::strided::{check_written, contiguous, count, extent};
use super::{ACCUMULATE, Args, Binding, Contract, Matmul, MatmulParams, Piece, Real, Sample, SampleOperand};
use super::{SoftmaxGrad, SoftmaxParams, cover, sample};
use crate::weight::Weight;

/// Gradient of [`Attention`](super::Attention) with respect to q, k and v, from do and the kept p.
///
/// `dp[t, s] = do[t, :] . v[s, :]`, `ds[t, s] = p[t, s] (dp[t, s] - sum_j dp[t, j] p[t, j])`, and then
/// `dq[t, :] = scale sum_s ds[t, s] k[s, :]`, `dk[s, :] = scale sum_t ds[t, s] q[t, :]`,
/// `dv[s, :] = sum_t p[t, s] do[t, :]`, for every (b, h). Each of dq, dk, dv may be absent, and is `+=` when its
/// ACCUMULATE bit is set, else `=`. ds: [B, H, Tq, Tk] is scratch, with undefined contents afterwards.
pub struct AttentionGrad;

/// Parameters of [`AttentionGrad`]. Strides are over (b, h, t), the last axis is contiguous.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct AttentionGradParams {
    /// B.
    pub batch: u32,
    /// H.
    pub heads: u32,
    /// Queries per head.
    pub tq: u32,
    /// Keys per head.
    pub tk: u32,
    /// Elements of a query and of a key.
    pub d: u32,
    /// Elements of a value.
    pub dv: u32,
    /// Strides of do.
    pub grad_o: [u32; 3],
    /// Strides of q.
    pub q: [u32; 3],
    /// Strides of k.
    pub k: [u32; 3],
    /// Strides of v.
    pub v: [u32; 3],
    /// Strides of dq.
    pub grad_q: [u32; 3],
    /// Strides of dk.
    pub grad_k: [u32; 3],
    /// Strides of dv.
    pub grad_v: [u32; 3],
    /// Factor of q . k.
    pub scale: f32,
    /// The constants below.
    pub flags: u32,
}

impl AttentionGradParams {
    /// `dq +=`.
    pub const ACCUMULATE_DQ: u32 = 1;
    /// `dk +=`.
    pub const ACCUMULATE_DK: u32 = 2;
    /// `dv +=`.
    pub const ACCUMULATE_DV: u32 = 4;
    /// dq is present.
    pub const DQ: u32 = 8;
    /// dk is present.
    pub const DK: u32 = 16;
    /// dv is present.
    pub const DV: u32 = 32;

    fn has(&self, flag: u32) -> bool {
        self.flags & flag != 0
    }
}

fn row(s: [u32; 3], b: usize, h: usize, t: usize) -> usize {
    b * s[0] as usize + h * s[1] as usize + t * s[2] as usize
}

/// `y[row] (=|+=) scale sum_i weight(i) x[i]` over the rows of a head.
fn combine<T: Real>(y: &mut [T], accumulate: bool, terms: impl Iterator<Item = (T, usize)>, x: &[T], scale: T) {
    let mut sums = vec![T::of(0.0); y.len()];
    for (weight, at) in terms {
        for (sum, &x) in sums.iter_mut().zip(&x[at..]) {
            *sum += weight * x;
        }
    }
    for (y, sum) in y.iter_mut().zip(sums) {
        *y = if accumulate { *y + scale * sum } else { scale * sum };
    }
}

impl Contract for AttentionGrad {
    type Params = AttentionGradParams;
    const NAME: &'static str = "attention_grad";
    const BINDINGS: &'static [Binding] = &[
        Binding::read("do"),
        Binding::read("q"),
        Binding::read("k"),
        Binding::read("v"),
        Binding::read("p"),
        Binding::read_write("dq").optional(),
        Binding::read_write("dk").optional(),
        Binding::read_write("dv").optional(),
        Binding::scratch("ds"),
    ];

    fn lens(p: &AttentionGradParams) -> Vec<usize> {
        let rows = |t, d, s: [u32; 3]| extent(&[p.batch, p.heads, t, d], &[s[0], s[1], s[2], 1]);
        let when = |flag, len| if p.has(flag) { len } else { 0 };
        let scores = count(&[p.batch, p.heads, p.tq, p.tk]);
        vec![
            rows(p.tq, p.dv, p.grad_o),
            rows(p.tq, p.d, p.q),
            rows(p.tk, p.d, p.k),
            rows(p.tk, p.dv, p.v),
            scores,
            when(AttentionGradParams::DQ, rows(p.tq, p.d, p.grad_q)),
            when(AttentionGradParams::DK, rows(p.tk, p.d, p.grad_k)),
            when(AttentionGradParams::DV, rows(p.tk, p.dv, p.grad_v)),
            scores,
        ]
    }

    fn check(p: &AttentionGradParams, _: Option<&Weight>) -> Result<(), String> {
        for (flag, name, t, d, s) in [
            (AttentionGradParams::DQ, "dq", p.tq, p.d, p.grad_q),
            (AttentionGradParams::DK, "dk", p.tk, p.d, p.grad_k),
            (AttentionGradParams::DV, "dv", p.tk, p.dv, p.grad_v),
        ] {
            if p.has(flag) {
                check_written(name, &[p.batch, p.heads, t, d], &[s[0], s[1], s[2], 1])?;
            }
        }
        Ok(())
    }

    fn plain<T: Real>(p: &AttentionGradParams, args: &mut Args<'_, T>) {
        type P = AttentionGradParams;
        let (grad_o, q, k, v, probs) = (args.input(0), args.input(1), args.input(2), args.input(3), args.input(4));
        let (mut dq, mut dk, mut dv) = (args.optional_output(5), args.optional_output(6), args.optional_output(7));
        let ds = args.output(8);
        let (tq, tk, d, width) = (p.tq as usize, p.tk as usize, p.d as usize, p.dv as usize);
        let scale = T::of(f64::from(p.scale));
        for (b, h) in (0..p.batch as usize).flat_map(|b| (0..p.heads as usize).map(move |h| (b, h))) {
            let head = (b * p.heads as usize + h) * tq * tk;
            let (probs, ds) = (&probs[head..][..tq * tk], &mut ds[head..][..tq * tk]);
            for t in 0..tq {
                let (probs, ds) = (&probs[t * tk..][..tk], &mut ds[t * tk..][..tk]);
                let grad_o = &grad_o[row(p.grad_o, b, h, t)..][..width];
                let mut sum = T::of(0.0);
                for s in 0..tk {
                    let v = &v[row(p.v, b, h, s)..][..width];
                    ds[s] = grad_o.iter().zip(v).fold(T::of(0.0), |dp, (&g, &v)| dp + g * v);
                    sum += ds[s] * probs[s];
                }
                for s in 0..tk {
                    ds[s] = probs[s] * (ds[s] - sum);
                }
            }
            if let Some(dq) = &mut dq {
                for t in 0..tq {
                    let y = &mut dq[row(p.grad_q, b, h, t)..][..d];
                    combine(y, p.has(P::ACCUMULATE_DQ), (0..tk).map(|s| (ds[t * tk + s], row(p.k, b, h, s))), k, scale);
                }
            }
            if let Some(dk) = &mut dk {
                for s in 0..tk {
                    let y = &mut dk[row(p.grad_k, b, h, s)..][..d];
                    combine(y, p.has(P::ACCUMULATE_DK), (0..tq).map(|t| (ds[t * tk + s], row(p.q, b, h, t))), q, scale);
                }
            }
            if let Some(dv) = &mut dv {
                for s in 0..tk {
                    let y = &mut dv[row(p.grad_v, b, h, s)..][..width];
                    let terms = (0..tq).map(|t| (probs[t * tk + s], row(p.grad_o, b, h, t)));
                    combine(y, p.has(P::ACCUMULATE_DV), terms, grad_o, T::of(1.0));
                }
            }
        }
    }

    fn decompose(p: &AttentionGradParams) -> Option<Vec<Piece>> {
        type P = AttentionGradParams;
        let scores = contiguous([p.batch, p.heads, p.tq, p.tk]);
        let across = [scores[0], scores[1], 1, p.tk];
        let rows = |s: [u32; 3]| [s[0], s[1], s[2], 1];
        let columns = |s: [u32; 3]| [s[0], s[1], 1, s[2]];
        let accumulate = |flag| if p.has(flag) { ACCUMULATE } else { 0 };
        let base = MatmulParams { b0: p.batch, b1: p.heads, ..MatmulParams::contiguous(p.tq, p.tk, p.dv) };
        let mut pieces = Vec::new();
        if p.has(P::DQ | P::DK) {
            let dp = MatmulParams { a: rows(p.grad_o), b: columns(p.v), c: scores, ..base };
            pieces.push(Piece::new::<Matmul>(&dp, [Some(0), Some(3), Some(8)]));
            let softmax = SoftmaxParams { rows: p.batch * p.heads * p.tq, cols: p.tk, flags: SoftmaxParams::IN_PLACE };
            pieces.push(Piece::new::<SoftmaxGrad>(&softmax, [Some(4), None, Some(8)]));
        }
        if p.has(P::DQ) {
            let flags = accumulate(P::ACCUMULATE_DQ);
            let dims = MatmulParams { m: p.tq, n: p.d, k: p.tk, alpha: p.scale, flags, ..base };
            let dq = MatmulParams { a: scores, b: rows(p.k), c: rows(p.grad_q), ..dims };
            pieces.push(Piece::new::<Matmul>(&dq, [Some(8), Some(2), Some(5)]));
        }
        if p.has(P::DK) {
            let flags = accumulate(P::ACCUMULATE_DK);
            let dims = MatmulParams { m: p.tk, n: p.d, k: p.tq, alpha: p.scale, flags, ..base };
            let dk = MatmulParams { a: across, b: rows(p.q), c: rows(p.grad_k), ..dims };
            pieces.push(Piece::new::<Matmul>(&dk, [Some(8), Some(1), Some(6)]));
        }
        if p.has(P::DV) {
            let flags = accumulate(P::ACCUMULATE_DV);
            let dims = MatmulParams { m: p.tk, n: p.dv, k: p.tq, flags, ..base };
            let dv = MatmulParams { a: across, b: rows(p.grad_o), c: rows(p.grad_v), ..dims };
            pieces.push(Piece::new::<Matmul>(&dv, [Some(4), Some(0), Some(7)]));
        }
        Some(pieces)
    }

    fn workgroups(p: &AttentionGradParams) -> [u32; 3] {
        cover(p.batch as usize * p.heads as usize, 1)
    }

    fn samples() -> Vec<Sample> {
        type P = AttentionGradParams;
        let mut samples = Vec::new();
        for (i, (batch, heads, tq, tk, d, dv)) in
            [(1, 1, 1, 1, 1, 1), (2, 3, 5, 7, 4, 6), (1, 2, 33, 65, 32, 32), (2, 2, 16, 16, 17, 8)]
                .into_iter()
                .enumerate()
        {
            let inner = |t: u32, d: u32| [t * heads * d, d, heads * d];
            let outer = |t: u32, d: u32| [heads * t * d, t * d, d];
            for flags in [
                P::DQ | P::DK | P::DV,
                P::DQ | P::DK | P::DV | P::ACCUMULATE_DQ | P::ACCUMULATE_DK | P::ACCUMULATE_DV,
                P::DQ | P::DV | P::ACCUMULATE_DV,
                P::DK | P::ACCUMULATE_DK,
                P::DV,
            ] {
                let p = AttentionGradParams {
                    batch,
                    heads,
                    tq,
                    tk,
                    d,
                    dv,
                    grad_o: inner(tq, dv),
                    q: inner(tq, d),
                    k: outer(tk, d),
                    v: inner(tk, dv),
                    grad_q: inner(tq, d),
                    grad_k: inner(tk, d),
                    grad_v: outer(tk, dv),
                    scale: 1.0 / (d as f32).sqrt(),
                    flags,
                };
                // Rows that sum to one, as softmax leaves them; one row fully masked.
                let mut probs = sample::floats(50, Self::lens(&p)[4]);
                for (r, row) in probs.chunks_exact_mut(tk as usize).enumerate() {
                    let sum: f32 = row.iter().map(|x| x.abs()).sum();
                    row.iter_mut().for_each(|x| *x = if r == 1 { 0.0 } else { x.abs() / sum });
                }
                samples.push(Sample::random::<Self>(i as u64, &p).with(4, SampleOperand::Floats(probs)));
            }
        }
        samples
    }
}
