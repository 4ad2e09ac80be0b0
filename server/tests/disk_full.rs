//! A full disk, for real: a small tmpfs, filled and freed.
//!
//! Needs root to mount. Elsewhere it says that it was skipped; in CI that is a failure.
#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]
#![expect(clippy::print_stdout, reason = "says why it was skipped")]

mod harness;

use std::{fs, os::unix::fs::FileExt as _, path::Path, time::Duration};

use everflame_proto::v1::Outcome;
use harness::{Server, batches, eventually, http};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use tonic::Code;

const DISK_BYTES: u64 = 64 << 20;
/// These fit into what the store keeps in memory (16 MiB); a few more do not.
const FILL_AFTER_BATCHES: i64 = 26;

/// A file system of its own, unmounted when dropped.
struct SmallDisk {
    dir: tempfile::TempDir,
}

impl SmallDisk {
    /// None, with the reason printed, where this process may not mount.
    fn mount() -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let options = std::ffi::CString::new(format!("size={DISK_BYTES}")).unwrap();
        let mounted = mount("tmpfs", dir.path(), "tmpfs", MountFlags::empty(), &*options);
        match mounted {
            Ok(()) => Some(Self { dir }),
            Err(err) if std::env::var_os("CI").is_some_and(|ci| ci == "true") => {
                panic!("cannot mount a tmpfs, which CI has to be able to: {err}")
            }
            Err(err) => {
                println!("skipped: cannot mount a tmpfs: {err}");
                None
            }
        }
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    fn free_bytes(&self) -> u64 {
        let stat = rustix::fs::statvfs(self.path()).unwrap();
        stat.f_bavail * stat.f_frsize
    }

    /// Takes space until so much is left.
    fn fill(&self, leave_bytes: u64) {
        let file = fs::File::create(self.path().join("filler")).unwrap();
        let block = vec![1; 64 << 10];
        let mut offset = 0;
        while self.free_bytes() > leave_bytes {
            let left = usize::try_from(self.free_bytes() - leave_bytes).unwrap();
            let part = &block[..left.min(block.len())];
            if file.write_all_at(part, offset).is_err() {
                break;
            }
            offset += part.len() as u64;
        }
    }

    fn free(&self) {
        fs::remove_file(self.path().join("filler")).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = unmount(self.path(), UnmountFlags::DETACH);
    }
}

async fn stored_samples(server: &Server) -> i64 {
    let answer = http::get(server.address, "/api/v1/top?sample_type=samples").await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()["total_value"].as_i64().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn full_disk_refuses_batches_keeps_answering_and_recovers() {
    let Some(disk) = SmallDisk::mount() else { return };
    let data_dir = disk.path().join("data");
    let server = Server::start_with(&data_dir, &["--min-free-bytes", "16MiB"]);
    let ack = server.push(batches::simple("host-a", "api", 1)).await.unwrap();
    assert_eq!(ack.outcome(), Outcome::Stored);

    disk.fill(8 << 20);
    let refused = batches::simple("host-a", "api", 2);
    let status = server.push(refused.clone()).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
    let message = status.message();
    assert!(message.contains(data_dir.to_str().unwrap()), "{message}");
    let needed = (16u64 << 20).to_string();
    assert!(message.contains("bytes are free") && message.contains(&needed), "{message}");
    assert_eq!(stored_samples(&server).await, 1);
    assert_eq!(http::get(server.address, "/healthz").await.status, 503);
    assert_eq!(server.metric("everflame_server_batches_total{outcome=\"no_room\"}").await, 1.0);

    disk.free();
    let ack = server.push(refused).await.unwrap();
    assert_eq!(ack.outcome(), Outcome::Stored);
    assert_eq!(stored_samples(&server).await, 3);
    assert_eq!(http::get(server.address, "/healthz").await.status, 200);
}

/// Without headroom the engine itself hits the end of the disk: it has to write
/// what it holds in memory to a file that does not fit. Even then queries work,
/// nothing acknowledged is lost, and batches are taken again without a restart.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn disk_that_fills_up_under_the_engine_is_survived() {
    let Some(disk) = SmallDisk::mount() else { return };
    let data_dir = disk.path().join("data");
    let server = Server::start_with(&data_dir, &["--min-free-bytes", "0"]);
    let mut acknowledged = 0;
    let mut next = 1;
    let mut refused = None;
    while refused.is_none() {
        // About half a megabyte each when compressed.
        let batch = batches::bulky("host-a", "api", next, 1 << 20);
        match server.push(batch.clone()).await {
            Ok(ack) if ack.outcome() == Outcome::Stored => acknowledged += next,
            other => {
                println!("refused after {next} batches: {other:?}");
                refused = Some((batch, next));
            }
        }
        if next == FILL_AFTER_BATCHES {
            disk.fill(3 << 20);
        }
        assert!(next < 100, "the disk was never full");
        next += 1;
    }
    let (batch, value) = refused.unwrap();
    // The batch may have been refused for want of room while the engine still wrote its table.
    eventually("the engine has met the end of the disk", || async {
        http::get(server.address, "/healthz").await.status == 503
    })
    .await;
    assert_eq!(stored_samples(&server).await, acknowledged);

    disk.free();
    eventually("batches are taken again", || async {
        let pushed = server.push(batch.clone());
        match tokio::time::timeout(Duration::from_secs(5), pushed).await {
            Ok(Ok(ack)) => matches!(ack.outcome(), Outcome::Stored | Outcome::Duplicate),
            _ => false,
        }
    })
    .await;
    assert_eq!(stored_samples(&server).await, acknowledged + value);
    assert!(server.metric("everflame_server_store_reopened_total").await >= 1.0);
    server.kill();
    let server = Server::start_with(&data_dir, &["--min-free-bytes", "0"]);
    assert_eq!(stored_samples(&server).await, acknowledged + value);
}
