# SPDX-License-Identifier: GPL-2.0
"""Two network devices on a cable, each with a network namespace of its own.

    one, other = cable()
    one.ping(other)

The devices are test devices of type `net` (tools/virtio), which are each other's only neighbour.
"""

import contextlib
import fcntl
import json
import os
import re
import socket
import struct
import subprocess
from pathlib import Path

from suspend_lib import BUS, PROMPT, Mailbox, Skip, expect, require, sh, wait_for

DRIVER = "virtio_net"
# VIRTIO_ID_NET, as sysfs says it.
DEVICE_ID = "0x0001"
INTERFACE = "e0"
# Feature bits.
F = {
    "CSUM": 0, "GUEST_CSUM": 1, "CTRL_GUEST_OFFLOADS": 2, "MTU": 3, "MAC": 5, "GUEST_TSO4": 7,
    "GUEST_TSO6": 8, "GUEST_ECN": 9, "HOST_TSO4": 11, "HOST_TSO6": 12, "HOST_ECN": 13,
    "MRG_RXBUF": 15, "STATUS": 16, "CTRL_VQ": 17, "CTRL_RX": 18, "CTRL_VLAN": 19,
    "GUEST_ANNOUNCE": 21, "MQ": 22, "CTRL_MAC_ADDR": 23, "SPEED_DUPLEX": 63,
}
IPERF_PORT = 5201

SIOCGIFFLAGS, IFF_RUNNING = 0x8913, 0x40


def enter(namespace):
    """Has the calling thread enter a network namespace; for a child, which stays there."""
    fd = os.open(f"/run/netns/{namespace}", os.O_RDONLY)
    try:
        os.setns(fd, os.CLONE_NEWNET)
    finally:
        os.close(fd)


@contextlib.contextmanager
def inside(namespace):
    """The calling thread is in a network namespace, and so is what it starts meanwhile.

    It takes no program, as `ip netns exec` does; but /sys shows the interfaces of where it came
    from.
    """
    own = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        enter(namespace)
        yield
    finally:
        os.setns(own, os.CLONE_NEWNET)
        os.close(own)


def batch(*commands, options=()):
    """Has one program do several commands of `ip`; returns what they printed."""
    lines = "".join(" ".join(command) + "\n" for command in commands)
    return sh("ip", *options, "-batch", "-", input=lines)


