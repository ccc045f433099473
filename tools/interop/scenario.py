"""Two users, two zones, one provider, and what else the stock client does, row by row of flows.md 12."""

import base64
import json
import os
import time

import dns.flags
import dns.message
import dns.query
import dns.rcode
import dns.tsig
import dns.tsigkeyring
import dns.update
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

import records
from checks import check, equal, not_yet, section
from client import Client
from nodes import DNS_PORT, HTTP_PORT, Node, need_free
from proxy import Recorder, Refuser

# What dmpd does not do yet. When it does, take the word out: the steps below then run for it as they do for the reference.
DMPD_LACKS = set()

PROXY_PORT = 8054
TOKEN_PORT = 80  # where the client's register saves a token
REFUSER = "127.0.0.15"
TOKEN = "op-interop"
POLL_LIMIT = 60
SENT = "sent \u2192"  # what the client says when chunks and slot were accepted


class Run:
    def __init__(self, impl, work):
        self.impl, self.work = impl, work
        self.lacks = DMPD_LACKS if impl == "dmpd" else set()
        self.recorders, self.refuser = [], None

        def node(name, zone, ip, seeds, provider, m10, http_port=HTTP_PORT):
            more = {}
            if "heartbeat" not in self.lacks:
                key = os.path.join(work, name + "-op.hex")
                with open(key, "w") as f:
                    f.write(os.urandom(32).hex() + "\n")
                more = dict(heartbeat_enabled="1", heartbeat_self_endpoint=f"http://{zone}:{http_port}", heartbeat_operator_key_path=key,
                            heartbeat_seeds=seeds, heartbeat_interval_seconds="5", heartbeat_ttl_seconds="600",
                            heartbeat_dns_resolvers="127.0.0.11:5353,127.0.0.12:5353,127.0.0.13:5353",
                            heartbeat_public_seed_urls_disabled="1")
            return Node(impl, work, name, zone, ip, TOKEN, http_port, claim_provider=provider, receiver_claim_notifications=m10, **more)

        self.a = node("a", "alice.test", "127.0.0.11", "bob.test,claims.test", "0", "1")
        self.b = node("b", "bob.test", "127.0.0.12", "alice.test,claims.test", "0", "1")
        self.p = node("p", "claims.test", "127.0.0.13", "alice.test,bob.test", "1", "0")
        self.t = node("t", "tokens.test", "127.0.0.14", "alice.test", "0", "1", TOKEN_PORT)
        self.nodes = [self.a, self.b, self.p, self.t]
        self.resolvers = ",".join(f"{n.ip}:{DNS_PORT}" for n in self.nodes)

    def start(self):
        need_free(REFUSER, DNS_PORT)
        for node in (self.a, self.b):
            need_free(node.ip, PROXY_PORT, tcp_only=True)
        for node in self.nodes:
            node.need_free()
        for node in self.nodes:
            node.start()
        for node in self.nodes:
            node.wait()
        self.at_a, self.at_b = Recorder(self.a, PROXY_PORT), Recorder(self.b, PROXY_PORT)
        self.recorders = [self.at_a, self.at_b]
        self.refuser = Refuser(REFUSER, DNS_PORT)

    def close(self):
        for recorder in self.recorders:
            recorder.close()
        if self.refuser:
            self.refuser.close()

    def steps(self):
        self.set_up()
        self.registration()
        self.publish_and_fetch()
        self.send_and_receive()
        self.introduction()
        self.prekeys()
        self.unregistered()
        self.by_update()
        self.rotation()
        self.clusters()
        self.tokens()
        self.old_paths()
        self.heartbeats()
        self.refusing_resolver()

    def client(self, user, node, *more):
        c = Client(self.work, user, node.zone)
        r = c("init", f"{user}@{node.zone}", "--endpoint", f"http://{node.ip}:{node.http_port}", "--http-token", TOKEN, "--dns-resolvers", self.resolvers, *more)
        check(f"{user}: init", r.code == 0, r)
        return c

    # Row 1: the probe of init, and the same by hand.
    def set_up(self):
        section("1 init, and its probe for a node")
        self.alice, self.bob = self.client("alice", self.a), self.client("bob", self.b)
        for c, node in ((self.alice, self.a), (self.bob, self.b)):
            config = c.config()
            equal(f"{c.user}: the probe takes the address for a node", (config["local_node_dns_server"], config["local_node_dns_port"]), (node.ip, DNS_PORT))
        for zone, name in (("127.0.0.11", "_dmp-probe.127.0.0.11"), ("alice.test", "_dmp-probe.alice.test")):
            u = dns.update.Update(zone)
            u.add(name + ".", 60, "TXT", '"v=dmp1;t=probe"')
            r = dns.query.udp(u, self.a.ip, port=DNS_PORT, timeout=10)
            check(f"probe with zone {zone}: REFUSED or NOTAUTH", r.rcode() in (5, 9), r)

    # Row 2
    def registration(self):
        section("2 registration for a TSIG key, with proof of possession")
        for c, node in ((self.alice, self.a), (self.bob, self.b)):
            r = c("tsig", "register", "--node", f"{node.ip}:{HTTP_PORT}", "--scheme", "http", "--dns-server", node.ip, "--dns-port", str(DNS_PORT))
            config = c.config()
            check(f"{c.user}: tsig register", r.code == 0 and config["tsig_key_name"] and config["tsig_zone"] == node.zone, r)
        self.alice_mailbox = records.mailbox(self.alice.show()["user_id"])
        self.bob_mailbox = records.mailbox(self.bob.show()["user_id"])

        dora = records.Registrant("dora@alice.test")
        status, body = self.a.http("GET", "/v1/registration/challenge")
        challenge = json.loads(body)
        # A node may say more beside these: clients ignore what they do not know.
        keys = {"challenge", "expires_at", "node", "server_x25519_pub", "version"}
        check("challenge: status and keys", status == 200 and keys <= set(challenge) and challenge["version"] == 1, (status, challenge))
        asked = dora.confirm_body(challenge)
        status, body = self.a.http("POST", "/v1/registration/tsig-confirm", asked)
        key = json.loads(body)
        equal("tsig-confirm: status and keys", (status, sorted(key)), (200, ["allowed_suffixes", "expires_at", "subject", "tsig_algorithm", "tsig_key_name", "tsig_secret_hex", "zone"]))
        ed = records.public(dora.ed).hex()
        names = ["_dnsmesh-claim-*", "_dnsmesh-claim-" + ed[:16], "chunk-*-*", "claim-*.mb-*", "id-" + records.hash_hex("dora", 12), "id-" + records.hash_hex("dora", 16), "mb-" + dora.mailbox(), "slot-*.mb-*"]
        equal("tsig-confirm: scope", key["allowed_suffixes"], sorted(n + ".alice.test" for n in names))
        equal("tsig-confirm: key name, algorithm, zone", (key["tsig_key_name"], key["tsig_algorithm"], key["zone"]),
              (f"dora-{ed[:8]}-{records.hash_hex('dora@alice.test', 6)}.alice.test.", "hmac-sha256", "alice.test"))

        ring = dns.tsigkeyring.from_text({key["tsig_key_name"]: (dns.tsig.HMAC_SHA256, base64.b64encode(bytes.fromhex(key["tsig_secret_hex"])).decode())})
        u = dns.update.Update("alice.test", keyring=ring)
        u.add(records.id_owner("dora", "alice.test") + ".", 300, "TXT", '"v=dmp1;t=test"')
        r = dns.query.udp(u, self.a.ip, port=DNS_PORT, timeout=10)
        check("the key works in the next packet, and the answer is signed", r.rcode() == 0 and r.had_tsig, r)
        equal("what it wrote answers", self.a.values(records.id_owner("dora", "alice.test")), {"v=dmp1;t=test"})

        status, body = self.a.http("POST", "/v1/registration/tsig-confirm", asked)
        equal("a challenge is good for once", status, 400)
        challenge = json.loads(self.a.http("GET", "/v1/registration/challenge")[1])
        other = records.Registrant("dora@alice.test")
        equal("another key for a subject that has one", self.a.http("POST", "/v1/registration/tsig-confirm", other.confirm_body(challenge))[0], 409)
        challenge = json.loads(self.a.http("GET", "/v1/registration/challenge")[1])
        forged = other.confirm_body(challenge) | {"signature": "00" * 64}
        equal("a forged signature", self.a.http("POST", "/v1/registration/tsig-confirm", forged)[0], 401)
        challenge = json.loads(self.a.http("GET", "/v1/registration/challenge")[1])
        app = records.Registrant("emil@alice.test")
        status, body = self.a.http("POST", "/v1/registration/tsig-confirm", app.confirm_body(challenge, proof=False))
        check("without a proof of possession: a key without the mailbox", status == 200 and len(json.loads(body)["allowed_suffixes"]) == 7, body)

    # Rows 3 and 4
    def publish_and_fetch(self):
        section("3 identity and prekeys by UPDATE under TSIG")
        for c, node in ((self.alice, self.a), (self.bob, self.b)):
            r = c("identity", "publish")
            check(f"{c.user}: identity publish", r.code == 0, r)
            r = c("identity", "refresh-prekeys", "--count", "3")
            check(f"{c.user}: refresh-prekeys", r.code == 0, r)
            owner = records.id_owner(c.user, node.zone)
            r = node.query(owner)
            check(f"{c.user}: identity by UDP, authoritative", r.rcode() == 0 and r.flags & dns.flags.AA and not r.flags & dns.flags.TC and len(r.answer[0]) == 1, r)
            r = node.query(records.prekey_owner(c.user, node.zone), tcp=True)
            check(f"{c.user}: three prekeys", r.rcode() == 0 and len(r.answer[0]) == 3, r)
        r = self.alice("identity", "refresh-prekeys", "--count", "2")
        check("alice: two more prekeys", r.code == 0, r)
        owner = records.prekey_owner("alice", "alice.test")
        r = self.a.query(owner)
        check("five prekeys by UDP: TC and no part of the answer", r.rcode() == 0 and r.flags & dns.flags.TC and not r.answer, r)
        equal("five prekeys, TCP after the TC", len(self.a.values(owner)), 5)

        section("4 identities fetched across zones")
        r = self.alice("identity", "fetch", "bob@bob.test", "--add")
        check("alice fetches bob@bob.test", r.code == 0, r)
        r = self.bob("identity", "fetch", "alice@alice.test", "--add")
        check("bob fetches alice@alice.test", r.code == 0, r)
        r = self.a.query(records.id_owner("bob", "bob.test"))
        equal("a name of another zone", (dns.rcode.to_text(r.rcode()), len(r.answer)), ("NXDOMAIN" if self.impl == "reference" else "REFUSED", 0))
        r = self.a.query("id-0123456789abcdef.x.alice.test")
        equal("an absent name of the own zone", dns.rcode.to_text(r.rcode()), "NXDOMAIN")
        r = self.alice("identity", "fetch", "nobody@bob.test")
        equal("alice fetches nobody", r.code, 2)

    def provider_for(self, c):
        """Without heartbeats there is no seen graph to find the provider in: the client is told."""
        if "heartbeat" in self.lacks:
            c.set(claim_provider_override=f"http://{self.p.ip}:{HTTP_PORT}", claim_provider_zone="claims.test")

    def claims(self, node, mailbox):
        return {v for n in range(10) for v in node.values(f"claim-{n}.mb-{mailbox}.{node.zone}")}

    def slots(self, node, mailbox):
        return {v for n in range(10) for v in node.values(f"slot-{n}.mb-{mailbox}.{node.zone}")}

    # Rows 5 to 7
    def send_and_receive(self):
        section("5 send through the HTTP records API")
        if "heartbeat" in self.lacks:
            not_yet("send finds the provider in the seen graph, told here", "heartbeat")
        else:
            # Two ticks, and every seen graph has its peers.
            wait_for(lambda: len(self.a.values("_dnsmesh-seen.alice.test")) >= 2 and len(self.b.values("_dnsmesh-seen.bob.test")) >= 2)
            equal("alice's node has seen two others", len(self.a.values("_dnsmesh-seen.alice.test")), 2)
        self.alice.by_http(self.at_a.url())
        self.bob.by_http(self.at_b.url())
        self.provider_for(self.alice)
        self.at_a.take()
        r = self.alice("send", "bob@bob.test", "hello over two zones")
        check("alice sends to bob@bob.test", r.has(SENT), r)
        check("one claim at the provider is counted", "1/1 claim" in r.text if "heartbeat" in self.lacks else "1/2 claim" in r.text, r)
        seen = self.at_a.take()
        posts = [s for s in seen if s[0] == "POST"]
        chunks = [s for s in posts if "/chunk-" in s[1]]
        slots = [s for s in posts if f"mb-{self.bob_mailbox}" in s[1] and "/slot-" in s[1]]
        check("four to six chunks and one slot, each 201, TTL 300",
              4 <= len(chunks) <= 6 and len(slots) == 1 and len(posts) == len(chunks) + 1 and all(s[2] == 201 and s[3]["ttl"] == 300 for s in posts), seen)
        equal("a manifest in the slot at the sender's node", [v[:19] for v in self.slots(self.a, self.bob_mailbox)], ["v=dmp1;t=manifest;d"])
        equal("a claim at the recipient's node", [v[:15] for v in self.claims(self.b, self.bob_mailbox)], ["v=dmp1;t=claim;"])
        equal("the same claim at the provider", self.claims(self.p, self.bob_mailbox), self.claims(self.b, self.bob_mailbox))

        section("6 receive by claim")
        r = self.bob("recv", "--primary-only")
        check("bob receives it by claim", r.has("hello over two zones"), r)
        r = self.bob("recv")
        check("and no second time", r.has("no new messages"), r)

        section("7 receive by slot walk")
        r = self.bob("send", "alice@alice.test", "hi by slots")
        check("bob answers", r.has(SENT), r)
        r = self.alice("recv", "--skip-primary")
        check("alice receives it by walking slots", r.has("hi by slots"), r)

        r = self.alice("send", "bob@bob.test", "by provider")
        check("alice sends once more", r.has(SENT), r)
        name = next(f"claim-{n}.mb-{self.bob_mailbox}.bob.test" for n in range(10) if len(self.b.values(f"claim-{n}.mb-{self.bob_mailbox}.bob.test")) > 0)
        for n in range(10):
            name = f"claim-{n}.mb-{self.bob_mailbox}.bob.test"
            self.b.http("DELETE", "/v1/records/" + name, token=TOKEN)
        equal("no claims at bob's node any more", self.claims(self.b, self.bob_mailbox), set())
        self.provider_for(self.bob)
        r = self.bob("recv", "--primary-only")
        check("bob receives by the provider's claim alone", r.has("by provider"), r)

    # Row 8
    def introduction(self):
        section("8 first contact: introduction, trust, reply")
        self.carol = carol = self.client("carol", self.a, "--no-probe-local-dns")
        r = carol("identity", "publish")
        check("carol publishes over HTTP", r.code == 0, r)
        r = carol("identity", "fetch", "bob@bob.test", "--add")
        check("carol fetches bob", r.code == 0, r)
        r = carol("send", "bob@bob.test", "we have not met")
        check("carol sends to bob", r.has(SENT), r)
        r = self.bob("recv")
        check("bob has one new intro", r.has("1 new intro"), r)
        r = self.bob("intro", "list")
        check("intro list shows it", r.has("we have not met"), r)
        r = self.bob("intro", "trust", "1", "--username", "carol", "--label", "carol")
        check("bob trusts carol", r.code == 0, r)
        r = self.bob("identity", "fetch", "carol@alice.test", "--add")
        check("bob fetches carol", r.code == 0, r)
        r = self.bob("send", "carol@alice.test", "now we have")
        check("bob replies", r.has(SENT), r)
        r = carol("recv")
        check("carol has the reply", r.has("now we have"), r)

    # Row 9
    def prekeys(self):
        section("9 a prekey is used once")
        owner = records.prekey_owner("alice", "alice.test")
        before = self.a.values(owner)
        r = self.carol("identity", "fetch", "alice", "--domain", "alice.test", "--add")
        check("carol fetches alice by bare name", r.code == 0, r)
        r = self.carol("send", "alice", "with a prekey")
        check("carol sends with a prekey", r.has(SENT), r)
        # Alice knows carol, so that the message is no introduction.
        self.alice("identity", "fetch", "carol@alice.test", "--add")
        self.at_a.take()
        r = self.alice("recv")
        check("alice receives it", r.has("with a prekey"), r)
        deletes = [s for s in self.at_a.take() if s[0] == "DELETE"]
        equal("one DELETE, 204", [(s[1].split("/")[-1], s[2]) for s in deletes], [(owner, 204)])
        after = self.a.values(owner)
        check("one prekey is gone, the others stay", len(before) == 5 and len(after) == 4 and after < before, (before, after))

    # Row 10
    def unregistered(self):
        section("10 a claim for somebody who is not registered, at a node for its own users alone")
        gone = records.hash_hex(os.urandom(8), 12)

        def publish(node, mailbox, value=None, slot=3, ttl=300):
            u = dns.update.Update(node.zone)
            u.add(f"claim-{slot}.mb-{mailbox}.{node.zone}.", ttl, "TXT", f'"{value or records.claim("alice.test", slot)}"')
            return dns.rcode.to_text(dns.query.udp(u, node.ip, port=DNS_PORT, timeout=10).rcode())

        equal("claim for an unknown mailbox, node for its users alone", publish(self.b, gone), "REFUSED")
        equal("claim for a known mailbox there", publish(self.b, self.bob_mailbox), "NOERROR")
        equal("claim for any mailbox at the provider", publish(self.p, gone), "NOERROR")
        bad = records.claim("alice.test", 3)
        bad = bad[:-8] + ("AAAA" if bad[-8:-4] != "AAAA" else "BBBB") + bad[-4:]
        equal("forged claim", publish(self.p, gone, bad), "REFUSED")
        equal("claim that has ended", publish(self.p, gone, records.claim("alice.test", 3, life=-5, ts=int(time.time()) - 900)), "REFUSED")
        equal("claim from 302 s ahead", publish(self.p, gone, records.claim("alice.test", 3, ts=int(time.time()) + 310)), "REFUSED")
        equal("claim that lasts longer than a day", publish(self.p, gone, records.claim("alice.test", 3, life=86500)), "REFUSED")
        if self.impl != "reference":
            equal("claim in another slot than it says", publish(self.p, gone, records.claim("alice.test", 4)), "REFUSED")
        value = records.claim("alice.test", 5)
        equal("claim with TTL 300", publish(self.p, gone, value, 5), "NOERROR")
        equal("the same claim with TTL 1", publish(self.p, gone, value, 5, 1), "NOERROR")
        if self.impl != "reference":
            time.sleep(2.1)
            equal("which does not shorten its life", self.p.values(f"claim-5.mb-{gone}.claims.test"), {value})

        erin = self.client("erin", self.b, "--no-probe-local-dns")
        r = erin("identity", "publish")
        check("erin publishes over HTTP, without registering", r.code == 0, r)
        r = self.alice("identity", "fetch", "erin@bob.test", "--add")
        check("alice fetches erin", r.code == 0, r)
        r = self.alice("send", "erin@bob.test", "no claim for you")
        check("alice sends to erin, exit 0", r.has(SENT), r)
        equal("erin's node has no claim", self.claims(self.b, records.mailbox(erin.show()["user_id"])), set())
        erin("identity", "fetch", "alice@alice.test", "--add")
        r = erin("recv")
        check("erin receives it all the same", r.has("no claim for you"), r)

    # Rows 11 and 12
    def by_update(self):
        section("11, 12 send through UPDATE under TSIG")
        self.alice.by_tsig()
        before = self.slots(self.a, self.bob_mailbox)
        r = self.alice("send", "bob@bob.test", "never arrives")
        equal("client as it is: exit 2 at the slot", r.code, 2)
        equal("and no slot", self.slots(self.a, self.bob_mailbox), before)
        self.alice.shim = True
        self.at_a.take()
        r = self.alice("send", "bob@bob.test", "through UPDATE")
        check("client with the 255-byte split sends", r.has(SENT), r)
        equal("nothing of it by HTTP", self.at_a.take(), [])
        new = self.slots(self.a, self.bob_mailbox) - before
        equal("one manifest more", len(new), 1)
        strings = [[len(s) for s in rd.strings] for n in range(10)
                   for rrset in self.a.query(f"slot-{n}.mb-{self.bob_mailbox}.alice.test", tcp=True).answer for rd in rrset if b"".join(rd.strings).decode() in new]
        check("in strings of 255 bytes and the rest", strings and strings[0][0] == 255 and len(strings[0]) == 2 and sum(strings[0]) == len(next(iter(new), "")), strings)
        r = self.bob("recv")
        check("bob receives it", r.has("through UPDATE"), r)

        owner = records.prekey_owner("alice", "alice.test")
        before = self.a.values(owner)
        r = self.carol("send", "alice", "with another prekey")
        check("carol sends with a prekey", r.has(SENT), r)
        r = self.alice("recv")
        check("alice receives it", r.has("with another prekey"), r)
        after = self.a.values(owner)
        check("the prekey is deleted by UPDATE", len(after) == len(before) - 1 and after < before, (before, after))
        self.alice.shim = False

    # Row 13
    def rotation(self):
        section("13 rotation of an identity, routine and compromise")
        gina = self.client("gina", self.a, "--no-probe-local-dns")
        r = gina("identity", "publish")
        check("gina publishes", r.code == 0, r)
        owner = records.id_owner("gina", "alice.test")
        for turn, reason in enumerate(("routine", "compromise"), 1):
            r = gina("identity", "rotate", "--experimental", "--yes", "--reason", reason, new_passphrase=f"gina-{turn}")
            check(f"gina rotates: {reason}", r.code in (0, 3), r)
            gina.passphrase = f"gina-{turn}"
            gina.set(verify_pubkey="")  # the client keeps the old key there, and takes the new passphrase for a slip
            key = gina.show().get("public_key", "none")
            r = self.bob("identity", "fetch", "gina@alice.test", "--json")
            check("bob fetches the newest key after it", r.has(key), r)
        equal("identities and rotations at their owners", (len(self.a.values(owner)), len(self.a.values("rotate." + owner))), (3, 3))

    # Row 14
    def clusters(self):
        section("14 cluster and bootstrap")
        operator, signer = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
        manifest = records.cluster_manifest(operator, "alice.test", [("a", self.at_a.url(), f"{self.a.ip}:{DNS_PORT}"), ("b", self.at_b.url(), f"{self.b.ip}:{DNS_PORT}")])
        wire = records.bootstrap(signer, "alice.test", "alice.test", records.public(operator))
        for name, value in (("cluster.alice.test", manifest), ("_dmp.alice.test", wire)):
            status, body = self.a.http("POST", "/v1/records/" + name, {"value": value, "ttl": 3600}, TOKEN)
            equal(f"the operator's token writes {name}", status, 201)
        hank = self.client("hank", self.a, "--no-probe-local-dns")
        for step in (("bootstrap", "pin", "alice.test", records.public(signer).hex()), ("bootstrap", "fetch"), ("bootstrap", "discover", "hank@alice.test"),
                     ("cluster", "pin", records.public(operator).hex(), "alice.test"), ("cluster", "fetch", "--save"), ("cluster", "enable"), ("cluster", "status")):
            r = hank(*step)
            check("hank: " + " ".join(step[:2]), r.code == 0, r)
        hank.set(cluster_node_token=TOKEN)
        self.at_a.take(), self.at_b.take()
        r = hank("identity", "publish")
        check("hank publishes to the cluster", r.code == 0, r)
        owner = records.id_owner("hank", "alice.test")
        paths = [[(s[1].split("/")[-1], s[2]) for s in recorder.take() if s[0] == "POST"] for recorder in self.recorders]
        equal("posted to both nodes, 201 each", paths, [[(owner, 201)], [(owner, 201)]])
        check("both nodes answer it, in their zone or not", self.a.values(owner) == self.b.values(owner) != set(), (self.a.values(owner), self.b.values(owner)))
        r = hank("identity", "fetch", "hank@alice.test")
        check("and the union of both is read", r.code == 0, r)
        r = self.bob("bootstrap", "pin", "alice.test", records.public(signer).hex())
        r = self.bob("identity", "fetch", "hank@alice.test", "--via-bootstrap")
        check("bob fetches hank through the bootstrap record", r.code == 0, r)
        r = hank("cluster", "disable")
        check("hank: cluster disable", r.code == 0, r)

    # Row 15
    def tokens(self):
        section("15 bearer token, on port 80")
        ivan = Client(self.work, "ivan", "tokens.test")
        r = ivan("init", "ivan@tokens.test", "--endpoint", f"http://{self.t.ip}", "--dns-resolvers", self.resolvers, "--no-probe-local-dns")
        check("ivan: init without a token", r.code == 0, r)
        r = ivan("identity", "publish")
        equal("publishing without a token", r.code, 2)
        r = ivan("register", "--node", self.t.ip, "--scheme", "http")
        path = os.path.join(ivan.home, "tokens", self.t.ip + ".json")
        check("ivan registers, and the token is saved", r.code == 0 and os.path.exists(path), r)
        r = ivan("identity", "publish")
        check("ivan publishes", r.code == 0, r)
        r = ivan("identity", "refresh-prekeys", "--count", "2")
        equal("ivan's prekeys", (r.code, len(self.t.values(records.prekey_owner("ivan", "tokens.test")))), (0, 2))
        r = ivan("identity", "fetch", "bob@bob.test", "--add")
        r = ivan("send", "bob@bob.test", "with a token")
        check("ivan sends: chunks and a slot", r.has(SENT) and len(self.slots(self.t, self.bob_mailbox)) == 1, r)
        with open(path) as f:
            token = json.load(f)["token"]
        check("the token has its form", token.startswith("dmp_v1_") and len(token) == 59, token)

        def put(name, method="POST"):
            body = {"value": "v=dmp1;t=test", "ttl": 60} if method == "POST" else {"value": "v=dmp1;t=test"}
            return self.t.http(method, "/v1/records/" + name, body, token)[0]

        mine = records.id_owner("ivan", "tokens.test")
        equal("token: own identity, and delete", (put(mine), put(mine, "DELETE")), (201, 204))
        for name in (records.id_owner("bob", "tokens.test"), "cluster.tokens.test", "_dmp.tokens.test", "claim-0.mb-0123456789ab.tokens.test", "dmp.bob.tokens.test"):
            equal(f"token: not {name}", put(name), 401)
        equal("token: a chunk may be added and not deleted", (put("chunk-0000-0123456789ab.tokens.test"), put("chunk-0000-0123456789ab.tokens.test", "DELETE")), (201, 401))

    # Row 16
    def old_paths(self):
        section("16 paths that are gone")
        equal("404 each", [self.a.http(method, path)[0] for method, path in (("GET", "/v1/nodes/seen"), ("GET", "/nodes"), ("GET", "/v1/heartbeat"), ("POST", "/v1/heartbeat"), ("GET", "/v1/info"))], [404] * 5)
        r = self.alice("doctor")
        equal("GET /health", self.a.http("GET", "/health")[0], 200)
        check("alice: doctor finds the node's DNS", "127.0.0.11" in r.text and "Traceback" not in r.text, r)

    # Row 17
    def heartbeats(self):
        section("17 peers of a zone")
        if "heartbeat" in self.lacks:
            not_yet("peers shows the node and two others", "heartbeat")
            return
        r = self.alice("peers", "alice.test")
        check("the node and two others", r.has("alice.test", "bob.test", "claims.test"), r)
        r = self.bob("peers", "tokens.test")
        check("a node that nobody has as a seed, and whom it heard of", r.has("tokens.test", "alice.test", "bob.test"), r)

    # Row 18
    def refusing_resolver(self):
        section("18 the first resolver refuses everything")
        self.bob.set(dns_resolvers=[f"{REFUSER}:{DNS_PORT}"] + self.resolvers.split(","))
        r = self.bob("identity", "fetch", "alice@alice.test")
        check("bob fetches alice", r.code == 0, r)
        self.alice.by_http(self.at_a.url())
        r = self.alice("send", "bob@bob.test", "around the wall")
        check("alice sends", r.has(SENT), r)
        r = self.bob("recv")
        check("bob receives", r.has("around the wall"), r)
        check("the first one was asked", self.refuser.asked > 0, self.refuser.asked)


def wait_for(holds):
    end = time.monotonic() + POLL_LIMIT
    while not holds() and time.monotonic() < end:
        time.sleep(0.2)
