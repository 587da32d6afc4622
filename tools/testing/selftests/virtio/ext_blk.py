#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""virtio_suspend and the kernel's own virtio_blk: a disk is suspended under load, and every byte is
accounted for.

EXT_BLK_CYCLES says how often under load: 25 times by default, 5 on a slow kernel.
"""

import contextlib
import fcntl
import functools
import mmap
import os
import random
import signal
import struct
import time
import zlib
from pathlib import Path

from blk_lib import blocked, change_waits, keeps_freezing
from ext_lib import disk_of, drivers, each_driver, extend, path_of, unload
from patience_lib import (
    GOALS,
    RESETS,
    SHORT_MS,
    SLACK,
    SOME_GOALS,
    TAKE_BACK,
    can_be_killed,
    ends_in_time,
    ends_with_the_driver,
    read_when_answered,
    refuse_to,
    relent,
)
from awake_lib import about_to_hibernate, refuses_to_hibernate, sync_ends
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
    switch_processor,
    wait_for,
    within,
)
from uring_lib import PolledReads

CYCLES = int(os.environ.get("EXT_BLK_CYCLES", max(5, 25 // SLOWNESS)))
BLOCK = 4096
BLKRRPART = 0x125F
# Each writer has a part of the disk of its own.
WRITERS, PART = 4, 4 << 20
SUSPENDED, RUNNING = (0.0, 0.03), (0.02, 0.1)


def on_disk(function):
    """Calls a case with the disks."""

    @functools.wraps(function)
    def wrapped(**arguments):
        each_driver(function)("virtio_blk", **arguments)

    return wrapped


def reset_of(dev):
    """The file that resets the function of a device."""
    reset = dev.pci / "reset"
    if not reset.exists():
        raise Skip("the function can't be reset")
    return reset


def read_block(path):
    """Reads a block from the device itself; for a child, so that the disk is not in use for long."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
    os.preadv(fd, [mmap.mmap(-1, BLOCK)], 0)


