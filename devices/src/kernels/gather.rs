use bytemuck::{Pod, Zeroable};
use inlay_format::quant::Layout;

use super::strided::count;
use super::{ACCUMULATE, Args, Binding, Contract, Real, Sample, SampleOperand, cover, sample};
use crate::weight::Weight;

/// Rows of a frozen table: `y[i, :] = dequantized row ids[i] of W`, y: [count, width]; with [`ACCUMULATE`] `y +=`.
///
/// W is stored as [rows, width] ([`Layout::NK`], n = rows, k = width). The host refuses ids outside `0..rows`; a body
/// that meets one gives NaN.
pub struct GatherRows;

/// Parameters of [`GatherRows`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct GatherRowsParams {
    /// Number of ids.
    pub count: u32,
    /// Elements of a row.
    pub width: u32,
    /// Rows of the table.
    pub rows: u32,
    /// [`ACCUMULATE`], and [`Weight::form_flags`].
    pub flags: u32,
}

impl Contract for GatherRows {
    type Params = GatherRowsParams;
    const NAME: &'static str = "gather_rows";
    const BINDINGS: &'static [Binding] = &[Binding::weight("w"), Binding::ints("ids"), Binding::read_write("y")];

    fn lens(p: &GatherRowsParams) -> Vec<usize> {
        vec![p.rows as usize * p.width as usize, p.count as usize, p.count as usize * p.width as usize]
    }

    fn check(p: &GatherRowsParams, weight: Option<&Weight>) -> Result<(), String> {
        match weight {
            Some(w) if w.layout() != Layout::NK || (w.n(), w.k()) != (p.rows as usize, p.width as usize) => {
                Err(format!("{w:?} is no table of {} rows of {}", p.rows, p.width))
            }
            Some(w) if w.form_flags() != p.flags & Weight::FORM_MASK => Err(format!("{w:?} has another form")),
            _ => Ok(()),
        }
    }

    fn plain<T: Real>(p: &GatherRowsParams, args: &mut Args<'_, T>) {
        let (w, ids, y) = (args.weight(0), args.ints(1), args.output(2));
        let width = p.width as usize;
        for i in 0..p.count as usize {
            for c in 0..width {
                let value = match usize::try_from(ids[i]) {
                    Ok(id) if id < w.n => T::of(f64::from(w.get(c, id))),
                    _ => T::of(f64::NAN),
                };
                let y = &mut y[i * width + c];
                *y = if p.flags & ACCUMULATE != 0 { *y + value } else { value };
            }
        }
    }

    fn workgroups(p: &GatherRowsParams) -> [u32; 3] {
        cover(p.count as usize * p.width as usize, 256)
    }

    fn samples() -> Vec<Sample> {
        let mut samples = Vec::new();
        for (count, width, rows) in [(1, 1, 1), (7, 33, 5), (13, 48, 40)] {
            let tables = sample::weights(3, [width as usize, rows as usize]);
            for table in tables.into_iter().filter(|table| table.layout() == Layout::NK) {
                for flags in [0, ACCUMULATE] {
                    let p = GatherRowsParams { count, width, rows, flags: flags | table.form_flags() };
                    samples.push(
                        Sample::random::<Self>(1, &p)
                            .with(0, SampleOperand::Weight(table.clone()))
                            .with(1, SampleOperand::Ints(sample::ints(4, count as usize, rows as i32))),
                    );
                }
            }
        }
        samples
    }
}

/// Slices of a float operand along one axis: `y[o, i, :] = x[o, ids[i], :]`; with [`ACCUMULATE`] `y +=`.
///
/// x: [outer, axis_len, inner], y: [outer, count, inner]. The host refuses ids outside `0..axis_len`; a body that meets
/// one gives NaN.
pub struct Gather;

/// Parameters of [`Gather`] and [`GatherGrad`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct GatherParams {
    /// Elements before the axis.
    pub outer: u32,
    /// Length of the axis of x.
    pub axis_len: u32,
    /// Number of ids.
    pub count: u32,
    /// Elements after the axis.
    pub inner: u32,
    /// [`ACCUMULATE`].
    pub flags: u32,
}

