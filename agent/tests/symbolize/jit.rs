//! Generated code: perf maps and jitdump files.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use everflame_agent::object::JitProcess;
use everflame_agent::symbolize::Symbolizer;
use tempfile::TempDir;

use crate::binary::{self, describe, symbolizer};

/// A process in a root directory of its own.
struct Process {
    root: TempDir,
    jit: JitProcess,
    symbolizer: Symbolizer,
}

impl Process {
    fn new() -> Self {
        let root = TempDir::new().unwrap();
        fs::create_dir(root.path().join("tmp")).unwrap();
        let jit = JitProcess {
            pid: 4711,
            generation: 1,
            namespace_pid: 7,
            uid: fs::metadata(root.path()).unwrap().uid(),
            root: Some(Arc::new(File::open(root.path()).unwrap().into())),
            jitdumps: vec![],
        };
        Self { root, jit, symbolizer: symbolizer() }
    }

    fn perf_map(&self) -> PathBuf {
        self.root.path().join("tmp/perf-7.map")
    }

    fn append(&self, bytes: &[u8]) {
        let mut options = OpenOptions::new();
        let mut file = options.create(true).append(true).open(self.perf_map()).unwrap();
        file.write_all(bytes).unwrap();
    }

    /// Makes `file` another user's than the process, in one way or the other.
    fn disown(&mut self, file: &Path) {
        match self.jit.uid {
            0 => chown(file, Some(12345), None).unwrap(),
            uid => self.jit.uid = uid + 1,
        }
    }

    fn check(&mut self, address: u64, expected: &[&str]) {
        let lines = self.symbolizer.jit(&self.jit, &[address]).remove(0);
        assert_eq!(describe(&lines), expected, "{address:#x}");
    }
}

#[test]
fn perf_map_is_read_on_as_it_grows() {
    let mut process = Process::new();
    process.check(0x1000, &[]);
    process.append(b"1000 10 first\n\xff\xfe garbage\n\n2000 10 second with spaces\n3000 1");
    process.check(0x1000, &["first"]);
    process.check(0x100f, &["first"]);
    process.check(0x1010, &[]);
    process.check(0x2008, &["second with spaces"]);
    process.check(0x3000, &[]);
    process.append(b"0 third\n");
    process.check(0x3000, &["third"]);
    // Compiled again to the same place.
    process.append(b"1000 10 first v2\n");
    process.check(0x1000, &["first v2"]);
    assert_eq!(process.symbolizer.stats().parse_failures, 0);
}

#[test]
fn replaced_perf_map_is_read_anew() {
    let mut process = Process::new();
    process.append(b"1000 10 old\n2000 10 gone\n");
    process.check(0x2000, &["gone"]);
    fs::remove_file(process.perf_map()).unwrap();
    process.append(b"1000 10 new\n");
    process.check(0x1000, &["new"]);
    process.check(0x2000, &[]);
}

#[test]
fn perf_map_link_does_not_lead_out_of_the_processes_root() {
    let mut process = Process::new();
    let outside = TempDir::new().unwrap();
    let map = outside.path().join("map");
    fs::write(&map, "1000 10 outside\n").unwrap();
    std::os::unix::fs::symlink(&map, process.perf_map()).unwrap();
    process.check(0x1000, &[]);
}

#[test]
fn perf_map_by_another_user_is_not_read() {
    let mut process = Process::new();
    process.append(b"1000 10 forged\n");
    process.disown(&process.perf_map());
    process.check(0x1000, &[]);
}

#[test]
fn jitdump_by_another_user_is_not_read() {
    let mut process = Process::new();
    let path = process.root.path().join("jit-7.dump");
    Dump::create(&path).record(0, &load(0x1000, 0x20, "forged"));
    process.jit.jitdumps.push(binary::object(&path));
    process.disown(&path);
    process.check(0x1000, &[]);
}

/// The root is held open, so that its path may be gone.
#[test]
fn perf_map_is_found_after_the_process_has_ended() {
    let mut process = Process::new();
    process.append(b"1000 10 brief\n");
    let moved = TempDir::new().unwrap();
    fs::rename(process.root.path(), moved.path().join("root")).unwrap();
    process.check(0x1000, &["brief"]);
}

#[test]
fn reused_process_id_has_no_names_of_its_former_owner() {
    let mut process = Process::new();
    process.append(b"1000 10 old\n");
    process.check(0x1000, &["old"]);
    fs::remove_file(process.perf_map()).unwrap();
    process.jit.generation += 1;
    process.check(0x1000, &[]);
}

