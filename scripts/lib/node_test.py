"""The part of scripts/node-test that runs on the node: started by a unit at every boot, as root.

  node_test.py network                 gives the machine an uplink, and something at its other end
  node_test.py internet                what is at the other end: the control plane, the metadata service, a private network
  node_test.py check <boot>            the checks of the first or the second boot, then powers off

Everything that a check asks of the node from outside comes through the uplink, so that the firewall is in its way. Python's
own library only: that is what a node has.
"""

import base64
import hashlib
import http.server
import json
import os
import pathlib
import re
import socket
import subprocess
import sys
import threading
import time
import uuid

OUT = pathlib.Path("/out")
HOME = pathlib.Path("/var/lib/node-test")
SETTINGS = json.loads((HOME / "settings.json").read_text()) if (HOME / "settings.json").exists() else {}

NODE = "203.0.113.7"
GATEWAY = "203.0.113.1"
CONTROL_PLANE = "198.51.100.1"
STRANGER = "198.51.100.66"
METADATA = "169.254.169.254"
PRIVATE = "10.9.8.7"
WEB = f"https://{NODE}"
STATE = pathlib.Path("/var/lib/seedplane/state")
DATA = pathlib.Path("/srv/seedbox/data")
PROFILE = pathlib.Path("/srv/seedbox/profile")
CALLBACKS = OUT / "callbacks"
# Whether the metadata service knows the address; at first it does not, so that the other way to it is tried, too.
METADATA_KNOWS = HOME / "metadata-knows"
HASH_PATTERN = r"^WebUI\\Password_PBKDF2=.*$"


def run(*command, timeout=30, text=None):
    """Runs a command to its end; what it printed stands in .output, both streams one after the other."""
    try:
        done = subprocess.run(
            [str(word) for word in command], input=text, capture_output=True, text=True, errors="replace", timeout=timeout
        )
        done.output = done.stdout + done.stderr
    except subprocess.TimeoutExpired:
        done = subprocess.CompletedProcess(command, 124, "", "")
        done.output = f"no end after {timeout} s"
    return done


def outside(*command, **options):
    """Runs a command at the other end of the uplink."""
    return run("nsenter", "--net=/run/netns/outside", *command, **options)


# The network.


def network():
    for line in (
        "ip netns add outside",
        "ip link set lo up",
        "ip link add name uplink type veth peer name downlink netns outside",
        f"ip address add {NODE}/24 dev uplink",
        "ip link set uplink up",
    ):
        must(line)
    for line in (
        "ip link set lo up",
        f"ip address add {GATEWAY}/24 dev downlink",
        "ip link set downlink up",
        *(f"ip address add {address}/32 dev lo" for address in (CONTROL_PLANE, STRANGER, METADATA, PRIVATE)),
    ):
        must(f"nsenter --net=/run/netns/outside {line}")
    must(f"ip route add default via {GATEWAY}")


def must(line):
    done = run(*line.split())
    if done.returncode:
        sys.exit(f"{line}: {done.output}")


class ControlPlane(http.server.BaseHTTPRequestHandler):
    """Writes every call down. The first one fails, as calls do."""

    calls = 0

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode(errors="replace")
        call = {"path": self.path, "authorization": self.headers.get("Authorization"), "body": body}
        with CALLBACKS.open("a") as file:
            file.write(json.dumps(call) + "\n")
        type(self).calls += 1
        self.send_response(503 if type(self).calls == 1 else 204)
        self.end_headers()

    def log_message(self, *_):
        pass


class Metadata(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        knows = METADATA_KNOWS.exists() and self.path == "/metadata/v1/interfaces/public/0/ipv4/address"
        self.send_response(200 if knows or self.path == "/" else 404)
        self.end_headers()
        if knows:
            self.wfile.write(NODE.encode())

    def log_message(self, *_):
        pass


def internet():
    services = [
        http.server.ThreadingHTTPServer((CONTROL_PLANE, 8000), ControlPlane),
        http.server.ThreadingHTTPServer((METADATA, 80), Metadata),
        http.server.ThreadingHTTPServer((PRIVATE, 80), Metadata),
        http.server.ThreadingHTTPServer((CONTROL_PLANE, 80), Metadata),
    ]
    threads = [threading.Thread(target=service.serve_forever) for service in services]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


# What checks are made of.


def report(line):
    with (OUT / "results").open("a") as file:
        file.write(line.replace("\n", " | ") + "\n")


def check(name, held, seen=""):
    """One line of the result: what was seen stands there if it did not hold."""
    report(f"ok      {name}" if held else f"FAILED  {name}: {str(seen)[:600]}")
    if not held:
        # What went wrong on the machine just before, in its own words.
        failed = [line.split()[0] for line in run("systemctl", "list-units", "--failed", "--plain", "--no-legend").stdout.splitlines() if line]
        for about in [["-p", "warning"], *(["-u", unit] for unit in failed)]:
            journal = run("journalctl", "-q", "-b", "-n", "15", "--no-pager", "-o", "short-monotonic", *about)
            for line in journal.stdout.splitlines():
                report(f"        {line[:300]}")
    return held


def wait_for(condition, seconds):
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.3)
    return True


