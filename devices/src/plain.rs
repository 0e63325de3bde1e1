//! The reference backend: plain bodies, in f32 or f64. Slow and simple; every other backend is tested against it.

use std::ops::Range;
use std::sync::Arc;

use crate::backend::{Backend, DeviceError, DeviceInfo, DeviceKind, Executable};
use crate::kernels::{Access, Arg, Args, Element, KernelError, MAX_BINDINGS, Real};
use crate::program::{Call, Operand, Program, Region, Segment, Slot};

/// A number type that plain bodies can be run in.
pub trait PlainReal: Real {
    /// Runs the plain body of the call's kernel.
    fn run(call: &Call, args: &mut Args<'_, Self>);
}

impl PlainReal for f32 {
    fn run(call: &Call, args: &mut Args<'_, f32>) {
        call.kernel.plain_f32(&call.params, args);
    }
}

impl PlainReal for f64 {
    fn run(call: &Call, args: &mut Args<'_, f64>) {
        call.kernel.plain_f64(&call.params, args);
    }
}

/// The regions of a program in host memory.
#[derive(Clone, Debug)]
pub struct Memory<T> {
    floats: [Vec<T>; Region::ALL.len()],
    ints: Vec<i32>,
}

impl<T: Real> Memory<T> {
    /// Zeroed regions of a program, `Consts` filled.
    pub fn new(program: &Program) -> Self {
        let mut floats: [Vec<T>; Region::ALL.len()] = Default::default();
        for region in Region::ALL {
            if region != Region::Ints {
                floats[region.index()] = vec![T::default(); program.region_len(region)];
            }
        }
        floats[Region::Consts.index()] = program.consts.iter().map(|&x| T::of(f64::from(x))).collect();
        Memory { floats, ints: vec![0; program.region_len(Region::Ints)] }
    }

    /// All floats of a region.
    pub fn floats(&self, region: Region) -> &[T] {
        &self.floats[region.index()]
    }

    /// All floats of a region, to write.
    pub fn floats_mut(&mut self, region: Region) -> &mut [T] {
        &mut self.floats[region.index()]
    }

    /// All integers, to write.
    pub fn ints_mut(&mut self) -> &mut [i32] {
        &mut self.ints
    }

