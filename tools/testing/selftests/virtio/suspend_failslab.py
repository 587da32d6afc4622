#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Every allocation of probe, suspend, resume and recovery is made to fail, one at a time.

Whatever fails, there is an error or a device that works, and no complaint in the kernel log; the
next try, with memory, succeeds. A kernel with kmemleak then finds nothing lost.

Needs a kernel with CONFIG_FAILSLAB, its /proc/self/fail-nth, and
CONFIG_FAULT_INJECTION_STACKTRACE_FILTER.
"""

import os
from pathlib import Path

import suspend_lib
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

# A probe has hundreds of allocations.
suspend_lib.CASE_SECONDS *= 3


def prepare():
    """Has allocations that may wait fail, too, and silently."""
    if not FAIL_NTH.exists() or not (FAILSLAB / "reject-start").exists():
        raise Skip("a kernel without CONFIG_FAILSLAB, or without its filter")
    (FAILSLAB / "ignore-gfp-wait").write_text("N")
    (FAILSLAB / "verbose").write_text("0")
    # The interrupt core goes on without what it can't show in /proc, and warns when it is to be
    # removed: that is none of ours.
    begin, end = extent("register_handler_proc", "register_irq_proc")
    (FAILSLAB / "reject-start").write_text(f"{begin:#x}")
    (FAILSLAB / "reject-end").write_text(f"{end:#x}")


def extent(*names):
    """Where the code of these functions of the kernel, which are neighbours, begins and ends."""
    symbols = (line.split() for line in Path("/proc/kallsyms").read_text().splitlines())
    at = {name: int(address, 16) for address, kind, name, *_ in symbols if kind in "tT"}
    begin = min(at[name] for name in names)
    last = max(at[name] for name in names)
    return begin, min(address for address in at.values() if address > last)


def with_failure(n, operation):
    """Does something, the n-th allocation failing.

    Returns whether that failed, and how many allocations were missing for one to fail.
    """
    fd = os.open(FAIL_NTH, os.O_RDWR)
    try:
        os.write(fd, b"%d" % n)
        try:
            operation()
            failed = False
        except OSError:
            failed = True
        left = int(os.pread(fd, 16, 0))
        os.write(fd, b"0")
    finally:
        os.close(fd)
    return failed, left


def with_failures(operation, undo, check):
    """Does something over and over, the n-th allocation failing the n-th time.

    Returns how many allocations there were. `operation` raises OSError if it does not succeed,
    `undo` takes it back if it did, `check` is called in either case.
    """
    for n in range(1, MOST):
        failed, left = with_failure(n, operation)
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
