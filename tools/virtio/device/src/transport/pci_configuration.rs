// SPDX-License-Identifier: GPL-2.0

//! PCI configuration space: header, MSI-X, the virtio capabilities (VIRTIO 1.4, "Virtio Structure
//! PCI Capabilities") and Advanced Features, for function level reset.

use std::mem::{offset_of, size_of};

use virtio::pci::{Cap, CapCfgType, CfgCap, NotifyCap};

use super::pci_common_config::{
    COMMON_LENGTH, COMMON_OFFSET, DEVICE_LENGTH, DEVICE_OFFSET, ISR_LENGTH, ISR_OFFSET, MSIX_BAR,
    NOTIFY_LENGTH, NOTIFY_MULTIPLIER, NOTIFY_OFFSET, VIRTIO_BAR,
};

/// Size of configuration space: conventional PCI.
pub const CONFIG_SIZE: usize = 256;

/// Red Hat, the vendor of virtio devices ("PCI Device Discovery").
pub const VENDOR_ID: u16 = 0x1af4;
/// Device IDs of non-transitional devices begin here.
pub const DEVICE_ID_BASE: u16 = 0x1040;

const COMMAND: usize = 0x04;
const STATUS: usize = 0x06;
const REVISION: usize = 0x08;
const CLASS: usize = 0x0a;
const BAR0: usize = 0x10;
const SUBSYSTEM_VENDOR: usize = 0x2c;
const SUBSYSTEM: usize = 0x2e;
const CAP_POINTER: usize = 0x34;
const INTERRUPT_LINE: usize = 0x3c;
const INTERRUPT_PIN: usize = 0x3d;
const FIRST_CAP: usize = 0x40;

const STATUS_CAP_LIST: u16 = 1 << 4;
const CAP_ID_PM: u8 = 0x01;
const CAP_ID_VENDOR: u8 = 0x09;
const CAP_ID_MSIX: u8 = 0x11;
const CAP_ID_AF: u8 = 0x13;
const MSIX_ENABLE: u8 = 1 << 7;
/// Offset of the PBA in the MSI-X BAR.
const PBA_OFFSET: u32 = 0x800;
const AF_CAP_TP_FLR: u8 = 0b11;
const AF_CTRL_FLR: u8 = 1;
/// As of the PCI Power Management Interface 1.2, no PME, neither D1 nor D2.
const PM_VERSION: u16 = 3;
/// Offset of PMCSR in the capability.
const PM_CONTROL: usize = 4;
const PM_STATE_MASK: u8 = 0b11;
const PM_NO_SOFT_RESET: u8 = 1 << 3;

/// What a write to configuration space asks of the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Nothing.
    None,
    /// Function level reset.
    Reset,
    /// pci_cfg_data was written: write the window.
    WindowWrite,
}

/// The window of the PCI configuration access capability (VIRTIO_PCI_CAP_PCI_CFG).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// The BAR.
    pub bar: u8,
    /// Offset in it.
    pub offset: u64,
    /// 1, 2 or 4 bytes.
    pub length: usize,
}

/// Configuration space.
#[derive(Debug)]
pub struct PciConfiguration {
    bytes: [u8; CONFIG_SIZE],
    /// Bits the driver may write.
    writable: [u8; CONFIG_SIZE],
    next_cap: usize,
    last_cap: usize,
    msix: usize,
    window: usize,
    af: usize,
    /// The power management capability, if there is one.
    pm: Option<usize>,
    /// It has been in D3hot, and not been used since.
    woken: bool,
}

impl PciConfiguration {
    /// For a device of virtio type `id` and PCI class `class`, with `vectors` MSI-X vectors.
    pub fn new(id: u8, class: u16, vectors: u16) -> Self {
        let mut space = Self {
            bytes: [0; CONFIG_SIZE],
            writable: [0; CONFIG_SIZE],
            next_cap: FIRST_CAP,
            last_cap: 0,
            msix: 0,
            window: 0,
            af: 0,
            pm: None,
            woken: false,
        };
        let device_id = DEVICE_ID_BASE + u16::from(id);
        space.set(0, &VENDOR_ID.to_le_bytes());
        space.set(2, &device_id.to_le_bytes());
        space.set(STATUS, &STATUS_CAP_LIST.to_le_bytes());
        // Non-transitional devices have revision 1 or higher.
        space.set(REVISION, &[1]);
        space.set(CLASS, &class.to_le_bytes());
        space.set(SUBSYSTEM_VENDOR, &VENDOR_ID.to_le_bytes());
        space.set(SUBSYSTEM, &device_id.to_le_bytes());
        space.set(INTERRUPT_PIN, &[1]);
        // Memory space, bus master, INTx disable.
        space.allow(COMMAND, &[0b110, 0b100]);
        space.allow(INTERRUPT_LINE, &[0xff]);
        // 32-bit memory BARs, all of them: their type bits are zero. QEMU sizes them by the
        // regions and keeps the addresses to itself.
        for bar in [VIRTIO_BAR, MSIX_BAR, super::pci_common_config::MAILBOX_BAR] {
            space.allow(BAR0 + 4 * usize::from(bar), &[0xf0, 0xff, 0xff, 0xff]);
        }

        space.add_msix(vectors);
        space.add_virtio_caps();
        space.add_af();
        space
    }