    /// Borrows the operands of a call that [`Program::validate`] accepted, and hands them to `body`.
    pub fn with_args<R>(&mut self, program: &Program, call: &Call, body: impl FnOnce(&mut Args<'_, T>) -> R) -> R {
        let bindings = call.kernel.bindings();
        let mut args: [Arg<'_, T>; MAX_BINDINGS] = Default::default();
        // Each region is cut at the written slots; what is only read is then borrowed from the pieces between them.
        let mut rest = self.floats.each_mut().map(|region| Pieces::new(region));
        for (i, (binding, operand)) in bindings.iter().zip(&call.operands).enumerate() {
            if let (Operand::Slot(slot), Element::Float) = (operand, binding.element)
                && binding.access != Access::Read
            {
                args[i] = Arg::Out(rest[slot.region.index()].take(range(slot)));
            }
        }
        let rest = rest.map(Pieces::freeze);
        for (i, (binding, operand)) in bindings.iter().zip(&call.operands).enumerate() {
            match operand {
                Operand::Absent => {}
                Operand::Weight(w) => args[i] = Arg::Weight(program.weights[*w].view()),
                Operand::Slot(slot) if binding.element == Element::Int => args[i] = Arg::Ints(&self.ints[range(slot)]),
                Operand::Slot(slot) if binding.access == Access::Read => {
                    args[i] = Arg::In(rest[slot.region.index()].get(range(slot)));
                }
                Operand::Slot(_) => {}
            }
        }
        body(&mut Args::new(args))
    }
}

fn range(slot: &Slot) -> Range<usize> {
    slot.offset..slot.offset + slot.len
}

/// A region of which some ranges were lent out for writing. Kept on the stack: a step allocates nothing.
struct Pieces<'a, T> {
    pieces: [(usize, &'a mut [T]); MAX_BINDINGS + 1],
    count: usize,
}

impl<'a, T> Pieces<'a, T> {
    fn new(region: &'a mut [T]) -> Self {
        let mut pieces: [(usize, &'a mut [T]); MAX_BINDINGS + 1] = std::array::from_fn(|_| (0, Default::default()));
        pieces[0] = (0, region);
        Pieces { pieces, count: 1 }
    }

    /// Lends `range`, which must not have been lent.
    fn take(&mut self, range: Range<usize>) -> &'a mut [T] {
        let pieces = &mut self.pieces[..self.count];
        let (start, piece) = pieces
            .iter_mut()
            .find(|(start, piece)| *start <= range.start && range.end <= *start + piece.len())
            .expect("validated: written slots lie inside their region and do not overlap");
        let (before, taken) = std::mem::take(piece).split_at_mut(range.start - *start);
        let (taken, after) = taken.split_at_mut(range.len());
        *piece = before;
        self.pieces[self.count] = (range.end, after);
        self.count += 1;
        taken
    }

    fn freeze(self) -> Frozen<'a, T> {
        Frozen { pieces: self.pieces.map(|(start, piece)| (start, &*piece)), count: self.count }
    }
}

struct Frozen<'a, T> {
    pieces: [(usize, &'a [T]); MAX_BINDINGS + 1],
    count: usize,
}

impl<'a, T> Frozen<'a, T> {
    fn get(&self, range: Range<usize>) -> &'a [T] {
        if range.is_empty() {
            return &[];
        }
        self.pieces[..self.count]
            .iter()
            .find(|(start, piece)| *start <= range.start && range.end <= *start + piece.len())
            .map(|(start, piece)| &piece[range.start - start..range.end - start])
            .expect("validated: read slots lie inside their region and overlap nothing written")
    }
}

/// A program with its memory, run by plain bodies.
#[derive(Clone, Debug)]
pub struct PlainExecutable<T> {
    program: Arc<Program>,
    /// The regions.
    pub memory: Memory<T>,
}

impl<T: PlainReal> PlainExecutable<T> {
    /// Validates `program` and allocates its regions.
    ///
    /// # Errors
    /// When the program breaks a kernel's contract.
    pub fn new(program: Arc<Program>) -> Result<Self, KernelError> {
        program.validate()?;
        let memory = Memory::new(&program);
        Ok(PlainExecutable { program, memory })
    }

    /// Runs segments in the order given.
    pub fn run(&mut self, segments: &[Segment]) {
        for &segment in segments {
            for call in self.program.calls(segment) {
                self.memory.with_args(&self.program, call, |args| T::run(call, args));
            }
        }
    }
}

/// The reference backend as a [`Backend`]: every body plain, on one thread.
pub struct Plain {
    info: DeviceInfo,
}

impl Default for Plain {
    fn default() -> Self {
        let (name, profile) = ("CPU (plain bodies)".to_owned(), "plain");
        let (driver, uuid, limits) = (String::new(), String::new(), Vec::new());
        Plain { info: DeviceInfo { kind: DeviceKind::Cpu, name, driver, profile, uuid, limits } }
    }
}

impl Backend for Plain {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn compile(&self, program: Arc<Program>) -> Result<Box<dyn Executable>, DeviceError> {
        Ok(Box::new(PlainExecutable::<f32>::new(program)?))
    }
}

impl Executable for PlainExecutable<f32> {
    fn write(&mut self, region: Region, offset: usize, values: &[f32]) -> Result<(), DeviceError> {
        self.memory.floats_mut(region)[offset..][..values.len()].copy_from_slice(values);
        Ok(())
    }

    fn write_ints(&mut self, offset: usize, values: &[i32]) -> Result<(), DeviceError> {
        self.memory.ints_mut()[offset..][..values.len()].copy_from_slice(values);
        Ok(())
    }

    fn read(&mut self, region: Region, offset: usize, values: &mut [f32]) -> Result<(), DeviceError> {
        values.copy_from_slice(&self.memory.floats(region)[offset..][..values.len()]);
        Ok(())
    }

    fn run(&mut self, segments: &[Segment]) -> Result<(), DeviceError> {
        PlainExecutable::run(self, segments);
        Ok(())
    }
}
