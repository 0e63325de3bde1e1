use inlay_devices::kernels::sample;
use inlay_format::quant::{Form, Int4, Int8, Layout, PartsMut, Scheme, Uint8};

use super::*;
use crate::graph::build::Build;
use crate::graph::{Attributes, ValueId};
use crate::ops::{self, Case, CaseInput, Op};

/// How a computed input reaches the node.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Through {
    /// As the parameter itself.
    Parameter,
    /// As an activation.
    Activation,
    /// As an activation that lies in reverse order.
    Transposed,
}

struct Built {
    graph: Graph,
    bindings: Vec<Binding>,
    /// Values of each parameter, and whether the op says that it is differentiable.
    parameters: Vec<Vec<f32>>,
    fed: Vec<(String, HostTensor)>,
}

fn op(name: &str) -> &'static dyn Op {
    ops::ALL.iter().copied().find(|op| op.op_type() == name).unwrap()
}

/// The case as a graph whose output is the node's `output`.
fn build(node: &'static dyn Op, case: &Case, through: Through, output: usize) -> Built {
    let mut g = Build::default();
    let (mut bindings, mut parameters, mut fed) = (Vec::new(), Vec::new(), Vec::new());
    let mut inputs: Vec<Option<ValueId>> = Vec::new();
    let mut step = |g: &mut Build, i: usize, x: &HostTensor| {
        let name = format!("p{i}");
        let mut shape = x.shape().to_vec();
        let mut values = x.to_floats();
        if through == Through::Transposed {
            // The parameter is the input with its dimensions reversed.
            let strides = contiguous_strides(&shape);
            shape.reverse();
            let strides: Vec<isize> = strides.iter().rev().map(|&s| s as isize).collect();
            values = ops::host::positions(&shape, &strides, 0).into_iter().map(|p| values[p]).collect();
        }
        let mut id = g.parameter(&name, &shape);
        bindings.push(Binding { name, shape, scale: 1.0 });
        parameters.push(values);
        if through != Through::Parameter {
            id = g.node(&ops::SCALE, Attributes::default().with_float("factor", 1.0), vec![Some(id)], 1)[0];
        }
        if through == Through::Transposed {
            id = g.node(op("Transpose"), Attributes::default(), vec![Some(id)], 1)[0];
        }
        id
    };
    for (i, input) in case.inputs.iter().enumerate() {
        let name = format!("x{i}");
        inputs.push(match input {
            CaseInput::Absent => None,
            CaseInput::Step(x) if node.differentiable(i) => Some(step(&mut g, i, x)),
            CaseInput::Step(x) | CaseInput::Fed(x) => {
                fed.push((name.clone(), x.clone()));
                Some(g.input(&name, x.dtype(), x.shape()))
            }
            CaseInput::Constant(x) => Some(g.constant(&name, x)),
            CaseInput::Int8 { values, axis } => {
                let (q, scale) = int8(&mut g, &name, values, *axis);
                let attributes = Attributes::default().with_int("axis", *axis as i64);
                Some(g.node(op("DequantizeLinear"), attributes, vec![Some(q), Some(scale)], 1)[0])
            }
            CaseInput::Uint8 { values, axis, form } => Some(uint8(&mut g, &name, values, *axis, *form)),
            CaseInput::Int4 { values, form } => Some(int4(&mut g, &name, values, *form)),
            CaseInput::Packed { dtype, shape, bytes } => Some(g.bytes(&name, *dtype, shape, bytes.clone())),
        });
    }
    let mut id = if node.op_type() == "DequantizeLinear" {
        let (CaseInput::Int8 { values, .. } | CaseInput::Uint8 { values, .. } | CaseInput::Int4 { values, .. }) =
            &case.inputs[0]
        else {
            panic!("its cases are quantized")
        };
        let x = step(&mut g, 9, values);
        g.node(op("Mul"), Attributes::default(), vec![Some(x), inputs[0]], 1)[0]
    } else {
        g.node(node, case.attributes.clone(), inputs, case.outputs)[output]
    };
    if through == Through::Transposed && bindings.iter().any(|b| b.shape.len() > 1) && node.op_type() != "Size" {
        // A gradient that comes back in another order too.
        id = g.node(op("Transpose"), Attributes::default(), vec![Some(id)], 1)[0];
    }
    Built { graph: g.finish(&[(id, DType::F32)]), bindings, parameters, fed }
}

