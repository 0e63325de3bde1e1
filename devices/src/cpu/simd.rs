//! Vector instructions: which this CPU has, and the few operations that products are written in.

/// An instruction set that bodies are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isa {
    /// What the target always has.
    Portable,
    /// The shape of AVX-512 in arrays, so that its tiles are tested on any CPU.
    #[cfg(test)]
    Wide,
    /// AVX2, FMA and F16C.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// AVX-512 F, VL, BW and DQ.
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

impl Isa {
    /// Every instruction set that this CPU has, the fastest last.
    pub fn available() -> Vec<Isa> {
        #[allow(unused_mut, reason = "other targets have one")]
        let mut available = vec![
            #[cfg(test)]
            Isa::Wide,
            Isa::Portable,
        ];
        #[cfg(target_arch = "x86_64")]
        if std::arch::is_x86_feature_detected!("avx2")
            && std::arch::is_x86_feature_detected!("fma")
            && std::arch::is_x86_feature_detected!("f16c")
        {
            available.push(Isa::Avx2);
            if std::arch::is_x86_feature_detected!("avx512f")
                && std::arch::is_x86_feature_detected!("avx512vl")
                && std::arch::is_x86_feature_detected!("avx512bw")
                && std::arch::is_x86_feature_detected!("avx512dq")
            {
                available.push(Isa::Avx512);
            }
        }
        available
    }

    /// Name for people.
    pub fn name(self) -> &'static str {
        match self {
            #[cfg(test)]
            Isa::Wide => "wide arrays",
            #[cfg(target_arch = "aarch64")]
            Isa::Portable => "NEON",
            #[cfg(not(target_arch = "aarch64"))]
            Isa::Portable => "portable",
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => "AVX2",
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => "AVX-512",
        }
    }

    /// Runs `body` compiled for this instruction set: the compiler vectorizes the loops that it inlines. Closures given
    /// are `#[inline(always)]`, without which they would be compiled for the portable set.
    ///
    /// The set must be one of [`Isa::available`], as all are that a [`CpuBackend`](super::CpuBackend) uses.
    #[inline]
    pub fn run<R>(self, body: impl FnOnce() -> R) -> R {
        match self {
            Isa::Portable => body(),
            #[cfg(test)]
            Isa::Wide => body(),
            // SAFETY: only made by `available`, which found the features on this CPU.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => unsafe { avx2(body) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => unsafe { avx512(body) },
        }
    }
}

/// # Safety
/// The CPU has AVX2, FMA and F16C.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn avx2<R>(body: impl FnOnce() -> R) -> R {
    body()
}

/// # Safety
/// The CPU has the features named.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,avx512f,avx512vl,avx512bw,avx512dq")]
unsafe fn avx512<R>(body: impl FnOnce() -> R) -> R {
    body()
}

/// A vector of floats.
pub trait Vector: Copy {
    /// Floats in a vector.
    const LANES: usize;
    /// Rows of the tile of a product, such that twice as many vectors and three more fit into the registers.
    const ROWS: usize;

    /// All lanes `x`.
    ///
    /// # Safety
    /// The CPU has the instructions of this type.
    unsafe fn splat(x: f32) -> Self;
    /// # Safety
    /// As `splat`; `LANES` floats are readable at `from`.
    unsafe fn load(from: *const f32) -> Self;
    /// `LANES` int8 as floats.
    ///
    /// # Safety
    /// As `splat`; `LANES` bytes are readable at `from`.
    unsafe fn load_i8(from: *const i8) -> Self;
    /// `LANES` little-endian f16 as floats.
    ///
    /// # Safety
    /// As `splat`; `2 LANES` bytes are readable at `from`.
    unsafe fn load_f16(from: *const u8) -> Self;
    /// # Safety
    /// As `splat`; `LANES` floats are writable at `to`.
    unsafe fn store(self, to: *mut f32);
    /// `self + a b`.
    ///
    /// # Safety
    /// As `splat`.
    unsafe fn add_product(self, a: Self, b: Self) -> Self;
}

/// A vector as an array, which the compiler maps to the target's registers, with tiles of `R` rows.
#[cfg(any(test, not(target_arch = "aarch64")))]
#[derive(Clone, Copy)]
pub struct Array<const L: usize, const R: usize>([f32; L]);

#[cfg(any(test, not(target_arch = "aarch64")))]
impl<const L: usize, const R: usize> Vector for Array<L, R> {
    const LANES: usize = L;
    const ROWS: usize = R;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        Array([x; L])
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: readable by contract.
        Array(unsafe { from.cast::<[f32; L]>().read_unaligned() })
    }
    #[inline(always)]
    unsafe fn load_i8(from: *const i8) -> Self {
        // SAFETY: readable by contract.
        Array(unsafe { from.cast::<[i8; L]>().read_unaligned() }.map(f32::from))
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const u8) -> Self {
        // SAFETY: readable by contract.
        Array(unsafe { from.cast::<[u16; L]>().read_unaligned() }.map(float))
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: writable by contract.
        unsafe { to.cast::<[f32; L]>().write_unaligned(self.0) }
    }
    #[inline(always)]
    unsafe fn add_product(self, a: Self, b: Self) -> Self {
        let mut sum = self;
        for i in 0..L {
            sum.0[i] += a.0[i] * b.0[i];
        }
        sum
    }
}

