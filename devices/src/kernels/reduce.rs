use bytemuck::{Pod, Zeroable};

use super::strided::{contiguous, count, extent, offset};
use super::{ACCUMULATE, Args, Binding, Contract, Real, Sample, cover};
use crate::weight::Weight;

/// Reduction over some axes: `y[kept] = scale op_reduced x[kept, reduced]`, row-major in y; with [`ACCUMULATE`] `y +=`.
///
/// x has strides over the kept and over the reduced dimensions. A mean is a sum with `scale = 1 / count`. No
/// reduced dimension is 0 unless op is Sum.
pub struct Reduce;

/// Parameters of [`Reduce`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct ReduceParams {
    /// Shape of y, leading dimensions 1 where there are fewer.
    pub kept: [u32; 4],
    /// Strides of x over `kept`.
    pub kept_strides: [u32; 4],
    /// Reduced shape, leading dimensions 1 where there are fewer.
    pub reduced: [u32; 4],
    /// Strides of x over `reduced`.
    pub reduced_strides: [u32; 4],
    /// A [`ReduceOp`].
    pub op: u32,
    /// Factor of the result.
    pub scale: f32,
    /// [`ACCUMULATE`].
    pub flags: u32,
}

/// The functions of [`Reduce`]. Numbers are part of the GPU body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum ReduceOp {
    /// Sum.
    Sum = 0,
    /// Largest.
    Max = 1,
    /// Smallest.
    Min = 2,
}

impl ReduceOp {
    /// Every function.
    pub const ALL: [ReduceOp; 3] = [ReduceOp::Sum, ReduceOp::Max, ReduceOp::Min];

    /// The value of no elements.
    pub fn start<T: Real>(self) -> T {
        T::of(match self {
            ReduceOp::Sum => 0.0,
            ReduceOp::Max => f64::NEG_INFINITY,
            ReduceOp::Min => f64::INFINITY,
        })
    }

    /// The value of the elements so far and one more.
    pub fn add<T: Real>(self, so_far: T, x: T) -> T {
        match self {
            ReduceOp::Sum => so_far + x,
            ReduceOp::Max => so_far.max(x),
            ReduceOp::Min => so_far.min(x),
        }
    }
}

impl Contract for Reduce {
    type Params = ReduceParams;
    const NAME: &'static str = "reduce";
    const BINDINGS: &'static [Binding] = &[Binding::read("x"), Binding::read_write("y")];

    fn lens(p: &ReduceParams) -> Vec<usize> {
        let dims = [p.kept, p.reduced].concat();
        vec![extent(&dims, &[p.kept_strides, p.reduced_strides].concat()), count(&p.kept)]
    }

    fn check(p: &ReduceParams, _: Option<&Weight>) -> Result<(), String> {
        if p.op as usize >= ReduceOp::ALL.len() {
            return Err(format!("no function {}", p.op));
        }
        if p.reduced.contains(&0) && p.op != ReduceOp::Sum as u32 {
            return Err("largest or smallest of no elements".into());
        }
        Ok(())
    }

    fn plain<T: Real>(p: &ReduceParams, args: &mut Args<'_, T>) {
        let (x, y) = (args.input(0), args.output(1));
        let op = ReduceOp::ALL[p.op as usize];
        for (i, y) in y[..count(&p.kept)].iter_mut().enumerate() {
            let start = offset(i, &p.kept, &p.kept_strides);
            let value = (0..count(&p.reduced))
                .fold(op.start(), |so_far, j| op.add(so_far, x[start + offset(j, &p.reduced, &p.reduced_strides)]));
            let value = value * T::of(f64::from(p.scale));
            *y = if p.flags & ACCUMULATE != 0 { *y + value } else { value };
        }
    }

    fn workgroups(p: &ReduceParams) -> [u32; 3] {
        cover(count(&p.kept), 1)
    }

    fn samples() -> Vec<Sample> {
        let mut samples = Vec::new();
        let whole = contiguous([3, 5, 4, 7]);
        for op in ReduceOp::ALL {
            for (kept, kept_strides, reduced, reduced_strides) in [
                ([1; 4], [0; 4], [1; 4], [0; 4]),
                // All, rows, columns, the middle, and two axes with the kept ones between them.
                ([1; 4], [0; 4], [1, 1, 1, 1031], [0, 0, 0, 1]),
                ([1, 1, 1, 13], [0, 0, 0, 37], [1, 1, 1, 37], [0, 0, 0, 1]),
                ([1, 1, 1, 37], [0, 0, 0, 1], [1, 1, 1, 13], [0, 0, 0, 37]),
                ([1, 1, 3, 7], [0, 0, 35, 1], [1, 1, 1, 5], [0, 0, 0, 7]),
                ([1, 1, 5, 7], [0, 0, whole[1], whole[3]], [1, 1, 3, 4], [0, 0, whole[0], whole[2]]),
            ] {
                for flags in [0, ACCUMULATE] {
                    let p = ReduceParams {
                        kept,
                        kept_strides,
                        reduced,
                        reduced_strides,
                        op: op as u32,
                        scale: 0.25,
                        flags,
                    };
                    samples.push(Sample::random::<Self>(2, &p));
                }
            }
        }
        samples
    }
}
