# SPDX-License-Identifier: GPL-2.0
"""The sleep of the system, while a device is suspended: it is refused, and in time."""

import os
from pathlib import Path

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


def sleep(kind):
    """Has the system sleep: "freeze", "mem" or "disk"."""
    STATE.write_text(kind)


def need(kind):
    if not STATE.exists() or kind not in STATE.read_text().split():
        raise Skip(f"the kernel has no sleep of kind {kind}")


def refuses_to_hibernate(dev):
    """The system does not hibernate while a device is suspended, and says which it is."""
    need("disk")
    log = KernelLog()
    dev.request("suspend")
    with within(PROMPT, "a hibernation that is refused"):
        expect(Child(sleep, "disk").errno(10 * PROMPT), "EBUSY", "hibernation")
    lines = [line for line in log.lines() if "hibernate" in line and dev.name in line]
    require(lines, f"the kernel log does not name {dev.name}")
    expect(dev.state, "suspended", "state")
    dev.request("resume")
    expect(dev.state, "running", "state")


def sync_ends(dev, path, kind):
    """A sleep whose sync waits for a suspended disk ends by itself, and the disk can be resumed."""
    need(kind)
    data = os.urandom(1 << 20)
    with open(path, "r+b", buffering=0) as disk:
        dev.request("suspend")
        # Into the page cache.
        disk.write(data)
        with within(2 * SYNC_SECONDS + PROMPT, "a sleep that is refused"):
            expect(Child(sleep, kind).errno(10 * SYNC_SECONDS), "EBUSY", kind)
        expect(dev.state, "suspended", "state")
        dev.request("resume")
        expect(dev.state, "running", "state")
        os.fsync(disk.fileno())
    with open(path, "rb", buffering=0) as disk:
        require(disk.read(len(data)) == data, "what was written is not on the disk")
