"""The scenario `zipf` of bench/run: many small blobs, all in the cache, drawn by Zipf's law as images of a registry are.

100,000 blobs of 1 to 16 KiB (the logarithms of their sizes evenly spread), which bench/link makes from their numbers, so that no
registry has to be filled first. Each cache is asked for each blob once, untimed, every body hashed; then the systems take turns,
32 connections, s = 1: the most popular blob is every twelfth request. Sizes of all answers are compared, and the digest of one in 64.
After the last round again every blob is hashed, by a client that asks for each once.

A cache whose warm-up takes longer than the limit (--warm-up), or would by its first hundredth, is left out, not estimated. nginx has room for the keys of all blobs,
and keeps as many of them open as it may.
"""

import statistics
import sys
import time

KIB, MIB = 1 << 10, 1 << 20
CONNECTIONS = 32
SYSTEMS = ("ocistern", "nginx", "distribution")


def measure(bench):
    """Mixed load over many small blobs."""
    options = bench.options
    count, seconds = (2000, 2) if options.quick else (options.zipf_blobs, 2 * options.seconds)
    bench.start_link(many=(1, count, KIB, 16 * KIB, 1))
    blobs, known = bench.link_list("zipf")
    processes = {}
    rows, filled = [], {}
    for name in (name for name in bench.systems() if name in (*SYSTEMS, "distribution3")):
        process = bench.start(name, access_log=False, blobs=count)
        few, some = bench.link_list("zipf-few", end=max(1, count // 100))
        probe = bench.mix("once", base(bench, name), blobs=few, connections=CONNECTIONS, limit=f"{options.warm_up}s")
        if probe["errors"]:
            sys.exit(f"bench: {name} does not answer rightly: {probe['error']}")
        if probe["seconds"] * 100 > options.warm_up:
            process.stop()
            rows.append({"system": name, "not_measured": f"{len(some):,} of {count:,} blobs took {probe['seconds']:.0f} s to warm it up"})
            continue
        seen = bench.mix("once", base(bench, name), blobs=blobs, connections=CONNECTIONS, limit=f"{options.warm_up}s")
        filled[name] = seen["seconds"]
        print(f"# zipf {name}, warm-up: {seen}", file=sys.stderr)
        if seen["errors"]:
            sys.exit(f"bench: {name} does not answer rightly: {seen['error']}")
        if seen["requests"] < count:
            process.stop()
            rows.append({"system": name, "not_measured": f"the warm-up had {seen['requests']:,} of {count:,} blobs after {options.warm_up} s"})
            continue
        processes[name] = process
    seen = {}
    # What the caches still have to write would be written at the cost of who is first.
    time.sleep(1 if options.quick else 10)
    for turn in range(options.rounds):
        order = list(processes)[turn % len(processes):] + list(processes)[:turn % len(processes)]
        for name in order:
            before = bench.link_stats()["bytes"]
            one = bench.mix("zipf", base(bench, name), blobs=blobs, connections=CONNECTIONS, seconds=seconds)
            if one["errors"] or not one["checked"]:
                sys.exit(f"bench: {one['errors']} bad answers of {name}: {one['error']}")
            one["upstream_bytes"] = bench.link_stats()["bytes"] - before
            seen.setdefault(name, []).append(one)
            print(f"# zipf {name}: {one}", file=sys.stderr)
    for name, process in processes.items():
        again = bench.mix("once", base(bench, name), blobs=blobs, connections=CONNECTIONS)
        if again["errors"] or again["requests"] != count:
            sys.exit(f"bench: {name} does not answer rightly: {again['error']}")
        row = {"system": name, "rounds": options.rounds, "blobs": count, "bytes": sum(size for _, size in known), "warm_up": filled[name], "peak": process.peak_resident(),
               **{key: statistics.median(run[key] for run in seen[name]) for key in ("rate", "p50", "p99", "p999", "max", "upstream_bytes", "requests", "checked", "errors")},
               "spread": [min(run["rate"] for run in seen[name]), max(run["rate"] for run in seen[name])],
               "ratio": statistics.median(ours["rate"] / theirs["rate"] for ours, theirs in zip(seen["ocistern"], seen[name])) if "ocistern" in seen else None}
        rows.append(row)
        process.stop()
    bench.upstream.stop()
    rows.sort(key=lambda row: list(bench.systems()).index(row["system"]))
    total = sum(size for _, size in known)
    yield ("zipf", rows, f"{count:,} blobs of 1 to 16 KiB, {total / MIB:.0f} MiB in all, by Zipf's law (s = 1), {CONNECTIONS} connections, {seconds} s each",
           ["system", "requests a second", "least to most", "ocistern ÷ it", "p50, ms", "p99, ms", "p99.9, ms", "errors", "bytes from upstream", "warm-up, s", "peak RSS, MiB", "rounds"],
           [[row["system"], f"not measured: {row['not_measured']}", *[""] * 10] if "not_measured" in row else
            [row["system"], f"{row['rate']:,.0f}", "{:,.0f} to {:,.0f}".format(*row["spread"]), "" if row["ratio"] is None else f"{row['ratio']:.2f}", f"{row['p50']:.2f}", f"{row['p99']:.2f}",
             f"{row['p999']:.2f}", int(row["errors"]), int(row["upstream_bytes"]), f"{row['warm_up']:.0f}", f"{row['peak']:.0f}", row["rounds"]] for row in rows])


def base(bench, name):
    return bench.url(name, "").rstrip("/")