def web(path, form=None, cookie=None, headers=(), url=WEB):
    """Asks the web interface from outside: (status, headers, body); status 0 if nothing answers."""
    command = ["curl", "-sk", "-i", "-m", "8", *(word for header in headers for word in ("-H", header))]
    if cookie:
        command += ["-b", cookie]
    for name, value in (form or {}).items():
        command += ["--data-urlencode", f"{name}={value}"]
    done = outside(*command, url + path, timeout=15)
    # Python made one character of each end of a line.
    head, _, body = done.stdout.partition("\n\n")
    status = re.match(r"HTTP/\S+ (\d+)", head)
    return int(status[1]) if status else 0, head, body


def log_in(password):
    """(body of the answer, its headers, the cookie)"""
    _, head, body = web("/api/v2/auth/login", {"username": "seed", "password": password})
    cookie = re.search(r"(?im)^set-cookie: (SID=[^;\n]+)", head)
    return body, head, cookie[1] if cookie else None


def version_with(cookie):
    return web("/api/v2/app/version", cookie=cookie)[0]


def ssh_options(user="seedbox-mgr", key=HOME / "key", source=CONTROL_PLANE, shared=False):
    """The options of ssh and of scp: a management key of ours, the host key that was reported, and nothing of the machine's own."""
    options = {
        "User": user,
        "IdentityFile": key,
        "BindAddress": source,
        "UserKnownHostsFile": HOME / "known_hosts",
        "StrictHostKeyChecking": "yes",
        "HostKeyAlgorithms": "ssh-ed25519",
        "IdentitiesOnly": "yes",
        "BatchMode": "yes",
        "ConnectTimeout": 15,
        "LogLevel": "ERROR",
        "ControlPath": HOME / "ssh-%C" if shared else "none",
    }
    if shared:
        options |= {"ControlMaster": "auto", "ControlPersist": 60}
    return ["-F", "none", *(word for name, value in options.items() for word in ("-o", f"{name}={value}"))]


def ssh(*words, options=(), timeout=30, **how):
    """A connection of its own."""
    return outside("ssh", "-n", *options, *ssh_options(**how), NODE, *words, timeout=timeout)


def ask(words, timeout=60):
    """Sends the gate these words. New connections are limited, so all of them go through one, as sessions of their own."""
    return outside("ssh", "-n", "-T", *ssh_options(shared=True), NODE, *([words] if words else []), timeout=timeout)


def gate(action, timeout=60):
    """Has the gate do something, by a real login with the management key."""
    return ask(f"{uuid.uuid4()} {action}", timeout)


def gate_values(action):
    """The lines `<name> <value>` that an action prints."""
    done = gate(action)
    return dict(line.split(" ", 1) for line in done.stdout.splitlines() if " " in line), done


def password_hash(password):
    salt = os.urandom(16)
    key = hashlib.pbkdf2_hmac("sha512", password.encode(), salt, 100_000, 64)
    return f"{base64.b64encode(salt).decode()}.{base64.b64encode(key).decode()}"


def active(unit):
    return run("systemctl", "is-active", unit).stdout.strip()


def open_ports():
    listed = json.loads(run("nft", "-j", "list", "set", "inet", "seedbox", "open").stdout or "{}")
    sets = [entry["set"] for entry in listed.get("nftables", []) if "set" in entry]
    return sorted(sets[0].get("elem", [])) if sets else None


def connects(port, source=CONTROL_PLANE):
    """Whether a port of the node takes connections from outside."""
    code = f"import socket; socket.create_connection(('{NODE}', {port}), 3, ('{source}', 0))"
    return outside("python3", "-c", code, timeout=10).returncode == 0


def as_client(*command, timeout=20):
    return run("runuser", "-u", "seedbox", "--", *command, timeout=timeout)


def fetches(url, runner=run):
    return runner("curl", "-s", "-o", "/dev/null", "-m", "3", "-w", "%{http_code}", url).stdout


def callbacks():
    return [json.loads(line) for line in CALLBACKS.read_text().splitlines()] if CALLBACKS.exists() else []


def digest(path):
    return hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest()


