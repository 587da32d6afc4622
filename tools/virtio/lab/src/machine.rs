// SPDX-License-Identifier: GPL-2.0

//! The machines whose devices are QEMU's own, with SUSPEND.
//!
//! Each has the same devices, by another transport or with another kind of virtqueue. The test
//! devices are not there: the judge is QEMU's.

use clap::ValueEnum;
use std::path::Path;

/// A transport and a kind of virtqueues.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Machine {
    PciSplit,
    PciPacked,
    MmioSplit,
    MmioPacked,
}

impl Machine {
    pub const ALL: [Self; 4] = [
        Self::PciSplit,
        Self::PciPacked,
        Self::MmioSplit,
        Self::MmioPacked,
    ];

    /// What the names of its tests begin with.
    pub fn suite(self) -> &'static str {
        match self {
            Self::PciSplit => "qemu/pci-split",
            Self::PciPacked => "qemu/pci-packed",
            Self::MmioSplit => "qemu/mmio-split",
            Self::MmioPacked => "qemu/mmio-packed",
        }
    }

    pub fn is_pci(self) -> bool {
        matches!(self, Self::PciSplit | Self::PciPacked)
    }

    fn is_packed(self) -> bool {
        matches!(self, Self::PciPacked | Self::MmioPacked)
    }

    /// The arguments that give QEMU its devices, of which the disks are in a directory.
    ///
    /// A source of entropy; three disks, of which the second has a thread of its own where that can
    /// be, and the third offers no SUSPEND; a SCSI host with a disk; a network device to the host, and
    /// two on a cable. On PCI the first two disks are behind ports of their own, because only there
    /// has a function a power management capability. The first keeps its state while it is in D3hot
    /// (No_Soft_Reset).
    pub fn devices(self, disks: &Path) -> Vec<String> {
        let disks = disks.display();
        let on_pci = self.is_pci();
        let any_device = |name: &str, rest: &str| {
            let transport = if on_pci { "pci" } else { "device" };
            let packed = if self.is_packed() { "on" } else { "off" };
            let common = format!("packed={packed},x-suspend-judge=on");
            [
                "-device".into(),
                format!("virtio-{name}-{transport},{common},{rest}"),
            ]
        };
        let device = |name: &str, rest: &str| any_device(name, &format!("suspend=1.4,{rest}"));
        // Else the judge does not see what is notified in vain: it goes to an eventfd.
        let seen = if on_pci { ",ioeventfd=off" } else { "" };
        let thread = if on_pci { ",iothread=thread" } else { "" };
        let [keeps, resets] = match on_pci {
            true => [",bus=port0,x-pcie-pm-no-soft-reset=on", ",bus=port1"],
            false => [""; 2],
        };
        let mut args: Vec<String> = Vec::new();
        let mut add = |words: [String; 2]| args.extend(words);
        add(["-global", "virtio-mmio.force-legacy=false"].map(str::to_string));
        add(["-global", "virtio-mmio.ioeventfd=off"].map(str::to_string));
        if !on_pci {
            // SeaBIOS drives virtio-scsi there, and clears bits of its status, which the judge sees.
            add(["-bios", "qboot.rom"].map(str::to_string));
        }
        add(["-object", "iothread,id=thread"].map(str::to_string));
        for Disk { name, format, .. } in DISKS {
            let file = format!("file.driver=file,file.filename={disks}/{name}");
            add([
                "-blockdev".into(),
                format!("driver={format},node-name={name},{file}"),
            ]);
        }
        if on_pci {
            for number in [0, 1] {
                add([
                    "-device".into(),
                    format!("pcie-root-port,id=port{number},chassis={number}"),
                ]);
            }
        }
        add(device("rng", "id=rng0"));
        add(device(
            "blk",
            &format!("id=disk0,drive=disk0,serial=disk0,num-queues=2{seen}{keeps}"),
        ));
        add(device(
            "blk",
            &format!("id=disk1,drive=disk1,serial=disk1,num-queues=2{thread}{resets}"),
        ));
        add(any_device(
            "blk",
            "suspend=off,id=disk2,drive=disk2,serial=disk2",
        ));
        add(device("scsi", &format!("id=scsi0,num_queues=2{seen}")));
        add([
            "-device".into(),
            "scsi-hd,bus=scsi0.0,id=disk3,drive=disk3,serial=disk3".into(),
        ]);
        add(["-netdev", "user,id=user0"].map(str::to_string));
        add(device(
            "net",
            &format!("id=net0,netdev=user0,mac=52:54:00:00:00:00{seen}"),
        ));
        for number in [1, 2] {
            add([
                "-netdev".into(),
                format!("hubport,id=cable{number},hubid=1"),
            ]);
            let mac = format!("mac=52:54:00:00:00:0{number}");
            add(device(
                "net",
                &format!("id=net{number},netdev=cable{number},{mac}{seen}"),
            ));
        }
        add(["-trace", "virtio_suspend_end"].map(str::to_string));
        add(["-trace", "virtio_suspend_violation"].map(str::to_string));
        args
    }
}

/// An image of a disk.
pub struct Disk {
    pub name: &'static str,
    pub format: &'static str,
    /// In bytes.
    pub size: u64,
}

/// The second one can hold snapshots.
pub const DISKS: [Disk; 4] = [
    Disk {
        name: "disk0",
        format: "raw",
        size: 64 << 20,
    },
    Disk {
        name: "disk1",
        format: "qcow2",
        size: 32 << 20,
    },
    Disk {
        name: "disk2",
        format: "raw",
        size: 4 << 20,
    },
    Disk {
        name: "disk3",
        format: "raw",
        size: 32 << 20,
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_of_each_machine() {
        for machine in Machine::ALL {
            let args = machine.devices(Path::new("/d")).join(" ");
            let transport = if machine.suite().contains("pci") {
                "-pci,"
            } else {
                "-device,"
            };
            assert_eq!(args.matches("x-suspend-judge=on").count(), 8, "{args}");
            assert_eq!(args.matches("suspend=1.4").count(), 7, "{args}");
            assert_eq!(args.matches(transport).count(), 8, "{args}");
            let packed = machine.suite().ends_with("packed");
            assert_eq!(
                args.matches("packed=on").count(),
                if packed { 8 } else { 0 },
                "{args}"
            );
            let ports = if machine.is_pci() { 2 } else { 0 };
            assert_eq!(args.matches("pcie-root-port").count(), ports, "{args}");
            assert_eq!(args.matches("bus=port").count(), ports, "{args}");
        }
    }
}
