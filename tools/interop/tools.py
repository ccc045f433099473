"""The DNS tools and HTTP clients that everybody has, against one node: dig, kdig, nsupdate, knsupdate, curl, dnspython."""

import base64
import json
import os
import socket
import struct
import subprocess
import time

import dns.flags
import dns.message
import dns.name
import dns.query
import dns.rcode
import dns.resolver
import dns.rrset
import dns.tsig
import dns.update

import records
from checks import check, equal, section
from nodes import DNS_PORT, HTTP_PORT, ROOT, Node

ZONE = "tools.test"
IP = "127.0.0.16"
TOKEN = "op-tools"
LIMIT = 60


def run(*command, given=None):
    try:
        p = subprocess.run(command, input=given, capture_output=True, text=True, timeout=LIMIT)
    except subprocess.TimeoutExpired:
        return -1, f"no end after {LIMIT} s: {' '.join(command)}"
    return p.returncode, p.stdout + p.stderr


class Run:
    def __init__(self, impl, work):
        if impl != "dmpd":
            raise SystemExit("the tools run against dmpd alone")
        self.work = work
        self.node = Node(impl, work, "tools", ZONE, IP, TOKEN, dns_apex_aaaa="2001:db8::16", dns_nsid="tools-1")
        self.nodes = [self.node]

    def start(self):
        self.node.need_free()
        self.node.start()
        self.node.wait()

    def close(self):
        pass

    def steps(self):
        self.fill()
        self.mint()
        self.dig()
        self.kdig()
        self.nsupdate()
        self.knsupdate()
        self.curl()
        self.dnspython()

    def post(self, name, value, ttl=3600):
        return self.node.http("POST", "/v1/records/" + name, {"value": value, "ttl": ttl}, TOKEN)[0]

    def fill(self):
        section("records")
        equal("a short value", self.post("hello." + ZONE, "v=dmp1;t=test"), 201)
        equal("a value of 600 bytes", self.post("long." + ZONE, "x" * 600), 201)
        equal("20 values of 243 bytes", {self.post("big." + ZONE, f"{n:03}" + "y" * 240) for n in range(20)}, {201})

    def mint(self):
        """The operator's key, by dmpd; a user's key, as registration gives it."""
        section("keys, minted while the node runs")
        code, text = run(os.path.join(ROOT, "bin/dmpd"), "tsig", "mint", "--state-dir", self.node.dir, "--name", "op." + ZONE, "--scope", ZONE, "--operator", "--expires", "1d", "--json")
        check("dmpd tsig mint", code == 0, text)
        key = json.loads(text)
        key = key.get("key", key)
        self.op = (key["name"], key["secret_base64"])
        user = records.Registrant("uma@" + ZONE)
        challenge = json.loads(self.node.http("GET", "/v1/registration/challenge")[1])
        status, body = self.node.http("POST", "/v1/registration/tsig-confirm", user.confirm_body(challenge))
        equal("registration", status, 200)
        key = json.loads(body)
        self.user = (key["tsig_key_name"], base64.b64encode(bytes.fromhex(key["tsig_secret_hex"])).decode())
        self.mailbox = user.mailbox()

    def dig(self):
        section("dig")

        def dig(*arguments, at=IP):
            return run("dig", "@" + at, "-p", str(DNS_PORT), "+tries=1", "+time=10", *arguments)[1]

        def has(name, text, *words):
            check(name, all(w in text for w in words), text)

        has("SOA at the apex", dig(ZONE, "SOA"), "status: NOERROR", "flags: qr aa rd", f"{ZONE}. hostmaster.{ZONE}.", "3600 600 604800 60")
        has("NS at the apex", dig(ZONE, "NS"), "status: NOERROR", f"NS\t{ZONE}.")
        has("A at the apex", dig(ZONE, "A"), "status: NOERROR", IP)
        has("AAAA at the apex", dig(ZONE, "AAAA"), "status: NOERROR", "2001:db8::16")
        equal("TXT, short form", dig("+short", "hello." + ZONE, "TXT").strip(), '"v=dmp1;t=test"')
        has("the name's case is kept", dig("hElLo.ToOlS.tEsT", "TXT"), "status: NOERROR", ";hElLo.ToOlS.tEsT.", "\nhElLo.ToOlS.tEsT.")
        has("absent name: NXDOMAIN with SOA", dig("absent." + ZONE, "TXT"), "status: NXDOMAIN", "AUTHORITY: 1", "SOA")
        has("other type at a name: NODATA with SOA", dig("hello." + ZONE, "A"), "status: NOERROR", "ANSWER: 0", "AUTHORITY: 1")
        has("foreign name: REFUSED, with the reason", dig("example.com", "TXT"), "status: REFUSED", "EDE: 20", "ANSWER: 0")
        has("600 bytes come in three strings", dig("long." + ZONE, "TXT"), "status: NOERROR", '"' + "x" * 255 + '" "' + "x" * 255 + '" "' + "x" * 90 + '"')
        has("a big answer goes over to TCP", dig("big." + ZONE, "TXT"), ";; Truncated, retrying in TCP mode", "ANSWER: 20", "(TCP)")
        has("and is a stub over UDP", dig("+ignore", "+noedns", "big." + ZONE, "TXT"), "flags: qr aa tc rd", "ANSWER: 0", "MSG SIZE  rcvd: 32")
        has("EDNS: 1232 bytes, version 0", dig("+bufsize=4096", "hello." + ZONE, "TXT"), "EDNS: version: 0", "udp: 1232")
        has("EDNS version 1: BADVERS", dig("+edns=1", "+noednsnegotiation", "hello." + ZONE, "TXT"), "status: BADVERS", "ANSWER: 0")
        has("unknown EDNS option and flags do no harm", dig("+ednsopt=65001:0011", "+ednsflags=0x0080", "hello." + ZONE, "TXT"), "status: NOERROR", "ANSWER: 1")
        has("DO is echoed", dig("+dnssec", "hello." + ZONE, "TXT"), "flags: do")
        has("NSID", dig("+nsid", "hello." + ZONE, "TXT"), "NSID: ", "tools-1")
        has("a server cookie comes back, and is good", dig("+cookie", "hello." + ZONE, "TXT"), "COOKIE: ", "(good)")
        has("ANY is one RRset", dig("+notcp", "hello." + ZONE, "ANY"), "status: NOERROR", "ANSWER: 1", "TXT")
        has("class CH: REFUSED", dig("version.bind", "CH", "TXT"), "status: REFUSED")
        has("AXFR fails", dig(ZONE, "AXFR"), "Transfer failed")
        has("opcode 2: NOTIMP", dig("+opcode=STATUS", "hello." + ZONE, "TXT"), "status: NOTIMP")
        has("opcode 4: NOTIMP", dig("+opcode=NOTIFY", ZONE, "SOA"), "status: NOTIMP")
        has("TCP, several queries on a connection", dig("+tcp", "+keepopen", "hello." + ZONE, "TXT", "absent." + ZONE, "TXT", ZONE, "SOA"), "v=dmp1;t=test", "NXDOMAIN", "604800")
        has("a signed query is answered signed", dig("-y", "hmac-sha256:%s:%s" % self.op, "hello." + ZONE, "TXT"), "status: NOERROR", "TSIG PSEUDOSECTION", "hmac-sha256.")
        wrong = base64.b64encode(b"0" * 32).decode()
        has("wrong secret: NOTAUTH, BADSIG", dig("-y", f"hmac-sha256:{self.op[0]}:{wrong}", "hello." + ZONE, "TXT"), "status: NOTAUTH", "BADSIG")
        has("unknown key: NOTAUTH, BADKEY", dig("-y", f"hmac-sha256:nobody.{ZONE}:{wrong}", "hello." + ZONE, "TXT"), "status: NOTAUTH", "BADKEY")
        text = dig("+multiline", "+nottlid", "mb-0123456789ab." + ZONE, "TXT")
        has("a structural name exists always: NODATA", text, "status: NOERROR", "ANSWER: 0", "AUTHORITY: 1")

    def kdig(self):
        section("kdig")

        def kdig(*arguments):
            return run("kdig", f"@{IP}", "-p", str(DNS_PORT), "+retry=0", "+time=10", *arguments)

        def has(name, result, *words):
            check(name, result[0] == 0 and all(w in result[1] for w in words), result[1])

        has("+tcp", kdig("+tcp", "hello." + ZONE, "TXT"), "status: NOERROR", "Flags: qr aa", "v=dmp1;t=test", "(TCP)")
        has("+tcp, big answer", kdig("+tcp", "big." + ZONE, "TXT"), "status: NOERROR", "ANSWER: 20")
        has("+tcp, absent name", kdig("+tcp", "absent." + ZONE, "TXT"), "status: NXDOMAIN", "AUTHORITY: 1")
        has("+tcp +keepopen, pipelined", kdig("+tcp", "+keepopen", "hello." + ZONE, "TXT", "long." + ZONE, "TXT", ZONE, "SOA"), "v=dmp1;t=test", "x" * 255, "604800")
        has("UDP, then TCP after TC", kdig("big." + ZONE, "TXT"), "TCP", "ANSWER: 20")
        has("UDP, +ignore", kdig("+ignore", "big." + ZONE, "TXT"), "Flags: qr aa tc", "ANSWER: 0")
        has("+bufsize, +nsid, +dnssec", kdig("+bufsize=1400", "+nsid", "+dnssec", "hello." + ZONE, "TXT"), "status: NOERROR", "tools-1", "do")
        has("+padding", kdig("+padding=128", "hello." + ZONE, "TXT"), "status: NOERROR", "v=dmp1;t=test")
        has("+cookie", kdig("+cookie", "hello." + ZONE, "TXT"), "status: NOERROR", "COOKIE")
        has("signed, and the answer verified", kdig("+tcp", "-y", "hmac-sha256:%s:%s" % self.op, "hello." + ZONE, "TXT"), "status: NOERROR", "v=dmp1;t=test")
        code, text = kdig("-y", f"hmac-sha256:{self.op[0]}:{base64.b64encode(b'0' * 32).decode()}", "hello." + ZONE, "TXT")
        check("wrong secret", "NOTAUTH" in text or "BADSIG" in text, text)

    def txt(self, name):
        return self.node.values(name)

    def nsupdate(self):
        section("nsupdate -y")
        owner, prekeys = records.id_owner("uma", ZONE), records.prekey_owner("uma", ZONE)

        def update(key, *lines, wanted=None, transport=()):
            script = "\n".join([f"server {IP} {DNS_PORT}", f"zone {ZONE}", *lines, "send", ""])
            code, text = run("nsupdate", "-t", "30", *transport, "-y", "hmac-sha256:%s:%s" % key, given=script)
            return (code == 0) if wanted is None else (code != 0 and wanted in text), text

        holds, text = update(self.user, f'update add {owner} 86400 TXT "v=dmp1;t=identity;d=AAAA"')
        check("a registered user's key adds its identity", holds, text)
        equal("which reads back", self.txt(owner), {"v=dmp1;t=identity;d=AAAA"})
        holds, text = update(self.user, f'update add {owner} 300 TXT "{"m" * 255}" "{"n" * 45}"', transport=("-v",))
        check("two strings, by TCP", holds, text)
        equal("which are joined", "m" * 255 + "n" * 45 in self.txt(owner), True)
        holds, text = update(self.user, *(f'update add {prekeys} 86400 TXT "prekey {n}"' for n in range(8)))
        check("eight adds in a message", holds, text)
        equal("which read back", len(self.txt(prekeys)), 8)
        holds, text = update(self.user, f'update delete {prekeys} TXT "prekey 3"')
        check("delete of one value", holds and self.txt(prekeys) == {f"prekey {n}" for n in range(8) if n != 3}, text)
        holds, text = update(self.user, f'update delete {prekeys} TXT "prekey 3"')
        check("delete of an absent value: NOERROR", holds, text)
        holds, text = update(self.user, f"update delete {prekeys} TXT")
        check("delete of the RRset", holds and self.txt(prekeys) == set(), text)
        holds, text = update(self.user, f"update delete {owner}")
        check("delete of all RRsets at a name", holds and self.txt(owner) == set(), text)
        holds, text = update(self.user, f'update add {records.id_owner("bob", ZONE)} 300 TXT "mine"', wanted="REFUSED")
        check("another's name: REFUSED", holds, text)
        holds, text = update(self.user, f'update add {owner} 300 TXT "first"', f'update add {records.id_owner("bob", ZONE)} 300 TXT "second"', wanted="REFUSED")
        check("one of two out of scope: REFUSED, and nothing of it is there", holds and self.txt(owner) == set(), text)
        slot = f"slot-3.mb-0123456789ab.{ZONE}"
        holds, text = update(self.user, f'update add {slot} 300 TXT "manifest"')
        check("a slot of another's mailbox may be written", holds, text)
        holds, text = update(self.user, f"update delete {slot} TXT", wanted="REFUSED")
        check("and not deleted", holds and self.txt(slot) == {"manifest"}, text)
        holds, text = update(self.user, f"update delete slot-3.mb-{self.mailbox}.{ZONE} TXT")
        check("one of the own mailbox may", holds, text)
        holds, text = update(self.user, f"update add {owner} 300 A 192.0.2.1", wanted="REFUSED")
        check("an A record: REFUSED", holds, text)
        holds, text = update(self.user, f'update add {owner} 86401 TXT "x"', wanted="REFUSED")
        check("a TTL over the limit: REFUSED", holds, text)
        holds, text = update((self.user[0], base64.b64encode(b"1" * 32).decode()), f'update add {owner} 300 TXT "x"', wanted="BADSIG")
        check("wrong secret: BADSIG", holds, text)
        holds, text = update(("nobody." + ZONE, self.user[1]), f'update add {owner} 300 TXT "x"', wanted="BADKEY")
        check("unknown key: BADKEY", holds, text)

        section("nsupdate: prerequisites, under an operator's key")
        name, other = f"pre.{ZONE}", f"post.{ZONE}"
        for text_of, prerequisite, wanted in (
            ("nxdomain holds", f"prereq nxdomain {name}", None),
            ("nxdomain fails", f"prereq nxdomain {name}", "YXDOMAIN"),
            ("yxdomain holds", f"prereq yxdomain {name}", None),
            ("yxdomain fails", f"prereq yxdomain no.{ZONE}", "NXDOMAIN"),
            ("nxrrset holds", f"prereq nxrrset no.{ZONE} TXT", None),
            ("nxrrset fails", f"prereq nxrrset {name} TXT", "YXRRSET"),
            ("yxrrset holds", f"prereq yxrrset {name} TXT", None),
            ("yxrrset fails", f"prereq yxrrset {name} A", "NXRRSET"),
            ("yxrrset with values holds", f'prereq yxrrset {name} TXT "one"', None),
            ("yxrrset with values fails", f'prereq yxrrset {name} TXT "two"', "NXRRSET"),
            ("yxrrset at the apex holds", f"prereq yxrrset {ZONE} SOA", None),
        ):
            value = text_of.replace(" ", "-")
            holds, text = update(self.op, prerequisite, f'update add {name} 300 TXT "one"', f'update add {other} 300 TXT "{value}"', wanted=wanted)
            check(text_of, holds and (value in self.txt(other)) == (wanted is None), text)
        holds, text = update(self.op, f"update delete {name} TXT", f'update add {name} 300 TXT "instead"')
        check("replace: delete and add in a message", holds and self.txt(name) == {"instead"}, text)

    def knsupdate(self):
        section("knsupdate")
        name = f"knot.{ZONE}"

        def update(*lines, wanted=None, transport=()):
            script = "\n".join([f"server {IP} {DNS_PORT}", f"zone {ZONE}", "ttl 300", *lines, "send", "quit", ""])
            code, text = run("knsupdate", "-t", "30", *transport, "-y", "hmac-sha256:%s:%s" % self.op, given=script)
            return (code == 0 and "error" not in text.lower()) if wanted is None else wanted in text, text

        holds, text = update(f'update add {name} 300 TXT "from knsupdate"')
        check("add", holds and self.txt(name) == {"from knsupdate"}, text)
        holds, text = update(f'update add {name} 300 TXT "second"', transport=("-v",))
        check("add by TCP", holds and self.txt(name) == {"from knsupdate", "second"}, text)
        holds, text = update(f"prereq nxdomain {name}", f'update add {name} 300 TXT "third"', wanted="YXDOMAIN")
        check("failing prerequisite", holds and len(self.txt(name)) == 2, text)
        holds, text = update(f"prereq yxrrset {name} TXT", f'update del {name} TXT "second"')
        check("holding prerequisite, and delete of a value", holds and self.txt(name) == {"from knsupdate"}, text)
        holds, text = update(f"update del {name} TXT")
        check("delete of the RRset", holds and self.txt(name) == set(), text)
        holds, text = update('update add outside.example. 300 TXT "x"', wanted="NOTZONE")
        check("a name outside the zone: NOTZONE", holds, text)

    def curl(self):
        section("curl")
        base = f"http://{IP}:{HTTP_PORT}"

        def curl(*arguments):
            body = os.path.join(self.work, "body")
            code, text = run("curl", "-sS", "-m", "30", "-o", body, "-w", "%{http_version} %{http_code} %{content_type}", *arguments)
            with open(body, errors="replace") as f:
                return text if code == 0 else f"exit {code} {text}", f.read()

        for version, option in (("1.1", "--http1.1"), ("2", "--http2-prior-knowledge")):
            got = curl(option, base + "/health")
            check(f"HTTP/{version}: /health", got[0].startswith(f"{version} 200 application/json") and json.loads(got[1])["status"] == "ok", got)
            end = time.monotonic() + LIMIT
            while True: # the count may be behind, or null while it cannot be told
                got = curl(option, base + "/stats")
                counted = got[0].startswith(f"{version} 200") and (json.loads(got[1])["records"] or 0) >= 22
                if counted or time.monotonic() > end:
                    break
                time.sleep(0.1)
            check(f"HTTP/{version}: /stats", counted, got)
            got = curl(option, base + "/metrics")
            check(f"HTTP/{version}: /metrics is the operator's", got[0].startswith(f"{version} 401"), got)
            got = curl(option, "-H", "Authorization: Bearer " + TOKEN, base + "/metrics")
            check(f"HTTP/{version}: /metrics", got[0].startswith(f"{version} 200 text/plain") and 'dmp_dns_queries_total{outcome="nxdomain"}' in got[1] and "dmp_records " in got[1], got)
            got = curl(option, base + "/")
            check(f"HTTP/{version}: the landing page", got[0].startswith(f"{version} 200 text/html") and "<html" in got[1], got)
            name = f"curl-{version.replace('.', '-')}.{ZONE}"
            token = ("-H", "Authorization: Bearer " + TOKEN)
            got = curl(option, *token, "-d", '{"value": "v=dmp1;t=curl", "ttl": 300}', f"{base}/v1/records/{name}")
            check(f"HTTP/{version}: POST", got[0].startswith(f"{version} 201") and json.loads(got[1]) == {"ok": True} and self.txt(name) == {"v=dmp1;t=curl"}, got)
            got = curl(option, *token, f"{base}/v1/records/{name.upper()}")
            check(f"HTTP/{version}: GET", got[0].startswith(f"{version} 200") and json.loads(got[1])["values"] == ["v=dmp1;t=curl"], got)
            got = curl(option, *token, "-X", "DELETE", "-d", '{"value": "v=dmp1;t=curl"}', f"{base}/v1/records/{name}")
            check(f"HTTP/{version}: DELETE", got[0].startswith(f"{version} 204") and self.txt(name) == set(), got)
            got = curl(option, *token, "-X", "DELETE", "-d", '{"value": "v=dmp1;t=curl"}', f"{base}/v1/records/{name}")
            check(f"HTTP/{version}: DELETE of what is gone", got[0].startswith(f"{version} 404"), got)
            # Without a body: curl 7.88 loses an HTTP/2 reply that comes before it has sent one.
            got = curl(option, "-X", "DELETE", f"{base}/v1/records/{name}")
            check(f"HTTP/{version}: DELETE without a token", got[0].startswith(f"{version} 401") and json.loads(got[1]) == {"error": "unauthorized"}, got)
            got = curl(option, *token, "-d", '{"value": "x", "ttl": 86401}', f"{base}/v1/records/{name}")
            check(f"HTTP/{version}: POST with a TTL over the limit", got[0].startswith(f"{version} 400"), got)
        got = curl("--http2", base + "/health")
        check("upgrade to HTTP/2 is not needed for an answer", " 200 " in got[0], got)
        got = curl("--http1.1", f"{base}/health", "--next", "-sS", "-o", os.devnull, f"{base}/nowhere")
        check("two requests on a connection", "200" in got[0], got)

    def dnspython(self):
        section("dnspython")

        def ask(q, tcp=False):
            return (dns.query.tcp if tcp else dns.query.udp)(q, IP, port=DNS_PORT, timeout=10)

        for tcp in (False, True):
            over = "TCP" if tcp else "UDP"
            r = ask(dns.message.make_query("HeLLo.tOOls.TEST", "TXT"), tcp)
            equal(f"0x20, {over}: question and owner as asked", (r.question[0].name.to_text(), r.answer[0].name.to_text()), ("HeLLo.tOOls.TEST.",) * 2)
            r = ask(dns.message.make_query("hello." + ZONE, "TXT", use_edns=0, payload=4096, want_dnssec=True), tcp)
            check(f"EDNS, {over}: version 0, 1232, DO", (r.edns, r.payload, bool(r.ednsflags & dns.flags.DO)) == (0, 1232, True), r)
            r = ask(dns.message.make_query("hello." + ZONE, "TXT"), tcp)
            check(f"no EDNS asked, none answered, {over}", r.edns == -1, r)
            r = ask(dns.message.make_query("hello." + ZONE, "TXT", use_edns=1), tcp)
            equal(f"EDNS version 1, {over}", (r.rcode(), r.edns), (dns.rcode.BADVERS, 0))
            r = ask(dns.message.make_query("hello." + ZONE, "TXT", "CH"), tcp)
            equal(f"class CH, {over}", (r.rcode(), r.flags & dns.flags.AA), (dns.rcode.REFUSED, 0))
            for typ in ("OPT", "TSIG", "MAILB", "MAILA", "TKEY"):
                r = ask(dns.message.make_query("hello." + ZONE, typ), tcp)
                check(f"type {typ}, {over}: FORMERR or NOTIMP", r.rcode() in (dns.rcode.FORMERR, dns.rcode.NOTIMP), r)
            q = dns.message.make_query("hello." + ZONE, "TXT")
            q.question.append(dns.message.make_query("long." + ZONE, "TXT").question[0])
            wire = exchange(q.to_wire(), tcp)
            equal(f"two questions, {over}: id and rcode", (wire[:2], wire[3] & 15), (q.to_wire()[:2], dns.rcode.FORMERR))
            q = dns.message.make_query(ZONE, "IXFR")
            q.authority.append(dns.rrset.from_text(ZONE + ".", 60, "IN", "SOA", "a. b. 1 2 3 4 5"))
            wire = exchange(q.to_wire(), tcp)
            equal(f"IXFR, {over}", wire[3] & 15, dns.rcode.REFUSED)
            q = dns.message.make_query("hello." + ZONE, "TXT")
            q.question.clear()
            equal(f"no question, {over}", ask(q, tcp).rcode(), dns.rcode.FORMERR)
        r, tcp = dns.query.udp_with_fallback(dns.message.make_query("big." + ZONE, "TXT"), IP, port=DNS_PORT, timeout=10)
        check("TC, then TCP", tcp and len(r.answer[0]) == 20 and not r.flags & dns.flags.TC, r)
        equal("TTLs", {rrset.ttl for rrset in r.answer}, {60})
        resolver = dns.resolver.Resolver(configure=False)
        resolver.nameservers, resolver.port, resolver.lifetime = [IP], DNS_PORT, 10
        equal("its resolver", {b"".join(rd.strings) for rd in resolver.resolve("hello." + ZONE, "TXT")}, {b"v=dmp1;t=test"})
        ring = {dns.name.from_text(self.op[0]): dns.tsig.Key(self.op[0], self.op[1], dns.tsig.HMAC_SHA256)}
        for tcp in (False, True):
            over = "TCP" if tcp else "UDP"
            u = dns.update.Update(ZONE, keyring=ring)
            u.absent(f"python-{over}.{ZONE}.")
            u.add(f"Python-{over}.{ZONE}.", 300, "TXT", "one")
            r = ask(u, tcp)
            check(f"UPDATE, {over}: NOERROR, signed", (r.rcode(), r.had_tsig) == (0, True) and self.txt(f"python-{over}.{ZONE}") == {"one"}, r)
            r = ask(u, tcp)
            check(f"again, its prerequisite fails, {over}: YXDOMAIN, signed", (r.rcode(), r.had_tsig) == (dns.rcode.YXDOMAIN, True), r)
            u = dns.update.Update("example.com", keyring=ring)
            u.add("x.example.com.", 300, "TXT", "one")
            r = ask(u, tcp)
            check(f"foreign zone, {over}: NOTAUTH, signed", (r.rcode(), r.had_tsig) == (dns.rcode.NOTAUTH, True), r)
            u = dns.update.Update(ZONE)
            u.add(f"x.{ZONE}.", 300, "TXT", "one")
            equal(f"unsigned, {over}", ask(u, tcp).rcode(), dns.rcode.REFUSED)
            q = dns.message.make_query("big." + ZONE, "TXT")
            q.use_tsig(ring)
            r = ask(q, tcp)
            check(f"signed query, {over}: signed, stub or not", r.had_tsig and bool(r.flags & dns.flags.TC) != tcp, r)
            q = dns.message.make_query("hello." + ZONE, "TXT")
            q.use_tsig(ring, fudge=300)
            equal(f"signed 900 s ago, {over}", tsig_error(exchange(signed_before(q, 900), tcp)), "BADTIME")


def exchange(wire, tcp):
    """What comes back for these bytes."""
    if tcp:
        with socket.create_connection((IP, DNS_PORT), 10) as s, s.makefile("rb") as data:
            s.sendall(struct.pack(">H", len(wire)) + wire)
            return data.read(struct.unpack(">H", data.read(2))[0])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.settimeout(10)
        s.sendto(wire, (IP, DNS_PORT))
        return s.recv(65535)


def signed_before(q, seconds):
    """The bytes of q as a client with a late clock signs them."""
    now, time.time = time.time, lambda: now() - seconds
    try:
        return q.to_wire()
    finally:
        time.time = now


def tsig_error(wire):
    """The TSIG error of a signed response (RFC 8945 4.2): error, length of other data, and the server's time with BADTIME."""
    error, other = struct.unpack(">HH", wire[-10:-6])
    return dns.rcode.to_text(dns.rcode.Rcode(error)) if other == 6 and wire[3] & 15 == dns.rcode.NOTAUTH else f"rcode {wire[3] & 15}, {wire[-16:].hex()}"
