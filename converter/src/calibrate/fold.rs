//! Where a factor for each channel of a value can be taken out of what makes it, exactly.

use crate::graph::{Dim, Graph, Links, Node};
use crate::points::frozen_weight;
use crate::tensor::{DType, Tensor};

/// The axis of a constant on which the channels lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Axis {
    /// The first one.
    First,
    /// The last one.
    Last,
}

/// A constant whose channels are divided by the factors, at the node that reads it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Divided {
    /// Index of the node.
    pub node: usize,
    /// Which of its inputs the constant is.
    pub input: usize,
    /// Where its channels lie.
    pub axis: Axis,
    /// Whether it is the weight of a linear, whose outputs the channels are.
    pub is_weight: bool,
}

/// Where the channels of a value lie.
#[derive(Clone, Copy, PartialEq)]
enum Place {
    /// On the last axis.
    Last,
    /// On the last two axes: [B, T, heads, d]. How many of each is known where they are parted.
    Heads,
    /// On the second and the last axis: [B, heads, T, d].
    HeadsFirst,
}

/// The constants to divide so that `value`, whose last axis has `channels`, is divided channel by channel. What reads `value`
/// itself is the caller's concern.
///
/// # Errors
/// Says what stands in the way.
pub fn fold(graph: &Graph, links: &Links, value: &str, channels: usize) -> Result<Vec<Divided>, String> {
    let mut walk = Walk { graph, links, channels, divided: Vec::new() };
    walk.value(value, Place::Last)?;
    Ok(walk.divided)
}

struct Walk<'a> {
    graph: &'a Graph,
    links: &'a Links,
    channels: usize,
    divided: Vec<Divided>,
}

