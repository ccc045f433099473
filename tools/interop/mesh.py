"""A mesh of strangers: two of our nodes and a reference node find each other by DNS alone, and hand first-contact claims over."""

import base64
import json
import os
import subprocess
import time

from checks import check, equal, section
from client import Client
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

import records
from nodes import DNS_PORT, HTTP_PORT, ROOT, Node

TOKEN = "op-mesh"
LIMIT = 60  # seconds for what takes a round or two of 5 s
ZONES = ["east.test", "west.test", "north.test"]
PREFIX = "v=dmp1;t=heartbeat;"


def endpoints(values):
    """The endpoints in heartbeats: magic (7 bytes), length (2), endpoint."""
    found = []
    for v in values:
        body = base64.b64decode(v.removeprefix(PREFIX), validate=True)
        found.append(body[9:9 + int.from_bytes(body[7:9], "big")].decode())
    return sorted(found)


def until(get, want):
    """What get() gives, once it is what is wanted or time is up. A reference node takes the old value away before it puts the new one."""
    end = time.monotonic() + LIMIT
    while True:
        got = get()
        if got == want or time.monotonic() > end:
            return got
        time.sleep(0.25)


class Run:
    def __init__(self, impl, work):
        self.work = work
        ips = ["127.0.0.11", "127.0.0.12", "127.0.0.13"]
        resolvers = self.resolvers = ",".join(f"{ip}:{DNS_PORT}" for ip in ips)

        def node(kind, name, ip, seeds):
            key = os.path.join(work, name + "-op.hex")
            with open(os.open(key, os.O_WRONLY | os.O_CREAT, 0o600), "w") as f:
                f.write(os.urandom(32).hex() + "\n")
            zone = name + ".test"
            return Node(kind, work, name, zone, ip, TOKEN, heartbeat_enabled="1", heartbeat_self_endpoint=f"http://{zone}:{HTTP_PORT}",
                        heartbeat_operator_key_path=key, heartbeat_seeds=seeds, heartbeat_interval_seconds="5", heartbeat_ttl_seconds="600",
                        heartbeat_dns_resolvers=resolvers, heartbeat_public_seed_urls_disabled="1", claim_provider="1", receiver_claim_notifications="1")

        # Nobody knows more than one other, and east and west know each other from the reference node alone.
        self.east = node(impl, "east", ips[0], "north.test")
        self.west = node(impl, "west", ips[1], "http://north.test:8053")
        self.north = node("reference", "north", ips[2], "east.test,west.test")
        self.nodes = [self.east, self.west, self.north]

    def start(self):
        for node in self.nodes:
            node.need_free()
        for node in self.nodes:
            node.start()
        for node in self.nodes:
            node.wait()

    def close(self):
        pass

    def steps(self):
        self.see()
        self.peers()
        self.users()
        self.claims()
        if self.east.impl == "dmpd":
            self.commands()

    def see(self):
        section("each appears in the others' seen graphs")
        for node in self.nodes:
            others = sorted(f"http://{z}:{HTTP_PORT}" for z in ZONES if z != node.zone)
            got = until(lambda: endpoints(node.values("_dnsmesh-seen." + node.zone)), others)
            equal(f"{node.impl} {node.name} has seen the two others, and not itself", got, others)
            own = [f"http://{node.zone}:{HTTP_PORT}"]
            equal(f"{node.name} has one heartbeat of its own", until(lambda: endpoints(node.values("_dnsmesh-heartbeat." + node.zone)), own), own)
        for node in (self.east, self.west):
            r = node.query("_dnsmesh-seen." + node.zone)
            check(f"{node.name}: the seen graph comes over TCP without EDNS", bool(r.flags & 0x0200) and not r.answer and len(node.query("_dnsmesh-seen." + node.zone, tcp=True).answer[0]) == 2, r)

    def client(self, user, node):
        c = Client(self.work, user, node.zone)
        r = c("init", f"{user}@{node.zone}", "--endpoint", f"http://{node.ip}:{HTTP_PORT}", "--http-token", TOKEN, "--dns-resolvers", self.resolvers)
        check(f"{user}: init", r.code == 0, r)
        return c

    def peers(self):
        section("dnsmesh peers")
        self.uma, self.vic = self.client("uma", self.east), self.client("vic", self.west)
        for node in self.nodes:
            r = self.uma("peers", node.zone)
            check(f"peers {node.zone} prints all three", r.has(*ZONES), r)
        r = self.uma("peers", "east.test", "--json")
        try:
            got = json.dumps(json.loads(r.text))
        except ValueError:
            got = ""
        check("peers --json", all(z in got for z in ZONES), r)
        ours = self.east.impl == "dmpd"
        status, page = self.east.http("GET", "/")
        check("the landing page shows whom it has heard", status == 200 and (not ours or all(z.encode() in page for z in ZONES)), page)

    def users(self):
        section("users at two of the nodes")
        for c, node in ((self.uma, self.east), (self.vic, self.west)):
            r = c("tsig", "register", "--node", f"{node.ip}:{HTTP_PORT}", "--scheme", "http", "--dns-server", node.ip, "--dns-port", str(DNS_PORT))
            check(f"{c.user}: tsig register", r.code == 0, r)
            r = c("identity", "publish")
            check(f"{c.user}: identity publish", r.code == 0, r)
            c.by_http(f"http://{node.ip}:{HTTP_PORT}")
        for c, other in ((self.uma, "vic@west.test"), (self.vic, "uma@east.test")):
            r = c("identity", "fetch", other, "--add")
            check(f"{c.user}: identity fetch {other}", r.code == 0, r)
        self.box = records.mailbox(self.vic.show()["user_id"])

    def claimed(self, node):
        return {v for n in range(10) for v in node.values(f"claim-{n}.mb-{self.box}.{node.zone}")}

    def claims(self):
        section("claims through providers of either kind")
        r = self.uma("send", "vic@west.test", "found by the seen graph")
        check("uma sends; her client finds the providers in her node's seen graph", r.has("sent", "claim"), r)
        check("the reference node holds the claim", len(self.claimed(self.north)) == 1, r)
        check("and so does the recipient's, which is a provider too", len(self.claimed(self.west)) == 1, r)
        r = self.vic("recv", "--primary-only")
        check("vic receives it", r.has("found by the seen graph"), r)
        for provider in (self.north, self.east):
            text = f"by way of {provider.name}"
            for c in (self.uma, self.vic):
                c.set(claim_provider_override=f"http://{provider.zone}:{HTTP_PORT}", claim_provider_zone=provider.zone)
            before = self.claimed(provider)
            r = self.uma("send", "vic@west.test", text)
            check(f"uma sends, {text}", r.has("sent"), r)
            check(f"{provider.impl} {provider.name} has taken the claim", len(self.claimed(provider) - before) == 1, r)
            for n in range(10):  # what the recipient's own node was told is taken away: the provider's is the only one
                self.west.http("DELETE", f"/v1/records/claim-{n}.mb-{self.box}.west.test", token=TOKEN)
            equal("vic's node holds no claim", self.claimed(self.west), set())
            r = self.vic("recv", "--primary-only")
            check(f"vic receives {text}", r.has(text), r)

    def dmpd(self, *arguments):
        env = {k: v for k, v in os.environ.items() if not k.startswith("DMP_")} | self.east.env
        p = subprocess.run([os.path.join(ROOT, "bin/dmpd"), *arguments], env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=LIMIT)
        return p.returncode, p.stdout, p.stderr

    def commands(self):
        section("the operator's commands, against the running mesh")
        here = ("--state-dir", self.east.dir)
        want = {"west.test": True, "north.test": True}
        got = until(lambda: {n["zone"]: n["first_hand"] for n in json.loads(self.dmpd("peers", "--json", *here)[1] or "[]")}, want)
        equal("dmpd peers: the two others, each read at its own zone", got, want)
        resolvers = [word for r in self.resolvers.split(",") for word in ("--resolver", r)]
        code, out, err = self.dmpd("doctor", *resolvers, "--port", str(DNS_PORT), "--json", *here)
        found = {f["check"]: f["verdict"] for f in json.loads(out or "[]")}
        check("dmpd doctor finds nothing that fails", code == 0 and "FAIL" not in found.values(), out + err)
        want = ("delegation", "dns-udp", "dns-tcp", "apex-soa", "apex-ns", "apex-a", "0x20", "edns", "nxdomain", "unsigned-update", "http", "registration", "heartbeat", "seen-graph", "claim", "port-holder")
        equal("and passes what a node on loopback can", [c for c in want if found.get(c) != "PASS"], [])

        section("bootstrap records")
        operator, signer = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
        path = os.path.join(self.work, "signer.key")
        with open(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), "wb") as f:
            f.write(signer.private_bytes_raw())
        manifest = records.cluster_manifest(operator, "east.test", [("a", f"http://{self.east.ip}:{HTTP_PORT}", f"{self.east.ip}:{DNS_PORT}")])
        status, _ = self.east.http("POST", "/v1/records/cluster.east.test", {"value": manifest, "ttl": 3600}, TOKEN)
        equal("the cluster's manifest is there", status, 201)
        for n in ("first", "second"):  # the second takes the first one's place
            code, out, err = self.dmpd("bootstrap", "sign", "east.test", "--key", path, "--cluster", f"east.test={records.public(operator).hex()}", "--publish", "--json", *(() if n == "second" else ("--seq", "1")), *here)
            check(f"dmpd bootstrap sign --publish, {n}", code == 0, out + err)
        equal("one record answers", len(self.east.values("_dmp.east.test")), 1)
        code, out, err = self.dmpd("bootstrap", "show", "east.test", "--signer", records.public(signer).hex(), *resolvers)
        check("dmpd bootstrap show finds the cluster", code == 0 and "taken by readers" in out, out + err)
        for step in (("bootstrap", "pin", "east.test", records.public(signer).hex()), ("bootstrap", "fetch"), ("bootstrap", "discover", "uma@east.test")):
            r = self.uma(*step)
            check("the stock client: " + " ".join(step[:2]), r.code == 0, r)
