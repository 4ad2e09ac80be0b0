//! All processes, kept up to date by events in order of time.

use std::collections::HashMap;
use std::sync::Arc;

use super::data::{DataPlace, DataPlaces};
use super::jit;
use super::suspicion::Suspicion;
use super::{Backing, Insertion, Mapping, Mappings, SeededProcess, executable_ranges};
use crate::collect::ProcessEvent;
use crate::identity::ProcessIdentity;
use crate::object::{ObjectFile, ObjectKind};

/// The process id of the kernel's thread that starts all other threads of the kernel.
const KTHREADD: u32 = 2;

/// A process's mappings are looked at no more often than this: its /proc/PID/maps is long.
const LOOK_INTERVAL_NS: u64 = 10_000_000_000;

/// Tells apart the programs that one process id has stood for: counts up with each fork and
/// each exec.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Generation(u64);

/// What is known about a process.
#[derive(Clone, Debug)]
pub struct Process {
    /// Which program of this process id it is.
    pub generation: Generation,
    /// The main thread's name.
    pub name: String,
    /// Whether it is a thread of the kernel.
    pub kernel_thread: bool,
    /// The path of its executable as it sees it.
    pub executable: Option<Arc<str>>,
    /// Its executable memory, shared with the processes that it was copied to until one of
    /// them changes it.
    pub mappings: Arc<Mappings>,
    /// Who it is, once somebody has asked.
    pub identity: Option<Arc<ProcessIdentity>>,
    /// Its control group in that is the one of the process that it is a copy of, and has not been
    /// looked at.
    pub cgroup_is_assumed: bool,
    /// Who its parent, or the program that it was before, is: what is left to go by when it
    /// is gone too soon.
    pub inherited: Option<Arc<ProcessIdentity>>,
    /// The process that it is a copy of, until it becomes another program.
    pub original: Option<(u32, Generation)>,
    /// Where symbols of generated code may be; made when a sample first needs it.
    jit: Option<Arc<ObjectFile>>,
    /// Where addresses of its data are in files, once somebody has asked.
    data: DataPlaces,
    /// When it ended, on CLOCK_MONOTONIC.
    pub(super) exited_ns: Option<u64>,
    suspicion: Suspicion,
}

impl Process {
    /// Drops mappings that are not there any more, once there are suspiciously many.
    fn prune(&mut self, pid: u32, time_ns: u64) {
        if self.mappings.len() < self.suspicion.at || time_ns < self.suspicion.not_before_ns {
            return;
        }
        if let Some(ranges) = executable_ranges(pid) {
            let mut left = Mappings::clone(&self.mappings);
            left.retain_within(&ranges);
            // Nothing of another program, which this process has become meanwhile.
            if !left.is_empty() && left.len() < self.mappings.len() {
                self.mappings = Arc::new(left);
            }
        }
        let not_before_ns = time_ns.saturating_add(LOOK_INTERVAL_NS);
        self.suspicion = Suspicion::after(self.mappings.len(), not_before_ns);
    }

    /// The file of its executable.
    pub fn main_object(&self) -> Option<&Arc<ObjectFile>> {
        let executable = self.executable.as_deref()?;
        self.mappings.iter().find_map(|mapping| match &mapping.backing {
            Backing::Object(object) if object.path == executable => Some(object),
            _ => None,
        })
    }

    /// The object that stands for code which this process generated.
    pub fn jit_object(&mut self, pid: u32) -> Arc<ObjectFile> {
        let jit = jit::object(self.jit.as_ref(), pid, self.generation.0, self.mappings.jitdumps());
        self.jit = Some(Arc::clone(&jit));
        jit
    }

    /// Where an address of this process's data is in a file that it has mapped; none for its
    /// heap and its stacks.
    pub fn data_place(&mut self, pid: u32, avma: u64, now_ns: u64) -> Option<DataPlace> {
        self.data.find(pid, &self.mappings, avma, now_ns)
    }
}

