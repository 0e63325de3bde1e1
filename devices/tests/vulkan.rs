//! Every GPU body against the plain one, on the Vulkan device named by `INLAY_VULKAN_DEVICE` (or the best that opens).
//!
//! Where Vulkan or its validation layer is missing, these tests say so and pass, unless `INLAY_REQUIRE_VULKAN=1`.
//! `eval "$(tests/setup-vulkan.sh)"` provides both.

use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use inlay_devices::backend::{Backend, DeviceError, DeviceKind};
use inlay_devices::kernels::{self, Element, Unary, UnaryOp, UnaryParams, kernel, spirv, to_words};
use inlay_devices::program::{Call, Operand, Program, Region, Segment, Slot};
use inlay_devices::vulkan::{Choice, Vulkan, VulkanOptions, devices};
use inlay_format::quant::SCHEMES;

fn required() -> bool {
    std::env::var("INLAY_REQUIRE_VULKAN").is_ok_and(|value| value == "1")
}

fn options() -> VulkanOptions {
    let choice = std::env::var("INLAY_VULKAN_DEVICE").map_or(Choice::Any, Choice::Named);
    VulkanOptions { choice, validation: true, ..VulkanOptions::default() }
}

/// The device under test, or `None` (after saying so) where Vulkan is missing and not required.
fn open(options: &VulkanOptions) -> Option<Vulkan> {
    match Vulkan::open(options) {
        Ok(device) => Some(device),
        Err(error) if required() => panic!("INLAY_REQUIRE_VULKAN=1, and no device opened: {error}"),
        Err(error) => {
            eprintln!("NOT TESTED: {error}");
            None
        }
    }
}

fn assert_clean(device: &Vulkan) {
    let errors = device.validation().errors();
    assert!(errors.is_empty(), "{} validation errors, the first: {}", errors.len(), errors[0]);
}

/// `y = 2 x + 1` in the forward segment, `z += y` in the backward segment.
fn small_program(len: usize) -> Arc<Program> {
    let slot = |i: usize| Operand::Slot(Slot::new(Region::Arena, i * len, len));
    let call = |flags, a, b, from, to| Call {
        kernel: kernel::<Unary>(),
        params: to_words(&UnaryParams { len: len as u32, op: UnaryOp::Affine as u32, flags, a, b }),
        operands: vec![slot(from), Operand::Absent, slot(to)],
        label: "test".into(),
    };
    let mut program = Program::default();
    program.region_lens[Region::Arena.index()] = 3 * len;
    program.forward = vec![call(0, 2.0, 1.0, 0, 1)];
    program.backward = vec![call(kernels::ACCUMULATE, 1.0, 0.0, 1, 2), call(kernels::ACCUMULATE, 0.0, 0.0, 2, 1)];
    Arc::new(program)
}

#[test]
fn every_kernel_has_a_gpu_body_and_no_body_is_left_over() {
    let mut names: Vec<String> = Vec::new();
    for kernel in kernels::ALL {
        if kernel.samples().iter().any(|sample| kernel.decompose(&sample.params).is_some()) {
            continue; // it may have a body, and need not
        }
        if kernel.bindings().iter().any(|binding| binding.element == Element::Weight) {
            names.extend(SCHEMES.iter().map(|scheme| format!("{}.{}", kernel.name(), scheme.name())));
        } else {
            names.push(kernel.name().to_owned());
        }
    }
    names.sort();
    let compiled: Vec<&str> = spirv::ALL.iter().map(|(name, _)| *name).collect();
    assert_eq!(names, compiled, "kernels::ALL against devices/src/kernels/spirv; run ./dev shaders");
}

