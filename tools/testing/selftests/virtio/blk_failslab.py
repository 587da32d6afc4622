#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Every allocation of probe, suspend, resume and recovery of a disk is made to fail, one at a time.

As suspend_failslab.py has it for entropy: an error or a disk that works, and no complaint.

A probe has hundreds of allocations, deep in the block layer. Those are made to fail that are no more
than BLK_FAILSLAB_CALLS calls from the driver, 10 by default; 32 has all of them.
"""

import os

import suspend_lib
from failslab_lib import prepare, with_failures
from suspend_lib import (
    Modules,
    case,
    expect,
    require,
    run,
)

from blk_lib import (
    disk,
    works,
)

CALLS = int(os.environ.get("BLK_FAILSLAB_CALLS", "10"))

suspend_lib.CASE_SECONDS *= 10


@case("probe")
def probe():
    prepare(Modules.BLOCK, CALLS)
    target = disk()
    dev = target.dev
    bind = os.open(f"/sys/bus/virtio/drivers/{dev.driver}/bind", os.O_WRONLY)
    dev.unbind()

    def check(failed):
        expect(dev.is_bound, not failed, "whether it is bound")

    count = with_failures(lambda: os.write(bind, dev.name.encode()), dev.unbind, check)
    os.close(bind)
    print(f"# {count} allocations")
    require(count > 50, f"a probe with {count} allocations?")
    dev.bind()
    works(target)


@case("suspend")
def suspend():
    prepare()
    target = disk()

    def check(failed):
        expect(target.dev.state, "running" if failed else "suspended", "state")
        if failed:
            works(target)

    def resume():
        target.dev.request("resume")
        works(target)

    with_failures(lambda: target.dev.request("suspend"), resume, check)


@case("resume")
def resume():
    prepare()
    target = disk()
    target.dev.request("suspend")

    def check(failed):
        expect(target.dev.state, "suspended" if failed else "running", "state")

    def again():
        works(target)
        target.dev.request("suspend")

    with_failures(lambda: target.dev.request("resume"), again, check)
    target.dev.request("resume")
    works(target)


@case("recovery")
def recovery():
    prepare()
    target = disk()
    target.mailbox.set(refuse_suspend=True)

    def refused():
        try:
            target.dev.request("suspend")
        except OSError:
            # The request fails in any case; the recovery did if the device is out of operation.
            if target.dev.state == "failed":
                raise

    def check(failed):
        if failed:
            target.dev.rebind()
        works(target)

    with_failures(refused, lambda: None, check)


if __name__ == "__main__":
    run(block=True)
