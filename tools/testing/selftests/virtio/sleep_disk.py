#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""The system is written to a disk, and goes on from there in another machine.

The first disk is overwritten: it is where the image goes.
"""

import contextlib
import hashlib
import os
import time

from ext_lib import each_driver
from sleep_lib import hibernate, prepare
from suspend_lib import (
    PROMPT,
    Child,
    case,
    expect,
    require,
    run,
    sh,
    wait_for,
)

# How the machine is switched off when the image is written.
WAYS = ("platform", "shutdown")


@contextlib.contextmanager
def swap_on(path):
    """Has the disk hold the image."""
    sh("mkswap", path)
    sh("swapon", path)
    try:
        yield
    finally:
        sh("swapoff", path)


def goes_on(path, way):
    """Writes the system to a disk; in the end the programs that ran go on, and know what they did."""
    prepare("disk")
    kept = os.urandom(1 << 20)
    digest = hashlib.md5(kept).digest()
    end, other = os.pipe()

    def count():
        for number in range(1 << 30):
            os.write(other, bytes([number & 0xFF]))
            time.sleep(0.01)

    with swap_on(path):
        child = Child(count)
        first = os.read(end, 1)[0]
        hibernate(path, way)
        expect(child.poll(), None, "the end of a child")
        # It has neither begun anew nor left out anything.
        expected = first
        for byte in os.read(end, 4096):
            expected = (expected + 1) & 0xFF
            expect(byte, expected, "what the child counts")
        require(os.read(end, 1), "the child does not go on")
        expect(hashlib.md5(kept).digest(), digest, "what is in memory")
    os.close(end)
    os.close(other)


@case("{way}: by the kernel's own driver, with virtio_suspend", way=WAYS)
def extended(way):
    def written(_driver, found):
        dev = found[0]
        disk = wait_for(lambda: list((dev.path / "block").glob("*")), "a disk", 5 * PROMPT)[0]
        goes_on(f"/dev/{disk.name}", way)
        expect(dev.state, "running", "state")
        dev.cycle()
        dev.works()

    each_driver(written)("virtio_blk")


if __name__ == "__main__":
    run()
