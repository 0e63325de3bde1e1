#version 450
#extension GL_GOOGLE_include_directive : require
// c[i, j, m, n] (+)= alpha sum_k a[i, j, m, k] b[i, j, k, n]. See matmul.rs.
// A workgroup makes a 16 x 16 tile of one (i, j); each invocation 4 columns of a row.

layout(local_size_x = 64) in;

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

#include "common.glsl"

#define TILE 16u

shared float a_tile[TILE * TILE]; // [row][inner]
shared vec4 b_tile[TILE * TILE / 4u]; // [inner][column / 4]

void main() {
    uint lane = gl_LocalInvocationID.x;
    uint outer = gl_WorkGroupID.z / b1;
    uint batch = gl_WorkGroupID.z % b1;
    uint a_base = outer * a_strides[0] + batch * a_strides[1];
    uint b_base = outer * b_strides[0] + batch * b_strides[1];
    uint c_base = outer * c_strides[0] + batch * c_strides[1];
    uint tile_row = gl_WorkGroupID.y * TILE;
    uint tile_col = gl_WorkGroupID.x * TILE;
    uint y = lane / 4u;
    uint x4 = lane % 4u * 4u;
    // Neighbouring invocations load neighbouring elements, whichever way an operand lies.
    bool a_across = a_strides[3] > a_strides[2];
    bool b_across = b_strides[2] < b_strides[3];

    vec4 sum = vec4(0.0);
    for (uint k0 = 0u; k0 < k; k0 += TILE) {
        for (uint s = 0u; s < 4u; s++) {
            uint slow = y;
            uint fast = x4 + s;
            uint row = a_across ? fast : slow;
            uint i = a_across ? slow : fast;
            bool inside = tile_row + row < m && k0 + i < k;
            a_tile[row * TILE + i] = inside ? a[a_base + (tile_row + row) * a_strides[2] + (k0 + i) * a_strides[3]] : 0.0;
            uint col = b_across ? slow : fast;
            i = b_across ? fast : slow;
            inside = tile_col + col < n && k0 + i < k;
            float value = inside ? b[b_base + (k0 + i) * b_strides[2] + (tile_col + col) * b_strides[3]] : 0.0;
            b_tile[i * (TILE / 4u) + col / 4u][col % 4u] = value;
        }
        barrier();
        for (uint i = 0u; i < TILE; i++) sum += a_tile[y * TILE + i] * b_tile[i * (TILE / 4u) + x4 / 4u];
        barrier();
    }

    uint row = tile_row + y;
    if (row >= m) return;
    for (uint s = 0u; s < 4u; s++) {
        uint col = tile_col + x4 + s;
        if (col >= n) return;
        uint at = c_base + row * c_strides[2] + col * c_strides[3];
        float value = alpha * sum[s];
        c[at] = (flags & ACCUMULATE) != 0u ? c[at] + value : value;
    }
}
