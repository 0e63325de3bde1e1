#version 450
#extension GL_GOOGLE_include_directive : require
// stats = global L2 norm of the gradients and the factor that clips it. See optimizer.rs. One workgroup.

#define LANES 256u
#include "rows.glsl"
#include "common.glsl"
#include "step.glsl"

layout(push_constant) uniform Params {
    uint len;
};
layout(set = 0, binding = 0) readonly buffer Grads { float grads[]; };
layout(set = 0, binding = 1) readonly buffer Step { float step_values[]; };
layout(set = 0, binding = 2) buffer Stats { float stats[]; };

void main() {
    float sum = 0.0;
    for (uint i = gl_LocalInvocationID.x; i < len; i += LANES) sum += grads[i] * grads[i];
    sum = reduce_sum(sum);
    if (gl_LocalInvocationID.x != 0u) return;
    float norm = sqrt(sum);
    float max_norm = step_values[STEP_MAX_NORM];
    float clip = max_norm / (norm + 1e-6);
    bool finite = (floatBitsToUint(max_norm) & 0x7f800000u) != 0x7f800000u;
    stats[STATS_GRAD_NORM] = norm;
    stats[STATS_CLIP] = finite && clip < 1.0 ? clip : 1.0;
}
