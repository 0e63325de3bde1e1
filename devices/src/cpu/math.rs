//! Functions that the compiler can vectorize: no calls, no branches. Each is within a few units in the last place.

/// e^x.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    // Adding 1.5 * 2^23 rounds to a whole number, which is then in the low bits.
    const ROUND: f32 = 12_582_912.0;
    // Beyond these the result is 0 or infinite; NaN stays NaN.
    let x = x.clamp(-104.0, 89.0);
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    // ln 2 in two parts, the first with few bits so that its product is exact.
    let r = x - n * 0.693_359_4 - n * -2.121_944_4e-4;
    let mut p = 1.987_569_1e-4;
    for c in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        p = p * r + c;
    }
    let p = p * r * r + r + 1.0;
    // 2^n as the product of two powers, as one may leave the range of exponents.
    let n = shifted.to_bits().wrapping_sub(ROUND.to_bits()).cast_signed();
    let half = n >> 1;
    let power = |n: i32| f32::from_bits((n.wrapping_add(127).cast_unsigned()) << 23);
    p * power(half) * power(n.wrapping_sub(half))
}

/// Hyperbolic tangent: a rational function on the range where it is not yet 1.
#[inline(always)]
pub fn tanh(x: f32) -> f32 {
    let x = x.clamp(-7.905_311, 7.905_311);
    let x2 = x * x;
    let mut p = -2.760_768_5e-16;
    for c in [2.000_188e-13, -8.604_672e-11, 5.122_297e-8, 1.485_722_4e-5, 6.372_619e-4, 4.893_525e-3] {
        p = p * x2 + c;
    }
    let mut q = 1.198_258_4e-6;
    for c in [1.185_347_1e-4, 2.268_434_6e-3, 4.893_525e-3] {
        q = q * x2 + c;
    }
    x * p / q
}

/// Gauss error function: a rational function on the range where it is not yet 1.
#[inline(always)]
pub fn erf(x: f32) -> f32 {
    let x = x.clamp(-4.0, 4.0);
    let x2 = x * x;
    let mut p = -2.726_142_4e-10;
    for c in [2.770_681_4e-8, -2.101_024e-6, -5.692_506_6e-5, -7.349_906_4e-4, -2.954_6e-3, -1.609_603_3e-2] {
        p = p * x2 + c;
    }
    let mut q = -1.456_607_2e-5;
    for c in [-2.133_740_5e-4, -1.682_827e-3, -7.373_329_4e-3, -1.426_473_9e-2] {
        q = q * x2 + c;
    }
    x * p / q
}

/// 1 / (1 + e^-x).
#[inline(always)]
pub fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// d/dx of `x sigmoid(x)`.
#[inline(always)]
pub fn silu_slope(x: f32) -> f32 {
    let s = sigmoid(x);
    s * (1.0 + x * (1.0 - s))
}

/// Distribution function of the standard normal distribution.
#[inline(always)]
fn normal(x: f32) -> f32 {
    0.5 * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2))
}

/// `x Phi(x)`.
#[inline(always)]
pub fn gelu(x: f32) -> f32 {
    x * normal(x)
}

/// d/dx of [`gelu`].
#[inline(always)]
pub fn gelu_slope(x: f32) -> f32 {
    const INV_SQRT_TAU: f32 = 0.398_942_3;
    normal(x) + x * exp(-0.5 * x * x) * INV_SQRT_TAU
}

const GELU_TANH_SCALE: f32 = 0.797_884_6;

/// The tanh of the approximation of [`gelu`].
#[inline(always)]
fn gelu_tanh_inner(x: f32) -> f32 {
    tanh(GELU_TANH_SCALE * (x + 0.044_715 * x * x * x))
}

/// Approximation of [`gelu`] by tanh.
#[inline(always)]
pub fn gelu_tanh(x: f32) -> f32 {
    0.5 * x * (1.0 + gelu_tanh_inner(x))
}

