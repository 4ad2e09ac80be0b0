//! redis on loopback under `redis-benchmark`, one request at a time on each connection and sixteen, beside nothing
//! and beside an agent with `--kinds tcp`, in turns; and what the agent's maps take with 10,000 connections open.

use std::net::{TcpListener, TcpStream};
use std::process::Command;

use everflame_tests::bench::{print, print_percent};
use everflame_tests::cost::{BpfStats, cpu_seconds, median};
use everflame_tests::redis::Redis;
use tempfile::TempDir;

use crate::beside::agent::KindAgent;
use crate::beside::hooks::Followed;

const TCP: Followed = Followed {
    kinds: "tcp",
    hooks: &[
        ("tcp_sent", "sock_send_length"),
        ("tcp_received", "tcp_rcv_space_adjust"),
        ("tcp_state", "inet_sock_set_state"),
    ],
};

/// A load: requests at a time on each connection, and requests in all, which take a second or two.
struct Load {
    name: &'static str,
    depth: &'static str,
    requests: u32,
}

const LOADS: [Load; 2] = [
    Load { name: "one_at_a_time", depth: "1", requests: 200_000 },
    Load { name: "pipelined", depth: "16", requests: 1_500_000 },
];

/// How often each case runs in a round.
const TURNS: usize = 2;

const OPEN: usize = 10_000;

pub(crate) fn run(rounds: usize) {
    eprintln!("{rounds} rounds of redis beside nothing and beside the agent ...");
    let dir = TempDir::new().unwrap();
    let port = free_port();
    let redis = Redis::start(dir.path(), |command| {
        command.args(["--port", &port.to_string(), "--bind", "127.0.0.1"]);
    });
    for load in LOADS {
        measure(&load, port);
        let mut runs = Vec::new();
        for round in 0..rounds {
            let mut of_round = [Vec::new(), Vec::new()];
            for turn in 0..2 * TURNS {
                let at = (round + turn) % 2;
                let _agent = (at == 1).then(|| KindAgent::start(TCP, &[]));
                let before = busy_seconds();
                let per_second = measure(&load, port);
                of_round[at].push([per_second, busy_seconds() - before]);
            }
            let medians = |which: usize| {
                let of_case = |case: &Vec<[f64; 2]>| {
                    median(&mut case.iter().map(|values| values[which]).collect::<Vec<_>>())
                };
                of_round.each_ref().map(of_case)
            };
            runs.push([medians(0), medians(1)]);
        }
        let mut alone: Vec<f64> = runs.iter().map(|[[alone, _], _]| *alone).collect();
        print("redis", &format!("{}_alone", load.name), median(&mut alone), "requests a second");
        let slower = runs.iter().map(|[[alone, beside], _]| 100.0 * (1.0 - beside / alone));
        let name = format!("{}_slower_with_agent", load.name);
        print_percent("redis", &name, slower, "% (target: at most 3)");
        // Of all that runs; what the host takes from the machine meanwhile is not in it.
        let more = runs.iter().map(|[_, [alone, beside]]| 100.0 * (1.0 - alone / beside));
        let name = format!("{}_cpu_of_agent", load.name);
        print_percent("redis", &name, more, "% of the CPU time that a request takes");
        program_times(&load, port, &redis);
    }
    drop(redis);
    open_connections();
}

fn measure(load: &Load, port: u16) -> f64 {
    let output = Command::new("redis-benchmark")
        .args(["-h", "127.0.0.1", "-p", &port.to_string(), "-t", "get", "-c", "50", "--csv", "-P"])
        .args([load.depth, "-n", &load.requests.to_string()])
        .output()
        .unwrap();
    let stdout = String::from_utf8_lossy(&output.stdout);
    let row = stdout.lines().find_map(|line| line.strip_prefix("\"GET\",\""));
    let per_second = row.and_then(|row| row.split('"').next()?.parse::<f64>().ok());
    per_second.unwrap_or_else(|| panic!("redis-benchmark says {stdout}"))
}

