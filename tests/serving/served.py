"""A server in a process of its own, and requests to it."""

import http.client
import json
import multiprocessing
import os
import re
import signal
import socket
import subprocess
import time

import forked

BOUNDARY = "b0undary"


class Served:
    """``lit-ft serve`` of a checkpoint, started as a process; `end` ends it as Ctrl-C does, and else its context."""

    def __init__(self, checkpoint, folder, *options, seconds=90, **variables):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.log = folder / "served.log"
        args = ["serve", str(checkpoint), "--port", str(self.port), *options]
        self.process = forked.start(serve, args, out=self.log, **variables)
        self.processes = []
        end = time.monotonic() + seconds
        while "Serving on" not in self.printed:
            if not self.process.is_alive() or time.monotonic() > end:
                self.process.kill()
                raise RuntimeError(self.printed)
            time.sleep(0.02)
        self.processes = descendants(self.process.pid)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.is_alive():
            self.end(signal.SIGTERM)

    @property
    def printed(self):
        return self.log.read_text() if self.log.exists() else ""

    def request(self, method, path, body=None, **headers):
        """The status, headers and content of a response."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            headers = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            return response.status, response.headers, response.read()
        finally:
            connection.close()

    def predict(self, content, query="", kind="image/jpeg"):
        """The status and the JSON of the answer to an image as it is."""
        status, _, body = self.request("POST", f"/predict{query}", content, **({"Content_Type": kind} if kind else {}))
        return status, json.loads(body)

    def predict_form(self, *contents, query=""):
        """The same of images in a form."""
        return self.predict(form(*contents), query, f"multipart/form-data; boundary={BOUNDARY}")

    def end(self, number=signal.SIGINT):
        """Ends it as a terminal does, which interrupts all processes, or as Docker does, which ends the first one.

        Gives the exit code and the processes that are left.
        """
        for pid in self.processes if number == signal.SIGINT else [self.process.pid]:
            os.kill(pid, number)
        self.process.join(60)
        code = self.process.exitcode
        self.process.kill()
        return code, left_of(self.processes)


def serve(args):
    """Runs the command, with the processes that it starts forked as on a command line, not from the server of tests."""
    multiprocessing.set_start_method("fork", force=True)
    return forked.lit_ft_main(args)


def form(*contents):
    """A form with a file for each content."""
    head = 'Content-Disposition: form-data; name="image"; filename="a.jpg"\r\nContent-Type: image/jpeg\r\n\r\n'
    parts = [f"--{BOUNDARY}\r\n{head}".encode() + content + b"\r\n" for content in contents]
    return b"".join(parts) + f"--{BOUNDARY}--\r\n".encode()


def running():
    """The parents and commands of all processes that have not ended."""
    lines = subprocess.run(["ps", "-A", "-ww", "-o", "pid=,ppid=,stat=,args="], capture_output=True, text=True).stdout
    found = [re.fullmatch(r"\s*(\d+)\s+(\d+)\s+(\S+)\s+(.*)", line) for line in lines.splitlines()]
    return {int(one[1]): (int(one[2]), one[4]) for one in found if one and not one[3].startswith("Z")}


def left_of(processes):
    """Those of the processes that do not end within seconds."""
    end = time.monotonic() + 5
    while (left := processes.keys() & running().keys()) and time.monotonic() < end:
        time.sleep(0.05)
    return {pid: processes[pid] for pid in left}


def descendants(pid):
    """The processes that a process has started, and these, with their commands."""
    table, found = running(), {pid: ""}
    while new := {one: args for one, (parent, args) in table.items() if parent in found and one not in found}:
        found |= new
    return found
