// SPDX-License-Identifier: GPL-2.0

//! Drivers that can't be stopped, and why: what they do when a virtqueue takes no buffer is known
//! from the sources of Linux 7.3.4. Documentation/admin-guide/virtio-suspend.rst has the same, and
//! Documentation/virtio/suspend.rst what a driver would have to do.

use virtio::suspend::extension::Refused;

pub(crate) static REFUSED: &[Refused] = &[
    Refused::new(
        c"virtio_console",
        "virtio_console spins until its device answers, and loses control messages",
    ),
    Refused::new(
        c"virtiofs",
        "virtiofs ends requests with an error, and nothing outside of it holds them back",
    ),
    Refused::new(
        c"9pnet_virtio",
        "9pnet_virtio ends requests with an error, and nothing outside of it holds them back",
    ),
    Refused::new(
        c"virtio_balloon",
        "virtio_balloon loses count of pages that it can't tell the device of",
    ),
    Refused::new(
        c"virtio_mem",
        "virtio_mem takes a device that does not answer for broken",
    ),
    Refused::new(
        c"virtio_iommu",
        "virtio_iommu has to change mappings at any time: other devices need it",
    ),
    Refused::new(
        c"virtio_gpu",
        "virtio_gpu drops what it can't tell the device",
    ),
    Refused::new(
        c"virtio_crypto",
        "virtio_crypto ends requests with an error, and nothing outside of it holds them back",
    ),
    Refused::new(
        c"virtio_pmem",
        "virtio_pmem ends a flush with an error, and file systems with it",
    ),
    Refused::new(
        c"virtio_snd",
        "virtio_snd ends streams with an error, and loses buffers for events",
    ),
    Refused::new(
        c"i2c_virtio",
        "i2c_virtio ends transfers half-way, with an error",
    ),
    Refused::new(
        c"gpio_virtio",
        "gpio_virtio loses interrupts that it can't enable again",
    ),
    Refused::new(
        c"spi_virtio",
        "spi_virtio ends transfers with an error, and nothing outside of it holds them back",
    ),
    Refused::new(
        c"virtio_bt",
        "virtio_bt loses packets, and buffers to receive into",
    ),
    Refused::new(
        c"virtio_rpmsg_bus",
        "virtio_rpmsg_bus loses buffers, in both directions",
    ),
    Refused::new(
        c"virtio_can",
        "virtio_can loses frames, and buffers to receive into",
    ),
    Refused::new(
        c"virtio_rtc",
        "virtio_rtc tells readers of a clock an error, and loses buffers for alarms",
    ),
    Refused::new(
        c"scmi-virtio",
        "scmi-virtio controls clocks and power of other devices, and loses messages",
    ),
    Refused::new(
        c"mac80211_hwsim",
        "mac80211_hwsim loses frames, and buffers to receive into",
    ),
    Refused::new(
        c"nsm",
        "nsm ends requests with an error, and nothing outside of it holds them back",
    ),
    Refused::new(
        c"vmw_vsock_virtio_transport",
        "vmw_vsock_virtio_transport has work that nobody else can wait for, or set going again",
    ),
];
