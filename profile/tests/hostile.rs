//! Whatever the bytes, nothing panics: valid profiles with damaged bytes, and profiles
//! whose fields hold anything at all, go through every function of the crate.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test")]

use everflame_profile::pprof::{
    Function, Label, Line, Location, Mapping, Profile, Sample, ValueType,
};
use everflame_profile::{
    DecodeLimits, FunctionInfo, LabelValue, MappingInfo, Merger, ProfileBuilder, decode, diff,
    encode_gz, flame, fold, sample_type_index, top, validate,
};
use proptest::collection::vec;
use proptest::prelude::*;

/// Small, so that a mutated length cannot make the test slow.
const LIMITS: DecodeLimits =
    DecodeLimits { max_compressed_bytes: 1 << 20, max_decompressed_bytes: 1 << 20 };

fn valid_profile() -> Profile {
    let mut builder = ProfileBuilder::new(&[("samples", "count"), ("cpu", "nanoseconds")], "cpu");
    builder.set_period("cpu", "nanoseconds", 10_000_000);
    builder.set_time(1_700_000_000_000_000_000, 10_000_000_000);
    builder.comment("made by a test");
    let mapping = builder.mapping(MappingInfo {
        memory_start: 0x1000,
        memory_limit: 0x9000,
        file_offset: 0x1000,
        filename: "/usr/bin/api",
        build_id: "0123abcd",
    });
    let functions = ["main", "serve", "parse"].map(|name| {
        let filename = "/src/main.c";
        builder.function(FunctionInfo { name, system_name: name, filename, start_line: 1 })
    });
    let main = builder.location(Some(mapping), 0x1100, &[(functions[0], 4)]);
    let serve = builder.location(Some(mapping), 0x1200, &[(functions[2], 9), (functions[1], 7)]);
    let nameless = builder.location(Some(mapping), 0x1300, &[]);
    let labels = [("comm", LabelValue::Str("api")), ("pid", LabelValue::Num(7, ""))];
    builder.sample(&[serve, main], &[3, 30_000_000], &labels);
    builder.sample(&[nameless, serve, main], &[1, 10_000_000], &[]);
    builder.finish()
}

/// Calls everything that takes a profile. Only `validate` and `Merger` may refuse it.
fn use_everywhere(profile: &Profile) {
    let is_valid = validate(profile).is_ok();
    let index = sample_type_index(profile, None).unwrap_or(0);
    let table = top(profile, index);
    let tree = flame(profile, index);
    let stacks = fold(profile, index);
    let _ = diff(profile, &valid_profile(), None);
    let _ = diff(&valid_profile(), profile, Some("cpu"));
    let mut merger = Merger::new();
    assert_eq!(merger.add(profile).is_ok(), is_valid);
    if is_valid {
        merger.add(profile).unwrap();
        let sum = merger.finish();
        validate(&sum).expect("the sum of valid profiles is valid");
        assert_eq!(decode(&encode_gz(&sum), &DecodeLimits::default()).unwrap(), sum);
        let values = || profile.sample.iter().map(|sample| sample.value[index]);
        if values().all(|value| (0..1 << 40).contains(&value)) {
            let expected: i64 = values().sum();
            assert_eq!(table.total_value, expected);
            assert_eq!(tree.root.total_value, expected);
            assert_eq!(stacks.iter().map(|(_, value)| value).sum::<i64>(), expected);
            assert_eq!(top(&sum, index).total_value, 2 * expected);
        }
    }
}

fn plain(profile: &Profile) -> Vec<u8> {
    prost::Message::encode_to_vec(profile)
}

/// Numbers at which arithmetic and indexing go wrong.
fn edge() -> impl Strategy<Value = u64> {
    prop_oneof![
        4 => 0..6_u64,
        1 => prop::sample::select(vec![u64::MAX, u64::MAX - 1, 1 << 63, (1 << 63) - 1, 1 << 32]),
    ]
}

fn string_index() -> impl Strategy<Value = i64> {
    edge().prop_map(u64::cast_signed)
}

prop_compose! {
    fn sample()(
        location_id in vec(edge(), 0..5),
        value in vec(string_index(), 0..4),
        label in vec((string_index(), string_index(), string_index(), string_index()), 0..3),
    ) -> Sample {
        let label = label
            .into_iter()
            .map(|(key, str, num, num_unit)| Label { key, str, num, num_unit })
            .collect();
        Sample { location_id, value, label }
    }
}

prop_compose! {
    fn location()(
        id in edge(),
        mapping_id in edge(),
        address in edge(),
        line in vec((edge(), string_index()), 0..3),
    ) -> Location {
        let line = line
            .into_iter()
            .map(|(function_id, line)| Line { function_id, line, column: 0 })
            .collect();
        Location { id, mapping_id, address, line, is_folded: false }
    }
}

prop_compose! {
    fn function()(id in edge(), strings in [string_index(), string_index(), string_index()])
    -> Function {
        let [name, system_name, filename] = strings;
        Function { id, name, system_name, filename, start_line: 0 }
    }
}

