//! What comparisons say of hosts whose costs are written down.
#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

use everflame_compare::{
    Answer, Caller, CostPer, FunctionSum, Functions, GateResult, Replication, Report, Rule,
    Settings, Side, Sum, Verdict, Window, check, compare,
};

const WINDOW_NS: u64 = 3_600_000_000_000;

/// Functions with what they cost; all are called by `main`.
type Costs<'a> = &'a [(&'a str, f64)];

/// A host differs from the others by this factor.
fn of_host(host: usize) -> f64 {
    1.0 + [0.02, -0.03, 0.01, 0.04, -0.02, -0.01, 0.03, -0.04][host % 8]
}

fn add(
    side: &mut Side,
    functions: &mut Functions,
    host: &str,
    instance: &str,
    costs: Costs<'_>,
    factor: f64,
) {
    let main = functions.intern("main", "");
    let mut all = Sum::default();
    let mut sums = Vec::new();
    for (at, (name, cost)) in costs.iter().enumerate() {
        // Not all functions of a host differ from those of others by the same factor.
        let value = cost * 1e9 * (1.0 + (factor - 1.0) * if at % 2 == 0 { 1.0 } else { -0.5 });
        let sum = Sum { value, samples: cost * 19.0 };
        all += sum;
        let caller = Caller { function: Some(main), lead: value };
        sums.push((functions.intern(name, ""), FunctionSum { own: sum, total: sum, caller }));
    }
    sums.push((main, FunctionSum { total: all, ..FunctionSum::default() }));
    side.add(&Window {
        host,
        instance,
        start_unix_ns: 0,
        duration_ns: WINDOW_NS,
        all,
        functions: &sums,
    });
}

/// Compares what six hosts do with two versions.
fn report(base: Costs<'_>, changed: Costs<'_>) -> Report {
    let (mut functions, mut sides) = (Functions::default(), [Side::default(), Side::default()]);
    for host in 0..6 {
        let name = format!("web-{host}");
        for (number, (side, costs)) in sides.iter_mut().zip([base, changed]).enumerate() {
            // What hosts differ by is not quite the same the next time.
            let factor = of_host(host) + 0.003 * of_host(host + 3 + number);
            add(side, &mut functions, &name, "1", costs, factor);
        }
    }
    compare(&functions, &sides[0], &sides[1], &Settings::default())
}

#[track_caller]
fn verdict<'a>(report: &'a Report, name: &str) -> &'a Verdict {
    report.functions.iter().find(|function| function.name == name).unwrap().verdict()
}

#[test]
fn function_that_costs_more_is_named_and_others_are_not() {
    let base = [("parse", 100.0), ("render", 200.0), ("send", 100.0), ("log", 50.0)];
    let changed = [("parse", 100.0), ("render", 260.0), ("send", 100.0), ("log", 50.0)];
    let report = report(&base, &changed);
    assert_eq!(report.answer, Answer::Regressed);
    assert_eq!(report.functions[0].name, "render");
    assert_eq!(verdict(&report, "render"), &Verdict::Regressed);
    for name in ["parse", "send", "log", "main"] {
        assert!(!verdict(&report, name).is_alarm(), "{name}: {:?}", verdict(&report, name));
    }
    let ratio = report.functions[0].own.cost.ratio.unwrap();
    assert!((ratio - 1.3).abs() < 0.02, "{ratio}");
    assert!(report.basis.paired && report.basis.cost_per == CostPer::Second);
}

#[test]
fn one_more_allocation_does_not_look_as_if_another_one_had_moved() {
    let report = report(&[("read_body", 100.0)], &[("read_body", 100.0), ("copy_headers", 100.0)]);
    assert_eq!(report.answer, Answer::Regressed);
    assert_eq!(verdict(&report, "copy_headers"), &Verdict::Regressed);
    assert_eq!(verdict(&report, "read_body"), &Verdict::Displaced);
    assert_eq!(report.functions[0].name, "copy_headers");
}

/// Although their shares add up to the same, and load hides what everything costs.
#[test]
fn one_of_two_that_grows_is_no_shift() {
    let (mut functions, mut sides) = (Functions::default(), [Side::default(), Side::default()]);
    for (number, (side, render)) in sides.iter_mut().zip([100.0, 130.0]).enumerate() {
        for host in 0..6 {
            let load = [0.5, 2.0, 1.0, 0.7, 1.6, 0.9][(host + number) % 6];
            let costs = [("parse", 100.0 * load), ("render", render * load)];
            add(side, &mut functions, &format!("web-{number}-{host}"), "1", &costs, of_host(host));
        }
    }
    let report = compare(&functions, &sides[0], &sides[1], &Settings::default());
    assert_eq!(report.whole.verdict, Verdict::Unchanged);
    assert_eq!(verdict(&report, "render"), &Verdict::Regressed);
}

#[test]
fn function_that_got_another_name_is_no_alarm() {
    let base = [("parse", 100.0), ("render", 50.0), ("send", 100.0)];
    let changed = [("parse", 100.0), ("draw", 51.0), ("send", 100.0)];
    let report = report(&base, &changed);
    assert_eq!(report.answer, Answer::NoChange);
    let expected = ["draw", "render"];
    match verdict(&report, "draw") {
        Verdict::Shifted { within, among } => {
            let mut among = among.clone();
            among.sort();
            assert_eq!(
                (within.as_deref(), among),
                (Some("main"), expected.map(str::to_owned).to_vec())
            );
        }
        other => panic!("{other:?}"),
    }
}

