#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""The system sleeps and is woken, with devices of the kernel's own drivers and virtio_suspend."""

import contextlib
import functools
import os

from ext_lib import each_driver
from net_lib import cable, is_up
from sleep_lib import MODES, disk_load, is_same, refuses_to_sleep, sleep
from suspend_lib import PROMPT, Child, case, expect, require, run, wait_for


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
        command = ("ip", "netns", "exec", one.namespace, "ping", "-q", "-i", "0.05", other.address)
        ping = Child(os.execvp, "ip", command)
        received = one.report()["rx"]["packets"]
        wait_for(lambda: one.report()["rx"]["packets"] > received + 3, "answers", 5 * PROMPT)
        sleep(mode)
        received = one.report()["rx"]["packets"]
        wait_for(lambda: one.report()["rx"]["packets"] > received + 3, "answers", 5 * PROMPT)
        expect(ping.poll(), None, "the end of ping")


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
