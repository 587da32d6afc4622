# SPDX-License-Identifier: GPL-2.0
"""The sleep of the system, while a device is suspended: it is refused, and in time."""

import contextlib
import os
import select
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
    wait_for,
    within,
)

STATE = Path("/sys/power/state")
# About how long a sync may wait for a suspended device until the sleep is given up, in seconds.
SYNC_SECONDS = 3.0 * SLOWNESS
# The same for a task that can't be frozen. By itself the kernel gives up after 20 seconds.
FREEZE_SECONDS = 3.0
# Of epoll_ctl(2), which Python has no name for.
EPOLLWAKEUP = 1 << 29


def sleep(kind):
    """Has the system sleep: "freeze", "mem" or "disk". Once: a buffered file is written to again, by
    its close, if that fails.
    """
    fd = os.open(STATE, os.O_WRONLY)
    try:
        os.write(fd, kind.encode())
    finally:
        os.close(fd)


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


@contextlib.contextmanager
def wakes_up():
    """The system wakes up at the end, if it is about to sleep."""
    count = Path("/sys/power/wakeup_count")
    count.write_text(count.read_text())
    reader, writer = os.pipe()
    with select.epoll() as events:
        events.register(reader, select.EPOLLIN | EPOLLWAKEUP)
        try:
            yield
        finally:
            # As long as nobody takes the event the system is kept awake.
            os.write(writer, b"x")
            os.close(writer)
    os.close(reader)


@contextlib.contextmanager
def about_to_hibernate(dev, path):
    """All have been told that the system is about to hibernate, which syncs a disk that takes its
    time. Tasks have not been frozen yet. It does not sleep in the end, but wakes up.
    """
    need("disk")
    with open(path, "r+b", buffering=0) as disk:
        # Into the page cache.
        disk.write(os.urandom(1 << 20))
        dev.mailbox.set(hold=True)
        try:
            with contextlib.ExitStack() as stack:
                stack.enter_context(wakes_up())
                child = Child(sleep, "disk")
                where = Path(f"/proc/{child.pid}/stack")
                wait_for(lambda: "pm_sleep_fs_sync" in where.read_text(), "it syncs", 5 * PROMPT)
                yield
                require(child.poll() is None, "it has not waited for the disk")
                stack.close()
                expect(child.errno(5 * PROMPT), "EBUSY", "hibernation")
        finally:
            dev.mailbox.set(hold=False)
        os.fsync(disk.fileno())


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
