//! The spool on a real file system.
#![expect(clippy::expect_used, reason = "helpers of a test fail as the test does")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use everflame_agent::export::{BatchId, Spool, SpoolError};
use everflame_agent::metrics::{Metrics, ReasonLabels};
use everflame_proto::v1::Batch;

const PLENTY: u64 = 1 << 20;

struct Fixture {
    dir: tempfile::TempDir,
    metrics: Arc<Metrics>,
}

impl Fixture {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        Self { dir, metrics: Arc::new(Metrics::new()) }
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    fn open(&self, max_bytes: u64) -> Spool {
        Spool::open(self.path(), max_bytes, Arc::clone(&self.metrics)).expect("a usable directory")
    }

    /// Batch files, oldest first.
    fn files(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.path()).expect("a directory");
        let mut files: Vec<_> = entries.map(|entry| entry.expect("an entry").path()).collect();
        files.retain(|file| file.extension().is_some_and(|extension| extension == "batch"));
        files.sort();
        files
    }

    fn bad_files(&self) -> usize {
        let entries = fs::read_dir(self.path()).expect("a directory");
        entries
            .filter(|e| e.as_ref().is_ok_and(|e| e.path().extension() == Some("bad".as_ref())))
            .count()
    }

    fn dropped(&self, reason: &'static str) -> u64 {
        self.metrics.spool_dropped_batches.get_or_create(&ReasonLabels { reason }).get()
    }
}

fn batch(host: &str) -> Batch {
    Batch { host: host.into(), ..Batch::default() }
}

/// The hosts of all batches, oldest first; empties the spool.
fn drain(spool: &Spool) -> Vec<String> {
    std::iter::from_fn(|| {
        let (id, batch) = spool.oldest(|_| false)?;
        assert_eq!(batch.batch_id, id.as_bytes());
        assert!(spool.acknowledge(&id));
        Some(batch.host)
    })
    .collect()
}

#[test]
fn batches_come_out_oldest_first() {
    let fixture = Fixture::new();
    let spool = fixture.open(PLENTY);
    for host in ["a", "b", "c"] {
        spool.push(batch(host));
    }
    assert_eq!(fixture.files().len(), 3);
    assert_eq!(fixture.metrics.spool_batches.get(), 3);
    assert_eq!(drain(&spool), ["a", "b", "c"]);
    assert_eq!(fixture.files().len(), 0);
    assert_eq!(fixture.metrics.spool_bytes.get(), 0);
}

#[test]
fn batches_in_flight_are_passed_over() {
    let fixture = Fixture::new();
    let spool = fixture.open(PLENTY);
    let ids = ["a", "b"].map(|host| spool.push(batch(host)));
    assert_eq!(spool.oldest(|id| *id == ids[0]).map(|(id, _)| id), Some(ids[1]));
    assert_eq!(spool.oldest(|id| ids.contains(id)), None);
}

#[test]
fn a_restart_keeps_order_and_ids() {
    let fixture = Fixture::new();
    let spool = fixture.open(PLENTY);
    let ids = ["a", "b", "c"].map(|host| spool.push(batch(host)));
    drop(spool);
    let spool = fixture.open(PLENTY);
    spool.push(batch("d"));
    assert_eq!(spool.batch_ids()[..3], ids);
    assert_eq!(drain(&spool), ["a", "b", "c", "d"]);
}

#[test]
fn a_batch_keeps_its_id_and_is_spooled_once() {
    let fixture = Fixture::new();
    let spool = fixture.open(PLENTY);
    let id = BatchId::now_v7();
    let named = Batch { batch_id: id.as_bytes().to_vec(), ..batch("a") };
    assert_eq!(spool.push(named.clone()), id);
    assert_eq!(spool.push(named), id);
    assert_eq!(spool.len(), 1);
    assert!(spool.acknowledge(&id));
    assert!(!spool.acknowledge(&id));
}

