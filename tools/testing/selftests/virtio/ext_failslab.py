#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Every allocation of bind, suspend and resume of the kernel's own drivers, with virtio_suspend, is
made to fail, one at a time.

As suspend_failslab.py has it for our drivers: an error or a device that works, and no complaint.
Of what a driver allocates to bind, that is left out which virtio_suspend has nothing to do with.
"""

import failslab_lib as failing
import suspend_lib
from ext_lib import USUAL, each_driver
from failslab_lib import prepare
from suspend_lib import Modules, case, run

NAMES = USUAL

# A probe has hundreds of allocations.
suspend_lib.CASE_SECONDS *= 5


@case("{name}: bind", name=NAMES)
@each_driver
def bind(_driver, devices):
    # The drivers themselves do not all survive it: virtio_blk leaves its queues enabled.
    prepare(Modules.CORE)
    dev = devices[0]
    failing.bind(dev, (dev.path / "driver").exists, 5)
    dev.cycle()
    dev.works()


@case("{name}: suspend", name=NAMES)
@each_driver
def suspend(_driver, devices):
    prepare()
    devices[0].works()
    failing.suspend(devices[0], devices[0].works)


@case("{name}: resume", name=NAMES)
@each_driver
def resume(_driver, devices):
    prepare()
    devices[0].works()
    failing.resume(devices[0], devices[0].works)


if __name__ == "__main__":
    run()
