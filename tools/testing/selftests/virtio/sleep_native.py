#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""The system sleeps and is woken, with devices of this crate's drivers: they run when it is awake."""

from blk_lib import disk, pattern
from blk_lib import works as disk_works
from sleep_lib import MODES, disk_load, is_same, sleep
from suspend_lib import (
    PROMPT,
    REVISIONS,
    Reader,
    case,
    device,
    expect,
    require,
    run,
    select_rng,
    works,
)


@case("{mode}: a {revision} entropy device runs", mode=MODES, revision=REVISIONS)
def entropy(mode, revision):
    dev = device(revision=revision, mailbox=True)
    works(dev)
    sleep(mode)
    works(dev)
    dev.request("suspend")
    dev.request("resume")
    works(dev)


@case("{mode}: a reader of a {revision} entropy device goes on", mode=MODES, revision=REVISIONS)
def reader(mode, revision):
    dev = device(revision=revision, mailbox=True)
    select_rng(dev)
    with Reader() as reading:
        require(reading.get(5 * PROMPT), "nothing is read")
        sleep(mode)
        for _ in range(100):
            require(reading.get(5 * PROMPT), "nothing is read any more")
    works(dev)


@case("{mode}: a suspended {revision} entropy device runs, and a reader that waited goes on",
      mode=MODES, revision=REVISIONS)  # fmt: skip
def suspended_entropy(mode, revision):
    dev = device(revision=revision, mailbox=True)
    select_rng(dev)
    with Reader() as reading:
        require(reading.get(5 * PROMPT), "nothing is read")
        dev.request("suspend")
        reading.block()
        counts = dev.counts()
        sleep(mode)
        expect(dev.state, "running", "state")
        require(reading.get(5 * PROMPT), "the reader does not go on")
        expect(dev.counts(), counts, "suspends, resumes and failures")
    works(dev)


@case("{mode}: a disk runs, with what was written before", mode=MODES)
def idle_disk(mode):
    target = disk()
    target.write(0, pattern(7))
    sleep(mode)
    is_same(target.path, 0, pattern(7))
    disk_works(target)


@case("{mode}: a disk under load loses nothing", mode=MODES)
def busy_disk(mode):
    target = disk()
    with disk_load(target.path):
        sleep(mode)
    disk_works(target)


@case("{mode}: a suspended disk runs, with what was written before", mode=MODES)
def suspended_disk(mode):
    target = disk()
    target.write(0, pattern(8))
    target.dev.request("suspend")
    sleep(mode)
    expect(target.dev.state, "running", "state")
    is_same(target.path, 0, pattern(8))
    disk_works(target)


if __name__ == "__main__":
    run(block=True)
