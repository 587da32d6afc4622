#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""All devices at once, through /sys/bus/virtio/suspend: all of them are suspended, or none is."""

import contextlib
import time
from pathlib import Path

from awake_lib import about_to_hibernate
from blk_lib import disk, works as disk_works
from patience_lib import GOALS, SHORT_MS, SLACK, TAKE_BACK
from suspend_lib import (
    FAR_MS,
    PROMPT,
    REVISIONS,
    Child,
    Modules,
    Skip,
    case,
    devices,
    expect,
    expect_errno,
    require,
    run,
    told,
    wait_for,
    within,
    works,
)

BUS = Path("/sys/bus/virtio/suspend")
DELAY_MS = 700


def read(name):
    return (BUS / name).read_text().removesuffix("\n")


def write(name, text):
    with open(BUS / name, "wb", buffering=0) as file:
        file.write(text.encode())


def request(goal):
    write("request", goal)


def in_child(goal):
    """Requests something in a child, and waits until that is under way."""
    child = Child(request, goal)
    via = {"suspend": "suspending", "resume": "resuming"}[goal]
    wait_for(lambda: read("state") == via, f"all are {via}")
    return child


def entropy():
    """Two devices that are no disks."""
    found = [dev for dev in devices() if dev.driver == Modules.DRIVER and dev.mailbox]
    if len(found) < 2:
        raise Skip("there are no two test devices")
    return found[:2]


def members():
    """The devices that take part: those that have the feature."""
    return [dev for dev in devices() if dev.read("revision") in REVISIONS]


def states():
    return {dev.name: dev.state for dev in members()}


def all_are(state):
    expect(set(states().values()), {state}, "states")


@contextlib.contextmanager
def at_the_end():
    """Whatever becomes of the case, nobody is left out and nobody suspended after it."""
    try:
        yield
    finally:
        write("except", "\n")
        write("timeout_ms", "10000")
        for dev in members():
            if dev.mailbox:
                dev.mailbox.set(faults=[], delay_suspend_ms=0, delay_resume_ms=0)
        with contextlib.suppress(OSError):
            request("resume")


def together(function):
    """A case that begins with all devices running."""

    def wrapped(**arguments):
        with at_the_end():
            all_are("running")
            function(**arguments)
        for dev in members():
            works(dev)
        disk_works(disk())

    return wrapped


@case("all are suspended, and resumed")
@together
def cycle():
    before = {dev.name: dev.counts() for dev in members()}
    for count in (1, 2):
        request("suspend")
        all_are("suspended")
        expect(read("state"), "suspended", "state of all")
        expect(set(read("devices").split()), set(before), "devices")
        expect_errno("EALREADY", "a second suspend", request, "suspend")
        request("resume")
        all_are("running")
        expect(read("state"), "running", "state of all")
        expect(read("devices"), "", "devices")
        expect_errno("EALREADY", "a second resume", request, "resume")
        for dev in members():
            suspends, resumes, failures = before[dev.name]
            expect(dev.counts(), (suspends + count, resumes + count, failures), dev.name)


@case("devices do it side by side, disks are the last to be suspended and the first to be resumed")
@together
def turns():
    first, second = entropy()
    target = disk().dev
    for dev in (first, second, target):
        dev.mailbox.set(delay_suspend_ms=DELAY_MS, delay_resume_ms=DELAY_MS)
    began = time.monotonic()
    child = in_child("suspend")
    wait_for(lambda: [first.state, second.state] == ["suspending"] * 2, "both are suspending")
    expect(target.state, "running", "state of the disk")
    expect(child.errno(5 * PROMPT), "success", "suspend")
    took = time.monotonic() - began
    require(took >= 2 * DELAY_MS / 1000, f"the disk was suspended meanwhile, after {took:.1f} s")
    child = in_child("resume")
    wait_for(lambda: target.state == "resuming", "the disk is resuming")
    expect([first.state, second.state], ["suspended"] * 2, "states of the others")
    expect(child.errno(5 * PROMPT), "success", "resume")


@case("one that does not follow: ETIMEDOUT, it is named, and all run")
@together
def refuses():
    target = disk().dev
    target.mailbox.set(faults=["suspend-never"])
    # That of the group counts, not that of the device.
    target.write("timeout_ms", str(FAR_MS))
    write("timeout_ms", str(SHORT_MS))
    before = [dev.number("suspends") for dev in entropy()]
    with within(SHORT_MS / 1000 + 2 * TAKE_BACK + SLACK, "a suspend that is taken back"):
        expect_errno("ETIMEDOUT", "suspend", request, "suspend")
    require(target.mailbox.happened("suspend-never"), "the device has not refused")
    after = [dev.number("suspends") for dev in entropy()]
    expect(after, [number + 1 for number in before], "suspends of the others")
    all_are("running")
    expect(read("state"), "running", "state of all")
    expect(read("devices"), "", "devices")
    expect(read("last_error").split()[:2], ["ETIMEDOUT", target.name], "last_error")


@case("one that needs a reset: EIO, it is recovered, and all run")
@together
def needs_reset():
    dev = entropy()[0]
    before = dev.number("recoveries")
    dev.mailbox.set(faults=["needs-reset-on-suspend"])
    expect_errno("EIO", "suspend", request, "suspend")
    expect(read("last_error").split()[:2], ["EIO", dev.name], "last_error")
    wait_for(lambda: dev.number("recoveries") == before + 1, "it is recovered")
    wait_for(lambda: set(states().values()) == {"running"}, "all run")


