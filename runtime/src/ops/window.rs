use super::{NodeView, OpError};

/// The sliding window of a convolution or pool, in two dimensions; one dimension is a height of 1.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Window {
    pub size: [usize; 2],
    pub out: [usize; 2],
    pub kernel: [usize; 2],
    pub stride: [usize; 2],
    pub dilation: [usize; 2],
    /// Top, left, bottom, right.
    pub pad: [usize; 4],
}

/// The window of a node over dimensions `size`.
pub(super) fn window(node: &NodeView<'_>, size: &[usize], kernel: &[usize]) -> Result<Window, OpError> {
    let rank = rank(size, kernel)?;
    let same = same(node)?;
    let (stride, dilation) = (list(node, "strides", rank, 1, 1)?, list(node, "dilations", rank, 1, 1)?);
    let mut pads = list(node, "pads", 2 * rank, 0, 0)?;
    let ceil = node.attributes.int("ceil_mode", 0) != 0;
    let mut window =
        Window { size: [1; 2], out: [1; 2], kernel: [1; 2], stride: [1; 2], dilation: [1; 2], pad: [0; 4] };
    for i in 0..rank {
        let to = i + 2 - rank;
        let span = kernel[i].checked_sub(1).and_then(|k| k.checked_mul(dilation[i])).map(|s| s + 1);
        if let (Some(before), Some(span)) = (same, span) {
            let needed = (size[i].div_ceil(stride[i]).saturating_sub(1) * stride[i]).saturating_add(span);
            let pad = needed.saturating_sub(size[i]);
            (pads[i], pads[rank + i]) = ((pad + before) / 2, pad - (pad + before) / 2);
        }
        let padded = size[i].checked_add(pads[i] + pads[rank + i]);
        let (Some(span), Some(padded)) = (span, padded) else {
            return Err(node.shape_error("the window has elements"));
        };
        let Some(steps) = padded.checked_sub(span) else {
            return Err(node.shape_error("the window is no larger than the padded input"));
        };
        let mut out = if ceil { steps.div_ceil(stride[i]) } else { steps / stride[i] } + 1;
        // A window that starts in the padding behind the input does not count.
        if ceil && (out - 1) * stride[i] >= size[i] + pads[i] {
            out -= 1;
        }
        window.size[to] = size[i];
        window.out[to] = out;
        window.kernel[to] = kernel[i];
        window.stride[to] = stride[i];
        window.dilation[to] = dilation[i];
        window.pad[to] = pads[i];
        window.pad[to + 2] = pads[rank + i];
    }
    Ok(window)
}

/// The window of a transposed convolution: from its result, which it slides over, to dimensions `out`, those of its input.
///
/// <https://onnx.ai/onnx/operators/onnx__ConvTranspose.html>
pub(super) fn transposed_window(node: &NodeView<'_>, out: &[usize], kernel: &[usize]) -> Result<Window, OpError> {
    let (rank, same) = (rank(out, kernel)?, same(node)?);
    let (stride, dilation) = (list(node, "strides", rank, 1, 1)?, list(node, "dilations", rank, 1, 1)?);
    let (pads, more) = (list(node, "pads", 2 * rank, 0, 0)?, list(node, "output_padding", rank, 0, 0)?);
    let asked = node.attributes.ints("output_shape").map(|_| list(node, "output_shape", rank, 1, 1)).transpose()?;
    let mut window =
        Window { size: [1; 2], out: [1; 2], kernel: [1; 2], stride: [1; 2], dilation: [1; 2], pad: [0; 4] };
    for i in 0..rank {
        let to = i + 2 - rank;
        let (Some(gaps), Some(before)) = (kernel[i].checked_sub(1), out[i].checked_sub(1)) else {
            return Err(node.shape_error("the window and the input have elements"));
        };
        let reach = before.saturating_mul(stride[i]).saturating_add(gaps * dilation[i] + 1 + more[i]);
        // Where the size of the result is given, it says how much is cut off, and of an odd number where one more is.
        let given = match (&asked, same) {
            (Some(asked), _) => Some(asked[i]),
            (None, Some(_)) => Some(out[i].saturating_mul(stride[i])),
            (None, None) => None,
        };
        let [start, end] = match given {
            Some(given) => {
                let cut = reach.saturating_sub(given);
                let start = if same == Some(0) { cut / 2 } else { cut - cut / 2 };
                [start, cut - start]
            }
            None => [pads[i], pads[rank + i]],
        };
        let size = given.or_else(|| reach.checked_sub(start + end)).filter(|&size| size > 0);
        window.size[to] = size.ok_or_else(|| node.shape_error("no more is cut off than there is"))?;
        window.out[to] = out[i];
        window.kernel[to] = kernel[i];
        window.stride[to] = stride[i];
        window.dilation[to] = dilation[i];
        window.pad[to] = start;
        window.pad[to + 2] = end;
    }
    Ok(window)
}

/// Number of spatial dimensions.
fn rank(size: &[usize], kernel: &[usize]) -> Result<usize, OpError> {
    if size.len() > 2 || kernel.len() != size.len() {
        return Err(OpError::Unsupported {
            what: "a convolution or pool over more than two dimensions",
            way_out: "leave the node out of the model",
        });
    }
    Ok(size.len())
}

/// `SAME_*` pads so that there are as many windows as strides; where that is odd, one more at the end or the start.
fn same(node: &NodeView<'_>) -> Result<Option<usize>, OpError> {
    match node.attributes.string("auto_pad", "NOTSET") {
        "NOTSET" | "VALID" => Ok(None),
        "SAME_UPPER" => Ok(Some(0)),
        "SAME_LOWER" => Ok(Some(1)),
        other => {
            let expected = "NOTSET, VALID, SAME_UPPER or SAME_LOWER";
            Err(OpError::Value { what: "auto_pad", found: other.to_owned(), expected })
        }
    }
}

fn list(node: &NodeView<'_>, name: &'static str, len: usize, default: i64, min: i64) -> Result<Vec<usize>, OpError> {
    let values = node.attributes.ints(name).map_or_else(|| vec![default; len], <[i64]>::to_vec);
    if values.len() != len || values.iter().any(|&v| v < min || v > 1 << 16) {
        return Err(OpError::Value { what: name, found: format!("{values:?}"), expected: "one small number an axis" });
    }
    Ok(values.into_iter().map(|v| v as usize).collect())
}
