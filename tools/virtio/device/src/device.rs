// SPDX-License-Identifier: GPL-2.0

//! The device: registers, virtqueues and the suspend state machine put together.
//!
//! Everything happens under one lock, in the order in which the accesses come in: an access is
//! counted, judged by what the device was before it, and then takes effect. The device never
//! waits: a delay is a deadline that [`Device::tick`] honours, at the next access or from the
//! worker thread, whichever is first.
//!
//! How the device keeps its rules:
//!
//! * V1: [`StatusMachine::write`] ignores SUSPEND unless negotiated and after DRIVER_OK.
//! * V2: `Device::suspend` finishes what is in process, sends the used-buffer notifications and
//!   only then presents the suspended condition.
//! * V3: while [`StatusMachine::is_frozen`], notifications and writes other than status are
//!   dropped and no queue is processed. (The judge reads the available positions to find buffers
//!   that may not be there (D4); the device itself touches no ring.)
//! * V4: a configuration change waits in `config_held` until after the resume.
//! * V5: a suspend either happens or ends in DEVICE_NEEDS_RESET, except for the draft's refusal.

use std::io;
use std::time::Instant;

use log::debug;
use serde_json::{json, Value};
use vfio_bindings::bindings::vfio::{
    VFIO_PCI_BAR0_REGION_INDEX, VFIO_PCI_BAR2_REGION_INDEX, VFIO_PCI_CONFIG_REGION_INDEX,
};
use virtio::pci::IsrStatus;

use crate::armed::Armed;
use crate::counters::Counters;
use crate::events::Events;
use crate::features::FeatureSet;
use crate::fuzz::Fuzz;
use crate::judge::{Access, Judge};
use crate::mailbox::{self, Mailbox};
use crate::memory::{DmaMap, Memory};
use crate::port::Port;
use crate::queue::Queue;
use crate::registry::Kind;
use crate::request::{Completion, Token};
use crate::settings::Settings;
use crate::status::StatusMachine;
use crate::timers::Timers;
use crate::transport::interrupt::Interrupt;
use crate::transport::pci_common_config::VirtioPciCommonConfig;
use crate::transport::pci_configuration::{Effect, PciConfiguration};
use crate::virtio_device::VirtioDevice;

mod control;
mod faulty;
mod interrupts;
mod overlay;
mod registers;
mod transitions;
mod virtqueues;

pub use overlay::Ending;
use overlay::Overlay;

const ISR_QUEUE: u8 = IsrStatus::QUEUE_INTERRUPT.bits();
const ISR_CONFIG: u8 = IsrStatus::DEVICE_CONFIGURATION_INTERRUPT.bits();

/// Microseconds since the device started.
#[derive(Debug)]
enum Clock {
    Real(Instant),
    #[cfg(test)]
    Manual(u64),
}

impl Clock {
    fn now_us(&self) -> u64 {
        match self {
            Self::Real(start) => u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX),
            #[cfg(test)]
            Self::Manual(now) => *now,
        }
    }
}

/// The device.
pub struct Device {
    kind: Kind,
    device: Box<dyn VirtioDevice>,
    /// How the device type's threads reach the device.
    port: Port,
    /// What they have finished; empty but while it is put into the rings.
    done: Vec<Completion>,
    /// The token of the next buffer.
    next_token: Token,
    /// Changes that the guest asked for while suspended (V3).
    held_changes: Vec<Value>,
    /// The driver has resumed the device since the fault was set that leaves buffers available.
    resumed: bool,
    /// The largest size of a queue.
    queue_size: u16,
    settings: Settings,
    /// The settings as of the last reset: what is offered now.
    active: Settings,
    offered: FeatureSet,
    accepted: FeatureSet,
    machine: StatusMachine,
    common: VirtioPciCommonConfig,
    isr: u8,
    queues: Vec<Queue>,
    /// When the suspended or the resumed condition is due.
    deadline: Option<u64>,
    /// A configuration change waits for the resume (V4).
    config_held: bool,
    /// The driver has not looked at the configuration since it changed.
    config_pending: bool,
    /// What stands between the status and who reads it: a fault.
    overlay: Overlay,
    /// Something that the driver never gave was put into a used ring: a fault.
    forged: bool,
    /// No buffer is consumed, although the device runs: a fault.
    stopped: bool,
    /// How often it has suspended since its reset.
    suspended: u64,
    /// A virtqueue has been reset since the device was.
    was_queue_reset: bool,
    /// The random stream, if it answers.
    fuzz: Option<Fuzz>,
    /// What else is due later.
    timers: Timers,
    /// The end that was asked for.
    ending: Option<Ending>,
    /// A queue ran out of its share of time; the worker goes on.
    backlog: bool,
    pci: PciConfiguration,
    irqs: Interrupt,
    memory: DmaMap,
    mailbox: Mailbox,
    judge: Judge,
    counters: Counters,
    /// Which of the faults that are set have taken effect.
    armed: Armed,
    events: Events,
    clock: Clock,
}

