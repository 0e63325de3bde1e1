// Parameters and windows of pool and pool_grad, as in pool.rs.

layout(push_constant) uniform Params {
    uint planes;
    uint h;
    uint w;
    uint out_h;
    uint out_w;
    uint kernel_h;
    uint kernel_w;
    uint stride_h;
    uint stride_w;
    uint pad_top;
    uint pad_left;
    uint pad_bottom;
    uint pad_right;
    uint dilation_h;
    uint dilation_w;
    uint op;
    uint flags;
};

#define MAX 0u
#define COUNT_INCLUDE_PAD 2u

uint ceil_div(uint a, uint b) { return (a + b - 1u) / b; }
uint minus(uint a, uint b) { return a > b ? a - b : 0u; }

// Of one axis of a window: from (x) and to (y) which k its elements are inside x.
uvec2 inside(uint at, uint kernel, uint stride, uint pad, uint dilation, uint len) {
    uint start = at * stride;
    uint first = min(ceil_div(minus(pad, start), dilation), kernel);
    uint end = min(ceil_div(minus(len + pad, start), dilation), kernel);
    return uvec2(first, max(first, end));
}

// Rows of the window of output row ho that are inside x.
uvec2 window_rows(uint ho) { return inside(ho, kernel_h, stride_h, pad_top, dilation_h, h); }
// Columns of the window of output column wo that are inside x.
uvec2 window_cols(uint wo) { return inside(wo, kernel_w, stride_w, pad_left, dilation_w, w); }

// Position in x of element (i, j), inside x, of a window.
uint element(uint plane, uint ho, uint wo, uint i, uint j) {
    uint row = ho * stride_h + i * dilation_h - pad_top;
    uint col = wo * stride_w + j * dilation_w - pad_left;
    return (plane * h + row) * w + col;
}

// Number of elements that a mean divides by.
float divisor(uint ho, uint wo) {
    uvec2 rows = window_rows(ho);
    uvec2 cols = window_cols(wo);
    uint count = (rows.y - rows.x) * (cols.y - cols.x);
    if ((flags & COUNT_INCLUDE_PAD) != 0u) {
        count = min(ceil_div(minus(h + pad_top + pad_bottom, ho * stride_h), dilation_h), kernel_h)
            * min(ceil_div(minus(w + pad_left + pad_right, wo * stride_w), dilation_w), kernel_w);
    }
    return float(max(count, 1u));
}