fn int8(g: &mut Build, name: &str, values: &HostTensor, axis: usize) -> (ValueId, ValueId) {
    let shape = values.shape();
    let (layout, n) = if axis == 0 { (Layout::NK, shape[0]) } else { (Layout::KN, shape[axis]) };
    assert!(axis == 0 || axis == shape.len() - 1);
    let k = values.len() / n;
    let (mut q, mut scales) = (vec![0; k * n], vec![0.0; n]);
    let parts = PartsMut { data: &mut q, scales: &mut scales, zero_points: &mut [] };
    Int8.encode(values.floats().unwrap(), layout, [k, n], parts).unwrap();
    let scale = g.constant(&format!("{name}.scale"), &HostTensor::of([n], scales));
    (g.bytes(&format!("{name}.q"), DType::I8, shape, q), scale)
}

/// The dequantized constant with its outputs on `axis`.
fn uint8(g: &mut Build, name: &str, values: &HostTensor, axis: usize, form: Form) -> ValueId {
    let shape = values.shape();
    let layout = if axis == 0 { Layout::NK } else { Layout::KN };
    let (k, n) = (values.len() / shape[axis], shape[axis]);
    let sizes = Uint8.sizes(layout, [k, n], form).unwrap();
    let (mut q, mut scales, mut zeros) = (vec![0; sizes.data], vec![0.0; sizes.scales], vec![0; sizes.zero_points]);
    let parts = PartsMut { data: &mut q, scales: &mut scales, zero_points: &mut zeros };
    Uint8.encode(values.floats().unwrap(), layout, [k, n], parts).unwrap();
    let (dims, attributes) = match form.block {
        0 => (vec![n], Attributes::default().with_int("axis", axis as i64)),
        block => {
            let attributes = Attributes::default().with_int("axis", 1).with_int("block_size", block as i64);
            (vec![n, k / block], attributes)
        }
    };
    let q = g.bytes(&format!("{name}.q"), DType::U8, shape, q);
    let scale = g.constant(&format!("{name}.scale"), &HostTensor::of(dims.as_slice(), scales));
    let zero = g.bytes(&format!("{name}.zero"), DType::U8, &dims, zeros);
    g.node(op("DequantizeLinear"), attributes, vec![Some(q), Some(scale), Some(zero)], 1)[0]
}

/// The dequantized matrix [N, K]; zero points are packed as DequantizeLinear has them.
fn int4(g: &mut Build, name: &str, values: &HostTensor, form: Form) -> ValueId {
    let &[n, k] = values.shape() else { panic!("int4 weights are matrices") };
    let sizes = Int4.sizes(Layout::NK, [k, n], form).unwrap();
    let (mut q, mut scales, mut zeros) = (vec![0; sizes.data], vec![0.0; sizes.scales], vec![0x88; sizes.zero_points]);
    let parts = PartsMut { data: &mut q, scales: &mut scales, zero_points: &mut zeros };
    Int4.encode(values.floats().unwrap(), Layout::NK, [k, n], parts).unwrap();
    let blocks = k / form.block;
    let row = blocks.div_ceil(2);
    let zero_point = |i: usize| match zeros.get(i / blocks * row + i % blocks / 2) {
        Some(byte) => (byte >> (4 * (i % blocks % 2))) & 15,
        None => 8,
    };
    let packed = (0..(n * blocks).div_ceil(2))
        .map(|i| zero_point(2 * i) | if 2 * i + 1 < n * blocks { zero_point(2 * i + 1) << 4 } else { 0 })
        .collect();
    let q = g.bytes(&format!("{name}.q"), DType::U4, &[n, k], q);
    let scale = g.constant(&format!("{name}.scale"), &HostTensor::of([n, blocks], scales));
    let zero = g.bytes(&format!("{name}.zero"), DType::U4, &[n, blocks], packed);
    let attributes = Attributes::default().with_int("axis", 1).with_int("block_size", form.block as i64);
    g.node(op("DequantizeLinear"), attributes, vec![Some(q), Some(scale), Some(zero)], 1)[0]
}

impl Built {
    fn plan(&self, mode: Mode<'_>) -> Result<Plan, PlanError> {
        let inputs: Vec<(&str, &[usize])> = self.fed.iter().map(|(n, x)| (n.as_str(), x.shape())).collect();
        Plan::of_graph(
            &self.graph,
            &PlanRequest {
                inputs: &inputs,
                parameters: &self.bindings,
                fragments: &[],
                mode,
                rows: None,
                merged: None,
            },
        )
    }

