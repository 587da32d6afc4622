// SPDX-License-Identifier: GPL-2.0

//! Interrupts: MSI-X vectors and the INTx line, each an eventfd of the client's
//! (vfio-user DEVICE_SET_IRQS).
//!
//! QEMU emulates the MSI-X table and the pending bits itself and sends one eventfd for each
//! vector in use.

use std::fs::File;
use std::io::Write;

use log::{debug, warn};
use vfio_bindings::bindings::vfio::{
    VFIO_IRQ_SET_ACTION_MASK, VFIO_IRQ_SET_ACTION_TRIGGER, VFIO_IRQ_SET_ACTION_UNMASK,
    VFIO_IRQ_SET_DATA_EVENTFD, VFIO_PCI_INTX_IRQ_INDEX, VFIO_PCI_MSIX_IRQ_INDEX,
};

#[derive(Debug, Default)]
struct Vector {
    eventfd: Option<File>,
    /// It was triggered while there was no eventfd.
    pending: bool,
}

/// The device's interrupts.
#[derive(Debug)]
pub struct Interrupt {
    vectors: Vec<Vector>,
    intx: Option<File>,
    /// VFIO masks a level-triggered line when it fires, until the client unmasks it.
    intx_masked: bool,
    /// The level of the line.
    intx_level: bool,
}

/// Adds one to an eventfd.
fn signal(mut eventfd: &File) {
    if let Err(error) = eventfd.write_all(&1u64.to_ne_bytes()) {
        warn!("an interrupt is lost: writing to its eventfd failed: {error}");
    }
}

impl Interrupt {
    /// With `vectors` MSI-X vectors.
    pub fn new(vectors: u16) -> Self {
        Self {
            vectors: (0..vectors).map(|_| Vector::default()).collect(),
            intx: None,
            intx_masked: false,
            intx_level: false,
        }
    }

    /// How many MSI-X vectors there are.
    pub fn vectors(&self) -> u16 {
        self.vectors.len() as u16
    }

    /// Whether `vector` exists.
    pub fn has_vector(&self, vector: u16) -> bool {
        vector < self.vectors()
    }

    /// DEVICE_SET_IRQS.
    pub fn set(&mut self, index: u32, flags: u32, start: u32, count: u32, fds: Vec<File>) {
        match index {
            VFIO_PCI_MSIX_IRQ_INDEX => self.set_msix(flags, start, count, fds),
            VFIO_PCI_INTX_IRQ_INDEX => self.set_intx(flags, fds),
            _ => debug!("set_irqs: index {index} is not used"),
        }
    }

    fn set_msix(&mut self, flags: u32, start: u32, count: u32, fds: Vec<File>) {
        if flags & VFIO_IRQ_SET_ACTION_TRIGGER == 0 {
            return;
        }
        if count == 0 {
            // Disables the whole index.
            for vector in &mut self.vectors {
                *vector = Vector::default();
            }
            return;
        }
        let first = start as usize;
        let last = first.saturating_add(count as usize).min(self.vectors.len());
        if flags & VFIO_IRQ_SET_DATA_EVENTFD != 0 {
            // Fewer descriptors than vectors: the rest are taken away.
            let mut fds = fds.into_iter();
            for vector in self.vectors.get_mut(first..last).unwrap_or_default() {
                vector.eventfd = fds.next();
                if let (Some(eventfd), true) = (&vector.eventfd, vector.pending) {
                    signal(eventfd);
                    vector.pending = false;
                }
            }
        } else {
            for vector in first..last {
                self.trigger(vector as u16);
            }
        }
    }

    fn set_intx(&mut self, flags: u32, fds: Vec<File>) {
        if flags & VFIO_IRQ_SET_ACTION_TRIGGER != 0 {
            self.intx = fds.into_iter().next();
            self.intx_masked = false;
        } else if flags & VFIO_IRQ_SET_ACTION_MASK != 0 {
            self.intx_masked = true;
        } else if flags & VFIO_IRQ_SET_ACTION_UNMASK != 0 {
            self.intx_masked = false;
        }
        self.update_intx();
    }

