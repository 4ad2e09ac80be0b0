//! Follows CPUs that come online and go offline.

use std::time::{Duration, Instant};

use rustix::event::epoll::EventFlags;
use tracing::{debug, info, warn};

use super::host::online_cpus;
use super::{Collector, watch};

/// How often the set of online CPUs is looked at.
pub(super) const HOTPLUG_INTERVAL: Duration = Duration::from_secs(1);

/// How often it is made sure that each CPU's event still runs; reading it interrupts the CPU.
pub(super) const STALL_INTERVAL: Duration = Duration::from_secs(5);

impl Collector {
    /// Opens events on CPUs that came online, forgets those of CPUs that went.
    pub(super) fn follow_cpus(&mut self) {
        let now = Instant::now();
        if now < self.next_hotplug_look {
            return;
        }
        self.next_hotplug_look = now + HOTPLUG_INTERVAL;
        let Ok(online) = online_cpus() else { return };
        let mut gone: Vec<u32> = self.sideband.cpus().filter(|cpu| !online.contains(cpu)).collect();
        if let Some(cpu) = &mut self.cpu
            && now >= self.next_stall_look
        {
            self.next_stall_look = now + STALL_INTERVAL;
            gone.extend(cpu.stalled());
        }
        let sampled = self.cpu.as_ref().map(|cpu| cpu.cpus().eq(online.iter().copied()));
        let is_complete =
            sampled.unwrap_or(true) && self.sideband.cpus().eq(online.iter().copied());
        if gone.is_empty() && is_complete {
            return;
        }
        if !gone.is_empty() {
            info!(cpus = ?gone, "cpus went offline");
            self.drain_sideband();
            for cpu in gone {
                self.sideband.close(cpu);
                if let Some(events) = &mut self.cpu {
                    events.close(cpu);
                }
            }
        }
        for &cpu in &online {
            if let Err(error) = self.sideband.open(cpu) {
                warn!(cpu, error = &error as &dyn std::error::Error, "cpu is not followed");
            }
        }
        for (cpu, descriptor) in self.sideband.descriptors() {
            if let Err(error) = watch(&self.epoll, descriptor, u64::from(cpu), EventFlags::IN)
                && error != rustix::io::Errno::EXIST
            {
                warn!(cpu, %error, "records of this cpu are read late");
            }
        }
        let Some(cpu) = &mut self.cpu else { return };
        match self.bpf.cpu_program() {
            Ok(program) => cpu.follow(&online, program),
            Err(error) => debug!(error = &error as &dyn std::error::Error, "no cpu program"),
        }
    }
}
