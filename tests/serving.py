"""A frozen model behind HTTP, in a process of its own: prints its address, and its count when told to stop."""

import sys
import threading
import time

from conftest import make_pixel_source

from reprogram.sources.remote import Handler, Server


class Faulty(Handler):
    """Every fault of a real service, in turn: a limit, an error, a page, a dropped line, silence."""

    FAULTS = ("", "", "429", "", "500", "", "page", "", "drop", "", "silence", "")

    def do_POST(self):
        number, self.server.calls = self.server.calls, self.server.calls + 1
        fault = self.FAULTS[number % len(self.FAULTS)]
        body = self.rfile.read(int(self.headers["Content-Length"]))
        rows = self.rows_in(body)
        if fault == "429":
            return self.reply(429, "text/plain", b"slow down", Retry_After="0.01")
        if fault:
            self.server.answer(rows)  # from here on the work is done and paid for
        if fault == "500":
            return self.reply(500, "text/plain", b"broken")
        if fault == "page":
            return self.reply(200, "text/html", b"<html>please log in</html>")
        if fault == "drop":
            return self.connection.close()
        if fault == "silence":
            time.sleep(1.5)
            return self.connection.close()
        self.respond(rows)


if __name__ == "__main__":
    server = Server(make_pixel_source(), handler=Faulty if sys.argv[1] == "faulty" else Handler)
    server.calls = 0
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(server.url, flush=True)  # noqa: T201
    sys.stdin.readline()
    print(server.served, flush=True)  # noqa: T201
