#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""An input device, with our driver: what it is, events and lights, suspends, resets, and the end.

The test device counts: each movement that it streams is one more than the last, so that one that is
lost, or comes twice, or too early, is seen.
"""

import array
import contextlib
import fcntl
import os
import random
import time
from pathlib import Path

from input_lib import (
    EV_ABS,
    EV_KEY,
    EV_LED,
    EV_MSC,
    EV_REL,
    EV_REP,
    EV_SND,
    EV_SYN,
    EVENT,
    KEY_A,
    KEY_S,
    LED_CAPSL,
    LED_SCROLLL,
    MSC_SCAN,
    MSC_TIMESTAMP,
    REL_Y,
    REP_DELAY,
    REP_PERIOD,
    SND_BELL,
    SYN,
    load_evdev,
    press,
    target,
    works,
)
from suspend_lib import (
    REVISIONS,
    SHARE,
    SLOWNESS,
    Child,
    Modules,
    Skip,
    case,
    expect,
    expect_errno,
    modules,
    require,
    run,
    sh,
    wait_for,
)

CYCLES = int(os.environ.get("INPUT_CYCLES", "50"))
# How long a device runs, and is suspended, at most, in seconds.
MOMENT = 0.03 * SLOWNESS * SHARE

# From linux/input-event-codes.h and linux/input.h.
ABS_MT_SLOT, ABS_MT_POSITION_X, ABS_MT_TRACKING_ID = 0x2F, 0x35, 0x39
BUS_VIRTUAL = 6
EVIOCGREP = 0x80084503
EVIOCSREP = 0x40084503


def eviocgabs(axis):
    return 0x80184540 + axis


def eviocgmtslots(length):
    return 0x80000000 | length << 16 | 0x450A


# What the device tells, VIRTIO 1.4, "Input Device".
ID_NAME, ID_SERIAL, ID_DEVIDS = 1, 2, 3
EV_BITS, ABS_INFO = 0x11, 0x12
# How many contacts it knows.
SLOTS = 32


def facts(aim):
    """What programs can learn of the device."""
    sysfs = aim.sysfs
    found = {}
    for pattern in ("name", "phys", "uniq", "properties", "modalias", "id/*", "capabilities/*"):
        for path in sysfs.glob(pattern):
            found[str(path.relative_to(sysfs))] = path.read_text()
    uevent = (sysfs / "uevent").read_text()
    found["uevent"] = [line for line in uevent.splitlines() if not line.startswith("SEQNUM")]
    with aim.node() as node:
        for axis in range(64):
            # Value, minimum, maximum, fuzz, flat, resolution.
            values = array.array("i", [0] * 6)
            try:
                fcntl.ioctl(node.fd, eviocgabs(axis), values)
            except OSError as error:
                found["abs", axis] = error.errno
            else:
                found["abs", axis] = list(values)
        # One more than there are.
        slots = array.array("i", [ABS_MT_POSITION_X] + [-7] * (SLOTS + 1))
        fcntl.ioctl(node.fd, eviocgmtslots(4 * len(slots)), slots)
        found["slots"] = list(slots)
        repeat = array.array("I", [0, 0])
        fcntl.ioctl(node.fd, EVIOCGREP, repeat)
        found["repeat"] = list(repeat)
    return found


@contextlib.contextmanager
def stock_driver(aim):
    """The kernel's own driver has the device."""
    directory = Path("/usr/lib/modules", os.uname().release, "kernel/drivers/virtio")
    found = sorted(directory.glob("virtio_input.ko*"))
    if not found:
        raise Skip("the kernel has no module virtio_input")
    modules.remove(Modules.INPUT)
    try:
        sh("insmod", str(found[0]))
        require(not aim.dev.is_bound, "that is no driver of the kernel's own")
        yield
    finally:
        modules.remove(Modules.INPUT)
        modules.load_input()
        wait_for(lambda: aim.dev.is_bound, "our driver has the device")


@case("programs see what the kernel's own driver shows them")
def same():
    aim = target()
    ours = facts(aim)
    with stock_driver(aim):
        theirs = facts(aim)
    expect(ours["name"], "virtio test input\n", "name")
    expect(ours["abs", 0], [0, 0, 32767, 4, 8, 12], "axis")
    expect(len(ours), len(theirs), "number of facts")
    for key, value in theirs.items():
        expect(ours[key], value, str(key))


