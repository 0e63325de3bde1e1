//! Fragments: nodes that an adapter adds to the graph of its base.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::sync::Arc;

use super::{Attributes, DType, Graph, Node, Value, ValueId};
use crate::base::Port;
use crate::onnx::Dim;
use crate::ops;

/// Nodes that an adapter adds to the graph of its base, and what they change there. Names are those of values.
///
/// A fragment reads the values of the base as they are with all fragments in place; only what it replaces itself it
/// reads as it was before, so that several fragments may change one value, one after the other.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Fragment {
    /// The nodes, in an order in which they can run.
    pub nodes: Vec<FragmentNode>,
    /// What the base reads in place of values of its own.
    pub replaces: Vec<Replacement>,
    /// Float outputs that the graph gets beside its own: name and value.
    pub outputs: Vec<(String, String)>,
}

/// A node of a [`Fragment`], of an ONNX op with one output.
#[derive(Clone, Debug, PartialEq)]
pub struct FragmentNode {
    /// `op_type`.
    pub op_type: &'static str,
    /// Attributes.
    pub attributes: Attributes,
    /// Inputs: values of the base, parameters of the adapter, outputs of nodes before it.
    pub inputs: Vec<String>,
    /// Output, a name that the base does not have.
    pub output: String,
}

/// A value of the base, and what is read in its place.
#[derive(Clone, Debug, PartialEq)]
pub struct Replacement {
    /// The value of the base.
    pub value: String,
    /// What is read instead.
    pub by: String,
    /// The only node that reads it instead; all do when there is none.
    pub node: Option<String>,
}

impl FragmentNode {
    /// A node without attributes.
    pub fn new(op_type: &'static str, inputs: &[&str], output: impl Into<String>) -> Self {
        let inputs = inputs.iter().map(|&input| input.to_owned()).collect();
        FragmentNode { op_type, attributes: Attributes::default(), inputs, output: output.into() }
    }
}

/// Why a fragment does not fit a graph.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FragmentError {
    /// A name that the graph does not have.
    #[error("the base has no value \"{value}\" that the adapter builds on; it belongs to an adapter of another base")]
    Unknown {
        /// The name.
        value: String,
    },
    /// A name that is there already.
    #[error("the adapter adds a value \"{value}\" that is there already; use each point once")]
    Repeated {
        /// The name.
        value: String,
    },
    /// An op that there is not.
    #[error("internal error: an adapter uses the unknown op {op_type}; please report it")]
    UnknownOp {
        /// `op_type`.
        op_type: &'static str,
    },
    /// A fragment that needs what depends on it.
    #[error("the adapter reads values of the base that depend on it; leave one of its parts out")]
    Cycle,
}

/// What is read in place of a value: everywhere, or by one node.
type Key<'a> = (ValueId, Option<&'a str>);

