//! Reads and writes adapter records as a microcontroller would. That it links is the test: a crate that needs an allocator
//! anywhere in its dependencies asks for a `#[global_allocator]` here, and one that needs an operating system for `std`.

#![no_std]

use core::panic::PanicInfo;

use inlay_format::record::{BaseId, Dtype, PartHeader, PartValues, PointValues, Record, TensorValues, encode};

/// Parameters of the adapter whose record is in the first `len` of `bytes`; 0 when it is refused.
#[unsafe(no_mangle)]
pub extern "C" fn inlay_parameters(bytes: &[u8; 4096], len: usize) -> usize {
    let Some(Ok(record)) = bytes.get(..len).map(Record::decode) else { return 0 };
    let points = record.parts().flat_map(|part| part.points());
    points.flat_map(|point| point.tensors()).map(|tensor| tensor.elements()).sum()
}

/// Writes `values` as an int4 record into `bytes`; gives its length, 0 when it is refused.
#[unsafe(no_mangle)]
pub extern "C" fn inlay_encode(values: &[f32; 256], bytes: &mut [u8; 4096]) -> usize {
    let header = PartHeader { kind: 1, dtype: Dtype::Int4, rslora: false, rank: 1, alpha: 2.0 };
    let tensors = [TensorValues { values, groups: 1 }];
    let mut points = [PointValues { path: "fc1", tensors: &tensors }];
    let mut parts = [PartValues { header, points: &mut points }];
    encode(BaseId([0; 16]), &mut parts, bytes).map_or(0, |record| record.len())
}

#[panic_handler]
fn panic(_: &PanicInfo<'_>) -> ! {
    loop {}
}
