"""An app's instance for scripts/conformance: 1 KiB at every path, 256 KiB at /large. Prints its port first."""

import asyncio
import re

PIECE = b"x" * (64 << 10)


async def serve(reader, writer):
    try:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"\r\ncontent-length: *(\d+)", head, re.IGNORECASE)
            if length:
                left = int(length[1])
                while left:
                    data = await reader.read(min(left, 65536))
                    if not data:
                        return
                    left -= len(data)
            elif b"chunked" in head.lower():
                while int(await reader.readline(), 16):
                    await reader.readuntil(b"\r\n")
                await reader.readline()
            size = 256 << 10 if b" /large" in head.split(b"\r\n", 1)[0] else 1024
            out = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n" % size
            while size:
                n = min(size, len(PIECE))
                size -= n
                # No more than the reader takes: hundreds of slow ones would fill the memory here.
                writer.write(out + PIECE[:n])
                out = b""
                await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError, ValueError):
        pass
    finally:
        writer.close()


async def main():
    server = await asyncio.start_server(serve, "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


asyncio.run(main())
