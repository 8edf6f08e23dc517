"""Starts a shield for the tools in this folder, on loopback and free ports, and says at its end what is wrong with it.

GROQ_SHIELD names the binary; without it, target/release/groq-shield or target/debug/groq-shield, whichever is newer.
"""

import os
import pathlib
import re
import signal
import socket
import subprocess
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
KEY = {"OUTSIDE_KEY": "gsk_outside"}


def binary():
    if "GROQ_SHIELD" in os.environ:
        return os.environ["GROQ_SHIELD"]
    built = [ROOT / "target" / kind / "groq-shield" for kind in ("release", "debug")]
    built = [path for path in built if path.exists()]
    if not built:
        raise SystemExit("no binary: cargo build --release, or set GROQ_SHIELD")
    return max(built, key=lambda path: path.stat().st_mtime)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Shield:
    """Before the simulated Groq, or before `upstream`; `config` is TOML without server.listen, admin and upstream tables."""

    def __init__(self, config="", server="", upstream=None, upstream_keys="", key=True):
        self.port, self.admin = free_port(), free_port()
        self.folder = tempfile.TemporaryDirectory()
        held = 'api_key_env = "OUTSIDE_KEY"\n' if key else ""
        base = f'base_url = "{upstream}"\n' if upstream else ""
        text = (
            f'[server]\nlisten = "127.0.0.1:{self.port}"\n{server}\n[admin]\nlisten = "127.0.0.1:{self.admin}"\n'
            f"[upstream]\n{base}{held}{upstream_keys}\n{config}\n"
        )
        (pathlib.Path(self.folder.name) / "shield.toml").write_text(text)
        self.command = [str(binary()), "serve", "--config", f"{self.folder.name}/shield.toml"]
        if not upstream:
            self.command.append("--simulate")

    def __enter__(self):
        self.log = pathlib.Path(self.folder.name) / "log"
        with self.log.open("wb") as log:
            environment = {name: value for name, value in os.environ.items() if not name.startswith("GROQ_SHIELD_")} | KEY
            self.process = subprocess.Popen(self.command, stdout=log, stderr=log, env=environment)
        for _ in range(500):
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return self
            except OSError:
                if self.process.poll() is not None:
                    break
                time.sleep(0.02)
        raise SystemExit("the shield does not start:\n" + self.log.read_text())

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(40)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = "none in 40 s"
        text = self.log.read_text(errors="replace")
        panics = re.findall(r".*panicked.*", text)
        self.folder.cleanup()
        if code != 0 or panics:
            raise SystemExit(f"the shield ended with exit code {code}\n" + "\n".join(panics[:10]))

    def resident(self):
        """Megabytes of resident memory."""
        status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024

    def descriptors(self):
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def descriptors_beside_the_pool(self):
        """Descriptors without the connections to the simulated Groq, which is in the same process: the pool keeps them for a minute."""
        folder = pathlib.Path(f"/proc/{self.process.pid}")
        links = []
        for link in (folder / "fd").iterdir():
            try:
                links.append(os.readlink(link))
            except FileNotFoundError:
                pass  # closed meanwhile
        rows = [row.split() for row in (folder / "net" / "tcp").read_text().splitlines()[1:]]
        own = {(row[1], row[2]) for row in rows if f"socket:[{row[9]}]" in links}
        return len(links) - sum((there, here) in own for here, there in own)


def exchange(port, request, wait=5, half_close=False):
    """Sends bytes on a connection of their own; everything that comes back until the close or until `wait` is over."""
    answer = b""
    with socket.create_connection(("127.0.0.1", port), wait) as connection:
        try:
            connection.sendall(request)
            if half_close:
                connection.shutdown(socket.SHUT_WR)
            while piece := connection.recv(65536):
                answer += piece
        except OSError:
            pass
    return answer


def get(port, path="/openai/v1/models", headers=""):
    return exchange(port, f"GET {path} HTTP/1.1\r\nhost: shield\r\n{headers}connection: close\r\n\r\n".encode())
