//! Small ELF files with hand-made call frame information.

/// Where `.text` is mapped and lies in the file.
pub(crate) const TEXT: u64 = 0x1000;
/// Its size, all of it executable.
pub(crate) const TEXT_SIZE: u64 = 0x10_0000;
/// Where the section with call frame information is mapped and lies in the file.
pub(crate) const FRAMES: u64 = TEXT + TEXT_SIZE;

/// The parts of a file that tests lie about.
pub(crate) struct File {
    pub(crate) section_name: &'static str,
    pub(crate) frames: Vec<u8>,
    pub(crate) section_flags: u64,
    /// (type, flags, offset, address, size)
    pub(crate) segments: Vec<(u32, u32, u64, u64, u64)>,
}

impl File {
    pub(crate) fn new(section_name: &'static str, frames: Vec<u8>) -> Self {
        const READ_EXECUTE: u32 = 5;
        let segments = vec![(1, READ_EXECUTE, TEXT, TEXT, TEXT_SIZE)];
        Self { section_name, frames, section_flags: 0, segments }
    }

    pub(crate) fn eh_frame(frames: Vec<u8>) -> Vec<u8> {
        Self::new(".eh_frame", frames).build()
    }

    /// File header, program headers, code, call frame information, names, section headers.
    pub(crate) fn build(&self) -> Vec<u8> {
        let names = format!("\0.text\0.shstrtab\0{}\0", self.section_name);
        let names_at = FRAMES + self.frames.len() as u64;
        let sections_at = (names_at + names.len() as u64).next_multiple_of(8);
        let mut file = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        file.extend(3_u16.to_le_bytes()); // ET_DYN
        file.extend(62_u16.to_le_bytes()); // EM_X86_64
        file.extend(1_u32.to_le_bytes());
        file.extend([0_u64, 64, sections_at].iter().flat_map(|word| word.to_le_bytes()));
        file.extend([0; 4]);
        let counts = [64, 56, self.segments.len() as u16, 64, 4, 2];
        file.extend(counts.iter().flat_map(|half| half.to_le_bytes()));
        for (kind, flags, offset, address, size) in &self.segments {
            file.extend(kind.to_le_bytes());
            file.extend(flags.to_le_bytes());
            let words = [*offset, *address, *address, *size, *size, 4096];
            file.extend(words.iter().flat_map(|word| word.to_le_bytes()));
        }
        assert!(file.len() as u64 <= TEXT);
        file.resize(FRAMES as usize, 0xcc);
        file.extend(&self.frames);
        file.extend(names.bytes());
        file.resize(sections_at as usize, 0);
        let frames_len = self.frames.len() as u64;
        for (name, kind, flags, address, size) in [
            (0_u32, 0_u32, 0, 0, 0),
            (1, 1, 6, TEXT, TEXT_SIZE),
            (7, 3, 0, names_at, names.len() as u64),
            (17, 1, self.section_flags, FRAMES, frames_len),
        ] {
            file.extend(name.to_le_bytes());
            file.extend(kind.to_le_bytes());
            let words = [flags, address, address, size, 0, 1, 0];
            file.extend(words.iter().flat_map(|word| word.to_le_bytes()));
        }
        file
    }
}

/// Entries of `.eh_frame`, one behind the other.
#[derive(Default)]
pub(crate) struct Frames(pub(crate) Vec<u8>);

/// What compilers begin with: CFA = rsp + 8, return address at CFA - 8.
pub(crate) const USUAL: [u8; 5] = [0x0c, 7, 8, 0x90, 1];

impl Frames {
    /// With the usual CIE at position 0.
    pub(crate) fn new() -> Self {
        let mut frames = Self::default();
        frames.cie(1, &USUAL);
        frames
    }

    /// Adds a CIE with augmentation `zR` and addresses relative to their place; returns its
    /// position.
    pub(crate) fn cie(&mut self, code_alignment: u8, program: &[u8]) -> usize {
        let position = self.0.len();
        let mut body = vec![1, b'z', b'R', 0, code_alignment, 0x78, 16, 1, 0x1b];
        body.extend(program);
        self.entry(0, &body);
        position
    }

    /// Adds an FDE for the code at `offset` in `.text`.
    pub(crate) fn fde(&mut self, cie: usize, offset: u64, len: u32, program: &[u8]) -> &mut Self {
        let position = self.0.len();
        let address = TEXT.wrapping_add(offset) as i64 - (FRAMES as i64 + position as i64 + 8);
        let mut body = (address as i32).to_le_bytes().to_vec();
        body.extend(len.to_le_bytes());
        body.push(0);
        body.extend(program);
        self.entry((position + 4 - cie) as u32, &body);
        self
    }

    /// Adds any entry, padded with DW_CFA_nop.
    pub(crate) fn entry(&mut self, id: u32, body: &[u8]) {
        let len = (4 + body.len()).next_multiple_of(4);
        self.0.extend((len as u32).to_le_bytes());
        self.0.extend(id.to_le_bytes());
        self.0.extend(body);
        self.0.resize(self.0.len() + len - 4 - body.len(), 0);
    }
}
