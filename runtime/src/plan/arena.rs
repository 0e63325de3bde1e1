//! Places buffers in one arena, so that those that are never needed at the same time share memory.

use inlay_devices::program::aligned;

/// A buffer's size and the calls between which it is needed, both ends included.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lifetime {
    pub len: usize,
    pub first: usize,
    pub last: usize,
}

#[cfg(test)]
thread_local! {
    /// Gives every buffer memory of its own, to compare with.
    pub(crate) static SEPARATE: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

/// Offsets of the buffers, and the length of the arena.
///
/// Large buffers first, each at the lowest offset that is free during its life.
pub(crate) fn place(lifetimes: &[Option<Lifetime>]) -> (Vec<usize>, usize) {
    #[cfg(test)]
    if SEPARATE.get() {
        let mut total = 0;
        let offsets = lifetimes.iter().map(|life| {
            let at = total;
            total += life.map_or(0, |life| aligned(life.len));
            at
        });
        return (offsets.collect(), total);
    }
    let mut order: Vec<usize> = (0..lifetimes.len()).filter(|&i| lifetimes[i].is_some()).collect();
    let life = |i: usize| lifetimes[i].expect("only those that live are in the order");
    order.sort_by_key(|&i| (std::cmp::Reverse(life(i).len), life(i).first, i));
    let mut offsets = vec![0; lifetimes.len()];
    // Ends and starts of what is placed, by offset.
    let mut placed: Vec<usize> = Vec::new();
    let mut total = 0;
    for i in order {
        let it = life(i);
        let len = aligned(it.len);
        let mut at = 0;
        for &other in &placed {
            let other_life = life(other);
            if other_life.first > it.last || other_life.last < it.first {
                continue;
            }
            if offsets[other] >= at + len {
                break;
            }
            at = at.max(offsets[other] + aligned(other_life.len));
        }
        offsets[i] = at;
        total = total.max(at + len);
        let position = placed.partition_point(|&p| offsets[p] <= at);
        placed.insert(position, i);
    }
    (offsets, total)
}

#[cfg(test)]
mod tests {
    use inlay_devices::kernels::sample;

    use super::*;

    #[test]
    fn what_lives_together_does_not_overlap() {
        for seed in 0..50 {
            let random = sample::floats(seed, 120);
            let lifetimes: Vec<_> = random
                .chunks_exact(3)
                .map(|r| {
                    let first = ((r[0] + 1.0) * 20.0) as usize;
                    let last = first + ((r[1] + 1.0) * 5.0) as usize;
                    Some(Lifetime { len: ((r[2] + 1.0) * 300.0) as usize + 1, first, last })
                })
                .collect();
            let (offsets, total) = place(&lifetimes);
            for (i, a) in lifetimes.iter().flatten().enumerate() {
                assert!(offsets[i] + a.len <= total);
                for (j, b) in lifetimes.iter().flatten().enumerate().skip(i + 1) {
                    let together = a.first <= b.last && b.first <= a.last;
                    let apart = offsets[i] + a.len <= offsets[j] || offsets[j] + b.len <= offsets[i];
                    assert!(!together || apart, "seed {seed}: {i} {a:?} and {j} {b:?}");
                }
            }
        }
    }

    #[test]
    fn a_chain_needs_two_buffers() {
        let chain: Vec<_> = (0..10).map(|i| Some(Lifetime { len: 64, first: i, last: i + 1 })).collect();
        assert_eq!(place(&chain).1, 128);
    }
}
