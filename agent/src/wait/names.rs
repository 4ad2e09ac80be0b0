//! Names of functions, freed of what compilers and linkers add, and patterns that match them.

use std::collections::HashMap;

/// `rwsem_down_read_slowpath.isra.0+0x10/0x20 [module]` is `rwsem_down_read_slowpath`.
pub(super) fn kernel_name(symbol: &str) -> &str {
    let end = symbol.find(['.', '+', ' ', '[']).unwrap_or(symbol.len());
    &symbol[..end]
}

/// A C function without symbol version, clone suffix and the underscores of its aliases:
/// `___pthread_mutex_lock@@GLIBC_2.2.5` and `__GI___pthread_mutex_lock` are
/// `pthread_mutex_lock`. Other languages' names stay as they are.
pub(super) fn user_name(symbol: &str) -> &str {
    let symbol = symbol.split_once('@').map_or(symbol, |(name, _version)| name);
    let is_c = symbol.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.".contains(&byte));
    if !is_c {
        return symbol;
    }
    let clone = [".constprop.", ".isra.", ".part.", ".cold", ".llvm."];
    let end = clone.iter().filter_map(|mark| symbol.find(mark)).min().unwrap_or(symbol.len());
    let name = symbol[..end].trim_start_matches('_');
    name.strip_prefix("GI_").unwrap_or(name).trim_start_matches('_')
}

/// Whether `name` is `pattern`, in which each `*` stands for any text, also none.
pub(super) fn matches(pattern: &str, name: &str) -> bool {
    let Some((head, tail)) = pattern.split_once('*') else { return pattern == name };
    let Some(mut rest) = name.strip_prefix(head) else { return false };
    let mut parts = tail.split('*').peekable();
    while let Some(part) = parts.next() {
        if parts.peek().is_none() {
            return rest.ends_with(part);
        }
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    true
}

/// Rows by pattern. A row that names a function beats one with a `*`; among those the first
/// one counts.
pub(super) struct Table<V: 'static> {
    exact: HashMap<&'static str, V, foldhash::fast::RandomState>,
    patterns: Vec<(&'static str, V)>,
}

impl<V: Copy> Table<V> {
    pub(super) fn new(rows: &[(&[&'static str], V)]) -> Self {
        let mut table = Self { exact: HashMap::default(), patterns: Vec::new() };
        for &(patterns, value) in rows {
            for &pattern in patterns {
                if pattern.contains('*') {
                    table.patterns.push((pattern, value));
                } else {
                    table.exact.entry(pattern).or_insert(value);
                }
            }
        }
        table
    }

    pub(super) fn find(&self, name: &str) -> Option<V> {
        let by_pattern = || self.patterns.iter().find(|(pattern, _)| matches(pattern, name));
        self.exact.get(name).or_else(|| by_pattern().map(|(_, value)| value)).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_names_lose_their_suffixes() {
        for (symbol, expected) in [
            ("io_schedule", "io_schedule"),
            ("poll_schedule_timeout.constprop.0", "poll_schedule_timeout"),
            ("do_epoll_pwait.part.0", "do_epoll_pwait"),
            ("jbd2_log_wait_commit.cold", "jbd2_log_wait_commit"),
            ("futex_wait_queue+0x60/0x90", "futex_wait_queue"),
            ("nfs_wait_bit_killable [nfs]", "nfs_wait_bit_killable"),
        ] {
            assert_eq!(kernel_name(symbol), expected);
        }
    }

    #[test]
    fn c_names_lose_versions_and_underscores_and_others_stay() {
        for (symbol, expected) in [
            ("pthread_mutex_lock@@GLIBC_2.2.5", "pthread_mutex_lock"),
            ("___pthread_mutex_lock", "pthread_mutex_lock"),
            ("__GI___lll_lock_wait", "lll_lock_wait"),
            ("__new_sem_wait_slow64.constprop.0", "new_sem_wait_slow64"),
            ("runtime.lock2", "runtime.lock2"),
            (
                "<std::sys::sync::mutex::futex::Mutex>::lock_contended",
                "<std::sys::sync::mutex::futex::Mutex>::lock_contended",
            ),
        ] {
            assert_eq!(user_name(symbol), expected);
        }
    }

    #[test]
    fn stars_stand_for_any_text() {
        for (pattern, name, expected) in [
            ("tcp_*", "tcp_recvmsg", true),
            ("tcp_*", "mptcp_recvmsg", false),
            ("*Parker::park", "std::thread::Parker::park", true),
            ("*Parker::park", "std::thread::Parker::park_timeout", false),
            ("std::*condition_variable*", "std::__1::condition_variable::wait(x)", true),
            ("*a*b*", "b a", false),
            ("ab*b", "ab", false),
            ("exact", "exactly", false),
        ] {
            assert_eq!(matches(pattern, name), expected, "{pattern} on {name}");
        }
    }

    #[test]
    fn a_full_name_beats_a_pattern_and_then_the_first_row_counts() {
        let table = Table::new(&[(&["f*"], 1), (&["fu*"], 2), (&["full"], 3)]);
        assert_eq!(table.find("full"), Some(3));
        assert_eq!(table.find("fuller"), Some(1));
        assert_eq!(table.find("other"), None);
    }
}
