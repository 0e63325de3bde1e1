use crate::weight::WeightView;

/// The most bindings that a kernel may have.
pub const MAX_BINDINGS: usize = 12;

/// One operand of a running kernel.
#[derive(Default)]
pub enum Arg<'a, T> {
    /// Absent, or already taken.
    #[default]
    Absent,
    /// Floats to read.
    In(&'a [T]),
    /// Floats to write.
    Out(&'a mut [T]),
    /// Integers to read.
    Ints(&'a [i32]),
    /// A frozen weight.
    Weight(WeightView<'a>),
}

/// The operands of a running kernel, by binding number.
///
/// Kinds, sizes and aliasing were checked by [`Program::validate`](crate::program::Program::validate): a body that
/// asks for another kind than its binding declares has a bug, and panics.
pub struct Args<'a, T>([Arg<'a, T>; MAX_BINDINGS]);

impl<'a, T> Args<'a, T> {
    /// Operands from the first binding on; missing ones are absent.
    pub fn new(args: impl IntoIterator<Item = Arg<'a, T>>) -> Self {
        let mut all: [Arg<'a, T>; MAX_BINDINGS] = Default::default();
        for (slot, arg) in all.iter_mut().zip(args) {
            *slot = arg;
        }
        Args(all)
    }

    /// The floats of a read binding.
    pub fn input(&self, binding: usize) -> &'a [T] {
        self.optional_input(binding).unwrap_or_else(|| panic!("binding {binding} is no input"))
    }

    /// The floats of an optional read binding.
    pub fn optional_input(&self, binding: usize) -> Option<&'a [T]> {
        match self.0[binding] {
            Arg::In(x) => Some(x),
            _ => None,
        }
    }

    /// Takes the floats of a written binding.
    pub fn output(&mut self, binding: usize) -> &'a mut [T] {
        self.optional_output(binding).unwrap_or_else(|| panic!("binding {binding} is no output, or taken"))
    }

    /// Takes the floats of an optional written binding.
    pub fn optional_output(&mut self, binding: usize) -> Option<&'a mut [T]> {
        match std::mem::take(&mut self.0[binding]) {
            Arg::Out(y) => Some(y),
            other => {
                self.0[binding] = other;
                None
            }
        }
    }

    /// The integers of a binding.
    pub fn ints(&self, binding: usize) -> &'a [i32] {
        match self.0[binding] {
            Arg::Ints(x) => x,
            _ => panic!("binding {binding} holds no integers"),
        }
    }

    /// The weight of a binding.
    pub fn weight(&self, binding: usize) -> WeightView<'a> {
        match self.0[binding] {
            Arg::Weight(w) => w,
            _ => panic!("binding {binding} is no weight"),
        }
    }
}
