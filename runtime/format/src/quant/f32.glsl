// Decodes f32 weights. Include after defining WEIGHT_BINDING, the number of the weight's first binding.
//   weight_at(i)       element i of the packed elements, without its scale
//   weight4_at(i)      elements i .. i + 3, all of which must exist
//   weight_scale(k, n) factor of element (k, n)

layout(set = 0, binding = WEIGHT_BINDING) readonly buffer Packed { float packed_elements[]; };

float weight_at(uint i) {
    return packed_elements[i];
}

vec4 weight4_at(uint i) {
    return vec4(packed_elements[i], packed_elements[i + 1u], packed_elements[i + 2u], packed_elements[i + 3u]);
}

float weight_scale(uint k, uint n) {
    return 1.0;
}
