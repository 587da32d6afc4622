#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Virtqueues and configuration changes across a suspend, with split and with packed rings.

What the driver records of its queues is what the device finds (debugfs), buffers in process are
finished first and come back once (V2, D10), the device is notified again at the end of a resume,
and a configuration change waits for it (V4, D12).
"""

from pathlib import Path

from suspend_lib import (
    FAR_MS,
    REVISIONS,
    RUNNING,
    SUSPENDED,
    case,
    device,
    drain,
    entropy_flows,
    expect,
    hold_a_buffer,
    quiet,
    read_some,
    require,
    run,
    select_rng,
    wait_for,
    works,
)

RINGS = ("split", "packed")
RING_PACKED = 34


def with_ring(revision, ring):
    dev = device(revision, mailbox=True)
    dev.configure(ring=ring)
    expect(dev.has_feature(RING_PACKED), ring == "packed", "RING_PACKED")
    return dev


def compare(dev, ring):
    """The driver's table and the device's report say the same."""
    ours = dev.queues()
    theirs = dev.mailbox.stats()["queues"]
    expect(len(ours), len(theirs), "number of queues")
    for our, their in zip(ours, theirs):
        what = f"queue {their['index']}"
        expect(our["layout"], ring, f"layout of {what}")
        for name, key in (("index", "index"), ("size", "size"), ("avail", "avail_idx"),
                          ("used", "used_idx"), ("outstanding", "in_process")):
            expect(int(our[name]), their[key], f"{name} of {what}")
        for name in ("avail_wrap", "used_wrap"):
            wrap = str(int(their[name])) if ring == "packed" else "-"
            expect(our[name], wrap, f"{name} of {what}")


@case("{ring}, {revision}: suspend, resume", ring=RINGS, revision=REVISIONS)
def round_trips(ring, revision):
    dev = with_ring(revision, ring)
    for _ in range(10):
        dev.request("suspend")
        expect(dev.status, SUSPENDED[revision], "device status while suspended")
        dev.request("resume")
        expect(dev.status, RUNNING, "device status after resume")
        works(dev)


@case("{ring}, {revision}: debugfs and the device agree on where the queues are", ring=RINGS,
      revision=REVISIONS)
def table(ring, revision):
    dev = with_ring(revision, ring)
    select_rng(dev)
    # Past the end of the ring, so that its wrap counters have turned, and more.
    size = None
    for buffers in (0, 1, 5, 70, 64):
        for _ in range(buffers):
            entropy_flows(size=64)
        dev.request("suspend")
        compare(dev, ring)
        size = int(dev.queues()[0]["size"])
        dev.request("resume")
    require(size <= 64, f"a queue of {size} has not wrapped around")


@case("{ring}, {revision}: a buffer in process is finished first, and comes back once", ring=RINGS,
      revision=REVISIONS)
def in_process(ring, revision):
    dev = with_ring(revision, ring)
    select_rng(dev)
    hold_a_buffer(dev)
    quiet()
    dev.mailbox.clear()
    dev.request("suspend")
    compare(dev, ring)
    stats = dev.mailbox.stats()
    expect(stats["queues"][0]["in_process"], 0, "buffers in process while suspended")
    expect(stats["counters"]["buffers_used"], 1, "buffers that the device finished")
    expect(dev.queues()[0]["outstanding"], "0", "outstanding, in debugfs")

    dev.mailbox.set(hold=False)
    dev.request("resume")
    counters = dev.mailbox.counters()
    expect(counters["notify"], [0], "notifications, though the driver has an unread buffer")
    works(dev)


@case("{ring}, {revision}: what is missing is made available, and notified of, at resume",
      ring=RINGS, revision=REVISIONS)
def notified(ring, revision):
    dev = with_ring(revision, ring)
    select_rng(dev)
    dev.request("suspend")
    drain()
    quiet()
    dev.mailbox.clear()
    expect(dev.mailbox.counters()["notify"], [0], "notifications")
    dev.request("resume")
    wait_for(lambda: dev.mailbox.counters()["buffers_used"] == 1, "the device uses the buffer")
    notify = dev.mailbox.counters()["notify"][0]
    require(1 <= notify <= 2, f"{notify} notifications")
    works(dev)


@case("{ring}, {revision}: a buffer in process outlives a suspend that is rolled back", ring=RINGS,
      revision=REVISIONS)
def rolled_back(ring, revision):
    dev = with_ring(revision, ring)
    select_rng(dev)
    hold_a_buffer(dev)
    quiet()
    dev.mailbox.set(delay_suspend_ms=FAR_MS)
    dev.write("timeout_ms", "100")
    try:
        dev.request("suspend")
    except TimeoutError:
        pass
    expect(dev.state, "running", "state")
    dev.mailbox.set(hold=False, delay_suspend_ms=0)
    works(dev)


def interrupts(dev, vector):
    """How many interrupts of a vector there were, over all CPUs."""
    name = f"{dev.name}-{vector}"
    for line in Path("/proc/interrupts").read_text().splitlines():
        fields = line.split()
        if fields[-1] == name:
            return sum(int(field) for field in fields[1:] if field.isdigit())
    return None


@case("{revision}: a configuration change while suspended is notified after resume",
      revision=REVISIONS)
def config_change(revision):
    dev = device(revision, mailbox=True)
    before = interrupts(dev, "config")
    require(before is not None, "no vector for configuration changes")
    dev.mailbox.clear()
    dev.request("suspend")
    reply = dev.mailbox.command("config_change")
    expect((reply["sent"], reply["held"]), (False, True), "sent, held")
    expect(interrupts(dev, "config"), before, "interrupts while suspended")
    expect(dev.mailbox.counters()["config_notifications"], 0, "notifications while suspended")

    dev.request("resume")
    wait_for(lambda: interrupts(dev, "config") == before + 1, "one interrupt after resume")
    expect(dev.mailbox.counters()["config_notifications"], 1, "notifications after resume")
    works(dev)

    dev.mailbox.command("config_change")
    wait_for(lambda: interrupts(dev, "config") == before + 2, "an interrupt while running")


@case("{revision}: no interrupt of the queue while suspended", revision=REVISIONS)
def no_interrupt(revision):
    dev = device(revision, mailbox=True)
    select_rng(dev)
    dev.request("suspend")
    before = interrupts(dev, "input")
    require(before is not None, "no vector for the queue")
    drain()
    expect(read_some(), None, "read of a suspended device")
    expect(interrupts(dev, "input"), before, "interrupts while suspended")
    dev.request("resume")
    entropy_flows()
    require(interrupts(dev, "input") > before, "no interrupt after resume")


if __name__ == "__main__":
    run()
