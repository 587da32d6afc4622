// SPDX-License-Identifier: GPL-2.0

//! BAR 0: the virtio structures.

use log::{debug, warn};
use serde_json::json;

use super::Device;
use crate::fault::Name;
use crate::features;
use crate::judge::Access;
use crate::queue::Queue;
use crate::settings::RingKind;
use crate::status;
use crate::transport::pci_common_config::{self as common, reg, DeviceRegisters, NO_VECTOR};

impl Device {
    pub(super) fn virtio_read(&mut self, offset: u64, data: &mut [u8]) {
        self.virtio_read_plain(offset, data);
        if self.overlay.is_ones() {
            data.fill(0xff);
        }
    }

    /// As if all registers were there.
    fn virtio_read_plain(&mut self, offset: u64, data: &mut [u8]) {
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
                self.config_looked_at();
                self.device.read_config(offset, data);
                self.fuzz_registers(data);
            }
            _ => debug!("read of {} bytes at {offset:#x}: nothing there", data.len()),
        }
    }

    pub(super) fn virtio_write(&mut self, offset: u64, data: &[u8]) {
        if self.overlay.is_gone() {
            debug!("a write at {offset:#x} is ignored: the device is gone");
            return;
        }
        let now = self.now_us();
        let view = self.view();
        match offset & !0xfff {
            common::COMMON_OFFSET => self.common_write(offset, data),
            common::DEVICE_OFFSET => {
                self.counters.config_writes += 1;
                let offset = offset - common::DEVICE_OFFSET;
                self.judge.access(Access::ConfigWrite(offset), &view, now);
                let taken =
                    self.machine.is_frozen() && self.fault(Name::ConfigWritesTaken).is_some();
                if taken {
                    self.note(Name::ConfigWritesTaken);
                }
                if taken || !self.machine.is_frozen() {
                    self.device.write_config(offset, data);
                    // It may count that as a change, and QEMU's do.
                    self.common.config_generation = self.common.config_generation.wrapping_add(1);
                }
            }
            common::NOTIFY_OFFSET => {
                let queue = (offset - common::NOTIFY_OFFSET) / u64::from(common::NOTIFY_MULTIPLIER);
                self.notified(queue);
            }
            _ => debug!("write of {data:02x?} at {offset:#x}: nothing there"),
        }
    }

    fn common_read(&mut self, offset: u64, data: &mut [u8]) {
        let now = self.now_us();
        let view = self.view();
        let end = offset.saturating_add(data.len() as u64);
        let with_status = (offset..end).contains(&reg::DEVICE_STATUS);
        let truth = self.machine.status();
        let value = if with_status { self.answer() } else { truth };
        if with_status {
            let access = Access::StatusRead(value);
            self.counters.status_access("read", value, now);
            if self.judge.watches_queues() {
                let marks = self.marks();
                self.judge.check_marks(marks, access, &view, now);
            }
            self.judge.access(access, &view, now);
            let mut fields = json!({"value": super::hex(value)});
            if value != truth {
                fields["truth"] = json!(super::hex(truth));
            }
            self.emit("status_read", fields);
            self.spurious();
        } else {
            self.counters.common_reads += 1;
            self.judge.access(Access::CommonRead(offset), &view, now);
            if offset == reg::CONFIG_GENERATION {
                self.config_looked_at();
            }
        }
        let mut image = self.common_image();
        image[reg::DEVICE_STATUS as usize] = value;
        for (byte, at) in data.iter_mut().zip(offset..) {
            *byte = image.get(at as usize).copied().unwrap_or(0);
        }
        if !with_status {
            self.fuzz_registers(data);
        }
    }

    /// The structure as the driver reads it now.
    fn common_image(&self) -> [u8; common::COMMON_LENGTH as usize] {
        let selected = self.queues.get(usize::from(self.common.queue_select));
        self.common.image(&DeviceRegisters {
            offered: self.offered,
            accepted: self.accepted,
            queues: self.device.queues(),
            admin_queue: self.admin_queue(),
            status: self.machine.status(),
            queue: selected.map(Queue::registers),
        })
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
            (reg::DEVICE_FEATURE_SELECT, 4) => self.common.device_feature_select = value as u32,
            (reg::DRIVER_FEATURE_SELECT, 4) => self.common.driver_feature_select = value as u32,
            (reg::DRIVER_FEATURE, 4) => self.accept_features(value as u32),
            (reg::CONFIG_MSIX_VECTOR, 2) => self.common.msix_config = self.vector(value as u16),
            (reg::QUEUE_SELECT, 2) => self.common.queue_select = value as u16,
            _ => self.queue_write(offset, value, data.len()),
        }
    }

    fn accept_features(&mut self, value: u32) {
        if self.machine.status() & status::FEATURES_OK != 0 {
            warn!("the driver writes features after FEATURES_OK; ignored");
            return;
        }
        self.accepted = self.common.accept(self.accepted, value);
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
        let index = self.common.queue_select;
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
                self.was_queue_reset = true;
                self.port.revoke_queue(index, self.next_token);
                self.device.reset_queue(index);
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
        match queue.enable(self.memory.memory(), self.accepted) {
            Ok(()) => {
                let packed = self.accepted & features::RING_PACKED != 0;
                let fields = json!({
                    "queue": index,
                    "size": queue.size,
                    "ring": if packed { RingKind::Packed } else { RingKind::Split },
                });
                self.device.queue_enabled(index, queue.size);
                self.emit("queue_enabled", fields);
            }
            Err(error) => self.device_error(index, &error),
        }
    }
}
