// Parameters of depthwise and depthwise_grad, as in depthwise.rs.

layout(push_constant) uniform Params {
    uint batch;
    uint channels;
    uint multiplier;
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
    uint dilation_h;
    uint dilation_w;
    uint flags;
};
