//! Insertion points: where an adapter may be inserted into a base, and what its parameters are called and shaped there.
//!
//! The exported file lists them under [`POINTS_KEY`](crate::metadata::POINTS_KEY) as a JSON array of [`Point`].

use core::fmt;

use heapless::Vec;
use serde::{Deserialize, Serialize};

/// Most points of one base.
pub const MAX_POINTS: usize = 4096;
/// Longest module path, node name or initializer name (bytes of UTF-8).
pub const MAX_NAME_BYTES: usize = 200;
/// Largest channel or feature count of a point.
pub const MAX_FEATURES: u32 = 1 << 24;
/// Most spatial dimensions of a convolution.
pub const MAX_KERNEL_DIMS: usize = 3;
/// Largest extent of a convolution kernel in one dimension.
pub const MAX_KERNEL_EXTENT: u32 = 1024;
/// Most adapter kinds that one point offers.
pub const MAX_KINDS: usize = 8;
/// Largest LoRA rank.
pub const MAX_RANK: u32 = 1024;

/// The kind name of LoRA in [`Point::kinds`].
pub const LORA: &str = "lora";

/// The shape of an adapter parameter, outermost dimension first.
pub type Shape = Vec<usize, { MAX_KERNEL_DIMS + 2 }>;

/// What the base computes at a point.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PointOp {
    /// MatMul or Gemm with a frozen weight: `x [.., d_in] -> y [.., d_out]`.
    Linear,
    /// Ungrouped, undilated Conv: `x [B, C_in, ..] -> y [B, C_out, ..]`.
    Conv,
    /// Gather of rows of a frozen table: ids `[..] -> [.., d_out]`; `d_in` is the number of rows.
    Embedding,
}

/// What follows the name of a bias or gain in that of the initializer with the factor that calibration put on it. A module that
/// PEFT saves whole has it without the factor.
pub const CALIBRATION_SUFFIX: &str = ".calibration_scale";

/// A place where an adapter may be inserted. `S` is the string type: `&str` borrows from the file, `String` owns.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Point<S> {
    /// Module path as PyTorch knows it, e.g. `encoder.layer.0.attention.self.query`.
    pub path: S,
    /// What the base computes here.
    pub op: PointOp,
    /// Name of the base's MatMul, Gemm, Conv or Gather node.
    pub node: S,
    /// Name of the initializer that holds its weight, packed or not.
    pub weight: S,
    /// Input features, `C_in`, or rows of a table.
    pub d_in: u32,
    /// Output features, or `C_out`.
    pub d_out: u32,
    /// Spatial extents of a convolution's kernel, empty for a linear.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kernel: Vec<u32, MAX_KERNEL_DIMS>,
    /// Adapter kinds that this point offers, e.g. [`LORA`].
    pub kinds: Vec<S, MAX_KINDS>,
    /// Name of the initializer `[d_out]` with the factor that a folded BatchNormalization or calibration put on the weight's
    /// outputs; PEFT import multiplies B's outputs by it, export divides.
    #[serde(default = "none", skip_serializing_if = "Option::is_none")]
    pub row_scale: Option<S>,
    /// Name of the initializer `[d_in]` with the factor that calibration put on the weight's inputs, which the values that
    /// it is multiplied with were divided by; PEFT import multiplies A's inputs by it, export divides. Linears only.
    #[serde(default = "none", skip_serializing_if = "Option::is_none")]
    pub input_scale: Option<S>,
    /// Whether [`IA3`](crate::kinds::IA3) scales the inputs here, as it does in feed-forward modules, not the outputs.
    #[serde(default, skip_serializing_if = "is_false")]
    pub feedforward: bool,
}

fn is_false(value: &bool) -> bool {
    !value
}

// A path, because `Option::default` would ask for `S: Default` in the derived code.
fn none<S>() -> Option<S> {
    None
}

impl<S: AsRef<str>> Point<S> {
    /// The shape of `<path>.lora_A` as the exported file has it: `[d_in, r]`, at a lookup a row for each of the table, or
    /// `[r, C_in, k..]`.
    pub fn lora_a_shape(&self, rank: usize) -> Shape {
        let d_in = self.d_in as usize;
        match self.op {
            PointOp::Linear | PointOp::Embedding => shape([d_in, rank], []),
            PointOp::Conv => shape([rank, d_in], self.kernel.iter().map(|k| *k as usize)),
        }
    }

