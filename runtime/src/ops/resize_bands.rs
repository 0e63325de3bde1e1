//! The matrices of `Resize`: how much of which elements of an axis makes each element of the resized one.

/// How elements of a resized axis follow from those of the axis.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sampling {
    pub filter: Filter,
    pub coordinates: Coordinates,
    /// Whether the filter is as wide as the distance of the elements that it makes.
    pub antialias: bool,
    /// Whether what lies outside counts nothing, instead of as much as the edge.
    pub exclude_outside: bool,
}

/// What is laid over the place between elements.
#[derive(Clone, Copy, Debug)]
pub(super) enum Filter {
    Nearest(Nearest),
    Linear,
    /// Keys 1981, with its coefficient.
    Cubic {
        a: f64,
    },
}

/// Which of two neighbours is the nearest.
#[derive(Clone, Copy, Debug)]
pub(super) enum Nearest {
    RoundPreferFloor,
    RoundPreferCeil,
    Floor,
    Ceil,
}

/// Where an element of the resized axis lies on the axis.
#[derive(Clone, Copy, Debug)]
pub(super) enum Coordinates {
    HalfPixel,
    HalfPixelSymmetric,
    PytorchHalfPixel,
    AlignCorners,
    Asymmetric,
}

impl Coordinates {
    /// Every mode, as ONNX names it.
    pub const ALL: &[(&str, Coordinates)] = &[
        ("half_pixel", Coordinates::HalfPixel),
        ("half_pixel_symmetric", Coordinates::HalfPixelSymmetric),
        ("pytorch_half_pixel", Coordinates::PytorchHalfPixel),
        ("align_corners", Coordinates::AlignCorners),
        ("asymmetric", Coordinates::Asymmetric),
    ];

    /// In f32, as other runtimes compute it: which neighbour is the nearest hangs on the last bit.
    fn place(self, i: usize, len: usize, resized: usize, scale: f32) -> f32 {
        let i = i as f32;
        let half_pixel = || (i + 0.5) / scale - 0.5;
        match self {
            Coordinates::HalfPixel => half_pixel(),
            Coordinates::HalfPixelSymmetric => {
                let adjustment = resized as f32 / (scale * len as f32);
                let center = len as f32 / 2.0;
                center * (1.0 - adjustment) + half_pixel()
            }
            Coordinates::PytorchHalfPixel if resized == 1 => 0.0,
            Coordinates::PytorchHalfPixel => half_pixel(),
            Coordinates::AlignCorners if resized == 1 => 0.0,
            Coordinates::AlignCorners => i * (len - 1) as f32 / (resized - 1) as f32,
            Coordinates::Asymmetric => i / scale,
        }
    }
}

impl Sampling {
    /// The matrix [resized, len].
    pub fn band(&self, len: usize, resized: usize, scale: f32) -> Band {
        let rows = (0..resized).map(|i| {
            let place = self.coordinates.place(i, len, resized, scale);
            self.row(place, f64::from(scale), len)
        });
        Band::new(rows.collect(), len)
    }

    /// What makes an element at `place`: the first element that counts, and the shares from there on.
    fn row(&self, place: f32, scale: f64, len: usize) -> (usize, Vec<f64>) {
        let (last, below) = (len as i64 - 1, place.floor());
        let shares: Vec<(i64, f64)> = match self.filter {
            Filter::Nearest(nearest) => {
                let middle = place - below == 0.5;
                let near = match nearest {
                    Nearest::Floor => below,
                    Nearest::Ceil => place.ceil(),
                    Nearest::RoundPreferFloor if middle => below,
                    Nearest::RoundPreferCeil if middle => below + 1.0,
                    _ => place.round(),
                };
                vec![(near as i64, 1.0)]
            }
            Filter::Linear => self.weighed(place, 1.0, scale, |x| (1.0 - x).max(0.0)),
            Filter::Cubic { a } => self.weighed(place, 2.0, scale, |x| match x {
                x if x <= 1.0 => ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0,
                x if x < 2.0 => ((a * x - 5.0 * a) * x + 8.0 * a) * x - 4.0 * a,
                _ => 0.0,
            }),
        };
        let inside = |at: i64| (0..=last).contains(&at);
        // Nearest neighbours outside are those at the edge.
        let exclude = self.exclude_outside && shares.iter().any(|(at, share)| inside(*at) && *share != 0.0);
        let kept = || shares.iter().filter(|(at, _)| !exclude || inside(*at));
        let total: f64 = kept().map(|(_, share)| share).sum();
        let first = shares[0].0.clamp(0, last);
        let mut row = vec![0.0; (shares[shares.len() - 1].0.clamp(0, last) - first + 1) as usize];
        for (at, share) in kept() {
            row[(at.clamp(&0, &last) - first) as usize] += share / total;
        }
        (first as usize, row)
    }

    /// The elements under a filter of that radius, and its height at each.
    fn weighed(&self, place: f32, radius: f64, scale: f64, height: impl Fn(f64) -> f64) -> Vec<(i64, f64)> {
        let squeezed = if self.antialias { scale.min(1.0) } else { 1.0 };
        let (place, reach) = (f64::from(place), radius / squeezed);
        let (from, to) = ((place - reach).floor() as i64 + 1, (place + reach).ceil() as i64 - 1);
        (from..=to).map(|at| (at, height((at as f64 - place).abs() * squeezed))).collect()
    }
}

