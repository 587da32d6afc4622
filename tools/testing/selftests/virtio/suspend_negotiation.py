#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Which revision of SUSPEND is negotiated, and that a device without it works as before (D1, D2).

Every offer of a device, with the draft's revision accepted and refused (rust_virtio.draft=0).
"""

from suspend_lib import (
    BIT,
    case,
    device,
    entropy_flows,
    expect,
    expect_errno,
    require,
    run,
    select_rng,
    works,
)

OFFERS = ("43", "42", "both", "none")


def outcome(offer, draft):
    if offer in ("43", "both"):
        return "1.4"
    return "draft" if offer == "42" and draft else "none"


@case("offer {offer}, draft={draft}", draft=(1, 0), offer=OFFERS)
def negotiation(offer, draft):
    dev = device(mailbox=True, draft=draft)
    expected = outcome(offer, draft)
    dev.configure(offer=offer)

    expect(dev.read("revision"), expected, "revision")
    expect(dev.state, "running", "state")
    info = dev.mailbox.info()
    expect(info["revision"], expected, "revision in the device's view")
    negotiated = int(info["negotiated"], 16)
    for revision, bit in BIT.items():
        accepted = revision == expected
        expect(dev.has_feature(bit), accepted, f"bit {bit} in sysfs")
        expect(bool(negotiated & 1 << bit), accepted, f"bit {bit} in the device's view")

    if expected == "none":
        refused(dev)
    else:
        dev.request("suspend")
        expect(dev.state, "suspended", "state after suspend")
        dev.request("resume")
    works(dev)


def refused(dev):
    """Nothing is asked of a device that has not negotiated SUSPEND (D2)."""
    dev.mailbox.clear()
    for failures, goal in enumerate(("suspend", "resume"), start=1):
        expect_errno("EOPNOTSUPP", goal, dev.request, goal)
        expect(dev.counts(), (0, 0, failures), "counts")
    expect(dev.state, "running", "state")
    require(dev.read("last_error").startswith("EOPNOTSUPP "), "last_error does not say why")
    expect(dev.mailbox.status_log(), [], "accesses to the device status")
    select_rng(dev)
    entropy_flows()


if __name__ == "__main__":
    run()
