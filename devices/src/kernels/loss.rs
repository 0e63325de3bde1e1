use bytemuck::{Pod, Zeroable};

use super::{ACCUMULATE, Args, Binding, Contract, Real, Sample, SampleOperand, cover, sample};
use crate::program::step;

/// Cross-entropy of class labels, and its gradient with respect to the logits.
///
/// `row_loss[r] = LOSS_SCALE (log sum_c e^logits[r, c] - logits[r, labels[r]])`,
/// `dlogits[r, c] = LOSS_SCALE (softmax(logits[r])[c] - [c = labels[r]])`; both 0 for `r >= VALID_ROWS` and for negative
/// labels, which are ignored. With [`ACCUMULATE`] `dlogits +=`. LOSS_SCALE and VALID_ROWS are read from step ([`step`]).
/// dlogits may be absent. The host refuses labels of `classes` and more; a body that meets one gives NaN.
pub struct SoftmaxCrossEntropy;

/// Parameters of [`SoftmaxCrossEntropy`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct SoftmaxCrossEntropyParams {
    /// Number of rows, padding included.
    pub rows: u32,
    /// Number of classes.
    pub classes: u32,
    /// [`ACCUMULATE`], [`SoftmaxCrossEntropyParams::GRADIENT`].
    pub flags: u32,
}

impl SoftmaxCrossEntropyParams {
    /// dlogits is present.
    pub const GRADIENT: u32 = 2;
}

/// Step contents for samples: the last row is padding when there is more than one.
fn step_sample(rows: u32) -> SampleOperand {
    let mut values = vec![0.5; step::LEN];
    values[step::VALID_ROWS] = (rows - u32::from(rows > 1)) as f32;
    values[step::LOSS_SCALE] = 0.125;
    SampleOperand::Floats(values)
}

impl Contract for SoftmaxCrossEntropy {
    type Params = SoftmaxCrossEntropyParams;
    const NAME: &'static str = "softmax_cross_entropy";
    const BINDINGS: &'static [Binding] = &[
        Binding::read("logits"),
        Binding::ints("labels"),
        Binding::read("step"),
        Binding::write("row_loss"),
        Binding::read_write("dlogits").optional(),
    ];

    fn lens(p: &SoftmaxCrossEntropyParams) -> Vec<usize> {
        let (rows, len) = (p.rows as usize, p.rows as usize * p.classes as usize);
        let gradient = if p.flags & SoftmaxCrossEntropyParams::GRADIENT != 0 { len } else { 0 };
        vec![len, rows, step::LEN, rows, gradient]
    }

    fn plain<T: Real>(p: &SoftmaxCrossEntropyParams, args: &mut Args<'_, T>) {
        let (logits, labels, step) = (args.input(0), args.ints(1), args.input(2));
        let (row_loss, mut dlogits) = (args.output(3), args.optional_output(4));
        let (classes, scale) = (p.classes as usize, step[step::LOSS_SCALE]);
        for r in 0..p.rows as usize {
            let x = &logits[r * classes..][..classes];
            let valid = (r as f64) < step[step::VALID_ROWS].to_f64() && labels[r] >= 0;
            let label = usize::try_from(labels[r]).ok().filter(|&label| label < classes);
            let max = x.iter().fold(T::of(f64::NEG_INFINITY), |max, &x| max.max(x));
            let sum = x.iter().fold(T::of(0.0), |sum, &x| sum + (x - max).exp());
            row_loss[r] = match label {
                _ if !valid => T::of(0.0),
                Some(label) => scale * (sum.ln() + max - x[label]),
                None => T::of(f64::NAN),
            };
            if let Some(dlogits) = &mut dlogits {
                for (c, &x) in x.iter().enumerate() {
                    let hit = T::of(if label == Some(c) { 1.0 } else { 0.0 });
                    let value = match label {
                        _ if !valid => T::of(0.0),
                        Some(_) => scale * ((x - max).exp() / sum - hit),
                        None => T::of(f64::NAN),
                    };
                    let d = &mut dlogits[r * classes + c];
                    *d = if p.flags & ACCUMULATE != 0 { *d + value } else { value };
                }
            }
        }
    }

    fn workgroups(p: &SoftmaxCrossEntropyParams) -> [u32; 3] {
        cover(p.rows as usize, 1)
    }

    fn samples() -> Vec<Sample> {
        const GRADIENT: u32 = SoftmaxCrossEntropyParams::GRADIENT;
        let mut samples = Vec::new();
        for (rows, classes) in [(1, 1), (3, 7), (8, 42), (5, 301)] {
            for flags in [0, GRADIENT, GRADIENT | ACCUMULATE] {
                let p = SoftmaxCrossEntropyParams { rows, classes, flags };
                let mut labels = sample::ints(7, rows as usize, classes as i32);
                if rows > 4 {
                    labels[2] = -1;
                }
                samples.push(
                    Sample::random::<Self>(6, &p).with(1, SampleOperand::Ints(labels)).with(2, step_sample(rows)),
                );
            }
        }
        samples
    }
}

