"""An HTTP proxy in front of a node that writes down what the client asked and what it got, and a DNS server that refuses everything."""

import http.client
import http.server
import json
import socket
import threading


class Recorder:
    def __init__(self, node, port):
        self.node, self.port, self.seen = node, port, []
        recorder = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def forward(self):
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                to = http.client.HTTPConnection(node.ip, node.http_port, timeout=30)
                try:
                    headers = {k: v for k, v in self.headers.items() if k.lower() not in ("host", "connection", "content-length")}
                    to.request(self.command, self.path, body, headers)
                    r = to.getresponse()
                    answer = r.read()
                finally:
                    to.close()
                try:
                    asked = json.loads(body) if body else {}
                except ValueError:
                    asked = {}
                recorder.seen.append((self.command, self.path, r.status, asked))
                self.send_response(r.status)
                for k, v in r.getheaders():
                    if k.lower() in ("content-type", "retry-after"):
                        self.send_header(k, v)
                if r.status != 204:
                    self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            do_GET = do_POST = do_DELETE = forward

            def log_message(self, *args):
                pass

        self.server = http.server.ThreadingHTTPServer((node.ip, port), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def url(self):
        return f"http://{self.node.ip}:{self.port}"

    def take(self):
        seen, self.seen = self.seen, []
        return seen

    def close(self):
        self.server.shutdown()
        self.server.server_close()


class Refuser:
    """A resolver that answers REFUSED to all."""

    def __init__(self, ip, port):
        self.asked = 0
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind((ip, port))
        threading.Thread(target=self.run, daemon=True).start()

    def run(self):
        while True:
            try:
                q, client = self.socket.recvfrom(4096)
            except OSError:
                return
            if len(q) >= 12:
                self.asked += 1
                self.socket.sendto(q[:2] + bytes([0x80 | q[2] & 0x79, 5]) + q[4:], client)

    def close(self):
        self.socket.close()
