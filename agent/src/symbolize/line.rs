//! What an address resolves to, and names as people write them.

use std::fmt::{self, Write};
use std::sync::Arc;

use foldhash::HashMap;

use super::data_symbols::DataSymbol;

/// A function of the source. Equal functions of one [`Symbolizer`](super::Symbolizer)
/// share one allocation as long as any of their lines is alive, so that a caller can
/// tell them apart by address.
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct Function {
    /// The name for people: demangled where it was mangled.
    pub name: Arc<str>,
    /// The name in the symbol table.
    pub system_name: Arc<str>,
    /// The source file, where debug information names one.
    pub file_name: Option<Arc<str>>,
    /// The line on which the function begins. No source of symbols that is read today
    /// tells it: blazesym does not report `DW_AT_decl_line`.
    pub start_line: Option<u32>,
}

/// One function that is executing at an address: a physical frame has one line for each
/// inlined function and one for the function itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// The function.
    pub function: Arc<Function>,
    /// The line being executed: for all but the innermost function, the line of the call.
    pub line: Option<u32>,
}

impl Line {
    /// A function of which no line is known.
    pub(super) fn named(function: Arc<Function>) -> Self {
        Self { function, line: None }
    }
}

/// Longer names are cut; C++ templates can demangle to megabytes.
const MAX_NAME_BYTES: usize = 4096;

/// Functions that are in use, so that each is stored once.
#[derive(Default)]
pub(super) struct Functions {
    /// By system name; a function that is defined in several files appears for each.
    by_name: HashMap<Arc<str>, Vec<Arc<Function>>>,
    bytes: usize,
}

impl Functions {
    /// `readable` is the name for people where it does not follow from `system_name`.
    pub(super) fn intern(
        &mut self,
        system_name: &[u8],
        readable: Option<&str>,
        file_name: Option<&str>,
    ) -> Arc<Function> {
        let system_name = String::from_utf8_lossy(clip(system_name));
        if let Some(known) = self.by_name.get(&*system_name)
            && let Some(function) = known.iter().find(|function| {
                function.file_name.as_deref() == file_name
                    && readable.is_none_or(|readable| *function.name == *readable)
            })
        {
            return Arc::clone(function);
        }
        let shared: Arc<str> = Arc::from(&*system_name);
        let name = match readable.map(str::to_owned).or_else(|| demangle(&system_name)) {
            Some(name) => Arc::from(name),
            None => Arc::clone(&shared),
        };
        let file_name = file_name.map(Arc::from);
        let function =
            Arc::new(Function { name, system_name: shared, file_name, start_line: None });
        self.bytes += function_bytes(&function);
        let key = Arc::clone(&function.system_name);
        self.by_name.entry(key).or_default().push(Arc::clone(&function));
        function
    }

    /// Data, stored like a function. Its offset is a part of both names: `table+0x10` is
    /// another thing than `table`.
    pub(super) fn intern_data(&mut self, symbol: &DataSymbol) -> Arc<Function> {
        let DataSymbol { name, offset } = symbol;
        if *offset == 0 {
            return self.intern(name, None, None);
        }
        let system_name = String::from_utf8_lossy(clip(name));
        let readable = demangle(&system_name);
        let readable = format!("{}+{offset:#x}", readable.as_deref().unwrap_or(&system_name));
        self.intern(format!("{system_name}+{offset:#x}").as_bytes(), Some(&readable), None)
    }

    /// Forgets the functions that no line refers to any more.
    pub(super) fn sweep(&mut self) {
        let bytes = &mut self.bytes;
        self.by_name.retain(|_, functions| {
            functions.retain(|function| {
                let used = Arc::strong_count(function) > 1;
                if !used {
                    *bytes = bytes.saturating_sub(function_bytes(function));
                }
                used
            });
            !functions.is_empty()
        });
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
}

/// What a function takes: its fields, its strings with their counts, and its place in
/// the index.
fn function_bytes(function: &Function) -> usize {
    const OVERHEAD: usize = size_of::<Function>() + 16 * 4 + 80;
    let name =
        if Arc::ptr_eq(&function.name, &function.system_name) { 0 } else { function.name.len() };
    OVERHEAD
        + name
        + function.system_name.len()
        + function.file_name.as_ref().map_or(0, |f| f.len())
}

fn clip(name: &[u8]) -> &[u8] {
    name.get(..MAX_NAME_BYTES).unwrap_or(name)
}

/// The readable form of a Rust (legacy and v0) or C++ (Itanium) name; `None` for all
/// others, Go's and C's among them.
pub(crate) fn demangle(name: &str) -> Option<String> {
    if !["_Z", "__Z", "_R", "__R"].iter().any(|prefix| name.starts_with(prefix)) {
        return None;
    }
    let mut readable = Clipped(String::new());
    if let Ok(rust) = rustc_demangle::try_demangle(name) {
        // The alternate form leaves out the hash.
        return write!(readable, "{rust:#}").is_ok().then_some(readable.0);
    }
    let cpp = cpp_demangle::Symbol::new(name.as_bytes()).ok()?;
    // Parameters stay: overloads are different functions.
    match cpp.structured_demangle(&mut readable, &cpp_demangle::DemangleOptions::new()) {
        Ok(()) => Some(readable.0),
        Err(_) => None,
    }
}

/// Refuses to grow past [`MAX_NAME_BYTES`]: substitutions make the readable form of a
/// hostile name exponentially long.
struct Clipped(String);

impl Write for Clipped {
    fn write_str(&mut self, part: &str) -> fmt::Result {
        if self.0.len() + part.len() > MAX_NAME_BYTES {
            return Err(fmt::Error);
        }
        self.0.push_str(part);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_demangled_by_their_scheme() {
        let check = |name: &str, expected: Option<&str>| {
            assert_eq!(demangle(name).as_deref(), expected, "{name}");
        };
        check(
            "_ZN4core3fmt5Write9write_fmt17h0123456789abcdefE",
            Some("core::fmt::Write::write_fmt"),
        );
        check("_RNvNtCs1234_7mycrate3foo3bar", Some("mycrate::foo::bar"));
        check("_ZN3foo3barEi", Some("foo::bar(int)"));
        check("_ZN3foo3barEi.cold", Some("foo::bar(int) [clone .cold]"));
        check("main", None);
        check("runtime.mallocgc", None);
        check("encoding/json.(*decodeState).object", None);
        check("_Z", None);
    }

    #[test]
    fn exponential_name_is_not_demangled() {
        let mut name = "_Z1fI".to_owned();
        name.push_str("St4pairI");
        for level in 0..60 {
            name.push_str(&format!("St4pairIS{level}_S{level}_E"));
        }
        assert!(demangle(&name).is_none_or(|readable| readable.len() <= MAX_NAME_BYTES));
    }

    #[test]
    fn functions_are_shared_and_swept_when_unused() {
        let mut functions = Functions::default();
        let first = functions.intern(b"work", None, Some("a.c"));
        let again = functions.intern(b"work", None, Some("a.c"));
        let other = functions.intern(b"work", None, Some("b.c"));
        assert!(Arc::ptr_eq(&first, &again));
        assert!(!Arc::ptr_eq(&first, &other));
        let bytes = functions.bytes();
        drop(other);
        functions.sweep();
        assert!(functions.bytes() < bytes);
        drop((first, again));
        functions.sweep();
        assert_eq!(functions.bytes(), 0);
    }
}
