// SPDX-License-Identifier: GPL-2.0

//! Both layouts against a driver that keeps the format, and against memory that does not.

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use super::chain::{AVAIL, DESC_SIZE, INDIRECT, NEXT, WRITE};
use super::testing::{memory, Driver, Want, BUFFERS, DESC, DEVICE, DRIVER, END};
use super::*;

fn each(size: u16, test: impl Fn(&Memory, Driver)) {
    for packed in [false, true] {
        test(&memory(), Driver::new(packed, size));
    }
}

#[test]
fn chains_come_and_go_in_order_across_many_wraps() {
    each(8, |mem, mut driver| {
        let mut ring = driver.ring(mem, driver.layout()).unwrap();
        for round in 0..100u32 {
            let a = driver.add(mem, &[(0x8000, 4, false), (0x8100, 16, true)], false);
            let b = driver.add(mem, &[(0x8200, round + 1, true)], false);
            let first = ring.pop(mem).unwrap().unwrap();
            assert_eq!((first.head.id, first.head.descriptors), (a, 2));
            assert_eq!(
                first.readable[..],
                [Segment {
                    addr: 0x8000,
                    len: 4
                }]
            );
            assert_eq!(
                first.writable[..],
                [Segment {
                    addr: 0x8100,
                    len: 16
                }]
            );
            let second = ring.pop(mem).unwrap().unwrap();
            assert_eq!(second.head.writable_len, u64::from(round) + 1);
            assert_eq!(ring.pop(mem).unwrap(), None);
            assert_eq!(driver.used(mem), None);
            ring.push_used(mem, first.head, 16).unwrap();
            ring.push_used(mem, second.head, 0).unwrap();
            assert_eq!(driver.used(mem), Some((a, 16)));
            assert_eq!(driver.used(mem), Some((b, 0)));
            assert_eq!(driver.used(mem), None);
        }
    });
}

#[test]
fn indirect_chains() {
    each(8, |mem, mut driver| {
        let mut ring = driver.ring(mem, driver.layout()).unwrap();
        let pieces: Vec<_> = (0..8).map(|i| (0x8000 + i * 16, 16, i > 2)).collect();
        let id = driver.add(mem, &pieces, true);
        let buffer = ring.pop(mem).unwrap().unwrap();
        assert_eq!((buffer.head.id, buffer.head.descriptors), (id, 1));
        assert_eq!((buffer.readable.len(), buffer.writable.len()), (3, 5));

        let mut layout = driver.layout();
        layout.indirect = false;
        let mut ring = driver.ring(mem, layout).unwrap();
        assert!(matches!(
            ring.pop(mem),
            Err(RingError::IndirectNotNegotiated)
        ));
    });
}

#[test]
fn a_chain_is_at_most_as_long_as_the_queue() {
    each(4, |mem, mut driver| {
        let mut ring = driver.ring(mem, driver.layout()).unwrap();
        driver.add(mem, &[(0x8000, 1, true); 4], true);
        assert_eq!(ring.pop(mem).unwrap().unwrap().writable.len(), 4);
        driver.add(mem, &[(0x8000, 1, true); 5], true);
        assert!(matches!(ring.pop(mem), Err(RingError::TooLong(4))));
    });
}

#[test]
fn the_mark_moves_when_a_buffer_is_made_available() {
    each(4, |mem, mut driver| {
        let mut ring = driver.ring(mem, driver.layout()).unwrap();
        let before = ring.avail_mark(mem).unwrap();
        assert_eq!(ring.avail_mark(mem).unwrap(), before);
        driver.add(mem, &[(0x8000, 4, true)], false);
        assert_ne!(ring.avail_mark(mem).unwrap(), before);
        let before = ring.avail_mark(mem).unwrap();
        let buffer = ring.pop(mem).unwrap().unwrap();
        assert_eq!(ring.avail_mark(mem).unwrap(), before);
        ring.push_used(mem, buffer.head, 4).unwrap();
        assert_eq!(ring.avail_mark(mem).unwrap(), before);
    });
}

