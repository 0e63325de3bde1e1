use inlay_devices::kernels::{LayerNorm, LayerNormGrad, LayerNormParamGrad, LayerNormParams};

use super::{Case, CaseInput, INLAY, NodeView, Op, OpError, TensorType};
use crate::graph::Attributes;
use crate::plan::{Backward, Forward, Operand, accumulated, u};

/// Normalization over all dimensions from `axis` on, with scale and bias.
pub struct Norm {
    op_type: &'static str,
    domain: &'static str,
    flags: u32,
}

/// `(x - mean) / sqrt(variance + epsilon) * scale + bias`.
pub static LAYER_NORM: Norm = Norm { op_type: "LayerNormalization", domain: "", flags: 0 };

/// Its op type.
pub const RMS_NORM_TYPE: &str = "RMSNormalization";

/// `x / sqrt(mean(x^2) + epsilon) * scale`. Made by fusion; files spell it in primitives.
pub static RMS_NORM: Norm = Norm { op_type: RMS_NORM_TYPE, domain: INLAY, flags: LayerNormParams::UNCENTRED };

/// Rows and columns of the normalization.
fn rows_cols(node: &NodeView<'_>) -> Result<(usize, usize), OpError> {
    let shape = node.shape(0)?;
    let axis = node.axis(node.attributes.int("axis", -1), shape.len())?;
    let cols: usize = shape[axis..].iter().product();
    for input in [1, 2] {
        if let Some(vector) = node.optional(input)
            && vector.ty.len() != cols
        {
            return Err(node.shape_error("scale and bias have the normalized shape"));
        }
    }
    Ok((shape[..axis].iter().product(), cols))
}

impl Norm {
    fn params(&self, node: &NodeView<'_>) -> Result<LayerNormParams, OpError> {
        let (rows, cols) = rows_cols(node)?;
        let present = |input: usize, flag: u32| if node.optional(input).is_some() { flag } else { 0 };
        let flags = self.flags | present(1, LayerNormParams::GAMMA) | present(2, LayerNormParams::BETA);
        Ok(LayerNormParams { rows: u(rows), cols: u(cols), eps: node.attributes.float("epsilon", 1e-5), flags })
    }
}

impl Op for Norm {
    fn op_type(&self) -> &'static str {
        self.op_type
    }

    fn domain(&self) -> &'static str {
        self.domain
    }

    fn infer(&self, node: &NodeView<'_>) -> Result<Vec<TensorType>, OpError> {
        if node.outputs > 1 {
            return Err(OpError::Unsupported { what: "mean or deviation as outputs", way_out: "re-export the model" });
        }
        rows_cols(node)?;
        Ok(vec![node.ty(0)?.clone()])
    }

    fn differentiable(&self, _: usize) -> bool {
        true
    }

    fn forward(&self, cx: &mut Forward<'_, '_>) -> Result<(), OpError> {
        let params = self.params(&cx.node())?;
        let x = cx.contiguous_input(0)?;
        let mut vectors = [Operand::ABSENT; 2];
        for (i, vector) in vectors.iter_mut().enumerate() {
            if cx.node().optional(i + 1).is_some() {
                *vector = cx.contiguous_input(i + 1)?.into();
            }
        }
        let y = cx.output(0);
        let stats = cx.scratch(&[params.rows as usize, 2]);
        cx.call::<LayerNorm>(&params, &[(&x).into(), vectors[0], vectors[1], (&y).into(), (&stats).into()]);
        cx.save(stats);
        Ok(())
    }

    fn backward(&self, cx: &mut Backward<'_, '_>) -> Result<(), OpError> {
        let params = self.params(&cx.node())?;
        let Some(dy) = cx.contiguous_gradient(0) else { return Ok(()) };
        let x = cx.contiguous_input(0)?;
        let stats = cx.saved(0);
        for (input, flag) in [(1, LayerNormParams::GAMMA), (2, LayerNormParams::BETA)] {
            cx.add(input, |l, target, acc| {
                let params = LayerNormParams { flags: flag | accumulated(acc), ..params };
                let mut targets = [Operand::ABSENT; 2];
                targets[input - 1] = target.into();
                let operands = [(&x).into(), (&stats).into(), (&dy).into(), targets[0], targets[1]];
                l.call::<LayerNormParamGrad>(&params, &operands);
                Ok(())
            })?;
        }
        if !cx.wants(0) {
            return Ok(());
        }
        let gamma = match cx.node().optional(1) {
            Some(_) => Operand::from(cx.contiguous_input(1)?),
            None => Operand::ABSENT,
        };
        cx.add(0, |l, dx, acc| {
            let flags = (params.flags & !LayerNormParams::BETA) | accumulated(acc);
            let operands = [(&x).into(), gamma, (&stats).into(), (&dy).into(), dx.into()];
            l.call::<LayerNormGrad>(&LayerNormParams { flags, ..params }, &operands);
            Ok(())
        })
    }

    fn samples(&self) -> Vec<Case> {
        let attributes = Attributes::default().with_float("epsilon", 1e-3);
        let x = || CaseInput::step(1, &[2, 3, 5]);
        if self.flags & LayerNormParams::UNCENTRED != 0 {
            return vec![
                Case::new("no scale", attributes.clone(), vec![x()]),
                Case::new("frozen", attributes.clone(), vec![x(), CaseInput::constant(2, &[5])]),
                Case::new("trained", attributes.clone(), vec![x(), CaseInput::step(2, &[5])]),
                Case::new("two dimensions", attributes.with_int("axis", 1), vec![x(), CaseInput::constant(2, &[3, 5])]),
            ];
        }
        vec![
            Case::new(
                "frozen",
                attributes.clone(),
                vec![x(), CaseInput::constant(2, &[5]), CaseInput::constant(3, &[5])],
            ),
            Case::new("trained", attributes.clone(), vec![x(), CaseInput::step(2, &[5]), CaseInput::step(3, &[5])]),
            Case::new("no bias", attributes.clone(), vec![x(), CaseInput::constant(2, &[5])]),
            Case::new(
                "two dimensions",
                attributes.with_int("axis", 1),
                vec![x(), CaseInput::constant(2, &[3, 5]), CaseInput::constant(3, &[3, 5])],
            ),
        ]
    }
}
