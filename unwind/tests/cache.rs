//! What is kept on disk comes back as it was, or not at all.
#![expect(clippy::expect_used, reason = "helpers of a test fail as the test does")]

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use everflame_agent_common::unwind::page::{RULE_INDEX_BITS, WORDS};
use everflame_unwind::cache::{Cache, CacheError, CacheKey, entry};
use everflame_unwind::{Arch, Limits, Shard, Table, TableStats, compile};

const BUDGET: u64 = 64 << 20;

fn key(number: u8) -> CacheKey {
    CacheKey::new(&[number; 20], 1000).expect("a build id")
}

fn file_name(number: u8) -> String {
    format!("{}-3e8.unwind", format!("{number:02x}").repeat(20))
}

/// A table of so many pages with two rows each, the first bits of which are `mark`.
fn table(pages: u32, mark: u64) -> Table {
    let mut page = [0; WORDS];
    page[0] = 2;
    page[1] = (8 << RULE_INDEX_BITS | 1) << 32;
    page[WORDS - 1] = mark;
    page[WORDS - 2] = mark + 1;
    let shard = Shard {
        start_offset: 0x1000,
        end_offset: 0x1000 + pages * 0x1000,
        first_offsets: (0..pages).map(|page| 0x1000 + page * 0x1000).collect(),
        pages: vec![page; pages as usize],
    };
    let stats = TableStats { rows: 2 * u64::from(pages), is_go: true, ..TableStats::default() };
    Table { arch: Arch::Aarch64, shards: vec![shard], stats }
}

fn assert_same(left: &Table, right: &Table) {
    assert_eq!(left.arch, right.arch);
    assert_eq!(left.shards, right.shards);
    assert_eq!(left.stats, right.stats);
}

fn open(dir: &Path, max_bytes: u64) -> Cache {
    Cache::open(dir, max_bytes).expect("the directory is ours")
}

fn files(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).expect("a directory");
    let names = entries.map(|entry| entry.expect("an entry").file_name());
    let mut names: Vec<_> = names.map(|name| name.to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[test]
fn table_of_a_real_file_comes_back() {
    let program = fs::File::open("/proc/self/exe").expect("this test");
    let compiled = compile(&program, &Limits::default()).expect("an ELF file");
    assert!(compiled.stats.rows > 1000);
    let dir = tempfile::tempdir().expect("a directory");
    let cache = open(dir.path(), BUDGET);
    assert!(cache.get(&key(1)).is_none());
    cache.put(&key(1), &compiled);
    assert_same(&cache.get(&key(1)).expect("it was put there"), &compiled);
    // Another agent, later.
    let later = open(dir.path(), BUDGET);
    assert_same(&later.get(&key(1)).expect("it is still there"), &compiled);
    let (first, second) = (cache.stats(), later.stats());
    assert_eq!((first.hits, first.misses, second.hits, second.misses), (1, 1, 1, 0));
    assert_eq!(first.bytes, entry::encoded_len(&compiled));
    assert_eq!(second.bytes, first.bytes);
}

#[test]
fn build_id_and_size_both_count() {
    let dir = tempfile::tempdir().expect("a directory");
    let cache = open(dir.path(), BUDGET);
    cache.put(&key(1), &table(1, 10));
    assert!(cache.get(&CacheKey::new(&[1; 20], 1001).expect("a build id")).is_none());
    assert!(cache.get(&CacheKey::new(&[1; 19], 1000).expect("a build id")).is_none());
    assert!(cache.get(&key(1)).is_some());
}

#[test]
fn nobody_else_can_read_or_write() {
    let dir = tempfile::tempdir().expect("a directory");
    let nested = dir.path().join("a/b");
    open(&nested, BUDGET).put(&key(1), &table(1, 10));
    let mode = |path: &Path| fs::metadata(path).expect("it is there").permissions().mode() & 0o777;
    assert_eq!(mode(&nested), 0o700);
    assert_eq!(mode(&nested.join(file_name(1))), 0o600);
}

#[test]
fn directory_that_others_can_write_is_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    for mode in [0o770, 0o702, 0o1777] {
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(mode)).expect("ours");
        let error = Cache::open(dir.path(), BUDGET).expect_err("not safe");
        assert!(matches!(error, CacheError::Writable { .. }), "{error}");
        assert!(error.to_string().contains("chmod go-w"), "{error}");
    }
    let file = dir.path().join("file");
    fs::write(&file, "").expect("ours");
    assert!(matches!(Cache::open(&file, BUDGET), Err(CacheError::Open { .. })));
}

