// A 64 x 64 tile of a matrix product, by 64 invocations that hold 8 x 8 sums each. The including body defines these
// functions and calls `multiply_tile(first row, first column)`.

#define TILE 64u
#define STEP 16u

layout(local_size_x = 64) in;

// The contracted length.
uint tile_inner();
// A[row, i .. i + 3]; zeros outside of A.
vec4 load_a(uint row, uint i);
// Which way load_b goes; the same for the whole workgroup.
bool b_along_inner();
// B[i .. i + 3, col] or B[i, col .. col + 3]; zeros outside of B.
vec4 load_b(uint i, uint col);
// Takes each sum of the tile once, also those outside of the result.
void store(uint row, uint col, float sum);

shared vec4 a_tile[STEP * TILE / 4u]; // [inner][row / 4]
shared vec4 b_tile[STEP * TILE / 4u]; // [inner][column / 4]

void multiply_tile(uint row0, uint col0) {
    uint lane = gl_LocalInvocationID.x;
    // Loading along the inner axis: 4 rows (or columns) by 4 inner elements for each invocation.
    uint quad = lane & 15u;
    uint inner4 = (lane >> 4) * 4u;
    // Computing: 8 rows by 8 columns for each invocation.
    uint rows8 = lane >> 3;
    uint cols8 = lane & 7u;

    vec4 sums[16];
    for (uint s = 0u; s < 16u; s++) sums[s] = vec4(0.0);

    for (uint i0 = 0u; i0 < tile_inner(); i0 += STEP) {
        uint row = row0 + quad * 4u;
        mat4 block = mat4(load_a(row, i0 + inner4), load_a(row + 1u, i0 + inner4), load_a(row + 2u, i0 + inner4), load_a(row + 3u, i0 + inner4));
        block = transpose(block);
        for (uint j = 0u; j < 4u; j++) a_tile[(inner4 + j) * 16u + quad] = block[j];

        if (b_along_inner()) {
            uint col = col0 + quad * 4u;
            block = mat4(load_b(i0 + inner4, col), load_b(i0 + inner4, col + 1u), load_b(i0 + inner4, col + 2u), load_b(i0 + inner4, col + 3u));
            block = transpose(block);
            for (uint j = 0u; j < 4u; j++) b_tile[(inner4 + j) * 16u + quad] = block[j];
        } else {
            for (uint s = 0u; s < 4u; s++) {
                uint i = (lane >> 4) + s * 4u;
                b_tile[i * 16u + quad] = load_b(i0 + i, col0 + quad * 4u);
            }
        }
        barrier();

        for (uint i = 0u; i < STEP; i++) {
            vec4 a_low = a_tile[i * 16u + rows8 * 2u];
            vec4 a_high = a_tile[i * 16u + rows8 * 2u + 1u];
            vec4 b_low = b_tile[i * 16u + cols8 * 2u];
            vec4 b_high = b_tile[i * 16u + cols8 * 2u + 1u];
            for (uint r = 0u; r < 4u; r++) {
                sums[r * 2u] += a_low[r] * b_low;
                sums[r * 2u + 1u] += a_low[r] * b_high;
                sums[8u + r * 2u] += a_high[r] * b_low;
                sums[8u + r * 2u + 1u] += a_high[r] * b_high;
            }
        }
        barrier();
    }

    for (uint r = 0u; r < 8u; r++) {
        for (uint c = 0u; c < 8u; c++) {
            store(row0 + rows8 * 8u + r, col0 + cols8 * 8u + c, sums[r * 2u + (c >> 2)][c & 3u]);
        }
    }
}