    fn set(&mut self, offset: usize, bytes: &[u8]) {
        self.bytes[offset..offset + bytes.len()].copy_from_slice(bytes);
    }

    fn allow(&mut self, offset: usize, mask: &[u8]) {
        self.writable[offset..offset + mask.len()].copy_from_slice(mask);
    }

    /// Appends a capability (`body[0]` is its ID) and links it in; returns its offset.
    fn add_cap(&mut self, body: &[u8]) -> usize {
        let offset = self.next_cap;
        self.set(offset, body);
        let link = if self.last_cap == 0 {
            CAP_POINTER
        } else {
            self.last_cap + 1
        };
        self.bytes[link] = offset as u8;
        self.last_cap = offset;
        self.next_cap = (offset + body.len()).next_multiple_of(4);
        offset
    }

    fn add_msix(&mut self, vectors: u16) {
        let mut body = [0; 12];
        body[0] = CAP_ID_MSIX;
        body[2..4].copy_from_slice(&(vectors - 1).to_le_bytes());
        body[4..8].copy_from_slice(&u32::from(MSIX_BAR).to_le_bytes());
        body[8..12].copy_from_slice(&(PBA_OFFSET | u32::from(MSIX_BAR)).to_le_bytes());
        self.msix = self.add_cap(&body);
        // Function mask and enable.
        self.allow(self.msix + 3, &[0xc0]);
    }

    fn add_virtio_caps(&mut self) {
        let plain = size_of::<Cap>();
        for (cfg_type, offset, length) in [
            (CapCfgType::Common, COMMON_OFFSET, COMMON_LENGTH),
            (CapCfgType::Isr, ISR_OFFSET, ISR_LENGTH),
            (CapCfgType::Device, DEVICE_OFFSET, DEVICE_LENGTH),
        ] {
            let body = virtio_cap(cfg_type, VIRTIO_BAR, offset, length, plain);
            self.add_cap(&body);
        }

        let mut body = virtio_cap(
            CapCfgType::Notify,
            VIRTIO_BAR,
            NOTIFY_OFFSET,
            NOTIFY_LENGTH,
            size_of::<NotifyCap>(),
        );
        let multiplier = offset_of!(NotifyCap, notify_off_multiplier);
        body[multiplier..multiplier + 4].copy_from_slice(&NOTIFY_MULTIPLIER.to_le_bytes());
        self.add_cap(&body);

        let body = virtio_cap(CapCfgType::Pci, 0, 0, 0, size_of::<CfgCap>());
        self.window = self.add_cap(&body);
        self.allow(self.window + offset_of!(Cap, bar), &[0xff]);
        self.allow(self.window + offset_of!(Cap, offset), &[0xff; 4]);
        self.allow(self.window + offset_of!(Cap, length), &[0xff; 4]);
        self.allow(self.window_data(), &[0xff; 4]);
    }

    fn add_af(&mut self) {
        self.af = self.add_cap(&[CAP_ID_AF, 0, 6, AF_CAP_TP_FLR, 0, 0]);
    }

    /// Adds power management. The function keeps its state in D3hot.
    pub fn add_no_soft_reset(&mut self) {
        let [low, high] = PM_VERSION.to_le_bytes();
        let body = [CAP_ID_PM, 0, low, high, PM_NO_SOFT_RESET, 0, 0, 0];
        let pm = self.add_cap(&body);
        self.allow(pm + PM_CONTROL, &[PM_STATE_MASK]);
        self.pm = Some(pm);
    }

    fn is_in_d3hot(&self) -> bool {
        self.pm
            .is_some_and(|pm| self.bytes[pm + PM_CONTROL] & PM_STATE_MASK == PM_STATE_MASK)
    }

    /// Whether it has been put into D3hot, and keeps its state there.
    ///
    /// QEMU switches a function of vfio on right before it resets it. So this holds until something
    /// else than its configuration space is accessed.
    pub fn keeps_state(&self) -> bool {
        self.is_in_d3hot() || self.woken
    }

