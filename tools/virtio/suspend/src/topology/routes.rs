// SPDX-License-Identifier: GPL-2.0

//! Through which interface an address is reached, and which interfaces are made of others.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::sysfs::{self, Root};

struct Route {
    to: IpAddr,
    prefix: u32,
    metric: u32,
    interface: String,
}

/// The main routing tables. Rules that choose another table are not looked at.
pub struct Routes(Vec<Route>);

impl Routes {
    /// Out of /proc/net/route and /proc/net/ipv6_route.
    pub fn parse(v4: &str, v6: &str) -> Self {
        let v4 = v4.lines().skip(1).filter_map(parse_v4);
        Self(v4.chain(v6.lines().filter_map(parse_v6)).collect())
    }

    /// The interface that leads to an address.
    pub fn interface_to(&self, address: &str) -> Option<&str> {
        // That of a link has its interface with it.
        let address = address.split('%').next()?;
        let address: IpAddr = address.parse().ok()?;
        let address = address.to_canonical();
        let matching = self.0.iter().filter(|route| route.matches(address));
        let best = matching.max_by_key(|route| (route.prefix, u32::MAX - route.metric))?;
        Some(&best.interface)
    }
}

impl Route {
    fn matches(&self, address: IpAddr) -> bool {
        let (a, b, width) = match (self.to, address) {
            (IpAddr::V4(a), IpAddr::V4(b)) => (a.to_bits().into(), b.to_bits().into(), 32),
            (IpAddr::V6(a), IpAddr::V6(b)) => (a.to_bits(), b.to_bits(), 128),
            _ => return false,
        };
        let differ: u128 = a ^ b;
        differ.checked_shr(width - self.prefix).unwrap_or(0) == 0
    }
}

fn parse_v4(line: &str) -> Option<Route> {
    let fields: Vec<&str> = line.split_ascii_whitespace().collect();
    // In the byte order of the network, printed as a number of the machine.
    let number = |field: &str| u32::from_str_radix(field, 16).ok();
    let address = |field: &str| Some(Ipv4Addr::from(number(field)?.to_ne_bytes()));
    Some(Route {
        to: address(fields.get(1)?)?.into(),
        prefix: number(fields.get(7)?)?.count_ones(),
        metric: fields.get(6)?.parse().ok()?,
        interface: fields[0].into(),
    })
}

fn parse_v6(line: &str) -> Option<Route> {
    let fields: Vec<&str> = line.split_ascii_whitespace().collect();
    let to = u128::from_str_radix(fields.first()?, 16).ok()?;
    let prefix = u32::from_str_radix(fields.get(1)?, 16).ok()?;
    Some(Route {
        to: Ipv6Addr::from(to).into(),
        prefix: (prefix <= 128).then_some(prefix)?,
        metric: u32::from_str_radix(fields.get(5)?, 16).ok()?,
        interface: (*fields.get(9)?).into(),
    })
}

/// Which interfaces are on which.
pub struct Uppers(BTreeMap<String, Vec<(String, String)>>);

impl Uppers {
    pub fn read(root: &Root) -> Self {
        let class = root.join("sys/class/net");
        let kind = |name: &str| {
            let has = |file: &str| class.join(name).join(file).exists();
            match name {
                _ if has("bridge") => "bridge",
                _ if has("bonding") => "bond",
                _ => "stacked",
            }
        };
        let uppers = |name: &String| {
            let names = sysfs::names(&class.join(name)).into_iter();
            names
                .filter_map(|link| link.strip_prefix("upper_").map(str::to_string))
                .map(|upper| (kind(&upper).to_string(), upper))
                .map(|(kind, upper)| (upper, kind))
                .collect()
        };
        let names = sysfs::names(&class).into_iter();
        Self(names.map(|name| (name.clone(), uppers(&name))).collect())
    }

    /// All that are on an interface, with what they are.
    pub fn above(&self, interface: &str) -> Vec<(String, String)> {
        let mut found: Vec<(String, String)> = Vec::new();
        let mut todo = vec![interface.to_string()];
        while let Some(name) = todo.pop() {
            for upper in self.0.get(&name).into_iter().flatten() {
                if !found.contains(upper) {
                    found.push(upper.clone());
                    todo.push(upper.0.clone());
                }
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const IPV4: &str = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\n\
        ens3\t00000000\t0100000A\t0003\t0\t0\t100\t00000000\t0\t0\t0\n\
        ens4\t00000000\t0100010A\t0003\t0\t0\t50\t00000000\t0\t0\t0\n\
        ens5\t0000A8C0\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0\n";
    const IPV6: &str = "20010db8000000000000000000000000 20 \
        00000000000000000000000000000000 00 00000000000000000000000000000000 \
        00000400 00000001 00000000 00000001 ens6\n";

    #[test]
    fn the_longest_prefix_and_then_the_least_metric() {
        let routes = Routes::parse(IPV4, IPV6);
        assert_eq!(routes.interface_to("192.168.3.4"), Some("ens5"));
        assert_eq!(routes.interface_to("::ffff:192.168.3.4"), Some("ens5"));
        assert_eq!(routes.interface_to("8.8.8.8"), Some("ens4"));
        assert_eq!(routes.interface_to("2001:db8::1"), Some("ens6"));
        assert_eq!(routes.interface_to("2001:db9::1"), None);
        assert_eq!(routes.interface_to("nonsense"), None);
    }

    proptest! {
        #[test]
        fn whatever_there_is_does_no_harm(
            v4 in "[0-9A-F\t\na-z]{0,200}", v6 in "[0-9a-f \n]{0,300}", to in any::<IpAddr>(),
        ) {
            Routes::parse(&v4, &v6).interface_to(&to.to_string());
        }
    }
}