impl GatherParams {
    fn x_len(&self) -> usize {
        count(&[self.outer, self.axis_len, self.inner])
    }

    fn y_len(&self) -> usize {
        count(&[self.outer, self.count, self.inner])
    }

    fn samples<C: Contract<Params = Self>>(ids: usize) -> Vec<Sample> {
        let mut samples = Vec::new();
        for (outer, axis_len, count, inner) in [(1, 1, 1, 1), (3, 5, 7, 11), (4, 9, 2, 1), (1, 6, 13, 130)] {
            for flags in [0, ACCUMULATE] {
                let p = GatherParams { outer, axis_len, count, inner, flags };
                let values = SampleOperand::Ints(sample::ints(9, count as usize, axis_len as i32));
                samples.push(Sample::random::<C>(2, &p).with(ids, values));
            }
        }
        samples
    }
}

impl Contract for Gather {
    type Params = GatherParams;
    const NAME: &'static str = "gather";
    const BINDINGS: &'static [Binding] = &[Binding::read("x"), Binding::ints("ids"), Binding::read_write("y")];

    fn lens(p: &GatherParams) -> Vec<usize> {
        vec![p.x_len(), p.count as usize, p.y_len()]
    }

    fn plain<T: Real>(p: &GatherParams, args: &mut Args<'_, T>) {
        let (x, ids, y) = (args.input(0), args.ints(1), args.output(2));
        let (axis_len, inner) = (p.axis_len as usize, p.inner as usize);
        for o in 0..p.outer as usize {
            for (i, &id) in ids[..p.count as usize].iter().enumerate() {
                for c in 0..inner {
                    let value = match usize::try_from(id) {
                        Ok(id) if id < axis_len => x[(o * axis_len + id) * inner + c],
                        _ => T::of(f64::NAN),
                    };
                    let y = &mut y[(o * p.count as usize + i) * inner + c];
                    *y = if p.flags & ACCUMULATE != 0 { *y + value } else { value };
                }
            }
        }
    }

    fn workgroups(p: &GatherParams) -> [u32; 3] {
        cover(p.y_len(), 256)
    }

    fn samples() -> Vec<Sample> {
        GatherParams::samples::<Self>(1)
    }
}

/// Gradient of [`Gather`]: `dx[o, a, :] = sum of dy[o, i, :] over the i with ids[i] = a`, in the order of i; with
/// [`ACCUMULATE`] `dx +=`. A GPU body loops over the ids for each element of dx.
pub struct GatherGrad;

impl Contract for GatherGrad {
    type Params = GatherParams;
    const NAME: &'static str = "gather_grad";
    const BINDINGS: &'static [Binding] = &[Binding::read("dy"), Binding::ints("ids"), Binding::read_write("dx")];

    fn lens(p: &GatherParams) -> Vec<usize> {
        vec![p.y_len(), p.count as usize, p.x_len()]
    }

    fn plain<T: Real>(p: &GatherParams, args: &mut Args<'_, T>) {
        let (dy, ids, dx) = (args.input(0), args.ints(1), args.output(2));
        let (axis_len, inner) = (p.axis_len as usize, p.inner as usize);
        if p.flags & ACCUMULATE == 0 {
            dx[..p.x_len()].fill(T::of(0.0));
        }
        for o in 0..p.outer as usize {
            for (i, &id) in ids[..p.count as usize].iter().enumerate() {
                let Some(id) = usize::try_from(id).ok().filter(|&id| id < axis_len) else { continue };
                let dy = &dy[(o * p.count as usize + i) * inner..][..inner];
                for (dx, &dy) in dx[(o * axis_len + id) * inner..][..inner].iter_mut().zip(dy) {
                    *dx += dy;
                }
            }
        }
    }

    fn workgroups(p: &GatherParams) -> [u32; 3] {
        cover(p.x_len(), 256)
    }

    fn samples() -> Vec<Sample> {
        GatherParams::samples::<Self>(1)
    }
}