/// CPU time of everything, interrupts included, since the machine began.
fn busy_seconds() -> f64 {
    const TICKS_A_SECOND: f64 = 100.0;
    // user, nice, system, idle, iowait, irq, softirq (proc_stat(5)).
    const BUSY: [usize; 5] = [1, 2, 3, 6, 7];
    let stat = std::fs::read_to_string("/proc/stat").unwrap();
    let fields: Vec<&str> = stat.lines().next().unwrap().split_whitespace().collect();
    BUSY.map(|at| fields[at].parse::<f64>().unwrap()).iter().sum::<f64>() / TICKS_A_SECOND
}

/// What the programs take for each request, by the kernel's statistics, and the agent's own process.
fn program_times(load: &Load, port: u16, redis: &Redis) {
    let agent = KindAgent::start(TCP, &[]);
    let stats = BpfStats::on();
    let (before, cpu_before) = (agent.programs.run_times(), cpu_seconds(agent.process.pid()));
    let server_before = cpu_seconds(redis.process.pid());
    let per_second = measure(load, port);
    let (after, cpu) = (agent.programs.run_times(), cpu_seconds(agent.process.pid()) - cpu_before);
    let server = cpu_seconds(redis.process.pid()) - server_before;
    drop(stats);
    let requests = f64::from(load.requests);
    let mut ns = 0;
    for ((name, _), (after, before)) in TCP.hooks.iter().zip(after.into_iter().zip(before)) {
        let run_time = after.since(before);
        ns += run_time.ns;
        if run_time.runs > 0 {
            print("redis", &format!("{}_{name}_mean", load.name), run_time.mean_ns(), "ns");
        }
    }
    print("redis", &format!("{}_programs", load.name), ns as f64 / requests, "ns a request");
    let server_ns = 1e9 * server / requests;
    print("redis", &format!("{}_server", load.name), server_ns, "ns of CPU a request");
    let seconds = requests / per_second;
    print("redis", &format!("{}_agent_cpu", load.name), 100.0 * cpu / seconds, "% of one core");
}

/// What the agent's maps take, with and without following connections, and what it takes itself.
fn open_connections() {
    let others = KindAgent::start(Followed { kinds: "cpu", hooks: &[] }, &[]);
    let without = map_bytes(&others);
    drop(others);
    let agent = KindAgent::start(TCP, &[]);
    let before = resident_bytes(agent.process.pid());
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let connections: Vec<(TcpStream, TcpStream)> = (0..OPEN / 2)
        .map(|_| (TcpStream::connect(address).unwrap(), listener.accept().unwrap().0))
        .collect();
    // It looks at least once more.
    std::thread::sleep(std::time::Duration::from_secs(2));
    let with = map_bytes(&agent);
    let grown = resident_bytes(agent.process.pid()).saturating_sub(before);
    print("redis", "connections_open", 2.0 * connections.len() as f64, "ends of connections");
    print("redis", "maps_more_than_for_cpu", (with - without) / 1048576.0, "MiB");
    print("redis", "agent_grown_with_connections", grown as f64 / 1048576.0, "MiB");
}

/// Memory of all maps that a process has, as the kernel accounts for it.
fn map_bytes(agent: &KindAgent) -> f64 {
    let mut maps = std::collections::HashMap::new();
    let entries = std::fs::read_dir(format!("/proc/{}/fdinfo", agent.process.pid())).unwrap();
    for entry in entries.flatten() {
        let info = std::fs::read_to_string(entry.path()).unwrap_or_default();
        let field = |name| {
            info.lines().find_map(|line: &str| line.strip_prefix(name)?.trim().parse::<u64>().ok())
        };
        if let (Some(id), Some(bytes)) = (field("map_id:"), field("memlock:"))
            && info.contains("map_type:")
        {
            maps.insert(id, bytes);
        }
    }
    maps.values().sum::<u64>() as f64
}

fn resident_bytes(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").trim().parse::<u64>().unwrap() * 1024
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}
