//! FusedMatMul of onnxruntime: `alpha a b`, either transposed.
//! <https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md#com.microsoft.FusedMatMul>

use super::primitives::Primitives;
use crate::error::Result;

pub(super) fn fused(p: &mut Primitives<'_>) -> Result<()> {
    for attribute in ["transBatchA", "transBatchB"] {
        if p.old.int(attribute).unwrap_or(0) != 0 {
            return Err(p.unsupported(&format!("attribute {attribute} is not supported; export without graph fusion")));
        }
    }
    let a = operand(p, 0, "transA")?;
    let b = operand(p, 1, "transB")?;
    let alpha = p.old.float("alpha").unwrap_or(1.0);
    if alpha == 1.0 {
        p.finish("MatMul", &[&a, &b]);
        return Ok(());
    }
    // The product keeps the name, which may tell the module.
    let name = p.old.name.clone();
    let product = p.push("MatMul", "product", &[&a, &b]);
    p.rename(&name);
    let alpha = p.number("alpha", alpha);
    p.finish("Mul", &[&product, &alpha]);
    p.rename(&format!("{name}/scaled"));
    Ok(())
}

fn operand(p: &mut Primitives<'_>, index: usize, transposed: &str) -> Result<String> {
    let x = p.input(index)?;
    if p.old.int(transposed).unwrap_or(0) == 0 {
        return Ok(x);
    }
    let rank = p.rank(&x).filter(|rank| *rank > 1).ok_or_else(|| p.unsupported("the rank of an input is not known"))?;
    let mut perm: Vec<i64> = (0..rank as i64).collect();
    perm.swap(rank - 2, rank - 1);
    Ok(p.transpose(&format!("{transposed}ed"), &x, &perm))
}
