#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""virtio_suspend and the kernel's own virtio_net: what a network notices, and what it does not.

Two network namespaces, joined by two test devices on a cable. EXT_NET_CYCLES says how often a
device is suspended under load: 25 times by default, 5 on a slow kernel.
"""

import os
import random
import time
from pathlib import Path

import suspend_lib
from ext_lib import Driver, Extended
from ext_net_lib import (
    Stream,
    configuration,
    differences,
    dropped,
    need_disciplines,
    network,
    visible,
    waiting,
)
from net_lib import INTERFACE, inside, is_up
from suspend_lib import (
    PROMPT,
    SLOWNESS,
    Child,
    Fail,
    KernelLog,
    Skip,
    case,
    expect,
    expect_errno,
    require,
    run,
    sh,
    switch_processor,
    wait_for,
)

CYCLES = int(os.environ.get("EXT_NET_CYCLES", max(5, 25 // SLOWNESS)))
# Two namespaces take long to set up, and to look into, on a busy machine.
suspend_lib.CASE_SECONDS *= 3

NEEDS_RESET = 0x40

# How long a device stays suspended under load, in seconds, and runs in between.
SUSPENDED, RUNNING = (0.0, 0.05), (0.05, 0.2)


@case("addresses, routes, neighbours, offloads and the link are the same during and after")
def same():
    with network() as (one, other):
        one.run("ip", "route", "add", "198.51.100.0/24", "via", other.address)
        one.run("ip", "address", "add", "2001:db8::1/64", "dev", INTERFACE, "nodad")
        one.run("ip", "neighbour", "add", "192.0.2.77", "lladdr", "02:00:00:00:00:77", "dev",
                INTERFACE)
        one.set_link("promisc", "on")
        expect(one.ping(other), 0, "lost pings")
        before = configuration(one)
        for _ in range(3):
            one.device.request("suspend")
            during = visible(one)
            expect(differences(during, before), {}, "differences while suspended")
            one.device.request("resume")
            wait_for(lambda: is_up(one), "the link is up")
            expect(differences(before, configuration(one)), {}, "differences")
        expect(one.ping(other), 0, "lost pings")
        require(one.report()["filter"]["promiscuous"], "the device is not promiscuous any more")


@case("no link message is sent for a suspend, and none that changes anything for a resume")
def messages():
    with network() as (one, other):
        expect(one.ping(other), 0, "lost pings")
        command = ["ip", "monitor", "link", "address", "route"]
        with one.start(*command) as monitor:
            time.sleep(0.5)
            one.device.request("suspend")
            time.sleep(2)
            one.device.request("resume")
            time.sleep(2)
            monitor.terminate()
            output = monitor.stdout.read()
        for word in ("Deleted", "NO-CARRIER", "state DOWN", "state LOWERLAYERDOWN"):
            require(word not in output, f"{word!r} in: {output}")


@case("pings wait while a device is suspended, and none is lost")
def late():
    with network() as (one, other):
        need_disciplines(one)
        expect(one.ping(other), 0, "lost pings")
        before = one.report()["tx"]["packets"]
        command = ["ping", "-q", "-i", "0.1", "-c", "30", "-W", str(int(20 * PROMPT)),
                   other.address]  # fmt: skip
        with one.start(*command) as ping:
            wait_for(lambda: one.report()["tx"]["packets"] > before, "pings are sent", 20 * PROMPT)
            one.device.request("suspend")
            wait_for(lambda: waiting(one) >= 5, "pings wait", 20 * PROMPT)
            one.device.request("resume")
            output = ping.communicate()[0]
        require(" 30 received" in output, output)


@case("TCP survives {cycles} suspends at random moments, of either end", cycles=(CYCLES,))
def tcp(cycles):
    seed = random.randrange(1 << 32)
    print(f"# seed {seed}")
    choose = random.Random(seed)
    with network() as ends:
        one, other = ends
        expect(one.ping(other), 0, "lost pings")
        before = [configuration(end) for end in ends]
        stream = Stream(one, other)
        stream.moves()
        for _ in range(cycles):
            end = choose.choice(ends)
            end.device.request("suspend")
            time.sleep(choose.uniform(*SUSPENDED))
            end.device.request("resume")
            stream.moves()
            time.sleep(choose.uniform(*RUNNING))
        stream.finish()
        print(f"# {stream.bytes} bytes")
        for end, configured in zip(ends, before):
            after = configuration(end)
            configured["neighbours"] = after["neighbours"]
            expect(differences(configured, after), {}, f"differences on {end.name}")
        expect(sum(end.device.number("suspends") for end in ends), cycles, "suspends")
        expect(sum(end.device.number("failures") for end in ends), 0, "failures")


CPU = Path("/sys/devices/system/cpu/cpu1/online")


def switch_second(_):
    """Takes the second processor off, or back."""
    if CPU.exists():
        switch_processor(CPU, "0" if CPU.read_text().strip() == "1" else "1")


# What is done to an end while it is suspended or runs. Some of it is refused while suspended.
CHANGES = (
    lambda end: end.run("tc", "qdisc", "replace", "dev", INTERFACE, "root", "fq_codel",
                        check=False),
    lambda end: end.run("tc", "qdisc", "replace", "dev", INTERFACE, "root", "mq", check=False),
    lambda end: end.run("tc", "qdisc", "replace", "dev", INTERFACE, "clsact", check=False),
    lambda end: end.run("tc", "qdisc", "delete", "dev", INTERFACE, "clsact", check=False),
    lambda end: end.set_link("txqueuelen", str(random.randrange(500, 2000))),
    lambda end: end.set_link("promisc", random.choice(("on", "off"))),
    lambda end: end.set_link("allmulticast", random.choice(("on", "off"))),
    lambda end: end.run("bridge", "fdb", "replace", "02:00:00:00:00:99", "dev", INTERFACE, "self",
                        check=False),
    lambda end: end.run("ip", "link", "add", "link", INTERFACE, "name", "v5", "type", "vlan", "id",
                        "5", check=False),
    lambda end: end.run("ip", "link", "delete", "v5", check=False),
    lambda end: end.run("ethtool", "-L", INTERFACE, "combined", random.choice("12"), check=False),
    switch_second,
)  # fmt: skip


@case("TCP survives {cycles} suspends while the network is configured, and processors go and come",
      cycles=(CYCLES if "EXT_NET_CYCLES" in os.environ else 8,))
def churn(cycles):
    seed = random.randrange(1 << 32)
    print(f"# seed {seed}")
    random.seed(seed)
    with network() as ends:
        one, other = ends
        expect(one.ping(other), 0, "lost pings")
        stream = Stream(one, other)
        stream.moves()
        try:
            for _ in range(cycles):
                end = random.choice(ends)
                end.device.request("suspend")
                random.choice(CHANGES)(end)
                time.sleep(random.uniform(*SUSPENDED))
                end.device.request("resume")
                random.choice(CHANGES)(end)
                stream.moves()
        finally:
            if CPU.exists():
                switch_processor(CPU, "1")
        stream.finish()
        print(f"# {stream.bytes} bytes")
        expect(sum(end.device.number("suspends") for end in ends), cycles, "suspends")
        for end in ends:
            expect(end.device.number("failures"), 0, f"failures of {end.name}")
            expect(dropped(end), 0, f"packets that the driver of {end.name} has dropped")
        expect(one.ping(other), 0, "lost pings")


@case("an interface is set down while its device is suspended, and up again after")
def down():
    with network() as (one, other):
        one.device.request("suspend")
        one.set_link("down")
        try:
            one.set_link("up")
        except Fail as failure:
            require("No such device" in str(failure), str(failure))
        else:
            require(False, "an interface was set up whose device is suspended")
        one.device.request("resume")
        require("UP" not in one.link()["flags"], "the interface is up")
        one.set_link("up")
        wait_for(lambda: is_up(one), "the link is up", 5 * PROMPT)
        expect(one.ping(other), 0, "lost pings")
        # One that is down can be suspended, too.
        one.set_link("down")
        one.device.request("suspend")
        one.device.request("resume")
        one.set_link("up")
        wait_for(lambda: is_up(one), "the link is up", 5 * PROMPT)
        expect(one.ping(other), 0, "lost pings")


@case("an interface is moved to another namespace while its device is suspended")
def moved():
    with network() as (one, other):
        sh("ip", "netns", "add", "elsewhere")
        try:
            one.device.request("suspend")
            one.set_link("netns", "elsewhere")
            one.device.request("resume")
            with inside("elsewhere"):
                sh("ip", "link", "set", INTERFACE, "up")
                sh("ip", "address", "add", "192.0.2.9/24", "dev", INTERFACE)
                output = sh("ping", "-q", "-c", "3", "-i", "0.2", "-W", "5", other.address)
            require(" 3 received" in output, output)
        finally:
            sh("ip", "-n", "elsewhere", "link", "set", INTERFACE, "netns", one.namespace,
               check=False)
            sh("ip", "netns", "delete", "elsewhere", check=False)


@case("what needs the device is refused while it is suspended: ethtool -K, -L, -G, mac, mtu")
def refused():
    commands = (
        ("ethtool", "-K", INTERFACE, "rx-gro-hw", "off"),
        ("ethtool", "-L", INTERFACE, "combined", "1"),
        ("ethtool", "-G", INTERFACE, "rx", "64"),
        ("ip", "link", "set", INTERFACE, "address", "02:00:00:00:00:42"),
        ("ip", "link", "set", INTERFACE, "mtu", "1400"),
    )
    with network() as (one, other):
        before = configuration(one)
        one.device.request("suspend")
        for command in commands:
            try:
                one.run(*command)
            except Fail as failure:
                require("No such device" in str(failure), str(failure))
            else:
                require(False, f"it succeeded: {command}")
        one.device.request("resume")
        wait_for(lambda: is_up(one), "the link is up")
        expect(differences(before, configuration(one)), {}, "differences")
        expect(one.ping(other), 0, "lost pings")


@case("NEEDS_RESET of a suspended interface: failed, and can be used, until it is bound again")
def broken():
    with network() as (one, _):
        device = Extended(one.name, Driver("virtio_net"))
        device.mailbox.set(faults=["needs-reset-while-suspended"])
        device.request("suspend")
        wait_for(lambda: device.status & NEEDS_RESET, "the device needs a reset")
        expect(device.refused("resume"), "EIO", "resume")
        expect(device.state, "failed", "state")
        device.mailbox.set(faults=[])
        one.link()
        one.set_link("down")
        one.set_link("up")
        one.run("ping", "-q", "-c", "1", "-W", "1", "192.0.2.77", check=False)
        device.rebind()
        device.cycle()
        device.works()


@case("promiscuous mode that is asked for while suspended reaches the device after the resume")
def promiscuous():
    with network() as (one, other):
        one.device.request("suspend")
        one.set_link("promisc", "on")
        one.device.request("resume")
        wait_for(lambda: one.report()["filter"]["promiscuous"], "the device is promiscuous",
                 5 * PROMPT)
        expect(one.ping(other), 0, "lost pings")


@case("a link that goes down while the device is suspended is down after the resume")
def link_down():
    with network() as (one, other):
        one.device.request("suspend")
        held = one.change(link=False)
        require(held, "the device did not hold the change back (V3)")
        require(is_up(one), "the link is down while the device is suspended")
        one.device.request("resume")
        wait_for(lambda: not is_up(one), "the link is down", 5 * PROMPT)
        one.change(link=True)
        wait_for(lambda: is_up(one), "the link is up", 5 * PROMPT)
        expect(one.ping(other), 0, "lost pings")


@case("what changed while suspended is seen after the resume, though its notification is lost")
def notification_lost():
    with network() as (one, other):
        one.mailbox.set(faults=["config-irq-lost"])
        one.device.request("suspend")
        require(one.change(link=False), "the device did not hold the change back (V3)")
        one.device.request("resume")
        wait_for(lambda: not is_up(one), "the link is down", 5 * PROMPT)
        one.mailbox.set(faults=[])
        one.change(link=True)
        wait_for(lambda: is_up(one), "the link is up", 5 * PROMPT)
        expect(one.ping(other), 0, "lost pings")


@case("a bridge that turns an offload off while the device is suspended does not hang")
def bridge():
    with network() as (one, other):
        one.device.request("suspend")
        # Turns LRO off, as a bridge does; a kernel can be without sysctl.
        if Path("/proc/sys/net/ipv4/ip_forward").exists():
            one.run("sysctl", "-q", "-w", "net.ipv4.ip_forward=1")
        one.run("ip", "link", "add", "br0", "type", "bridge", check=False)
        one.run("ip", "link", "set", INTERFACE, "master", "br0", check=False)
        one.run("ip", "link", "set", INTERFACE, "nomaster", check=False)
        one.device.request("resume")
        expect(one.ping(other), 0, "lost pings")


@case("the driver is unbound under load while its device is suspended")
def unbind_under_load():
    with network() as (one, other):
        stream = Stream(one, other)
        stream.moves()
        one.device.request("suspend")
        time.sleep(0.2)
        began = time.monotonic()
        one.device.unbind()
        require(time.monotonic() - began < 5 * PROMPT, "the unbind waited")
        Child.kill_all()
        one.device.bind()


@case("the system does not go to sleep while an interface is suspended that would be reset")
def sleep():
    sleep_state = Path("/sys/power/state")
    if "freeze" not in sleep_state.read_text().split():
        raise Skip("the kernel can't suspend to idle")
    with network() as (one, other):
        one.device.write("sleep", "reset")
        one.device.request("suspend")
        log = KernelLog()
        expect_errno("EBUSY", "to go to sleep", sleep_state.write_text, "freeze")
        text = "the system can't sleep while this is suspended"
        require(any(one.name in line and text in line for line in log.lines()),
                "the log does not name the device")
        expect(one.device.state, "suspended", "state")
        one.device.request("resume")
        one.device.write("sleep", "keep")
        expect(one.ping(other), 0, "lost pings")


if __name__ == "__main__":
    run()
