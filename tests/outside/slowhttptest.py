#!/usr/bin/env python3
"""slowhttptest's four attacks on a shield, while others are served: slow headers, slow body, slow read, ranges.

apt-get install slowhttptest; tests/outside/slowhttptest.py [SECONDS of each, 45 by default]

Passes if a client that asks ten times a second is answered with 200 throughout, each time within two seconds, and nothing
of the attack is left at the end.
"""

import re
import subprocess
import sys
import threading
import time

from shield import Shield, get

ATTACKS = {
    "slow headers": ["-H", "-i", "3", "-x", "32"],
    "slow body": ["-B", "-i", "3", "-s", "8192", "-x", "10"],
    "slow read": ["-X", "-w", "1", "-y", "2", "-n", "1", "-z", "2", "-k", "3"],
    "ranges": ["-R", "-a", "10", "-b", "3000", "-t", "HEAD"],
}
CONNECTIONS = "1000"


def attack(shield, name, options, seconds):
    served, slowest, failed, stop = 0, 0.0, [], threading.Event()

    def others():
        nonlocal served, slowest
        while not stop.is_set():
            begun = time.monotonic()
            try:
                answer = get(shield.port)
                if not answer.startswith(b"HTTP/1.1 200"):
                    failed.append(answer[:40])
            except OSError as error:
                failed.append(error)
            served, slowest = served + 1, max(slowest, time.monotonic() - begun)
            time.sleep(0.1)

    client = threading.Thread(target=others)
    client.start()
    url = f"http://127.0.0.1:{shield.port}/openai/v1/models"
    command = ["slowhttptest", *options, "-c", CONNECTIONS, "-r", "200", "-l", str(seconds), "-p", "3", "-u", url]
    output = subprocess.run(command, capture_output=True, text=True).stdout
    stop.set()
    client.join()
    plain = re.sub(r"\x1b\[[0-9;]*m", "", output)
    last = {key: re.findall(rf"{key}:\s+(\w+)", plain)[-1:] for key in ("connected", "closed", "error", "service available")}
    for _ in range(400):
        left = shield.descriptors_beside_the_pool()
        if left < 40:
            break
        time.sleep(0.1)
    state = ", ".join(f"{key} {value[0]}" for key, value in last.items() if value)
    print(
        f"{name}: {seconds} s, {CONNECTIONS} connections ({state}); others: {served} asked, {len(failed)} failed, "
        f"slowest {slowest * 1000:.0f} ms; {shield.resident():.0f} MB, {left} descriptors afterwards",
        flush=True,
    )
    return not failed and slowest < 2 and left < 40 and served > 0


def main():
    seconds = int(sys.argv[1]) if len(sys.argv) > 1 else 45
    with Shield('[limits]\nplan = "none"') as shield:
        results = [attack(shield, name, options, seconds) for name, options in ATTACKS.items()]
    sys.exit(0 if all(results) else 1)


main()
