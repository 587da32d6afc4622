// SPDX-License-Identifier: GPL-2.0

//! Which frames from the cable are for the driver (VIRTIO 1.4, "Packet Receive Filtering", "Setting
//! MAC Address Filtering", "VLAN Filtering").

use std::collections::BTreeSet;

use serde_json::{json, Value};

use super::frame::ETHERNET;

/// An address.
pub type Mac = [u8; 6];

/// How many addresses of each kind are told apart; with more of them, all of the kind are received.
/// So many that a command does not fit into a page.
pub const TABLE: usize = 1024;
/// How many addresses and VLANs a report lists.
const REPORTED: usize = 16;
/// There is no VLAN beyond.
pub const VLANS: u16 = 4096;

/// Tag protocol identifier of a VLAN.
const VLAN_TAG: [u8; 2] = [0x81, 0x00];

/// Addresses that are received.
#[derive(Clone, Debug, Default)]
enum Table {
    /// All of them.
    All,
    /// These.
    #[default]
    None,
    Some(BTreeSet<Mac>),
}

impl Table {
    fn new(macs: Vec<Mac>) -> Self {
        match macs.len() {
            0 => Self::None,
            1..=TABLE => Self::Some(macs.into_iter().collect()),
            _ => Self::All,
        }
    }

    fn has(&self, mac: &Mac) -> bool {
        match self {
            Self::All => true,
            Self::None => false,
            Self::Some(macs) => macs.contains(mac),
        }
    }

    fn report(&self) -> Value {
        match self {
            Self::All => json!("all"),
            Self::None => json!([]),
            Self::Some(macs) => macs.iter().take(REPORTED).map(text).collect(),
        }
    }
}

/// An address for people.
pub fn text(mac: &Mac) -> String {
    let [a, b, c, d, e, f] = mac;
    format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
}

/// The receive filter.
#[derive(Clone, Debug)]
pub struct Filter {
    /// The device's own address.
    pub mac: Mac,
    /// Everything is received.
    pub promiscuous: bool,
    /// All multicast is received.
    pub all_multicast: bool,
    unicast: Table,
    multicast: Table,
    /// VLANs that are received; all, if CTRL_VLAN was not negotiated.
    vlans: Option<BTreeSet<u16>>,
}

impl Filter {
    /// As after a reset: everything is received, until the driver says what it wants.
    pub fn new(mac: Mac, vlan_filtering: bool) -> Self {
        Self {
            mac,
            promiscuous: true,
            all_multicast: false,
            unicast: Table::default(),
            multicast: Table::default(),
            vlans: vlan_filtering.then(BTreeSet::new),
        }
    }

    /// Receives these addresses, besides its own and broadcast, and no others.
    pub fn set_table(&mut self, unicast: Vec<Mac>, multicast: Vec<Mac>) {
        self.unicast = Table::new(unicast);
        self.multicast = Table::new(multicast);
    }

    /// Receives a VLAN, or no longer. Returns whether there is such a VLAN.
    pub fn set_vlan(&mut self, vlan: u16, receive: bool) -> bool {
        match &mut self.vlans {
            Some(vlans) if vlan < VLANS => {
                if receive {
                    vlans.insert(vlan);
                } else {
                    vlans.remove(&vlan);
                }
                true
            }
            _ => false,
        }
    }

    /// Whether the driver gets this frame.
    pub fn accepts(&self, frame: &[u8]) -> bool {
        let Some((mac, rest)) = frame.split_first_chunk::<6>() else {
            return false;
        };
        if self.promiscuous {
            return true;
        }
        if let (Some(vlans), [_, _, _, _, _, _, t0, t1, v0, v1, ..]) = (&self.vlans, rest) {
            let vlan = u16::from_be_bytes([*v0, *v1]) % VLANS;
            if [*t0, *t1] == VLAN_TAG && !vlans.contains(&vlan) {
                return false;
            }
        }
        debug_assert!(frame.len() >= ETHERNET);
        match mac {
            [0xff, 0xff, 0xff, 0xff, 0xff, 0xff] => true,
            [first, ..] if first & 1 != 0 => self.all_multicast || self.multicast.has(mac),
            _ => *mac == self.mac || self.unicast.has(mac),
        }
    }

    /// For people and tests.
    pub fn report(&self) -> Value {
        let vlans = self.vlans.as_ref().map(|vlans| {
            json!({
                "count": vlans.len(),
                "first": vlans.iter().take(REPORTED).collect::<Vec<_>>(),
            })
        });
        json!({
            "mac": text(&self.mac),
            "promiscuous": self.promiscuous,
            "all_multicast": self.all_multicast,
            "unicast": self.unicast.report(),
            "multicast": self.multicast.report(),
            "vlans": vlans,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: Mac = [2, 0, 0, 0, 0, 1];
    const OTHER: Mac = [2, 0, 0, 0, 0, 2];
    const GROUP: Mac = [0x33, 0x33, 0, 0, 0, 1];
    const ALL: Mac = [0xff; 6];

    fn frame(mac: Mac, vlan: Option<u16>) -> Vec<u8> {
        let mut frame = [&mac[..], &[0; 6]].concat();
        if let Some(vlan) = vlan {
            frame.extend(VLAN_TAG);
            // With a priority.
            frame.extend((0x6000 | vlan).to_be_bytes());
        }
        frame.extend([8, 0]);
        frame.resize(60, 0);
        frame
    }

    fn strict() -> Filter {
        Filter {
            promiscuous: false,
            ..Filter::new(OWN, true)
        }
    }

    fn accepted(filter: &Filter) -> [bool; 4] {
        [OWN, OTHER, GROUP, ALL].map(|mac| filter.accepts(&frame(mac, None)))
    }

    #[test]
    fn addresses() {
        assert_eq!(accepted(&Filter::new(OWN, true)), [true; 4]);
        let mut filter = strict();
        assert_eq!(accepted(&filter), [true, false, false, true]);
        filter.all_multicast = true;
        assert_eq!(accepted(&filter), [true, false, true, true]);
        filter.all_multicast = false;
        filter.set_table(vec![OTHER], vec![GROUP]);
        assert_eq!(accepted(&filter), [true; 4]);
        filter.set_table(vec![[4; 6]; TABLE + 1], vec![]);
        assert_eq!(accepted(&filter), [true, true, false, true]);
        filter.set_table(vec![], vec![]);
        filter.mac = OTHER;
        assert_eq!(accepted(&filter), [false, true, false, true]);
    }

    #[test]
    fn vlans() {
        let mut filter = strict();
        assert!(!filter.accepts(&frame(OWN, Some(5))));
        assert!(filter.set_vlan(5, true));
        assert!(filter.accepts(&frame(OWN, Some(5))));
        assert!(!filter.accepts(&frame(OTHER, Some(5))));
        assert!(!filter.accepts(&frame(ALL, Some(6))));
        assert!(filter.set_vlan(5, false));
        assert!(!filter.accepts(&frame(OWN, Some(5))));
        assert!(!filter.set_vlan(VLANS, true));
        // Without CTRL_VLAN there is no filter.
        let mut filter = Filter {
            promiscuous: false,
            ..Filter::new(OWN, false)
        };
        assert!(filter.accepts(&frame(OWN, Some(5))));
        assert!(!filter.set_vlan(5, true));
    }

    #[test]
    fn short_frames() {
        assert!(!strict().accepts(&[]));
        assert!(!strict().accepts(&[0xff; 5]));
    }
}
