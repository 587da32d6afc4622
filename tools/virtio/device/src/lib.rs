// SPDX-License-Identifier: GPL-2.0

//! A VIRTIO 1.4 PCI device, served over vfio-user, that judges its driver.
//!
//! Stock QEMU (10.1 or later) attaches to it with `-device vfio-user-pci`; stock Linux drives it
//! with `virtio_pci` and the driver of the device type. It is the second opinion of this project
//! on VIRTIO's SUSPEND: its constants come from the crate [`virtio`] (`virtio-spec`), not from
//! the kernel's headers, it keeps the device's rules V1 to V5 and records every access of the
//! driver that breaks one of the driver's rules D1 to D14 (`Documentation/virtio/conformance.rst` lists both).
//!
//! One module, one concern:
//!
//! | module | |
//! |---|---|
//! | [`cli`], [`server`], [`socket`] | options; vfio-user protocol, worker thread; the socket |
//! | [`transport`] | PCI: configuration space, the structures in BAR 0, MSI-X and INTx |
//! | [`memory`] | the guest's memory; DMA |
//! | [`features`], [`status`] | feature bits; device status and the suspend state machine |
//! | [`ring`], [`queue`] | split and packed rings behind one trait; one virtqueue |
//! | [`virtio_device`], [`port`] | what a device type implements; how its threads reach the device |
//! | [`request`] | what goes to it, and comes back |
//! | [`registry`] | which there are |
//! | [`rng`], [`blk`], [`net`], [`input`] | the entropy, the block, the network and the input device |
//! | [`judge`], [`counters`], [`events`] | violations; counts; the event stream |
//! | [`admin`] | the administration virtqueue |
//! | [`fault`], [`fuzz`], [`timers`], [`random`] | misbehaving on request, and at random |
//! | [`armed`] | whether a fault that was set took effect |
//! | [`settings`], [`mailbox`] | what can be changed at run time; how the guest does it |
//! | [`device`] | all of the above put together |
//!
//! The guest's memory and everything the driver writes are treated as hostile: bounded, checked,
//! and answered by DEVICE_NEEDS_RESET, never by a panic.

#![warn(missing_docs)]
#![forbid(unsafe_code)]

pub mod admin;
pub mod armed;
pub mod blk;
pub mod cli;
pub mod counters;
pub mod device;
pub mod events;
pub mod fault;
pub mod features;
pub mod fuzz;
pub mod input;
pub mod judge;
pub mod like;
pub mod mailbox;
pub mod memory;
pub mod net;
pub mod port;
pub mod queue;
pub mod random;
pub mod registry;
pub mod request;
pub mod ring;
pub mod rng;
pub mod server;
pub mod settings;
pub mod socket;
pub mod status;
pub mod timers;
pub mod transport;
pub mod virtio_device;
