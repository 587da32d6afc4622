# SPDX-License-Identifier: GPL-2.0
"""What the tests with QEMU's own devices have in common.

    with extended("virtio_blk") as disks, judged(virtio_blk=1):
        disks["disk0"].request("suspend")
        hop()
        disks["disk0"].request("resume")

Somebody has to do what is asked of QEMU: to move the guest to another QEMU, for one. Who does so
reads the terminal that SUSPEND_WAKER names, and answers there (tools/virtio/lab, migrate.rs).
Without it all is skipped. QEMU's devices have ids, by which they are named here, and a judge of the
driver (x-suspend-judge=on), whose counts have to be 0.
"""

import contextlib
import functools
import json
import os
import select
import socket
import termios
import time
from pathlib import Path

import ext_lib
import suspend_lib
from ext_lib import Driver
from ext_net_lib import Stream
from net_lib import End, is_up
from suspend_lib import (
    BUS,
    PROMPT,
    SHARE,
    SLOWNESS,
    TIMEOUT_MS,
    Child,
    Device,
    Fail,
    expect,
    require,
    sh,
    skip_all,
    wait_for,
)

TYPES = {"virtio_net": 1, "virtio_blk": 2, "virtio_rng": 4, "virtio_scsi": 8}
# A disk that offers no SUSPEND.
PLAIN = "disk2"
MACS = {f"52:54:00:00:00:0{number}": f"net{number}" for number in range(3)}
# The host, as QEMU's network shows it, and the guest's address there.
GATEWAY, ADDRESS = "10.0.2.2", "10.0.2.15"
# A guest is moved, or written to a disk.
LONG = 60.0 * SLOWNESS * SHARE

# For so long after a hop QEMU asks the guest to announce itself (five times, the last one after 1.25 s),
# and so long does an interface take that has been resumed for it.
ANNOUNCING, RESUMED = 2.5 * SLOWNESS * SHARE, 0.5 * SLOWNESS * SHARE
# When the guest was moved for the last time, in a case.
_moved = None

# A case moves its guest several times.
suspend_lib.CASE_SECONDS *= 6


# Whoever is asked.


@functools.cache
def _terminal():
    """What is answered there is for us, whole, and not shown."""
    fd = os.open(os.environ["SUSPEND_WAKER"], os.O_RDWR | os.O_NOCTTY)
    attributes = termios.tcgetattr(fd)
    attributes[0] &= ~(termios.ICRNL | termios.IXON)
    attributes[3] &= ~(termios.ICANON | termios.ECHO | termios.ISIG)
    termios.tcsetattr(fd, termios.TCSANOW, attributes)
    return fd


class Refused(Fail):
    """QEMU, or who asks it, has said no."""


def ask(what, within=LONG, **arguments):
    """Asks for something, and returns the answer."""
    terminal = _terminal()
    # An answer that came too late for who asked.
    termios.tcflush(terminal, termios.TCIFLUSH)
    request = json.dumps({what: arguments})
    os.write(terminal, f"# # qemu: {request}\n".encode())
    answer = b""
    end = time.monotonic() + within
    while not answer.endswith(b"\n"):
        ready = select.select([terminal], [], [], max(0, end - time.monotonic()))[0]
        require(ready, f"no answer to {request} within {within} s")
        answer += os.read(terminal, 4096)
    answer = json.loads(answer)
    if "error" in answer:
        raise Refused(f"{request}: {answer['error']}")
    return answer["return"]


def qmp(command, **arguments):
    arguments = {name.replace("_", "-"): value for name, value in arguments.items()}
    return ask("qmp", command=command, arguments=arguments)


def status():
    """What QEMU says of each device, and how many it has suspended, by their type."""
    return ask("status")


def suspended():
    """The devices that are suspended, says QEMU."""
    found = status()["devices"]
    return {name for name, device in found.items() if device["suspended"]}


def no_violations(told=None):
    """The judge is there, and has nothing against the driver."""
    devices = (told or status())["devices"]
    require(devices, "QEMU has no device")
    for name, device in devices.items():
        require(device["violations"] is not None, f"nobody judges {name}")
        broken = {rule: count for rule, count in device["violations"].items() if count}
        expect(broken, {}, f"violations on {name}, by QEMU's judge")