impl Device {
    /// A device of type `kind`, which `device` is, with queues of at most `queue_size` descriptors;
    /// an error if its threads can't be started.
    pub fn new(
        kind: Kind,
        mut device: Box<dyn VirtioDevice>,
        settings: Settings,
        queue_size: u16,
        events: Events,
    ) -> io::Result<Self> {
        // One vector for each queue, the administration queue included, and one for configuration
        // changes.
        let vectors = device.max_queues() + 2;
        let port = Port::default();
        device.attach(port.clone())?;
        let mut this = Self {
            kind,
            pci: PciConfiguration::new(device.id().into(), device.class(), vectors),
            irqs: Interrupt::new(vectors),
            counters: Counters::new(0, 0),
            armed: Armed::new(&settings),
            device,
            port,
            done: Vec::new(),
            next_token: 0,
            held_changes: Vec::new(),
            resumed: false,
            queue_size,
            active: settings.clone(),
            settings,
            offered: 0,
            accepted: 0,
            machine: StatusMachine::default(),
            common: VirtioPciCommonConfig::default(),
            isr: 0,
            queues: Vec::new(),
            deadline: None,
            config_held: false,
            config_pending: false,
            overlay: Overlay::None,
            forged: false,
            stopped: false,
            suspended: 0,
            was_queue_reset: false,
            fuzz: None,
            timers: Timers::default(),
            ending: None,
            backlog: false,
            memory: DmaMap::default(),
            mailbox: Mailbox::default(),
            judge: Judge::default(),
            events,
            clock: Clock::Real(Instant::now()),
        };
        this.offer();
        this.clear();
        Ok(this)
    }

    /// It keeps its state while the system sleeps (PCI power management, "No_Soft_Reset").
    pub fn add_no_soft_reset(&mut self) {
        self.pci.add_no_soft_reset();
    }

    /// How many MSI-X vectors it has.
    pub fn vectors(&self) -> u16 {
        self.irqs.vectors()
    }

    /// How many violations of the driver's were recorded.
    pub fn violations(&self) -> u64 {
        self.judge.total()
    }

    /// The guest's memory.
    pub fn memory(&self) -> &Memory {
        self.memory.memory()
    }

    /// Changes what is mapped as the guest's memory, once no request in process uses what it was.
    pub fn remap<T>(&mut self, change: impl FnOnce(&mut DmaMap) -> T) -> T {
        let result = change(&mut self.memory);
        self.port.set_memory(self.memory.memory());
        result
    }

    /// How the device type's threads reach the device.
    pub fn port(&self) -> &Port {
        &self.port
    }

    /// The interrupts.
    pub fn irqs(&mut self) -> &mut Interrupt {
        &mut self.irqs
    }

    /// A client is there: counts and violations begin anew.
    pub fn connected(&mut self) {
        self.judge_again();
        self.clear();
        self.emit("connected", json!({"type": self.kind}));
        self.start_fuzz();
    }

    /// The client is gone, and with it its memory and interrupts.
    pub fn disconnected(&mut self) {
        self.left("disconnect");
        self.ending = None;
        self.emit("disconnected", json!({}));
        self.summary();
        self.machine = StatusMachine::default();
        self.reset("disconnect");
        self.pci.reset();
        self.irqs.disconnect();
        self.remap(DmaMap::clear);
    }

    /// Writes the `summary` event.
    pub fn summary(&mut self) {
        let mut fields = json!({
            "violations": self.judge.total(),
            "unjudged": self.judge.unjudged(),
            "counters": self.counters,
        });
        let report = self.device.report();
        if !report.is_null() {
            fields["device"] = report;
        }
        self.emit("summary", fields);
    }

