"""A server with the API of OpenAI that gives tokens at set times, for clients whose figures are to be known beforehand.

    python benchmarks/paced_server.py PORT MODEL [FIRST_MS] [TOKEN_MS]

The first token comes FIRST_MS after the request, whatever its prompt, and each further one TOKEN_MS after the one
before, however many requests there are.
"""

import asyncio
import json
import sys

from aiohttp import web


class Paced:
    """What the server says, and when."""

    def __init__(self, model: str, first_s: float, token_s: float):
        self.model, self.first_s, self.token_s = model, first_s, token_s

    async def models(self, _request: web.Request) -> web.Response:
        """The one model."""
        return web.json_response({"data": [{"id": self.model, "owned_by": "paced", "max_model_len": 1 << 20}]})

    async def complete(self, request: web.Request) -> web.StreamResponse:
        """An answer as a stream of events, each token by the clock and not by when the one before was sent."""
        loop = asyncio.get_running_loop()
        due_s = loop.time() + self.first_s
        body = await request.json()
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for number in range(body["max_tokens"]):
            await asyncio.sleep(due_s - loop.time())
            reason = "length" if number + 1 == body["max_tokens"] else None
            await _send(
                response, {"choices": [{"index": 0, "text": "a", "token_ids": [number], "finish_reason": reason}]}
            )
            due_s += self.token_s
        usage = {"prompt_tokens": len(body["prompt"]), "completion_tokens": body["max_tokens"]}
        await _send(response, {"choices": [], "usage": usage})
        await response.write(b"data: [DONE]\n\n")
        return response


async def _send(response: web.StreamResponse, event: dict[str, object]) -> None:
    await response.write(f"data: {json.dumps(event)}\n\n".encode())


async def _ready(_request: web.Request) -> web.Response:
    return web.Response()


def main() -> None:
    """Serve until ended."""
    port, model, *times = sys.argv[1:]
    first_ms, token_ms = [float(each) for each in times] or [40.0, 10.0]
    paced = Paced(model, first_ms / 1e3, token_ms / 1e3)
    app = web.Application()
    app.add_routes([
        web.get("/health", _ready),
        web.get("/v1/models", paced.models),
        web.post("/v1/completions", paced.complete),
    ])  # fmt: skip
    web.run_app(app, host="127.0.0.1", port=int(port), print=None, access_log=None)


if __name__ == "__main__":
    main()