    fn feed(&self, plan: &Plan, plain: &mut Plain<f64>, labels: Option<&HostTensor>) {
        plain.poison();
        let inputs: Vec<(&str, &HostTensor)> = self.fed.iter().map(|(n, x)| (n.as_str(), x)).collect();
        plan.feed(plain, &inputs, labels).unwrap();
    }

    /// Compares every gradient with central differences.
    fn check(&self) -> Result<(), String> {
        let plan = self.plan(train(&self.graph.outputs()[0].name)).map_err(|e| e.to_string())?;
        let shape = plan.outputs()[0].ty.shape.clone();
        let weights = sample::floats(77, shape.iter().product());
        let labels = HostTensor::of(shape, weights.clone());
        let mut plain = Plain::<f64>::new(&plan);
        for (slot, values) in plan.parameters().iter().zip(&self.parameters) {
            plain.write(Region::Params, slot.offset, values).unwrap();
        }
        self.feed(&plan, &mut plain, Some(&labels));
        plain.run(&[Segment::Forward, Segment::Backward]).unwrap();
        let gradients = plain.0.memory.floats(Region::Grads).to_vec();
        let loss = |plain: &mut Plain<f64>| {
            self.feed(&plan, plain, Some(&labels));
            plain.run(&[Segment::Forward]).unwrap();
            plain.output(&plan, 0).iter().zip(&weights).map(|(y, w)| y * f64::from(*w)).sum::<f64>()
        };
        const H: f64 = 1e-5;
        for slot in plan.parameters() {
            let mut differences = Vec::new();
            for at in slot.offset..slot.offset + slot.len() {
                let value = plain.0.memory.floats(Region::Params)[at];
                let mut at_value = |x: f64| {
                    plain.0.memory.floats_mut(Region::Params)[at] = x;
                    loss(&mut plain)
                };
                differences.push((at_value(value + H) - at_value(value - H)) / (2.0 * H));
                plain.0.memory.floats_mut(Region::Params)[at] = value;
            }
            let norm = differences.iter().map(|d| d * d).sum::<f64>().sqrt().max(1.0);
            for (i, d) in differences.iter().enumerate() {
                let g = gradients[slot.offset + i];
                let error = (g - d).abs() / norm;
                if error.is_nan() || error > 1e-6 {
                    return Err(format!("{} element {i}: gradient {g}, differences {d}", slot.name));
                }
            }
        }
        Ok(())
    }
}

#[test]
fn every_gradient_is_that_of_finite_differences() {
    let mut problems = Vec::new();
    for node in ops::ALL {
        for case in node.samples() {
            for output in 0..case.outputs {
                for through in [Through::Parameter, Through::Activation, Through::Transposed] {
                    let built = build(*node, &case, through, output);
                    if built.bindings.is_empty() {
                        continue;
                    }
                    if let Err(problem) = built.check() {
                        problems.push(format!("{node:?}, {}, output {output}, {through:?}: {problem}", case.label));
                    }
                }
            }
        }
    }
    assert!(problems.is_empty(), "{problems:#?}");
}

#[test]
fn ops_have_cases_and_differentiable_ones_are_differentiated() {
    for node in ops::ALL {
        let cases = node.samples();
        assert!(!cases.is_empty(), "{node:?}");
        let step = |case: &Case, i| matches!(case.inputs.get(i), Some(CaseInput::Step(_)));
        if node.differentiable(0) {
            assert!(cases.iter().any(|case| (0..5).any(|i| step(case, i))), "{node:?}");
        }
    }
}