prop_compose! {
    fn mapping()(numbers in [edge(), edge(), edge(), edge()], strings in [string_index(), string_index()])
    -> Mapping {
        let [id, memory_start, memory_limit, file_offset] = numbers;
        let [filename, build_id] = strings;
        Mapping {
            id, memory_start, memory_limit, file_offset, filename, build_id, ..Mapping::default()
        }
    }
}

prop_compose! {
    fn any_profile()(
        sample_type in vec((string_index(), string_index()), 0..3),
        sample in vec(sample(), 0..5),
        mapping in vec(mapping(), 0..4),
        location in vec(location(), 0..6),
        function in vec(function(), 0..4),
        string_table in vec("(|a|b;c\n|/lib/é.so|comm)", 0..6),
        numbers in [string_index(), string_index(), string_index(), string_index()],
    ) -> Profile {
        Profile {
            sample_type: sample_type
                .into_iter()
                .map(|(r#type, unit)| ValueType { r#type, unit })
                .collect(),
            sample, mapping, location, function, string_table,
            default_sample_type: numbers[0],
            time_nanos: numbers[1],
            duration_nanos: numbers[2],
            comment: vec![numbers[3]],
            ..Profile::default()
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn damaged_bytes_never_panic(
        edits in vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in any::<prop::sample::Index>(),
        is_cut in any::<bool>(),
        is_gzip in any::<bool>(),
    ) {
        let profile = valid_profile();
        let mut bytes = if is_gzip { encode_gz(&profile) } else { plain(&profile) };
        for (index, byte) in edits {
            let index = index.index(bytes.len());
            bytes[index] = byte;
        }
        if is_cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        if let Ok(profile) = decode(&bytes, &LIMITS) {
            use_everywhere(&profile);
        }
    }

    #[test]
    fn any_bytes_never_panic(bytes in vec(any::<u8>(), 0..512)) {
        if let Ok(profile) = decode(&bytes, &LIMITS) {
            use_everywhere(&profile);
        }
    }

    #[test]
    fn any_fields_never_panic(profile in any_profile()) {
        use_everywhere(&profile);
    }

    /// As above, with the ids, indices and counts put right so that all of it is reached.
    #[test]
    fn any_valid_profile_keeps_its_sums(mut profile in any_profile()) {
        repair(&mut profile);
        prop_assert_eq!(validate(&profile), Ok(()));
        use_everywhere(&profile);
    }
}

fn repair(profile: &mut Profile) {
    profile.string_table.insert(0, String::new());
    profile.sample_type.push(ValueType::default());
    let strings = i64::try_from(profile.string_table.len()).unwrap();
    let string = |index: &mut i64| *index = index.rem_euclid(strings);
    for sample_type in &mut profile.sample_type {
        string(&mut sample_type.r#type);
        string(&mut sample_type.unit);
    }
    profile.comment.iter_mut().for_each(string);
    string(&mut profile.default_sample_type);
    for (id, mapping) in (1..).zip(&mut profile.mapping) {
        mapping.id = id;
        mapping.memory_limit = mapping.memory_limit.max(mapping.memory_start);
        string(&mut mapping.filename);
        string(&mut mapping.build_id);
    }
    // Not dense, to go through the other kind of index.
    for (id, function) in (1..).zip(&mut profile.function) {
        function.id = id * 1000;
        string(&mut function.name);
        string(&mut function.system_name);
        string(&mut function.filename);
    }
    let (mappings, functions) = (profile.mapping.len() as u64, profile.function.len() as u64);
    for (id, location) in (1..).zip(&mut profile.location) {
        location.id = id;
        location.mapping_id %= mappings + 1;
        for line in &mut location.line {
            line.function_id = line.function_id % (functions + 1) * 1000;
        }
    }
    let locations = profile.location.len() as u64;
    for sample in &mut profile.sample {
        sample.value.resize(profile.sample_type.len(), 0);
        sample.location_id.retain(|_| locations > 0);
        sample.location_id.iter_mut().for_each(|id| *id = *id % locations.max(1) + 1);
        for label in &mut sample.label {
            string(&mut label.key);
            string(&mut label.str);
            string(&mut label.num_unit);
        }
    }
}

#[test]
fn stacks_of_a_hundred_thousand_frames_are_fine() {
    let mut profile = valid_profile();
    profile.sample[0].location_id = [1, 2, 3].repeat(33_334);
    use_everywhere(&profile);
    let decoded = decode(&encode_gz(&profile), &DecodeLimits::default()).unwrap();
    assert_eq!(decoded, profile);
}

#[test]
fn sums_at_the_limits_saturate() {
    for value in [i64::MAX, i64::MIN] {
        let mut profile = valid_profile();
        profile.sample.iter_mut().for_each(|sample| sample.value = vec![value; 2]);
        profile.duration_nanos = value;
        use_everywhere(&profile);
        assert_eq!(top(&profile, 0).total_value, value);
        assert_eq!(flame(&profile, 0).root.total_value, value);
    }
}