impl Graph {
    /// This graph with fragments in it, applied in their order, and with places for those of the `parameters` (name and
    /// shape) that it has none for.
    pub(crate) fn with_fragments<'f>(
        &self,
        fragments: &'f [Fragment],
        parameters: impl Iterator<Item = (&'f str, &'f [usize])>,
    ) -> Result<Graph, FragmentError> {
        let mut graph = self.clone();
        let mut names: HashMap<&str, ValueId> =
            self.values.iter().enumerate().map(|(i, value)| (value.name.as_str(), id(i))).collect();
        for (name, shape) in parameters {
            // What the graph has a place for, it keeps; so does it what it has under this name that is no place.
            if !names.contains_key(name) {
                let value = graph.add(name);
                names.insert(name, value);
                let shape = shape.iter().map(|&size| Dim::Fixed(size)).collect();
                graph.parameters.push(Port { name: name.to_owned(), dtype: DType::F32, shape });
                graph.parameter_ids.push(value);
            }
        }
        for node in fragments.iter().flat_map(|fragment| &fragment.nodes) {
            let value = graph.add(&node.output);
            if names.insert(&node.output, value).is_some() {
                return Err(FragmentError::Repeated { value: node.output.clone() });
            }
        }
        let find = |name: &str| names.get(name).copied().ok_or_else(|| FragmentError::Unknown { value: name.into() });

        let mut current: HashMap<Key<'_>, ValueId> = HashMap::new();
        // What each fragment reads where it reads what it replaces.
        let mut before: Vec<Vec<(Key<'_>, Option<ValueId>)>> = Vec::new();
        for fragment in fragments {
            let mut replaced = Vec::new();
            for Replacement { value, by, node } in &fragment.replaces {
                let key = (find(value)?, node.as_deref());
                replaced.push((key, current.insert(key, find(by)?)));
            }
            before.push(replaced);
        }
        let now = |value: ValueId| current.get(&(value, None)).copied().unwrap_or(value);
        for node in &mut graph.nodes {
            for input in node.inputs.iter_mut().flatten() {
                *input = current.get(&(*input, Some(&node.name))).copied().unwrap_or_else(|| now(*input));
            }
        }
        for (fragment, before) in fragments.iter().zip(&before) {
            for node in &fragment.nodes {
                let op = ops::find("", node.op_type).ok_or(FragmentError::UnknownOp { op_type: node.op_type })?;
                let read = |name: &String| {
                    let value = find(name)?;
                    Ok(Some(match before.iter().find(|((replaced, _), _)| *replaced == value) {
                        Some((_, Some(earlier))) => *earlier,
                        Some(((_, None), None)) => value,
                        _ => now(value),
                    }))
                };
                let inputs = node.inputs.iter().map(read).collect::<Result<_, _>>()?;
                let (name, attributes) = (node.output.clone(), Arc::new(node.attributes.clone()));
                graph.nodes.push(Node { outputs: vec![Some(find(&name)?)], name, op, attributes, inputs });
            }
        }
        graph.output_ids = graph.output_ids.iter().map(|&value| now(value)).collect();
        for (name, value) in fragments.iter().flat_map(|fragment| &fragment.outputs) {
            if graph.outputs.iter().any(|port| port.name == *name) {
                return Err(FragmentError::Repeated { value: name.clone() });
            }
            graph.outputs.push(Port { name: name.clone(), dtype: DType::F32, shape: Vec::new() });
            graph.output_ids.push(now(find(value)?));
        }
        graph.sort(self.nodes.len())?;
        Ok(graph)
    }

    fn add(&mut self, name: &str) -> ValueId {
        self.values.push(Value { name: name.to_owned(), constant: None });
        id(self.values.len() - 1)
    }

    /// Puts the nodes in topological order: the first `own` in the order that they have, the others as soon as they can run.
    fn sort(&mut self, own: usize) -> Result<(), FragmentError> {
        let mut producer: Vec<Option<usize>> = vec![None; self.values.len()];
        for (i, node) in self.nodes.iter().enumerate() {
            node.outputs.iter().flatten().for_each(|value| producer[value.index()] = Some(i));
        }
        let mut waits_for = vec![0; self.nodes.len()];
        let mut readers: Vec<Vec<usize>> = vec![Vec::new(); self.nodes.len()];
        for (i, node) in self.nodes.iter().enumerate() {
            for made_by in node.inputs.iter().flatten().filter_map(|value| producer[value.index()]) {
                waits_for[i] += 1;
                readers[made_by].push(i);
            }
        }
        // Nodes of fragments before those of the base, each in their order.
        let urgency = |i: usize| Reverse((i < own, i));
        let mut ready: BinaryHeap<_> = (0..waits_for.len()).filter(|&i| waits_for[i] == 0).map(urgency).collect();
        let mut nodes: Vec<Option<Node>> = std::mem::take(&mut self.nodes).into_iter().map(Some).collect();
        while let Some(Reverse((_, i))) = ready.pop() {
            self.nodes.extend(nodes[i].take());
            for &reader in &readers[i] {
                waits_for[reader] -= 1;
                if waits_for[reader] == 0 {
                    ready.push(urgency(reader));
                }
            }
        }
        if self.nodes.len() == nodes.len() { Ok(()) } else { Err(FragmentError::Cycle) }
    }
}

