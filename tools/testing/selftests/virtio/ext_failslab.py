#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Every allocation of bind, suspend and resume of the kernel's own drivers, with virtio_suspend, is
made to fail, one at a time.

As suspend_failslab.py has it for our drivers: an error or a device that works, and no complaint.
Of what a driver allocates to bind, that is left out which virtio_suspend has nothing to do with.
"""

import os

import suspend_lib
from ext_lib import TYPES, each_driver
from failslab_lib import prepare, with_failures
from suspend_lib import Modules, case, expect, require, run

NAMES = tuple(TYPES)

# A probe has hundreds of allocations.
suspend_lib.CASE_SECONDS *= 5


@case("{name}: bind", name=NAMES)
@each_driver
def bind(_driver, devices):
    # The drivers themselves do not all survive it: virtio_blk leaves its queues enabled.
    prepare(Modules.CORE)
    dev = devices[0]
    driver = dev.path / "driver"
    attribute = os.open(driver / "bind", os.O_WRONLY)
    dev.unbind()

    def check(failed):
        expect(driver.exists(), not failed, "whether it is bound")

    count = with_failures(lambda: os.write(attribute, dev.name.encode()), dev.unbind, check)
    os.close(attribute)
    require(count > 5, f"a probe with {count} allocations?")
    dev.bind()
    dev.cycle()
    dev.works()


@case("{name}: suspend", name=NAMES)
@each_driver
def suspend(_driver, devices):
    prepare()
    dev = devices[0]
    dev.works()

    def check(failed):
        expect(dev.state, "running" if failed else "suspended", "state")
        if failed:
            dev.works()

    def undo():
        dev.request("resume")
        dev.works()

    with_failures(lambda: dev.request("suspend"), undo, check)


@case("{name}: resume", name=NAMES)
@each_driver
def resume(_driver, devices):
    prepare()
    dev = devices[0]
    dev.works()
    dev.request("suspend")

    def check(failed):
        expect(dev.state, "suspended" if failed else "running", "state")

    def undo():
        dev.works()
        dev.request("suspend")

    with_failures(lambda: dev.request("resume"), undo, check)
    dev.request("resume")
    dev.works()


if __name__ == "__main__":
    run()
