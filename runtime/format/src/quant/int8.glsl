// Decodes symmetric int8 with one scale per output n. Include after defining WEIGHT_BINDING, the number of the weight's
// first binding; its scales are the next one. `at` is the position of element (k, n) among the packed elements.
//   weight(at, k, n)           that element
//   weight4_along_k(at, k, n)  elements (k .. k + 3, n) of a weight stored as [N, K]; all must exist
//   weight4_along_n(at, k, n)  elements (k, n .. n + 3) of a weight stored as [K, N]; all must exist

layout(set = 0, binding = WEIGHT_BINDING) readonly buffer Packed { uint packed_words[]; };
layout(set = 0, binding = WEIGHT_BINDING + 1) readonly buffer Scales { float scales[]; };

float weight(uint at, uint k, uint n) {
    return float(bitfieldExtract(int(packed_words[at >> 2]), int(at & 3u) * 8, 8)) * scales[n];
}

vec4 unscaled4(uint at) {
    uint word = packed_words[at >> 2];
    uint shift = (at & 3u) * 8u;
    if (shift != 0u) word = (word >> shift) | (packed_words[(at >> 2) + 1u] << (32u - shift));
    return vec4(ivec4(word << 24, word << 16, word << 8, word) >> 24);
}

vec4 weight4_along_k(uint at, uint k, uint n) {
    return unscaled4(at) * scales[n];
}

vec4 weight4_along_n(uint at, uint k, uint n) {
    return unscaled4(at) * vec4(scales[n], scales[n + 1u], scales[n + 2u], scales[n + 3u]);
}