#[test]
fn damaged_files_are_dropped_and_counted_and_the_rest_is_delivered() {
    let fixture = Fixture::new();
    let spool = fixture.open(PLENTY);
    for host in ["torn", "flipped", "empty", "gone", "good"] {
        spool.push(batch(host));
    }
    drop(spool);
    let files = fixture.files();
    let content = fs::read(&files[0]).expect("a file");
    fs::write(&files[0], &content[..content.len() - 1]).expect("a file");
    let mut content = fs::read(&files[1]).expect("a file");
    *content.last_mut().expect("a byte") ^= 1;
    fs::write(&files[1], content).expect("a file");
    fs::write(&files[2], "").expect("a file");

    let spool = fixture.open(PLENTY);
    fs::remove_file(&files[3]).expect("a file");
    assert_eq!(drain(&spool), ["good"]);
    assert_eq!(fixture.dropped("corrupt"), 3);
    assert_eq!(fixture.dropped("vanished"), 1);
    assert_eq!(fixture.files().len(), 0);
    assert_eq!(fixture.bad_files(), 3, "kept, for whoever wants to know what happened");
}

#[test]
fn only_a_few_damaged_files_are_kept() {
    let fixture = Fixture::new();
    for _ in 0..2 {
        let spool = fixture.open(PLENTY);
        for host in ["a", "b", "c", "d"] {
            spool.push(batch(host));
        }
        for file in fixture.files() {
            fs::write(file, "x").expect("a file");
        }
        assert_eq!(drain(&spool), Vec::<String>::new());
        assert_eq!(fixture.bad_files(), 4);
    }
    assert_eq!(fixture.dropped("corrupt"), 8);
}

#[test]
fn a_batch_that_cannot_be_read_just_now_is_kept_and_read_later() {
    let fixture = Fixture::new();
    let spool = fixture.open(PLENTY);
    for host in ["a", "b"] {
        spool.push(batch(host));
    }
    // Permissions do not stop root; a directory in place of the file does (EISDIR).
    let file = fixture.files().remove(0);
    let aside = fixture.path().join("aside");
    fs::rename(&file, &aside).expect("the same file system");
    fs::create_dir(&file).expect("a directory");
    assert_eq!(drain(&spool), ["b"], "others do not wait for it");
    assert_eq!(spool.len(), 1);
    assert_eq!(fixture.metrics.spool_read_errors.get(), 1);

    fs::remove_dir(&file).expect("an empty directory");
    fs::rename(&aside, &file).expect("the same file system");
    assert_eq!(drain(&spool), Vec::<String>::new(), "not again at once");
    thread::sleep(Duration::from_millis(300));
    assert_eq!(drain(&spool), ["a"]);
    assert_eq!(fixture.dropped("corrupt"), 0);
}

#[test]
fn threads_that_fill_and_empty_it_do_not_lose_or_repeat_batches() {
    const BATCHES: usize = 300;
    let fixture = Fixture::new();
    let spool = fixture.open(PLENTY);
    let mut hosts = Vec::new();
    thread::scope(|scope| {
        scope.spawn(|| {
            (0..BATCHES).for_each(|n| {
                spool.push(batch(&n.to_string()));
            })
        });
        while hosts.len() < BATCHES {
            hosts.extend(drain(&spool));
        }
    });
    assert_eq!(hosts, (0..BATCHES).map(|n| n.to_string()).collect::<Vec<_>>());
    assert_eq!(fixture.files().len(), 0, "files of batches that left while they were written");
    assert_eq!((spool.len(), fixture.metrics.spool_bytes.get()), (0, 0));
}

#[test]
fn the_oldest_make_room_for_the_newest() {
    let fixture = Fixture::new();
    let spool = fixture.open(PLENTY);
    spool.push(batch("a"));
    let file_bytes = fixture.metrics.spool_bytes.get().unsigned_abs();
    drain(&spool);
    drop(spool);

    let spool = fixture.open(file_bytes * 3);
    for host in ["a", "b", "c", "d", "e"] {
        spool.push(batch(host));
        assert!(fixture.metrics.spool_bytes.get().unsigned_abs() <= file_bytes * 3);
    }
    assert_eq!(fixture.dropped("budget"), 2);
    let labels = ReasonLabels { reason: "budget" };
    let dropped_bytes = fixture.metrics.spool_dropped_bytes.get_or_create(&labels).get();
    assert_eq!(dropped_bytes, file_bytes * 2);
    assert_eq!(drain(&spool), ["c", "d", "e"]);
}

