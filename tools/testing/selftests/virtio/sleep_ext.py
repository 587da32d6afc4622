#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""The system sleeps and is woken, with devices of the kernel's own drivers and virtio_suspend.

They keep their state where they can, and run when it is awake; one that is suspended is so still. The
others are reset, and run.
"""

import contextlib
import functools
import os

from awake_lib import freezing_ends, sync_ends
from blk_lib import blocked
from ext_lib import each_driver, path_of
from ext_net_lib import Stream
from net_lib import cable, inside, is_up
from sleep_lib import (
    MODES,
    Way,
    can_keep,
    disk_load,
    is_same,
    prepare,
    refuses_to_sleep,
    requests_survive,
    sleep,
    sleep_and_see,
    sleeps_when_resumed,
)
from suspend_lib import PROMPT, Child, Skip, case, expect, require, run, wait_for


def on(name):
    """Calls a case with the devices of a driver, which virtio_suspend extends."""

    def decorate(function):
        @functools.wraps(function)
        def wrapped(**arguments):
            each_driver(lambda _driver, devices, **kw: function(devices, **kw))(name, **arguments)

        return wrapped

    return decorate


DATA = bytes(range(256)) * 16


def write(path, data):
    """Writes to the disk itself."""
    fd = os.open(path, os.O_RDWR | os.O_SYNC)
    try:
        require(os.pwrite(fd, data, 0) == len(data), "a short write")
    finally:
        os.close(fd)


# One of the disks, and one of the interfaces, sets No_Soft_Reset, and the other does not.


@case("{mode}: disks run, with what was written before", mode=MODES)
@on("virtio_blk")
def idle_disks(devices, mode):
    for dev in devices:
        write(path_of(dev), DATA)
    sleep_and_see(mode, devices)
    for dev in devices:
        expect(dev.state, "running", f"state of {dev.name}")
        is_same(path_of(dev), 0, DATA)
        dev.cycle()
        dev.works()


@case("{mode}: disks under load lose nothing", mode=MODES)
@on("virtio_blk")
def busy_disks(devices, mode):
    with contextlib.ExitStack() as stack:
        for dev in devices:
            stack.enter_context(disk_load(path_of(dev), writers=2))
        sleep_and_see(mode, devices)
        for dev in devices:
            dev.cycle()
    for dev in devices:
        expect(dev.state, "running", f"state of {dev.name}")


@case("deep: No_Soft_Reset: a disk under load whose device forgets its state is reset, and loses nothing")
@on("virtio_blk")
def forgetful_disk(devices):
    found = [dev for dev in devices if can_keep(dev, "deep")]
    if not found:
        raise Skip("no disk sets No_Soft_Reset")
    dev, fault = found[0], "status-zero-while-suspended"
    with disk_load(path_of(dev)):
        way = Way(dev)
        dev.mailbox.set(faults=[fault])
        sleep("deep")
        require(dev.mailbox.happened(fault), f"{fault} has not happened")
        dev.mailbox.set(faults=[])
        way.is_reset()
    dev.cycle()
    dev.works()


@case("{mode}: suspended disks are suspended, or run, with what was written before", mode=MODES)
@on("virtio_blk")
def suspended_disks(devices, mode):
    for dev in devices:
        write(path_of(dev), DATA)
        dev.request("suspend")
    sleep_and_see(mode, devices)
    for dev in devices:
        if can_keep(dev, mode):
            reader = Child(is_same, path_of(dev), 0, DATA)
            blocked(reader)
            dev.request("resume")
            expect(reader.errno(5 * PROMPT), "success", "who waited")
        is_same(path_of(dev), 0, DATA)
        dev.cycle()
        dev.works()


@case("{mode}: something to be written to a suspended disk: EBUSY in time, or it sleeps when resumed",
      mode=MODES)  # fmt: skip
@on("virtio_blk")
def dirty_disk(devices, mode):
    dev = devices[0]
    prepare(mode)
    sync_ends(dev, path_of(dev), "mem", then=lambda: sleeps_when_resumed(dev, mode))
    dev.cycle()
    dev.works()


@case("{mode}: somebody waits for a suspended disk: EBUSY in time, and it sleeps later", mode=MODES)
@on("virtio_blk")
def disk_with_waiter(devices, mode):
    dev, path = devices[0], path_of(devices[0])
    write(path, DATA)
    prepare(mode)
    freezing_ends(dev, lambda: is_same(path, 0, DATA), "mem")
    sleep(mode)
    dev.cycle()
    dev.works()


@case("{mode}: requests that a disk has in process are finished", mode=MODES)
@on("virtio_blk")
def disk_with_requests(devices, mode):
    requests_survive(devices[0], path_of(devices[0]), mode)
    devices[0].cycle()


@contextlib.contextmanager
def network(devices):
    """The ends of the cable, up, each with the files in sysfs."""
    one, other = cable()
    for end in (one, other):
        end.device = next(dev for dev in devices if dev.name == end.name)
    try:
        yield one, other
    finally:
        for end in (one, other):
            end.tear_down()


@case("{mode}: interfaces run, with the link and the addresses that they had", mode=MODES)
@on("virtio_net")
def idle_net(devices, mode):
    with network(devices) as ends:
        one, other = ends
        expect(one.ping(other), 0, "lost pings")
        sleep_and_see(mode, devices)
        for end in ends:
            expect(end.device.state, "running", "state")
            wait_for(lambda: is_up(end), "the link is up", 5 * PROMPT)
        expect(one.ping(other), 0, "lost pings")
        one.device.cycle()
        expect(one.ping(other), 0, "lost pings")


@case("{mode}: a ping that runs meanwhile gets answers again", mode=MODES)
@on("virtio_net")
def busy_net(devices, mode):
    with network(devices) as (one, other):
        expect(one.ping(other), 0, "lost pings")
        with inside(one.namespace):
            ping = Child(os.execvp, "ping", ("ping", "-q", "-i", "0.05", other.address))
        received = one.report()["rx"]["packets"]
        wait_for(lambda: one.report()["rx"]["packets"] > received + 3, "answers", 5 * PROMPT)
        sleep_and_see(mode, devices)
        received = one.report()["rx"]["packets"]
        wait_for(lambda: one.report()["rx"]["packets"] > received + 3, "answers", 5 * PROMPT)
        expect(ping.poll(), None, "the end of ping")


@case("{mode}: a TCP connection lives, and nothing of it is lost", mode=MODES)
@on("virtio_net")
def connection(devices, mode):
    with network(devices) as (one, other):
        stream = Stream(one, other)
        stream.moves()
        sleep_and_see(mode, devices)
        for _ in range(10):
            stream.moves()
        one.device.cycle()
        stream.moves()
        stream.finish()


@case("{mode}: suspended interfaces are suspended still; one that can't be refuses it with EBUSY",
      mode=MODES)  # fmt: skip
@on("virtio_net")
def suspended_net(devices, mode):
    with network(devices) as ends:
        one, other = ends
        expect(one.ping(other), 0, "lost pings")
        for end in ends:
            end.device.request("suspend")
        for end in ends:
            if not can_keep(end.device, mode):
                refuses_to_sleep(mode, "EBUSY")
                expect(end.device.state, "suspended", "state")
                end.device.request("resume")
        sleep_and_see(mode, devices)
        for end in ends:
            if can_keep(end.device, mode):
                end.device.request("resume")
        for end in ends:
            wait_for(lambda: is_up(end), "the link is up", 5 * PROMPT)
        expect(one.ping(other), 0, "lost pings")


if __name__ == "__main__":
    run()
