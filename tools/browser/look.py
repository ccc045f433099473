"""Starts a node, opens / and /status in headless Chromium, and fails on sideways scroll, on a script, on a console message, on weak contrast.

Chromium is driven over its DevTools pipe (--remote-debugging-pipe: JSON messages ended by NUL on descriptors 3 and 4), so that nothing
but Python's own library is needed.
"""

import base64
import json
import os
import pathlib
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request

LIMIT = 60  # s, for anything that is waited for
WIDTHS = (360, 380, 1280)

# WCAG 2 contrast of every piece of text against the nearest background that is painted; 4.5 is AA.
CHECK = """(() => {
  const rgb = c => c.match(/[\\d.]+/g).map(Number);
  const lum = c => { const v = rgb(c).slice(0, 3).map(x => { x /= 255; return x <= .03928 ? x / 12.92 : ((x + .055) / 1.055) ** 2.4; });
    return .2126 * v[0] + .7152 * v[1] + .0722 * v[2]; };
  const back = e => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor, v = rgb(c); if (v.length < 4 || v[3] > 0) return c; } return 'rgb(255,255,255)'; };
  const weak = [];
  for (const e of document.querySelectorAll('body *')) {
    if (![...e.childNodes].some(n => n.nodeType === 3 && n.data.trim()) || !e.getClientRects().length) continue;
    const a = lum(getComputedStyle(e).color), b = lum(back(e)), r = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
    if (r < 4.5) weak.push(e.tagName + ' ' + e.textContent.trim().slice(0, 30) + ' ' + r.toFixed(2));
  }
  const d = document.documentElement;
  return {scroll: d.scrollWidth, width: d.clientWidth, height: d.scrollHeight, scripts: document.scripts.length, weak,
    wide: [...document.querySelectorAll('body *')].filter(e => !e.closest('pre') && e.getBoundingClientRect().right > d.clientWidth + .5).map(e => e.tagName).slice(0, 5)};
})()"""


class Browser:
    def __init__(self, profile):
        out_r, self.out = os.pipe()
        self.inp, in_w = os.pipe()

        def pipes():  # descriptors 3 and 4 are Chromium's
            a, b = os.dup(out_r), os.dup(in_w)
            os.dup2(a, 3)
            os.dup2(b, 4)

        self.process = subprocess.Popen(
            ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
             "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--hide-scrollbars", "--remote-debugging-pipe",
             "--user-data-dir=" + profile, "about:blank"],
            preexec_fn=pipes, close_fds=False, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        os.close(out_r)
        os.close(in_w)
        self.buffer, self.number, self.events = b"", 0, []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = None
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(domain + ".enable")

    def read(self, deadline):
        while b"\0" not in self.buffer:
            if not select.select([self.inp], [], [], max(0, deadline - time.monotonic()))[0]:
                raise TimeoutError("the browser does not answer")
            data = os.read(self.inp, 1 << 16)
            if not data:
                raise RuntimeError("the browser ended")
            self.buffer += data
        message, self.buffer = self.buffer.split(b"\0", 1)
        return json.loads(message)

    def call(self, method, **params):
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        if getattr(self, "session", None):
            message["sessionId"] = self.session
        os.write(self.out, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + LIMIT
        while True:
            m = self.read(deadline)
            if m.get("id") == self.number:
                if "error" in m:
                    raise RuntimeError(f"{method}: {m['error']}")
                return m["result"]
            self.events.append(m)

    def wait(self, method):
        deadline = time.monotonic() + LIMIT
        while not any(e.get("method") == method for e in self.events):
            self.events.append(self.read(deadline))

    def close(self):
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def query(port, n):
    name = b"".join(bytes([len(x)]) + x for x in (b"slot-%d" % n, b"mb-0123456789ab", b"mesh", b"example")) + b"\0"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.sendto(bytes([n >> 8 & 255, n & 255, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0]) + name + b"\0\x10\0\x01", ("127.0.0.1", port))


def main():
    shots = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp(prefix="dmpd-pages-"))
    shots.mkdir(parents=True, exist_ok=True)
    state, profile = tempfile.mkdtemp(prefix="dmpd-state-"), tempfile.mkdtemp(prefix="dmpd-browser-")
    http, dns = free_port(), free_port()
    env = {"PATH": os.environ["PATH"], "DMP_STATE_DIR": state, "DMP_HTTP_HOST": "127.0.0.1", "DMP_HTTP_PORT": str(http), "DMP_DNS_HOST": "127.0.0.1", "DMP_DNS_PORT": str(dns),
           "DMP_DOMAIN": "mesh.example", "DMP_NODE_HOSTNAME": "mesh.example", "DMP_AUTH_MODE": "multi-tenant", "DMP_REGISTRATION_ENABLED": "1", "DMP_DNS_UPDATE_ENABLED": "1",
           "DMP_OPERATOR_TOKEN": "operator", "DMP_DNS_RATE": "0", "DMP_HTTP_RATE": "0"}
    node = subprocess.Popen(["bin/dmpd", "run"], env=env, stdout=subprocess.DEVNULL, stderr=open(shots / "node.log", "w"))
    browser, failures = None, []
    base = f"http://127.0.0.1:{http}"
    try:
        deadline = time.monotonic() + LIMIT
        while True:
            try:
                urllib.request.urlopen(base + "/health", timeout=2).close()
                break
            except OSError:
                if time.monotonic() > deadline or node.poll() is not None:
                    raise
                time.sleep(0.1)
        for i in range(60):  # half a minute of life for the graphs
            req = urllib.request.Request(f"{base}/v1/records/slot-{i}.mb-0123456789ab.mesh.example", method="POST", data=b'{"value":"v%d"}' % i, headers={"Authorization": "Bearer operator"})
            urllib.request.urlopen(req).close()
            for n in range(40 + 60 * (i % 7)):
                query(dns, n % 90)
            time.sleep(0.5)
        browser = Browser(profile)
        for path, name in (("/", "landing"), ("/status", "status")):
            for scheme in ("light", "dark"):
                for width in WIDTHS:
                    where = f"{name} {scheme} {width}"
                    browser.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
                    browser.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600)
                    browser.events.clear()
                    browser.call("Page.navigate", url=base + path)
                    browser.wait("Page.loadEventFired")
                    got = browser.call("Runtime.evaluate", expression=CHECK, returnByValue=True)["result"]["value"]
                    if got["scroll"] > got["width"] or got["wide"]:
                        failures.append(f"{where}: scrolls sideways, {got['scroll']} in {got['width']}: {got['wide']}")
                    if got["scripts"]:
                        failures.append(f"{where}: has a script")
                    if got["weak"]:
                        failures.append(f"{where}: contrast under 4.5: {got['weak']}")
                    for e in browser.events:
                        if e.get("method") in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown") or e.get("method") == "Log.entryAdded" and "favicon" not in json.dumps(e):
                            failures.append(f"{where}: console: {json.dumps(e['params'])[:300]}")
                    image = browser.call("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip={"x": 0, "y": 0, "width": width, "height": got["height"], "scale": 1})
                    (shots / f"{name}-{scheme}-{width}.png").write_bytes(base64.b64decode(image["data"]))
    finally:
        if browser:
            browser.close()
        node.terminate()
        try:
            node.wait(20)
        except subprocess.TimeoutExpired:
            node.kill()
        shutil.rmtree(state, ignore_errors=True)
        shutil.rmtree(profile, ignore_errors=True)
    for f in failures:
        print("FAILED", f)
    print(f"{2 * 2 * len(WIDTHS)} looks, {len(failures)} failures")
    print(shots)
    return 1 if failures else 0


sys.exit(main())
