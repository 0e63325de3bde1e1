use std::path::PathBuf;

use inlay_runtime::{AdapterOptions, HostTensor};

use crate::Result;

/// A task with people in it.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// Name, as in `--cases`.
    pub name: &'static str,
    /// What it is, in a few words.
    pub title: &'static str,
    /// Who is personalized, on what, and what is tested: a paragraph.
    pub about: &'static str,
    /// Classes of the labels.
    pub classes: u16,
    /// Optimizer steps.
    pub steps: u64,
    /// Samples a step.
    pub batch_size: usize,
    /// Seeds a person: 1, 2, ...
    pub seeds: u64,
    /// So many people choose the learning rates, the first of each fold in turn.
    pub rehearsing: usize,
    /// Whether a head has to learn the last class when it knows the others: a calibration has few samples of each.
    pub enrols: bool,
    /// What is compared.
    pub families: &'static [Family],
    /// The models, and the people whom each of them never saw.
    pub folds: fn() -> Result<Vec<Fold>>,
}

/// Adapters of one kind at one place, in several sizes.
#[derive(Clone, Copy, Debug)]
pub struct Family {
    /// The kinds, joined by `+` as in `--kind`.
    pub kind: &'static str,
    /// The ranks, widths or lengths; 0 for a kind that has none.
    pub sizes: &'static [u16],
    /// Where it sits, in words.
    pub place: &'static str,
    /// Globs of the targets, separated by commas; empty for the kind's own choice.
    pub targets: &'static str,
    /// Further arguments of `converter export`; `{size}` stands for the size.
    pub export: &'static [&'static str],
}

/// A model, and the people whom it never saw.
#[derive(Clone, Debug)]
pub struct Fold {
    /// The float model.
    pub model: PathBuf,
    /// The people.
    pub people: Vec<Person>,
}

/// Samples, by the names of a model's inputs, and `labels`.
pub type Samples = Vec<(String, HostTensor)>;

/// Someone's samples.
#[derive(Clone, Debug)]
pub struct Person {
    /// What the adapter is trained on.
    pub calibration: Samples,
    /// A part of the calibration, to train on while the learning rate is chosen...
    pub rehearsal: Samples,
    /// ...and the rest of it, by which it is chosen.
    pub held_back: Samples,
    /// What the adapter is tested on.
    pub test: Samples,
    /// What everybody does, which the adapter should not have forgotten.
    pub standard: Option<Samples>,
}

impl Family {
    /// An adapter of this family.
    pub fn options(&self, size: u16, classes: u16, seed: u64) -> AdapterOptions {
        let part = |kind: &str| match kind {
            "head" => AdapterOptions::head(None, classes),
            _ if self.targets.is_empty() => AdapterOptions::kind(kind, self.size_of(kind, size)),
            _ => AdapterOptions::kind(kind, self.size_of(kind, size)).targets(self.targets.split(',')),
        };
        let parts = self.kind.split('+').map(part);
        parts.reduce(AdapterOptions::and).expect("a string splits into at least one part").seed(seed)
    }

    /// Whether it has a head, which starts from the means of the classes.
    pub fn has_head(&self) -> bool {
        self.kind.split('+').any(|kind| kind == "head")
    }

    /// The arguments of `converter export` for this size.
    pub fn export_args(&self, size: u16) -> Vec<String> {
        self.export.iter().map(|arg| arg.replace("{size}", &size.to_string())).collect()
    }

    /// The size by which the learning rate of all is chosen.
    pub fn middle(&self) -> u16 {
        self.sizes[self.sizes.len() / 2]
    }

    fn size_of(&self, kind: &str, size: u16) -> u16 {
        let sized = inlay_runtime::adapters::find(kind).is_some_and(|kind| kind.size().is_some());
        if sized { size } else { 0 }
    }
}

/// The samples of `all` at `rows`.
pub fn select(all: &Samples, rows: &[usize]) -> Samples {
    all.iter().map(|(name, array)| (name.clone(), rows_of(array, rows))).collect()
}

fn rows_of(array: &HostTensor, rows: &[usize]) -> HostTensor {
    let shape: Vec<usize> = std::iter::once(rows.len()).chain(array.shape().iter().skip(1).copied()).collect();
    let width: usize = shape.iter().skip(1).product();
    fn pick<T: Copy>(values: &[T], rows: &[usize], width: usize) -> Vec<T> {
        rows.iter().flat_map(|row| values[row * width..(row + 1) * width].iter().copied()).collect()
    }
    let picked = match (array.floats(), array.ints()) {
        (Some(floats), _) => HostTensor::new(shape, pick(floats, rows, width)),
        (_, Some(ints)) => HostTensor::new(shape, pick(&ints, rows, width)),
        _ => None,
    };
    picked.expect("rows of an array of numbers")
}
