//! The little of FlatBuffers that an `.onnx_adapter` needs: tables of four fields, vectors, strings.
//!
//! Everything is written forwards: an offset is filled in when what it points to is placed, which comes after it.

/// Bytes of a table of four 4-byte fields: the distance to its vtable, then the fields.
const TABLE_BYTES: u16 = 20;
/// Its vtable: both sizes, then where each field lies in the table.
const VTABLE: [u16; 6] = [12, TABLE_BYTES, 4, 8, 12, 16];

/// A buffer in the making.
pub(super) struct Builder {
    bytes: Vec<u8>,
    vtable: usize,
}

/// A place where an offset is still to be filled in.
#[must_use]
pub(super) struct Hole(usize);

impl Builder {
    /// A buffer with a file identifier, and the hole for its root table.
    pub fn new(identifier: [u8; 4]) -> (Self, Hole) {
        let mut bytes = vec![0; 4];
        bytes.extend(identifier);
        let vtable = bytes.len();
        bytes.extend(VTABLE.iter().flat_map(|x| x.to_le_bytes()));
        (Builder { bytes, vtable }, Hole(0))
    }

    /// Places a table of four fields, each a number or a hole, where `hole` points.
    pub fn table<const HOLES: usize>(&mut self, hole: Hole, fields: [Option<i32>; 4]) -> [Hole; HOLES] {
        self.place(hole, 4, 0);
        let table = self.bytes.len();
        let back = i32::try_from(table - self.vtable).expect("adapters are smaller than 2 GiB");
        self.bytes.extend(back.to_le_bytes());
        for field in fields {
            self.bytes.extend(field.unwrap_or(0).to_le_bytes());
        }
        let mut holes = (0..4).filter(|&i| fields[i].is_none()).map(|i| Hole(table + 4 + 4 * i));
        std::array::from_fn(|_| holes.next().expect("as many holes as fields without a number"))
    }

    /// Places a vector of `len` offsets.
    pub fn offsets(&mut self, hole: Hole, len: usize) -> Vec<Hole> {
        self.place(hole, 4, 0);
        self.len(len);
        let first = self.bytes.len();
        self.bytes.resize(first + 4 * len, 0);
        (0..len).map(|i| Hole(first + 4 * i)).collect()
    }

    /// Places a string.
    pub fn string(&mut self, hole: Hole, text: &str) {
        self.place(hole, 4, 0);
        self.len(text.len());
        self.bytes.extend(text.as_bytes());
        self.bytes.push(0);
    }

    /// Places a vector of bytes, whose elements start at a multiple of 8.
    pub fn vector(&mut self, hole: Hole, len: usize, bytes: impl IntoIterator<Item = u8>) {
        self.place(hole, 8, 4);
        self.len(len);
        self.bytes.extend(bytes);
    }

    /// All bytes.
    pub fn finish(mut self) -> Vec<u8> {
        self.bytes.resize(self.bytes.len().next_multiple_of(8), 0);
        self.bytes
    }

    fn len(&mut self, len: usize) {
        self.bytes.extend(u32::try_from(len).expect("adapters are smaller than 2 GiB").to_le_bytes());
    }

    /// Pads until what comes `before` bytes from here starts at a multiple of `align`, and points `hole` here.
    fn place(&mut self, Hole(hole): Hole, align: usize, before: usize) {
        let start = (self.bytes.len() + before).next_multiple_of(align) - before;
        self.bytes.resize(start, 0);
        let offset = u32::try_from(start - hole).expect("adapters are smaller than 2 GiB");
        self.bytes[hole..hole + 4].copy_from_slice(&offset.to_le_bytes());
    }
}
