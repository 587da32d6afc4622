// SPDX-License-Identifier: GPL-2.0

//! Finds what must not be in a kernel log.

/// Texts that the kernel only prints when something is wrong with it.
const COMPLAINTS: &[&str] = &[
    "BUG: ",
    "Call Trace:",
    "INFO: task ",
    "INFO: trying to register non-static key",
    "KASAN: ",
    "KCSAN: ",
    "Kernel panic",
    "Oops",
    "UBSAN: ",
    "WARNING: ",
    "blocked for more than",
    "detected stall",
    "double free",
    "general protection fault",
    "hard LOCKUP",
    "kernel BUG at",
    "possible circular locking",
    "possible recursive locking",
    "refcount_t: ",
    "self-detected stall",
    "sleeping function called",
    "soft lockup",
    "suspicious RCU usage",
    "unreferenced object",
];

/// A line that says that the kernel is in trouble.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Complaint {
    /// From 1, as editors count.
    pub line: usize,
    pub text: String,
}

/// How the kernel went down, if it did so in an orderly way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shutdown {
    PowerOff,
    Reboot,
}

/// The complaints in a kernel log.
pub fn complaints(log: &str) -> Vec<Complaint> {
    log.lines()
        .enumerate()
        .filter(|(_, text)| COMPLAINTS.iter().any(|c| message(text).contains(c)))
        .map(|(index, text)| Complaint {
            line: index + 1,
            text: text.trim_end().to_string(),
        })
        .collect()
}

/// The orderly end of a kernel log.
pub fn shutdown(log: &str) -> Option<Shutdown> {
    log.lines().rev().find_map(|line| match message(line) {
        "reboot: Power down" => Some(Shutdown::PowerOff),
        m if m.starts_with("reboot: Restarting system") => Some(Shutdown::Reboot),
        _ => None,
    })
}

/// A line without its time stamp.
fn message(line: &str) -> &str {
    let line = line.trim_end();
    match line.strip_prefix('[').and_then(|l| l.split_once("] ")) {
        Some((stamp, message)) if stamp.trim().parse::<f64>().is_ok() => message,
        _ => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOOT: &str = "[    0.000000] Linux version 7.3.4\r\n\
        [    0.419440] mitigations: Enabled attack vectors: user_kernel, SMT mitigations: auto\n\
        [    0.500000] Spectre V1 : Mitigation: usercopy/swapgs barriers\n\
        [    6.709906] clocksource: Watchdog remote CPU 1 read timed out\n";

    #[test]
    fn an_ordinary_boot_has_none() {
        assert_eq!(complaints(BOOT), []);
        assert_eq!(shutdown(BOOT), None);
    }

    #[test]
    fn each_kind_is_found_with_its_line() {
        for text in [
            "WARNING: drivers/virtio/virtio.c:123 at virtio_device_ready+0x1/0x2, CPU#0: sh/1",
            "BUG: KASAN: slab-use-after-free in foo+0x1/0x2",
            "BUG: kernel NULL pointer dereference, address: 0000000000000008",
            "WARNING: possible circular locking dependency detected",
            "INFO: task cat:77 blocked for more than 120 seconds.",
            "rcu: INFO: rcu_preempt self-detected stall on CPU",
            "refcount_t: underflow; use-after-free.",
            "unreferenced object 0xffff888003a1c000 (size 64):",
            "Oops: general protection fault, 0000 [#1] SMP",
        ] {
            let log = format!("{BOOT}[   10.000000] {text}\r\n");
            let found = complaints(&log);
            assert_eq!(found.len(), 1, "{text}");
            assert_eq!(found[0].line, 5);
            assert!(found[0].text.ends_with(text));
        }
    }

    #[test]
    fn ends() {
        let log = |end: &str| format!("{BOOT}[   13.428739] reboot: {end}\r\n");
        assert_eq!(shutdown(&log("Power down")), Some(Shutdown::PowerOff));
        assert_eq!(shutdown(&log("Restarting system")), Some(Shutdown::Reboot));
        assert_eq!(shutdown(&log("machine restart")), None);
    }
}
