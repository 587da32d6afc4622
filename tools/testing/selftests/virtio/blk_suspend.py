#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""A disk is suspended and resumed under load, and no request is lost."""

import os
import random
import time

from suspend_lib import (
    PROMPT,
    REVISIONS,
    SLOWNESS,
    Child,
    KernelLog,
    case,
    expect,
    expect_errno,
    require,
    run,
    wait_for,
)

from blk_lib import (
    Load,
    blocked,
    disk,
    pattern,
    statistics,
    works,
)

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
    for reader in readers:
        require(reader.poll() is None, "a request that is held has ended")
    target.dev.request("suspend")
    for reader in readers:
        expect(reader.errno(what="a request ends with the suspend"), "success", "the reader")
    target.mailbox.set(hold=False)
    target.dev.request("resume")
    works(target)


@case("a request that the device has not consumed is completed after the resume")
def not_consumed():
    target = disk()
    readers = target.reads_not_consumed()
    target.dev.request("suspend")
    outstanding = sum(int(queue["outstanding"]) for queue in target.dev.queues())
    expect(outstanding, 4, "buffers in the rings")
    for reader in readers:
        require(reader.poll() is None, "a request that was not consumed has ended")
    target.mailbox.clear()
    target.dev.request("resume")
    for reader in readers:
        expect(reader.errno(what="a request ends after the resume"), "success", "the reader")
    expect(target.requests("in"), 4, "requests carried out: none was issued twice")


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