#[test]
fn notifications_are_sent_when_wanted() {
    for event_idx in [false, true] {
        each(4, |mem, mut driver| {
            let mut layout = driver.layout();
            layout.event_idx = event_idx;
            let mut ring = driver.ring(mem, layout).unwrap();
            let mut round = |driver: &mut Driver| {
                driver.add(mem, &[(0x8000, 4, true)], false);
                let buffer = ring.pop(mem).unwrap().unwrap();
                ring.push_used(mem, buffer.head, 4).unwrap();
                let notify = ring.needs_notification(mem).unwrap();
                driver.used(mem).unwrap();
                notify
            };
            // Several times around the ring.
            for _ in 0..11 {
                if event_idx {
                    driver.want(mem, Want::Next);
                    assert!(round(&mut driver));
                    // The event has passed.
                    assert!(!round(&mut driver));
                } else {
                    driver.want(mem, Want::Always);
                    assert!(round(&mut driver));
                    driver.want(mem, Want::Never);
                    assert!(!round(&mut driver));
                }
            }
        });
    }
}

#[test]
fn arming_asks_for_the_next_buffer_and_sees_one_that_is_there() {
    for event_idx in [false, true] {
        each(4, |mem, mut driver| {
            let mut layout = driver.layout();
            layout.event_idx = event_idx;
            let mut ring = driver.ring(mem, layout).unwrap();
            for round in 0..9u16 {
                assert!(!ring.arm(mem).unwrap());
                let word = |addr| mem.read_obj::<u16>(GuestAddress(addr)).unwrap();
                match (driver.packed, event_idx) {
                    (false, false) => assert_eq!(word(DEVICE), 0),
                    (false, true) => assert_eq!(word(DEVICE + 4 + 8 * 4), round),
                    (true, false) => assert_eq!(word(DEVICE + 2), 0),
                    (true, true) => {
                        let wrap = if (round / 4) % 2 == 0 { 1 << 15 } else { 0 };
                        assert_eq!((word(DEVICE), word(DEVICE + 2)), (wrap | (round % 4), 2));
                    }
                }
                driver.add(mem, &[(0x8000, 4, true)], false);
                assert!(ring.arm(mem).unwrap());
                let buffer = ring.pop(mem).unwrap().unwrap();
                ring.push_used(mem, buffer.head, 4).unwrap();
                driver.used(mem).unwrap();
            }
        });
    }
}

#[test]
fn queues_that_are_not_in_memory_are_refused() {
    each(8, |mem, driver| {
        let good = driver.layout();
        assert!(driver.ring(mem, good).is_ok());
        for layout in [
            Layout {
                desc: DESC + 8,
                ..good
            },
            Layout {
                desc: END - 16,
                ..good
            },
            Layout {
                desc: u64::MAX - 15,
                ..good
            },
            Layout {
                driver: DRIVER + 1,
                ..good
            },
            Layout {
                driver: END,
                ..good
            },
            Layout {
                device: DEVICE + 2,
                ..good
            },
            Layout {
                device: u64::MAX - 3,
                ..good
            },
            Layout { size: 0, ..good },
        ] {
            assert!(driver.ring(mem, layout).is_err(), "{layout:?}");
        }
    });
}

/// A descriptor's address, length, flags, and next (split) or ID (packed).
type Raw = (u64, u32, u16, u16);

/// Writes descriptor `index` of `table`.
fn raw(mem: &Memory, packed: bool, table: u64, index: u64, desc: Raw) {
    let (addr, len, flags, n) = desc;
    let at = table + DESC_SIZE * index;
    let (third, fourth) = if packed { (n, flags) } else { (flags, n) };
    mem.write_obj(addr, GuestAddress(at)).unwrap();
    mem.write_obj(len, GuestAddress(at + 8)).unwrap();
    mem.write_obj(third, GuestAddress(at + 12)).unwrap();
    mem.write_obj(fourth, GuestAddress(at + 14)).unwrap();
}

