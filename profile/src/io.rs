//! The report on disks: which process wants what of which disk, how long that takes, and which code
//! it is.
//!
//! It is made of a profile of kind `block`; what its samples say is in [`crate::block`].

use std::collections::HashMap;

use everflame_proto::pprof::{Profile, Sample};
use serde::Serialize;

use crate::block::{DEVICE, DEVICE_TIME, EVENT, Event, FAILED, OPERATION, QUEUE_TIME, WRITEBACK};
use crate::frames::Frames;
use crate::lengths::{Latency, Lengths};
use crate::select::{label, number, sample_type_index};

/// Everything that was done to disks, what took longest in all first.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct IoReport {
    /// How long was recorded, in seconds.
    pub seconds: f64,
    /// By disk, process and operation.
    pub operations: Vec<IoTotals>,
}

/// What one process did to one disk.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct IoTotals {
    /// The disk.
    pub device: String,
    /// `read`, `write`, `flush`, `discard`; `sync` is making a file durable, whatever requests that took.
    pub operation: String,
    /// The kernel wrote what some process had written before.
    pub writeback: bool,
    /// The process, if the profile says so.
    pub pid: Option<String>,
    /// Its name.
    pub comm: Option<String>,
    /// How often.
    pub ops: i64,
    /// Of these, how many failed.
    pub failed: i64,
    /// How often in a second.
    pub ops_per_second: f64,
    /// What was read or written.
    pub bytes: i64,
    /// The same in a second.
    pub bytes_per_second: f64,
    /// From when a request is made to when it goes to its disk.
    pub queue: Latency,
    /// From then to its end.
    pub device_time: Latency,
    /// How many took how long at their disk, in powers of two.
    pub histogram: Vec<IoBucket>,
    /// The code that wanted it, what took longest first.
    pub stacks: Vec<IoStack>,
}

/// Requests that took about as long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct IoBucket {
    /// At least that long, in nanoseconds: a power of two, or 0. The next bucket begins at twice of it.
    pub from_ns: i64,
    /// How many.
    pub ops: i64,
}

/// What the same code wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct IoStack {
    /// Functions, leaf first.
    pub stack: Vec<String>,
    /// How often.
    pub ops: i64,
    /// What was read or written.
    pub bytes: i64,
    /// Time in the queue, in nanoseconds.
    pub queue_ns: i64,
    /// Time at the disk.
    pub device_ns: i64,
}

/// What makes rows of the report: device, operation, writeback, pid, comm.
type Key = (String, String, bool, String, String);

#[derive(Default)]
struct Building {
    failed: i64,
    queue: Lengths,
    device: Lengths,
    stacks: HashMap<Vec<String>, IoStack>,
}

/// Makes the report of a profile of kind `block`; empty of any other.
pub fn io(profile: &Profile) -> IoReport {
    let names = ["ops", "bytes", "queue_latency", "device_latency"];
    let indices = names.map(|name| sample_type_index(profile, Some(name)).ok());
    let [Some(ops), Some(bytes), Some(queue), Some(device)] = indices else {
        return IoReport::default();
    };
    let seconds = profile.duration_nanos.max(0) as f64 / 1e9;
    let frames = Frames::new(profile);
    let mut rows: HashMap<Key, Building> = HashMap::new();
    for sample in &profile.sample {
        let value = |index: usize| sample.value.get(index).copied().unwrap_or(0);
        let row = rows.entry(key(profile, sample)).or_default();
        let is_failed = label(profile, sample, FAILED) == "true";
        row.failed = row.failed.saturating_add(if is_failed { value(ops) } else { 0 });
        row.queue.add(number(profile, sample, QUEUE_TIME), value(queue), value(ops));
        row.device.add(number(profile, sample, DEVICE_TIME), value(device), value(ops));
        let names = frames.stack(sample).map(|frame| frames.name(frame).to_owned());
        let stack = row.stacks.entry(names.collect()).or_default();
        let add = |sum: &mut i64, index| *sum = sum.saturating_add(value(index));
        add(&mut stack.ops, ops);
        add(&mut stack.bytes, bytes);
        add(&mut stack.queue_ns, queue);
        add(&mut stack.device_ns, device);
    }
    let mut operations: Vec<IoTotals> =
        rows.into_iter().map(|(key, row)| row.finish(key, seconds)).collect();
    let took =
        |totals: &IoTotals| totals.queue.total_ns.saturating_add(totals.device_time.total_ns);
    operations.sort_by(|a, b| {
        (took(b), &a.device, &a.operation, &a.pid).cmp(&(took(a), &b.device, &b.operation, &b.pid))
    });
    IoReport { seconds, operations }
}