class End:
    """One of the two devices, with its namespace."""

    def __init__(self, name, number):
        self.name = name
        self.path = BUS / name
        self.namespace = f"cable{number}"
        self.address = f"192.0.2.{number}"
        self.mailbox = Mailbox.of(self.path.resolve().parent)

    # The device.

    def report(self):
        """What the device says of itself."""
        return self.mailbox.command("device")["device"]

    def change(self, **change):
        """Changes the device; returns whether that has to wait for a resume."""
        return self.mailbox.command("device", set=change)["held"]

    def negotiated(self):
        return int(self.mailbox.info()["negotiated"], 16)

    def has(self, feature):
        return bool(self.negotiated() >> F[feature] & 1)

    # The interface.

    def run(self, *command, **options):
        """Runs a command in the namespace, see `inside`."""
        with inside(self.namespace):
            return sh(*command, **options)

    def start(self, *command):
        """Starts a command in the namespace, see `inside`; its output is to be read."""
        with inside(self.namespace):
            return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    def run_with_sysfs(self, *command):
        """The same with a /sys that shows the interfaces of the namespace, which takes longer."""
        return sh("ip", "netns", "exec", self.namespace, *command)

    def ip(self, *arguments):
        return json.loads(self.run("ip", "-json", *arguments) or "[]")

    def ask(self, *commands):
        """What several commands of `ip` say, one after the other."""
        with inside(self.namespace):
            text = batch(*commands, options=("-json", "-details"))
        decoder, said = json.JSONDecoder(), []
        while text := text.lstrip():
            value, end = decoder.raw_decode(text)
            said.append(value)
            text = text[end:]
        expect(len(said), len(commands), "answers of ip")
        return said

    def link(self):
        """What `ip link` says of the interface."""
        return self.ip("-statistics", "-details", "link", "show", INTERFACE)[0]

    def set_link(self, *arguments):
        self.run("ip", "link", "set", INTERFACE, *arguments)

    def transmit_errors(self):
        """The interface's counters of what was not sent, by the words of /proc/net/dev."""
        with inside(self.namespace):
            text = Path("/proc/thread-self/net/dev").read_text()
        numbers = re.search(rf"^\s*{INTERFACE}:(.*)", text, re.M)[1].split()
        return dict(zip(("errs", "drop", "fifo"), map(int, numbers[10:13])))

    def ethtool(self, option, *arguments):
        return self.run("ethtool", option, INTERFACE, *arguments)

    def features(self):
        """The interface's features, as `ethtool -k` has them: on or off."""
        lines = re.findall(r"^\s*(\S+): (on|off)", self.ethtool("-k"), re.M)
        return {name: state == "on" for name, state in lines}

    def set_up(self):
        """Puts the interface into a namespace of its own, with an address, and up."""
        names = [path.name for path in (self.path / "net").iterdir()]
        batch(
            ("netns", "add", self.namespace),
            ("link", "set", names[0], "netns", self.namespace, "name", INTERFACE),
        )
        with inside(self.namespace):
            batch(
                ("address", "add", f"{self.address}/24", "dev", INTERFACE),
                ("link", "set", INTERFACE, "up"),
            )

    def tear_down(self):
        if Path("/run/netns", self.namespace).exists():
            sh("ip", "netns", "delete", self.namespace, check=False)

    # What goes across.

    def ping(self, other, count=5, interval=0.05):
        """Pings the other end; returns how many answers are missing."""
        output = self.run("ping", "-q", "-c", str(count), "-i", str(interval), "-W", "2",
                          other.address, check=False)
        match = re.search(r"(\d+) packets transmitted, (\d+) received", output)
        require(match, f"ping says: {output}")
        return int(match[1]) - int(match[2])

    def forget(self):
        """Forgets the addresses of neighbours."""
        self.run("ip", "neighbour", "flush", "dev", INTERFACE)

    def serve(self):
        """Starts a server for one run of iperf3."""
        self.run("iperf3", "--server", "--one-off", "--daemon", "--port", str(IPERF_PORT))

        def listens():
            return f":{IPERF_PORT}" in self.run("ss", "-Hltn")

        wait_for(listens, "iperf3 listens", 5 * PROMPT)

    def iperf(self, other, seconds=2, *arguments):
        """Sends TCP to the other end for a while; returns what iperf3 says at the end."""
        other.serve()
        output = self.run("iperf3", "--client", other.address, "--port", str(IPERF_PORT),
                          "--time", str(seconds), "--json", *arguments, check=False)
        result = json.loads(output)
        require("error" not in result, f"iperf3: {result.get('error')}")
        return result["end"]


def _found():
    paths = sorted(BUS.iterdir()) if BUS.exists() else []
    names = [p.name for p in paths if (p / "device").read_text().strip() == DEVICE_ID]
    ends = [End(name, number) for number, name in enumerate(names, 1)]
    ends = [end for end in ends if end.mailbox]
    if len(ends) != 2:
        raise Skip(f"{len(ends)} test devices of type net, two on a cable are needed")
    return ends


def reload():
    """Has the driver loaded anew, and so the devices reset."""
    sh("modprobe", "-r", DRIVER)
    sh("modprobe", DRIVER)


def is_up(end):
    """The link is there, and the network stack has taken note: until then packets are dropped."""
    with inside(end.namespace), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
        answer = fcntl.ioctl(asker, SIOCGIFFLAGS, struct.pack("16sH22x", INTERFACE.encode(), 0))
    return bool(struct.unpack_from("16sH", answer)[1] & IFF_RUNNING)


def cable():
    """The two ends, set up and up."""
    ends = _found()
    if not Path(f"/sys/module/{DRIVER}").exists():
        sh("modprobe", DRIVER)
    for end in ends:
        expect((end.path / "driver").resolve().name, DRIVER, f"driver of {end.name}")
        end.tear_down()
    for end in ends:
        wait_for(lambda: any((end.path / "net").glob("*")), f"{end.name} has an interface",
                 5 * PROMPT)
        end.set_up()
    for end in ends:
        wait_for(lambda: is_up(end), f"the link of {end.name} is up", 5 * PROMPT)
    return ends
