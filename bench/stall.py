"""The scenario `stall` of bench/run: pulls over far more content than fits into memory must not hold up who asks for something else.

The server is in a memory control group of its own (512 MiB, page cache included), its store has 20,000 blobs of 64 KiB to 4 MiB, 5 GiB
in all. 8 connections go over all of them in a loop, so most reads come from the disk and push out what was read before; another
connection asks for a manifest by tag 100 times a second. The client of the loop has the lowest priority (nice 19), and once runs as fast
as it can, once at a pace that leaves the processors time.

On two shared processors any load makes every answer later. So a second beat goes to a control at the same time: the same manifest
from bench/link, which is outside of the control group and has nothing else to do. What the loop does to the control is the machine's;
`÷ control` is the one ratio over the other.

The control group is a child of the one that the benchmark is in (cgroup v1; with v2 a brother, which has not been tried) and is removed in
the end. The store is filled by pulls
before the server joins it, and then put out of the page cache, file by file (posix_fadvise): pages belong to the group that reads
them first.
"""

import contextlib
import json
import os
import re
import statistics
import sys
import time
from pathlib import Path

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
SYSTEMS = ("ocistern", "nginx")
CONNECTIONS, BEAT, GOAL = 8, 100, 2


def measure(bench):
    """A manifest asked for while more content than memory is read."""
    options = bench.options
    # Sizes are skewed: most blobs are small, as in registries.
    count, limit, seconds = (1000, 64 * MIB, 4) if options.quick else (20_000, 512 * MIB, 3 * options.seconds)
    pace = (64 if options.quick else 128) * MIB
    bench.start_link(many=(1, count, 64 * KIB, 4 * MIB, 6))
    blobs, known = bench.link_list("stall")
    size, manifest = sum(size for _, size in known), bench.link_manifest()
    for name in SYSTEMS:
        process = bench.start(name, access_log=False, blobs=count)
        ask(bench, name, blobs, count)
        # The last of them may still be on its way to the disk.
        time.sleep(2)
        process.stop()
    os.sync()
    seen = {}
    loads = {"quiet": None, "loop": 0, "paced loop": pace}
    for turn in range(options.rounds):
        for name in SYSTEMS[turn % 2:] + SYSTEMS[:turn % 2]:
            forget(bench.work / name)
            with memory_group(limit) as group:
                process = bench.start(name, keep=True, access_log=False, blobs=count, within=group / "cgroup.procs")
                try:
                    bench.mix("beat", bench.url(name, "manifests/1"), rate=BEAT, seconds=1, digest=manifest)
                    for load, at in loads.items():
                        one = beaten(bench, process, name, blobs, manifest, seconds, at)
                        seen.setdefault((name, load), []).append(one)
                        print(f"# stall {name}, {load}: {one}", file=sys.stderr)
                finally:
                    process.stop()
    for name in SYSTEMS:
        process = bench.start(name, keep=True, access_log=False, blobs=count)
        ask(bench, name, blobs, count)
        process.stop()
    bench.upstream.stop()
    rows = []
    for (name, load), runs in seen.items():
        quiet = seen[name, "quiet"]
        row = {"system": name, "load": load, "rounds": len(runs), "store": size, "limit": limit, **{key: statistics.median(run[key] for run in runs) for key in runs[0]}}
        row["spread"] = [min(run["p99"] for run in runs), max(run["p99"] for run in runs)]
        # Of one round each.
        row["ratio"] = statistics.median(run["p99"] / calm["p99"] for run, calm in zip(runs, quiet))
        row["control_ratio"] = statistics.median(run["control_p99"] / calm["control_p99"] for run, calm in zip(runs, quiet))
        row["over_control"] = statistics.median(run["p99"] / calm["p99"] / (run["control_p99"] / calm["control_p99"]) for run, calm in zip(runs, quiet))
        rows.append(row)
    yield ("stall", rows, f"A manifest {BEAT} times a second while {CONNECTIONS} connections loop over {count:,} blobs ({size / GIB:.1f} GiB) in {limit // MIB} MiB of memory, {seconds} s each; goal ≤ {GOAL}",
           ["system", "load", "p50, ms", "p99, ms", "least to most", "max, ms", "p99 ÷ quiet", "control: p99, ms", "max, ms", "p99 ÷ quiet", "÷ control", "loop, MiB/s", "from the disk, MiB/s", "rounds"],
           [[row["system"], row["load"], f"{row['p50']:.2f}", f"{row['p99']:.2f}", "{:.2f} to {:.2f}".format(*row["spread"]), f"{row['max']:.1f}", f"{row['ratio']:.2f}",
             f"{row['control_p99']:.2f}", f"{row['control_max']:.1f}", f"{row['control_ratio']:.2f}", f"{row['over_control']:.2f}", f"{row['loop'] / MIB:.0f}", f"{row['disk'] / MIB:.0f}",
             row["rounds"]] for row in rows])


