#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Removal while suspended, or on the way there, resets the device and frees everything (D13)."""

from suspend_lib import (
    PROMPT,
    REVISIONS,
    Modules,
    Reader,
    Skip,
    case,
    device,
    devices,
    expect,
    modules,
    request_without_end,
    require,
    run,
    select_rng,
    wait_for,
    within,
    works,
)

def is_reset(dev):
    """The driver has reset the device, which is nobody's now."""
    if dev.mailbox:
        info = dev.mailbox.info()
        expect(info["state"], "reset", "the device's view")
        # The virtio core has then seen it: ACKNOWLEDGE.
        require(int(info["status"], 16) <= 1, f"device status {info['status']}")


def suspends_again(dev):
    expect(dev.state, "running", "state after a rebind")
    expect(dev.counts(), (0, 0, 0), "counts after a rebind")
    dev.request("suspend")
    dev.request("resume")
    works(dev)


@case("{revision}: unbind while suspended", revision=REVISIONS)
def unbind(revision):
    dev = device(revision)
    dev.request("suspend")
    dev.unbind()
    require(not dev.is_bound, "the files are still there")
    is_reset(dev)
    dev.bind()
    suspends_again(dev)


@case("{revision}: unbind while a {goal} waits ends it with ENODEV", revision=REVISIONS,
      goal=("suspend", "resume"))
def unbind_waiting(revision, goal):
    dev = device(revision, mailbox=True)
    child = request_without_end(dev, goal)
    with within(PROMPT, "unbind"):
        dev.unbind()
    expect(child.errno(what="the writer ends"), "ENODEV", goal)
    is_reset(dev)
    dev.mailbox.set(**{f"delay_{goal}_ms": 0})
    dev.bind()
    suspends_again(dev)


@case("{revision}: unbind after a failed suspend", revision=("1.4",))
def unbind_failed(revision):
    dev = device(revision, mailbox=True, recover=0)
    dev.mailbox.set(refuse_suspend=True)
    try:
        dev.request("suspend")
    except OSError:
        pass
    expect(dev.state, "failed", "state")
    dev.unbind()
    is_reset(dev)
    dev.mailbox.set(refuse_suspend=False)
    dev.bind()
    suspends_again(dev)


@case("{revision}: a reset of the PCI function while {state}", revision=REVISIONS,
      state=("running", "suspended"))
def function_reset(revision, state):
    dev = device(revision)
    reset = dev.pci / "reset"
    if not reset.exists():
        raise Skip(f"{dev.name} has no function that can be reset")
    select_rng(dev)
    if state == "suspended":
        dev.request("suspend")
    # The driver is told before and after, as it is when the system sleeps and wakes.
    reset.write_text("1")
    works(dev)
    dev.request("suspend")
    dev.request("resume")
    works(dev)


@case("unbind and bind, over and over, suspended each time")
def over_and_over():
    dev = device()
    for _ in range(5):
        dev.request("suspend")
        dev.unbind()
        dev.bind()
    suspends_again(dev)


@case("unbind while a reader waits for a suspended device")
def unbind_reader():
    dev = device()
    for other in devices():
        if other is not dev:
            other.unbind()
    select_rng(dev)
    dev.request("suspend")
    with Reader() as reader:
        reader.block()
        with within(PROMPT, "unbind, for which the reader is not waited for,"):
            dev.unbind()
        expect(reader.child.errno(what="the reader ends"), "ENODEV", "the reader")
    dev.bind()
    suspends_again(dev)


@case("the modules are unloaded while all devices are suspended, and a reader waits")
def unload():
    everyone = devices()
    dev = everyone[0]
    for other in everyone:
        if other is not dev:
            other.request("suspend")
    select_rng(dev)
    dev.request("suspend")
    with Reader() as reader:
        reader.block()
        # The device file belongs to another module: an open file keeps nothing of ours loaded.
        modules.unload()
        wait_for(lambda: reader.child.poll() is not None, "the reader ends")
        expect(reader.child.errno(), "ENODEV", "the reader")
    for each in everyone:
        require(not each.is_bound, "the files are still there")
        is_reset(each)
    modules.load()
    for each in everyone:
        suspends_again(each)


@case("{revision}: the module of the driver is unloaded while a suspend waits", revision=REVISIONS)
def unload_waiting(revision):
    dev = device(revision, mailbox=True)
    child = request_without_end(dev, "suspend")
    with within(2 * PROMPT, "rmmod"):
        Modules.remove(Modules.DRIVER)
    expect(child.errno(what="the writer ends"), "ENODEV", "suspend")
    dev.mailbox.set(delay_suspend_ms=0)
    modules.insert(Modules.DRIVER)
    wait_for(lambda: dev.is_bound, f"{dev.name} is bound")
    suspends_again(dev)


@case("{revision}: a function that is reset, and not put into operation again, is given up",
      revision=REVISIONS)
def reset_without_end(revision):
    dev = device(revision, mailbox=True)
    reset = dev.pci / "reset"
    if not reset.exists():
        raise Skip(f"{dev.name} can't be reset")
    with dev.enabled_by_user_space():
        reset.write_text("1")
        wait_for(lambda: dev.state == "failed", "the device has failed", 2 * PROMPT)
        expect(dev.number("failures"), 1, "failures")
        require(dev.read("last_error").startswith("EIO "), dev.read("last_error"))
        with within(PROMPT, "unbind"):
            dev.unbind()
    suspends_again(dev)


if __name__ == "__main__":
    run()
