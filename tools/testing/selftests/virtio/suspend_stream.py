# SPDX-License-Identifier: GPL-2.0
"""The stream of a test device that delivers a counter: every word is accounted for."""

from pathlib import Path

from suspend_lib import Fail, Skip, drain, require, select_rng

BLOCK = 64


class Account:
    """Keeps the books of the counter that a test device delivers.

    The kernel's own thread reads, too, seldom: its switches tell whether it has run.
    """

    def __init__(self, dev):
        self.dev = dev
        dev.configure(data="counter")
        # The counter begins with a reset; the core may keep bytes from before.
        dev.rebind()
        select_rng(dev)
        dev.request("suspend")
        drain()
        dev.request("resume")
        self._switches = self._of_thread()
        self.words = []

    @staticmethod
    def _of_thread():
        for status in Path("/proc").glob("[0-9]*/status"):
            try:
                text = status.read_text()
            except OSError:
                continue
            fields = dict(line.split(":", 1) for line in text.splitlines())
            if fields["Name"].strip() == "hwrng":
                return [fields["Pid"], fields["voluntary_ctxt_switches"],
                        fields["nonvoluntary_ctxt_switches"]]
        return None

    def add(self, data):
        require(len(data) % BLOCK == 0, f"{len(data)} bytes, no whole blocks")
        words = (data[i : i + 4] for i in range(0, len(data), 4))
        self.words += (int.from_bytes(word, "little") for word in words)

    def was_alone(self):
        return self._of_thread() == self._switches

    def check(self):
        require(self.words, "nothing was read")
        first = self.words[0]
        for i, word in enumerate(self.words):
            if word != first + i:
                raise Fail(f"word {i} of {len(self.words)} is {word}, expected {first + i}")


def alone(scenario, dev):
    """Runs a scenario in which nobody else read."""
    for _ in range(3):
        account = Account(dev)
        scenario(dev, account)
        if account.was_alone():
            account.check()
            return
        dev.configure(hold=False)
    raise Skip("the kernel's own thread reads all the time")


def whole(reader, request, goal):
    """What a reader gets in the meantime."""
    request(goal)
    data = b""
    while len(data) % BLOCK or not data:
        more = reader.get(0.1)
        if more is None:
            break
        data += more
    return data
