#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""The kernel's own virtio_net on two test devices that are joined by a cable.

What is tested is the test device: that a network which is only that can be trusted when a device of
it is suspended.
"""

import functools
import time

from net_lib import DRIVER, F, INTERFACE, cable, is_up, reload
from suspend_lib import OFFER, case, expect, require, run, sh, wait_for

# A frame of the default MTU, and what TCP puts into one.
FRAME = 1514
MSS = 1448


@functools.cache
def ends():
    return cable()


def checked(function):
    """A case of both ends, by whose devices' judgement the driver keeps the rules."""

    @functools.wraps(function)
    def wrapped(**arguments):
        one, other = ends()
        for end in (one, other):
            end.mailbox.clear()
        function(one, other, **arguments)
        for end in (one, other):
            expect(end.mailbox.objections(), [], f"violations on {end.name}")

    return wrapped


def dropped(report, direction):
    """What was dropped that should not have been."""
    counts = report[direction]
    return {k: v for k, v in counts.items() if k not in ("packets", "bytes", "filtered") and v}


def transfer(one, other, *arguments):
    """Sends TCP across, of which the devices drop nothing; returns what they say."""
    result = one.iperf(other, 2, *arguments)
    sent, received = one.report(), other.report()
    for end, report in ((one, sent), (other, received)):
        for direction in ("tx", "rx"):
            expect(dropped(report, direction), {}, f"dropped by {end.name}, {direction}")
    require(sent["tx"]["bytes"] >= result["sum_received"]["bytes"], f"{sent['tx']}")
    # On a machine that stops the guest for a while TCP sends again what is only late.
    segments = result["sum_sent"]["bytes"] / MSS
    again = result["sum_sent"]["retransmits"]
    require(again <= segments / 20, f"{again} retransmissions of {segments:.0f}, none was lost")
    return sent["tx"], received["rx"]


@case("two interfaces come up on the cable")
def interfaces():
    ends()


@case("ping goes across, both ways")
@checked
def ping(one, other):
    expect(one.ping(other), 0, "lost pings")
    expect(other.ping(one), 0, "lost pings")


@case("the driver negotiates all that is offered but SUSPEND")
@checked
def negotiation(one, other):
    for end in (one, other):
        missing = [name for name in F if not end.has(name)]
        expect(missing, [], f"not negotiated by {end.name}")
        expect([bit for bit in (42, 43) if end.negotiated() >> bit & 1], [], "SUSPEND")
        features = end.features()
        for name in ("rx-checksumming", "tx-checksumming", "tcp-segmentation-offload",
                     "rx-gro-hw", "rx-vlan-filter"):
            require(features[name], f"{name} is off")
        require("Speed: 10000Mb/s" in end.run("ethtool", INTERFACE), "the speed is another")


@case("TCP goes across as large segments, none is lost")
@checked
def large_segments(one, other):
    for counts in transfer(one, other):
        # The slower the machine, the smaller the segments.
        require(counts["bytes"] / counts["packets"] > FRAME, f"small: {counts}")


@case("large segments are cut up for a driver that can't take them")
@checked
def cut_up(one, other):
    other.ethtool("-K", "rx-gro-hw", "off")
    try:
        expect(other.report()["offloads"], hex(1 << F["GUEST_CSUM"]), "offloads")
        sent, received = transfer(one, other)
    finally:
        other.ethtool("-K", "rx-gro-hw", "on")
    require(sent["bytes"] / sent["packets"] > FRAME, f"sent: {sent}")
    require(received["bytes"] / received["packets"] <= FRAME, f"received: {received}")
    require(int(other.report()["offloads"], 16) >> F["GUEST_TSO4"] & 1, "offloads are off")


@case("several flows at a time")
@checked
def flows(one, other):
    transfer(one, other, "--parallel", "4")


@case("what is sent on a queue pair is answered on it")
@checked
def queues(one, other):
    for end in (one, other):
        expect(end.report()["pairs"], 2, f"pairs of {end.name}")
    for cpu in (0, 1):
        # Long enough for the flow to be allowed to change its pair.
        time.sleep(1)
        one.mailbox.clear()
        one.run("taskset", "-c", str(cpu), "ping", "-q", "-c", "5", "-i", "0.05", other.address)
        counters = one.mailbox.counters()
        transmit, receive = 2 * cpu + 1, 2 * cpu
        require(counters["notify"][transmit] >= 5, f"not sent on pair {cpu}: {counters}")
        require(counters["used_notifications"][receive], f"no answer on pair {cpu}: {counters}")
    other.ethtool("-L", "combined", "1")
    try:
        expect(other.report()["pairs"], 1, "pairs")
        expect(one.ping(other), 0, "lost pings")
    finally:
        other.ethtool("-L", "combined", "2")


