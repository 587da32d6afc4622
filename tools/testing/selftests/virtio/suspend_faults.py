#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Devices that misbehave: each fault has an outcome, and afterwards the device works.

The table says what a request is told, where that leaves the device, and whether it was recovered
by a reset (D9). It is that of Documentation/virtio/faults.rst.
"""

import contextlib
import time
from dataclasses import dataclass, field

from suspend_lib import (
    PROMPT,
    REVISIONS,
    SHARE,
    SLOWNESS,
    Child,
    Reader,
    case,
    device,
    drain,
    entropy_flows,
    expect,
    hold_a_buffer,
    in_process,
    read_some,
    require,
    run,
    select_rng,
    told,
    wait_for,
    within,
    works,
)

# The deadline that faults are to miss, in milliseconds.
TIMEOUT_MS = 300
BOTH = REVISIONS


@dataclass
class Outcome:
    """What comes of a fault."""

    fault: str
    # What a suspend is told, and what the resume after it, if there is one.
    suspend: str = "success"
    resume: str = "success"
    # Where that leaves the device.
    state: str = "running"
    recoveries: int = 0
    quirks: int = 0
    # What a resume is told when one that can't be reached is back.
    back: str = "success"
    revisions: tuple = field(default=BOTH)
    # What the device has to have done by the time it is suspended: nothing, or to have begun with a
    # buffer, or to have given one back.
    begun: bool = False
    used: bool = False
    # Whether the fault happens some time after it is suspended.
    meanwhile: bool = False


OUTCOMES = [
    # The device does not follow, and is left running.
    Outcome("suspend-ignored", "ETIMEDOUT"),
    Outcome("suspend-never", "ETIMEDOUT"),
    Outcome("driver-ok-kept", "ETIMEDOUT", revisions=("1.4",)),
    Outcome("driver-ok-kept", revisions=("draft",)),
    # The device runs again by itself: nothing is lost, and the resume finds it so.
    Outcome("suspend-dropped=20", meanwhile=True),
    # The device is broken, and recovered.
    Outcome("needs-reset-on-suspend", "EIO", recoveries=1),
    Outcome("status-zero-on-suspend", "EIO", recoveries=1),
    Outcome("features-ok-dropped-on-suspend", "EIO", recoveries=1),
    Outcome("needs-reset-while-suspended=20", resume="EIO", recoveries=1, meanwhile=True),
    Outcome("status-zero-while-suspended=20", resume="EIO", recoveries=1, meanwhile=True),
    Outcome("features-ok-dropped-while-suspended=20", resume="EIO", recoveries=1, meanwhile=True),
    Outcome("needs-reset-on-resume", resume="EIO", recoveries=1),
    Outcome("status-zero-on-resume", resume="EIO", recoveries=1),
    Outcome("features-ok-dropped-on-resume", resume="EIO", recoveries=1),
    # The device is gone: nothing is waited for.
    Outcome("gone-on-suspend", "ENODEV", state="failed"),
    # Out of reach while suspended: it can come back, as it was or reset.
    Outcome("away-while-suspended=20", resume="ENODEV", state="suspended", meanwhile=True),
    Outcome("away-on-resume", resume="ENODEV", state="suspended"),
    Outcome("gone-while-suspended=20", resume="ENODEV", state="suspended", back="EIO",
            meanwhile=True),
    Outcome("gone-on-resume", resume="ENODEV", state="suspended", back="EIO"),
    # The device does not resume, and can be asked again.
    Outcome("resume-never", resume="ETIMEDOUT", state="suspended", quirks=1, revisions=("1.4",)),
    Outcome("resume-never", resume="ETIMEDOUT", state="suspended", revisions=("draft",)),
    # The device wants to be asked in another way.
    Outcome("resume-needs-clear", quirks=1, revisions=("1.4",)),
    Outcome("resume-needs-clear", revisions=("draft",)),
    # Configuration changes and notifications at the wrong moment.
    Outcome("config-change-before-suspend"),
    Outcome("config-change-during-suspend=20", meanwhile=True),
    Outcome("config-change-while-suspended=20", meanwhile=True),
    Outcome("config-change-after-suspend"),
    Outcome("used-irq-late=50", used=True),
    Outcome("used-irq-spurious"),
    Outcome("used-irq-after-suspend=20", meanwhile=True),
    Outcome("used-after-suspend=20", meanwhile=True, begun=True),
    Outcome("used-long=4096", used=True),
    Outcome("hold-ms=100", begun=True),
]


def go_through(dev, outcome):
    """Suspends and, if that succeeds, resumes a device with a fault, all in time."""
    with within(2 * TIMEOUT_MS / 1000 + 1 + PROMPT, "that"):
        expect(told(dev.request, "suspend"), outcome.suspend, "suspend")
        if outcome.suspend == "success":
            expect(dev.state, "suspended", "state")
            if outcome.meanwhile:
                wait_for(lambda: dev.mailbox.happened(outcome.fault), "the fault happens")
            expect(told(dev.request, "resume"), outcome.resume, "resume")


def declare(outcome):
    """Makes a case of a line of the table."""

    @case("{revision}: " + outcome.fault, revision=outcome.revisions)
    def fault(revision):
        dev = device(revision, mailbox=True)
        select_rng(dev)
        dev.write("timeout_ms", str(TIMEOUT_MS))
        counters = ("recoveries", "quirks")
        before = [dev.number(name) for name in counters]
        dev.mailbox.set(faults=[outcome.fault])

        with contextlib.ExitStack() as stack:
            if outcome.begun or outcome.used:
                stack.enter_context(Reader())
            if outcome.begun:
                wait_for(lambda: in_process(dev) == 1, "a buffer is in process")
            if outcome.used:
                wait_for(lambda: dev.mailbox.happened(outcome.fault), "the fault happens")
            go_through(dev, outcome)
        require(dev.mailbox.happened(outcome.fault), "the fault never took effect")

        expect(dev.state, outcome.state, "state")
        after = [dev.number(name) for name in counters]
        expect([b - a for a, b in zip(before, after)], [outcome.recoveries, outcome.quirks],
               "recoveries and quirks")
        failed = "success" not in (outcome.suspend, outcome.resume) or (
            outcome.suspend != outcome.resume)
        if failed:
            error = outcome.suspend if outcome.suspend != "success" else outcome.resume
            require(dev.read("last_error").startswith(error + " "), dev.read("last_error"))

        dev.mailbox.set(faults=[])
        if outcome.state == "suspended" and outcome.resume == "ENODEV":
            expect(told(dev.request, "resume"), outcome.back, "a resume when it is back")
            # It is asked anew, and not in another way.
            expect(dev.number("quirks") - before[1], outcome.quirks, "quirks")
        elif outcome.state != "running":
            dev.rebind()
        works(dev)


for line in OUTCOMES:
    declare(line)


@case("{revision}: suspend-late: a device that does not take no for an answer is resumed",
      revision=REVISIONS)
def suspend_late(revision):
    dev = device(revision, mailbox=True)
    select_rng(dev)
    dev.write("timeout_ms", "100")
    dev.mailbox.set(faults=["suspend-late=500"])
    expect(told(dev.request, "suspend"), "ETIMEDOUT", "suspend")
    dev.write("timeout_ms", "5000")
    resumes = dev.mailbox.counters()["resumes"]
    wait_for(lambda: dev.mailbox.counters()["resumes"] > resumes, "the device is resumed",
             within=3 * PROMPT)
    wait_for(lambda: dev.state == "running", "it is running")
    dev.mailbox.set(faults=[])
    works(dev)


@case("{revision}: resume-late: what is there by the next request is not asked for again",
      revision=REVISIONS)
def resume_late(revision):
    dev = device(revision, mailbox=True)
    select_rng(dev)
    dev.request("suspend")
    dev.write("timeout_ms", "500")
    # Before half of the deadline a device is not written to in another way.
    dev.mailbox.set(faults=["resume-late=200"])
    dev.request("resume")
    dev.mailbox.set(faults=[])
    works(dev)


@case("{revision}: needs-reset while running: noticed, and recovered", revision=REVISIONS)
def needs_reset_running(revision):
    dev = device(revision, mailbox=True)
    select_rng(dev)
    before = dev.number("recoveries")
    dev.mailbox.command("fault-now", fault="needs-reset")
    wait_for(lambda: dev.number("recoveries") == before + 1, "it is recovered")
    wait_for(lambda: dev.state == "running", "it is running")
    works(dev)
    dev.request("suspend")
    dev.request("resume")
    works(dev)


@case("{revision}: needs-reset while the device is watched: noticed at once, not at the next look",
      revision=REVISIONS)
def needs_reset_watched(revision):
    dev = device(revision, mailbox=True)
    select_rng(dev)
    dev.write("timeout_ms", "100")
    dev.mailbox.set(faults=["suspend-never"])
    expect(told(dev.request, "suspend"), "ETIMEDOUT", "suspend")
    dev.mailbox.set(faults=[])

    def looks():
        return dev.mailbox.counters()["status_reads"]

    # They become rarer, down to one a second.
    gap = 0.0
    while gap < 0.8:
        before, began = looks(), time.monotonic()
        wait_for(lambda: looks() > before, "a look", 3 * PROMPT)
        gap = time.monotonic() - began
    before = dev.number("recoveries")
    dev.mailbox.command("fault-now", fault="needs-reset")
    wait_for(lambda: dev.number("recoveries") == before + 1, "it is recovered",
             within=0.6 * SLOWNESS * SHARE)
    works(dev)


@case("{revision}: status-random: whatever it says, an end in time", revision=REVISIONS)
def status_random(revision):
    dev = device(revision, mailbox=True)
    for seed in range(5):
        dev.write("timeout_ms", str(TIMEOUT_MS))
        dev.mailbox.set(faults=[f"status-random-on-suspend={seed}"])
        child = Child(dev.request, "suspend")
        child.wait(within=2 * TIMEOUT_MS / 1000 + 1 + 2 * PROMPT, what="the request ends")
        require(dev.state in ("running", "suspended", "failed"), dev.state)
        dev.mailbox.set(faults=[])
        dev.rebind()
        works(dev)


@case("{revision}: used-irq-lost: what was used is taken back at the suspend", revision=REVISIONS)
def irq_lost(revision):
    dev = device(revision, mailbox=True)
    select_rng(dev)
    hold_a_buffer(dev)
    drain()
    dev.mailbox.set(faults=["used-irq-lost"], hold=False)
    require(read_some() is None, "a notification was not lost")
    dev.request("suspend")
    wait_for(read_some, "the buffer is the driver's")
    dev.mailbox.set(faults=[])
    dev.request("resume")
    works(dev)


@case("{revision}: {fault}: the queue is broken, the device recovered, but not for ever",
      revision=REVISIONS, fault=("used-bad-id", "used-twice"))
def broken_queue(revision, fault):
    dev = device(revision, mailbox=True)
    select_rng(dev)
    before = dev.number("recoveries")
    with Reader() as reader:
        require(reader.get(), "nothing to read")
        dev.mailbox.set(faults=[fault])
        # What breaks again at once is not worth another reset.
        wait_for(lambda: dev.state == "failed" and dev.number("recoveries") == before + 1,
                 "it is recovered once, then given up", within=3 * PROMPT)
        expect(reader.child.errno(3 * PROMPT, "the reader is told"), "ENODEV", "the reader")
    dev.mailbox.set(faults=[])
    dev.rebind()
    works(dev)


@case("{revision}: used-zero: no entropy, and no loop without end", revision=REVISIONS)
def used_zero(revision):
    dev = device(revision, mailbox=True)
    select_rng(dev)
    dev.mailbox.set(faults=["used-zero"])
    with Reader() as reader:
        reader.block()
        dev.request("suspend")
        dev.request("resume")
        reader.child.signal(15)
        expect(reader.child.wait(PROMPT), -15, "how the reader ended")
    dev.mailbox.set(faults=[])
    entropy_flows()


@case("{revision}: admin-vq: refused, because of D14", revision=REVISIONS)
def admin_vq(revision):
    dev = device(revision, mailbox=True)
    dev.mailbox.set(faults=["admin-vq"])
    dev.rebind()
    require(dev.has_feature(41), "VIRTIO_F_ADMIN_VQ has not been negotiated")
    dev.mailbox.clear()
    expect(told(dev.request, "suspend"), "EOPNOTSUPP", "suspend")
    expect(dev.state, "running", "state")
    require("administration" in dev.read("last_error"), dev.read("last_error"))
    expect(dev.mailbox.status_log(), [], "accesses to the status")
    works(dev)


@case("{revision}: features-ok-refused: the probe fails, the next one works", revision=REVISIONS)
def features_refused(revision):
    dev = device(revision, mailbox=True)
    dev.mailbox.set(faults=["features-ok-refused"])
    dev.unbind()
    expect(told(dev.bind), "ENODEV", "bind")
    require(not dev.is_bound, "the driver is bound")
    dev.mailbox.set(faults=[])
    dev.bind()
    works(dev)


if __name__ == "__main__":
    run()
