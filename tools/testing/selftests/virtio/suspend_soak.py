#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Many cycles of suspend and resume while entropy is read: nothing is lost, nothing leaks.

With a test device that delivers a counter, every word is accounted for. The memory of the kernel
is compared before and after; a kernel with kmemleak looks for what nobody refers to any more.

SUSPEND_CYCLES sets the number of cycles of each case.
"""

import os
import re
from pathlib import Path

import suspend_lib
from suspend_lib import REVISIONS, case, device, expect, require, run, works
from suspend_stream import accounted, reading, whole

CYCLES = int(os.environ.get("SUSPEND_CYCLES", "50"))
# What a kernel without checks may use more than before.
SLACK_KIB = 1024

suspend_lib.CASE_SECONDS += CYCLES * suspend_lib.SLOWNESS
suspend_lib.FILE_SECONDS += 2 * CYCLES * suspend_lib.SLOWNESS


def slack():
    """What the kernel may use more than before, for reasons of its own, in KiB."""
    if "kasan_quarantine_put" not in Path("/proc/kallsyms").read_text():
        return SLACK_KIB
    # KASAN keeps what has been freed, up to this part of the memory: there kmemleak has to do.
    total = int(re.search(r"^MemTotal:\s+(\d+)", Path("/proc/meminfo").read_text(), re.M).group(1))
    return SLACK_KIB + total // 32


def unreclaimable():
    """The memory in slabs that the kernel can't give back, in KiB."""
    text = Path("/proc/meminfo").read_text()
    return int(re.search(r"^SUnreclaim:\s+(\d+)", text, re.M).group(1))


def soak(dev, account):
    with reading(dev, account) as reader:
        # What is allocated once is there after some cycles.
        cycles(dev, account, reader, 10)
        before = unreclaimable()
        cycles(dev, account, reader, CYCLES)
        grown = unreclaimable() - before
        require(grown < slack(), f"{grown} KiB of memory lost in {CYCLES} cycles")


def cycles(dev, account, reader, count):
    for _ in range(count):
        account.add(whole(reader, dev.request, "suspend"))
        account.add(whole(reader, dev.request, "resume"))


@case("{revision}: cycles under load", revision=REVISIONS)
def many(revision):
    dev = device(revision, mailbox=True)
    accounted(soak, dev)
    expect(dev.number("failures"), 0, "failures")
    require(dev.number("suspends") > CYCLES, "not as many cycles as there were to be")
    works(dev)


if __name__ == "__main__":
    run()
