//! Many tests at once.

/// Adjusts p-values so that of those below q at most a share of q is expected to be false (Benjamini and Hochberg,
/// 1995; R's `p.adjust(p, "BH")`). In the order in which they came.
pub fn benjamini_hochberg(p: &[f64]) -> Vec<f64> {
    let mut falling: Vec<usize> = (0..p.len()).collect();
    falling.sort_by(|a, b| p[*b].total_cmp(&p[*a]));
    let mut adjusted = vec![1.0; p.len()];
    let mut least = 1.0_f64;
    for (above, at) in falling.into_iter().enumerate() {
        let rank = p.len() - above;
        least = least.min(p[at] * p.len() as f64 / rank as f64);
        adjusted[at] = least;
    }
    adjusted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_those_of_r() {
        // p.adjust(c(0.01, 0.04, 0.03, 0.005, 0.5), "BH")
        let adjusted = benjamini_hochberg(&[0.01, 0.04, 0.03, 0.005, 0.5]);
        for (found, expected) in adjusted.iter().zip([0.025, 0.05, 0.05, 0.025, 0.5]) {
            assert!((found - expected).abs() < 1e-12, "{adjusted:?}");
        }
        assert!(benjamini_hochberg(&[]).is_empty());
    }
}
