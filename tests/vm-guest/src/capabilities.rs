//! What `everflame-agent capabilities` says, held against the version of the kernel.
//!
//! Debian builds its kernels with all that the agent uses, so a feature must be there exactly
//! from the version on that brought it.

use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

/// Returns what the kernel lacks.
pub(crate) fn check(release: &str) -> Result<String> {
    let text = ask(&[])?;
    for line in text.lines() {
        println!("{line}");
    }
    let report: Value =
        serde_json::from_str(&ask(&["--format", "json"])?).context("its JSON cannot be read")?;
    judge(&report, release)
}

fn ask(args: &[&str]) -> Result<String> {
    let output = Command::new("/bin/everflame-agent")
        .arg("capabilities")
        .args(args)
        .output()
        .context("cannot run the agent")?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{}: {}", output.status, errors.trim());
    String::from_utf8(output.stdout).context("it does not print text")
}

fn judge(report: &Value, release: &str) -> Result<String> {
    let features = report.pointer("/kernel/features").and_then(Value::as_array);
    let features = features.context("it lists no features")?;
    let mut absent = Vec::new();
    for feature in features {
        let field = |name: &str| feature.get(name).and_then(Value::as_str).unwrap_or_default();
        let (name, state, since) = (field("name"), field("state"), field("since"));
        let expected = if version(release) >= version(since) { "present" } else { "absent" };
        if state != expected {
            bail!("{name} is in Linux {since} and newer, but reported {state} {}", field("reason"));
        }
        if state == "absent" {
            absent.push(name);
        }
    }
    let count = features.len();
    Ok(match absent.as_slice() {
        [] => format!("all {count} features"),
        absent => format!("all {count} features but {}", absent.join(", ")),
    })
}

/// The first two numbers: `5.10.0-46-cloud-amd64` has all of 5.10.
pub(crate) fn version(release: &str) -> (u32, u32) {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    let mut next = || numbers.next().and_then(Result::ok).unwrap_or(0);
    (next(), next())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn features_must_fit_the_version() {
        let check = |state: &str, release: &str, expected: Option<&str>| {
            let report = json!({ "kernel": { "features": [
                { "name": "bpf_loop", "state": state, "since": "5.17" },
            ] } });
            assert_eq!(judge(&report, release).ok().as_deref(), expected, "{state} in {release}");
        };
        check("present", "6.1.0-56-cloud-amd64", Some("all 1 features"));
        check("present", "5.17", Some("all 1 features"));
        check("absent", "5.10.0-46-cloud-amd64", Some("all 1 features but bpf_loop"));
        check("absent", "6.1.0-56-cloud-amd64", None);
        check("present", "5.10.0-46-cloud-amd64", None);
        check("unknown", "6.1.0-56-cloud-amd64", None);
        assert!(judge(&json!({}), "6.1").is_err());
    }
}
