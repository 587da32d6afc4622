# SPDX-License-Identifier: GPL-2.0
"""The sleep of the system, while a device is suspended: it is refused, and in time."""

import os
from pathlib import Path

from blk_lib import blocked
from suspend_lib import (
    PROMPT,
    SLOWNESS,
    Child,
    KernelLog,
    Skip,
    expect,
    require,
    within,
)

STATE = Path("/sys/power/state")
# About how long a sync may wait for a suspended device until the sleep is given up, in seconds.
SYNC_SECONDS = 3.0 * SLOWNESS
# The same for a task that can't be frozen. By itself the kernel gives up after 20 seconds.
FREEZE_SECONDS = 3.0


def sleep(kind):
    """Has the system sleep: "freeze", "mem" or "disk"."""
    STATE.write_text(kind)


def need(kind):
    if not STATE.exists() or kind not in STATE.read_text().split():
        raise Skip(f"the kernel has no sleep of kind {kind}")


def freezing_ends(dev, read, kind):
    """A task that waits for a suspended disk can't be frozen, but does not keep others frozen."""
    need(kind)
    dev.request("suspend")
    reader = Child(read)
    blocked(reader)
    with within(2 * FREEZE_SECONDS + PROMPT, "a sleep that is refused"):
        expect(Child(sleep, kind).errno(20 * PROMPT + FREEZE_SECONDS), "EBUSY", kind)
    expect(dev.state, "suspended", "state")
    require(reader.poll() is None, "the reader has not waited")
    dev.request("resume")
    expect(reader.errno(5 * PROMPT), "success", "the reader")


def refuses_to_hibernate(dev, meanwhile=lambda: None):
    """The system does not hibernate while a device is suspended, and says which it is.

    `meanwhile` is called when the device is suspended.
    """
    need("disk")
    log = KernelLog()
    dev.request("suspend")
    meanwhile()
    with within(PROMPT, "a hibernation that is refused"):
        expect(Child(sleep, "disk").errno(10 * PROMPT), "EBUSY", "hibernation")
    lines = [line for line in log.lines() if "hibernate" in line and dev.name in line]
    require(lines, f"the kernel log does not name {dev.name}")
    expect(dev.state, "suspended", "state")
    dev.request("resume")
    expect(dev.state, "running", "state")


def sync_ends(dev, path, kind, then=None):
    """A sleep whose sync waits for a suspended disk ends by itself, and the disk can be resumed.

    `then` does so, if it is given.
    """
    need(kind)
    data = os.urandom(1 << 20)
    with open(path, "r+b", buffering=0) as disk:
        dev.request("suspend")
        # Into the page cache.
        disk.write(data)
        with within(2 * SYNC_SECONDS + PROMPT, "a sleep that is refused"):
            expect(Child(sleep, kind).errno(10 * SYNC_SECONDS), "EBUSY", kind)
        expect(dev.state, "suspended", "state")
        (then or (lambda: dev.request("resume")))()
        expect(dev.state, "running", "state")
        os.fsync(disk.fileno())
    with open(path, "rb", buffering=0) as disk:
        require(disk.read(len(data)) == data, "what was written is not on the disk")