/// Damages the file of a table, then asks for it.
fn check_discarded(damage: impl Fn(&PathBuf), is_stale: bool) {
    let dir = tempfile::tempdir().expect("a directory");
    let cache = open(dir.path(), BUDGET);
    cache.put(&key(1), &table(3, 10));
    damage(&dir.path().join(file_name(1)));
    assert!(cache.get(&key(1)).is_none());
    let stats = cache.stats();
    let expected = if is_stale { (0, 1) } else { (1, 0) };
    assert_eq!((stats.corrupt, stats.stale), expected);
    assert_eq!((stats.hits, stats.misses), (0, 1));
    assert!(files(dir.path()).is_empty(), "it is deleted");
    cache.put(&key(1), &table(3, 10));
    assert_same(&cache.get(&key(1)).expect("rebuilt"), &table(3, 10));
}

fn edit(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(path).expect("it is there");
    change(&mut bytes);
    fs::write(path, bytes).expect("ours");
}

#[test]
fn damaged_file_is_discarded() {
    let len = entry::encoded_len(&table(3, 10)) as usize;
    for at in (0..len).step_by(61).chain([len - 1]) {
        // The version and what pages depend on.
        let is_stale = (8..16).contains(&at);
        check_discarded(|path| edit(path, |bytes| bytes[at] ^= 0x10), is_stale);
    }
    for cut in [0, 1, 8, 63, 64, 300, len - 1] {
        check_discarded(|path| edit(path, |bytes| bytes.truncate(cut)), false);
    }
    check_discarded(|path| edit(path, |bytes| bytes.push(0)), false);
}

#[test]
fn table_of_another_version_is_discarded() {
    check_discarded(|path| edit(path, |bytes| bytes[8] ^= 0xff), true);
    check_discarded(|path| edit(path, |bytes| bytes[12] ^= 1), true);
}

#[test]
fn what_is_no_file_of_ours_is_discarded() {
    check_discarded(
        |path| {
            fs::remove_file(path).expect("ours");
            symlink("/etc/passwd", path).expect("ours");
        },
        false,
    );
    // Another file's table under this name.
    check_discarded(
        |path| {
            let dir = path.parent().expect("a directory");
            open(dir, BUDGET).put(&key(2), &table(3, 10));
            fs::rename(dir.join(file_name(2)), path).expect("ours");
        },
        false,
    );
}

/// A table with a right digest whose structure nobody writes.
fn check_malformed(change: impl FnOnce(&mut Table)) {
    let mut wrong = table(3, 10);
    change(&mut wrong);
    let mut bytes = Vec::new();
    entry::write(&key(1), &wrong, &mut bytes).expect("memory");
    let read = entry::read(&key(1), bytes.len() as u64, &mut bytes.as_slice());
    let error = read.expect_err("it is malformed");
    assert!(matches!(error, entry::EntryError::Malformed { .. }), "{error}");
}

#[test]
fn structure_is_checked_behind_the_digest() {
    check_malformed(|table| table.shards[0].start_offset += 1);
    check_malformed(|table| table.shards[0].end_offset = 0x1000);
    check_malformed(|table| table.shards[0].end_offset = 0x8000_1000);
    check_malformed(|table| table.shards[0].first_offsets[0] += 1);
    check_malformed(|table| table.shards[0].first_offsets.swap(1, 2));
    check_malformed(|table| table.shards[0].first_offsets[2] = 0x1000);
    check_malformed(|table| table.shards[0].pages[1][0] = 0);
    check_malformed(|table| table.shards[0].pages[1][0] = 1 << 40);
    check_malformed(|table| table.shards[0].pages[1][0] = 1021);
    check_malformed(|table| table.shards[0].pages[1][1] |= 1 << RULE_INDEX_BITS);
    check_malformed(|table| table.shards[0].pages[1][1] &= 0x3ff << 32);
    // Its rule would lie among the rows.
    check_malformed(|table| table.shards[0].pages[1][1] |= 0x3ff);
    // A row that lies behind its page.
    check_malformed(|table| table.shards[0].pages[1][1] |= 0x1000 << RULE_INDEX_BITS << 32);
    check_malformed(|table| {
        let again = table.shards[0].clone();
        table.shards.push(again);
    });
    check_malformed(|table| table.shards[0] = Shard { pages: vec![], ..table.shards[0].clone() });
}

#[test]
fn least_recently_used_goes_first() {
    let dir = tempfile::tempdir().expect("a directory");
    let one = entry::encoded_len(&table(10, 0));
    let cache = open(dir.path(), 8 * one);
    for number in 0..8 {
        cache.put(&key(number), &table(10, number.into()));
        // Times of files are as exact as the kernel's ticks.
        let path = dir.path().join(file_name(number));
        let used = SystemTime::now() - Duration::from_secs(100 - u64::from(number));
        fs::File::open(path).expect("it fits").set_modified(used).expect("ours");
    }
    assert_eq!(cache.stats().bytes, 8 * one);
    assert!(cache.get(&key(0)).is_some(), "now it is the last one used");
    cache.put(&key(8), &table(10, 8));
    let stats = cache.stats();
    // It makes a little more room than it needs.
    assert_eq!((stats.evicted, stats.bytes), (2, 7 * one));
    let there: Vec<u8> = (0..9).filter(|number| cache.get(&key(*number)).is_some()).collect();
    assert_eq!(there, [0, 3, 4, 5, 6, 7, 8]);
}

