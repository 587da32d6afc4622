# SPDX-License-Identifier: GPL-2.0
"""What the tests of the system's sleep have in common.

    sleep("deep")

Somebody has to wake the machine. Who does so reads in the file that SUSPEND_WAKER names, before it
sleeps, "# sleep: deep", "# sleep: s2idle", or "# sleep: disk" and the path of a disk, and afterwards
"# awake: slept" or "# awake: did not sleep". Without it the cases are skipped.

The root file system must not be one that others carry out, as FUSE's are: it can't be frozen.
"""

import contextlib
import mmap
import os
import random
import struct
import termios
import zlib
from pathlib import Path

from suspend_lib import (
    PROMPT,
    SHARE,
    SLOWNESS,
    SUSPENDED,
    Child,
    Fail,
    Skip,
    errno_name,
    expect,
    require,
    sh,
    wait_for,
)
from uring_lib import Requests

MODES = ("s2idle", "deep")
POWER = Path("/sys/power")
BLOCK = 4096
PCI_CAPABILITIES, PCI_CAP_ID_PM, PCI_PM_CTRL, PCI_PM_CTRL_NO_SOFT_RESET = 0x34, 1, 4, 1 << 3
# Each writer has a part of the disk of its own.
PART = 1 << 20
# The power button may be pressed before the system sleeps, which keeps it from that. So does a device
# that is suspended when its sync is slow.
ATTEMPTS = 5


def tell(text):
    """Tells who wakes the machine, or plays the host, who has read it all by then."""
    fd = os.open(os.environ["SUSPEND_WAKER"], os.O_WRONLY | os.O_NOCTTY)
    try:
        os.write(fd, f"# # {text}\n".encode())
        with contextlib.suppress(termios.error):
            termios.tcdrain(fd)
    finally:
        os.close(fd)


def prepare(mode):
    """The system can sleep so, and is woken."""
    if "SUSPEND_WAKER" not in os.environ:
        raise Skip("nobody wakes this machine: SUSPEND_WAKER is not set")
    state = "disk" if mode == "disk" else "mem"
    if state not in (POWER / "state").read_text().split():
        raise Skip(f"this kernel has no sleep {state}")
    if mode == "disk":
        return
    if mode not in (POWER / "mem_sleep").read_text().replace("[", " ").replace("]", " ").split():
        raise Skip(f"this machine has no sleep {mode}")
    (POWER / "mem_sleep").write_text(mode)
    sh("modprobe", "button", check=False)


def count(name):
    return int((POWER / "suspend_stats" / name).read_text())


class Log:
    """What the kernel logs from now on."""

    def __init__(self):
        self._fd = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
        os.lseek(self._fd, 0, os.SEEK_END)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        os.close(self._fd)

    def text(self):
        lines = []
        while True:
            try:
                lines.append(os.read(self._fd, 16384).decode(errors="replace").split(";", 1)[-1])
            except BlockingIOError:
                return "".join(lines)
            except BrokenPipeError:
                continue


# The LPC bridge of QEMU's q35, and those of its registers that firmware sets: the base of the power
# management, whether it is there, the routes of interrupts, the base of the root complex.
BRIDGE = Path("/sys/bus/pci/devices/0000:00:1f.0")
BRIDGE_ID = "0x8086 0x2918"
BRIDGE_REGISTERS = ((0x40, 4), (0x44, 1), (0x60, 4), (0x68, 4), (0xF0, 4))
BUTTON = Path("/sys/firmware/acpi/interrupts/ff_pwr_btn")


@contextlib.contextmanager
def _bridge_is_kept():
    """Sets registers of the bridge again that SeaBIOS 1.17 leaves reset when it wakes from S3.

    Else the power management is not there any more: the next S3 ends at once, and there is no power
    button.
    """
    is_there = BRIDGE.exists() and BRIDGE_ID == " ".join(
        (BRIDGE / name).read_text().strip() for name in ("vendor", "device")
    )
    if not is_there:
        yield
        return
    fd = os.open(BRIDGE / "config", os.O_RDWR)
    try:
        before = [os.pread(fd, size, at) for at, size in BRIDGE_REGISTERS]
        yield
        after = [os.pread(fd, size, at) for at, size in BRIDGE_REGISTERS]
        if after != before:
            for (at, _), value in zip(BRIDGE_REGISTERS, before):
                os.pwrite(fd, value, at)
            # The event that woke it is over, and the next one is wanted.
            for word in ("clear", "enable"):
                with contextlib.suppress(OSError):
                    BUTTON.write_text(word + "\n")
    finally:
        os.close(fd)


