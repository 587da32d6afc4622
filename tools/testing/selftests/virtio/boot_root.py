#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""The root file system and swap are on the one disk, and the command virtio-suspend suspends it: most of the
memory is dirty, swap is in use, and files are written and synced. Nothing may hang, and nothing may be lost.

Only for a guest that is made for it (tools/virtio/lab/src/root_disk.rs), whose host reads the terminal that
SUSPEND_WAKER names, and is told by a line with "host: " what to write to the port of the trigger; then it hangs
up.

ROOT_CYCLES has how often each case suspends, such as "200", or one number for each.
"""

import ctypes
import glob
import mmap
import os
import random
import signal
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

from sleep_lib import tell
from suspend_lib import Fail, ksft, require, wait_for

COMMAND = os.environ.get("VIRTIO_SUSPEND_COMMAND", "/virtio-suspend")
CYCLES = os.environ.get("ROOT_CYCLES", "1").split()
SWAP = "/dev/vda2"
# How long something may take that has to happen, in seconds.
PATIENCE = 120
PAGE = 4096
# How much of the memory the program that fills it takes, of which some has to go to swap then.
HELD = 0.85
# How many bytes have to be in swap at each suspend, and which part of the memory has to be dirty.
SWAPPED, DIRTY = 16 << 20, 0.5
# The size of what is written without a sync, in pages.
CACHED = 4096
FILES = 16
LOADS = ("memory", "cache", "sync 0", "sync 1")
# Of the watchdog, in seconds: GRACE of hold.rs.
GRACE = 5
HELD_FOR = 0.3


# The loads. Each is a process that counts, in memory shared with all, what it has done and found right.


class Load:
    """What a process does until it is told to end; then it looks at all once more."""

    def __init__(self, index, counts):
        self.index, self.counts = index, counts
        self.ending = False

    def start(self):
        pid = os.fork()
        if pid:
            return pid
        status = 1
        try:
            signal.signal(signal.SIGTERM, self._end)
            random.seed(self.index)
            self.prepare()
            while not self.ending:
                self.work()
                self.count()
            self.look()
            status = 0
        except BaseException as failure:  # noqa: BLE001 # Python must not go on in the child.
            print(f"# {LOADS[self.index]}: {failure!r}", flush=True)
        os._exit(status)

    def _end(self, *_):
        self.ending = True

    def count(self):
        at = 8 * self.index
        (count,) = struct.unpack_from("<Q", self.counts, at)
        struct.pack_into("<Q", self.counts, at, count + 1)

    def prepare(self):
        pass

    def look(self):
        pass


class Memory(Load):
    """Most of the memory, each page of which has a number that is the only one that is right."""

    def prepare(self):
        total = meminfo()["MemTotal"]
        self.pages = int(total * HELD) // PAGE
        private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        self.memory = mmap.mmap(-1, self.pages * PAGE, flags=private)
        self.rounds = [0] * self.pages
        for page in range(self.pages):
            self._write(page)

    def _write(self, page):
        # All of the page, so that it can't be compressed or shared.
        struct.pack_into("<QQ", self.memory, page * PAGE, page, self.rounds[page])
        struct.pack_into("<Q", self.memory, page * PAGE + PAGE - 8, page ^ self.rounds[page])

    def _check(self, page):
        found = struct.unpack_from("<QQ", self.memory, page * PAGE)
        (last,) = struct.unpack_from("<Q", self.memory, page * PAGE + PAGE - 8)
        expected = (page, self.rounds[page])
        require((*found, last) == (*expected, page ^ self.rounds[page]),
                f"page {page} has {found}, {last}, not {expected}")  # fmt: skip

    def work(self):
        # A part that is used again and again, which wanders.
        first = random.randrange(self.pages)
        for page in range(first, min(first + 64, self.pages)):
            self._check(page)
            self.rounds[page] += 1
            self._write(page)

    def look(self):
        for page in range(self.pages):
            self._check(page)


class Cache(Load):
    """A file that is written at random places and never synced, so that it is dirty in memory."""

    path = "/cache"

    def prepare(self):
        self.rounds = [0] * CACHED
        self.file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        for block in range(CACHED):
            self._write(block)

    def _block(self, block):
        return struct.pack("<QQ", block, self.rounds[block]) * (PAGE // 16)

    def _write(self, block):
        os.pwrite(self.file, self._block(block), block * PAGE)

    def _check(self, block):
        found = os.pread(self.file, PAGE, block * PAGE)
        require(found == self._block(block), f"block {block} of {self.path} is another")

    def work(self):
        for block in random.sample(range(CACHED), 16):
            self._check(block)
            self.rounds[block] += 1
            self._write(block)

    def look(self):
        # Off the disk.
        os.fsync(self.file)
        os.posix_fadvise(self.file, 0, 0, os.POSIX_FADV_DONTNEED)
        for block in range(CACHED):
            self._check(block)


class Sync(Load):
    """Files that are written anew, synced, and given their names."""

    def prepare(self):
        self.directory = Path(f"/sync-{self.index}")
        self.directory.mkdir()
        self.handle = os.open(self.directory, os.O_RDONLY)
        self.sums = {}
        self.number = 0

    def work(self):
        self.number += 1
        name = str(self.number % FILES)
        data = random.randbytes(random.randrange(1, 16 * PAGE))
        new = self.directory / "new"
        with new.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        new.rename(self.directory / name)
        os.fsync(self.handle)
        self.sums[name] = zlib.crc32(data)
        self._check(random.choice(list(self.sums)))

    def _check(self, name):
        found = zlib.crc32((self.directory / name).read_bytes())
        require(found == self.sums[name], f"{self.directory / name} is another file")

    def look(self):
        found = sorted(path.name for path in self.directory.iterdir())
        require(found == sorted(self.sums), f"{self.directory} has {found}")
        for name in self.sums:
            with (self.directory / name).open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            self._check(name)


# What looks at them: locked into memory, as it has to work while the disk stands still.


def meminfo():
    """What the kernel says of the memory, in bytes."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return {name: int(rest.split()[0]) * 1024 for name, rest in (x.split(":") for x in lines)}


