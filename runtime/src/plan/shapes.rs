use super::analyze::{Role, analyze};
use super::{Mode, PlanError, PlanRequest};
use crate::base::Port;
use crate::graph::{DType, Graph, ValueId};
use crate::onnx::Dim;

/// The shapes of the computed floats of a graph, whatever its inputs are.
pub(crate) struct Shapes(Vec<Option<Vec<Option<usize>>>>);

impl Shapes {
    /// # Errors
    /// When no sizes of the inputs can be found for which the graph runs.
    pub fn of(graph: &Graph) -> Result<Self, PlanError> {
        /// Pairs of sizes for the dimensions that a base leaves open.
        const TRIED: [[usize; 2]; 4] = [[8, 16], [32, 64], [128, 256], [224, 256]];
        let mut error = None;
        for sizes in TRIED {
            match sizes.map(|size| shapes_with(graph, size)) {
                [Ok(small), Ok(large)] => {
                    let pair = |(small, large): (Vec<usize>, Vec<usize>)| {
                        small.iter().zip(&large).map(|(&small, &large)| (small == large).then_some(small)).collect()
                    };
                    let both = small.into_iter().zip(large);
                    return Ok(Shapes(both.map(|(small, large)| small.zip(large).map(pair)).collect()));
                }
                [Err(failed), _] | [_, Err(failed)] => error = error.or(Some(failed)),
            }
        }
        Err(error.expect("every attempt failed"))
    }

    /// The shape of a value, `None` for dimensions that differ with the inputs; `None` if it is no computed float.
    pub fn get(&self, value: ValueId) -> Option<&[Option<usize>]> {
        self.0[value.index()].as_deref()
    }
}

/// The shape of every computed float, by value, when every open dimension of the inputs has this size.
fn shapes_with(graph: &Graph, size: usize) -> Result<Vec<Option<Vec<usize>>>, PlanError> {
    let shape = |port: &Port| -> Vec<usize> {
        port.shape
            .iter()
            .map(|dim| match dim {
                Dim::Fixed(size) => *size,
                Dim::Symbol(_) => size,
            })
            .collect()
    };
    let shapes: Vec<Vec<usize>> = graph.inputs().iter().map(shape).collect();
    let inputs: Vec<(&str, &[usize])> =
        graph.inputs().iter().zip(&shapes).map(|(port, shape)| (port.name.as_str(), shape.as_slice())).collect();
    let request =
        PlanRequest { inputs: &inputs, parameters: &[], fragments: &[], mode: Mode::Predict, rows: None, merged: None };
    let analysis = analyze(graph, &request)?;
    // A value may be another one, of another name: what an adapter without rank is added to, for instance.
    let computed = |value: &Option<usize>| {
        let value = value.map(|value| &analysis.values[value])?;
        (value.ty.dtype == DType::F32 && matches!(value.role, Role::Step)).then(|| value.ty.shape.clone())
    };
    Ok(analysis.of_graph.iter().map(computed).collect())
}
