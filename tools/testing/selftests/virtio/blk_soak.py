#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""A disk is suspended, or made to need a reset, at random moments, under a fixed list of loads that
verify all they wrote.

BLK_CYCLES sets how often in each case.
"""

import contextlib
import functools
import os
import random
import shutil
import tempfile
import time
from pathlib import Path

import suspend_lib
from suspend_lib import (
    PROMPT,
    SLOWNESS,
    Child,
    Skip,
    case,
    expect,
    require,
    run,
    sh,
    wait_for,
)

from blk_lib import (
    Load,
    disk,
    statistics,
    works,
)

CYCLES = int(os.environ.get("BLK_CYCLES", max(4, 12 // SLOWNESS)))

suspend_lib.CASE_SECONDS += 2 * CYCLES * SLOWNESS
suspend_lib.FILE_SECONDS += 20 * CYCLES * SLOWNESS

# Each writes its part of the disk once, and then reads it once. Together they are one load of fio.
JOBS = {
    "random blocks, 32 at a time": {"rw": "randwrite", "depth": 32, "size": "4M"},
    "random blocks of four jobs": {"rw": "randwrite", "depth": 8, "jobs": 4, "size": "1M"},
    "random sizes": {"rw": "randwrite", "bsrange": "512-64k", "depth": 16, "size": "8M"},
    "large blocks in sequence": {"rw": "write", "bs": "128k", "depth": 4, "size": "32M"},
    "flushes after every fourth write": {"rw": "randwrite", "fsync": 4, "size": "2M"},
}

RESETS = (
    "needs-reset-on-suspend",
    "needs-reset-while-suspended",
    "needs-reset-on-resume",
)


def suspend(target):
    """Suspends and resumes the disk."""
    target.dev.request("suspend")
    time.sleep(random.uniform(0, 0.02))
    target.dev.request("resume")


def reset(target):
    """Has the device need a reset in the course of a suspend and a resume, and be recovered."""
    count = target.dev.number("recoveries")
    target.mailbox.set(faults=[random.choice(RESETS)])
    with contextlib.suppress(OSError):
        target.dev.request("suspend")
        # Long enough for the fault that occurs by itself.
        time.sleep(0.05)
        target.dev.request("resume")
    target.mailbox.set(faults=[])
    wait_for(lambda: target.dev.number("recoveries") > count, "it is recovered", 5 * PROMPT)
    wait_for(lambda: target.dev.state == "running", "it runs")


WHAT = {"suspends": suspend, "resets": reset}


@case("{what} while fio writes and verifies: {job}", what=WHAT, job=JOBS)
def under_fio(what, job):
    target = disk()
    target.dev.rebind()
    done = 0
    while done < CYCLES:
        target.mailbox.clear()
        before = statistics(target)
        load = Load(target, 0, time_based=0, do_verify=1, **JOBS[job])
        while load.runs():
            time.sleep(random.uniform(0, 0.1))
            WHAT[what](target)
            done += 1
        load.finish(PROMPT)

        seen = target.report()["requests"]
        if what == "suspends":
            # What the device wrote is what it read, and fio has verified that.
            expect(seen["in"]["checksum"], seen["out"]["checksum"], "checksums")
            after = statistics(target)
            for kind in ("in", "out"):
                count, size = (b - a for a, b in zip(before[kind], after[kind]))
                expect(seen[kind]["bytes"], size, f"bytes of type {kind}")
                # The block layer counts a flush among the writes, too.
                if "fsync" not in JOBS[job]:
                    expect(seen[kind]["ok"], count, f"requests of type {kind}")
    if what == "suspends":
        expect(target.dev.number("failures"), 0, "failures")
        expect(target.dev.number("suspends"), done, "suspends")
    print(f"# {done} {what}")
    works(target)


class Model:
    """A file, and what is to be in it."""

    # How large it gets, and how much of it is read or written at a time.
    SIZE, PIECE = 1 << 20, 1 << 16

    def __init__(self, path, choose):
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT)
        self.choose = choose
        self.data = bytearray()

    def close(self):
        os.close(self.fd)

    def write(self):
        offset = self.choose.randrange(self.SIZE - self.PIECE)
        piece = self.choose.randbytes(self.choose.randrange(1, self.PIECE))
        require(os.pwrite(self.fd, piece, offset) == len(piece), "a short write")
        self.data.extend(bytes(max(0, offset + len(piece) - len(self.data))))
        self.data[offset : offset + len(piece)] = piece

    def truncate(self):
        size = self.choose.randrange(self.SIZE)
        os.truncate(self.fd, size)
        self.data.extend(bytes(max(0, size - len(self.data))))
        del self.data[size:]

    def sync(self):
        os.fsync(self.fd)

    def evict(self):
        """Has the next reads be of the disk."""
        os.fsync(self.fd)
        os.posix_fadvise(self.fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def check(self):
        require(os.pread(self.fd, self.SIZE, 0) == self.data, "a file is not what was written")

    def step(self):
        kinds = (self.write, self.truncate, self.sync, self.evict, self.check)
        self.choose.choices(kinds, weights=(60, 5, 5, 10, 20))[0]()


def exercise(directory, seed, until):
    """Writes, cuts, syncs and reads files at random, as fsx does, until there is a file `until`."""
    choose = random.Random(seed)
    files = [Model(directory / str(number), choose) for number in range(3)]
    while not until.exists():
        choose.choice(files).step()
    for file in files:
        file.evict()
        file.check()
        file.close()


@contextlib.contextmanager
def file_system(target):
    """An empty ext4 on the disk; in the end it has to be without a fault."""
    sh("mkfs.ext4", "-q", "-F", target.path)
    with tempfile.TemporaryDirectory(prefix="disk-") as directory:
        sh("mount", "-t", "ext4", target.path, directory)
        try:
            yield Path(directory)
        finally:
            sh("umount", directory)
    sh("fsck.ext4", "-f", "-n", target.path)


def verified(function):
    """Calls a case with a seed, which is printed."""

    @functools.wraps(function)
    def wrapped(**arguments):
        seed = int(os.environ.get("BLK_SEED", random.getrandbits(32)))
        print(f"# BLK_SEED={seed}")
        random.seed(seed)
        function(seed=seed, **arguments)

    return wrapped


@case("{what} while files of an ext4 are written, cut and read", what=WHAT)
@verified
def under_ext4(what, seed):
    if not shutil.which("mkfs.ext4"):
        raise Skip("e2fsprogs is not installed")
    target = disk()
    target.dev.rebind()
    with file_system(target) as directory:
        until = directory / "until"
        worker = Child(exercise, directory, seed, until)
        for _ in range(CYCLES):
            time.sleep(random.uniform(0, 0.1))
            WHAT[what](target)
            require(worker.poll() is None, f"the worker ended early, with {worker.status}")
        until.touch()
        expect(worker.errno(within=20 * PROMPT, what="the worker ends"), "success", "the worker")
    works(target)


if __name__ == "__main__":
    run(block=True)