def served_fingerprint():
    served = outside("openssl", "s_client", "-connect", f"{NODE}:443", "-servername", NODE, text="", timeout=15).stdout
    printed = run("openssl", "x509", "-noout", "-fingerprint", "-sha256", text=served).stdout
    return printed.strip().partition("=")[2]


# The first boot.


def first_boot():
    check("cloud-init comes to its end", wait_for(pathlib.Path("/run/cloud-init/result.json").exists, 150), console_of_cloud_init())
    result = json.loads(pathlib.Path("/run/cloud-init/result.json").read_text())["v1"]
    check("cloud-init has no errors", result["errors"] == [], result)
    the_report()
    the_machine()
    the_firewall()
    the_web_interface()
    the_gate()
    refusals()
    rotation()
    installing_twice()
    readiness_fails_closed()
    suspension_of_the_service()
    suspension_of_everything()


def console_of_cloud_init():
    return pathlib.Path("/var/log/cloud-init-output.log").read_text(errors="replace")[-500:]


def the_report():
    if not check("the node reports", wait_for(lambda: len(callbacks()) >= 2, 100), callbacks()):
        report(f"# {console_of_cloud_init()}")
        return
    calls = callbacks()
    check("it reports again after an answer of 503, the same, and no more after 204", len(calls) == 2 and calls[0] == calls[1], calls)
    call = calls[-1]
    check("it reports where it was told to", call["path"] == SETTINGS["ready_path"], call["path"])
    check("it shows its token", call["authorization"] == f"Bearer {SETTINGS['token']}", call["authorization"])
    try:
        body = json.loads(call["body"])
    except ValueError:
        check("what it reports is JSON", False, call["body"])
        return
    host_key = " ".join(pathlib.Path("/etc/ssh/ssh_host_ed25519_key.pub").read_text().split()[:2])
    expected = {
        "state": "ready",
        "detail": "",
        "host_key": host_key,
        "boot_id": pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
        "web_url": WEB,
    }
    for name, value in expected.items():
        check(f"it reports its {name}", body.get(name) == value, f"{body.get(name)!r}, not {value!r}")
    fingerprint = served_fingerprint()
    check("it reports the fingerprint of the certificate that it serves", body.get("certificate_sha256") == fingerprint != "", f"{body.get('certificate_sha256')!r}, served {fingerprint!r}")
    check("it reports nothing else", set(body) == {*expected, "certificate_sha256"}, sorted(body))
    # From here on the host key is the one that was reported, and no other.
    (HOME / "known_hosts").write_text(f"{NODE} {body.get('host_key')}\n")