/// Two of three functions grow, so that the share of neither changes much.
#[test]
fn functions_that_grow_together_are_named() {
    let base = [("parse", 80.0), ("render", 100.0), ("fault", 100.0), ("log", 20.0)];
    let changed = [("parse", 80.0), ("render", 130.0), ("fault", 130.0), ("log", 20.0)];
    let report = report(&base, &changed);
    assert_eq!(report.whole.verdict, Verdict::Regressed);
    for (name, is_alarm) in [("render", true), ("fault", true), ("parse", false), ("log", false)] {
        assert_eq!(
            verdict(&report, name).is_alarm(),
            is_alarm,
            "{name}: {:?}",
            verdict(&report, name)
        );
    }
}

#[test]
fn everything_that_costs_more_is_said_of_the_whole() {
    let base = [("parse", 100.0), ("render", 200.0)];
    let changed = [("parse", 130.0), ("render", 260.0)];
    let report = report(&base, &changed);
    assert_eq!(report.whole.verdict, Verdict::Regressed);
    assert_eq!(report.answer, Answer::Regressed);
    assert!(report.functions.iter().all(|function| !function.verdict().is_alarm()));
}

#[test]
fn instances_of_one_host_are_compared_if_there_are_enough() {
    let (mut functions, mut sides) = (Functions::default(), [Side::default(), Side::default()]);
    for (side, render) in sides.iter_mut().zip([100.0, 150.0]) {
        for instance in 0..6 {
            let costs = [("parse", 100.0), ("render", render)];
            add(
                side,
                &mut functions,
                "a",
                &format!("{instance}-{render}"),
                &costs,
                of_host(instance),
            );
        }
    }
    let report = compare(&functions, &sides[0], &sides[1], &Settings::default());
    assert_eq!((report.basis.replicate, report.basis.paired), (Replication::Instance, false));
    assert_eq!(report.basis.base.hosts, 1);
    assert_eq!(verdict(&report, "render"), &Verdict::Regressed);
}

#[test]
fn costs_are_per_request_where_requests_are_known() {
    let (mut functions, mut sides) = (Functions::default(), [Side::default(), Side::default()]);
    // Twice the requests, and twice the cost.
    for (side, load) in sides.iter_mut().zip([1.0, 2.0]) {
        for host in 0..6 {
            let (name, factor) = (format!("web-{host}"), of_host(host));
            let costs = [("parse", 100.0 * load), ("render", 100.0 * load)];
            add(side, &mut functions, &name, "1", &costs, factor);
            side.served(&name, "1", 1_000.0 * load);
        }
    }
    let report = compare(&functions, &sides[0], &sides[1], &Settings::default());
    assert_eq!(report.basis.cost_per, CostPer::Request);
    assert_eq!(report.answer, Answer::NoChange);
}

/// The limit, and not the least effect of `diff`, is what a gate tests against.
#[test]
fn gate_fails_beyond_its_limit_only() {
    let base = [("parse", 100.0), ("render", 200.0), ("send", 100.0), ("log", 50.0)];
    let changed = [("parse", 100.0), ("render", 216.0), ("send", 100.0), ("log", 50.0)];
    let report = report(&base, &changed);
    let result = |rule: &str| {
        let rule: Rule = rule.parse().unwrap();
        check(&rule, &report, &Settings::default())
    };
    assert_eq!(result("cpu:+2%").result, GateResult::Failed);
    assert_eq!(
        result("cpu:+2%").exceeded.iter().find_map(|it| it.function.as_deref()),
        Some("render")
    );
    assert_eq!(result("cpu:+10%").result, GateResult::Passed);
    assert_eq!(result("cpu/^render$/:+5%").result, GateResult::Failed);
    assert_eq!(result("cpu/^send$/:+0%").result, GateResult::Passed);
    assert_eq!(result("cpu.total:+10%").result, GateResult::Passed);
    assert_eq!(result("cpu.total:+1%").result, GateResult::Failed);
    assert!(result("cpu.total:+1%").exceeded.iter().all(|it| it.function.is_none()));
}

#[test]
fn what_only_moved_passes_a_gate() {
    let report = report(
        &[("parse", 100.0), ("render", 50.0), ("send", 100.0)],
        &[("parse", 100.0), ("draw", 50.0), ("send", 100.0)],
    );
    let rule: Rule = "cpu:+2%".parse().unwrap();
    assert_eq!(check(&rule, &report, &Settings::default()).result, GateResult::Passed);
}

#[test]
fn reports_travel_as_json() {
    let report = report(&[("parse", 100.0)], &[("parse", 100.0), ("new", 30.0)]);
    let read: Report = serde_json::from_str(&serde_json::to_string(&report).unwrap()).unwrap();
    assert_eq!((read.answer, &read.basis), (report.answer, &report.basis));
    let verdicts = |report: &Report| {
        report
            .functions
            .iter()
            .map(|it| (it.name.clone(), it.verdict().clone()))
            .collect::<Vec<_>>()
    };
    assert_eq!(verdicts(&read), verdicts(&report));
    // Gates test what they have read.
    let p = |report: &Report| report.functions[0].own.cost.means.unwrap().test(1.02).p_greater;
    assert!((p(&read) / p(&report) - 1.0).abs() < 1e-6);
}
