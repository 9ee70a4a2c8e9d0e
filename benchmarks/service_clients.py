"""Clients of the service, in a process of their own that imports little; see `benchmarks.service`.

    python -m benchmarks.service_clients URL BODIES CLIENTS SECONDS RATE

BODIES is a file with one request a line. RATE is the requests a second of all clients together; 0
lets each ask as fast as answers come. Prints one line of JSON.
"""

import asyncio
import json
import statistics
import sys
import time
from collections import Counter
from pathlib import Path

import aiohttp

HEADERS = {"Content-Type": "application/json"}


async def ask(url: str, bodies: list[bytes], clients: int, seconds: float, rate: float) -> str:
    """Send requests; return the rate, p99, failures by kind and how many there were."""
    times: list[float] = []
    failures: Counter[str] = Counter()
    until = time.monotonic() + seconds

    async def client(first: int, session: aiohttp.ClientSession) -> None:
        number, due = first, time.monotonic() + (first / rate if rate else 0.0)
        while time.monotonic() < until:
            if rate:
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                due += clients / rate
            started = time.perf_counter()
            body = bodies[number % len(bodies)]
            try:
                async with session.post(url, data=body, headers=HEADERS) as answer:
                    await answer.read()
                    if answer.status != 200:
                        failures[str(answer.status)] += 1
            except aiohttp.ClientError as error:
                failures[type(error).__name__] += 1
            times.append(1e3 * (time.perf_counter() - started))
            number += 1

    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session:
        started = time.monotonic()
        await asyncio.gather(*(client(n, session) for n in range(clients)))
        lasted = time.monotonic() - started
    p99 = statistics.quantiles(times, n=100)[98]
    found = {"per_s": len(times) / lasted, "p99_ms": p99, "sent": len(times)}
    return json.dumps({**found, "failed": failures.total(), "failures": failures})


if __name__ == "__main__":
    address, file, clients, seconds, rate = sys.argv[1:]
    lines = Path(file).read_bytes().splitlines()
    print(asyncio.run(ask(address, lines, int(clients), float(seconds), float(rate))))
