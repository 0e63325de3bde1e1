use std::ops::Range;

use inlay_format::quant::Layout;

use super::gemm::Right;
use super::simd::Vector;
use crate::weight::WeightView;

/// A right operand of uint8 elements with a scale and a zero point for each output, or for each block of k.
#[derive(Clone, Copy)]
pub struct Uint8<'a> {
    pub w: WeightView<'a>,
    /// Whether the product is with W^T.
    pub transposed: bool,
}

/// The most elements that are decoded at a time.
const RUN: usize = 64;

impl Uint8<'_> {
    /// Decodes elements `inner` of the contiguous axis at `outer` of the other one.
    #[inline(always)]
    fn run(&self, outer: usize, inner: Range<usize>, out: &mut [f32]) {
        let WeightView { parts, layout, form, k, n, .. } = self.w;
        match layout {
            Layout::KN => {
                let (data, scales) = (&parts.data[outer * n..][inner.clone()], &parts.scales[inner.clone()]);
                for (((out, &q), &scale), &zero) in out.iter_mut().zip(data).zip(scales).zip(&parts.zero_points[inner])
                {
                    *out = (f32::from(q) - f32::from(zero)) * scale;
                }
            }
            Layout::NK => {
                let block = if form.block == 0 { k } else { form.block };
                let mut from = inner.start;
                let mut out = out;
                while from < inner.end {
                    let to = inner.end.min((from / block + 1) * block);
                    let at = outer * (k / block) + from / block;
                    let (scale, zero) = (parts.scales[at], f32::from(parts.zero_points[at]));
                    let (here, rest) = out.split_at_mut(to - from);
                    for (out, &q) in here.iter_mut().zip(&parts.data[outer * k..][from..to]) {
                        *out = (f32::from(q) - zero) * scale;
                    }
                    (from, out) = (to, rest);
                }
            }
        }
    }
}

impl Right for Uint8<'_> {
    #[inline(always)]
    unsafe fn pack<V: Vector, const N: usize, const W: usize>(
        &self,
        k: Range<usize>,
        n: Range<usize>,
        panel: &mut [f32],
    ) {
        if (self.w.layout == Layout::NK) == self.transposed {
            for (row, k) in panel.chunks_exact_mut(W).zip(k) {
                let (here, rest) = row.split_at_mut(n.len());
                self.run(k, n.clone(), here);
                rest.fill(0.0);
            }
            return;
        }
        if n.len() < W {
            panel.fill(0.0);
        }
        let mut decoded = [0f32; RUN];
        for (j, n) in n.enumerate() {
            for first in k.clone().step_by(RUN) {
                let inner = first..k.end.min(first + RUN);
                let decoded = &mut decoded[..inner.len()];
                self.run(n, inner, decoded);
                for (row, &x) in panel[(first - k.start) * W..].chunks_mut(W).zip(&*decoded) {
                    row[j] = x;
                }
            }
        }
    }
}
