use bytemuck::{Pod, Zeroable};

use super::softmax::softmax_row;
use super::strided::{check_written, extent};
use super::{ACCUMULATE, Softmax, SoftmaxParams, cover, sample};
use super::{Args, Binding, Contract, Copy, CopyParams, Matmul, MatmulParams, Piece, Real, Sample, SampleOperand};
use crate::weight::Weight;

/// Scaled dot-product attention of H heads.
///
/// `p[b, h, t, s] = softmax_s(scale q[b, h, t, :] . k[b, h, s, :] + mask[b, h, t, s])`,
/// `o[b, h, t, :] = sum_s p[b, h, t, s] v[b, h, s, :]`. A row that is -inf all over gives p = 0 and o = 0.
/// q: [B, H, Tq, d], k: [B, H, Tk, d], v: [B, H, Tk, dv], o: [B, H, Tq, dv], each with strides over (b, h, t) and its
/// last axis contiguous; p: [B, H, Tq, Tk] contiguous, kept for the gradient; mask: a stride of 0 broadcasts.
/// Elements of o between its strides keep their value.
pub struct Attention;

/// Parameters of [`Attention`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct AttentionParams {
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
    /// Strides of q over (b, h, t).
    pub q: [u32; 3],
    /// Strides of k over (b, h, t).
    pub k: [u32; 3],
    /// Strides of v over (b, h, t).
    pub v: [u32; 3],
    /// Strides of o over (b, h, t).
    pub o: [u32; 3],
    /// Strides of mask over (b, h, tq, tk).
    pub mask: [u32; 4],
    /// Factor of q . k.
    pub scale: f32,
    /// [`AttentionParams::MASK`].
    pub flags: u32,
}

impl AttentionParams {
    /// `mask` is present.
    pub const MASK: u32 = 2;

    fn scores(&self) -> [u32; 4] {
        [self.batch, self.heads, self.tq, self.tk]
    }
}

/// Elements of a [B, H, t, d] operand with strides over (b, h, t) and contiguous d.
fn rows_extent(batch: u32, heads: u32, t: u32, d: u32, s: [u32; 3]) -> usize {
    extent(&[batch, heads, t, d], &[s[0], s[1], s[2], 1])
}

/// Row (b, h, t) of an operand with strides `s`.
fn row(s: [u32; 3], b: usize, h: usize, t: usize) -> usize {
    b * s[0] as usize + h * s[1] as usize + t * s[2] as usize
}

fn dot<T: Real>(a: &[T], b: &[T]) -> T {
    a.iter().zip(b).fold(T::of(0.0), |sum, (&a, &b)| sum + a * b)
}