fn id(index: usize) -> ValueId {
    ValueId(u32::try_from(index).expect("counts are bounded by the reader and by the points of a base"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::HostTensor;
    use crate::graph::build::Build;
    use crate::ops::Op;

    fn op(name: &str) -> &'static dyn Op {
        ops::find("", name).unwrap()
    }

    /// `y = Relu(c + x)`, then `z = y + c`; the values are x, c, `Add0.0`, `Relu1.0`, `Add2.0`.
    fn graph() -> Graph {
        let mut g = Build::default();
        let x = g.input("x", DType::F32, &[2]);
        let c = g.constant("c", &HostTensor::of([2], vec![1.0, 2.0]));
        let sum = g.node(op("Add"), Attributes::default(), vec![Some(c), Some(x)], 1)[0];
        let y = g.node(op("Relu"), Attributes::default(), vec![Some(sum)], 1)[0];
        let z = g.node(op("Add"), Attributes::default(), vec![Some(y), Some(c)], 1)[0];
        g.finish(&[(z, DType::F32)])
    }

    fn plus(value: &str, parameter: &str, node: Option<&str>) -> Fragment {
        let output = format!("{value}+{parameter}");
        Fragment {
            nodes: vec![FragmentNode::new("Add", &[value, parameter], output.clone())],
            replaces: vec![Replacement { value: value.into(), by: output, node: node.map(str::to_owned) }],
            outputs: Vec::new(),
        }
    }

    /// The nodes as `inputs -> output`.
    fn spelled(graph: &Graph) -> Vec<String> {
        let name = |value: &ValueId| graph.values[value.index()].name.clone();
        let node = |node: &Node| {
            let inputs: Vec<String> = node.inputs.iter().flatten().map(name).collect();
            format!("{} -> {}", inputs.join(" "), name(node.outputs[0].as_ref().unwrap()))
        };
        graph.nodes.iter().map(node).collect()
    }

    fn with(fragments: &[Fragment], parameters: &[&'static str]) -> Result<Graph, FragmentError> {
        graph().with_fragments(fragments, parameters.iter().map(|name| (*name, [2].as_slice())))
    }

    #[test]
    fn values_are_replaced_everywhere_or_at_one_node() {
        let all = with(&[plus("c", "p", None)], &["p"]).unwrap();
        assert_eq!(spelled(&all), ["c p -> c+p", "c+p x -> Add0.0", "Add0.0 -> Relu1.0", "Relu1.0 c+p -> Add2.0"]);
        let one = with(&[plus("c", "p", Some("Add2"))], &["p"]).unwrap();
        assert_eq!(spelled(&one)[1..], ["c x -> Add0.0", "Add0.0 -> Relu1.0", "Relu1.0 c+p -> Add2.0"]);
        assert_eq!(one.parameters().len(), 1);
    }

    #[test]
    fn fragments_on_one_value_follow_each_other_and_read_the_others_results() {
        let mut tap = Fragment::default();
        tap.nodes.push(FragmentNode::new("Relu", &["Relu1.0"], "tap"));
        tap.outputs.push(("features".into(), "tap".into()));
        let made = with(&[tap, plus("Relu1.0", "p", None), plus("Relu1.0", "q", None)], &["p", "q"]).unwrap();
        assert_eq!(
            spelled(&made),
            [
                "c x -> Add0.0",
                "Add0.0 -> Relu1.0",
                "Relu1.0 p -> Relu1.0+p",
                "Relu1.0+p q -> Relu1.0+q",
                "Relu1.0+q -> tap",
                "Relu1.0+q c -> Add2.0"
            ]
        );
        assert_eq!(made.outputs()[1].name, "features");
    }

    #[test]
    fn an_output_is_replaced_too() {
        let made = with(&[plus("Add2.0", "p", None)], &["p"]).unwrap();
        assert_eq!(made.values[made.output_ids[0].index()].name, "Add2.0+p");
        assert_eq!(made.outputs()[0].name, "Add2.0");
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let unknown = |value: &str| FragmentError::Unknown { value: value.into() };
        assert_eq!(with(&[plus("nose", "p", None)], &["p"]).unwrap_err(), unknown("nose"));
        assert_eq!(with(&[plus("c", "p", None)], &[]).unwrap_err(), unknown("p"));
        let twice = [plus("c", "p", None), plus("c", "p", None)];
        assert!(matches!(with(&twice, &["p"]), Err(FragmentError::Repeated { value }) if value == "c+p"));
        let mut later = plus("Add0.0", "p", None);
        later.nodes[0].inputs[1] = "Add2.0".into();
        assert_eq!(with(&[later], &["p"]).unwrap_err(), FragmentError::Cycle);
    }
}
