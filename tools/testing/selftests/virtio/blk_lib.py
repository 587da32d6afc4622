# SPDX-License-Identifier: GPL-2.0
"""What the tests of virtio_blk have in common: disks, I/O past the page cache, and load."""

import contextlib
import fcntl
import json
import mmap
import os
import shutil
import struct
import tempfile
import time
from pathlib import Path

from suspend_lib import (
    PROMPT,
    SHARE,
    SLOWNESS,
    Child,
    Modules,
    Skip,
    devices,
    expect,
    modules,
    require,
    sh,
    wait_for,
)

SECTOR = 512

BLKFLSBUF = 0x1261
BLKDISCARD = 0x1277
BLKSECDISCARD = 0x127D
BLKZEROOUT = 0x127F
HDIO_GETGEO = 0x0301

# What is never a disk's data by chance.
MAGIC = b"virtio_blk test "


class Disk:
    """A disk of a test device, and the device that is behind it."""

    def __init__(self, dev):
        self.dev = dev

    @property
    def mailbox(self):
        return self.dev.need_mailbox()

    @property
    def name(self):
        """The name as of now: it can change when the device is bound again."""
        return next(p.name for p in (self.dev.path / "block").iterdir())

    @property
    def path(self):
        return f"/dev/{self.name}"

    @property
    def is_there(self):
        return (self.dev.path / "block").exists()

    def read_file(self, name):
        return Path(f"/sys/block/{self.name}/{name}").read_text().removesuffix("\n")

    def number(self, name):
        return int(self.read_file(name))

    def write_file(self, name, text):
        fd = os.open(f"/sys/block/{self.name}/{name}", os.O_WRONLY)
        try:
            os.write(fd, text.encode())
        finally:
            os.close(fd)

    @property
    def sectors(self):
        return self.number("size")

    def report(self):
        """What the device says of itself, and of the requests since the last clear."""
        return self.mailbox.command("device")["device"]

    def requests(self, kind):
        """How many requests of a kind it has carried out."""
        return self.report()["requests"].get(kind, {}).get("ok", 0)

    @contextlib.contextmanager
    def like(self, **values):
        """The disk with other values, and bound anew, because they are read by the probe."""
        before = self.report()["config"]
        kept = {name: before[name] for name in values}
        try:
            self.mailbox.command("device", set=values)
            self.dev.rebind()
            yield self
        finally:
            self.mailbox.command("device", set=kept)
            self.dev.rebind()

    @contextlib.contextmanager
    def open(self, flags=os.O_RDWR):
        fd = os.open(self.path, flags | os.O_DIRECT)
        try:
            yield fd
        finally:
            os.close(fd)

    def read(self, offset, size):
        with self.open(os.O_RDONLY) as fd, mmap.mmap(-1, size) as buffer:
            require(os.preadv(fd, [buffer], offset) == size, "a short read")
            return bytes(buffer)

    def write(self, offset, data):
        with self.open() as fd, mmap.mmap(-1, len(data)) as buffer:
            buffer[:] = data
            require(os.pwritev(fd, [buffer], offset) == len(data), "a short write")

    def flush(self):
        fd = os.open(self.path, os.O_RDWR)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def range_ioctl(self, request, offset, size):
        with self.open() as fd:
            fcntl.ioctl(fd, request, struct.pack("QQ", offset, size))

    def read_held(self):
        """A read in a child, which the device has and does not finish while `hold` is set."""
        self.mailbox.set(hold=True)
        child = Child(self.read, 0, 4096)
        wait_for(lambda: self.held() == 1, "the device has the request")
        return child

    def held(self):
        """How many requests the device has in process."""
        return sum(queue["in_process"] for queue in self.mailbox.stats()["queues"])


@contextlib.contextmanager
def driver_with(target, **parameters):
    """The driver, loaded with parameters."""
    try:
        modules.load_block(**parameters)
        wait_for(lambda: target.is_there, "the disk is there")
        yield
    finally:
        modules.load_block()
        wait_for(lambda: target.is_there, "the disk is there")


def disk():
    """The disk that the cases use."""
    for dev in devices():
        if dev.driver == Modules.BLOCK and dev.mailbox:
            wait_for(lambda: dev.is_bound, f"{dev.name} is bound")
            return Disk(dev)
    raise Skip("no test device is a disk")