@case("what a device tells wrongly, or at greatest length, is cut to what can be")
def lengths():
    aim = target()
    items = (
        (ID_NAME, 0, 255, [65] * 128),
        (ID_SERIAL, 0, 128, [66, 67, 0, 68]),
        (ID_DEVIDS, 0, 4, [1, 2, 3, 4]),
        # All keys that 255 bytes would have, of which 768 exist.
        (EV_BITS, EV_KEY, 255, [255] * 128),
    )
    with aim.like(*items):
        aim.dev.rebind()
        sysfs = aim.sysfs
        expect((sysfs / "name").read_text(), "A" * 128 + "\n", "name")
        expect((sysfs / "uniq").read_text(), "BC\n", "serial number")
        expect(int((sysfs / "id/bustype").read_text(), 16), BUS_VIRTUAL, "bus")
        expect((sysfs / "id/vendor").read_text(), "0000\n", "vendor")
        keys = (sysfs / "capabilities/key").read_text().split()
        expect(sum(int(word, 16).bit_count() for word in keys), 767, "keys")
        works(aim)
    expect((aim.sysfs / "name").read_text(), "virtio test input\n", "name")


@case("a device is refused if it has {what}", what=("axes, but none", "too many contacts"))
def refused(what):
    aim = target()
    item = {
        "axes, but none": (EV_BITS, EV_ABS, 1, [0]),
        # 2^31 - 1, and one more is no number of them.
        "too many contacts": (ABS_INFO, ABS_MT_SLOT, 20, [0, 0, 0, 0, 255, 255, 255, 127] + [0] * 12),
    }[what]
    with aim.like(item):
        aim.dev.unbind()
        bind = Path(f"/sys/bus/virtio/drivers/{Modules.INPUT}/bind")
        expect_errno("EINVAL", "bind", bind.write_text, aim.dev.name)
        expect(list(aim.dev.path.glob("input*")), [], "input devices")
    works(aim)


@case("events come in their order, whatever they are")
def order():
    aim = target()
    events = []
    for i in range(1, 121):
        events += [(EV_KEY, KEY_A + i % 7, 1), (EV_REL, REL_Y, i), (EV_ABS, 0, 100 * i), SYN]
        events += [(EV_KEY, KEY_A + i % 7, 0), SYN]
    with aim.node() as node:
        got = []
        for at in range(0, len(events), 60):
            aim.inject(*events[at : at + 60])
            wait_for(aim.is_idle, "the device has reported all")
            got += node.read()
        wait_for(lambda: got.extend(node.read()) or len(got) >= len(events), "all have come")
    expect(got, events, "events")


@case("what is passed on to the device comes there, but for the time of contacts")
def echo():
    aim = target()
    with aim.node() as node:
        aim.mailbox.clear()
        events = [(EV_MSC, MSC_TIMESTAMP, 7), (EV_MSC, MSC_SCAN, 8), SYN]
        aim.inject(*events)
        node.expect(events, "events")
        # It has also been told how keys repeat, when it was opened.
        heard = wait_for(
            lambda: [event for event in aim.report()["status"] if event[0] == EV_MSC],
            "the device hears of it",
        )
    expect(heard, [[EV_MSC, MSC_SCAN, 8]], "what the device has heard")


@case("{revision}: {cycles} suspends at random moments: no event is lost",
      revision=REVISIONS, cycles=[CYCLES])
def under_load(revision, cycles):
    aim = target(revision)
    dev = aim.dev
    rows = []
    piled = 0
    with aim.node() as node:
        aim.mailbox.clear()
        # More than there is time for: it is stopped in the end.
        aim.change(stream={"count": 1 << 30, "interval_us": 1500 * SLOWNESS * SHARE})
        before = dev.counts()
        for _ in range(cycles):
            time.sleep(random.uniform(0, MOMENT))
            rows += node.read()
            dev.request("suspend")
            rows += node.read()
            time.sleep(random.uniform(0, MOMENT))
            expect(node.read(), [], "events of a suspended device")
            piled += not aim.is_idle()
            dev.request("resume")
        after = dev.counts()
        aim.change(stream={"count": 0, "interval_us": 0})
        wait_for(aim.is_idle, "the device has reported all")
        delivered = aim.report()["delivered"]
        wait_for(lambda: rows.extend(node.read()) or len(rows) >= delivered, "all have come")
    expect(after, (before[0] + cycles, before[1] + cycles, before[2]), "suspends, resumes, failures")
    require(piled > cycles / 4, f"something happened during {piled} of {cycles} suspends only")
    expect(aim.report()["dropped"], 0, "events that the device could not keep")
    moves = [row for row in rows if row != SYN]
    expect(moves, [(EV_REL, REL_Y, i) for i in range(1, len(moves) + 1)], "movements")