#[test]
fn every_body_is_valid_spirv() {
    let Ok(tool) = std::env::var("INLAY_SPIRV_VAL") else {
        assert!(!required(), "INLAY_REQUIRE_VULKAN=1, and INLAY_SPIRV_VAL does not name spirv-val");
        eprintln!("NOT TESTED: INLAY_SPIRV_VAL does not name spirv-val");
        return;
    };
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/src/kernels/spirv");
    for (name, _) in spirv::ALL {
        let output = Command::new(&tool).args(["--target-env", "vulkan1.1", &format!("{folder}/{name}.spv")]).output();
        let output = output.expect("spirv-val runs");
        assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn every_kernel_agrees_with_its_plain_body() {
    for staged in [false, true] {
        let Some(device) = open(&VulkanOptions { staged, ..options() }) else { return };
        eprintln!("{:?}, staged: {staged}", device.info());
        let mut failed = Vec::new();
        for report in device.self_test().expect("the self-test runs") {
            eprintln!("{:28} {:5} samples, worst error {:.1e}", report.kernel, report.samples, report.worst_error);
            if !report.passed {
                failed.push(report);
            }
        }
        assert!(failed.is_empty(), "{failed:#?}");
        assert_clean(&device);
    }
}

#[test]
fn segments_run_in_order_again_and_again() {
    const LEN: usize = 5 * 64;
    for staged in [false, true] {
        let Some(device) = open(&VulkanOptions { staged, ..options() }) else { return };
        let mut program = device.compile(small_program(LEN)).expect("the program fits");
        let mut found = vec![f32::NAN; LEN];
        program.read(Region::Arena, 2 * LEN, &mut found).unwrap();
        assert_eq!(found, [0.0; LEN], "regions start zeroed");
        for run in 1..=4 {
            let x: Vec<f32> = (0..LEN).map(|i| (i * run) as f32).collect();
            program.write(Region::Arena, 0, &x).unwrap();
            program.run(&[Segment::Forward, Segment::Backward]).unwrap();
            program.run(&[Segment::Update]).unwrap();
            program.read(Region::Arena, 2 * LEN, &mut found).unwrap();
            let runs: usize = (1..=run).sum();
            let expected: Vec<f32> = (0..LEN).map(|i| (2 * i * runs + run) as f32).collect();
            assert_eq!(found, expected);
        }
        let mut few = [0.0; 3];
        program.write(Region::Arena, 7, &[0.5, -0.5]).unwrap();
        program.read(Region::Arena, 6, &mut few).unwrap();
        assert_eq!(few, [24.0, 0.5, -0.5], "parts of a region can be written and read");
        assert_clean(&device);
    }
}

#[test]
fn validation_notices_a_missing_barrier() {
    let Some(device) = open(&VulkanOptions { without_barriers: true, ..options() }) else { return };
    let Ok(mut program) = device.compile(small_program(1 << 16)) else { panic!("the self-test needs no barriers") };
    program.run(&[Segment::Forward, Segment::Backward]).unwrap();
    let errors = device.validation().errors();
    assert!(errors.iter().any(|error| error.contains("SYNC-HAZARD")), "no hazard among {errors:?}");
}

#[test]
fn validation_notices_a_wrong_call() {
    let Some(device) = open(&options()) else { return };
    assert_clean(&device);
    device.misuse();
    let errors = device.validation().errors();
    assert!(errors.iter().any(|error| error.contains("VUID-VkFenceCreateInfo-flags-parameter")), "{errors:?}");
}

#[test]
fn a_run_that_takes_too_long_is_an_error_and_leaves_nothing_broken() {
    let Some(device) = open(&VulkanOptions { timeout: Some(Duration::from_nanos(1)), ..options() }) else { return };
    let mut program = device.compile(small_program(1 << 20)).expect("the time-out is for runs");
    let result = program.run(&[Segment::Forward, Segment::Backward]);
    assert!(matches!(result, Err(DeviceError::Timeout { .. })), "{result:?}");
    let again = program.run(&[Segment::Forward]);
    assert!(matches!(again, Err(DeviceError::Driver { .. })), "{again:?}");
    let read = program.read(Region::Arena, 0, &mut [0.0]);
    assert!(matches!(read, Err(DeviceError::Driver { .. })), "memory may still be in use: {read:?}");
    assert!(device.compile(small_program(64)).is_err());
    drop(program);
    assert_clean(&device);
}

#[test]
fn a_device_is_found_by_part_of_its_name() {
    let Some(device) = open(&options()) else { return };
    let name = &device.info().name;
    let part = name.split(' ').next().unwrap().to_uppercase();
    let found = Vulkan::open(&VulkanOptions { choice: Choice::Named(part), ..VulkanOptions::default() }).unwrap();
    assert_eq!(&found.info().name, name);

    let wrong = VulkanOptions { choice: Choice::Named("no such device".into()), ..VulkanOptions::default() };
    match Vulkan::open(&wrong) {
        Err(DeviceError::NoSuchDevice { found, .. }) => assert!(found.contains(name.as_str()), "{found}"),
        other => panic!("{:?}", other.map(|device| device.info().clone())),
    }
}

#[test]
fn a_software_device_is_never_taken_for_a_gpu() {
    let Ok(all) = devices(false) else { return };
    match Vulkan::open(&VulkanOptions::default()) {
        Ok(device) => assert_eq!(device.info().kind, DeviceKind::VulkanGpu),
        Err(error) => {
            assert!(matches!(error, DeviceError::NoVulkan { .. }), "{error}");
            assert!(all.iter().all(|info| info.kind == DeviceKind::VulkanCpu), "{all:?}");
        }
    }
}

#[test]
fn a_machine_without_drivers_gives_an_error() {
    if std::env::var_os("INLAY_TEST_NO_DRIVERS").is_some() {
        let error = Vulkan::open(&VulkanOptions { choice: Choice::Any, ..VulkanOptions::default() }).err();
        assert!(matches!(error, Some(DeviceError::NoVulkan { .. })), "{error:?}");
        return;
    }
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_machine_without_drivers_gives_an_error"])
        .envs([
            ("INLAY_TEST_NO_DRIVERS", "1"),
            ("VK_DRIVER_FILES", "/nonexistent.json"),
            ("VK_ICD_FILENAMES", "/nonexistent.json"),
        ])
        .status()
        .unwrap();
    assert!(status.success(), "opening without drivers");
}
