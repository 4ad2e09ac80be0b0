//! Builds the binaries that the tests look into, and asks them for addresses.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use everflame_agent::object::{BuildId, ObjectFile, ObjectKind};
use everflame_agent::symbolize::{Line, SymbolizeConfig, Symbolizer};
use object::{Object, ObjectSegment, ObjectSymbol};
use tempfile::TempDir;

/// `outer` calls `middle` calls `inner`, both inlined; `inner` has its work on line 4.
pub(crate) const INLINED_C: &str = "\
#include <stdio.h>
volatile unsigned long sink;
static inline __attribute__((always_inline)) void inner(unsigned long n) {
    sink += n * 3;
}
static inline __attribute__((always_inline)) void middle(unsigned long n) {
    inner(n + 1);
}
__attribute__((noinline)) void outer(unsigned long n) {
    middle(n + 2);
}
__attribute__((noinline)) static void hidden(unsigned long n) {
    sink -= n;
}
int main(int argc, char **argv) {
    outer(argc);
    hidden(argc);
    return 0;
}
";

/// A directory with a binary in it.
pub(crate) struct Built {
    pub(crate) dir: TempDir,
    pub(crate) path: PathBuf,
}

impl Built {
    /// Compiles `source`, a file named `name`, with a compiler and its arguments.
    pub(crate) fn new(name: &str, source: &str, compiler: &[&str]) -> Self {
        let dir = TempDir::new().unwrap();
        let source_path = dir.path().join(name);
        fs::write(&source_path, source).unwrap();
        let path = dir.path().join("program");
        let [program, arguments @ ..] = compiler else { panic!("no compiler") };
        let mut command = Command::new(program);
        command.args(arguments).arg("-o").arg(&path).arg(&source_path).current_dir(dir.path());
        run(&mut command);
        Self { dir, path }
    }

    pub(crate) fn c(options: &[&str]) -> Self {
        let compiler: Vec<&str> = ["gcc", "-O2"].iter().chain(options).copied().collect();
        Self::new("program.c", INLINED_C, &compiler)
    }

    pub(crate) fn go(source: &str) -> Self {
        let dir = TempDir::new().unwrap();
        fs::write(dir.path().join("program.go"), source).unwrap();
        let path = dir.path().join("program");
        let mut go = Command::new("go");
        go.args(["build", "-o"]).arg(&path).arg("program.go").current_dir(dir.path());
        run(go.env("GOCACHE", dir.path().join("cache")).env("GO111MODULE", "off"));
        Self { dir, path }
    }

    /// Where the function `name` is in the file, by its symbol, and its size.
    pub(crate) fn function(&self, name: &str) -> (u64, u64) {
        let bytes = fs::read(&self.path).unwrap();
        let file = object::File::parse(&*bytes).unwrap();
        let symbol = file
            .symbols()
            .find(|symbol| symbol.name() == Ok(name))
            .unwrap_or_else(|| panic!("no function {name}"));
        (file_offset(&file, symbol.address()), symbol.size())
    }

    pub(crate) fn object(&self) -> Arc<ObjectFile> {
        object(&self.path)
    }
}

pub(crate) fn file_offset(file: &object::File<'_>, svma: u64) -> u64 {
    file.segments()
        .find_map(|segment| {
            let within = svma.checked_sub(segment.address())?;
            let (offset, size) = segment.file_range();
            (within < size).then_some(offset + within)
        })
        .unwrap()
}

/// The file as the agent would have opened it.
pub(crate) fn object(path: &Path) -> Arc<ObjectFile> {
    let bytes = fs::read(path).unwrap();
    let build_id =
        object::File::parse(&*bytes).ok().and_then(|file| BuildId::new(file.build_id().ok()??));
    let file = Some(File::open(path).unwrap());
    let path = path.to_str().unwrap().to_owned();
    Arc::new(ObjectFile { path, build_id, kind: ObjectKind::Elf { file } })
}

pub(crate) fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A symbolizer that does not look into the machine's own debug directories.
pub(crate) fn symbolizer() -> Symbolizer {
    Symbolizer::new(SymbolizeConfig { debug_dirs: vec![], ..SymbolizeConfig::default() })
}

pub(crate) fn resolve(object: &Arc<ObjectFile>, offset: u64) -> Arc<[Line]> {
    symbolizer().object(object, &[offset]).remove(0)
}

/// `name file:line` for each line, innermost first; the file without its directory.
pub(crate) fn describe(lines: &[Line]) -> Vec<String> {
    lines
        .iter()
        .map(|line| {
            let name = &line.function.name;
            match (&line.function.file_name, line.line) {
                (Some(file), Some(number)) => {
                    format!("{name} {}:{number}", file.rsplit('/').next().unwrap())
                }
                _ => name.to_string(),
            }
        })
        .collect()
}

/// The frames that contain inlined calls, over all addresses of a function.
pub(crate) fn describe_all(built: &Built, name: &str) -> Vec<Vec<String>> {
    let (start, size) = built.function(name);
    let offsets: Vec<u64> = (start..start + size).collect();
    let object = built.object();
    symbolizer().object(&object, &offsets).iter().map(|lines| describe(lines)).collect()
}
