"""Records and registrations made here, from the protocol's description, so that the client's own code is not the only witness."""

import base64
import hashlib
import hmac
import os
import struct
import time

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey


def hash_hex(data, digits):
    return hashlib.sha256(data if isinstance(data, bytes) else data.encode()).hexdigest()[:digits]


def id_owner(user, zone):
    return f"id-{hash_hex(user, 16)}.{zone}"


def prekey_owner(user, zone):
    return f"prekeys.id-{hash_hex(user, 12)}.{zone}"


def mailbox(user_id_hex):
    """The mailbox hash: two rounds over the X25519 key, the first of which is the user id."""
    return hash_hex(bytes.fromhex(user_id_hex), 12)


def public(key):
    return key.public_key().public_bytes_raw()


def _signed(prefix, body, key):
    return prefix + base64.b64encode(body + key.sign(body)).decode()


def heartbeat(key, endpoint, zone, life=3600):
    """A heartbeat of a node that takes claims from anybody."""
    now = int(time.time())
    name, at = endpoint.encode(), zone.encode()
    body = b"DMPHB03" + struct.pack(">H", len(name)) + name + public(key) + b"\x01" + b"1" + struct.pack(">HB", 1, len(at)) + at + struct.pack(">QQ", now, now + life)
    return _signed("v=dmp1;t=heartbeat;", body, key)


def claim(zone, slot, life=600, ts=None, key=None, now=None):
    """A claim, as a sender publishes it to a provider or to the recipient's node."""
    key = key or Ed25519PrivateKey.generate()
    now = int(time.time()) if now is None else now
    name = zone.encode()
    body = b"DMPCL01" + os.urandom(16) + public(key) + bytes([len(name)]) + name
    body += struct.pack(">BQQ", slot, now if ts is None else ts, now + life)
    return _signed("v=dmp1;t=claim;", body, key)


def cluster_manifest(key, base, nodes, seq=1, life=86400):
    """nodes: (id, http endpoint, dns endpoint)."""
    name = base.encode()
    body = b"DMPCL01" + struct.pack(">QQ", seq, int(time.time()) + life) + public(key) + bytes([len(name)]) + name + bytes([len(nodes)])
    for node, http, dns in nodes:
        body += bytes([len(node)]) + node.encode() + struct.pack(">H", len(http)) + http.encode() + struct.pack(">H", len(dns)) + dns.encode()
    return _signed("v=dmp1;t=cluster;", body, key)


def bootstrap(key, domain, base, operator_spk, seq=1, life=86400):
    name, below = domain.encode(), base.encode()
    body = b"DMPBS01" + struct.pack(">QQ", seq, int(time.time()) + life) + public(key) + bytes([len(name)]) + name
    body += bytes([1]) + struct.pack(">H", 10) + bytes([len(below)]) + below + operator_spk
    return _signed("v=dmp1;t=bootstrap;", body, key)


class Registrant:
    """Registers for a TSIG key with a proof of possession of its X25519 key."""

    def __init__(self, subject):
        self.subject = subject
        self.ed, self.x = Ed25519PrivateKey.generate(), X25519PrivateKey.generate()

    def confirm_body(self, challenge, proof=True):
        raw = bytes.fromhex(challenge["challenge"])
        payload = raw + self.subject.encode() + challenge["node"].encode() + b"\x01"
        body = {"subject": self.subject, "ed25519_spk": public(self.ed).hex(), "challenge": challenge["challenge"],
                "signature": self.ed.sign(payload).hex(), "x25519_pub": public(self.x).hex()}
        if proof:
            shared = self.x.exchange(X25519PublicKey.from_public_bytes(bytes.fromhex(challenge["server_x25519_pub"])))
            body["x25519_pop"] = hmac.new(shared, raw + self.subject.encode() + public(self.x), hashlib.sha256).hexdigest()
        return body

    def mailbox(self):
        return mailbox(hashlib.sha256(public(self.x)).hexdigest())
