//! Which samples are wanted: everything, or one process, name or family.

use std::collections::HashMap;
use std::collections::HashSet;

use crate::collect::{ProcessEvent, Sample};
use crate::process::Process;

/// What to profile.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Target {
    /// Everything on this host.
    #[default]
    All,
    /// One process.
    Pid(u32),
    /// Processes of this name, and threads of this name.
    Comm(String),
    /// A process and all that descend from it.
    Tree(u32),
}

/// Decides about each sample.
#[derive(Debug, Default)]
pub struct TargetFilter {
    target: Target,
    /// Who was started by whom; kept only while families may be asked for.
    parents: Option<HashMap<u32, u32>>,
    family: HashSet<u32>,
}

impl TargetFilter {
    /// Wants everything.
    pub fn all() -> Self {
        Self::default()
    }

    /// Wants `target`, and remembers who starts whom, so that [`Target::Tree`] can be asked
    /// for after the fact. For recordings that end: it remembers every process.
    pub fn for_recording(target: Target) -> Self {
        let mut filter = Self { parents: Some(HashMap::new()), ..Self::default() };
        filter.retarget(target);
        filter
    }

    /// Wants something else from now on.
    pub fn retarget(&mut self, target: Target) {
        self.family.clear();
        if let Target::Tree(root) = target {
            self.family.insert(root);
            let parents = self.parents.iter().flatten();
            // Process ids mostly rise from parent to child, but they wrap: go on until
            // nothing is added.
            let edges: Vec<_> = parents.map(|(child, parent)| (*child, *parent)).collect();
            loop {
                let before = self.family.len();
                for (child, parent) in &edges {
                    if self.family.contains(parent) {
                        self.family.insert(*child);
                    }
                }
                if self.family.len() == before {
                    break;
                }
            }
        }
        self.target = target;
    }

    /// Takes note of who starts whom.
    pub fn observe(&mut self, event: &ProcessEvent) {
        let (Some(parents), ProcessEvent::Fork { pid, parent }) = (&mut self.parents, event) else {
            return;
        };
        parents.insert(*pid, *parent);
        if self.family.contains(parent) {
            self.family.insert(*pid);
        } else {
            // The process id belonged to the family before, and was reused.
            self.family.remove(pid);
        }
    }

    /// Whether this is for a recording that ends.
    pub fn is_of_recording(&self) -> bool {
        self.parents.is_some()
    }

    /// Whether copies of a process that is wanted are, too.
    pub fn includes_copies(&self) -> bool {
        !matches!(self.target, Target::Pid(_))
    }

    /// The process that it is all about, if it is about one.
    pub fn root(&self) -> Option<u32> {
        match self.target {
            Target::Pid(pid) | Target::Tree(pid) => Some(pid),
            Target::All | Target::Comm(_) => None,
        }
    }

    /// Whether a sample of this process is wanted.
    pub fn admits(&self, sample: &Sample, process: &Process) -> bool {
        match &self.target {
            Target::All => true,
            Target::Pid(pid) => sample.pid == *pid,
            Target::Comm(name) => {
                process.name == *name || sample.thread_name.to_string_lossy() == *name
            }
            Target::Tree(_) => self.family.contains(&sample.pid),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fork(filter: &mut TargetFilter, parent: u32, pid: u32) {
        filter.observe(&ProcessEvent::Fork { pid, parent });
    }

    #[test]
    fn tree_includes_descendants_started_before_and_after_it_was_asked_for() {
        let mut filter = TargetFilter::for_recording(Target::All);
        fork(&mut filter, 1, 10);
        fork(&mut filter, 12, 9);
        fork(&mut filter, 10, 12);
        fork(&mut filter, 1, 20);
        filter.retarget(Target::Tree(10));
        fork(&mut filter, 9, 30);
        let mut family: Vec<_> = filter.family.iter().copied().collect();
        family.sort_unstable();
        assert_eq!(family, [9, 10, 12, 30]);
    }

    #[test]
    fn reused_process_id_leaves_the_family() {
        let mut filter = TargetFilter::for_recording(Target::Tree(10));
        fork(&mut filter, 10, 11);
        assert!(filter.family.contains(&11));
        fork(&mut filter, 1, 11);
        assert!(!filter.family.contains(&11));
    }
}
