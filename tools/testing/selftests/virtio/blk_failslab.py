#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Every allocation of probe, suspend, resume and recovery of a disk is made to fail, one at a time.

As suspend_failslab.py has it for entropy: an error or a disk that works, and no complaint.

A probe has hundreds of allocations, deep in the block layer. Those are made to fail that are no more
than BLK_FAILSLAB_CALLS calls from the driver, 10 by default; 32 has all of them.
"""

import os

import failslab_lib as failing
import suspend_lib
from blk_lib import disk, works
from failslab_lib import prepare
from suspend_lib import Modules, case, run

CALLS = int(os.environ.get("BLK_FAILSLAB_CALLS", "10"))

suspend_lib.CASE_SECONDS *= 10


@case("probe")
def probe():
    prepare(Modules.BLOCK, CALLS)
    target = disk()
    failing.bind(target.dev, lambda: target.dev.is_bound, 50)
    works(target)


@case("suspend")
def suspend():
    prepare()
    target = disk()
    failing.suspend(target.dev, lambda: works(target))


@case("resume")
def resume():
    prepare()
    target = disk()
    failing.resume(target.dev, lambda: works(target))


@case("recovery")
def recovery():
    prepare()
    target = disk()
    failing.recovery(target.dev, lambda: works(target))


if __name__ == "__main__":
    run(block=True)
