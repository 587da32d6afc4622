# SPDX-License-Identifier: GPL-2.0
"""How long a request waits: for no longer than its deadline and the second in which it is taken
back, whatever it waits for, and no longer than its writer lives or its driver is bound.
"""

import contextlib
import signal
import time
from pathlib import Path

from suspend_lib import (
    FAR_MS,
    PROMPT,
    SHARE,
    SLOWNESS,
    Child,
    expect,
    request_in_child,
    require,
    told,
    wait_for,
    within,
)

# A deadline that is waited for, in milliseconds.
SHORT_MS = 400 * SLOWNESS
# In which what was begun is taken back, in seconds, and what a busy machine may add.
TAKE_BACK, SLACK = 1.0, 0.7 * SLOWNESS * SHARE
GOALS = ("suspend", "resume")
# For what takes a slow kernel long, and does not depend much on what is asked.
SOME_GOALS = GOALS if SLOWNESS == 1 else GOALS[1:]


def refuse_to(dev, goal):
    """Has the device never do what it is asked to."""
    if goal == "resume":
        dev.request("suspend")
    dev.need_mailbox().set(faults=[f"{goal}-never"])


def relent(dev):
    """The device does what it is asked to again."""
    dev.mailbox.set(faults=[])
    if dev.state == "suspended":
        # One that was asked already may have followed meanwhile.
        dev.request("resume")
    expect(dev.state, "running", "state")
    dev.write("timeout_ms", "5000")
    dev.request("suspend")
    dev.request("resume")


def before(goal):
    """The state to which a request that fails leads back."""
    return {"suspend": "running", "resume": "suspended"}[goal]


def ends_in_time(dev, goal):
    """A request that is not followed ends at its deadline, or within a second of that."""
    dev.write("timeout_ms", str(SHORT_MS))
    began = time.monotonic()
    expect(Child(dev.request, goal).errno(10 * PROMPT), "ETIMEDOUT", goal)
    took = time.monotonic() - began
    require(took >= SHORT_MS / 1000, f"it ended after {took:.2f} s, before the deadline")
    bound = SHORT_MS / 1000 + TAKE_BACK + SLACK
    require(took < bound, f"it took {took:.2f} s, more than {bound} s")
    expect(dev.state, before(goal), "state")


def _asked(dev, goal):
    """A request in a child, which waits; if that is for the device, the device has been asked."""
    child = request_in_child(dev, goal)
    for fault in dev.mailbox.info()["settings"]["faults"]:
        wait_for(lambda: dev.mailbox.happened(fault), f"fault {fault} takes effect")
    return child


def can_be_killed(dev, goal):
    """One whose writer is killed ends at once, or when it has been taken back."""
    dev.write("timeout_ms", str(2 * FAR_MS))
    child = _asked(dev, goal)
    with within(TAKE_BACK + SLACK, "the end of a killed writer"):
        child.kill()
        expect(child.wait(10 * PROMPT), -signal.SIGKILL, "how the writer ended")
    expect(dev.state, before(goal), "state")
    require(dev.read("last_error").startswith("EINTR "), "last_error does not say so")


def read_when_answered(dev, goal, read):
    """What makes the driver read the configuration waits until the device has answered a request:
    until then only the status may be read (rules D3 and D8).
    """
    before = read()
    if goal == "resume":
        dev.request("suspend")
    mailbox = dev.need_mailbox()
    mailbox.clear()
    mailbox.set(**{f"delay_{goal}_ms": SHORT_MS})
    child = request_in_child(dev, goal)
    # It is read, written, and read again until it is another one than the first time.
    wait_for(lambda: len(mailbox.status_log()) > 2, "the device has been asked")
    expect(read(), before, "what is read")
    _, _, pending, *answers = mailbox.status_log()
    require(set(answers) - {pending}, "it was read before the device had answered")
    expect(child.errno(within=5 * PROMPT), "success", goal)
    mailbox.set(**{f"delay_{goal}_ms": 0})
    if goal == "suspend":
        dev.request("resume")


