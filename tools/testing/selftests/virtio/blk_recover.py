#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""A disk that needs a reset is recovered by one, and all that it had is issued again (D9)."""

import os
import random
import time

from suspend_lib import (
    PROMPT,
    Child,
    Skip,
    case,
    devices,
    expect,
    expect_errno,
    request_in_child,
    require,
    run,
    wait_for,
    within,
)

from patience_lib import GOALS, refuse_to

from blk_lib import (
    Load,
    disk,
    driver_with,
    pattern,
    works,
)
from uring_lib import PolledReads

SECONDS = int(os.environ.get("BLK_SECONDS", "8"))

WHEN = {
    "is to suspend": "needs-reset-on-suspend",
    "is suspended": "needs-reset-while-suspended",
    "is to resume": "needs-reset-on-resume",
}


def recovered(target, count):
    wait_for(lambda: target.dev.number("recoveries") >= count, "it is recovered", 5 * PROMPT)
    wait_for(lambda: target.dev.state == "running", "it runs")


@case("NEEDS_RESET under load when the device {when}", when=WHEN)
def under_load(when):
    target = disk()
    load = Load(target, SECONDS, depth=16, jobs=2)
    before = count = target.dev.number("recoveries")
    while load.runs():
        time.sleep(random.uniform(0, 0.2))
        target.mailbox.set(faults=[WHEN[when]])
        for goal in ("suspend", "resume"):
            try:
                target.dev.request(goal)
            except OSError:
                break
            time.sleep(0.05)
        target.mailbox.set(faults=[])
        count += 1
        recovered(target, count)
    load.finish(PROMPT)
    done = count - before
    print(f"# {done} recoveries")
    require(done >= 3, f"only {done} recoveries")
    works(target)


@case("NEEDS_RESET of a device that runs, under load")
def running():
    target = disk()
    target.dev.rebind()
    load = Load(target, SECONDS)
    time.sleep(random.uniform(0.5, 2))
    target.mailbox.command("fault-now", fault="needs-reset")
    recovered(target, 1)
    load.finish(PROMPT + SECONDS)
    works(target)


@case("requests that the device had are issued again, once each")
def once():
    target = disk()
    target.dev.rebind()
    target.mailbox.set(hold=True)
    writers = [Child(target.write, 4096 * number, pattern(number)) for number in range(4)]
    wait_for(lambda: target.held() == 4, "the device has the requests")
    target.mailbox.clear()
    target.mailbox.command("fault-now", fault="needs-reset")
    recovered(target, 1)
    wait_for(lambda: target.held() == 4, "the device has the requests again", 5 * PROMPT)
    for writer in writers:
        require(writer.poll() is None, "a request that is held has ended")
    target.mailbox.set(hold=False)
    for writer in writers:
        expect(writer.errno(), "success", "a writer")
    expect(target.requests("out"), 4, "writes carried out")
    for number in range(4):
        expect(target.read(4096 * number, 4096), pattern(number), "what was written")


@case("the cache is as it was switched after a recovery")
def cache():
    target = disk()
    target.dev.rebind()
    target.write_file("cache_type", "write through")
    try:
        target.mailbox.command("fault-now", fault="needs-reset")
        recovered(target, 1)
        expect(target.report()["writeback"], False, "the cache of the device")
        expect(target.read_file("cache_type"), "write through", "cache_type")
    finally:
        target.write_file("cache_type", "write back")


@case("a device that is not recovered fails its requests, and can be unbound")
def not_recovered():
    target = disk()
    disk_recovering(target)
    reader = target.read_held()
    target.mailbox.command("fault-now", fault="needs-reset")
    wait_for(lambda: target.dev.state == "failed", "it has failed", 5 * PROMPT)
    expect(reader.errno(what="the reader is told"), "EIO", "the reader")
    expect_errno("EIO", "another read", target.read, 0, 4096)
    target.mailbox.set(hold=False)
    with within(2 * PROMPT, "unbind"):
        target.dev.unbind()
    target.dev.bind()
    works(target)


def disk_recovering(target):
    """Has the device be one that was recovered just now: the next time is hopeless."""
    target.dev.rebind()
    target.mailbox.command("fault-now", fault="needs-reset")
    recovered(target, 1)


@case("a device that lies about its ring again and again is given up, and its requests fail")
def broken_ring():
    target = disk()
    target.dev.rebind()
    load = Load(target, SECONDS)
    target.mailbox.set(faults=["used-bad-id"])
    wait_for(lambda: target.dev.state == "failed" and not load.runs(), "it is given up",
             5 * PROMPT)
    require(load.child.status != 0, "fio has seen no error")
    require(target.dev.number("recoveries") <= 1, "it is recovered again and again")
    expect_errno("EIO", "a read", target.read, 0, 4096)
    target.mailbox.set(faults=[])
    target.dev.rebind()
    works(target)


def read_polling(target):
    """A read that looks for its end itself, which preadv() never does, whatever its flags."""
    with target.open(os.O_RDONLY) as fd:
        reads = PolledReads(fd)
        reads.submit(1)
        (result,) = reads.reap(1)
        if result < 0:
            raise OSError(-result, os.strerror(-result))


