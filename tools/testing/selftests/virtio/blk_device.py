#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""The test device of type blk, driven by the kernel's own virtio_blk.

What the guest has written, read, flushed and discarded is what the device says it was asked for,
request by request and byte by byte.
"""

import contextlib
import errno
import fcntl
import mmap
import os
import shutil
import struct
import subprocess
from pathlib import Path

from suspend_lib import (
    BUS,
    Mailbox,
    Skip,
    case,
    expect,
    require,
    run,
    wait_for,
)

SECTOR = 512
KIB = 1024
# From linux/fs.h.
BLKDISCARD, BLKZEROOUT = 0x1277, 0x127F


class Disk:
    """A disk of the test device."""

    def __init__(self, name, mailbox):
        self.virtio = BUS / name
        self.mailbox = mailbox
        found = wait_for(lambda: list((self.virtio / "block").glob("*")), "a disk")
        self.sysfs = found[0]
        self.path = Path("/dev") / self.sysfs.name

    def report(self):
        return self.mailbox.command("device")["device"]

    def count(self, kind, what="ok"):
        return self.report()["requests"].get(kind, {}).get(what, 0)

    def change(self, **change):
        return self.mailbox.command("device", set=change)["held"]

    def read(self, name):
        return (self.sysfs / name).read_text(encoding="ascii").strip()

    def sectors(self):
        """What the block layer counts: sectors read, written and discarded; and flushes."""
        fields = [int(field) for field in self.read("stat").split()]
        return {"in": fields[2], "out": fields[6], "discard": fields[13]}, fields[15]

    @contextlib.contextmanager
    def open(self):
        fd = os.open(self.path, os.O_RDWR | os.O_DIRECT)
        try:
            yield fd
        finally:
            os.close(fd)


def stock_driver():
    """The kernel's own driver, whatever else has its name."""
    directory = Path("/usr/lib/modules", os.uname().release, "kernel/drivers/block")
    found = sorted(directory.glob("virtio_blk.ko*"))
    if not found:
        raise Skip("the kernel has no module virtio_blk")
    return found[0]


def is_loaded():
    return Path("/sys/module/virtio_blk").exists()


@contextlib.contextmanager
def disk():
    """A disk with the kernel's own driver, and nothing counted yet."""
    if is_loaded():
        subprocess.run(["rmmod", "virtio_blk"], check=True)
    for path in sorted(BUS.iterdir()):
        if int((path / "device").read_text(encoding="ascii"), 16) != 2:
            continue
        mailbox = Mailbox.of(path.resolve().parent)
        if mailbox and mailbox.info()["type"] == "blk":
            break
    else:
        raise Skip("no test device of type blk")
    subprocess.run(["insmod", stock_driver()], check=True)
    try:
        found = Disk(path.name, mailbox)
        # The kernel has looked for partitions by the time the disk is there.
        mailbox.clear()
        yield found
    finally:
        subprocess.run(["rmmod", "virtio_blk"], check=True)


def table():
    """Of CRC32C."""
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
        yield byte


TABLE = list(table())


