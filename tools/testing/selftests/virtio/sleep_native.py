#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""The system sleeps and is woken, with devices of this crate's drivers.

They keep their state where they can, and run when it is awake; one that is suspended is so still. The
others are reset, and run.
"""

from awake_lib import freezing_ends, sync_ends
from blk_lib import Disk, blocked, disk, pattern
from blk_lib import works as disk_works
from sleep_lib import (
    MODES,
    can_keep,
    disk_load,
    is_same,
    keeps_state,
    prepare,
    requests_survive,
    sleep,
    sleep_and_see,
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
    sleep_and_see(mode, [dev])
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
        sleep_and_see(mode, [dev])
        for _ in range(100):
            require(reading.get(5 * PROMPT), "nothing is read any more")
    works(dev)


def that(driver, keeps):
    """A device of a driver whose function sets No_Soft_Reset, or does not."""
    for dev in devices():
        if dev.driver == driver and dev.mailbox and keeps_state(dev) == keeps:
            return dev
    raise Skip(f"no device of {driver} {'sets' if keeps else 'does without'} No_Soft_Reset")


KEEPS = (False, True)


def with_or_without(text):
    """A case with a device whose function does not set No_Soft_Reset, and with one that does."""

    def decorate(function):
        for keeps, how in zip(KEEPS, ("", "No_Soft_Reset: ")):
            case(f"{{mode}}: {how}{text}", mode=MODES, keeps=(keeps,))(function)
        return function

    return decorate


@with_or_without("an entropy device suspended by hand, and a reader that waits")
def suspended_entropy(mode, keeps):
    dev = that(Modules.DRIVER, keeps)
    select_rng(dev)
    with Reader() as reading:
        require(reading.get(5 * PROMPT), "nothing is read")
        dev.request("suspend")
        reading.block()
        sleep_and_see(mode, [dev])
        if can_keep(dev, mode):
            require(reading.get(0.3) is None, "something is read of a suspended device")
            dev.request("resume")
        require(reading.get(5 * PROMPT), "the reader does not go on")
    works(dev)


@with_or_without("a disk runs, with what was written before")
def idle_disk(mode, keeps):
    target = Disk(that(Modules.BLOCK, keeps))
    target.write(0, pattern(7))
    sleep_and_see(mode, [target.dev])
    is_same(target.path, 0, pattern(7))
    disk_works(target)


@with_or_without("a disk under load loses nothing")
def busy_disk(mode, keeps):
    target = Disk(that(Modules.BLOCK, keeps))
    with disk_load(target.path):
        sleep_and_see(mode, [target.dev])
    disk_works(target)


@with_or_without("a disk suspended by hand, with what was written before")
def suspended_disk(mode, keeps):
    target = Disk(that(Modules.BLOCK, keeps))
    target.write(0, pattern(8))
    target.dev.request("suspend")
    sleep_and_see(mode, [target.dev])
    if can_keep(target.dev, mode):
        reader = Child(target.read, 0, 4096)
        blocked(reader)
        target.dev.request("resume")
        expect(reader.errno(5 * PROMPT), "success", "who waited")
    is_same(target.path, 0, pattern(8))
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
