//! Seeded random numbers: the same on every machine, forever.

/// SplitMix64 (Steele, Lea and Flood, 2014): small, fast, and good enough to shuffle and to initialize.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The sequence of `seed` and `stream`: one seed gives independent sequences for different purposes.
    pub fn new(seed: u64, stream: u64) -> Self {
        let mut mixed = Random(seed);
        let start = mixed.next_u64() ^ Random(stream).next_u64().rotate_left(32);
        Random(start)
    }

    /// 64 random bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in `0..below`. 0 when `below` is 0.
    pub fn below(&mut self, below: u64) -> u64 {
        // The high half of a 128-bit product is biased by less than below / 2^64.
        ((u128::from(self.next_u64()) * u128::from(below)) >> 64) as u64
    }

    /// Uniform in [-bound, bound).
    pub fn uniform(&mut self, bound: f32) -> f32 {
        let unit = (self.next_u64() >> 40) as f32 / (1u64 << 24) as f32;
        (2.0 * unit - 1.0) * bound
    }

    /// A random order of `0..len` (Fisher and Yates).
    pub fn permutation(&mut self, len: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..len).collect();
        for i in (1..len).rev() {
            order.swap(i, self.below(i as u64 + 1) as usize);
        }
        order
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sequences_are_fixed_and_streams_differ() {
        assert_eq!(Random(0).next_u64(), 0xe220_a839_7b1d_cdaf, "the reference implementation's first output");
        let draw = |seed, stream| Random::new(seed, stream).next_u64();
        assert_eq!(draw(1, 2), draw(1, 2));
        assert_ne!(draw(1, 2), draw(2, 1));
        assert_ne!(draw(0, 0), draw(0, 1));
    }

    #[test]
    fn permutations_hold_everything_once() {
        for len in [0, 1, 2, 7, 100] {
            let mut order = Random::new(3, 0).permutation(len);
            assert!(len < 7 || order.iter().enumerate().any(|(i, &x)| i != x), "shuffled");
            order.sort_unstable();
            assert!(order.into_iter().eq(0..len));
        }
    }

    #[test]
    fn uniform_is_uniform() {
        let mut random = Random::new(5, 0);
        let draws: Vec<f32> = (0..10_000).map(|_| random.uniform(0.5)).collect();
        assert!(draws.iter().all(|x| (-0.5..0.5).contains(x)));
        let mean = draws.iter().sum::<f32>() / draws.len() as f32;
        let variance = draws.iter().map(|x| x * x).sum::<f32>() / draws.len() as f32;
        assert!(mean.abs() < 0.01 && (variance - 1.0 / 12.0).abs() < 0.005, "{mean} {variance}");
    }
}
