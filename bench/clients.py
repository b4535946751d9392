"""The scenario `image` of bench/run: how long real clients take for a whole image that every cache has already.

The image has 100 layers of 1 MiB of random bytes, each a gzipped tar of one file. skopeo copies it into a directory and into an
OCI layout; containerd, a daemon of its own, fetches it (`ctr content fetch`) and pulls it, which unpacks it too. The systems take
turns; `direct` is the upstream itself, docker-registry with the image on its own disk. The clients' stores are in memory, so that
a disk that is busy with them does not decide, and are emptied before each pull: so is what skopeo remembers of blobs.

skopeo tries TLS first, also where it need not be verified. Varnish waits for the end of that strange request until its timeout_idle
of 5 s: that would be no figure of its pulls, so it is not measured there.

Unpacking is a third to a half of containerd's pull and no cache's matter, so the fetch alone is what a cache is measured by.
"""

import atexit
import gzip
import hashlib
import io
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tarfile
import time
import urllib.request
from pathlib import Path

KIB, MIB = 1 << 10, 1 << 20
TAG = "image"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
NOT_WITH = {("skopeo", "varnish"): "takes skopeo's attempt at TLS for a request that is not complete, and waits 5 s"}
CLIENTS = ("skopeo, dir:", "skopeo, oci:", "containerd, fetch", "containerd, pull with unpack")


def measure(bench):
    """A warm image by real clients."""
    options = bench.options
    absent = [tool for tool in ("skopeo", "containerd", "ctr") if not shutil.which(tool)]
    if absent:
        sys.exit(f"bench: image needs {', '.join(absent)} (Debian: skopeo containerd)")
    layers = 20 if options.quick else 100
    bench.start_upstream()
    digests, manifest = push(bench, layers, MIB)
    store = bench.work / "clients"
    store.mkdir()
    # skopeo keeps notes of blobs there: neither the system's are used nor changed.
    Path("/var/lib/containers").mkdir(exist_ok=True)
    for place in (store, "/var/lib/containers"):
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3g", "tmpfs", str(place)], check=True)
        atexit.register(subprocess.run, ["umount", "--lazy", str(place)], check=False)
    processes = {name: bench.start(name, access_log=False) for name in bench.systems()}
    systems = [*processes, "direct"]
    missing = {(client, name): reason for client in CLIENTS for name, reason in json.loads(os.environ.get("BENCH_MISSING", "{}")).items()}
    missing |= {(client, name): reason for client in CLIENTS for (program, name), reason in NOT_WITH.items() if client.startswith(program) and name in systems}
    daemon = Containerd(store)
    ways = {"skopeo, dir:": Skopeo(store, "dir"), "skopeo, oci:": Skopeo(store, "oci"), "containerd, fetch": Ctr(daemon, "fetch"),
            "containerd, pull with unpack": Ctr(daemon, "pull")}
    seen = {}
    try:
        # The first pull makes the caches warm; what comes from what is stored is checked afterwards, and once more in the end.
        for name in systems:
            pull(bench, ways["containerd, fetch"], name, manifest, digests)
        for turn in (None, *range(options.rounds), None):
            for client in CLIENTS:
                order = systems if turn is None else systems[turn % len(systems):] + systems[:turn % len(systems)]
                for name in (name for name in order if (client, name) not in missing):
                    took = pull(bench, ways[client], name, manifest, digests if turn is None else None)
                    if turn is not None:
                        seen.setdefault((client, name), []).append(took)
                        print(f"# image {client} {name}: {took:.3f} s", file=sys.stderr)
    finally:
        daemon.stop()
        for process in processes.values():
            process.stop()
        bench.upstream.stop()
    rows = []
    for (client, name), times in seen.items():
        ours = seen[client, "ocistern"]
        rows.append({"client": client, "system": name, "rounds": len(times), "seconds": statistics.median(times), "spread": [min(times), max(times)],
                     # Of one round each, so that what the machine did meanwhile is in both.
                     "ratio": statistics.median(mine / theirs for mine, theirs in zip(ours, times))})
    rows += [{"client": client, "system": name, "not_measured": reason} for (client, name), reason in missing.items()]
    yield ("image", rows, f"A warm image of {layers} layers of 1 MiB", ["client", "system", "seconds", "least to most", "ocistern ÷ it", "rounds"],
           [[row["client"], row["system"], f"not measured: {row['not_measured']}", "", "not measured", ""] if "not_measured" in row else
            [row["client"], row["system"], f"{row['seconds']:.3f}", "{:.3f} to {:.3f}".format(*row["spread"]), f"{row['ratio']:.3f}", row["rounds"]] for row in rows])


def pull(bench, way, name, manifest, digests):
    """Seconds of one pull into an empty store; with digests, what came is compared with them."""
    host = bench.url(name, "").split("/")[2]
    way.empty()
    begun = time.monotonic()
    done = subprocess.run([str(part) for part in way.command(f"{host}/bench/data:{TAG}")], text=True, capture_output=True)
    took = time.monotonic() - begun
    if done.returncode:
        sys.exit(f"bench: {way.command('…')[0]} cannot pull from {name}: {done.stderr[-2000:]}")
    if digests is not None and (found := way.content()) != {manifest, *digests}:
        sys.exit(f"bench: {name} gave {len(found)} pieces of content, of which {len(found & {manifest, *digests})} are right, of {len(digests) + 1}")
    return took