class Guest:
    def __init__(self):
        # Present and future mappings.
        if ctypes.CDLL(None, use_errno=True).mlockall(3):
            raise OSError(ctypes.get_errno(), "mlockall")
        (directory,) = glob.glob("/sys/bus/virtio/devices/*/block/vda/../../suspend")
        self.state_file = os.open(f"{directory}/state", os.O_RDONLY)
        self.directory = Path(directory)
        self.counts = mmap.mmap(-1, PAGE)
        self.loads = {}
        self.least = {"swapped": 1 << 62, "dirty": 1.0}

    def state(self):
        return os.pread(self.state_file, 64, 0).decode().strip()

    def number(self, name):
        return int((self.directory / name).read_text())

    def start(self):
        subprocess.run(["mkswap", SWAP], check=True, stdout=subprocess.DEVNULL)
        subprocess.run(["swapon", SWAP], check=True)
        for name, value in (("dirty_ratio", 60), ("dirty_background_ratio", 50), ("swappiness", 100)):
            Path(f"/proc/sys/vm/{name}").write_text(str(value))
        for index, kind in enumerate((Memory, Cache, Sync, Sync)):
            self.loads[index] = kind(index, self.counts).start()
        wait_for(lambda: all(self.done()), "all loads are under way", PATIENCE)
        wait_for(lambda: self.swapped() > SWAPPED, "swap is in use", PATIENCE)

    def done(self):
        return struct.unpack_from(f"<{len(LOADS)}Q", self.counts)

    def swapped(self):
        memory = meminfo()
        return memory["SwapTotal"] - memory["SwapFree"]

    def look_at_memory(self):
        memory = meminfo()
        dirty = (memory["AnonPages"] + memory["Dirty"] + memory["Writeback"]) / memory["MemTotal"]
        self.least["swapped"] = min(self.least["swapped"], self.swapped())
        self.least["dirty"] = min(self.least["dirty"], dirty)

    def goes_on(self):
        """Each load does more than it did."""
        before = self.done()
        wait_for(lambda: all(now > then + 1 for now, then in zip(self.done(), before)),
                 f"all loads go on: {before}", PATIENCE)  # fmt: skip
        for index, pid in self.loads.items():
            require(os.waitpid(pid, os.WNOHANG) == (0, 0), f"{LOADS[index]} has ended")

    def end(self):
        """All loads find all as it should be, and the disk has nothing in memory any more."""
        for pid in self.loads.values():
            os.kill(pid, signal.SIGTERM)
        for index, pid in self.loads.items():
            status = os.waitpid(pid, 0)[1]
            require(status == 0, f"{LOADS[index]} found something wrong: {status}")
        subprocess.run(["swapoff", SWAP], check=True)

    def suspended(self, process):
        wait_for(lambda: self.state() == "suspended" or process.poll() is not None,
                 "it is suspended", PATIENCE)  # fmt: skip
        require(process.poll() is None, f"the command has ended with {process.poll()}")
        self.look_at_memory()

    def running(self, within=PATIENCE):
        wait_for(lambda: self.state() == "running", "it runs again", within)


