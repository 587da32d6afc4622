#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Devices that differ from VIRTIO 1.4 as some are known to: what becomes of the drivers.

The table is that of Documentation/virtio/device-authors.rst. The test device comes near to each of
them by what it offers and by faults (`virtio-test-device --like`); one of the faults takes effect
in each case, which is looked at.
"""

import random
import time
from dataclasses import dataclass

from suspend_lib import (
    PROMPT,
    Reader,
    case,
    device,
    expect,
    in_process,
    require,
    run,
    select_rng,
    told,
    wait_for,
    works,
)

import blk_lib
from suspend_stream import accounted, reading, whole

CYCLES = 5
SECONDS = 4


@dataclass
class Like:
    """What a device is like, and what comes of a suspend of it."""

    name: str
    revision: str
    # The fault that takes effect.
    fault: str
    # What the test device is told besides: for how long it has a buffer, and how long it quiesces.
    hold_ms: int = 0
    quiesce_ms: int = 0
    timeout_ms: int = 5000
    # What a suspend is told, and whether the device was recovered by a reset then.
    suspend: str = "success"
    is_recovered: bool = False

    def __str__(self):
        return f"{self.name}, {self.fault}: {self.suspend}"


LIKES = (
    Like("crosvm", "draft", "works-while-suspended", hold_ms=300),
    # The driver changes its mind, which the device does not hear: it suspends, and is resumed.
    Like("5bsd", "1.4", "writes-dropped", quiesce_ms=80, timeout_ms=40, suspend="ETIMEDOUT"),
    Like("5bsd", "1.4", "drain-limit=100", quiesce_ms=300, suspend="EIO", is_recovered=True),
    Like("qemu-2025", "1.4", "status-zero-on-suspend", suspend="EIO", is_recovered=True),
)


def become(dev, like):
    """Has the device be like that."""
    faults = [f"hold-ms={like.hold_ms}"] if like.hold_ms else []
    dev.configure(like=like.name, faults=faults, delay_suspend_ms=like.quiesce_ms)
    expect(dev.read("revision"), like.revision, "revision")
    dev.write("timeout_ms", str(like.timeout_ms))


def cycle(dev, like):
    """Suspends a device that has a buffer, and resumes it if that succeeded."""
    recoveries = dev.number("recoveries")
    expect(told(dev.request, "suspend"), like.suspend, "suspend")
    if like.suspend == "success":
        expect(dev.state, "suspended", "state")
        wait_for(lambda: dev.mailbox.happened(like.fault), "the fault happens")
        expect(told(dev.request, "resume"), "success", "resume")
    wait_for(lambda: dev.state == "running", "it is running")
    expect(dev.number("recoveries") - recoveries, int(like.is_recovered), "recoveries")


@case("{like}: what a suspend is told, and afterwards it works", like=LIKES)
def entropy(like):
    dev = device(mailbox=True)
    become(dev, like)
    select_rng(dev)
    with Reader():
        if like.hold_ms:
            wait_for(lambda: in_process(dev) == 1, "a buffer is in process")
        cycle(dev, like)
    require(dev.mailbox.happened(like.fault), "the fault never took effect")
    dev.mailbox.set(faults=[])
    # One that has suspended after all, when the request was over, is being resumed.
    wait_for(lambda: dev.state == "running", "it is running")
    works(dev)


@case("crosvm: what is read is all there, in order")
def in_order():
    like = LIKES[0]

    def scenario(dev, account):
        become(dev, like)
        select_rng(dev)
        for _ in range(CYCLES):
            with reading(dev, account) as reader:
                account.add(whole(reader, dev.request, "suspend"))
                account.add(whole(reader, dev.request, "resume"))
        require(dev.mailbox.happened(like.fault), "the fault never took effect")

    accounted(scenario, device(mailbox=True))


# One that goes on has nothing to go on with: the driver has finished a disk's requests before.
@case("{like}: a disk under load: no byte is different", like=LIKES[1:])
def disk(like):
    target = blk_lib.disk()
    dev = target.dev
    become(dev, like)
    load = blk_lib.Load(target, SECONDS)
    before = dev.number("recoveries")
    results = set()
    while load.runs():
        results.add(told(dev.request, "suspend"))
        if dev.state == "suspended":
            time.sleep(random.uniform(0, 0.05))
            expect(told(dev.request, "resume"), "success", "resume")
        wait_for(lambda: dev.state == "running", "it is running")
        time.sleep(random.uniform(0, 0.1))
    load.finish(3 * PROMPT)
    require(like.suspend in results, f"no suspend came to {like.suspend}: {results}")
    require(dev.mailbox.happened(like.fault), "the fault never took effect")
    require((dev.number("recoveries") > before) == like.is_recovered, "recoveries")
    dev.mailbox.set(faults=[])
    blk_lib.works(target)


if __name__ == "__main__":
    run(block=True)
