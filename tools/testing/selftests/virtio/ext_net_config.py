#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""virtio_suspend and the kernel's own virtio_net: what is configured while a device is suspended.

It is either refused, and nothing has changed on either side, or kept by the network stack and told
to the device after the resume. Each is looked at in the test device.
"""

import contextlib
import re
import socket
import struct
import time
from pathlib import Path

import suspend_lib
import xdp_lib
from ext_net_lib import Holder, has_module, in_child, network
from net_lib import INTERFACE, is_up
from patience_lib import SHORT_MS, TAKE_BACK
from suspend_lib import (
    FAR_MS,
    PROMPT,
    Child,
    Fail,
    KernelLog,
    case,
    expect,
    require,
    request_in_child,
    run,
    wait_for,
    within,
)

# As in ext_net.py.
suspend_lib.CASE_SECONDS *= 3

# In which what was begun is taken back, in seconds, and what a busy machine may add.
BOUND = TAKE_BACK + PROMPT / 2

# Without it the driver does not map its buffers, and has no zero-copy.
ACCESS_PLATFORM = 33
# Of packet(7).
SOL_PACKET, PACKET_ADD_MEMBERSHIP, PACKET_MR_MULTICAST = 263, 1, 0


def vlans(end):
    return end.report()["filter"]["vlans"]["first"]


def offloads(end):
    return int(end.report()["offloads"], 16)


def join(group):
    """Has an interface receive a group; returns the socket that has asked for it."""
    packet = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    index = socket.if_nametoindex(INTERFACE)
    request = struct.pack("<iHH8s", index, PACKET_MR_MULTICAST, 6, bytes.fromhex(group.replace(":", "")))
    packet.setsockopt(SOL_PACKET, PACKET_ADD_MEMBERSHIP, request)
    return packet


def refusal(device):
    """The name of the error that a suspend is told."""
    return Child(device.request, "suspend").errno(5 * PROMPT)


def refused(function, *arguments):
    """A command is refused, because the device is not there."""
    try:
        function(*arguments)
    except Fail as failure:
        require("No such device" in str(failure), str(failure))
    else:
        raise Fail(f"it succeeded: {arguments}")


@contextlib.contextmanager
def vlan(end, number):
    """The end has an interface of that VLAN."""
    has_module("8021q")
    end.run("ip", "link", "add", "link", INTERFACE, "name", f"v{number}", "type", "vlan", "id",
            str(number))
    wait_for(lambda: number in vlans(end), f"VLAN {number} is received")
    yield
    end.run("ip", "link", "delete", f"v{number}", check=False)


@case("a VLAN that is deleted while suspended is not received after the resume")
def vlan_deleted():
    with network() as (one, other), vlan(one, 5), vlan(one, 6):
        one.device.request("suspend")
        one.run("ip", "link", "delete", "v5")
        require(5 in vlans(one), "the device was told while it was suspended")
        one.device.request("resume")
        wait_for(lambda: 5 not in vlans(one), "VLAN 5 is not received any more")
        require(6 in vlans(one), "VLAN 6 is not received any more")
        expect(one.ping(other), 0, "lost pings")


@case("a VLAN of 802.1Q is deleted while suspended, and one of 802.1ad with its number is not")
def vlan_of_802_1ad():
    with network() as (one, other), vlan(one, 5), vlan(one, 6):
        for number in (5, 7):
            one.run("ip", "link", "add", "link", INTERFACE, "name", f"ad{number}", "type", "vlan",
                    "proto", "802.1ad", "id", str(number))  # fmt: skip
        before = vlans(one)
        require(7 not in before, "the device was told of a VLAN of 802.1ad")
        one.device.request("suspend")
        one.run("ip", "link", "delete", "v5")
        one.run("ip", "link", "delete", "ad7")
        killed = one.report()["commands"]
        one.device.request("resume")
        wait_for(lambda: 5 not in vlans(one), "VLAN 5 is not received any more")
        require(6 in vlans(one), "VLAN 6 is not received any more")
        told = one.report()["commands"]["vlan"] - killed["vlan"]
        expect(told, 1, "commands about VLANs")
        one.run("ip", "link", "delete", "ad5")
        expect(one.ping(other), 0, "lost pings")


@case("a VLAN that is added while suspended is refused, and can be added after the resume")
def vlan_added():
    with network() as (one, _), vlan(one, 5):
        add = ("ip", "link", "add", "link", INTERFACE, "name", "v7", "type", "vlan", "id", "7")
        one.device.request("suspend")
        refused(one.run, *add)
        # Deleted and added: the second is refused, so that the first counts.
        one.run("ip", "link", "delete", "v5")
        refused(one.run, *add[:6], "v5", "type", "vlan", "id", "5")
        one.device.request("resume")
        wait_for(lambda: 5 not in vlans(one), "VLAN 5 is not received any more")
        require(7 not in vlans(one), "VLAN 7 is received")
        one.run(*add)
        wait_for(lambda: 7 in vlans(one), "VLAN 7 is received")


@case("addresses and receive modes that are asked for while suspended are told after the resume")
def receive_modes():
    unicast, multicast = "02:00:00:00:00:99", "33:33:00:00:12:34"
    with network() as (one, _):
        table = one.report()["filter"]
        require(multicast not in table["multicast"], "the group is received already")
        one.device.request("suspend")
        holder = Holder(one, lambda: join(multicast))
        one.run("bridge", "fdb", "add", unicast, "dev", INTERFACE, "self")
        one.set_link("allmulticast", "on")
        expect(one.report()["filter"], table, "the filter while suspended")
        one.device.request("resume")

        def told():
            now = one.report()["filter"]
            return (now["all_multicast"] and multicast in now["multicast"]
                    and unicast in now["unicast"])  # fmt: skip

        wait_for(told, "the device was told", 5 * PROMPT)
        holder.kill()


@case("XDP: the holder of a link dies while suspended: the driver and the device forget it, too")
def xdp_link():
    xdp_lib.need_programs()
    with network() as (one, other):
        before = offloads(one)
        require(before, "no receive offloads were negotiated")
        holder = Holder(one, lambda: xdp_lib.attach_link(xdp_lib.load(xdp_lib.PASS), INTERFACE))
        expect(offloads(one), 0, "offloads with a program")
        one.device.request("suspend")
        holder.kill()
        wait_for(lambda: "prog" not in one.link().get("xdp", {}), "the stack has no program")
        expect(offloads(one), 0, "offloads while suspended")
        one.device.request("resume")
        wait_for(lambda: offloads(one) == before, "the device's offloads are back")
        expect(one.ping(other), 0, "lost pings")
        # The driver has really none: another one finds it as it was at first.
        holder = Holder(one, lambda: xdp_lib.attach_link(xdp_lib.load(xdp_lib.PASS), INTERFACE))
        expect(offloads(one), 0, "offloads with another program")
        holder.kill()
        wait_for(lambda: offloads(one) == before, "the device's offloads are back")


@case("XDP: attaching while suspended is refused, detaching is not: {pairs} queue pairs",
      pairs=(1, 2))
def xdp_attach(pairs):
    xdp_lib.need_programs()

    def attach():
        xdp_lib.attach(xdp_lib.load(xdp_lib.PASS), INTERFACE)

    def detach():
        xdp_lib.detach(INTERFACE)

    with network() as (one, other):
        # A program needs a queue pair for each processor, or does with those that there are.
        one.run("ethtool", "-L", INTERFACE, "combined", str(pairs))
        before = offloads(one)
        one.device.request("suspend")
        expect(in_child(one, attach), "EBUSY", "attaching")
        one.device.request("resume")
        expect(offloads(one), before, "offloads")
        expect(in_child(one, attach), "success", "attaching after the resume")
        expect(offloads(one), 0, "offloads with a program")

        one.device.request("suspend")
        expect(in_child(one, attach), "EBUSY", "replacing")
        expect(in_child(one, detach), "success", "detaching")
        expect(in_child(one, attach), "EBUSY", "attaching again")
        one.device.request("resume")
        wait_for(lambda: offloads(one) == before, "the device's offloads are back")
        expect(one.ping(other), 0, "lost pings")
        iperf = other.iperf(one, 1)
        require(iperf["sum_received"]["bytes"] > 0, "no TCP comes through")


@case("AF_XDP: with a socket that does not copy, a suspend is refused, and the other way round")
def zero_copy():
    xdp_lib.need_sockets()

    def bind():
        return xdp_lib.XdpSocket(INTERFACE, xdp_lib.ZERO_COPY)

    with network(access_platform=True) as (one, other):
        require(one.negotiated() >> ACCESS_PLATFORM & 1, "ACCESS_PLATFORM was not negotiated")
        holder = Holder(one, bind)
        for _ in range(2):
            expect(refusal(one.device), "EBUSY", "suspend")
        require("AF_XDP" in one.device.read("last_error"), one.device.read("last_error"))
        expect(one.device.state, "running", "state")
        holder.kill()
        expect(one.ping(other), 0, "lost pings")

        one.device.request("suspend")
        expect(in_child(one, bind), "EBUSY", "binding while suspended")
        one.device.request("resume")
        holder = Holder(one, bind)
        holder.kill()
        expect(one.ping(other), 0, "lost pings")


@case("AF_XDP: a socket that copies is no obstacle, and its death while suspended does no harm")
def copying():
    xdp_lib.need_sockets()

    def bind():
        return xdp_lib.XdpSocket(INTERFACE, xdp_lib.COPY)

    with network(access_platform=True) as (one, other):
        holder = Holder(one, bind)
        one.device.request("suspend")
        holder.kill()
        one.device.request("resume")
        expect(one.ping(other), 0, "lost pings")


@case("a feature that something turns off while suspended is turned off after the resume")
def features():
    xdp_lib.need_programs()

    def attach():
        xdp_lib.attach(xdp_lib.load(xdp_lib.PASS), INTERFACE, xdp_lib.GENERIC)

    with network() as (one, other):
        require(one.features()["rx-gro-hw"], "the interface has no rx-gro-hw")
        before = offloads(one)
        one.device.request("suspend")
        # Generic XDP turns it off, and warns if it is on nevertheless.
        expect(in_child(one, attach), "success", "attaching")
        expect(offloads(one), before, "offloads while suspended")
        one.device.request("resume")
        wait_for(lambda: offloads(one) != before, "the device was told")
        require(not one.features()["rx-gro-hw"], "the interface has rx-gro-hw")
        expect(one.ping(other), 0, "lost pings")


@contextlib.contextmanager
def rtnl_held(end):
    """A driver waits for its device, which does not answer, and holds RTNL."""
    end.mailbox.set(hold=True)
    before = end.mailbox.counters()["notify"]
    end.set_link("allmulticast", "on")
    control = len(before) - 1
    wait_for(lambda: end.mailbox.counters()["notify"][control] > before[control],
             "a command is under way")  # fmt: skip
    try:
        yield
    finally:
        end.mailbox.set(hold=False)


def request_is_bounded(end, error):
    """A suspend that can't be ends in time, or when it is killed, and the interface works on."""
    with within(SHORT_MS / 1000 + BOUND, "the suspend"):
        expect(Child(end.device.request, "suspend").errno(5 * PROMPT), error, "suspend")
    expect(end.device.state, "running", "state")
    end.device.write("timeout_ms", str(FAR_MS))
    child = request_in_child(end.device, "suspend")
    child.kill()
    child.wait(BOUND, "a killed request ends")
    wait_for(lambda: end.device.state == "running", "it runs")