    fn update_intx(&mut self) {
        if !self.intx_level || self.intx_masked {
            return;
        }
        if let Some(eventfd) = &self.intx {
            signal(eventfd);
            self.intx_masked = true;
        }
    }

    /// Triggers an MSI-X vector; without an eventfd it stays pending until there is one.
    pub fn trigger(&mut self, vector: u16) {
        let Some(vector) = self.vectors.get_mut(usize::from(vector)) else {
            return;
        };
        match &vector.eventfd {
            Some(eventfd) => signal(eventfd),
            None => vector.pending = true,
        }
    }

    /// Sets the level of the INTx line.
    pub fn set_intx_level(&mut self, level: bool) {
        self.intx_level = level;
        self.update_intx();
    }

    /// The device was reset: nothing is pending.
    pub fn reset(&mut self) {
        for vector in &mut self.vectors {
            vector.pending = false;
        }
        self.intx_level = false;
    }

    /// The client is gone.
    pub fn disconnect(&mut self) {
        *self = Self::new(self.vectors());
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    const TRIGGER_FD: u32 = VFIO_IRQ_SET_ACTION_TRIGGER | VFIO_IRQ_SET_DATA_EVENTFD;

    /// A stream in an eventfd's place: what is written to one end can be counted at the other.
    fn pair() -> (UnixStream, File) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        (ours, File::from(OwnedFd::from(theirs)))
    }

    fn count(stream: &mut UnixStream) -> usize {
        let mut bytes = [0; 64];
        stream.read(&mut bytes).unwrap_or(0) / 8
    }

    #[test]
    fn vectors() {
        let mut irqs = Interrupt::new(2);
        let (mut first, file) = pair();
        irqs.set(VFIO_PCI_MSIX_IRQ_INDEX, TRIGGER_FD, 0, 1, vec![file]);
        irqs.trigger(0);
        irqs.trigger(9);
        assert_eq!(count(&mut first), 1);

        // Pending until it gets an eventfd.
        irqs.trigger(1);
        let (mut second, file) = pair();
        irqs.set(VFIO_PCI_MSIX_IRQ_INDEX, TRIGGER_FD, 1, 1, vec![file]);
        assert_eq!(count(&mut second), 1);

        // No descriptors: taken away. Ranges beyond the table: ignored.
        irqs.set(VFIO_PCI_MSIX_IRQ_INDEX, TRIGGER_FD, 0, 1, vec![]);
        irqs.set(VFIO_PCI_MSIX_IRQ_INDEX, TRIGGER_FD, 7, u32::MAX, vec![]);
        irqs.trigger(0);
        assert_eq!(count(&mut first), 0);

        // Count zero disables the index and forgets what was pending.
        irqs.set(
            VFIO_PCI_MSIX_IRQ_INDEX,
            VFIO_IRQ_SET_ACTION_TRIGGER,
            0,
            0,
            vec![],
        );
        let (mut first, file) = pair();
        irqs.set(VFIO_PCI_MSIX_IRQ_INDEX, TRIGGER_FD, 0, 1, vec![file]);
        assert_eq!(count(&mut first), 0);
    }

    #[test]
    fn the_line_fires_once_until_unmasked() {
        let mut irqs = Interrupt::new(1);
        let (mut line, file) = pair();
        irqs.set(VFIO_PCI_INTX_IRQ_INDEX, TRIGGER_FD, 0, 1, vec![file]);
        irqs.set_intx_level(true);
        irqs.set_intx_level(true);
        assert_eq!(count(&mut line), 1);
        // Still asserted when unmasked: fires again.
        irqs.set(
            VFIO_PCI_INTX_IRQ_INDEX,
            VFIO_IRQ_SET_ACTION_UNMASK,
            0,
            1,
            vec![],
        );
        assert_eq!(count(&mut line), 1);
        irqs.set_intx_level(false);
        irqs.set(
            VFIO_PCI_INTX_IRQ_INDEX,
            VFIO_IRQ_SET_ACTION_UNMASK,
            0,
            1,
            vec![],
        );
        assert_eq!(count(&mut line), 0);
    }
}
