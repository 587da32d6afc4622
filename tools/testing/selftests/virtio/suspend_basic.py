#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""A device suspends and resumes through sysfs.

With a test device also: by which status bytes (D2, D3, D7, D8), and that it costs no more accesses
to registers than these.
"""

from suspend_lib import (
    REVISIONS,
    RUNNING,
    SUSPENDED,
    case,
    device,
    expect,
    expect_errno,
    quiet,
    require,
    run,
    works,
)

TIMES = 100


@case("{revision}: suspend, resume", revision=REVISIONS)
def round_trip(revision):
    dev = device(revision)
    suspends, resumes, failures = dev.counts()

    dev.request("suspend")
    expect(dev.state, "suspended", "state after suspend")
    expect(dev.status, SUSPENDED[revision], "device status while suspended")
    expect(dev.counts(), (suspends + 1, resumes, failures), "counts after suspend")

    dev.request("resume")
    expect(dev.state, "running", "state after resume")
    expect(dev.status, RUNNING, "device status after resume")
    expect(dev.counts(), (suspends + 1, resumes + 1, failures), "counts after resume")
    require(dev.number("last_suspend_ns") > 0, "last_suspend_ns is 0")
    require(dev.number("last_resume_ns") > 0, "last_resume_ns is 0")
    works(dev)


@case("{revision}: the device sees these status bytes, and no others", revision=REVISIONS)
def status_bytes(revision):
    dev = device(revision, mailbox=True)
    suspended = f"{SUSPENDED[revision]:02x}"

    dev.mailbox.clear()
    dev.request("suspend")
    expect(dev.mailbox.status_log(), ["r0f", "w1f", "r" + suspended], "accesses of suspend")

    dev.mailbox.clear()
    dev.request("resume")
    # D7: 1.4 keeps SUSPEND in the value that it writes, the draft has no other way.
    written = {"1.4": "1f", "draft": "0f"}[revision]
    expected = ["r" + suspended, "w" + written, "r0f"]
    expect(dev.mailbox.status_log(), expected, "accesses of resume")


@case("{revision}: {goal} costs a check, a write and a re-read", revision=REVISIONS,
      goal=("suspend", "resume"))
def cost(revision, goal):
    dev = device(revision, mailbox=True)
    quiet()
    if goal == "resume":
        dev.request("suspend")

    dev.mailbox.clear()
    dev.request(goal)
    counters = dev.mailbox.counters()
    expect(counters["status_reads"], 2, "reads of the status")
    expect(counters["status_writes"], 1, "writes of the status")
    for name in ("common_reads", "common_writes", "config_reads", "config_writes", "isr_reads"):
        expect(counters[name], 0, name)
    # No buffer waits for the device: there is nothing to notify of.
    expect(counters["notify"], [0], "notifications")
    expect(counters["suspends" if goal == "suspend" else "resumes"], 1, f"{goal}s of the device")


@case("{revision}: a request for what is there already: EALREADY", revision=REVISIONS)
def idempotence(revision):
    dev = device(revision)
    before = dev.attributes()
    for _ in range(2):
        expect_errno("EALREADY", "resume while running", dev.request, "resume")
    expect(dev.attributes(), before, "what the files say")

    dev.request("suspend")
    before = dev.attributes()
    if dev.mailbox:
        dev.mailbox.clear()
    for _ in range(2):
        expect_errno("EALREADY", "suspend while suspended", dev.request, "suspend")
    expect(dev.attributes(), before, "what the files say")
    if dev.mailbox:
        expect(dev.mailbox.status_log(), [], "accesses to the device status")
    dev.request("resume")
    works(dev)


@case("a request may end without a newline")
def no_newline():
    dev = device()
    dev.write("request", "suspend")
    expect(dev.state, "suspended", "state")
    dev.write("request", "resume")
    expect(dev.state, "running", "state")


@case(f"{{revision}}: {TIMES} times", revision=REVISIONS)
def repeated(revision):
    dev = device(revision)
    suspends, resumes, failures = dev.counts()
    if dev.mailbox:
        dev.mailbox.clear()
    for _ in range(TIMES):
        dev.request("suspend")
        dev.request("resume")
    expected = (suspends + TIMES, resumes + TIMES, failures)
    expect(dev.counts(), expected, "counts")
    if dev.mailbox:
        counters = dev.mailbox.counters()
        expect((counters["suspends"], counters["resumes"]), (TIMES, TIMES), "of the device")
        expect(counters["status_writes"], 2 * TIMES, "writes of the status")
    works(dev)


if __name__ == "__main__":
    run()
