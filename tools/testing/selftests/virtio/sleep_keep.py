#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""The system sleeps and is woken, and devices of this crate's drivers that could keep their state do
not, or are told not to: they are reset, as without SUSPEND. And many of them at a time.
"""

import os

from blk_lib import Disk
from blk_lib import works as disk_works
from sleep_lib import (
    MODES,
    Way,
    disk_load,
    keeps_state,
    sleep,
    sleep_and_see,
)
from suspend_lib import (
    PROMPT,
    SHARE,
    SLOWNESS,
    Child,
    Modules,
    Skip,
    case,
    device,
    devices,
    expect,
    require,
    run,
    select_rng,
    wait_for,
    within,
    works,
)

# How long a device may take for a suspend or a resume that it does not do.
SHORT_MS = 300 * SLOWNESS * SHARE
CYCLES = int(os.environ.get("SLEEP_CYCLES", "4"))


def that_keeps(driver, mode):
    """A device of a driver that can keep its state: in S3 its function sets No_Soft_Reset, and in
    s2idle it does not, and is left out.
    """
    for dev in devices():
        if dev.driver == driver and dev.mailbox and keeps_state(dev) == (mode == "deep"):
            return dev
    raise Skip(f"no such device of {driver}")


DRIVERS = (Modules.DRIVER, Modules.BLOCK)


def those_that_keep(mode):
    return [that_keeps(driver, mode) for driver in DRIVERS]


def goes_on(dev):
    """It works, and can be suspended by hand."""
    for _ in range(2):
        disk_works(Disk(dev)) if dev.driver == Modules.BLOCK else works(dev)
        dev.request("suspend")
        dev.request("resume")


def sleep_with(fault, mode, found):
    """The system sleeps, and the devices have that fault, which takes effect."""
    for dev in found:
        dev.mailbox.set(faults=[fault])
    sleep(mode)
    for dev in found:
        require(dev.mailbox.happened(fault), f"{fault} has not happened to {dev.name}")


def end_fault(found):
    for dev in found:
        dev.mailbox.set(faults=[])


# What keeps a device from keeping its state.
FAULTS = {
    "refuse": "needs-reset-on-suspend",
    "are not suspended in time": "suspend-never",
    "do not know SUSPEND": "suspend-ignored",
    "forget their state": "status-zero-while-suspended",
    "need a reset when they are to go on": "needs-reset-on-resume",
    "do not resume": "resume-never",
}


@case("{mode}: an entropy device and a disk that {what} are reset, and run",
      mode=MODES, what=tuple(FAULTS))  # fmt: skip
def faulty(mode, what):
    found = those_that_keep(mode)
    for dev in found:
        dev.write("timeout_ms", str(SHORT_MS))
    failures = [dev.number("failures") for dev in found]
    ways = [Way(dev) for dev in found]
    sleep_with(FAULTS[what], mode, found)
    end_fault(found)
    for way in ways:
        way.is_reset()
    for dev, before in zip(found, failures):
        require(dev.number("failures") > before, f"nothing of {dev.name} has failed")
        goes_on(dev)


@case("{mode}: a suspend of an entropy device is under way: it ends first, and the device stays suspended",
      mode=MODES)  # fmt: skip
def under_way(mode):
    dev = that_keeps(Modules.DRIVER, mode)
    # Longer than it takes until tasks are frozen.
    late = f"suspend-late={5 * SHORT_MS}"
    dev.mailbox.set(faults=[late])
    asked = []

    def begin():
        if dev.state == "suspended":
            dev.request("resume")
        asked.append(Child(dev.request, "suspend"))
        wait_for(lambda: dev.state == "suspending", "the suspend is under way")

    before = Way(dev)
    sleep(mode, begin)
    expect(asked[-1].errno(), "success", "the suspend that was under way")
    require(dev.mailbox.happened(late), "the device was not late")
    end_fault([dev])
    expect(dev.state, "suspended", "state")
    kept, reset, resets = before.since()
    require(kept > 0, "it has not kept its state")
    expect((reset, resets), (0, 0), "resets, by the driver and by the device")
    dev.request("resume")
    goes_on(dev)


@case("{mode}: a disk whose device forgets its state loses nothing under load", mode=MODES)
def forgetful_disk(mode):
    target = Disk(that_keeps(Modules.BLOCK, mode))
    with disk_load(target.path):
        way = Way(target.dev)
        sleep_with("status-zero-while-suspended", mode, [target.dev])
        end_fault([target.dev])
        way.is_reset()
    goes_on(target.dev)


# Of one that reads as all ones it can't be told whether a reset would help: it is not waited for.
@case("{mode}: an entropy device and a disk that are gone have failed when it is awake, in time: {fault}",
      mode=MODES, fault=("gone-while-suspended", "status-ones-while-suspended"))  # fmt: skip
def gone(mode, fault):
    found = those_that_keep(mode)
    with within(10 * PROMPT, "a sleep with devices that are gone"):
        sleep_with(fault, mode, found)
    for dev in found:
        expect(dev.state, "failed", f"state of {dev.name}")
    end_fault(found)
    for dev in found:
        dev.rebind()
        goes_on(dev)


@case("{mode}: an entropy device and a disk, suspended by hand, are out of reach: suspended still",
      mode=MODES)  # fmt: skip
def away(mode):
    found = those_that_keep(mode)
    for dev in found:
        dev.request("suspend")
        dev.mailbox.command("fault-now", fault="away")
    sleep(mode)
    for dev in found:
        expect(dev.state, "suspended", f"state of {dev.name}")
    end_fault(found)
    for dev in found:
        dev.request("resume")
        goes_on(dev)


@case("{mode}: an entropy device and a disk, suspended by hand, forget their state: they run",
      mode=MODES)  # fmt: skip
def forgets_by_hand(mode):
    found = those_that_keep(mode)
    for dev in found:
        dev.request("suspend")
    ways = [Way(dev) for dev in found]
    for dev in found:
        dev.mailbox.command("fault-now", fault="status-zero")
    sleep(mode)
    for dev, way in zip(found, ways):
        expect(dev.state, "running", f"state of {dev.name}")
        require(way.since()[1] > 0, f"{dev.name} has not been reset")
        goes_on(dev)


@case("{mode}: sleep = reset: devices are reset, whatever their functions say", mode=MODES)
def told_to_reset(mode):
    found = [dev for dev in devices() if dev.mailbox]
    for dev in found:
        expect(dev.read("sleep"), "keep", f"sleep of {dev.name}")
        dev.write("sleep", "reset\n")
        expect(dev.read("sleep"), "reset", f"sleep of {dev.name}")
    try:
        ways = [Way(dev) for dev in found]
        sleep(mode)
        for way in ways:
            way.is_reset()
    finally:
        for dev in found:
            dev.write("sleep", "keep")
    for dev in those_that_keep(mode):
        goes_on(dev)


@case("sleep_keep=0 has devices reset")
def parameter():
    dev = device(mailbox=True, sleep_keep=0)
    expect(dev.read("sleep"), "reset", "sleep")
    way = Way(dev)
    sleep("s2idle")
    way.is_reset()
    dev.write("sleep", "keep")
    way = Way(dev)
    sleep("s2idle")
    way.is_kept()


@case("{mode}: all devices, every other one suspended by hand: as before, those that can", mode=MODES)
def many(mode):
    found = devices()
    require(len(found) > 3, f"there are {len(found)} devices")
    for dev in found[::2]:
        dev.request("suspend")
    sleep_and_see(mode, found)
    for dev in found:
        if dev.state == "suspended":
            dev.request("resume")
        goes_on(dev) if dev.driver in DRIVERS else expect(dev.state, "running", "state")


@case(f"{CYCLES} sleeps, of both kinds, with disks under load and a reader: nothing is lost")
def cycles():
    kept = Disk(that_keeps(Modules.BLOCK, "deep"))
    rng = that_keeps(Modules.DRIVER, "deep")
    select_rng(rng)
    with disk_load(kept.path):
        for number in range(CYCLES):
            mode = MODES[number % 2]
            way, other = Way(kept.dev), Way(rng)
            sleep(mode)
            way.is_kept()
            other.is_kept()
    works(rng)
    disk_works(kept)


if __name__ == "__main__":
    run(block=True, input=True)
