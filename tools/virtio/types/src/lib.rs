// SPDX-License-Identifier: GPL-2.0

//! What the types of virtio devices are called where people read it.

/// The type that a device ID is of, VIRTIO 1.4, "Device Types", if it has a name here.
pub fn type_name(id: u32) -> Option<&'static str> {
    let name = match id {
        1 => "network",
        2 => "block",
        3 => "console",
        4 => "entropy",
        5 => "balloon",
        8 => "scsi",
        9 => "9p",
        16 => "gpu",
        18 => "input",
        19 => "vsock",
        20 => "crypto",
        23 => "iommu",
        24 => "memory",
        25 => "sound",
        26 => "fs",
        27 => "pmem",
        _ => return None,
    };
    Some(name)
}

#[cfg(test)]
mod tests {
    use super::type_name;

    #[test]
    fn names() {
        assert_eq!(type_name(1), Some("network"));
        assert_eq!(type_name(27), Some("pmem"));
        assert_eq!(type_name(0), None);
        assert_eq!(type_name(u32::MAX), None);
    }
}
