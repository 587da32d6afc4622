// SPDX-License-Identifier: GPL-2.0

//! The transport, virtio over PCI: what is the same for a device that does not suspend.
//!
//! The modules have the names that they have in cloud-hypervisor and crosvm.

pub mod interrupt;
pub mod pci_common_config;
pub mod pci_configuration;
