#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""A device is unplugged, in each state: whoever waits is told at once, and nothing is left (D13).

The PCI function is removed as hot-unplug does it, and found again.
"""

from suspend_lib import (
    DEBUGFS,
    PROMPT,
    REVISIONS,
    Reader,
    case,
    device,
    devices,
    expect,
    request_without_end,
    require,
    run,
    select_rng,
    within,
    works,
)

def unplug(dev):
    """Unplugs a device, which no one is waited for, and plugs it in again."""
    with within(PROMPT, "the removal"):
        dev.unplug()
    require(not (DEBUGFS / dev.name).exists(), "the table in debugfs is still there")
    dev.plug()


def suspends_again(dev):
    expect(dev.counts(), (0, 0, 0), "counts of a device that was plugged in again")
    dev.request("suspend")
    dev.request("resume")
    works(dev)


@case("{revision}: {state}", revision=REVISIONS, state=("running", "suspended"))
def at_rest(revision, state):
    dev = device(revision, mailbox=True)
    if state == "suspended":
        dev.request("suspend")
    unplug(dev)
    suspends_again(dev)


@case("{revision}: {state}", revision=REVISIONS, state=("suspending", "resuming"))
def on_the_way(revision, state):
    dev = device(revision, mailbox=True)
    goal = {"suspending": "suspend", "resuming": "resume"}[state]
    child = request_without_end(dev, goal)
    unplug(dev)
    expect(child.errno(what="the writer ends"), "ENODEV", goal)
    dev.mailbox.set(**{f"delay_{goal}_ms": 0})
    suspends_again(dev)


@case("1.4: failed")
def failed():
    dev = device("1.4", mailbox=True, recover=0)
    dev.mailbox.set(refuse_suspend=True)
    try:
        dev.request("suspend")
    except OSError:
        pass
    expect(dev.state, "failed", "state")
    unplug(dev)
    dev.mailbox.set(refuse_suspend=False)
    suspends_again(dev)


@case("{revision}: {state}, and a reader waits", revision=REVISIONS,
      state=("running", "suspended"))
def reader_waits(revision, state):
    dev = device(revision, mailbox=True)
    for other in devices():
        if other is not dev:
            other.unbind()
    select_rng(dev)
    if state == "suspended":
        dev.request("suspend")
    else:
        dev.mailbox.set(hold=True)
    with Reader() as reader:
        reader.block()
        unplug(dev)
        expect(reader.child.errno(what="the reader ends"), "ENODEV", "the reader")
    dev.mailbox.set(hold=False)
    suspends_again(dev)


if __name__ == "__main__":
    run()
