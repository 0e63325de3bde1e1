//! Tensors as a record lays them out: the axis along which scales differ comes first, and each of its rows is a group.

/// The number of groups of a tensor with this shape.
pub(super) fn groups(shape: &[usize], axis: Option<usize>) -> usize {
    axis.map_or(1, |axis| shape[axis])
}

/// `values`, row-major in `shape`, with `axis` first.
pub(super) fn to_groups(values: &[f32], shape: &[usize], axis: Option<usize>) -> Vec<f32> {
    let mut grouped = vec![0.0; values.len()];
    for (from, to) in moves(shape, axis) {
        grouped[to] = values[from];
    }
    grouped
}

/// What [`to_groups`] was given, from what it gave.
pub(super) fn from_groups(grouped: &[f32], shape: &[usize], axis: Option<usize>) -> Vec<f32> {
    let mut values = vec![0.0; grouped.len()];
    for (from, to) in moves(shape, axis) {
        values[from] = grouped[to];
    }
    values
}

/// Where each element is in `shape`, and where it is with `axis` first.
fn moves(shape: &[usize], axis: Option<usize>) -> impl Iterator<Item = (usize, usize)> {
    let sizes = |axes: &[usize]| axes.iter().product::<usize>();
    let (outer, rows, inner) = match axis {
        Some(axis) => (sizes(&shape[..axis]), shape[axis], sizes(&shape[axis + 1..])),
        None => (1, 1, sizes(shape)),
    };
    (0..outer * rows * inner).map(move |from| {
        let (before, row, after) = (from / (rows * inner), from / inner % rows, from % inner);
        (from, (row * outer + before) * inner + after)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_axis_moves_to_the_front_and_back() {
        let values: Vec<f32> = (0..6).map(|x| x as f32).collect();
        assert_eq!(to_groups(&values, &[2, 3], None), values);
        assert_eq!(to_groups(&values, &[2, 3], Some(0)), values);
        assert_eq!(to_groups(&values, &[2, 3], Some(1)), [0.0, 3.0, 1.0, 4.0, 2.0, 5.0]);
        let shape = [2, 3, 5, 7];
        let values: Vec<f32> = (0..210).map(|x| x as f32).collect();
        for axis in 0..4 {
            let grouped = to_groups(&values, &shape, Some(axis));
            assert_eq!(from_groups(&grouped, &shape, Some(axis)), values);
            // The first element of row 1.
            let stride: usize = shape[axis + 1..].iter().product();
            assert_eq!(grouped[210 / shape[axis]], stride as f32);
        }
        assert_eq!((groups(&shape, Some(2)), groups(&shape, None)), (5, 1));
        assert_eq!(to_groups(&[3.0], &[], None), [3.0]);
    }
}
