//! The best of several draws (arXiv 2204.06125, section 2.2): the image embedding that has the largest dot product with
//! the text embedding.

use ndarray::{Array2, ArrayView1};

/// The scores of the draws of some rows, added in any order of rows, and in order within a row.
#[derive(Debug, Clone, PartialEq)]
pub struct Draws {
    /// `(rows, draws)`.
    scores: Array2<f32>,
    /// The best draw of each row so far.
    best: Vec<usize>,
}

impl Draws {
    /// For so many rows and draws of each.
    pub fn new(rows: usize, draws: usize) -> Self {
        Self { scores: Array2::zeros((rows, draws)), best: vec![0; rows] }
    }

    /// Adds the `draw`-th draw of a row, `(dim)`, and its text embedding, `(dim)`. Returns whether it is the best so far;
    /// of equals, the first is.
    pub fn add(&mut self, row: usize, draw: usize, image: ArrayView1<f32>, text: ArrayView1<f32>) -> bool {
        let score =
            image.iter().zip(text).map(|(image, text)| f64::from(*image) * f64::from(*text)).sum::<f64>() as f32;
        let is_best = draw == 0 || score > self.scores[[row, self.best[row]]];
        self.scores[[row, draw]] = score;
        if is_best {
            self.best[row] = draw;
        }
        is_best
    }

    /// The best draw of each row.
    pub fn best(&self) -> &[usize] {
        &self.best
    }

    /// The dot products, `(rows, draws)`.
    pub fn into_scores(self) -> Array2<f32> {
        self.scores
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;

    #[test]
    fn the_largest_dot_product_is_kept_and_of_equals_the_first() {
        let mut draws = Draws::new(2, 3);
        let text = array![1.0, -2.0];
        for (row, draw, image, is_best) in [
            (0, 0, array![-3.0, 0.0], true),
            (1, 0, array![0.0, -1.0], true),
            (0, 1, array![-1.0, 0.0], true),
            (1, 1, array![2.0, 0.0], false),
            (0, 2, array![-2.0, 0.0], false),
            (1, 2, array![0.0, 1.0], false),
        ] {
            assert_eq!(draws.add(row, draw, image.view(), text.view()), is_best, "{row} {draw}");
        }
        assert_eq!(draws.best(), [1, 0]);
        assert_eq!(draws.into_scores(), array![[-3.0, -1.0, -2.0], [2.0, 2.0, -2.0]]);
    }
}