@contextlib.contextmanager
def judged(**suspends):
    """Nothing is done against the rules, and QEMU suspends devices so often, by their driver."""
    before = status()["suspends"]
    no_violations()
    yield
    told = status()
    no_violations(told)
    for driver, count in suspends.items():
        name = driver.replace("_", "-")
        expect(told["suspends"].get(name, 0) - before.get(name, 0), count, f"suspends of {name}")


def hop(**how):
    """The guest goes on in another QEMU, whose judge begins anew."""
    global _moved
    no_violations()
    told = ask("hop", **how)
    _moved = time.monotonic()
    return told


def _announced():
    """QEMU has had the guest announce itself after the last hop, and each interface has done so.

    Until then no interface is closed: virtio_net of Linux 7.3 does that with RTNL held, and waits for
    its work, which waits for RTNL to announce it.
    """
    global _moved
    if _moved is not None:
        time.sleep(max(_moved + ANNOUNCING - time.monotonic(), RESUMED))
        _moved = None


# Devices and drivers.


def _of_type(number):
    paths = sorted(BUS.iterdir()) if BUS.exists() else []
    return [path.name for path in paths if int((path / "device").read_text(), 16) == number]


def _id_of(name):
    """By which QEMU knows a device that has a driver; None if that can't be told yet."""
    path = BUS / name
    if name in _of_type(TYPES["virtio_rng"]):
        return "rng0"
    if name in _of_type(TYPES["virtio_scsi"]):
        return "scsi0"
    for serial in path.glob("block/*/serial"):
        return serial.read_text().strip()
    for address in path.glob("net/*/address"):
        return MACS.get(address.read_text().strip())
    return None


def _bound(driver):
    """The devices of a driver by their ids, when all can be suspended and are known."""
    found = {}
    for name in _of_type(TYPES[driver]):
        known = _id_of(name)
        if known is None or (known != PLAIN and not (BUS / name / "suspend/state").exists()):
            return None
        found[known] = Device(name)
    found.pop(PLAIN, None)
    return found


def _all(driver):
    found = wait_for(lambda: _bound(driver), f"the devices of {driver}", 10 * PROMPT)
    for dev in found.values():
        dev.write("timeout_ms", str(4 * TIMEOUT_MS))
        expect(dev.read("revision"), "1.4", f"revision of {dev.name}")
    return found


@contextlib.contextmanager
def extended(*names):
    """Devices of the kernel's own drivers by their ids, with virtio_suspend."""
    drivers = [Driver(name) for name in names]
    for driver in drivers:
        driver.unload()
    ext_lib.load()
    try:
        found = {}
        for driver in drivers:
            driver.load()
            found |= _all(driver.name)
        yield found
    finally:
        ext_lib._resume_all()
        Child.kill_all()
        for driver in drivers:
            driver.unload()
        expect(ext_lib.unload(), "success", "unloading the extension")


@contextlib.contextmanager
def native():
    """Our disks by their ids, and our source of entropy."""
    suspend_lib.modules.want_block = True
    try:
        suspend_lib.modules.load()
        yield _all("virtio_blk") | {"rng0": entropy()}
    finally:
        ext_lib._resume_all()
        Child.kill_all()
        suspend_lib.modules.want_block = False
        suspend_lib.modules.remove(suspend_lib.modules.BLOCK)


def entropy():
    dev = Device(_of_type(TYPES["virtio_rng"])[0])
    dev.write("timeout_ms", str(4 * TIMEOUT_MS))
    return dev


def plain():
    """The disk that offers no SUSPEND."""
    return next(Device(name) for name in _of_type(TYPES["virtio_blk"]) if _id_of(name) == PLAIN)


def path_of(disk):
    return f"/dev/{next((disk.path / 'block').iterdir()).name}"


def size_of(disk):
    """In bytes."""
    return 512 * int((Path("/sys/block") / Path(path_of(disk)).name / "size").read_text())


def suspend_all(devices):
    for dev in devices.values():
        dev.request("suspend")
    for name, dev in devices.items():
        expect(dev.state, "suspended", f"state of {name}")
    expect(suspended(), set(devices), "what is suspended, says QEMU")


def resume_all(devices):
    for dev in devices.values():
        dev.request("resume")
    for name, dev in devices.items():
        expect(dev.state, "running", f"state of {name}")
    expect(suspended(), set(), "what is suspended, says QEMU")


