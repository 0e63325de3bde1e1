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
layout(set = 0, binding = 3) readonly buffer Bias { float bias[]; };
layout(set = 0, binding = 4) buffer Y { float y[]; };

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
    vec4 a = vec4(0.0);
    for (uint j = 0u; i + j < inner(); j++) a[j] = x[at + j];
    return a;
}

// The stored layout and the direction of the product together say which axis is contiguous.
bool b_along_inner() { return transposed() != ((flags & LAYOUT_NK) != 0u); }

float scale(uint i, uint o) { return transposed() ? weight_scale(o, i) : weight_scale(i, o); }

vec4 load_b(uint i, uint o) {
    if (i >= inner() || o >= outer()) return vec4(0.0);
    bool along = b_along_inner();
    uint at = along ? o * inner() + i : i * outer() + o;
    uint count = along ? inner() - i : outer() - o;
    vec4 b = vec4(0.0);
    if (count >= 4u) b = weight4_at(at);
    else for (uint j = 0u; j < count; j++) b[j] = weight_at(at + j);
    for (uint j = 0u; j < min(count, 4u); j++) b[j] *= along ? scale(i + j, o) : scale(i, o + j);
    return b;
}

void store(uint row, uint o, float sum) {
    if (row >= m || o >= outer()) return;
    uint at = row * outer() + o;
    if ((flags & BIAS) != 0u) sum += bias[o];
    y[at] = (flags & ACCUMULATE) != 0u ? y[at] + sum : sum;
}

void main() {
    multiply_tile(gl_WorkGroupID.y * TILE, gl_WorkGroupID.x * TILE);
}
