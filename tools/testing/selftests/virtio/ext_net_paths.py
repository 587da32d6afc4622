#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""virtio_suspend and the kernel's own virtio_net: every way by which a packet gets to the driver.

While a device is suspended, what a queueing discipline keeps is kept, whatever happens to the
disciplines; where a packet can't wait, whoever sends it is told. The driver gets none.
"""

import contextlib
import errno
import os
import re
import socket
import struct
import time
from pathlib import Path

import suspend_lib
import xdp_lib
from ext_net_lib import (
    Holder,
    dropped,
    has_module,
    in_child,
    need_disciplines,
    network,
    udp_at,
    waiting,
)
from net_lib import INTERFACE, enter, is_up
from suspend_lib import (
    PROMPT,
    Child,
    Fail,
    case,
    errno_name,
    expect,
    require,
    run,
    sh,
    wait_for,
)

# As in ext_net.py.
suspend_lib.CASE_SECONDS *= 3

PACKETS = 20
# Of an experimental protocol, and a broadcast.
FRAME = b"\xff" * 6 + b"\x02" + bytes(5) + b"\x88\xb5" + bytes(46)
SOL_PACKET, PACKET_QDISC_BYPASS = 263, 20
SO_SNDBUFFORCE, SO_BUSY_POLL, SO_INCOMING_NAPI_ID = 32, 46, 56
PORT = 7000
# Ends of a pair of virtual interfaces whose packets are sent on to the suspended interface.
INNER, OUTER = "in0", "out0"
NETCONSOLE = Path("/sys/kernel/config/netconsole/kselftest")


class Pings:
    """Pings of one end to the other, which go on in the background."""

    def __init__(self, one, other, count=PACKETS, interface=INTERFACE):
        self._count = count
        # On a slow machine the neighbour would be taken for dead before it is asked.
        one.run("ip", "neighbour", "replace", other.address, "lladdr", other.link()["address"],
                "dev", interface, "nud", "permanent")  # fmt: skip
        command = ["ping", "-q", "-i", "0.05", "-c", str(count), "-W", str(int(5 * PROMPT)),
                   other.address]  # fmt: skip
        self._process = one.start(*command)

    def wait_in(self, end):
        """Waits until they wait in the queueing disciplines of an end, as many as ping lets."""
        wait_for(lambda: waiting(end) >= self._count // 2, "the pings wait", 5 * PROMPT)

    def lost(self):
        """Waits for the end; returns how many answers are missing."""
        output = self._process.communicate()[0]
        match = re.search(r"(\d+) received", output)
        require(match, f"ping says: {output}")
        return self._count - int(match[1])


def sent(end):
    return end.report()["tx"]["packets"]


# What is done to an interface while its device is suspended; the words of `tc` or `ip link set`.
CHANGES = (
    ("qdisc", "replace", "root", "pfifo"),
    ("qdisc", "replace", "root", "fq_codel"),
    ("qdisc", "replace", "root", "mq"),
    ("qdisc", "add", "clsact"),
    ("txqueuelen", "500"),
    (),
)


@case("nothing is lost that is sent while suspended, whatever becomes of the queueing disciplines")
def disciplines():
    with network() as (one, other):
        need_disciplines(one)
        expect(one.ping(other), 0, "lost pings")
        for change in CHANGES:
            one.device.request("suspend")
            before = sent(one)
            if change[:1] == ("qdisc",):
                one.run("tc", *change[:2], "dev", INTERFACE, *change[2:])
            elif change:
                one.set_link(*change)
            pings = Pings(one, other)
            pings.wait_in(one)
            expect(sent(one), before, f"packets that the device has sent, {change}")
            one.device.request("resume")
            expect(pings.lost(), 0, f"lost pings, {change}")
            expect(dropped(one), 0, f"dropped packets, {change}")


@case("nothing is lost while disciplines change again and again, across suspends")
def disciplines_under_load():
    with network() as (one, other):
        need_disciplines(one)
        for discipline in ("clsact", "fq_codel", "pfifo"):
            parent = () if discipline == "clsact" else ("root",)
            one.run("tc", "qdisc", "replace", "dev", INTERFACE, *parent, discipline)
            expect(one.ping(other), 0, "lost pings")
            before = one.transmit_errors()["drop"]
            pings = Pings(one, other)
            for length in (500, 600):
                one.device.request("suspend")
                one.set_link("txqueuelen", str(length))
                time.sleep(0.2)
                one.device.request("resume")
            lost = pings.lost()
            # While it deactivates an interface the stack itself drops what is sent, and counts it.
            own = one.transmit_errors()["drop"] - before
            require(lost <= own, f"lost pings, {discipline}: {lost}, {own} by the stack itself")
            expect(dropped(one), 0, f"dropped packets, {discipline}")


@case("without a queueing discipline the sender is told while suspended, and nothing is sent")
def told():
    def bypass():
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as packet:
            packet.bind((INTERFACE, 0))
            packet.setsockopt(SOL_PACKET, PACKET_QDISC_BYPASS, 1)
            packet.send(FRAME)

    def udp():
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            udp.sendto(b"x", (other.address, 9))

    with network() as (one, other):
        need_disciplines(one)
        for send, error in ((bypass, errno.ENOBUFS), (udp, errno.ENETDOWN)):
            if send == udp:
                one.run("tc", "qdisc", "replace", "dev", INTERFACE, "root", "noqueue")
            expect(one.ping(other), 0, "lost pings")
            one.device.request("suspend")
            before = sent(one)
            for _ in range(3):
                expect(in_child(one, send), errno_name(error), "sending")
            expect(sent(one), before, "packets that the device has sent")
            expect(dropped(one), 0, "packets that the driver has dropped")
            one.device.request("resume")
            expect(in_child(one, send), "success", "sending after the resume")
            wait_for(lambda: sent(one) > before, "the device has sent it")
            # Those who look for a neighbour have been told the same, and try again.
            wait_for(lambda: one.ping(other) == 0, "no ping is lost", 20 * PROMPT)


def send_inside(end, count):
    """Sends frames into the pair of virtual interfaces."""

    def body():
        enter(end.namespace)
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as packet:
            packet.bind((INNER, 0))
            for _ in range(count):
                packet.send(FRAME)

    expect(Child(body).errno(5 * PROMPT), "success", "sending")


def pair(end):
    has_module("veth")
    end.run("ip", "link", "add", INNER, "type", "veth", "peer", "name", OUTER)
    for name in (INNER, OUTER):
        end.run("ip", "link", "set", name, "up")
    wait_for(lambda: "LOWER_UP" in end.ip("link", "show", INNER)[0]["flags"], "the pair is up")


@case("what is redirected to a suspended interface does not reach the driver: {how}",
      how=("XDP", "mirred"))
def redirected(how):
    if how == "XDP":
        xdp_lib.need_programs()
    with network() as (one, other):
        pair(one)
        holders = []
        if how == "XDP":
            # A driver takes frames only while it has a program itself, and so does veth.
            index = one.link()["ifindex"]
            program = xdp_lib.redirect_to(index)
            holders = [
                Holder(one, lambda: xdp_lib.attach_link(xdp_lib.load(xdp_lib.PASS), INTERFACE)),
                Holder(one, lambda: xdp_lib.attach_link(xdp_lib.load(program), OUTER)),
            ]
        else:
            has_module("act_mirred")
            has_module("cls_matchall")
            one.run("tc", "qdisc", "add", "dev", OUTER, "clsact")
            one.run("tc", "filter", "add", "dev", OUTER, "ingress", "matchall", "action",
                    "mirred", "egress", "redirect", "dev", INTERFACE)  # fmt: skip
        expect(one.ping(other), 0, "lost pings")
        before = sent(one)
        send_inside(one, 5)
        wait_for(lambda: sent(one) >= before + 5, "they are sent")

        one.device.request("suspend")
        # What the network stack sends by itself may have come first.
        before = sent(one)
        send_inside(one, 5)
        time.sleep(0.2)
        expect(sent(one), before, "packets that the device has sent")
        expect(dropped(one), 0, "packets that the driver has dropped")
        one.device.request("resume")
        if how == "mirred":
            # They have waited in the queueing discipline.
            wait_for(lambda: sent(one) >= before + 5, "they are sent")
        before = sent(one)
        send_inside(one, 5)
        wait_for(lambda: sent(one) >= before + 5, "they are sent")
        expect(one.ping(other), 0, "lost pings")
        for holder in holders:
            holder.kill()


@case("nothing is lost by a suspended port of a {kind}", kind=("bridge", "bond"))
def port(kind):
    has_module({"bridge": "bridge", "bond": "bonding"}[kind])
    options = {"bridge": (), "bond": ("mode", "active-backup", "miimon", "50")}[kind]
    with network() as (one, other):
        need_disciplines(one)
        one.run("ip", "link", "add", "up0", "type", kind, *options)
        address = f"{one.address}/24"
        one.run("ip", "address", "delete", address, "dev", INTERFACE)
        if kind == "bond":
            one.set_link("down")
        one.set_link("master", "up0")
        one.set_link("up")
        one.run("ip", "link", "set", "up0", "up")
        one.run("ip", "address", "add", address, "dev", "up0")
        wait_for(lambda: is_up(one), "the port is up", 5 * PROMPT)
        # A bridge may learn first.
        wait_for(lambda: one.ping(other, 1) == 0, "the other end answers", 20 * PROMPT)
        one.device.request("suspend")
        before = sent(one)
        pings = Pings(one, other, interface="up0")
        pings.wait_in(one)
        expect(sent(one), before, "packets that the device has sent")
        upper = one.ip("link", "show", "up0")[0]
        require("LOWER_UP" in upper["flags"], "the upper interface has lost its carrier")
        one.device.request("resume")
        expect(pings.lost(), 0, "lost pings")
        expect(dropped(one), 0, "dropped packets")
        one.run("ip", "link", "delete", "up0")


def logger(one, other):
    """What sets up netconsole from one end to the other; for a child in the namespace of the one."""
    address = other.link()["address"]
    settings = (
        ("dev_name", INTERFACE),
        ("local_ip", one.address),
        ("remote_ip", other.address),
        ("remote_port", str(PORT)),
        ("remote_mac", address),
        ("enabled", "1"),
    )

    def set_up():
        NETCONSOLE.mkdir()
        for name, value in settings:
            (NETCONSOLE / name).write_text(value)

    return set_up


def said(text):
    """Logs a text, which is received if the interface sends; nothing else is waited for."""
    Path("/dev/kmsg").write_text(f"<0>netconsole: {text}\n")


@contextlib.contextmanager
def logging_network():
    """A network of which one end sends the kernel's log to the other; with it, what waits there
    until a text has come.
    """
    has_module("netconsole")
    if not NETCONSOLE.parent.exists():
        sh("mount", "-t", "configfs", "none", "/sys/kernel/config")
    with network() as (one, other), udp_at(other, PORT) as receiver:
        expect(one.ping(other), 0, "lost pings")
        receiver.settimeout(20 * PROMPT)

        def heard(text):
            try:
                while text.encode() not in receiver.recv(4096):
                    pass
            except TimeoutError:
                raise Fail(f"the log has not come: {text}") from None

        try:
            expect(in_child(one, logger(one, other)), "success", "setting up netconsole")
            said("before")
            heard("before")
            yield one, other, heard
        finally:
            if NETCONSOLE.exists():
                NETCONSOLE.rmdir()
        expect(one.ping(other), 0, "lost pings")
        expect(dropped(one), 0, "dropped packets")


@case("netconsole does not wait for a suspended interface, and sends again after the resume")
def netconsole():
    with logging_network() as (one, _, heard):
        one.device.request("suspend")
        before = sent(one)
        began = time.monotonic()
        for number in range(20):
            said(f"while suspended {number}")
        require(time.monotonic() - began < 5 * PROMPT, "the log waits for the interface")
        expect(sent(one), before, "packets that the device has sent")
        one.device.request("resume")
        said("after")
        heard("after")


@case("what is to be said of a resume is logged when the interface can send that")
def netconsole_quirk():
    levels = Path("/proc/sys/kernel/printk")
    before = levels.read_text()
    with logging_network() as (one, _, heard):
        # So that the one line is the first of its kind.
        expect(one.device.number("quirks"), 0, "quirks")
        levels.write_text("7")
        try:
            one.device.request("suspend")
            # It does not resume at once when it is asked like that.
            one.mailbox.set(faults=["resume-needs-clear"], delay_resume_ms=500)
            one.device.request("resume")
            expect(one.device.number("quirks"), 1, "quirks")
            heard("does not resume unless")
        finally:
            levels.write_text(before)
            one.mailbox.set(faults=[], delay_resume_ms=0)


@case("a transmit queue that the driver has stopped stays stopped until there is room")
def full():
    limits = f"/sys/class/net/{INTERFACE}/queues/tx-0/byte_queue_limits"

    def in_ring():
        """How many bytes the driver has put into the virtqueue, and not got back."""
        return int(one.run_with_sysfs("cat", f"{limits}/inflight"))

    with network() as (one, other):
        need_disciplines(one)
        one.run("ethtool", "-L", INTERFACE, "combined", "1")
        # It is the driver that is to stop the queue, not these.
        one.run_with_sysfs("sh", "-c", f"echo 1000000 >{limits}/limit_min")
        expect(one.ping(other), 0, "lost pings")
        before = sent(one)
        # The device takes nothing from the ring until it has been resumed, and finishes nothing of
        # it then: there is no room for more before and after.
        one.mailbox.set(faults=["avail-left"])

        def flood():
            with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as packet:
                packet.bind((INTERFACE, 0))
                # It does not wait for what has been sent before.
                packet.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, 1 << 22)
                for _ in range(600):
                    packet.send(FRAME)

        expect(in_child(one, flood), "success", "sending")
        require(waiting(one) >= 100, f"{waiting(one)} packets wait: the queue is not full")
        full = in_ring()
        require(full >= 150 * len(FRAME), f"{full} bytes are in the virtqueue: it is not full")
        one.device.request("suspend")
        one.mailbox.set(hold=True)
        # That also waits a moment for the receive modes to be told, which the device holds, too.
        one.device.request("resume")
        expect(in_ring(), full, "bytes in the virtqueue")
        expect(sent(one), before, "packets that the device has sent")
        one.mailbox.set(hold=False, faults=[])
        wait_for(lambda: sent(one) >= before + 600, "all of them are sent", 10 * PROMPT)
        expect(dropped(one), 0, "dropped packets")
        expect(one.ping(other), 0, "lost pings")


@case("a program that polls the driver, which wakes the transmit queue, does not have it send")
def busy_poll():
    def poll(report):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            udp.setsockopt(socket.SOL_SOCKET, SO_BUSY_POLL, 20_000)
            udp.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("<qq", 0, 100_000))
            udp.bind((one.address, PORT))
            os.write(report, b"b")
            while not udp.getsockopt(socket.SOL_SOCKET, SO_INCOMING_NAPI_ID):
                with contextlib.suppress(BlockingIOError):
                    udp.recv(1)
            os.write(report, b"n")
            while True:
                with contextlib.suppress(BlockingIOError):
                    udp.recv(1)

    def send():
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            udp.sendto(b"x", (one.address, PORT))

    with network() as (one, other):
        need_disciplines(one)
        expect(one.ping(other), 0, "lost pings")
        reader, writer = os.pipe()

        def body():
            enter(one.namespace)
            poll(writer)

        poller = Child(body)
        os.close(writer)
        expect(os.read(reader, 1), b"b", "the poller")
        expect(in_child(other, send), "success", "sending")
        expect(os.read(reader, 1), b"n", "the poller")
        one.device.request("suspend")
        before = sent(one)
        pings = Pings(one, other)
        pings.wait_in(one)
        expect(sent(one), before, "packets that the device has sent")
        require(poller.poll() is None, "the poller has ended")
        poller.kill()
        poller.wait(5 * PROMPT)
        one.device.request("resume")
        expect(pings.lost(), 0, "lost pings")
        expect(dropped(one), 0, "dropped packets")


if __name__ == "__main__":
    run()