#[test]
fn budget_holds_from_the_start() {
    let dir = tempfile::tempdir().expect("a directory");
    let one = entry::encoded_len(&table(10, 0));
    let cache = open(dir.path(), BUDGET);
    for number in 0..8 {
        cache.put(&key(number), &table(10, 0));
    }
    fs::write(dir.path().join("not ours"), vec![0; 1 << 20]).expect("ours");
    let smaller = open(dir.path(), 3 * one);
    assert!(smaller.stats().bytes <= 3 * one);
    assert!(dir.path().join("not ours").exists());
    smaller.put(&key(9), &table(40, 0));
    assert!(smaller.get(&key(9)).is_none());
    assert_eq!(smaller.stats().too_large, 1);
}

#[test]
fn leftovers_of_dead_agents_are_removed() {
    let dir = tempfile::tempdir().expect("a directory");
    let (old, young) = (dir.path().join("1.unwind.tmp"), dir.path().join("2.unwind.tmp"));
    fs::write(&old, "x").expect("ours");
    fs::write(&young, "x").expect("ours");
    let hours_ago = SystemTime::now() - Duration::from_secs(2 * 3600);
    fs::File::open(&old).expect("ours").set_modified(hours_ago).expect("ours");
    open(dir.path(), BUDGET);
    assert_eq!(files(dir.path()), ["2.unwind.tmp"]);
}

#[test]
fn directory_that_disappears_is_counted_not_fatal() {
    let dir = tempfile::tempdir().expect("a directory");
    let cache = open(dir.path(), BUDGET);
    fs::remove_dir(dir.path()).expect("ours");
    cache.put(&key(1), &table(1, 0));
    assert!(cache.get(&key(1)).is_none());
    let stats = cache.stats();
    assert_eq!((stats.write_errors, stats.misses, stats.bytes), (1, 1, 0));
}

#[test]
fn full_disk_is_counted_and_leaves_nothing_behind() {
    // The limit of this process's files stands in for it, in a process of its own: the test
    // starts itself.
    const VARIABLE: &str = "EVERFLAME_TEST_SMALL_FILES";
    if let Some(dir) = std::env::var_os(VARIABLE) {
        let cache = open(Path::new(&dir), BUDGET);
        cache.put(&key(1), &table(100, 0));
        assert_eq!((cache.stats().write_errors, cache.stats().bytes), (1, 0));
        assert!(files(Path::new(&dir)).is_empty());
        return;
    }
    let dir = tempfile::tempdir().expect("a directory");
    let this = std::env::current_exe().expect("this test");
    // Through pipes: output into a file would meet the limit as well.
    let output = std::process::Command::new("sh")
        .args(["-c", "trap '' XFSZ; ulimit -f 64; exec \"$0\" --exact \"$1\" 2>&1"])
        .arg(this)
        .arg("full_disk_is_counted_and_leaves_nothing_behind")
        .env(VARIABLE, dir.path())
        .output()
        .expect("a shell");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

#[test]
fn agents_share_a_directory() {
    let dir = tempfile::tempdir().expect("a directory");
    let budget = 20 * entry::encoded_len(&table(10, 0));
    let agents: Vec<Cache> = (0..4).map(|_| open(dir.path(), budget)).collect();
    std::thread::scope(|scope| {
        for (agent, cache) in agents.iter().enumerate() {
            scope.spawn(move || {
                let mut random = fastrand::Rng::with_seed(agent as u64);
                for _ in 0..300 {
                    let number = random.u8(..40);
                    match cache.get(&key(number)) {
                        Some(found) => assert_same(&found, &table(10, number.into())),
                        None => cache.put(&key(number), &table(10, number.into())),
                    }
                }
            });
        }
    });
    for cache in &agents {
        let stats = cache.stats();
        assert_eq!((stats.corrupt, stats.stale, stats.write_errors), (0, 0, 0), "{stats:?}");
    }
    let files = files(dir.path());
    assert!(files.iter().all(|name| !name.ends_with(".tmp")), "{files:?}");
}

#[test]
fn change_of_tables_is_noticed() {
    const FILES: [&[u8]; 4] = [
        include_bytes!("../../fuzz/seeds/compile/static"),
        include_bytes!("../../fuzz/seeds/compile/both"),
        include_bytes!("../../fuzz/seeds/compile/arm-shared"),
        include_bytes!("../../fuzz/seeds/compile/nothing"),
    ];
    let mut bytes = Vec::new();
    for file in FILES {
        let table = compile(&file, &Limits::default()).expect("a good file");
        entry::write(&key(1), &table, &mut bytes).expect("memory");
    }
    // When this fails, agents would go on with the tables that older ones have made: count
    // `entry::VERSION` up, and write down the new digest.
    assert_eq!((entry::VERSION, crc32fast::hash(&bytes)), (1, 0xfd20_d23d));
}