    /// The shape of `<path>.lora_B` as the exported file has it: `[r, d_out]`, or `[C_out, r, 1..]`.
    pub fn lora_b_shape(&self, rank: usize) -> Shape {
        let d_out = self.d_out as usize;
        match self.op {
            PointOp::Linear | PointOp::Embedding => shape([rank, d_out], []),
            PointOp::Conv => shape([d_out, rank], self.kernel.iter().map(|_| 1)),
        }
    }

    /// Parameters that LoRA adds here for each unit of rank.
    pub fn lora_parameters_per_rank(&self) -> u64 {
        let kernel: u64 = self.kernel.iter().map(|k| u64::from(*k)).product();
        u64::from(self.d_in) * kernel + u64::from(self.d_out)
    }

    /// Whether this point offers adapters of `kind`.
    pub fn offers(&self, kind: &str) -> bool {
        self.kinds.iter().any(|k| k.as_ref() == kind)
    }

    /// This point with borrowed names.
    pub fn borrowed(&self) -> Point<&str> {
        Point {
            path: self.path.as_ref(),
            op: self.op,
            node: self.node.as_ref(),
            weight: self.weight.as_ref(),
            d_in: self.d_in,
            d_out: self.d_out,
            kernel: self.kernel.clone(),
            kinds: self.kinds.iter().map(AsRef::as_ref).collect(),
            row_scale: self.row_scale.as_ref().map(AsRef::as_ref),
            input_scale: self.input_scale.as_ref().map(AsRef::as_ref),
            feedforward: self.feedforward,
        }
    }

    /// Checks names, sizes and the kernel against the limits of this module.
    ///
    /// # Errors
    /// [`PointError`] with the first field that breaks a rule.
    pub fn check(&self) -> Result<(), PointError> {
        check_name("path", self.path.as_ref())?;
        check_name("node", self.node.as_ref())?;
        check_name("weight", self.weight.as_ref())?;
        for (field, name) in [("row_scale", &self.row_scale), ("input_scale", &self.input_scale)] {
            if let Some(name) = name {
                check_name(field, name.as_ref())?;
            }
        }
        for (i, kind) in self.kinds.iter().enumerate() {
            check_name("kinds", kind.as_ref())?;
            if self.kinds[..i].iter().any(|k| k.as_ref() == kind.as_ref()) {
                return Err(PointError::RepeatedKind);
            }
        }
        for (field, found) in [("d_in", self.d_in), ("d_out", self.d_out)] {
            check_size(field, found, MAX_FEATURES)?;
        }
        for extent in &self.kernel {
            check_size("kernel", *extent, MAX_KERNEL_EXTENT)?;
        }
        if self.input_scale.is_some() && self.op != PointOp::Linear {
            return Err(PointError::InputScale { op: self.op });
        }
        match (self.op, self.kernel.is_empty()) {
            (PointOp::Linear | PointOp::Embedding, true) | (PointOp::Conv, false) => Ok(()),
            (op, _) => Err(PointError::Kernel { op }),
        }
    }
}

/// Checks every point, that there are at most [`MAX_POINTS`], and that no two share a path.
///
/// # Errors
/// The index of the offending point, and what is wrong with it.
pub fn check_all<S: AsRef<str>>(points: &[Point<S>]) -> Result<(), (usize, PointError)> {
    if points.len() > MAX_POINTS {
        return Err((MAX_POINTS, PointError::TooMany { found: points.len() }));
    }
    for (i, point) in points.iter().enumerate() {
        point.check().map_err(|error| (i, error))?;
        if points[..i].iter().any(|p| p.path.as_ref() == point.path.as_ref()) {
            return Err((i, PointError::RepeatedPath));
        }
    }
    Ok(())
}

/// Checks that `name` can be a path or an initializer name in the exported file: at most [`MAX_NAME_BYTES`] bytes, not
/// empty, no quotes, backslashes or control characters (so that its JSON spelling is itself, and can be borrowed).
///
/// # Errors
/// [`PointError::Name`] with `field` and the reason.
pub fn check_name(field: &'static str, name: &str) -> Result<(), PointError> {
    let reason = if name.is_empty() {
        "is empty"
    } else if name.len() > MAX_NAME_BYTES {
        "is longer than 200 bytes"
    } else if name.chars().any(|c| matches!(c, '"' | '\'' | '\\') || c.is_control()) {
        "holds a quote, a backslash or a control character"
    } else {
        return Ok(());
    };
    Err(PointError::Name { field, reason })
}

