// Elementwise functions and their slopes, numbered as `UnaryOp` in unary.rs. Include after common.glsl.

#define AFFINE 0u
#define RELU 1u
#define LEAKY_RELU 2u
#define GELU_ERF 3u
#define GELU_TANH 4u
#define TANH 5u
#define SIGMOID 6u
#define SILU 7u
#define EXP 8u
#define LOG 9u
#define SQRT 10u
#define RECIPROCAL 11u
#define ERF 12u
#define CLIP 13u
#define POW 14u
#define ABS 15u
#define SIN 16u
#define COS 17u
#define HARD_SWISH 18u
#define SOFTPLUS 19u
#define ELU 20u

const float SQRT_HALF = 0.70710678118654752;
const float GELU_TANH_SCALE = 0.79788456080286536; // sqrt(2 / pi)
const float GELU_TANH_CUBIC = 0.044715;

// Abramowitz and Stegun 7.1.26, absolute error below 1.5e-7; the Taylor series near 0, where that is relatively large.
float erf_of(float x) {
    float z = abs(x);
    if (z < 0.25) {
        float s = x * x;
        return 1.1283791670955126 * x * (1.0 - s * (1.0 / 3.0 - s * (0.1 - s * (1.0 / 42.0 - s * (1.0 / 216.0)))));
    }
    float t = 1.0 / (1.0 + 0.3275911 * z);
    float poly = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))));
    return sign(x) * (1.0 - poly * exp(-z * z));
}

// Drivers may compute tanh from exponentials that overflow.
float tanh_of(float x) {
    return tanh(clamp(x, -15.0, 15.0));
}

float sigmoid_of(float x) {
    return 1.0 / (1.0 + exp(-clamp(x, -80.0, 80.0)));
}

// Sine by octants: GLSL's own may err by 2^-11. Good to |x| of a few thousand.
float sin_of(float x) {
    float turns = round(x * 0.63661977236758134); // 2 / pi
    float r = ((x - turns * 1.5703125) - turns * 4.8375129699707031e-4) - turns * 7.5497899548918821e-8;
    uint quadrant = uint(int(turns)) & 3u;
    float s = r * r;
    float value = (quadrant & 1u) == 0u
        ? r + r * s * (-1.6666654611e-1 + s * (8.3321608736e-3 - s * 1.9515295891e-4))
        : 1.0 - 0.5 * s + s * s * (4.166664568298827e-2 + s * (-1.388731625493765e-3 + s * 2.443315711809948e-5));
    return (quadrant & 2u) == 0u ? value : -value;
}

float cos_of(float x) {
    return sin_of(x + 1.5707963267948966);
}

// x^y for any x: GLSL leaves pow of a negative x undefined.
float pow_of(float x, float y) {
    if (y == 0.0) return 1.0;
    if (y == 1.0) return x;
    if (y == 2.0) return x * x;
    if (y == 3.0) return x * x * x;
    bool whole = y == floor(y);
    if (x == 0.0) return y > 0.0 ? 0.0 : INFINITE;
    float magnitude = pow(abs(x), y);
    if (x > 0.0) return magnitude;
    if (!whole) return NOT_A_NUMBER;
    return mod(abs(y), 2.0) == 1.0 ? -magnitude : magnitude;
}

float gelu_inner(float x) {
    return GELU_TANH_SCALE * (x + GELU_TANH_CUBIC * x * x * x);
}

float value_of(uint op, float x, float a, float b) {
    switch (op) {
        case AFFINE: return a * x + b;
        case RELU: return max(x, 0.0);
        case LEAKY_RELU: return x < 0.0 ? a * x : x;
        case GELU_ERF: return 0.5 * x * (1.0 + erf_of(x * SQRT_HALF));
        case GELU_TANH: return 0.5 * x * (1.0 + tanh_of(gelu_inner(x)));
        case TANH: return tanh_of(x);
        case SIGMOID: return sigmoid_of(x);
        case SILU: return x * sigmoid_of(x);
        case EXP: return exp(x);
        case LOG: return log(x);
        case SQRT: return sqrt(x);
        case RECIPROCAL: return 1.0 / x;
        case ERF: return erf_of(x);
        case CLIP: return min(max(x, a), b);
        case POW: return pow_of(x, a);
        case ABS: return abs(x);
        case SIN: return sin_of(x);
        case COS: return cos_of(x);
        case HARD_SWISH: return x * clamp(x + 3.0, 0.0, 6.0) / 6.0;
        case SOFTPLUS: return max(x, 0.0) + log(1.0 + exp(-abs(x)));
        default: return x < 0.0 ? a * (exp(x) - 1.0) : x;
    }
}

float slope(uint op, float x, float a, float b) {
    switch (op) {
        case AFFINE: return a;
        case RELU: return x > 0.0 ? 1.0 : 0.0;
        case LEAKY_RELU: return x < 0.0 ? a : 1.0;
        case GELU_ERF: {
            float cdf = 0.5 * (1.0 + erf_of(x * SQRT_HALF));
            return cdf + x * exp(-0.5 * x * x) * 0.3989422804014327;
        }
        case GELU_TANH: {
            float t = tanh_of(gelu_inner(x));
            float inner = GELU_TANH_SCALE * (1.0 + 3.0 * GELU_TANH_CUBIC * x * x);
            return 0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * inner;
        }
        case TANH: {
            float t = tanh_of(x);
            return 1.0 - t * t;
        }
        case SIGMOID: {
            float s = sigmoid_of(x);
            return s * (1.0 - s);
        }
        case SILU: {
            float s = sigmoid_of(x);
            return s * (1.0 + x * (1.0 - s));
        }
        case EXP: return exp(x);
        case LOG: return 1.0 / x;
        case SQRT: return 0.5 / sqrt(x);
        case RECIPROCAL: return -1.0 / (x * x);
        case ERF: return 1.1283791670955126 * exp(-x * x);
        case CLIP: return x < a || x > b ? 0.0 : 1.0;
        case POW: return a * pow_of(x, a - 1.0);
        case ABS: return sign(x);
        case SIN: return cos_of(x);
        case COS: return -sin_of(x);
        case HARD_SWISH: return x <= -3.0 ? 0.0 : x >= 3.0 ? 1.0 : (2.0 * x + 3.0) / 6.0;
        case SOFTPLUS: return sigmoid_of(x);
        default: return x < 0.0 ? a * exp(x) : 1.0;
    }
}