# How long a device takes for a reset that is not waited for, in milliseconds.
RESET_MS = 4 * (SHORT_MS + 1000)


def lock_is_held(dev):
    """Somebody has the device lock, for long: nobody who asks for anything waits for that."""
    # Who binds a driver takes the lock, even if there is one already.
    binder = Child((dev.path / "driver" / "bind").write_text, dev.name)
    stack = Path(f"/proc/{binder.pid}/stack")
    wait_for(lambda: "device_driver_attach" in stack.read_text(), "the lock is waited for")
    for goal in GOALS:
        with within(SLACK, f"a {goal} that is refused"):
            expect(told(dev.request, goal), "EIO", goal)
    require(binder.poll() is None, "the device lock was not held")


def needs_late_reset(dev, goal, milliseconds):
    """The device will need a reset when it is asked, and take so long for that.

    Returns the fault by which it does, and how often it has been recovered yet.
    """
    if goal == "resume":
        dev.request("suspend")
    recoveries = dev.number("recoveries")
    late = f"reset-late={milliseconds}"
    dev.need_mailbox().set(faults=[f"needs-reset-on-{goal}", late])
    return late, recoveries


@contextlib.contextmanager
def slow_reset(dev, goal):
    """The device needs a reset when it is asked, and takes its time for that; it is recovered."""
    late, recoveries = needs_late_reset(dev, goal, RESET_MS)
    yield
    wait_for(lambda: dev.mailbox.happened(late), "the device is reset")
    expect(dev.state, "failed", "state")
    lock_is_held(dev)
    expect(dev.state, "failed", "state")
    expect(dev.number("recoveries"), recoveries, "recoveries before the reset is over")
    wait_for(lambda: dev.state == "running", "it is recovered", RESET_MS / 1000 + 5 * PROMPT)
    expect(dev.number("recoveries"), recoveries + 1, "recoveries")
    relent(dev)


def reset_in_time(dev, goal):
    """A request after which only a reset helps ends in time, however long that takes."""
    with slow_reset(dev, goal):
        dev.write("timeout_ms", str(SHORT_MS))
        with within(SHORT_MS / 1000 + TAKE_BACK + SLACK, goal):
            expect(Child(dev.request, goal).errno(10 * PROMPT), "EIO", goal)


def reset_killed(dev, goal):
    """The same, if its writer is killed."""
    with slow_reset(dev, goal):
        dev.write("timeout_ms", str(2 * FAR_MS))
        child = Child(dev.request, goal)
        wait_for(lambda: dev.state == "failed", "it has failed")
        with within(TAKE_BACK + SLACK, "the end of a killed writer"):
            child.kill()
            expect(child.wait(10 * PROMPT), -signal.SIGKILL, "how the writer ended")


def reset_waited_for(dev, goal):
    """A request whose device is recovered in time ends after that: the device runs then."""
    late, recoveries = needs_late_reset(dev, goal, SHORT_MS)
    dev.write("timeout_ms", str(FAR_MS))
    began = time.monotonic()
    expect(Child(dev.request, goal).errno(SHORT_MS / 1000 + 5 * PROMPT), "EIO", goal)
    took = time.monotonic() - began
    # Neither is waited for: that the request has ended is what is looked at.
    expect(dev.state, "running", "state")
    expect(dev.number("recoveries"), recoveries + 1, "recoveries")
    require(dev.mailbox.happened(late), "the reset was not late")
    require(took >= SHORT_MS / 1000, f"it ended after {took:.2f} s, before the reset was over")
    relent(dev)


RESETS = {
    "ends in time": reset_in_time,
    "can be killed": reset_killed,
    "waits for one that is over in time": reset_waited_for,
}


def ends_with_the_driver(dev, goal):
    """One whose driver is unbound ends with ENODEV; returns the child that unbinds it."""
    dev.write("timeout_ms", "600000")
    child = _asked(dev, goal)
    unbinding = Child(dev.unbind)
    with within(TAKE_BACK + SLACK, "the end of a request whose driver is unbound"):
        expect(child.errno(10 * PROMPT), "ENODEV", goal)
    return unbinding

