//! Target patterns: which insertion points an adapter takes.

use globset::{Glob, GlobMatcher};

/// Globs over module paths, such as `encoder.layer.*.attention.self.{query,value}`. `*` also matches dots.
#[derive(Clone, Debug)]
pub struct Targets(Vec<Target>);

#[derive(Clone, Debug)]
struct Target {
    pattern: String,
    matcher: GlobMatcher,
}

/// Why patterns select nothing.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TargetError {
    /// A pattern is no glob.
    #[error("target pattern \"{pattern}\" is not a glob")]
    Pattern {
        /// The pattern.
        pattern: String,
        /// What is wrong with it.
        #[source]
        source: globset::Error,
    },
    /// A pattern matches no path.
    #[error("target pattern \"{pattern}\" matches no point; the points are: {points}")]
    NoMatch {
        /// The pattern.
        pattern: String,
        /// Paths that there are, the first few of many.
        points: String,
    },
}

impl Targets {
    /// Patterns that a path may match one of.
    ///
    /// # Errors
    /// [`TargetError::Pattern`] when one is no glob, or empty.
    pub fn new<P: AsRef<str>>(patterns: impl IntoIterator<Item = P>) -> Result<Self, TargetError> {
        let target = |pattern: P| {
            let pattern = pattern.as_ref().trim().to_owned();
            match Glob::new(&pattern) {
                Ok(glob) => Ok(Target { matcher: glob.compile_matcher(), pattern }),
                Err(source) => Err(TargetError::Pattern { pattern, source }),
            }
        };
        Ok(Targets(patterns.into_iter().map(target).collect::<Result<_, _>>()?))
    }

    /// Patterns from one comma-separated list.
    ///
    /// # Errors
    /// [`TargetError::Pattern`] when one is no glob.
    pub fn parse(list: &str) -> Result<Self, TargetError> {
        Self::new(Self::split(list))
    }

    /// The patterns of a comma-separated list. Commas inside braces belong to a pattern.
    pub fn split(list: &str) -> impl Iterator<Item = &str> {
        let mut depth = 0;
        list.split(move |c| {
            depth += i32::from(c == '{') - i32::from(c == '}');
            c == ',' && depth == 0
        })
    }

    /// Whether one of the patterns matches `path`.
    pub fn matches(&self, path: &str) -> bool {
        self.0.iter().any(|target| target.matcher.is_match(path))
    }

    /// The indices of the `paths` that match, in their order.
    ///
    /// # Errors
    /// [`TargetError::NoMatch`] when a pattern matches none of them.
    pub fn select<'a>(&self, paths: impl Iterator<Item = &'a str> + Clone) -> Result<Vec<usize>, TargetError> {
        for target in &self.0 {
            if !paths.clone().any(|path| target.matcher.is_match(path)) {
                return Err(TargetError::NoMatch { pattern: target.pattern.clone(), points: listed(paths) });
            }
        }
        Ok(paths.enumerate().filter(|(_, path)| self.matches(path)).map(|(i, _)| i).collect())
    }
}

fn listed<'a>(paths: impl Iterator<Item = &'a str>) -> String {
    const SHOWN: usize = 12;
    let paths: Vec<&str> = paths.collect();
    let mut list = paths[..paths.len().min(SHOWN)].join(", ");
    match paths.len() {
        0 => list.push_str("(none)"),
        n if n > SHOWN => list.push_str(&format!(", and {} more (see `converter inspect`)", n - SHOWN)),
        _ => {}
    }
    list
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATHS: [&str; 4] = ["layer.0.query", "layer.0.value", "layer.1.query", "head"];

    fn select(list: &str) -> Result<Vec<usize>, TargetError> {
        Targets::parse(list)?.select(PATHS.iter().copied())
    }

    #[test]
    fn globs_select_in_the_order_of_paths() {
        assert_eq!(select("head,layer.0.*").unwrap(), [0, 1, 3]);
        assert_eq!(select("*.query").unwrap(), [0, 2]);
        assert_eq!(select("layer.*.{query,value}, head").unwrap(), [0, 1, 2, 3]);
        assert_eq!(select("layer.[1-9].query").unwrap(), [2]);
    }

    #[test]
    fn what_matches_nothing_is_an_error_that_lists_the_points() {
        let error = select("head,querry").unwrap_err();
        assert_eq!(
            error.to_string(),
            "target pattern \"querry\" matches no point; the points are: layer.0.query, layer.0.value, layer.1.query, head"
        );
        assert!(matches!(select(""), Err(TargetError::NoMatch { .. })));
        assert!(matches!(select("head,"), Err(TargetError::NoMatch { .. })));
        assert!(matches!(select("a[b"), Err(TargetError::Pattern { .. })));
        let many: Vec<String> = (0..20).map(|i| format!("layer.{i}")).collect();
        let error = Targets::parse("x").unwrap().select(many.iter().map(String::as_str)).unwrap_err();
        assert!(error.to_string().ends_with("and 8 more (see `converter inspect`)"), "{error}");
    }
}
