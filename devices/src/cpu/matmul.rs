//! Products of floats.

use super::Context;
use super::gemm::{Floats, Left, Output, Product, gemm};
use super::pool::Disjoint;
use crate::kernels::{ACCUMULATE, Args, MatmulParams, from_words};

/// Body of `matmul`.
pub fn matmul(context: &Context, params: &[u32], args: &mut Args<'_, f32>) {
    let p = columns_inner(from_words(params));
    let (a, b, c) = match p.swapped {
        false => (args.input(0), args.input(1), args.output(2)),
        true => (args.input(1), args.input(0), args.output(2)),
    };
    let p = p.params;
    let (m, n, k) = (p.m as usize, p.n as usize, p.k as usize);
    if p.b0 == 0 || p.b1 == 0 || m == 0 || n == 0 {
        return;
    }
    let (sa, sb, sc) = (p.a.map(|s| s as usize), p.b.map(|s| s as usize), p.c.map(|s| s as usize));
    let c = Disjoint::new(c);
    let batches = p.b0 as usize * p.b1 as usize;
    // SAFETY: validated: the elements of c are distinct.
    unsafe {
        gemm(context, batches, [m, n, k], |batch| {
            let (i, j) = (batch / p.b1 as usize, batch % p.b1 as usize);
            let start = |s: [usize; 4]| if k == 0 { 0 } else { i * s[0] + j * s[1] };
            let product = Product {
                m,
                n,
                k,
                a: Left { data: &a[start(sa)..], row: sa[2], column: sa[3] },
                c: Output { data: &c, start: i * sc[0] + j * sc[1], row: sc[2], column: sc[3] },
                alpha: p.alpha,
                accumulate: p.flags & ACCUMULATE != 0,
                bias: None,
            };
            (product, Floats { data: &b[start(sb)..], row: sb[2], column: sb[3] })
        });
    }
}

struct Oriented {
    params: MatmulParams,
    swapped: bool,
}

/// The same product with contiguous columns of c, by `c^T = b^T a^T` where that helps.
fn columns_inner(p: MatmulParams) -> Oriented {
    if p.c[3] == 1 || p.c[2] != 1 {
        return Oriented { params: p, swapped: false };
    }
    let turn = |s: [u32; 4]| [s[0], s[1], s[3], s[2]];
    let params = MatmulParams { m: p.n, n: p.m, a: turn(p.b), b: turn(p.a), c: turn(p.c), ..p };
    Oriented { params, swapped: true }
}
