// SPDX-License-Identifier: GPL-2.0

//! Commands of the control virtqueue (VIRTIO 1.4, "Control Virtqueue").

use serde::Serialize;
use thiserror::Error;
use virtio::net::{ctrl, Ctrl};

use super::filter::Mac;

/// VIRTIO_NET_OK
pub const OK: u8 = 0;
/// VIRTIO_NET_ERR
pub const ERR: u8 = 1;

/// Most bytes of a command that are looked at: a table with every address a driver could want.
pub const MAX_COMMAND: usize = 64 * 1024;

/// A command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// VIRTIO_NET_CTRL_RX_PROMISC
    Promiscuous(bool),
    /// VIRTIO_NET_CTRL_RX_ALLMULTI
    AllMulticast(bool),
    /// VIRTIO_NET_CTRL_MAC_TABLE_SET
    MacTable {
        /// Unicast addresses.
        unicast: Vec<Mac>,
        /// Multicast addresses.
        multicast: Vec<Mac>,
    },
    /// VIRTIO_NET_CTRL_MAC_ADDR_SET
    MacAddress(Mac),
    /// VIRTIO_NET_CTRL_VLAN_ADD
    VlanAdd(u16),
    /// VIRTIO_NET_CTRL_VLAN_DEL
    VlanDelete(u16),
    /// VIRTIO_NET_CTRL_ANNOUNCE_ACK
    AnnounceAck,
    /// VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET
    QueuePairs(u16),
    /// VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET
    GuestOffloads(u64),
}

/// A command that there is not, or whose data is not as it should be.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum ControlError {
    /// No such command.
    #[error("class {0}, command {1}: there is no such command")]
    Unknown(u8, u8),
    /// Too little data, or too much.
    #[error("class {0}, command {1}: its data is not as long as it should be")]
    Length(u8, u8),
    /// A value that is not possible.
    #[error("a value of {0:#x} is not possible")]
    Value(u64),
    /// The feature was not negotiated.
    #[error("the feature of this command was not negotiated")]
    NotNegotiated,
}

/// How many there were of each kind since the last reset.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Commands {
    /// Receive modes.
    pub rx: u64,
    /// Addresses and tables of addresses.
    pub mac: u64,
    /// VLAN filters.
    pub vlan: u64,
    /// Acknowledged announcements.
    pub announce: u64,
    /// Numbers of queue pairs.
    pub mq: u64,
    /// Receive offloads.
    pub offloads: u64,
    /// Those that were refused.
    pub refused: u64,
}

impl Commands {
    /// One more.
    pub fn count(&mut self, command: &Command) {
        let counter = match command {
            Command::Promiscuous(_) | Command::AllMulticast(_) => &mut self.rx,
            Command::MacTable { .. } | Command::MacAddress(_) => &mut self.mac,
            Command::VlanAdd(_) | Command::VlanDelete(_) => &mut self.vlan,
            Command::AnnounceAck => &mut self.announce,
            Command::QueuePairs(_) => &mut self.mq,
            Command::GuestOffloads(_) => &mut self.offloads,
        };
        *counter += 1;
    }
}

/// Takes the command of these bytes, all that the driver made readable but for the end of a very
/// long command.
pub fn parse(bytes: &[u8]) -> Result<Command, ControlError> {
    let &[class, command, ref data @ ..] = bytes else {
        return Err(ControlError::Length(0, 0));
    };
    let unknown = ControlError::Unknown(class, command);
    let length = ControlError::Length(class, command);
    let u8 = || <[u8; 1]>::try_from(data).map_err(|_| length).map(|[b]| b);
    let u16 = || data.try_into().map_err(|_| length).map(u16::from_le_bytes);
    let flag = || match u8()? {
        0 => Ok(false),
        1 => Ok(true),
        value => Err(ControlError::Value(value.into())),
    };
    match Ctrl::try_from(class) {
        Ok(Ctrl::Rx) => match ctrl::Rx::try_from(command) {
            Ok(ctrl::Rx::Promisc) => Ok(Command::Promiscuous(flag()?)),
            Ok(ctrl::Rx::Allmulti) => Ok(Command::AllMulticast(flag()?)),
            // CTRL_RX_EXTRA, which is not offered.
            _ => Err(unknown),
        },
        Ok(Ctrl::Mac) => match ctrl::Mac::try_from(command) {
            Ok(ctrl::Mac::TableSet) => {
                let (unicast, rest) = table(data).ok_or(length)?;
                let (multicast, rest) = table(rest).ok_or(length)?;
                if !rest.is_empty() {
                    return Err(length);
                }
                Ok(Command::MacTable { unicast, multicast })
            }
            Ok(ctrl::Mac::AddrSet) => {
                let mac: Mac = data.try_into().map_err(|_| length)?;
                Ok(Command::MacAddress(mac))
            }
            _ => Err(unknown),
        },
        Ok(Ctrl::Vlan) => match ctrl::Vlan::try_from(command) {
            Ok(ctrl::Vlan::Add) => Ok(Command::VlanAdd(u16()?)),
            Ok(ctrl::Vlan::Del) => Ok(Command::VlanDelete(u16()?)),
            _ => Err(unknown),
        },
        Ok(Ctrl::Announce) => match ctrl::Announce::try_from(command) {
            Ok(ctrl::Announce::Ack) if data.is_empty() => Ok(Command::AnnounceAck),
            Ok(ctrl::Announce::Ack) => Err(length),
            _ => Err(unknown),
        },
        Ok(Ctrl::Mq) => match ctrl::Mq::try_from(command) {
            Ok(ctrl::Mq::VqPairsSet) => Ok(Command::QueuePairs(u16()?)),
            // RSS and HASH_REPORT, which are not offered.
            _ => Err(unknown),
        },
        Ok(Ctrl::GuestOffloads) => match ctrl::GuestOffloads::try_from(command) {
            Ok(ctrl::GuestOffloads::Set) => {
                let bits = data.try_into().map_err(|_| length)?;
                Ok(Command::GuestOffloads(u64::from_le_bytes(bits)))
            }
            _ => Err(unknown),
        },
        _ => Err(unknown),
    }
}