def _try(mode):
    """Has the system sleep; returns the name of the error if it does not."""
    tell(f"sleep: {mode}")
    said = "did not sleep"
    try:
        with _bridge_is_kept():
            (POWER / "state").write_text("mem")
        said = "slept"
    except OSError as error:
        return errno_name(error.errno)
    finally:
        tell(f"awake: {said}")
    return None


def sleep(mode, begin=lambda: None):
    """The system sleeps, and is woken. Right before that `begin` is called, each time if it is tried
    again.
    """
    prepare(mode)
    for _ in range(ATTEMPTS):
        begin()
        before = count("success")
        with Log() as log:
            error = _try(mode)
            text = log.text()
        # It was woken too early, or its sync ended because a device is suspended, see awake_lib.py.
        if error != "EBUSY":
            break
    require(error is None, f"the system does not sleep: {error}: {text[-1000:]}")
    expect(count("success"), before + 1, "sleeps by the kernel's account")
    require(f"PM: suspend entry ({mode})" in text, f"the kernel did not enter {mode}: {text}")
    require("PM: suspend exit" in text, "the kernel did not leave its sleep")


# How long a sleep that is a test lasts, in seconds.
TEST_DELAY = Path("/sys/module/suspend/parameters/pm_test_delay")


def test_sleep(mode, level):
    """The system goes to sleep as far as the level of pm_test says, and comes back by itself."""
    prepare(mode)
    test = POWER / "pm_test"
    if not test.exists():
        raise Skip("this kernel has no pm_test: CONFIG_PM_DEBUG is not set")
    before = count("success")
    delay = TEST_DELAY.read_text()
    TEST_DELAY.write_text("1")
    test.write_text(level)
    try:
        with Log() as log:
            (POWER / "state").write_text("mem")
            text = log.text()
    finally:
        test.write_text("none")
        TEST_DELAY.write_text(delay)
    expect(count("success"), before + 1, "sleeps by the kernel's account")
    require("suspend debug: Waiting for 1 second" in text, f"it did not come to {level}: {text}")


def hibernate(disk, way):
    """The system is written to a swap space, switched off in that way, and goes on.

    That it was switched off is known to who starts the other machine.
    """
    # As small as it can be.
    (POWER / "image_size").write_text("0")
    (POWER / "disk").write_text(way)
    with Log() as log:
        tell(f"sleep: disk {disk}")
        said = "did not sleep"
        try:
            (POWER / "state").write_text("disk")
            said = "slept"
        finally:
            tell(f"awake: {said}")
        text = log.text()
    require("PM: hibernation: hibernation entry" in text, f"there was no hibernation: {text}")
    require("PM: hibernation: hibernation exit" in text, f"it did not end: {text}")


def sleeps_when_resumed(dev, mode):
    """The system is to sleep, and waits in its sync for a suspended device, which is resumed then.

    It sleeps, and is woken. Or it has waited for too long, and sleeps when it is asked to again.
    """
    prepare(mode)

    def resume():
        with Log() as log:
            os.write(writer, b"l")
            text = ""

            def syncs():
                nonlocal text
                text += log.text()
                return "PM: suspend entry" in text

            wait_for(syncs, "the system is about to sleep", 10 * PROMPT)
        dev.request("resume")

    reader, writer = os.pipe()
    before = count("success")
    resuming = Child(resume)
    os.read(reader, 1)
    os.close(reader)
    os.close(writer)
    error = _try(mode)
    expect(resuming.errno(10 * PROMPT), "success", "the resume while the system is about to sleep")
    if error is None:
        expect(count("success"), before + 1, "sleeps by the kernel's account")
        return
    expect(error, "EBUSY", "the error of a sleep whose sync has waited for too long")
    sleep(mode)


