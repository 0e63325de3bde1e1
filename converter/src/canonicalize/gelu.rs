//! Clusters around Erf and Tanh become Gelu.
//!
//! Exact: `0.5 x (1 + erf(x / sqrt 2))`. Tanh: `0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))`.
//! Factors may come in any order, and divisions may stand for multiplications.

use super::replacement;
use crate::error::Result;
use crate::graph::{Attribute, Graph, Links, Node};

const FRAC_1_SQRT_2: f32 = std::f32::consts::FRAC_1_SQRT_2;
const SQRT_2_OVER_PI: f32 = 0.797_884_6;
const CUBIC: f32 = 0.044_715;

pub(super) fn run(graph: &mut Graph) -> Result<()> {
    let links = graph.links();
    let mut found = Vec::new();
    for node in &graph.nodes {
        let matcher = Matcher { graph, links: &links };
        let hit = match node.op_type.as_str() {
            "Erf" => matcher.erf_argument(node).map(|x| (x, "none")),
            "Tanh" => matcher.tanh_argument(node).map(|x| (x, "tanh")),
            _ => None,
        };
        if let Some((x, approximate)) = hit
            && let Some(root) = matcher.root(node.output(), &x)
        {
            found.push((root, x, approximate));
        }
    }
    for (root, x, approximate) in found {
        let gelu = replacement("Gelu", &graph.nodes[root], &[&x]);
        graph.nodes[root] = gelu.with("approximate", Attribute::String(approximate.into()));
    }
    Ok(())
}

struct Matcher<'a> {
    graph: &'a Graph,
    links: &'a Links,
}

/// A value as a constant times a product of other values.
#[derive(Debug)]
struct Product {
    scale: f32,
    factors: Vec<String>,
}

impl Product {
    fn is(&self, scale: f32, factors: &[&str]) -> bool {
        let mut own: Vec<&str> = self.factors.iter().map(String::as_str).collect();
        let mut other = factors.to_vec();
        own.sort_unstable();
        other.sort_unstable();
        own == other && close(self.scale, scale)
    }
}

fn close(a: f32, b: f32) -> bool {
    (a - b).abs() <= 1e-4 * b.abs()
}

