"""A cluster of nodes of both kinds: what is published at any of them is at all of them, and a node that was killed catches up."""

import base64
import concurrent.futures
import json
import os
import time
import urllib.parse
import urllib.request

from checks import check, section
from nodes import HTTP_PORT, Node, children

ZONE = "fifty.characters.are.in.the.zone.of.a.cluster.test"
TOKEN = "op-cluster"
PEERS = "peers-of-the-cluster"
INTERVAL = 1  # seconds between two pulls; the reference asks one peer then
RECORDS = 5000  # of the first cluster
FEW = 600  # of the second
LIMIT = 120


class Run:
    def __init__(self, impl, work):
        if impl != "dmpd":
            raise SystemExit("a cluster of reference nodes alone is theirs to test")
        self.work, self.nodes = work, []

    def start(self):
        pass

    def close(self):
        pass

    def steps(self):
        self.cluster("two reference nodes and one dmpd", ["reference", "reference", "dmpd"], RECORDS)
        self.cluster("one reference node and two dmpd", ["reference", "dmpd", "dmpd"], FEW)

    def make(self, kinds):
        ips = [f"127.0.0.{11 + i}" for i in range(len(kinds))]
        nodes = []
        for i, kind in enumerate(kinds):
            key = os.path.join(self.work, f"{len(self.nodes)}-{i}.key")
            with open(key, "wb") as f:
                f.write(bytes([i + 1]) * 32)
            os.chmod(key, 0o600)
            nodes.append(Node(kind, self.work, f"{kind}{i}of{'-'.join(kinds)}", ZONE, ips[i], TOKEN,
                              sync_peers=",".join(f"http://{ip}:{HTTP_PORT}" for ip in ips if ip != ips[i]), sync_peer_token=PEERS, sync_interval=str(INTERVAL), node_id=f"n{i}",
                              heartbeat_enabled="1", heartbeat_self_endpoint=f"https://n{i}.example", heartbeat_operator_key_path=key, heartbeat_interval_seconds="5", **({"sync_native": "clear"} if kind == "dmpd" else {})))
        return nodes

    def post(self, node, first, count):
        """Publishes records number first to first + count at a node."""
        def one(i):
            status, _ = node.http("POST", f"/v1/records/{name(i)}", {"value": value(i), "ttl": 3600}, TOKEN)
            return status
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            return list(pool.map(one, range(first, first + count))).count(201)

    def feed(self, node):
        """All pairs that a node has, as its peers are told, but for the heartbeats."""
        pairs, cursor = set(), "0::"
        while True:
            r = urllib.request.Request(f"http://{node.ip}:{node.http_port}/v1/sync/digest?limit=10000&cursor={urllib.parse.quote(cursor)}", headers={"Authorization": "Bearer " + PEERS})
            with urllib.request.urlopen(r, timeout=30) as answer:
                d = json.load(answer)
            pairs |= {(e["name"], e["hash"]) for e in d["records"] if not e["name"].startswith("_dnsmesh-")}
            if not d["has_more"]:
                return pairs
            cursor = d["next_cursor"]

    def equal(self, what, nodes, count):
        began = time.monotonic()
        while True:
            feeds = [self.feed(n) for n in nodes]
            counts = [len(f) for f in feeds]
            if all(f == feeds[0] for f in feeds) and counts[0] == count or time.monotonic() - began > LIMIT:
                break
            time.sleep(0.5)
        check(f"{what}: all have the same {count}, within the reference's ticks", all(f == feeds[0] for f in feeds) and counts[0] == count, (counts, [n.tail(5) for n in nodes]))

    def cluster(self, what, kinds, records):
        section(f"{what}, a zone of {len(ZONE)} characters")
        nodes = self.make(kinds)
        self.nodes += nodes
        for n in nodes:
            n.need_free()
            n.start()
        for n in nodes:
            n.wait()
        share, have = records // len(nodes), 0
        for i, n in enumerate(nodes):
            count = share if i < len(nodes) - 1 else records - have
            check(f"{count} records are published at {n.name}", self.post(n, have, count) == count)
            have += count
        self.equal("after the writing", nodes, have)
        for i, n in enumerate(nodes):
            below = children(n.process.pid)
            n.process.kill()
            n.process.wait()
            while any(os.path.exists(f"/proc/{pid}") for pid, _ in below):  # they end with the one that started them
                time.sleep(0.05)
            other = nodes[(i + 1) % len(nodes)]
            posted = self.post(other, have, 50)
            have += posted
            n.start()
            n.wait()
            self.equal(f"{n.name} was killed, 50 came meanwhile, and it is back", nodes, have)
        wrong = [name(i) for i in range(0, have, 97) for n in nodes if n.values(name(i)) != {value(i)}]
        check("they answer over DNS", not wrong, wrong[:5])
        for n in nodes:
            self.nodes.remove(n)
            code = n.stop()
            check(f"{n.name} ends by itself", n.impl != "dmpd" or code == 0, (code, n.tail()))


def name(i):
    """A user's pool of prekeys: a record at a name that is not its type's does not replicate."""
    return f"prekeys.id-{i:012x}.{ZONE}"


def value(i):
    return "v=dmp1;t=prekey;d=" + base64.b64encode(i.to_bytes(4, "big") * 30).decode()