@case("device and interface count the same")
@checked
def counts(one, other):
    before = one.link()["stats64"]
    one.mailbox.clear()
    expect(one.ping(other, count=20, interval=0.01), 0, "lost pings")
    after, report = one.link()["stats64"], one.report()
    for direction in ("tx", "rx"):
        for unit in ("packets", "bytes"):
            expect(report[direction][unit], after[direction][unit] - before[direction][unit],
                   f"{direction} {unit} of the device")


@case("the link goes down and comes up")
@checked
def link(one, other):
    one.change(link=False)
    wait_for(lambda: not is_up(one), "the link is down")
    expect(one.report()["link"], False, "link of the device")
    expect(one.ping(other, count=2), 2, "lost pings")
    # The cable is the other one's still.
    require(is_up(other), "the other end is down")
    one.change(link=True)
    wait_for(lambda: is_up(one), "the link is up")
    # The pings before may have left the resolution of the address about to fail.
    one.forget()
    expect(one.ping(other), 0, "lost pings")


@case("the driver announces itself when asked to")
@checked
def announce(one, other):
    one.change(announce=True)
    wait_for(lambda: one.report()["commands"]["announce"] == 1, "it is acknowledged")
    expect(one.report()["announce"], False, "asked for still")
    expect(one.ping(other), 0, "lost pings")


@case("receive filters reach the device")
@checked
def filters(one, other):
    filter_of = lambda: one.report()["filter"]  # noqa: E731
    expect(filter_of()["promiscuous"], False, "promiscuous")
    one.set_link("promisc", "on")
    wait_for(lambda: filter_of()["promiscuous"], "promiscuous mode")
    one.set_link("promisc", "off")
    wait_for(lambda: not filter_of()["promiscuous"], "no promiscuous mode")
    sh("ip", "-n", one.namespace, "link", "add", "link", INTERFACE, "name", "v7", "type", "vlan",
       "id", "7")
    require(7 in filter_of()["vlans"]["first"], "VLAN 7 is not received")
    sh("ip", "-n", one.namespace, "link", "delete", "v7")
    require(7 not in filter_of()["vlans"]["first"], "VLAN 7 is received still")
    mac, own = one.link()["address"], "02:00:00:00:00:77"
    one.set_link("address", own)
    try:
        expect(filter_of()["mac"], own, "address of the device")
        # To the address that is not there any more.
        before = one.report()["rx"]["filtered"]
        expect(other.ping(one, count=2), 2, "lost pings")
        require(one.report()["rx"]["filtered"] >= before + 2, "not filtered")
        other.forget()
        expect(other.ping(one), 0, "lost pings")
    finally:
        one.set_link("address", mac)
        other.forget()
    expect(other.ping(one), 0, "lost pings")


@case("{offer} offered: bit 42 is GUEST_RSC6 here, and not accepted", offer=("42", "both"))
@checked
def bit_42(one, other, offer):
    for end in (one, other):
        end.mailbox.set(offer=OFFER["draft"] if offer == "42" else offer)
    try:
        reload()
        ends.cache_clear()
        one, other = ends()
        for end in (one, other):
            require(int(end.mailbox.info()["offered"], 16) >> 42 & 1, "bit 42 is not offered")
            require(not end.negotiated() >> 42 & 1, f"{end.name}: bit 42 was accepted")
            expect(end.mailbox.info()["revision"], "none", "revision")
        expect(one.ping(other), 0, "lost pings")
    finally:
        for end in (one, other):
            end.mailbox.set(offer=OFFER["1.4"])
        reload()
        ends.cache_clear()


@case("without its driver a device is as after a reset")
@checked
def unload(one, other):
    for end in (one, other):
        end.tear_down()
    sh("modprobe", "-r", DRIVER)
    for end in (one, other):
        # Reset, and seen by the bus.
        expect(end.mailbox.info()["status"], "0x01", "status")
        expect(end.report()["waiting"], 0, "frames that wait")
        expect(end.report()["filter"]["promiscuous"], True, "as after a reset: promiscuous")
    ends.cache_clear()


if __name__ == "__main__":
    run()
