"""A small HTTP/1.1 client for measuring streams: on the hot path it only cuts chunks and notes when they came.

Every arrival of bytes is stamped as the kernel hands it over; events are parsed after the last byte, so that parsing one
stream does not delay the stamps of the others. One Connection carries one exchange at a time and is used again when the
server keeps it open. Plain HTTP only.
"""
import asyncio
import json
import time
from dataclasses import dataclass, field

MAX_HEAD_BYTES = 64 << 10


class ProtocolError(Exception):
    """The server's bytes are not the HTTP response that was promised."""


@dataclass
class Exchange:
    """One request and everything that came back. Times are time.perf_counter(), None until they happen."""
    start: float = 0.0
    end: float | None = None
    status: int = 0
    headers: dict = field(default_factory=dict)
    pieces: list = field(default_factory=list)  # (time, bytes) of the body, as they arrived
    error: str = ""          # "": a whole response; else "timeout", "cancelled", "disconnected", "malformed: ..."

    # Filled by parse_stream or parse_whole.
    event_times: list = field(default_factory=list)  # of events with text
    text: str = ""
    finish_reason: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0

    # Filled by whoever drives it.
    key: str = ""
    domain: str = ""
    counted: bool = True     # false: warm-up
    tag: object = None

    def body(self):
        return b"".join(data for _, data in self.pieces)


class Connection(asyncio.Protocol):
    """One TCP connection. `usable()` tells whether another exchange may follow."""

    def __init__(self):
        self.transport = None
        self._exchange = None
        self._done = None
        self._state = "idle"
        self._buffer = bytearray()
        self._left = 0
        self._close_after = False
        self._closed = False
        self._head_only = False

    @classmethod
    async def open(cls, host, port):
        _, connection = await asyncio.get_running_loop().create_connection(cls, host, port)
        return connection

    def usable(self):
        return not self._closed and self._state == "idle" and not self._close_after

    def close(self):
        self._closed = True
        if self.transport:
            self.transport.abort()

    async def exchange(self, exchange, method, target, headers, body=b""):
        """Sends a request and waits for the whole response. Stamps `exchange`; does not raise for what the server does."""
        assert self._state == "idle"
        self._exchange, self._state, self._head_only = exchange, "head", method == "HEAD"
        self._done = asyncio.get_running_loop().create_future()
        lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
        if body or method == "POST":
            lines.append(f"Content-Length: {len(body)}")
        exchange.start = time.perf_counter()
        self.transport.write(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1") + body)
        if self._closed:
            self._finish("disconnected")
        await self._done

    # ---- asyncio.Protocol ----

    def connection_made(self, transport):
        self.transport = transport

    def connection_lost(self, exc):
        self._closed = True
        if self._state == "until close":
            self._finish("")
        elif self._state != "idle":
            self._finish("disconnected")

    def data_received(self, data):
        now = time.perf_counter()
        self._buffer += data
        try:
            self._advance(now)
        except ProtocolError as error:
            self._finish(f"malformed: {error}")
            self.close()

    # ---- Framing ----

    def _finish(self, error):
        if self._state == "idle":
            return
        self._exchange.end = time.perf_counter()
        self._exchange.error = self._exchange.error or error
        self._state, self._exchange = "idle", None
        if not self._done.done():
            self._done.set_result(None)

    def _take_line(self):
        end = self._buffer.find(b"\r\n")
        if end < 0:
            if len(self._buffer) > MAX_HEAD_BYTES:
                raise ProtocolError("an endless line")
            return None
        line = bytes(self._buffer[:end])
        del self._buffer[:end + 2]
        return line

    def _advance(self, now):
        while self._buffer:
            if self._state == "idle":
                raise ProtocolError("bytes after the response")
            if self._state == "head":
                if not self._read_head(now):
                    return
            elif self._state == "chunk size":
                line = self._take_line()
                if line is None:
                    return
                try:
                    self._left = int(line.split(b";")[0], 16)
                except ValueError:
                    raise ProtocolError(f"chunk size {line[:20]!r}") from None
                self._state = "chunk" if self._left else "trailer"
            elif self._state == "trailer":
                line = self._take_line()
                if line is None:
                    return
                if not line:
                    self._finish("")
            elif self._state == "chunk end":
                if len(self._buffer) < 2:
                    return
                if self._buffer[:2] != b"\r\n":
                    raise ProtocolError("no line end after a chunk")
                del self._buffer[:2]
                self._state = "chunk size"
            else:
                self._read_body(now)

    def _read_body(self, now):
        if self._state == "until close":
            self._exchange.pieces.append((now, bytes(self._buffer)))
            self._buffer.clear()
            return
        piece = bytes(self._buffer[:self._left])
        del self._buffer[:len(piece)]
        self._left -= len(piece)
        self._exchange.pieces.append((now, piece))
        if self._left == 0:
            if self._state == "chunk":
                self._state = "chunk end"
            else:
                self._finish("")

    def _read_head(self, now):
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            if len(self._buffer) > MAX_HEAD_BYTES:
                raise ProtocolError("an endless head")
            return False
        head = bytes(self._buffer[:end]).decode("latin-1")
        del self._buffer[:end + 4]
        status_line, *lines = head.split("\r\n")
        parts = status_line.split(" ", 2)
        if len(parts) < 2 or not parts[0].startswith("HTTP/1.") or not parts[1].isdigit():
            raise ProtocolError(f"status line {status_line[:60]!r}")
        status = int(parts[1])
        if 100 <= status < 200:
            return True
        headers = {}
        for line in lines:
            name, colon, value = line.partition(":")
            if not colon:
                raise ProtocolError(f"header {line[:60]!r}")
            headers[name.strip().lower()] = value.strip()
        self._exchange.status, self._exchange.headers = status, headers
        self._close_after = headers.get("connection", "").lower() == "close" or parts[0] == "HTTP/1.0"
        if self._head_only or status in (204, 304):
            self._finish("")
        elif headers.get("transfer-encoding", "").lower() == "chunked":
            self._state = "chunk size"
        elif "content-length" in headers:
            self._left = int(headers["content-length"])
            self._state = "length"
            if self._left == 0:
                self._finish("")
        else:
            self._state, self._close_after = "until close", True
        return True


class Client:
    """Exchanges with one server over kept-alive connections, as many as are needed at a time."""

    def __init__(self, url):
        if not url.startswith("http://"):
            raise ValueError(f"{url}: only http:// URLs can be measured")
        self.authority = url.removeprefix("http://").split("/")[0]
        host, colon, port = self.authority.rpartition(":")
        if not colon or not port.isdigit():
            host, port = self.authority, "80"
        self.host, self.port = host.strip("[]"), int(port)
        self._idle = []

    def close(self):
        while self._idle:
            self._idle.pop().close()

    async def send(self, exchange, method, target, body=None, key="", timeout=None, cancel_after=None):
        """Fills `exchange`. `timeout`: seconds to the last byte. `cancel_after`: give up after that many seconds, as a
        client does that lost interest; 0 leaves at once after sending."""
        headers = {"Host": self.authority, "Accept": "*/*", "User-Agent": "sluice-load"}
        payload = b""
        if body is not None:
            payload = json.dumps(body).encode()
            headers["Content-Type"] = "application/json"
        if key:
            headers["Authorization"] = f"Bearer {key}"
        exchange.start = time.perf_counter()
        connection = None
        limits = [t for t in (timeout, cancel_after) if t is not None]
        try:
            connection = self._take() or await Connection.open(self.host, self.port)
            await asyncio.wait_for(connection.exchange(exchange, method, target, headers, payload),
                                   min(limits) if limits else None)
        except asyncio.TimeoutError:
            exchange.error = "cancelled" if cancel_after is not None and cancel_after == min(limits) else "timeout"
        except OSError as error:
            exchange.error = f"disconnected: {error}"
        if exchange.end is None:
            exchange.end = time.perf_counter()
        if connection:
            if exchange.error or not connection.usable():
                connection.close()
            else:
                self._idle.append(connection)
        return exchange

    async def get(self, target, key=""):
        """(status, body) of a GET; status 0 when there was no whole response."""
        exchange = await self.send(Exchange(), "GET", target, key=key, timeout=30)
        return (0 if exchange.error else exchange.status), exchange.body().decode("utf-8", "replace")

    def _take(self):
        while self._idle:
            connection = self._idle.pop()
            if connection.usable():
                return connection
            connection.close()
        return None


# ---- What a response says ----

def _events(exchange):
    """(time of its last byte, data) of every complete event; comments are skipped."""
    buffer = b""
    for when, piece in exchange.pieces:
        buffer += piece
        while True:
            end = buffer.find(b"\n\n")
            if end < 0:
                break
            event, buffer = buffer[:end], buffer[end + 2:]
            data = [line[5:].lstrip() for line in event.replace(b"\r", b"").split(b"\n") if line.startswith(b"data:")]
            if data:
                yield when, b"\n".join(data)
    if buffer.strip() and not exchange.error:
        raise ProtocolError("the stream ends inside an event")


def _add_usage(exchange, usage):
    exchange.prompt_tokens = usage.get("prompt_tokens", 0)
    exchange.completion_tokens = usage.get("completion_tokens", 0)
    exchange.cached_tokens = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0) or 0


