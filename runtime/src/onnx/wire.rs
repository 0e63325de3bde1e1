use std::ops::Range;

/// Why bytes are not the protobuf message that they should be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WireError {
    /// The file ends inside a field.
    #[error("the file ends inside {what}, at byte {at}")]
    Truncated {
        /// The message being read.
        what: &'static str,
        /// Where in the file.
        at: usize,
    },
    /// Bytes that no protobuf writer makes.
    #[error("{what} is malformed at byte {at}: {why}")]
    Malformed {
        /// The message being read.
        what: &'static str,
        /// Where in the file.
        at: usize,
        /// What is wrong.
        why: &'static str,
    },
    /// More entries, or a longer name, than a real model has.
    #[error("{what} has more than {limit} {of}")]
    TooMany {
        /// The message being read.
        what: &'static str,
        /// Of what.
        of: &'static str,
        /// The limit.
        limit: usize,
    },
    /// Something that the converter never writes.
    #[error("{what} uses {feature}, which the converter never writes; run `converter export` on the original model")]
    Unsupported {
        /// The message, with its name where it has one.
        what: String,
        /// The feature.
        feature: &'static str,
    },
}

/// The content of a field.
#[derive(Clone, Copy, Debug)]
pub(super) enum Field<'a> {
    Varint(u64),
    Fixed32(u32),
    Fixed64(u64),
    Bytes(Message<'a>),
}

/// A message, or the bytes of a length-delimited field, with its place in the file.
#[derive(Clone, Copy, Debug)]
pub(super) struct Message<'a> {
    pub what: &'static str,
    pub bytes: &'a [u8],
    pub start: usize,
}

impl<'a> Message<'a> {
    pub fn range(&self) -> Range<usize> {
        self.start..self.start + self.bytes.len()
    }

    pub fn named(self, what: &'static str) -> Self {
        Message { what, ..self }
    }

    /// Hands each field to `each`, by number. Numbers that `each` does not know are skipped by it.
    pub fn fields(&self, mut each: impl FnMut(u32, Field<'a>) -> Result<(), WireError>) -> Result<(), WireError> {
        let mut cursor = Cursor { message: *self, at: 0 };
        while cursor.at < self.bytes.len() {
            let key = cursor.varint()?;
            let number = u32::try_from(key >> 3).ok().filter(|n| (1..1 << 29).contains(n));
            let number = number.ok_or_else(|| cursor.malformed("a field number is out of range"))?;
            let field = match key & 7 {
                0 => Field::Varint(cursor.varint()?),
                1 => Field::Fixed64(u64::from_le_bytes(cursor.array()?)),
                2 => {
                    let len = cursor.varint()?;
                    let len = usize::try_from(len).map_err(|_| cursor.truncated())?;
                    let start = self.start + cursor.at;
                    Field::Bytes(Message { what: self.what, bytes: cursor.take(len)?, start })
                }
                5 => Field::Fixed32(u32::from_le_bytes(cursor.array()?)),
                _ => return Err(cursor.malformed("unknown wire type")),
            };
            each(number, field)?;
        }
        Ok(())
    }

    /// The bytes as a name.
    pub fn name(&self) -> Result<String, WireError> {
        if self.bytes.len() > super::MAX_NAME_BYTES {
            return Err(WireError::TooMany { what: self.what, of: "bytes in a name", limit: super::MAX_NAME_BYTES });
        }
        self.text()
    }

    /// The bytes as text of any length.
    pub fn text(&self) -> Result<String, WireError> {
        let text = std::str::from_utf8(self.bytes).map_err(|_| self.malformed("text is not UTF-8"))?;
        Ok(text.to_owned())
    }

    /// The varints of a packed field, at most `limit`.
    pub fn packed_varints(&self, limit: usize, into: &mut Vec<i64>) -> Result<(), WireError> {
        let mut cursor = Cursor { message: *self, at: 0 };
        while cursor.at < self.bytes.len() {
            let value = cursor.varint()?.cast_signed();
            push(into, value, limit, self.what, "numbers")?;
        }
        Ok(())
    }

    /// The elements of a packed fixed-size field.
    pub fn packed_fixed<const N: usize>(&self) -> Result<&'a [[u8; N]], WireError> {
        let (chunks, rest) = self.bytes.as_chunks::<N>();
        if rest.is_empty() { Ok(chunks) } else { Err(self.malformed("a packed list has a broken length")) }
    }

    pub fn malformed(&self, why: &'static str) -> WireError {
        WireError::Malformed { what: self.what, at: self.start, why }
    }
}

impl<'a> Field<'a> {
    pub fn message(self, of: &Message<'_>) -> Result<Message<'a>, WireError> {
        match self {
            Field::Bytes(message) => Ok(message),
            _ => Err(of.malformed("a number where a message is expected")),
        }
    }

    pub fn int(self, of: &Message<'_>) -> Result<i64, WireError> {
        match self {
            Field::Varint(value) => Ok(value.cast_signed()),
            _ => Err(of.malformed("a field has another type than ONNX says")),
        }
    }

    pub fn float(self, of: &Message<'_>) -> Result<f32, WireError> {
        match self {
            Field::Fixed32(bits) => Ok(f32::from_bits(bits)),
            _ => Err(of.malformed("a field has another type than ONNX says")),
        }
    }
}

/// Appends to a list of bounded length.
pub(super) fn push<T>(
    list: &mut Vec<T>,
    item: T,
    limit: usize,
    what: &'static str,
    of: &'static str,
) -> Result<(), WireError> {
    if list.len() >= limit {
        return Err(WireError::TooMany { what, of, limit });
    }
    list.push(item);
    Ok(())
}

struct Cursor<'a> {
    message: Message<'a>,
    at: usize,
}

impl<'a> Cursor<'a> {
    fn varint(&mut self) -> Result<u64, WireError> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let [byte] = self.array()?;
            if shift == 63 && byte > 1 {
                break;
            }
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(self.malformed("a number is longer than 64 bits"))
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], WireError> {
        let bytes = self.take(N)?;
        Ok(bytes.try_into().expect("take gives N bytes"))
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8], WireError> {
        let end = self.at.checked_add(len).ok_or_else(|| self.truncated())?;
        let bytes = self.message.bytes.get(self.at..end).ok_or_else(|| self.truncated())?;
        self.at = end;
        Ok(bytes)
    }

    fn truncated(&self) -> WireError {
        WireError::Truncated { what: self.message.what, at: self.message.start + self.at }
    }

    fn malformed(&self, why: &'static str) -> WireError {
        WireError::Malformed { what: self.message.what, at: self.message.start + self.at, why }
    }
}