@case("{revision}: events of which the device has not notified are passed on at the suspend",
      revision=REVISIONS)
def not_notified(revision):
    aim = target(revision)
    with aim.node() as node:
        # Twice, which is more than there are buffers: those of the first time are used again.
        for i in (1, 2):
            events = [event for n in range(20 * i, 20 * i + 20) for event in ((EV_REL, REL_Y, n), SYN)]
            aim.mailbox.set(faults=["used-irq-lost"])
            aim.inject(*events)
            wait_for(aim.is_idle, "the device has reported all")
            expect(node.read(), [], "what the driver has seen")
            aim.dev.request("suspend")
            node.expect(events, "what the device had reported")
            aim.dev.request("resume")
            aim.mailbox.set(faults=[])


@case("{revision}: what is set while the device is suspended is set after the resume",
      revision=REVISIONS)
def lights(revision):
    aim = target(revision)
    with aim.node() as node:
        node.write(EV_LED, LED_CAPSL, 1)
        aim.shows(EV_LED, LED_CAPSL, 1)
        aim.dev.request("suspend")
        aim.mailbox.clear()
        for kind, code, value in (
            (EV_LED, LED_CAPSL, 0),
            (EV_LED, LED_SCROLLL, 1),
            (EV_LED, LED_CAPSL, 1),
            (EV_SND, SND_BELL, 1),
            (EV_LED, LED_CAPSL, 0),
        ):
            node.write(kind, code, value)
        fcntl.ioctl(node.fd, EVIOCSREP, array.array("I", [300, 40]))
        expect(aim.report()["received"], 0, "what the device was told while it was suspended")
        aim.dev.request("resume")
        wait_for(lambda: aim.report()["received"] >= 5, "the device is told")
        # Of those set more than once, the last.
        expected = [
            [EV_LED, LED_SCROLLL, 1],
            [EV_SND, SND_BELL, 1],
            [EV_LED, LED_CAPSL, 0],
            [EV_REP, REP_DELAY, 300],
            [EV_REP, REP_PERIOD, 40],
        ]
        expect(aim.report()["status"], expected, "what the device was told")
        node.write(EV_SND, SND_BELL, 0)
        node.write(EV_LED, LED_SCROLLL, 0)
        aim.shows(EV_LED, LED_SCROLLL, 0)


@case("a virtqueue that is full: what is set waits for room")
def full():
    aim = target()
    with aim.node() as node:
        # It takes what it is given, and gives none of it back.
        aim.mailbox.set(hold=True)
        for i in range(100):
            node.write(EV_LED, LED_CAPSL, i % 2)
            node.write(EV_LED, LED_SCROLLL, i % 2)

        def is_full():
            queue = aim.mailbox.stats()["queues"][1]
            return queue["in_process"] == queue["size"]

        wait_for(is_full, "the status queue is full")
        node.write(EV_LED, LED_CAPSL, 0)
        aim.mailbox.set(hold=False)
        aim.shows(EV_LED, LED_SCROLLL, 1)
        aim.shows(EV_LED, LED_CAPSL, 0)
        wait_for(lambda: aim.mailbox.stats()["queues"][1]["in_process"] == 0, "all are done")
        expect(aim.states()[EV_LED, LED_SCROLLL], 1, "scroll lock")
        node.write(EV_LED, LED_SCROLLL, 0)


def reader(aim):
    """A child that has the device open, and reads until there is an error."""
    path = f"/dev/input/{next(p.name for p in aim.sysfs.glob('event*'))}"
    ready, tell = os.pipe()

    def read():
        fd = os.open(path, os.O_RDONLY)
        os.write(tell, b".")
        while True:
            os.read(fd, EVENT.size)

    child = Child(read)
    os.close(tell)
    expect(os.read(ready, 1), b".", "the reader")
    os.close(ready)
    return child


