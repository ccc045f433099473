"""Nodes on loopback, one address each: our own, or the reference node from the client's package as a control."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

import dns.message
import dns.query
import dns.rcode

DNS_PORT = 5353
HTTP_PORT = 8053
START_LIMIT = 60  # seconds: a busy machine may take long, and nothing waits for this when all is well
STOP_LIMIT = 30

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


class Taken(Exception):
    pass


def need_free(ip, port, tcp_only=False):
    kinds = [("TCP", socket.SOCK_STREAM)] + ([] if tcp_only else [("UDP", socket.SOCK_DGRAM)])
    for text, kind in kinds:
        with socket.socket(socket.AF_INET, kind) as s:
            if kind == socket.SOCK_STREAM:
                s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                s.bind((ip, port))
            except PermissionError:
                raise Taken(f"{text} port {port} on {ip} needs root (or the capability CAP_NET_BIND_SERVICE)")
            except OSError as e:
                raise Taken(f"{text} port {port} on {ip} cannot be used: {e.strerror}. End what listens there (ss -lntup) and try again")


def free_port(ip):
    """A port that is free for TCP and UDP at this moment."""
    for _ in range(100):
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as s:
            s.bind((ip, 0))
            port = s.getsockname()[1]
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
            try:
                s.bind((ip, port))
                return port
            except OSError:
                continue
    raise Taken(f"no port on {ip} is free for TCP and UDP")


class Node:
    def __init__(self, impl, work, name, zone, ip, token, http_port=HTTP_PORT, dns_port=DNS_PORT, tls=None, **more):
        self.impl, self.name, self.zone, self.ip, self.token, self.http_port, self.dns_port = impl, name, zone, ip, token, http_port, dns_port
        self.tls = tls  # an SSL context that trusts the node, if it speaks HTTPS
        self.dir = os.path.join(work, name)
        self.log = os.path.join(work, name + ".log")
        self.process = None
        self.answered = False
        self.env = {
            "DMP_DOMAIN": zone, "DMP_SERVED_ZONE": zone, "DMP_NODE_HOSTNAME": zone, "DMP_DB_PATH": os.path.join(self.dir, "dmp.db"),
            "DMP_DNS_HOST": ip, "DMP_DNS_PORT": str(dns_port), "DMP_DNS_APEX_A": ip, "DMP_DNS_APEX_NS": zone,
            "DMP_DNS_APEX_SOA_RNAME": "hostmaster." + zone, "DMP_HTTP_HOST": ip, "DMP_HTTP_PORT": str(http_port),
            "DMP_AUTH_MODE": "multi-tenant", "DMP_OPERATOR_TOKEN": token, "DMP_REGISTRATION_ENABLED": "1",
            "DMP_REGISTRATION_ENDPOINT_RATE_PER_SEC": "10", "DMP_REGISTRATION_ENDPOINT_RATE_BURST": "100",
            "DMP_DNS_UPDATE_ENABLED": "1", "DMP_DNS_RATE": "0", "DMP_HTTP_RATE": "0",
        }
        self.env.update({"DMP_" + k.upper(): v for k, v in more.items()})

    def need_free(self):
        need_free(self.ip, self.dns_port)
        need_free(self.ip, self.http_port, tcp_only=True)

    def start(self):
        os.makedirs(self.dir, mode=0o700, exist_ok=True)
        env = {k: v for k, v in os.environ.items() if not k.startswith("DMP_")} | self.env
        if self.impl == "dmpd":
            command = [os.path.join(ROOT, "bin/dmpd"), "run", "--state-dir", self.dir]
        else:
            command = [sys.executable, "-m", "dmp.server"]
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(command, env=env, cwd=self.dir, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def wait(self):
        """Until DNS and HTTP answer."""
        end = time.monotonic() + START_LIMIT
        why = ""
        while time.monotonic() < end:
            if self.process.poll() is not None:
                raise RuntimeError(f"node {self.name} ended with {self.process.returncode}:\n{self.tail()}")
            try:
                status, _ = self.http("GET", "/health")
                soa = self.query(self.zone, "SOA", timeout=2)
                if status == 200 and soa.answer:
                    self.answered = True
                    return
                why = f"/health {status}, SOA {dns.rcode.to_text(soa.rcode())}"
            except (OSError, dns.exception.DNSException) as e:
                why = repr(e)
            time.sleep(0.1)
        raise RuntimeError(f"node {self.name} does not answer after {START_LIMIT} s ({why}):\n{self.tail()}")

    def tail(self, lines=15):
        with open(self.log, errors="replace") as f:
            return "".join(f.readlines()[-lines:])

    def stop(self):
        """Ends the node and what it started, each by its pid. Returns its exit code, None if it had to be killed."""
        p, self.process = self.process, None
        if p is None:
            return 0
        below = children(p.pid)
        if p.poll() is None:
            p.send_signal(signal.SIGTERM)
        try:
            code = p.wait(STOP_LIMIT)
        except subprocess.TimeoutExpired:
            code = None
            p.kill()
            p.wait()
        for pid, start in below:
            if start_time(pid) == start: # the same process still, and left over
                code = None
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
        return code

    def query(self, name, rdtype="TXT", tcp=False, timeout=10, **more):
        """One question, no EDNS unless asked for; the response as it came."""
        q = dns.message.make_query(name, rdtype, use_edns=more.pop("edns", -1), **more)
        ask = dns.query.tcp if tcp else dns.query.udp
        return ask(q, self.ip, port=self.dns_port, timeout=timeout, source="127.0.0.1")

    def values(self, name):
        """The set of TXT values at a name, asked as the client asks: UDP, and TCP after a TC."""
        q = dns.message.make_query(name, "TXT")
        r, _ = dns.query.udp_with_fallback(q, self.ip, port=self.dns_port, timeout=10, source="127.0.0.1")
        return {b"".join(rd.strings).decode() for rrset in r.answer for rd in rrset}

    def http(self, method, path, body=None, token=None):
        """Status and body of one request."""
        request = urllib.request.Request(f"{'https' if self.tls else 'http'}://{self.ip}:{self.http_port}{path}", method=method)
        if body is not None:
            request.data = json.dumps(body).encode()
            request.add_header("Content-Type", "application/json")
        if token:
            request.add_header("Authorization", "Bearer " + token)
        try:
            with urllib.request.urlopen(request, timeout=30, context=self.tls) as r:
                return r.status, r.read()
        except urllib.error.HTTPError as e:
            with e:
                return e.code, e.read()


def children(pid):
    """Processes below pid, each with the time it started: a pid alone may be another process's a moment later."""
    found = []
    try:
        with open(f"/proc/{pid}/task/{pid}/children") as f:
            direct = [int(n) for n in f.read().split()]
    except OSError:
        return found
    for child in direct:
        found.append((child, start_time(child)))
        found += children(child)
    return found


def start_time(pid):
    try:
        with open(f"/proc/{pid}/stat") as f:
            return f.read().rsplit(")", 1)[1].split()[19]
    except OSError:
        return None


def workdir():
    return tempfile.mkdtemp(prefix="dmp-interop-")
