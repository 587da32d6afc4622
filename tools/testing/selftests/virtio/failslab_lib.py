# SPDX-License-Identifier: GPL-2.0
"""Has allocations fail, one at a time.

Needs a kernel with CONFIG_FAILSLAB, its /proc/self/fail-nth, and
CONFIG_FAULT_INJECTION_STACKTRACE_FILTER.
"""

import mmap
import os
from pathlib import Path

from suspend_lib import Skip, expect, require

FAILSLAB = Path("/sys/kernel/debug/failslab")
FAIL_NTH = Path("/proc/thread-self/fail-nth")
# No operation allocates more often.
MOST = 1000
# How far the kernel looks back at most.
MOST_CALLS = 32


def prepare(module=None, calls=MOST_CALLS):
    """Has allocations that may wait fail, too, and silently.

    With a module, only what its code allocates, itself or by no more than that many calls.
    """
    if not FAIL_NTH.exists() or not (FAILSLAB / "reject-start").exists():
        raise Skip("a kernel without CONFIG_FAILSLAB, or without its filter")
    (FAILSLAB / "ignore-gfp-wait").write_text("N")
    (FAILSLAB / "verbose").write_text("0")
    # The interrupt core goes on without what it can't show in /proc, and warns when it is to be
    # removed: that is none of ours.
    begin, end = extent("register_handler_proc", "register_irq_proc")
    (FAILSLAB / "reject-start").write_text(f"{begin:#x}")
    (FAILSLAB / "reject-end").write_text(f"{end:#x}")
    begin, end = text(module) if module else (0, 2**64 - 1)
    (FAILSLAB / "require-start").write_text(f"{begin:#x}")
    (FAILSLAB / "require-end").write_text(f"{end:#x}")
    (FAILSLAB / "stacktrace-depth").write_text(str(calls))


def functions():
    """All functions of the kernel: address, name, and the module in brackets."""
    for line in Path("/proc/kallsyms").read_text().splitlines():
        address, kind, name, *module = line.split()
        if kind in "tT":
            yield int(address, 16), name, "".join(module)


def text(module):
    """Where the code of a module begins and ends."""
    found = [address for address, _, owner in functions() if owner == f"[{module}]"]
    require(found, f"{module} is not loaded")
    return min(found), (max(found) | mmap.PAGESIZE - 1) + 1


def extent(*names):
    """Where the code of these functions of the kernel, which are neighbours, begins and ends."""
    at = {name: address for address, name, _ in functions()}
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


# With each allocation failing once. `works` proves that the device does, whenever it runs.


def bind(dev, is_bound, least):
    """Binds the driver, which has more allocations than that."""
    attribute = os.open(dev.path / "driver/bind", os.O_WRONLY)
    dev.unbind()

    def check(failed):
        expect(is_bound(), not failed, "whether it is bound")

    count = with_failures(lambda: os.write(attribute, dev.name.encode()), dev.unbind, check)
    os.close(attribute)
    print(f"# {count} allocations")
    require(count > least, f"a probe with {count} allocations?")
    dev.bind()


def suspend(dev, works):
    """Suspends the device."""

    def check(failed):
        expect(dev.state, "running" if failed else "suspended", "state")
        if failed:
            works()

    def undo():
        dev.request("resume")
        works()

    with_failures(lambda: dev.request("suspend"), undo, check)


def resume(dev, works):
    """Resumes the device."""
    dev.request("suspend")

    def check(failed):
        expect(dev.state, "suspended" if failed else "running", "state")

    def undo():
        works()
        dev.request("suspend")

    with_failures(lambda: dev.request("resume"), undo, check)
    dev.request("resume")
    works()


def recovery(dev, works):
    """Has the device refuse to be suspended, and be recovered."""
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
        works()

    with_failures(refused, lambda: None, check)