@case("a suspended device is {what} while somebody reads: ENODEV",
      what=("unbound", "unplugged", "left by its module"))
def removed(what):
    aim = target()
    child = reader(aim)
    with aim.node() as node:
        press(node, aim, KEY_A, 1)
        aim.dev.request("suspend")
        if what == "unbound":
            aim.dev.unbind()
        elif what == "unplugged":
            aim.dev.unplug()
        else:
            modules.remove(Modules.INPUT)
        expect(child.errno(), "ENODEV", "the reader")
        expect_errno("ENODEV", "a light", node.write, EV_LED, LED_CAPSL, 1)
    if what == "unbound":
        aim.dev.bind()
    elif what == "unplugged":
        aim.dev.plug()
        aim = target()
    else:
        modules.load_input()
        wait_for(lambda: aim.dev.is_bound, "the device is bound")
    works(aim)


# By the core, which marks what it reports itself.
RELEASED = [(EV_KEY, KEY_A, 0), (EV_SYN, 0, 1)]


@case("a device that fails for good: keys are released")
def given_up():
    aim = target()
    with aim.node() as node:
        before = aim.dev.number("recoveries")
        aim.mailbox.command("fault-now", fault="needs-reset")
        wait_for(lambda: aim.dev.number("recoveries") == before + 1, "the device is reset")
        node.read()
        press(node, aim, KEY_A, 1)
        # Once more so soon, and it is not tried again.
        aim.mailbox.command("fault-now", fault="needs-reset")
        wait_for(lambda: aim.dev.state == "failed", "the device is given up")
        node.expect(RELEASED, "the key is released")


@case("a device that needs a reset: keys and contacts are released, lights as they were, and on")
def recovered():
    aim = target()
    with aim.node() as node:
        node.write(EV_LED, LED_CAPSL, 1)
        aim.shows(EV_LED, LED_CAPSL, 1)
        press(node, aim, KEY_A, 1)
        contact = [(EV_ABS, ABS_MT_SLOT, 1), (EV_ABS, ABS_MT_TRACKING_ID, 5), SYN]
        aim.inject(*contact)
        node.expect(contact, "a contact")
        before = aim.dev.number("recoveries")
        aim.mailbox.command("fault-now", fault="needs-reset")
        wait_for(lambda: aim.dev.number("recoveries") == before + 1, "the device is reset")
        expect(aim.dev.state, "running", "state")
        node.expect([*RELEASED, (EV_ABS, ABS_MT_TRACKING_ID, -1), SYN], "they are released")
        aim.shows(EV_LED, LED_CAPSL, 1)
        press(node, aim, KEY_A, 1)
        press(node, aim, KEY_A, 0)
        node.write(EV_LED, LED_CAPSL, 0)


@case("a device that refuses to suspend is reset, and lights are as they were")
def refused_to_suspend():
    aim = target("1.4")
    with aim.node() as node:
        node.write(EV_LED, LED_CAPSL, 1)
        aim.shows(EV_LED, LED_CAPSL, 1)
        aim.mailbox.set(refuse_suspend=True)
        before = aim.dev.number("recoveries")
        expect(Child(aim.dev.request, "suspend").errno(), "EIO", "the request")
        aim.mailbox.set(refuse_suspend=False)
        wait_for(lambda: aim.dev.number("recoveries") == before + 1, "the device is reset")
        expect(aim.dev.state, "running", "state")
        aim.shows(EV_LED, LED_CAPSL, 1)
        # What was written before is reported with the end of what the reset has released.
        node.read()
        press(node, aim, KEY_A, 1)
        press(node, aim, KEY_A, 0)
        node.write(EV_LED, LED_CAPSL, 0)


@case("an event that the device has not written is none")
def not_written():
    aim = target()
    with aim.node() as node:
        aim.mailbox.set(faults=["used-zero"])
        aim.inject((EV_KEY, KEY_A, 1), SYN)
        wait_for(aim.is_idle, "the device has reported it")
        aim.mailbox.set(faults=[])
        press(node, aim, KEY_S, 1)
        press(node, aim, KEY_S, 0)


if __name__ == "__main__":
    load_evdev()
    run(input=True)
