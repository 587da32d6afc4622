# SPDX-License-Identifier: GPL-2.0
"""What the tests of virtio_suspend, for the kernel's own drivers, have in common.

    with extension():
        dev = Extended.of_driver("virtio_net")
        dev.request("suspend")

The drivers are the kernel's, whatever else has their name. After a case the extension is unloaded,
and the devices run again with the settings they had.
"""

import contextlib
import errno
import functools
import os
import socket
import subprocess
import time
from pathlib import Path

from suspend_lib import (
    BUS,
    PROMPT,
    TIMEOUT_MS,
    Device,
    Fail,
    Mailbox,
    Skip,
    errno_name,
    expect,
    sh,
    wait_for,
)

MODULE = "virtio_suspend"
# The device types with a quiescer, and where their drivers are.
TYPES = {
    "virtio_blk": (2, "drivers/block/virtio_blk"),
    "virtio_net": (1, "drivers/net/virtio_net"),
    "virtio_rng": (4, "drivers/char/hw_random/virtio-rng"),
    "virtio_scsi": (8, "drivers/scsi/virtio_scsi"),
    "virtio_input": (18, "drivers/virtio/virtio_input"),
}
# Those that most tests are about.
USUAL = ("virtio_blk", "virtio_net")


def is_loaded(module):
    return Path(f"/sys/module/{module}").exists()


class Driver:
    """One of the kernel's own drivers."""

    def __init__(self, name):
        self.name = name
        self.device_type, self.stem = TYPES[name]

    def file(self):
        kernel = Path("/usr/lib/modules", os.uname().release, "kernel")
        found = sorted(kernel.glob(f"{self.stem}.ko*"))
        if not found:
            raise Skip(f"the kernel has no module {self.name}")
        return found[0]

    @functools.cached_property
    def depends(self):
        """What it needs, of which nothing has the name of a module of ours."""
        return [m for m in sh("modinfo", "-F", "depends", self.file()).strip().split(",") if m]

    def load(self, *parameters):
        if not is_loaded(self.name):
            for module in self.depends:
                if not is_loaded(module):
                    sh("modprobe", module)
            # Itself, not one of the same name.
            sh("insmod", self.file(), *parameters)

    def unload(self):
        if is_loaded(self.name):
            sh("rmmod", self.name)

    def functions(self):
        """The test devices that it is for."""
        found = []
        for path in sorted(BUS.iterdir()) if BUS.exists() else []:
            if int((path / "device").read_text(), 16) == self.device_type:
                if Mailbox.of(path.resolve().parent):
                    found.append(path.name)
        if not found:
            raise Skip(f"no test device for {self.name}")
        return found

    def offer(self, bits):
        """Has the devices offer these bits. They do when they have been reset."""
        for name in self.functions():
            Mailbox.of((BUS / name).resolve().parent).set(offer=bits)
        self.load()
        self.devices()
        self.unload()

    def devices(self):
        """The test devices that are bound to it, once they can be seen in sysfs."""
        found = []
        for name in self.functions():
            wait_for(lambda: (BUS / name / "driver").exists(), f"{name} is bound", 5 * PROMPT)
            found.append(Extended(name, self))
        return found


# One of each, which remembers what it has found out.
kernel_driver = functools.cache(Driver)


