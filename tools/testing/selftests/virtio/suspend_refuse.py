#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""A device that refuses to suspend.

A device of VIRTIO 1.4 says so by DEVICE_NEEDS_RESET, after which only a reset helps (D9); one of
the draft does not answer, so that the deadline tells.
"""

from suspend_lib import (
    RUNNING,
    case,
    device,
    expect,
    expect_errno,
    require,
    run,
    works,
)


@case("1.4: EIO, and the device is reset, and runs")
def recovered():
    dev = device("1.4", mailbox=True)
    suspends, resumes, failures = dev.counts()
    recoveries = dev.number("recoveries")
    dev.mailbox.set(refuse_suspend=True)
    dev.mailbox.clear()
    expect_errno("EIO", "suspend", dev.request, "suspend")
    refused_and_reset(dev)
    expect(dev.state, "running", "state")
    expect(dev.status, RUNNING, "device status")
    expect(dev.counts(), (suspends, resumes, failures + 1), "counts")
    expect(dev.number("recoveries"), recoveries + 1, "recoveries")
    require(dev.read("last_error").startswith("EIO "), "last_error does not say so")
    expect(dev.mailbox.info()["revision"], "1.4", "revision in the device's view")
    works(dev)

    for _ in range(5):
        expect_errno("EIO", "suspend", dev.request, "suspend")
    expect(dev.number("recoveries"), recoveries + 6, "recoveries")
    dev.mailbox.set(refuse_suspend=False)
    dev.request("suspend")
    expect(dev.state, "suspended", "state after another suspend")
    dev.request("resume")
    works(dev)


def refused_and_reset(dev):
    """The device said DEVICE_NEEDS_RESET, and was reset; its driver may have looked before."""
    log = dev.mailbox.status_log()
    reset = log.index("w00") if "w00" in log else len(log)
    expect(log[:3], ["r0f", "w1f", "r4f"], "the first accesses to the status")
    expect(set(log[3:reset]) - {"r4f"}, set(), "accesses before the reset")
    require(reset < len(log), f"no reset in {log}")


@case("1.4, recover=0: EIO, and the device is out of operation until it is rebound")
def needs_reset():
    dev = device("1.4", mailbox=True, recover=0)
    suspends, resumes, failures = dev.counts()
    dev.mailbox.set(refuse_suspend=True)
    dev.mailbox.clear()
    expect_errno("EIO", "suspend", dev.request, "suspend")
    refused_and_reset(dev)
    expect(dev.state, "failed", "state")
    expect(dev.mailbox.info()["state"], "reset", "the device's view")
    expect(dev.counts(), (suspends, resumes, failures + 1), "counts")
    require(dev.read("last_error").startswith("EIO "), "last_error does not say so")

    # Nothing is asked of it any more.
    dev.mailbox.clear()
    for goal in ("suspend", "resume"):
        expect_errno("EIO", f"{goal} while failed", dev.request, goal)
    expect(dev.state, "failed", "state")
    expect(dev.mailbox.status_log(), [], "accesses to the status")

    dev.mailbox.set(refuse_suspend=False)
    dev.rebind()
    expect(dev.state, "running", "state after a rebind")
    expect(dev.counts(), (0, 0, 0), "counts after a rebind")
    expect(dev.number("recoveries"), 0, "recoveries")
    expect(dev.read("last_error"), "none", "last_error after a rebind")
    dev.request("suspend")
    dev.request("resume")
    works(dev)


@case("draft: ETIMEDOUT, and the device runs on")
def no_answer():
    dev = device("draft", mailbox=True)
    suspends, resumes, failures = dev.counts()
    dev.mailbox.set(refuse_suspend=True)
    dev.write("timeout_ms", "200")
    expect_errno("ETIMEDOUT", "suspend", dev.request, "suspend")
    expect(dev.state, "running", "state")
    expect(dev.status, RUNNING, "device status")
    expect(dev.counts(), (suspends, resumes, failures + 1), "counts")
    require(dev.read("last_error").startswith("ETIMEDOUT "), "last_error does not say so")
    works(dev)

    dev.mailbox.set(refuse_suspend=False)
    dev.request("suspend")
    expect(dev.state, "suspended", "state after another suspend")
    dev.request("resume")
    works(dev)


@case("draft: a device that refuses time and again runs on")
def again():
    dev = device("draft", mailbox=True)
    failures = dev.number("failures")
    dev.mailbox.set(refuse_suspend=True)
    dev.write("timeout_ms", "20")
    for _ in range(10):
        expect_errno("ETIMEDOUT", "suspend", dev.request, "suspend")
    expect(dev.number("failures"), failures + 10, "failures")
    works(dev)


if __name__ == "__main__":
    run()