/// A matrix whose rows are 0 outside of a few elements that follow each other.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Band {
    columns: usize,
    taps: usize,
    first: Vec<i64>,
    weights: Vec<f32>,
}

impl Band {
    /// Of rows that are each given from their first element on. Every row gets as many as the longest.
    fn new(rows: Vec<(usize, Vec<f64>)>, columns: usize) -> Self {
        let taps = rows.iter().map(|(_, row)| row.len()).max().unwrap_or(1).max(1);
        let (mut first, mut weights) = (Vec::new(), vec![0.0; rows.len() * taps]);
        for ((at, row), weights) in rows.into_iter().zip(weights.chunks_exact_mut(taps)) {
            let start = at.min(columns - taps);
            first.push(start as i64);
            for (weight, share) in weights[at - start..].iter_mut().zip(row) {
                *weight = share as f32;
            }
        }
        Band { columns, taps, first, weights }
    }

    /// Rows.
    pub fn rows(&self) -> usize {
        self.first.len()
    }

    /// Elements of a row that may not be 0.
    pub fn taps(&self) -> usize {
        self.taps
    }

    /// The column of the first of them, of each row.
    pub fn first(&self) -> &[i64] {
        &self.first
    }

    /// Those elements: [rows, taps].
    pub fn weights(&self) -> &[f32] {
        &self.weights
    }

    /// Whether each element of the result is that of the operand.
    pub fn is_identity(&self) -> bool {
        self.rows() == self.columns
            && self.elements().all(|(row, column, weight)| weight == f32::from(u8::from(row == column)))
    }

    /// The transposed matrix.
    pub fn transposed(&self) -> Self {
        let mut columns: Vec<(usize, Vec<f64>)> = vec![(0, Vec::new()); self.columns];
        for (row, column, weight) in self.elements().filter(|(_, _, weight)| *weight != 0.0) {
            let (first, elements) = &mut columns[column];
            if elements.is_empty() {
                *first = row;
            }
            elements.resize(row - *first + 1, 0.0);
            elements[row - *first] = weight.into();
        }
        Band::new(columns, self.rows())
    }

    /// (row, column, element), by rows.
    fn elements(&self) -> impl Iterator<Item = (usize, usize, f32)> {
        self.weights.iter().enumerate().map(|(i, &weight)| {
            let (row, tap) = (i / self.taps, i % self.taps);
            (row, self.first[row] as usize + tap, weight)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dense(band: &Band) -> Vec<Vec<f32>> {
        let mut rows = vec![vec![0.0; band.columns]; band.rows()];
        band.elements().for_each(|(row, column, weight)| rows[row][column] += weight);
        rows
    }

    fn all() -> Vec<Sampling> {
        let nearest = [Nearest::Floor, Nearest::Ceil, Nearest::RoundPreferFloor, Nearest::RoundPreferCeil];
        let filters = nearest.map(Filter::Nearest).into_iter().chain([Filter::Linear, Filter::Cubic { a: -0.75 }]);
        let mut all = Vec::new();
        for filter in filters {
            for &(_, coordinates) in Coordinates::ALL {
                for antialias in [false, true] {
                    for exclude_outside in [false, true] {
                        all.push(Sampling { filter, coordinates, antialias, exclude_outside });
                    }
                }
            }
        }
        all
    }

    #[test]
    fn rows_add_up_to_one_and_transposing_twice_changes_nothing() {
        for sampling in all() {
            for (len, resized) in [(1, 1), (1, 5), (7, 1), (4, 8), (5, 13), (13, 4), (6, 6)] {
                let band = sampling.band(len, resized, resized as f32 / len as f32);
                let rows = dense(&band);
                assert_eq!((rows.len(), rows[0].len()), (resized, len));
                for row in &rows {
                    let sum: f32 = row.iter().sum();
                    assert!((sum - 1.0).abs() < 1e-5, "{sampling:?} {len} to {resized}: {row:?}");
                }
                let turned = band.transposed();
                let columns: Vec<Vec<f32>> = (0..len).map(|c| rows.iter().map(|row| row[c]).collect()).collect();
                assert_eq!(dense(&turned), columns, "{sampling:?} {len} to {resized}");
                assert!(turned.first.iter().all(|&first| first as usize + turned.taps <= resized));
                assert_eq!(dense(&turned.transposed()), rows);
                assert!(len != resized || band.is_identity(), "{sampling:?}");
            }
        }
    }

    #[test]
    fn bands_are_as_narrow_as_their_filters() {
        let linear = Sampling {
            filter: Filter::Linear,
            coordinates: Coordinates::HalfPixel,
            antialias: false,
            exclude_outside: false,
        };
        assert_eq!(linear.band(64, 128, 2.0).taps(), 2);
        assert_eq!(linear.band(64, 128, 2.0).transposed().taps(), 4);
        let nearest =
            Sampling { filter: Filter::Nearest(Nearest::Floor), coordinates: Coordinates::Asymmetric, ..linear };
        assert_eq!(nearest.band(64, 128, 2.0).taps(), 1);
        assert_eq!(nearest.band(64, 128, 2.0).first()[..5], [0, 0, 1, 1, 2]);
        assert_eq!(nearest.band(64, 128, 2.0).transposed().taps(), 2);
    }
}
