#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""A device that answers at random: status, delays, rings, lengths, notifications, resets.

Whatever it does, every request ends in time, no rule is broken that the device kept itself, the
kernel has nothing to complain of, and with the truth back the device works. A seed that fails is
printed; SUSPEND_FUZZ_FIRST replays it with SUSPEND_FUZZ_SEEDS=1.
"""

import os

import suspend_lib
from suspend_lib import (
    HWRNG,
    PROMPT,
    REVISIONS,
    SLOWNESS,
    Child,
    Fail,
    case,
    device,
    require,
    run,
    within,
    works,
)

# Of each revision; a kernel that checks itself has less time for each.
SEEDS = int(os.environ.get("SUSPEND_FUZZ_SEEDS", 260 // SLOWNESS))
FIRST = int(os.environ.get("SUSPEND_FUZZ_FIRST", "1"))
TIMEOUT_MS = 10
# So often, and at the end, the device is shown to work.
CHECK = 20

suspend_lib.CASE_SECONDS += SEEDS * SLOWNESS
suspend_lib.FILE_SECONDS += 2 * SEEDS * SLOWNESS


def play(dev):
    """What is done with a device that lies."""
    for goal in ("suspend", "resume", "suspend", "resume"):
        with within(TIMEOUT_MS / 1000 + 1 + PROMPT, goal):
            try:
                dev.request(goal)
            except OSError:
                pass
        try:
            fd = os.open(HWRNG, os.O_RDONLY | os.O_NONBLOCK)
            try:
                os.read(fd, 256)
            finally:
                os.close(fd)
        except OSError:
            pass


@case("{revision}: seeds", revision=REVISIONS)
def seeds(revision):
    dev = device(revision, mailbox=True)
    for seed in range(FIRST, FIRST + SEEDS):
        try:
            one(dev, seed, seed % CHECK == 0 or seed == FIRST + SEEDS - 1)
        except Fail as failure:
            raise Fail(f"seed {seed}: {failure}") from None


def one(dev, seed, thoroughly):
    dev.write("timeout_ms", str(TIMEOUT_MS))
    dev.mailbox.set(fuzz=seed)
    try:
        play(dev)
    finally:
        dev.mailbox.set(fuzz=None)
    require(dev.state in ("running", "suspended", "resuming", "failed"), f"state {dev.state}")
    # Removal is not to be blocked, whatever state this is.
    child = Child(dev.rebind)
    child.wait(within=3 * PROMPT, what="the driver is bound again")
    if thoroughly:
        works(dev)
        dev.request("suspend")
        dev.request("resume")
        works(dev)


if __name__ == "__main__":
    run()
