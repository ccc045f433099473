"""The stock client, run as its users run it."""

import os
import subprocess
import sys

import yaml

from nodes import DNS_PORT

LIMIT = 90  # seconds for one command on a busy machine
SHIM = os.path.join(os.path.dirname(os.path.abspath(__file__)), "shim.py")


class Result:
    def __init__(self, code, text):
        self.code, self.text = code, text

    def has(self, *words):
        return self.code == 0 and all(w in self.text for w in words)

    def __str__(self):
        return f"exit {self.code}\n{self.text}"


class Client:
    def __init__(self, work, user, zone, dns_port=DNS_PORT, **env):
        self.env = {"DMP_PROVIDER_DNS_PORT": str(dns_port)} | env
        self.user, self.zone, self.home, self.shim = user, zone, os.path.join(work, "c-" + user), False
        self.passphrase = user + "-pass"
        os.makedirs(self.home)

    def __call__(self, *arguments, new_passphrase=None, shim=None):
        env = {k: v for k, v in os.environ.items() if not k.startswith("DMP_")}
        env |= {"HOME": self.home, "DMP_CONFIG_HOME": self.home, "DMP_TOKENS_HOME": os.path.join(self.home, "tokens"),
                "DMP_PASSPHRASE": self.passphrase} | self.env
        if new_passphrase:
            env["DMP_NEW_PASSPHRASE"] = new_passphrase
        shim = self.shim if shim is None else shim
        command = [sys.executable] + ([SHIM] if shim else ["-m", "dmp.cli"]) + list(arguments)
        try:
            p = subprocess.run(command, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=LIMIT)
        except subprocess.TimeoutExpired as e:
            return Result(-1, f"no end after {LIMIT} s: {' '.join(arguments)}\n{(e.output or b'').decode(errors='replace')}")
        return Result(p.returncode, p.stdout.decode(errors="replace"))

    def path(self):
        return os.path.join(self.home, "config.yaml")

    def config(self):
        with open(self.path()) as f:
            return yaml.safe_load(f)

    def set(self, **values):
        config = self.config()
        config.update(values)
        with open(self.path(), "w") as f:
            yaml.safe_dump(config, f)

    def by_http(self, endpoint):
        """Blanking the TSIG key's name alone switches the writer to HTTP and keeps the zone for looking up providers."""
        self.key = self.config()["tsig_key_name"]
        self.set(tsig_key_name="", endpoint=endpoint)

    def by_tsig(self):
        self.set(tsig_key_name=self.key)

    def show(self):
        lines = (line.split(": ", 1) for line in self("identity", "show").text.splitlines() if ": " in line)
        return dict(lines)
