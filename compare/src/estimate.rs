//! Two means: how sure one can be of their difference, and of their ratio.
//!
//! The replicate is a host (or an instance), never a sample: samples of one host are alike, and a test that takes
//! each for itself finds differences where there are none. A mean is weighted by exposure (seconds, requests), so
//! that it is the ratio of the sums; its variance comes from how replicates differ from it (the linearised variance
//! of a ratio estimator, Cochran, Sampling Techniques, chapter 6), and is never taken to be less than that of
//! counting samples. How many replicates there are in effect is Kish's (Σw)²/Σw².
//!
//! Sides of different hosts are compared as by Welch (1947, degrees of freedom by Satterthwaite), hosts that ran
//! both by their differences. The interval of the ratio is Fieller's (1954): the ratios that the test of
//! `compare − ratio · base = 0` does not reject.

use serde::{Deserialize, Serialize};
use statrs::distribution::{ContinuousCDF, StudentsT};

/// What a replicate has of something.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Observation {
    /// The sum, such as nanoseconds.
    pub value: f64,
    /// What the sum is divided by: seconds, requests, or the sum of everything. Without it a replicate says nothing.
    pub exposure: f64,
    /// Samples that the sum was estimated from; 0 where it was not.
    pub samples: f64,
}

impl Observation {
    fn ratio(self) -> f64 {
        self.value / self.exposure
    }
}

/// Two means, and how they vary.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Means {
    /// Value per exposure in the base.
    pub base: f64,
    /// The same of the other side.
    pub compare: f64,
    base_variance: f64,
    compare_variance: f64,
    covariance: f64,
    freedom: Freedom,
}

/// Degrees of freedom.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Freedom {
    Pairs(f64),
    Sides { base: f64, compare: f64 },
}

/// A range in which something is believed to be.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// Its lower end.
    pub low: f64,
    /// Its upper end; none where the data does not bound it.
    pub high: Option<f64>,
}

/// What a test says.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Tested {
    /// The probability of a difference at least as large, in either direction, where there is none.
    pub p: f64,
    /// The probability of as large a surplus of the second side where it has none.
    pub p_greater: f64,
}

impl Means {
    /// Of sides that are independent of each other; `None` when a side has fewer than two replicates.
    pub fn unpaired(base: &[Observation], compare: &[Observation]) -> Option<Self> {
        let per_sample = value_per_sample(base.iter().chain(compare));
        let base = Side::new(base)?;
        let compare = Side::new(compare)?;
        Some(Self {
            base: base.mean,
            compare: compare.mean,
            base_variance: base.variance().max(base.counting_variance(per_sample)),
            compare_variance: compare.variance().max(compare.counting_variance(per_sample)),
            covariance: 0.0,
            freedom: Freedom::Sides {
                base: base.effective - 1.0,
                compare: compare.effective - 1.0,
            },
        })
    }

    /// Of hosts that have been on both sides, (base, compare); `None` when there are fewer than two.
    pub fn paired(pairs: &[(Observation, Observation)]) -> Option<Self> {
        let both = || pairs.iter().flat_map(|(base, compare)| [base, compare]);
        let per_sample = value_per_sample(both());
        // What is on one side only for a short time says little of the difference.
        let weights: Vec<f64> = pairs
            .iter()
            .map(|(base, compare)| weight_of_pair(base.exposure, compare.exposure))
            .collect();
        let side = |pick: fn(&(Observation, Observation)) -> Observation| {
            Side::weighted(pairs.iter().map(pick).zip(weights.iter().copied()))
        };
        let (base, compare) = (side(|pair| pair.0)?, side(|pair| pair.1)?);
        let residuals = base.residuals().zip(compare.residuals());
        let covariance =
            base.correction() * residuals.map(|(base, compare)| base * compare).sum::<f64>();
        let mut means = Self {
            base: base.mean,
            compare: compare.mean,
            base_variance: base.variance(),
            compare_variance: compare.variance(),
            covariance,
            freedom: Freedom::Pairs(base.effective - 1.0),
        };
        // Counting is independent between the sides: differences vary at least so much.
        let counting = (base.counting_variance(per_sample), compare.counting_variance(per_sample));
        if means.variance(1.0) < counting.0 + counting.1 {
            (means.base_variance, means.compare_variance) = counting;
            means.covariance = 0.0;
        }
        Some(means)
    }

