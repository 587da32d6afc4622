#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""virtio_suspend and the kernel's own drivers: who is loaded first, what is unloaded when, and what
becomes of devices that can't be suspended."""

import contextlib
import os
import re
from pathlib import Path

from ext_lib import USUAL, drivers, each_driver, extend, load, unload
from suspend_lib import (
    BUS,
    FAR_MS,
    PROMPT,
    SLOWNESS,
    TIMEOUT_MS,
    Skip,
    case,
    device,
    expect,
    expect_errno,
    modules,
    request_in_child,
    require,
    run,
    wait_for,
    within,
    works,
)

# Modules come and go for minutes on a slow kernel: one driver has to do there.
NAMES = USUAL[: 1 if SLOWNESS > 1 else None]


@case("{name}: the extension is loaded first", name=NAMES)
@each_driver
def extension_first(_driver, devices):
    for dev in devices:
        expect(dev.revision(), "1.4", f"revision of {dev.name}")
        require(dev.has_feature(43), f"{dev.name} has not negotiated SUSPEND")
        dev.cycle()
        dev.works()
        expect(dev.counts(), (1, 1, 0), "counts")


@case("{name}: the driver is loaded first: a rebind picks the device up", name=NAMES)
def driver_first(name):
    with drivers(name) as driver:
        driver.load()
        first = driver.devices()[0]
        load()
        dev = driver.devices()[0]
        expect(dev.revision(), "rebind", "revision")
        require(not dev.has_feature(43), "SUSPEND was negotiated")
        expect(dev.refused(), "EOPNOTSUPP", "suspend")
        require("before" in dev.read("last_error"), "last_error does not say why")
        first.works()
        dev.rebind()
        expect(dev.revision(), "1.4", "revision after a rebind")
        dev.cycle()
        dev.works()


@case("{name}: unloaded while running, and loaded again: the device is taken over", name=NAMES)
@each_driver
def unload_running(_driver, devices):
    for dev in devices:
        dev.cycle()
    expect(unload(), "success", "unloading")
    for dev in devices:
        require(not dev.is_bound, "files without an extension")
        require(dev.has_feature(43), "the feature is not negotiated any more")
        dev.works()
    load()
    for dev in devices:
        expect(dev.revision(), "1.4", f"revision of {dev.name}")
        dev.cycle()
        dev.works()


@case("{name}: it can't be unloaded while a device is suspended", name=NAMES)
@each_driver
def unload_suspended(_driver, devices):
    dev = devices[0]
    dev.request("suspend")
    expect(unload(), "EBUSY", "unloading")
    expect(dev.state, "suspended", "state")
    dev.request("resume")
    dev.works()
    expect(unload(), "success", "unloading")
    dev.works()


@case("{name}: loaded and unloaded, over and over, in use", name=NAMES)
@each_driver
def over_and_over(_driver, devices):
    for _ in range(10):
        for dev in devices:
            dev.cycle()
        expect(unload(), "success", "unloading")
        load()
    for dev in devices:
        dev.works()


@case("{name}: two devices, each on its own", name=NAMES)
@each_driver
def two(_driver, devices):
    if len(devices) < 2:
        raise Skip("one device")
    one, other = devices[:2]
    one.request("suspend")
    expect(other.state, "running", "state of the other")
    other.request("suspend")
    one.request("resume")
    expect(other.state, "suspended", "state of the other")
    expect(unload(), "EBUSY", "unloading")
    other.request("resume")
    one.works()
    other.works()


@case("{name}: a device without the feature", name=NAMES)
def without(name):
    with drivers(name) as driver:
        driver.offer("none")
        for dev in extend(driver):
            expect(dev.revision(), "none", "revision")
            expect(dev.refused(), "EOPNOTSUPP", "suspend")
            dev.works()


@case("virtio_net: bit 42 is not SUSPEND for a network device")
def bit_42():
    with drivers("virtio_net") as driver:
        driver.offer("42")
        for dev in extend(driver):
            expect(dev.revision(), "none", "revision")
            require(not dev.has_feature(42), "bit 42 was negotiated")