/// The value of a little-endian f16, without branches.
#[inline(always)]
fn float(half: u16) -> f32 {
    let half = u32::from(u16::from_le(half));
    let (sign, rest) = ((half & 0x8000) << 16, half & 0x7fff);
    // With the exponent of an f32 the value is 2^112 too small; an infinity needs all bits of the exponent.
    let value = f32::from_bits(rest << 13) * f32::from_bits((127 + 112) << 23);
    let infinite = if rest >= 0x7c00 { 0x7f80_0000 } else { 0 };
    f32::from_bits(value.to_bits() | infinite | sign)
}

/// Vector of the portable instruction set.
#[cfg(not(target_arch = "aarch64"))]
pub type Portable = Array<4, 4>;

/// See [`Isa::Wide`].
#[cfg(test)]
pub type Wide = Array<16, 12>;

#[cfg(target_arch = "aarch64")]
pub use neon::Neon as Portable;

#[cfg(target_arch = "aarch64")]
mod neon {
    use std::arch::aarch64::*;

    use super::Vector;

    /// NEON, which every aarch64 CPU has.
    #[derive(Clone, Copy)]
    pub struct Neon(float32x4_t);

    impl Vector for Neon {
        const LANES: usize = 4;
        const ROWS: usize = 12;

        #[inline(always)]
        unsafe fn splat(x: f32) -> Self {
            // SAFETY: NEON is part of the target.
            Neon(unsafe { vdupq_n_f32(x) })
        }
        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self {
            // SAFETY: readable by contract.
            Neon(unsafe { vld1q_f32(from) })
        }
        #[inline(always)]
        unsafe fn load_i8(from: *const i8) -> Self {
            // SAFETY: readable by contract; NEON is part of the target.
            unsafe {
                let bytes = vcreate_s8(u64::from(from.cast::<u32>().read_unaligned()));
                Neon(vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(bytes)))))
            }
        }
        #[inline(always)]
        unsafe fn load_f16(from: *const u8) -> Self {
            // SAFETY: readable by contract; NEON is part of the target.
            unsafe { Neon(vld1q_f32(from.cast::<[u16; 4]>().read_unaligned().map(super::float).as_ptr())) }
        }
        #[inline(always)]
        unsafe fn store(self, to: *mut f32) {
            // SAFETY: writable by contract.
            unsafe { vst1q_f32(to, self.0) }
        }
        #[inline(always)]
        unsafe fn add_product(self, a: Self, b: Self) -> Self {
            // SAFETY: NEON is part of the target.
            Neon(unsafe { vfmaq_f32(self.0, a.0, b.0) })
        }
    }
}

#[cfg(target_arch = "x86_64")]
pub use x86::{Avx2, Avx512};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::Vector;

    /// Eight floats.
    #[derive(Clone, Copy)]
    pub struct Avx2(__m256);

    impl Vector for Avx2 {
        const LANES: usize = 8;
        const ROWS: usize = 6;

        #[inline(always)]
        unsafe fn splat(x: f32) -> Self {
            // SAFETY: the CPU has AVX2 by contract.
            Avx2(unsafe { _mm256_set1_ps(x) })
        }
        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self {
            // SAFETY: readable by contract.
            Avx2(unsafe { _mm256_loadu_ps(from) })
        }
        #[inline(always)]
        unsafe fn load_i8(from: *const i8) -> Self {
            // SAFETY: readable by contract.
            Avx2(unsafe { _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(from.cast()))) })
        }
        #[inline(always)]
        unsafe fn load_f16(from: *const u8) -> Self {
            // SAFETY: readable by contract; the CPU has F16C.
            Avx2(unsafe { _mm256_cvtph_ps(_mm_loadu_si128(from.cast())) })
        }
        #[inline(always)]
        unsafe fn store(self, to: *mut f32) {
            // SAFETY: writable by contract.
            unsafe { _mm256_storeu_ps(to, self.0) }
        }
        #[inline(always)]
        unsafe fn add_product(self, a: Self, b: Self) -> Self {
            // SAFETY: the CPU has FMA by contract.
            Avx2(unsafe { _mm256_fmadd_ps(a.0, b.0, self.0) })
        }
    }

    /// Sixteen floats.
    #[derive(Clone, Copy)]
    pub struct Avx512(__m512);

    impl Vector for Avx512 {
        const LANES: usize = 16;
        const ROWS: usize = 12;

        #[inline(always)]
        unsafe fn splat(x: f32) -> Self {
            // SAFETY: the CPU has AVX-512 by contract.
            Avx512(unsafe { _mm512_set1_ps(x) })
        }
        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self {
            // SAFETY: readable by contract.
            Avx512(unsafe { _mm512_loadu_ps(from) })
        }
        #[inline(always)]
        unsafe fn load_i8(from: *const i8) -> Self {
            // SAFETY: readable by contract.
            Avx512(unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(from.cast()))) })
        }
        #[inline(always)]
        unsafe fn load_f16(from: *const u8) -> Self {
            // SAFETY: readable by contract; the CPU has AVX-512.
            Avx512(unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())) })
        }
        #[inline(always)]
        unsafe fn store(self, to: *mut f32) {
            // SAFETY: writable by contract.
            unsafe { _mm512_storeu_ps(to, self.0) }
        }
        #[inline(always)]
        unsafe fn add_product(self, a: Self, b: Self) -> Self {
            // SAFETY: the CPU has AVX-512 by contract.
            Avx512(unsafe { _mm512_fmadd_ps(a.0, b.0, self.0) })
        }
    }
}
