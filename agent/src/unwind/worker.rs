//! The thread that owns the maps.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use aya::maps::MapError;

use super::compiler::{Compiled, Compiler};
use super::finish::{Finished, Progress, Unfinished, go_on};
use super::pages::PageStore;
use super::processes::Processes;
use super::stats::UnwindStats;
use super::tables::Tables;
use super::waiting::Waiting;
use crate::collect::{ProcessEvent, UnwindMaps};
use crate::process::{cpu_ticks, has_other_threads};
use everflame_agent_common::unwind::Stop;

/// How long a stack waits. Large binaries take a second to compile, and may have to wait
/// for each other.
const PATIENCE: Duration = Duration::from_secs(30);

/// Messages that are dealt with before the programs are told what has changed.
const BATCH: usize = 256;

/// How soon layouts that were put off are tried again.
const RETRY_LAYOUTS: Duration = Duration::from_millis(20);

/// How often there is time for what is not urgent.
const TICK: Duration = Duration::from_secs(1);

/// How often files and processes are looked for that are not there any more.
const SWEEP_INTERVAL: Duration = Duration::from_secs(60);

/// What the worker is told.
#[derive(Debug)]
pub(super) enum Message {
    /// Something happened to a process.
    Process {
        /// When, on CLOCK_MONOTONIC.
        time_ns: u64,
        /// What.
        event: ProcessEvent,
    },
    /// A process is about to be sampled.
    Prepare {
        /// Its id.
        pid: u32,
    },
    /// A stack is to be finished.
    Finish(Box<Unfinished>),
    /// The compiler is done with a file.
    Compiled(Box<Compiled>),
    /// There is nothing more to do.
    End,
}

/// All that the thread owns.
pub(super) struct Worker {
    tables: Tables,
    processes: Processes,
    compiler: Compiler,
    waiting: Waiting,
    /// Processes whose main thread has ended before others, and when it did.
    headless: Vec<(u32, u64)>,
    outbox: Sender<Finished>,
    stats: Arc<Mutex<UnwindStats>>,
    ending: Arc<AtomicBool>,
    next_tick: Instant,
    next_sweep: Instant,
}

impl Worker {
    /// Allocates the first pages.
    pub(super) fn new(
        maps: UnwindMaps,
        max_bytes: u64,
        compiler: Compiler,
        outbox: Sender<Finished>,
        (stats, ending): (Arc<Mutex<UnwindStats>>, Arc<AtomicBool>),
    ) -> Result<Self, MapError> {
        let pages = PageStore::new(maps.chunks, max_bytes)?;
        Ok(Self {
            tables: Tables::new(pages, maps.shards),
            processes: Processes::new(maps.processes, maps.max_processes),
            compiler,
            waiting: Waiting::default(),
            headless: Vec::new(),
            outbox,
            stats,
            ending,
            next_tick: Instant::now() + TICK,
            next_sweep: Instant::now() + SWEEP_INTERVAL,
        })
    }

    /// Works until told to end.
    pub(super) fn run(mut self, inbox: &Receiver<Message>) {
        while !self.ending.load(Ordering::Relaxed) {
            let mut left = self.next_tick.saturating_duration_since(Instant::now());
            if self.processes.is_changed() {
                // Put off because it changes too often.
                left = left.min(RETRY_LAYOUTS);
            }
            let first = match inbox.recv_timeout(left) {
                Ok(message) => Some(message),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            let mut has_new_tables = false;
            for message in first.into_iter().chain(inbox.try_iter().take(BATCH)) {
                match message {
                    Message::Process { time_ns, event } => self.process(time_ns, event),
                    Message::Prepare { pid } => self.processes.prepare(pid),
                    Message::Finish(stack) => self.finish(Instant::now(), stack),
                    Message::Compiled(compiled) => {
                        let key = compiled.key;
                        if self.tables.compiled(*compiled) {
                            self.processes.mark(key);
                        }
                        has_new_tables = true;
                    }
                    Message::End => return,
                }
            }
            if self.processes.is_changed() {
                self.processes.publish(&mut self.tables, &self.compiler);
            }
            if has_new_tables {
                self.retry();
            }
            if Instant::now() >= self.next_tick {
                self.tick();
                self.publish_stats();
            }
        }
    }

    fn process(&mut self, time_ns: u64, event: ProcessEvent) {
        match event {
            ProcessEvent::Exit { pid } if has_other_threads(pid) => {
                self.headless.push((pid, time_ns));
            }
            event => self.processes.apply(time_ns, event, &mut self.tables),
        }
    }

    fn finish(&mut self, since: Instant, stack: Box<Unfinished>) {
        match go_on(stack, &mut self.tables, &self.compiler) {
            Progress::Done(finished) => {
                if finished.stop == Stop::End {
                    self.tables.stats.finished += 1;
                } else {
                    self.tables.stats.finished_truncated += 1;
                }
                self.hand_over(finished);
            }
            Progress::Waiting(stack) => {
                let too_many: Vec<_> = self.waiting.push(since, stack).collect();
                for stack in too_many {
                    self.give_up(stack);
                }
            }
        }
    }

    fn retry(&mut self) {
        for (since, stack) in self.waiting.take_all() {
            self.finish(since, stack);
        }
    }

    fn give_up(&mut self, stack: Box<Unfinished>) {
        self.tables.stats.given_up += 1;
        self.hand_over(Finished { id: stack.id, frames: stack.frames, stop: Stop::NoTable });
    }

    fn hand_over(&mut self, finished: Finished) {
        // Fails only if nobody wants it any more.
        let _ = self.outbox.send(finished);
    }

    fn tick(&mut self) {
        let now = Instant::now();
        self.next_tick = now + TICK;
        while let Some(stack) = self.waiting.pop_before(now.checked_sub(PATIENCE)) {
            self.give_up(stack);
        }
        self.processes.tell_again();
        self.processes.look(now, &self.tables, cpu_ticks);
        // A table that was made and then found no room, or was lost, is asked for again.
        self.retry();
        let (headless, ended) = std::mem::take(&mut self.headless)
            .into_iter()
            .partition(|(pid, _)| has_other_threads(*pid));
        self.headless = headless;
        let ended: Vec<(u32, u64)> = ended;
        for (pid, time_ns) in ended {
            // At the time of its exit: the id may belong to another program by now.
            self.processes.apply(time_ns, ProcessEvent::Exit { pid }, &mut self.tables);
        }
        if now >= self.next_sweep || self.tables.is_short_of_slots() {
            self.next_sweep = now + SWEEP_INTERVAL;
            self.processes
                .sweep(|pid| Path::new(&format!("/proc/{pid}")).exists(), &mut self.tables);
            let in_use = self.processes.keys(&mut self.tables);
            let also_loaded = self.tables.is_short_of_slots();
            self.tables.forget_unused(&in_use, also_loaded);
        }
        if self.tables.pages.in_quarantine() > 0 {
            self.tables.pages.recycle();
        }
    }

    fn publish_stats(&mut self) {
        self.tables.update_stats();
        let stats = UnwindStats {
            layouts: self.processes.told() as u64,
            waiting: self.waiting.len() as u64,
            waiting_bytes: self.waiting.bytes() as u64,
            layouts_dormant: self.processes.dormant.len() as u64,
            ..self.tables.stats.clone()
        };
        *self.stats.lock().unwrap_or_else(PoisonError::into_inner) = stats;
    }
}