    /// What `compare` has more than `base`.
    pub fn difference(&self) -> f64 {
        self.compare - self.base
    }

    /// `compare / base`; `None` when the base has nothing.
    pub fn ratio(&self) -> Option<f64> {
        (self.base > 0.0).then(|| self.compare / self.base)
    }

    /// Tests whether `compare` is `ratio` times `base`.
    pub fn test(&self, ratio: f64) -> Tested {
        let difference = self.compare - ratio * self.base;
        let deviation = self.variance(ratio).sqrt();
        if deviation <= 0.0 || !deviation.is_finite() {
            let differs = difference != 0.0 && deviation == 0.0;
            let is_greater = differs && difference > 0.0;
            return Tested {
                p: if differs { 0.0 } else { 1.0 },
                p_greater: if is_greater { 0.0 } else { 1.0 },
            };
        }
        let Some(distribution) = students_t(self.degrees_of_freedom(ratio)) else {
            return Tested { p: 1.0, p_greater: 1.0 };
        };
        let t = difference / deviation;
        Tested { p: 2.0 * distribution.sf(t.abs()), p_greater: distribution.sf(t) }
    }

    /// The interval of [`Self::difference`].
    pub fn difference_interval(&self, confidence: f64) -> Interval {
        let margin = self.quantile(1.0, confidence) * self.variance(1.0).sqrt();
        Interval { low: self.difference() - margin, high: Some(self.difference() + margin) }
    }

    /// The interval of [`Self::ratio`]; `None` when the base has nothing. Where the base may be nothing, the ratio
    /// may be anything above the lower end.
    pub fn ratio_interval(&self, confidence: f64) -> Option<Interval> {
        let t = self.quantile(self.ratio()?, confidence);
        // Ratios r with (compare − r·base)² = t²·variance(r), a quadratic in r: a r² − 2 b r + c = 0.
        let a = self.base.powi(2) - t * t * self.base_variance;
        let b = self.base * self.compare - t * t * self.covariance;
        let c = self.compare.powi(2) - t * t * self.compare_variance;
        let root = (b * b - a * c).max(0.0).sqrt();
        if a > 0.0 {
            return Some(Interval {
                low: ((b - root) / a).max(0.0),
                high: Some(((b + root) / a).max(0.0)),
            });
        }
        // Below the larger root of a parabola that opens downwards nothing is rejected but what lies between.
        let low =
            if c > 0.0 && a < 0.0 { ((b - root) / a).max((b + root) / a).max(0.0) } else { 0.0 };
        Some(Interval { low: low.min(self.ratio()?), high: None })
    }

    /// The variance of `compare − ratio · base`.
    fn variance(&self, ratio: f64) -> f64 {
        let sum = self.compare_variance + ratio * ratio * self.base_variance
            - 2.0 * ratio * self.covariance;
        sum.max(0.0)
    }

    fn degrees_of_freedom(&self, ratio: f64) -> f64 {
        match self.freedom {
            Freedom::Pairs(pairs) => pairs,
            Freedom::Sides { base, compare } => {
                let base_variance = ratio * ratio * self.base_variance;
                let sum = self.compare_variance + base_variance;
                sum * sum / (self.compare_variance.powi(2) / compare + base_variance.powi(2) / base)
            }
        }
    }

    fn quantile(&self, ratio: f64, confidence: f64) -> f64 {
        let distribution = students_t(self.degrees_of_freedom(ratio));
        distribution.map_or(0.0, |distribution| distribution.inverse_cdf(0.5 + confidence / 2.0))
    }
}

