#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""The system sleeps and is woken, and devices of the kernel's own drivers, which virtio_suspend extends,
could keep their state and do not, or are told not to: they are reset, as without SUSPEND. And many of
them at a time.

In s2idle all of them could. In S3 those could whose functions set No_Soft_Reset.
"""

import contextlib
import os

from ext_lib import drivers, extend, path_of
from ext_net_lib import Stream
from net_lib import cable
from sleep_lib import (
    MODES,
    Way,
    can_keep,
    disk_load,
    refuses_to_sleep,
    sleep,
    sleep_and_see,
    test_sleep,
)
from suspend_lib import (
    PROMPT,
    SHARE,
    SLOWNESS,
    TIMEOUT_MS,
    Modules,
    Skip,
    case,
    devices,
    entropy_flows,
    expect,
    require,
    run,
    select_rng,
    works,
)

# How long a device may take for a suspend or a resume that it does not do.
SHORT_MS = 300 * SLOWNESS * SHARE
# In the long form, how often the system sleeps in each of the two ways.
CYCLES = int(os.environ.get("SLEEP_CYCLES", "0"))

DISK, NET = "virtio_blk", "virtio_net"
ENTROPY, INPUT = "virtio_rng", "virtio_input"


@contextlib.contextmanager
def extended():
    """The devices of the kernel's drivers, which work: disks, and interfaces that are up."""
    with drivers() as found:
        present = [dev for driver in found for dev in extend(driver)]
        for dev in present:
            dev.write("timeout_ms", str(TIMEOUT_MS))
            dev.works()
        yield present


def those_that_keep(mode, present):
    found = [dev for dev in present if can_keep(dev, mode)]
    for driver in (DISK, NET):
        if not any(dev.driver == driver for dev in found):
            raise Skip(f"no device of {driver} can keep its state")
    return found


def goes_on(dev):
    """It works, and can be suspended by hand."""
    dev.cycle()
    dev.works()


def sleep_with(faults, mode):
    """The system sleeps, and each device has its fault, which takes effect and ends."""
    for dev, fault in faults.items():
        dev.mailbox.set(faults=[fault])
    sleep(mode)
    for dev, fault in faults.items():
        require(dev.mailbox.happened(fault), f"{fault} has not happened to {dev.name}")
        dev.mailbox.set(faults=[])


# What keeps a device from keeping its state, two and two.
FAULTS = {
    "refuse or forget": ("needs-reset-on-suspend", "status-zero-while-suspended"),
    "are not suspended, or do not know SUSPEND": ("suspend-never", "suspend-ignored"),
    "do not resume, or need a reset": ("resume-never", "needs-reset-on-resume"),
}


@case("s2idle: disks and interfaces that {what} are reset, and run", what=tuple(FAULTS))
def faulty(what):
    with extended() as present:
        found = those_that_keep("s2idle", present)
        for dev in found:
            dev.write("timeout_ms", str(SHORT_MS))
        # Of a disk and an interface each, one has the one and one the other.
        each = [dev for driver in (DISK, NET) for dev in found if dev.driver == driver][:4]
        faults = dict(zip(each, FAULTS[what] * 2))
        failures = {dev: dev.number("failures") for dev in faults}
        ways = [Way(dev) for dev in faults]
        sleep_with(faults, "s2idle")
        for way in ways:
            way.is_reset()
        for dev in faults:
            require(dev.number("failures") > failures[dev], f"nothing of {dev.name} has failed")
            dev.write("timeout_ms", str(TIMEOUT_MS))
            goes_on(dev)


@case("s2idle: disks and interfaces that are slow, but not too slow, keep their state")
def slow():
    with extended() as present:
        found = those_that_keep("s2idle", present)
        faults = dict(zip(found, (f"suspend-late={SHORT_MS}", f"resume-late={SHORT_MS}") * len(found)))
        ways = [Way(dev) for dev in faults]
        sleep_with(faults, "s2idle")
        for way in ways:
            way.is_kept()
        for dev in faults:
            goes_on(dev)


# Of one that reads as all ones it can't be told whether a reset would help: it is not waited for.
@case("s2idle: disks and interfaces that are gone have failed when it is awake, in time")
def gone():
    with extended() as present:
        found = those_that_keep("s2idle", present)
        faults = dict.fromkeys(found[::2], "gone-while-suspended")
        faults |= dict.fromkeys(found[1::2], "status-ones-while-suspended")
        sleep_with(faults, "s2idle")
        for dev in found:
            expect(dev.state, "failed", f"state of {dev.name}")
        for dev in found:
            dev.rebind()
            goes_on(dev)


