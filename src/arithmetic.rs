//! Arithmetic of embeddings: weighted sums, arcs between vectors of any length, and turns towards a direction.
//!
//! Source of the arcs: K. Shoemake, "Animating rotation with quaternion curves", 1985.

use crate::{Error, Result};
use ndarray::{Array1, ArrayView1};

/// Two unit vectors are opposite, or the same, if their sum or difference is shorter than this.
const TINY: f64 = 1e-6;

/// Why there is no arc between two vectors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NoArc {
    /// The vector at this end, 0 or 1, has no direction.
    #[error("it is all zeros, and has no direction")]
    Zero(usize),
    /// There are many arcs.
    #[error("they point in opposite directions, and no arc between them is the shortest")]
    Opposite,
}

/// The embedding at `t`, 0 to 1, on the arc from one embedding to another: its direction moves at a constant angular speed,
/// and its length goes from one to the other linearly. At 0 and 1 it is `start` and `end`, to the last bit.
///
/// ```
/// use ndarray::array;
///
/// let (start, end) = (array![2.0, 0.0], array![0.0, 4.0]);
/// let middle = prior_embed::slerp(start.view(), end.view(), 0.5)?;
/// assert!((middle[0] - middle[1]).abs() < 1e-6 && (middle.dot(&middle).sqrt() - 3.0).abs() < 1e-6);
/// # Ok::<(), prior_embed::Error>(())
/// ```
///
/// # Errors
/// [`Error::Option`] if `t` is not between 0 and 1, or there is no arc: they are of different dimensions, one is all zeros, or
/// they are opposite.
pub fn slerp(start: ArrayView1<f32>, end: ArrayView1<f32>, t: f64) -> Result<Array1<f32>> {
    let refused = |option, reason| Err(Error::Option { option, reason });
    if !(0.0..=1.0).contains(&t) {
        return refused("t", format!("it is {t}, and must be between 0 and 1"));
    }
    if start.len() != end.len() {
        return refused("end", format!("it has {} numbers, and start has {}", end.len(), start.len()));
    }
    arc(start, end, t)
        .or_else(|error| refused(if error == NoArc::Zero(0) { "start" } else { "end" }, error.to_string()))
}

/// [`slerp`] of vectors that are known to be of one dimension.
///
/// # Errors
/// [`NoArc`] if a vector is zero or they are opposite.
pub(crate) fn arc(start: ArrayView1<f32>, end: ArrayView1<f32>, t: f64) -> Result<Array1<f32>, NoArc> {
    let [from, to] = [length(start), length(end)];
    if let Some(place) = [from, to].iter().position(|length| *length == 0.0) {
        return Err(NoArc::Zero(place));
    }
    let units = || start.iter().zip(end).map(|(start, end)| (f64::from(*start) / from, f64::from(*end) / to));
    let norm = |combine: fn((f64, f64)) -> f64| units().map(|pair| combine(pair).powi(2)).sum::<f64>().sqrt();
    let (sum, difference) = (norm(|(start, end)| start + end), norm(|(start, end)| start - end));
    if sum < TINY {
        return Err(NoArc::Opposite);
    }
    if t == 0.0 || t == 1.0 {
        return Ok(if t == 0.0 { start } else { end }.to_owned());
    }
    // Unlike the arccosine of a dot product, exact for small and for large angles.
    let angle = 2.0 * difference.atan2(sum);
    let (of_start, of_end) = match difference < TINY {
        true => (1.0 - t, t),
        false => (((1.0 - t) * angle).sin() / angle.sin(), (t * angle).sin() / angle.sin()),
    };
    let length = (1.0 - t) * from + t * to;
    Ok(units().map(|(start, end)| (length * (of_start * start + of_end * end)) as f32).collect())
}

/// The vector at `theta` on the arc from `source` to a direction, as long as the source.
///
/// # Errors
/// As [`arc`].
pub(crate) fn turn(source: ArrayView1<f32>, direction: ArrayView1<f32>, theta: f64) -> Result<Array1<f32>, NoArc> {
    let scale = match length(direction) {
        0.0 => return Err(NoArc::Zero(1)),
        norm => (length(source) / norm) as f32,
    };
    arc(source, (&direction * scale).view(), theta)
}

/// The sum of the weights times the vectors.
pub(crate) fn weighted_sum(vectors: &[ArrayView1<f32>], weights: &[f64]) -> Array1<f32> {
    let dim = vectors.first().map_or(0, ArrayView1::len);
    let number = |place: usize| -> f64 {
        weights.iter().zip(vectors).map(|(weight, vector)| weight * f64::from(vector[place])).sum()
    };
    (0..dim).map(|place| number(place) as f32).collect()
}

