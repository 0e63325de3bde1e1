use inlay_format::record::Dtype;

use super::{Adapter, AdapterError, AdapterOptions};
use crate::base::Base;

/// An adapter that fits a number of bytes.
#[derive(Clone, Debug)]
pub struct Budget {
    /// The adapter, ready to train.
    pub adapter: Adapter,
    /// The dtype of its record.
    pub dtype: Dtype,
    /// What its record takes (bytes).
    pub bytes: usize,
    /// What was chosen, in words.
    pub what: String,
}

/// Attention's queries and values, as most models call them.
const QUERY_VALUE: [&str; 3] = ["*{query,value}", "*{q_proj,v_proj}", "*{q,v}"];

impl Budget {
    /// The first that fits `bytes`, in the order of `docs/adapters.md`: LoRA at every point before LoRA at queries and values,
    /// then LoRA-XS where the base has a basis, then LoRA at the last point alone; for each of them int8 before int4, and
    /// a larger rank before a smaller one.
    ///
    /// # Errors
    /// When nothing fits: [`AdapterError::Budget`] names the smallest.
    pub fn choose(base: &Base, bytes: usize, seed: u64) -> Result<Self, AdapterError> {
        let mut smallest = usize::MAX;
        for (what, options) in candidates(base) {
            // Some bases have no such points, and some points no such rank.
            let Ok(adapter) = Adapter::new(base, &options.seed(seed)) else { continue };
            for dtype in [Dtype::Int8, Dtype::Int4] {
                let needed = adapter.record_bytes(dtype)?;
                smallest = smallest.min(needed);
                if needed <= bytes {
                    return Ok(Budget { adapter, dtype, bytes: needed, what });
                }
            }
        }
        Err(AdapterError::Budget { bytes, smallest })
    }
}

fn candidates(base: &Base) -> Vec<(String, AdapterOptions)> {
    const RANKS: [u16; 5] = [16, 8, 4, 2, 1];
    let mut all = Vec::new();
    for rank in RANKS {
        all.push((format!("LoRA of rank {rank} at every point"), AdapterOptions::lora(rank)));
    }
    for rank in RANKS {
        for glob in QUERY_VALUE {
            all.push((format!("LoRA of rank {rank} at {glob}"), AdapterOptions::lora(rank).targets([glob])));
        }
    }
    if let Some(kind) = super::find("lora-xs") {
        let rank = kind.default_size(base);
        all.push((format!("LoRA-XS with cores of {rank} x {rank}"), AdapterOptions::kind("lora-xs", rank)));
    }
    if let Some(last) = base.points().iter().rfind(|point| point.offers("lora")) {
        for rank in RANKS {
            let options = AdapterOptions::lora(rank).targets([globset::escape(&last.path)]);
            all.push((format!("LoRA of rank {rank} at {}", last.path), options));
        }
    }
    all
}
