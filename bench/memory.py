"""The scenario `memory` of bench/run: resident memory of the systems, beside what they do.

Every case has a process of its own, because what an allocator keeps of one case would count for the next: idle a moment after the
start; while many clients read a warm blob of 64 MiB slowly; while many different blobs come cold at once; and with many connections
that nobody uses after a first request. The upstream is bench/link, at a rate by which the cold fills take 10 s and so overlap. Peaks
are VmHWM since the case began (clear_refs), of a process and its children: pages that they share count once for each.

What the kernel holds for sockets is not in it. A slow reader's receive buffer is small, so the server's side is what waits.
"""

import json
import statistics
import sys
import time

KIB, MIB = 1 << 10, 1 << 20
GOALS = {"idle": 15, "1,000 slow pulls of a warm 64 MiB": 80, "64 cold fills of 16 MiB": 96}
LARGE, FILL = 64 * MIB, 16 * MIB
# Bytes a second of a slow reader: a thousand of them together take half a gigabyte.
SLOW_RATE = 512 * KIB


def measure(bench):
    """Resident memory."""
    options = bench.options
    pulls, fills, seconds = (100, 16, 4) if options.quick else (1000, 64, 10)
    idles = (1, 100, 1000) if options.quick else (1, 100, 1000, 10_000)
    systems = [name for name in bench.systems() if name.startswith(("ocistern", "nginx", "distribution"))]
    # The first is the large one, of which the manifest is, too.
    bench.start_link(LARGE, many=(1, fills, FILL, FILL + 1, 1), rate=fills * FILL * 8 // seconds)
    large, manifest = bench.link_digest(LARGE), bench.link_manifest()
    cold, _ = bench.link_list("cold", begin=1)
    cases = ["idle", f"{pulls:,} slow pulls of a warm 64 MiB", f"{fills} cold fills of 16 MiB", *(f"{count:,} idle connection{'s' if count > 1 else ''}" for count in idles)]
    seen, errors = {}, {}
    for _ in range(options.rounds):
        for name in systems:
            for case in cases:
                # A cold case begins with nothing, the others with what the one before has stored.
                keep = case != "idle" and "cold" not in case
                process = bench.start(name, keep=keep, connections=12_000 if "idle connection" in case else 4096, limits={"connections": 20_000, "connections_per_address": 20_000})
                try:
                    one = measured(bench, process, name, case, large, manifest, cold, pulls, seconds)
                finally:
                    process.stop()
                if one.get("errors"):
                    # Not a figure of the case then, but of a part of it: said in the table.
                    errors[name, case] = one["error"]
                seen.setdefault((name, case), []).append(one)
                print(f"# memory {name}, {case}: {one}", file=sys.stderr)
    bench.upstream.stop()
    rows = []
    for case in cases:
        for name in systems:
            runs = seen[name, case]
            row = {"case": case, "system": name, "rounds": len(runs)}
            for key in ("resident", "peak", "added", "seconds"):
                if key in runs[0]:
                    row[key] = statistics.median(run[key] for run in runs)
            row["spread"] = [min(run["peak"] for run in runs), max(run["peak"] for run in runs)]
            rows.append(row | ({"error": errors[name, case]} if (name, case) in errors else {}))
    yield ("memory", rows, "Resident memory, MiB", ["case", "system", "now", "peak", "least to most", "more than before it", "took, s", "goal for ocistern", "rounds"],
           [[row["case"], row["system"], f"{row['resident']:.1f}", f"{row['peak']:.1f}", "{:.1f} to {:.1f}".format(*row["spread"]), f"{row['added']:.1f}",
             f"errors: {row['error']}" if "error" in row else f"{row['seconds']:.1f}", f"≤ {GOALS[row['case']]}" if row["case"] in GOALS and row["system"] == "ocistern" else "",
             row["rounds"]] for row in rows])


def measured(bench, process, name, case, large, manifest, cold, pulls, seconds):
    """One case of one system that has just been started: MiB now, the peak, and what both were before."""
    time.sleep(1)
    blob, image = bench.url(name, f"blobs/{large}"), bench.url(name, f"manifests/{manifest}")
    result = {"requests": 0, "errors": 0}
    if "slow" in case:
        # The first one brings it into the store, the second one is checked.
        for _ in range(2):
            ask(bench, blob, large)
    elif "idle connection" in case:
        ask(bench, image, manifest)
    before = process.resident()
    process.forget_peak()
    begun = time.monotonic()
    now = before
    if "slow" in case:
        result = bench.mix("slow", blob, connections=pulls, rate=SLOW_RATE, seconds=seconds, digest=large)
        now = process.resident()
    elif "cold" in case:
        result = bench.mix("once", bench.url(name, "").rstrip("/"), connections=64, blobs=cold)
        now = process.resident()
    elif "idle connection" in case:
        client = bench.mix("idle", image, wait=False, connections=int(case.split()[0].replace(",", "")), digest=manifest)
        result = json.loads(client.stdout.readline())
        time.sleep(1)
        now = process.resident()
        client.stdin.close()
        client.wait(30)
    took = time.monotonic() - begun
    peak = process.peak_resident()
    if "slow" in case:
        ask(bench, blob, large)
    return {"resident": now, "peak": peak, "added": peak - before, "seconds": took, "requests": result["requests"], "errors": result["errors"], "error": result.get("error", "")}


def ask(bench, url, digest):
    results, broken = bench.get(url, verify=True, digest=digest)
    if broken:
        sys.exit(f"bench: {url} is not answered rightly: {results}")