def push(bench, count, size):
    """An image of so many layers, in the upstream: the digests of its blobs, and that of its manifest."""
    base = bench.url("direct", "").rstrip("/")
    file, layers, diff_ids = bench.work / "layer", [], []

    def put(content, media):
        file.write_bytes(content)
        digest = "sha256:" + hashlib.sha256(content).hexdigest()
        bench.put_blob(base, file, digest)
        return {"mediaType": media, "digest": digest, "size": len(content)}

    for number in range(count):
        tar = io.BytesIO()
        with tarfile.open(fileobj=tar, mode="w") as archive:
            entry = tarfile.TarInfo(f"file{number}")
            entry.size, entry.mode = size, 0o644
            archive.addfile(entry, io.BytesIO(os.urandom(size)))
        diff_ids.append("sha256:" + hashlib.sha256(tar.getvalue()).hexdigest())
        layers.append(put(gzip.compress(tar.getvalue(), 1, mtime=0), "application/vnd.oci.image.layer.v1.tar+gzip"))
    config = {"architecture": "amd64", "os": "linux", "config": {}, "rootfs": {"type": "layers", "diff_ids": diff_ids}}
    config = put(json.dumps(config).encode(), "application/vnd.oci.image.config.v1+json")
    file.unlink()
    text = json.dumps({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers}).encode()
    request = urllib.request.Request(f"{base}/manifests/{TAG}", text, {"Content-Type": MANIFEST}, method="PUT")
    with urllib.request.urlopen(request) as answer:
        return [part["digest"] for part in (config, *layers)], answer.headers["Docker-Content-Digest"]


def digest_of(path):
    return "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()


class Skopeo:
    """skopeo into a place of that kind."""

    def __init__(self, store, kind):
        self.kind, self.place = kind, store / kind

    def empty(self):
        shutil.rmtree(self.place, ignore_errors=True)
        shutil.rmtree("/var/lib/containers/cache", ignore_errors=True)

    def command(self, reference):
        target = f"{self.kind}:{self.place}" + (":1" if self.kind == "oci" else "")
        return ["skopeo", "--insecure-policy", "copy", "--quiet", "--src-tls-verify=false", f"docker://{reference}", target]

    def content(self):
        """Digests of all that came, hashed again."""
        if self.kind == "oci":
            return {digest_of(path) for path in (self.place / "blobs/sha256").iterdir()}
        return {digest_of(path) for path in self.place.iterdir() if path.name != "version"}


class Containerd:
    """A containerd of the benchmark's own, with nothing in it."""

    def __init__(self, store):
        self.place = store / "containerd"
        self.place.mkdir()
        self.socket = self.place / "containerd.sock"
        config = self.place / "config.toml"
        config.write_text(f"""version = 2
root = "{self.place}/root"
state = "{self.place}/state"
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.internal.v1.opt", "io.containerd.nri.v1.nri", "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime"]

[grpc]
address = "{self.socket}"

[ttrpc]
address = "{self.socket}.ttrpc"
""")
        self.log = (self.place / "log").open("wb")
        self.process = subprocess.Popen(["containerd", "--config", str(config)], stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log)
        atexit.register(self.stop)
        deadline = time.monotonic() + 30
        while subprocess.run(self.ctr("version"), capture_output=True).returncode:
            if self.process.poll() is not None or time.monotonic() > deadline:
                sys.exit(f"bench: containerd does not start:\n{(self.place / 'log').read_text()[-2000:]}")
            time.sleep(0.05)
        # Since 1.7 ctr leaves a pull to the daemon unless it is told.
        self.local = ["--local"] if "--local" in subprocess.run(["ctr", "images", "pull", "--help"], text=True, capture_output=True).stdout else []

    def ctr(self, *command):
        return ["ctr", "--address", str(self.socket), "--namespace", "bench", *command]

    def listed(self, *command):
        return subprocess.run(self.ctr(*command), check=True, text=True, capture_output=True).stdout.split()

    def stop(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


class Ctr:
    """ctr, which fetches or pulls."""

    def __init__(self, daemon, how):
        self.daemon, self.how = daemon, how

    def empty(self):
        images = self.daemon.listed("images", "ls", "--quiet")
        if images:
            self.daemon.listed("images", "rm", "--sync", *images)
        left = self.daemon.listed("content", "ls", "--quiet")
        if left:
            sys.exit(f"bench: containerd has kept {len(left)} pieces of content")

    def command(self, reference):
        # With --debug it shows no progress, which would end with a tick of 100 ms only.
        if self.how == "fetch":
            return self.daemon.ctr("--debug", "content", "fetch", "--plain-http", reference)
        return self.daemon.ctr("--debug", "images", "pull", "--plain-http", *self.daemon.local, "--snapshotter", "overlayfs", reference)

    def content(self):
        """Digests of all that came, hashed again."""
        root = self.daemon.place / "root/io.containerd.content.v1.content/blobs/sha256"
        known = set(self.daemon.listed("content", "ls", "--quiet"))
        return {digest for digest in known if digest_of(root / digest.partition(":")[2]) == digest}