def in_one_go(devices, goal):
    """Asks all devices at the same time, each from a process of its own."""
    wait, go = os.pipe()

    def body(dev):
        os.close(go)
        os.read(wait, 1)
        dev.request(goal)

    children = {name: Child(body, dev) for name, dev in devices.items()}
    os.close(go)
    os.close(wait)
    for name, child in children.items():
        expect(child.errno(10 * PROMPT, f"{goal} of {name} ends"), "success", f"{goal} of {name}")


def no_failures(devices):
    for name, dev in devices.items():
        expect(dev.number("failures"), 0, f"failures of {name}")
        expect(dev.number("recoveries"), 0, f"recoveries of {name}")


# The network.


def reach_each_other(ends):
    """Waits until both ends of the cable know where the other one is."""
    one, other = ends
    wait_for(lambda: one.ping(other, count=1) == 0, "the cable carries something", 10 * PROMPT)


@contextlib.contextmanager
def cable(devices):
    """The ends of the cable, each in a network namespace of its own."""
    ends = [End(devices[f"net{number}"].name, number) for number in (1, 2)]
    for end in ends:
        end.tear_down()
    try:
        for end in ends:
            end.set_up()
        for end in ends:
            wait_for(lambda: is_up(end), f"the link of {end.name} is up", 10 * PROMPT)
        reach_each_other(ends)
        yield ends
    finally:
        ext_lib._resume_all()
        _announced()
        # Whoever is in a namespace keeps it.
        Child.kill_all()
        for end in ends:
            end.tear_down()
        # The interfaces come back from their namespaces. If they do not, something else failed.
        with contextlib.suppress(Fail):
            wait_for(lambda: _bound("virtio_net"), "the interfaces are back", 10 * PROMPT)


def connect(devices):
    """Gives the guest its address in QEMU's network."""
    interface = next((devices["net0"].path / "net").iterdir()).name
    sh("ip", "address", "add", f"{ADDRESS}/24", "dev", interface)
    sh("ip", "link", "set", interface, "up")
    wait_for(lambda: missing(1) == 0, "the host answers", 10 * PROMPT)


def missing(count=3):
    """Pings the host; returns how many answers are missing."""
    output = sh("ping", "-q", "-c", str(count), "-i", "0.1", "-W", "5", GATEWAY, check=False)
    words = output.partition(" packets transmitted, ")
    require(words[1], f"ping says: {output}")
    return count - int(words[2].split()[0])


class Echo:
    """A TCP connection to a server on the host that returns what it is sent, which is verified."""

    SIZE = 1 << 14

    def __init__(self):
        self._progress, writer = os.pipe()
        self._over, over = os.pipe()
        port = ask("server")

        def body():
            with socket.create_connection((GATEWAY, port)) as connection:
                while not select.select([self._over], [], [], 0)[0]:
                    data = os.urandom(self.SIZE)
                    connection.sendall(data)
                    back = b""
                    while len(back) < len(data):
                        more = connection.recv(len(data) - len(back))
                        require(more, "the connection ended")
                        back += more
                    if back != data:
                        os._exit(200)
                    os.write(writer, b"e")

        self._child = Child(body)
        os.close(writer)
        self._end = over
        self.bytes = 0

    def moves(self):
        """Waits until some more has been verified."""
        ready = select.select([self._progress], [], [], 20 * PROMPT)[0]
        data = os.read(self._progress, 1 << 16) if ready else b""
        require(data, f"nothing comes back; the child: {self._child.poll()}")
        self.bytes += len(data) * self.SIZE

    def finish(self):
        os.write(self._end, b"o")
        expect(self._child.wait(20 * PROMPT, "the child ends"), 0, "the child's status")
        for fd in (self._progress, self._over, self._end):
            os.close(fd)


def stream(ends):
    """A TCP connection over the cable, verified."""
    return Stream(*ends)


def run():
    """Runs the cases, if there is somebody to ask."""
    if "SUSPEND_WAKER" not in os.environ:
        skip_all("nobody to ask: SUSPEND_WAKER is not set")
    try:
        ask("status", within=10 * PROMPT)
    except Fail as failure:
        skip_all(f"nobody to ask: {failure}")
    if not Path("/sys/bus/pci").exists() or not any(Path("/sys/bus/pci/devices").iterdir()):
        sh("modprobe", "virtio_mmio")
    suspend_lib.run()