@case("a command that the device does not answer: a suspend ends in time, and when killed")
def own_command():
    with network() as (one, other):
        one.device.write("timeout_ms", str(SHORT_MS))
        with rtnl_held(one):
            request_is_bounded(one, "ETIMEDOUT")
        wait_for(lambda: one.report()["filter"]["all_multicast"], "the command was carried out",
                 5 * PROMPT)
        one.device.write("timeout_ms", str(suspend_lib.TIMEOUT_MS))
        one.device.request("suspend")
        one.device.request("resume")
        expect(one.ping(other), 0, "lost pings")


@case("a command at a resume that the device does not answer: the resume does not wait for it")
def own_command_at_resume():
    with network() as (one, other), vlan(one, 5), vlan(one, 6):
        for number, timeout_ms in ((5, SHORT_MS), (6, FAR_MS)):
            one.device.request("suspend")
            one.run("ip", "link", "delete", f"v{number}")
            one.mailbox.set(hold=True)
            one.device.write("timeout_ms", str(timeout_ms))
            before = one.mailbox.counters()["notify"]
            control = len(before) - 1
            with within(BOUND, "the resume"):
                expect(Child(one.device.request, "resume").errno(5 * PROMPT), "success", "resume")
            expect(one.device.state, "running", "state")
            wait_for(lambda: one.mailbox.counters()["notify"][control] > before[control],
                     "a command is under way")  # fmt: skip
            require(number in vlans(one), "the device has answered")
            if timeout_ms == SHORT_MS:
                request_is_bounded(one, "ETIMEDOUT")
            one.mailbox.set(hold=False)
            wait_for(lambda: number not in vlans(one), "the device was told", 5 * PROMPT)
            one.device.write("timeout_ms", str(suspend_lib.TIMEOUT_MS))
        one.device.request("suspend")
        one.device.request("resume")
        expect(one.ping(other), 0, "lost pings")


