#version 450
#extension GL_GOOGLE_include_directive : require
// Largest element or mean of each window. See pool.rs.

layout(local_size_x = 256) in;

#include "pool.glsl"
layout(set = 0, binding = 0) readonly buffer X { float x[]; };
layout(set = 0, binding = 1) writeonly buffer Y { float y[]; };

#include "common.glsl"

void main() {
    uint at = item_index();
    if (at >= planes * out_h * out_w) return;
    uint wo = at % out_w;
    uint ho = at / out_w % out_h;
    uint plane = at / (out_w * out_h);
    uvec2 rows = window_rows(ho);
    uvec2 cols = window_cols(wo);
    float value = op == MAX ? -INFINITE : 0.0;
    for (uint i = rows.x; i < rows.y; i++) {
        for (uint j = cols.x; j < cols.y; j++) {
            float element_value = x[element(plane, ho, wo, i, j)];
            value = op == MAX ? max(value, element_value) : value + element_value;
        }
    }
    y[at] = op == MAX ? value : value / divisor(ho, wo);
}