def _text_of(choice):
    if "text" in choice:
        return choice["text"] or ""
    delta = choice.get("delta") or choice.get("message") or {}
    return (delta.get("content") or "") + (delta.get("reasoning_content") or "")


def parse_stream(exchange, strict=False):
    """Reads the events of a 200. An error event becomes `error`; with `strict` so does anything that a stream of one
    choice must not look like: no finish reason, text after it, no [DONE], anything after that."""
    done, texts = False, []
    try:
        for when, data in _events(exchange):
            if done:
                raise ProtocolError("an event after [DONE]")
            if data == b"[DONE]":
                done = True
                continue
            event = json.loads(data)
            if "error" in event:
                exchange.error = exchange.error or f"stream error: {event['error'].get('message', '')}"
                continue
            if event.get("usage"):
                _add_usage(exchange, event["usage"])
            for choice in event.get("choices", []):
                text = _text_of(choice)
                if text:
                    if exchange.finish_reason and strict:
                        raise ProtocolError("text after the finish reason")
                    exchange.event_times.append(when)
                    texts.append(text)
                if choice.get("finish_reason"):
                    exchange.finish_reason = choice["finish_reason"]
        if strict and not exchange.error and not (done and exchange.finish_reason):
            raise ProtocolError("no [DONE]" if exchange.finish_reason else "no finish reason")
    except (ProtocolError, ValueError, AttributeError, TypeError) as error:
        exchange.error = f"malformed: {error}"
    exchange.text = "".join(texts)


def parse_whole(exchange):
    """Reads the body of a 200 that is no stream."""
    try:
        body = json.loads(exchange.body())
        choice = body["choices"][0]
        exchange.text, exchange.finish_reason = _text_of(choice), choice["finish_reason"]
        _add_usage(exchange, body.get("usage") or {})
    except (ValueError, KeyError, IndexError, TypeError) as error:
        exchange.error = exchange.error or f"malformed: {error!r}"


def error_name(exchange):
    """The label that an exchange is counted under, "" for a good one."""
    if exchange.error:
        return exchange.error.split(":")[0]
    return "" if exchange.status == 200 else f"http {exchange.status}"
