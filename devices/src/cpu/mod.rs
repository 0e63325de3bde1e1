//! The CPU backend.
//!
//! `BODIES` lists the kernels that have a fast body here; the others run the plain one. Work is cut into tasks by the
//! shapes of a call alone and every sum has a fixed order, so that the number of threads changes no bit of a result.

mod attention;
mod depthwise;
mod elementwise;
mod gemm;
mod halves;
mod int4;
mod linear;
mod math;
mod matmul;
mod moves;
mod nest;
mod pool;
mod rows;
mod simd;
mod sync;
mod uint8;

use std::fmt;
use std::sync::Arc;

use crate::backend::{Backend, DeviceError, DeviceInfo, DeviceKind, Executable};
use crate::kernels::Args;
use crate::plain::Memory;
use crate::program::{Call, Program, Region, Segment};
use pool::Pool;
use simd::Isa;

/// Elements of a task of an elementwise kernel.
const CHUNK: usize = 16 * 1024;

/// What bodies compute with.
pub struct Context {
    pool: Pool,
    isa: Isa,
}

/// A fast body: parameters and operands as in the kernel's contract.
pub type Body = fn(&Context, &[u32], &mut Args<'_, f32>);

/// The kernels that have a fast body, by name.
static BODIES: &[(&str, Body)] = &[
    ("linear", linear::linear),
    ("matmul", matmul::matmul),
    ("attention", attention::attention),
    ("attention_grad", attention::attention_grad),
    ("softmax", rows::softmax),
    ("softmax_grad", rows::softmax_grad),
    ("layer_norm", rows::layer_norm),
    ("layer_norm_grad", rows::layer_norm_grad),
    ("unary", elementwise::unary),
    ("binary", elementwise::binary),
    ("select", elementwise::select),
    ("reduce", moves::reduce),
    ("copy", moves::copy),
    ("gather_rows", moves::gather_rows),
    ("depthwise", depthwise::depthwise),
    ("depthwise_grad", depthwise::depthwise_grad),
    ("im2col", moves::im2col),
    ("col2im", moves::col2im),
    ("pool", moves::pool),
    ("pool_grad", moves::pool_grad),
    ("resample", moves::resample),
    ("grad_norm", elementwise::grad_norm),
    ("adamw", elementwise::adamw),
];

/// Runs programs on the CPU.
pub struct CpuBackend {
    context: Arc<Context>,
    info: DeviceInfo,
}

impl CpuBackend {
    /// A backend that computes on `threads` threads, the calling one included; 1 (or 0) starts none. The threads end
    /// with the backend and its executables.
    ///
    /// # Errors
    /// When the system starts no more threads.
    pub fn new(threads: usize) -> Result<Self, DeviceError> {
        let isa = Isa::available().pop().expect("the portable set is always there");
        Self::with_isa(threads, isa)
    }

    /// `isa` is one of [`Isa::available`].
    fn with_isa(threads: usize, isa: Isa) -> Result<Self, DeviceError> {
        let threads = threads.max(1);
        let pool = Pool::new(threads).map_err(|source| DeviceError::Threads { threads, source: Box::new(source) })?;
        let info = DeviceInfo {
            kind: DeviceKind::Cpu,
            name: format!("CPU ({})", isa.name()),
            driver: String::new(),
            profile: "cpu",
            uuid: String::new(),
            limits: vec![("threads", threads.to_string()), ("instructions", isa.name().into())],
        };
        Ok(CpuBackend { context: Arc::new(Context { pool, isa }), info })
    }

    /// Number of threads that compute.
    pub fn threads(&self) -> usize {
        self.context.pool.threads()
    }
}

impl fmt::Debug for CpuBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} with {} threads", self.info.name, self.threads())
    }
}

impl Backend for CpuBackend {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn compile(&self, program: Arc<Program>) -> Result<Box<dyn Executable>, DeviceError> {
        program.validate()?;
        let needed = Region::ALL.iter().fold(0usize, |sum, region| sum.saturating_add(program.region_len(*region)));
        let needed = needed.saturating_mul(size_of::<f32>());
        // Memory that is not there ends the process where it is taken; here it is an error.
        if Vec::<u8>::new().try_reserve_exact(needed).is_err() {
            return Err(DeviceError::Memory { device: self.info.name.clone(), needed });
        }
        let memory = Memory::new(&program);
        let bodies = Segment::ALL.map(|segment| program.calls(segment).iter().map(body_of).collect());
        Ok(Box::new(CpuExecutable { context: Arc::clone(&self.context), program, memory, bodies }))
    }
}

fn body_of(call: &Call) -> Option<Body> {
    BODIES.iter().find(|(name, _)| *name == call.kernel.name()).map(|(_, body)| *body)
}

struct CpuExecutable {
    context: Arc<Context>,
    program: Arc<Program>,
    memory: Memory<f32>,
    /// For each call of each segment its fast body, if there is one.
    bodies: [Vec<Option<Body>>; Segment::ALL.len()],
}

impl Executable for CpuExecutable {
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
        for &segment in segments {
            for (call, body) in self.program.calls(segment).iter().zip(&self.bodies[segment as usize]) {
                self.memory.with_args(&self.program, call, |args| match body {
                    Some(body) => body(&self.context, &call.params, args),
                    None => call.kernel.plain_f32(&call.params, args),
                });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