#[test]
fn the_device_computes_what_the_host_computes() {
    for node in ops::ALL.iter().filter(|op| op.on_host()) {
        for case in node.samples() {
            let mut types = Vec::new();
            for input in &case.inputs {
                types.push(match input {
                    CaseInput::Step(x) | CaseInput::Constant(x) | CaseInput::Fed(x) => Some((x.dtype(), x)),
                    _ => None,
                });
            }
            if case.inputs.iter().any(|i| matches!(i, CaseInput::Int8 { .. }))
                || !case.inputs.iter().any(|i| matches!(i, CaseInput::Step(_)))
                || !node.needs_values()
            {
                continue;
            }
            let tys: Vec<_> = types.iter().map(|t| t.map(|(dtype, x)| TensorType::new(dtype, x.shape()))).collect();
            let view = ops::NodeView {
                attributes: &case.attributes,
                inputs: types
                    .iter()
                    .zip(&tys)
                    .map(|(t, ty)| {
                        t.zip(ty.as_ref()).map(|((_, x), ty)| ops::Input {
                            ty,
                            value: Some(x),
                            frozen: None,
                            zero: false,
                        })
                    })
                    .collect(),
                outputs: case.outputs,
            };
            let label = format!("{node:?} {}", case.label);
            let expected = node.evaluate(&view).unwrap_or_else(|e| panic!("{label}: {e}"));
            assert_eq!(
                node.infer(&view).unwrap(),
                expected.iter().map(|y| TensorType::new(y.dtype(), y.shape())).collect::<Vec<_>>(),
                "{label}"
            );
            for (output, expected) in expected.iter().enumerate() {
                if expected.dtype() != DType::F32 {
                    continue;
                }
                let built = build(*node, &case, Through::Activation, output);
                let plan = built.plan(Mode::Predict).unwrap_or_else(|e| panic!("{label}: {e}"));
                let mut plain = Plain::<f64>::new(&plan);
                for (slot, values) in plan.parameters().iter().zip(&built.parameters) {
                    plain.write(Region::Params, slot.offset, values).unwrap();
                }
                built.feed(&plan, &mut plain, None);
                plain.run(&[Segment::Forward]).unwrap();
                for (i, (y, e)) in plain.output(&plan, 0).iter().zip(expected.floats().unwrap()).enumerate() {
                    assert!((y - f64::from(*e)).abs() <= 1e-5 * y.abs().max(1.0), "{label}: {i}: {y} {e}");
                }
            }
        }
    }
}

/// A parameter used by two nodes, one of them twice, through shapes that share memory.
#[test]
fn values_used_twice_get_both_gradients() {
    let mut g = Build::default();
    let p = g.parameter("p", &[2, 6]);
    let x = g.node(&ops::SCALE, Attributes::default().with_float("factor", 0.7), vec![Some(p)], 1)[0];
    let shape = g.constant("shape", &HostTensor::of([3], vec![2i64, 3, 2]));
    let rows = g.node(op("Reshape"), Attributes::default(), vec![Some(x), Some(shape)], 1)[0];
    let parts = g.node(op("Split"), Attributes::default().with_int("axis", 1), vec![Some(rows)], 3);
    let doubled = g.node(op("Add"), Attributes::default(), vec![Some(parts[1]), Some(parts[1])], 1)[0];
    let product = g.node(op("Mul"), Attributes::default(), vec![Some(parts[0]), Some(doubled)], 1)[0];
    let joined = g.node(op("Concat"), Attributes::default().with_int("axis", 1), vec![Some(product), Some(rows)], 1)[0];
    let turned = g.node(op("Transpose"), Attributes::default(), vec![Some(joined)], 1)[0];
    let sum = g.node(op("Add"), Attributes::default(), vec![Some(turned), Some(turned)], 1)[0];
    let built = Built {
        graph: g.finish(&[(sum, DType::F32)]),
        bindings: vec![Binding { name: "p".into(), shape: vec![2, 6], scale: 1.0 }],
        parameters: vec![sample::floats(3, 12)],
        fed: vec![],
    };
    built.check().unwrap();
}

/// Attention whose q, k and v are parts of one projection, laid out in every way that models have, or one value.
#[test]
fn attention_may_share_its_operands() {
    let (t, heads, d) = (4, 2, 3);
    let sizes = [
        ("parts of a row", vec![1, t, 3, heads, d], [2, 0, 3, 1, 4]),
        ("parts of a head", vec![1, t, heads, 3, d], [3, 0, 2, 1, 4]),
        ("parts of all", vec![3, 1, heads, t, d], [0, 1, 2, 3, 4]),
    ];
    for (name, packed, turn) in sizes {
        for one in [false, true] {
            let mut g = Build::default();
            let p = g.parameter("p", &packed);
            let x = g.node(&ops::SCALE, Attributes::default().with_float("factor", 0.7), vec![Some(p)], 1)[0];
            let perm = Attributes::default().with_ints("perm", &turn.map(|axis| axis as i64));
            let turned = g.node(op("Transpose"), perm, vec![Some(x)], 1)[0];
            let parts = g.node(op("Split"), Attributes::default().with_int("axis", 0), vec![Some(turned)], 3);
            let shape = g.constant("shape", &HostTensor::of([4], [1, heads, t, d].map(|dim| dim as i64).to_vec()));
            let part =
                |g: &mut Build, part| g.node(op("Reshape"), Attributes::default(), vec![Some(part), Some(shape)], 1)[0];
            let [q, k, v] = if one { [0, 0, 0] } else { [0, 1, 2] }.map(|i: usize| part(&mut g, parts[i]));
            let last = Attributes::default().with_ints("perm", &[0, 1, 3, 2]);
            let k = g.node(op("Transpose"), last, vec![Some(k)], 1)[0];
            let factor = Attributes::default().with_float("factor", 0.6);
            let mut y = g.node(&ops::ATTENTION, factor, vec![Some(q), Some(k), Some(v)], 1)[0];
            if one {
                // The other parts count too, so that every parameter has a gradient.
                for other in &parts[1..] {
                    let other = part(&mut g, *other);
                    y = g.node(op("Add"), Attributes::default(), vec![Some(y), Some(other)], 1)[0];
                }
            }
            let built = Built {
                graph: g.finish(&[(y, DType::F32)]),
                bindings: vec![Binding { name: "p".into(), shape: packed.clone(), scale: 1.0 }],
                parameters: vec![sample::floats(3, 3 * heads * t * d)],
                fed: vec![],
            };
            built.check().unwrap_or_else(|error| panic!("{name}, one value {one}: {error}"));
        }
    }
}