def block(number, generation):
    """A block that says which it is, and how often it has been written."""
    body = struct.pack("<QQ", number, generation) * ((BLOCK - 8) // 16)
    body += bytes(BLOCK - 8 - len(body))
    return body + struct.pack("<Q", zlib.crc32(body))


def write_and_verify(path, part, seed):
    """Writes blocks at random, reads them back, and never finds anything but what it wrote last.

    Ends when it is told to by SIGTERM, after reading all of them once more.
    """
    over = []
    signal.signal(signal.SIGTERM, lambda *_: over.append(True))
    choose = random.Random(seed)
    fd = os.open(path, os.O_RDWR | os.O_DIRECT)
    buffer = mmap.mmap(-1, BLOCK)
    first = part * PART // BLOCK
    generations = {}

    def check(number):
        require(os.preadv(fd, [buffer], number * BLOCK) == BLOCK, "a short read")
        if buffer[:] != block(number, generations[number]):
            os._exit(200)

    while not over:
        number = first + choose.randrange(PART // BLOCK)
        generations[number] = generations.get(number, 0) + 1
        buffer[:] = block(number, generations[number])
        require(os.pwritev(fd, [buffer], number * BLOCK) == BLOCK, "a short write")
        if choose.random() < 0.02:
            os.fsync(fd)
        check(choose.choice(list(generations)))
    os.fsync(fd)
    for number in generations:
        check(number)


@contextlib.contextmanager
def load_on(dev, seed):
    """Writers that verify; they have to end without having found a difference."""
    children = [Child(write_and_verify, path_of(dev), part, seed + part) for part in range(WRITERS)]
    time.sleep(0.3)
    yield children
    for child in children:
        require(child.poll() is None, f"a writer ended early, with {child.status}")
        child.signal(signal.SIGTERM)
    for child in children:
        expect(child.wait(within=20 * PROMPT, what="a writer ends"), 0, "a writer's status")


def stand_still(dev, choose):
    """The disk is suspended for a moment, without a notification, and then runs for one."""
    dev.request("suspend")
    taken = dev.mailbox.counters()["notify"]
    time.sleep(choose.uniform(*SUSPENDED))
    expect(dev.mailbox.counters()["notify"], taken, "notifications")
    dev.request("resume")
    time.sleep(choose.uniform(*RUNNING))


@case("{cycles} suspends at random moments under load: no byte is different", cycles=(CYCLES,))
@on_disk
def under_load(_driver, devices, cycles):
    seed = random.randrange(1 << 32)
    print(f"# seed {seed}")
    choose = random.Random(seed)
    dev = devices[0]
    dev.write("timeout_ms", "20000")
    with load_on(dev, seed):
        for _ in range(cycles):
            stand_still(dev, choose)
    expect(dev.counts(), (cycles, cycles, 0), "counts")


def over_and_over(rounds, number, steps):
    """Takes the steps, one after the other, until it is told to end by SIGTERM; counts the rounds."""
    over = []
    signal.signal(signal.SIGTERM, lambda *_: over.append(True))
    while not over:
        for step in steps:
            step()
            time.sleep(0.05)
        rounds[number] += 1


def schedulers(path):
    """Steps that change the scheduler of a disk, to each that there is: the last is what it had."""
    for module in ("mq-deadline", "kyber-iosched", "bfq"):
        sh("modprobe", module, check=False)
    found = path.read_text().split()
    found.sort(key=lambda name: name.startswith("["))
    return [functools.partial(path.write_text, name.strip("[]")) for name in found]


def processors(*states):
    """Steps that take all processors but one off the guest, and bring them back."""
    found = sorted(Path("/sys/devices/system/cpu").glob("cpu[0-9]*/online"))
    return [functools.partial(switch_processor, path, state) for state in states for path in found]


def read_partitions(path):
    """Has the kernel look for partitions, of which there are none."""
    fd = os.open(path, os.O_RDONLY)
    try:
        fcntl.ioctl(fd, BLKRRPART)
    finally:
        os.close(fd)


@case("{cycles} suspends while schedulers, processors and partitions change", cycles=(CYCLES,))
@on_disk
def churn(_driver, devices, cycles):
    seed = random.randrange(1 << 32)
    print(f"# seed {seed}")
    choose = random.Random(seed)
    dev = devices[0]
    dev.write("timeout_ms", "20000")
    queue = Path("/sys/block", disk_of(dev).name, "queue/scheduler")
    changes = [schedulers(queue), [functools.partial(read_partitions, path_of(dev))]]
    changes += filter(None, [processors("0", "1")])
    rounds = memoryview(mmap.mmap(-1, mmap.PAGESIZE)).cast("Q")
    try:
        with load_on(dev, seed):
            children = [
                Child(over_and_over, rounds, number, steps) for number, steps in enumerate(changes)
            ]
            done = 0
            while done < cycles or not all(rounds[: len(changes)]):
                stand_still(dev, choose)
                done += 1
            for child in children:
                require(child.poll() is None, f"a change failed, with {child.status}")
                child.signal(signal.SIGTERM)
            for child in children:
                expect(child.wait(20 * PROMPT, "changes end"), 0, "the status of changes")
    finally:
        for online in processors("1"):
            with contextlib.suppress(OSError):
                online()
    print(f"# {done} suspends, and {list(rounds[: len(changes)])} rounds of changes")
    expect(dev.counts(), (done, done, 0), "counts")


@case("nothing is in the virtqueues of a suspended disk, and whoever reads waits")
@on_disk
def empty(_driver, devices):
    dev = devices[0]
    path_of(dev)
    with load_on(dev, 1):
        dev.request("suspend")
        for queue in dev.queues():
            expect(queue["outstanding"], "0", f"buffers in {queue['name']}")
            expect(queue["avail"], queue["used"], f"indices of {queue['name']}")
        reader = Child(read_block, path_of(dev))
        time.sleep(1)
        expect(reader.poll(), None, "a reader's status")
        dev.request("resume")
        expect(reader.errno(within=5 * PROMPT), "success", "the reader")


@case("requests that the device does not finish: ETIMEDOUT, and they are finished later")
@on_disk
def unfinished(_driver, devices):
    dev = devices[0]
    path = path_of(dev)
    dev.mailbox.set(faults=["hold-ms=2000"])
    reader = Child(read_block, path)
    time.sleep(0.3)
    dev.write("timeout_ms", "300")
    expect(dev.refused(), "ETIMEDOUT", "suspend")
    require("requests" in dev.read("last_error"), "last_error does not say why")
    expect(dev.state, "running", "state")
    expect(reader.errno(within=10 * PROMPT), "success", "the reader")
    dev.mailbox.set(faults=[])
    dev.write("timeout_ms", "5000")
    dev.cycle()
    dev.works()


def held_read(dev):
    """A reader of a block that the device has and does not finish while `hold` is set."""
    dev.mailbox.set(hold=True)
    reader = Child(read_block, path_of(dev))
    wait_for(
        lambda: any(queue["in_process"] for queue in dev.mailbox.stats()["queues"]),
        "the device has the request",
    )
    return reader


@case("a suspend that waits for requests ends in time")
@on_disk
def unfinished_in_time(_driver, devices):
    dev = devices[0]
    reader = held_read(dev)
    ends_in_time(dev, "suspend")
    dev.mailbox.set(hold=False)
    expect(reader.errno(within=10 * PROMPT), "success", "the reader")
    relent(dev)


ENDS = {"ends in time": ends_in_time, "can be killed": can_be_killed}


@case("somebody else waits for requests, with the queue frozen: a suspend {how}", how=ENDS)
@on_disk
def frozen_by_another(_driver, devices, how):
    dev = devices[0]
    reader = held_read(dev)
    change = change_waits(disk_of(dev).name)
    ENDS[how](dev, "suspend")
    dev.mailbox.set(hold=False)
    expect(reader.errno(within=10 * PROMPT), "success", "the reader")
    expect(change.errno(within=5 * PROMPT), "success", "the change")
    relent(dev)


@case("somebody else freezes the queue all the time: a resume {how}", how=ENDS)
@on_disk
def frozen_at_resume(_driver, devices, how):
    dev = devices[0]
    refuse_to(dev, "resume")
    reader = Child(read_block, path_of(dev))
    blocked(reader)
    with keeps_freezing(disk_of(dev).name) as count:
        wait_for(lambda: count() > 2, "the queue is frozen while the disk is suspended", 5 * PROMPT)
        before = count()
        ENDS[how](dev, "resume")
        wait_for(lambda: count() > before + 1, "the queue was frozen meanwhile, too", 5 * PROMPT)
        require(reader.poll() is None, "the reader has not waited")
        relent(dev)
    expect(reader.errno(within=5 * PROMPT), "success", "the reader")


@case("a {goal} of a disk that needs a reset, and is slow with it, {how}",
      goal=SOME_GOALS, how=RESETS)
@on_disk
def slow_reset(_driver, devices, goal, how):
    RESETS[how](devices[0], goal)
    devices[0].works()


@case("requests first and then the device take their time: there is one deadline for both")
@on_disk
def one_deadline(_driver, devices):
    dev = devices[0]
    hold_ms = SHORT_MS * 7 // 10
    dev.mailbox.set(faults=[f"hold-ms={hold_ms}"], delay_suspend_ms=hold_ms)
    reader = Child(read_block, path_of(dev))
    wait_for(
        lambda: any(queue["in_process"] for queue in dev.mailbox.stats()["queues"]),
        "the device has the request",
    )
    dev.write("timeout_ms", str(SHORT_MS))
    with within(SHORT_MS / 1000 + TAKE_BACK + SLACK, "a suspend"):
        expect(dev.refused(), "ETIMEDOUT", "suspend")
    require("device" in dev.read("last_error"), "it was not the device that was waited for last")
    expect(reader.errno(within=10 * PROMPT), "success", "the reader")
    dev.mailbox.set(delay_suspend_ms=0)
    relent(dev)


@case("a suspend that waits for requests ends when the driver is unbound")
@on_disk
def unfinished_unbound(_driver, devices):
    dev = devices[0]
    reader = held_read(dev)
    unbinding = ends_with_the_driver(dev, "suspend")
    # The driver lets go of its disk when the requests have been finished, as on any other day.
    dev.mailbox.set(hold=False)
    expect(unbinding.errno(5 * PROMPT), "success", "unbinding")
    expect(reader.errno(within=5 * PROMPT), "success", "the reader")
    dev.bind()
    dev.works()
    dev.cycle()


@case("a {goal} that the device does not follow ends in time", goal=GOALS)
@on_disk
def in_time(_driver, devices, goal):
    refuse_to(devices[0], goal)
    ends_in_time(devices[0], goal)
    relent(devices[0])


@case("the writer of a {goal} can be killed", goal=GOALS)
@on_disk
def killed_writer(_driver, devices, goal):
    refuse_to(devices[0], goal)
    can_be_killed(devices[0], goal)
    relent(devices[0])


@case("a {goal} ends when the driver is unbound", goal=GOALS)
@on_disk
def unbound(_driver, devices, goal):
    dev = devices[0]
    refuse_to(dev, goal)
    unbinding = ends_with_the_driver(dev, goal)
    expect(unbinding.errno(5 * PROMPT), "success", "unbinding")
    dev.mailbox.set(faults=[])
    dev.bind()
    dev.cycle()


@case("a writer of the request that waits for requests can be killed")
@on_disk
def killed(_driver, devices):
    dev = devices[0]
    path = path_of(dev)
    dev.mailbox.set(faults=["hold-ms=3000"])
    reader = Child(read_block, path)
    time.sleep(0.3)
    dev.write("timeout_ms", "60000")
    child = Child(dev.request, "suspend")
    wait_for(lambda: dev.state == "suspending", "it is suspending")
    child.kill()
    child.wait(within=2 * PROMPT)
    wait_for(lambda: dev.state == "running", "it runs")
    expect(reader.errno(within=10 * PROMPT), "success", "the reader")
    dev.mailbox.set(faults=[])
    dev.cycle()


@case("the mode of the cache is not changed while the disk is suspended, but after")
@on_disk
def cache_type(_driver, devices):
    dev = devices[0]
    path = disk_of(dev) / "cache_type"
    if not os.access(path, os.W_OK) or not path.stat().st_mode & 0o200:
        raise Skip("the cache can't be configured")
    before = path.read_text().strip()
    wanted = "write through" if before == "write back" else "write back"
    dev.request("suspend")
    writer = Child(path.write_text, wanted)
    time.sleep(0.5)
    expect(writer.poll(), None, "the writer's status")
    dev.request("resume")
    expect(writer.errno(within=5 * PROMPT), "success", "the writer")
    expect(path.read_text().strip(), wanted, "the mode")
    # One who is killed has changed nothing.
    dev.request("suspend")
    writer = Child(path.write_text, before)
    time.sleep(0.3)
    writer.kill()
    writer.wait(within=2 * PROMPT)
    dev.request("resume")
    expect(path.read_text().strip(), wanted, "the mode")
    path.write_text(before)


@case("the mode of the cache is read when the device has answered a {goal}", goal=GOALS)
@on_disk
def cache_type_read(_driver, devices, goal):
    read_when_answered(devices[0], goal, (disk_of(devices[0]) / "cache_type").read_text)


@case("the serial number is read after the resume")
@on_disk
def serial(_driver, devices):
    dev = devices[0]
    path = disk_of(dev) / "serial"
    before = path.read_text()
    dev.request("suspend")
    reader = Child(path.read_text)
    time.sleep(0.5)
    expect(reader.poll(), None, "the reader's status")
    dev.request("resume")
    expect(reader.errno(within=5 * PROMPT), "success", "the reader")
    expect(path.read_text(), before, "the serial number")


@case("a capacity that changes while suspended is seen after the resume")
@on_disk
def capacity(_driver, devices):
    dev = devices[0]
    size = disk_of(dev) / "size"
    before = int(size.read_text())
    dev.request("suspend")
    held = dev.mailbox.command("device", set={"capacity": before // 2})["held"]
    require(held, "the device did not hold the change back (V3)")
    time.sleep(0.3)
    expect(int(size.read_text()), before, "the size while suspended")
    dev.request("resume")
    wait_for(lambda: int(size.read_text()) == before // 2, "the new size", 5 * PROMPT)
    dev.mailbox.command("device", set={"capacity": before})
    wait_for(lambda: int(size.read_text()) == before, "the old size", 5 * PROMPT)


@case("a capacity that changes while suspended is seen after the resume, without a notification")
@on_disk
def capacity_unheard(_driver, devices):
    dev = devices[0]
    size = disk_of(dev) / "size"
    before = int(size.read_text())
    dev.request("suspend")
    dev.mailbox.set(faults=["config-irq-lost"])
    dev.mailbox.command("device", set={"capacity": before // 2})
    faults = dev.mailbox.counters()["faults"]
    dev.request("resume")
    require(dev.mailbox.counters()["faults"] > faults, "the notification was not lost")
    wait_for(lambda: int(size.read_text()) == before // 2, "the new size", 5 * PROMPT)
    dev.mailbox.set(faults=[])
    dev.mailbox.command("device", set={"capacity": before})
    wait_for(lambda: int(size.read_text()) == before, "the old size", 5 * PROMPT)


@case("a suspended disk that can't be reached for a while: ENODEV, and it is resumed later")
@on_disk
def out_of_reach(_driver, devices):
    dev = devices[0]
    data = os.urandom(1 << 20)
    with open(path_of(dev), "r+b", buffering=0) as disk:
        dev.request("suspend")
        disk.write(data)
        dev.mailbox.command("fault-now", fault="away")
        for _ in range(2):
            with within(PROMPT, "a resume"):
                expect(dev.refused("resume"), "ENODEV", "resume")
            expect(dev.state, "suspended", "state")
        require("gone" in dev.read("last_error"), "last_error does not say so")
        reader = Child(read_block, path_of(dev))
        dev.mailbox.set(faults=[])
        time.sleep(0.3)
        expect(reader.poll(), None, "a reader's status")
        dev.request("resume")
        os.fsync(disk.fileno())
        expect(reader.errno(within=5 * PROMPT), "success", "the reader")
    with open(path_of(dev), "rb", buffering=0) as disk:
        require(disk.read(len(data)) == data, "what was written is not on the disk")
    expect(dev.number("recoveries"), 0, "recoveries")
    dev.cycle()


@case("a suspended disk that can't be reached and is unbound: whoever waits gets errors")
@on_disk
def out_of_reach_unbound(_driver, devices):
    dev = devices[0]
    path = path_of(dev)
    dev.request("suspend")
    reader = Child(read_block, path)
    time.sleep(0.3)
    dev.mailbox.command("fault-now", fault="gone")
    expect(dev.refused("resume"), "ENODEV", "resume")
    expect(Child(dev.unbind).errno(5 * PROMPT), "success", "unbinding")
    require(reader.errno(within=5 * PROMPT) in ("EIO", "ENODEV", "ENXIO"), "the reader got data")
    dev.mailbox.set(faults=[])
    dev.bind()
    dev.works()
    dev.cycle()


@case("polled requests that nobody reaps are finished by the suspend")
def polled():
    with drivers("virtio_blk") as driver:
        dev = extend(driver, "poll_queues=1")[0]
        dev.write("timeout_ms", "3000")
        fd = os.open(path_of(dev), os.O_RDONLY | os.O_DIRECT)
        try:
            reads = PolledReads(fd, BLOCK)
            expect(reads.submit(4), 4, "reads submitted")
            dev.request("suspend")
            expect(dev.state, "suspended", "state")
            dev.request("resume")
            expect(reads.reap(4), [BLOCK] * 4, "the reads")
            # And the other way round: those that are reaped as usual.
            dev.cycle()
        finally:
            os.close(fd)


@case("the system does not hibernate while a disk is suspended")
@on_disk
def hibernate(_driver, devices):
    refuses_to_hibernate(devices[0])
    devices[0].works()


@case("a driver that is bound when the system is about to sleep: EBUSY; a look when it is awake")
@on_disk
def bound_late(_driver, devices):
    if len(devices) < 2:
        raise Skip("there is one disk only")
    synced, dev = devices[:2]
    before = dev.number("recoveries")
    with about_to_hibernate(synced, path_of(synced)):
        dev.rebind()
        expect(Child(dev.request, "suspend").errno(5 * PROMPT), "EBUSY", "suspend")
        expect(dev.state, "running", "state")
        dev.mailbox.command("fault-now", fault="needs-reset")
    wait_for(lambda: dev.number("recoveries") == before + 1, "it is recovered", 5 * PROMPT)
    wait_for(lambda: dev.state == "running", "it runs")
    dev.cycle()
    dev.works()


@case("{kind} with something to be written to a suspended disk: EBUSY, and it can be resumed",
      kind=("freeze", "mem"))
@on_disk
def sync_waits(_driver, devices, kind):
    sync_ends(devices[0], path_of(devices[0]), kind)
    devices[0].works()


@case("NEEDS_RESET under load: recovered, and no byte is different")
@on_disk
def needs_reset(_driver, devices):
    dev = devices[0]
    path_of(dev)
    with load_on(dev, 2):
        for _ in range(3):
            dev.request("suspend")
            dev.mailbox.command("fault-now", fault="needs-reset")
            expect(dev.refused("resume"), "EIO", "resume")
            wait_for(lambda: dev.state == "running", "the device runs again", 5 * PROMPT)
            time.sleep(0.5)
        expect(dev.number("recoveries"), 3, "recoveries")


@case("the driver is unbound while its device is suspended: what was written is on the disk")
@on_disk
def dirty(_driver, devices):
    dev = devices[0]
    data = os.urandom(1 << 20)
    with open(path_of(dev), "r+b", buffering=0) as disk:
        dev.request("suspend")
        # Into the page cache.
        disk.write(data)
        dev.unbind()
    dev.bind()
    with open(path_of(dev), "rb", buffering=0) as disk:
        require(disk.read(len(data)) == data, "it is not")


@case("the function is reset while the disk is suspended: it runs")
@on_disk
def reset_function(_driver, devices):
    dev = devices[0]
    reset = reset_of(dev)
    dev.request("suspend")
    reset.write_text("1")
    wait_for(lambda: dev.state == "running", "it runs", 5 * PROMPT)
    dev.works()
    dev.cycle()
    expect(unload(), "success", "unloading")


STATES = ("runs", "is suspended")


def stays(dev, state, seconds=0.5 * SLOWNESS):
    """The device is in that state, and goes on to be: longer than a look at it can take."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        expect(dev.state, state, "state")
        time.sleep(0.01)


def reset_and_left(dev, state):
    """The function is reset, and not put into operation again, while the disk {state}."""
    path_of(dev)
    if state == "is suspended":
        dev.request("suspend")
    reset_of(dev).write_text("1")
    expect(dev.mailbox.info()["state"], "reset", "the device's view")


@case("the function is reset while the disk {state}, and left so: the disk is recovered",
      state=STATES)
@on_disk
def left_reset(_driver, devices, state):
    dev = devices[0]
    with dev.enabled_by_user_space():
        reset_and_left(dev, state)
        reader = Child(read_block, path_of(dev))
        wait_for(lambda: dev.number("recoveries") == 1, "it is recovered", 5 * PROMPT)
        wait_for(lambda: dev.state == "running", "it runs")
        expect(reader.errno(within=5 * PROMPT), "success", "the reader")
        expect(dev.number("failures"), 1, "failures")
        require("left so" in dev.read("last_error"), dev.read("last_error"))
        dev.works()
        dev.cycle()


@case("the function is reset while the disk is suspended, left so, and can't be initialised")
@on_disk
def left_for_good(_driver, devices):
    dev = devices[0]
    with dev.enabled_by_user_space():
        dev.mailbox.set(faults=["features-ok-refused"])
        reset_and_left(dev, "is suspended")
        reader = Child(read_block, path_of(dev))
        wait_for(lambda: dev.state == "failed", "it has failed", 5 * PROMPT)
        told = reader.errno(within=5 * PROMPT)
        require(told in ("EIO", "ENODEV", "ENXIO"), f"the reader is told {told}")
        # Whoever has been told does not count on it any more, whatever its bus does.
        dev.mailbox.set(faults=[])
        reset_of(dev).write_text("1")
        wait_for(lambda: dev.mailbox.info()["state"] == "running", "the device is in operation")
        # Whoever would look at it now has been asked to by then, but may not have done it.
        stays(dev, "failed")
        expect(dev.refused(), "EIO", "suspend")
        expect(Child(dev.unbind).errno(5 * PROMPT), "success", "unbinding")
        dev.bind()
        dev.works()
        dev.cycle()


@case("the function is reset while the disk is suspended, left so, and the driver is unbound")
@on_disk
def left_and_unbound(_driver, devices):
    dev = devices[0]
    with dev.enabled_by_user_space():
        reset_and_left(dev, "is suspended")
        reader = Child(read_block, path_of(dev))
        expect(Child(dev.unbind).errno(5 * PROMPT), "success", "unbinding")
        told = reader.errno(within=5 * PROMPT)
        require(told in ("EIO", "ENODEV", "ENXIO"), f"the reader is told {told}")
        dev.bind()
        dev.works()
        dev.cycle()


@case("a resume is asked for while the function is reset: it is refused, and the disk runs")
@on_disk
def reset_in_resume(_driver, devices):
    dev = devices[0]
    reset = reset_of(dev)
    dev.request("suspend")
    resetting = Child(reset.write_text, "1")
    while dev.status != 0:
        require(resetting.poll() is None, "the reset was over before it was seen")
    expect(dev.refused("resume"), "EBUSY", "a resume meanwhile")
    expect(resetting.errno(), "success", "the reset")
    wait_for(lambda: dev.state == "running", "it runs", 5 * PROMPT)
    dev.works()
    dev.cycle()


@case("a suspend is asked for while the function is reset: it is refused, and the disk runs")
@on_disk
def reset_in_suspend(_driver, devices):
    dev = devices[0]
    reset = reset_of(dev)
    resetting = Child(reset.write_text, "1")
    while dev.status != 0:
        require(resetting.poll() is None, "the reset was over before it was seen")
    expect(dev.refused("suspend"), "EBUSY", "a suspend meanwhile")
    expect(resetting.errno(), "success", "the reset")
    # Longer than the look at a device that a request has left alone.
    time.sleep(0.3)
    expect(dev.state, "running", "state")
    dev.works()
    dev.cycle()
    expect(dev.number("recoveries"), 0, "recoveries")


if __name__ == "__main__":
    run()