@case("virtio_blk: the draft's SUSPEND")
def draft():
    with drivers("virtio_blk") as driver:
        driver.offer("42")
        for dev in extend(driver):
            expect(dev.revision(), "draft", "revision")
            dev.cycle()
            dev.works()


TRACING = Path("/sys/kernel/tracing")
# Through which PCI's transport reads the status of a device.
PROBE = "p:suspend_test/status vp_modern_get_status caller=$stack0:symbol"


def change_probes(text):
    # There is no end to seek, which is what Python does to append.
    fd = os.open(TRACING / "kprobe_events", os.O_WRONLY | os.O_APPEND)
    try:
        os.write(fd, f"{text}\n".encode())
    finally:
        os.close(fd)


@contextlib.contextmanager
def probed():
    """Tells who had the transport read the status of a device."""
    instance = TRACING / "instances/suspend_test"
    try:
        change_probes(PROBE)
        instance.mkdir(exist_ok=True)
    except OSError as error:
        raise Skip(f"nothing can be probed: {error}") from None
    enable = instance / "events/suspend_test/status/enable"
    try:
        enable.write_text("1")

        def who(path):
            (instance / "trace").write_text("")
            (path / "status").read_text()
            trace = (instance / "trace").read_text()
            callers = re.findall(r"caller=(.*)", trace)
            require(callers, f"nobody has read the status: {trace}")
            return callers[0]

        yield who
    finally:
        enable.write_text("0")
        instance.rmdir()
        change_probes("-:suspend_test/status")


def left_alone():
    """The devices whose drivers have no quiescer."""
    found = [p for p in BUS.glob("*/suspend/revision") if p.read_text() == "no-quiescer\n"]
    if not found:
        raise Skip("every device has a quiescer")
    return [path.parent.parent for path in found]


@case("a driver without a quiescer is refused, by its name")
def no_quiescer():
    with drivers():
        load()
        for path in left_alone():
            request = path / "suspend/request"
            expect_errno("EOPNOTSUPP", f"suspend of {path.name}", request.write_text, "suspend")
            expect((path / "suspend/state").read_text(), "running\n", "state")
            expect((path / "features").read_text()[42:44], "00", "SUSPEND")
            name = (path / "driver").resolve().name
            why = (path / "suspend/last_error").read_text()
            require(name in why, f"last_error of a device of {name}: {why}")


@case("a driver without a quiescer: its device keeps the operations of its transport")
def no_quiescer_untouched():
    with drivers("virtio_blk") as driver:
        extended = extend(driver)[0]
        with probed() as who:
            # Else the next would show nothing.
            caller = who(extended.path)
            require("[rust_virtio]" in caller, f"the status of a disk is read by {caller}")
            for path in left_alone():
                caller = who(path)
                require(caller.startswith("status_show"), f"that of {path.name} is, by {caller}")


@case("the crate's own drivers beside it: loaded {order}", order=("before", "after"))
def native(order):
    with drivers():
        if order == "after":
            modules.unload()
        load()
        dev = device("1.4")
        for _ in range(2):
            dev.request("suspend")
            expect(dev.state, "suspended", "state")
            dev.request("resume")
            works(dev)
        dev.request("suspend")
        # That is none of the extension's business.
        expect(unload(), "success", "unloading")
        expect(dev.state, "suspended", "state")
        dev.request("resume")
        works(dev)


@case("{name}: unbound while suspended", name=NAMES)
@each_driver
def unbind_suspended(_driver, devices):
    for dev in devices:
        dev.request("suspend")
        dev.unbind()
        require(not dev.is_bound, "files without a driver")
        expect(dev.status & 4, 0, "DRIVER_OK")
    expect(unload(), "success", "unloading")
    load()
    for dev in devices:
        dev.bind()
        dev.cycle()
        dev.works()


@case("{name}: the driver is unloaded while its devices are suspended", name=NAMES)
@each_driver
def unload_driver(driver, devices):
    for dev in devices:
        dev.request("suspend")
    driver.unload()
    expect(unload(), "success", "unloading")


