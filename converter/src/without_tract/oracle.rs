//! The reference is tract, which is not built in.

use crate::error::{Error, Result};
use crate::graph::Graph;
pub use crate::samples::{Feed, Output, Values};

/// # Errors
/// Always.
pub fn run(_: &Graph, _: i64, _: &[Feed], what: &'static str) -> Result<Vec<Output>> {
    let detail = "this converter was built without the feature \"tract\"; build it with default features".into();
    Err(Error::Oracle { what, detail })
}
