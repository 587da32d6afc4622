#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Each feature of virtio_blk, as the device sees it."""

import errno
import fcntl
import os
import struct
from pathlib import Path

from suspend_lib import (
    PROMPT,
    Child,
    KernelLog,
    Modules,
    Skip,
    case,
    expect,
    expect_errno,
    require,
    run,
    sh,
    wait_for,
)

from blk_lib import (
    BLKDISCARD,
    BLKSECDISCARD,
    BLKZEROOUT,
    HDIO_GETGEO,
    SECTOR,
    Scattered,
    blocked,
    disk,
    driver_with,
    pattern,
    statistics,
    works,
)

MIB = 1 << 20

# So many requests, of which each might lose memory: more than others use meanwhile.
LOSSES = 500

# VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP
UNMAP = 1


def ranges(target, kind):
    return [(r["sector"], r["sectors"], r["flags"]) for r in target.report()["ranges"]
            if r["type"] == kind]


@case("what is written is read, and the device has counted it")
def counts():
    target = disk()
    target.mailbox.clear()
    before = statistics(target)
    for number in range(16):
        target.write(number * 8192, pattern(number, 8192))
    for number in range(16):
        expect(target.read(number * 8192, 8192), pattern(number, 8192), "what was written")
    after = statistics(target)
    for kind in ("in", "out"):
        guest = tuple(b - a for a, b in zip(before[kind], after[kind]))
        seen = target.report()["requests"][kind]
        expect((seen["ok"], seen["bytes"]), guest, f"requests of type {kind}")
    seen = target.report()["requests"]
    expect(seen["in"]["checksum"], seen["out"]["checksum"], "checksums")
    expect(target.report()["misplaced"], 0, "misplaced ranges")


@case("a large request has many segments")
def segments():
    target = disk()
    data = b"".join(pattern(number) for number in range(256))
    target.write(0, data)
    expect(target.read(0, len(data)), data, "what was written")


@case("SEG_MAX, SIZE_MAX, BLK_SIZE and TOPOLOGY are the limits of the queue")
def limits():
    values = {
        "seg_max": 5, "size_max": 16384, "blk_size": 4096, "physical_block_exp": 2,
        "alignment_offset": 1, "min_io_size": 4, "opt_io_size": 8,
    }
    with disk().like(**values) as target:
        for name, wanted in {
            "queue/max_segments": 5,
            "queue/max_segment_size": 16384,
            "queue/logical_block_size": 4096,
            "queue/physical_block_size": 16384,
            "alignment_offset": 4096,
            "queue/minimum_io_size": 16384,
            "queue/optimal_io_size": 32768,
        }.items():
            expect(target.number(name), wanted, name)
        works(target)
        expect_errno("EINVAL", "a write of half a block", target.write, 512, bytes(SECTOR))


@case("SIZE_MAX that the block layer can't bear is refused, and is no reason for a warning")
def size_max():
    target = disk()
    try:
        with target.like(size_max=1024):
            require(False, "it is bound")
    except OSError as error:
        expect(error.errno, errno.EINVAL, "the probe")
    works(target)


@case("FLUSH: fsync arrives as a flush, after the writes")
def flush():
    target = disk()
    target.write_file("cache_type", "write back")
    target.mailbox.clear()
    target.write(0, pattern(7))
    require(target.report()["unflushed"] > 0, "the write is not in the cache")
    target.flush()
    expect(target.requests("flush"), 1, "flushes")
    expect(target.report()["unflushed"], 0, "writes that were not flushed")


@case("CONFIG_WCE: cache_type is shown, and switches the cache of the device")
def cache_type():
    target = disk()
    try:
        for name, writeback in (("write through", False), ("write back", True)):
            target.write_file("cache_type", name)
            expect(target.report()["writeback"], writeback, f"the device with {name}")
            expect(target.read_file("cache_type"), name, "cache_type")
            expect(target.read_file("queue/write_cache"), name, "queue/write_cache")
        target.mailbox.clear()
        target.write_file("cache_type", "write through")
        target.write(0, pattern(1))
        target.flush()
        expect(target.requests("flush"), 0, "flushes without a cache")
        expect_errno("EINVAL", "nonsense", target.write_file, "cache_type", "write sideways")
        expect(target.read_file("cache_type"), "write through", "cache_type after nonsense")
    finally:
        target.write_file("cache_type", "write back")


