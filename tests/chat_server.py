"""A stand-in for an OpenAI-compatible server, on this machine, that misbehaves on command."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def completion(text) -> bytes:
    return json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]}).encode()


class Server:
    """On 127.0.0.1. `plan`: what the next requests get, each one of the words below or (status, body); when it is
    empty, `reply`(request).
    """

    def __init__(self):
        self.plan, self.requests, self.reply = [], [], lambda request: completion("fine")
        self.released = threading.Event()  # ends what hangs, so that closing is quick
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                self.send(200, b'{"object": "list", "data": [{"id": "served"}]}')

            def do_POST(self):
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                owner.requests.append((self.path, request))
                step = owner.plan.pop(0) if owner.plan else "fine"
                self.close_connection = True
                if step == "hang":
                    owner.released.wait(10)
                elif step == "trickle":
                    self.send_response(200)
                    self.send_header("Content-Length", "100")
                    self.end_headers()
                    for _ in range(100):
                        if owner.released.wait(0.05):
                            return
                        self.wfile.write(b" ")
                elif step == "hang up":
                    self.connection.close()
                elif step == "cut":
                    self.send(200, completion("fine"), length=1000)
                elif step == "fine":
                    self.send(200, owner.reply(request))
                else:
                    self.send(*step)

            def send(self, status, body, length=None):
                self.send_response(status)
                self.send_header("Content-Length", str(length or len(body)))
                self.send_header("Connection", "close")
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args):
                pass

        class Quiet(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request, client_address):  # the client gave up on purpose
                pass

        self.http = Quiet(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def close(self):
        self.released.set()
        self.http.shutdown()
        self.http.server_close()
