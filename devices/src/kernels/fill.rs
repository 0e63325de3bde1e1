use bytemuck::{Pod, Zeroable};

use super::{Args, Binding, Contract, Real, Sample, cover};

/// `y[i] = value`.
pub struct Fill;

/// Parameters of [`Fill`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct FillParams {
    /// Number of elements.
    pub len: u32,
    /// What each becomes.
    pub value: f32,
}

impl Contract for Fill {
    type Params = FillParams;
    const NAME: &'static str = "fill";
    const BINDINGS: &'static [Binding] = &[Binding::write("y")];

    fn lens(p: &FillParams) -> Vec<usize> {
        vec![p.len as usize]
    }

    fn plain<T: Real>(p: &FillParams, args: &mut Args<'_, T>) {
        args.output(0)[..p.len as usize].fill(T::of(f64::from(p.value)));
    }

    fn workgroups(p: &FillParams) -> [u32; 3] {
        cover(p.len as usize, 256)
    }

    fn samples() -> Vec<Sample> {
        [(1, 0.0), (517, -2.5)].map(|(len, value)| Sample::random::<Self>(1, &FillParams { len, value })).into()
    }
}
