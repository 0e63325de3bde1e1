//! Loops over strided operands, with as few and as long inner loops as the strides allow.

use std::ops::Range;

/// The most dimensions of a strided operand.
const MAX_DIMS: usize = 8;

/// A nest of loops over `N` operands. Dimensions of length 1 are gone, and neighbours that all operands pass through
/// in one stride are merged.
#[derive(Clone, Copy)]
pub struct Nest<const N: usize> {
    dims: [usize; MAX_DIMS],
    strides: [[usize; N]; MAX_DIMS],
    /// Dimensions in use; at least one, the last one is the inner loop.
    depth: usize,
}

impl<const N: usize> Nest<N> {
    /// The loops over `dims`, in which each operand has its strides.
    pub fn new(dims: &[u32], strides: [&[u32]; N]) -> Self {
        let mut nest = Nest { dims: [1; MAX_DIMS], strides: [[0; N]; MAX_DIMS], depth: 0 };
        for (i, &dim) in dims.iter().enumerate() {
            if dim == 1 {
                continue;
            }
            let (dim, step) = (dim as usize, strides.map(|s| s[i] as usize));
            let merges = nest.depth > 0 && (0..N).all(|o| nest.strides[nest.depth - 1][o] == dim * step[o]);
            if merges {
                nest.dims[nest.depth - 1] *= dim;
                nest.strides[nest.depth - 1] = step;
            } else {
                nest.dims[nest.depth] = dim;
                nest.strides[nest.depth] = step;
                nest.depth += 1;
            }
        }
        nest.depth = nest.depth.max(1);
        nest
    }

    /// Length of the inner loop.
    pub fn inner(&self) -> usize {
        self.dims[self.depth - 1]
    }

    /// Strides of the inner loop.
    pub fn inner_strides(&self) -> [usize; N] {
        self.strides[self.depth - 1]
    }

    /// The loops around the inner one: lengths and strides.
    pub fn outer(&self) -> (&[usize], &[[usize; N]]) {
        (&self.dims[..self.depth - 1], &self.strides[..self.depth - 1])
    }

    /// Number of inner loops.
    pub fn rows(&self) -> usize {
        self.outer().0.iter().product()
    }

    /// Calls `visit` with the offset of each operand, for each of `rows`.
    #[inline(always)]
    pub fn for_rows(&self, rows: Range<usize>, mut visit: impl FnMut(usize, [usize; N])) {
        let (dims, strides) = self.outer();
        let (mut index, mut at) = ([0; MAX_DIMS], [0; N]);
        let mut left = rows.start;
        for d in (0..dims.len()).rev() {
            index[d] = left % dims[d].max(1);
            left /= dims[d].max(1);
            (0..N).for_each(|o| at[o] += index[d] * strides[d][o]);
        }
        for row in rows {
            visit(row, at);
            for d in (0..dims.len()).rev() {
                index[d] += 1;
                (0..N).for_each(|o| at[o] += strides[d][o]);
                if index[d] < dims[d] {
                    break;
                }
                (0..N).for_each(|o| at[o] -= dims[d] * strides[d][o]);
                index[d] = 0;
            }
        }
    }
}

/// Work on a row-major result, cut into tasks of about `chunk` elements.
#[derive(Clone, Copy)]
pub struct Pieces {
    inner: usize,
    chunk: usize,
}

impl Pieces {
    /// Pieces of a result whose inner loop has `inner` elements.
    pub fn new(inner: usize, chunk: usize) -> Self {
        // Whole inner loops, or parts of one.
        let chunk = if inner == 0 || inner > chunk { chunk } else { chunk / inner * inner };
        Pieces { inner: inner.max(1), chunk }
    }

    /// Elements of a task.
    pub fn chunk(&self) -> usize {
        self.chunk
    }

    /// Calls `visit` with (offset of each operand, range of the task's elements) for each inner loop, or part of one,
    /// of task `task`, which has `len` elements.
    #[inline(always)]
    pub fn for_each<const N: usize>(
        &self,
        nest: &Nest<N>,
        task: usize,
        len: usize,
        mut visit: impl FnMut([usize; N], Range<usize>),
    ) {
        let first = task * self.chunk;
        let rows = first / self.inner..(first + len).div_ceil(self.inner);
        let strides = nest.inner_strides();
        nest.for_rows(
            rows,
            #[inline(always)]
            |row, mut at| {
                let start = (row * self.inner).max(first);
                let end = ((row + 1) * self.inner).min(first + len);
                (0..N).for_each(|o| at[o] += (start - row * self.inner) * strides[o]);
                visit(at, start - first..end - first);
            },
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::strided::offset;

    #[test]
    fn every_element_once_at_its_offsets() {
        let cases: [(&[u32], &[u32], &[u32]); 5] = [
            (&[1, 2, 3, 4], &[0, 12, 4, 1], &[0, 0, 0, 1]),
            (&[2, 3, 5], &[1, 2, 6], &[15, 5, 1]),
            (&[1, 1], &[0, 0], &[7, 7]),
            (&[100], &[1], &[0]),
            (&[3, 7, 2], &[14, 2, 1], &[14, 2, 1]),
        ];
        for (dims, a, b) in cases {
            let nest = Nest::new(dims, [a, b]);
            let count = dims.iter().product::<u32>() as usize;
            for chunk in [1, 5, 16, 1000] {
                let pieces = Pieces::new(nest.inner(), chunk);
                let mut found = Vec::new();
                for task in 0..count.div_ceil(pieces.chunk()) {
                    let len = pieces.chunk().min(count - task * pieces.chunk());
                    pieces.for_each(&nest, task, len, |at, range| {
                        assert_eq!(task * pieces.chunk() + range.start, found.len());
                        let [sa, sb] = nest.inner_strides();
                        found.extend((0..range.len()).map(|i| (at[0] + i * sa, at[1] + i * sb)));
                    });
                }
                let expected: Vec<_> = (0..count).map(|i| (offset(i, dims, a), offset(i, dims, b))).collect();
                assert_eq!(found, expected, "{dims:?} in chunks of {chunk}");
            }
        }
    }
}
