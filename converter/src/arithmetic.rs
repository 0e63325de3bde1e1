//! How much each adapter kind trains, and how much the base has at the same points.

use inlay_runtime::adapters::{self, AdapterKind, Dense, KINDS, Lora};
use inlay_runtime::{Adapter, AdapterOptions, Base};
use serde::Serialize;

use crate::html;
use crate::report::{PointReport, bytes};

/// The ranks that are shown.
const RANKS: [usize; 4] = [1, 4, 8, 16];
/// The rank of LoRA-XS that is shown.
const CORE_RANK: usize = 16;

/// One kind, at one rank, wherever it sits by default.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Trained {
    /// The kind.
    pub kind: &'static str,
    /// Its rank, or what it has in its place; 0 for kinds that have none.
    pub rank: usize,
    /// Numbers that it trains.
    pub parameters: usize,
    /// Numbers that the weights have at the points where it sits; 0 for kinds that sit elsewhere.
    pub weights: usize,
    /// What the export has to be asked for first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub needs: Option<&'static str>,
    /// Bytes of the values in a record at int8, without scales and names.
    pub int8_bytes: usize,
}

impl Trained {
    /// Part of the weights' numbers that need not be trained (percent).
    pub fn fewer_percent(&self) -> f64 {
        100.0 * (1.0 - self.parameters as f64 / self.weights.max(1) as f64)
    }

    fn size(&self) -> String {
        match adapters::find(self.kind).and_then(|kind| kind.size()).map(|size| size.name) {
            Some("rank") => format!("r = {}", self.rank),
            Some(size) => format!("{} {size}", self.rank),
            None => String::new(),
        }
    }
}

/// Every kind at all of its places in an exported base.
pub fn trained_on(base: &Base, points: &[PointReport]) -> Vec<Trained> {
    let mut all = trained(points);
    for kind in KINDS.iter().copied().filter(|kind| kind.id() != Lora.id() && kind.id() != Dense.id()) {
        let rank = kind.default_size(base);
        let Ok(adapter) = Adapter::new(base, &AdapterOptions::kind(kind.name(), rank)) else { continue };
        let parameters = adapter.parameter_count();
        let weights = all.iter().find(|trained| trained.kind == kind.name()).map_or(0, |trained| trained.weights);
        all.retain(|trained| trained.kind != kind.name());
        let rank = usize::from(rank);
        all.push(Trained { kind: kind.name(), rank, parameters, weights, needs: None, int8_bytes: parameters });
    }
    all
}

/// The kinds whose size follows from the points.
pub fn trained(points: &[PointReport]) -> Vec<Trained> {
    let of = |kind, rank, each: &dyn Fn(&PointReport) -> Option<usize>| {
        let weighted = points.iter().filter(|point| point.op != "embedding");
        let counts = weighted.filter_map(|point| Some((each(point)?, weights(point))));
        let (parameters, weights) = counts.fold((0usize, 0usize), |(p, w), (parameters, weights)| {
            (p.saturating_add(parameters), w.saturating_add(weights))
        });
        Trained { kind, rank, parameters, weights, needs: None, int8_bytes: parameters }
    };
    let mut all = Vec::new();
    for rank in RANKS {
        let parameters = |point: &PointReport| (fan_in(point) + point.d_out).saturating_mul(rank);
        all.push(of("lora", rank, &|point| point.offers("lora").then(|| parameters(point))));
    }
    all.push(Trained { needs: Some("--basis 16"), ..of("lora-xs", CORE_RANK, &core) });
    all.push(of("dense", 0, &|point| Some(weights(point))));
    all.retain(|trained| trained.weights > 0);
    all
}

/// What the kinds that no file prepares for cost at a point, in f16.
pub(crate) fn also(point: &PointReport) -> String {
    let cost = |n: usize| bytes(n.saturating_mul(2) as u64);
    let dense = (point.op != "embedding").then(|| format!("dense {}", cost(weights(point))));
    let core = core(point).map(|n| format!("lora-xs {} at rank {CORE_RANK}", cost(n)));
    dense.into_iter().chain(core).collect::<Vec<_>>().join(", ")
}

