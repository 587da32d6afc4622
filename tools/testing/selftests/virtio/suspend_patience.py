#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""No request waits for a device for ever: a deadline, a signal that kills, and the unbinding of the
driver end it, whatever it waits for. For the kernel's own virtio_blk that is in ext_blk.py, and for
what its virtio_net waits for in ext_net_config.py.
"""

import blk_lib
from ext_lib import drivers, extend
from patience_lib import (
    GOALS,
    RESETS,
    SOME_GOALS,
    can_be_killed,
    ends_in_time,
    ends_with_the_driver,
    refuse_to,
    relent,
)
from suspend_lib import (
    PROMPT,
    Child,
    Modules,
    Skip,
    case,
    devices,
    expect,
    require,
    run,
    wait_for,
)

DRIVERS = {"entropy": Modules.DRIVER, "disk": Modules.BLOCK}


def one(kind):
    for dev in devices():
        if dev.driver == DRIVERS[kind] and dev.mailbox:
            return dev
    raise Skip(f"no test device for {DRIVERS[kind]}")


@case("{kind}: a {goal} that the device does not follow ends in time", kind=DRIVERS, goal=GOALS)
def in_time(kind, goal):
    dev = one(kind)
    refuse_to(dev, goal)
    ends_in_time(dev, goal)
    relent(dev)


@case("{kind}: the writer of a {goal} can be killed", kind=DRIVERS, goal=GOALS)
def killed(kind, goal):
    dev = one(kind)
    refuse_to(dev, goal)
    can_be_killed(dev, goal)
    relent(dev)


@case("{kind}: a {goal} ends when the driver is unbound", kind=DRIVERS, goal=GOALS)
def unbound(kind, goal):
    dev = one(kind)
    refuse_to(dev, goal)
    unbinding = ends_with_the_driver(dev, goal)
    expect(unbinding.errno(5 * PROMPT), "success", "unbinding")
    dev.mailbox.set(faults=[])
    dev.bind()
    dev.request("suspend")
    dev.request("resume")


@case("{kind}: a {goal} of a device that needs a reset, and is slow with it, {how}", kind=DRIVERS,
      goal=SOME_GOALS, how=RESETS)
def slow_reset(kind, goal, how):
    RESETS[how](one(kind), goal)


ENDS = {"ends in time": ends_in_time, "can be killed": can_be_killed}


@case("disk: a suspend that waits for requests {how}", how=ENDS)
def unfinished(how):
    target = blk_lib.disk()
    reader = target.read_held()
    ENDS[how](target.dev, "suspend")
    target.mailbox.set(hold=False)
    expect(reader.errno(5 * PROMPT), "success", "the reader")
    relent(target.dev)


@case("disk: somebody else waits for requests, with the queue frozen: a suspend {how}", how=ENDS)
def frozen_by_another(how):
    target = blk_lib.disk()
    reader = target.read_held()
    change = blk_lib.change_waits(target.name)
    ENDS[how](target.dev, "suspend")
    target.mailbox.set(hold=False)
    expect(reader.errno(5 * PROMPT), "success", "the reader")
    expect(change.errno(5 * PROMPT), "success", "the change")
    relent(target.dev)


@case("disk: somebody else freezes the queue all the time: a resume {how}", how=ENDS)
def frozen_at_resume(how):
    target = blk_lib.disk()
    refuse_to(target.dev, "resume")
    reader = Child(target.read, 0, 4096)
    blk_lib.blocked(reader)
    with blk_lib.keeps_freezing(target.name) as count:
        wait_for(lambda: count() > 2, "the queue is frozen while the disk is suspended", 5 * PROMPT)
        before = count()
        ENDS[how](target.dev, "resume")
        wait_for(lambda: count() > before + 1, "the queue was frozen meanwhile, too", 5 * PROMPT)
        require(reader.poll() is None, "the reader has not waited")
        relent(target.dev)
    expect(reader.errno(5 * PROMPT), "success", "the reader")


@case("disk: a suspend that waits for requests ends when the driver is unbound")
def unfinished_unbound():
    target = blk_lib.disk()
    reader = target.read_held()
    unbinding = ends_with_the_driver(target.dev, "suspend")
    # The driver lets go of its disk when the requests have been finished, as on any other day.
    target.mailbox.set(hold=False)
    expect(unbinding.errno(5 * PROMPT), "success", "unbinding")
    expect(reader.errno(5 * PROMPT), "success", "the reader")
    target.dev.bind()
    blk_lib.works(target)


@case("the kernel's virtio_net: a {goal} that the device does not follow {how}", goal=GOALS, how=ENDS)
def network(goal, how):
    with drivers("virtio_net") as driver:
        dev = extend(driver)[0]
        dev.works()
        refuse_to(dev, goal)
        ENDS[how](dev, goal)
        relent(dev)
        dev.works()


if __name__ == "__main__":
    run(block=True)