fn key(profile: &Profile, sample: &Sample) -> Key {
    let text = |key| label(profile, sample, key);
    let operation =
        if text(EVENT) == Event::Sync.name() { Event::Sync.name() } else { text(OPERATION) };
    (
        text(DEVICE).to_owned(),
        operation.to_owned(),
        text(WRITEBACK) == "true",
        text("pid").to_owned(),
        text("comm").to_owned(),
    )
}

impl Building {
    fn finish(self, (device, operation, writeback, pid, comm): Key, seconds: f64) -> IoTotals {
        let some = |text: String| Some(text).filter(|text| !text.is_empty());
        let mut stacks: Vec<IoStack> =
            self.stacks.into_iter().map(|(stack, totals)| IoStack { stack, ..totals }).collect();
        let took = |stack: &IoStack| stack.queue_ns.saturating_add(stack.device_ns);
        stacks.sort_by(|a, b| (took(b), &a.stack).cmp(&(took(a), &b.stack)));
        let sum = |part: fn(&IoStack) -> i64| stacks.iter().map(part).fold(0, i64::saturating_add);
        let (ops, bytes) = (sum(|stack| stack.ops), sum(|stack| stack.bytes));
        let per_second = |value: i64| if seconds > 0.0 { value as f64 / seconds } else { 0.0 };
        let buckets = self.device.buckets();
        IoTotals {
            device,
            operation,
            writeback,
            pid: some(pid),
            comm: some(comm),
            ops,
            failed: self.failed,
            ops_per_second: per_second(ops),
            bytes,
            bytes_per_second: per_second(bytes),
            queue: self.queue.latency(),
            device_time: self.device.latency(),
            histogram: buckets.map(|(from_ns, ops)| IoBucket { from_ns, ops }).collect(),
            stacks,
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::builder::{FunctionInfo, LabelValue, ProfileBuilder};
    use crate::kind::Kind;

    use super::*;

    fn sample(builder: &mut ProfileBuilder, comm: &str, operation: &str, us: i64, ops: i64) {
        let function = FunctionInfo { name: comm, system_name: comm, filename: "", start_line: 0 };
        let function = builder.function(function);
        let stack = [builder.location(None, 0, &[(function, 0)])];
        let ns = us * 1000;
        let bucket = 1 << ns.ilog2();
        let labels = [
            (DEVICE, LabelValue::Str("vda")),
            (OPERATION, LabelValue::Str(operation)),
            ("comm", LabelValue::Str(comm)),
            (DEVICE_TIME, LabelValue::Num(bucket, "nanoseconds")),
        ];
        builder.sample(&stack, &[ops, ops * 4096, 0, ops * ns], &labels);
    }

    #[test]
    fn requests_add_up_by_process_and_operation() {
        let kind = Kind::Block;
        let mut builder = ProfileBuilder::new(kind.sample_types(), kind.default_sample_type());
        builder.set_time(0, 2_000_000_000);
        sample(&mut builder, "quick", "read", 10, 990);
        sample(&mut builder, "quick", "read", 5000, 10);
        sample(&mut builder, "slow", "write", 50_000, 100);
        let report = io(&builder.finish());
        assert_eq!(report.operations.len(), 2);
        let [slow, quick] = &report.operations[..] else { unreachable!() };
        assert_eq!((slow.comm.as_deref(), slow.ops), (Some("slow"), 100));
        assert_eq!((quick.ops, quick.bytes, quick.ops_per_second), (1000, 4_096_000, 500.0));
        let Latency { p50_ns, p90_ns, p99_ns, max_ns, .. } = quick.device_time;
        assert_eq!((p50_ns, p90_ns, p99_ns, max_ns), (10_000, 10_000, 10_000, 5_000_000));
        assert_eq!(quick.histogram.len(), 2);
        assert_eq!(quick.histogram[0], IoBucket { from_ns: 8192, ops: 990 });
        assert_eq!(quick.stacks[0].stack, ["quick"]);
    }

    #[test]
    fn other_profiles_have_no_requests() {
        assert_eq!(io(&Profile::default()), IoReport::default());
    }
}
