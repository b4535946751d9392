"""The scenario `scale` of bench/run: what more of everything costs ocistern; no peers.

Three tables: requests a second for a warm manifest over 1 to 10,000 connections (wrk); a store of 1,000 to 1,000,000 blobs, how long it
takes to start, what it adds to resident memory, and requests a second for what is popular in it; and the same thousand cold blobs of
256 KiB to 1 MiB by 1 to 1,000 connections at once, each asking for one after the other, from bench/link without a limit.

Files of blobs that nobody asks for are put into the store directly, while ocistern is stopped, as `start` does.
"""

import hashlib
import os
import statistics
import sys
import time
from warm import Case, wrk

KIB, MIB = 1 << 10, 1 << 20
SMALL = 4 * KIB
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
# Loopback is not counted for an address, but all connections are.
LIMITS = {"connections": 20_000}


def measure(bench):
    """What more connections, blobs and fills cost."""
    fills = 100 if bench.options.quick else 1000
    bench.start_link(SMALL, many=(1, fills, 256 * KIB, MIB, 1))
    yield connections(bench)
    yield store(bench)
    yield cold(bench, fills)
    bench.upstream.stop()


def connections(bench):
    counts = (1, 10, 100, 1000) if bench.options.quick else (1, 10, 100, 1000, 10_000)
    manifest, seen = bench.link_manifest(), {}
    process = bench.start("ocistern", access_log=False, limits=LIMITS)
    check(bench, f"manifests/{manifest}", manifest)
    for _ in range(bench.options.rounds):
        for count in counts:
            one = rate(bench, f"manifests/{manifest}", count)
            one["resident"] = process.resident()
            seen.setdefault(count, []).append(one)
            print(f"# scale, {count} connections: {one}", file=sys.stderr)
            # Closed connections are gone before the next ones come.
            time.sleep(1)
    check(bench, f"manifests/{manifest}", manifest)
    process.stop()
    rows = [{"connections": count, "rounds": len(runs), **middle(runs), "spread": spread(runs, "rate")} for count, runs in seen.items()]
    one = rows[0]["rate"]
    return ("connections", rows, f"A warm manifest by digest, {bench.options.seconds} s each", ["connections", "requests a second", "least to most", "÷ one connection", "p99, ms", "bad answers", "RSS then, MiB", "rounds"],
            [[f"{row['connections']:,}", f"{row['rate']:,.0f}", "{:,.0f} to {:,.0f}".format(*row["spread"]), f"{row['rate'] / one:.2f}", f"{row['p99']:.2f}", int(row["bad"]),
              f"{row['resident']:.0f}", row["rounds"]] for row in rows])


def store(bench):
    counts = (1000, 10_000) if bench.options.quick else (1000, 10_000, 100_000, 1_000_000)
    manifest, small = bench.link_manifest(), bench.link_digest(SMALL)
    process = bench.start("ocistern", access_log=False)
    check(bench, f"manifests/{manifest}", manifest)
    check(bench, f"blobs/{small}", small)
    process.stop()
    blobs = bench.work / "ocistern/blobs/sha256"
    rows, written = [], len(list(blobs.iterdir()))
    for count in counts:
        while written < count:
            content = str(written).encode()
            (blobs / hashlib.sha256(content).hexdigest()).write_bytes(content)
            written += 1
        # The first start finds new files, which is a matter of `start`; the second one knows them.
        process = counted(bench, count)
        process.stop()
        seen = []
        for _ in range(bench.options.rounds):
            os.sync()
            begun = time.monotonic()
            process = bench.start("ocistern", keep=True, access_log=False)
            served = bench.first_answer("ocistern", "manifests/1", begun)
            wait(bench, count)
            known = time.monotonic() - begun
            # A moment for what only starting took.
            time.sleep(1)
            one = {"served": served, "known": known, "resident": process.resident(), "peak": process.peak_resident()}
            for name, path, digest in (("manifest", f"manifests/{manifest}", manifest), ("blob", f"blobs/{small}", small)):
                check(bench, path, digest)
                found = rate(bench, path, 32)
                if found["bad"]:
                    sys.exit(f"bench: {found['bad']} bad answers of ocistern for {path}")
                one |= {name: found["rate"], f"{name}_p99": found["p99"]}
            process.stop()
            seen.append(one)
            print(f"# scale, {count} blobs: {one}", file=sys.stderr)
        rows.append({"blobs": count, "rounds": len(seen), **middle(seen), "spread": spread(seen, "manifest")})
    least = rows[0]
    for row in rows:
        row["added"] = row["resident"] - least["resident"]
    return ("store", rows, "A store of so many blobs, 32 connections, files in the page cache",
            ["blobs", "manifest, requests a second", "least to most", "÷ the first", "blob of 4 KiB, requests a second", "÷ the first", "first manifest served, s", "all counted, s", "RSS, MiB", f"more than with {least['blobs']:,}", "peak", "rounds"],
            [[f"{row['blobs']:,}", f"{row['manifest']:,.0f}", "{:,.0f} to {:,.0f}".format(*row["spread"]), f"{row['manifest'] / least['manifest']:.2f}", f"{row['blob']:,.0f}",
              f"{row['blob'] / least['blob']:.2f}", f"{row['served']:.2f}", f"{row['known']:.2f}", f"{row['resident']:.0f}", f"{row['added']:.0f}", f"{row['peak']:.0f}", row["rounds"]] for row in rows])


