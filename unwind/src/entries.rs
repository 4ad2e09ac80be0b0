//! Reads entries of call frame information, CIEs once each.

use std::collections::HashMap;

use foldhash::fast::RandomState;
use gimli::{
    BaseAddresses, CallFrameInstructionIter, CommonInformationEntry, DebugFrame, EhFrame,
    EndianSlice, FrameDescriptionEntry, LittleEndian, UnwindOffset, UnwindSection, Vendor,
};

use crate::elf::Arch;
use crate::error::CompileError;
use crate::frames::{FrameSection, Kind, entry_len};
use crate::limits::Limits;
use crate::program::{Effect, Machine, Start};

/// A section's bytes as gimli reads them.
pub(crate) type Bytes<'a> = EndianSlice<'a, LittleEndian>;

/// Bytes of one CIE; real ones have about 20. Bounds what a hostile one costs.
const MAX_CIE_BYTES: usize = 4096;

/// An FDE, and what its CIE leaves it with.
pub(crate) struct Function<'a> {
    pub(crate) fde: FrameDescriptionEntry<Bytes<'a>>,
    pub(crate) start: Start,
}

/// What is at an entry's position.
#[expect(clippy::large_enum_variant, reason = "looked at at once and never kept")]
pub(crate) enum Entry<'a> {
    Common,
    Function(Function<'a>),
    Malformed,
}

enum Section<'a> {
    EhFrame(EhFrame<Bytes<'a>>),
    DebugFrame(DebugFrame<Bytes<'a>>),
}

/// Reads the entries of one section.
pub(crate) struct Reader<'a> {
    pub(crate) frames: &'a FrameSection,
    section: Section<'a>,
    commons: Commons<'a>,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(frames: &'a FrameSection, arch: Arch, limits: &Limits) -> Self {
        let vendor = match arch {
            Arch::X86_64 => Vendor::Default,
            Arch::Aarch64 => Vendor::AArch64,
        };
        let section = match frames.kind {
            Kind::EhFrame => {
                let mut section = EhFrame::new(&frames.bytes, LittleEndian);
                section.set_address_size(8);
                section.set_vendor(vendor);
                Section::EhFrame(section)
            }
            Kind::DebugFrame => {
                let mut section = DebugFrame::new(&frames.bytes, LittleEndian);
                section.set_address_size(8);
                section.set_vendor(vendor);
                Section::DebugFrame(section)
            }
        };
        let machine = Machine::new(arch.columns());
        let commons = Commons { known: HashMap::default(), limit: limits.cies, machine };
        Self { frames, section, commons }
    }

    pub(crate) fn bytes(&self) -> Bytes<'a> {
        Bytes::new(&self.frames.bytes, LittleEndian)
    }

    /// Reads what [`FrameSection::entries`] has found.
    pub(crate) fn entry(
        &mut self,
        position: usize,
        budget: &mut Budget,
    ) -> Result<Entry<'a>, CompileError> {
        let bases = &self.frames.bases;
        match &self.section {
            Section::EhFrame(section) => self.commons.entry(section, bases, position, budget),
            Section::DebugFrame(section) => self.commons.entry(section, bases, position, budget),
        }
    }

    pub(crate) fn instructions<'s>(
        &'s self,
        function: &Function<'a>,
    ) -> CallFrameInstructionIter<'s, Bytes<'a>> {
        let bases = &self.frames.bases;
        match &self.section {
            Section::EhFrame(section) => function.fde.instructions(section, bases),
            Section::DebugFrame(section) => function.fde.instructions(section, bases),
        }
    }
}

/// What is known of a CIE.
struct Common<'a> {
    entry: CommonInformationEntry<Bytes<'a>>,
    start: Start,
}

/// The CIEs of one section by position, also those that are no use.
struct Commons<'a> {
    known: HashMap<usize, Option<Common<'a>>, RandomState>,
    limit: u32,
    machine: Machine,
}

impl<'a> Commons<'a> {
    fn entry<S: UnwindSection<Bytes<'a>>>(
        &mut self,
        section: &S,
        bases: &BaseAddresses,
        position: usize,
        budget: &mut Budget,
    ) -> Result<Entry<'a>, CompileError> {
        let partial = match section.partial_fde_from_offset(bases, position.into()) {
            Ok(partial) => partial,
            Err(gimli::Error::NotCiePointer(_)) => return Ok(Entry::Common),
            Err(_) => return Ok(Entry::Malformed),
        };
        let position = UnwindOffset::into(partial.cie_offset());
        if !self.known.contains_key(&position) {
            let found = self.known.len() as u64;
            if found >= u64::from(self.limit) {
                let limit = u64::from(self.limit);
                return Err(CompileError::TooLarge { what: "CIEs", found, limit });
            }
            let common = self.read(section, bases, position, budget)?;
            self.known.insert(position, common);
        }
        let Some(Some(Common { entry, start })) = self.known.get(&position) else {
            return Ok(Entry::Malformed);
        };
        Ok(match partial.parse(|_, _, _| Ok(entry.clone())) {
            Ok(fde) => Entry::Function(Function { fde, start: *start }),
            Err(_) => Entry::Malformed,
        })
    }

    fn read<S: UnwindSection<Bytes<'a>>>(
        &mut self,
        section: &S,
        bases: &BaseAddresses,
        position: usize,
        budget: &mut Budget,
    ) -> Result<Option<Common<'a>>, CompileError> {
        let len = section.section().slice().get(position..).and_then(entry_len);
        let Some(len) = len.filter(|len| *len <= MAX_CIE_BYTES) else { return Ok(None) };
        budget.spend(len as u64)?;
        let Ok(entry) = section.cie_from_offset(bases, position.into()) else {
            return Ok(None);
        };
        if entry.address_size() != 8 {
            return Ok(None);
        }
        let code_alignment = entry.code_alignment_factor();
        let data_alignment = entry.data_alignment_factor();
        self.machine.begin(Start::new(code_alignment, data_alignment));
        let mut instructions = entry.instructions(section, bases);
        loop {
            let Ok(instruction) = instructions.next() else { return Ok(None) };
            let Some(instruction) = instruction else { break };
            // A CIE has no rows: it cannot advance.
            match self.machine.execute(0, &instruction) {
                Ok(Effect::None | Effect::Changed) => {}
                Ok(Effect::Advanced(_)) | Err(_) => return Ok(None),
            }
        }
        let start = Start { code_alignment, data_alignment, state: self.machine.state };
        Ok(Some(Common { entry, start }))
    }
}

/// What is left of [`Limits::instructions`].
#[derive(Debug)]
pub(crate) struct Budget {
    left: u64,
    limit: u64,
}

impl Budget {
    pub(crate) fn new(limits: &Limits) -> Self {
        Self { left: limits.instructions, limit: limits.instructions }
    }

    pub(crate) fn spend(&mut self, instructions: u64) -> Result<(), CompileError> {
        self.left = self.left.checked_sub(instructions).ok_or(CompileError::TooLarge {
            what: "call frame instructions",
            found: self.limit.saturating_add(1),
            limit: self.limit,
        })?;
        Ok(())
    }
}