    /// A BAR is accessed: the function is in use.
    pub fn used(&mut self) {
        self.woken = false;
    }

    fn window_data(&self) -> usize {
        self.window + offset_of!(CfgCap, pci_cfg_data)
    }

    /// Where FLR is initiated.
    #[cfg(test)]
    pub fn af_control(&self) -> u64 {
        self.af as u64 + 4
    }

    /// Where the power state is.
    #[cfg(test)]
    pub fn pm_control(&self) -> u64 {
        (self.pm.expect("no power management") + PM_CONTROL) as u64
    }

    /// Where the PCI configuration access capability is.
    #[cfg(test)]
    pub fn window_offset(&self) -> u64 {
        self.window as u64
    }

    /// Whether MSI-X is enabled.
    pub fn msix_enabled(&self) -> bool {
        self.bytes[self.msix + 3] & MSIX_ENABLE != 0
    }

    /// Whether the driver lets the device access memory.
    pub fn bus_master(&self) -> bool {
        self.bytes[COMMAND] & 0b100 != 0
    }

    /// Whether the driver disabled INTx.
    pub fn intx_disabled(&self) -> bool {
        self.bytes[COMMAND + 1] & 0b100 != 0
    }

    /// Whether an access touches pci_cfg_data.
    pub fn touches_window(&self, offset: u64, len: usize) -> bool {
        let data = self.window_data() as u64;
        offset < data + 4 && offset.saturating_add(len as u64) > data
    }

    /// The window the driver has set up, if it is a possible one.
    pub fn window(&self) -> Option<Window> {
        let word = |at: usize| {
            let at = self.window + at;
            u32::from_le_bytes([
                self.bytes[at],
                self.bytes[at + 1],
                self.bytes[at + 2],
                self.bytes[at + 3],
            ])
        };
        let length = word(offset_of!(Cap, length));
        let offset = word(offset_of!(Cap, offset));
        (matches!(length, 1 | 2 | 4) && offset.is_multiple_of(length)).then(|| Window {
            bar: self.bytes[self.window + offset_of!(Cap, bar)],
            offset: u64::from(offset),
            length: length as usize,
        })
    }

    /// The bytes in pci_cfg_data.
    pub fn window_bytes(&self) -> [u8; 4] {
        let data = self.window_data();
        [0, 1, 2, 3].map(|i| self.bytes[data + i])
    }

    /// Puts what was read from the window into pci_cfg_data.
    pub fn set_window_bytes(&mut self, bytes: &[u8]) {
        let data = self.window_data();
        for (i, byte) in bytes.iter().take(4).enumerate() {
            self.bytes[data + i] = *byte;
        }
    }

    /// Reads; beyond the end there is nothing.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        for (i, byte) in data.iter_mut().enumerate() {
            *byte = usize::try_from(offset)
                .ok()
                .and_then(|offset| self.bytes.get(offset.checked_add(i)?))
                .copied()
                .unwrap_or(0);
        }
    }

    /// Writes what may be written.
    pub fn write(&mut self, offset: u64, data: &[u8]) -> Effect {
        let Ok(offset) = usize::try_from(offset) else {
            return Effect::None;
        };
        let mut effect = Effect::None;
        let slept = self.is_in_d3hot();
        for (at, byte) in (offset..CONFIG_SIZE).zip(data) {
            let mask = self.writable[at];
            self.bytes[at] = self.bytes[at] & !mask | byte & mask;
            if at == self.af + 4 && byte & AF_CTRL_FLR != 0 {
                effect = Effect::Reset;
            }
        }
        self.woken |= slept && !self.is_in_d3hot();
        if effect == Effect::None && self.touches_window(offset as u64, data.len()) {
            effect = Effect::WindowWrite;
        }
        effect
    }

    /// Function reset: what the driver wrote is gone.
    pub fn reset(&mut self) {
        self.woken = false;
        for (byte, mask) in self.bytes.iter_mut().zip(&self.writable) {
            *byte &= !mask;
        }
    }
}

