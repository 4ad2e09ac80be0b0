//! Requests to disks: a disk that is a file in memory, with so many requests to it, and what is seen of them.

use std::ffi::CStr;
use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use everflame_agent::collect::{BlockConfig, CollectConfig, Collector, ProgramForm};
use everflame_agent::session::{AllocMode, Session, SessionConfig, Target};
use everflame_profile::{IoTotals, Kind, io};
use rustix::fs::OFlags;
use rustix::ioctl::{IntegerSetter, Opcode, ioctl};

use crate::load::{accepted, forms};
use crate::recording::RATE_HZ;

const MODULE: &str = "/modules/loop.ko";
const ONE_DISK: &CStr = c"max_loop=1";
const DISK: &str = "loop0";
const DISK_BYTES: u64 = 16 << 20;

const REQUESTS: usize = 200;
const REQUEST_BYTES: usize = 16 << 10;

const PAUSE: Duration = Duration::from_millis(10);

/// `LOOP_SET_FD` of include/uapi/linux/loop.h.
const LOOP_SET_FD: Opcode = 0x4c00;

/// Returns what was seen.
pub(crate) fn check() -> Result<String> {
    for form in forms() {
        let mut config = CollectConfig::of_blocks(BlockConfig::default());
        config.program_form = Some(form);
        let collector =
            Collector::start(&config).with_context(|| format!("in the form {form:?}"))?;
        // There is no file system that tells when files are durable.
        if form == ProgramForm::Recent {
            accepted(&collector)?;
        }
    }
    let disk = make_disk()?;
    let session = Session::start(SessionConfig {
        kind: Kind::Block,
        rate_hz: RATE_HZ,
        alloc_mode: AllocMode::default(),
        alloc_period_bytes: 1 << 20,
        live_period_bytes: None,
        target: Target::All,
    })?;
    let before = counted()?;
    write_blocks(disk)?;
    let counted = counted()? - before;
    let recording = session.finish()?;
    let report = io(&recording.profile);
    let of_disk = |totals: &&IoTotals| totals.device == DISK && totals.operation == "write";
    let seen: i64 = report.operations.iter().filter(of_disk).map(|totals| totals.ops).sum();
    let named = report.operations.iter().filter(of_disk).flat_map(|totals| &totals.stacks);
    // The guest has no symbols of its own.
    let is_own = |name: &String| name == "[init]";
    let named: i64 =
        named.filter(|stack| stack.stack.iter().any(is_own)).map(|stack| stack.ops).sum();
    let detail = format!("{seen} requests of {counted}, {named} with the code that made them");
    ensure!(seen == counted && named * 100 >= counted * 95, "{detail}");
    Ok(detail)
}

/// Writes past the page cache.
#[inline(never)]
fn write_blocks(mut disk: File) -> Result<()> {
    let memory = vec![7_u8; 2 * REQUEST_BYTES];
    let at = memory.as_ptr().align_offset(4096);
    for _ in 0..REQUESTS {
        disk.write_all(&memory[at..][..REQUEST_BYTES]).context("cannot write to the disk")?;
        // Until the rules of this program are loaded its stack is copied, which is allowed so often in a second.
        std::thread::sleep(PAUSE);
    }
    Ok(())
}

fn make_disk() -> Result<File> {
    if Path::new(MODULE).exists() {
        let module = File::open(MODULE).context("cannot open the module")?;
        rustix::system::finit_module(module.as_fd(), ONE_DISK, 0).context("cannot load loop")?;
    }
    let path = Path::new("/tmp/disk");
    File::create(path)?.set_len(DISK_BYTES)?;
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    let disk = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(i32::try_from(OFlags::DIRECT.bits())?)
        .open(Path::new("/dev").join(DISK))
        .with_context(|| format!("there is no {DISK}"))?;
    // SAFETY: the operation takes a descriptor, as the kernel's header says.
    let set =
        unsafe { IntegerSetter::<LOOP_SET_FD>::new_usize(usize::try_from(file.as_raw_fd())?) };
    // SAFETY: as above; it does not touch memory.
    unsafe { ioctl(&disk, set) }.context("cannot make a disk of a file")?;
    Ok(disk)
}

/// Completed requests: reads, writes, discards and flushes.
fn counted() -> Result<i64> {
    let text = fs::read_to_string(format!("/sys/block/{DISK}/stat"))?;
    let fields: Vec<i64> =
        text.split_ascii_whitespace().map(|field| field.parse().unwrap_or(0)).collect();
    let writes = fields.get(4).copied();
    writes.context("the disk has no counters")
}
