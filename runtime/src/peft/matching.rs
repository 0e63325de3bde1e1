//! PEFT's module paths against the paths of a base's insertion points.

use std::collections::BTreeSet;
use std::fmt;

use super::PeftError;

/// How PEFT's module paths become paths of insertion points.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Prefix {
    /// They are the same.
    None,
    /// The base's paths have one more prefix: point = `<prefix>.<module>`.
    Added(String),
    /// PEFT's paths have one more prefix: module = `<prefix>.<point>`.
    Removed(String),
}

impl Prefix {
    /// The path of the insertion point that `module` means, or `None` if it lacks the prefix to remove.
    pub fn point_of(&self, module: &str) -> Option<String> {
        match self {
            Prefix::None => Some(module.to_owned()),
            Prefix::Added(prefix) => Some(format!("{prefix}.{module}")),
            Prefix::Removed(prefix) => module.strip_prefix(prefix)?.strip_prefix('.').map(str::to_owned),
        }
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Prefix::None => f.write_str("the adapter's module paths are the base's"),
            Prefix::Added(prefix) => write!(f, "the base's paths are the adapter's with \"{prefix}.\" before them"),
            Prefix::Removed(prefix) => write!(f, "the base's paths are the adapter's without \"{prefix}.\""),
        }
    }
}

/// The one prefix under which every module is a point.
///
/// # Errors
/// [`PeftError::NoMatch`] when there is none, [`PeftError::Ambiguous`] when there are several, unless the paths are the same.
pub(super) fn common_prefix(modules: &[&str], points: &[&str]) -> Result<Prefix, PeftError> {
    let known: BTreeSet<&str> = points.iter().copied().collect();
    let fits = |prefix: &Prefix| {
        modules.iter().all(|module| prefix.point_of(module).is_some_and(|path| known.contains(path.as_str())))
    };
    if fits(&Prefix::None) {
        return Ok(Prefix::None);
    }
    let first = modules.first().copied().unwrap_or_default();
    let added = points
        .iter()
        .filter_map(|point| point.strip_suffix(first)?.strip_suffix('.'))
        .map(|prefix| Prefix::Added(prefix.into()));
    let removed = first.match_indices('.').map(|(at, _)| Prefix::Removed(first[..at].into()));
    let mut fitting = added.chain(removed).filter(fits);
    match (fitting.next(), fitting.next()) {
        (Some(prefix), None) => Ok(prefix),
        (Some(first), Some(second)) => Err(PeftError::Ambiguous { first, second }),
        (None, _) => Err(PeftError::NoMatch {
            modules: modules.iter().filter(|module| !known.contains(*module)).map(|m| (*m).to_owned()).collect(),
            points: points.iter().filter(|point| !modules.contains(point)).map(|p| (*p).to_owned()).collect(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POINTS: [&str; 4] =
        ["encoder.layer.0.query", "encoder.layer.0.value", "encoder.layer.1.query", "encoder.layer.1.value"];

    #[test]
    fn one_common_prefix_or_none() {
        let matched = |modules: &[&str]| common_prefix(modules, &POINTS).unwrap();
        assert_eq!(matched(&POINTS), Prefix::None);
        assert_eq!(matched(&["encoder.layer.1.value"]), Prefix::None);
        let bert = ["bert.encoder.layer.0.query", "bert.encoder.layer.1.value"];
        assert_eq!(matched(&bert), Prefix::Removed("bert".into()));
        assert_eq!(matched(&["a.b.encoder.layer.0.query"]), Prefix::Removed("a.b".into()));
        assert_eq!(matched(&["layer.0.query", "layer.1.query"]), Prefix::Added("encoder".into()));
        assert_eq!(matched(&["1.query"]), Prefix::Added("encoder.layer".into()));
    }

    #[test]
    fn both_sides_of_a_mismatch_are_listed() {
        let modules = ["encoder.layer.0.query", "encoder.layer.0.key"];
        match common_prefix(&modules, &POINTS).unwrap_err() {
            PeftError::NoMatch { modules, points } => {
                assert_eq!(modules, ["encoder.layer.0.key"]);
                assert_eq!(points, POINTS[1..]);
            }
            other => panic!("{other}"),
        }
        // Parts of names are no prefixes, and one prefix must serve all.
        for modules in
            [&["yer.0.query"][..], &["xencoder.layer.0.query"], &["layer.0.query", "bert.encoder.layer.0.value"]]
        {
            let refused = common_prefix(modules, &POINTS).unwrap_err();
            assert!(matches!(refused, PeftError::NoMatch { .. }), "{refused}");
            assert!(refused.to_string().contains(modules[0]), "{refused}");
        }
    }

    #[test]
    fn two_possible_prefixes_are_refused() {
        let refused = common_prefix(&["query"], &POINTS).unwrap_err();
        assert!(matches!(refused, PeftError::Ambiguous { .. }), "{refused}");
    }
}