/// Takes a table of addresses from the front: how many, then they themselves.
fn table(data: &[u8]) -> Option<(Vec<Mac>, &[u8])> {
    let (count, rest) = data.split_first_chunk()?;
    let count = usize::try_from(u32::from_le_bytes(*count)).ok()?;
    let length = count.checked_mul(size_of::<Mac>())?;
    let (macs, rest) = rest.split_at_checked(length)?;
    let macs = macs
        .chunks_exact(size_of::<Mac>())
        .filter_map(|mac| mac.try_into().ok())
        .collect();
    Some((macs, rest))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn commands() {
        let mac = [1, 2, 3, 4, 5, 6];
        let table = [&[1, 1, 0, 0, 0][..], &[], &mac[..], &[0, 0, 0, 0]].concat();
        let table = [&[1, 0], &table[1..]].concat();
        for (bytes, command) in [
            (&[0, 0, 1][..], Command::Promiscuous(true)),
            (&[0, 1, 0], Command::AllMulticast(false)),
            (
                &table,
                Command::MacTable {
                    unicast: vec![mac],
                    multicast: vec![],
                },
            ),
            (&[1, 1, 1, 2, 3, 4, 5, 6], Command::MacAddress(mac)),
            (&[2, 0, 0x2a, 0], Command::VlanAdd(42)),
            (&[2, 1, 0, 1], Command::VlanDelete(256)),
            (&[3, 0], Command::AnnounceAck),
            (&[4, 0, 2, 0], Command::QueuePairs(2)),
            (
                &[5, 0, 0x82, 0, 0, 0, 0, 0, 0, 1],
                Command::GuestOffloads(1 << 56 | 0x82),
            ),
        ] {
            assert_eq!(parse(bytes), Ok(command), "{bytes:?}");
        }
    }

    #[test]
    fn what_is_no_command() {
        use ControlError::*;
        for (bytes, error) in [
            (&[][..], Length(0, 0)),
            (&[0], Length(0, 0)),
            (&[0, 0], Length(0, 0)),
            (&[0, 0, 2], Value(2)),
            (&[0, 2, 1], Unknown(0, 2)),
            (&[0, 9, 1], Unknown(0, 9)),
            (&[1, 0, 0, 0, 0, 0], Length(1, 0)),
            (&[1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], Length(1, 0)),
            (&[1, 0, 255, 255, 255, 255, 0, 0, 0, 0], Length(1, 0)),
            (&[1, 1, 1, 2, 3], Length(1, 1)),
            (&[3, 0, 0], Length(3, 0)),
            (&[4, 1, 0, 0], Unknown(4, 1)),
            (&[4, 0, 1], Length(4, 0)),
            (&[5, 1, 0, 0], Unknown(5, 1)),
            (&[6, 0], Unknown(6, 0)),
        ] {
            assert_eq!(parse(bytes), Err(error), "{bytes:?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(
            class in 0u8..8,
            command in 0u8..4,
            data in proptest::collection::vec(any::<u8>(), 0..64),
        ) {
            let _ = parse(&[&[class, command], &data[..]].concat());
            let _ = parse(&data);
        }

        #[test]
        fn any_table_comes_out_as_it_went_in(
            unicast in proptest::collection::vec(any::<Mac>(), 0..9),
            multicast in proptest::collection::vec(any::<Mac>(), 0..9),
        ) {
            let mut bytes = vec![1, 0];
            for table in [&unicast, &multicast] {
                bytes.extend((table.len() as u32).to_le_bytes());
                bytes.extend(table.concat());
            }
            prop_assert_eq!(parse(&bytes), Ok(Command::MacTable { unicast, multicast }));
        }
    }
}
