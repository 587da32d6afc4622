#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""The system sleeps and is woken, with an input device of our driver."""

from input_lib import (
    EV_KEY,
    EV_LED,
    EV_SYN,
    KEY_A,
    LED_CAPSL,
    LED_SCROLLL,
    load_evdev,
    press,
    target,
)
from sleep_lib import MODES, can_keep, prepare, sleep_and_see
from suspend_lib import case, expect, run


def goes_on(aim, node):
    """The device is told again what it is to show, and events come."""
    expect(aim.dev.state, "running", "state")
    aim.shows(EV_LED, LED_CAPSL, 1)
    press(node, aim, KEY_A, 1)
    press(node, aim, KEY_A, 0)
    node.write(EV_LED, LED_CAPSL, 0)
    aim.shows(EV_LED, LED_CAPSL, 0)


@case("{mode}: an input device: a key is released, lights are as they were, events go on", mode=MODES)
def running(mode):
    prepare(mode)
    aim = target()
    with aim.node() as node:
        node.write(EV_LED, LED_CAPSL, 1)
        aim.shows(EV_LED, LED_CAPSL, 1)
        press(node, aim, KEY_A, 1)
        sleep_and_see(mode, [aim.dev])
        # The core does that before the system sleeps, and marks what it has made up.
        node.expect([(EV_KEY, KEY_A, 0), (EV_SYN, 0, 1)], "the key is released")
        goes_on(aim, node)


@case("{mode}: an input device suspended by hand shows what was set meanwhile, when it runs", mode=MODES)
def suspended(mode):
    prepare(mode)
    aim = target()
    with aim.node() as node:
        aim.dev.request("suspend")
        node.write(EV_LED, LED_CAPSL, 1)
        node.write(EV_LED, LED_SCROLLL, 1)
        node.write(EV_LED, LED_SCROLLL, 0)
        sleep_and_see(mode, [aim.dev])
        if can_keep(aim.dev, mode):
            aim.dev.request("resume")
        # What was written is reported with the end of what the sleep or the reset has released.
        node.read()
        goes_on(aim, node)


if __name__ == "__main__":
    load_evdev()
    run(input=True)
