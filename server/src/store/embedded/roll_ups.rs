//! What profiles say of functions, as it is kept: with the ids of a partition in place of names.

use everflame_profile::RollUp;
use everflame_proto::v1;

use super::keys::FunctionId;

/// The message; `ids` are those of the functions, in their order.
pub(super) fn message(roll_up: &RollUp, ids: &[FunctionId]) -> v1::RollUp {
    // Ascending, so that differences are small and take a byte or two.
    let mut order: Vec<usize> = (0..roll_up.functions.len().min(ids.len())).collect();
    order.sort_by_key(|at| ids[*at]);
    let mut position = vec![0_u32; roll_up.functions.len()];
    let mut message = v1::RollUp {
        total_value: roll_up.total_value,
        samples: roll_up.samples,
        ..Default::default()
    };
    let mut before = 0;
    for (new, &old) in (0..).zip(&order) {
        let sums = &roll_up.functions[old];
        position[old] = new;
        message.functions.push(ids[old] - before);
        before = ids[old];
        message.self_values.push(sums.self_value);
        message.total_values.push(sums.total_value);
        message.self_samples.push(sums.self_samples);
        message.total_samples.push(sums.total_samples);
    }
    let new_position =
        |old: u32| usize::try_from(old).ok().and_then(|old| position.get(old).copied());
    for call in &roll_up.calls {
        let (Some(caller), Some(callee)) = (new_position(call.caller), new_position(call.callee))
        else {
            continue;
        };
        message.callers.push(caller);
        message.callees.push(callee);
        message.call_values.push(call.value);
    }
    for bucket in &roll_up.latencies {
        message.latencies_from_ns.push(bucket.from_ns);
        message.latency_counts.push(bucket.count);
    }
    message
}

/// The ids of a message's functions.
pub(super) fn undo_differences(message: &mut v1::RollUp) {
    let mut id: FunctionId = 0;
    for difference in &mut message.functions {
        id = id.saturating_add(*difference);
        *difference = id;
    }
}

#[cfg(test)]
mod tests {
    use everflame_profile::rollup::{CallSums, FunctionSums, LatencyBucket};

    use super::*;

    #[test]
    fn functions_are_in_the_order_of_their_ids_and_calls_follow_them() {
        let function = |name: &str, self_value| FunctionSums {
            name: name.to_owned(),
            self_value,
            total_value: 2 * self_value,
            self_samples: 1,
            total_samples: 2,
        };
        let roll_up = RollUp {
            total_value: 9,
            samples: 3,
            functions: vec![function("a", 1), function("b", 2), function("c", 3)],
            calls: vec![CallSums { caller: 0, callee: 2, value: 5 }],
            latencies: vec![LatencyBucket { from_ns: 4, count: 7 }],
        };
        let mut message = message(&roll_up, &[70, 5, 60]);
        assert_eq!(message.functions, [5, 55, 10], "differences");
        undo_differences(&mut message);
        assert_eq!(message.functions, [5, 60, 70]);
        assert_eq!(message.self_values, [2, 3, 1]);
        assert_eq!((message.callers[0], message.callees[0]), (2, 1), "a calls c");
        assert_eq!((message.latencies_from_ns[0], message.latency_counts[0]), (4, 7));
    }
}