@case("without CONFIG_WCE, cache_type can't be written")
def no_config_wce():
    target = disk()
    features = [f for f in target.report()["config"]["features"] if f != "config-wce"]
    with target.like(features=features):
        mode = os.stat(f"/sys/block/{target.name}/cache_type").st_mode & 0o777
        expect(mode, 0o444, "mode of cache_type")
        expect(target.read_file("cache_type"), "write back", "cache_type")
        expect(target.read_file("queue/write_cache"), "write back", "queue/write_cache")


@case("RO: a disk that can't be written")
def read_only():
    target = disk()
    features = target.report()["config"]["features"]
    with target.like(features=[*features, "ro"]):
        expect(target.number("ro"), 1, "ro")
        target.mailbox.clear()
        expect_errno("EPERM", "a write", target.write, 0, pattern(1))
        target.read(0, 4096)
        expect(target.requests("out"), 0, "writes that arrived")


@case("serial: what the device says, and nothing if it says nothing")
def serial():
    target = disk()
    target.mailbox.clear()
    expect(target.read_file("serial"), target.report()["config"]["serial"], "serial")
    expect(target.requests("get-id"), 1, "requests for it")
    with target.like(serial="a serial of 20 bytes"):
        expect(target.read_file("serial"), "a serial of 20 bytes", "serial")
    target.mailbox.command("device", set={"fail": {"type": "get-id", "status": "unsupp", "count": 1}})
    expect(target.read_file("serial"), "", "serial of a device that has none")