def keeps_state(dev):
    """Whether the PCI function sets No_Soft_Reset: its transport leaves it alone in s2idle and S3."""
    config = (dev.pci / "config").read_bytes()
    at = config[PCI_CAPABILITIES] & ~3
    while at:
        if config[at] == PCI_CAP_ID_PM:
            return bool(config[at + PCI_PM_CTRL] & PCI_PM_CTRL_NO_SOFT_RESET)
        at = config[at + 1] & ~3
    return False


def can_keep(dev, mode):
    """Whether a device can keep its state: the transport leaves it alone, or its function is left out
    of a suspend to idle.
    """
    return mode == "s2idle" or keeps_state(dev)


def sleeps(dev):
    """In how many sleeps the device has kept its state, and after how many it has been reset."""
    return dev.number("sleeps_kept"), dev.number("sleeps_reset")


class Way:
    """Which way a device takes over a sleep, by its own account and by that of the driver."""

    def __init__(self, dev):
        self._dev = dev
        self._sleeps, self._resets = sleeps(dev), self._count()
        self._state, self._counts = dev.state, dev.counts()

    def _count(self):
        return self._dev.mailbox.counters()["resets"] if self._dev.mailbox else 0

    def since(self):
        """How often it has been kept and reset since, and how many resets the device has counted."""
        now = (*sleeps(self._dev), self._count())
        return tuple(a - b for a, b in zip(now, (*self._sleeps, self._resets)))

    def is_kept(self):
        """The device was never reset, and is in the state that it was in before."""
        kept, reset, resets = self.since()
        require(kept > 0, f"{self._dev.name} has not kept its state")
        expect((reset, resets), (0, 0), f"resets of {self._dev.name}, by the driver and by the device")
        expect(self._dev.state, self._state, f"state of {self._dev.name}")
        expect(self._dev.counts(), self._counts, f"suspends, resumes, failures of {self._dev.name}")
        if self._state == "suspended":
            expect(self._dev.status, SUSPENDED[self._dev.read("revision")], "device status")

    def is_reset(self):
        """The device has been reset, and runs."""
        kept, reset, resets = self.since()
        expect(kept, 0, f"sleeps in which {self._dev.name} has kept its state")
        require(reset > 0, f"{self._dev.name} has not been reset for the sleep")
        require(resets > 0 or not self._dev.mailbox, f"{self._dev.name} has seen no reset")
        expect(self._dev.state, "running", f"state of {self._dev.name}")


def sleep_and_see(mode, devices, how=sleep):
    """The system sleeps; those devices that can keep their state do, and the others are reset."""
    ways = [(dev, Way(dev)) for dev in devices]
    how(mode)
    for dev, way in ways:
        way.is_kept() if can_keep(dev, mode) else way.is_reset()


def refuses_to_sleep(mode, expected):
    """The system does not sleep, and says why; nothing has been put to sleep for that."""
    prepare(mode)
    before = count("success")
    expect(_try(mode), expected, "the error of a sleep that is refused")
    expect(count("success"), before, "sleeps by the kernel's account")


# Requests.


# So many are in process when the system is to sleep, each for that long, in milliseconds.
IN_FLIGHT = 8
# A debug kernel warns of a suspend of devices that has taken ten seconds.
HOLD_MS = min(2000 * SLOWNESS * SHARE, 7000)


