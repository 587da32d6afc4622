#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Every allocation of probe, suspend, resume and recovery is made to fail, one at a time.

Whatever fails, there is an error or a device that works, and no complaint in the kernel log; the
next try, with memory, succeeds. A kernel with kmemleak then finds nothing lost.
"""

import os

import suspend_lib
from failslab_lib import prepare, with_failures
from suspend_lib import (
    REVISIONS,
    case,
    device,
    expect,
    require,
    run,
    works,
)

# A probe has hundreds of allocations.
suspend_lib.CASE_SECONDS *= 3


@case("{revision}: probe", revision=REVISIONS)
def probe(revision):
    prepare()
    dev = device(revision)
    bind = os.open(f"/sys/bus/virtio/drivers/{dev.driver}/bind", os.O_WRONLY)
    dev.unbind()

    def check(failed):
        require(not failed or not dev.is_bound, "a failed probe leaves the driver bound")

    name = dev.name.encode()
    count = with_failures(lambda: os.write(bind, name), dev.unbind, check)
    os.close(bind)
    require(count > 5, f"a probe with {count} allocations?")
    dev.bind()
    works(dev)


@case("{revision}: suspend", revision=REVISIONS)
def suspend(revision):
    prepare()
    dev = device(revision)

    def check(failed):
        expect(dev.state, "running" if failed else "suspended", "state")

    with_failures(lambda: dev.request("suspend"), lambda: dev.request("resume"), check)
    works(dev)


@case("{revision}: resume", revision=REVISIONS)
def resume(revision):
    prepare()
    dev = device(revision)
    dev.request("suspend")

    def check(failed):
        expect(dev.state, "suspended" if failed else "running", "state")

    with_failures(lambda: dev.request("resume"), lambda: dev.request("suspend"), check)
    dev.request("resume")
    works(dev)


@case("1.4: recovery")
def recovery():
    prepare()
    dev = device("1.4", mailbox=True)
    dev.mailbox.set(refuse_suspend=True)

    def refused():
        try:
            dev.request("suspend")
        except OSError:
            # The request fails in any case; the recovery did if the device is out of operation.
            if dev.state == "failed":
                raise

    def check(failed):
        if failed:
            dev.rebind()
        works(dev)

    with_failures(refused, lambda: None, check)


if __name__ == "__main__":
    run()