/// One descriptor at index 0, made available.
fn pop_one(mem: &Memory, mut driver: Driver, addr: u64, len: u32, flags: u16) -> RingError {
    let avail = if driver.packed { AVAIL } else { 0 };
    raw(mem, driver.packed, DESC, 0, (addr, len, flags | avail, 0));
    if !driver.packed {
        driver.publish(mem, 0);
    }
    let mut ring = driver.ring(mem, driver.layout()).unwrap();
    ring.pop(mem).unwrap_err()
}

#[test]
fn broken_chains_are_errors() {
    // A chain that never ends: a loop in a split ring, a full ring in a packed one.
    each(4, |mem, driver| {
        for index in 1..4 {
            let avail = if driver.packed { AVAIL } else { 0 };
            raw(
                mem,
                driver.packed,
                DESC,
                index,
                (0x8000, 1, NEXT | avail, 0),
            );
        }
        let error = pop_one(mem, driver, 0x8000, 1, NEXT);
        assert!(matches!(error, RingError::TooLong(4)), "{error}");
    });
    each(4, |mem, driver| {
        raw(mem, driver.packed, BUFFERS, 0, (BUFFERS, 16, INDIRECT, 0));
        let error = pop_one(mem, driver, BUFFERS, 16, INDIRECT);
        assert!(matches!(error, RingError::IndirectNested), "{error}");
    });
    each(4, |mem, driver| {
        let error = pop_one(mem, driver, BUFFERS, 16, INDIRECT | NEXT);
        assert!(matches!(error, RingError::IndirectNext), "{error}");
    });
    for len in [0, 15, 17] {
        each(4, |mem, driver| {
            let error = pop_one(mem, driver, BUFFERS, len, INDIRECT);
            assert!(matches!(error, RingError::IndirectLength(l) if l == len));
        });
    }
    each(4, |mem, driver| {
        let error = pop_one(mem, driver, END, 64, INDIRECT);
        assert!(matches!(error, RingError::Memory(_)), "{error}");
        // So long a table is walked as far as a chain may be long.
    });
    each(4, |mem, driver| {
        for index in 0..8 {
            raw(
                mem,
                driver.packed,
                BUFFERS,
                index,
                (0x8000, 1, NEXT, index as u16 + 1),
            );
        }
        let error = pop_one(mem, driver, BUFFERS, 0xffff_fff0, INDIRECT);
        assert!(matches!(error, RingError::TooLong(4)), "{error}");
    });
    // Readable after writable.
    each(4, |mem, driver| {
        raw(mem, driver.packed, BUFFERS, 0, (0x8000, 1, NEXT | WRITE, 1));
        raw(mem, driver.packed, BUFFERS, 1, (0x8000, 1, 0, 0));
        let error = pop_one(mem, driver, BUFFERS, 32, INDIRECT);
        assert!(matches!(error, RingError::Order), "{error}");
    });
    // More than 4 GiB.
    each(4, |mem, driver| {
        raw(mem, driver.packed, BUFFERS, 0, (0, u32::MAX, NEXT, 1));
        raw(mem, driver.packed, BUFFERS, 1, (0, u32::MAX, 0, 0));
        let error = pop_one(mem, driver, BUFFERS, 32, INDIRECT);
        assert!(matches!(error, RingError::TooBig), "{error}");
    });
}