impl Matcher<'_> {
    fn node(&self, value: &str) -> Option<&Node> {
        self.links.producer(value).map(|i| &self.graph.nodes[i])
    }

    fn scalar(&self, value: &str) -> Option<f32> {
        self.graph.constants.get(value).filter(|t| t.dims().len() <= 1)?.scalar()
    }

    /// Takes `value` apart through Mul, Div by a constant and small powers, down to `leaf`.
    fn product(&self, value: &str, leaf: &str) -> Product {
        let mut product = Product { scale: 1.0, factors: Vec::new() };
        self.multiply(value, leaf, 8, &mut product);
        product
    }

    fn multiply(&self, value: &str, leaf: &str, depth: usize, product: &mut Product) {
        if let Some(c) = self.scalar(value) {
            product.scale *= c;
            return;
        }
        let node = self.node(value).filter(|_| value != leaf && depth > 0);
        match node.map(|n| (n.op_type.as_str(), n.inputs.as_slice())) {
            Some(("Mul", [a, b])) => {
                self.multiply(a, leaf, depth - 1, product);
                self.multiply(b, leaf, depth - 1, product);
            }
            Some(("Div", [a, b])) if self.scalar(b).is_some_and(|c| c != 0.0) => {
                self.multiply(a, leaf, depth - 1, product);
                product.scale /= self.scalar(b).expect("the guard found it");
            }
            Some(("Pow", [a, b])) if matches!(self.scalar(b), Some(2.0 | 3.0)) => {
                for _ in 0..self.scalar(b).expect("the guard found it") as usize {
                    self.multiply(a, leaf, depth - 1, product);
                }
            }
            _ => product.factors.push(value.to_owned()),
        }
    }

    /// `x` of `erf(x / sqrt 2)`.
    fn erf_argument(&self, erf: &Node) -> Option<String> {
        let scaled = self.node(erf.input(0)?)?;
        let x = scaled.inputs.iter().find(|i| self.scalar(i).is_none())?;
        self.product(scaled.output(), x).is(FRAC_1_SQRT_2, &[x]).then(|| x.clone())
    }

    /// `x` of `tanh(sqrt(2 / pi) (x + 0.044715 x^3))`.
    fn tanh_argument(&self, tanh: &Node) -> Option<String> {
        let argument = self.product(tanh.input(0)?, "");
        for sum in argument.factors.iter().filter_map(|f| self.node(f)).filter(|n| n.is("Add")) {
            let [a, b] = sum.inputs.as_slice() else { continue };
            for (first, cubic) in [(a, b), (b, a)] {
                // x + 0.044715 x^3
                if self.product(tanh.input(0)?, sum.output()).is(SQRT_2_OVER_PI, &[sum.output()])
                    && self.product(cubic, first).is(CUBIC, &[first, first, first])
                {
                    return Some(first.clone());
                }
                // x (1 + 0.044715 x^2)
                if self.scalar(first) == Some(1.0)
                    && let Some(x) = argument.factors.iter().find(|f| *f != sum.output())
                    && argument.is(SQRT_2_OVER_PI, &[x, sum.output()])
                    && self.product(cubic, x).is(CUBIC, &[x, x])
                {
                    return Some(x.clone());
                }
            }
        }
        None
    }

    /// The node that makes `0.5 x (1 + value)`.
    fn root(&self, value: &str, x: &str) -> Option<usize> {
        let add = self
            .links
            .consumers(value)
            .iter()
            .map(|&i| &self.graph.nodes[i])
            .find(|n| n.is("Add") && n.inputs.iter().any(|i| i != value && self.scalar(i) == Some(1.0)))?;
        let mut level = vec![add.output()];
        for _ in 0..3 {
            let mut next = Vec::new();
            for &i in level.iter().flat_map(|v| self.links.consumers(v)) {
                let node = &self.graph.nodes[i];
                if self.product_above(node, x, add.output()) {
                    return Some(i);
                }
                if node.is("Mul") || node.is("Div") {
                    next.push(node.output());
                }
            }
            level = next;
        }
        None
    }

    fn product_above(&self, node: &Node, x: &str, sum: &str) -> bool {
        (node.is("Mul") || node.is("Div")) && self.product(node.output(), x).is(0.5, &[x, sum])
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{graph, ops, run, scalar};
    use super::*;

    fn constants() -> Vec<(&'static str, crate::tensor::Tensor)> {
        vec![
            ("one", scalar(1.0)),
            ("half", scalar(0.5)),
            ("sqrt2", scalar(std::f32::consts::SQRT_2)),
            ("three", scalar(3.0)),
            ("cubic", scalar(CUBIC)),
            ("s2pi", scalar(SQRT_2_OVER_PI)),
        ]
    }

    #[test]
    fn exact_in_both_orders() {
        for (first, second) in [("x", "half"), ("half", "x")] {
            let mut g = graph(
                &[4],
                &constants(),
                vec![
                    Node::new("Div", "a", &["x", "sqrt2"], "a"),
                    Node::new("Erf", "b", &["a"], "b"),
                    Node::new("Add", "c", &["b", "one"], "c"),
                    Node::new("Mul", "d", &[first, "c"], "d"),
                    Node::new("Mul", "e", &["d", second], "y"),
                ],
            );
            run(&mut g, super::run);
            assert_eq!(ops(&g), ["Gelu"]);
            assert_eq!(g.nodes[0].string("approximate"), Some("none"));
        }
    }

    #[test]
    fn tanh_as_power_and_as_products() {
        let tail = |v: &str| {
            vec![
                Node::new("Tanh", "t", &[v], "t"),
                Node::new("Add", "u", &["one", "t"], "u"),
                Node::new("Mul", "v", &["x", "half"], "v"),
                Node::new("Mul", "w", &["v", "u"], "y"),
            ]
        };
        let mut power = vec![
            Node::new("Pow", "a", &["x", "three"], "a"),
            Node::new("Mul", "b", &["a", "cubic"], "b"),
            Node::new("Add", "c", &["x", "b"], "c"),
            Node::new("Mul", "d", &["c", "s2pi"], "d"),
        ];
        power.extend(tail("d"));
        let mut products = vec![
            Node::new("Mul", "a", &["x", "x"], "a"),
            Node::new("Mul", "b", &["a", "cubic"], "b"),
            Node::new("Add", "c", &["b", "one"], "c"),
            Node::new("Mul", "d", &["s2pi", "x"], "d"),
            Node::new("Mul", "e", &["d", "c"], "e"),
        ];
        products.extend(tail("e"));
        for nodes in [power, products] {
            let mut g = graph(&[4], &constants(), nodes);
            run(&mut g, super::run);
            assert_eq!(ops(&g), ["Gelu"]);
            assert_eq!(g.nodes[0].string("approximate"), Some("tanh"));
        }
    }

    #[test]
    fn another_factor_is_no_gelu() {
        let mut g = graph(
            &[4],
            &constants(),
            vec![
                Node::new("Div", "a", &["x", "sqrt2"], "a"),
                Node::new("Erf", "b", &["a"], "b"),
                Node::new("Add", "c", &["b", "one"], "c"),
                Node::new("Mul", "d", &["x", "c"], "y"),
            ],
        );
        run(&mut g, super::run);
        assert_eq!(ops(&g), ["Div", "Erf", "Add", "Mul"]);
    }
}
