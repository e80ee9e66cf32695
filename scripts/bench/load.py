"""A load generator: one process, raw HTTP/1.1 over kept connections, each sending its next request when the last is answered."""

import asyncio
import time
from dataclasses import dataclass, field


@dataclass
class Answered:
    """What a load saw.

    Attributes:
        seconds: latency of each request.
        wall_s: from the first request to the last answer.
        sizes: bytes of each answer's body.
        failures: answers that were not 200.
    """

    seconds: list[float] = field(default_factory=list)
    wall_s: float = 0.0
    sizes: list[int] = field(default_factory=list)
    failures: int = 0


async def load(host: str, port: int, path: str, bodies: list[bytes], connections: int, most_s: float) -> Answered:
    """Send every body once, over so many connections, for at most `most_s` seconds."""
    found = Answered()
    queue = iter(bodies)
    since = time.perf_counter()
    await asyncio.gather(*(_connection(host, port, path, queue, since + most_s, found) for _ in range(connections)))
    found.wall_s = time.perf_counter() - since
    return found


async def _connection(host: str, port: int, path: str, queue: object, until: float, found: Answered) -> None:
    reader, writer = await asyncio.open_connection(host, port)
    try:
        for body in queue:  # type: ignore[attr-defined]
            started = time.perf_counter()
            if started > until:
                return
            head = f"POST {path} HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
            writer.write(head.encode() + body)
            answer = (await reader.readuntil(b"\r\n\r\n")).lower()
            size = int(answer.partition(b"content-length: ")[2].split(b"\r\n", 1)[0])
            await reader.readexactly(size)
            found.seconds.append(time.perf_counter() - started)
            found.sizes.append(size)
            found.failures += not answer.startswith(b"http/1.1 200")
    finally:
        writer.close()
