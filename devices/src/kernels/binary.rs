use bytemuck::{Pod, Zeroable};

use super::strided::{contiguous, count, extent, offset};
use super::{ACCUMULATE, Args, Binding, Contract, Real, Sample, SampleOperand, cover, sample};
use crate::weight::Weight;

/// Elementwise function of two operands that broadcast.
///
/// `y[i] = f(a[i], b[i])` over `dims`, row-major in y; a and b have strides, where 0 broadcasts. With [`ACCUMULATE`]
/// `y +=`, else `y =`.
pub struct Binary;

/// Parameters of [`Binary`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct BinaryParams {
    /// Shape of y, leading dimensions 1 where there are fewer.
    pub dims: [u32; 5],
    /// Strides of a.
    pub a: [u32; 5],
    /// Strides of b.
    pub b: [u32; 5],
    /// A [`BinaryOp`].
    pub op: u32,
    /// [`ACCUMULATE`].
    pub flags: u32,
}

/// The functions of [`Binary`]. Numbers are part of the GPU body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum BinaryOp {
    /// a + b
    Add = 0,
    /// a - b
    Sub = 1,
    /// a b
    Mul = 2,
    /// a / b
    Div = 3,
    /// The larger.
    Max = 4,
    /// The smaller.
    Min = 5,
    /// a^b, exact in sign for negative a when b is a whole number.
    Pow = 6,
    /// 1 where a = b, else 0.
    Eq = 7,
    /// 1 where a > b, else 0.
    Gt = 8,
    /// 1 where a >= b, else 0.
    Ge = 9,
    /// 1 where a < b, else 0.
    Lt = 10,
    /// 1 where a <= b, else 0.
    Le = 11,
}

impl BinaryOp {
    /// Every function.
    pub const ALL: [BinaryOp; 12] = [
        BinaryOp::Add,
        BinaryOp::Sub,
        BinaryOp::Mul,
        BinaryOp::Div,
        BinaryOp::Max,
        BinaryOp::Min,
        BinaryOp::Pow,
        BinaryOp::Eq,
        BinaryOp::Gt,
        BinaryOp::Ge,
        BinaryOp::Lt,
        BinaryOp::Le,
    ];

    /// f(a, b).
    pub fn value<T: Real>(self, a: T, b: T) -> T {
        let truth = |x: bool| T::of(f64::from(u8::from(x)));
        match self {
            BinaryOp::Add => a + b,
            BinaryOp::Sub => a - b,
            BinaryOp::Mul => a * b,
            BinaryOp::Div => a / b,
            BinaryOp::Max => a.max(b),
            BinaryOp::Min => a.min(b),
            BinaryOp::Pow => a.powf(b),
            BinaryOp::Eq => truth(a == b),
            BinaryOp::Gt => truth(a > b),
            BinaryOp::Ge => truth(a >= b),
            BinaryOp::Lt => truth(a < b),
            BinaryOp::Le => truth(a <= b),
        }
    }
}

impl Contract for Binary {
    type Params = BinaryParams;
    const NAME: &'static str = "binary";
    const BINDINGS: &'static [Binding] = &[Binding::read("a"), Binding::read("b"), Binding::read_write("y")];

    fn lens(p: &BinaryParams) -> Vec<usize> {
        vec![extent(&p.dims, &p.a), extent(&p.dims, &p.b), count(&p.dims)]
    }

    fn check(p: &BinaryParams, _: Option<&Weight>) -> Result<(), String> {
        if p.op as usize >= BinaryOp::ALL.len() { Err(format!("no function {}", p.op)) } else { Ok(()) }
    }

    fn plain<T: Real>(p: &BinaryParams, args: &mut Args<'_, T>) {
        let (a, b, y) = (args.input(0), args.input(1), args.output(2));
        let op = BinaryOp::ALL[p.op as usize];
        for (i, y) in y[..count(&p.dims)].iter_mut().enumerate() {
            let value = op.value(a[offset(i, &p.dims, &p.a)], b[offset(i, &p.dims, &p.b)]);
            *y = if p.flags & ACCUMULATE != 0 { *y + value } else { value };
        }
    }

    fn workgroups(p: &BinaryParams) -> [u32; 3] {
        cover(count(&p.dims), 256)
    }

    fn samples() -> Vec<Sample> {
        let mut samples = Vec::new();
        for op in BinaryOp::ALL {
            for (dims, a, b) in [
                ([1, 1, 1, 1, 1], [0; 5], [0; 5]),
                ([1, 1, 1, 1, 517], [0, 0, 0, 0, 1], [0, 0, 0, 0, 1]),
                ([1, 1, 1, 13, 37], [0, 0, 0, 37, 1], [0, 0, 0, 0, 1]),
                ([1, 1, 1, 13, 37], [0, 0, 0, 0, 0], [0, 0, 0, 37, 1]),
                ([1, 1, 3, 5, 7], [0, 0, 35, 7, 1], [0, 0, 0, 1, 0]),
                ([2, 3, 1, 5, 4], contiguous([2, 3, 1, 5, 4]), [1, 2, 0, 6, 30]),
            ] {
                for flags in [0, ACCUMULATE] {
                    let p = BinaryParams { dims, a, b, op: op as u32, flags };
                    let lens = Self::lens(&p);
                    // Coarse values, so that equal ones occur; positive where f is undefined or steep otherwise.
                    let coarse = |seed, len| {
                        let values = sample::floats(seed, len).into_iter().map(|x| (x * 3.0).round() / 2.0);
                        match op {
                            BinaryOp::Div | BinaryOp::Pow => values.map(|x| x.abs() + 0.5).collect(),
                            _ => values.collect::<Vec<f32>>(),
                        }
                    };
                    samples.push(
                        Sample::random::<Self>(1, &p)
                            .with(0, SampleOperand::Floats(coarse(2, lens[0])))
                            .with(1, SampleOperand::Floats(coarse(3, lens[1]))),
                    );
                }
            }
        }
        samples
    }
}