/// The table for a terminal.
pub fn table(all: &[Trained]) -> String {
    let line = |t: &Trained| {
        let size = t.size();
        let of = match t.weights {
            0 => String::new(),
            weights => format!(" of {} ({:.1} % fewer)", millions(weights), t.fewer_percent()),
        };
        let needs = t.needs.map(|needs| format!("; export with {needs}")).unwrap_or_default();
        let (parameters, bytes) = (thousands(t.parameters), bytes(t.int8_bytes as u64));
        format!("{:10} {size:9} trains {parameters}{of}, {bytes} at int8{needs}\n", t.kind)
    };
    all.iter().map(line).collect()
}

/// The table for a page.
pub(crate) fn section(all: &[Trained]) -> String {
    let row = |t: &Trained| {
        let (of, fewer) = match t.weights {
            0 => Default::default(),
            n => (millions(n), format!("{:.1} %", t.fewer_percent())),
        };
        let [f16, int8] = [2, 1].map(|each| bytes((t.parameters * each) as u64));
        html::row(&[t.kind.to_owned(), t.size(), thousands(t.parameters), of, fewer, f16, int8])
    };
    let head = ["kind", "size", "numbers trained", "of", "fewer", "f16", "int8"];
    html::table("What each kind trains", &head, all.iter().map(row))
}

/// Numbers of a core at a linear, which has at most the smaller side of its weight.
fn core(point: &PointReport) -> Option<usize> {
    let is_linear = point.kernel.is_empty() && point.op != "embedding";
    is_linear.then(|| CORE_RANK.min(point.d_in).min(point.d_out).pow(2))
}

fn fan_in(point: &PointReport) -> usize {
    point.d_in.saturating_mul(point.kernel.iter().product())
}

fn weights(point: &PointReport) -> usize {
    fan_in(point).saturating_mul(point.d_out)
}

/// `65,536`.
fn thousands(n: usize) -> String {
    let digits = n.to_string();
    let groups: Vec<&str> =
        digits.as_bytes().rchunks(3).rev().map(|group| std::str::from_utf8(group).expect("digits are ASCII")).collect();
    groups.join(",")
}

/// `16.8 M`.
fn millions(n: usize) -> String {
    if n < 1_000_000 { thousands(n) } else { format!("{:.1} M", n as f64 / 1e6) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::KindReport;

    fn point(d_in: usize, d_out: usize, kernel: &[usize]) -> PointReport {
        PointReport {
            path: "p".into(),
            path_source: "the test",
            op: if kernel.is_empty() { "linear" } else { "conv" }.into(),
            d_in,
            d_out,
            kernel: kernel.to_vec(),
            bytes_per_rank_f32: 0,
            bytes_per_rank_f16: 0,
            kinds: vec![KindReport { kind: "lora".into(), parameters: 0, parameters_per_size: 1, size: Some("rank") }],
        }
    }

    #[test]
    fn a_large_linear_at_rank_8() {
        let text = table(&trained(&[point(4096, 4096, &[])]));
        assert!(text.contains("lora       r = 8     trains 65,536 of 16.8 M (99.6 % fewer)"), "{text}");
        assert!(text.contains("lora-xs    r = 16    trains 256 of 16.8 M"), "{text}");
        assert!(text.contains("at int8; export with --basis 16\n"), "{text}");
        assert!(text.contains("dense                trains 16,777,216 of 16.8 M (0.0 % fewer)"), "{text}");
    }

    #[test]
    fn what_no_file_prepares_for_is_counted_at_each_point() {
        assert_eq!(also(&point(64, 8, &[])), "dense 1.0 KB, lora-xs 128 B at rank 16");
        assert_eq!(also(&point(6, 16, &[3])), "dense 576 B");
    }

    #[test]
    fn convolutions_count_their_kernels_and_have_no_cores() {
        let all = trained(&[point(6, 16, &[3, 3])]);
        let of =
            |kind: &str, rank| all.iter().find(|t| t.kind == kind && t.rank == rank).map(|t| (t.parameters, t.weights));
        assert_eq!(of("lora", 4), Some((4 * (54 + 16), 54 * 16)));
        assert_eq!(of("lora-xs", 16), None);
        assert!(trained(&[]).is_empty());
        assert_eq!(
            (thousands(7), thousands(1000), thousands(1_234_567)),
            ("7".into(), "1,000".into(), "1,234,567".into())
        );
    }
}
