//! Adapter kinds that live in the exported file: which optional graph inputs each has at a point, and their shapes.
//!
//! A parameter is the graph input `<path>.<suffix>` with a default of size 0, or of ones, that changes nothing. What the size
//! is depends on the kind: LoRA's rank, a bottleneck's width, a prompt's number of virtual tokens.

use heapless::Vec;

use crate::points::{LORA, LoraTensor, Point, Shape};

/// The kind name of (IA)3 in [`Point::kinds`]: a factor for each output of a linear, or input where
/// [`Point::feedforward`] says so.
pub const IA3: &str = "ia3";
/// The kind name of bottleneck adapters in [`Point::kinds`]: `y += f(y down + down_bias) up + up_bias`.
pub const BOTTLENECK: &str = "bottleneck";
/// The kind name of prompt tuning in [`Point::kinds`]: virtual tokens before the embedded ones.
pub const PROMPT: &str = "prompt";

/// The kinds that live in the exported file, each with the name of its size, as in the symbolic axis `<path>.<size>`.
pub const IN_FILE: [(&str, Option<&str>); 4] =
    [(LORA, Some("rank")), (IA3, None), (BOTTLENECK, Some("width")), (PROMPT, Some("length"))];

/// Most parameters of a kind at one point.
pub const MAX_PARAMETERS: usize = 4;

/// An optional graph input of the exported file, at one point.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parameter {
    /// Its name is `<path>.<suffix>`.
    pub suffix: &'static str,
    /// Its shape.
    pub shape: Shape,
    /// The axis of `shape` that is the kind's size, if one is.
    pub size_axis: Option<usize>,
}

/// The parameters of `kind` at `point`, in the order of the record; none for a kind that is not in the file.
///
/// - `lora`: `lora_A [d_in, r]`, `lora_B [r, d_out]`; for a convolution `[r, C_in, k..]`, `[C_out, r, 1..]`.
/// - `ia3`: `ia3_l [d_out]`, or `[d_in]` at a feed-forward point.
/// - `bottleneck`: `bottleneck_down [d_out, w]`, `bottleneck_down_bias [w]`, `bottleneck_up [w, d_out]`,
///   `bottleneck_up_bias [d_out]`.
/// - `prompt`: `prompt_embeddings [p, d_out]`.
pub fn parameters<S: AsRef<str>>(kind: &str, point: &Point<S>, size: usize) -> Vec<Parameter, MAX_PARAMETERS> {
    let (d_in, d_out) = (point.d_in as usize, point.d_out as usize);
    let one =
        |suffix, dims: &[usize], size_axis| Parameter { suffix, shape: dims.iter().copied().collect(), size_axis };
    let rank_axis = usize::from(point.kernel.is_empty());
    let lora = |tensor: LoraTensor, shape, axis| Parameter { suffix: tensor.suffix(), shape, size_axis: Some(axis) };
    match kind {
        LORA => [
            lora(LoraTensor::A, point.lora_a_shape(size), rank_axis),
            lora(LoraTensor::B, point.lora_b_shape(size), 1 - rank_axis),
        ]
        .into_iter()
        .collect(),
        IA3 => [one("ia3_l", &[if point.feedforward { d_in } else { d_out }], None)].into_iter().collect(),
        BOTTLENECK => [
            one("bottleneck_down", &[d_out, size], Some(1)),
            one("bottleneck_down_bias", &[size], Some(0)),
            one("bottleneck_up", &[size, d_out], Some(0)),
            one("bottleneck_up_bias", &[d_out], None),
        ]
        .into_iter()
        .collect(),
        PROMPT => [one("prompt_embeddings", &[size, d_out], Some(0))].into_iter().collect(),
        _ => Vec::new(),
    }
}

/// Trainable numbers of `kind` at `point`: those of size 0, and those that each further unit of size adds.
pub fn counts<S: AsRef<str>>(kind: &str, point: &Point<S>) -> (u64, u64) {
    let at = |size| parameters(kind, point, size).iter().map(|p| elements(&p.shape)).sum::<u64>();
    (at(0), at(1) - at(0))
}

fn elements(shape: &Shape) -> u64 {
    shape.iter().map(|&d| d as u64).product()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::points::PointOp;

    fn point(op: PointOp, kernel: &[u32]) -> Point<&'static str> {
        Point {
            path: "p",
            op,
            node: "n",
            weight: "w",
            d_in: 6,
            d_out: 10,
            kernel: kernel.iter().copied().collect(),
            kinds: IN_FILE.iter().map(|(kind, _)| *kind).collect(),
            row_scale: None,
            input_scale: None,
            feedforward: false,
        }
    }

    #[test]
    fn shapes_and_counts_of_every_kind() {
        let linear = point(PointOp::Linear, &[]);
        let shapes = |kind: &str| -> std::vec::Vec<(&str, std::vec::Vec<usize>)> {
            parameters(kind, &linear, 3).iter().map(|p| (p.suffix, p.shape.to_vec())).collect()
        };
        assert_eq!(shapes(LORA), [("lora_A", vec![6, 3]), ("lora_B", vec![3, 10])]);
        assert_eq!(shapes(IA3), [("ia3_l", vec![10])]);
        assert_eq!(
            shapes(BOTTLENECK),
            [
                ("bottleneck_down", vec![10, 3]),
                ("bottleneck_down_bias", vec![3]),
                ("bottleneck_up", vec![3, 10]),
                ("bottleneck_up_bias", vec![10])
            ]
        );
        assert_eq!(shapes(PROMPT), [("prompt_embeddings", vec![3, 10])]);
        assert!(shapes("head").is_empty());
        let all: std::vec::Vec<_> = IN_FILE.iter().map(|(kind, _)| counts(kind, &linear)).collect();
        assert_eq!(all, [(0, 16), (10, 0), (10, 21), (0, 10)]);
        let feedforward = Point { feedforward: true, ..linear };
        assert_eq!(counts(IA3, &feedforward), (6, 0));
    }

    #[test]
    fn the_size_axis_is_where_the_size_is() {
        for point in [point(PointOp::Linear, &[]), point(PointOp::Conv, &[3, 5])] {
            for (kind, size) in IN_FILE {
                let parameters = parameters(kind, &point, 7);
                for p in &parameters {
                    assert!(p.size_axis.is_none_or(|axis| p.shape[axis] == 7), "{p:?}");
                }
                assert_eq!(parameters.iter().any(|p| p.size_axis.is_some()), size.is_some(), "{kind}");
            }
        }
    }
}
