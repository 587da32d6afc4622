#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""virtio_suspend and those of the kernel's own drivers whose callbacks are taken away meanwhile:
virtio_rng and virtio_input.

REPLAY_CYCLES says how often an entropy device is suspended under load, 10 times by default, and an input
device, which takes less time for it, three times as often.
"""

import contextlib
import os
import random
import time
from pathlib import Path

import suspend_lib
from ext_lib import each_driver, load, unload
from input_lib import (
    EV_LED,
    EV_REL,
    KEY_A,
    LED_CAPSL,
    REL_Y,
    SYN,
    Target,
    load_evdev,
    press,
    works,
)
from suspend_lib import (
    PROMPT,
    SHARE,
    SLOWNESS,
    Fail,
    Reader,
    Skip,
    case,
    entropy_flows,
    expect,
    read_some,
    require,
    run,
    select_rng,
    set_rng,
    wait_for,
    within,
)
from suspend_stream import BLOCK, accounted, reading, whole

CYCLES = int(os.environ.get("REPLAY_CYCLES", max(3, 10 // SLOWNESS)))
INPUT_CYCLES = 3 * CYCLES
suspend_lib.CASE_SECONDS += 4 * CYCLES * SLOWNESS * SHARE
suspend_lib.FILE_SECONDS += 8 * CYCLES * SLOWNESS * SHARE
# How long a device runs, and is suspended, at most, in seconds.
MOMENT = 0.03 * SLOWNESS * SHARE
# A part of the time that the driver takes for so much, in seconds.
AT_IT = 0.003
# How many buffers virtio_input has, each for an event.
EVENTS = 64


def expect_counts(dev, before, cycles):
    expect(dev.counts(), (before[0] + cycles, before[1] + cycles, before[2]), "counts")


# virtio_rng.


def rng(function):
    """Calls a case with an entropy device of VIRTIO 1.4, which /dev/hwrng reads."""

    def with_rng(_driver, devices):
        dev = next(dev for dev in devices if dev.revision() == "1.4")
        select_rng(dev)
        function(dev)

    def wrapped():
        each_driver(with_rng)("virtio_rng")

    return wrapped


@case(f"virtio_rng: {CYCLES} suspends at random moments while it is read: no byte is lost")
@rng
def rng_cycles(dev):
    def load(dev, account):
        before = dev.counts()
        with reading(dev, account) as reader:
            for _ in range(CYCLES):
                time.sleep(random.uniform(0, MOMENT))
                account.add(whole(reader, dev.request, "suspend"))
                time.sleep(random.uniform(0, MOMENT))
                # The reader may have had that before, and not passed it on yet.
                late = reader.get(0) or b""
                require(len(late) <= BLOCK, f"{len(late)} bytes of a suspended device")
                account.add(late)
                account.add(whole(reader, dev.request, "resume"))
        expect_counts(dev, before, CYCLES + 1)

    accounted(load, dev)
    entropy_flows()


@case("virtio_rng: what it has received waits, and so does a reader")
@rng
def rng_idle(dev):
    # Nobody reads: the driver has what the device has delivered last.
    dev.request("suspend")
    with within(5 * PROMPT, "reads that do not wait"):
        expect(read_some(), None, "what is read of a suspended device")
    with Reader() as reader:
        expect(reader.get(0.3), None, "what a reader gets meanwhile")
        dev.request("resume")
        require(reader.get(5 * PROMPT), "nothing comes after the resume")
    entropy_flows()


@case("virtio_rng: a reader that waits for a lost notification: it gets the data after the resume")
@rng
def rng_not_notified(dev):
    dev.mailbox.set(faults=["used-irq-lost"])
    with Reader() as reader:
        wait_for(lambda: dev.mailbox.happened("used-irq-lost"), "a notification is lost", 5 * PROMPT)
        reader.block()
        dev.request("suspend")
        # The reader is not in the driver any more, where it would keep others from theirs.
        with within(5 * PROMPT, "a read that does not wait"):
            expect(read_some(), None, "what is read of a suspended device")
        dev.mailbox.set(faults=[])
        dev.request("resume")
        require(reader.get(5 * PROMPT), "nothing comes after the resume")
    entropy_flows()


@case("virtio_rng: {what} while suspended, with a reader", what=("unbound", "another is chosen"))
def rng_left(what):
    @rng
    def left(dev):
        with Reader() as reader:
            require(reader.get(5 * PROMPT), "no entropy comes")
            dev.request("suspend")
            expect(unload(), "EBUSY", "unloading")
            reader.block()
            with within(10 * PROMPT, what):
                if what == "unbound":
                    dev.unbind()
                else:
                    set_rng("none")
            if what == "unbound":
                dev.bind()
            else:
                dev.request("resume")
        select_rng(dev)
        entropy_flows()

    left()


# virtio_input.


def keyboard(function):
    """Calls a case with an input device, and with what programs see of it, open."""

    def with_input(_driver, devices):
        aim = Target(devices[0])
        with aim.node() as node:
            function(aim, node)

    def wrapped():
        load_evdev()
        each_driver(with_input)("virtio_input")

    return wrapped


class Moves:
    """Movements along y, the nth by n, each in a frame of its own: one that is lost shows."""

    COUNT = 500

    def __init__(self, aim, node):
        self._node = node
        self.seen = []
        # As fast as can be: there is always one for the driver to pass on.
        aim.change(stream={"count": self.COUNT, "interval_us": 1})

    def look(self):
        """Returns how many have been seen, which are in order."""
        self.seen += [row for row in self._node.read() if row != SYN]
        expect(self.seen, [(EV_REL, REL_Y, n + 1) for n in range(len(self.seen))], "movements")
        return len(self.seen)

    def all_come(self):
        with contextlib.suppress(Fail):
            wait_for(lambda: self.look() >= self.COUNT, "all have come", 5 * PROMPT)
        expect(len(self.seen), self.COUNT, "movements that have come")


@contextlib.contextmanager
def on_two_processors(dev):
    """The driver's callbacks run on one processor, and what is requested on another."""
    everywhere = os.sched_getaffinity(0)
    if len(everywhere) < 2:
        raise Skip("one processor")
    ours, theirs = sorted(everywhere)[:2]
    for irq in (dev.pci / "msi_irqs").iterdir():
        Path(f"/proc/irq/{irq.name}/smp_affinity_list").write_text(str(theirs))
    os.sched_setaffinity(0, {ours})
    try:
        yield
    finally:
        os.sched_setaffinity(0, everywhere)