def the_machine():
    gone = [path for path in ("/etc/seedplane/node.env", "/etc/seedplane/qBittorrent.conf") if os.path.exists(path)]
    check("the token and the copy of the client's configuration are gone", wait_for(lambda: not os.path.exists("/etc/seedplane/node.env"), 5) and not gone, gone)
    units = "seedbox caddy nftables fail2ban ssh seedplane-state apt-daily-upgrade.timer".split()
    states = {unit: active(unit) for unit in units}
    check("every service is active", set(states.values()) == {"active"}, states)
    not_enabled = [unit for unit in units if run("systemctl", "is-enabled", unit).stdout.strip() != "enabled"]
    check("every service starts at boot", not not_enabled, not_enabled)
    verified = run("systemd-analyze", "verify", "/etc/systemd/system/seedbox.service", "/etc/systemd/system/seedplane-state.service", timeout=60)
    ours = [line for line in verified.output.splitlines() if "seedbox" in line or "seedplane" in line]
    check("systemd-analyze verify has nothing to say of the units", verified.returncode == 0 and not ours, verified.output)
    for name, command in {
        "visudo": ("visudo", "-c"),
        "nft": ("nft", "-c", "-f", "/etc/nftables.conf"),
        "caddy validate": ("caddy", "validate", "--config", "/etc/caddy/Caddyfile", "--adapter", "caddyfile"),
        "fail2ban-client": ("fail2ban-client", "-t"),
        "sshd": ("sshd", "-t"),
    }.items():
        done = run(*command)
        check(f"{name} finds no fault", done.returncode == 0, done.output)
    jail = run("fail2ban-client", "status", "sshd")
    check("fail2ban watches over ssh", jail.returncode == 0, jail.output)
    upgrades = run("apt-config", "dump").stdout
    wanted = ('APT::Periodic::Update-Package-Lists "1"', 'APT::Periodic::Unattended-Upgrade "1"', 'Unattended-Upgrade::Automatic-Reboot "true"')
    check("unattended upgrades are on", all(line in upgrades for line in wanted), [line for line in upgrades.splitlines() if "Unattended" in line or "Periodic" in line])
    passwords = {user: run("getent", "shadow", user).stdout.split(":")[1] for user in ("root", "seedbox", "seedbox-mgr")}
    check("no user has a password that could be used", set(passwords.values()) <= {"*", "!", "!*"}, passwords)
    logins = [user for user, word in (line.split(":")[:2] for line in pathlib.Path("/etc/shadow").read_text().splitlines()) if word.startswith("$")]
    check("nobody else has one", not logins, logins)
    users = [line for line in pathlib.Path("/etc/passwd").read_text().splitlines() if not line.endswith(("nologin", "false", "sync"))]
    check("only root and the gate's user have a shell", {line.split(":")[0] for line in users} == {"root", "seedbox-mgr"}, users)
    modes = {path: f"{os.stat(path).st_mode & 0o7777:04o} {os.stat(path).st_uid}" for path in ("/usr/local/lib/seedplane/gate", "/usr/local/lib/seedplane/manifest", "/usr/sbin/seedplane-node", "/etc/sudoers.d/seedplane", "/etc/seedplane/node.conf", "/etc/seedplane/authorized_keys")}
    check("what runs as root can be changed by root only", list(modes.values()) == ["0755 0", "0644 0", "0755 0", "0440 0", "0600 0", "0600 0"], modes)
    saved = pathlib.Path("/var/lib/cloud/instance/user-data.txt")
    text = saved.read_text()
    check("the user-data on the machine holds no password, and is root's", SETTINGS["password"] not in text and "Password_PBKDF2" in text and saved.stat().st_mode & 0o077 == 0, oct(saved.stat().st_mode))
    process = run("systemctl", "show", "-P", "MainPID", "seedbox").stdout.strip()
    status = dict(re.findall(r"(?m)^(\w+):\s*(.*)$", pathlib.Path(f"/proc/{process}/status").read_text()))
    check("the client runs as its own user, without capabilities and without a way to more", status["CapEff"].strip("0") == status["CapBnd"].strip("0") == "" and status["NoNewPrivs"] == "1" and status["Uid"].split()[0] == run("id", "-u", "seedbox").stdout.strip(), status)
    for path in ("/etc/seedplane/node.conf", "/var/lib/seedbox-mgr/.ssh/authorized_keys", "/var/lib/cloud/instance/user-data.txt"):
        # Not even root finds it there: it is not a question of modes.
        hidden = run("nsenter", "-t", process, "-m", "cat", path)
        check(f"the client does not see {path}", hidden.returncode != 0 and os.path.exists(path), hidden.output)
    written = run("nsenter", "-t", process, "-m", "touch", "/etc/node-test", "/usr/node-test", "/var/node-test")
    check("the client's file system is read-only outside its home", written.returncode != 0 and written.output.count("Read-only") == 3, written.output)


def the_firewall():
    listed = json.loads(run("nft", "-j", "list", "ruleset").stdout)["nftables"]
    chains = {entry["chain"]["name"]: entry["chain"].get("policy") for entry in listed if entry.get("chain", {}).get("table") == "seedbox"}
    check("the firewall drops what comes in or through unless a rule lets it", chains == {"input": "drop", "forward": "drop", "output": "accept"}, chains)
    check("80, 443 and the torrent port are open", open_ports() == [80, 443, 51413], open_ports())
    reached = {port: connects(port) for port in (22, 80, 443, 51413, 8080, 2019)}
    check("from outside they and ssh can be reached, the client's own web port and Caddy's admin port cannot", reached == {22: True, 80: True, 443: True, 51413: True, 8080: False, 2019: False}, reached)
    listening = run("ss", "-Hltn").stdout
    check("Caddy has no admin port at all", ":2019" not in listening and ":443" in listening, listening)
    public = f"http://{CONTROL_PLANE}/"
    check("the client's user reaches the internet", fetches(public, as_client) == "200", fetches(public, as_client))
    for name, url in {"the metadata service": f"http://{METADATA}/", "private networks": f"http://{PRIVATE}/"}.items():
        root, client = fetches(url), fetches(url, as_client)
        check(f"the client's user does not reach {name}, root does", (root, client) == ("200", "000"), f"root {root}, client {client}")
    for port in (22, 443):
        test = f"import socket; socket.create_connection(('127.0.0.1', {port}), 2)"
        root, client = run("python3", "-c", test).returncode, as_client("python3", "-c", test).returncode
        check(f"the client's user does not reach port {port} of its own machine, root does", root == 0 != client, f"root {root}, client {client}")