#[test]
fn perf_map_that_is_no_file_does_not_block() {
    let mut process = Process::new();
    let made = std::process::Command::new("mkfifo").arg(process.perf_map()).status().unwrap();
    assert!(made.success());
    process.check(0x1000, &[]);
}

#[test]
fn endless_line_is_skipped() {
    let mut process = Process::new();
    process.append(&vec![b'1'; 100_000]);
    process.append(b"\n1000 10 after\n");
    process.check(0x1000, &["after"]);
}

/// Writes a jitdump file as the specification has it.
struct Dump(File);

impl Dump {
    fn create(path: &Path) -> Self {
        let mut file = File::create(path).unwrap();
        let words: [u32; 10] = [0x4a69_5444, 1, 40, 62, 0, 7, 0, 0, 0, 0];
        words.iter().for_each(|word| file.write_all(&word.to_le_bytes()).unwrap());
        Self(file)
    }

    fn record(&mut self, kind: u32, body: &[u8]) {
        self.0.write_all(&record(kind, body)).unwrap();
    }
}

fn record(kind: u32, body: &[u8]) -> Vec<u8> {
    let size = u32::try_from(16 + body.len()).unwrap();
    [&kind.to_le_bytes()[..], &size.to_le_bytes(), &[0; 8], body].concat()
}

fn load(address: u64, size: u64, name: &str) -> Vec<u8> {
    let numbers = [0, address, address, size, 1];
    let mut body = numbers.map(u64::to_le_bytes).concat();
    body.extend(name.as_bytes());
    body.push(0);
    body.resize(body.len() + usize::try_from(size).unwrap(), 0x90);
    body
}

fn debug_info(address: u64, rows: &[(u64, u32, &[u8])]) -> Vec<u8> {
    let mut body = [address, rows.len() as u64].map(u64::to_le_bytes).concat();
    for (address, line, file) in rows {
        body.extend(address.to_le_bytes());
        body.extend(line.to_le_bytes());
        body.extend(0_u32.to_le_bytes());
        body.extend(*file);
        body.push(0);
    }
    body
}

#[test]
fn jitdump_gives_names_and_lines() {
    let mut process = Process::new();
    let path = process.root.path().join("jit-7.dump");
    let mut dump = Dump::create(&path);
    process.jit.jitdumps.push(binary::object(&path));
    let rows: [(u64, u32, &[u8]); 2] = [(0x1000, 3, b"/src/a.js"), (0x1008, 4, b"\xff")];
    dump.record(2, &debug_info(0x1000, &rows));
    dump.record(0, &load(0x1000, 0x20, "compute"));
    dump.record(0, &load(0x2000, 0x20, "_ZN3foo3barEi"));
    dump.record(99, &[1, 2, 3]);
    process.check(0x1004, &["compute a.js:3"]);
    process.check(0x1010, &["compute a.js:4"]);
    process.check(0x1020, &[]);
    process.check(0x2000, &["foo::bar(int)"]);

    // The rest of a record comes later; then the code moves.
    let moved = record(1, &[0, 0x1000, 0x1000, 0x5000, 0x20, 1].map(u64::to_le_bytes).concat());
    dump.0.write_all(&moved[..20]).unwrap();
    process.check(0x5004, &[]);
    dump.0.write_all(&moved[20..]).unwrap();
    process.check(0x5004, &["compute a.js:3"]);
    process.check(0x1004, &[]);
    assert_eq!(process.symbolizer.stats().parse_failures, 0);
}

#[test]
fn hostile_jitdump_is_read_no_further() {
    let endless_rows = [0x1000_u64, u64::MAX].map(u64::to_le_bytes).concat();
    let mut too_small = record(0, &load(0x2000, 0x10, "bad"));
    too_small[4..8].copy_from_slice(&3_u32.to_le_bytes());
    let short_load = record(0, &[0; 12]);
    for bad in [record(2, &endless_rows), too_small, short_load] {
        let mut process = Process::new();
        let path = process.root.path().join("jit-7.dump");
        let mut dump = Dump::create(&path);
        process.jit.jitdumps.push(binary::object(&path));
        dump.record(0, &load(0x1000, 0x10, "good"));
        dump.0.write_all(&bad).unwrap();
        dump.record(0, &load(0x3000, 0x10, "after"));
        process.check(0x1000, &["good"]);
        process.check(0x3000, &[]);
        assert_eq!(process.symbolizer.stats().parse_failures, 1, "counted once");
    }
}
