#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""What an operator does while a disk of the kernel's own driver is suspended.

Documentation/admin-guide/virtio-suspend.rst says what comes of it.
"""

import contextlib
import fcntl
import functools
import mmap
import os
import signal
import tempfile
from pathlib import Path

from blk_lib import blocked
from ext_lib import each_driver
from suspend_lib import (
    PROMPT,
    Child,
    Skip,
    case,
    expect,
    require,
    run,
    sh,
    wait_for,
    within,
)

FIFREEZE, FITHAW = 0xC0045877, 0xC0045878


def on_disk(function):
    """Calls a case with the first disk, and the path of it."""

    def with_disk(_driver, devices):
        found = wait_for(lambda: list((devices[0].path / "block").iterdir()), "a disk", 5 * PROMPT)
        function(devices[0], f"/dev/{found[0].name}")

    @functools.wraps(function)
    def wrapped():
        each_driver(with_disk)("virtio_blk")

    return wrapped


@contextlib.contextmanager
def file_system(path):
    """A file system on the disk; where it is mounted."""
    # Nothing writes to it later by itself.
    options = "lazy_itable_init=0,lazy_journal_init=0"
    sh("mke2fs", "-q", "-F", "-t", "ext4", "-E", options, path)
    with tempfile.TemporaryDirectory() as directory:
        sh("mount", "-t", "ext4", path, directory)
        try:
            # What it does by itself after it was mounted is done.
            os.sync()
            yield Path(directory)
        finally:
            sh("umount", directory)


def freeze(directory, request=FIFREEZE):
    fd = os.open(directory, os.O_RDONLY)
    try:
        fcntl.ioctl(fd, request, 0)
    finally:
        os.close(fd)


def killed_after_resume(dev, child):
    """A child that waits for the suspended disk is killed, and waits on until the resume."""
    blocked(child)
    child.kill()
    blocked(child)
    dev.request("resume")
    expect(child.wait(5 * PROMPT), -signal.SIGKILL, "how it ended")


def read(path):
    fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
    try:
        os.preadv(fd, [mmap.mmap(-1, 4096)], 0)
    finally:
        os.close(fd)


@case("fsfreeze of a suspended disk waits, and can't be killed; before the suspend it does not")
@on_disk
def frozen(dev, path):
    with file_system(path) as directory:
        (directory / "file").write_bytes(bytes(4096))
        dev.request("suspend")
        child = Child(freeze, directory)
        killed_after_resume(dev, child)
        # It may have come as far as that.
        with contextlib.suppress(OSError):
            freeze(directory, FITHAW)

        with within(PROMPT, "what waits for nothing"):
            freeze(directory)
            dev.request("suspend")
            dev.request("resume")
            freeze(directory, FITHAW)


@case("sync waits for a suspended disk that is to be written to, and can't be killed")
@on_disk
def synced(dev, path):
    with open(path, "r+b", buffering=0) as disk:
        dev.request("suspend")
        # Into the page cache.
        disk.write(os.urandom(4096))
        child = Child(os.sync)
        killed_after_resume(dev, child)


@case("who reads the serial number of a suspended disk can't be killed before the resume")
@on_disk
def serial(dev, path):
    dev.request("suspend")
    child = Child(Path(f"/sys/block/{Path(path).name}/serial").read_text)
    killed_after_resume(dev, child)


@case("processors go offline and online while readers wait for a suspended disk")
@on_disk
def offline(dev, path):
    cpus = [cpu for cpu in os.sched_getaffinity(0) if cpu]
    if not cpus:
        raise Skip("there is one processor")
    online = Path(f"/sys/devices/system/cpu/cpu{cpus[-1]}/online")
    if not online.exists():
        raise Skip("no processor can go offline")

    def read_there():
        os.sched_setaffinity(0, {cpus[-1]})
        read(path)

    dev.request("suspend")
    readers = [Child(read_there), Child(read, path)]
    for reader in readers:
        blocked(reader)
    try:
        for state in ("0", "1"):
            change = Child(online.write_text, state)
            expect(change.errno(10 * PROMPT, f"online is {state}"), "success", "the change")
        for reader in readers:
            require(reader.poll() is None, "a reader has not waited")
    finally:
        dev.request("resume")
        online.write_text("1")
    for reader in readers:
        expect(reader.errno(5 * PROMPT), "success", "a reader")


if __name__ == "__main__":
    run()