@case("one that does not resume stays suspended, the others run; it is resumed later")
@together
def resumes_late():
    dev = entropy()[0]
    request("suspend")
    dev.mailbox.set(faults=["resume-never"])
    write("timeout_ms", str(SHORT_MS))
    expect_errno("ETIMEDOUT", "resume", request, "resume")
    require(dev.mailbox.happened("resume-never"), "the device has not refused")
    expect(read("last_error").split()[:2], ["ETIMEDOUT", dev.name], "last_error")
    expect(states(), {other.name: "running" for other in members()} | {dev.name: "suspended"},
           "states")
    expect((read("state"), read("devices")), ("suspended", dev.name), "what is left")
    dev.mailbox.set(faults=[])
    request("resume")
    all_are("running")


@case("whoever asked for a {goal} is killed: it ends", goal=GOALS)
@together
def killed(goal):
    dev = entropy()[0]
    if goal == "resume":
        request("suspend")
    dev.mailbox.set(faults=[f"{goal}-never"])
    write("timeout_ms", str(FAR_MS))
    child = in_child(goal)
    wait_for(lambda: dev.mailbox.happened(f"{goal}-never"), "the device has been asked")
    with within(2 * TAKE_BACK + SLACK, "the end of a killed writer"):
        child.kill()
        child.wait(5 * PROMPT)
    if goal == "suspend":
        all_are("running")
    else:
        expect(dev.state, "suspended", "state")
    expect(read("last_error").split()[:2], ["EINTR", dev.name], "last_error")


@case("while a {goal} is under way: EBUSY", goal=GOALS)
@together
def busy(goal):
    dev = entropy()[0]
    if goal == "resume":
        request("suspend")
    dev.mailbox.set(**{f"delay_{goal}_ms": DELAY_MS})
    child = in_child(goal)
    for other in GOALS:
        expect_errno("EBUSY", f"a {other}", request, other)
    expect(child.errno(5 * PROMPT), "success", goal)


@case("those that are left out run, and what is no name is refused")
@together
def exceptions():
    first, second = entropy()
    write("except", f" {first.name}\n")
    expect(read("except"), first.name, "except")
    for garbage in (
        "virtio",
        "virtio1x",
        "virtio-1",
        "virtio+1",
        "virtio4294967296",
        "disk",
        f"{second.name},{first.name}",
        "virtio1 \0",
        " ".join(f"virtio{number}" for number in range(257)),
    ):
        result = told(write, "except", garbage)
        require(result in ("EINVAL", "ERANGE", "E2BIG"), f"{garbage!r}: {result}")
        expect(read("except"), first.name, "except after garbage")
    request("suspend")
    expect((first.state, second.state), ("running", "suspended"), "states")
    require(first.name not in read("devices").split(), "one that is left out is held")
    request("resume")
    write("except", " ".join(dev.name for dev in members()))
    expect_errno("ENODEV", "a suspend of nobody", request, "suspend")


@case("what is neither, or out of range, is refused")
@together
def garbage():
    for text in ("\n", "suspended", "suspend resume", "Suspend", "suspend\n\n", "\0"):
        expect_errno("EINVAL", repr(text), request, text)
    for text in ("0", "600001", "-1", "1s", "\n"):
        result = told(write, "timeout_ms", text)
        require(result in ("EINVAL", "ERANGE"), f"timeout_ms {text!r}: {result}")
    expect(read("timeout_ms"), "10000", "timeout_ms")


@case("one that was suspended by hand stays so, one that was resumed by hand, too")
@together
def by_hand():
    first, second = entropy()
    first.request("suspend")
    request("suspend")
    all_are("suspended")
    require(first.name not in read("devices").split(), "one that was suspended by hand is held")
    second.request("resume")
    require(second.name not in read("devices").split(), "one that was resumed by hand is held")
    second.request("suspend")
    request("resume")
    expect((first.state, second.state), ("suspended", "suspended"), "states")
    for dev in (first, second):
        dev.request("resume")


@case("nobody can be suspended who is not yet: EALREADY")
@together
def all_by_hand():
    for dev in members():
        dev.request("suspend")
    expect_errno("EALREADY", "suspend", request, "suspend")
    expect(read("state"), "running", "state of all, of which it has suspended none")
    for dev in members():
        dev.request("resume")


@case("one is unbound while all are suspended: it is held no more, the others are resumed")
@together
def unbound():
    dev = entropy()[0]
    request("suspend")
    dev.unbind()
    require(dev.name not in read("devices").split(), "one that is gone is held")
    request("resume")
    dev.bind()
    all_are("running")


@case("one is unbound while all are being suspended: ENODEV, and the others run")
@together
def unbound_meanwhile():
    dev = entropy()[0]
    dev.mailbox.set(faults=["suspend-never"])
    write("timeout_ms", str(FAR_MS))
    child = in_child("suspend")
    wait_for(lambda: dev.mailbox.happened("suspend-never"), "the device has been asked")
    with within(2 * TAKE_BACK + SLACK, "an unbinding"):
        dev.unbind()
    expect(child.errno(5 * PROMPT), "ENODEV", "suspend")
    expect(read("last_error").split()[:2], ["ENODEV", dev.name], "last_error")
    dev.mailbox.set(faults=[])
    dev.bind()
    all_are("running")


@case("the system is about to sleep: EBUSY, and all run")
@together
def sleeps():
    target = disk()
    with about_to_hibernate(target, target.path):
        expect_errno("EBUSY", "suspend", request, "suspend")
    all_are("running")


if __name__ == "__main__":
    run(block=True)