/// `x + g(x)` with either order of the operands: what the branch adds to x must not show in the branch.
#[test]
fn residual_branches_do_not_share_their_gradients() {
    for swapped in [false, true] {
        let mut g = Build::default();
        let p = g.parameter("p", &[3, 4]);
        let x = g.node(&ops::SCALE, Attributes::default().with_float("factor", 0.7), vec![Some(p)], 1)[0];
        let h = g.node(op("Sigmoid"), Attributes::default(), vec![Some(x)], 1)[0];
        let h = g.node(op("Softmax"), Attributes::default(), vec![Some(h)], 1)[0];
        let pair = if swapped { vec![Some(h), Some(x)] } else { vec![Some(x), Some(h)] };
        let y = g.node(op("Add"), Attributes::default(), pair, 1)[0];
        let built = Built {
            graph: g.finish(&[(y, DType::F32)]),
            bindings: vec![Binding { name: "p".into(), shape: vec![3, 4], scale: 1.0 }],
            parameters: vec![sample::floats(3, 12)],
            fed: vec![],
        };
        built.check().unwrap();
    }
}

/// Fusion of a linear with its bias and LoRA branch, in both spellings, at several ranks.
#[test]
fn lora_branches_are_fused_scaled_and_pruned() {
    for (gemm, bias, rank) in [(false, true, 3), (false, false, 1), (true, true, 2)] {
        let mut g = Build::default();
        let x = g.input("x", DType::F32, &[4, 17]);
        let (a, b) = (g.parameter("fc.lora_A", &[17, rank]), g.parameter("fc.lora_B", &[rank, 9]));
        let weights = HostTensor::of(if gemm { [9, 17] } else { [17, 9] }, sample::floats(2, 17 * 9));
        let w = g.constant("w", &weights);
        let vector = g.constant("b", &HostTensor::of([9], sample::floats(5, 9)));
        let y = if gemm {
            let attributes = Attributes::default().with_int("transB", 1);
            g.node(op("Gemm"), attributes, vec![Some(x), Some(w), Some(vector)], 1)[0]
        } else {
            g.node(op("MatMul"), Attributes::default(), vec![Some(x), Some(w)], 1)[0]
        };
        let down = g.node(op("MatMul"), Attributes::default(), vec![Some(x), Some(a)], 1)[0];
        let up = g.node(op("MatMul"), Attributes::default(), vec![Some(down), Some(b)], 1)[0];
        let mut sum = g.node(op("Add"), Attributes::default(), vec![Some(y), Some(up)], 1)[0];
        if bias && !gemm {
            sum = g.node(op("Add"), Attributes::default(), vec![Some(vector), Some(sum)], 1)[0];
        }
        let binding = |name: &str, shape: [usize; 2], scale| Binding { name: name.into(), shape: shape.into(), scale };
        let built = Built {
            graph: g.finish(&[(sum, DType::F32)]),
            bindings: vec![binding("fc.lora_A", [17, rank], 1.0), binding("fc.lora_B", [rank, 9], 0.5)],
            parameters: vec![sample::floats(6, 17 * rank), sample::floats(7, rank * 9)],
            fed: vec![("x".into(), HostTensor::of([4, 17], sample::floats(1, 68)))],
        };
        built.check().unwrap();
        let plan = built.plan(Mode::Predict).unwrap();
        let kernels: Vec<_> = plan.program().forward.iter().map(|c| c.kernel.name()).collect();
        assert_eq!(kernels, ["linear", "matmul", "matmul"]);
    }
}
