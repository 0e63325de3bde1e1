use bytemuck::{Pod, Zeroable};

use super::strided::{contiguous, count, extent, offset};
use super::{ACCUMULATE, Args, Binding, Contract, Real, Sample, SampleOperand, cover, sample};

/// Elementwise choice: `y[i] = cond[i] != 0 ? a[i] : b[i]` over `dims`, row-major in y; the others have strides, where 0
/// broadcasts. With [`ACCUMULATE`] `y +=`, else `y =`.
pub struct Select;

/// Parameters of [`Select`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct SelectParams {
    /// Shape of y, leading dimensions 1 where there are fewer.
    pub dims: [u32; 5],
    /// Strides of cond.
    pub cond: [u32; 5],
    /// Strides of a.
    pub a: [u32; 5],
    /// Strides of b.
    pub b: [u32; 5],
    /// [`ACCUMULATE`].
    pub flags: u32,
}

impl Contract for Select {
    type Params = SelectParams;
    const NAME: &'static str = "select";
    const BINDINGS: &'static [Binding] =
        &[Binding::read("cond"), Binding::read("a"), Binding::read("b"), Binding::read_write("y")];

    fn lens(p: &SelectParams) -> Vec<usize> {
        vec![extent(&p.dims, &p.cond), extent(&p.dims, &p.a), extent(&p.dims, &p.b), count(&p.dims)]
    }

    fn plain<T: Real>(p: &SelectParams, args: &mut Args<'_, T>) {
        let (cond, a, b, y) = (args.input(0), args.input(1), args.input(2), args.output(3));
        for (i, y) in y[..count(&p.dims)].iter_mut().enumerate() {
            let value = if cond[offset(i, &p.dims, &p.cond)] != T::of(0.0) {
                a[offset(i, &p.dims, &p.a)]
            } else {
                b[offset(i, &p.dims, &p.b)]
            };
            *y = if p.flags & ACCUMULATE != 0 { *y + value } else { value };
        }
    }

    fn workgroups(p: &SelectParams) -> [u32; 3] {
        cover(count(&p.dims), 256)
    }

    fn samples() -> Vec<Sample> {
        let mut samples = Vec::new();
        for (dims, cond, a, b) in [
            ([1, 1, 1, 1, 1], [0; 5], [0; 5], [0; 5]),
            ([1, 1, 1, 1, 517], [0, 0, 0, 0, 1], [0, 0, 0, 0, 1], [0; 5]),
            ([2, 3, 1, 5, 4], [5, 0, 0, 1, 0], contiguous([2, 3, 1, 5, 4]), [1, 2, 0, 6, 30]),
        ] {
            for flags in [0, ACCUMULATE] {
                let p = SelectParams { dims, cond, a, b, flags };
                let cond = sample::floats(6, Self::lens(&p)[0]).iter().map(|x| x.round()).collect();
                samples.push(Sample::random::<Self>(1, &p).with(0, SampleOperand::Floats(cond)));
            }
        }
        samples
    }
}
