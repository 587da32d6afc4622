#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Several at once: a second request is told EBUSY, and who waits can be killed.

Killed, a writer is gone at once, not at the deadline, and its suspend is rolled back.
"""

import signal
import time

from suspend_lib import (
    FAR_MS,
    PROMPT,
    REVISIONS,
    RUNNING,
    Child,
    case,
    device,
    expect,
    expect_errno,
    request_in_child,
    request_without_end,
    require,
    run,
    wait_for,
    works,
)

DELAY_MS = 1000


@case("{revision}: requests while one is under way: EBUSY", revision=REVISIONS)
def busy(revision):
    dev = device(revision, mailbox=True)
    suspends, resumes, failures = dev.counts()
    dev.mailbox.set(delay_suspend_ms=DELAY_MS, delay_resume_ms=DELAY_MS)
    for goal, state in (("suspend", "suspended"), ("resume", "running")):
        child = request_in_child(dev, goal)
        began = time.monotonic()
        for other in ("suspend", "resume"):
            expect_errno("EBUSY", f"{other} during {goal}", dev.request, other)
        require(time.monotonic() - began < DELAY_MS / 1000, "EBUSY came late")
        # What is no request is refused as always; the rest can be used.
        expect_errno("EINVAL", f"garbage during {goal}", dev.request, "garbage")
        dev.write("timeout_ms", "7777")
        expect(dev.number("timeout_ms"), 7777, f"timeout_ms during {goal}")
        expect(child.errno(DELAY_MS / 1000 + PROMPT), "success", f"the first {goal}")
        expect(dev.state, state, f"state after {goal}")
    expect(dev.counts(), (suspends + 1, resumes + 1, failures), "counts")
    works(dev)


@case("{revision}: of many that suspend at once, one does", revision=REVISIONS)
def many(revision):
    dev = device(revision)
    suspends, resumes, failures = dev.counts()
    for goal in ("suspend", "resume"):
        children = [Child(dev.request, goal) for _ in range(8)]
        errors = sorted(child.errno(10) for child in children)
        expect(errors.count("success"), 1, f"how many of {errors} succeeded")
        require(set(errors) <= {"success", "EBUSY", "EALREADY"}, f"{goal}: {errors}")
    expect(dev.counts(), (suspends + 1, resumes + 1, failures), "counts")
    works(dev)


@case("{revision}: a writer that waits is killed, its suspend rolled back", revision=REVISIONS)
def killed(revision):
    dev = device(revision, mailbox=True)
    failures = dev.number("failures")
    child = request_without_end(dev, "suspend")
    child.kill()
    expect(child.wait(what="the killed writer is gone"), -signal.SIGKILL, "how it ended")
    expect(dev.state, "running", "state")
    expect(dev.status, RUNNING, "device status")
    expect(dev.number("failures"), failures + 1, "failures")
    require(dev.read("last_error").startswith("EINTR "), "last_error does not say so")
    works(dev)

    dev.mailbox.set(delay_suspend_ms=0)
    dev.request("suspend")
    dev.request("resume")
    works(dev)


@case("{revision}: a signal that does not kill does not end the wait", revision=REVISIONS)
def signalled(revision):
    dev = device(revision, mailbox=True)
    dev.mailbox.set(delay_suspend_ms=DELAY_MS)

    def handled():
        signal.signal(signal.SIGUSR1, lambda *_: None)
        dev.request("suspend")

    child = Child(handled)
    wait_for(lambda: dev.state == "suspending", "the suspend is under way")
    child.signal(signal.SIGUSR1)
    expect(child.errno(DELAY_MS / 1000 + PROMPT), "success", "suspend")
    expect(dev.state, "suspended", "state")
    dev.request("resume")
    works(dev)


@case("{revision}: the writer of a resume is killed, the device can be resumed", revision=REVISIONS)
def killed_resume(revision):
    dev = device(revision, mailbox=True)
    dev.request("suspend")
    dev.mailbox.set(delay_resume_ms=DELAY_MS)
    # Far enough for no other write than the first.
    dev.write("timeout_ms", str(FAR_MS))
    child = request_in_child(dev, "resume")
    child.kill()
    expect(child.wait(what="the killed writer is gone"), -signal.SIGKILL, "how it ended")
    expect(dev.state, "suspended", "state")
    require(dev.read("last_error").startswith("EINTR "), "last_error does not say so")
    wait_for(lambda: dev.mailbox.info()["state"] == "running", "the device has resumed")
    dev.request("resume")
    expect(dev.state, "running", "state after another resume")
    works(dev)


if __name__ == "__main__":
    run()