def the_web_interface():
    body, head, cookie = log_in(SETTINGS["password"])
    check("the password of the order logs in over https through the proxy", body == "Ok." and cookie, f"{body!r} {head}")
    line = "".join(re.findall(r"(?im)^set-cookie:.*$", head)).lower()
    check("the cookie is Secure, HttpOnly and SameSite", all(word in line for word in ("; secure", "httponly", "samesite=strict")), line)
    check("the session works", version_with(cookie) == 200, version_with(cookie))
    check("another password does not", log_in("wrong " + SETTINGS["password"])[0] == "Fails.", "it did")
    check("without a session nothing is answered", version_with(None) == 403, version_with(None))
    for origin, wanted in ((WEB, 200), ("https://example.net", 401)):
        status, _, answer = web("/api/v2/app/setPreferences", {"json": "{}"}, cookie, [f"Origin: {origin}"])
        check(f"a POST with the origin {origin} is answered with {wanted}", status == wanted, f"{status} {answer}")
    status, head, _ = web("/")
    check("browsers are told to stay with https", status == 200 and "strict-transport-security" in head.lower(), head)
    status, head, _ = web("/", url=f"http://{NODE}")
    check("http leads to https", status in (301, 308) and f"location: {WEB}/" in head.lower(), head)


def the_gate():
    values, done = gate_values("hello")
    expected = {"seedplane-gate": "1", "gate": digest("/usr/local/lib/seedplane/gate"), "manifest": digest("/usr/local/lib/seedplane/manifest")}
    check("the management key reaches the gate: hello names the digests of what lies there", values == expected, done.output)
    values, done = gate_values("status")
    healthy = {"seedbox-node": "1", "suspended": "no", "client": "active", "answers": "yes"}
    numbers = {name: int(values.get(name, 0)) for name in ("disk_total_bytes", "disk_free_bytes")}
    check("status says that all is well", healthy.items() <= values.items() and done.returncode == 0 and "wiped" not in values, done.output)
    check("status knows the disk", numbers["disk_total_bytes"] > numbers["disk_free_bytes"] > 0, done.output)
    values, done = gate_values("usage")
    wanted = ("rx_bytes_since_boot", "tx_bytes_since_boot", "uptime_seconds", "data_bytes", "disk_free_bytes")
    check("usage counts bytes, seconds and data", done.returncode == 0 and all(values.get(name, "").isdigit() for name in wanted) and int(values["rx_bytes_since_boot"]) > 1000, done.output)
    check("usage names the boot that it counts from", values.get("boot_id") == pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip(), done.output)
    key = run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", HOME / "second")
    second = (HOME / "second.pub").read_text().split()[1]
    hello = f"{uuid.uuid4()} hello"
    added, used = gate(f"key-add {second}"), ssh(hello, key=HOME / "second")
    removed = gate(f"key-remove {second}")
    wait_for(lambda: gate("hello").returncode == 0, 10)
    refused = ssh(hello, key=HOME / "second")
    # The session that removes a key may end with it: what counts is who gets in afterwards.
    check("a second key can be added, gets in, and does not once it is removed", key.returncode == added.returncode == used.returncode == 0 and refused.returncode == 255 and "denied" in refused.output, [added.output, used.output, removed.output, refused.output])
    logged = gate("log").stdout
    check("the gate wrote down what it did", " hello " in logged and " status " in logged and "exit=0" in logged, logged)


