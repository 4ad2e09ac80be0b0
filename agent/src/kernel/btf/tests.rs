//! BTF files made type by type, damaged ones, and that of the running kernel.

use super::*;

const STRUCT: u32 = Kind::Struct as u32;
const UNION: u32 = Kind::Union as u32;
const FORWARD: u32 = 7;
const TYPEDEF: u32 = Kind::Typedef as u32;
const INTEGER: u32 = 1;
const POINTER: u32 = Kind::Pointer as u32;
const FUNCTION: u32 = Kind::Function as u32;
const PROTOTYPE: u32 = Kind::Prototype as u32;

/// Assembles a BTF file type by type.
struct File {
    types: Vec<u8>,
    strings: Vec<u8>,
}

impl File {
    fn new() -> Self {
        Self { types: Vec::new(), strings: vec![0] }
    }

    fn name(&mut self, name: &str) -> u32 {
        if name.is_empty() {
            return 0;
        }
        let at = self.strings.len() as u32;
        self.strings.extend_from_slice(name.as_bytes());
        self.strings.push(0);
        at
    }

    fn words(&mut self, words: &[u32]) {
        self.types.extend(words.iter().flat_map(|word| word.to_ne_bytes()));
    }

    /// Members are name, type and offset in bits.
    fn add(mut self, kind: u32, name: &str, size: u32, members: &[(&str, u32, u32)]) -> Self {
        let name = self.name(name);
        self.words(&[name, kind << 24 | members.len() as u32, size]);
        for (name, ty, bits) in members {
            let name = self.name(name);
            self.words(&[name, *ty, *bits]);
        }
        self
    }

    /// Words that belong to the type before.
    fn rest(mut self, words: &[u32]) -> Self {
        self.words(words);
        self
    }

    /// A function without a name, of types of these numbers.
    fn prototype(mut self, parameters: &[u32]) -> Self {
        self.words(&[0, PROTOTYPE << 24 | parameters.len() as u32, 0]);
        parameters.iter().for_each(|ty| self.words(&[0, *ty]));
        self
    }

    fn bytes(&self) -> Vec<u8> {
        let types = self.types.len() as u32;
        let mut bytes = Btf::MAGIC.to_ne_bytes().to_vec();
        bytes.extend([1, 0]);
        for word in [24, 0, types, types, self.strings.len() as u32] {
            bytes.extend(word.to_ne_bytes());
        }
        bytes.extend(&self.types);
        bytes.extend(&self.strings);
        bytes
    }
}

/// As in a kernel with randomised structures: members lie in one without a name, here two
/// levels deep, of types that come later.
fn kernel() -> File {
    File::new()
        .add(STRUCT, "task_struct", 3264, &[("thread_info", 9, 0), ("", 2, 192)])
        .add(STRUCT, "", 3240, &[("state", 9, 0), ("", 3, 32)])
        .add(UNION, "", 8, &[("other", 9, 0), ("stack", 9, 32)])
        .add(FORWARD, "pt_regs", 0, &[])
        .add(STRUCT, "pt_regs", 168, &[])
}

fn located(file: &File) -> (u32, u32) {
    let location = locate(&file.bytes()).unwrap();
    (location.task_stack_offset, location.stack_to_regs)
}

#[test]
fn members_of_anonymous_structures_are_found() {
    assert_eq!(located(&kernel()), (24 + 4 + 4, stack_bytes() - 168));
}

#[test]
fn what_fred_saves_lies_above() {
    let fred = kernel().add(STRUCT, "fred_frame", 184, &[]);
    assert_eq!(located(&fred).1, stack_bytes() - 184);
}

#[test]
fn bit_fields_do_not_disturb() {
    let with_bit_fields = STRUCT | 1 << 7;
    let file = File::new()
        .add(with_bit_fields, "task_struct", 64, &[("flag", 9, 1 << 24 | 3), ("stack", 9, 64)])
        .add(STRUCT, "pt_regs", 168, &[]);
    assert_eq!(located(&file).0, 8);
    let odd = File::new().add(STRUCT, "task_struct", 64, &[("stack", 9, 3)]);
    assert!(matches!(locate(&odd.bytes()), Err(BtfError::Missing { .. })));
}

