#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""The system sleeps and is woken, with devices of this crate's drivers: they run when it is awake."""

from awake_lib import freezing_ends, sync_ends
from blk_lib import Disk, blocked, disk, pattern
from blk_lib import works as disk_works
from sleep_lib import (
    MODES,
    disk_load,
    is_kept,
    is_same,
    keeps_state,
    prepare,
    requests_survive,
    sleep,
    sleeps_when_resumed,
)
from suspend_lib import (
    PROMPT,
    REVISIONS,
    Child,
    Modules,
    Reader,
    Skip,
    case,
    device,
    devices,
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


def that_keeps_state(driver):
    """A device of a driver whose function sets No_Soft_Reset."""
    for dev in devices():
        if dev.driver == driver and dev.mailbox and keeps_state(dev):
            return dev
    raise Skip(f"no device of {driver} sets No_Soft_Reset")


@case("{mode}: No_Soft_Reset: a suspended entropy device is suspended, a reader waits", mode=MODES)
def kept_entropy(mode):
    dev = that_keeps_state(Modules.DRIVER)
    select_rng(dev)
    with Reader() as reading:
        require(reading.get(5 * PROMPT), "nothing is read")
        dev.request("suspend")
        reading.block()
        is_kept(dev, mode)
        require(reading.get(0.3) is None, "something is read of a suspended device")
        dev.request("resume")
        require(reading.get(5 * PROMPT), "the reader does not go on")
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


@case("{mode}: No_Soft_Reset: a suspended disk is suspended", mode=MODES)
def kept_disk(mode):
    target = Disk(that_keeps_state(Modules.BLOCK))
    target.write(0, pattern(9))
    target.dev.request("suspend")
    is_kept(target.dev, mode)
    reader = Child(target.read, 0, 4096)
    blocked(reader)
    target.dev.request("resume")
    expect(reader.errno(5 * PROMPT), "success", "who waited")
    is_same(target.path, 0, pattern(9))
    disk_works(target)


@case("{mode}: something to be written to a suspended disk: EBUSY in time, or it sleeps when resumed",
      mode=MODES)  # fmt: skip
def dirty_disk(mode):
    target = disk()
    prepare(mode)
    sync_ends(target.dev, target.path, "mem", then=lambda: sleeps_when_resumed(target.dev, mode))
    disk_works(target)


@case("{mode}: somebody waits for a suspended disk: EBUSY in time, and it sleeps later", mode=MODES)
def disk_with_waiter(mode):
    target = disk()
    prepare(mode)
    freezing_ends(target.dev, lambda: target.read(0, 4096), "mem")
    sleep(mode)
    disk_works(target)


@case("{mode}: requests that a disk has in process are finished afterwards", mode=MODES)
def disk_with_requests(mode):
    target = disk()
    requests_survive(target.dev, target.path, mode)
    disk_works(target)


if __name__ == "__main__":
    run(block=True)
