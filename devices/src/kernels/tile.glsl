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
// Takes the sums at row and columns col .. col + 3, any of which may be outside of the result.
void store4(uint row, uint col, vec4 sums);

shared vec4 a_tile[STEP * TILE / 4u]; // [inner][row / 4]
shared vec4 b_tile[STEP * TILE / 4u]; // [inner][column / 4]

void store_block(uint row, uint col, mat4 block) {
    store4(row, col, block[0]);
    store4(row + 1u, col, block[1]);
    store4(row + 2u, col, block[2]);
    store4(row + 3u, col, block[3]);
}

void multiply_tile(uint row0, uint col0) {
    uint lane = gl_LocalInvocationID.x;
    // Loading: each invocation takes 4 inner elements of 4 rows (or columns), a block to be transposed.
    uint quad = lane & 15u;
    uint inner4 = (lane >> 4) * 4u;
    uint block_at = inner4 * 16u + quad;
    // Computing: each invocation takes 8 rows by 8 columns, as four blocks of 4 x 4. A column of a mat4 is a row of its
    // block. No arrays: they would live in memory, not in registers.
    uint rows8 = lane >> 3;
    uint cols8 = lane & 7u;
    mat4 top_left = mat4(0.0);
    mat4 top_right = mat4(0.0);
    mat4 bottom_left = mat4(0.0);
    mat4 bottom_right = mat4(0.0);

    for (uint i0 = 0u; i0 < tile_inner(); i0 += STEP) {
        uint i = i0 + inner4;
        uint row = row0 + quad * 4u;
        uint col = col0 + quad * 4u;
        mat4 block = transpose(mat4(load_a(row, i), load_a(row + 1u, i), load_a(row + 2u, i), load_a(row + 3u, i)));
        a_tile[block_at] = block[0];
        a_tile[block_at + 16u] = block[1];
        a_tile[block_at + 32u] = block[2];
        a_tile[block_at + 48u] = block[3];
        if (b_along_inner()) {
            block = transpose(mat4(load_b(i, col), load_b(i, col + 1u), load_b(i, col + 2u), load_b(i, col + 3u)));
        } else {
            block = mat4(load_b(i, col), load_b(i + 1u, col), load_b(i + 2u, col), load_b(i + 3u, col));
        }
        b_tile[block_at] = block[0];
        b_tile[block_at + 16u] = block[1];
        b_tile[block_at + 32u] = block[2];
        b_tile[block_at + 48u] = block[3];
        barrier();
        for (uint step = 0u; step < STEP; step++) {
            vec4 a_low = a_tile[step * 16u + rows8 * 2u];
            vec4 a_high = a_tile[step * 16u + rows8 * 2u + 1u];
            vec4 b_low = b_tile[step * 16u + cols8 * 2u];
            vec4 b_high = b_tile[step * 16u + cols8 * 2u + 1u];
            top_left += outerProduct(b_low, a_low);
            top_right += outerProduct(b_high, a_low);
            bottom_left += outerProduct(b_low, a_high);
            bottom_right += outerProduct(b_high, a_high);
        }
        barrier();
    }

    uint row = row0 + rows8 * 8u;
    uint col = col0 + cols8 * 8u;
    store_block(row, col, top_left);
    store_block(row, col + 4u, top_right);
    store_block(row + 4u, col, bottom_left);
    store_block(row + 4u, col + 4u, bottom_right);
}