/// Every process, by process id.
#[derive(Debug, Default)]
pub struct ProcessTable {
    pub(super) by_pid: HashMap<u32, Process>,
    generations: u64,
    refused_mappings: u64,
}

impl ProcessTable {
    /// Takes note of an event. Events must come in order of time.
    pub fn apply(&mut self, time_ns: u64, event: ProcessEvent) {
        match event {
            ProcessEvent::Seed(seeded) => self.seed(seeded),
            ProcessEvent::Fork { pid, parent } => self.fork(pid, parent),
            ProcessEvent::Comm { pid, name, exec: true, .. } => self.exec(pid, name),
            // Only the main thread's name is the process's.
            ProcessEvent::Comm { pid, tid, name, exec: false } if pid == tid => {
                self.entry(pid).name = name;
            }
            ProcessEvent::Comm { .. } => {}
            ProcessEvent::Mmap { pid, mapping } => {
                self.map(time_ns, pid, mapping);
            }
            ProcessEvent::Exit { pid } => {
                // A process that is not known has nothing to keep.
                if let Some(process) = self.by_pid.get_mut(&pid) {
                    process.exited_ns = Some(time_ns);
                }
            }
        }
    }

    /// The process with this id. One that was never heard of is made known as it is, empty:
    /// its samples keep their addresses.
    pub fn get_mut(&mut self, pid: u32) -> &mut Process {
        self.entry(pid)
    }

    /// The process with this id, if it is that program.
    pub fn program_mut(&mut self, pid: u32, generation: Generation) -> Option<&mut Process> {
        self.by_pid.get_mut(&pid).filter(|process| process.generation == generation)
    }

    /// Whether that program runs still.
    pub fn is_alive(&self, pid: u32, generation: Generation) -> bool {
        let known = self.by_pid.get(&pid).filter(|process| process.generation == generation);
        known.is_some_and(|process| process.exited_ns.is_none())
    }

    /// The process that this one is a copy of, if both are still what they were then.
    pub fn original_mut(&mut self, pid: u32) -> Option<(u32, &mut Process)> {
        let (pid, generation) = self.by_pid.get(&pid)?.original?;
        let original = self.program_mut(pid, generation)?;
        original.exited_ns.is_none().then_some((pid, original))
    }

    /// Forgets processes whose main thread ended before `horizon_ns`, unless `is_there` says
    /// that the process still exists: other threads can outlive the main thread.
    pub fn forget_exited(&mut self, horizon_ns: u64, is_there: impl Fn(u32) -> bool) {
        self.by_pid.retain(|&pid, process| match process.exited_ns {
            Some(exited_ns) if exited_ns < horizon_ns => is_there(pid),
            _ => true,
        });
    }

    /// Lets processes that are not there any more end at `now_ns`: their exit was lost.
    pub fn sweep(&mut self, now_ns: u64, is_there: impl Fn(u32) -> bool) {
        for (&pid, process) in &mut self.by_pid {
            if process.exited_ns.is_none() && !is_there(pid) {
                process.exited_ns = Some(now_ns);
            }
        }
    }

    /// Mappings that were not taken note of, as their processes have too many.
    pub fn refused_mappings(&self) -> u64 {
        self.refused_mappings
    }

    /// Numbers of processes and of mappings.
    pub fn len(&self) -> (usize, usize) {
        (self.by_pid.len(), self.by_pid.values().map(|process| process.mappings.len()).sum())
    }

    fn entry(&mut self, pid: u32) -> &mut Process {
        let generations = &mut self.generations;
        self.by_pid.entry(pid).or_insert_with(|| {
            *generations += 1;
            Process {
                generation: Generation(*generations),
                name: String::new(),
                kernel_thread: false,
                executable: None,
                mappings: Arc::default(),
                identity: None,
                cgroup_is_assumed: false,
                inherited: None,
                original: None,
                jit: None,
                data: DataPlaces::default(),
                exited_ns: None,
                suspicion: Suspicion::after(0, 0),
            }
        })
    }

