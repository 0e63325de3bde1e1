use inlay_format::record::Dtype;

use super::{Adapter, AdapterError, AdapterKind, AdapterOptions, Ia3, Lora, LoraXs, Targets};
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

/// Where LoRA of some rank sits, or another kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Choice {
    /// LoRA at every point.
    Everywhere(u16),
    /// LoRA at attention's queries and values.
    QueryValue(u16),
    /// (IA)3, where the base has places for it in attention.
    Ia3,
    /// LoRA-XS, where the base has a basis.
    Basis,
    /// LoRA at the last point.
    Last(u16),
}

/// What is tried, best first; each at int8, then at int4.
///
/// The source is `docs/benchmarks/quality.md`: ranks above 4 everywhere gain nothing more; in a transformer (IA)3 gains what
/// LoRA of a larger record does and forgets least; the last layer at rank 8 or 4 gains at least what every layer at rank 1
/// does, at about its bytes; LoRA-XS gains as much as LoRA of a larger record; int8 and int4 cost next to nothing. That
/// queries and values go before the basis is a rule, not a measurement. Biases and heads are not among them, for what they
/// gain depends on the person's data, which nobody has seen here: `docs/adapters.md` says how much.
const ORDER: &[Choice] = &[
    Choice::Everywhere(4),
    Choice::Everywhere(2),
    Choice::QueryValue(4),
    Choice::Ia3,
    Choice::QueryValue(2),
    Choice::Basis,
    Choice::Last(8),
    Choice::Last(4),
    Choice::Everywhere(1),
    Choice::QueryValue(1),
    Choice::Last(2),
    Choice::Last(1),
];

/// Attention's queries and values, as most models call them.
const QUERY_VALUE: [&str; 3] = ["*{query,value}", "*{q_proj,v_proj}", "*{q,v}"];

impl Budget {
    /// The first that fits `bytes`, in the order of `docs/adapters.md`, int8 before int4.
    ///
    /// # Errors
    /// When nothing fits: [`AdapterError::Budget`] names the smallest.
    pub fn choose(base: &Base, bytes: usize, seed: u64) -> Result<Self, AdapterError> {
        let mut smallest = usize::MAX;
        for (what, options) in ORDER.iter().flat_map(|choice| choice.options(base)) {
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

impl Choice {
    /// What it is on `base`, in words, and how it is made; more than one where names differ, none where there is no such place.
    fn options(self, base: &Base) -> Vec<(String, AdapterOptions)> {
        match self {
            Choice::Everywhere(rank) => {
                vec![(format!("LoRA of rank {rank} at every point"), AdapterOptions::lora(rank))]
            }
            Choice::QueryValue(rank) => {
                let at = |glob| (format!("LoRA of rank {rank} at {glob}"), AdapterOptions::lora(rank).targets([glob]));
                QUERY_VALUE.into_iter().map(at).collect()
            }
            Choice::Ia3 => {
                let sites = Ia3.sites(base);
                let paths = || sites.iter().map(|site| site.path.as_str());
                let in_attention = |glob| Targets::new([glob]).is_ok_and(|targets| targets.select(paths()).is_ok());
                let offered = QUERY_VALUE.into_iter().any(in_attention);
                let all = || ("(IA)3 at every point".to_owned(), AdapterOptions::kind(Ia3.name(), 0));
                offered.then(all).into_iter().collect()
            }
            Choice::Basis => {
                let rank = LoraXs.default_size(base);
                vec![(format!("LoRA-XS with cores of {rank} x {rank}"), AdapterOptions::kind(LoraXs.name(), rank))]
            }
            Choice::Last(rank) => {
                let last = base.points().iter().rfind(|point| point.offers(Lora.name()));
                let at = |path: &str| {
                    let options = AdapterOptions::lora(rank).targets([globset::escape(path)]);
                    (format!("LoRA of rank {rank} at {path}"), options)
                };
                last.map(|point| at(&point.path)).into_iter().collect()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Verify;

    #[test]
    fn what_is_chosen_fits_and_follows_the_order() {
        let base = Base::open("tests/data/tiny", Verify::Full).unwrap();
        let chosen = |bytes: usize| Budget::choose(&base, bytes, 1).unwrap();
        let plenty = chosen(100_000);
        assert_eq!((plenty.what.as_str(), plenty.dtype), ("LoRA of rank 4 at every point", Dtype::Int8));
        // A byte less than what was chosen takes the same at int4, then the next choices.
        let mut taken = vec![plenty];
        while let Ok(next) = Budget::choose(&base, taken.last().unwrap().bytes - 1, 1) {
            taken.push(next);
        }
        assert_eq!((taken[1].what.as_str(), taken[1].dtype), ("LoRA of rank 4 at every point", Dtype::Int4));
        let last = taken.last().unwrap();
        assert_eq!((last.what.as_str(), last.dtype), ("LoRA of rank 1 at head", Dtype::Int4));
        for budget in &taken {
            assert_eq!(budget.adapter.record_bytes(budget.dtype).unwrap(), budget.bytes);
        }
        let refused = Budget::choose(&base, last.bytes - 1, 1).unwrap_err();
        assert!(matches!(refused, AdapterError::Budget { smallest, .. } if smallest == last.bytes), "{refused}");
    }
}
