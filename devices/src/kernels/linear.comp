#version 450
#extension GL_GOOGLE_include_directive : require
// y[m, o] (+)= sum_i x[m, i] W'[i, o] + bias[o], with W' = W or W^T dequantized. See linear.rs.

layout(push_constant) uniform Params {
    uint m;
    uint k;
    uint n;
    uint flags;
};
layout(set = 0, binding = 0) readonly buffer X { float x[]; };
#define WEIGHT_BINDING 1
#include "scheme.glsl"
layout(set = 0, binding = 4) readonly buffer Bias { float bias[]; };
layout(set = 0, binding = 5) buffer Y { float y[]; };

#include "tile.glsl"
#include "common.glsl"

#define TRANSPOSE 2u
#define BIAS 4u
#define LAYOUT_NK 8u

bool transposed() { return (flags & TRANSPOSE) != 0u; }
uint inner() { return transposed() ? n : k; }
uint outer() { return transposed() ? k : n; }
uint tile_inner() { return inner(); }

vec4 load_a(uint row, uint i) {
    if (row >= m || i >= inner()) return vec4(0.0);
    uint at = row * inner() + i;
    if (i + 3u < inner()) return vec4(x[at], x[at + 1u], x[at + 2u], x[at + 3u]);
    vec4 a = vec4(x[at], 0.0, 0.0, 0.0);
    if (i + 1u < inner()) a.y = x[at + 1u];
    if (i + 2u < inner()) a.z = x[at + 2u];
    return a;
}

bool stored_nk() { return (flags & LAYOUT_NK) != 0u; }

// The stored layout and the direction of the product together say which axis is contiguous.
bool b_along_inner() { return transposed() != stored_nk(); }

vec4 load_b(uint i, uint o) {
    if (i >= inner() || o >= outer()) return vec4(0.0);
    uint at_k = transposed() ? o : i;
    uint at_n = transposed() ? i : o;
    uint at = stored_nk() ? at_n * k + at_k : at_k * n + at_n;
    if (stored_nk()) {
        if (at_k + 3u < k) return weight4_along_k(at, at_k, at_n);
        vec4 b = vec4(weight(at, at_k, at_n), 0.0, 0.0, 0.0);
        if (at_k + 1u < k) b.y = weight(at + 1u, at_k + 1u, at_n);
        if (at_k + 2u < k) b.z = weight(at + 2u, at_k + 2u, at_n);
        return b;
    }
    if (at_n + 3u < n) return weight4_along_n(at, at_k, at_n);
    vec4 b = vec4(weight(at, at_k, at_n), 0.0, 0.0, 0.0);
    if (at_n + 1u < n) b.y = weight(at + 1u, at_k, at_n + 1u);
    if (at_n + 2u < n) b.z = weight(at + 2u, at_k, at_n + 2u);
    return b;
}

void store(uint at, uint o, float sum) {
    if (o >= outer()) return;
    if ((flags & BIAS) != 0u) sum += bias[o];
    y[at] = (flags & ACCUMULATE) != 0u ? y[at] + sum : sum;
}

void store4(uint row, uint o, vec4 sums) {
    if (row >= m) return;
    uint at = row * outer() + o;
    store(at, o, sums.x);
    store(at + 1u, o + 1u, sums.y);
    store(at + 2u, o + 2u, sums.z);
    store(at + 3u, o + 3u, sums.w);
}

void main() {
    multiply_tile(gl_WorkGroupID.y * TILE, gl_WorkGroupID.x * TILE);
}
