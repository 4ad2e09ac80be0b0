//! What a function is called in every build of it.
//!
//! Compilers number what has no name, and mark the parts into which they split functions; linkers and generated
//! code add hashes. None of that is the same in the next build although the function is.

use std::{borrow::Cow, sync::LazyLock};

use regex::Regex;

/// What is replaced, in this order: a pattern, and what takes its place.
const RULES: [(&str, &str); 15] = [
    // A file that was replaced while it ran.
    (r" \(deleted\)(\]?)$", "$1"),
    // Shared objects: `[libfoo.so.1.2]`.
    (r"^\[([^\]]*?)(?:-\d[\d.]*)?\.so[.\d]*\]$", "[$1.so]"),
    // GCC's and LLVM's parts and copies of functions: `.part.0`, `.cold`, ` [clone .isra.0]`.
    (r" \[clone [^\]]*\]", ""),
    (
        r"(?:\.(?:part|isra|constprop|cold|lto_priv|localalias|llvm|specialized|warm|unlikely|hot|resume|destroy|cleanup)(?:\.\d+|\.[0-9A-F]{6,})*)+$",
        "",
    ),
    // Rust's hashes of symbols and of crates.
    (r"::h[0-9a-f]{16}\b", ""),
    (r"\[[0-9a-f]{12,}\](::|$)", "$1"),
    // Rust's closures, implementations and shims.
    (
        r"\{\{?(closure|impl|async_block|async_fn|coroutine|constant|shim:[a-z_]+)(?:_env)?#?\d*\}?\}",
        "{$1}",
    ),
    // Lambdas of C++, as binutils, LLVM and Microsoft name them.
    (r"(\{(?:lambda|unnamed type|default arg)[^}]*?)#\d+\}", "$1}"),
    (r"'(lambda|unnamed)\d+'", "'$1'"),
    (r"\$_\d+", "$$_"),
    // Go's closures, wrappers and shapes of generic code.
    (r"(\.(?:func|gowrap|deferwrap|stkobj))\d+(?:\.\d+)*", "$1"),
    (r"\[go\.shape\.[^\]]*\]", "[...]"),
    // Java's generated classes.
    (
        r"(\$\$Lambda|\$\$FastClassBy\w+?\$\$|\$Proxy|GeneratedMethodAccessor|GeneratedConstructorAccessor)[$./]?(?:0x[0-9a-f]+|\d+)(?:[/.](?:0x)?[0-9a-f]+)?",
        "$1",
    ),
    (r"(lambda\$[^$]*)\$\d+", "$1"),
    // The lines of scripts: `render /srv/app.js:12:5`, `handler:40`.
    (r"(?::\d+){1,2}$", ""),
];

static PATTERNS: LazyLock<Vec<(Regex, &str)>> = LazyLock::new(|| {
    RULES.iter().filter_map(|(pattern, with)| Some((Regex::new(pattern).ok()?, *with))).collect()
});

/// The name without what differs from build to build.
pub fn normalised(name: &str) -> Cow<'_, str> {
    let mut normalised = Cow::Borrowed(name);
    for (pattern, with) in PATTERNS.iter() {
        if let Cow::Owned(replaced) = pattern.replace_all(&normalised, *with) {
            normalised = Cow::Owned(replaced);
        }
    }
    // Nothing but what is left out is a name, too.
    if normalised.is_empty() { Cow::Borrowed(name) } else { normalised }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_patterns_compile() {
        assert_eq!(PATTERNS.len(), RULES.len());
    }

    #[test]
    fn what_differs_from_build_to_build_is_left_out() {
        for (name, expected) in [
            ("malloc", "malloc"),
            ("inflate.part.0", "inflate"),
            ("walk.isra.0.constprop.1", "walk"),
            ("_int_free.cold", "_int_free"),
            ("walk(int) [clone .isra.0]", "walk(int)"),
            ("ThinLTO.llvm.1234567890123", "ThinLTO"),
            ("core::fmt::write::h0123456789abcdef", "core::fmt::write"),
            ("core[a1b2c3d4e5f60718]::fmt::write", "core::fmt::write"),
            ("api::serve::{{closure}}", "api::serve::{closure}"),
            ("api::serve::{closure#3}", "api::serve::{closure}"),
            ("api::serve::{closure_env#0}", "api::serve::{closure}"),
            ("api::{impl#12}::next", "api::{impl}::next"),
            ("FnOnce::call_once{{vtable.shim}}", "FnOnce::call_once{{vtable.shim}}"),
            (
                "run()::{lambda(int)#2}::operator()(int) const",
                "run()::{lambda(int)}::operator()(int) const",
            ),
            (
                "run()::'lambda0'(int)::operator()(int) const",
                "run()::'lambda'(int)::operator()(int) const",
            ),
            ("run()::$_12::operator()() const", "run()::$_::operator()() const"),
            ("main.serve.func2", "main.serve.func"),
            ("main.serve.func2.1", "main.serve.func"),
            ("main.serve.gowrap3", "main.serve.gowrap"),
            ("slices.Sort[go.shape.int]", "slices.Sort[...]"),
            ("app.Main$$Lambda$14/0x00007f3a.run", "app.Main$$Lambda.run"),
            ("app.Main$$Lambda.0x00007f3a10.run", "app.Main$$Lambda.run"),
            ("app.Main.lambda$main$3", "app.Main.lambda$main"),
            (
                "jdk.internal.reflect.GeneratedMethodAccessor12.invoke",
                "jdk.internal.reflect.GeneratedMethodAccessor.invoke",
            ),
            ("render /srv/app.js:12:5", "render /srv/app.js"),
            ("handler:40", "handler"),
            ("[libssl.so.3]", "[libssl.so]"),
            ("[libjvm-17.0.so]", "[libjvm.so]"),
            ("[api (deleted)]", "[api]"),
            ("[kernel.kallsyms]", "[kernel.kallsyms]"),
            (".part.0", ".part.0"),
            ("std::vector<int>::at(unsigned long)", "std::vector<int>::at(unsigned long)"),
        ] {
            assert_eq!(normalised(name), expected, "{name}");
        }
    }
}