def refusals():
    request = uuid.uuid4()
    for name, words in {
        "a shell": "",
        "a command": "id",
        "an action that the manifest does not list": f"{request} reboot",
        "apply, which the script has and the manifest does not": f"{request} apply",
        "a word after an action that takes none": f"{request} wipe now",
        "a suspension of something else": f"{request} suspend root",
        "a hash with characters of a shell": f"{request} rotate {'A' * 22}==.{'A' * 80};reboot",
        "a hash with a blank in it": f"{request} rotate {'A' * 22}== {'A' * 86}==",
        "a hash that is too short": f"{request} rotate {'A' * 22}==.AAAA==",
    }.items():
        done = ask(words)
        check(f"refused: {name}", done.returncode == 126 and "refused" in done.stderr and not done.stdout, f"{done.returncode} {done.output}")
    tty = ssh(f"{request} hello", options=["-tt"])
    check("refused: a terminal", "PTY allocation request failed" in tty.output, tty.output)
    (HOME / "file").write_text("content")
    log = pathlib.Path("/var/log/seedplane-gate.log")
    for name, flag in {"scp": "-O", "sftp": "-s"}.items():
        before = log.read_text().count(" refused ")
        done = outside("scp", flag, *ssh_options(), HOME / "file", f"{NODE}:/tmp/copied", timeout=30)
        by_gate = log.read_text().count(" refused ") == before + 1
        check(f"refused: {name}", done.returncode != 0 and by_gate and not os.path.exists("/tmp/copied"), [done.output, log.read_text()[-300:]])
    through = ssh(options=["-W", "127.0.0.1:8080"])
    check("refused: a way through to the client's own web port", through.returncode != 0 and "forwarding failed" in through.output, through.output)
    back = ssh(options=["-N", "-o", "ExitOnForwardFailure=yes", "-R", "9999:127.0.0.1:80"])
    check("refused: a port of the node for others", back.returncode == 255 and "forwarding failed" in back.output, f"{back.returncode} {back.output}")
    sudo = run("runuser", "-u", "seedbox-mgr", "--", "sudo", "-n", "/usr/sbin/seedplane-node", "apply")
    check("refused by sudo: what the manifest does not list", sudo.returncode == 1 and "password is required" in sudo.output, sudo.output)
    direct = run("runuser", "-u", "seedbox-mgr", "--", "sudo", "-n", "/usr/sbin/seedplane-node", "rotate", "x", "y")
    check("refused by the script: words that sudo's pattern lets through", direct.returncode == 2, f"{direct.returncode} {direct.output}")
    client = as_client("sudo", "-n", "/usr/sbin/seedplane-node", "status")
    check("refused by sudo: the client's user", client.returncode == 1, client.output)
    # What follows comes from somebody else, who is banned for it in the end.
    root = ssh("id", user="root", source=STRANGER)
    check("refused: root, also with the management key", root.returncode == 255 and "denied" in root.output, root.output)
    password = ssh("id", options=["-o", "PubkeyAuthentication=no"], source=STRANGER)
    check("refused: a login with a password", password.returncode == 255 and "(publickey)" in password.output, password.output)
    run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", HOME / "stranger")
    for _ in range(7):
        done = ssh("id", options=["-o", "ConnectTimeout=4"], user="admin", key=HOME / "stranger", source=STRANGER)
        if "denied" not in done.output:
            break
    # It reads the journal, which takes a moment.
    wait_for(lambda: STRANGER in run("fail2ban-client", "status", "sshd").output, 20)
    jail = run("fail2ban-client", "status", "sshd").output
    banned = not connects(22, STRANGER)
    check("who tries names is banned, and the control plane is not", banned and STRANGER in jail and CONTROL_PLANE not in jail and gate("hello").returncode == 0, [done.output, jail])
    flood = subprocess.Popen(["nsenter", "--net=/run/netns/outside", "python3", "-c", FLOOD], stdout=subprocess.PIPE, text=True)
    time.sleep(1)
    begin = time.monotonic()
    done = ssh(f"{uuid.uuid4()} hello")
    taken = time.monotonic() - begin
    opened = int(flood.communicate(timeout=30)[0])
    check("who opens connections to ssh without end gets few, and does not keep the control plane out", done.returncode == 0 and taken < 3 and 0 < opened < 30, f"{taken:.1f} s, {opened} opened, {done.output}")


# Opens connections for some seconds, and holds them; says how many it got.
FLOOD = f"""
import socket, select, time
held, end = [], time.monotonic() + 8
while time.monotonic() < end:
    s = socket.socket()
    s.bind(('{GATEWAY}', 0))
    s.setblocking(False)
    s.connect_ex(('{NODE}', 22))
    held.append(s)
    time.sleep(0.03)
print(len(select.select([], held, [], 0)[1]))
"""


def rotation():
    again = [gate(f"rotate {password_hash(SETTINGS['password'])}") for _ in range(7)]
    check("rotate can be repeated at once, as often as one likes", all(done.returncode == 0 for done in again), [f"{done.returncode} {done.output[-300:]}" for done in again if done.returncode])
    _, _, session = log_in(SETTINGS["password"])
    done = gate(f"rotate {password_hash(SETTINGS['second_password'])}")
    check("rotate succeeds", done.returncode == 0, f"{done.returncode} {done.output}")
    check("the old session is dead", version_with(session) == 403, version_with(session))
    check("the old password is dead", log_in(SETTINGS["password"])[0] == "Fails.", "it logs in")
    check("the new password logs in", log_in(SETTINGS["second_password"])[0] == "Ok.", log_in(SETTINGS["second_password"])[:2])
    _, _, session = log_in(SETTINGS["second_password"])
    done = gate("restart")
    check("restart succeeds", done.returncode == 0, f"{done.returncode} {done.output}")
    check("restart ends sessions and keeps the password", version_with(session) == 403 and log_in(SETTINGS["second_password"])[0] == "Ok.", version_with(session))
    configuration = PROFILE / "qBittorrent/config/qBittorrent.conf"
    lines = re.findall(r"(?m)" + HASH_PATTERN, configuration.read_text())
    check("the configuration holds one hash, and is the client's own", len(lines) == 1 and configuration.owner() == "seedbox" and configuration.stat().st_mode & 0o007 == 0, [lines, oct(configuration.stat().st_mode)])