impl Contract for Attention {
    type Params = AttentionParams;
    const NAME: &'static str = "attention";
    const BINDINGS: &'static [Binding] = &[
        Binding::read("q"),
        Binding::read("k"),
        Binding::read("v"),
        Binding::read("mask").optional(),
        Binding::read_write("o"),
        Binding::write("p"),
    ];

    fn lens(p: &AttentionParams) -> Vec<usize> {
        let rows = |t, d, s| rows_extent(p.batch, p.heads, t, d, s);
        vec![
            rows(p.tq, p.d, p.q),
            rows(p.tk, p.d, p.k),
            rows(p.tk, p.dv, p.v),
            if p.flags & AttentionParams::MASK != 0 { extent(&p.scores(), &p.mask) } else { 0 },
            rows(p.tq, p.dv, p.o),
            super::strided::count(&p.scores()),
        ]
    }

    fn check(p: &AttentionParams, _: Option<&Weight>) -> Result<(), String> {
        check_written("o", &[p.batch, p.heads, p.tq, p.dv], &[p.o[0], p.o[1], p.o[2], 1])
    }

    fn plain<T: Real>(p: &AttentionParams, args: &mut Args<'_, T>) {
        let (q, k, v, mask) = (args.input(0), args.input(1), args.input(2), args.optional_input(3));
        let (o, probs) = (args.output(4), args.output(5));
        let (tk, d, dv) = (p.tk as usize, p.d as usize, p.dv as usize);
        let mut next = probs.chunks_exact_mut(tk.max(1));
        for b in 0..p.batch as usize {
            for h in 0..p.heads as usize {
                for t in 0..p.tq as usize {
                    let scores = next.next().expect("one row of p for each (b, h, t)");
                    for (s, score) in scores.iter_mut().enumerate() {
                        *score =
                            T::of(f64::from(p.scale)) * dot(&q[row(p.q, b, h, t)..][..d], &k[row(p.k, b, h, s)..][..d]);
                        if let Some(mask) = mask {
                            let at =
                                [b, h, t, s].iter().zip(p.mask).map(|(i, stride)| i * stride as usize).sum::<usize>();
                            *score += mask[at];
                        }
                    }
                    softmax_row(scores);
                    let o = &mut o[row(p.o, b, h, t)..][..dv];
                    o.fill(T::of(0.0));
                    for (s, &prob) in scores.iter().enumerate() {
                        for (o, &v) in o.iter_mut().zip(&v[row(p.v, b, h, s)..][..dv]) {
                            *o += prob * v;
                        }
                    }
                }
            }
        }
    }

    fn decompose(p: &AttentionParams) -> Option<Vec<Piece>> {
        let [_, _, _, tk] = p.scores();
        let probs = super::strided::contiguous(p.scores());
        let scores = MatmulParams {
            b0: p.batch,
            b1: p.heads,
            m: p.tq,
            n: tk,
            k: p.d,
            a: [p.q[0], p.q[1], p.q[2], 1],
            b: [p.k[0], p.k[1], 1, p.k[2]],
            c: probs,
            alpha: p.scale,
            flags: 0,
        };
        let mut pieces = vec![Piece::new::<Matmul>(&scores, [Some(0), Some(1), Some(5)])];
        if p.flags & AttentionParams::MASK != 0 {
            let [b, h, t, s] = p.scores();
            let mask = CopyParams {
                dims: [1, 1, b, h, t, s],
                src: [0, 0, p.mask[0], p.mask[1], p.mask[2], p.mask[3]],
                dst: [0, 0, probs[0], probs[1], probs[2], probs[3]],
                src_offset: 0,
                dst_offset: 0,
                flags: ACCUMULATE,
            };
            pieces.push(Piece::new::<Copy>(&mask, [Some(3), Some(5)]));
        }
        let softmax = SoftmaxParams { rows: p.batch * p.heads * p.tq, cols: p.tk, flags: SoftmaxParams::IN_PLACE };
        pieces.push(Piece::new::<Softmax>(&softmax, [None, Some(5)]));
        let output = MatmulParams {
            m: p.tq,
            n: p.dv,
            k: p.tk,
            a: probs,
            b: [p.v[0], p.v[1], p.v[2], 1],
            c: [p.o[0], p.o[1], p.o[2], 1],
            alpha: 1.0,
            ..scores
        };
        pieces.push(Piece::new::<Matmul>(&output, [Some(5), Some(2), Some(4)]));
        Some(pieces)
    }

    fn workgroups(p: &AttentionParams) -> [u32; 3] {
        cover(p.batch as usize * p.heads as usize * p.tq as usize, 1)
    }

    fn samples() -> Vec<Sample> {
        let mut samples = Vec::new();
        for (i, (batch, heads, tq, tk, d, dv)) in
            [(1, 1, 1, 1, 1, 1), (2, 3, 5, 7, 4, 6), (1, 2, 33, 65, 32, 32), (2, 2, 16, 16, 17, 8)]
                .into_iter()
                .enumerate()
        {
            // [B, T, H, d] as projections leave it, and [B, H, T, d].
            let inner = |t: u32, d: u32| [t * heads * d, d, heads * d];
            let outer = |t: u32, d: u32| [heads * t * d, t * d, d];
            let none = AttentionParams {
                batch,
                heads,
                tq,
                tk,
                d,
                dv,
                q: inner(tq, d),
                k: inner(tk, d),
                v: inner(tk, dv),
                o: inner(tq, dv),
                mask: [0; 4],
                scale: 1.0 / (d as f32).sqrt(),
                flags: 0,
            };
            let flags = AttentionParams::MASK;
            let padding = AttentionParams { mask: [tk, 0, 0, 1], flags, k: outer(tk, d), v: outer(tk, dv), ..none };
            let full = AttentionParams {
                mask: [heads * tq * tk, tq * tk, tk, 1],
                flags,
                q: outer(tq, d),
                o: outer(tq, dv),
                ..none
            };
            samples.push(Sample::random::<Self>(i as u64, &none));
            for p in [padding, full] {
                let mut mask = sample::floats(40, Self::lens(&p)[3]);
                let rows = mask.len() / tk as usize;
                for (r, row) in mask.chunks_exact_mut(tk as usize).enumerate() {
                    // Fully masked, partly masked, and ordinary rows.
                    let masked = if r == rows / 2 && rows > 1 { tk } else { (r as u32 * 3) % tk };
                    row[(tk - masked) as usize..].fill(f32::NEG_INFINITY);
                }
                samples.push(Sample::random::<Self>(i as u64, &p).with(3, SampleOperand::Floats(mask)));
            }
        }
        samples
    }
}
