#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Every allocation of probe, suspend, resume and recovery is made to fail, one at a time.

Whatever fails, there is an error or a device that works, and no complaint in the kernel log; the
next try, with memory, succeeds. A kernel with kmemleak then finds nothing lost.

Needs a kernel with CONFIG_FAILSLAB, and its /proc/self/fail-nth.
"""

import os
from pathlib import Path

from suspend_lib import (
    REVISIONS,
    Skip,
    case,
    device,
    expect,
    require,
    run,
    works,
)

FAILSLAB = Path("/sys/kernel/debug/failslab")
FAIL_NTH = Path("/proc/thread-self/fail-nth")
# No operation allocates more often.
MOST = 1000


def prepare():
    """Has allocations that may wait fail, too, and silently."""
    if not FAIL_NTH.exists() or not FAILSLAB.exists():
        raise Skip("a kernel without CONFIG_FAILSLAB")
    (FAILSLAB / "ignore-gfp-wait").write_text("N")
    (FAILSLAB / "verbose").write_text("0")


def with_failures(operation, undo, check):
    """Does something over and over, the n-th allocation failing the n-th time.

    Returns how many allocations there were. `operation` raises OSError if it does not succeed,
    `undo` takes it back if it did, `check` is called in either case.
    """
    for n in range(1, MOST):
        with FAIL_NTH.open("r+b", buffering=0) as fail_nth:
            fail_nth.write(b"%d" % n)
            try:
                operation()
                failed = False
            except OSError:
                failed = True
            left = int(fail_nth.read())
            fail_nth.seek(0)
            fail_nth.write(b"0")
        check(failed)
        if not failed:
            undo()
        if left > 0:
            require(not failed, "it fails though no allocation did")
            return n - 1
    raise AssertionError("there is no end of allocations")


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
