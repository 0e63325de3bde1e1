#version 450
#extension GL_GOOGLE_include_directive : require
// dx of pool, gathered by each element from the windows that hold it. See pool.rs.

layout(local_size_x = 256) in;

#include "pool.glsl"
layout(set = 0, binding = 0) readonly buffer X { float x[]; };
layout(set = 0, binding = 1) readonly buffer Dy { float dy[]; };
layout(set = 0, binding = 2) buffer Dx { float dx[]; };

#include "common.glsl"

// Position of the first largest element of a window.
uint first_largest(uint plane, uint ho, uint wo) {
    uvec2 rows = window_rows(ho);
    uvec2 cols = window_cols(wo);
    uint best = element(plane, ho, wo, rows.x, cols.x);
    for (uint i = rows.x; i < rows.y; i++) {
        for (uint j = cols.x; j < cols.y; j++) {
            uint at = element(plane, ho, wo, i, j);
            if (x[at] > x[best]) best = at;
        }
    }
    return best;
}

void main() {
    uint at = item_index();
    if (at >= planes * h * w) return;
    uint col = at % w;
    uint row = at / w % h;
    uint plane = at / (w * h);
    float sum = (flags & ACCUMULATE) != 0u ? dx[at] : 0.0;
    for (uint i = 0u; i < kernel_h; i++) {
        if (row + pad_top < i * dilation_h) break;
        uint from_row = row + pad_top - i * dilation_h;
        uint ho = from_row / stride_h;
        if (from_row % stride_h != 0u || ho >= out_h) continue;
        for (uint j = 0u; j < kernel_w; j++) {
            if (col + pad_left < j * dilation_w) break;
            uint from_col = col + pad_left - j * dilation_w;
            uint wo = from_col / stride_w;
            if (from_col % stride_w != 0u || wo >= out_w) continue;
            float d = dy[(plane * out_h + ho) * out_w + wo];
            if (op == MAX) sum += first_largest(plane, ho, wo) == at ? d : 0.0;
            else sum += d / divisor(ho, wo);
        }
    }
    dx[at] = sum;
}
