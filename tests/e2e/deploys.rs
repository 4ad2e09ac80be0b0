//! Two builds of a service, deployed one after the other under the same load: what changed is named, and the gate
//! closes; the same build again is let through.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use everflame_tests::program::{Agent, Server, everflame, scratch_dir};
use everflame_tests::workload::compile_with;
use serde_json::Value;
use tempfile::TempDir;

use crate::{say, take_turn};

const SERVICE: &str = "shop";

/// Replicates: more than the five that are needed, as load comes and goes.
const INSTANCES: usize = 8;

/// Connections of each instance; half of them ask for /orders.
const CONNECTIONS: usize = 8;

/// Each connection sends a request in this time, whatever the version.
const TICK: Duration = Duration::from_millis(80);

const RUN: Duration = Duration::from_secs(8);

/// Versions run one after the other, in turns: what the machine is like changes from one minute to the next, and is not
/// to be taken for what the builds differ by.
const ROUNDS: usize = 4;

/// A process of the service, and who asks it.
struct Instance {
    process: Child,
    port: u16,
}

impl Instance {
    fn start(program: &Path, version: &str) -> Self {
        let attributes = format!("service.name={SERVICE},service.version={version}");
        let mut process = Command::new(program)
            .arg("0")
            .env("OTEL_RESOURCE_ATTRIBUTES", attributes)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let port = line.trim().strip_prefix("listening port=").unwrap().parse().unwrap();
        Self { process, port }
    }

    /// Sends requests at the same rate to each version, and waits for the answers. How many they were.
    fn ask(&self, begin: Instant, is_over: &AtomicBool) -> usize {
        let mut connections: Vec<TcpStream> = (0..CONNECTIONS)
            .map(|_| {
                let connection = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
                connection.set_nodelay(true).unwrap();
                connection.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
                connection
            })
            .collect();
        let mut asked = 0;
        for tick in 0.. {
            if is_over.load(Ordering::Relaxed) {
                break;
            }
            thread::sleep((begin + TICK * tick).saturating_duration_since(Instant::now()));
            for (at, connection) in connections.iter_mut().enumerate() {
                let path = if at % 2 == 0 { "orders" } else { "log" };
                connection
                    .write_all(format!("GET /{path} HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes())
                    .unwrap();
            }
            for connection in &mut connections {
                let mut answer = [0; 128];
                let length = connection.read(&mut answer).unwrap();
                assert!(answer[..length].starts_with(b"HTTP/1.1 200 OK"));
                asked += 1;
            }
        }
        asked
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Runs a version under load.
fn run(program: &Path, version: &str) {
    let instances: Vec<Instance> =
        (0..INSTANCES).map(|_| Instance::start(program, version)).collect();
    let is_over = AtomicBool::new(false);
    // One after the other, so that what waits for a lock does not wait for a CPU.
    let begin = Instant::now();
    let is_over = &is_over;
    let asked: usize = thread::scope(|scope| {
        let askers: Vec<_> = (0..)
            .zip(&instances)
            .map(|(at, instance)| {
                let begin = begin + TICK * at / INSTANCES as u32;
                scope.spawn(move || instance.ask(begin, is_over))
            })
            .collect();
        thread::sleep(RUN);
        is_over.store(true, Ordering::Relaxed);
        askers.into_iter().map(|asker| asker.join().unwrap()).sum()
    });
    say(&format!("deploys: {version} answered {asked} requests"));
}

fn ask(server: &Server, arguments: &[&str]) -> Output {
    let output = everflame().args(arguments).args(["--server", &server.url()]).output().unwrap();
    say(&format!(
        "$ everflame {}\n{}{}",
        arguments.join(" "),
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    ));
    output
}

/// The functions that a diff says cost more, first first.
fn regressed(server: &Server, kind: &str) -> Vec<String> {
    let arguments = [
        "diff",
        "--service",
        SERVICE,
        "--from",
        "v1",
        "--to",
        "v2",
        "--warm-up",
        "0",
        "--kind",
        kind,
    ];
    ask(server, &arguments);
    let output = everflame()
        .args(arguments)
        .args(["--format", "json", "--server", &server.url()])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let comparison: Value = serde_json::from_slice(&output.stdout).unwrap();
    let report = &comparison["report"];
    assert_eq!(report["answer"], "regressed", "{kind}: {}", report["basis"]);
    assert_eq!(report["basis"]["replicate"], "instance", "{kind}");
    let functions = report["functions"].as_array().unwrap().iter();
    let is_regressed = |function: &&Value| {
        ["own", "total"].iter().any(|by| function[by]["verdict"]["is"] == "regressed")
    };
    functions
        .filter(is_regressed)
        .map(|function| function["name"].as_str().unwrap().to_owned())
        .collect()
}

fn gate(server: &Server, from: &str, to: &str) -> Output {
    // Beyond what the machine itself makes costs differ by from one minute to the next.
    let limits =
        ["cpu/^(parse_request|render_page)$/:+40%", "lock/^update_store$/:+20%", "alloc:+50%"];
    let mut arguments =
        vec!["gate", "--service", SERVICE, "--from", from, "--to", to, "--warm-up", "0"];
    arguments.extend(limits.iter().flat_map(|limit| ["--fail-on", limit]));
    ask(server, &arguments)
}

#[test]
fn second_build_is_told_from_the_first_and_not_from_itself() {
    let Some(_turn) = take_turn() else { return };
    let dir = TempDir::new().unwrap();
    let build = |name: &str, arguments: &[&str]| {
        let program = scratch_dir().join(name);
        compile_with("http_service", arguments, &program);
        program
    };
    let (first, second) = (build("http_service_1", &[]), build("http_service_2", &["-DNEXT"]));
    let server = Server::start(&dir.path().join("data"), "127.0.0.1:0");
    // What is freed at once lets no memory grow: allocators are asked, for a second of each window.
    let arguments = "--kinds cpu,lock,alloc --window 2s --cpu-rate-hz 499 --alloc-modes live --alloc-window 1s \
                     --alloc-window-interval 2s";
    let arguments: Vec<&str> = arguments.split_whitespace().collect();
    let mut agent = Agent::start(&server.url(), &dir.path().join("spool"), &arguments);
    for _ in 0..ROUNDS {
        run(&first, "v1");
        run(&second, "v2");
        run(&second, "v3");
    }
    assert!(agent.process.terminate().success(), "{}", agent.process.log());

    // Nobody has announced anything.
    let deploys = ask(&server, &["deploys", "--service", SERVICE, "--format", "json"]);
    let deploys: Value = serde_json::from_slice(&deploys.stdout).unwrap();
    let versions: Vec<_> = deploys
        .as_array()
        .unwrap()
        .iter()
        .map(|it| (&it["version"], &it["previous_version"]))
        .collect();
    assert_eq!(versions.len(), 3, "{versions:?}");
    assert_eq!((versions[1].0, versions[1].1), (&Value::from("v2"), &Value::from("v1")));

    assert_eq!(regressed(&server, "cpu").first().map(String::as_str), Some("render_page"));
    assert_eq!(regressed(&server, "lock").first().map(String::as_str), Some("update_store"));
    assert_eq!(regressed(&server, "alloc").first().map(String::as_str), Some("copy_headers"));

    let worse = gate(&server, "v1", "v2");
    assert_eq!(worse.status.code(), Some(1));
    let report = String::from_utf8_lossy(&worse.stdout).into_owned();
    for name in ["update_store with what it calls", "copy_headers"] {
        assert!(report.contains(name), "{name} is not in\n{report}");
    }
    assert_eq!(gate(&server, "v2", "v3").status.code(), Some(0));
}
