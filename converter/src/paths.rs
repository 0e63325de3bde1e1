//! Module paths as PyTorch knows them, from whatever the exporter left in the file.

use serde::Serialize;

use crate::graph::{Graph, Links, Node};

/// Where a module path was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PathSource {
    /// `pkg.torch.onnx.name_scopes` of the dynamo exporter.
    NameScopes,
    /// The node's name, which the TorchScript exporter builds from the modules around it.
    NodeScope,
    /// The name of the weight.
    WeightName,
    /// The name of the bias.
    BiasName,
    /// The node's name as it is.
    NodeName,
}

impl PathSource {
    /// In words, for reports.
    pub fn describe(self) -> &'static str {
        match self {
            PathSource::NameScopes => "dynamo name scopes",
            PathSource::NodeScope => "TorchScript node scope",
            PathSource::WeightName => "weight name",
            PathSource::BiasName => "bias name",
            PathSource::NodeName => "node name",
        }
    }
}

/// The module path of the linear or convolution `node` with this weight.
pub fn module_path(graph: &Graph, links: &Links, node: &Node, weight: &str) -> (String, PathSource) {
    if let Some(scope) = &node.scope {
        return (scope.clone(), PathSource::NameScopes);
    }
    if let Some(path) = node_scope(node) {
        return (path, PathSource::NodeScope);
    }
    if let Some(path) = parameter_module(graph, weight, ".weight") {
        return (path, PathSource::WeightName);
    }
    let bias = bias(graph, links, node).and_then(|b| parameter_module(graph, b, ".bias"));
    match bias {
        Some(path) => (path, PathSource::BiasName),
        None => (node.name.trim_start_matches('/').to_owned(), PathSource::NodeName),
    }
}

/// `/encoder/layer.0/query/MatMul` -> `encoder.layer.0.query`; the TorchScript exporter repeats the name of a
/// container in its children's (`/skip/skip.0/Conv` -> `skip.0`).
fn node_scope(node: &Node) -> Option<String> {
    let mut scopes: Vec<&str> = node.name.strip_prefix('/')?.split('/').collect();
    let operation = scopes.pop()?;
    if scopes.is_empty() || !operation.starts_with(node.op_type.as_str()) {
        return None;
    }
    let mut path: Vec<&str> = Vec::new();
    for scope in scopes {
        let repeats = path.last().and_then(|last| scope.strip_prefix(last)).is_some_and(|rest| rest.starts_with('.'));
        if repeats {
            path.pop();
        }
        path.push(scope);
    }
    Some(path.join("."))
}

fn parameter_module(graph: &Graph, name: &str, suffix: &str) -> Option<String> {
    let constant = graph.constants.get(name)?;
    let name = constant.origin.as_deref().unwrap_or(name);
    name.strip_suffix(suffix).filter(|path| !path.is_empty()).map(str::to_owned)
}

/// The bias of the node itself, or of the Add after it.
fn bias<'a>(graph: &'a Graph, links: &Links, node: &'a Node) -> Option<&'a str> {
    if !node.is("MatMul") {
        return node.input(2);
    }
    let add = &graph.nodes[links.only_consumer(node.output())?];
    let other = add.inputs.iter().find(|i| *i != node.output())?;
    (add.is("Add") && graph.constants.contains_key(other)).then_some(other)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::Tensor;

    fn path(name: &str, scope: Option<&str>, weight: &str, bias: &str) -> (String, PathSource) {
        let mut graph = Graph::default();
        for parameter in [weight, bias] {
            graph.constants.insert(parameter.into(), Tensor::from_f32(&[1], &[0.0]));
        }
        let mut node = Node::new("MatMul", name, &["x", weight], "h");
        node.scope = scope.map(str::to_owned);
        graph.nodes = vec![node.clone(), Node::new("Add", "add", &[bias, "h"], "y")];
        module_path(&graph, &graph.links(), &node, weight)
    }

    #[test]
    fn every_source_in_order() {
        let scope = Some("layer.0.query");
        assert_eq!(path("/a/MatMul", scope, "b.weight", "c.bias"), ("layer.0.query".into(), PathSource::NameScopes));
        assert_eq!(path("/a/b/MatMul_1", None, "b.weight", "c.bias"), ("a.b".into(), PathSource::NodeScope));
        assert_eq!(path("/MatMul", None, "b.weight", "c.bias"), ("b".into(), PathSource::WeightName));
        assert_eq!(path("/MatMul", None, "onnx::MatMul_3", "c.bias"), ("c".into(), PathSource::BiasName));
        assert_eq!(path("node_7", None, "val_3", "val_4"), ("node_7".into(), PathSource::NodeName));
    }

    #[test]
    fn containers_are_named_once() {
        let at = |name| path(name, None, "w", "b").0;
        assert_eq!(at("/block2/skip/skip.0/MatMul"), "block2.skip.0");
        assert_eq!(at("/layer1/layer1.0/conv1/MatMul"), "layer1.0.conv1");
        assert_eq!(at("/skip/skipper.0/MatMul"), "skip.skipper.0");
    }
}
