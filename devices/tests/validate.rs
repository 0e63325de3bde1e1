//! What programs may not contain.

use std::sync::Arc;

use inlay_devices::backend::Backend;
use inlay_devices::conformance;
use inlay_devices::cpu::CpuBackend;
use inlay_devices::kernels::{
    ACCUMULATE, Binary, BinaryParams, Contract, Copy, CopyParams, GatherRows, GatherRowsParams, Linear, LinearParams,
    Matmul, MatmulParams, Sample, SampleOperand, Unary, UnaryParams, kernel, sample, to_words,
};
use inlay_devices::program::{Operand, Program, Region, SLOT_ALIGN, Slot};
use inlay_format::quant::{Form, Int8, Layout};

/// The one-call program of random operands.
fn program<C: Contract>(params: &C::Params) -> Program
where
    C::Params: std::fmt::Debug,
{
    conformance::program(kernel::<C>(), &Sample::random::<C>(1, params))
}

fn linear() -> Program {
    let p = LinearParams { m: 3, k: 8, n: 5, flags: LinearParams::BIAS };
    let weight = sample::weight(1, &Int8, Form::WHOLE, Layout::KN, [8, 5]);
    let sample = Sample::random::<Linear>(1, &p).with(1, SampleOperand::Weight(weight));
    conformance::program(kernel::<Linear>(), &sample)
}

fn change(mut program: Program, change: impl FnOnce(&mut Program)) -> Program {
    change(&mut program);
    program
}

fn operand(program: &mut Program, at: usize) -> &mut Operand {
    &mut program.forward[0].operands[at]
}

fn slot(program: &mut Program, at: usize) -> &mut Slot {
    match operand(program, at) {
        Operand::Slot(slot) => slot,
        other => panic!("{other:?} is no slot"),
    }
}

#[test]
fn what_breaks_a_contract_is_refused_by_name() {
    let linear_params = |k, n, flags| to_words(&LinearParams { m: 3, k, n, flags });
    let table = |rows| GatherRowsParams { count: 2, width: 4, rows, flags: 0 };
    let unary = UnaryParams { len: 10, op: 0, flags: 0, a: 1.0, b: 0.0 };
    let binary = BinaryParams { dims: [1, 1, 1, 2, 3], a: [0, 0, 0, 3, 1], b: [0; 5], op: 0, flags: 0 };
    let gather = {
        let weight = sample::weight(1, &Int8, Form::WHOLE, Layout::KN, [4, 6]);
        let sample = Sample::random::<GatherRows>(1, &table(6))
            .with(0, SampleOperand::Weight(weight))
            .with(1, SampleOperand::Ints(vec![0, 1]));
        conformance::program(kernel::<GatherRows>(), &sample)
    };
    let cases: Vec<(&str, Program)> = vec![
        ("2 operands", change(linear(), |p| p.forward[0].operands.truncate(2))),
        ("3 words", change(linear(), |p| p.forward[0].params.truncate(3))),
        ("\"x\": absent", change(linear(), |p| *operand(p, 0) = Operand::Absent)),
        ("\"bias\": absent", change(linear(), |p| *operand(p, 2) = Operand::Absent)),
        ("\"bias\": present", change(linear(), |p| p.forward[0].params = linear_params(8, 5, 0))),
        ("no weight 7", change(linear(), |p| *operand(p, 1) = Operand::Weight(7))),
        ("is not KN [4, 10]", change(linear(), |p| p.forward[0].params = linear_params(4, 10, 0))),
        ("is not NK", change(linear(), |p| p.forward[0].params = linear_params(8, 5, LinearParams::LAYOUT_NK))),
        (
            "takes no bias",
            change(linear(), |p| {
                p.forward[0].params = linear_params(8, 5, LinearParams::BIAS | LinearParams::TRANSPOSE);
            }),
        ),
        ("does not fit Float", change(linear(), |p| *operand(p, 0) = Operand::Weight(0))),
        ("\"x\": Slot", change(linear(), |p| slot(p, 0).len = 23)),
        ("outside its region", change(linear(), |p| slot(p, 0).offset = 1 << 20)),
        ("outside its region", change(linear(), |p| slot(p, 0).offset = usize::MAX - SLOT_ALIGN + 1)),
        ("multiple of", change(linear(), |p| slot(p, 0).offset += 1)),
        ("Ints does not hold Float", change(linear(), |p| slot(p, 0).region = Region::Ints)),
        ("is read-only", {
            change(linear(), |p| {
                p.region_lens[Region::Step.index()] = 100;
                *slot(p, 3) = Slot::new(Region::Step, 0, 15);
            })
        }),
        ("overlaps another operand", change(linear(), |p| slot(p, 3).offset = 0)),
        ("Consts has 3 elements but 0 values", change(linear(), |p| p.region_lens[Region::Consts.index()] = 3)),
        ("no function 99", program::<Unary>(&UnaryParams { op: 99, ..unary })),
        ("no function 99", program::<Binary>(&BinaryParams { op: 99, ..binary })),
        ("which overlap", program::<Copy>(&CopyParams { dst: [0; 6], ..CopyParams::contiguous(4) })),
        ("which overlap", program::<Matmul>(&MatmulParams { c: [0, 0, 1, 1], ..MatmulParams::contiguous(2, 2, 2) })),
        ("is no table", gather),
    ];
    let cpu = CpuBackend::new(1).expect("one thread is there");
    for (expected, program) in cases {
        let error = program.validate().expect_err(expected).to_string();
        assert!(error.contains(expected), "expected \"{expected}\", found \"{error}\"");
        assert!(cpu.compile(Arc::new(program)).is_err(), "the CPU takes a program with: {error}");
    }
}

#[test]
fn sizes_that_overflow_are_refused() {
    // As words, since no sample of that size can be made.
    let huge = MatmulParams { a: [u32::MAX; 4], b0: u32::MAX, b1: u32::MAX, ..MatmulParams::contiguous(2, 2, 2) };
    let broken = change(program::<Matmul>(&MatmulParams::contiguous(2, 2, 2)), |p| {
        p.forward[0].params = to_words(&MatmulParams { c: [16, 4, 2, 1], b0: 1, b1: 1, ..huge });
    });
    assert!(broken.validate().is_err());
}

#[test]
fn samples_are_valid() {
    assert!(linear().validate().is_ok());
    let p = UnaryParams { len: 10, op: 0, flags: ACCUMULATE, a: 1.0, b: 0.0 };
    assert!(program::<Unary>(&p).validate().is_ok());
}
