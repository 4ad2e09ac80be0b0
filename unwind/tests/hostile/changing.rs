//! Files that change while they are read.

use std::cell::{Cell, RefCell};
use std::fs;
use std::io;

use everflame_unwind::{CompileError, Limits, ReadAt, compile};

use crate::file::{File, Frames};

fn sound() -> Vec<u8> {
    let mut frames = Frames::new();
    for function in 0..100 {
        frames.fde(0, function * 32, 32, &[0x41, 0x0e, 16, 0x86, 2, 0x43, 0x0d, 6]);
    }
    File::eh_frame(frames.0)
}

/// Ends after so many reads, while it still says that it is long.
struct Shrinking {
    bytes: Vec<u8>,
    reads_left: Cell<u32>,
}

impl ReadAt for Shrinking {
    fn size(&self) -> io::Result<u64> {
        Ok(self.bytes.len() as u64)
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let left = self.reads_left.get().checked_sub(1);
        self.reads_left.set(left.ok_or(io::ErrorKind::UnexpectedEof)?);
        self.bytes.as_slice().read_exact_at(buffer, offset)
    }
}

#[test]
fn file_may_shrink_between_any_two_reads() {
    let mut errors = 0;
    for reads in 0..20 {
        let file = Shrinking { bytes: sound(), reads_left: Cell::new(reads) };
        match compile(&file, &Limits::default()) {
            Ok(_) => {}
            Err(CompileError::Read { .. }) => errors += 1,
            Err(error) => panic!("{error}"),
        }
    }
    assert!((1..20).contains(&errors), "{errors}");
}

/// Gives other bytes each time, and another size.
struct Restless {
    bytes: Vec<u8>,
    random: RefCell<fastrand::Rng>,
}

impl ReadAt for Restless {
    fn size(&self) -> io::Result<u64> {
        Ok(self.random.borrow_mut().u64(..self.bytes.len() as u64 * 2))
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.bytes.as_slice().read_exact_at(buffer, offset)?;
        let mut random = self.random.borrow_mut();
        // One byte in a hundred is another one.
        for _ in 0..buffer.len().div_ceil(100) {
            let at = random.usize(..buffer.len());
            buffer[at] = random.u8(..);
        }
        Ok(())
    }
}

#[test]
fn file_may_say_something_else_each_time() {
    let bytes = sound();
    for seed in 0..2000 {
        let random = RefCell::new(fastrand::Rng::with_seed(seed));
        let file = Restless { bytes: bytes.clone(), random };
        if let Ok(table) = compile(&file, &Limits::default()) {
            table.rows().count();
        }
    }
}

#[test]
fn truncated_file_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("library.so");
    fs::write(&path, sound()).unwrap();
    let file = fs::File::open(&path).unwrap();
    assert_eq!(compile(&file, &Limits::default()).unwrap().stats.functions, 100);
    fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(100).unwrap();
    let error = compile(&file, &Limits::default()).unwrap_err();
    assert!(matches!(error, CompileError::Read { .. }), "{error}");
}
