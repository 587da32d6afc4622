#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""A disk is suspended and resumed under load, and no request is lost."""

import ctypes
import os
import random
import statistics as numbers
import time
from pathlib import Path

from suspend_lib import (
    PROMPT,
    REVISIONS,
    SLOWNESS,
    Child,
    KernelLog,
    Skip,
    case,
    expect,
    expect_errno,
    request_in_child,
    require,
    run,
    wait_for,
)

from blk_lib import (
    Load,
    blocked,
    disk,
    driver_with,
    pattern,
    statistics,
    what_freezes,
    works,
)
from patience_lib import GOALS, read_when_answered
from uring_lib import PolledReads

SECONDS = int(os.environ.get("BLK_SECONDS", "8"))


def revise(target, revision):
    """Has the device offer that revision."""
    if target.dev.read("revision") != revision:
        target.dev.configure(offer={"1.4": "43", "draft": "42"}[revision])
        expect(target.dev.read("revision"), revision, "revision")


def cycle(target):
    target.dev.request("suspend")
    target.dev.request("resume")


@case("{revision}: status accesses of a suspend and a resume", revision=REVISIONS)
def accesses(revision):
    target = disk()
    revise(target, revision)
    works(target)
    target.mailbox.clear()
    target.dev.request("suspend")
    counters = target.mailbox.counters()
    expect((counters["status_writes"], counters["status_reads"]), (1, 2), "accesses of a suspend")
    target.dev.request("resume")
    works(target)


@case("{revision}: cycles at random moments while fio writes and verifies", revision=REVISIONS)
def under_load(revision):
    target = disk()
    revise(target, revision)
    target.mailbox.clear()
    before = statistics(target)
    load = Load(target, SECONDS, depth=16, jobs=2)
    cycles = 0
    while load.runs():
        cycle(target)
        cycles += 1
        time.sleep(random.uniform(0, 0.05))
    load.finish(PROMPT)
    print(f"# {cycles} cycles")
    require(cycles >= 10, f"only {cycles} cycles")
    expect(target.dev.number("failures"), 0, "failures")
    # Nothing is issued twice, and nothing is lost: the block layer and the device agree.
    after = statistics(target)
    for kind in ("in", "out"):
        guest = tuple(b - a for a, b in zip(before[kind], after[kind]))
        seen = target.report()["requests"][kind]
        expect((seen["ok"], seen["bytes"]), guest, f"requests of type {kind}")


@case("{revision}: requests wait while suspended, and complete after the resume",
      revision=REVISIONS)
def wait(revision):
    target = disk()
    revise(target, revision)
    target.write(0, pattern(1))
    target.dev.request("suspend")
    target.mailbox.clear()
    reader = Child(target.read, 0, 4096)
    writer = Child(target.write, 8192, pattern(2))
    blocked(reader)
    blocked(writer, 0)
    expect(target.report()["requests"], {}, "requests while suspended")
    target.dev.request("resume")
    expect(reader.errno(), "success", "the reader")
    expect(writer.errno(), "success", "the writer")
    expect(target.read(8192, 4096), pattern(2), "what was written")


@case("a request that the device has is finished before the device is suspended")
def in_process():
    target = disk()
    target.mailbox.set(hold=True)
    readers = [Child(target.read, 4096 * number, 4096) for number in range(4)]
    wait_for(lambda: target.held() == 4, "the device has the requests")
    target.mailbox.clear()
    suspending = request_in_child(target.dev, "suspend")
    late = Child(target.read, 16384, 4096)
    blocked(suspending)
    for reader in readers:
        require(reader.poll() is None, "a request that is held has ended")
    expect(target.mailbox.counters()["status_writes"], 0, "SUSPEND is not set yet")
    expect(target.held(), 4, "requests: those made meanwhile wait")
    target.mailbox.set(hold=False)
    for reader in readers:
        expect(reader.errno(what="a request ends with the suspend"), "success", "the reader")
    expect(suspending.errno(), "success", "the suspend")
    expect(target.dev.state, "suspended", "state")
    outstanding = sum(int(queue["outstanding"]) for queue in target.dev.queues())
    expect(outstanding, 0, "buffers in the rings")
    blocked(late)
    target.dev.request("resume")
    expect(late.errno(), "success", "a request made meanwhile")
    works(target)


