//! What the embedded store promises, on a store of its own per test.

use std::{ops::ControlFlow, path::Path, time::Duration};

use everflame_profile::Kind;

use super::{EmbeddedOptions, EmbeddedStore, partition::PARTITION_NS};
use crate::store::{
    BatchId, Committed, Document, Filter, SeriesKey, Store as _, StoreError, TimeRange, ValidBatch,
    ValidProfile,
};

/// An hour that began long ago, at its start.
const HOUR: u64 = 489_722 * PARTITION_NS;
const SECOND: u64 = 1_000_000_000;
const ALL: TimeRange = TimeRange { start_unix_ns: 0, end_unix_ns: u64::MAX };

fn options() -> EmbeddedOptions {
    EmbeddedOptions {
        retention: Duration::from_secs(7 * 24 * 3_600),
        max_disk_bytes: 1 << 30,
        min_free_bytes: 0,
        cache_bytes: 1 << 20,
    }
}

fn open(dir: &Path) -> EmbeddedStore {
    EmbeddedStore::open(dir, options()).unwrap()
}

fn id(n: u64) -> BatchId {
    u128::from(n).to_be_bytes()
}

fn profile(labels: &[(&str, &str)], start_unix_ns: u64, body: &[u8]) -> ValidProfile {
    let mut labels: Vec<_> =
        labels.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
    labels.sort();
    ValidProfile {
        series: SeriesKey { kind: Kind::Cpu, labels },
        start_unix_ns,
        duration_ns: 10 * SECOND,
        samples: 1,
        pprof_gz: body.to_vec().into(),
    }
}

fn batch(n: u64, profiles: Vec<ValidProfile>) -> ValidBatch {
    ValidBatch { id: id(n), profiles }
}

fn filter(selector: &str, range: TimeRange) -> Filter {
    Filter { kind: Kind::Cpu, selector: selector.parse().unwrap(), range }
}

/// The bodies of matching profiles, sorted.
fn bodies(store: &EmbeddedStore, selector: &str, range: TimeRange) -> Vec<String> {
    let mut bodies = Vec::new();
    let filter = filter(selector, range);
    store
        .visit_profiles(&filter, &mut |profile| {
            bodies.push(String::from_utf8(profile.pprof_gz.to_vec()).unwrap());
            ControlFlow::Continue(())
        })
        .unwrap();
    bodies.sort();
    bodies
}

#[test]
fn batches_are_there_after_reopening() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let first = batch(1, vec![profile(&[("service", "api")], HOUR, b"a")]);
    assert_eq!(store.commit(std::slice::from_ref(&first)).unwrap(), [Committed::Stored]);
    drop(store);
    let store = open(dir.path());
    assert_eq!(bodies(&store, "", ALL), ["a"]);
    assert_eq!(store.commit(&[first]).unwrap(), [Committed::Duplicate]);
    assert_eq!(bodies(&store, "", ALL), ["a"]);
}

#[test]
fn same_id_twice_in_a_group_is_stored_once() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let twice = batch(1, vec![profile(&[], HOUR, b"a")]);
    let outcomes = store.commit(&[twice.clone(), twice]).unwrap();
    assert_eq!(outcomes, [Committed::Stored, Committed::Duplicate]);
    assert_eq!(bodies(&store, "", ALL), ["a"]);
}

#[test]
fn same_window_of_a_series_is_kept_from_both_senders() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    store.commit(&[batch(1, vec![profile(&[("pid", "1")], HOUR, b"a")])]).unwrap();
    store.commit(&[batch(2, vec![profile(&[("pid", "1")], HOUR, b"b")])]).unwrap();
    drop(store);
    let store = open(dir.path());
    store.commit(&[batch(3, vec![profile(&[("pid", "1")], HOUR, b"c")])]).unwrap();
    assert_eq!(bodies(&store, "", ALL), ["a", "b", "c"]);
}