@case("somebody else holds RTNL: a suspend ends in time, and when killed")
def rtnl_at_suspend():
    with network() as (one, other):
        one.device.write("timeout_ms", str(SHORT_MS))
        with rtnl_held(other):
            request_is_bounded(one, "ETIMEDOUT")
        one.device.write("timeout_ms", str(suspend_lib.TIMEOUT_MS))
        one.device.request("suspend")
        one.device.request("resume")
        expect(one.ping(other), 0, "lost pings")


@case("somebody else holds RTNL: a resume does not wait, and what has to is done later")
def rtnl_at_resume():
    multicast = "33:33:00:00:12:34"
    with network() as (one, other), vlan(one, 5):
        one.device.request("suspend")
        one.run("ip", "link", "delete", "v5")
        holder = Holder(one, lambda: join(multicast))
        sent = one.report()["tx"]["packets"]
        one.device.write("timeout_ms", str(SHORT_MS))
        with rtnl_held(other):
            with within(SHORT_MS / 1000 + BOUND, "the resume"):
                one.device.request("resume")
            expect(one.device.state, "running", "state")
            # It sends; what would need RTNL has not been done.
            one.run("ping", "-q", "-c", "1", "-W", "1", other.address, check=False)
            require(one.report()["tx"]["packets"] > sent, "nothing is sent")
            require(5 in vlans(one), "VLAN 5 was told without RTNL")
            # Another suspend needs it, too.
            expect(Child(one.device.request, "suspend").errno(5 * PROMPT), "ETIMEDOUT", "suspend")
        wait_for(lambda: 5 not in vlans(one), "VLAN 5 is not received any more", 5 * PROMPT)
        wait_for(lambda: multicast in one.report()["filter"]["multicast"], "the group is received",
                 5 * PROMPT)
        holder.kill()
        one.device.write("timeout_ms", str(suspend_lib.TIMEOUT_MS))
        one.device.request("suspend")
        one.device.request("resume")
        expect(one.ping(other), 0, "lost pings")


