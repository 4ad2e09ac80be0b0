//! A small ELF file around call frame information.

/// What is in a file besides the call frame information.
#[derive(Clone, Copy, Debug)]
pub struct Shape(u8);

impl Shape {
    /// From the first byte of an input: bits 0 aarch64, 1 `.debug_frame`, 2 no section
    /// headers, 3 made by Go, 4 both sections with the same contents, 5 the header of
    /// PT_GNU_EH_FRAME comes from the input.
    pub fn new(byte: u8) -> Self {
        Self(byte)
    }

    fn has(self, bit: u8) -> bool {
        self.0 >> bit & 1 != 0
    }
}

/// Where the frames lie, in the file and in memory.
pub const FRAMES: usize = 0x1000;
/// Where the code lies, in the file and in memory. Seeds are linked to these addresses.
pub const CODE: usize = 0x4000;
const END: usize = 0x8000;

const FRAME_HEADER: usize = 0x800;
const FRAME_HEADER_LEN: usize = 12;
const NAMES_AT: usize = 0x900;
const SECTIONS_AT: usize = 0xa00;

const NAMES: &[u8] = b"\0.eh_frame\0.debug_frame\0.go.buildinfo\0.shstrtab\0.text\0";

/// Makes the file; what does not fit is cut off.
pub fn build(shape: Shape, frames: &[u8]) -> Vec<u8> {
    let mut header = [1, 0x1b, 0x03, 0x3b, 0, 0, 0, 0, 0, 0, 0, 0];
    header[4..8].copy_from_slice(&((FRAMES - FRAME_HEADER - 4) as u32).to_le_bytes());
    let mut frames = frames;
    if shape.has(5)
        && let Some((given, rest)) = frames.split_first_chunk::<FRAME_HEADER_LEN>()
    {
        header = *given;
        frames = rest;
    }
    let frames = &frames[..frames.len().min(CODE - FRAMES)];
    let mut image = vec![0; END];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(FRAMES, frames);
    put(FRAME_HEADER, &header);
    put(NAMES_AT, NAMES);

    let mut sections = vec![section(0, 0, 0, 0, 0)];
    let mut add = |name: &[u8], kind: u32, flags: u64, at: usize, len: usize| {
        let name = NAMES.windows(name.len()).position(|window| window == name).unwrap_or(0);
        sections.push(section(name as u32, kind, flags, at, len));
    };
    if !shape.has(1) || shape.has(4) {
        add(b".eh_frame\0", 1, 2, FRAMES, frames.len());
    }
    if shape.has(1) || shape.has(4) {
        add(b".debug_frame\0", 1, 0, FRAMES, frames.len());
    }
    if shape.has(3) {
        add(b".go.buildinfo\0", 1, 2, FRAME_HEADER, 1);
    }
    add(b".text\0", 1, 6, CODE, END - CODE);
    add(b".shstrtab\0", 3, 0, NAMES_AT, NAMES.len());
    let count = if shape.has(2) { 0 } else { sections.len() };
    for (number, bytes) in sections.iter().take(count).enumerate() {
        put(SECTIONS_AT + 64 * number, bytes);
    }

    let segments = [segment(1, 5, 0, END), segment(0x6474_e550, 4, FRAME_HEADER, FRAME_HEADER_LEN)];
    for (number, bytes) in segments.iter().enumerate() {
        put(64 + 56 * number, bytes);
    }
    let machine = if shape.has(0) { 183 } else { 62 };
    put(0, &file_header(machine, segments.len(), count));
    image
}

fn file_header(machine: u16, segments: usize, sections: usize) -> Vec<u8> {
    let sections_at = if sections == 0 { 0 } else { SECTIONS_AT as u64 };
    let mut bytes = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    bytes.extend(3u16.to_le_bytes());
    bytes.extend(machine.to_le_bytes());
    bytes.extend(1u32.to_le_bytes());
    bytes.extend((CODE as u64).to_le_bytes());
    bytes.extend(64u64.to_le_bytes());
    bytes.extend(sections_at.to_le_bytes());
    bytes.extend(0u32.to_le_bytes());
    let last = sections.saturating_sub(1) as u16;
    for number in [64, 56, segments as u16, 64, sections as u16, last] {
        bytes.extend(number.to_le_bytes());
    }
    bytes
}

/// A segment that lies at the same place in the file and in memory.
fn segment(kind: u32, flags: u32, at: usize, len: usize) -> Vec<u8> {
    let (at, len) = (at as u64, len as u64);
    let mut bytes = kind.to_le_bytes().to_vec();
    bytes.extend(flags.to_le_bytes());
    for number in [at, at, at, len, len, 1] {
        bytes.extend(number.to_le_bytes());
    }
    bytes
}

fn section(name: u32, kind: u32, flags: u64, at: usize, len: usize) -> Vec<u8> {
    let (at, len) = (at as u64, len as u64);
    let mut bytes = name.to_le_bytes().to_vec();
    bytes.extend(kind.to_le_bytes());
    for number in [flags, at, at, len, 0, 1, 0] {
        bytes.extend(number.to_le_bytes());
    }
    bytes
}
