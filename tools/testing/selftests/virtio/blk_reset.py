#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""The PCI function is reset while the driver is unbound and bound: neither sees half of the other.

The bus tells a driver of a reset of its function with the lock of the function held, but not that
of the virtio device, so that it meets every moment of an unbind and of a probe.

The virtio core of Linux 7.3 is not made for that either. It reads the status, adds a bit and writes
it back without a lock, in the reset as in the probe: bits get lost (D7), and now and then a device
is not reset when its driver has been unbound, of which the core warns ("virtio_dev_remove"). So
this is not among the tests that have to pass: what counts are the guest's life and the device that
works in the end.
"""

import errno
import mmap
import time
from pathlib import Path

from suspend_lib import (
    PROMPT,
    SLOWNESS,
    Child,
    Modules,
    Skip,
    case,
    devices,
    expect,
    require,
    run,
)

import blk_lib
import suspend_lib

# How long the two are at it.
SECONDS = 12 * SLOWNESS

# What a write to these files fails with when the other one was faster.
EXPECTED = {errno.ENODEV, errno.EBUSY, errno.EIO, errno.EINVAL, errno.ENOENT, errno.ENOTTY}


def attempt(path, text):
    """Writes that to a file in sysfs, if that is possible now; returns whether it was."""
    try:
        path.write_text(text)
    except OSError as error:
        require(error.errno in EXPECTED, f"{path}: {error}")
        return False
    return True


def over_and_over(counter, *steps):
    """Takes the steps in turn, in a child; counts in shared memory how often they worked."""
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        if all([attempt(*step) for step in steps]):
            counter[0] += 1
        else:
            # The function is being reset: every bind fails until that is over.
            time.sleep(0.01)


def race(dev):
    reset = dev.pci / "reset"
    if not reset.exists():
        raise Skip(f"{dev.name} can't be reset")
    driver = Path("/sys/bus/virtio/drivers") / dev.driver
    memory = [mmap.mmap(-1, 4096) for _ in range(2)]
    words = [memoryview(one).cast("I") for one in memory]
    children = [
        Child(over_and_over, words[0], (reset, "1")),
        Child(over_and_over, words[1], (driver / "unbind", dev.name), (driver / "bind", dev.name)),
    ]
    for child in children:
        expect(child.errno(SECONDS + 10 * PROMPT, "a loop ends"), "success", "a loop")
    resets, binds = (word[0] for word in words)
    print(f"# {resets} resets, {binds} binds")
    require(resets >= 2 and binds >= 2, f"only {resets} resets and {binds} binds")
    # The virtio core reads the status, adds a bit and writes it back without a lock, in the reset
    # as in the probe, and so clears bits that the other one has set (D7).
    dev.mailbox.clear()


def rebound(dev):
    """The device is bound anew, whatever the race left."""
    if (dev.path / "driver").exists():
        dev.unbind()
    dev.bind()


@case("a disk: its function is reset again and again, its driver unbound and bound")
def disk():
    target = blk_lib.disk()
    race(target.dev)
    rebound(target.dev)
    blk_lib.works(target)


@case("entropy: its function is reset again and again, its driver unbound and bound")
def entropy():
    dev = next((d for d in devices() if d.driver == Modules.DRIVER and d.mailbox), None)
    if not dev:
        raise Skip("no test device for entropy")
    race(dev)
    rebound(dev)
    suspend_lib.works(dev)


if __name__ == "__main__":
    run(block=True)