#[test]
fn selectors_and_ranges_pick_profiles() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let api = [("host", "a"), ("service", "api")];
    let web = [("host", "a"), ("service", "web"), ("version", "v42")];
    let profiles = vec![
        profile(&api, HOUR, b"api 0"),
        profile(&api, HOUR + 10 * SECOND, b"api 10"),
        profile(&web, HOUR, b"web 0"),
        profile(&web, HOUR + PARTITION_NS, b"web next hour"),
    ];
    store.commit(&[batch(1, profiles)]).unwrap();
    let check = |selector, range, expected: &[&str]| {
        assert_eq!(bodies(&store, selector, range), expected, "{selector} {range:?}");
    };
    let range = |start, end| TimeRange { start_unix_ns: HOUR + start, end_unix_ns: HOUR + end };
    check(r#"{service="api"}"#, ALL, &["api 0", "api 10"]);
    check(r#"{service="api",host="a"}"#, ALL, &["api 0", "api 10"]);
    check(r#"{service="api",host="b"}"#, ALL, &[]);
    check(r#"{version=~"v4.*"}"#, ALL, &["web 0", "web next hour"]);
    check(r#"{version=""}"#, ALL, &["api 0", "api 10"]);
    check("", range(0, 10 * SECOND), &["api 0", "web 0"]);
    check("", range(1, 10 * SECOND + 1), &["api 10"]);
    check("", range(PARTITION_NS, u64::MAX - HOUR), &["web next hour"]);
    check("", range(5, 5), &[]);
    assert_eq!(store.kinds(ALL).unwrap(), [Kind::Cpu]);
    assert_eq!(store.kinds(range(2 * PARTITION_NS, 3 * PARTITION_NS)).unwrap(), []);
}

#[test]
fn series_have_the_extent_of_their_profiles() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let profiles = vec![
        profile(&[("pid", "1")], HOUR + 20 * SECOND, b"x"),
        profile(&[("pid", "1")], HOUR + 10 * SECOND, b"x"),
        profile(&[("pid", "2")], HOUR, b"x"),
    ];
    store.commit(&[batch(1, profiles)]).unwrap();
    let mut extents = Vec::new();
    store
        .visit_series(&filter(r#"{pid="1"}"#, ALL), &mut |extent| {
            extents.push((
                extent.first_unix_ns - HOUR,
                extent.last_unix_ns - HOUR,
                extent.profiles,
            ));
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!(extents, [(10 * SECOND, 30 * SECOND, 2)]);
}

#[test]
fn commit_is_refused_when_it_would_eat_into_the_free_space() {
    let dir = tempfile::tempdir().unwrap();
    let options = EmbeddedOptions { min_free_bytes: u64::MAX / 2, ..options() };
    let store = EmbeddedStore::open(dir.path(), options).unwrap();
    let refused = store.commit(&[batch(1, vec![profile(&[], HOUR, b"a")])]);
    assert!(matches!(refused, Err(StoreError::NoRoom { .. })), "{refused:?}");
    assert_eq!(bodies(&store, "", ALL), [""; 0]);
}

#[test]
fn partitions_are_deleted_when_all_of_them_is_too_old() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let retention_ns = u64::try_from(options().retention.as_nanos()).unwrap();
    let profiles = vec![profile(&[], HOUR, b"old"), profile(&[], HOUR + PARTITION_NS, b"newer")];
    store.commit(&[batch(1, profiles)]).unwrap();

    let maintained = store.maintain(HOUR + retention_ns + PARTITION_NS - 1).unwrap();
    assert_eq!(maintained.expired_partitions, 0);
    assert_eq!(bodies(&store, "", ALL), ["newer", "old"]);

    let maintained = store.maintain(HOUR + retention_ns + PARTITION_NS).unwrap();
    assert_eq!((maintained.expired_partitions, maintained.evicted_partitions), (1, 0));
    assert!(maintained.deleted_bytes > 0);
    assert_eq!(bodies(&store, "", ALL), ["newer"]);
    drop(store);
    assert_eq!(bodies(&open(dir.path()), "", ALL), ["newer"]);
}

#[test]
fn oldest_partitions_make_room_for_the_disk_budget() {
    let dir = tempfile::tempdir().unwrap();
    let options = EmbeddedOptions { max_disk_bytes: 64 << 10, ..options() };
    let store = EmbeddedStore::open(dir.path(), options).unwrap();
    // An eighth of the budget each, all in the same hour.
    let body = |n: u64| format!("{n:02}").repeat(4 << 10).into_bytes();
    for n in 0..12 {
        store.commit(&[batch(n, vec![profile(&[], HOUR + n * SECOND, &body(n))])]).unwrap();
    }
    let maintained = store.maintain(HOUR).unwrap();
    assert!(maintained.evicted_partitions >= 4, "{maintained:?}");
    assert!(store.usage().unwrap().data_bytes <= options.max_disk_bytes);
    let left: Vec<_> = bodies(&store, "", ALL).iter().map(|body| body[..2].to_owned()).collect();
    let newest: Vec<_> = (12 - left.len()..12).map(|n| format!("{n:02}")).collect();
    assert_eq!(left, newest);
    assert!(left.len() >= 6, "{left:?}");
}

#[test]
fn query_goes_on_while_its_partitions_are_deleted() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let all: Vec<_> = (0..4)
        .flat_map(|hour| [(hour, b'a'), (hour, b'b')])
        .map(|(hour, body)| profile(&[], HOUR + hour * PARTITION_NS, &[body; 4_096]))
        .collect();
    store.commit(&[batch(1, all)]).unwrap();
    store.compact().unwrap();
    let mut seen = 0;
    let visited = store.visit_profiles(&filter("", ALL), &mut |profile| {
        if seen == 0 {
            let maintained = store.maintain(u64::MAX).unwrap();
            assert_eq!(maintained.expired_partitions, 4);
        }
        assert_eq!(profile.pprof_gz.len(), 4_096);
        seen += 1;
        ControlFlow::Continue(())
    });
    visited.unwrap();
    assert_eq!(seen, 8);
    assert_eq!(bodies(&store, "", ALL), [""; 0]);
}

#[test]
fn newest_partition_is_kept_whatever_the_budget() {
    let dir = tempfile::tempdir().unwrap();
    let store = EmbeddedStore::open(dir.path(), EmbeddedOptions { max_disk_bytes: 1, ..options() });
    let store = store.unwrap();
    store.commit(&[batch(1, vec![profile(&[], HOUR, b"a")])]).unwrap();
    store.maintain(HOUR).unwrap();
    assert_eq!(bodies(&store, "", ALL), ["a"]);
}

#[test]
fn compaction_keeps_everything() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let mut expected = Vec::new();
    for n in 0..50 {
        let pid = (n % 7).to_string();
        let body = format!("{n:03}").repeat(100);
        let profile = profile(&[("pid", &pid)], HOUR + n * SECOND, body.as_bytes());
        store.commit(&[batch(n, vec![profile])]).unwrap();
        expected.push(body);
    }
    store.compact().unwrap();
    assert_eq!(bodies(&store, "", ALL), expected);
    drop(store);
    let store = open(dir.path());
    assert_eq!(bodies(&store, "", ALL), expected);
    assert_eq!(bodies(&store, r#"{pid="3"}"#, ALL).len(), 7);
}

#[test]
fn data_of_another_format_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    drop(open(dir.path()));
    let database = fjall::Database::builder(dir.path().join(super::ENGINE_DIR)).open().unwrap();
    let meta = database.keyspace(super::META, Default::default).unwrap();
    meta.insert(super::FORMAT_KEY, "999").unwrap();
    drop((meta, database));
    let refused = EmbeddedStore::open(dir.path(), options()).err();
    assert!(matches!(refused, Some(StoreError::Format { .. })), "{refused:?}");
}

#[test]
fn documents_are_there_until_they_are_deleted() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let document = |key: &str, content: Option<&str>| Document {
        collection: "things",
        key: key.to_owned(),
        content: content.map(|content| content.as_bytes().to_vec()),
    };
    store.put_documents(&[document("b", Some("2")), document("a", Some("1"))]).unwrap();
    let other = Document { collection: "things else", ..document("c", Some("3")) };
    store.put_documents(&[other, document("b", None)]).unwrap();
    drop(store);
    let store = open(dir.path());
    assert_eq!(store.documents("things").unwrap(), [("a".to_owned(), b"1".to_vec())]);
    assert!(store.documents("thing").unwrap().is_empty());
}
