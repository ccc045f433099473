"""Users of the reference node move over: dmpd imports its databases, takes its address, and they go on with their keys and tokens."""

import json
import os
import subprocess
import time

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

import records
from checks import check, equal, section
from client import Client
from nodes import ROOT, Node, Taken, free_port, need_free

ZONE = "moved.test"
PORT = 80  # where the client's register saves a token, and looks for it
TOKEN = "op-moved"
PEER = "peer." + ZONE  # whose heartbeat the old node itself answers, as a zone beneath its own
PREKEYS = 25  # of each user: with the identities, 52 records
LIMIT = 120


def free_address():
    for last in range(32, 48):
        ip = f"127.0.0.{last}"
        try:
            need_free(ip, PORT, tcp_only=True)
            return ip
        except Taken as e:
            taken = e
    raise taken


class Run:
    def __init__(self, impl, work):
        if impl != "dmpd":
            raise SystemExit("only dmpd imports")
        self.work, ip = work, free_address()
        port = free_port(ip)
        key = os.path.join(work, "op.hex")
        with open(os.open(key, os.O_WRONLY | os.O_CREAT, 0o600), "w") as f:
            f.write(os.urandom(32).hex())
        self.old = Node("reference", work, "old", ZONE, ip, TOKEN, http_port=PORT, dns_port=port, heartbeat_enabled="1", heartbeat_self_endpoint=f"http://{ZONE}",
                        heartbeat_operator_key_path=key, heartbeat_seeds=PEER, heartbeat_interval_seconds="2", heartbeat_dns_resolvers=f"{ip}:{port}",
                        heartbeat_public_seed_urls_disabled="1")
        self.new = Node("dmpd", work, "new", ZONE, ip, TOKEN, http_port=PORT, dns_port=port)
        self.nodes = [self.old, self.new]

    def start(self):
        self.old.need_free()
        self.old.start()
        self.old.wait()

    def close(self):
        pass

    def steps(self):
        self.before()
        self.take_over()
        self.after()

    def client(self, user, *more):
        c = Client(self.work, user, ZONE, self.old.dns_port)
        r = c("init", f"{user}@{ZONE}", "--endpoint", f"http://{self.old.ip}", "--dns-resolvers", f"{self.old.ip}:{self.old.dns_port}", "--no-probe-local-dns", *more)
        check(f"{user}: init", r.code == 0, r)
        return c

    def names(self):
        return [name for user in ("ida", "ivo") for name in (records.id_owner(user, ZONE), records.prekey_owner(user, ZONE))]

    def records(self, node):
        return {name: node.values(name) for name in self.names()}

    def publish(self, c, count):
        r = c("identity", "publish")
        check(f"{c.user}: identity publish", r.code == 0, r)
        r = c("identity", "refresh-prekeys", "--count", str(count))
        check(f"{c.user}: {count} prekeys", r.code == 0, r)

    def before(self):
        section("at the reference node: a user with a TSIG key, and one with a token")
        self.ida, self.ivo = self.client("ida"), self.client("ivo")
        r = self.ida("tsig", "register", "--node", self.old.ip, "--scheme", "http", "--dns-server", self.old.ip, "--dns-port", str(self.old.dns_port))
        check("ida: tsig register", r.code == 0, r)
        r = self.ivo("register", "--node", self.old.ip, "--scheme", "http")
        check("ivo: register", r.code == 0, r)
        for c in (self.ida, self.ivo):
            self.publish(c, PREKEYS)
        heartbeat = records.heartbeat(Ed25519PrivateKey.generate(), f"https://{PEER}", PEER)
        status, _ = self.old.http("POST", f"/v1/records/_dnsmesh-heartbeat.{PEER}", {"value": heartbeat, "ttl": 3600}, TOKEN)
        equal("a peer's heartbeat can be asked for", status, 201)
        end = time.monotonic() + LIMIT
        while heartbeat not in self.old.values(f"_dnsmesh-seen.{ZONE}") and time.monotonic() < end:
            time.sleep(0.25)
        check("and the node has heard it", heartbeat in self.old.values(f"_dnsmesh-seen.{ZONE}"))
        self.had = self.records(self.old)
        equal("records", sorted(len(v) for v in self.had.values()), [1, 1, PREKEYS, PREKEYS])
        self.old.stop()

    def dmpd(self, *arguments):
        p = subprocess.run([os.path.join(ROOT, "bin/dmpd"), *arguments, "--state-dir", self.new.dir],
                           env={k: v for k, v in os.environ.items() if not k.startswith("DMP_")} | {"DMP_DOMAIN": ZONE, "DMP_SERVED_ZONE": ZONE},
                           capture_output=True, text=True, timeout=LIMIT)
        check(" ".join(("dmpd", *arguments[:1], *arguments[4:])), p.returncode == 0, p.stdout + p.stderr)
        return p.stdout

    def run(self, *more):
        return json.loads(self.dmpd("import", "--db-path", os.path.join(self.old.dir, "dmp.db"), "--json", *more))

    def take_over(self):
        section("dmpd import")
        want = sum(len(v) for v in self.had.values())
        got = self.run("--dry-run")
        check("--dry-run would take the records, the token and the key", (got["dry_run"], got["records"]["imported"] >= want, got["tokens"]["imported"], got["tsig_keys"]["imported"]) == (True, True, 1, 1), got)
        got = self.run()
        first = got["records"]["imported"]
        check("the records, the token and the key are taken, none is refused", first >= want and (got["tokens"]["imported"], got["tsig_keys"]["imported"]) == (1, 1)
              and got["records"]["refused"] == got["tokens"]["refused"] == got["tsig_keys"]["refused"] == 0, got)
        tail = self.dmpd("audit", "tail", "--limit", "1000", "--json")
        rows = [json.loads(line) for line in tail.splitlines()] if not tail.startswith("[") else json.loads(tail)
        events = [r["event"] for r in rows]
        check("the audit is taken over, with its times", got["audit"]["imported"] == got["audit"]["read"] > 1 and "issued" in events and "used" in events
              and all(abs(r["ts_ms"] / 1000 - time.time()) < 3600 for r in rows), (got["audit"], rows[:4]))
        equal("what was read answers here", got["here_hash"], got["read_hash"])
        equal("the peer's heartbeat is taken", (got["heartbeats"]["imported"], got["heartbeats"]["refused"]), (1, 0))
        p = subprocess.run([os.path.join(ROOT, "bin/dmpd"), "peers", "--state-dir", self.new.dir, "--json"], capture_output=True, text=True, timeout=LIMIT)
        equal("dmpd peers shows it", [n["endpoint"] for n in json.loads(p.stdout)], [f"https://{PEER}"])
        again = self.run()
        equal("a second time: all of it is here", [(again[k]["imported"], again[k]["here_already"]) for k in ("records", "tokens", "tsig_keys", "audit")], [(0, first), (0, 1), (0, 1), (0, got["audit"]["read"])])
        equal("and the hash is the same", again["read_hash"], got["read_hash"])

    def after(self):
        section("dmpd at the same address")
        self.new.need_free()
        self.new.start()
        self.new.wait()
        equal("every record answers", self.records(self.new), self.had)
        r = self.ivo("identity", "fetch", f"ida@{ZONE}", "--add")
        check("ivo fetches ida", r.code == 0, r)
        key, node = self.ida.config()["tsig_key_name"], self.new
        prekeys = {c.user: records.prekey_owner(c.user, ZONE) for c in (self.ida, self.ivo)}
        for c in (self.ida, self.ivo):
            self.publish(c, 3)
            check(f"{c.user}'s new prekeys answer", len(node.values(prekeys[c.user]) - self.had[prekeys[c.user]]) == 3, node.values(prekeys[c.user]))
        equal("ida's key is the old one", self.ida.config()["tsig_key_name"], key)
        u = self.client("uwe")("tsig", "register", "--node", node.ip, "--scheme", "http", "--dns-server", node.ip, "--dns-port", str(node.dns_port))
        check("somebody new registers", u.code == 0, u)