@case("requests that the device does not finish: ETIMEDOUT, and they go on")
def not_finished():
    target = disk()
    target.dev.write("timeout_ms", str(300 * SLOWNESS))
    target.mailbox.set(hold=True)
    readers = [Child(target.read, 4096 * number, 4096) for number in range(4)]
    wait_for(lambda: target.held() == 4, "the device has the requests")
    target.mailbox.clear()
    expect_errno("ETIMEDOUT", "suspend", target.dev.request, "suspend")
    expect(target.dev.state, "running", "state")
    expect(target.dev.read("last_error"), "ETIMEDOUT requests were not finished in time",
           "last_error")
    expect(target.mailbox.counters()["status_writes"], 0, "SUSPEND was not set")
    late = Child(target.read, 16384, 4096)
    wait_for(lambda: target.held() == 5, "the device gets another request")
    target.mailbox.set(hold=False)
    for reader in (*readers, late):
        expect(reader.errno(what="a request ends"), "success", "the reader")
    expect(target.requests("in"), 5, "requests carried out: none was issued twice")


@case("a device that needs a reset, asked to finish its requests: EIO at once, and it is recovered")
def broken():
    target = disk()
    target.dev.rebind()
    reader = target.read_held()
    suspending = request_in_child(target.dev, "suspend")
    target.mailbox.command("fault-now", fault="needs-reset")
    expect(suspending.errno(), "EIO", "the suspend")
    wait_for(lambda: target.dev.number("recoveries") == 1, "it is recovered", 5 * PROMPT)
    target.mailbox.set(hold=False)
    expect(reader.errno(5 * PROMPT), "success", "the reader")
    works(target)


@case("a device that breaks its ring while it is to finish its requests: EIO, and it is looked at")
def broken_ring():
    target = disk()
    target.dev.rebind()
    reader = target.read_held()
    suspending = request_in_child(target.dev, "suspend")
    target.mailbox.set(faults=["used-bad-id"], hold=False)
    expect(suspending.errno(5 * PROMPT), "EIO", "the suspend")
    # It lies again when it is recovered, unless it is told in time not to.
    wait_for(lambda: target.dev.number("recoveries") or target.dev.state == "failed",
             "somebody looks", 5 * PROMPT)
    target.mailbox.set(faults=[])
    require(reader.errno(5 * PROMPT) in ("success", "EIO"), "how the reader ends")
    target.dev.rebind()
    works(target)


@case("polled requests that nobody reaps are finished by the suspend")
def polled():
    target = disk()
    with driver_with(target, poll_queues=1):
        target.dev.write("timeout_ms", str(1000 * SLOWNESS))
        with target.open(os.O_RDONLY) as fd:
            reads = PolledReads(fd)
            expect(reads.submit(4), 4, "reads submitted")
            target.dev.request("suspend")
            expect(target.dev.state, "suspended", "state")
            target.dev.request("resume")
            expect(reads.reap(4), [4096] * 4, "the reads")
        # And the other way round: those that are reaped as usual.
        cycle(target)
        works(target)


@case("a processor goes offline while a reader waits for the resume")
def offline():
    target = disk()
    cpu = os.cpu_count() - 1
    online = Path(f"/sys/devices/system/cpu/cpu{cpu}/online")
    if not online.exists():
        raise Skip("no processor can go offline")

    def read():
        os.sched_setaffinity(0, {cpu})
        target.read(0, 4096)

    target.dev.request("suspend")
    reader = Child(read)
    blocked(reader)
    try:
        going = Child(online.write_text, "0")
        expect(going.errno(10 * PROMPT, "the processor is offline"), "success", "going offline")
        require(reader.poll() is None, "the reader has not waited")
    finally:
        target.dev.request("resume")
        online.write_text("1")
    expect(reader.errno(5 * PROMPT), "success", "the reader")
    works(target)


