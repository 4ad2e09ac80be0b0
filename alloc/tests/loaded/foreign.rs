//! Programs that know nothing of the library do with it what they do without.

use std::path::Path;
use std::process::Command;

use crate::program::{compiled, finished, installed, output, passes, shared, with_library};

/// Runs a command without the library, with it, and with it sampling. Whether there are samples is known
/// only of programs that use the C library's malloc and end by `exit`.
fn check(program: &str, arguments: &[&str], has_samples: bool) {
    if !installed(program) {
        return;
    }
    let folder = std::env::temp_dir();
    let prepared = |mut command: Command| {
        command.args(arguments).current_dir(&folder).env("LC_ALL", "C");
        command
    };
    let plain = finished(&mut prepared(Command::new(program)));
    let idle = finished(&mut prepared(with_library(program, &[])));
    assert_eq!(idle.stdout, plain.stdout, "idle");
    assert_eq!(idle.stderr, plain.stderr, "idle");

    let attach = shared("attach");
    let sampling = || {
        let mut command = prepared(with_library(program, &[attach.as_path()]));
        command.env("EVERFLAME_ALLOC_PERIOD", "200");
        command
    };
    let quiet = finished(&mut sampling());
    assert_eq!(quiet.stdout, plain.stdout, "sampling");
    assert_eq!(quiet.stderr, plain.stderr, "sampling");
    if has_samples {
        let told = finished(sampling().env("ATTACH_SAYS", "1"));
        let told = String::from_utf8_lossy(&told.stderr).into_owned();
        assert!(told.contains("sampled some\n"), "{told}");
    }
}

#[test]
fn ls_lists_the_same() {
    check("ls", &["-l", "/usr/bin"], true);
}

#[test]
fn a_shell_with_children_says_the_same() {
    let script =
        "for i in 1 2 3; do echo $i | cat; done; x=$(ls / | wc -l); echo ${x/a/b}; (exit 0)";
    check("bash", &["-c", script], true);
}

#[test]
fn python_computes_the_same() {
    let script = "import json, threading, collections\n\
        out = []\n\
        def work(n): out.append(sum(len(json.dumps({str(i): [i] * 20})) for i in range(n)))\n\
        threads = [threading.Thread(target=work, args=(3000,)) for _ in range(4)]\n\
        [t.start() for t in threads]; [t.join() for t in threads]\n\
        print(out)";
    check("python3", &["-c", script], true);
}

#[test]
fn sqlite_answers_the_same() {
    let script = "create table t(a, b); \
        with recursive n(i) as (select 1 union all select i + 1 from n where i < 20000) \
        insert into t select i, hex(i) from n; \
        create index i on t(b); select count(*), max(b), sum(a) from t where b > '3';";
    check("sqlite3", &[":memory:", script], true);
}

#[test]
fn git_says_the_same() {
    check("git", &["help", "-a"], false);
}

#[test]
fn java_starts() {
    check("java", &["-Xshare:auto", "-XX:+UseSerialGC", "-version"], false);
}

#[test]
fn valgrind_replaces_our_malloc_too() {
    if !installed("valgrind") {
        return;
    }
    // Its own functions take the place of ours, so there are no samples: and no harm.
    let program = compiled("cc", "amounts");
    let printed = output(
        with_library("valgrind", &[])
            .args(["--quiet", "--error-exitcode=9", "--leak-check=no"])
            .arg(&program)
            .args(["100", "1000", "1"]),
    );
    assert_eq!(printed, "0 0 0 0 0 0\n");
}

#[test]
fn a_static_program_is_not_concerned() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs/plain.c");
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join("plain-static");
    let compiled = Command::new("cc").arg("-static").arg(source).arg("-o").arg(&program).status();
    if !compiled.is_ok_and(|status| status.success()) {
        eprintln!("SKIPPED: there is no static C library");
        return;
    }
    passes(&mut with_library(program, &[]));
}
