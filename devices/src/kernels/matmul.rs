use bytemuck::{Pod, Zeroable};

use super::strided::{check_written, contiguous, extent};
use super::{ACCUMULATE, Args, Binding, Contract, Real, Sample};
use crate::weight::Weight;

/// Batched strided product of two float operands.
///
/// `c[i, j, m, n] = alpha sum_k a[i, j, m, k] b[i, j, k, n]`; with [`ACCUMULATE`] `c +=`. A stride of 0 broadcasts a
/// or b over a batch dimension; c has no stride of 0. Elements of c between its strides keep their value.
pub struct Matmul;

/// Parameters of [`Matmul`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct MatmulParams {
    /// Outer batch dimension.
    pub b0: u32,
    /// Inner batch dimension.
    pub b1: u32,
    /// Rows of a and c.
    pub m: u32,
    /// Columns of b and c.
    pub n: u32,
    /// Contracted length.
    pub k: u32,
    /// Strides of a over (b0, b1, m, k).
    pub a: [u32; 4],
    /// Strides of b over (b0, b1, k, n).
    pub b: [u32; 4],
    /// Strides of c over (b0, b1, m, n).
    pub c: [u32; 4],
    /// Factor of the product.
    pub alpha: f32,
    /// [`ACCUMULATE`].
    pub flags: u32,
}

impl MatmulParams {
    /// `c = a b` for contiguous a: [m, k], b: [k, n], c: [m, n].
    pub fn contiguous(m: u32, n: u32, k: u32) -> Self {
        MatmulParams {
            b0: 1,
            b1: 1,
            m,
            n,
            k,
            a: contiguous([1, 1, m, k]),
            b: contiguous([1, 1, k, n]),
            c: contiguous([1, 1, m, n]),
            alpha: 1.0,
            flags: 0,
        }
    }
}

impl Contract for Matmul {
    type Params = MatmulParams;
    const NAME: &'static str = "matmul";
    const BINDINGS: &'static [Binding] = &[Binding::read("a"), Binding::read("b"), Binding::read_write("c")];

    fn lens(p: &MatmulParams) -> Vec<usize> {
        vec![
            extent(&[p.b0, p.b1, p.m, p.k], &p.a),
            extent(&[p.b0, p.b1, p.k, p.n], &p.b),
            extent(&[p.b0, p.b1, p.m, p.n], &p.c),
        ]
    }

    fn check(p: &MatmulParams, _: Option<&Weight>) -> Result<(), String> {
        check_written("c", &[p.b0, p.b1, p.m, p.n], &p.c)
    }

    fn plain<T: Real>(p: &MatmulParams, args: &mut Args<'_, T>) {
        let (a, b, c) = (args.input(0), args.input(1), args.output(2));
        let at = |s: [u32; 4], i: [u32; 4]| (0..4).map(|d| s[d] as usize * i[d] as usize).sum::<usize>();
        for i in 0..p.b0 {
            for j in 0..p.b1 {
                for m in 0..p.m {
                    for n in 0..p.n {
                        let mut sum = T::of(0.0);
                        for k in 0..p.k {
                            sum += a[at(p.a, [i, j, m, k])] * b[at(p.b, [i, j, k, n])];
                        }
                        let c = &mut c[at(p.c, [i, j, m, n])];
                        let value = T::of(f64::from(p.alpha)) * sum;
                        *c = if p.flags & ACCUMULATE != 0 { *c + value } else { value };
                    }
                }
            }
        }
    }

    fn workgroups(p: &MatmulParams) -> [u32; 3] {
        [p.n.div_ceil(64), p.m.div_ceil(64), p.b0 * p.b1]
    }

    fn samples() -> Vec<Sample> {
        let mut samples = Vec::new();
        for (i, (m, n, k)) in [(1, 1, 1), (1, 33, 17), (37, 4, 65), (37, 65, 4), (5, 7, 1), (19, 1, 23), (33, 47, 70)]
            .into_iter()
            .enumerate()
        {
            for flags in [0, ACCUMULATE] {
                let plain = MatmulParams { flags, ..MatmulParams::contiguous(m, n, k) };
                let transposed =
                    MatmulParams { a: [0, 0, 1, m], b: [0, 0, 1, k], c: [0, 0, 1, m], alpha: -0.5, ..plain };
                // Heads between rows and columns, as in attention over [B, T, H, d]; b shared by the inner batch.
                let heads = MatmulParams {
                    b0: 2,
                    b1: 3,
                    a: [3 * m * k, k, 3 * k, 1],
                    b: [k * n, 0, n, 1],
                    c: [3 * m * n, m * n, n, 1],
                    alpha: 0.25,
                    ..plain
                };
                // Columns with gaps between them.
                let gaps = MatmulParams { c: [0, 0, 2 * n + 1, 2], ..plain };
                for p in [plain, transposed, heads, gaps] {
                    samples.push(Sample::random::<Self>(i as u64, &p));
                }
            }
        }
        samples
    }
}
