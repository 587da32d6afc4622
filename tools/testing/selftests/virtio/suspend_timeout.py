#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Transitions that take their time, and the deadline that ends them (D3, D8).

A suspend that is not done in time is rolled back: the device runs as if nothing had been asked.
"""

import time

from suspend_lib import (
    FAR_MS,
    PROMPT,
    REVISIONS,
    RUNNING,
    SUSPENDED,
    case,
    device,
    expect,
    expect_errno,
    require,
    run,
    wait_for,
    works,
)

DELAY_MS = 300
# A deadline that a case waits for.
SHORT_MS = 200


@case("{revision}: {goal} waits for the device", revision=REVISIONS, goal=("suspend", "resume"))
def waits(revision, goal):
    dev = device(revision, mailbox=True)
    dev.mailbox.set(**{f"delay_{goal}_ms": DELAY_MS})
    if goal == "resume":
        dev.request("suspend")

    began = time.monotonic()
    dev.request(goal)
    took = time.monotonic() - began
    ns = dev.number(f"last_{goal}_ns")
    require(ns >= DELAY_MS * 1_000_000, f"last_{goal}_ns is {ns}, before the device was done")
    require(ns <= took * 1e9, f"last_{goal}_ns is {ns}, but the write took {took} s")
    require(took < DELAY_MS / 1000 + PROMPT, f"{goal} took {took} s")
    # It is waited for, not asked without pause.
    reads = dev.mailbox.counters()["status_reads"]
    require(reads < DELAY_MS, f"{reads} reads of the status in {DELAY_MS} ms")
    expect(dev.state, {"suspend": "suspended", "resume": "running"}[goal], "state")
    if goal == "suspend":
        dev.request("resume")
    works(dev)


@case("{revision}: suspend times out and is rolled back", revision=REVISIONS)
def suspend_timeout(revision):
    dev = device(revision, mailbox=True)
    suspends, resumes, failures = dev.counts()
    dev.mailbox.set(delay_suspend_ms=FAR_MS)
    dev.write("timeout_ms", str(SHORT_MS))
    dev.mailbox.clear()

    began = time.monotonic()
    expect_errno("ETIMEDOUT", "suspend", dev.request, "suspend")
    took = time.monotonic() - began
    require(took >= SHORT_MS / 1000, f"ended after {took} s, before the deadline")
    require(took < SHORT_MS / 1000 + PROMPT, f"ended after {took} s, long after the deadline")

    expect(dev.state, "running", "state")
    expect(dev.counts(), (suspends, resumes, failures + 1), "counts")
    require(dev.read("last_error").startswith("ETIMEDOUT "), "last_error does not say so")
    log = dev.mailbox.status_log()
    writes = [access for access in log if access.startswith("w")]
    expect(writes, ["w1f", "w0f"], "writes of the status")
    expect(log[-1], "r0f", "the last access to the status")
    expect(dev.mailbox.counters()["cancels"], 1, "suspends that the device dropped")
    expect(dev.status, RUNNING, "device status")
    works(dev)

    dev.mailbox.set(delay_suspend_ms=0)
    dev.request("suspend")
    expect(dev.state, "suspended", "state after another suspend")
    dev.request("resume")
    works(dev)


# Of a 1.4 device that is late with a resume, SUSPEND is written as clear at half of the time: that
# breaks D7 on purpose. Such a device has the fault `resume-late` or `resume-never`, see
# suspend_faults.py.


@case("{revision}: resume times out, and can be asked for again", revision=("draft",))
def resume_timeout(revision):
    dev = device(revision, mailbox=True)
    suspends, resumes, failures = dev.counts()
    dev.request("suspend")
    dev.mailbox.set(delay_resume_ms=4 * SHORT_MS)
    dev.write("timeout_ms", str(SHORT_MS))

    expect_errno("ETIMEDOUT", "resume", dev.request, "resume")
    expect(dev.state, "suspended", "state")
    expect(dev.counts(), (suspends + 1, resumes, failures + 1), "counts")
    require(dev.read("last_error").startswith("ETIMEDOUT "), "last_error does not say so")
    expect(dev.status, SUSPENDED[revision], "device status")

    # The device gets there too late; that is found out by the next request.
    wait_for(lambda: dev.mailbox.info()["state"] == "running", "the device has resumed")
    expect(dev.state, "suspended", "state after the device has resumed")
    dev.request("resume")
    expect(dev.state, "running", "state after another resume")
    works(dev)


@case("{revision}: a resume that is asked for again at once succeeds", revision=("draft",))
def resume_again(revision):
    dev = device(revision, mailbox=True)
    dev.request("suspend")
    dev.mailbox.set(delay_resume_ms=4 * SHORT_MS)
    dev.write("timeout_ms", str(SHORT_MS))
    expect_errno("ETIMEDOUT", "resume", dev.request, "resume")
    dev.write("timeout_ms", "10000")
    dev.request("resume")
    works(dev)


@case("{revision}: the deadline can be changed while a device is suspended", revision=REVISIONS)
def change(revision):
    dev = device(revision, mailbox=True)
    dev.request("suspend")
    dev.mailbox.set(delay_resume_ms=DELAY_MS)
    dev.write("timeout_ms", str(10 * DELAY_MS))
    expect(dev.number("timeout_ms"), 10 * DELAY_MS, "timeout_ms")
    dev.request("resume")
    works(dev)


if __name__ == "__main__":
    run()