def pattern(number, size=4096):
    """Data that tells what was written where and when."""
    return (MAGIC + struct.pack("QQ", number, ~number & (1 << 64) - 1)) * (size // 32)


class Scattered:
    """Pages of which no two are neighbours: a segment each."""

    def __init__(self, count):
        self._memory = mmap.mmap(-1, 4096 * 2 * count)
        self._all = memoryview(self._memory)
        # Backed by memory in the order of their addresses, those between included.
        for offset in range(0, len(self._all), 4096):
            self._all[offset] = 0xff
        self.views = [self._all[8192 * number:][:4096] for number in range(count)]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for view in (*self.views, self._all):
            view.release()
        self._memory.close()

    def fill(self, pages):
        for view, data in zip(self.views, pages):
            view[:] = data

    def contents(self):
        return [bytes(view) for view in self.views]


class Load:
    """fio, which writes and reads, many requests at a time, and verifies what it reads."""

    def __init__(self, target, seconds, size="8M", depth=16, jobs=1, **options):
        if not shutil.which("fio"):
            raise Skip("fio is not installed")
        self._output = tempfile.NamedTemporaryFile("r", prefix="fio-")
        options = {
            "name": "verify",
            "filename": target.path,
            "direct": 1,
            "ioengine": "libaio",
            "rw": "randrw",
            "bs": "4k",
            "iodepth": depth,
            "numjobs": jobs,
            "size": size,
            "offset_increment": size,
            "time_based": 1,
            "runtime": seconds,
            "verify": "crc32c",
            "verify_fatal": 1,
            "verify_state_save": 0,
            # In one process, so that nothing is left of it when it is killed.
            "thread": 1,
            "eta": "never",
            "output-format": "json",
            "output": self._output.name,
        } | options
        command = ["fio", *(f"--{name}={value}" for name, value in options.items())]
        before = statistics(target)
        self.child = Child(os.execvp, command[0], command)
        # It takes its time to begin.
        wait_for(lambda: statistics(target) != before or not self.runs(), "fio begins", 10 * PROMPT)

    def runs(self):
        return self.child.poll() is None

    def finish(self, within):
        """Waits for the end, and returns what fio says; any difference or error is a failure."""
        status = self.child.wait(within * SLOWNESS * SHARE, "fio ends")
        text = self._output.read()
        require(status == 0, f"fio exits with {status}: {text[-500:]}")
        jobs = json.loads(text[text.index("{") :])["jobs"]
        require(all(job["error"] == 0 for job in jobs), "fio reports an error")
        require(sum(job["read"]["total_ios"] for job in jobs) > 0, "fio has read nothing")
        return jobs


def statistics(target):
    """What the block layer has counted: requests and sectors, read and written, and flushes."""
    fields = [int(field) for field in target.read_file("stat").split()]
    return {
        "in": (fields[0], fields[2] * SECTOR),
        "out": (fields[4], fields[6] * SECTOR),
    }


def works(target):
    """The disk is there, and can be written and read."""
    wait_for(lambda: target.is_there, "the disk is there")
    expect(target.dev.state, "running", "state")
    for number in (1, 2):
        target.write(65536, pattern(number))
        expect(target.read(65536, 4096), pattern(number), "what was written")


def blocked(child, seconds=0.3):
    """The child waits, and goes on to."""
    time.sleep(seconds)
    require(child.poll() is None, "it did not wait")


def what_freezes(disk):
    """What freezes the queue of a disk: the file to write to, what to write, and what is there."""
    sh("modprobe", "-a", "mq-deadline", "kyber-iosched", check=False)
    path = Path(f"/sys/block/{disk}/queue/scheduler")
    names = path.read_text().split()
    before = next(name for name in names if name.startswith("[")).strip("[]")
    for name in names:
        if not name.startswith("["):
            return path, name, before
    # As many requests as before, or half of them.
    path = path.parent / "nr_requests"
    before = int(path.read_text())
    return path, str(before // 2), str(before)


@contextlib.contextmanager
def keeps_freezing(disk):
    """Somebody freezes the queue again and again, without a pause; yields how often that was done."""
    path, value, before = what_freezes(disk)
    count = mmap.mmap(-1, mmap.PAGESIZE)

    def done():
        return int.from_bytes(count[:8], "little")

    def freeze():
        while True:
            for text in (value, before):
                path.write_text(text)
                count[:8] = (done() + 1).to_bytes(8, "little")

    child = Child(freeze)
    try:
        yield done
        require(child.poll() is None, "who freezes the queue has ended")
    finally:
        child.kill()
        child.wait(5 * PROMPT, "who freezes the queue ends")
    path.write_text(before)


def change_waits(disk):
    """A child that changes what freezes the queue, and waits for the requests that there are."""
    path, value, _ = what_freezes(disk)
    child = Child(path.write_text, value)
    stack = Path(f"/proc/{child.pid}/stack")
    wait_for(lambda: "freeze_queue" in stack.read_text(), "it has frozen the queue", 5 * PROMPT)
    return child