def cold(bench, fills):
    counts = (1, 10, 100) if bench.options.quick else (1, 10, 100, 1000)
    file, known = bench.link_list("fills", begin=1)
    size, seen = sum(size for _, size in known), {}
    for _ in range(bench.options.rounds):
        for count in counts:
            process = bench.start("ocistern", access_log=False, limits=LIMITS)
            bench.link_forget()
            os.sync()
            before, begun = process.resident(), time.monotonic()
            one = bench.mix("once", bench.url("ocistern", "").rstrip("/"), connections=count, blobs=file)
            while not one["errors"] and (bench.metric("fills_in_progress") > 0 or bench.metric("store_blobs") < fills):
                time.sleep(0.01)
            stored = time.monotonic() - begun
            if one["errors"] or one["requests"] != fills:
                sys.exit(f"bench: {one['errors']} bad answers of ocistern to {count} fills at once: {one['error']}")
            found = {"rate": one["rate"], "stored": fills / stored, "p50": one["p50"], "p99": one["p99"], "peak": process.peak_resident(), "before": before,
                     "upstream": bench.link_stats()["bytes"] / size}
            process.stop()
            seen.setdefault(count, []).append(found)
            print(f"# scale, {count} fills at once: {found}", file=sys.stderr)
    rows = [{"at once": count, "fills": fills, "bytes": size, "rounds": len(runs), **middle(runs), "spread": spread(runs, "rate")} for count, runs in seen.items()]
    return ("fills", rows, f"{fills:,} cold blobs of 256 KiB to 1 MiB ({size / MIB:.0f} MiB), none asked for twice",
            ["at once", "fills a second", "least to most", "until all are stored, a second", "p50, ms", "p99, ms", "upstream bytes ÷ blobs", "peak RSS, MiB", "more than before it", "rounds"],
            [[f"{row['at once']:,}", f"{row['rate']:,.0f}", "{:,.0f} to {:,.0f}".format(*row["spread"]), f"{row['stored']:,.0f}", f"{row['p50']:.1f}", f"{row['p99']:.1f}", f"{row['upstream']:.3f}",
              f"{row['peak']:.0f}", f"{row['peak'] - row['before']:.0f}", row["rounds"]] for row in rows])


def rate(bench, path, count):
    """Requests a second for one path over so many connections."""
    # So many connections take a while to be made.
    seconds = max(bench.options.seconds, 10) if count >= 10_000 else bench.options.seconds
    requests, _, took, latency, bad = wrk(Case(path, path, count, 0), bench.url("ocistern", path), seconds, MANIFEST)
    return {"rate": requests / took, "p99": latency or 0, "bad": bad}


def check(bench, path, digest):
    _, broken = bench.get(bench.url("ocistern", path), verify=True, digest=digest)
    if broken:
        sys.exit(f"bench: ocistern does not answer rightly for {path}")


def counted(bench, count):
    process = bench.start("ocistern", keep=True, access_log=False)
    wait(bench, count)
    return process


def wait(bench, count):
    """Until all blobs are counted."""
    deadline = time.monotonic() + 300
    while bench.metric("store_blobs") < count:
        if time.monotonic() > deadline:
            sys.exit(f"bench: ocistern has counted {bench.metric('store_blobs'):.0f} of {count} blobs in 5 minutes")
        time.sleep(0.02)


def middle(runs):
    return {key: statistics.median(run[key] for run in runs) for key in runs[0]}


def spread(runs, key):
    return [min(run[key] for run in runs), max(run[key] for run in runs)]
