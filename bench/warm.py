"""What is in the cache already: requests a second, latency, and what they cost, beside the peers.

`wrk` asks for one path over connections that it keeps, `h2load` over HTTP/2. The systems take turns within a round; before
the first round and after the last one each answer is got whole and compared with its digest.
"""

import os
import re
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
SIZES = (4 * KIB, 64 * KIB, MIB, 64 * MIB, GIB)
TLS_SYSTEMS = ("ocistern", "nginx")


@dataclass(frozen=True)
class Case:
    """What is asked for, and how."""

    name: str
    path: str
    connections: int
    #: Bytes of an answer's body: where they are many, bytes are counted instead of whole answers.
    size: int
    tls: bool = False
    http2: bool = False
    range: str = ""

    @property
    def title(self):
        protocol = ("HTTP/2, " if self.http2 else "TLS 1.3, ") if self.tls else ""
        return f"{self.name}, {protocol}{self.connections} connection{'s' if self.connections > 1 else ''}"


def cases(bench):
    """The scenarios, by the options."""
    tag, digest = "manifests/1", f"manifests/{bench.manifest}"
    blob = {size: f"blobs/{bench.blobs[size]}" for size in SIZES if size in bench.blobs}
    length = bench.manifest_size
    found = [Case("manifest by tag", tag, count, length) for count in (1, 32, 512)]
    found += [Case("manifest by digest", digest, count, length) for count in (32, 512)]
    for size, counts in ((4 * KIB, (32,)), (64 * KIB, (1, 32, 512)), (MIB, (1, 32, 512)), (64 * MIB, (16,)), (GIB, (4,))):
        if size in blob:
            found += [Case(f"blob of {human(size)}", blob[size], count, size) for count in counts]
    found.append(Case("1 MiB of a blob of 64 MiB", blob[64 * MIB], 32, MIB, range="bytes=8388608-9437183"))
    found += [Case("manifest by digest", digest, 32, length, tls=True), Case("blob of 1 MiB", blob[MIB], 32, MIB, tls=True)]
    found += [Case("manifest by tag", tag, 32, length, tls=True, http2=True), Case("blob of 1 MiB", blob[MIB], 32, MIB, tls=True, http2=True)]
    wanted = bench.options.cases
    return [case for case in found if not wanted or any(word in case.title for word in wanted)]