class Extended(Device):
    """A device of one of the kernel's own drivers."""

    def __init__(self, name, driver):
        super().__init__(name)
        self.module = driver

    def revision(self):
        return self.read("revision")

    def refused(self, goal="suspend"):
        """The name of the error that a request is told."""
        try:
            self.request(goal)
        except OSError as error:
            return errno_name(error.errno)
        raise Fail(f"{self.name}: {goal} succeeded")

    def works(self):
        """Data goes through the device."""
        if self.module.name == "virtio_blk":
            names = list((self.path / "block").iterdir())
            sh("dd", f"if=/dev/{names[0].name}", "of=/dev/null", "bs=4k", "count=16",
               "iflag=direct")  # fmt: skip
        else:
            interface = next((self.path / "net").iterdir()).name
            sh("ip", "link", "set", interface, "up")
            wait_for(lambda: self._sends(interface), f"{interface} sends", 5 * PROMPT)

    def _sends(self, interface):
        """Sends a frame; returns whether the device has seen more than before."""
        before = self.report()["tx"]["packets"]
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as packet:
            packet.bind((interface, 0))
            # A broadcast of an experimental type.
            packet.send(b"\xff" * 6 + b"\x02" + bytes(5) + b"\x88\xb5" + bytes(46))
        time.sleep(0.05)
        return self.report()["tx"]["packets"] > before

    def report(self):
        """What the device says of itself."""
        return self.mailbox.command("device")["device"]

    def cycle(self):
        """Suspends and resumes it once."""
        self.request("suspend")
        expect(self.state, "suspended", f"state of {self.name}")
        self.request("resume")
        expect(self.state, "running", f"state of {self.name}")


def disk_of(dev):
    """The directory in sysfs of a device's disk, once it is there."""
    found = wait_for(lambda: list((dev.path / "block").glob("*")), "a disk", 5 * PROMPT)
    return found[0]


def path_of(dev):
    """The file of a device's disk, once it is there."""
    return f"/dev/{disk_of(dev).name}"


def load():
    sh("modprobe", MODULE)


def unload():
    """Unloads the extension; returns the name of the error, or "success"."""
    if not is_loaded(MODULE):
        return "success"
    result = subprocess.run(["rmmod", MODULE], capture_output=True, text=True, check=False)
    if result.returncode == 0:
        return "success"
    return errno_name(errno.EBUSY) if "in use" in result.stderr else result.stderr.strip()


def _resume_all():
    for path in sorted(BUS.glob("*/suspend/state")):
        if path.read_text().strip() == "suspended":
            with contextlib.suppress(OSError):
                (path.parent / "request").write_text("resume")


@contextlib.contextmanager
def drivers(*names):
    """Those of the kernel's own drivers that have devices, not loaded yet, and no extension."""
    found = [kernel_driver(name) for name in names or USUAL]
    present = []
    for driver in found:
        with contextlib.suppress(Skip):
            driver.functions()
            present.append(driver)
    if not present:
        raise Skip(f"no test device for {' or '.join(names or USUAL)}")
    expect(unload(), "success", "unloading the extension")
    settings = {}
    for driver in present:
        driver.unload()
        for name in driver.functions():
            mailbox = Mailbox.of((BUS / name).resolve().parent)
            settings[name] = mailbox.info()["settings"]
            mailbox.clear()
    try:
        yield present[0] if len(names) == 1 else present
        objections = []
        for driver in present:
            for name in driver.functions():
                mailbox = Mailbox.of((BUS / name).resolve().parent)
                mailbox.set(faults=settings[name]["faults"])
                objections += [f"{name}: {objection}" for objection in mailbox.objections()]
        expect(objections, [], "violations, and faults without effect")
    finally:
        for name, values in settings.items():
            if (BUS / name).exists():
                Mailbox.of((BUS / name).resolve().parent).set(**values)
        _resume_all()
        for driver in present:
            driver.unload()
        unload()


def extend(driver, *parameters):
    """Loads the extension, then the driver; returns the devices, which have the files in sysfs."""
    load()
    driver.load(*parameters)
    found = driver.devices()
    for dev in found:
        wait_for(lambda: dev.is_bound, f"{dev.name} is bound")
    return found


def each_driver(function):
    """Calls a case with the driver of that name, loaded after the extension, and its devices."""

    @functools.wraps(function)
    def wrapped(name, **arguments):
        with drivers(name) as driver:
            found = extend(driver)
            for dev in found:
                dev.write("timeout_ms", str(TIMEOUT_MS))
            function(driver, found, **arguments)

    return wrapped
