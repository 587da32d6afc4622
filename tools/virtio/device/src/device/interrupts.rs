// SPDX-License-Identifier: GPL-2.0

//! Notifications to the driver.

use serde_json::json;

use super::{Device, ISR_CONFIG, ISR_QUEUE};
use crate::fault::Name;
use crate::fuzz::Notification;
use crate::status::State;
use crate::timers::Timer;

impl Device {
    /// A configuration change notification, now or after the resume (V4). Returns whether it was
    /// sent.
    pub(super) fn config_changed(&mut self) -> bool {
        if self.machine.is_frozen() {
            self.config_held = true;
            self.config_pending = true;
            return false;
        }
        self.send_config_change()
    }

    /// A configuration change notification, whether the device is suspended or not.
    pub(super) fn send_config_change(&mut self) -> bool {
        self.common.config_generation = self.common.config_generation.wrapping_add(1);
        if self.machine.state() == State::Reset || self.overlay.is_gone() {
            return false;
        }
        if self.fault(Name::ConfigIrqLost).is_some() {
            self.note(Name::ConfigIrqLost);
            return false;
        }
        self.config_pending = true;
        self.counters.config_notifications += 1;
        self.emit("config_change", json!({}));
        self.interrupt(self.common.msix_config, ISR_CONFIG);
        true
    }

    pub(super) fn release_config_change(&mut self) {
        if std::mem::take(&mut self.config_held) {
            self.config_changed();
        }
    }

    /// The driver has read configuration; while the device is suspended that is too early (D12).
    pub(super) fn config_looked_at(&mut self) {
        if !self.machine.is_frozen() {
            self.config_pending = false;
        }
    }

    /// Sends a used-buffer notification if there is something to notify and the driver wants it.
    pub(super) fn notify_used(&mut self, index: usize) {
        if self.machine.state() == State::Suspended && self.works() {
            return;
        }
        let queue = &mut self.queues[index];
        if !std::mem::take(&mut queue.dirty) {
            return;
        }
        let Some(ring) = &mut queue.ring else {
            return;
        };
        match ring.needs_notification(self.memory.memory()) {
            Ok(true) => self.fate_of_notification(index),
            Ok(false) => {}
            Err(error) => self.device_error(index as u16, &error),
        }
    }

    /// Sends it, unless a fault has another idea.
    fn fate_of_notification(&mut self, index: usize) {
        // The administration queue is the transport's, which is not what is tested.
        if self.is_admin(index) {
            return self.send_used(index);
        }
        let fuzz = self.fuzz.as_mut().map(|fuzz| fuzz.notification());
        let fate = if self.fault(Name::UsedIrqLost).is_some() {
            Notification::Lost
        } else if let Some(ms) = self.fault(Name::UsedIrqLate) {
            Notification::Late(ms)
        } else {
            fuzz.unwrap_or(Notification::Sent)
        };
        match fate {
            Notification::Sent => self.send_used(index),
            Notification::Lost => self.note(Name::UsedIrqLost),
            Notification::Late(ms) => {
                self.note(Name::UsedIrqLate);
                self.start(ms, Timer::LateNotification(index));
            }
            Notification::Twice => {
                self.note(Name::UsedIrqSpurious);
                self.send_used(index);
                self.send_used(index);
            }
        }
    }

    /// Sends a used-buffer notification.
    pub(super) fn send_used(&mut self, index: usize) {
        if self.overlay.is_gone() {
            return;
        }
        if let Some(queue) = self.queues.get(index).filter(|queue| queue.ring.is_some()) {
            let vector = queue.vector;
            self.counters.used_notifications[index] += 1;
            self.interrupt(vector, ISR_QUEUE);
        }
    }

    /// Sends a used-buffer notification of every queue, for nothing.
    pub(super) fn send_used_for_nothing(&mut self) {
        for index in 0..usize::from(self.device.queues()) {
            self.send_used(index);
        }
    }

    /// A used-buffer notification without a reason, if that is the fault.
    pub(super) fn spurious(&mut self) {
        if self.fault(Name::UsedIrqSpurious).is_some() && self.machine.is_live() {
            self.note(Name::UsedIrqSpurious);
            self.send_used_for_nothing();
        }
    }

    /// Sends the notifications that are late, before the suspended condition is presented (V2).
    pub(super) fn flush_notifications(&mut self) {
        for index in self.timers.take_late_notifications() {
            self.send_used(index);
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

    pub(super) fn update_intx(&mut self) {
        let level = self.isr != 0 && !self.pci.msix_enabled() && !self.pci.intx_disabled();
        self.irqs.set_intx_level(level);
    }
}
