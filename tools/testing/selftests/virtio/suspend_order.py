#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""The steps of a suspend and a resume of which a good device does not need all.

A device that finishes what is in process hides that it is not notified again, and one that never
changes its configuration hides that changes are held back for ever (D12).
"""

import time

from suspend_lib import (
    REVISIONS,
    case,
    device,
    expect,
    expect_errno,
    hold_a_buffer,
    quiet,
    run,
    select_rng,
    wait_for,
    works,
)


@case("{revision}: buffers that the device has are notified of when it goes on", revision=REVISIONS)
def notified_again(revision):
    dev = device(revision, mailbox=True)
    select_rng(dev)
    hold_a_buffer(dev)
    quiet()
    dev.mailbox.set(faults=["suspend-ignored"])
    dev.write("timeout_ms", "100")
    dev.mailbox.clear()
    expect_errno("ETIMEDOUT", "suspend", dev.request, "suspend")
    expect(dev.mailbox.stats()["queues"][0]["in_process"], 1, "buffers in process")
    expect(dev.mailbox.counters()["notify"], [1], "notifications")
    dev.mailbox.set(hold=False, faults=[])
    works(dev)


@case("a device that breaks after a resume, and says so, is recovered")
def broken_after_resume():
    dev = device("1.4", mailbox=True)
    recoveries = dev.number("recoveries")
    dev.request("suspend")
    dev.request("resume")
    dev.mailbox.command("fault-now", fault="needs-reset")
    dev.mailbox.command("config_change")
    wait_for(lambda: dev.number("recoveries") == recoveries + 1, "the device is recovered")
    wait_for(lambda: dev.state == "running", "the device runs")
    works(dev)


@case("a configuration change notified too early is looked at after the resume")
def change_while_suspended():
    dev = device("1.4", mailbox=True)
    quiet()
    dev.mailbox.set(faults=["config-change-while-suspended=20"])
    dev.mailbox.clear()
    dev.request("suspend")
    wait_for(lambda: dev.mailbox.counters()["config_notifications"] == 1, "the notification")
    # Long enough for an interrupt to arrive.
    time.sleep(0.3)
    log = dev.mailbox.status_log()
    expect(log.count("r1b"), 1, "reads of the status after the device was suspended")
    dev.mailbox.set(faults=[])
    dev.request("resume")
    # One read is of the resume. The driver reads the status once more, because that may be what
    # has changed.
    wait_for(lambda: dev.mailbox.status_log()[-2:] == ["r0f", "r0f"], "the status is read")
    works(dev)


if __name__ == "__main__":
    run()