/// What a host that was on both sides counts: the inverse of how its difference varies.
fn weight_of_pair(base_exposure: f64, compare_exposure: f64) -> f64 {
    1.0 / (1.0 / base_exposure + 1.0 / compare_exposure)
}

fn students_t(freedom: f64) -> Option<StudentsT> {
    StudentsT::new(0.0, 1.0, freedom).ok()
}

fn value_per_sample<'a>(observations: impl Iterator<Item = &'a Observation>) -> f64 {
    let (value, samples) = observations
        .fold((0.0, 0.0), |(value, samples), it| (value + it.value, samples + it.samples));
    if samples > 0.0 { value / samples } else { 0.0 }
}

/// Replicates with weights that sum up to 1.
struct Side {
    replicates: Vec<(Observation, f64)>,
    mean: f64,
    /// How many they are in effect.
    effective: f64,
}

impl Side {
    fn new(observations: &[Observation]) -> Option<Self> {
        Self::weighted(observations.iter().map(|it| (*it, it.exposure)))
    }

    fn weighted(observations: impl Iterator<Item = (Observation, f64)>) -> Option<Self> {
        let mut replicates: Vec<_> = observations.filter(|(_, weight)| *weight > 0.0).collect();
        let sum: f64 = replicates.iter().map(|(_, weight)| weight).sum();
        for (_, weight) in &mut replicates {
            *weight /= sum;
        }
        let mean = replicates.iter().map(|(it, weight)| weight * it.ratio()).sum();
        let squares: f64 = replicates.iter().map(|(_, weight)| weight * weight).sum();
        let effective = 1.0 / squares;
        (replicates.len() >= 2 && effective > 1.0).then_some(Self { replicates, mean, effective })
    }

    /// How far each replicate moves the mean.
    fn residuals(&self) -> impl Iterator<Item = f64> {
        self.replicates.iter().map(|(it, weight)| weight * (it.ratio() - self.mean))
    }

    /// n/(n − 1): residuals are from a mean that is of the same replicates.
    fn correction(&self) -> f64 {
        self.effective / (self.effective - 1.0)
    }

    fn variance(&self) -> f64 {
        self.correction() * self.residuals().map(|residual| residual * residual).sum::<f64>()
    }

