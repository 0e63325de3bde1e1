use bytemuck::{Pod, Zeroable};

use super::{ACCUMULATE, Args, Binding, Contract, Real, Sample, SampleOperand, cover, sample, to_words};
use crate::weight::Weight;

/// Elementwise function, or its gradient.
///
/// Forward (`dy` absent): `y[i] = f(x[i])`. Gradient (`dy` present): `y[i] = dy[i] f'(x[i])`.
/// With [`ACCUMULATE`] `y +=`, else `y =`.
pub struct Unary;

/// Parameters of [`Unary`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct UnaryParams {
    /// Number of elements.
    pub len: u32,
    /// A [`UnaryOp`].
    pub op: u32,
    /// [`ACCUMULATE`], [`UnaryParams::GRADIENT`].
    pub flags: u32,
    /// First constant of the function; see [`UnaryOp`].
    pub a: f32,
    /// Second constant of the function; see [`UnaryOp`].
    pub b: f32,
}

impl UnaryParams {
    /// `dy` is present and the output is a gradient.
    pub const GRADIENT: u32 = 2;
}

/// The functions of [`Unary`]. Numbers are part of the GPU body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum UnaryOp {
    /// `a x + b`; copy, negation, scaling.
    Affine = 0,
    /// `max(x, 0)`; gradient 0 at 0.
    Relu = 1,
    /// `x < 0 ? a x : x`.
    LeakyRelu = 2,
    /// `x Phi(x)` with the error function.
    GeluErf = 3,
    /// `0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))`.
    GeluTanh = 4,
    /// Hyperbolic tangent.
    Tanh = 5,
    /// `1 / (1 + e^-x)`.
    Sigmoid = 6,
    /// `x sigmoid(x)`.
    Silu = 7,
    /// e^x.
    Exp = 8,
    /// Natural logarithm.
    Log = 9,
    /// Square root.
    Sqrt = 10,
    /// 1 / x.
    Reciprocal = 11,
    /// Gauss error function.
    Erf = 12,
    /// `min(max(x, a), b)`; gradient 0 outside [a, b].
    Clip = 13,
    /// `x^a`, exact for negative x when a is a whole number.
    Pow = 14,
    /// |x|; gradient 0 at 0.
    Abs = 15,
    /// Sine.
    Sin = 16,
    /// Cosine.
    Cos = 17,
    /// `x min(max(x + 3, 0), 6) / 6`.
    HardSwish = 18,
    /// `ln(1 + e^x)`.
    Softplus = 19,
    /// `x < 0 ? a (e^x - 1) : x`.
    Elu = 20,
}

impl UnaryOp {
    /// Every function.
    pub const ALL: [UnaryOp; 21] = [
        UnaryOp::Affine,
        UnaryOp::Relu,
        UnaryOp::LeakyRelu,
        UnaryOp::GeluErf,
        UnaryOp::GeluTanh,
        UnaryOp::Tanh,
        UnaryOp::Sigmoid,
        UnaryOp::Silu,
        UnaryOp::Exp,
        UnaryOp::Log,
        UnaryOp::Sqrt,
        UnaryOp::Reciprocal,
        UnaryOp::Erf,
        UnaryOp::Clip,
        UnaryOp::Pow,
        UnaryOp::Abs,
        UnaryOp::Sin,
        UnaryOp::Cos,
        UnaryOp::HardSwish,
        UnaryOp::Softplus,
        UnaryOp::Elu,
    ];

    /// f(x).
    pub fn value<T: Real>(self, x: T, a: T, b: T) -> T {
        let (zero, half, one) = (T::of(0.0), T::of(0.5), T::of(1.0));
        match self {
            UnaryOp::Affine => a * x + b,
            UnaryOp::Relu => x.max(zero),
            UnaryOp::LeakyRelu => {
                if x < zero {
                    a * x
                } else {
                    x
                }
            }
            UnaryOp::GeluErf => half * x * (one + (x * T::of(std::f64::consts::FRAC_1_SQRT_2)).erf()),
            UnaryOp::GeluTanh => half * x * (one + gelu_inner(x).tanh()),
            UnaryOp::Tanh => x.tanh(),
            UnaryOp::Sigmoid => sigmoid(x),
            UnaryOp::Silu => x * sigmoid(x),
            UnaryOp::Exp => x.exp(),
            UnaryOp::Log => x.ln(),
            UnaryOp::Sqrt => x.sqrt(),
            UnaryOp::Reciprocal => one / x,
            UnaryOp::Erf => x.erf(),
            UnaryOp::Clip => x.max(a).min(b),
            UnaryOp::Pow => x.powf(a),
            UnaryOp::Abs => x.abs(),
            UnaryOp::Sin => x.sin(),
            UnaryOp::Cos => x.cos(),
            UnaryOp::HardSwish => x * (x + T::of(3.0)).max(zero).min(T::of(6.0)) / T::of(6.0),
            // Written so that e^x cannot overflow.
            UnaryOp::Softplus => x.max(zero) + (one + (-x.abs()).exp()).ln(),
            UnaryOp::Elu => {
                if x < zero {
                    a * (x.exp() - one)
                } else {
                    x
                }
            }
        }
    }