#[test]
fn split_indices_are_checked() {
    let mem = memory();
    let mut driver = Driver::new(false, 4);
    let mut ring = driver.ring(&mem, driver.layout()).unwrap();
    driver.publish(&mem, 4);
    assert!(matches!(ring.pop(&mem), Err(RingError::Index(4, 4))));
    mem.write_obj(9u16, GuestAddress(DRIVER + 2)).unwrap();
    assert!(matches!(ring.pop(&mem), Err(RingError::AvailIndex(9, 4))));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// Random rings, tables and indices: every call returns, buffers are within bounds, and as
    /// many calls as the queue has descriptors (per index wrap) exhaust it or fail.
    #[test]
    fn hostile_memory_is_survived(
        packed in any::<bool>(),
        size_log in 0u32..5,
        event_idx in any::<bool>(),
        indirect in any::<bool>(),
        descs in proptest::collection::vec(
            (
                prop_oneof![Just(DESC), Just(BUFFERS), 0u64..END, any::<u64>()],
                prop_oneof![0u32..256, Just(16), Just(32), any::<u32>()],
                prop_oneof![any::<u16>(), (0u16..8).prop_map(|f| f | AVAIL)],
                prop_oneof![0u16..32, any::<u16>()],
            ),
            1..64,
        ),
        heads in proptest::collection::vec(prop_oneof![0u16..32, any::<u16>()], 0..32),
        index in prop_oneof![0u16..32, any::<u16>()],
        events in any::<[u16; 2]>(),
    ) {
        let mem = memory();
        let mut driver = Driver::new(packed, 1 << size_log);
        for (i, &(addr, len, flags, n)) in descs.iter().enumerate() {
            let table = if i % 2 == 0 { DESC } else { BUFFERS };
            raw(&mem, packed, table, i as u64 / 2, (addr, len, flags, n));
        }
        if packed {
            mem.write_obj(events, GuestAddress(DRIVER)).unwrap();
        } else {
            for head in heads {
                driver.publish(&mem, head);
            }
            mem.write_obj(index, GuestAddress(DRIVER + 2)).unwrap();
        }
        let mut layout = driver.layout();
        layout.event_idx = event_idx;
        layout.indirect = indirect;
        let mut ring = driver.ring(&mem, layout).unwrap();
        let mut popped = 0;
        for _ in 0..=2 * u32::from(driver.size) {
            let _ = ring.avail_mark(&mem);
            match ring.pop(&mem) {
                Ok(Some(buffer)) => {
                    popped += 1;
                    let pieces = buffer.readable.len() + buffer.writable.len();
                    prop_assert!(pieces <= usize::from(driver.size));
                    prop_assert!(buffer.head.descriptors <= driver.size);
                    prop_assert!(buffer.head.descriptors >= 1);
                    let _ = ring.push_used(&mem, buffer.head, 7);
                    let _ = ring.needs_notification(&mem);
                }
                Ok(None) => {
                    let _ = ring.arm(&mem);
                    break;
                }
                Err(_) => break,
            }
        }
        prop_assert!(popped <= 2 * u32::from(driver.size) + 1);
    }

    /// Random but well-formed traffic: what goes in comes out, once, in order, even if it was put
    /// back in between.
    #[test]
    fn traffic_is_lossless(
        packed in any::<bool>(),
        event_idx in any::<bool>(),
        chains in proptest::collection::vec((1usize..4, any::<bool>(), any::<u16>()), 1..200),
    ) {
        let mem = memory();
        let mut driver = Driver::new(packed, 8);
        let mut layout = driver.layout();
        layout.event_idx = event_idx;
        let mut ring = driver.ring(&mem, layout).unwrap();
        for (pieces, indirect, len) in chains {
            let pieces: Vec<_> = (0..pieces as u64).map(|i| (0x8000 + i, 1, true)).collect();
            let id = driver.add(&mem, &pieces, indirect);
            let mark = ring.avail_mark(&mem).unwrap();
            let position = ring.position();
            let buffer = ring.pop(&mem).unwrap().unwrap();
            // As if never taken.
            ring.put_back(buffer.head);
            prop_assert_eq!(ring.avail_mark(&mem).unwrap(), mark);
            prop_assert_eq!(ring.position(), position);
            prop_assert_eq!(ring.pop(&mem).unwrap(), Some(buffer.clone()));
            prop_assert_eq!(buffer.head.id, id);
            prop_assert_eq!(buffer.writable.len(), pieces.len());
            prop_assert!(ring.pop(&mem).unwrap().is_none());
            ring.push_used(&mem, buffer.head, len.into()).unwrap();
            prop_assert_eq!(driver.used(&mem), Some((id, len.into())));
            prop_assert_eq!(driver.used(&mem), None);
        }
    }
}
