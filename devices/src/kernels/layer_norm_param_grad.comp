#version 450
#extension GL_GOOGLE_include_directive : require
// dgamma[c] (+)= sum_r dy[r, c] (x[r, c] - mean[r]) rstd[r], dbeta[c] (+)= sum_r dy[r, c]. See layer_norm.rs.

layout(local_size_x = 64) in;

layout(push_constant) uniform Params {
    uint rows;
    uint cols;
    float eps;
    uint flags;
};
layout(set = 0, binding = 0) readonly buffer X { float x[]; };
layout(set = 0, binding = 1) readonly buffer Stats { float stats[]; };
layout(set = 0, binding = 2) readonly buffer Dy { float dy[]; };
layout(set = 0, binding = 3) buffer Dgamma { float dgamma[]; };
layout(set = 0, binding = 4) buffer Dbeta { float dbeta[]; };

#include "common.glsl"

#define GAMMA 2u
#define BETA 4u

void main() {
    uint c = item_index();
    if (c >= cols) return;
    float gamma = 0.0;
    float beta = 0.0;
    for (uint r = 0u; r < rows; r++) {
        uint at = r * cols + c;
        gamma += dy[at] * (x[at] - stats[2u * r]) * stats[2u * r + 1u];
        beta += dy[at];
    }
    bool accumulate = (flags & ACCUMULATE) != 0u;
    if ((flags & GAMMA) != 0u) dgamma[c] = accumulate ? dgamma[c] + gamma : gamma;
    if ((flags & BETA) != 0u) dbeta[c] = accumulate ? dbeta[c] + beta : beta;
}