    /// The variance if nothing varied but how many samples are taken (Poisson).
    fn counting_variance(&self, value_per_sample: f64) -> f64 {
        let exposure: f64 = self.replicates.iter().map(|(it, _)| it.exposure).sum();
        // Where nothing was seen there may have been one.
        let mean = self.mean.max(value_per_sample / exposure);
        let of = |(it, weight): &(Observation, f64)| {
            weight * weight * value_per_sample * mean / it.exposure
        };
        self.replicates.iter().map(of).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// R's data set `sleep`: hours that ten people slept longer with either of two drugs.
    const FIRST: [f64; 10] = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0];
    const SECOND: [f64; 10] = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4];

    fn each(values: &[f64]) -> Vec<Observation> {
        values
            .iter()
            .map(|value| Observation { value: *value, exposure: 1.0, samples: 0.0 })
            .collect()
    }

    #[track_caller]
    fn check(found: f64, expected: f64) {
        assert!(
            (found - expected).abs() <= 1e-6 * expected.abs().max(1e-3),
            "{found}, not {expected}"
        );
    }

    #[test]
    fn sides_are_tested_as_r_does() {
        // t.test(SECOND, FIRST)
        let means = Means::unpaired(&each(&FIRST), &each(&SECOND)).unwrap();
        check(means.test(1.0).p, 0.079_394_14);
        check(means.test(1.0).p_greater, 0.079_394_14 / 2.0);
        let interval = means.difference_interval(0.95);
        check(interval.low, -0.205_483_2);
        check(interval.high.unwrap(), 3.365_483_2);
    }

    #[test]
    fn pairs_are_tested_as_r_does() {
        // t.test(SECOND, FIRST, paired = TRUE)
        let pairs: Vec<_> = each(&FIRST).into_iter().zip(each(&SECOND)).collect();
        let means = Means::paired(&pairs).unwrap();
        check(means.test(1.0).p, 0.002_832_890);
        let interval = means.difference_interval(0.95);
        check(interval.low, 0.700_114_3);
        check(interval.high.unwrap(), 2.459_885_7);
    }

    #[test]
    fn ratio_interval_is_what_the_test_does_not_reject() {
        let of =
            |values: &[f64]| each(&values.iter().map(|value| value + 20.0).collect::<Vec<_>>());
        let pairs: Vec<_> = of(&FIRST).into_iter().zip(of(&SECOND)).collect();
        let means = Means::paired(&pairs).unwrap();
        let interval = means.ratio_interval(0.95).unwrap();
        assert!(
            interval.low < means.ratio().unwrap()
                && means.ratio().unwrap() < interval.high.unwrap()
        );
        check(means.test(interval.low).p, 0.05);
        check(means.test(interval.high.unwrap()).p, 0.05);
    }

    #[test]
    fn ratio_to_what_may_be_nothing_has_no_upper_end() {
        let means = Means::unpaired(
            &each(&[0.0, 0.0, 0.0, 0.0, 1.0]),
            &each(&[9.0, 10.0, 11.0, 10.0, 9.0]),
        )
        .unwrap();
        let interval = means.ratio_interval(0.95).unwrap();
        assert_eq!(interval.high, None);
        assert!(interval.low > 1.0 && interval.low < means.ratio().unwrap(), "{interval:?}");
        assert!(means.test(interval.low).p <= 0.06, "{interval:?}");
    }

    #[test]
    fn mean_is_the_ratio_of_the_sums() {
        let base = [(10.0, 100.0), (30.0, 100.0), (5.0, 10.0)];
        let of = |(value, exposure)| Observation { value, exposure, samples: 0.0 };
        let base = base.map(of);
        let means = Means::unpaired(&base, &base).unwrap();
        check(means.base, 45.0 / 210.0);
        assert_eq!(means.test(1.0).p, 1.0);
    }

    #[test]
    fn counting_is_the_least_that_varies() {
        // Five hosts that happen to agree, with 4 samples each: Poisson's deviation of 20 is 4.5.
        let of = |value, samples| vec![Observation { value, exposure: 1.0, samples }; 5];
        let (few, more) = (of(4.0, 4.0), of(5.0, 5.0));
        let means = Means::unpaired(&few, &more).unwrap();
        check(means.variance(1.0), 4.0 / 5.0 + 1.0);
        let pairs: Vec<_> = few.into_iter().zip(more).collect();
        check(Means::paired(&pairs).unwrap().variance(1.0), 4.0 / 5.0 + 1.0);
    }

    #[test]
    fn one_replicate_or_none_says_nothing() {
        let some = each(&[1.0, 2.0]);
        assert_eq!(Means::unpaired(&some, &each(&[1.0])), None);
        assert_eq!(Means::unpaired(&[], &some), None);
        let idle =
            [Observation::default(), Observation { value: 1.0, exposure: 1.0, samples: 1.0 }];
        assert_eq!(Means::unpaired(&some, &idle), None);
    }

    #[test]
    fn equal_values_without_variance_do_not_differ() {
        let same = each(&[3.0, 3.0]);
        assert_eq!(
            Means::unpaired(&same, &same).unwrap().test(1.0),
            Tested { p: 1.0, p_greater: 1.0 }
        );
        let more = Means::unpaired(&same, &each(&[4.0, 4.0])).unwrap();
        assert_eq!(more.test(1.0), Tested { p: 0.0, p_greater: 0.0 });
    }
}
