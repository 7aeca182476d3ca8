"""A server with the API of OpenAI that answers a prompt by numbers, and fails in the way that it is told to.

    python fake_server.py PORT MODEL [FAULT ...]

A prompt p is answered by the tokens sum(p), sum(p) + 1, ... Nothing but the standard library.
"""

import json
import os
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "sk-very-secret"
METRICS = """\
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{engine="0",model_name="a b"} 0.25
vllm:num_requests_running{engine="0"} 3.0
vllm:num_requests_waiting{engine="0"} 2.0
vllm:num_requests_waiting_by_reason{engine="0",reason="capacity"} 2.0
vllm:num_preemptions_total{engine="0"} 7.0
"""


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, port: int, model: str, *faults: str):
        super().__init__(("127.0.0.1", port), Handler)
        self.model, self.faults, self.version = model, set(faults), "9.9"
        self.bodies: list[dict[str, Any]] = []
        self.connections: set[tuple[str, int]] = set()
        self.loaded_s = time.monotonic() + (0.4 if "slow" in faults else 1e9 if "never" in faults else 0.0)
        self.answered = 0

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, *_: object) -> None:
        pass

    def _say(self, status: int, text: str, **headers: str) -> None:
        data = text.encode(errors="surrogatepass")
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(data))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        server = self.server
        if self.path == "/health":
            return self._say(200 if time.monotonic() >= server.loaded_s else 503, "")
        # As vLLM does: what tells of the server itself is open.
        if "key" in server.faults and self.path.startswith("/v1") and self.headers["Authorization"] != f"Bearer {KEY}":
            return self._say(401, "{}")
        if self.path == "/v1/models":
            name = "another" if "another" in server.faults else server.model
            entry = {"id": name, "owned_by": "fake", "max_model_len": 16 if "short" in server.faults else 4096}
            return self._say(200, json.dumps({"data": [entry]}))
        if self.path == "/version":
            return self._say(200, json.dumps({"version": server.version}))
        if self.path == "/metrics" and "plain" not in server.faults:
            return self._say(200, METRICS)
        self._say(404, "{}")

    def do_POST(self) -> None:
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server.bodies.append(body)
        server.connections.add(self.client_address)
        server.answered += 1
        if "strict" in server.faults and (unknown := {"ignore_eos", "min_tokens"} & set(body)):
            return self._say(422, json.dumps({"detail": f"Unexpected fields in the request: {sorted(unknown)}"}))
        if "text" in server.faults:
            return self._say(400, json.dumps({"detail": "prompt must be a string."}))
        if "moved" in server.faults:
            return self._say(307, "elsewhere", Location="http://192.0.2.1/v1/completions")
        if "html" in server.faults:
            return self._say(200, "<html>Welcome</html>", **{"Content-Type": "text/html"})
        later = server.answered > 1
        if "busy" in server.faults and later:
            return self._say(429, json.dumps({"error": {"message": "Too many requests."}}))
        if "binary" in server.faults and later:
            return self._say(500, "\ud800")
        if "fails" in server.faults and later:
            return self._say(500, json.dumps({"error": {"message": f"boom, {KEY}", "code": 500}}))
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self._stream(body, later)
        self.wfile.write(b"0\r\n\r\n")

    def _stream(self, body: dict[str, Any], later: bool) -> None:
        faults = self.server.faults
        prompt, wanted = body["prompt"], body["max_tokens"]
        produced = wanted + later * (("more" in faults) - ("early" in faults))
        for number in range(produced):
            if later and number == 1:
                if "dies" in faults:
                    print("RuntimeError: the sky fell", file=sys.stderr, flush=True)
                    os._exit(3)
                if "hangs" in faults:
                    time.sleep(60)
                if "stops" in faults:
                    return
                if "half" in faults:
                    return self._chunk(b'data: {"choices": [{"te')
                if "garbles" in faults:
                    return self._chunk(b'data: {"choices": [{"te\xff\n\n')
                if "breaks" in faults:
                    self.connection.close()
                    raise ConnectionError
            choice: dict[str, Any] = {"index": 0, "text": "é", "finish_reason": None}
            if body.get("return_token_ids") and "plain" not in faults:
                choice["token_ids"] = [sum(prompt) + number]
            if number + 1 == produced:
                choice["finish_reason"] = "length" if produced == wanted else "stop"
            if "swallows" in faults and number == 1:
                # A token whose text is held back until the next is there.
                continue
            event = {"choices": [choice]}
            if body["stream_options"].get("continuous_usage_stats") and "plain" not in faults:
                event["usage"] = {"prompt_tokens": len(prompt), "completion_tokens": number + 1}
            self._event(event)
        usage = {"prompt_tokens": len(prompt) + ("bos" in faults), "completion_tokens": produced}
        if "uncounted" not in faults:
            self._event({"choices": [], "usage": usage})
        if "undone" not in faults:
            self._chunk(b"data: [DONE]\n\n")
        if "open" in faults:
            time.sleep(60)

    def _event(self, event: dict[str, Any]) -> None:
        text = f"data: {json.dumps(event)}\n\n".encode()
        # In two parts, as the network may cut it.
        self._chunk(text[:9])
        self._chunk(text[9:])

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.flush()


def main() -> None:
    port, model, *faults = sys.argv[1:]
    if "leaves" in faults:
        sys.exit()
    if "refuses" in faults:
        sys.exit("ValueError: unknown architecture")
    if "memory" in faults:
        print("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB", file=sys.stderr)
        sys.exit("RuntimeError: engine core failed")
    if "children" in faults:
        # One that has left the group, and does not hear of the end.
        code = "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(600)"
        child = subprocess.Popen([sys.executable, "-S", "-c", code], start_new_session=True)
        print(f"child {child.pid}, key {os.environ.get('FAKE_KEY')}", flush=True)
    server = Server(int(port), model, *faults)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}).start()


if __name__ == "__main__":
    main()