fn check_size(field: &'static str, found: u32, max: u32) -> Result<(), PointError> {
    if (1..=max).contains(&found) { Ok(()) } else { Err(PointError::Size { field, found, max }) }
}

fn shape(matrix: [usize; 2], kernel: impl IntoIterator<Item = usize>) -> Shape {
    matrix.into_iter().chain(kernel).collect()
}

/// The two parameters of LoRA.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LoraTensor {
    /// `lora_A`, applied to the input.
    A,
    /// `lora_B`, applied to `A`'s output.
    B,
}

impl LoraTensor {
    /// The last part of its name.
    pub fn suffix(self) -> &'static str {
        match self {
            LoraTensor::A => &LORA_A_SUFFIX[1..],
            LoraTensor::B => &LORA_B_SUFFIX[1..],
        }
    }
}

/// The name of an adapter parameter as a graph input: `<path>.lora_A` or `<path>.lora_B`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LoraName<'a> {
    /// Path of the point.
    pub path: &'a str,
    /// Which parameter.
    pub tensor: LoraTensor,
}

const LORA_A_SUFFIX: &str = ".lora_A";
const LORA_B_SUFFIX: &str = ".lora_B";

impl<'a> LoraName<'a> {
    /// `<path>.lora_A`.
    pub fn a(path: &'a str) -> Self {
        Self { path, tensor: LoraTensor::A }
    }

    /// `<path>.lora_B`.
    pub fn b(path: &'a str) -> Self {
        Self { path, tensor: LoraTensor::B }
    }

    /// The point and parameter that `name` means, or `None` if it is no LoRA parameter.
    pub fn parse(name: &'a str) -> Option<Self> {
        if let Some(path) = name.strip_suffix(LORA_A_SUFFIX) {
            return Some(Self::a(path));
        }
        name.strip_suffix(LORA_B_SUFFIX).map(Self::b)
    }
}

impl fmt::Display for LoraName<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.path)?;
        f.write_str(match self.tensor {
            LoraTensor::A => LORA_A_SUFFIX,
            LoraTensor::B => LORA_B_SUFFIX,
        })
    }
}

/// The name of a point's symbolic rank axis, `<path>.rank`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RankName<'a>(pub &'a str);

impl fmt::Display for RankName<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.rank", self.0)
    }
}