impl Walk<'_> {
    /// Goes on with an input of a node, which has to be its only reader.
    fn on(&mut self, value: Option<&str>, place: Place) -> Result<(), String> {
        let value = value.ok_or("a node lacks its input")?;
        if self.links.is_output(value) || readers(self.graph, self.links, value).len() != 1 {
            return Err(format!("{value:?}, from which its input follows, is read elsewhere too"));
        }
        self.value(value, place)
    }

    fn value(&mut self, value: &str, place: Place) -> Result<(), String> {
        let graph = self.graph;
        let at = self.links.producer(value).ok_or("its input is an input of the model")?;
        let node = &graph.nodes[at];
        let refused = || Err(format!("{} {:?} makes its input, which cannot take a factor", node.op_type, node.name));
        match (node.op_type.as_str(), place) {
            _ if !node.domain.is_empty() => refused(),
            ("LayerNormalization", Place::Last) => {
                let axis = node.int("axis").unwrap_or(-1);
                let is_last = axis == -1 || graph.rank(value).is_some_and(|rank| axis + 1 == rank as i64);
                if !is_last {
                    return refused();
                }
                self.divide(at, 1, Axis::Last)?;
                node.input(2).map_or(Ok(()), |_| self.divide(at, 2, Axis::Last))
            }
            ("Mul", _) => self.product(at, place),
            ("Div", _) if self.is_number(node.input(1)) => self.on(node.input(0), place),
            ("Add", Place::Last) => {
                let bias = (0..2).find(|&i| graph.constant_input(node, i).is_some());
                let Some(bias) = bias else { return refused() };
                self.divide(at, bias, Axis::Last)?;
                self.on(node.input(1 - bias), place)
            }
            // Of factors above zero, which these are.
            ("Relu" | "LeakyRelu", _) => self.on(node.input(0), place),
            ("MatMul" | "Gemm", Place::Last) => self.linear(at),
            // Every head mixes its own values.
            ("MatMul", Place::HeadsFirst) => self.on(node.input(1), place),
            ("Transpose", Place::Heads) if swaps_heads(node) => self.on(node.input(0), Place::HeadsFirst),
            ("Transpose", Place::HeadsFirst) if swaps_heads(node) => self.on(node.input(0), Place::Heads),
            ("Reshape", Place::Last) => {
                let maker = node.input(0).and_then(|x| self.links.producer(x));
                let joins = maker.is_some_and(|maker| graph.nodes[maker].is("Transpose"));
                self.on(node.input(0), if joins { Place::Heads } else { Place::Last })
            }
            // Heads that are as many as the channels are those of every query: none is shared.
            ("Reshape", Place::Heads) if self.last_two(node).is_some_and(|[h, d]| h * d == self.channels) => {
                self.on(node.input(0), Place::Last)
            }
            _ => refused(),
        }
    }

    /// One operand of a product takes the factor: a constant with the channels, else a computed one.
    fn product(&mut self, at: usize, place: Place) -> Result<(), String> {
        let node = &self.graph.nodes[at];
        if let Some(constant) = (0..2).find(|&i| self.graph.constant_input(node, i).is_some()) {
            return if self.is_number(node.input(constant)) {
                self.on(node.input(1 - constant), place)
            } else if place == Place::Last {
                self.divide(at, constant, Axis::Last)
            } else {
                Err(format!("Mul {:?} makes its input, which cannot take a factor", node.name))
            };
        }
        let before = self.divided.len();
        let first = self.on(node.input(0), place);
        if first.is_ok() {
            return first;
        }
        self.divided.truncate(before);
        self.on(node.input(1), place)
    }

    /// The outputs of a linear, and its bias.
    fn linear(&mut self, at: usize) -> Result<(), String> {
        let node = &self.graph.nodes[at];
        let weight = frozen_weight(self.graph, self.links, node);
        let Some((weight, axis)) = weight.filter(|_| self.graph.constant_input(node, 1).is_some()) else {
            return Err(format!("{} {:?} makes its input, which cannot take a factor", node.op_type, node.name));
        };
        let tensor = &self.graph.constants[weight];
        weight_can_change(self.links, weight, tensor)?;
        if tensor.dims()[axis] != self.channels {
            return Err(format!("{:?} makes its input with other channels", node.name));
        }
        let axis = if axis == 0 { Axis::First } else { Axis::Last };
        self.divided.push(Divided { node: at, input: 1, axis, is_weight: true });
        node.input(2).map_or(Ok(()), |_| self.divide(at, 2, Axis::Last))
    }

    fn divide(&mut self, node: usize, input: usize, axis: Axis) -> Result<(), String> {
        let of = &self.graph.nodes[node];
        let constant = self.graph.constant_input(of, input);
        if !constant.is_some_and(|c| c.dtype == DType::F32 && c.dims().last() == Some(&self.channels)) {
            return Err(format!("{} {:?} has no constant for each channel", of.op_type, of.name));
        }
        self.divided.push(Divided { node, input, axis, is_weight: false });
        Ok(())
    }

    fn is_number(&self, value: Option<&str>) -> bool {
        value.and_then(|value| self.graph.constants.get(value)).is_some_and(|c| c.len() == 1 && c.dtype.is_float())
    }

    /// The last two dimensions that a Reshape makes: by its type, else by the constants at the end of its target.
    fn last_two(&self, reshape: &Node) -> Option<[usize; 2]> {
        let dims = self.graph.types.get(reshape.output()).and_then(|ty| ty.dims.as_deref());
        if let Some([.., Dim::Known(a), Dim::Known(b)]) = dims {
            return Some([*a, *b]);
        }
        let target = reshape.input(1)?;
        let parts = match self.links.producer(target).map(|at| &self.graph.nodes[at]) {
            Some(concat) if concat.is("Concat") => concat.inputs.clone(),
            _ => vec![target.to_owned()],
        };
        let known = parts.iter().rev().map_while(|part| self.graph.constants.get(part)?.to_i64());
        let ends: Vec<i64> = known.flat_map(|part| part.into_iter().rev()).take(2).collect();
        let [b, a] = <[i64; 2]>::try_from(ends).ok()?;
        Some([usize::try_from(a).ok()?, usize::try_from(b).ok()?])
    }
}

/// The nodes that read the numbers of a value, once per use, in the order of the graph: its shape alone stays as it is.
pub fn readers(graph: &Graph, links: &Links, value: &str) -> Vec<usize> {
    links.consumers(value).iter().copied().filter(|&at| !graph.nodes[at].is("Shape")).collect()
}

/// Whether the weight of a linear can be given factors: nothing else reads it, and the source has floats.
///
/// # Errors
/// Says why not.
pub fn weight_can_change(links: &Links, name: &str, tensor: &Tensor) -> Result<(), String> {
    if links.only_consumer(name).is_none() {
        return Err(format!("weight {name:?} is used more than once"));
    }
    if tensor.integers().is_some() {
        return Err(format!("weight {name:?} is quantized in the source and stays as it is"));
    }
    if tensor.dtype != DType::F32 {
        return Err(format!("weight {name:?} is {:?}", tensor.dtype));
    }
    Ok(())
}

/// Whether a Transpose moves heads before or behind the tokens.
fn swaps_heads(node: &Node) -> bool {
    node.ints("perm") == Some(&[0, 2, 1, 3])
}

/// Whether a node is a product with a frozen matrix, rows of values first.
pub fn is_linear(node: &Node) -> bool {
    (node.is("MatMul") || node.is("Gemm")) && node.int("transA").unwrap_or(0) == 0
}

#[cfg(test)]
mod tests;
