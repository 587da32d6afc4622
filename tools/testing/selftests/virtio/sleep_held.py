#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""The system is to sleep while our disk has requests: they are finished first, or it stays awake.

Processors go offline on the way to S3, and who has them do so waits for the requests that were made
on them. Nobody else waits: what is read ahead keeps no task from being frozen.
"""

import os
from pathlib import Path

from blk_lib import disk, pattern, works
from sleep_lib import refuses_to_sleep, sleep
from suspend_lib import SHARE, SLOWNESS, Skip, case, expect, require, run, wait_for

# How long the device takes for a request: longer than the system until it stops the device.
HOLD_MS = 4000 * SLOWNESS * SHARE
SIZE = 1 << 16


def read_ahead(target, fd):
    """The device has requests that were made on a processor which is to go offline."""
    cpu = os.cpu_count() - 1
    if not Path(f"/sys/devices/system/cpu/cpu{cpu}/online").exists():
        raise Skip("no processor can go offline")
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {cpu})
    os.posix_fadvise(fd, 0, SIZE, os.POSIX_FADV_WILLNEED)
    os.sched_setaffinity(0, before)
    wait_for(lambda: target.held() > 0, "the device has a request")


def is_read(fd):
    require(os.pread(fd, SIZE, 0) == pattern(3, SIZE), "what was read ahead is different")


@case("requests that a disk has are finished before the system sleeps, and not made again")
def finished():
    target = disk()
    target.write(0, pattern(3, SIZE))
    fd = os.open(target.path, os.O_RDONLY)
    try:
        target.mailbox.set(faults=[f"hold-ms={HOLD_MS}"])
        target.mailbox.clear()
        read_ahead(target, fd)
        had = target.held()
        sleep("deep")
        target.mailbox.set(faults=[])
        expect(target.requests("in"), had, "requests carried out")
        is_read(fd)
    finally:
        os.close(fd)
    works(target)


@case("a disk that does not finish its requests: the system stays awake, and the disk runs")
def not_finished():
    target = disk()
    target.write(0, pattern(3, SIZE))
    fd = os.open(target.path, os.O_RDONLY)
    try:
        target.mailbox.set(hold=True)
        read_ahead(target, fd)
        target.dev.write("timeout_ms", str(500 * SLOWNESS))
        refuses_to_sleep("deep", "ETIMEDOUT")
        expect(target.dev.state, "running", "state")
        target.mailbox.set(hold=False)
        is_read(fd)
    finally:
        os.close(fd)
    works(target)
    target.dev.request("suspend")
    target.dev.request("resume")
    sleep("deep")
    works(target)


if __name__ == "__main__":
    run(block=True)