def beaten(bench, process, name, blobs, manifest, seconds, pace):
    """One beat on the server and one on the control, with a loop unless the pace is None."""
    loop = None
    if pace is not None:
        # It begins before and ends after them.
        loop = bench.mix("loop", bench.url(name, "").rstrip("/"), wait=False, nice=19, blobs=blobs, connections=CONNECTIONS, seconds=seconds + 3, pace=pace)
        time.sleep(2)
    read, begun = from_disk(process), time.monotonic()
    beats = [bench.mix("beat", bench.url(system, "manifests/1"), wait=False, rate=BEAT, seconds=seconds, digest=manifest) for system in (name, "direct")]
    one, control = (json.loads(beat.communicate()[0]) for beat in beats)
    disk = (from_disk(process) - read) / (time.monotonic() - begun)
    looped = json.loads(loop.communicate()[0]) if loop else {"errors": 0, "bytes": 0, "seconds": 1}
    for who, result in (("the beat", one), ("the control", control), ("the loop", looped)):
        if result["errors"]:
            sys.exit(f"bench: {result['errors']} bad answers of {name} to {who}: {result['error']}")
    return {**{key: one[key] for key in ("p50", "p99", "p999", "max", "requests")}, **{f"control_{key}": control[key] for key in ("p50", "p99", "max")},
            "loop": looped["bytes"] / looped["seconds"], "disk": disk}


def from_disk(process):
    """Bytes that the server's processes have had read from the disk."""
    total = 0
    for pid in process.pids():
        with contextlib.suppress(OSError):
            total += int(re.search(r"^read_bytes: (\d+)", Path(f"/proc/{pid}/io").read_text(), re.MULTILINE).group(1))
    return total


def ask(bench, name, blobs, count):
    """Every blob once, hashed."""
    seen = bench.mix("once", bench.url(name, "").rstrip("/"), blobs=blobs, connections=CONNECTIONS)
    if seen["errors"] or seen["requests"] != count:
        sys.exit(f"bench: {name} does not answer rightly: {seen.get('error')}")


def forget(root):
    """Puts the files out of the page cache."""
    for path in root.rglob("*"):
        if path.is_file():
            file = os.open(path, os.O_RDONLY)
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(file)


@contextlib.contextmanager
def memory_group(limit):
    """A control group with so much memory for processes and page cache, below the one that this process is in."""
    group, file = None, None
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        mount, _, kind = line.partition(" - ")
        fields, (kind, _, flags) = mount.split(), kind.split()[:3]
        own = {names: path for _, names, path in (entry.split(":", 2) for entry in Path("/proc/self/cgroup").read_text().splitlines())}
        if kind == "cgroup" and "memory" in flags.split(","):
            path = next(path for names, path in own.items() if "memory" in names.split(","))
            group, file = Path(fields[4]) / path.lstrip("/"), "memory.limit_in_bytes"
            break
        if kind == "cgroup2" and "memory" in (Path(fields[4]) / "cgroup.controllers").read_text().split():
            # One that has processes may have no children with limits: a brother then.
            group, file = (Path(fields[4]) / own[""].lstrip("/")).parent if own[""] != "/" else Path(fields[4]), "memory.max"
    if group is None:
        sys.exit("bench: stall needs a control group for memory, and there is none here")
    child = group / f"ocistern-bench.{os.getpid()}"
    child.mkdir()
    try:
        (child / file).write_text(str(limit))
        yield child
    finally:
        # Those in it have ended; the last of them may still be on its way out.
        for _ in range(200):
            with contextlib.suppress(OSError):
                child.rmdir()
                break
            time.sleep(0.05)
        else:
            print(f"bench: {child} is left behind", file=sys.stderr)
