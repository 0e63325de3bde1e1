//! Elementwise kernels and optimizers.

use super::nest::{Nest, Pieces};
use super::{CHUNK, Context, math};
use crate::kernels::{
    ACCUMULATE, AdamWParams, Args, BinaryOp, BinaryParams, GradsParams, SelectParams, UnaryOp, UnaryParams, from_words,
    strided,
};
use crate::program::{stats, step};

/// Body of `unary`.
pub fn unary(context: &Context, params: &[u32], args: &mut Args<'_, f32>) {
    let p: UnaryParams = from_words(params);
    let (a, b) = (p.a, p.b);
    let op = UnaryOp::ALL[p.op as usize];
    let call = Map {
        context,
        x: args.input(0),
        dy: args.optional_input(1),
        y: &mut args.output(2)[..p.len as usize],
        accumulate: p.flags & ACCUMULATE != 0,
    };
    // Each arm is compiled for its function alone.
    match op {
        UnaryOp::Affine => call.run(|x| a * x + b, |_| a),
        UnaryOp::Relu => call.run(|x| x.max(0.0), |x| if x > 0.0 { 1.0 } else { 0.0 }),
        UnaryOp::LeakyRelu => call.run(|x| if x < 0.0 { a * x } else { x }, |x| if x < 0.0 { a } else { 1.0 }),
        UnaryOp::GeluErf => call.run(math::gelu, math::gelu_slope),
        UnaryOp::GeluTanh => call.run(math::gelu_tanh, math::gelu_tanh_slope),
        UnaryOp::Tanh => call.run(math::tanh, |x| 1.0 - math::tanh(x) * math::tanh(x)),
        UnaryOp::Sigmoid => call.run(math::sigmoid, |x| math::sigmoid(x) * (1.0 - math::sigmoid(x))),
        UnaryOp::Silu => call.run(|x| x * math::sigmoid(x), math::silu_slope),
        UnaryOp::Exp => call.run(math::exp, math::exp),
        UnaryOp::Clip => call.run(|x| x.max(a).min(b), |x| if x < a || x > b { 0.0 } else { 1.0 }),
        UnaryOp::HardSwish => {
            call.run(|x| UnaryOp::HardSwish.value(x, a, b), |x| UnaryOp::HardSwish.slope(x, a, b));
        }
        UnaryOp::Sqrt => call.run(f32::sqrt, |x| 0.5 / x.sqrt()),
        UnaryOp::Reciprocal => call.run(|x| 1.0 / x, |x| -1.0 / (x * x)),
        UnaryOp::Erf => call.run(math::erf, |x| std::f32::consts::FRAC_2_SQRT_PI * math::exp(-x * x)),
        _ => call.run(|x| op.value(x, a, b), |x| op.slope(x, a, b)),
    }
}

/// Operands of an elementwise function.
struct Map<'a> {
    context: &'a Context,
    x: &'a [f32],
    dy: Option<&'a [f32]>,
    y: &'a mut [f32],
    accumulate: bool,
}

impl Map<'_> {
    #[inline(always)]
    fn run(self, value: impl Fn(f32) -> f32 + Sync, slope: impl Fn(f32) -> f32 + Sync) {
        let Map { context, x, dy, y, accumulate } = self;
        context.pool.split([(y, CHUNK)], |task, [y], _| {
            let range = task * CHUNK..task * CHUNK + y.len();
            let x = &x[range.clone()];
            context.isa.run(
                #[inline(always)]
                || match (dy, accumulate) {
                    (None, false) => {
                        for (y, &x) in y.iter_mut().zip(x) {
                            *y = value(x);
                        }
                    }
                    (None, true) => {
                        for (y, &x) in y.iter_mut().zip(x) {
                            *y += value(x);
                        }
                    }
                    (Some(dy), false) => {
                        for ((y, &x), dy) in y.iter_mut().zip(x).zip(&dy[range]) {
                            *y = dy * slope(x);
                        }
                    }
                    (Some(dy), true) => {
                        for ((y, &x), dy) in y.iter_mut().zip(x).zip(&dy[range]) {
                            *y += dy * slope(x);
                        }
                    }
                },
            );
        });
    }
}

/// Body of `binary`.
pub fn binary(context: &Context, params: &[u32], args: &mut Args<'_, f32>) {
    let p: BinaryParams = from_words(params);
    let op = BinaryOp::ALL[p.op as usize];
    let call = Pairs {
        context,
        nest: Nest::new(&p.dims, [&p.a, &p.b]),
        a: args.input(0),
        b: args.input(1),
        y: &mut args.output(2)[..strided::count(&p.dims)],
        accumulate: p.flags & ACCUMULATE != 0,
    };
    match op {
        BinaryOp::Add => call.run(|a, b| a + b),
        BinaryOp::Sub => call.run(|a, b| a - b),
        BinaryOp::Mul => call.run(|a, b| a * b),
        BinaryOp::Div => call.run(|a, b| a / b),
        _ => call.run(|a, b| op.value(a, b)),
    }
}