@case("s2idle: suspended by hand: those out of reach are suspended still, those that forget it run")
def lost_by_hand():
    with extended() as present:
        found = those_that_keep("s2idle", present)
        for dev in found:
            dev.request("suspend")
        away, forgetful = found[::2], found[1::2]
        for dev in away:
            dev.mailbox.command("fault-now", fault="away")
        ways = [Way(dev) for dev in forgetful]
        for dev in forgetful:
            dev.mailbox.command("fault-now", fault="status-zero")
        sleep("s2idle")
        for dev in away:
            expect(dev.state, "suspended", f"state of {dev.name}")
            dev.mailbox.set(faults=[])
            dev.request("resume")
        for dev, way in zip(forgetful, ways):
            expect(dev.state, "running", f"state of {dev.name}")
            require(way.since()[2] > 0, f"{dev.name} has not been reset")
        for dev in found:
            goes_on(dev)


@case("s2idle: sleep = reset: devices are reset, whatever their functions say; not one suspended by hand")
def told_to_reset():
    with extended() as present:
        for dev in present:
            expect(dev.read("sleep"), "keep", f"sleep of {dev.name}")
            dev.write("sleep", "reset\n")
            expect(dev.read("sleep"), "reset", f"sleep of {dev.name}")
        ways = [Way(dev) for dev in present]
        sleep("s2idle")
        for way in ways:
            way.is_reset()
        for dev in present:
            goes_on(dev)
        held = next(dev for dev in present if dev.driver == NET)
        held.request("suspend")
        refuses_to_sleep("s2idle", "EBUSY")
        expect(held.state, "suspended", f"state of {held.name}")


def serve(present):
    """Entropy flows from each device that has some; the others can be suspended."""
    for dev in present:
        expect(dev.state, "running", f"state of {dev.name}")
        if dev.driver == ENTROPY:
            select_rng(dev)
            entropy_flows(f"{dev.name} delivers")
        dev.cycle()


@case("{mode}: virtio_rng and virtio_input, idle, suspended by hand, and with devices that forget",
      mode=MODES)  # fmt: skip
def replayed(mode):
    with drivers(ENTROPY, INPUT) as found:
        present = [dev for driver in found for dev in extend(driver)]
        serve(present)
        sleep_and_see(mode, present)
        serve(present)
        # virtio_rng that is suspended and would be reset keeps the system awake, as virtio_net does.
        kept = [dev for dev in present if can_keep(dev, mode)]
        require(kept, "no device can keep its state")
        for dev in kept:
            dev.request("suspend")
        sleep_and_see(mode, present)
        for dev in kept:
            dev.request("resume")
        serve(present)
        forget = dict.fromkeys(kept, "status-zero-while-suspended")
        ways = [Way(dev) for dev in kept]
        sleep_with(forget, mode)
        for way in ways:
            way.is_reset()
        serve(present)


def natives():
    return [dev for dev in devices() if dev.driver == Modules.DRIVER]


@case("{mode}: eight devices, every other one suspended by hand: as before, those that can",
      mode=MODES if CYCLES else MODES[:1])  # fmt: skip
def many(mode):
    with extended() as present:
        found = present + devices()
        require(len(found) >= 8, f"there are {len(found)} devices")
        # An interface that can't keep its state keeps the system awake.
        by_hand = [dev for dev in found if dev.driver != NET or can_keep(dev, mode)][::2]
        for dev in by_hand:
            dev.request("suspend")
        sleep_and_see(mode, found)
        for dev in by_hand:
            if dev.state == "suspended":
                dev.request("resume")
        for dev in found:
            goes_on(dev) if dev in present else expect(dev.state, "running", f"state of {dev.name}")
        for dev in natives():
            works(dev)


# How far the system goes to sleep in a test of it.
LEVELS = {"s2idle": ("devices", "platform"), "deep": ("devices", "core")}


@case("{mode}, as far as pm_test says: devices, those of our drivers, too, as in a sleep", mode=MODES)
def tested(mode):
    with extended() as present:
        found = present + devices()
        for level in LEVELS[mode]:
            sleep_and_see(mode, found, lambda mode, level=level: test_sleep(mode, level))
        for dev in present:
            goes_on(dev)
        for dev in natives():
            works(dev)


@case("{mode}: the long form: many sleeps, disks under load and a TCP connection: nothing is lost",
      mode=MODES if CYCLES else ())  # fmt: skip
def cycles(mode):
    with extended() as present, contextlib.ExitStack() as stack:
        for dev in present:
            if dev.driver == DISK:
                stack.enter_context(disk_load(path_of(dev)))
        one, other = cable()
        for end in (one, other):
            stack.callback(end.tear_down)
        stream = Stream(one, other)
        stream.moves()
        for number in range(CYCLES):
            sleep_and_see(mode, present)
            stream.moves()
            if number % 10 == 9:
                print(f"# {number + 1} sleeps, {stream.bytes} bytes over the connection")
        stream.finish()


if __name__ == "__main__":
    run(input=True)