    /// f'(x).
    pub fn slope<T: Real>(self, x: T, a: T, b: T) -> T {
        let (zero, half, one) = (T::of(0.0), T::of(0.5), T::of(1.0));
        match self {
            UnaryOp::Affine => a,
            UnaryOp::Relu => {
                if x > zero {
                    one
                } else {
                    zero
                }
            }
            UnaryOp::LeakyRelu => {
                if x < zero {
                    a
                } else {
                    one
                }
            }
            UnaryOp::GeluErf => {
                let cdf = half * (one + (x * T::of(std::f64::consts::FRAC_1_SQRT_2)).erf());
                cdf + x
                    * (-half * x * x).exp()
                    * T::of(0.5 * std::f64::consts::FRAC_2_SQRT_PI * std::f64::consts::FRAC_1_SQRT_2)
            }
            UnaryOp::GeluTanh => {
                let t = gelu_inner(x).tanh();
                let inner = T::of(GELU_TANH_SCALE) * (one + T::of(3.0 * 0.044715) * x * x);
                half * (one + t) + half * x * (one - t * t) * inner
            }
            UnaryOp::Tanh => one - x.tanh() * x.tanh(),
            UnaryOp::Sigmoid => sigmoid(x) * (one - sigmoid(x)),
            UnaryOp::Silu => sigmoid(x) * (one + x * (one - sigmoid(x))),
            UnaryOp::Exp => x.exp(),
            UnaryOp::Log => one / x,
            UnaryOp::Sqrt => half / x.sqrt(),
            UnaryOp::Reciprocal => -one / (x * x),
            UnaryOp::Erf => T::of(std::f64::consts::FRAC_2_SQRT_PI) * (-x * x).exp(),
            UnaryOp::Clip => {
                if x < a || x > b {
                    zero
                } else {
                    one
                }
            }
            UnaryOp::Pow => a * x.powf(a - one),
            UnaryOp::Abs => {
                if x > zero {
                    one
                } else if x < zero {
                    -one
                } else {
                    zero
                }
            }
            UnaryOp::Sin => x.cos(),
            UnaryOp::Cos => -x.sin(),
            UnaryOp::HardSwish => {
                if x <= T::of(-3.0) {
                    zero
                } else if x >= T::of(3.0) {
                    one
                } else {
                    (x + x + T::of(3.0)) / T::of(6.0)
                }
            }
            UnaryOp::Softplus => sigmoid(x),
            UnaryOp::Elu => {
                if x < zero {
                    a * x.exp()
                } else {
                    one
                }
            }
        }
    }
}

const GELU_TANH_SCALE: f64 = 0.797_884_560_802_865_4;

fn gelu_inner<T: Real>(x: T) -> T {
    T::of(GELU_TANH_SCALE) * (x + T::of(0.044715) * x * x * x)
}

fn sigmoid<T: Real>(x: T) -> T {
    T::of(1.0) / (T::of(1.0) + (-x).exp())
}

impl Contract for Unary {
    type Params = UnaryParams;
    const NAME: &'static str = "unary";
    const BINDINGS: &'static [Binding] =
        &[Binding::read("x"), Binding::read("dy").optional(), Binding::read_write("y")];

    fn lens(p: &UnaryParams) -> Vec<usize> {
        let len = p.len as usize;
        vec![len, if p.flags & UnaryParams::GRADIENT != 0 { len } else { 0 }, len]
    }

    fn check(p: &UnaryParams, _: Option<&Weight>) -> Result<(), String> {
        if p.op as usize >= UnaryOp::ALL.len() { Err(format!("no function {}", p.op)) } else { Ok(()) }
    }

    fn plain<T: Real>(p: &UnaryParams, args: &mut Args<'_, T>) {
        let (x, dy, y) = (args.input(0), args.optional_input(1), args.output(2));
        let (op, a, b) = (UnaryOp::ALL[p.op as usize], T::of(f64::from(p.a)), T::of(f64::from(p.b)));
        for i in 0..p.len as usize {
            let value = match dy {
                None => op.value(x[i], a, b),
                Some(dy) => dy[i] * op.slope(x[i], a, b),
            };
            y[i] = if p.flags & ACCUMULATE != 0 { y[i] + value } else { value };
        }
    }

    fn workgroups(p: &UnaryParams) -> [u32; 3] {
        cover(p.len as usize, 256)
    }

    fn samples() -> Vec<Sample> {
        let mut samples = Vec::new();
        for op in UnaryOp::ALL {
            for (seed, len) in [1usize, 37, 1027].into_iter().enumerate() {
                for flags in [0, ACCUMULATE, UnaryParams::GRADIENT, UnaryParams::GRADIENT | ACCUMULATE] {
                    let (a, b) = match op {
                        UnaryOp::Clip => (-0.4, 0.6),
                        UnaryOp::Pow => (3.0, 0.0),
                        _ => (0.3, -0.7),
                    };
                    let p = UnaryParams { len: len as u32, op: op as u32, flags, a, b };
                    // Functions that are undefined or steep below zero get inputs in [0.5, 2.5).
                    let positive = matches!(op, UnaryOp::Log | UnaryOp::Sqrt | UnaryOp::Reciprocal);
                    let x = sample::floats(seed as u64, len);
                    let x = x.iter().map(|x| if positive { x + 1.5 } else { 5.0 * x }).collect();
                    let dy = if flags & UnaryParams::GRADIENT != 0 {
                        SampleOperand::Floats(sample::floats(7 + seed as u64, len))
                    } else {
                        SampleOperand::Absent
                    };
                    samples.push(Sample {
                        label: format!("{op:?} {p:?}"),
                        params: to_words(&p),
                        operands: vec![SampleOperand::Floats(x), dy, SampleOperand::Floats(sample::floats(9, len))],
                    });
                }
            }
        }
        samples
    }
}