/// Why a list of points is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PointError {
    /// A name breaks the rules of [`check_name`].
    #[error("its {field} {reason}")]
    Name {
        /// The field.
        field: &'static str,
        /// The rule it breaks.
        reason: &'static str,
    },
    /// A size is 0 or over its limit.
    #[error("its {field} is {found}, expected 1 to {max}")]
    Size {
        /// The field.
        field: &'static str,
        /// Its value.
        found: u32,
        /// The limit.
        max: u32,
    },
    /// A linear with a kernel, or a convolution without one.
    #[error("a {op:?} point has {}", if *op == PointOp::Conv { "no kernel" } else { "a kernel" })]
    Kernel {
        /// What the point is.
        op: PointOp,
    },
    /// A factor of inputs where there is no linear.
    #[error("a {op:?} point has an input_scale")]
    InputScale {
        /// What the point is.
        op: PointOp,
    },
    /// An adapter kind is listed twice.
    #[error("it lists an adapter kind twice")]
    RepeatedKind,
    /// Two points have one path.
    #[error("an earlier point has the same path")]
    RepeatedPath,
    /// More points than [`MAX_POINTS`].
    #[error("the base lists {found} points, at most {MAX_POINTS} are allowed")]
    TooMany {
        /// How many there are.
        found: usize,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    fn linear(path: &str) -> Point<String> {
        Point {
            path: path.into(),
            op: PointOp::Linear,
            node: "/query/MatMul".into(),
            weight: "query.weight_int8".into(),
            d_in: 384,
            d_out: 1536,
            kernel: Vec::new(),
            kinds: Vec::from_slice(&[LORA.into()]).unwrap(),
            row_scale: None,
            input_scale: None,
            feedforward: false,
        }
    }

    fn conv() -> Point<String> {
        Point {
            op: PointOp::Conv,
            kernel: Vec::from_slice(&[3, 5]).unwrap(),
            d_in: 6,
            d_out: 32,
            row_scale: Some("conv1.row_scale".into()),
            ..linear("conv1")
        }
    }

    #[test]
    fn shapes_and_counts() {
        let (linear, conv) = (linear("a"), conv());
        assert_eq!(linear.lora_a_shape(4), [384, 4]);
        assert_eq!(linear.lora_b_shape(4), [4, 1536]);
        assert_eq!(linear.lora_parameters_per_rank(), 384 + 1536);
        assert_eq!(conv.lora_a_shape(2), [2, 6, 3, 5]);
        assert_eq!(conv.lora_b_shape(2), [32, 2, 1, 1]);
        assert_eq!(conv.lora_parameters_per_rank(), 6 * 15 + 32);
        for point in [linear, conv] {
            let (a, b) = (point.lora_a_shape(7), point.lora_b_shape(7));
            let elements = a.iter().product::<usize>() + b.iter().product::<usize>();
            assert_eq!(elements as u64, 7 * point.lora_parameters_per_rank());
        }
    }

    #[test]
    fn json_is_borrowed_and_round_trips() {
        let points = [linear("encoder.layer.0.attention.self.query"), conv()];
        let json = serde_json::to_string(&points).unwrap();
        assert!(!json.contains("null"), "{json}");
        let borrowed: std::vec::Vec<Point<&str>> = serde_json::from_str(&json).unwrap();
        for (owned, borrowed) in points.iter().zip(&borrowed) {
            assert_eq!(owned.borrowed(), *borrowed);
        }
        let owned: std::vec::Vec<Point<String>> = serde_json::from_str(&json).unwrap();
        assert_eq!(owned, points);
    }

    #[test]
    fn json_as_the_contract_spells_it() {
        let json = r#"{"path":"fc1","op":"linear","node":"n","weight":"w","d_in":3,"d_out":4,"kinds":["lora"]}"#;
        let point: Point<&str> = serde_json::from_str(json).unwrap();
        assert_eq!(point.check(), Ok(()));
        assert!(point.offers(LORA) && !point.offers("ia3"));
        assert_eq!(serde_json::to_string(&point).unwrap(), json);
        for bad in [
            json.replace("linear", "pool"),
            json.replace("\"d_in\":3", "\"d_in\":-3"),
            json.replace("[\"lora\"]", "[\"a\",\"b\",\"c\",\"d\",\"e\",\"f\",\"g\",\"h\",\"i\"]"),
            json.replace("\"d_out\":4,", ""),
        ] {
            assert!(serde_json::from_str::<Point<String>>(&bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn bad_points_are_refused() {
        let path = |path: &str| Point { path: path.to_string(), ..linear("") };
        let bad = [
            path(""),
            path("a\"b"),
            path("a'b"),
            path("a\\b"),
            path("a\nb"),
            path(&"x".repeat(MAX_NAME_BYTES + 1)),
            Point { d_in: 0, ..linear("a") },
            Point { d_out: MAX_FEATURES + 1, ..linear("a") },
            Point { op: PointOp::Conv, ..linear("a") },
            Point { op: PointOp::Linear, ..conv() },
            Point { kernel: Vec::from_slice(&[0]).unwrap(), ..conv() },
            Point { row_scale: Some(String::new()), ..conv() },
            Point { input_scale: Some(String::new()), ..linear("a") },
            Point { input_scale: Some("s".into()), ..conv() },
            Point { kinds: Vec::from_slice(&["a".into(), "a".into()]).unwrap(), ..conv() },
        ];
        for point in bad {
            assert!(point.check().is_err(), "{point:?}");
        }
        assert_eq!(path(&"x".repeat(MAX_NAME_BYTES)).check(), Ok(()));
        assert_eq!(check_all(&[linear("a"), linear("b")]), Ok(()));
        let repeated = check_all(&[linear("a"), linear("b"), linear("a")]);
        assert_eq!(repeated, Err((2, PointError::RepeatedPath)));
        let many: std::vec::Vec<_> = (0..=MAX_POINTS).map(|i| linear(&format!("layer.{i}"))).collect();
        assert!(matches!(check_all(&many), Err((_, PointError::TooMany { .. }))));
        assert_eq!(check_all(&many[1..]), Ok(()));
    }

    #[test]
    fn names_round_trip() {
        for name in [LoraName::a("encoder.layer.0"), LoraName::b("fc1")] {
            let text = name.to_string();
            assert_eq!(LoraName::parse(&text), Some(name), "{text}");
        }
        assert_eq!(LoraName::a("fc1").to_string(), "fc1.lora_A");
        assert_eq!(RankName("fc1").to_string(), "fc1.rank");
        assert_eq!(LoraName::parse("fc1.weight"), None);
        assert_eq!(LoraName::parse("lora_A"), None);
    }
}