    /// The client resets it, as QEMU does with all that is on the bus when the guest wakes up. Its own
    /// devices keep their state then if they keep it in D3hot.
    pub fn bus_reset(&mut self) {
        if !self.pci.keeps_state() {
            self.function_reset("vfio");
        }
    }

    /// DEVICE_RESET of vfio-user, or a function level reset.
    pub fn function_reset(&mut self, reason: &'static str) {
        self.left(reason);
        self.machine = StatusMachine::default();
        self.reset(reason);
        self.pci.reset();
    }

    /// D13.
    fn left(&mut self, how: &'static str) {
        let now = self.now_us();
        self.judge.left(Access::FunctionReset(how), now);
        self.flush_violations();
    }

    /// Microseconds since the device started.
    pub fn now_us(&self) -> u64 {
        self.clock.now_us()
    }

    // Accesses.

    /// Reads of the client: configuration space and the BARs.
    pub fn region_read(&mut self, region: u32, offset: u64, data: &mut [u8]) {
        self.tick();
        if region == VFIO_PCI_CONFIG_REGION_INDEX {
            self.config_space_read(offset, data);
        } else {
            self.bar_read(region, offset, data);
        }
        self.flush_violations();
    }

    /// Writes of the client: configuration space and the BARs.
    pub fn region_write(&mut self, region: u32, offset: u64, data: &[u8]) {
        self.tick();
        if region == VFIO_PCI_CONFIG_REGION_INDEX {
            self.config_space_write(offset, data);
        } else {
            self.bar_write(region, offset, data);
        }
        self.flush_violations();
    }

    fn config_space_read(&mut self, offset: u64, data: &mut [u8]) {
        if self.pci.touches_window(offset, data.len()) {
            if let Some(window) = self.pci.window() {
                let mut bytes = [0; 4];
                self.bar_read(
                    window.bar.into(),
                    window.offset,
                    &mut bytes[..window.length],
                );
                self.pci.set_window_bytes(&bytes);
            }
        }
        self.pci.read(offset, data);
    }

    fn config_space_write(&mut self, offset: u64, data: &[u8]) {
        let bus_master = self.pci.bus_master();
        let effect = self.pci.write(offset, data);
        // QEMU does so, too, before it resets the bus: then it is not the driver that leaves.
        if bus_master && !self.pci.bus_master() && !self.pci.keeps_state() {
            let now = self.now_us();
            self.judge.left(Access::BusMasterOff, now);
        }
        match effect {
            Effect::None => {}
            Effect::Reset => self.function_reset("flr"),
            Effect::WindowWrite => {
                if let Some(window) = self.pci.window() {
                    let bytes = self.pci.window_bytes();
                    self.bar_write(window.bar.into(), window.offset, &bytes[..window.length]);
                }
            }
        }
        // INTx disable may have changed.
        self.update_intx();
    }

    fn bar_read(&mut self, bar: u32, offset: u64, data: &mut [u8]) {
        self.pci.used();
        data.fill(0);
        match bar {
            VFIO_PCI_BAR0_REGION_INDEX => self.virtio_read(offset, data),
            VFIO_PCI_BAR2_REGION_INDEX => self.mailbox.read(offset, data),
            _ => debug!("read of {} bytes at {offset:#x} of BAR {bar}", data.len()),
        }
    }

    fn bar_write(&mut self, bar: u32, offset: u64, data: &[u8]) {
        self.pci.used();
        match bar {
            VFIO_PCI_BAR0_REGION_INDEX => self.virtio_write(offset, data),
            VFIO_PCI_BAR2_REGION_INDEX => {
                if let Some(command) = self.mailbox.write(offset, data) {
                    let reply = match command {
                        Ok(command) => self.execute(command),
                        Err(error) => mailbox::failure(error),
                    };
                    self.mailbox.reply(&reply);
                }
            }
            _ => debug!("write of {data:02x?} at {offset:#x} of BAR {bar}"),
        }
    }
}

/// A status byte for people.
fn hex(status: u8) -> String {
    format!("{status:#04x}")
}

#[cfg(test)]
mod tests;
