"""A node with a certificate of its own: the stock client registers over HTTPS, and curl speaks both versions of HTTP with it."""

import datetime
import ipaddress
import json
import os
import ssl
import subprocess

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

import records
from checks import check, equal, section
from client import Client
from nodes import Node, Taken, free_port, need_free

ZONE = "tls.test"
PORT = 443  # of all ports, the client's register saves a token from this one only
TOKEN = "op-tls"
LIMIT = 60


def pem(key):
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def issue(subject, issuer, key, signer, extensions):
    now = datetime.datetime.now(datetime.timezone.utc)

    def name(text):
        return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])

    builder = x509.CertificateBuilder().subject_name(name(subject)).issuer_name(name(issuer)).public_key(key.public_key())
    builder = builder.serial_number(x509.random_serial_number()).not_valid_before(now - datetime.timedelta(hours=1)).not_valid_after(now + datetime.timedelta(days=1))
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical)
    return builder.sign(signer, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def certificates(work, ip):
    """A CA, and a certificate of it for the node. Returns the paths of the CA's certificate, the node's, and its key."""
    ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    usage = dict.fromkeys(("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "encipher_only", "decipher_only"), False)
    identifier = x509.SubjectKeyIdentifier.from_public_key(ca_key.public_key())
    ca = issue("test CA", "test CA", ca_key, ca_key, [
        (x509.BasicConstraints(ca=True, path_length=0), True), (identifier, False),
        (x509.KeyUsage(digital_signature=False, key_cert_sign=True, crl_sign=True, **usage), True)])
    leaf = issue(ZONE, "test CA", key, ca_key, [
        (x509.BasicConstraints(ca=False, path_length=None), True),
        (x509.SubjectAlternativeName([x509.DNSName(ZONE), x509.IPAddress(ipaddress.ip_address(ip))]), False),
        (x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), False),
        (x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False),
        (x509.KeyUsage(digital_signature=True, key_cert_sign=False, crl_sign=False, **usage), True),
        (x509.ExtendedKeyUsage([x509.ExtendedKeyUsageOID.SERVER_AUTH]), False)])
    paths = []
    for file, content in (("ca.pem", ca), ("cert.pem", leaf), ("key.pem", pem(key))):
        path = os.path.join(work, file)
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as f:
            f.write(content)
        paths.append(path)
    return paths


def free_address():
    for last in range(17, 32):
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
            raise SystemExit("the reference node speaks no TLS itself")
        self.work = work
        self.at = free_address()
        self.ca, cert, key = certificates(work, self.at)
        self.node = Node(impl, work, "tls", ZONE, self.at, TOKEN, http_port=PORT, dns_port=free_port(self.at),
                         tls=ssl.create_default_context(cafile=self.ca), tls_cert=cert, tls_key=key)
        self.nodes = [self.node]

    def start(self):
        self.node.need_free()
        self.node.start()
        self.node.wait()

    def close(self):
        pass

    def steps(self):
        self.client()
        self.curl()

    def user(self, name, ca):
        return Client(self.work, name, ZONE, self.node.dns_port, REQUESTS_CA_BUNDLE=ca, SSL_CERT_FILE=ca)

    def init(self, c, *more):
        r = c("init", f"{c.user}@{ZONE}", "--endpoint", f"https://{self.at}", "--dns-resolvers", f"{self.at}:{self.node.dns_port}", "--no-probe-local-dns", *more)
        check(f"{c.user}: init", r.code == 0, r)

    def register(self, c):
        return c("tsig", "register", "--node", self.at, "--scheme", "https", "--dns-server", self.at, "--dns-port", str(self.node.dns_port))

    def client(self):
        section("the stock client over HTTPS")
        tess = self.user("tess", self.ca)
        self.init(tess)
        r = self.register(tess)
        check("tess: tsig register", r.code == 0 and tess.config()["tsig_zone"] == ZONE, r)
        r = tess("identity", "publish")
        check("tess: identity publish, under that key", r.code == 0 and len(self.node.values(records.id_owner("tess", ZONE))) == 1, r)
        r = tess("doctor")
        check("tess: doctor", r.code == 0 and "Traceback" not in r.text, r)

        timo = self.user("timo", self.ca)
        self.init(timo)
        r = timo("register", "--node", self.at, "--scheme", "https")
        tokens = os.path.join(timo.home, "tokens")
        check("timo: register, and a token is saved", r.code == 0 and os.path.isdir(tokens) and len(os.listdir(tokens)) == 1, r)
        r = timo("doctor")
        check("timo: doctor", r.code == 0 and "Traceback" not in r.text, r)

        nobody = os.path.join(self.work, "nobody.pem")
        key = ec.generate_private_key(ec.SECP256R1())
        with open(nobody, "wb") as f:
            f.write(issue("another CA", "another CA", key, key, [(x509.BasicConstraints(ca=True, path_length=0), True)]))
        tilly = self.user("tilly", nobody)
        self.init(tilly)
        r = self.register(tilly)
        check("tilly, who trusts another CA, does not register", r.code != 0 and not tilly.config().get("tsig_key_name"), r)

    def curl(self):
        section("curl over TLS")
        body = os.path.join(self.work, "body")

        def curl(*arguments, ca=self.ca):
            command = ["curl", "-sS", "-m", "30", "--cacert", ca, "-o", body, "-w", "%{http_version} %{http_code} %{ssl_verify_result}", *arguments]
            p = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT)
            with open(body, errors="replace") as f:
                return p.stdout if p.returncode == 0 else f"exit {p.returncode} {p.stderr}", f.read()

        token = ("-H", "Authorization: Bearer " + TOKEN)
        for version, option in (("1.1", "--http1.1"), ("2", "--http2")):
            got = curl(option, f"https://{self.at}/health")
            check(f"{option}: /health", got[0] == f"{version} 200 0" and json.loads(got[1])["status"] == "ok", got)
            got = curl(option, f"https://{self.at}/")
            check(f"{option}: the landing page", got[0] == f"{version} 200 0" and "<html" in got[1], got)
            name = f"curl{version[0]}.{ZONE}"
            got = curl(option, *token, "-d", '{"value": "v=dmp1;t=curl", "ttl": 300}', f"https://{self.at}/v1/records/{name}")
            check(f"{option}: POST", got[0] == f"{version} 201 0" and self.node.values(name) == {"v=dmp1;t=curl"}, got)
            got = curl(option, *token, "-X", "DELETE", "-d", '{"value": "v=dmp1;t=curl"}', f"https://{self.at}/v1/records/{name}")
            check(f"{option}: DELETE", got[0] == f"{version} 204 0" and self.node.values(name) == set(), got)
        got = curl("--http2", "--tls-max", "1.2", f"https://{self.at}/health")
        check("TLS 1.2: no", got[0].startswith("exit 35"), got)
        got = curl(f"http://{self.at}:{PORT}/health")
        equal("plain HTTP on this port: refused, in plain words", got[0].split()[1], "400")