@case("somebody else holds RTNL: a resume that waits for it ends when killed, and the device runs")
def rtnl_at_killed_resume():
    with network() as (one, other), vlan(one, 5):
        one.device.write("timeout_ms", str(FAR_MS))
        one.device.request("suspend")
        one.run("ip", "link", "delete", "v5")
        with rtnl_held(other):
            child = Child(one.device.request, "resume")
            # The device goes on at once: what is waited for then is RTNL, for a moment.
            wait_for(lambda: one.mailbox.info()["state"] == "running", "the device is resumed")
            with within(BOUND, "the end of a killed resume"):
                child.kill()
                child.wait(5 * PROMPT, "a killed resume ends")
            expect(one.device.state, "running", "state")
            require(5 in vlans(one), "VLAN 5 was told without RTNL")
        wait_for(lambda: 5 not in vlans(one), "VLAN 5 is not received any more", 5 * PROMPT)
        one.device.write("timeout_ms", str(suspend_lib.TIMEOUT_MS))
        one.device.request("suspend")
        one.device.request("resume")
        expect(one.ping(other), 0, "lost pings")


@case("a suspend right after such a resume takes up what is left to be told")
def rtnl_then_suspend():
    with network() as (one, other), vlan(one, 5), vlan(one, 6):
        one.device.request("suspend")
        one.run("ip", "link", "delete", "v5")
        with rtnl_held(other):
            one.device.request("resume")
            child = request_in_child(one.device, "suspend")
        expect(child.errno(5 * PROMPT), "success", "suspend")
        one.run("ip", "link", "delete", "v6")
        one.device.request("resume")
        wait_for(lambda: not {5, 6} & set(vlans(one)), "neither VLAN is received any more")
        expect(one.ping(other), 0, "lost pings")