/// The bytes of a `struct virtio_pci_cap` (or one that begins with it) of `len` bytes.
fn virtio_cap(cfg_type: CapCfgType, bar: u8, offset: u64, length: u64, len: usize) -> Vec<u8> {
    let mut body = vec![0; len];
    body[offset_of!(Cap, cap_vndr)] = CAP_ID_VENDOR;
    body[offset_of!(Cap, cap_len)] = len as u8;
    body[offset_of!(Cap, cfg_type)] = cfg_type.into();
    body[offset_of!(Cap, bar)] = bar;
    let at = offset_of!(Cap, offset);
    body[at..at + 4].copy_from_slice(&(offset as u32).to_le_bytes());
    let at = offset_of!(Cap, length);
    body[at..at + 4].copy_from_slice(&(length as u32).to_le_bytes());
    body
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn space() -> PciConfiguration {
        PciConfiguration::new(4, 0x00ff, 2)
    }

    fn caps(space: &PciConfiguration) -> Vec<(u8, usize)> {
        let mut caps = Vec::new();
        let mut at = usize::from(space.bytes[CAP_POINTER]);
        while at != 0 {
            assert!(caps.len() < 16, "the list loops");
            assert_eq!(at % 4, 0);
            caps.push((space.bytes[at], at));
            at = usize::from(space.bytes[at + 1]);
        }
        caps
    }

    #[test]
    fn a_modern_entropy_device() {
        let space = space();
        assert_eq!(space.bytes[0..4], [0xf4, 0x1a, 0x44, 0x10]);
        assert!(space.bytes[REVISION] >= 1);
    }

    #[test]
    fn every_capability_is_in_the_list() {
        let space = space();
        let caps = caps(&space);
        let ids: Vec<u8> = caps.iter().map(|(id, _)| *id).collect();
        assert_eq!(ids, [0x11, 9, 9, 9, 9, 9, 0x13]);
        let mut types: Vec<u8> = caps
            .iter()
            .filter(|(id, _)| *id == 9)
            .map(|(_, at)| space.bytes[at + 3])
            .collect();
        types.sort_unstable();
        assert_eq!(types, [1, 2, 3, 4, 5]);
        let last = caps.last().unwrap().1;
        assert!(last + 6 <= CONFIG_SIZE);
    }

    #[test]
    fn identity_is_read_only() {
        let mut space = space();
        let before = space.bytes;
        space.write(0, &[0xff; 4]);
        space.write(u64::from(before[CAP_POINTER]), &[0xff; 2]);
        assert_eq!(space.bytes, before);
        space.write(COMMAND as u64, &[0xff, 0xff]);
        assert_eq!(space.bytes[COMMAND..COMMAND + 2], [0b110, 0b100]);
        space.reset();
        assert_eq!(space.bytes, before);
    }

    #[test]
    fn msix_enable() {
        let mut space = space();
        assert!(!space.msix_enabled());
        let control = space.msix as u64 + 2;
        space.write(control, &[0xff, 0xff]);
        assert!(space.msix_enabled());
        let mut size = [0; 2];
        space.read(control, &mut size);
        assert_eq!(u16::from_le_bytes(size) & 0x7ff, 1);
    }

    #[test]
    fn window_and_flr() {
        let mut space = space();
        let at = space.window as u64;
        assert_eq!(space.window(), None);
        space.write(at + 8, &[0x14, 0, 0, 0, 1, 0, 0, 0]);
        assert_eq!(
            space.window(),
            Some(Window {
                bar: 0,
                offset: 0x14,
                length: 1
            })
        );
        assert!(space.touches_window(at + 16, 1));
        assert_eq!(space.write(at + 16, &[0x0f]), Effect::WindowWrite);
        assert_eq!(space.write(space.af as u64 + 4, &[1]), Effect::Reset);
    }

    #[test]
    fn power_management() {
        let mut space = space();
        let before = caps(&space).len();
        assert!(!space.keeps_state());
        space.add_no_soft_reset();
        let (id, at) = caps(&space)[before];
        assert_eq!(id, CAP_ID_PM);
        let at = at as u64 + 4;
        assert!(!space.keeps_state());
        // What is not the power state can't be written.
        space.write(at, &[0xf3, 0xff]);
        let mut control = [0; 2];
        space.read(at, &mut control);
        assert_eq!(control, [PM_NO_SOFT_RESET | 3, 0]);
        assert!(space.keeps_state());
        space.reset();
        assert!(!space.keeps_state());
        space.read(at, &mut control);
        assert_eq!(control, [PM_NO_SOFT_RESET, 0]);
    }

    proptest! {
        #[test]
        fn any_access_is_survived(
            offset in prop_oneof![0u64..300, any::<u64>()],
            data in proptest::collection::vec(any::<u8>(), 0..16),
        ) {
            let mut space = space();
            let id = space.bytes[0..4].to_vec();
            space.write(offset, &data);
            let mut back = data.clone();
            space.read(offset, &mut back);
            space.touches_window(offset, data.len());
            space.window();
            prop_assert_eq!(&space.bytes[0..4], &id[..]);
        }
    }
}
