"""A node that gets its certificate from an ACME server: Pebble, Let's Encrypt's own test server, which looks the name up in the node's DNS."""

import json
import os
import ssl
import stat
import subprocess
import time
import urllib.request

from checks import check, section
from nodes import START_LIMIT, STOP_LIMIT, Node, free_port
from tls import certificates

ZONE = "acme.test"
AT = "127.0.0.19"
CA_AT = "127.0.0.20"
TOKEN = "op-acme"
LIMIT = 60


class Run:
    def __init__(self, impl, work):
        if impl != "dmpd":
            raise SystemExit("the reference node speaks no TLS itself")
        self.work = work
        self.pebble = None
        https, dns = free_port(AT), free_port(AT)
        self.ca, cert, key = certificates(work, CA_AT)  # Pebble's own HTTPS
        self.directory, self.management = f"{CA_AT}:{free_port(CA_AT)}", f"{CA_AT}:{free_port(CA_AT)}"
        self.config = os.path.join(work, "pebble.json")
        with open(self.config, "w") as f:
            json.dump({"pebble": {
                "listenAddress": self.directory, "managementListenAddress": self.management, "certificate": cert, "privateKey": key,
                "httpPort": free_port(AT), "tlsPort": https, "ocspResponderURL": "", "externalAccountBindingRequired": False}}, f)
        self.root = os.path.join(work, "root.pem")
        self.node = Node(impl, work, "acme", ZONE, AT, TOKEN, http_port=https, dns_port=dns, acme_domains=ZONE, acme_email="hostmaster@" + ZONE,
                         acme_ca=f"https://{self.directory}/dir", acme_ca_root=self.ca)
        self.nodes = [self.node]

    def start(self):
        self.node.need_free()
        env = os.environ | {"PEBBLE_VA_NOSLEEP": "1", "PEBBLE_WFE_NONCEREJECT": "20"}
        with open(os.path.join(self.work, "pebble.log"), "wb") as log:
            self.pebble = subprocess.Popen([".cache/pebble", "-config", self.config, "-dnsserver", f"{AT}:{self.node.dns_port}"], env=env,
                                           stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        context = ssl.create_default_context(cafile=self.ca)
        end = time.monotonic() + START_LIMIT
        while True:
            try:
                with urllib.request.urlopen(f"https://{self.management}/roots/0", timeout=10, context=context) as r, open(self.root, "wb") as f:
                    f.write(r.read())
                break
            except OSError:
                if time.monotonic() > end or self.pebble.poll() is not None:
                    raise
                time.sleep(0.1)
        # By address: the client names no host, and gets the certificate all the same.
        self.node.tls = ssl.create_default_context(cafile=self.root)
        self.node.tls.check_hostname = False
        self.node.start()
        self.node.wait()

    def close(self):
        if self.pebble is not None and self.pebble.poll() is None:
            self.pebble.terminate()
            self.pebble.wait(STOP_LIMIT)

    def curl(self, host, *arguments):
        command = ["curl", "-sS", "-m", "30", "--cacert", self.root, "--resolve", f"{host}:{self.node.http_port}:{AT}", "-o", "/dev/null",
                   "-w", "%{http_version} %{http_code}", *arguments, f"https://{host}:{self.node.http_port}/health"]
        p = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT)
        return p.stdout if p.returncode == 0 else f"exit {p.returncode} {p.stderr}"

    def serial(self):
        p = subprocess.run(["openssl", "s_client", "-connect", f"{AT}:{self.node.http_port}", "-servername", ZONE], stdin=subprocess.DEVNULL, capture_output=True, timeout=LIMIT)
        p = subprocess.run(["openssl", "x509", "-noout", "-serial"], input=p.stdout, capture_output=True, timeout=LIMIT)
        return p.stdout.strip()

    def steps(self):
        section("a certificate by ACME, TLS-ALPN-01")
        for version, option in (("1.1", "--http1.1"), ("2", "--http2")):
            got = self.curl(ZONE, option)
            check(f"{option}: the certificate holds for the name", got == f"{version} 200", got)
        got = self.curl("other.test")
        check("another name: no certificate, and none is asked for", got.startswith("exit 35"), got)
        folder = os.path.join(self.node.dir, "control", "acme")
        modes = {oct(stat.S_IMODE(os.stat(os.path.join(folder, f)).st_mode)) for f in os.listdir(folder)}
        check("account key and certificate are the node's own to read", stat.S_IMODE(os.stat(folder).st_mode) == 0o700 and modes == {"0o600"}, modes)
        serial = self.serial()
        check("the node says what it got", "certificate from the ACME server" in self.node.tail(50), self.node.tail(50))
        check("the node stops", self.node.stop() == 0)
        self.close()  # the ACME server is away now
        self.node.start()
        self.node.wait()
        again = self.serial()
        check("after a restart it is the same certificate, without the ACME server", serial != b"" and serial == again, (serial, again))