@case("a device that lies about a ring that is polled is found out, and its requests end")
def broken_polled_ring():
    target = disk()
    with driver_with(target, poll_queues=1):
        # Those that are polled come last.
        notified = len(os.listdir(f"/sys/block/{target.name}/mq")) - 1
        target.mailbox.clear()
        target.mailbox.set(faults=["used-bad-id"])
        reader = Child(read_polling, target)
        wait_for(lambda: target.mailbox.counters()["faults"], "the device lies", 5 * PROMPT)
        expect(sum(target.report()["queues"][:notified]), 0, "requests in queues that notify")
        wait_for(lambda: target.dev.number("recoveries") or target.dev.state == "failed",
                 "somebody looks", 5 * PROMPT)
        expect(reader.errno(10 * PROMPT, "the reader ends"), "EIO", "the reader")
        expect(target.dev.state, "failed", "a device that lies again when it is recovered")
        target.mailbox.set(faults=[])
        target.dev.rebind()
        works(target)


BREAKS = {
    "says that it needs a reset": ("fault-now", "needs-reset"),
    "resets itself": ("fault-now", "status-zero"),
}


@case("a device that {what} while the probe looks for partitions: the probe fails", what=BREAKS)
def breaks_while_probed(what):
    target = disk()
    target.dev.unbind()
    target.mailbox.set(hold=True)
    binding = Child(target.dev.bind)
    wait_for(lambda: target.held() > 0, "the device has a request of the probe", 5 * PROMPT)
    command, fault = BREAKS[what]
    target.mailbox.command(command, fault=fault)
    status = binding.errno(10 * PROMPT, "the probe ends")
    require(status == "EIO", f"the probe: {status}")
    target.mailbox.set(hold=False)
    target.dev.bind()
    works(target)


LOST = {
    "has a virtqueue less": lambda box: box.command("device", set={"queues": 1}),
    "refuses its features": lambda box: box.set(faults=["features-ok-refused"]),
}


@case("a device that {what} after a reset of the function: its requests fail", what=LOST)
def lost_by_a_reset(what):
    target = disk()
    kept = target.report()["config"]["queues"]
    if "virtqueue" in what and kept < 2:
        raise Skip("the device has one virtqueue")
    try:
        reader = target.read_held()
        LOST[what](target.mailbox)
        failures = target.dev.number("failures")
        (target.dev.pci / "reset").write_text("1")
        wait_for(lambda: target.dev.state == "failed", "it has failed", 5 * PROMPT)
        expect(reader.errno(5 * PROMPT, "the reader is told"), "EIO", "the reader")
        expect_errno("EIO", "another read", target.read, 0, 4096)
        expect(target.dev.number("failures"), failures + 1, "failures")
        require(target.dev.read("last_error") != "none", "last_error says nothing")
        # Whoever has been told does not count on the device any more, though it is as it was.
        target.mailbox.set(faults=[], hold=False)
        target.mailbox.command("device", set={"queues": kept})
        (target.dev.pci / "reset").write_text("1")
        expect(target.dev.state, "failed", "the state after another reset")
        expect(target.dev.number("failures"), failures + 1, "failures after another reset")
        expect_errno("EIO", "a read after another reset", target.read, 0, 4096)
    finally:
        target.mailbox.set(faults=[], hold=False)
        target.mailbox.command("device", set={"queues": kept})
        target.dev.rebind()
    works(target)


@case("a reset of the PCI function under load")
def function_reset():
    target = disk()
    load = Load(target, SECONDS)
    for _ in range(3):
        time.sleep(random.uniform(0.2, 1))
        (target.dev.pci / "reset").write_text("1")
    load.finish(PROMPT + SECONDS)
    works(target)


def one(kind):
    for dev in devices():
        if dev.driver == f"virtio_{kind}" and dev.mailbox:
            return dev
    raise Skip(f"no test device for virtio_{kind}")


@case("virtio_{kind}: the PCI function is reset while a {goal} is under way: the device runs",
      kind=("blk", "rng"), goal=GOALS)
def reset_meanwhile(kind, goal):
    dev = one(kind)
    recoveries = dev.number("recoveries")
    refuse_to(dev, goal)
    dev.mailbox.clear()
    asking = request_in_child(dev, goal)
    # Not right before: the bus does not tell in between a look at the status and the write after it.
    wait_for(lambda: dev.mailbox.counters()["status_writes"], "the device is asked")
    (dev.pci / "reset").write_text("1")
    told = asking.errno(5 * PROMPT)
    require(told in ("EIO", "ENODEV"), f"the {goal} is told {told}")
    dev.mailbox.set(faults=[])
    wait_for(lambda: dev.state == "running", "it runs", 5 * PROMPT)
    expect(dev.number("recoveries"), recoveries, "recoveries: that was none")
    if kind == "blk":
        works(disk())
    for again in GOALS:
        dev.request(again)
    expect(dev.state, "running", "state")


if __name__ == "__main__":
    run(block=True)
