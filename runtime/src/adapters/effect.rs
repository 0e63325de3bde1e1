use std::collections::HashSet;

use super::{Adapter, AdapterPoint, Binding};
use crate::graph::{FragmentError, Graph};

impl Adapter {
    /// A point with a parameter that no output of `graph` depends on, if there is one. What depends on the shape of a value
    /// only, does not depend on it.
    pub(crate) fn point_without_effect(&self, graph: &Graph) -> Result<Option<&AdapterPoint>, FragmentError> {
        let fragments = self.fragments();
        let with_fragments;
        let graph = if fragments.is_empty() {
            graph
        } else {
            let parameters = self.tensors().map(|(binding, _)| (binding.name.as_str(), binding.shape.as_slice()));
            with_fragments = graph.with_fragments(&fragments, parameters)?;
            &with_fragments
        };
        let used = used(graph);
        let parameters = graph.parameter_ids.iter().map(|id| id.index()).filter(|&id| used[id]);
        let used: HashSet<&str> = parameters.map(|id| graph.values[id].name.as_str()).collect();
        let is_used = |parameter: &Binding| used.contains(parameter.name.as_str());
        Ok(self.points().find(|point| !point.parameters().iter().all(is_used)))
    }
}

/// The values that outputs depend on.
fn used(graph: &Graph) -> Vec<bool> {
    let mut used = vec![false; graph.values.len()];
    graph.output_ids.iter().for_each(|output| used[output.index()] = true);
    // Nodes are in topological order.
    for node in graph.nodes.iter().rev().filter(|node| node.op.op_type() != "Shape") {
        if node.outputs.iter().flatten().any(|output| used[output.index()]) {
            node.inputs.iter().flatten().for_each(|input| used[input.index()] = true);
        }
    }
    used
}