def installing_twice():
    before, fingerprint = digest(PROFILE / "qBittorrent/config/qBittorrent.conf"), served_fingerprint()
    # Now the metadata service knows the address.
    METADATA_KNOWS.touch()
    done = run("/usr/local/lib/seedplane/install", timeout=90)
    why = "" if done.returncode == 0 else run("journalctl", "-q", "-b", "-u", "seedbox", "-n", "20", "--no-pager").output
    check("installing once more succeeds", done.returncode == 0, [done.output, why])
    answers = wait_for(lambda: version_with(None) == 403, 30)
    check("it changes neither the certificate nor the password", answers and served_fingerprint() == fingerprint and log_in(SETTINGS["second_password"])[0] == "Ok.", [before, served_fingerprint()])


def readiness_fails_closed():
    def reported(*words):
        (pathlib.Path("/etc/seedplane/node.env")).write_text(SETTINGS["node_env"])
        seen = len(callbacks())
        run("/usr/local/lib/seedplane/ready", *words, timeout=60)
        later = callbacks()[seen:]
        body = json.loads(later[-1]["body"]) if later else {}
        return f"{body.get('state')} {body.get('detail')}"

    check("what was not installed is not ready", (seen := reported()) == "failed install-failed", seen)
    run("nft", "delete", "table", "inet", "seedbox")
    check("without the firewall nothing is ready", (seen := reported("installed")) == "failed no-firewall", seen)
    run("systemctl", "restart", "nftables")
    for unit, detail in {"caddy": "no-proxy", "fail2ban": "no-fail2ban", "ssh": "no-ssh"}.items():
        run("systemctl", "stop", unit)
        check(f"without {unit} nothing is ready", (seen := reported("installed")) == f"failed {detail}", seen)
        run("systemctl", "start", unit)
    check("with all of them it is again", (seen := reported("installed")) == "ready ", seen)


def is_suspended(what):
    """Suspended as it was asked for, seen from inside; the client cannot be started."""
    values, done = gate_values("status")
    started = run("systemctl", "start", "seedbox", timeout=30)
    time.sleep(1)
    listening = run("ss", "-Hltn").stdout
    good = values.get("suspended") == what and values.get("client") == "inactive" and values.get("answers") == "no"
    return good and active("seedbox") == "inactive" and "127.0.0.1:8080" not in listening, [done.output, started.output, active("seedbox"), listening]


def suspension_of_the_service():
    done = gate("suspend service")
    check("suspend service succeeds", done.returncode == 0, f"{done.returncode} {done.output}")
    status, head, body = web("/")
    check("the proxy answers with 503 and says why", status == 503 and "suspended" in body and "retry-after" in head.lower(), [status, head, body])
    held, seen = is_suspended("service")
    check("status says so, and systemctl does not start the client", held, seen)
    done = gate(f"rotate {password_hash('not now')}")
    check("rotate is refused with 75", done.returncode == 75, f"{done.returncode} {done.output}")
    done = gate("restart")
    check("restart is refused with 75", done.returncode == 75, f"{done.returncode} {done.output}")
    done = run("/usr/local/lib/seedplane/install", timeout=90)
    check("installing once more resumes nothing", done.returncode == 0 and is_suspended("service")[0] and web("/")[0] == 503, done.output)
    check("suspending once more is no failure", gate("suspend service").returncode == 0)
    done = gate("resume")
    check("resume succeeds", done.returncode == 0, f"{done.returncode} {done.output}")
    check("the password is the one from before", log_in(SETTINGS["second_password"])[0] == "Ok.", log_in(SETTINGS["second_password"])[:2])


def everything_is_closed(when):
    reached = {port: connects(port) for port in (80, 443, 51413)}
    check(f"{when}: 80, 443 and the torrent port are closed, and their set is empty", open_ports() == [] and not any(reached.values()), [open_ports(), reached])
    held, seen = is_suspended("everything")
    check(f"{when}: status says so over ssh, and systemctl does not start the client", held, seen)


def suspension_of_everything():
    done = gate("suspend everything")
    check("suspend everything succeeds", done.returncode == 0, f"{done.returncode} {done.output}")
    everything_is_closed("suspended")
    # Whatever became of the unit that closes them.
    run("systemctl", "stop", "seedplane-state")
    for verb in ("restart", "reload"):
        run("systemctl", verb, "nftables")
        time.sleep(1)
        check(f"a {verb} of the firewall opens nothing", open_ports() == [], open_ports())
    run("systemctl", "start", "seedplane-state")


# The second boot: everything was suspended.