def requests_survive(dev, path, mode):
    """Requests that a disk has in process when the system is to sleep are finished, with their data.

    Half of them write.
    """
    old = {number: _block(number, 1) for number in range(IN_FLIGHT)}
    new = {number: _block(number, 2) for number in range(0, IN_FLIGHT, 2)}
    fd = os.open(path, os.O_RDWR | os.O_DIRECT)
    try:
        requests = Requests(fd, BLOCK, IN_FLIGHT)
        expect(requests.submit(IN_FLIGHT, old), IN_FLIGHT, "writes submitted")
        expect(requests.reap(IN_FLIGHT), [BLOCK] * IN_FLIGHT, "what was written before")
        os.fsync(fd)

        dev.mailbox.set(faults=[f"hold-ms={HOLD_MS}"])
        tries = []

        def begin():
            for before in tries[-1:]:
                before.reap(IN_FLIGHT)
            tries.append(Requests(fd, BLOCK, IN_FLIGHT))
            # S3 takes all processors offline but the first.
            everywhere = os.sched_getaffinity(0)
            os.sched_setaffinity(0, {max(everywhere)})
            expect(tries[-1].submit(IN_FLIGHT, new), IN_FLIGHT, "requests submitted")
            os.sched_setaffinity(0, everywhere)
            wait_for(lambda: in_process(dev) == IN_FLIGHT, "the device has all requests")

        sleep(mode, begin)
        requests = tries[-1]
        expect(requests.reap(IN_FLIGHT), [BLOCK] * IN_FLIGHT, "the requests")
        for number in set(old) - set(new):
            expect(requests.data(number), old[number], f"what was read of block {number}")
        dev.mailbox.set(faults=[])
    finally:
        os.close(fd)
    for number, data in (old | new).items():
        is_same(path, number * BLOCK, data)


def in_process(dev):
    """How many requests the device has."""
    return sum(queue["in_process"] for queue in dev.mailbox.stats()["queues"])


# Load.


def _block(number, generation):
    """A block that says which it is, and how often it has been written."""
    body = struct.pack("<QQ", number, generation) * ((BLOCK - 8) // 16)
    body += bytes(BLOCK - 8 - len(body))
    return body + struct.pack("<Q", zlib.crc32(body))


def _write_and_verify(path, part, progress):
    """Writes blocks at random, reads them back, and never finds anything but what it wrote last."""
    choose = random.Random(part)
    fd = os.open(path, os.O_RDWR | os.O_DIRECT)
    buffer = mmap.mmap(-1, BLOCK)
    generations = {}
    first = part * PART // BLOCK
    while not progress.over:
        number = first + choose.randrange(PART // BLOCK)
        generations[number] = generations.get(number, 0) + 1
        buffer[:] = _block(number, generations[number])
        require(os.pwritev(fd, [buffer], number * BLOCK) == BLOCK, "a short write")
        number = choose.choice(list(generations))
        require(os.preadv(fd, [buffer], number * BLOCK) == BLOCK, "a short read")
        require(buffer[:] == _block(number, generations[number]), f"block {number} is different")
        progress.add(part)


class Progress:
    """What children have done, in memory that is shared with them."""

    def __init__(self, children):
        self._words = memoryview(mmap.mmap(-1, 8 * (children + 1))).cast("Q")

    @property
    def over(self):
        return self._words[0]

    def end(self):
        self._words[0] = 1

    def add(self, child):
        self._words[1 + child] += 1

    def all(self):
        return list(self._words[1:])


@contextlib.contextmanager
def disk_load(path, writers=4):
    """Writers that verify what they read; in the end they go on, and have found nothing wrong."""
    progress = Progress(writers)
    children = [Child(_write_and_verify, path, part, progress) for part in range(writers)]
    try:
        _goes_on(progress, children)
        yield
        _goes_on(progress, children)
    finally:
        progress.end()
    for child in children:
        expect(child.wait(10 * PROMPT, "a writer ends"), 0, "what a writer ends with")


def _goes_on(progress, children):
    """Each of them gets something done."""
    before = progress.all()

    def done():
        for child in children:
            require(child.poll() is None, f"a writer ended with {child.status}")
        return all(now > then for now, then in zip(progress.all(), before))

    wait_for(done, "all writers go on", 10 * PROMPT)


def is_same(path, offset, expected):
    """What is on the disk itself."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
    try:
        with mmap.mmap(-1, len(expected)) as buffer:
            require(os.preadv(fd, [buffer], offset) == len(expected), "a short read")
            if buffer[:] != expected:
                raise Fail("what was written before is not there")
    finally:
        os.close(fd)