    /// What /proc says, at the start or after records were lost.
    fn seed(&mut self, seeded: SeededProcess) {
        let executable: Option<Arc<str>> = seeded.executable.map(Arc::from);
        if self.by_pid.get(&seeded.pid).is_some_and(|known| known.executable != executable) {
            // Its exec was lost.
            self.exec(seeded.pid, String::new());
        }
        let mut mappings = Mappings::default();
        for mapping in seeded.mappings {
            let refused = mappings.insert(mapping) == Insertion::Refused;
            self.refused_mappings += u64::from(refused);
        }
        let process = self.entry(seeded.pid);
        process.name = seeded.name;
        process.kernel_thread = seeded.kernel_thread;
        process.executable = executable;
        process.suspicion = Suspicion::after(mappings.len(), 0);
        process.data.forget();
        process.mappings = Arc::new(mappings);
    }

    fn fork(&mut self, pid: u32, parent: u32) {
        self.generations += 1;
        let generation = Generation(self.generations);
        let Some(known) = self.by_pid.get(&parent) else {
            self.by_pid.remove(&pid);
            return;
        };
        let copy = Process {
            generation,
            kernel_thread: parent == KTHREADD,
            identity: None,
            cgroup_is_assumed: false,
            inherited: known.identity.clone().or_else(|| known.inherited.clone()),
            original: Some((parent, known.generation)),
            jit: None,
            exited_ns: None,
            ..known.clone()
        };
        self.by_pid.insert(pid, copy);
    }

    fn exec(&mut self, pid: u32, name: String) {
        let before = self.by_pid.remove(&pid);
        let process = self.entry(pid);
        process.name = name;
        process.inherited = before.and_then(|before| before.identity.or(before.inherited));
    }

