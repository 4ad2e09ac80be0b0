//! How fast addresses are resolved, and what that takes: `cargo bench -p everflame-agent
//! --bench symbolize [-- FILE]`. FILE, by default this program, should have debug
//! information. Prints `name value unit` lines.

#![expect(clippy::print_stdout, reason = "that is what a bench is for")]

use std::error::Error;
use std::fs::{self, File};
use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use everflame_agent::object::{BuildId, ObjectFile, ObjectKind};
use everflame_agent::symbolize::{Line, SymbolizeConfig, Symbolizer};
use object::{Object, ObjectSection, ObjectSymbol, SectionKind, SymbolKind};

/// Distinct frames; so many fit the default budget even if all have inlined calls.
const FRAMES: usize = 10_000;

fn main() -> Result<(), Box<dyn Error>> {
    // cargo passes `--bench`.
    let file = std::env::args().skip(1).find(|argument| !argument.starts_with("--"));
    let path = file.map_or_else(std::env::current_exe, |file| Ok(PathBuf::from(file)))?;
    bench_data(&path)?;
    bench_object(path)?;
    bench_kernel()
}

fn bench_data(path: &Path) -> Result<(), Box<dyn Error>> {
    let bytes = fs::read(path)?;
    let parsed = object::File::parse(&*bytes)?;
    let build_id = parsed.build_id()?.and_then(BuildId::new);
    let is_data = |symbol: &object::Symbol<'_, '_>| {
        symbol.kind() == SymbolKind::Data && symbol.is_definition() && symbol.size() > 0
    };
    let data: Vec<u64> = parsed
        .symbols()
        .chain(parsed.dynamic_symbols())
        .filter(is_data)
        .map(|symbol| symbol.address())
        .collect();
    report("data_symbols", data.len() as f64, "symbols");
    let kind = ObjectKind::Elf { file: Some(File::open(path)?) };
    let path = path.to_string_lossy().into_owned();
    let object = Arc::new(ObjectFile { path, build_id, kind });
    let mut symbolizer = Symbolizer::new(SymbolizeConfig::default());
    let started = Instant::now();
    let named = symbolizer.data(&object, &data[..data.len().min(1)]);
    report("data_cold_ms", started.elapsed().as_secs_f64() * 1e3, "ms");
    report("data_named", named.iter().flatten().count() as f64, "symbols");
    report("data_cache_bytes", symbolizer.stats().cache_bytes as f64, "bytes");
    Ok(())
}

fn bench_object(path: PathBuf) -> Result<(), Box<dyn Error>> {
    let (offsets, build_id) = text_offsets(&path)?;
    let path_name = path.to_string_lossy().into_owned();
    let file = Some(File::open(&path)?);
    let kind = ObjectKind::Elf { file };
    let object = Arc::new(ObjectFile { path: path_name, build_id, kind });

    let config = SymbolizeConfig { dwarf_bytes: 1 << 30, ..SymbolizeConfig::default() };
    let mut symbolizer = Symbolizer::new(config);
    let rss_before = rss_bytes()?;
    let started = Instant::now();
    black_box(symbolizer.object(&object, &offsets[..1]));
    report("object_open_ms", started.elapsed().as_secs_f64() * 1e3, "ms");
    report("object_opened_cache_bytes", symbolizer.stats().cache_bytes as f64, "bytes");
    report("object_opened_rss_growth", growth(rss_before)?, "bytes");

    let resolved =
        frames_per_s("object_cold", &offsets[1..], |offsets| symbolizer.object(&object, offsets));
    let lines: usize = resolved.iter().map(|lines| lines.len()).sum();
    let found = resolved.iter().filter(|lines| !lines.is_empty()).count();
    report("object_resolved", found as f64 / resolved.len() as f64 * 100.0, "percent");
    report("object_lines_per_frame", lines as f64 / found as f64, "lines");
    drop(resolved);
    report("object_used_cache_bytes", symbolizer.stats().cache_bytes as f64, "bytes");
    report("object_used_rss_growth", growth(rss_before)?, "bytes");
    frames_per_s("object_warm", &offsets, |offsets| symbolizer.object(&object, offsets));
    symbolizer.trim();
    report("object_trimmed_cache_bytes", symbolizer.stats().cache_bytes as f64, "bytes");
    report("object_trimmed_rss_growth", growth(rss_before)?, "bytes");
    Ok(())
}

fn bench_kernel() -> Result<(), Box<dyn Error>> {
    let rss_before = rss_bytes()?;
    let started = Instant::now();
    let mut symbolizer = Symbolizer::new(SymbolizeConfig::default());
    let status = symbolizer.kernel_status();
    report("kernel_open_ms", started.elapsed().as_secs_f64() * 1e3, "ms");
    report("kernel_rss_growth", growth(rss_before)?, "bytes");
    println!("# {status}");
    let kallsyms = fs::read_to_string("/proc/kallsyms")?;
    let addresses: Vec<u64> = kallsyms
        .lines()
        .filter_map(|line| u64::from_str_radix(line.get(..16)?, 16).ok())
        .filter(|address| address >> 63 == 1)
        .step_by(6)
        .take(FRAMES)
        .collect();
    frames_per_s("kernel_cold", &addresses, |addresses| symbolizer.kernel(addresses));
    frames_per_s("kernel_warm", &addresses, |addresses| symbolizer.kernel(addresses));
    Ok(())
}

/// Offsets all over the text of a file.
fn text_offsets(path: &PathBuf) -> Result<(Vec<u64>, Option<BuildId>), Box<dyn Error>> {
    let bytes = fs::read(path)?;
    let file = object::File::parse(&*bytes)?;
    let text = file.sections().filter(|section| section.kind() == SectionKind::Text);
    let (start, size) = text
        .filter_map(|section| section.file_range())
        .max_by_key(|range| range.1)
        .ok_or("no text")?;
    let step = (size / FRAMES as u64).max(1);
    let build_id = file.build_id()?.and_then(BuildId::new);
    Ok(((0..size / step).map(|index| start + index * step).collect(), build_id))
}

/// Frames come in the hundreds, as from a window.
fn frames_per_s(
    name: &str,
    addresses: &[u64],
    mut resolve: impl FnMut(&[u64]) -> Vec<Arc<[Line]>>,
) -> Vec<Arc<[Line]>> {
    let started = Instant::now();
    let resolved: Vec<_> = addresses.chunks(200).flat_map(&mut resolve).collect();
    let seconds = started.elapsed().as_secs_f64();
    report(&format!("{name}_frames_per_s"), resolved.len() as f64 / seconds, "frames/s");
    resolved
}

fn report(name: &str, value: f64, unit: &str) {
    println!("symbolize_{name} {value:.1} {unit}");
}

fn growth(before: u64) -> Result<f64, Box<dyn Error>> {
    Ok(rss_bytes()?.saturating_sub(before) as f64)
}

fn rss_bytes() -> Result<u64, Box<dyn Error>> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("no VmRSS")?;
    let kib = line.trim().strip_suffix(" kB").ok_or("VmRSS is not in kB")?;
    Ok(kib.parse::<u64>()? * 1024)
}
