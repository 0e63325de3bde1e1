#version 450
#extension GL_GOOGLE_include_directive : require
// y[b, ho, wo, n] = bias[n] + sum_ij x[b, ho sh + i dh - pt, wo sw + j dw - pl, n / M] W[(i, j), n]. See depthwise.rs.

layout(local_size_x = 256) in;

#include "depthwise.glsl"
layout(set = 0, binding = 0) readonly buffer X { float x[]; };
#define WEIGHT_BINDING 1
#include "scheme.glsl"
layout(set = 0, binding = 4) readonly buffer Bias { float bias[]; };
layout(set = 0, binding = 5) writeonly buffer Y { float y[]; };

#include "common.glsl"

#define BIAS 2u

void main() {
    uint outputs = channels * multiplier;
    uint at = item_index();
    if (at >= batch * out_h * out_w * outputs) return;
    uint n = at % outputs;
    uint c = n / multiplier;
    uint wo = at / outputs % out_w;
    uint ho = at / (outputs * out_w) % out_h;
    uint b = at / (outputs * out_w * out_h);
    uint taps = kernel_h * kernel_w;
    float sum = (flags & BIAS) != 0u ? bias[n] : 0.0;
    for (uint i = 0u; i < kernel_h; i++) {
        // Before the first row or column these wrap around, and are larger than any size.
        uint row = ho * stride_h + i * dilation_h - pad_top;
        if (row >= h) continue;
        for (uint j = 0u; j < kernel_w; j++) {
            uint col = wo * stride_w + j * dilation_w - pad_left;
            if (col >= w) continue;
            uint tap = i * kernel_w + j;
            sum += x[((b * h + row) * w + col) * channels + c] * weight(n * taps + tap, tap, n);
        }
    }
    y[at] = sum;
}
