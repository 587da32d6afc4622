#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Every allocation of probe, suspend, resume and recovery is made to fail, one at a time.

Whatever fails, there is an error or a device that works, and no complaint in the kernel log; the
next try, with memory, succeeds. A kernel with kmemleak then finds nothing lost.
"""

import failslab_lib as failing
import suspend_lib
from failslab_lib import prepare
from suspend_lib import REVISIONS, case, device, run, works

# A probe has hundreds of allocations.
suspend_lib.CASE_SECONDS *= 3


@case("{revision}: probe", revision=REVISIONS)
def probe(revision):
    prepare()
    dev = device(revision)
    failing.bind(dev, lambda: dev.is_bound, 5)
    works(dev)


@case("{revision}: suspend", revision=REVISIONS)
def suspend(revision):
    prepare()
    dev = device(revision)
    failing.suspend(dev, lambda: works(dev))


@case("{revision}: resume", revision=REVISIONS)
def resume(revision):
    prepare()
    dev = device(revision)
    failing.resume(dev, lambda: works(dev))


@case("1.4: recovery")
def recovery():
    prepare()
    dev = device("1.4", mailbox=True)
    failing.recovery(dev, lambda: works(dev))


if __name__ == "__main__":
    run()
