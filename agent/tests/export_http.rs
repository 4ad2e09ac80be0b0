//! The HTTP endpoint through a real socket.
#![expect(clippy::expect_used, clippy::panic, reason = "helpers of a test fail as the test does")]

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use everflame_agent::export::{ExportConfig, Exporter};
use everflame_agent::health::Health;
use everflame_agent::http::{HttpEndpoint, HttpError};
use everflame_agent::metrics::{KindLabels, Metrics};
use everflame_profile::{DecodeLimits, decode, sample_type_index, top};

struct Agent {
    address: SocketAddr,
    metrics: Arc<Metrics>,
    health: Arc<Health>,
    _exporter: Exporter,
    _spool: tempfile::TempDir,
}

fn agent(stale_after: Duration) -> Agent {
    let spool = tempfile::tempdir().expect("a directory");
    let metrics = Arc::new(Metrics::new());
    let health = Arc::new(Health::new(stale_after));
    let any_port = ([127, 0, 0, 1], 0).into();
    let http = HttpEndpoint::bind(any_port, Arc::clone(&metrics), Arc::clone(&health))
        .expect("a free port");
    let address = http.local_addr();
    let config = ExportConfig::new(None, spool.path().into());
    let exporter = Exporter::spawn(config, Arc::clone(&metrics), Arc::clone(&health), Some(http))
        .expect("export starts");
    Agent { address, metrics, health, _exporter: exporter, _spool: spool }
}

fn request(address: SocketAddr, path: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).expect("a listener");
    write!(stream, "GET {path} HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n\r\n")
        .expect("a connection");
    stream
}

/// Status, headers and body.
fn get(address: SocketAddr, path: &str) -> (u16, String, Vec<u8>) {
    let mut response = Vec::new();
    request(address, path).read_to_end(&mut response).expect("a response");
    let end = response.windows(4).position(|four| four == b"\r\n\r\n").expect("a head");
    let head = String::from_utf8(response[..end].to_vec()).expect("text");
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
    (status, head.to_lowercase(), response[end + 4..].to_vec())
}

fn get_text(address: SocketAddr, path: &str) -> (u16, String) {
    let (status, _, body) = get(address, path);
    (status, String::from_utf8(body).expect("text"))
}

#[test]
fn metrics_are_served_as_open_metrics() {
    let agent = agent(Duration::from_secs(60));
    agent.metrics.samples.get_or_create(&KindLabels { kind: "cpu" }).inc_by(5);
    let (status, head, body) = get(agent.address, "/metrics");
    assert_eq!(status, 200);
    assert!(head.contains("content-type: application/openmetrics-text"), "{head}");
    let body = String::from_utf8(body).expect("text");
    assert!(body.contains("everflame_agent_samples_total{kind=\"cpu\"} 5\n"), "{body}");
    assert_eq!(get_text(agent.address, "/elsewhere").0, 404);
}

#[test]
fn a_healthy_agent_says_so_in_json() {
    let agent = agent(Duration::from_secs(60));
    agent.health.window_finished();
    let (status, body) = get_text(agent.address, "/healthz");
    assert_eq!(status, 200, "{body}");
    let body: serde_json::Value = serde_json::from_str(&body).expect("JSON");
    assert_eq!(body["healthy"], true);
    assert_eq!(body["collector_connected"], false);
    assert_eq!(body["spool_batches"], 0);
}

#[test]
fn an_agent_that_does_not_finish_windows_is_unhealthy() {
    let agent = agent(Duration::ZERO);
    let (status, body) = get_text(agent.address, "/healthz");
    assert_eq!(status, 503, "{body}");
    assert!(body.contains("no window was finished"), "{body}");
}

#[test]
fn clients_that_connect_and_say_nothing_are_limited_and_sent_away() {
    let agent = agent(Duration::from_secs(60));
    let silent: Vec<TcpStream> =
        (0..50).map(|_| TcpStream::connect(agent.address).expect("a listener")).collect();
    let mut other = request(agent.address, "/healthz");
    other.set_read_timeout(Some(Duration::from_secs(1))).expect("a socket");
    assert!(other.read(&mut [0]).is_err(), "there is no room for it");
    // The first of them hold all places until their time is up, then there is room.
    silent[0].set_read_timeout(Some(Duration::from_secs(30))).expect("a socket");
    let mut answer = Vec::new();
    (&silent[0]).read_to_end(&mut answer).expect("an end");
    drop(silent);
    assert_eq!(get_text(agent.address, "/healthz").0, 200);
}

#[test]
fn an_address_that_is_taken_is_named() {
    let agent = agent(Duration::from_secs(60));
    let second = HttpEndpoint::bind(agent.address, Arc::default(), Arc::clone(&agent.health));
    let Err(error @ HttpError::Bind { .. }) = second else { panic!("the port is taken") };
    assert!(error.to_string().contains(&agent.address.to_string()), "{error}");
}

/// Whether this process handles SIGPROF, by its mask of caught signals.
fn is_sampling() -> bool {
    const SIGPROF: u32 = 27;
    let status = fs::read_to_string("/proc/self/status").expect("this process");
    let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).expect("a mask");
    let caught = u64::from_str_radix(caught.trim(), 16).expect("a mask");
    caught & (1 << (SIGPROF - 1)) != 0
}

fn wait_until(what: &str, done: impl Fn() -> bool) {
    for _ in 0..30_000 {
        if done() {
            return;
        }
        thread::sleep(Duration::from_millis(2));
    }
    panic!("gave up waiting until {what}");
}

/// Something to see in a profile.
#[inline(never)]
fn burn_cpu_for_the_profile(stop: &AtomicBool) -> u64 {
    let mut sum = 0_u64;
    while !stop.load(Ordering::Relaxed) {
        sum = (0..10_000_u64).fold(sum, |sum, n| sum.wrapping_mul(31).wrapping_add(n));
    }
    sum
}

/// One test, since there is one SIGPROF.
#[test]
fn the_agent_profiles_itself_for_one_client_at_a_time_and_only_on_request() {
    let agent = agent(Duration::from_secs(60));
    assert!(Path::new("/proc/self/status").exists() && !is_sampling());
    for seconds in ["0", "61", "-1", "x"] {
        let path = format!("/debug/pprof/profile?seconds={seconds}");
        assert_eq!(get_text(agent.address, &path).0, 400, "{seconds}");
    }

    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| burn_cpu_for_the_profile(&stop));
        let first = scope.spawn(|| get(agent.address, "/debug/pprof/profile?seconds=2"));
        wait_until("sampling has begun", is_sampling);
        let (status, body) = get_text(agent.address, "/debug/pprof/profile?seconds=1");
        assert_eq!(status, 409, "{body}");
        assert_eq!(get_text(agent.address, "/healthz").0, 200, "others are served meanwhile");

        let (status, _, body) = first.join().expect("no panic");
        stop.store(true, Ordering::Relaxed);
        assert_eq!(status, 200);
        let profile = decode(&body, &DecodeLimits::default()).expect("a valid profile");
        let index = sample_type_index(&profile, Some("cpu")).expect("CPU time");
        let table = top(&profile, index);
        assert!(
            table.functions.iter().any(|f| f.name.contains("burn_cpu_for_the_profile")),
            "{table:?}"
        );
    });
    wait_until("sampling has ended", || !is_sampling());

    let abandoned = request(agent.address, "/debug/pprof/profile?seconds=60");
    wait_until("sampling has begun again", is_sampling);
    drop(abandoned);
    wait_until("sampling has ended with its client", || !is_sampling());
}
