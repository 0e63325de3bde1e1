//! Exports that are interrupted: a full disk, and a process killed while it replaces an earlier export.

#![cfg(target_os = "linux")]

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use conformance::{binary, root};
use inlay_runtime::plan::{Mode, Plan, PlanRequest};
use inlay_runtime::{Base, Verify};

const SIGKILL: i32 = 9;

fn model() -> PathBuf {
    root().join("tests/golden/mlp/model.onnx")
}

fn not_tested(what: &str, why: &str) {
    eprintln!("NOT TESTED: {what}: {why}");
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Runs `script` where `$DIR` is a private file system of 16 KiB, or says why this machine does not allow it.
fn on_a_small_disk(script: &str) -> Result<Output, String> {
    let folder = tempfile::tempdir().unwrap();
    let mount = "mount -t tmpfs -o size=16k none \"$DIR\"";
    let mut why = String::new();
    for namespaces in ["--mount", "-rm"] {
        let sh = |script: &str| {
            Command::new("unshare")
                .args([namespaces, "sh", "-c", script])
                .env("DIR", folder.path())
                .env("MODEL", model())
                .env("CONVERTER", binary("converter"))
                .output()
        };
        match sh(mount) {
            Ok(leave) if leave.status.success() => return Ok(sh(&format!("{mount} || exit 99\n{script}")).unwrap()),
            Ok(leave) => why = text(&leave.stderr),
            Err(error) => why = format!("unshare: {error}"),
        }
    }
    Err(why)
}

#[test]
fn a_full_disk_is_one_clear_error_and_leaves_nothing() {
    let script = "\"$CONVERTER\" export \"$MODEL\" --out \"$DIR/base\"; code=$?; ls -A \"$DIR\"; exit $code";
    match on_a_small_disk(script) {
        Ok(output) => {
            assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
            assert!(text(&output.stderr).contains("No space left"), "{}", text(&output.stderr));
            assert_eq!(text(&output.stdout), "", "the disk is as it was");
        }
        Err(why) => not_tested("an export to a full disk", &why),
    }
}

/// Exports over `out` with `inject` done to system calls.
fn export_under_strace(out: &Path, inject: &str) -> Output {
    let mut command = Command::new("strace");
    command.args(["-f", "-o", "/dev/null", "-e", &format!("inject={inject}")]).arg(binary("converter"));
    command.arg("export").arg(model()).arg("--out").arg(out).args(["--quant", "none"]);
    command.output().unwrap()
}

#[test]
fn a_crash_leaves_the_old_export_or_the_new() {
    match Command::new("strace").args(["-o", "/dev/null", "true"]).output() {
        Ok(traced) if traced.status.success() => {}
        Ok(traced) => return not_tested("crashes of an export", &text(&traced.stderr)),
        Err(error) => return not_tested("crashes of an export", &format!("strace: {error}; install it")),
    }
    let folder = tempfile::tempdir().unwrap();
    let old = folder.path().join("old");
    let exported = Command::new(binary("converter")).arg("export").arg(model()).arg("--out").arg(&old).output();
    assert!(exported.unwrap().status.success());
    let fingerprint = |path: &Path| Base::open(path, Verify::Full).unwrap().fingerprint();
    let (before, mut crashes) = (fingerprint(&old), [0, 0]);
    for call in ["rename", "renameat2", "fsync", "rmdir", "unlink", "unlinkat"] {
        for nth in 1.. {
            let out = folder.path().join(format!("{call}-{nth}"));
            fs::create_dir(&out).unwrap();
            for file in ["model.onnx", "model.onnx.data"] {
                fs::copy(old.join(file), out.join(file)).unwrap();
            }
            let traced = export_under_strace(&out, &format!("{call}:signal=KILL:when={nth}"));
            let after = fingerprint(&out);
            if traced.status.signal() != Some(SIGKILL) {
                assert!(traced.status.success(), "{call} {nth}: {}", text(&traced.stderr));
                assert_ne!(after, before);
                break;
            }
            crashes[usize::from(after != before)] += 1;
        }
    }
    assert!(crashes.iter().all(|count| *count > 0), "the crashes missed the export: {crashes:?}");
}

/// Whatever way an exporter spelled attention: the runtime recognises it in what the converter wrote.
#[test]
fn exported_encoders_have_fused_attention() {
    let fixtures = fs::read_dir(root().join("tests/fixtures")).unwrap().map(|entry| entry.unwrap().path());
    let encoders: Vec<PathBuf> = fixtures
        .filter(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with("encoder") && name.ends_with(".onnx")
        })
        .collect();
    assert!(encoders.len() >= 8, "{encoders:?}");
    for model in encoders {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("base");
        let exported = Command::new(binary("converter")).arg("export").arg(&model).arg("--out").arg(&out).output();
        let exported = exported.unwrap();
        assert!(exported.status.success(), "{}: {}", model.display(), text(&exported.stderr));
        let base = Base::open(&out, Verify::Full).unwrap();
        let shapes: Vec<(String, Vec<usize>)> =
            base.inputs().iter().map(|port| (port.name.clone(), vec![2, 7])).collect();
        let inputs: Vec<(&str, &[usize])> =
            shapes.iter().map(|(name, dims)| (name.as_str(), dims.as_slice())).collect();
        let plan = Plan::new(
            &base,
            &PlanRequest {
                inputs: &inputs,
                parameters: &[],
                fragments: &[],
                mode: Mode::Predict,
                rows: None,
                merged: None,
            },
        )
        .unwrap();
        let kernels: Vec<&str> = plan.program().forward.iter().map(|call| call.kernel.name()).collect();
        let fused = kernels.iter().filter(|name| **name == "attention").count();
        assert_eq!(fused, 2, "{}: {kernels:?}", model.display());
    }
}