def checksum(sector, data):
    """As the device has it: the sum over the sectors of the CRC32C of its number and its data."""
    total = 0
    for at in range(0, len(data), SECTOR):
        crc = 0xFFFFFFFF
        for byte in struct.pack("<Q", sector + at // SECTOR) + data[at : at + SECTOR]:
            crc = TABLE[(crc ^ byte) & 0xFF] ^ crc >> 8
        total += crc ^ 0xFFFFFFFF
    return total % (1 << 64)


def aligned(data):
    buffer = mmap.mmap(-1, len(data))
    buffer[:] = data
    return buffer


@case("what is written and read is counted, with the same checksum")
def counted():
    data = os.urandom(128 * KIB)
    with disk() as blk, blk.open() as fd:
        buffer = aligned(data)
        for at in range(0, len(data), 16 * KIB):
            view = memoryview(buffer)[at : at + 16 * KIB]
            expect(os.pwrite(fd, view, 64 * KIB + at), 16 * KIB, "bytes written")
        os.fsync(fd)
        back = mmap.mmap(-1, len(data))
        expect(os.preadv(fd, [back], 64 * KIB), len(data), "bytes read")
        require(back[:] == data, "other data was read than was written")
        want = checksum(64 * KIB // SECTOR, data)
        report = blk.report()
        for kind in ("out", "in"):
            count = report["requests"][kind]
            expect(count["bytes"], len(data), f"bytes of {kind}")
            expect(count["checksum"], want, f"checksum of {kind}")
        expect(report["requests"]["flush"]["ok"], 1, "flushes")
        expect(report["unflushed"], 0, "writes in the cache after a flush")
        expect(report["requests"].get("other"), None, "other requests")


@case("fio verifies, and the block layer and the device agree on the sectors")
def verified():
    if not shutil.which("fio"):
        raise Skip("no fio")
    with disk() as blk:
        before, flushes = blk.sectors()
        job = [
            "fio", "--name=verify", f"--filename={blk.path}", "--direct=1", "--ioengine=libaio",
            "--iodepth=16", "--numjobs=1", "--rw=randwrite", "--bsrange=512-32k", "--size=4M",
            "--verify=crc32c", "--verify_state_save=0", "--fsync=64", "--minimal",
        ]  # fmt: skip
        done = subprocess.run(job, capture_output=True, text=True, check=False)
        expect(done.returncode, 0, f"exit status of fio ({done.stdout} {done.stderr})")
        after, flushes_after = blk.sectors()
        report = blk.report()
        for kind in ("in", "out"):
            count = report["requests"][kind]
            expect(count["bytes"], SECTOR * (after[kind] - before[kind]), f"bytes of {kind}")
            expect((count["ioerr"], count["unsupp"]), (0, 0), f"errors of {kind}")
        expect(report["requests"]["flush"]["ok"], flushes_after - flushes, "flushes")


@case("a request takes the queue of its processor")
def queues():
    page = aligned(bytes(4 * KIB))
    everywhere = os.sched_getaffinity(0)
    with disk() as blk, blk.open() as fd:
        for directory in (blk.sysfs / "mq").iterdir():
            for cpu in (directory / "cpu_list").read_text(encoding="ascii").split(","):
                os.sched_setaffinity(0, {int(cpu)})
                try:
                    blk.mailbox.clear()
                    os.pwrite(fd, page, 0)
                finally:
                    os.sched_setaffinity(0, everywhere)
                used = {n: count for n, count in enumerate(blk.report()["queues"]) if count}
                expect(used, {int(directory.name): 1}, f"requests by queue, from processor {cpu}")


@case("discarded and zeroed ranges arrive")
def ranges():
    with disk() as blk, blk.open() as fd:
        fcntl.ioctl(fd, BLKDISCARD, struct.pack("=QQ", 64 * KIB, 32 * KIB))
        fcntl.ioctl(fd, BLKZEROOUT, struct.pack("=QQ", 128 * KIB, 4 * KIB))
        report = blk.report()
        found = [(r["type"], r["sector"], r["sectors"]) for r in report["ranges"]]
        expect(found, [("discard", 128, 64), ("write-zeroes", 256, 8)], "ranges")
        expect(report["requests"]["discard"]["bytes"], 32 * KIB, "bytes discarded")


@case("requests are held, and errors are answered, on demand")
def on_demand():
    with disk() as blk, blk.open() as fd:
        page = aligned(bytes(4 * KIB))
        blk.mailbox.set(faults=["hold-ms=300"])
        start = os.times().elapsed
        os.pwrite(fd, page, 0)
        took = os.times().elapsed - start
        blk.mailbox.set(faults=[])
        require(took >= 0.25, f"a request that was held for 300 ms took {took} s")
        blk.change(fail={"type": "out", "status": "ioerr", "count": 1})
        try:
            os.pwrite(fd, page, 0)
        except OSError as error:
            expect(error.errno, errno.EIO, "errno of a write that fails")
        else:
            require(False, "a write succeeded that was to fail")
        os.pwrite(fd, page, 0)
        expect(blk.count("out", "ioerr"), 1, "writes that failed")


@case("the capacity changes while the disk is in use")
def capacity():
    with disk() as blk:
        before = int(blk.read("size"))
        try:
            blk.change(capacity=before // 2)
            wait_for(lambda: int(blk.read("size")) == before // 2, "the smaller capacity")
        finally:
            blk.change(capacity=before)
        wait_for(lambda: int(blk.read("size")) == before, "the capacity as it was")


run()
