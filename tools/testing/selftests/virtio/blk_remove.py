#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""A disk is taken away: with requests in flight, suspended, for good."""

import errno
import mmap
import os

from suspend_lib import (
    PROMPT,
    Child,
    Modules,
    case,
    expect,
    expect_errno,
    modules,
    request_in_child,
    require,
    run,
    wait_for,
    within,
)

from blk_lib import (
    blocked,
    disk,
    pattern,
    statistics,
    works,
)


def read_for_ever(fd):
    offset = 0
    while True:
        with mmap.mmap(-1, 4096) as buffer:
            if os.preadv(fd, [buffer], offset % (1 << 20)) == 0:
                # The end of a disk that is no more.
                raise OSError(errno.EIO, "gone")
        offset += 4096


def readers(target, count=3):
    fd = os.open(target.path, os.O_RDONLY | os.O_DIRECT)
    try:
        before = statistics(target)["in"][0]
        children = [Child(read_for_ever, fd) for _ in range(count)]
    finally:
        os.close(fd)
    wait_for(lambda: statistics(target)["in"][0] > before + 10 * count, "they read", 5 * PROMPT)
    return children


def end_with_an_error(children):
    for child in children:
        status = child.errno(what="a reader ends")
        require(status in ("EIO", "ENXIO", "ENODEV"), f"a reader: {status}")


def quickly(action, what):
    with within(2 * PROMPT, what):
        action()


@case("unbind with requests in flight")
def unbind():
    target = disk()
    children = readers(target)
    quickly(target.dev.unbind, "unbind")
    end_with_an_error(children)
    target.dev.bind()
    works(target)


@case("unbind of a device that does not answer, and then says that it needs a reset")
def unbind_needs_reset():
    target = disk()
    child = target.read_held()
    unbinding = Child(target.dev.unbind)
    blocked(unbinding)
    target.mailbox.command("fault-now", fault="needs-reset")
    expect(unbinding.errno(5 * PROMPT, "unbind ends"), "success", "unbind")
    expect(child.errno(what="the reader is told"), "EIO", "the reader")
    target.mailbox.set(hold=False)
    target.dev.bind()
    works(target)


@case("what is in the page cache is written when the disk is unbound")
def page_cache():
    target = disk()
    fd = os.open(target.path, os.O_WRONLY)
    try:
        os.pwrite(fd, pattern(9), 0)
        target.dev.unbind()
    finally:
        os.close(fd)
    target.dev.bind()
    expect(target.read(0, 4096), pattern(9), "what was in the page cache")


@case("unbind while suspended, with requests that wait")
def suspended():
    target = disk()
    target.dev.request("suspend")
    child = Child(target.read, 0, 4096)
    blocked(child)
    quickly(target.dev.unbind, "unbind")
    expect(child.errno(what="the reader is told"), "EIO", "the reader")
    target.dev.bind()
    works(target)


@case("unbind while a suspend waits for requests that the device does not finish")
def unfinished():
    target = disk()
    child = target.read_held()
    suspending = request_in_child(target.dev, "suspend")
    unbinding = Child(target.dev.unbind)
    expect(suspending.errno(what="the suspend ends"), "ENODEV", "the suspend")
    target.mailbox.set(hold=False)
    expect(unbinding.errno(5 * PROMPT, "unbind ends"), "success", "unbind")
    status = child.errno(what="the reader ends")
    require(status in ("EIO", "success"), f"the reader: {status}")
    target.dev.bind()
    works(target)


@case("hot-unplug with requests in flight, {state}", state=("running", "suspended"))
def unplug(state):
    target = disk()
    children = readers(target)
    if state == "suspended":
        target.dev.request("suspend")
    quickly(target.dev.unplug, "hot-unplug")
    end_with_an_error(children)
    target.dev.plug()
    works(target)


@case("a device that is gone: what it had and what waits fails")
def gone():
    target = disk()
    child = target.read_held()
    target.mailbox.command("fault-now", fault="gone")
    expect_errno("ENODEV", "suspend", target.dev.request, "suspend")
    expect(child.errno(what="the reader is told"), "EIO", "the reader")
    expect_errno("EIO", "another read", target.read, 0, 4096)
    # There again, so that the virtio core can unbind it without a warning.
    target.mailbox.set(hold=False, faults=[])
    target.dev.rebind()
    works(target)


@case("a disk that is open stays in use when its device is unbound, and is freed when closed")
def open_disk():
    target = disk()
    fd = os.open(target.path, os.O_RDONLY)
    try:
        target.dev.unbind()
        require(not target.is_there, "the disk is still there")
        try:
            Modules.remove(Modules.BLOCK)
        except Exception as error:  # pylint: disable=broad-except
            require("in use" in str(error), f"rmmod: {error}")
        else:
            require(False, "rmmod succeeded")
    finally:
        os.close(fd)
    target.dev.bind()
    works(target)


@case("the module is unloaded and loaded, over and over, suspended and not")
def over_and_over():
    target = disk()
    for number in range(6):
        if number % 2:
            target.dev.request("suspend")
        quickly(lambda: Modules.remove(Modules.BLOCK), "rmmod")
        modules.insert(Modules.BLOCK)
        wait_for(lambda: target.dev.is_bound, "it is bound")
        works(target)


if __name__ == "__main__":
    run(block=True)
