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

use std::time::Instant;

use log::{debug, error, info, warn};
use serde_json::{json, Value};
use vfio_bindings::bindings::vfio::{
    VFIO_PCI_BAR0_REGION_INDEX, VFIO_PCI_BAR2_REGION_INDEX, VFIO_PCI_CONFIG_REGION_INDEX,
};
use virtio::pci::IsrStatus;

use crate::common::{self, reg, NO_VECTOR};
use crate::counters::Counters;
use crate::events::Events;
use crate::features::{self, FeatureSet, Revision};
use crate::irq::Irqs;
use crate::judge::{Access, AvailMark, Judge, View};
use crate::kind::{DeviceType, Kind};
use crate::mailbox::{self, Command, Mailbox};
use crate::memory::DmaMap;
use crate::pci::{ConfigSpace, Effect};
use crate::queue::Queue;
use crate::ring::Buffer;
use crate::settings::{RingKind, Settings};
use crate::status::{self, Action, State, StatusMachine};

const ISR_QUEUE: u8 = IsrStatus::QUEUE_INTERRUPT.bits();
const ISR_CONFIG: u8 = IsrStatus::DEVICE_CONFIGURATION_INTERRUPT.bits();

/// How many violations a `stats` reply lists.
const STATS_VIOLATIONS: usize = 16;
/// How many status accesses a `stats` reply lists.
const STATS_STATUS_LOG: usize = 64;

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
    device: Box<dyn DeviceType>,
    settings: Settings,
    /// The settings as of the last reset: what is offered now.
    active: Settings,
    offered: FeatureSet,
    accepted: FeatureSet,
    machine: StatusMachine,
    device_feature_select: u32,
    driver_feature_select: u32,
    queue_select: u16,
    config_vector: u16,
    generation: u8,
    isr: u8,
    queues: Vec<Queue>,
    /// When the suspended or the resumed condition is due.
    deadline: Option<u64>,
    /// A configuration change waits for the resume (V4).
    config_held: bool,
    /// A queue ran out of its share of time; the worker goes on.
    backlog: bool,
    pci: ConfigSpace,
    irqs: Irqs,
    dma: DmaMap,
    mailbox: Mailbox,
    judge: Judge,
    counters: Counters,
    events: Events,
    clock: Clock,
}

