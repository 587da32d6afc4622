#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""The system is written to a disk, and goes on from there in another machine.

The first disk is overwritten: it is where the image goes.
"""

import contextlib
import hashlib
import mmap
import os
import time
from pathlib import Path

from awake_lib import refuses_to_hibernate
from blk_lib import disk, works
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

# How the machine is switched off when the image is written: each with one of the drivers.
WAYS = ("platform", "shutdown")
MADV_PAGEOUT = 21
MOUNTED = "/mnt"
# Of a swap space in a file, and of what is written and swapped out, in bytes.
SWAP, SIZE = 32 << 20, 1 << 20


@contextlib.contextmanager
def swap_on(path):
    """Has the disk hold the image."""
    sh("mkswap", path)
    sh("swapon", path)
    try:
        yield
    finally:
        sh("swapoff", path)


def swapped_out(data):
    """Memory with that in it, which is on the swap space only."""
    memory = mmap.mmap(-1, len(data), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory[:] = data

    def used():
        # It is for the kernel to say whether it does.
        memory.madvise(MADV_PAGEOUT)
        space = Path("/proc/swaps").read_text().splitlines()[1].split()
        return int(space[3]) * 1024 >= len(data) // 2

    wait_for(used, "memory is swapped out", 5 * PROMPT)
    return memory


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


@contextlib.contextmanager
def file_system(path):
    """A file system on the disk, with a swap space in it and a file that is in memory, too."""
    # Nothing writes to it later by itself.
    options = "lazy_itable_init=0,lazy_journal_init=0"
    sh("mke2fs", "-q", "-F", "-t", "ext4", "-E", options, path)
    sh("modprobe", "ext4", check=False)
    sh("mount", "-t", "ext4", path, MOUNTED)
    try:
        for name, size in (("swap", SWAP), ("file", SIZE)):
            with open(f"{MOUNTED}/{name}", "wb") as file:
                file.write(bytes(size))
                file.flush()
                os.fsync(file.fileno())
        sh("mkswap", f"{MOUNTED}/swap")
        sh("swapon", f"{MOUNTED}/swap")
        try:
            yield f"{MOUNTED}/file"
        finally:
            sh("swapoff", f"{MOUNTED}/swap")
    finally:
        sh("umount", MOUNTED)


def is_refused(dev, path):
    """The system does not hibernate, but says so at once, while a disk is suspended that has pages of
    memory, and is to be written to. When it has been resumed nothing is lost.
    """
    prepare("disk")
    kept, dirty = os.urandom(SIZE), os.urandom(SIZE)
    with file_system(path) as name:
        memory = swapped_out(kept)
        os.sync()
        with open(name, "r+b", buffering=0) as file:
            # Into the page cache.
            refuses_to_hibernate(dev, lambda: file.write(dirty))
            os.fsync(file.fileno())
        require(memory[:] == kept, "what was swapped out is different")
        memory.close()
        Path("/proc/sys/vm/drop_caches").write_text("3")
        require(Path(name).read_bytes() == dirty, "what was written is not on the disk")


def kernels(function):
    """Calls a function with a device of the kernel's own driver, and the path of the disk."""

    def with_disk(_driver, found):
        dev = found[0]
        name = wait_for(lambda: list((dev.path / "block").glob("*")), "a disk", 5 * PROMPT)[0].name
        function(dev, f"/dev/{name}")
        expect(dev.state, "running", "state")
        dev.cycle()
        dev.works()

    each_driver(with_disk)("virtio_blk")


def ours(function):
    """The same with a device of this crate's driver."""
    target = disk()
    function(target.dev, target.path)
    works(target)
    target.dev.request("suspend")
    target.dev.request("resume")
    works(target)


DRIVERS = {"the kernel's own driver": kernels, "this crate's driver": ours}


@case("a suspended disk of {driver} has swap, and is to be written to: EBUSY at once", driver=DRIVERS)
def refused(driver):
    DRIVERS[driver](is_refused)


@case("{how}", how=[f"{way}: by {driver}" for way, driver in zip(WAYS, DRIVERS)])
def written(how):
    way, driver = how.split(": by ")
    DRIVERS[driver](lambda _dev, path: goes_on(path, way))


if __name__ == "__main__":
    run(block=True)
