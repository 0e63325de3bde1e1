#version 450
#extension GL_GOOGLE_include_directive : require
// c[i, j, m, n] (+)= alpha sum_k a[i, j, m, k] b[i, j, k, n]. See matmul.rs.
// A workgroup makes a 64 x 64 tile of one (i, j).

layout(push_constant) uniform Params {
    uint b0;
    uint b1;
    uint m;
    uint n;
    uint k;
    uint a_strides[4];
    uint b_strides[4];
    uint c_strides[4];
    float alpha;
    uint flags;
};
layout(set = 0, binding = 0) readonly buffer A { float a[]; };
layout(set = 0, binding = 1) readonly buffer B { float b[]; };
layout(set = 0, binding = 2) buffer C { float c[]; };

#include "tile.glsl"
#include "common.glsl"

uint batch_offset(uint outer_stride, uint inner_stride) {
    return gl_WorkGroupID.z / b1 * outer_stride + gl_WorkGroupID.z % b1 * inner_stride;
}

uint tile_inner() { return k; }

vec4 load_a(uint row, uint i) {
    if (row >= m || i >= k) return vec4(0.0);
    uint stride = a_strides[3];
    uint at = batch_offset(a_strides[0], a_strides[1]) + row * a_strides[2] + i * stride;
    if (i + 3u < k) return vec4(a[at], a[at + stride], a[at + 2u * stride], a[at + 3u * stride]);
    vec4 result = vec4(a[at], 0.0, 0.0, 0.0);
    if (i + 1u < k) result.y = a[at + stride];
    if (i + 2u < k) result.z = a[at + 2u * stride];
    return result;
}

// Along the axis whose neighbours are nearer.
bool b_along_inner() { return b_strides[2] < b_strides[3]; }

vec4 load_b(uint i, uint col) {
    if (i >= k || col >= n) return vec4(0.0);
    uint stride = b_along_inner() ? b_strides[2] : b_strides[3];
    uint count = b_along_inner() ? k - i : n - col;
    uint at = batch_offset(b_strides[0], b_strides[1]) + i * b_strides[2] + col * b_strides[3];
    if (count > 3u) return vec4(b[at], b[at + stride], b[at + 2u * stride], b[at + 3u * stride]);
    vec4 result = vec4(b[at], 0.0, 0.0, 0.0);
    if (count > 1u) result.y = b[at + stride];
    if (count > 2u) result.z = b[at + 2u * stride];
    return result;
}

void store(uint at, uint col, float sum) {
    if (col >= n) return;
    c[at] = (flags & ACCUMULATE) != 0u ? c[at] + alpha * sum : alpha * sum;
}

void store4(uint row, uint col, vec4 sums) {
    if (row >= m) return;
    uint stride = c_strides[3];
    uint at = batch_offset(c_strides[0], c_strides[1]) + row * c_strides[2] + col * stride;
    store(at, col, sums.x);
    store(at + stride, col + 1u, sums.y);
    store(at + 2u * stride, col + 2u, sums.z);
    store(at + 3u * stride, col + 3u, sums.w);
}

void main() {
    multiply_tile(gl_WorkGroupID.y * TILE, gl_WorkGroupID.x * TILE);
}