@case("the scheduler is changed while suspended, with a reader that waits")
def scheduler():
    target = disk()
    path, value, before = what_freezes(target.name)
    # Requests may be on their way when the device is asked.
    target.mailbox.set(hold=True)
    early = [Child(target.read, 4096 * number, 4096) for number in range(2)]
    wait_for(lambda: target.held() == 2, "the device has the requests")
    suspending = request_in_child(target.dev, "suspend")
    target.mailbox.set(hold=False)
    expect(suspending.errno(), "success", "the suspend")
    late = Child(target.read, 16384, 4096)
    blocked(late)
    try:
        change = Child(path.write_text, value)
        expect(change.errno(10 * PROMPT, f"{path.name} is changed"), "success", "the change")
        shown = path.read_text().strip()
        require(value == shown or f"[{value}]" in shown, f"{path.name} is {shown}")
    finally:
        target.dev.request("resume")
        path.write_text(before)
    for reader in (*early, late):
        expect(reader.errno(5 * PROMPT), "success", "a reader")
    works(target)


@case("a flush waits while suspended, and reaches the device after the writes before it")
def flush():
    target = disk()
    target.write_file("cache_type", "write back")
    target.mailbox.clear()
    target.write(0, pattern(5))
    require(target.report()["unflushed"] > 0, "the write is not in the cache")
    target.dev.request("suspend")
    flusher = Child(target.flush)
    blocked(flusher)
    require(target.report()["unflushed"] > 0, "a suspend flushes nothing")
    expect(target.requests("flush"), 0, "flushes while suspended")
    target.dev.request("resume")
    expect(flusher.errno(), "success", "the flush")
    expect(target.requests("flush"), 1, "flushes")
    expect(target.report()["unflushed"], 0, "writes that were not flushed")


SYS_MEMBARRIER, MEMBARRIER_GLOBAL = 324, 1


def grace_period():
    """How long a grace period of RCU takes now, in nanoseconds."""
    began = time.monotonic_ns()
    if ctypes.CDLL(None).syscall(SYS_MEMBARRIER, MEMBARRIER_GLOBAL, 0, 0):
        raise Skip("membarrier() waits for no grace period here")
    return time.monotonic_ns() - began


@case("a resume right after the suspend does not wait until a grace period is over")
def at_once():
    if SLOWNESS > 1:
        raise Skip("what a kernel does that checks itself takes as long as a grace period")
    target = disk()
    resumes, periods = [], []
    for _ in range(15):
        cycle(target)
        resumes.append(target.dev.number("last_resume_ns"))
        # What that does after it is over then, too.
        periods.append(grace_period())
        works(target)
    took, period = numbers.median(resumes), numbers.median(periods)
    print(f"# {took / 1e6:.1f} ms, and a grace period {period / 1e6:.1f} ms")
    require(took < 0.75 * period, "a resume takes as long as a grace period")


@case("whoever waits goes on although the disk is suspended again and again without a pause")
def no_pause():
    target = disk()
    target.dev.request("suspend")
    reader = Child(target.read, 0, 4096)
    blocked(reader)
    target.dev.request("resume")
    for _ in range(100):
        if reader.poll() is not None:
            break
        cycle(target)
    expect(reader.poll(), 0, "the status of the reader, after 100 cycles")


@case("no timeout can expire for a request that waits")
def timeout():
    # The file is there for drivers that handle timeouts. Where none does, nothing happens when one
    # expires.
    path = f"/sys/block/{disk().name}/queue/io_timeout"
    require(not os.path.exists(path), f"{path} is there")


@case("cache_type can't be written while suspended")
def cache_type():
    target = disk()
    target.dev.request("suspend")
    expect_errno("EBUSY", "cache_type", target.write_file, "cache_type", "write through")
    target.dev.request("resume")
    target.write_file("cache_type", "write through")
    target.write_file("cache_type", "write back")


@case("cache_type is read when the device has answered a {goal}", goal=GOALS)
def cache_type_read(goal):
    target = disk()
    read_when_answered(target.dev, goal, lambda: target.read_file("cache_type"))


