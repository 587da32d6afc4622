// SPDX-License-Identifier: GPL-2.0

//! Every fault does what its name says, and is not held against the driver.

use super::*;
use crate::fault::Effect;

/// A live device of both revisions, with a fault.
fn with(faults: &str, test: impl Fn(&mut Guest)) {
    each(|settings| {
        let mut guest = Guest::live(settings);
        guest.set(&format!(r#"{{"faults":[{faults}]}}"#));
        test(&mut guest);
        assert_eq!(guest.rules(), [], "{faults}");
        // Taken back, it is seen whether it ever happened.
        guest.set(r#"{"faults":[]}"#);
        assert_eq!(guest.idle_faults(), json!([]), "{faults}");
    });
}

impl Guest {
    fn now(&mut self, fault: &str) {
        let command = format!(r#"{{"cmd":"fault-now","fault":"{fault}"}}"#);
        assert_eq!(self.command(&command)["ok"], true, "{fault}");
    }

    fn faults(&self) -> u64 {
        self.device.counters.faults
    }

    fn idle_faults(&mut self) -> Value {
        self.command(r#"{"cmd":"stats"}"#)["idle_faults"].clone()
    }

    /// Clears all faults; the device works, if need be after a reset.
    fn recovers(&mut self) {
        self.set(r#"{"faults":[],"fuzz":null}"#);
        self.write_status(0);
        self.device.clear();
        self.probe();
        let id = self.add();
        self.notify();
        assert_eq!(self.used(), Some((id, 16)));
        self.suspend();
        self.resume();
    }
}

#[test]
fn suspend_ignored() {
    with(r#""suspend-ignored""#, |guest| {
        guest.write_status(0x1f);
        guest.advance(10_000);
        assert_eq!(guest.status(), 0x0f);
        // It goes on; what the driver makes available after taking SUSPEND back is used.
        guest.write_status(0x0f);
        let id = guest.add();
        guest.notify();
        assert_eq!(guest.used(), Some((id, 16)));
        assert_eq!(guest.faults(), 1);
    });
}

#[test]
fn suspend_never() {
    with(r#""suspend-never""#, |guest| {
        guest.write_status(0x1f);
        guest.advance(10_000);
        assert_eq!(guest.status(), 0x0f);
        assert_eq!(
            guest.device.machine.state(),
            crate::status::State::Suspending
        );
        guest.write_status(0x0f);
        let id = guest.add();
        guest.notify();
        assert_eq!(guest.used(), Some((id, 16)));
        // Without the fault what was asked for meanwhile is done.
        guest.write_status(0x1f);
        guest.set(r#"{"faults":[]}"#);
        assert_eq!(guest.status(), guest.bytes().0);
    });
}

#[test]
fn suspend_late() {
    with(r#""suspend-late=50""#, |guest| {
        guest.write_status(0x1f);
        guest.advance(49);
        assert_eq!(guest.status(), 0x0f);
        guest.write_status(0x0f);
        guest.advance(1);
        assert_eq!(guest.status(), guest.bytes().0);
        guest.resume();
        guest.notify();
    });
}

#[test]
fn suspend_dropped() {
    with(r#""suspend-dropped=5""#, |guest| {
        guest.suspend();
        guest.advance(5);
        assert_eq!(guest.status(), 0x0f);
        let id = guest.add();
        guest.notify();
        assert_eq!(guest.used(), Some((id, 16)));
    });
}

#[test]
fn driver_ok_kept() {
    with(r#""driver-ok-kept""#, |guest| {
        guest.write_status(0x1f);
        assert_eq!(guest.status(), 0x1f);
        guest.write_status(0x0f);
        assert_eq!(guest.status(), 0x0f);
    });
}

#[test]
fn effects_at_every_moment() {
    for (effect, status) in [
        ("needs-reset", 0x40),
        ("status-zero", 0x00),
        ("status-ones", 0xff),
        ("gone", 0xff),
    ] {
        let check = |guest: &mut Guest| {
            let read = guest.status();
            let expected = match status {
                0x40 => read & 0x40 != 0 && read != 0xff,
                value => read == value,
            };
            assert!(expected, "{effect}: {read:#x}");
            assert_eq!(guest.faults(), 1);
            guest.recovers();
        };
        with(&format!(r#""{effect}-on-suspend""#), |guest| {
            guest.write_status(0x1f);
            check(guest);
        });
        with(&format!(r#""{effect}-while-suspended=7""#), |guest| {
            guest.suspend();
            guest.advance(7);
            guest.device.tick();
            check(guest);
        });
        with(&format!(r#""{effect}-on-resume""#), |guest| {
            guest.suspend();
            let resume = guest.bytes().1;
            guest.write_status(resume);
            check(guest);
        });
        with("", |guest| {
            guest.now(effect);
            check(guest);
        });
    }
}

#[test]
fn a_device_that_needs_a_reset_does_not_resume() {
    with(r#""needs-reset-while-suspended=0""#, |guest| {
        guest.write_status(0x1f);
        guest.device.tick();
        guest.advance(1);
        let status = guest.status();
        assert_eq!(status, guest.bytes().0 | 0x40);
        guest.recovers();
    });
}

#[test]
fn gone_is_gone_until_it_is_told_to_be_back() {
    with("", |guest| {
        guest.suspend();
        guest.now("gone");
        guest.write_status(0);
        assert_eq!(guest.status(), 0xff);
        assert_eq!(guest.read32(reg::DEVICE_FEATURE), u32::MAX);
        let mut isr = [0];
        guest.device.region_read(BAR0, common::ISR_OFFSET, &mut isr);
        assert_eq!(isr, [0xff]);
        guest.notify();
        guest.advance(10_000);
        guest.device.tick();
        assert_eq!(guest.device.next_deadline_us(), None);
        assert_eq!(guest.command(r#"{"cmd":"info"}"#)["gone"], true);
        guest.set(r#"{"faults":[]}"#);
        assert_eq!(guest.status(), 0);
        guest.recovers();
    });
}

#[test]
fn away_is_as_it_was_when_it_is_back() {
    with("", |guest| {
        guest.suspend();
        let suspended = guest.status();
        guest.now("away");
        guest.write_status(0);
        guest.write_status(0x1f);
        assert_eq!(guest.status(), 0xff);
        guest.advance(10_000);
        guest.device.tick();
        guest.set(r#"{"faults":[]}"#);
        assert_eq!(guest.status(), suspended);
        guest.resume();
        guest.recovers();
    });
}

#[test]
fn status_ones_ends_with_a_reset() {
    with("", |guest| {
        guest.now("status-ones");
        assert_eq!(guest.status(), 0xff);
        guest.write_status(0);
        assert_eq!(guest.status(), 0);
        guest.recovers();
        // A driver that has seen it gives up without a reset.
        guest.now("status-ones");
        assert_eq!(guest.status(), 0xff);
        guest.set(r#"{"faults":[]}"#);
        assert_eq!(guest.status(), 0);
        guest.recovers();
    });
}

#[test]
fn status_random_replays() {
    let answers = |seed: u64| {
        let mut guest = Guest::live(ratified());
        guest.now(&format!("status-random={seed}"));
        let answers: Vec<u8> = (0..20).map(|_| guest.status()).collect();
        guest.write_status(0);
        assert_eq!(guest.status(), 0);
        answers
    };
    assert_eq!(answers(1), answers(1));
    assert_ne!(answers(1), answers(2));
}

#[test]
fn features_ok() {
    with(r#""features-ok-dropped-on-suspend""#, |guest| {
        guest.write_status(0x1f);
        assert_eq!(guest.status(), guest.bytes().0 & !0x08);
        guest.recovers();
    });
    let mut guest = Guest::new(ratified());
    guest.set(r#"{"faults":["features-ok-refused"]}"#);
    for value in [0, 1, 3] {
        guest.write_status(value);
    }
    guest.accept(features::VERSION_1);
    guest.write_status(0x0b);
    assert_eq!(guest.status(), 0x03);
    guest.recovers();
}

#[test]
fn endings() {
    for (text, ending) in [("disconnect", Ending::Disconnect), ("exit", Ending::Exit)] {
        with(&format!(r#""{text}-on-resume""#), |guest| {
            guest.suspend();
            assert_eq!(guest.device.ending(), None);
            let resume = guest.bytes().1;
            guest.write_status(resume);
            assert_eq!(guest.device.ending(), Some(ending));
        });
    }
}

#[test]
fn configuration_changes() {
    let fired = |faults: &str, before: usize, during: usize, after: usize| {
        with(faults, |guest| {
            guest.suspend();
            assert_eq!(guest.fired(0), before, "{faults}: before");
            guest.advance(50);
            guest.device.tick();
            assert_eq!(guest.fired(0), during, "{faults}: during");
            guest.resume();
            assert_eq!(guest.fired(0), after, "{faults}: after");
        });
    };
    fired(r#""config-change-before-suspend""#, 1, 0, 0);
    fired(r#""config-change-during-suspend""#, 0, 0, 1);
    fired(r#""config-change-while-suspended""#, 0, 1, 0);
    fired(r#""config-change-after-suspend""#, 0, 0, 1);
    fired(
        r#""config-change-during-suspend","config-irq-lost""#,
        0,
        0,
        0,
    );
}

#[test]
fn used_notifications() {
    let deliver = |guest: &mut Guest| {
        guest.driver.want(&guest.mem, Want::Next);
        let id = guest.add();
        guest.notify();
        assert_eq!(guest.used(), Some((id, 16)));
    };
    with(r#""used-irq-lost""#, |guest| {
        deliver(guest);
        guest.suspend();
        guest.advance(1000);
        guest.resume();
        assert_eq!(guest.fired(1), 0);
    });
    with(r#""used-irq-late=30""#, |guest| {
        deliver(guest);
        assert_eq!(guest.fired(1), 0);
        guest.advance(30);
        guest.device.tick();
        assert_eq!(guest.fired(1), 1);
        // V2: not after SUSPEND was presented.
        deliver(guest);
        guest.suspend();
        assert_eq!(guest.fired(1), 1);
    });
    with(r#""used-irq-spurious""#, |guest| {
        guest.notify();
        assert_eq!(guest.fired(1), 1);
        guest.status();
        assert_eq!(guest.fired(1), 1);
        guest.suspend();
        guest.fired(1);
        guest.status();
        assert_eq!(guest.fired(1), 0);
    });
    with(r#""used-irq-after-suspend=5""#, |guest| {
        guest.suspend();
        assert_eq!(guest.fired(1), 0);
        guest.advance(5);
        guest.device.tick();
        assert_eq!(guest.fired(1), 1);
    });
}

#[test]
fn used_lengths() {
    for (fault, len) in [("used-long=100", 116), ("used-zero", 0)] {
        with(&format!(r#""{fault}""#), |guest| {
            let id = guest.add();
            guest.notify();
            assert_eq!(guest.used(), Some((id, len)));
        });
    }
    with(r#""used-long=4294967295""#, |guest| {
        let id = guest.add();
        guest.notify();
        assert_eq!(guest.used(), Some((id, u32::MAX)));
    });
}

/// Split rings: there the entries can be read one by one.
#[test]
fn used_ids() {
    use vm_memory::{Bytes, GuestAddress};
    for (fault, ids) in [
        ("used-bad-id=5", vec![5]),
        ("used-twice", vec![0, 0]),
        ("used-bad-id=5\",\"used-twice", vec![5, 5]),
    ] {
        let mut guest = Guest::live(ratified());
        guest.set(&format!(r#"{{"faults":["{fault}"]}}"#));
        guest.add();
        guest.notify();
        for (slot, id) in ids.iter().enumerate() {
            let at = DEVICE + 4 + 8 * slot as u64;
            assert_eq!(guest.mem.read_obj::<u32>(GuestAddress(at)).unwrap(), *id);
        }
        let used: u16 = guest.mem.read_obj(GuestAddress(DEVICE + 2)).unwrap();
        assert_eq!(usize::from(used), ids.len());
        // Who is told lies about what was given back can't be blamed for giving it again.
        guest.set(r#"{"hold":true}"#);
        guest.driver.publish(&guest.mem, 0);
        guest.driver.publish(&guest.mem, 0);
        guest.notify();
        assert_eq!(guest.rules(), []);
        guest.set(r#"{"hold":false}"#);
        guest.recovers();
    }
}

#[test]
fn used_after_suspend() {
    with(r#""used-after-suspend=5""#, |guest| {
        let id = guest.add();
        guest.notify();
        guest.suspend();
        assert_eq!(guest.used(), None);
        guest.advance(5);
        guest.device.tick();
        assert_eq!(guest.used(), Some((id, 16)));
    });
}

#[test]
fn works_while_suspended() {
    with(r#""works-while-suspended","hold-ms=5""#, |guest| {
        let id = guest.add();
        guest.notify();
        // V2 is broken: what is in process is not waited for.
        guest.suspend();
        guest.advance(5);
        guest.device.tick();
        assert_eq!(guest.used(), Some((id, 16)));
        assert_eq!(guest.fired(1), 0, "the notification is held back");
        guest.resume();
        assert_eq!(guest.fired(1), 1);
    });
}

#[test]
fn works_while_suspended_when_notified() {
    let mut guest = Guest::live(ratified());
    guest.set(r#"{"faults":["works-while-suspended"]}"#);
    guest.suspend();
    // As no driver does (D4, D5).
    let id = guest.add();
    guest.notify();
    assert_eq!(guest.used(), Some((id, 16)));
    assert_eq!(guest.fired(1), 0, "the notification is held back");
    assert_eq!(guest.rules(), [Rule::D5]);
    guest.resume();
    assert_eq!(guest.fired(1), 1);
}

#[test]
fn suspend_stored() {
    let mut guest = Guest::live(ratified());
    guest.set(r#"{"judge":"off","faults":["suspend-stored"]}"#);
    // Negotiated and live, it means what it should.
    guest.suspend();
    guest.resume();
    assert_eq!(guest.faults(), 0);
    guest.write_status(0);
    guest.write_status(0x13);
    assert_eq!(guest.status(), 0x13);
    guest.write_status(0x03);
    assert_eq!(guest.status(), 0x03);
    assert_eq!(guest.faults(), 1);
    guest.write_status(0x13);
    guest.write_status(0);
    assert_eq!(guest.status(), 0);
}

#[test]
fn suspend_stored_without_its_feature() {
    let mut guest = Guest::live(settings(Offer::None, RingKind::Split));
    guest.set(r#"{"judge":"off","faults":["suspend-stored"]}"#);
    guest.write_status(0x1f);
    assert_eq!(guest.status(), 0x1f);
    // It goes on.
    let id = guest.add();
    guest.notify();
    assert_eq!(guest.used(), Some((id, 16)));
    guest.write_status(0x0f);
    assert_eq!(guest.status(), 0x0f);
}

#[test]
fn writes_dropped() {
    with(r#""writes-dropped","hold-ms=20""#, |guest| {
        guest.add();
        guest.notify();
        guest.write_status(0x1f);
        // Taken back, in vain.
        guest.write_status(0x0f);
        guest.advance(20);
        assert_eq!(guest.status(), guest.bytes().0);
        guest.resume();
        // A reset is none of these.
        guest.add();
        guest.notify();
        guest.write_status(0x1f);
        guest.write_status(0);
        assert_eq!(guest.status(), 0);
        guest.probe();
    });
}

#[test]
fn drain_limit() {
    with(r#""drain-limit=10","hold-ms=20""#, |guest| {
        guest.add();
        guest.notify();
        guest.write_status(0x1f);
        guest.advance(9);
        assert_eq!(guest.status(), 0x0f);
        guest.advance(1);
        assert_eq!(guest.status(), 0x4f);
        guest.advance(20);
        assert_eq!(guest.status(), 0x4f, "it is not suspended after all");
    });
    // One that is in time is not told from any other.
    each(|settings| {
        let mut guest = Guest::live(settings);
        guest.set(r#"{"faults":["drain-limit=10"]}"#);
        guest.suspend();
        guest.advance(6);
        guest.resume();
        // Its time begins with each suspend.
        guest.set(r#"{"delay_suspend_ms":8}"#);
        guest.write_status(0x1f);
        guest.advance(8);
        assert_eq!(guest.status(), guest.bytes().0);
        guest.resume();
        // One that was ready in time is not given up because nobody has looked before.
        guest.write_status(0x1f);
        guest.advance(30);
        assert_eq!(guest.status(), guest.bytes().0);
        guest.resume();
        assert_eq!(guest.faults(), 0);
    });
}

#[test]
fn hold_ms() {
    with(r#""hold-ms=30""#, |guest| {
        let id = guest.add();
        guest.notify();
        guest.advance(29);
        guest.device.tick();
        assert_eq!(guest.used(), None);
        guest.advance(1);
        guest.device.tick();
        assert_eq!(guest.used(), Some((id, 16)));
        // A suspend takes as long as what is in process.
        let id = guest.add();
        guest.notify();
        guest.advance(10);
        guest.write_status(0x1f);
        guest.advance(19);
        assert_eq!(guest.status(), 0x0f);
        guest.advance(1);
        assert_eq!(guest.status(), guest.bytes().0);
        assert_eq!(guest.used(), Some((id, 16)));
    });
}

#[test]
fn resumes() {
    with(r#""resume-never""#, |guest| {
        guest.suspend();
        let (suspended, resume) = guest.bytes();
        guest.write_status(resume);
        guest.advance(10_000);
        assert_eq!(guest.status(), suspended);
        guest.write_status(0x0f);
        guest.set(r#"{"faults":[]}"#);
        assert_eq!(guest.status(), 0x0f);
    });
    with(r#""resume-late=40""#, |guest| {
        guest.suspend();
        let (suspended, resume) = guest.bytes();
        guest.write_status(resume);
        guest.advance(39);
        assert_eq!(guest.status(), suspended);
        guest.advance(1);
        assert_eq!(guest.status(), 0x0f);
    });
    let mut guest = Guest::live(ratified());
    guest.set(r#"{"faults":["resume-needs-clear"]}"#);
    guest.suspend();
    guest.write_status(0x1f);
    guest.advance(1000);
    assert_eq!(guest.status(), 0x1b);
    guest.write_status(0x0f);
    assert_eq!(guest.status(), 0x0f);
    assert_eq!(guest.rules(), []);
}

#[test]
fn suspend_needs_queues() {
    with(r#""suspend-needs-queues=2""#, |guest| {
        guest.write_status(0x1f);
        guest.advance(10_000);
        assert_eq!(guest.status(), 0x0f);
        // One is enabled.
        guest.set(r#"{"faults":["suspend-needs-queues"]}"#);
        guest.suspend();
        guest.resume();
        guest.set(r#"{"faults":["suspend-needs-queues=2"]}"#);
        guest.write_status(0x1f);
        assert_eq!(guest.status(), 0x0f);
        guest.command(r#"{"cmd":"clear"}"#);
    });
}

#[test]
fn suspend_wears_out() {
    with(r#""suspend-wears-out=2""#, |guest| {
        for _ in 0..2 {
            guest.suspend();
            guest.resume();
        }
        guest.write_status(0x1f);
        guest.advance(10_000);
        assert_eq!(guest.status(), 0x0f);
        guest.probe();
        guest.suspend();
    });
}

#[test]
fn suspend_twice_cancels() {
    with(r#""suspend-twice-cancels""#, |guest| {
        guest.set(r#"{"judge":"off","delay_suspend_ms":10}"#);
        guest.write_status(0x1f);
        guest.write_status(0x1f);
        guest.advance(10_000);
        assert_eq!(guest.status(), 0x0f);
        let id = guest.add();
        guest.notify();
        assert_eq!(guest.used(), Some((id, 16)));
        guest.write_status(0x1f);
        guest.advance(10);
        assert_eq!(guest.status(), guest.bytes().0);
    });
}

/// It runs, and consumes nothing.
fn stands_still(guest: &mut Guest) -> u16 {
    let id = guest.add();
    guest.notify();
    guest.advance(10_000);
    guest.device.tick();
    assert_eq!(guest.used(), None);
    id
}

#[test]
fn cancel_stops() {
    with(r#""cancel-stops""#, |guest| {
        guest.set(r#"{"delay_suspend_ms":10}"#);
        guest.write_status(0x1f);
        guest.write_status(0x0f);
        assert_eq!(guest.status(), 0x0f);
        let id = stands_still(guest);
        guest.write_status(0x1f);
        guest.advance(10);
        assert_eq!(guest.status(), guest.bytes().0);
        guest.resume();
        guest.notify();
        assert_eq!(guest.used(), Some((id, 16)));
        // Without the fault what it has left undone is done.
        guest.write_status(0x1f);
        guest.write_status(0x0f);
        let id = stands_still(guest);
        guest.set(r#"{"faults":[]}"#);
        assert_eq!(guest.used(), Some((id, 16)));
    });
}

#[test]
fn reset_keeps_stopped() {
    with(r#""reset-keeps-stopped""#, |guest| {
        guest.write_status(0);
        guest.probe();
        guest.suspend();
        guest.write_status(0);
        assert_eq!(guest.status(), 0);
        // Which is another reset.
        guest.probe();
        let id = guest.add();
        guest.notify();
        assert_eq!(guest.used(), Some((id, 16)));
        guest.suspend();
        guest.write_status(0);
        assert!(guest.device.stopped);
    });
}

#[test]
fn queue_reset_stops() {
    with(r#""queue-reset-stops""#, |guest| {
        guest.suspend();
        guest.resume();
        let id = guest.add();
        guest.notify();
        assert_eq!(guest.used(), Some((id, 16)));
        guest.write(reg::QUEUE_RESET, &1u16.to_le_bytes());
        guest.driver = Driver::new(guest.driver.packed, SIZE);
        guest.mem_zero();
        guest.set_up_queue();
        let id = guest.add();
        guest.notify();
        assert_eq!(guest.used(), Some((id, 16)));
        guest.suspend();
        guest.resume();
        stands_still(guest);
    });
}

#[test]
fn in_process_lost() {
    with(r#""in-process-lost=1","hold-ms=5""#, |guest| {
        let id = guest.add();
        guest.add();
        guest.notify();
        guest.write_status(0x1f);
        guest.advance(5);
        assert_eq!(guest.status(), guest.bytes().0);
        assert_eq!(guest.used(), Some((id, 16)));
        assert_eq!(guest.used(), None);
    });
}

#[test]
fn avail_lost() {
    with(r#""avail-lost""#, |guest| {
        guest.add();
        guest.suspend();
        guest.resume();
        guest.notify();
        assert_eq!(guest.used(), None);
        let id = guest.add();
        guest.notify();
        assert_eq!(guest.used(), Some((id, 16)));
    });
}

#[test]
fn buffers_written() {
    use vm_memory::{Bytes, GuestAddress};
    with(r#""buffers-written=5""#, |guest| {
        let byte = GuestAddress(BUFFER);
        guest.mem.write_obj(0xa5u8, byte).unwrap();
        let id = guest.add();
        guest.suspend();
        guest.advance(4);
        guest.device.tick();
        assert_eq!(guest.mem.read_obj::<u8>(byte).unwrap(), 0xa5);
        guest.advance(1);
        guest.device.tick();
        assert_eq!(guest.mem.read_obj::<u8>(byte).unwrap(), 0);
        assert_eq!(guest.used(), None);
        // It is available still.
        guest.resume();
        guest.notify();
        assert_eq!(guest.used(), Some((id, 16)));
    });
}

#[test]
fn resume_needs_kept() {
    let mut guest = Guest::live(ratified());
    guest.set(r#"{"faults":["resume-needs-kept"]}"#);
    guest.suspend();
    guest.write_status(0x0f);
    guest.advance(1000);
    assert_eq!(guest.status(), 0x1b);
    assert_eq!(guest.faults(), 1);
    guest.write_status(0x1f);
    assert_eq!(guest.status(), 0x0f);
    // The draft has no other way.
    let mut guest = Guest::live(settings(Offer::Draft, RingKind::Split));
    guest.set(r#"{"faults":["resume-needs-kept"]}"#);
    guest.suspend();
    guest.resume();
}

#[test]
fn status_write_resumes() {
    with(r#""status-write-resumes""#, |guest| {
        guest.set(r#"{"judge":"off"}"#);
        guest.suspend();
        guest.resume();
        assert_eq!(guest.faults(), 0);
        guest.suspend();
        let suspended = guest.bytes().0;
        guest.write_status(suspended);
        assert_eq!(guest.status(), 0x0f);
    });
}

#[test]
fn reset_late() {
    with(r#""reset-late=40""#, |guest| {
        guest.write_status(0);
        guest.advance(39);
        assert_eq!(guest.status(), 0x0f);
        guest.advance(1);
        assert_eq!(guest.status(), 0);
        // There is nothing to wait for any more.
        guest.write_status(0);
        assert_eq!(guest.status(), 0);
        guest.probe();
    });
    let mut guest = Guest::live(ratified());
    guest.set(r#"{"faults":["reset-late"]}"#);
    guest.write_status(0);
    assert_eq!(guest.status(), 0x0f);
    guest.set(r#"{"faults":[]}"#);
    assert_eq!(guest.status(), 0);
    assert_eq!(guest.rules(), []);
}

#[test]
fn admin_vq_from_the_next_reset_on() {
    let mut guest = Guest::live(ratified());
    let reply = guest.set(r#"{"faults":["admin-vq"]}"#);
    assert_eq!(reply["pending"], json!(["faults"]));
    guest.probe();
    assert_eq!(guest.read32(reg::NUM_QUEUES) as u16, 1);
    assert_eq!(guest.read32(reg::ADMIN_QUEUE_INDEX), 1 << 16 | 1);
    guest.write(reg::QUEUE_SELECT, &1u16.to_le_bytes());
    assert_eq!(guest.read32(reg::QUEUE_SIZE) as u16, SIZE);
    assert_eq!(guest.device.counters.notify.len(), 2);
    guest.recovers();
    assert_eq!(guest.read32(reg::ADMIN_QUEUE_INDEX), 0);
}

#[test]
fn nothing_is_broken_that_is_not_there() {
    let mut guest = Guest::new(ratified());
    for fault in ["needs-reset", "status-zero"] {
        let command = format!(r#"{{"cmd":"fault-now","fault":"{fault}"}}"#);
        assert_eq!(guest.command(&command)["ok"], false);
    }
    assert_eq!(guest.device.machine.status(), 0);
    assert_eq!(Effect::Gone.name(), "gone");
}

/// What a driver reads, and finds in memory, in a session that is always the same.
fn session(seed: u64, ring: RingKind) -> (Vec<u8>, Vec<u8>) {
    use vm_memory::{Bytes, GuestAddress};
    let mut guest = Guest::live(settings(Offer::Ratified, ring));
    guest.set(&format!(r#"{{"fuzz":{seed}}}"#));
    let mut read = Vec::new();
    for round in 0..40u64 {
        if guest.device.machine.status() & 0x04 == 0 && round % 8 == 0 {
            guest.set(r#"{"fuzz":null}"#);
            guest.write_status(0);
            guest.device.clear();
            guest.probe();
            guest.set(&format!(r#"{{"fuzz":{}}}"#, seed.wrapping_add(round)));
        }
        guest.driver.add(&guest.mem, &[(BUFFER, 16, true)], false);
        guest.notify();
        for value in [0x1f, 0x1b, 0x1f, 0x0f] {
            guest.write_status(value);
            guest.advance(7);
            guest.device.tick();
            guest.device.work();
            read.push(guest.status());
        }
    }
    let mut memory = vec![0; 0x9000];
    guest.mem.read_slice(&mut memory, GuestAddress(0)).unwrap();
    (read, memory)
}

#[test]
fn fuzz_replays() {
    for ring in [RingKind::Split, RingKind::Packed] {
        for seed in 0..20 {
            assert_eq!(session(seed, ring), session(seed, ring), "seed {seed}");
        }
        assert_ne!(session(1, ring).0, session(2, ring).0);
    }
    let info = {
        let mut guest = Guest::live(ratified());
        guest.set(r#"{"fuzz":12345}"#);
        guest.command(r#"{"cmd":"info"}"#)
    };
    assert_eq!(info["fuzz"], 12345);
    assert_eq!(info["settings"]["fuzz"], 12345);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    /// Any fault, or several, with any driver: the device answers, and works when they are cleared.
    #[test]
    fn any_faults_with_any_driver(
        seed in proptest::option::of(any::<u64>()),
        packed in any::<bool>(),
        faults in proptest::collection::vec((0usize..59, 0u64..200), 0..4),
        accesses in proptest::collection::vec(
            (
                prop_oneof![Just(0x0fu8), Just(0x1f), Just(0x1b), Just(0x0b), Just(0), any::<u8>()],
                0u8..6,
                0u64..60,
            ),
            0..60,
        ),
    ) {
        let ring = if packed { RingKind::Packed } else { RingKind::Split };
        let mut guest = Guest::live(settings(Offer::Both, ring));
        let names: Vec<_> = crate::fault::Name::all().collect();
        let faults: Vec<String> = faults
            .into_iter()
            .map(|(name, arg)| crate::fault::Fault::with(names[name], arg).to_string())
            .collect();
        guest.set(&json!({"faults": faults, "fuzz": seed}).to_string());
        for (value, what, ms) in accesses {
            match what {
                0 => guest.write_status(value),
                1 => { guest.status(); }
                2 => guest.notify(),
                3 if guest.driver.packed => guest.notify(),
                3 => { guest.add(); }
                4 => { guest.read32(reg::QUEUE_SIZE); }
                _ => guest.write(reg::QUEUE_ENABLE, &1u16.to_le_bytes()),
            }
            guest.advance(ms);
            guest.device.tick();
            guest.device.work();
        }
        guest.recovers();
        prop_assert_eq!(guest.rules(), []);
    }
}