/// The length of a vector.
fn length(vector: ArrayView1<f32>) -> f64 {
    vector.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;
    use proptest::prelude::*;

    fn angle(one: ArrayView1<f32>, other: ArrayView1<f32>) -> f64 {
        let dot: f64 = one.iter().zip(other).map(|(one, other)| f64::from(*one) * f64::from(*other)).sum();
        (dot / length(one) / length(other)).clamp(-1.0, 1.0).acos()
    }

    proptest! {
        #[test]
        fn an_arc_has_its_ends_and_a_constant_speed(
            start in prop::collection::vec(-9.0_f32..9.0, 7),
            end in prop::collection::vec(-9.0_f32..9.0, 7),
            t in 0.0..1.0_f64,
        ) {
            let (start, end) = (Array1::from(start), Array1::from(end));
            let (start, end) = (start.view(), end.view());
            let whole = angle(start, end);
            prop_assume!(length(start) > 0.1 && length(end) > 0.1 && whole < 3.1 && whole > 0.01);
            prop_assert_eq!(arc(start, end, 0.0).unwrap(), start);
            prop_assert_eq!(arc(start, end, 1.0).unwrap(), end);
            let found = arc(start, end, t).unwrap();
            prop_assert!((angle(start, found.view()) - t * whole).abs() < 1e-3);
            prop_assert!((angle(end, found.view()) - (1.0 - t) * whole).abs() < 1e-3);
            let expected = (1.0 - t) * length(start) + t * length(end);
            prop_assert!((length(found.view()) / expected - 1.0).abs() < 1e-4);
        }
    }

    #[test]
    fn vectors_without_an_arc_are_refused() {
        let (zero, one) = (array![0.0, 0.0], array![1.0, 2.0]);
        assert_eq!(arc(zero.view(), one.view(), 0.5), Err(NoArc::Zero(0)));
        assert_eq!(arc(one.view(), zero.view(), 1.0), Err(NoArc::Zero(1)));
        assert_eq!(arc(one.view(), (-3.0 * &one).view(), 0.5), Err(NoArc::Opposite));
        // The same direction is an arc of length 0, and only the length changes.
        assert_eq!(arc(one.view(), (3.0 * &one).view(), 0.5), Ok(2.0 * &one));
        assert_eq!(turn(one.view(), zero.view(), 0.0), Err(NoArc::Zero(1)));
        assert_eq!(turn(zero.view(), one.view(), 0.0), Err(NoArc::Zero(0)));
        let (nearly, other) = (array![1.0, 1e-7_f32], array![1.0, 0.0]);
        assert!((arc(nearly.view(), other.view(), 0.5).unwrap() - other).iter().all(|value| value.abs() < 1e-6));
    }

    #[test]
    fn what_is_turned_keeps_its_length() {
        let (source, direction) = (array![3.0, 4.0], array![0.0, -0.5]);
        let turned = turn(source.view(), direction.view(), 0.25).unwrap();
        assert!((length(turned.view()) - 5.0).abs() < 1e-6, "{turned}");
        let whole = angle(source.view(), direction.view());
        assert!((angle(source.view(), turned.view()) - 0.25 * whole).abs() < 1e-6, "{turned}");
        assert_eq!(turn(source.view(), direction.view(), 0.0), Ok(source));
    }

    #[test]
    fn a_sum_takes_weights_as_they_are() {
        let (one, other) = (array![1.0, 2.0], array![10.0, -20.0]);
        assert_eq!(weighted_sum(&[one.view(), other.view()], &[2.0, 0.5]), array![7.0, -6.0]);
    }

    #[test]
    fn a_caller_is_told_which_argument_is_wrong() {
        let (zero, one, longer) = (array![0.0, 0.0], array![1.0, 2.0], array![1.0, 2.0, 3.0]);
        for (start, end, t, wrong) in [
            (&one, &one, 1.5, "t"),
            (&one, &one, f64::NAN, "t"),
            (&one, &longer, 0.5, "end"),
            (&zero, &one, 0.5, "start"),
            (&one, &zero, 0.5, "end"),
            (&one, &(-1.0 * &one), 0.5, "end"),
        ] {
            let error = slerp(start.view(), end.view(), t).unwrap_err();
            assert!(matches!(error, Error::Option { option, .. } if option == wrong), "{wrong}: {error}");
        }
    }
}