@case("a change of the capacity while suspended is seen after the resume")
def capacity():
    target = disk()
    before = target.sectors
    try:
        target.dev.request("suspend")
        target.mailbox.command("device", set={"capacity": before // 2})
        time.sleep(0.2)
        expect(target.sectors, before, "the size while suspended")
        target.dev.request("resume")
        wait_for(lambda: target.sectors == before // 2, "the disk has shrunk")
    finally:
        target.mailbox.command("device", set={"capacity": before})
        wait_for(lambda: target.sectors == before, "the disk has grown again")


@case("a change of the capacity while suspended is seen after the resume, without a notification")
def capacity_unheard():
    target = disk()
    before = target.sectors
    try:
        target.dev.request("suspend")
        target.mailbox.set(faults=["config-irq-lost"])
        target.mailbox.command("device", set={"capacity": before // 2})
        faults = target.mailbox.counters()["faults"]
        target.dev.request("resume")
        require(target.mailbox.counters()["faults"] > faults, "the notification was not lost")
        wait_for(lambda: target.sectors == before // 2, "the disk has shrunk")
    finally:
        target.mailbox.set(faults=[])
        target.mailbox.command("device", set={"capacity": before})
        wait_for(lambda: target.sectors == before, "the disk has grown again")


@case("{revision}: a suspended disk that can't be reached for a while is resumed later",
      revision=REVISIONS)
def out_of_reach(revision):
    target = disk()
    revise(target, revision)
    target.dev.request("suspend")
    writer = Child(target.write, 65536, pattern(7))
    blocked(writer)
    target.mailbox.command("fault-now", fault="away")
    for _ in range(2):
        expect_errno("ENODEV", "resume", target.dev.request, "resume")
        expect(target.dev.state, "suspended", "state")
    target.mailbox.set(faults=[])
    blocked(writer)
    target.dev.request("resume")
    expect(writer.errno(5 * PROMPT), "success", "a request that waited")
    expect(target.read(65536, 4096), pattern(7), "what was written")
    expect(target.dev.number("recoveries"), 0, "recoveries")


@case("a configuration change that was heard of before is looked at before SUSPEND is written")
def change_before(cycles=20):
    target = disk()
    # The driver must not look while the device has not answered yet, which the judge sees (D3).
    target.mailbox.set(delay_suspend_ms=20)
    target.mailbox.clear()

    def change():
        while True:
            target.mailbox.command("fault-now", fault="config-change")

    child = Child(change)
    for _ in range(cycles):
        cycle(target)
    child.kill()
    counters = target.mailbox.counters()
    require(counters["config_notifications"] > cycles, "a change was not notified")
    expect(counters["suspends"], cycles, "suspends")
    works(target)


@case("a configuration change notified while suspended is handled after the resume")
def notified_early():
    target = disk()
    log = KernelLog()
    target.mailbox.set(faults=["config-change-while-suspended=20"])
    target.mailbox.clear()
    target.dev.request("suspend")
    wait_for(lambda: target.mailbox.counters()["config_notifications"] == 1, "the notification")
    # Long enough for an interrupt to arrive.
    time.sleep(0.3)
    handled = [line for line in log.lines() if "new size" in line]
    expect(handled, [], "what the driver does while suspended")
    target.mailbox.set(faults=[])
    target.dev.request("resume")
    wait_for(lambda: any("new size" in line for line in log.lines()), "the driver looks")
    works(target)


@case("a suspend that times out leaves the disk running under load")
def refused():
    target = disk()
    load = Load(target, SECONDS // 2)
    target.mailbox.set(faults=["suspend-never"])
    target.dev.write("timeout_ms", str(200 * SLOWNESS))
    for _ in range(3):
        expect_errno("ETIMEDOUT", "suspend", target.dev.request, "suspend")
        expect(target.dev.state, "running", "state")
    target.mailbox.set(faults=[])
    load.finish(PROMPT + SECONDS)
    works(target)


if __name__ == "__main__":
    run(block=True)
