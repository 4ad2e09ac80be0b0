//! A real server process, a real client, and batches with known sums.
#![allow(dead_code, reason = "each test binary uses a part of this")]

pub(crate) mod batches;
pub(crate) mod http;

use std::{
    ffi::OsStr,
    io::{BufRead as _, BufReader, Read as _},
    net::SocketAddr,
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use everflame_proto::v1::{
    self, Batch, BatchAck, ingest_client::IngestClient, query_client::QueryClient,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming, transport::Channel};

/// How long anything may take before a test gives up.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A server process; killed when dropped.
pub(crate) struct Server {
    child: Child,
    pub(crate) address: SocketAddr,
}

impl Server {
    /// Starts a server on a free port and waits until it listens.
    pub(crate) fn start(data_dir: &Path) -> Self {
        Self::start_with(data_dir, &[] as &[&str])
    }

    /// The same with further arguments, which win over the defaults for tests.
    pub(crate) fn start_with(data_dir: &Path, arguments: &[impl AsRef<OsStr>]) -> Self {
        let mut child = command(data_dir, arguments).spawn().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let line = stdout.lines().next().map(Result::unwrap);
        let address = line
            .as_deref()
            .and_then(|line| line.strip_prefix("listening on "))
            .and_then(|address| address.parse().ok())
            .unwrap_or_else(|| panic!("the server says {line:?}, and ended {:?}", child.wait()));
        Self { child, address }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// SIGKILL.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// SIGTERM; waits for the process to end.
    pub(crate) async fn stop(mut self) -> ExitStatus {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        let begin = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(begin.elapsed() < PATIENCE, "the server does not stop");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    pub(crate) async fn channel(&self) -> Channel {
        let endpoint = format!("http://{}", self.address);
        Channel::from_shared(endpoint).unwrap().connect().await.unwrap()
    }

    pub(crate) async fn push_stream(&self) -> Push {
        Push::open(self.channel().await).await.unwrap()
    }

    /// Sends one batch on a stream of its own.
    pub(crate) async fn push(&self, batch: Batch) -> Result<BatchAck, Status> {
        self.push_stream().await.send(batch).await
    }

    pub(crate) async fn query(&self) -> QueryClient<Channel> {
        QueryClient::new(self.channel().await).max_decoding_message_size(64 << 20)
    }

    /// A counter or gauge of /metrics; 0 when it is not there yet.
    pub(crate) async fn metric(&self, name: &str) -> f64 {
        let text = http::get(self.address, "/metrics").await.text();
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.map_or(0.0, |value| value.parse().unwrap())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn command(data_dir: &Path, arguments: &[impl AsRef<OsStr>]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_everflame-server"));
    command
        .arg("--data-dir")
        .arg(data_dir)
        // In the environment, so that a test's arguments win.
        .env("EVERFLAME_LISTEN", "127.0.0.1:0")
        .env("EVERFLAME_LOG", "warn")
        // How full the machine's own disk is should not matter.
        .env("EVERFLAME_MIN_FREE_BYTES", "0")
        .env("EVERFLAME_MAINTENANCE_INTERVAL", "100ms")
        .args(arguments)
        .stdout(Stdio::piped());
    command
}

/// Runs a server that is expected to end by itself: its exit code and stderr.
pub(crate) fn run_to_end(data_dir: &Path, arguments: &[&str]) -> (i32, String) {
    let mut child = command(data_dir, arguments).stderr(Stdio::piped()).spawn().unwrap();
    let begin = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if begin.elapsed() > PATIENCE {
            child.kill().unwrap();
            panic!("the server did not end");
        }
        thread::sleep(Duration::from_millis(20));
    };
    let mut stderr = String::new();
    child.stderr.unwrap().read_to_string(&mut stderr).unwrap();
    (status.code().unwrap(), stderr)
}

/// One Push call.
pub(crate) struct Push {
    batches: mpsc::Sender<Batch>,
    answers: Streaming<BatchAck>,
}

impl Push {
    pub(crate) async fn open(channel: Channel) -> Result<Self, Status> {
        let (batches, sent) = mpsc::channel(64);
        let mut client = IngestClient::new(channel);
        let answers = client.push(ReceiverStream::new(sent)).await?.into_inner();
        Ok(Self { batches, answers })
    }

    /// Sends without waiting; false when the stream has ended.
    pub(crate) async fn put(&self, batch: Batch) -> bool {
        self.batches.send(batch).await.is_ok()
    }

    /// The next acknowledgement.
    pub(crate) async fn answer(&mut self) -> Result<BatchAck, Status> {
        let answer = tokio::time::timeout(PATIENCE, self.answers.message());
        let answer = answer.await.map_err(|_elapsed| Status::deadline_exceeded("no answer"))?;
        answer?.ok_or_else(|| Status::aborted("the stream ended"))
    }

    pub(crate) async fn send(&mut self, batch: Batch) -> Result<BatchAck, Status> {
        if !self.put(batch).await {
            return Err(Status::aborted("the stream ended"));
        }
        self.answer().await
    }
}

/// All profiles of a kind, whatever their time.
pub(crate) fn everything(kind: &str, selector: &str) -> Option<v1::Selection> {
    Some(v1::Selection {
        kind: kind.to_owned(),
        selector: selector.to_owned(),
        range: None,
        sample_type: String::new(),
    })
}

/// Asks again until `found` says yes.
pub(crate) async fn eventually<F, R>(what: &str, mut found: F)
where
    F: FnMut() -> R,
    R: Future<Output = bool>,
{
    let begin = Instant::now();
    while !found().await {
        assert!(begin.elapsed() < PATIENCE, "gave up waiting: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
