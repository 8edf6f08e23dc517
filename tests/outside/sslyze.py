#!/usr/bin/env python3
"""sslyze on the TLS listener of a shield with a certificate made for it.

pip install sslyze; tests/outside/sslyze.py (with that Python)

Passes if the listener conforms to Mozilla's intermediate profile but for the certificate itself, which is the test's own.
"""

import json
import pathlib
import subprocess
import sys
import tempfile

from shield import Shield

# sslyze's own command-line entry, whose module has this file's name.
SSLYZE = pathlib.Path(sys.executable).parent / "sslyze"
NEVER = ("ssl_2_0_cipher_suites", "ssl_3_0_cipher_suites", "tls_1_0_cipher_suites", "tls_1_1_cipher_suites")


def main():
    with tempfile.TemporaryDirectory() as folder:
        key, certificate = f"{folder}/key.pem", f"{folder}/certificate.pem"
        make = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "30"]
        names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
        subprocess.run([*make, *names, "-keyout", key, "-out", certificate], check=True, capture_output=True)
        with Shield(server=f'tls.cert = "{certificate}"\ntls.key = "{key}"') as shield:
            target, told = f"127.0.0.1:{shield.port}", f"{folder}/told.json"
            scan = subprocess.run([SSLYZE, "--mozilla_config", "intermediate", "--json_out", told, target], capture_output=True, text=True)
            result = json.loads(pathlib.Path(told).read_text())["server_scan_results"][0]["scan_result"]
    wrong = []
    for name in NEVER:
        if result[name]["result"]["accepted_cipher_suites"]:
            wrong.append(name)
    for name in ("tls_1_2_cipher_suites", "tls_1_3_cipher_suites"):
        suites = [suite["cipher_suite"]["name"] for suite in result[name]["result"]["accepted_cipher_suites"]]
        print(f"{name}: {', '.join(suites)}")
        if not suites or any(not ("GCM" in suite or "CHACHA20" in suite) for suite in suites):
            wrong.append(name)
    faults = {
        "heartbleed": "is_vulnerable_to_heartbleed",
        "openssl_ccs_injection": "is_vulnerable_to_ccs_injection",
        "tls_compression": "supports_compression",
        "session_renegotiation": "is_vulnerable_to_client_renegotiation_dos",
    }
    for name, field in faults.items():
        print(f"{name}: {result[name]['result'][field]}")
        if result[name]["result"][field]:
            wrong.append(name)
    robot = result["robot"]["result"]["robot_result"]
    print(f"robot: {robot}")
    if not robot.startswith("NOT_VULNERABLE"):
        wrong.append("robot")
    compliance = scan.stdout[scan.stdout.find("COMPLIANCE") :].strip()
    print(compliance)
    print("wrong:", ", ".join(wrong) or "nothing")
    sys.exit(1 if wrong else 0)


main()
