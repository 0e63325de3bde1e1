// Decodes f16 weights. Include after defining WEIGHT_BINDING, the number of the weight's first binding. `at` is the position
// of element (k, n) among the packed elements.
//   weight(at, k, n)           that element
//   weight4_along_k(at, k, n)  elements (k .. k + 3, n) of a weight stored as [N, K]; all must exist
//   weight4_along_n(at, k, n)  elements (k, n .. n + 3) of a weight stored as [K, N]; all must exist

layout(set = 0, binding = WEIGHT_BINDING) readonly buffer Packed { uint packed_words[]; };

float weight(uint at, uint k, uint n) {
    vec2 pair = unpackHalf2x16(packed_words[at >> 1]);
    return (at & 1u) == 0u ? pair.x : pair.y;
}

vec4 weight4_along_k(uint at, uint k, uint n) {
    uint word = at >> 1;
    vec4 aligned = vec4(unpackHalf2x16(packed_words[word]), unpackHalf2x16(packed_words[word + 1u]));
    if ((at & 1u) == 0u) return aligned;
    return vec4(aligned.yzw, unpackHalf2x16(packed_words[word + 2u]).x);
}

vec4 weight4_along_n(uint at, uint k, uint n) {
    return weight4_along_k(at, k, n);
}