def human(size):
    for unit, name in ((GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
        if size >= unit:
            return f"{size / unit:g} {name}"
    return f"{size} B"


class Usage:
    """Processor time and context switches of a server so far, its children included."""

    def __init__(self, process):
        self.cpu = self.switches = 0
        for pid in process.pids():
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            self.cpu += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
            for task in Path(f"/proc/{pid}/task").iterdir():
                status = (task / "status").read_text()
                self.switches += sum(int(count) for count in re.findall(r"ctxt_switches:\s+(\d+)", status))


def wrk(case, url, seconds, accept):
    """Requests, bytes of bodies and heads, seconds, the 99th percentile in ms, and bad answers."""
    command = ["wrk", f"-t{min(2, case.connections)}", f"-c{case.connections}", f"-d{seconds}s", "--timeout", "60s", "--latency", "-H", f"Accept: {accept}"]
    command += ["-H", f"Range: {case.range}"] if case.range else []
    text = subprocess.run([*command, url], check=True, text=True, capture_output=True).stdout
    bad = sum(int(count) for count in re.findall(r"Non-2xx or 3xx responses: (\d+)", text))
    errors = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", text)
    bad += sum(int(count) for count in errors.groups()) if errors else 0
    requests, took, read = re.search(r"(\d+) requests in ([\d.]+\w+), ([\d.]+\w+) read", text).groups()
    p99 = re.search(r"99%\s+([\d.]+\w+)", text)
    return int(requests), amount(read), span(took), span(p99.group(1)) * 1000 if p99 and int(requests) else None, bad


def h2load(case, url, seconds, accept):
    """The same by HTTP/2, eight streams a connection; it knows no percentiles, so that is the mean."""
    command = ["h2load", "-t2", f"-c{case.connections}", "-m8", f"-D{seconds}", "-H", f"accept: {accept}", url]
    text = subprocess.run(command, check=True, text=True, capture_output=True).stdout
    done, good = re.search(r"requests: \d+ total, \d+ started, (\d+) done, (\d+) succeeded", text).groups()
    took = span(re.search(r"finished in ([\d.]+\w+)", text).group(1))
    read = re.search(r"traffic: [\d.]+\w+ \((\d+)\) total", text).group(1)
    mean = re.search(r"time for request:\s+\S+\s+\S+\s+(\S+)", text).group(1)
    return int(good), int(read), took, span(mean) * 1000, int(done) - int(good)


def amount(text):
    number, unit = re.fullmatch(r"([\d.]+)([KMGT]?B)", text).groups()
    return float(number) * {"B": 1, "KB": KIB, "MB": MIB, "GB": GIB, "TB": GIB * KIB}[unit]


def span(text):
    number, unit = re.fullmatch(r"([\d.]+)(us|ms|s|m|h)", text).groups()
    return float(number) * {"us": 1e-6, "ms": 1e-3, "s": 1, "m": 60, "h": 3600}[unit]


def measure(bench, accept):
    """Yields rows, one a case."""
    options, todo = bench.options, cases(bench)
    bench.start_upstream()
    systems = bench.systems()
    processes = {name: bench.start(name, tls=name in TLS_SYSTEMS, access_log=options.access_log) for name in systems}
    check(bench, todo, processes, 2)
    seen = {}
    for turn in range(options.rounds):
        for case in todo:
            # Who goes first takes turns too.
            order = list(processes)[turn % len(processes):] + list(processes)[:turn % len(processes)]
            for name in (name for name in order if not case.tls or name in TLS_SYSTEMS):
                url = bench.url(name, case.path, tls=case.tls)
                before, began = Usage(processes[name]), time.monotonic()
                requests, read, took, latency, bad = (h2load if case.http2 else wrk)(case, url, options.seconds, accept)
                after = Usage(processes[name])
                # Of what is large a short run ends before an answer does.
                if bad or not (read if case.size >= MIB else requests):
                    sys.exit(f"bench: {bad} bad answers of {requests} of {name} for {case.title}")
                # Of what is large a run ends in the middle of answers.
                count = read / case.size if case.size >= MIB else requests
                seen.setdefault((case, name), []).append({
                    "rate": count / took, "latency": latency,
                    "cpu_us": (after.cpu - before.cpu) / count * 1e6, "switches": (after.switches - before.switches) / count,
                })
                print(f"# warm {case.title} {name}: {count / took:.1f}/s, {time.monotonic() - began:.1f} s", file=sys.stderr)
    check(bench, todo, processes, 1)
    resident = {name: process.peak_resident() for name, process in processes.items()}
    for process in processes.values():
        process.stop()
    bench.upstream.stop()
    rows = []
    for case in todo:
        found = {name: seen[case, name] for name in processes if (case, name) in seen}
        middle = {name: {key: statistics.median(run[key] for run in runs) if runs[0][key] is not None else None for key in runs[0]} for name, runs in found.items()}
        for name, runs in found.items():
            middle[name]["spread"] = [min(run["rate"] for run in runs), max(run["rate"] for run in runs)]
            # Of one round each: the noise of the machine from round to round is in neither.
            middle[name]["ratio"] = statistics.median(ours["rate"] / theirs["rate"] for ours, theirs in zip(found["ocistern"], runs))
        rows.append({"case": case.title, "bytes": case.size, "rounds": options.rounds, "systems": middle})
    return rows, resident


def check(bench, todo, processes, times):
    """Every system answers every case with the right bytes."""
    for name in processes:
        # Manifests first: a peer that takes over whole images has their blobs from then on.
        for path in sorted({case.path for case in todo}, reverse=True):
            for _ in range(times):
                digest = bench.manifest if path.startswith("manifests/") else path.partition("/")[2]
                _, broken = bench.get(bench.url(name, path), verify=True, digest=digest)
                if broken:
                    sys.exit(f"bench: {name} does not answer rightly for {path}")
