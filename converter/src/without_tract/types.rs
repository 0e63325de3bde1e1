//! Types and shapes need tract, which is not built in.

use crate::error::{Error, Result};
use crate::graph::Graph;

/// # Errors
/// Always.
pub fn infer(_: &mut Graph, _: i64) -> Result<()> {
    Err(Error::Types("this converter was built without the feature \"tract\"; build it with default features".into()))
}