def second_boot():
    wait_for(lambda: active("multi-user.target") == "active" and active("caddy") == "active", 60)
    everything_is_closed("after a reboot")
    check("the machine does not report again", len(callbacks()) == int((HOME / "callbacks").read_text()), callbacks()[-1:])
    states = {unit: active(unit) for unit in "caddy nftables fail2ban ssh seedplane-state".split()}
    check("after a reboot: the other services are active", set(states.values()) == {"active"}, states)
    done = gate("resume")
    check("after a reboot: resume succeeds", done.returncode == 0, f"{done.returncode} {done.output}")
    check("the ports are open again", open_ports() == [80, 443, 51413] and connects(443), open_ports())
    run("systemctl", "restart", "nftables")
    check("a restart of the firewall closes nothing of a box that is not suspended", wait_for(lambda: open_ports() == [80, 443, 51413], 5), open_ports())
    check("the rotated password logs in", log_in(SETTINGS["second_password"])[0] == "Ok.", log_in(SETTINGS["second_password"])[:2])
    wiping()


def wiping():
    folder = DATA / "a folder\nwith a line"
    folder.mkdir(parents=True)
    for index in range(3):
        (folder / f".hidden {index}").write_bytes(os.urandom(100_000))
    (DATA / ".dotfile").write_text("x")
    os.symlink("/etc/passwd", DATA / "link")
    (pathlib.Path("/srv/seedbox/.config")).mkdir()
    (pathlib.Path("/srv/seedbox/left behind")).write_text("x")
    run("chown", "-R", "seedbox:", "/srv/seedbox")
    marker = f"marker-{uuid.uuid4()}"
    as_client("logger", marker)
    noticed = wait_for(lambda: marker in run("journalctl", "-q", "-b", "--no-pager", timeout=60).stdout, 10)
    _, _, session = log_in(SETTINGS["second_password"])
    done = gate("wipe", timeout=120)
    check("wipe succeeds", done.returncode == 0, f"{done.returncode} {done.output}")
    counted = re.search(r"(?m)^(\d+) files \((\d+) bytes\) of the client and its owner deleted$", done.stdout)
    check("wipe says how much it deleted", counted and int(counted[1]) >= 6 and int(counted[2]) >= 300_000, done.output)
    check("wipe says whether blocks were given back", "given back to the disk" in done.stdout, done.output)
    left = list(pathlib.Path("/srv/seedbox").iterdir())
    check("nothing is left of the client and its owner", not left and os.path.exists("/etc/passwd"), left)
    still = marker in run("journalctl", "-q", "--no-pager", timeout=60).stdout
    check("what the journal said is gone as wipe says", noticed and "the system journal emptied" in done.stdout and not still, [noticed, done.stdout, still])
    check("the old session reaches nothing", web("/api/v2/app/version", cookie=session)[0] == 0)
    values, status = gate_values("status")
    check("status says that it is wiped", values.get("wiped") == "yes" and values.get("client") == "inactive" and int(values.get("disk_free_bytes", 0)) > 0, status.output)
    values, used = gate_values("usage")
    check("usage counts no data any more", used.returncode == 0 and values.get("data_bytes") == "0", used.output)
    check("the client cannot be started", is_suspended("everything")[0], is_suspended("everything")[1])
    resumed = gate("resume")
    check("resume is refused", resumed.returncode == 1 and "wiped" in resumed.output, f"{resumed.returncode} {resumed.output}")
    rotated = gate(f"rotate {password_hash('new')}")
    check("rotate is refused", rotated.returncode == 75, f"{rotated.returncode} {rotated.output}")
    # As if it had been resumed by hand.
    (STATE / "suspended").unlink(missing_ok=True)
    run("systemctl", "start", "seedbox")
    check("not even without its suspension", active("seedbox") == "inactive", active("seedbox"))
    again = gate("wipe", timeout=120)
    check("wiping once more is no failure", again.returncode == 0 and "0 files" in again.stdout, again.output)
    (OUT / "Caddyfile").write_text(pathlib.Path("/etc/caddy/Caddyfile").read_text())


def main():
    if sys.argv[1] == "network":
        network()
    elif sys.argv[1] == "internet":
        internet()
    else:
        boot = sys.argv[2]
        try:
            first_boot() if boot == "first" else second_boot()
        except Exception as problem:  # noqa: BLE001 - whatever it is, it has to be seen
            import traceback

            report(f"FAILED  the checks of the {boot} boot: {problem!r} at {traceback.extract_tb(problem.__traceback__)[-1]}")
        (HOME / "callbacks").write_text(str(len(callbacks())))
        (OUT / f"{boot}-boot-ended").touch()
        # As when the power fails: nothing is stopped in order.
        run("systemctl", "poweroff", "--force", "--force")


main()