#[track_caller]
fn check_error(file: &File, expected: &str) {
    assert_eq!(locate(&file.bytes()).unwrap_err().to_string(), expected);
}

#[test]
fn what_is_missing_is_named() {
    check_error(&File::new(), "the kernel has no `struct task_struct`");
    let task = || File::new().add(STRUCT, "task_struct", 8, &[("stack", 9, 0)]);
    check_error(&task(), "the kernel has no `struct pt_regs`");
    let large = task().add(STRUCT, "pt_regs", 1 << 20, &[]);
    check_error(&large, "1048576 bytes of registers do not fit a kernel stack");
    let renamed = File::new().add(STRUCT, "task_struct", 8, &[("stacks", 9, 0)]);
    check_error(&renamed, "the kernel has no `task_struct.stack`");
    let unknown = kernel().add(31, "new", 0, &[]);
    let at = kernel().types.len();
    let message =
        format!("the kernel's types cannot be understood: a type of an unknown kind at byte {at}");
    check_error(&unknown, &message);
}

/// An integer is type 1 and a pointer type 2.
fn tracepoint(parameters: &[u32]) -> File {
    File::new()
        .add(INTEGER, "int", 4, &[])
        .rest(&[32])
        .add(POINTER, "", 0, &[])
        .prototype(parameters)
        .add(POINTER, "", 3, &[])
        .add(TYPEDEF, "btf_trace_sched_switch", 4, &[])
        .add(TYPEDEF, "btf_trace_odd", 1, &[])
        .add(FUNCTION, "bpf_iter_task", 3, &[])
}

#[test]
fn tracepoints_and_functions_are_found_by_name() {
    let file = tracepoint(&[2, 1, 2, 2, 1]).bytes();
    let btf = Btf::parse(&file).unwrap();
    assert_eq!(btf.tracepoint("sched_switch"), Some(vec![false, true, true, false]));
    assert_eq!(btf.tracepoint("sched"), None);
    assert_eq!(btf.tracepoint("odd"), None);
    assert!(btf.has_function("bpf_iter_task"));
    assert!(!btf.has_function("btf_trace_sched_switch"));
    // Parameters of a type that does not exist, and none at all.
    for parameters in [&[2, 99][..], &[2, 0]] {
        let file = tracepoint(parameters).bytes();
        assert_eq!(Btf::parse(&file).unwrap().tracepoint("sched_switch"), None);
    }
    let file = tracepoint(&[]).bytes();
    assert_eq!(Btf::parse(&file).unwrap().tracepoint("sched_switch"), Some(Vec::new()));
}

#[test]
fn cyclic_and_branching_structures_end() {
    let cyclic = File::new().add(STRUCT, "task_struct", 8, &[("", 1, 0), ("", 1, 8)]);
    check_error(&cyclic, "the kernel has no `task_struct.stack`");
    let typedef = File::new()
        .add(STRUCT, "task_struct", 8, &[("", 2, 0), ("", u32::MAX, u32::MAX), ("", 0, 0)])
        .add(TYPEDEF, "", 2, &[]);
    check_error(&typedef, "the kernel has no `task_struct.stack`");
}

#[test]
fn damaged_files_are_errors() {
    let whole = kernel().bytes();
    for len in 0..whole.len() {
        assert!(locate(&whole[..len]).is_err(), "{len}");
    }
    // Each byte at its extremes: whatever comes of it, it ends.
    for at in 0..whole.len() {
        for value in [0, 1, 0x7f, 0x80, 0xff] {
            let mut damaged = whole.clone();
            damaged[at] = value;
            let _ = locate(&damaged);
        }
    }
}

/// Where the kernel is built without BTF there is nothing to see.
#[test]
fn running_kernel_has_registers_where_they_must_be() {
    if !Path::new(KERNEL_BTF).exists() {
        return;
    }
    let location = pt_regs_location().unwrap();
    assert!(location.task_stack_offset.is_multiple_of(8), "{location:?}");
    assert!((8..4096).contains(&location.task_stack_offset), "{location:?}");
    let to_top = location.stack_to_regs.next_power_of_two() - location.stack_to_regs;
    assert!((168..=512).contains(&to_top), "{location:?}");
}