#[test]
fn a_smaller_budget_at_restart_is_enforced() {
    let fixture = Fixture::new();
    let spool = fixture.open(PLENTY);
    for host in ["a", "b", "c", "d"] {
        spool.push(batch(host));
    }
    let quarter = fixture.metrics.spool_bytes.get().unsigned_abs() / 4;
    drop(spool);
    assert_eq!(drain(&fixture.open(quarter * 2)), ["c", "d"]);
    assert_eq!(fixture.dropped("budget"), 2);
}

#[test]
fn a_batch_that_no_budget_can_hold_does_not_push_out_the_others() {
    let fixture = Fixture::new();
    let spool = fixture.open(500);
    spool.push(batch("a"));
    spool.push(batch(&"x".repeat(1000)));
    assert_eq!(drain(&spool), ["a"]);
    assert_eq!(fixture.dropped("too_large"), 1);
}

#[test]
fn a_second_agent_is_refused_until_the_first_has_gone() {
    let fixture = Fixture::new();
    let spool = fixture.open(PLENTY);
    let second = Spool::open(fixture.path(), PLENTY, Arc::clone(&fixture.metrics));
    assert!(matches!(second, Err(SpoolError::InUse { path }) if path == fixture.path()));
    drop(spool);
    fixture.open(PLENTY);
}

#[test]
fn leftovers_are_removed_and_foreign_files_are_not_touched() {
    let fixture = Fixture::new();
    let spool = fixture.open(PLENTY);
    spool.push(batch("a"));
    drop(spool);
    let leftover = fixture.files()[0].with_extension("batch.tmp");
    let foreign =
        ["README", "other.batch", "other.batch.tmp"].map(|name| fixture.path().join(name));
    for file in foreign.iter().chain([&leftover]) {
        fs::write(file, "x").expect("a file");
    }
    assert_eq!(drain(&fixture.open(1 << 10)), ["a"]);
    assert!(!leftover.exists());
    assert!(foreign.iter().all(|file| file.exists()));
}

#[test]
fn a_disk_that_refuses_costs_only_what_memory_cannot_hold() {
    let fixture = Fixture::new();
    let spool = fixture.open(PLENTY);
    spool.push(batch("on disk"));
    // Permissions do not stop root, so the directory goes away altogether.
    let elsewhere = tempfile::tempdir().expect("a directory");
    let hidden = elsewhere.path().join("hidden");
    fs::rename(fixture.path(), &hidden).expect("the same file system");
    for host in ["a", "b", "c", "d", "e", "f"] {
        spool.push(batch(host));
    }
    assert_eq!(fixture.dropped("disk_refused"), 2);
    fs::rename(&hidden, fixture.path()).expect("the same file system");
    spool.push(batch("after"));
    assert_eq!(fixture.files().len(), 6, "what memory held is on disk again");
    assert_eq!(drain(&spool), ["on disk", "c", "d", "e", "f", "after"]);
}

#[test]
fn batches_held_in_memory_can_be_delivered() {
    let fixture = Fixture::new();
    let spool = fixture.open(PLENTY);
    fs::remove_dir_all(fixture.path()).expect("a directory");
    spool.push(batch("a"));
    spool.push(batch("b"));
    assert_eq!(drain(&spool), ["a", "b"]);
    fs::create_dir(fixture.path()).expect("so that the fixture can clean up");
}

#[test]
fn a_directory_that_cannot_be_made_is_named() {
    let fixture = Fixture::new();
    let file = fixture.path().join("file");
    fs::write(&file, "x").expect("a file");
    let spool = Spool::open(&file.join("spool"), PLENTY, Arc::clone(&fixture.metrics));
    let message = spool.expect_err("a file is no directory").to_string();
    assert!(message.contains("file/spool") && message.contains("--spool-dir"), "{message}");
}

#[test]
fn profiles_are_not_readable_by_other_users() {
    let fixture = Fixture::new();
    let dir = fixture.path().join("spool");
    let spool = Spool::open(&dir, PLENTY, Arc::clone(&fixture.metrics)).expect("a spool");
    spool.push(batch("a"));
    let mode = fs::metadata(&dir).expect("a directory").permissions().mode();
    assert_eq!(mode & 0o077, 0);
}