/// Squared error, and its gradient with respect to the prediction.
///
/// `row_loss[r] = LOSS_SCALE sum_c (pred[r, c] - target[r, c])^2`,
/// `dpred[r, c] = 2 LOSS_SCALE (pred[r, c] - target[r, c])`; both 0 for `r >= VALID_ROWS`. With [`ACCUMULATE`] `dpred +=`.
/// For the mean over all elements LOSS_SCALE is 1 / (valid rows x cols). dpred may be absent.
pub struct Mse;

/// Parameters of [`Mse`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct MseParams {
    /// Number of rows, padding included.
    pub rows: u32,
    /// Elements of a row.
    pub cols: u32,
    /// [`ACCUMULATE`], [`MseParams::GRADIENT`].
    pub flags: u32,
}

impl MseParams {
    /// dpred is present.
    pub const GRADIENT: u32 = 2;
}

impl Contract for Mse {
    type Params = MseParams;
    const NAME: &'static str = "mse";
    const BINDINGS: &'static [Binding] = &[
        Binding::read("pred"),
        Binding::read("target"),
        Binding::read("step"),
        Binding::write("row_loss"),
        Binding::read_write("dpred").optional(),
    ];

    fn lens(p: &MseParams) -> Vec<usize> {
        let (rows, len) = (p.rows as usize, p.rows as usize * p.cols as usize);
        vec![len, len, step::LEN, rows, if p.flags & MseParams::GRADIENT != 0 { len } else { 0 }]
    }

    fn plain<T: Real>(p: &MseParams, args: &mut Args<'_, T>) {
        let (pred, target, step) = (args.input(0), args.input(1), args.input(2));
        let (row_loss, mut dpred) = (args.output(3), args.optional_output(4));
        let (cols, scale) = (p.cols as usize, step[step::LOSS_SCALE]);
        for (r, row_loss) in row_loss[..p.rows as usize].iter_mut().enumerate() {
            let valid = (r as f64) < step[step::VALID_ROWS].to_f64();
            let mut sum = T::of(0.0);
            for at in r * cols..(r + 1) * cols {
                let error = if valid { pred[at] - target[at] } else { T::of(0.0) };
                sum += error * error;
                if let Some(dpred) = &mut dpred {
                    let value = T::of(2.0) * scale * error;
                    dpred[at] = if p.flags & ACCUMULATE != 0 { dpred[at] + value } else { value };
                }
            }
            *row_loss = scale * sum;
        }
    }

    fn workgroups(p: &MseParams) -> [u32; 3] {
        cover(p.rows as usize, 1)
    }

    fn samples() -> Vec<Sample> {
        let mut samples = Vec::new();
        for (rows, cols) in [(1, 1), (3, 7), (5, 301)] {
            for flags in [0, MseParams::GRADIENT, MseParams::GRADIENT | ACCUMULATE] {
                samples.push(Sample::random::<Self>(8, &MseParams { rows, cols, flags }).with(2, step_sample(rows)));
            }
        }
        samples
    }
}
