#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Readers of /dev/hwrng while the entropy device is suspended: they wait, and lose nothing.

With a test device that delivers a counter, every word that comes out is accounted for: none is
lost and none comes twice, whenever the device was suspended (D10).
"""

import signal
import time

from suspend_lib import (
    PROMPT,
    REVISIONS,
    Reader,
    case,
    device,
    drain,
    entropy_flows,
    expect,
    hold_a_buffer,
    read_some,
    require,
    run,
    select_rng,
    within,
    works,
)
from suspend_stream import BLOCK, accounted, reading, whole

# What can be read of a suspended device: a buffer of the driver and one of the hwrng core.
BUFFERED = 2 * BLOCK
ROUNDS = 20


@case("{revision}: a reader waits while suspended, and goes on after resume", revision=REVISIONS)
def waits(revision):
    dev = device(revision)
    select_rng(dev)
    with Reader() as reader:
        require(reader.get(), "the reader gets nothing of a running device")
        dev.request("suspend")
        # All that was under way comes now, in the pipe too.
        reader.block()
        expect(reader.get(0.5), None, "read of a suspended device")
        expect(reader.child.poll(), None, "the reader's exit status")
        dev.request("resume")
        require(reader.get(), "the reader does not go on")
    works(dev)


@case("{revision}: no more is read of a suspended device than was buffered", revision=REVISIONS)
def buffered(revision):
    dev = device(revision)
    select_rng(dev)
    dev.request("suspend")
    with Reader() as reader:
        got = len(reader.block())
        require(got <= BUFFERED, f"{got} bytes of a suspended device")
    dev.request("resume")
    works(dev)


@case("{revision}: O_NONBLOCK gets EAGAIN while suspended", revision=REVISIONS)
def nonblocking(revision):
    dev = device(revision)
    select_rng(dev)
    dev.request("suspend")
    drain()
    with within(1, "EAGAIN"):
        expect(read_some(), None, "read of a suspended device")
    dev.request("resume")
    entropy_flows()


@case("{revision}: O_NONBLOCK gets EAGAIN within 1 s while another reader waits",
      revision=REVISIONS)
def both(revision):
    dev = device(revision)
    select_rng(dev)
    dev.request("suspend")
    with Reader() as reader:
        reader.block()
        for _ in range(5):
            with within(1, "EAGAIN"):
                expect(read_some(), None, "read of a suspended device")
        dev.request("resume")
        require(reader.get(), "the reader does not go on")


@case("{revision}: a waiting reader dies by {name} at once", revision=REVISIONS,
      name=("SIGKILL", "SIGTERM"))
def killed(revision, name):
    dev = device(revision)
    select_rng(dev)
    dev.request("suspend")
    with Reader() as reader:
        reader.block()
        number = signal.Signals[name]
        reader.child.signal(number)
        expect(reader.child.wait(1, "the reader is gone"), -number, "how it ended")
    dev.request("resume")
    works(dev)


@case("{revision}: several readers wait, and all go on", revision=REVISIONS)
def several(revision):
    dev = device(revision)
    select_rng(dev)
    dev.request("suspend")
    readers = [Reader() for _ in range(4)]
    try:
        for reader in readers:
            reader.block()
        dev.request("resume")
        for reader in readers:
            require(reader.get(), "a reader does not go on")
    finally:
        for reader in readers:
            reader.close()


def read_block(account, what):
    end = time.monotonic() + PROMPT
    while True:
        data = read_some(BLOCK)
        if data:
            account.add(data)
            return
        require(time.monotonic() < end, f"nothing to read {what}")


def idle_rounds(dev, account):
    for _ in range(ROUNDS):
        read_block(account, "while running")
        dev.request("suspend")
        while data := read_some(BLOCK):
            account.add(data)
        dev.request("resume")


def held_rounds(dev, account):
    for _ in range(ROUNDS):
        hold_a_buffer(dev, account.add)
        before = dev.mailbox.counters()["buffers_used"]
        dev.request("suspend")
        used = dev.mailbox.counters()["buffers_used"] - before
        expect(used, 1, "buffers that the device finished to suspend (V2)")
        read_block(account, "though the device finished a buffer")
        expect(read_some(BLOCK), None, "another block")
        dev.mailbox.set(hold=False)
        dev.request("resume")
        read_block(account, "after resume")


def busy_rounds(dev, account):
    with reading(dev, account) as reader:
        for _ in range(ROUNDS):
            account.add(whole(reader, dev.request, "suspend"))
            account.add(whole(reader, dev.request, "resume"))


@case("{revision}: the stream goes on, suspended {state}", revision=REVISIONS,
      state=("while idle", "with a buffer in process", "while read"))
def stream(revision, state):
    dev = device(revision, mailbox=True)
    scenario = {
        "while idle": idle_rounds,
        "with a buffer in process": held_rounds,
        "while read": busy_rounds,
    }[state]
    accounted(scenario, dev)
    dev.configure(hold=False)
    works(dev)


if __name__ == "__main__":
    run()
