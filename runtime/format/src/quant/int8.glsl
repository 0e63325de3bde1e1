// Decodes symmetric int8 with one scale per output n. Include after defining WEIGHT_BINDING, the number of the weight's
// first binding; its scales are the next one.
//   weight_at(i)       element i of the packed elements, without its scale
//   weight4_at(i)      elements i .. i + 3, all of which must exist
//   weight_scale(k, n) factor of element (k, n)

layout(set = 0, binding = WEIGHT_BINDING) readonly buffer Packed { uint packed_words[]; };
layout(set = 0, binding = WEIGHT_BINDING + 1) readonly buffer Scales { float scales[]; };

float weight_at(uint i) {
    return float(bitfieldExtract(int(packed_words[i >> 2]), int(i & 3u) * 8, 8));
}

vec4 weight4_at(uint i) {
    uint word = packed_words[i >> 2];
    uint shift = (i & 3u) * 8u;
    if (shift != 0u) word = (word >> shift) | (packed_words[(i >> 2) + 1u] << (32u - shift));
    return vec4(ivec4(word << 24, word << 16, word << 8, word) >> 24);
}

float weight_scale(uint k, uint n) {
    return scales[n];
}
