//! Profiles as the tests look at them.

use std::path::Path;

use everflame_profile::{DecodeLimits, decode, pprof};

use crate::waits::ThreadTruth;

/// One sample with everything looked up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    /// Function names, leaf first, with inlined ones; an empty name for a frame without
    /// symbol.
    pub stack: Vec<String>,
    /// Samples.
    pub count: i64,
    /// Nanoseconds, or bytes.
    pub value: i64,
    /// All values, in the order of the profile's sample types.
    pub values: Vec<i64>,
    /// Labels.
    pub labels: Vec<(String, String)>,
}

impl Sample {
    /// The value of a label; empty if it has none.
    pub fn label(&self, name: &str) -> &str {
        self.labels.iter().find(|(label, _)| label == name).map_or("", |(_, value)| value)
    }

    /// Whether the function is on the stack.
    pub fn has(&self, function: &str) -> bool {
        self.stack.iter().any(|name| name == function)
    }
}

/// Reads a profile from a file and looks its samples up.
pub fn read(path: &Path) -> (pprof::Profile, Vec<Sample>) {
    let bytes = std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let profile = decode(&bytes, &DecodeLimits::default()).expect("a valid profile");
    let samples = samples(&profile);
    (profile, samples)
}

/// The samples of a profile, looked up.
pub fn samples(profile: &pprof::Profile) -> Vec<Sample> {
    let text = |index: i64| {
        let index = usize::try_from(index).expect("string indices are positive");
        profile.string_table[index].clone()
    };
    let function = |id: u64| {
        let function = profile.function.iter().find(|function| function.id == id);
        text(function.expect("functions of lines exist").name)
    };
    let frames = |id: &u64| {
        let location = profile.location.iter().find(|location| location.id == *id);
        let location = location.expect("locations of samples exist");
        if location.line.is_empty() {
            return vec![String::new()];
        }
        location.line.iter().map(|line| function(line.function_id)).collect()
    };
    let label = |label: &pprof::Label| {
        let value = if label.str == 0 { label.num.to_string() } else { text(label.str) };
        (text(label.key), value)
    };
    profile
        .sample
        .iter()
        .map(|sample| Sample {
            stack: sample.location_id.iter().flat_map(frames).collect(),
            count: sample.value[0],
            value: sample.value[1],
            values: sample.value.clone(),
            labels: sample.label.iter().map(label).collect(),
        })
        .collect()
}

/// The number of samples.
pub fn total<'a>(samples: impl IntoIterator<Item = &'a Sample>) -> i64 {
    samples.into_iter().map(|sample| sample.count).sum()
}

/// The samples of a thread.
pub fn of_thread(samples: &[Sample], tid: u32) -> impl Iterator<Item = &Sample> + Clone {
    let tid = tid.to_string();
    samples.iter().filter(move |sample| sample.label("tid") == tid)
}

/// The samples of the span that a thread tells of: after it waited for the start.
pub fn in_span<'a>(
    samples: &'a [Sample],
    thread: &ThreadTruth,
) -> impl Iterator<Item = &'a Sample> + Clone {
    of_thread(samples, thread.tid)
        .filter(|sample| sample.has("party_thread") && !sample.has("wait_for_start"))
}

/// Whether the thread was ready, and only waited for a CPU.
pub fn is_run_queue(sample: &&Sample) -> bool {
    sample.label("reason") == "runqueue"
}

/// Sum of values, in nanoseconds.
pub fn ns<'a>(samples: impl IntoIterator<Item = &'a Sample>) -> f64 {
    samples.into_iter().map(|sample| sample.value as f64).sum()
}
