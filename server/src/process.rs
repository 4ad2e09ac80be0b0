//! What this process itself takes: CPU time and memory, read when asked.

use std::{fmt, fs, io};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric as _},
    metrics::{counter::ConstCounter, gauge::ConstGauge},
    registry::Unit,
};

/// CPU time and resident memory of this process.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct ProcessUsage {
    /// User and system time since the start.
    pub(crate) cpu_seconds: f64,
    /// Memory that is in RAM.
    pub(crate) rss_bytes: u64,
}

impl ProcessUsage {
    /// Reads `/proc/self/stat`.
    ///
    /// # Errors
    /// When that cannot be read or is not as proc(5) describes it.
    pub(crate) fn read() -> io::Result<Self> {
        parse_stat(
            &fs::read_to_string("/proc/self/stat")?,
            rustix::param::clock_ticks_per_second(),
            rustix::param::page_size() as u64,
        )
        .ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidData, "/proc/self/stat is not as expected")
        })
    }
}

/// proc(5): fields 14 and 15 are utime and stime in clock ticks, 24 is rss in
/// pages. Field 2, the name, may have spaces and parentheses, so count after it.
fn parse_stat(stat: &str, ticks_per_second: u64, page_bytes: u64) -> Option<ProcessUsage> {
    let (_, after_name) = stat.rsplit_once(')')?;
    let mut fields = after_name.split_ascii_whitespace();
    let utime: u64 = fields.nth(14 - 3)?.parse().ok()?;
    let stime: u64 = fields.next()?.parse().ok()?;
    let rss_pages: u64 = fields.nth(24 - 16)?.parse().ok()?;
    Some(ProcessUsage {
        cpu_seconds: (utime + stime) as f64 / ticks_per_second as f64,
        rss_bytes: rss_pages * page_bytes,
    })
}

/// Adds the usual `process_*` metrics to a registry.
#[derive(Debug)]
pub(crate) struct ProcessCollector;

impl Collector for ProcessCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let Ok(usage) = ProcessUsage::read() else { return Ok(()) };
        let cpu = ConstCounter::new(usage.cpu_seconds);
        cpu.encode(encoder.encode_descriptor(
            "process_cpu",
            "User and system CPU time of the server",
            Some(&Unit::Seconds),
            cpu.metric_type(),
        )?)?;
        let rss = ConstGauge::new(i64::try_from(usage.rss_bytes).unwrap_or(i64::MAX));
        rss.encode(encoder.encode_descriptor(
            "process_resident_memory",
            "Resident memory of the server",
            Some(&Unit::Bytes),
            rss.metric_type(),
        )?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_is_read_after_the_name() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194560 100 0 0 0 250 50 0 0 20 0 4 0 100 1000000 300 18446744073709551615 1";
        let usage = parse_stat(stat, 100, 4096).unwrap();
        assert_eq!(usage, ProcessUsage { cpu_seconds: 3.0, rss_bytes: 300 * 4096 });
    }

    #[test]
    fn own_usage_can_be_read() {
        assert!(ProcessUsage::read().unwrap().rss_bytes > 0);
    }
}
