#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Everything at once, for a bounded time: requests, deadlines, readers, unbinding, unloading.

What each of them is told is its own business; in the end the devices work, no rule was broken, and
the kernel had nothing to complain of.

SUSPEND_STRESS_SECONDS sets the time of each case.
"""

import multiprocessing
import os
import random
import subprocess
import time

from suspend_lib import (
    CASE_SECONDS,
    Child,
    Modules,
    Reader,
    case,
    devices,
    expect,
    modules,
    require,
    run,
    wait_for,
    works,
)

SECONDS = float(os.environ.get("SUSPEND_STRESS_SECONDS", "8"))


def forever(step, over=None):
    """A child that does something at random moments, whatever comes of it.

    It ends after a step when `over` is set. Else it is killed.
    """

    def loop():
        random.seed(os.getpid())
        while not (over and over.is_set()):
            try:
                step()
            except OSError:
                pass
            time.sleep(random.random() * 0.01)

    return Child(loop)


def requester(dev):
    return forever(lambda: dev.request(random.choice(("suspend", "resume"))))


def killer(dev):
    """Requests, and is killed while it waits."""

    def step():
        child = Child(dev.request, random.choice(("suspend", "resume")))
        time.sleep(random.random() * 0.02)
        child.kill()
        child.wait(within=20)

    return forever(step)


def looker(dev):
    def step():
        for name in ("state", "last_error", "suspends", "last_suspend_ns"):
            dev.read(name)

    return forever(step)


def hurrier(dev):
    return forever(lambda: dev.write("timeout_ms", str(random.choice((1, 5, 50, 5000)))))


def teaser(dev):
    """Has a test device change its configuration, and be slow."""

    def step():
        dev.mailbox.command("config_change")
        dev.mailbox.set(
            delay_suspend_ms=random.choice((0, 0, 0, 3, 20)),
            delay_resume_ms=random.choice((0, 0, 0, 1)),
        )

    return forever(step)


def rebinder(dev):
    def step():
        time.sleep(random.random() * 0.2)
        dev.unbind()
        dev.bind()

    return forever(step)


def reloader(over):
    """Unloads the driver and loads it again. Killed, it would leave an rmmod behind."""

    def step():
        time.sleep(random.random())
        subprocess.run(["rmmod", Modules.DRIVER], check=False, capture_output=True)
        modules.insert(Modules.DRIVER)

    return forever(step, over)


def settle(everyone):
    """Ends everybody, and brings the devices back to where they work."""
    Child.kill_all()
    modules.load(**modules.parameters)
    for dev in everyone:
        if not dev.is_bound:
            dev.bind()
        wait_for(lambda dev=dev: dev.state in ("running", "suspended", "failed"),
                 f"{dev.name} is in no transition", within=20)
        if dev.mailbox:
            dev.mailbox.set(delay_suspend_ms=0, delay_resume_ms=0)
        dev.write("timeout_ms", "5000")
        if dev.state == "failed":
            dev.rebind()
        if dev.state == "suspended":
            dev.request("resume")
    # Which of them the hwrng core calls by which name is not known: all have to run by now.
    for dev in everyone:
        works(dev)


def go_on(*children):
    """Lets the children do what they do for a while."""
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        time.sleep(0.1)
        for child in children:
            require(child.poll() is None, f"a child ended by itself: {child.status}")


def survive(everyone, *children):
    go_on(*children)
    settle(everyone)


@case("requests from many, some of them killed, while all is read")
def requests():
    everyone = devices()
    with Reader() as reader:
        children = []
        for dev in everyone:
            children += [requester(dev), requester(dev), killer(dev), looker(dev)]
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            reader.get(0.1)
        for child in children:
            require(child.poll() is None, f"a child ended by itself: {child.status}")
        settle(everyone)


@case("requests while deadlines, delays and the configuration change")
def deadlines():
    everyone = devices()
    children = []
    for dev in everyone:
        children += [requester(dev), hurrier(dev), looker(dev)]
        if dev.mailbox:
            children.append(teaser(dev))
    survive(everyone, *children)


@case("requests while the driver is unbound and bound")
def rebinding():
    everyone = devices()
    children = []
    for dev in everyone:
        children += [requester(dev), rebinder(dev), looker(dev)]
    survive(everyone, *children)


@case("requests while the driver is unloaded and loaded")
def reloading():
    everyone = devices()
    over = multiprocessing.Event()
    reloads = reloader(over)
    children = []
    for dev in everyone:
        children += [requester(dev), looker(dev)]
    go_on(reloads, *children)
    over.set()
    expect(reloads.errno(CASE_SECONDS), "success", "who unloads and loads the driver")
    settle(everyone)


if __name__ == "__main__":
    run()