    fn map(&mut self, time_ns: u64, pid: u32, mapping: Mapping) {
        let mapping = Mapping { mapped_ns: time_ns, ..mapping };
        let process = self.entry(pid);
        process.prune(pid, time_ns);
        // The kernel maps the executable before anything else. The vDSO comes first only
        // when that record was lost.
        if process.executable.is_none()
            && let Backing::Object(object) = &mapping.backing
            && matches!(object.kind, ObjectKind::Elf { .. })
        {
            process.executable = Some(Arc::from(object.path.as_str()));
        }
        let insertion = Arc::make_mut(&mut process.mappings).insert(mapping);
        if insertion == Insertion::Inserted {
            process.data.forget();
        }
        self.refused_mappings += u64::from(insertion == Insertion::Refused);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::mappings::MAX_MAPPINGS;
    use crate::process::suspicion::MAPPINGS_UNSUSPECTED;
    use crate::process::{ObjectCache, seed};

    fn object_mapping(path: &str, start_avma: u64) -> Mapping {
        let object = ObjectFile {
            path: path.to_owned(),
            build_id: None,
            kind: ObjectKind::Elf { file: None },
        };
        Mapping {
            start_avma,
            end_avma: start_avma + 0x1000,
            file_offset: 0,
            backing: Backing::Object(Arc::new(object)),
            path: Arc::from(path),
            mapped_ns: 0,
        }
    }

    fn exec(table: &mut ProcessTable, pid: u32, path: &str) {
        let name = path.rsplit('/').next().unwrap_or_default().to_owned();
        table.apply(0, ProcessEvent::Comm { pid, tid: pid, name, exec: true });
        table.apply(0, ProcessEvent::Mmap { pid, mapping: object_mapping(path, 0x1000) });
        table.apply(0, ProcessEvent::Mmap { pid, mapping: object_mapping("/lib/ld.so", 0x9000) });
    }

    #[test]
    fn child_inherits_name_and_mappings() {
        let mut table = ProcessTable::default();
        exec(&mut table, 10, "/bin/sh");
        table.apply(0, ProcessEvent::Fork { pid: 11, parent: 10 });
        let generation = table.get_mut(10).generation;
        let child = table.get_mut(11);
        assert_eq!(child.name, "sh");
        assert_eq!(child.mappings.len(), 2);
        assert!(child.generation > generation);
    }

    #[test]
    fn copy_has_an_original_until_one_of_them_becomes_another_program() {
        let mut table = ProcessTable::default();
        exec(&mut table, 10, "/bin/sh");
        for pid in [11, 12] {
            table.apply(0, ProcessEvent::Fork { pid, parent: 10 });
        }
        let original = |table: &mut ProcessTable, pid| table.original_mut(pid).map(|found| found.0);
        assert_eq!(original(&mut table, 10), None);
        assert_eq!(original(&mut table, 11), Some(10));
        exec(&mut table, 11, "/usr/bin/ls");
        assert_eq!(original(&mut table, 11), None);
        assert_eq!(original(&mut table, 12), Some(10));
        exec(&mut table, 10, "/usr/bin/make");
        assert_eq!(original(&mut table, 12), None);
    }

    #[test]
    fn exec_begins_a_new_program() {
        let mut table = ProcessTable::default();
        exec(&mut table, 10, "/bin/sh");
        let before = table.get_mut(10).generation;
        exec(&mut table, 10, "/usr/bin/ls");
        let process = table.get_mut(10);
        assert!(process.generation > before);
        assert_eq!(process.executable.as_deref(), Some("/usr/bin/ls"));
        assert_eq!(process.main_object().map(|object| object.path.as_str()), Some("/usr/bin/ls"));
        assert_eq!(process.mappings.len(), 2);
    }

    #[test]
    fn renaming_a_thread_does_not_rename_its_process() {
        let mut table = ProcessTable::default();
        exec(&mut table, 10, "/bin/server");
        let rename = |tid: u32, name: &str| ProcessEvent::Comm {
            pid: 10,
            tid,
            name: name.to_owned(),
            exec: false,
        };
        table.apply(0, rename(12, "worker"));
        assert_eq!(table.get_mut(10).name, "server");
        table.apply(0, rename(10, "main"));
        assert_eq!(table.get_mut(10).name, "main");
    }

    #[test]
    fn exited_process_stays_for_late_samples_and_is_then_forgotten() {
        let mut table = ProcessTable::default();
        exec(&mut table, 10, "/bin/sh");
        table.apply(500, ProcessEvent::Exit { pid: 10 });
        table.forget_exited(500, |_| false);
        assert_eq!(table.get_mut(10).name, "sh");
        table.forget_exited(501, |_| false);
        assert_eq!(table.get_mut(10).name, "");
    }

    #[test]
    fn process_whose_main_thread_ended_first_is_kept() {
        let mut table = ProcessTable::default();
        exec(&mut table, 10, "/bin/server");
        table.apply(500, ProcessEvent::Exit { pid: 10 });
        table.forget_exited(1000, |_| true);
        assert_eq!(table.get_mut(10).name, "server");
        table.forget_exited(2000, |_| false);
        assert_eq!(table.get_mut(10).name, "");
    }

    #[test]
    fn reused_process_id_takes_nothing_from_its_former_owner() {
        let mut table = ProcessTable::default();
        exec(&mut table, 10, "/bin/old");
        table.apply(5, ProcessEvent::Exit { pid: 10 });
        exec(&mut table, 20, "/bin/parent");
        table.apply(6, ProcessEvent::Fork { pid: 10, parent: 20 });
        assert_eq!(table.get_mut(10).name, "parent");
        table.forget_exited(100, |_| false);
        assert_eq!(table.get_mut(10).name, "parent", "the new owner has not exited");
    }

    #[test]
    fn process_whose_exit_was_lost_is_swept_and_then_forgotten() {
        let mut table = ProcessTable::default();
        exec(&mut table, 10, "/bin/gone");
        exec(&mut table, 11, "/bin/there");
        table.sweep(500, |pid| pid == 11);
        table.forget_exited(500, |_| false);
        assert_eq!(table.get_mut(10).name, "gone", "late samples still find it");
        table.forget_exited(501, |_| false);
        assert_eq!(table.get_mut(10).name, "");
        assert_eq!(table.get_mut(11).name, "there");
    }

    #[test]
    fn seed_repairs_a_process_whose_exec_was_lost() {
        let mut table = ProcessTable::default();
        exec(&mut table, 10, "/bin/sh");
        let before = table.get_mut(10).generation;
        let seeded = |path: &str| SeededProcess {
            pid: 10,
            name: "server".to_owned(),
            kernel_thread: false,
            mappings: vec![object_mapping(path, 0x1000)],
            executable: Some(path.to_owned()),
        };
        table.apply(1, ProcessEvent::Seed(seeded("/bin/server")));
        let process = table.get_mut(10);
        let generation = process.generation;
        assert!(generation > before, "another program, with an identity of its own");
        assert_eq!((process.name.as_str(), process.mappings.len()), ("server", 1));
        table.apply(2, ProcessEvent::Seed(seeded("/bin/server")));
        assert_eq!(table.get_mut(10).generation, generation, "nothing was lost");
    }

    #[test]
    fn libraries_that_are_gone_make_room_for_others() {
        let pid = std::process::id();
        let mut objects = ObjectCache::default();
        let this = seed(pid, &mut objects).expect("this process is there");
        let there: Vec<u64> = this.mappings.iter().map(|mapping| mapping.start_avma).collect();
        let mut table = ProcessTable::default();
        table.apply(0, ProcessEvent::Seed(this));
        // Beyond what user code can have.
        let gone = object_mapping("/lib/gone.so", 1 << 56);
        let mut load = |time_ns, number: u64| {
            let start_avma = gone.start_avma + number * 0x2000;
            let end_avma = start_avma + 0x1000;
            let mapping = Mapping { start_avma, end_avma, ..gone.clone() };
            table.apply(time_ns, ProcessEvent::Mmap { pid, mapping });
            table.get_mut(pid).mappings.len()
        };
        let unsuspected = MAPPINGS_UNSUSPECTED - there.len();
        let most = (0..unsuspected as u64).map(|number| load(1, number)).max();
        assert_eq!(most, Some(MAPPINGS_UNSUSPECTED));
        let fresh = unsuspected as u64;
        assert_eq!(load(1, fresh), there.len() + 1, "what is gone has left");
        let limit = MAX_MAPPINGS as u64;
        let most = (fresh..fresh + limit).map(|number| load(2, number)).max();
        assert_eq!(most, Some(MAX_MAPPINGS), "no look so soon after the first");
        assert_eq!(load(LOOK_INTERVAL_NS * 2, 0), there.len() + 1, "another at the limit");
        let left = Arc::clone(&table.get_mut(pid).mappings);
        assert!(there.iter().all(|address| left.find(*address).is_some()));
        assert_eq!(table.refused_mappings(), there.len() as u64);
    }

    #[test]
    fn mappings_of_a_process_that_is_gone_stay_for_its_samples() {
        let mut table = ProcessTable::default();
        let pid = u32::MAX;
        for number in 0..MAPPINGS_UNSUSPECTED as u64 + 10 {
            let mapping = object_mapping("/lib/some.so", number * 0x2000);
            table.apply(number, ProcessEvent::Mmap { pid, mapping });
        }
        assert_eq!(table.get_mut(pid).mappings.len(), MAPPINGS_UNSUSPECTED + 10);
    }

    #[test]
    fn threads_of_the_kernel_come_from_kthreadd() {
        let mut table = ProcessTable::default();
        let kthreadd = SeededProcess {
            pid: KTHREADD,
            name: "kthreadd".to_owned(),
            kernel_thread: true,
            mappings: Vec::new(),
            executable: None,
        };
        table.apply(0, ProcessEvent::Seed(kthreadd));
        table.apply(0, ProcessEvent::Fork { pid: 50, parent: KTHREADD });
        assert!(table.get_mut(50).kernel_thread);
    }
}