/// d/dx of [`gelu_tanh`].
#[inline(always)]
pub fn gelu_tanh_slope(x: f32) -> f32 {
    let t = gelu_tanh_inner(x);
    let inner = GELU_TANH_SCALE * (1.0 + 3.0 * 0.044_715 * x * x);
    0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * inner
}

/// Sum in a fixed order, 16 partial sums at a time.
#[inline(always)]
pub fn sum(x: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    sum2(x, x, |x, _| f(x))
}

/// Sum of f over pairs, in the order of [`sum`].
#[inline(always)]
pub fn sum2(a: &[f32], b: &[f32], f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut sums = [0f32; 16];
    let (whole_a, whole_b) = (a.chunks_exact(16), b.chunks_exact(16));
    let (rest_a, rest_b) = (whole_a.remainder(), whole_b.remainder());
    for (a, b) in whole_a.zip(whole_b) {
        for i in 0..16 {
            sums[i] += f(a[i], b[i]);
        }
    }
    for (i, (&a, &b)) in rest_a.iter().zip(rest_b).enumerate() {
        sums[i] += f(a, b);
    }
    for width in [8, 4, 2, 1] {
        for i in 0..width {
            sums[i] += sums[i + width];
        }
    }
    sums[0]
}

/// Largest element; -inf of none. Elements that are NaN do not count.
#[inline(always)]
pub fn max(x: &[f32]) -> f32 {
    let mut largest = [f32::NEG_INFINITY; 16];
    let whole = x.chunks_exact(16);
    let rest = whole.remainder();
    for x in whole {
        for i in 0..16 {
            largest[i] = if x[i] > largest[i] { x[i] } else { largest[i] };
        }
    }
    let largest = largest.iter().fold(f32::NEG_INFINITY, |a, &b| if b > a { b } else { a });
    rest.iter().fold(largest, |a, &b| if b > a { b } else { a })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Largest error relative to the true value, over [-range, range].
    fn worst(range: f64, f: fn(f32) -> f32, truth: fn(f64) -> f64) -> f64 {
        let inputs = (-200_000..=200_000).map(|i| (f64::from(i) / 200_000.0 * range) as f32);
        inputs.fold(0.0, |worst: f64, x| {
            let (found, expected) = (f64::from(f(x)), truth(f64::from(x)));
            let error = if found == expected { 0.0 } else { (found - expected).abs() / expected.abs() };
            worst.max(error)
        })
    }

    #[test]
    fn approximations_are_close() {
        for (name, error) in [
            ("exp", worst(87.0, exp, f64::exp)),
            ("tanh", worst(12.0, tanh, f64::tanh)),
            ("erf", worst(6.0, erf, libm::erf)),
            ("sigmoid", worst(20.0, sigmoid, |x| 1.0 / (1.0 + (-x).exp()))),
        ] {
            assert!(error <= 4e-7, "{name}: error {error:e}");
        }
    }

    #[test]
    fn extremes_and_nan() {
        assert_eq!([exp(f32::NEG_INFINITY), exp(-200.0), exp(0.0), exp(f32::INFINITY)], [0.0, 0.0, 1.0, f32::INFINITY]);
        assert_eq!(exp(89.0), f32::INFINITY);
        assert!((exp(-100.0) - (-100f32).exp()).abs() <= 1e-44);
        assert!([exp(f32::NAN), tanh(f32::NAN), erf(f32::NAN), sigmoid(f32::NAN)].iter().all(|x| x.is_nan()));
        assert_eq!([sigmoid(-200.0), sigmoid(200.0)], [0.0, 1.0]);
    }

    #[test]
    fn sums_take_every_element() {
        for len in [0usize, 1, 15, 16, 17, 100] {
            let x: Vec<f32> = (1..=len).map(|x| x as f32).collect();
            assert_eq!(sum(&x, |x| x), (len * (len + 1) / 2) as f32);
            assert_eq!(max(&x), if len == 0 { f32::NEG_INFINITY } else { len as f32 });
        }
    }
}
