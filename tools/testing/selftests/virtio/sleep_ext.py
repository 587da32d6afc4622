#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""The system sleeps and is woken, with devices of the kernel's own drivers and virtio_suspend."""

import contextlib
import functools
import os

from awake_lib import freezing_ends, sync_ends
from blk_lib import blocked
from ext_lib import each_driver
from ext_net_lib import Stream
from net_lib import cable, inside, is_up
from sleep_lib import (
    MODES,
    disk_load,
    is_kept,
    is_same,
    keeps_state,
    prepare,
    refuses_to_sleep,
    requests_survive,
    sleep,
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


def path_of(dev):
    found = wait_for(lambda: list((dev.path / "block").glob("*")), "a disk", 5 * PROMPT)
    return f"/dev/{found[0].name}"


DATA = bytes(range(256)) * 16


def write(path, data):
    """Writes to the disk itself."""
    fd = os.open(path, os.O_RDWR | os.O_SYNC)
    try:
        require(os.pwrite(fd, data, 0) == len(data), "a short write")
    finally:
        os.close(fd)


@case("{mode}: a disk runs, with what was written before", mode=MODES)
@on("virtio_blk")
def idle_disk(devices, mode):
    dev = devices[0]
    write(path_of(dev), DATA)
    sleep(mode)
    expect(dev.state, "running", "state")
    is_same(path_of(dev), 0, DATA)
    dev.cycle()
    dev.works()


@case("{mode}: a disk under load loses nothing", mode=MODES)
@on("virtio_blk")
def busy_disk(devices, mode):
    dev = devices[0]
    with disk_load(path_of(dev)):
        sleep(mode)
        dev.cycle()
    expect(dev.state, "running", "state")


@case("{mode}: a suspended disk runs, with what was written before", mode=MODES)
@on("virtio_blk")
def suspended_disk(devices, mode):
    dev = devices[0]
    write(path_of(dev), DATA)
    dev.request("suspend")
    sleep(mode)
    expect(dev.state, "running", "state")
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


@case("{mode}: No_Soft_Reset: a suspended disk is suspended", mode=MODES)
@on("virtio_blk")
def kept_disk(devices, mode):
    found = [dev for dev in devices if keeps_state(dev)]
    if not found:
        raise Skip("no disk sets No_Soft_Reset")
    dev, path = found[0], path_of(found[0])
    write(path, DATA)
    dev.request("suspend")
    is_kept(dev, mode)
    reader = Child(is_same, path, 0, DATA)
    blocked(reader)
    dev.request("resume")
    expect(reader.errno(5 * PROMPT), "success", "who waited")
    dev.cycle()
    dev.works()


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
        sleep(mode)
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
        sleep(mode)
        received = one.report()["rx"]["packets"]
        wait_for(lambda: one.report()["rx"]["packets"] > received + 3, "answers", 5 * PROMPT)
        expect(ping.poll(), None, "the end of ping")


@case("{mode}: a TCP connection lives, and nothing of it is lost", mode=MODES)
@on("virtio_net")
def connection(devices, mode):
    with network(devices) as (one, other):
        stream = Stream(one, other)
        stream.moves()
        sleep(mode)
        for _ in range(10):
            stream.moves()
        one.device.cycle()
        stream.moves()
        stream.finish()


@case("{mode}: a suspended interface refuses it with EBUSY, and is suspended still", mode=MODES)
@on("virtio_net")
def suspended_net(devices, mode):
    with network(devices) as (one, other):
        expect(one.ping(other), 0, "lost pings")
        one.device.request("suspend")
        refuses_to_sleep(mode, "EBUSY")
        expect(one.device.state, "suspended", "state")
        one.device.request("resume")
        expect(one.ping(other), 0, "lost pings")
        sleep(mode)
        expect(one.ping(other), 0, "lost pings")


if __name__ == "__main__":
    run()
