//! Truths that cross crates. What the tests share: where the repository, the set-up and the binaries are.

use std::env;
use std::path::{Path, PathBuf};

pub mod adapters;
pub mod golden;
pub mod slopes;

/// The README's example compiles.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;

/// The root of the repository.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("this crate lies in a folder of the repository")
}

/// A binary of the workspace, built by the profile of the running test.
///
/// # Panics
/// When it is not built: `CARGO_BIN_EXE_*` does not cross crates, so `cargo build --bins` has to run first.
pub fn binary(name: &str) -> PathBuf {
    let test = env::current_exe().expect("a running test has a path");
    let profile = test.parent().and_then(Path::parent).expect("tests lie in <target>/<profile>/deps");
    let path = profile.join(name).with_extension(env::consts::EXE_EXTENSION);
    assert!(
        path.is_file(),
        "{} is not built; run `cargo build -p inlay-converter -p inlay-runtime --bins` or `./dev test`",
        path.display()
    );
    path
}

/// A file that `./dev setup` makes, such as `venv/bin/python` or `minilm/encoder.onnx`.
///
/// # Panics
/// When it is missing: a test that needs it must fail then, not pass.
pub fn setup_file(name: &str) -> PathBuf {
    let path = root().join("target").join(name);
    assert!(path.exists(), "{} is missing; run `./dev setup`", path.display());
    path
}