@case("the driver of a device that does not resume is unbound: nothing is left, and no one waits")
def unbound():
    xdp_lib.need_programs()
    with network() as (one, other), vlan(one, 5):
        holder = Holder(one, lambda: xdp_lib.attach_link(xdp_lib.load(xdp_lib.PASS), INTERFACE))
        one.device.request("suspend")
        one.run("ip", "link", "delete", "v5")
        holder.kill()
        one.mailbox.set(faults=["resume-never"])
        with within(1 + 5 * BOUND, "the unbind"):
            one.device.unbind()
        one.mailbox.set(faults=[])
        one.device.bind()
        one.tear_down()
        wait_for(lambda: any((one.path / "net").glob("*")), "there is an interface", 5 * PROMPT)
        one.set_up()
        wait_for(lambda: is_up(one), "the link is up", 5 * PROMPT)
        one.device.request("suspend")
        one.device.request("resume")
        wait_for(lambda: one.ping(other, 1) == 0, "the other end answers", 20 * PROMPT)


@case("an announcement that is asked for while suspended is acknowledged after the resume")
def announce():
    with network() as (one, other):
        before = one.report()["commands"]["announce"]
        one.device.request("suspend")
        require(one.change(announce=True), "the device did not hold the change back (V3)")
        one.device.request("resume")
        wait_for(lambda: one.report()["commands"]["announce"] > before, "it is acknowledged",
                 5 * PROMPT)
        require(not one.report()["announce"], "the device still asks")
        expect(one.ping(other), 0, "lost pings")


@case("an announcement that the device has not answered: a suspend waits, and no answer is late")
def announce_outstanding():
    with network() as (one, other):
        log = KernelLog()
        one.mailbox.set(hold=True)
        before = one.mailbox.counters()["notify"]
        one.change(announce=True)
        control = len(before) - 1
        wait_for(lambda: one.mailbox.counters()["notify"][control] > before[control],
                 "a command is under way")  # fmt: skip
        child = request_in_child(one.device, "suspend")
        time.sleep(0.2)
        require(child.poll() is None, "the suspend did not wait for the answer")
        one.mailbox.set(hold=False)
        expect(child.errno(5 * PROMPT), "success", "suspend")
        one.device.request("resume")
        expect(one.report()["commands"]["announce"], 1, "acknowledged announcements")
        # The next answers are to the next commands.
        for state in ("on", "off", "on"):
            one.set_link("allmulticast", state)
            wait_for(lambda: one.report()["filter"]["all_multicast"] == (state == "on"),
                     "the device was told", 5 * PROMPT)  # fmt: skip
        one.run("ethtool", "-L", INTERFACE, "combined", "1")
        one.run("ethtool", "-L", INTERFACE, "combined", "2")
        expect([line for line in log.lines() if "Failed to" in line], [], "failed commands")
        expect(one.ping(other), 0, "lost pings")


@case("every receive queue is polled after the resume, whether something was received or not")
def polled():
    tracing = Path("/sys/kernel/tracing")
    enable = tracing / "events/napi/napi_poll/enable"
    if not enable.exists():
        raise Skip("polls can't be traced")
    with network() as (one, other):
        # Nothing is on its way that would be a reason to poll, neither received nor sent.
        other.set_link("down")
        one.device.request("suspend")
        one.device.request("resume")
        time.sleep(0.2)
        one.device.request("suspend")
        (tracing / "trace").write_text("")
        enable.write_text("1")
        try:
            one.device.request("resume")
            wait_for(lambda: polls(tracing) >= 2, "both receive queues are polled")
        finally:
            enable.write_text("0")


def polls(tracing):
    """How many different receive queues of an interface have been polled."""
    text = (tracing / "trace").read_text()
    found = re.findall(rf"napi poll on napi struct (\S+) for device {INTERFACE} ", text)
    return len(set(found))


if __name__ == "__main__":
    run()