/// Operands of a function of two that broadcast.
struct Pairs<'a> {
    context: &'a Context,
    nest: Nest<2>,
    a: &'a [f32],
    b: &'a [f32],
    y: &'a mut [f32],
    accumulate: bool,
}

impl Pairs<'_> {
    #[inline(always)]
    fn run(self, f: impl Fn(f32, f32) -> f32 + Sync) {
        let Pairs { context, nest, a, b, y, accumulate } = self;
        let pieces = Pieces::new(nest.inner(), CHUNK);
        let put = |y: &mut f32, value: f32| *y = if accumulate { *y + value } else { value };
        context.pool.split([(y, pieces.chunk())], |task, [y], _| {
            context.isa.run(
                #[inline(always)]
                || {
                    pieces.for_each(
                        &nest,
                        task,
                        y.len(),
                        #[inline(always)]
                        |[at_a, at_b], range| {
                            let y = &mut y[range];
                            match nest.inner_strides() {
                                [1, 1] => {
                                    let (a, b) = (&a[at_a..][..y.len()], &b[at_b..][..y.len()]);
                                    for ((y, &a), &b) in y.iter_mut().zip(a).zip(b) {
                                        put(y, f(a, b));
                                    }
                                }
                                [1, 0] => {
                                    let b = b[at_b];
                                    for (y, &a) in y.iter_mut().zip(&a[at_a..]) {
                                        put(y, f(a, b));
                                    }
                                }
                                [0, 1] => {
                                    let a = a[at_a];
                                    for (y, &b) in y.iter_mut().zip(&b[at_b..]) {
                                        put(y, f(a, b));
                                    }
                                }
                                [sa, sb] => {
                                    for (i, y) in y.iter_mut().enumerate() {
                                        put(y, f(a[at_a + i * sa], b[at_b + i * sb]));
                                    }
                                }
                            }
                        },
                    );
                },
            );
        });
    }
}

/// Body of `select`.
pub fn select(context: &Context, params: &[u32], args: &mut Args<'_, f32>) {
    let p: SelectParams = from_words(params);
    let (cond, a, b) = (args.input(0), args.input(1), args.input(2));
    let y = &mut args.output(3)[..strided::count(&p.dims)];
    let nest = Nest::new(&p.dims, [&p.cond, &p.a, &p.b]);
    let pieces = Pieces::new(nest.inner(), CHUNK);
    let accumulate = p.flags & ACCUMULATE != 0;
    context.pool.split([(y, pieces.chunk())], |task, [y], _| {
        pieces.for_each(
            &nest,
            task,
            y.len(),
            #[inline(always)]
            |[at_cond, at_a, at_b], range| {
                let [sc, sa, sb] = nest.inner_strides();
                for (i, y) in y[range].iter_mut().enumerate() {
                    let value = if cond[at_cond + i * sc] != 0.0 { a[at_a + i * sa] } else { b[at_b + i * sb] };
                    *y = if accumulate { *y + value } else { value };
                }
            },
        );
    });
}

/// Body of `grad_norm`.
pub fn grad_norm(context: &Context, params: &[u32], args: &mut Args<'_, f32>) {
    let p: GradsParams = from_words(params);
    let (grads, step, stats) = (&args.input(0)[..p.len as usize], args.input(1), args.output(2));
    // Partial sums per chunk, so that rounding does not grow with the number of gradients.
    let sum = context.isa.run(
        #[inline(always)]
        || grads.chunks(1024).map(|g| math::sum(g, |g| g * g)).fold(0.0, |a, b| a + b),
    );
    let (norm, max) = (sum.sqrt(), step[step::MAX_NORM]);
    let clip = max / (norm + 1e-6);
    stats[stats::GRAD_NORM] = norm;
    stats[stats::CLIP] = if max.is_finite() && clip < 1.0 { clip } else { 1.0 };
}

/// Body of `adamw`.
pub fn adamw(context: &Context, params: &[u32], args: &mut Args<'_, f32>) {
    let p: AdamWParams = from_words(params);
    let (params, grads, m, v) = (args.output(0), args.input(1), args.output(2), args.output(3));
    let (step, clip) = (args.input(4), args.input(5)[stats::CLIP]);
    let (lr, len) = (step[step::LR], p.len as usize);
    let decay = 1.0 - lr * p.weight_decay;
    let (correction1, correction2) = (step[step::BIAS_CORRECTION_1], step[step::BIAS_CORRECTION_2]);
    let outputs = [params, m, v].map(|y| (&mut y[..len], CHUNK));
    context.pool.split(outputs, |task, [params, m, v], _| {
        let grads = &grads[task * CHUNK..][..params.len()];
        context.isa.run(
            #[inline(always)]
            || {
                for (((param, m), v), g) in params.iter_mut().zip(m).zip(v).zip(grads) {
                    let g = clip * g;
                    *m = p.beta1 * *m + (1.0 - p.beta1) * g;
                    *v = p.beta2 * *v + (1.0 - p.beta2) * g * g;
                    let denominator = (*v / correction2).sqrt() + p.eps;
                    *param = *param * decay - lr * (*m / correction1) / denominator;
                }
            },
        );
    });
}
