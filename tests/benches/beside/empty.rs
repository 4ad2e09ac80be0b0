//! Programs that do nothing, on the hooks that the agent uses: what the kernel takes for
//! calling a program at all, whatever it does.

use aya::programs::BtfTracePoint;
use aya::{Btf, Ebpf};
use object::write::{Object, Symbol, SymbolSection};
use object::{
    Architecture, BinaryFormat, Endianness, SectionKind, SymbolFlags, SymbolKind, SymbolScope,
};

use super::hooks::Hook;

/// Attached for as long as this lives.
pub(crate) struct EmptyPrograms {
    _ebpf: Ebpf,
}

impl EmptyPrograms {
    pub(crate) fn attach(hooks: &[Hook]) -> Self {
        let types = Btf::from_sys_fs().expect("the kernel has BTF");
        let mut ebpf = Ebpf::load(&object_file(hooks)).unwrap();
        for &(name, tracepoint) in hooks {
            let program: &mut BtfTracePoint = ebpf.program_mut(name).unwrap().try_into().unwrap();
            program.load(tracepoint, &types).unwrap_or_else(|error| {
                panic!("cannot load a program for `{tracepoint}` (kernel too old?): {error}")
            });
            program.attach().unwrap();
        }
        Self { _ebpf: ebpf }
    }
}

/// `r0 = 0; exit`
const RETURN_0: [u8; 16] = [0xb7, 0, 0, 0, 0, 0, 0, 0, 0x95, 0, 0, 0, 0, 0, 0, 0];

/// What a compiler would make of functions that return 0. Two instructions are not worth
/// a crate of their own for the BPF target.
fn object_file(hooks: &[Hook]) -> Vec<u8> {
    let mut object = Object::new(BinaryFormat::Elf, Architecture::Bpf, Endianness::Little);
    for (name, tracepoint) in hooks {
        let section = format!("tp_btf/{tracepoint}").into_bytes();
        let section = object.add_section(Vec::new(), section, SectionKind::Text);
        let symbol = object.add_symbol(Symbol {
            name: name.as_bytes().to_vec(),
            value: 0,
            size: 0,
            kind: SymbolKind::Text,
            scope: SymbolScope::Dynamic,
            weak: false,
            section: SymbolSection::Section(section),
            flags: SymbolFlags::None,
        });
        object.add_symbol_data(symbol, section, &RETURN_0, 8);
    }
    object.write().unwrap()
}
