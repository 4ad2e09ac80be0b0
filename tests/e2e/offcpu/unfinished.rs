//! A wait that goes on when the recording ends.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use everflame_tests::profile;
use everflame_tests::waits;
use rustix::process::{Pid, Signal, kill_process};

use super::{Findings, Recorded, count, is_complete, ns, of_thread};
use crate::take_turn;

#[test]
fn wait_that_goes_on_is_recorded_once_with_its_stack_and_length() {
    let Some(_turn) = take_turn() else { return };
    // Never told to begin.
    let program = waits::pingpong("pipe", Duration::from_secs(1), false);
    let Recorded { program, output, _dir } = Recorded::start(&program);
    let ready = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    std::thread::sleep(Duration::from_secs(6));
    let recorder = i32::try_from(program.pid()).ok().and_then(Pid::from_raw);
    kill_process(recorder.unwrap(), Signal::INT).unwrap();
    let threads = program.threads.clone();
    program.wait();

    let (profile, samples) = profile::read(&output);
    let end_ns = profile.time_nanos + profile.duration_nanos;
    let expected = end_ns as f64 - ready.as_nanos() as f64;
    let mut findings = Findings::new();
    for (name, tid) in threads {
        let waits = of_thread(&samples, tid).filter(|sample| sample.has("wait_for_start"));
        findings.within(&name, ns(waits.clone()), expected, 0.02 * expected);
        let once = count(waits.clone());
        findings.note(once == 1.0, format!("{name} waits {once} times"));
        for sample in waits {
            let has_kernel = sample.stack.iter().any(|name| name.contains("pipe_read"));
            let is_complete = is_complete(sample, &["wait_for_start", "party_thread"]);
            findings.note(is_complete && has_kernel, format!("{name}: {:?}", sample.stack));
            let reason = sample.label("reason");
            findings.note(reason == "other", format!("{name} waits for: {reason}"));
        }
    }
}