@case(f"virtio_input: {INPUT_CYCLES} suspends while a callback runs: no event is lost, and no buffer")
@keyboard
def input_cycles(aim, node):
    dev = aim.dev
    late = 0
    before = dev.counts()
    with on_two_processors(dev):
        for _ in range(INPUT_CYCLES):
            moves = Moves(aim, node)
            wait_for(moves.look, "the first have come")
            time.sleep(random.uniform(0, AT_IT))
            dev.request("suspend")
            expect(int(dev.queues()[0]["outstanding"]), EVENTS, "buffers in the virtqueue")
            seen = moves.look()
            late += seen < Moves.COUNT
            time.sleep(random.uniform(0, MOMENT))
            expect(moves.look(), seen, "movements, of a suspended device")
            dev.request("resume")
            moves.all_come()
    expect_counts(dev, before, INPUT_CYCLES)
    require(2 * late > INPUT_CYCLES, f"{late} of {INPUT_CYCLES} suspends came while the driver was at it")


@case("virtio_input: events of which the device has not notified come after the resume")
@keyboard
def input_not_notified(aim, node):
    # Twice, which is more than there are buffers: those of the first time are used again.
    for i in (1, 2):
        events = [event for n in range(20 * i, 20 * i + 20) for event in ((EV_REL, REL_Y, n), SYN)]
        aim.mailbox.set(faults=["used-irq-lost"])
        aim.inject(*events)
        wait_for(aim.is_idle, "the device has reported all")
        aim.dev.request("suspend")
        expect(node.read(), [], "what the driver has seen")
        aim.mailbox.set(faults=[])
        aim.dev.request("resume")
        node.expect(events, "what the device had reported")


@case("virtio_input: what is set while it is suspended is dropped; after the resume it can be set")
@keyboard
def input_lights(aim, node):
    aim.dev.request("suspend")
    aim.mailbox.clear()
    node.write(EV_LED, LED_CAPSL, 1)
    aim.dev.request("resume")
    press(node, aim, KEY_A, 1)
    press(node, aim, KEY_A, 0)
    expect(aim.report()["received"], 0, "what the device was told")
    # For the input core it is on.
    node.write(EV_LED, LED_CAPSL, 0)
    node.write(EV_LED, LED_CAPSL, 1)
    aim.shows(EV_LED, LED_CAPSL, 1)
    node.write(EV_LED, LED_CAPSL, 0)
    aim.shows(EV_LED, LED_CAPSL, 0)


@case("virtio_input: it can't be unloaded while suspended; unbound then, it comes back")
@keyboard
def input_left(aim, _node):
    dev = aim.dev
    dev.request("suspend")
    expect(unload(), "EBUSY", "unloading")
    dev.unbind()
    require(not dev.is_bound, "files without a driver")
    expect(unload(), "success", "unloading")
    load()
    dev.bind()
    dev.cycle()
    works(aim)


if __name__ == "__main__":
    load_evdev()
    run(input=True)