@case("{name}: unbound while a {goal} waits: ENODEV", name=NAMES, goal=("suspend", "resume"))
@each_driver
def unbind_waiting(_driver, devices, goal):
    dev = devices[0]
    if goal == "resume":
        dev.request("suspend")
    # Before it is unbound, the extension tries to resume the device once more, the way that devices
    # with such a fault are excused for wanting it.
    dev.mailbox.set(faults=[f"{goal}-never"])
    dev.write("timeout_ms", str(FAR_MS))
    child = request_in_child(dev, goal)
    with within(5 * PROMPT, "the unbind"):
        dev.unbind()
        expect(child.errno(), "ENODEV", goal)
    dev.mailbox.set(faults=[])
    dev.bind()
    dev.cycle()
    dev.works()


@case("{name}: unplugged while suspended", name=NAMES)
@each_driver
def unplug_suspended(_driver, devices):
    dev = devices[0]
    dev.request("suspend")
    (dev.pci / "remove").write_text("1")
    require(not dev.path.exists(), "the device is still there")
    expect(unload(), "success", "unloading")
    load()
    Path("/sys/bus/pci/rescan").write_text("1")


@case("{name}: gone while suspended, and unbound: nobody waits for it", name=NAMES)
@each_driver
def gone_suspended(_driver, devices):
    dev = devices[0]
    dev.request("suspend")
    dev.mailbox.command("fault-now", fault="gone")
    with within(5 * PROMPT, "the unbind of a device that is gone"):
        dev.unbind()
    dev.mailbox.set(faults=[])
    dev.bind()
    dev.cycle()
    dev.works()


def starts_again(dev):
    """The device runs again: by itself, if its driver can be reset in use, or bound again."""
    if dev.module.name == "virtio_net":
        expect(dev.state, "failed", "state")
        expect(dev.number("recoveries"), 0, "recoveries")
        dev.rebind()
    else:
        wait_for(lambda: dev.state == "running", "the device runs again", 5 * PROMPT)
        expect(dev.number("recoveries"), 1, "recoveries")
    dev.works()
    dev.cycle()
    dev.works()


@case("{name}: {fault} on suspend: EIO, and the device starts again", name=NAMES,
      fault=("needs-reset", "status-zero"))  # fmt: skip
@each_driver
def recovered(_driver, devices, fault):
    dev = devices[0]
    dev.mailbox.set(faults=[f"{fault}-on-suspend"])
    expect(dev.refused(), "EIO", "suspend")
    dev.mailbox.set(faults=[])
    starts_again(dev)


@case("{name}: {fault} while suspended: a resume is EIO, and the device starts again",
      name=NAMES, fault=("needs-reset", "status-zero"))  # fmt: skip
@each_driver
def recovered_suspended(_driver, devices, fault):
    dev = devices[0]
    dev.request("suspend")
    dev.mailbox.command("fault-now", fault=fault)
    expect(dev.refused("resume"), "EIO", "resume")
    starts_again(dev)


@case("{name}: a suspend that takes too long is taken back", name=NAMES)
@each_driver
def timeout(_driver, devices):
    dev = devices[0]
    dev.write("timeout_ms", "200")
    dev.mailbox.set(faults=["suspend-never"])
    expect(dev.refused(), "ETIMEDOUT", "suspend")
    expect(dev.state, "running", "state")
    dev.works()
    dev.mailbox.set(faults=[])
    dev.write("timeout_ms", str(TIMEOUT_MS))
    dev.cycle()
    dev.works()


@case("{name}: a resume that takes too long can be asked for again", name=NAMES)
@each_driver
def resume_again(_driver, devices):
    dev = devices[0]
    dev.request("suspend")
    dev.write("timeout_ms", "200")
    dev.mailbox.set(faults=["resume-late=1000"])
    expect(dev.refused("resume"), "ETIMEDOUT", "resume")
    expect(dev.state, "suspended", "state")
    expect(unload(), "EBUSY", "unloading")
    dev.write("timeout_ms", str(TIMEOUT_MS))
    dev.request("resume")
    dev.mailbox.set(faults=[])
    dev.works()


if __name__ == "__main__":
    run()