@case("DISCARD: the ranges arrive, those that waited for the device included")
def discard():
    target = disk()
    target.mailbox.clear()
    target.range_ioctl(BLKDISCARD, MIB, 2 * MIB)
    found = ranges(target, "discard")
    total = sum(sectors for _, sectors, _ in found)
    expect((found[0][0], total), (MIB // SECTOR, 2 * MIB // SECTOR), "what was discarded")
    require(all(flags == 0 for _, _, flags in found), "flags of a discard")

    target.dev.request("suspend")
    target.mailbox.clear()
    children = [Child(target.range_ioctl, BLKDISCARD, 2 * MIB * i, 65536) for i in range(4)]
    for child in children:
        blocked(child, 0.2)
    target.dev.request("resume")
    for child in children:
        expect(child.errno(), "success", "a discard")
    found = sorted((sector, sectors) for sector, sectors, _ in ranges(target, "discard"))
    expect(found, [(2 * MIB * i // SECTOR, 128) for i in range(4)], "ranges")


@case("DISCARD: several ranges in one request")
def discard_ranges():
    target = disk()
    target.mailbox.clear()
    # What is submitted together is merged.
    sh("fio", "--name=trim", f"--filename={target.path}", "--ioengine=io_uring",
       "--direct=1", "--rw=randtrim", "--bs=64k", "--size=4M", "--iodepth=16",
       "--iodepth_batch_submit=16", "--iodepth_batch_complete_min=16")  # fmt: skip
    report = target.report()["requests"]["discard"]
    expect(report["bytes"], 4 * MIB, "bytes discarded")
    require(report["ok"] <= 16, f"{report['ok']} requests for 64 ranges")
    found = ranges(target, "discard")
    require(all(sectors == 128 for _, sectors, _ in found), f"ranges: {found}")


@case("WRITE_ZEROES: the range reads as zero, and may be deallocated or not")
def write_zeroes():
    target = disk()
    target.write(0, pattern(3, 65536))
    target.mailbox.clear()
    target.range_ioctl(BLKZEROOUT, 4096, 32768)
    expect(ranges(target, "write-zeroes"), [(8, 64, 0)], "ranges with their flags")
    data = target.read(0, 65536)
    expect(data, pattern(3, 4096) + bytes(32768) + pattern(3, 65536 - 36864), "the data")
    expect(target.requests("out"), 0, "writes")
    target.mailbox.clear()
    sh("fallocate", "--punch-hole", "--offset=4096", "--length=8192", target.path)
    expect(ranges(target, "write-zeroes"), [(8, 16, UNMAP)], "ranges with their flags")


@case("SECURE_ERASE: the range arrives")
def secure_erase():
    target = disk()
    target.write(0, pattern(4, 65536))
    target.mailbox.clear()
    target.range_ioctl(BLKSECDISCARD, 0, 65536)
    total = sum(sectors for _, sectors, _ in ranges(target, "secure-erase"))
    expect(total, 65536 // SECTOR, "sectors erased")


@case("an error of the device is EIO, and an unknown request EOPNOTSUPP")
def errors():
    target = disk()
    for kind, status, name in (("in", "ioerr", "EIO"), ("in", "unsupp", "EOPNOTSUPP")):
        fail = {"type": kind, "status": status, "count": 1}
        target.mailbox.command("device", set={"fail": fail})
        expect_errno(name, f"a read that fails with {status}", target.read, 0, 4096)
    works(target)


@case("MQ: requests of a processor arrive in its queue")
def queues():
    target = disk()
    per_cpu = {}
    for directory in os.listdir(f"/sys/block/{target.name}/mq"):
        text = target.read_file(f"mq/{directory}/cpu_list")
        for cpu in text.replace(",", " ").split():
            per_cpu[int(cpu)] = int(directory)
    if len(set(per_cpu.values())) < 2:
        expect(len(per_cpu), os.cpu_count(), "processors that have a queue")
        return
    for cpu, queue in per_cpu.items():
        target.mailbox.clear()

        def read(cpu=cpu):
            os.sched_setaffinity(0, {cpu})
            for number in range(8):
                target.read(number * 4096, 4096)

        expect(Child(read).errno(), "success", "the reader")
        seen = target.report()["queues"]
        require(seen[queue] >= 8, f"processor {cpu} has queue {queue}, but the device saw {seen}")
        require(sum(seen) - seen[queue] <= 1, f"others got what is queue {queue}'s: {seen}")


@case("a polled queue completes without interrupts")
def polled():
    target = disk()
    with driver_with(target, poll_queues=1):
        expect(target.number("queue/io_poll"), 1, "io_poll")
        sh("fio", "--name=poll", f"--filename={target.path}", "--ioengine=io_uring",
           "--hipri=1", "--direct=1", "--rw=randread", "--bs=4k", "--size=1M",
           "--output-format=terse")
        require(sum(target.report()["queues"][1:]) >= 256, "nothing arrived in the polled queue")
        works(target)


@case("requests that are submitted together reach the device, with fewer notifications")
def batches():
    target = disk()
    target.mailbox.clear()
    sh("fio", "--name=batch", f"--filename={target.path}", "--ioengine=io_uring",
       "--direct=1", "--rw=randread", "--bs=4k", "--size=1M", "--iodepth=16",
       "--iodepth_batch_submit=16", "--iodepth_batch_complete_min=16")  # fmt: skip
    notifications = sum(target.mailbox.counters()["notify"])
    # What is adjacent is merged.
    seen = target.report()["requests"]["in"]
    require(seen["bytes"] >= MIB, "not all of them arrived")
    require(notifications < seen["ok"] // 2,
            f"{notifications} notifications for {seen['ok']} requests")


def read_deep(target, depth):
    sh("fio", "--name=deep", f"--filename={target.path}", "--ioengine=libaio", "--direct=1",
       "--rw=randread", "--bs=4k", "--size=2M", f"--iodepth={depth}")


@case("a ring that is full stops its queue, and goes on")
def full():
    target = disk()
    size = target.mailbox.stats()["queues"][0]["size"]
    # More requests than there is room for.
    with driver_with(target, num_request_queues=1, queue_depth=2 * size):
        target.mailbox.set(hold=True)
        reader = Child(read_deep, target, size + size // 2)
        wait_for(lambda: target.held() == size, "the ring is full", 10 * PROMPT)
        blocked(reader)
        target.mailbox.set(hold=False)
        expect(reader.errno(20 * PROMPT, "all are carried out"), "success", "the reader")
        works(target)


@case("the number and depth of queues can be limited, and sysfs shows the parameters")
def parameters():
    target = disk()
    shown = Path("/sys/module/virtio_blk/parameters")
    with driver_with(target, num_request_queues=1, queue_depth=4):
        values = {path.name: path.read_text() for path in shown.iterdir()}
        expect(values, {"num_request_queues": "1\n", "poll_queues": "0\n", "queue_depth": "4\n"},
               "the parameters")
        expect({path.stat().st_mode & 0o777 for path in shown.iterdir()}, {0o444}, "their mode")
        expect(os.listdir(f"/sys/block/{target.name}/mq"), ["0"], "queues")
        expect(target.number("mq/0/nr_tags"), 4, "tags")
        works(target)


@case("a request has as many segments as it needs, whatever it had before")
def segments_in_turn():
    target = disk()
    # One request at a time is always the same one, with what is left of the last time.
    with driver_with(target, num_request_queues=1, queue_depth=1), target.open() as fd:
        most = min(target.number("queue/max_segments"), 64)
        for turn, count in enumerate((1, 9, 8, most, 8, 2, 9, 1, 16, 7, 3)):
            data = [pattern(1000 * turn + number) for number in range(count)]
            with Scattered(count) as pages:
                pages.fill(data)
                expect(os.pwritev(fd, pages.views, 0), 4096 * count, "bytes written")
            expect(target.read(0, 4096 * count), b"".join(data), f"{count} segments, written")
            with Scattered(count) as pages:
                expect(os.preadv(fd, pages.views, 0), 4096 * count, "bytes read")
                expect(pages.contents(), data, f"{count} segments, read")


def allocated(cache):
    """How many objects of a cache are in use, or of one that it has been merged with."""
    return int(Path(f"/sys/kernel/slab/{cache}/objects").read_text().split()[0])


@case("what requests of many segments need is freed")
def segments_freed():
    if "kasan_quarantine_put" in Path("/proc/kallsyms").read_text():
        raise Skip("KASAN keeps what has been freed: there kmemleak has to do")
    target = disk()
    # One request is always the same: it would keep only the last table.
    with driver_with(target, num_request_queues=1, queue_depth=1), target.open() as fd:
        # More than eight are in a table of their own.
        with Scattered(16) as pages:
            for _ in range(50):
                os.preadv(fd, pages.views, 0)
            target.mailbox.clear()
            before = allocated("sgpool-16")
            for _ in range(LOSSES):
                expect(os.preadv(fd, pages.views, 0), 16 * 4096, "bytes read")
        grown = allocated("sgpool-16") - before
        # Each was one request: none has been split.
        expect(target.report()["requests"]["in"]["ok"], LOSSES, "requests")
        require(grown < LOSSES // 2, f"{grown} tables more than before, of {LOSSES} requests")


@case("a change of the capacity is seen, logged and announced")
def capacity():
    target = disk()
    before = target.sectors
    log = KernelLog()
    try:
        target.mailbox.command("device", set={"capacity": before // 2})
        wait_for(lambda: target.sectors == before // 2, "the disk has shrunk")
        text = f"[{target.name}] new size: {before // 2} 512-byte logical blocks (33.6 MB/32.0 MiB)"
        wait_for(lambda: any(text in line for line in log.lines()), "the log says so")
        expect_errno("ENOSPC", "a write behind the end", target.write, before // 2 * SECTOR,
                     pattern(1))
    finally:
        target.mailbox.command("device", set={"capacity": before})
        wait_for(lambda: target.sectors == before, "the disk has grown again")
    works(target)


@case("partitions are found when the disk is bound")
def partitions():
    target = disk()
    table = bytearray(SECTOR)
    table[446:462] = struct.pack("<B3sB3sII", 0, b"\0\0\0", 0x83, b"\0\0\0", 2048, 4096)
    table[510:512] = b"\x55\xaa"
    before = target.read(0, 4096)
    try:
        target.write(0, bytes(table) + bytes(4096 - SECTOR))
        target.dev.rebind()
        wait_for(lambda: os.path.exists(f"{target.path}1"), "the partition is there")
        expect(target.number(f"{target.name}1/start"), 2048, "its start")
        expect(target.number(f"{target.name}1/size"), 4096, "its size")
    finally:
        target.write(0, before)
        target.dev.rebind()


@case("the disk has the name and the geometry that the C driver gives it")
def identity():
    target = disk()
    require(target.name.startswith("vd"), f"the disk is called {target.name}")
    with target.open(os.O_RDONLY) as fd:
        geometry = fcntl.ioctl(fd, HDIO_GETGEO, bytes(16))
    heads, sectors, cylinders, _start = struct.unpack("BBHxxxxL", geometry)
    expect((heads, sectors, cylinders), (64, 32, target.sectors >> 11), "geometry")
    with open("/proc/devices", encoding="ascii") as file:
        major = [line.split()[0] for line in file if line.rstrip().endswith(" virtblk")]
    expect(target.read_file("dev").split(":")[0], major[0], "the major number")


@case("the module can't be unloaded while a disk is open")
def in_use():
    target = disk()
    with target.open(os.O_RDONLY):
        try:
            Modules.remove(Modules.BLOCK)
        except Exception as error:  # pylint: disable=broad-except
            require("in use" in str(error), f"rmmod: {error}")
        else:
            require(False, "rmmod succeeded")
        works(target)


if __name__ == "__main__":
    run(block=True)
