//! Frames that are described in unusual ways, or by nothing but a frame pointer.

use everflame_tests::profile::{Sample, total};
use everflame_tests::workload::{go_workload, workload};

use super::{MAIN, brief, check, is, percent, record_workload};
use crate::say;
use crate::take_turn;

/// These frames, and below them main and what it is called from.
fn above_main<'a>(frames: &[&'a str]) -> Vec<&'a str> {
    frames.iter().copied().chain(MAIN).collect()
}

fn check_odd(what: &str, frames: &[&str]) -> Vec<Sample> {
    let samples = record_workload(&workload("odd_frames"), &[what, "3"]);
    check(what, &samples, &above_main(frames), 0.995, 500);
    samples
}

#[test]
fn realigned_frame_is_left_by_its_saved_pointer() {
    let Some(_turn) = take_turn() else { return };
    check_odd("realign", &["burn", "realigned"]);
}

#[test]
fn frame_of_changing_size_is_left_by_rbp() {
    let Some(_turn) = take_turn() else { return };
    check_odd("alloca", &["burn", "variable"]);
}

#[test]
fn pushed_arguments_are_accounted_for() {
    let Some(_turn) = take_turn() else { return };
    check_odd("pushes", &["burn", "pushing"]);
}

#[test]
fn call_that_ends_a_function_belongs_to_that_function() {
    let Some(_turn) = take_turn() else { return };
    let samples = check_odd("noreturn", &["burn", "never_returns", "ends_with_call"]);
    assert!(!samples.iter().any(|sample| sample.has("next_function")));
}

#[test]
fn vdso_is_unwound() {
    let Some(_turn) = take_turn() else { return };
    let samples = record_workload(&workload("odd_frames"), &["vdso", "3"]);
    check("vdso", &samples, &above_main(&["asks_the_time"]), 0.995, 500);
    let in_vdso = samples.iter().filter(|sample| sample.stack[0].contains("vdso"));
    let in_vdso = total(in_vdso);
    say(&format!("{in_vdso} of {} samples in the vDSO", total(&samples)));
    // Where the clock is not read by the vDSO, it makes the system call.
    let in_kernel = samples.iter().filter(|sample| sample.has("do_syscall_64"));
    assert!(in_vdso + total(in_kernel) > 300, "{in_vdso} in the vDSO");
}

/// The trampoline that a signal handler returns to; without libc's debug symbols without name.
fn is_trampoline(name: &str) -> bool {
    name.is_empty() || name == "__restore_rt"
}

/// Stacks of `burn` in a handler, and what the handler interrupted.
fn check_signal(arguments: &[&str], interrupted: &[&str]) {
    let Some(_turn) = take_turn() else { return };
    let samples = record_workload(&workload("signal"), arguments);
    let handling: Vec<&Sample> = samples.iter().filter(|sample| sample.has("handler")).collect();
    let below = above_main(interrupted);
    let is_right = |sample: &Sample| {
        // `burn` may also be what was interrupted, and the kernel may have interrupted all.
        let Some(at) = sample.stack.iter().position(|name| name == "handler") else { return false };
        let (above, below_handler) = sample.stack.split_at(at);
        let burns_right = above.iter().position(|name| name == "burn").is_none_or(|i| i + 1 == at);
        let Some((trampoline, stack)) = below_handler[1..].split_first() else { return false };
        // Anything below what is interrupted may be, and the clock that tells the time.
        let stack: Vec<String> = stack.iter().filter(|name| !is_clock(name)).cloned().collect();
        let shorter = (0..below.len()).any(|first| is(&stack, &below[first..]));
        is_trampoline(trampoline) && shorter && burns_right
    };
    let (right, wrong): (Vec<&Sample>, Vec<&Sample>) =
        handling.iter().partition(|sample| is_right(sample));
    for sample in wrong.iter().take(10) {
        say(&format!("{} x {}", sample.count, brief(&sample.stack)));
    }
    // A stack that is copied while a table is on its way ends with the handler's stack, if that
    // is another.
    let (right, all) = (total(right), total(handling));
    say(&format!("signal {arguments:?}: {right} of {all} exact ({:.3} %)", percent(right, all)));
    assert!(all > 300 && right as f64 >= 0.99 * all as f64, "{right} of {all}");
}

fn is_clock(name: &str) -> bool {
    name.contains("clock_gettime") || name.contains("vdso") || name == "monotonic_ns"
}

#[test]
fn signal_at_the_first_instruction_of_a_function_is_unwound() {
    check_signal(&["fault", "3"], &["faulting", "raiser"]);
}

#[test]
fn signal_on_a_stack_of_its_own_is_unwound() {
    check_signal(&["fault", "3", "alternate"], &["faulting", "raiser"]);
}

#[test]
fn signal_at_any_instruction_is_unwound() {
    check_signal(&["timer", "4"], &["burn", "interrupted", "raiser"]);
}

#[test]
fn signal_at_any_instruction_on_a_stack_of_its_own_is_unwound() {
    check_signal(&["timer", "4", "alternate"], &["burn", "interrupted", "raiser"]);
}

#[test]
fn generated_code_is_left_by_its_frame_pointer() {
    let Some(_turn) = take_turn() else { return };
    let samples = record_workload(&workload("jit"), &["3"]);
    let _ = std::fs::remove_file(format!("/tmp/perf-{}.map", samples[0].label("pid")));
    check("generated code", &samples, &above_main(&["jitted_loop"]), 0.995, 500);
}

#[test]
fn goroutine_is_unwound_to_its_end() {
    let Some(_turn) = take_turn() else { return };
    let mut samples = record_workload(&go_workload("goroutines"), &["3"]);
    // The assembler's name for functions that Go calls by registers; and what some versions of Go
    // put between a goroutine's function and its end.
    for sample in &mut samples {
        for name in &mut sample.stack {
            *name = name.trim_end_matches(".abi0").to_owned();
        }
        sample.stack.retain(|name| name != "main.main.func2" && !name.contains("gowrap"));
    }
    let stack =
        ["main.goLeaf", "main.goMiddle", "main.goOuter", "main.main.func1", "runtime.goexit"];
    check("goroutines", &samples, &stack, 0.99, 500);
}