def command(*words):
    return subprocess.Popen([COMMAND, *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def ended(process, status, text):
    """The command, and whoever it has started, has ended, and has said that."""
    said = process.stdout.read().decode()
    process.stdout.close()
    found = process.wait(PATIENCE)
    require(found == status, f"status {found}: {said!r}")
    require(text in said, f"no {text!r} in {said!r}")
    if "allocations" in said:
        require("allocations: 0, page faults: 0" in said, f"it was not all in memory: {said!r}")


def for_a_time(guest):
    process = command("run", "vda", "--for", f"{int(HELD_FOR * 1000)}ms")
    guest.suspended(process)
    ended(process, 0, "allocations: 0, page faults: 0")
    guest.running(0)


def killed(guest):
    process = command("run", "vda", "--for", "1h")
    guest.suspended(process)
    time.sleep(HELD_FOR)
    require(guest.state() == "suspended", "it runs before")
    process.kill()
    guest.running()
    ended(process, -signal.SIGKILL, "the first process died")


def stopped(guest):
    process = command("run", "vda", "--for", f"{int(HELD_FOR * 1000)}ms")
    guest.suspended(process)
    process.send_signal(signal.SIGSTOP)
    time.sleep(HELD_FOR + GRACE / 2)
    require(guest.state() == "suspended", "it runs before its time is over")
    guest.running()
    ended(process, -signal.SIGKILL, "was late")


def host_gone(guest):
    (port,) = glob.glob("/dev/vport*")
    before = guest.number("suspends")
    process = command("serve", "vda", "--port", port, "--at-most", "1h")
    # What is printed is held back by kselftest's runner until more comes, if there is no perl.
    tell("host: suspend")
    # It may run again before anybody has looked.
    wait_for(lambda: guest.number("suspends") > before or process.poll() is not None,
             "it is suspended", PATIENCE)  # fmt: skip
    require(process.poll() is None, f"the command has ended with {process.poll()}")
    guest.look_at_memory()
    guest.running()
    require(process.poll() is None, "the command has ended")
    process.terminate()
    ended(process, 0, "")


CASES = (
    (for_a_time, "for a time"),
    (killed, "the first process is killed meanwhile"),
    (stopped, "the first process is stopped past its time"),
    (host_gone, "a host asks for it, and is gone"),
)


def main():
    ksft.print_header()
    sys.stdout.reconfigure(line_buffering=True)
    if not os.path.exists(SWAP) or not os.path.ismount("/") or "SUSPEND_WAKER" not in os.environ:
        ksft.print_msg("the root file system is on no disk that is made for this")
        sys.exit(ksft.KSFT_SKIP)
    subprocess.run(["modprobe", "virtio_console"], check=True)
    cycles = [int(number) for number in (CYCLES * len(CASES) if len(CYCLES) == 1 else CYCLES)]
    ksft.set_plan(len(CASES) + 1)
    guest = Guest()
    guest.start()
    for (case, text), times in zip(CASES, cycles):
        before = [guest.number(name) for name in ("suspends", "resumes", "failures")]
        try:
            for _ in range(times):
                case(guest)
                guest.goes_on()
            expected = [before[0] + times, before[1] + times, before[2]]
            found = [guest.number(name) for name in ("suspends", "resumes", "failures")]
            require(found == expected, f"suspends, resumes, failures: {found}, not {expected}")
            good = True
        except Fail as failure:
            ksft.print_msg(str(failure))
            good = False
        ksft.test_result(good, f"root and swap are on a disk that is suspended {times} times: {text}")
        if not good:
            break
    try:
        ksft.print_msg(f"in swap: {guest.least['swapped'] >> 20} MiB and more; dirty: "
                       f"{guest.least['dirty']:.0%} of the memory and more; done: {guest.done()}")  # fmt: skip
        require(guest.least["swapped"] > SWAPPED, "swap was not in use")
        require(guest.least["dirty"] > DIRTY, "the memory was not dirty")
        guest.end()
        good = True
    except Fail as failure:
        ksft.print_msg(str(failure))
        good = False
    ksft.test_result(good, "all that was written is right, in memory, swap and files")
    ksft.finished()


if __name__ == "__main__":
    main()
