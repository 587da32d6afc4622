#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""The system is to sleep while a device is suspended. That is ext_blk.py for the kernel's own driver.

Sleep from which the system wakes up needs a guest of its own.
"""

from blk_lib import disk, works
from awake_lib import about_to_hibernate, freezing_ends, refuses_to_hibernate, sync_ends
from suspend_lib import case, device, expect, run, told


@case("entropy: the system does not hibernate while the device is suspended")
def hibernate_entropy():
    refuses_to_hibernate(device())


@case("entropy: a driver that is bound when the system is about to sleep: EBUSY until it is awake")
def bound_late():
    target = disk()
    dev = device()
    with about_to_hibernate(target, target.path):
        # One that was bound before.
        expect(told(target.dev.request, "suspend"), "EBUSY", "suspend")
        dev.rebind()
        expect(told(dev.request, "suspend"), "EBUSY", "suspend")
        expect(dev.state, "running", "state")
    dev.request("suspend")
    dev.request("resume")
    works(target)


@case("disk: the system does not hibernate while the device is suspended")
def hibernate():
    target = disk()
    refuses_to_hibernate(target.dev)
    works(target)


@case("disk: {kind} with something to be written to the suspended disk: EBUSY, and it can be resumed",
      kind=("freeze", "mem"))
def dirty(kind):
    target = disk()
    sync_ends(target.dev, target.path, kind)
    works(target)


@case("disk: {kind} while somebody waits for the suspended disk: EBUSY, and it can be resumed",
      kind=("freeze", "mem"))
def waited_for(kind):
    target = disk()
    freezing_ends(target.dev, lambda: target.read(0, 4096), kind)
    works(target)


if __name__ == "__main__":
    run(block=True)