impl Device {
    /// A device of type `kind` with queues of at most `queue_size` descriptors.
    pub fn new(kind: Kind, settings: Settings, queue_size: u16, events: Events) -> Self {
        let device = kind.build();
        let queues: Vec<Queue> = (0..device.queues())
            .map(|_| Queue::new(queue_size))
            .collect();
        // One vector for each queue and one for configuration changes.
        let vectors = device.queues() + 1;
        let mut this = Self {
            kind,
            pci: ConfigSpace::new(device.id().into(), device.class(), vectors),
            irqs: Irqs::new(vectors),
            counters: Counters::new(queues.len(), 0),
            device,
            active: settings.clone(),
            settings,
            offered: 0,
            accepted: 0,
            machine: StatusMachine::default(),
            device_feature_select: 0,
            driver_feature_select: 0,
            queue_select: 0,
            config_vector: NO_VECTOR,
            generation: 0,
            isr: 0,
            queues,
            deadline: None,
            config_held: false,
            backlog: false,
            dma: DmaMap::default(),
            mailbox: Mailbox::default(),
            judge: Judge::default(),
            events,
            clock: Clock::Real(Instant::now()),
        };
        this.offer();
        this
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
    pub fn dma(&mut self) -> &mut DmaMap {
        &mut self.dma
    }

    /// The interrupts.
    pub fn irqs(&mut self) -> &mut Irqs {
        &mut self.irqs
    }

    /// A client is there: counts and violations begin anew.
    pub fn connected(&mut self) {
        self.clear();
        self.emit("connected", json!({"type": self.kind}));
    }

    /// The client is gone, and with it its memory and interrupts.
    pub fn disconnected(&mut self) {
        self.flush_violations();
        self.emit("disconnected", json!({}));
        self.summary();
        self.machine = StatusMachine::default();
        self.reset("disconnect");
        self.pci.reset();
        self.irqs.disconnect();
        self.dma.clear();
    }

    /// Writes the `summary` event.
    pub fn summary(&mut self) {
        let violations = self.judge.total();
        let counters = json!(self.counters);
        self.emit(
            "summary",
            json!({"violations": violations, "counters": counters}),
        );
    }

    /// DEVICE_RESET of vfio-user, or a function level reset.
    pub fn function_reset(&mut self, reason: &str) {
        self.machine = StatusMachine::default();
        self.reset(reason);
        self.pci.reset();
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
        match self.pci.write(offset, data) {
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
        data.fill(0);
        match bar {
            VFIO_PCI_BAR0_REGION_INDEX => self.virtio_read(offset, data),
            VFIO_PCI_BAR2_REGION_INDEX => self.mailbox.read(offset, data),
            _ => debug!("read of {} bytes at {offset:#x} of BAR {bar}", data.len()),
        }
    }

    fn bar_write(&mut self, bar: u32, offset: u64, data: &[u8]) {
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

    fn virtio_read(&mut self, offset: u64, data: &mut [u8]) {
        let now = self.now_us();
        let view = self.view();
        match offset & !0xfff {
            common::COMMON_OFFSET => self.common_read(offset, data),
            common::ISR_OFFSET if offset == common::ISR_OFFSET => {
                self.counters.isr_reads += 1;
                self.judge.access(Access::IsrRead, &view, now);
                if let Some(byte) = data.first_mut() {
                    *byte = std::mem::take(&mut self.isr);
                }
                self.update_intx();
            }
            common::DEVICE_OFFSET => {
                self.counters.config_reads += 1;
                let offset = offset - common::DEVICE_OFFSET;
                self.judge.access(Access::ConfigRead(offset), &view, now);
                self.device.read_config(offset, data);
            }
            _ => debug!("read of {} bytes at {offset:#x}: nothing there", data.len()),
        }
    }

    fn virtio_write(&mut self, offset: u64, data: &[u8]) {
        let now = self.now_us();
        let view = self.view();
        match offset & !0xfff {
            common::COMMON_OFFSET => self.common_write(offset, data),
            common::DEVICE_OFFSET => {
                self.counters.config_writes += 1;
                let offset = offset - common::DEVICE_OFFSET;
                self.judge.access(Access::ConfigWrite(offset), &view, now);
                if !self.machine.is_frozen() {
                    self.device.write_config(offset, data);
                }
            }
            common::NOTIFY_OFFSET => {
                let queue = (offset - common::NOTIFY_OFFSET) / u64::from(common::NOTIFY_MULTIPLIER);
                self.notified(queue);
            }
            _ => debug!("write of {data:02x?} at {offset:#x}: nothing there"),
        }
    }

    // The common configuration structure.

    fn common_read(&mut self, offset: u64, data: &mut [u8]) {
        let now = self.now_us();
        let view = self.view();
        let end = offset.saturating_add(data.len() as u64);
        if (offset..end).contains(&reg::DEVICE_STATUS) {
            let value = self.machine.status();
            let access = Access::StatusRead(value);
            self.counters.status_access("read", value, now);
            if self.judge.watches_queues() {
                let marks = self.marks();
                self.judge.check_marks(marks, access, now);
            }
            self.judge.access(access, &view, now);
            self.emit("status_read", json!({"value": hex(value)}));
        } else {
            self.counters.common_reads += 1;
            self.judge.access(Access::CommonRead(offset), &view, now);
        }
        let image = self.common_image();
        for (byte, at) in data.iter_mut().zip(offset..) {
            *byte = image.get(at as usize).copied().unwrap_or(0);
        }
    }

    /// The structure as the driver reads it now.
    fn common_image(&self) -> [u8; common::COMMON_LENGTH as usize] {
        let mut image = [0; common::COMMON_LENGTH as usize];
        let mut put = |offset: u64, bytes: &[u8]| {
            let offset = offset as usize;
            image[offset..offset + bytes.len()].copy_from_slice(bytes);
        };
        let window = |features: FeatureSet, select: u32| match select {
            0..=3 => (features >> (32 * select)) as u32,
            _ => 0,
        };
        put(
            reg::DEVICE_FEATURE_SELECT,
            &self.device_feature_select.to_le_bytes(),
        );
        put(
            reg::DEVICE_FEATURE,
            &window(self.offered, self.device_feature_select).to_le_bytes(),
        );
        put(
            reg::DRIVER_FEATURE_SELECT,
            &self.driver_feature_select.to_le_bytes(),
        );
        put(
            reg::DRIVER_FEATURE,
            &window(self.accepted, self.driver_feature_select).to_le_bytes(),
        );
        put(reg::CONFIG_MSIX_VECTOR, &self.config_vector.to_le_bytes());
        put(reg::NUM_QUEUES, &(self.queues.len() as u16).to_le_bytes());
        put(reg::DEVICE_STATUS, &[self.machine.status()]);
        put(reg::CONFIG_GENERATION, &[self.generation]);
        put(reg::QUEUE_SELECT, &self.queue_select.to_le_bytes());
        // A queue that does not exist has size 0.
        if let Some(queue) = self.queues.get(usize::from(self.queue_select)) {
            put(reg::QUEUE_SIZE, &queue.size.to_le_bytes());
            put(reg::QUEUE_MSIX_VECTOR, &queue.vector.to_le_bytes());
            put(
                reg::QUEUE_ENABLE,
                &u16::from(queue.ring.is_some()).to_le_bytes(),
            );
            put(reg::QUEUE_NOTIFY_OFF, &self.queue_select.to_le_bytes());
            put(reg::QUEUE_DESC, &queue.desc.to_le_bytes());
            put(reg::QUEUE_DRIVER, &queue.driver.to_le_bytes());
            put(reg::QUEUE_DEVICE, &queue.device.to_le_bytes());
        }
        image
    }

    fn common_write(&mut self, offset: u64, data: &[u8]) {
        let now = self.now_us();
        let mut bytes = [0; 8];
        let len = data.len().min(8);
        bytes[..len].copy_from_slice(&data[..len]);
        let value = u64::from_le_bytes(bytes);

        if offset == reg::DEVICE_STATUS {
            self.status_write(value as u8);
            return;
        }
        self.counters.common_writes += 1;
        let access = Access::CommonWrite(offset, value);
        let view = self.view();
        self.judge.access(access, &view, now);
        if self.machine.is_frozen() {
            debug!("ignored while {:?} (V3): {access}", self.machine.state());
            return;
        }
        match (offset, data.len()) {
            (reg::DEVICE_FEATURE_SELECT, 4) => self.device_feature_select = value as u32,
            (reg::DRIVER_FEATURE_SELECT, 4) => self.driver_feature_select = value as u32,
            (reg::DRIVER_FEATURE, 4) => self.accept_features(value as u32),
            (reg::CONFIG_MSIX_VECTOR, 2) => self.config_vector = self.vector(value as u16),
            (reg::QUEUE_SELECT, 2) => self.queue_select = value as u16,
            _ => self.queue_write(offset, value, data.len()),
        }
    }

    fn accept_features(&mut self, value: u32) {
        if self.machine.status() & status::FEATURES_OK != 0 {
            warn!("the driver writes features after FEATURES_OK; ignored");
            return;
        }
        if let select @ 0..=3 = self.driver_feature_select {
            let shift = 32 * select;
            self.accepted &= !(FeatureSet::from(u32::MAX) << shift);
            self.accepted |= FeatureSet::from(value) << shift;
        }
    }

    /// A vector that does not exist reads back as NO_VECTOR ("MSI-X Vector Configuration").
    fn vector(&self, vector: u16) -> u16 {
        if self.irqs.has_vector(vector) {
            vector
        } else {
            NO_VECTOR
        }
    }

    fn queue_write(&mut self, offset: u64, value: u64, len: usize) {
        let index = self.queue_select;
        let vector = self.vector(value as u16);
        let features_ok = self.machine.status() & status::FEATURES_OK != 0;
        let Some(queue) = self.queues.get_mut(usize::from(index)) else {
            warn!("a write to queue {index}, which does not exist; ignored");
            return;
        };
        let enabled = queue.ring.is_some();
        let put = |field: &mut u64| match (offset & 7, len) {
            (0, 8) => *field = value,
            (0, 4) => *field = *field & !0xffff_ffff | value,
            (4, 4) => *field = *field & 0xffff_ffff | value << 32,
            _ => warn!("a write of {len} bytes at {offset:#x}; addresses are written by 4 or 8"),
        };
        match (offset, len) {
            (reg::QUEUE_MSIX_VECTOR, 2) => queue.vector = vector,
            (reg::QUEUE_RESET, 2) if value == 1 && self.accepted & features::RING_RESET != 0 => {
                queue.reset();
                self.emit("queue_reset", json!({"queue": index}));
            }
            _ if enabled => warn!("queue {index} is enabled: a write at {offset:#x} is ignored"),
            (reg::QUEUE_SIZE, 2) => {
                let size = value as u16;
                let packed = self.accepted & features::RING_PACKED != 0;
                if size == 0 || size > queue.max_size || !(packed || size.is_power_of_two()) {
                    warn!("queue {index}: a size of {size} is not possible; ignored");
                } else {
                    queue.size = size;
                }
            }
            (reg::QUEUE_ENABLE, 2) if value == 1 && features_ok => self.enable_queue(index),
            (0x20..=0x27, _) => put(&mut queue.desc),
            (0x28..=0x2f, _) => put(&mut queue.driver),
            (0x30..=0x37, _) => put(&mut queue.device),
            _ => debug!("a write of {value:#x} ({len} bytes) at {offset:#x} is ignored"),
        }
    }

    fn enable_queue(&mut self, index: u16) {
        let queue = &mut self.queues[usize::from(index)];
        match queue.enable(self.dma.memory(), self.accepted) {
            Ok(()) => {
                let packed = self.accepted & features::RING_PACKED != 0;
                let fields = json!({
                    "queue": index,
                    "size": queue.size,
                    "ring": if packed { RingKind::Packed } else { RingKind::Split },
                });
                self.emit("queue_enabled", fields);
            }
            Err(error) => self.device_error(index, &error),
        }
    }

    // Device status.

    fn status_write(&mut self, value: u8) {
        let now = self.now_us();
        let access = Access::StatusWrite(value);
        let view = self.view();
        self.counters.status_access("write", value, now);
        self.emit("status_write", json!({"value": hex(value)}));

        let resumes = view.state == State::Suspended
            && value != 0
            && status::is_resume_write(view.revision, value);
        if resumes && self.judge.watches_queues() {
            let marks = self.marks();
            self.judge.check_marks(marks, access, now);
        }
        let features_now = view.state == State::Reset
            && value & status::FEATURES_OK != 0
            && view.status & status::FEATURES_OK == 0;
        if features_now {
            self.judge.features(self.offered, self.accepted, value, now);
        }
        self.judge.access(access, &view, now);

        let (offered, accepted) = (self.offered, self.accepted);
        let defines_bit_42 = self.device.defines_bit_42();
        let action = self.machine.write(value, || {
            let possible = accepted & !offered == 0 && accepted & features::VERSION_1 != 0;
            possible.then(|| Revision::negotiated(accepted, defines_bit_42))
        });
        match action {
            Action::None if features_now => warn!(
                "features {accepted:#x} refused: {offered:#x} is offered, VERSION_1 is required"
            ),
            Action::None => {}
            Action::Reset => self.reset("driver"),
            Action::FeaturesOk => self.features_negotiated(),
            Action::DriverOk => {
                if features_now {
                    self.features_negotiated();
                }
                info!("the driver is live, SUSPEND: {:?}", self.machine.revision());
            }
            Action::Suspend => self.suspend(),
            Action::Cancel => self.cancel(),
            Action::Resume => self.resume(),
        }
        self.counters.present(self.machine.status());
    }

    fn features_negotiated(&mut self) {
        let fields = json!({
            "offered": format!("{:#x}", self.offered),
            "accepted": format!("{:#x}", self.accepted),
            "revision": self.machine.revision(),
        });
        self.emit("features", fields);
    }

    /// V2 and V5.
    fn suspend(&mut self) {
        if self.settings.refuse_suspend {
            self.counters.refusals += 1;
            let marks = self.marks();
            self.judge.set_marks(marks);
            if self.machine.revision() == Revision::V1_4 {
                self.machine.set_needs_reset();
                self.emit("refused", json!({"by": "DEVICE_NEEDS_RESET"}));
                self.config_changed();
            } else {
                self.emit("refused", json!({"by": "no answer"}));
            }
            return;
        }
        for index in 0..self.queues.len() {
            self.finish_in_process(index);
            self.notify_used(index);
        }
        let marks = self.marks();
        self.judge.set_marks(marks);
        if !self.machine.is_live() {
            // Finishing failed, and DEVICE_NEEDS_RESET says so.
            return;
        }
        self.machine.begin_suspend();
        self.due_in(self.settings.delay_suspend_ms);
    }

    fn resume(&mut self) {
        self.due_in(self.settings.delay_resume_ms);
    }

    fn cancel(&mut self) {
        self.deadline = None;
        self.counters.cancels += 1;
        self.emit("cancelled", json!({}));
        self.release_config_change();
        self.scan();
    }

    /// The transition under way is over in `ms` milliseconds; at once if that is 0.
    fn due_in(&mut self, ms: u64) {
        self.deadline = Some(self.now_us().saturating_add(ms.saturating_mul(1000)));
        self.tick();
    }

    /// When the worker has to call [`Device::tick`].
    pub fn next_deadline_us(&self) -> Option<u64> {
        self.deadline
    }

    /// Microseconds since the device started.
    pub fn now_us(&self) -> u64 {
        self.clock.now_us()
    }

    /// Presents the suspended or the resumed condition if it is due.
    pub fn tick(&mut self) {
        if self
            .deadline
            .is_none_or(|deadline| deadline > self.now_us())
        {
            return;
        }
        self.deadline = None;
        match self.machine.state() {
            State::Suspending => {
                self.machine.present_suspended();
                self.counters.suspends += 1;
                self.counters.present(self.machine.status());
                let fields = json!({
                    "status": hex(self.machine.status()),
                    "revision": self.machine.revision(),
                    "queues": self.queue_report(),
                });
                self.emit("suspended", fields);
            }
            State::Resuming => {
                self.machine.present_running();
                self.counters.resumes += 1;
                self.counters.present(self.machine.status());
                self.emit("resumed", json!({"status": hex(self.machine.status())}));
                self.release_config_change();
                if self.settings.rescan_on_resume {
                    self.scan();
                }
            }
            State::Reset | State::Running | State::Suspended => {}
        }
    }

    /// Everything that a device reset resets; the status is 0 already.
    fn reset(&mut self, reason: &str) {
        for queue in &mut self.queues {
            queue.reset();
        }
        self.active = self.settings.clone();
        self.offer();
        self.accepted = 0;
        self.device_feature_select = 0;
        self.driver_feature_select = 0;
        self.queue_select = 0;
        self.config_vector = NO_VECTOR;
        self.generation = 0;
        self.isr = 0;
        self.deadline = None;
        self.config_held = false;
        self.backlog = false;
        self.irqs.reset();
        self.judge.reset();
        self.device.reset();
        self.counters.resets += 1;
        self.counters.present(0);
        self.emit("reset", json!({"by": reason}));
    }

    /// Works out the features that are offered until the next reset.
    fn offer(&mut self) {
        let when = |condition: bool, bits: FeatureSet| if condition { bits } else { 0 };
        self.offered = features::VERSION_1
            | features::RING_RESET
            | self.active.offer.bits()
            | when(self.active.ring == RingKind::Packed, features::RING_PACKED)
            | when(self.active.indirect, features::INDIRECT_DESC)
            | when(self.active.event_idx, features::EVENT_IDX)
            | self.device.features();
    }

    // Virtqueues.

    fn notified(&mut self, queue: u64) {
        let Some(index) = usize::try_from(queue)
            .ok()
            .filter(|index| *index < self.queues.len())
        else {
            warn!("a notification of queue {queue}, which does not exist; ignored");
            return;
        };
        let now = self.now_us();
        let view = self.view();
        self.counters.notify[index] += 1;
        self.judge.access(Access::Notify(index as u16), &view, now);
        self.emit("notify", json!({"queue": index}));
        if self.machine.is_live() {
            self.run_queue(index);
        } else {
            debug!(
                "notification of queue {index} dropped while {:?}",
                self.machine.state()
            );
        }
    }

    /// Looks for available buffers in every queue.
    fn scan(&mut self) {
        for index in 0..self.queues.len() {
            self.run_queue(index);
        }
    }

    /// Whether the worker has to call [`Device::work`].
    pub fn has_work(&self) -> bool {
        self.backlog
    }

    /// Goes on where a queue ran out of its share.
    pub fn work(&mut self) {
        if std::mem::take(&mut self.backlog) {
            self.scan();
        }
        self.flush_violations();
    }

    /// Processes a queue's available buffers: as many as the queue has descriptors, then the worker
    /// goes on, so that a driver that never stops can't keep the device from answering.
    fn run_queue(&mut self, index: usize) {
        if !self.machine.is_live() || self.queues[index].ring.is_none() {
            return;
        }
        let mut left = u32::from(self.queues[index].size);
        while self.machine.is_live() {
            if left == 0 {
                self.backlog = true;
                break;
            }
            left -= 1;
            match self.take(index) {
                Ok(Some(buffer)) => {
                    self.counters.buffers_consumed += 1;
                    self.queues[index].in_process.push_back(buffer);
                    if !self.settings.hold {
                        self.finish_in_process(index);
                    }
                }
                Ok(None) => break,
                Err(error) => self.device_error(index as u16, &error),
            }
        }
        self.notify_used(index);
    }

    /// The next available buffer; none only once the driver has been asked to notify the next.
    fn take(&mut self, index: usize) -> Result<Option<Buffer>, crate::ring::RingError> {
        let mem = self.dma.memory();
        let queue = &mut self.queues[index];
        if let Some(buffer) = queue.pop(mem)? {
            return Ok(Some(buffer));
        }
        let more = match &mut queue.ring {
            Some(ring) => ring.arm(mem)?,
            None => false,
        };
        if more {
            queue.pop(mem)
        } else {
            Ok(None)
        }
    }

    /// Finishes the buffers in process and puts them into the used ring.
    fn finish_in_process(&mut self, index: usize) {
        while let Some(buffer) = self.queues[index].in_process.pop_front() {
            let mem = self.dma.memory();
            let len = match self
                .device
                .process(index as u16, &buffer, mem, &self.settings)
            {
                Ok(len) => len,
                Err(error) => return self.device_error(index as u16, &error),
            };
            if let Err(error) = self.queues[index].push_used(mem, &buffer, len) {
                return self.device_error(index as u16, &error);
            }
            self.counters.buffers_used += 1;
            self.counters.bytes += u64::from(len);
        }
    }

    /// Sends a used-buffer notification if there is something to notify and the driver wants it.
    fn notify_used(&mut self, index: usize) {
        let queue = &mut self.queues[index];
        if !std::mem::take(&mut queue.dirty) {
            return;
        }
        let Some(ring) = &mut queue.ring else {
            return;
        };
        match ring.needs_notification(self.dma.memory()) {
            Ok(true) => {
                let vector = queue.vector;
                self.counters.used_notifications[index] += 1;
                self.interrupt(vector, ISR_QUEUE);
            }
            Ok(false) => {}
            Err(error) => self.device_error(index as u16, &error),
        }
    }

    /// What the driver put there can't be used: DEVICE_NEEDS_RESET ("Device Status Field").
    fn device_error(&mut self, queue: u16, error: &dyn std::error::Error) {
        error!("queue {queue}: {error}; the device needs a reset");
        self.counters.device_errors += 1;
        self.emit(
            "device_error",
            json!({"queue": queue, "error": error.to_string()}),
        );
        self.machine.set_needs_reset();
        self.counters.present(self.machine.status());
        self.config_changed();
    }

    fn marks(&self) -> Vec<AvailMark> {
        let mem = self.dma.memory();
        self.queues
            .iter()
            .map(|queue| queue.ring.as_ref()?.avail_mark(mem).ok())
            .collect()
    }

    // Notifications to the driver.

    /// A configuration change notification, now or after the resume (V4). Returns whether it was
    /// sent.
    fn config_changed(&mut self) -> bool {
        if self.machine.is_frozen() {
            self.config_held = true;
            return false;
        }
        self.generation = self.generation.wrapping_add(1);
        if self.machine.state() != State::Running {
            return false;
        }
        self.counters.config_notifications += 1;
        self.emit("config_change", json!({}));
        self.interrupt(self.config_vector, ISR_CONFIG);
        true
    }

    fn release_config_change(&mut self) {
        if std::mem::take(&mut self.config_held) {
            self.config_changed();
        }
    }

    fn interrupt(&mut self, vector: u16, isr: u8) {
        if self.pci.msix_enabled() {
            self.irqs.trigger(vector);
        } else {
            self.isr |= isr;
            self.update_intx();
        }
    }

    fn update_intx(&mut self) {
        let level = self.isr != 0 && !self.pci.msix_enabled() && !self.pci.intx_disabled();
        self.irqs.set_intx_level(level);
    }

    // Reports.

    fn view(&self) -> View {
        View {
            status: self.machine.status(),
            state: self.machine.state(),
            revision: self.machine.revision(),
            accepted: self.accepted,
            type_defines_bit_42: self.device.defines_bit_42(),
        }
    }

    fn emit(&mut self, event: &str, fields: Value) {
        let now = self.now_us();
        self.events.emit(now, event, fields);
    }

    fn flush_violations(&mut self) {
        for violation in self.judge.take_new() {
            error!(
                "violation of {:?}: {}: {}",
                violation.rule, violation.access, violation.what
            );
            self.events
                .emit(violation.time_us, "violation", json!(violation));
        }
    }

    fn queue_report(&self) -> Value {
        let report = |(index, queue): (usize, &Queue)| {
            let mut report = json!({
                "index": index,
                "size": queue.size,
                "enabled": queue.ring.is_some(),
                "in_process": queue.in_process.len(),
            });
            if let (Some(ring), Some(report)) = (&queue.ring, report.as_object_mut()) {
                if let Value::Object(position) = json!(ring.position()) {
                    report.extend(position);
                }
            }
            report
        };
        self.queues.iter().enumerate().map(report).collect()
    }

    fn clear(&mut self) {
        self.flush_violations();
        self.judge.clear();
        self.counters = Counters::new(self.queues.len(), self.machine.status());
    }

    // The mailbox.

    fn execute(&mut self, command: Command) -> Value {
        match command {
            Command::Info {} => self.info(),
            Command::Stats {} => self.stats(),
            Command::Clear {} => {
                self.clear();
                json!({"ok": true})
            }
            Command::ConfigChange {} => {
                let sent = self.config_changed();
                json!({"ok": true, "sent": sent, "held": self.config_held})
            }
            Command::Set { settings } => match self.settings.patched(&settings) {
                Ok(new) => {
                    let released = self.settings.hold && !new.hold;
                    self.settings = new;
                    if released && self.machine.is_live() {
                        for index in 0..self.queues.len() {
                            self.finish_in_process(index);
                            self.notify_used(index);
                        }
                    }
                    json!({
                        "ok": true,
                        "pending": self.settings.pending(&self.active),
                        "settings": self.settings,
                    })
                }
                Err(error) => mailbox::failure(error),
            },
        }
    }

    fn info(&self) -> Value {
        let negotiated = if self.machine.status() & status::FEATURES_OK != 0 {
            self.accepted
        } else {
            0
        };
        json!({
            "ok": true,
            "type": self.kind,
            "offer": self.active.offer,
            "ring": self.active.ring,
            "offered": format!("{:#x}", self.offered),
            "negotiated": format!("{negotiated:#x}"),
            "revision": self.machine.revision(),
            "status": hex(self.machine.status()),
            "state": self.machine.state(),
            "settings": self.settings,
            "pending": self.settings.pending(&self.active),
        })
    }

    fn stats(&self) -> Value {
        let violations = self.judge.violations();
        let log = &self.counters.status_log;
        let skip = log.len().saturating_sub(STATS_STATUS_LOG);
        let status_log: Vec<String> = log.iter().skip(skip).map(|a| a.compact()).collect();
        json!({
            "ok": true,
            "violations": self.judge.total(),
            "violation_list": violations.get(..STATS_VIOLATIONS).unwrap_or(violations),
            "status_log": status_log,
            "counters": self.counters,
            "queues": self.queue_report(),
        })
    }
}

/// A status byte for people.
fn hex(status: u8) -> String {
    format!("{status:#04x}")
}

#[cfg(test)]
mod tests;
