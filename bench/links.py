"""The scenario `links` of bench/run: what a pull costs on bad links, with ocistern and its peers in front of bench/link.

The upstream is bench/link, a registry that shapes what it sends in user space: a rate for the link, one for each connection,
a round trip before each answer, cuts (its head says how, and how honest its figures are). Nothing else is on the link, so
no network namespace is needed beside the one that bench/run is in; TCP sees loopback, so there is no slow start.

Parts, each a table: cut, parallel, lazy, herd-slow, throttled. Each is a generator of one or more of them: (name, rows for
the results, title, head, cells).
"""

import itertools
import json
import statistics
import sys
import time

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
MBIT = 10**6

FULL = {
    "cut": {"size": GIB, "every": 50 * MIB, "rate": 1000 * MBIT, "requests": 30},
    "parallel": {"size": 512 * MIB, "rate": 400 * MBIT, "workers": 16, "chunk": 8 * MIB},
    "lazy": {"size": 500 * MIB, "rate": 100 * MBIT, "latency": "50ms", "length": 64 * KIB, "share": 0.05, "limit": 300},
    "herd-slow": {"size": 2 * GIB, "rate": 100 * MBIT, "clients": 64},
    "throttled": {"size": 256 * MIB, "rate": 200 * MBIT, "per_connection": 20 * MBIT},
}
QUICK = {
    "cut": {"size": 64 * MIB, "every": 5 * MIB, "rate": 1000 * MBIT, "requests": 10},
    "parallel": {"size": 16 * MIB, "rate": 400 * MBIT, "workers": 16, "chunk": MIB // 2},
    "lazy": {"size": 20 * MIB, "rate": 100 * MBIT, "latency": "50ms", "length": 64 * KIB, "share": 0.05, "limit": 6},
    "herd-slow": {"size": 16 * MIB, "rate": 100 * MBIT, "clients": 64},
    "throttled": {"size": 8 * MIB, "rate": 200 * MBIT, "per_connection": 20 * MBIT},
}
# With slices nginx asks for ranges of its own; without them it takes a blob as a whole.
SYSTEMS = ["ocistern", "distribution", "nginx", "nginx-slice"]


def measure(bench):
    """Every table, as soon as it is measured."""
    sizes = QUICK if bench.options.quick else FULL
    for part in bench.options.links or PARTS:
        for name, rows, title, head, cells in PARTS[part](bench, **sizes[part]):
            yield name, rows, f"{title}{' (quick: a look, not a measurement)' if bench.options.quick else ''}", head, cells


def turns(bench, *before):
    """(round, system): who has its turn. distribution, which downloads for everybody who asks, has one round."""
    rounds = range(1 if bench.options.quick else bench.options.rounds)
    return [(turn, system) for turn, system in itertools.product(rounds, [*before, *bench.options.systems]) if turn == 0 or system != "distribution"]


class Turn:
    """One system, with an empty cache, for as long as it is measured."""

    def __init__(self, bench, system, **store):
        self.bench, self.system, self.store = bench, system, store

    def __enter__(self):
        self.process = None if self.system == "direct" else self.bench.start(self.system, **self.store)
        self.bench.link_forget()
        return self

    def __exit__(self, *_):
        if self.process:
            self.process.stop()

    def upstream_bytes(self):
        """Bytes of bodies since the turn began, when nothing has come for a while any more."""
        seen, since, deadline = -1, time.monotonic(), time.monotonic() + 120
        quiet = 0.4 if self.bench.options.quick else 1
        while time.monotonic() < min(since + quiet, deadline):
            now = self.bench.link_stats()["bytes"]
            if now != seen:
                seen, since = now, time.monotonic()
            time.sleep(0.05)
        return seen


def note(part, system, seen):
    print(f"# {part} {system}: {json.dumps(seen)}", file=sys.stderr)


def middles(seen):
    """{what: medians of its rounds}; what is true is so in all of them."""
    return {
        what: {"rounds": len(rounds), **{key: all(one[key] for one in rounds) if isinstance(rounds[0][key], bool) else statistics.median(one[key] for one in rounds)
                                         for key in rounds[0]}}
        for what, rounds in seen.items()
    }


def human(size):
    return f"{size / GIB:g} GiB" if size >= GIB else f"{size / MIB:g} MiB"


def seconds(value, whole=True):
    return f"{value:.1f}" if whole else f"gave up after {value:.1f}"


# --- parts -----------------------------------------------------------------------------------------------------------


def cut(bench, size, every, rate, requests):
    """A link that breaks over and over. Clients start over; the direct one is a better client, it goes on where it was."""
    bench.start_link(size, rate=rate, cut=every, reset=True)
    digest = bench.link_digest(size)
    seen = {}
    for _, system in turns(bench, "direct"):
        with Turn(bench, system) as turn:
            answer = bench.client("whole", bench.url(system, f"blobs/{digest}"), size=size, bytes=3 * size, again="range" if system == "direct" else "start",
                                  requests=2 * size // every if system == "direct" else requests)["sum"]
            one = {"ratio": turn.upstream_bytes() / size, **pick(answer)}
        seen.setdefault(system, []).append(one)
        note("cut", system, one)
    bench.upstream.stop()
    rows = [{"system": system, **values} for system, values in middles(seen).items()]
    yield ("cut", rows, f"{human(size)} over a link of {rate // MBIT} Mbit/s, cut every {human(every)} by a reset; a client gives up after {requests} requests or {human(3 * size)}",
           ["system", "upstream bytes ÷ blob", "client requests", "client errors", "seconds", "rounds"],
           [[{"direct": "direct, resumed by the client"}.get(row["system"], row["system"]), f"{row['ratio']:.3f}", f"{row['requests']:g}", f"{row['errors']:g}",
             seconds(row["seconds"], row["whole"]), row["rounds"]] for row in rows])


def pick(answer):
    """The figures of a client that have a median."""
    return {key: answer[key] for key in ("requests", "errors", "refused", "ignored", "wrong", "whole", "seconds")}


def parallel(bench, size, rate, workers, chunk):
    """One cold layer by many ranges at once, as containerd does, beside the same system's single fill."""
    bench.start_link(size, rate=rate)
    digest = bench.link_digest(size)
    limit = f"{8 * size * 8 // rate + 1}s"
    ways = {
        "one request": ("whole", {"requests": 1}),
        f"{workers} bounded ranges": ("parallel", {"workers": workers, "chunk": -(-size // workers)}),
        f"open ranges, broken off after {human(chunk)}, {workers} at once": ("parallel", {"workers": workers, "chunk": chunk, "open": True}),
    }
    seen = {}
    for (_, system), (way, (mode, flags)) in itertools.product(turns(bench, "direct"), ways.items()):
        with Turn(bench, system) as turn:
            answer = bench.client(mode, bench.url(system, f"blobs/{digest}"), size=size, limit=limit, **flags)["sum"]
            one = {"ratio": turn.upstream_bytes() / size, **pick(answer)}
        seen.setdefault((system, way), []).append(one)
        note(f"parallel, {way}", system, one)
    bench.upstream.stop()
    seen = middles(seen)
    single = next(iter(ways))
    rows = [{"system": system, "way": way, **values, "over_single": values["seconds"] / seen[system, single]["seconds"]} for (system, way), values in seen.items()]
    yield ("parallel", rows, f"One cold layer of {human(size)} over {rate // MBIT} Mbit/s",
           ["system", "asked for by", "upstream bytes ÷ blob", "seconds", "÷ its single fill", "ranges answered with the whole", "errors", "rounds"],
           [[row["system"], row["way"], f"{row['ratio']:.3f}", seconds(row["seconds"], row["whole"]), f"{row['over_single']:.3f}" if row["whole"] else "",
             f"{row['ignored']:g}", f"{row['errors']:g}", row["rounds"]] for row in rows])


def lazy(bench, size, rate, latency, length, share, limit):
    """A reader that touches a little of a blob. Each range comes direct and through the system, in turn."""
    bench.start_link(size, rate=rate, latency=latency)
    digest = bench.link_digest(size)
    count = round(size * share / length)
    seen = {}
    for turn_number, system in turns(bench, "direct"):
        store = {"range_fill": "never"} if system == "ocistern" else {}
        urls = [bench.url(name, f"blobs/{digest}") for name in dict.fromkeys(("direct", system))]
        with Turn(bench, system, **store) as turn:
            answer = bench.client("lazy", *urls, size=size, ranges=count, length=length, random=turn_number + 1, limit=f"{limit}s")
            beside, through = answer["readings"][0], answer["readings"][-1]
            # What the direct ones took themselves is no matter of the system's.
            own = beside["bytes"] if system != "direct" else 0
            sent = turn.upstream_bytes() - own
        times, direct = (sorted(one["times"]) or [float(limit)] for one in (through, beside))
        one = {"ratio": sent / (through["touched"] or length), "median": statistics.median(times), "p95": nearest(times, 0.95), "slowest": times[-1],
               "direct_median": statistics.median(direct), "direct_p95": nearest(direct, 0.95), "done": len(through["times"]),
               **{key: through[key] for key in ("errors", "ignored", "wrong", "whole")}}
        seen.setdefault(system, []).append(one)
        note("lazy", system, one)
    bench.upstream.stop()
    seen = middles(seen)
    quiet = seen["direct"]
    rows = []
    for system, row in seen.items():
        # A system that fills the link with something else slows the direct ranges beside it, too: the better ones count.
        row |= {f"over_direct_{what}": row[what] / min(row[f"direct_{what}"], quiet[what]) for what in ("median", "p95")}
        rows.append({"system": system, "range_fill": "never" if system == "ocistern" else None, **row})
    yield ("lazy", rows, f"{count} random ranges of {length // KIB} KiB of a cold blob of {human(size)}, {rate // MBIT} Mbit/s, {latency} a round trip; given up after {limit} s",
           ["system", "upstream bytes ÷ bytes touched", "median range, ms", "p95, ms", "slowest, ms", "median ÷ direct", "p95 ÷ direct", "ranges done", "answered with the whole", "errors", "rounds"],
           [[row["system"], f"{row['ratio']:.2f}", f"{row['median'] * 1000:.1f}", f"{row['p95'] * 1000:.1f}", f"{row['slowest'] * 1000:.1f}", f"{row['over_direct_median']:.3f}",
             f"{row['over_direct_p95']:.3f}", f"{row['done']:g}", f"{row['ignored']:g}", f"{row['errors']:g}", row["rounds"]] for row in rows])


def nearest(ordered, share):
    """That quantile, by the nearest rank."""
    return ordered[min(len(ordered) - 1, max(0, -(-int(share * 1000) * len(ordered) // 1000) - 1))]


def herd_slow(bench, size, rate, clients):
    """Many clients on one cold blob over a slow link; then the same with a SIGKILL when half of it has come. One round."""
    bench.start_link(size, rate=rate)
    digest = bench.link_digest(size)
    rows = []
    direct = None
    for system in ("direct", *bench.options.systems):
        herd = 1 if system == "direct" else clients
        limit = f"{3 * size * 8 // rate // 2 + 2}s"
        with Turn(bench, system) as turn:
            answer = bench.client("whole", bench.url(system, f"blobs/{digest}"), size=size, clients=herd, hash=8, requests=1, limit=limit)
            row = {"system": system, "case": "undisturbed", "clients": herd, "done": sum(one["whole"] for one in answer["clients"]), **pick(answer["sum"]),
                   "ratio": turn.upstream_bytes() / size}
        direct = direct or row["seconds"]
        rows.append({**row, "over_direct": row["seconds"] / direct})
        note("herd-slow", system, rows[-1])
    # distribution would take the time of all the clients' downloads. Of the peers, each with the clients that it can do most for.
    for system, again in (("ocistern", "range"), ("ocistern", "start"), ("nginx", "start"), ("nginx-slice", "range")):
        if system not in bench.options.systems:
            continue
        rows.append({"system": system, "case": f"SIGKILL at half, clients {'resume by range' if again == 'range' else 'start over'}", "clients": clients,
                     **killed(bench, system, digest, size, clients, again, 3 * size * 8 // rate + 10)})
        rows[-1]["over_direct"] = rows[-1]["seconds"] / direct
        note("herd-slow", system, rows[-1])
    bench.upstream.stop()
    yield ("herd-slow", rows, f"{clients} clients, one cold blob of {human(size)}, {rate // MBIT} Mbit/s",
           ["system", "case", "clients", "upstream bytes ÷ blob", "last client, s", "÷ one direct pull", "clients served whole", "requests of the clients", "rounds"],
           [[row["system"], row["case"], row["clients"], f"{row['ratio']:.3f}", seconds(row["seconds"], row["whole"]), f"{row['over_direct']:.3f}" if row["whole"] else "",
             row["done"], row["requests"], 1] for row in rows])


def killed(bench, system, digest, size, clients, again, limit):
    with Turn(bench, system) as turn:
        client = bench.client("whole", bench.url(system, f"blobs/{digest}"), size=size, clients=clients, hash=8, again=again, bytes=3 * size, limit=f"{limit}s", wait=False)
        while bench.link_stats()["bytes"] < size // 2 and client.poll() is None:
            time.sleep(0.02)
        turn.process.kill()
        before = bench.link_stats()["bytes"]
        begun = time.monotonic()
        turn.process = bench.start(system, keep=True)
        away = time.monotonic() - begun
        answer = json.loads(client.communicate()[0])
        return {"ratio": turn.upstream_bytes() / size, "before_kill": before / size, "away": away, "done": sum(one["whole"] for one in answer["clients"]), **pick(answer["sum"])}


def throttled(bench, size, rate, per_connection):
    """A registry that gives each connection a part of what the link could carry."""
    bench.start_link(size, rate=rate, per_connection=per_connection)
    digest = bench.link_digest(size)
    limit = f"{3 * size * 8 // per_connection + 5}s"
    seen = {}
    for _, system in turns(bench, "direct"):
        with Turn(bench, system) as turn:
            answer = bench.client("whole", bench.url(system, f"blobs/{digest}"), size=size, requests=1, limit=limit)["sum"]
            one = {"ratio": turn.upstream_bytes() / size, "connections": bench.link_stats()["connections"], "rate": answer["bytes"] * 8 / answer["seconds"], **pick(answer)}
        seen.setdefault(system, []).append(one)
        note("throttled", system, one)
    bench.upstream.stop()
    seen = middles(seen)
    rows = [{"system": system, **row, "over_direct": row["rate"] / seen["direct"]["rate"]} for system, row in seen.items()]
    yield ("throttled", rows, f"{human(size)} over {rate // MBIT} Mbit/s of which a connection gets {per_connection // MBIT} Mbit/s",
           ["system", "Mbit/s", "÷ a direct connection", "seconds", "upstream bytes ÷ blob", "connections", "rounds"],
           [[row["system"], f"{row['rate'] / MBIT:.1f}", f"{row['over_direct']:.2f}", seconds(row["seconds"], row["whole"]), f"{row['ratio']:.3f}", f"{row['connections']:g}",
             row["rounds"]] for row in rows])


PARTS = {"cut": cut, "parallel": parallel, "lazy": lazy, "herd-slow": herd_slow, "throttled": throttled}
