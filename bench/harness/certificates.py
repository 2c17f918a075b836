"""Certificates of a run: a root, and P-256 leaves with SPIFFE IDs for both hops and a DNS name for the edge."""

import subprocess

LEAVES = {
    "front": "URI:spiffe://mesh.local/ns/default/sa/client",
    "back": "URI:spiffe://mesh.local/ns/default/sa/service,DNS:service.mesh",
    "edge": "DNS:bench.example",
}


def make(run):
    """Writes `root.pem`, and for each leaf `NAME.pem`, `NAME.key.pem` and both in `NAME.both.pem`."""
    openssl(run, "req", *new_key("root.key.pem"), "-out", "root.csr", "-subj", "/CN=bench root")
    (run / "root.ext").write_text("basicConstraints=critical,CA:TRUE\nkeyUsage=keyCertSign\n")
    openssl(run, "x509", "-req", "-in", "root.csr", "-signkey", "root.key.pem", "-out", "root.pem", "-days", "2",
            "-extfile", "root.ext")
    for name, names in LEAVES.items():
        openssl(run, "req", *new_key(f"{name}.key.pem"), "-out", f"{name}.csr", "-subj", f"/CN={name}")
        (run / f"{name}.ext").write_text(f"subjectAltName={names}\nextendedKeyUsage=serverAuth,clientAuth\n")
        openssl(run, "x509", "-req", "-in", f"{name}.csr", "-CA", "root.pem", "-CAkey", "root.key.pem", "-out", f"{name}.pem",
                "-days", "2", "-extfile", f"{name}.ext", "-set_serial", str(len(name)))
        both = (run / f"{name}.pem").read_bytes() + (run / f"{name}.key.pem").read_bytes()
        (run / f"{name}.both.pem").write_bytes(both)
    for file in run.glob("*.pem"):
        file.chmod(0o644)


def new_key(file):
    return "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", file


def openssl(run, *arguments):
    subprocess.run(["openssl", *arguments], cwd=run, check=True, capture_output=True)
