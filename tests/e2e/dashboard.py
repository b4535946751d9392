"""The dashboard in a real Chromium, by WebDriver: what it shows, what it must not do, and how it looks.

Arguments: the command, the admin listener's address, the directory for what is written.

  look       live data in light and dark and on a phone, names and errors of strangers, no request elsewhere, no violation
  away       what the page says when the daemon does not answer any more; the daemon's process id is a third argument
  token      a page on another machine's address, with a token that is typed in; its file is a third argument
  picture    a screenshot for people; its path is a third argument
"""

import base64
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

PATIENCE = 60


class Browser:
    """A Chromium without a window, and the little of WebDriver (W3C) that is needed of it."""

    def __init__(self, directory, size, dark=False):
        self.directory = directory
        self.port = free_port()
        log = open(os.path.join(directory, "chromedriver.log"), "ab")
        self.driver = subprocess.Popen(
            ["chromedriver", f"--port={self.port}"], stdout=log, stderr=log, start_new_session=True
        )
        wait("chromedriver", lambda: self.call("GET", "/status")["ready"])
        arguments = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--disable-background-networking",
            "--disable-component-update",
            "--no-first-run",
            "--hide-scrollbars",
            f"--window-size={size[0]},{size[1]}",
            f"--user-data-dir={os.path.join(directory, 'profile')}",
        ]
        if dark:
            arguments.append("--blink-settings=preferredColorScheme=0")
        wanted = {
            "goog:chromeOptions": {"binary": shutil.which("chromium"), "args": arguments},
            "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
        }
        self.session = ""
        answer = self.call("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
        self.session = f"/session/{answer['sessionId']}"

    def call(self, method, path, body=None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", data, method=method)
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{method} {path}: {error.read().decode()[:600]}") from None

    def go(self, url):
        self.call("POST", f"{self.session}/url", {"url": url})

    def run(self, script, *arguments):
        return self.call("POST", f"{self.session}/execute/sync", {"script": script, "args": list(arguments)})

    def text(self, selector):
        """What is seen of an element; nothing of one that is hidden."""
        seen = "const e = document.querySelector(arguments[0]); return e?.checkVisibility() ? e.innerText : ''"
        return self.run(seen, selector)

    def command(self, name, **parameters):
        """A command of Chromium's own protocol."""
        return self.call("POST", f"{self.session}/goog/cdp/execute", {"cmd": name, "params": parameters})

    def log(self, kind):
        return self.call("POST", f"{self.session}/se/log", {"type": kind})

    def size(self, width, height, mobile=False):
        self.command(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=mobile
        )

    def scheme(self, name):
        self.command("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": name}])

    def picture(self, path):
        shown = self.command("Page.captureScreenshot", format="png")
        with open(path, "wb") as file:
            file.write(base64.b64decode(shown["data"]))

    def requests(self):
        """Every address that was asked for since the last look."""
        found = []
        for entry in self.log("performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                found.append(message["params"]["request"]["url"])
        return found

    def close(self):
        with contextlib.suppress(Exception):
            self.call("DELETE", self.session)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.driver.pid, signal.SIGTERM)
        self.driver.wait()


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def wait(what, condition, patience=PATIENCE):
    deadline = time.monotonic() + patience
    last = None
    while time.monotonic() < deadline:
        try:
            if condition():
                return
        except (AssertionError, OSError, KeyError, TypeError) as error:
            last = error
        time.sleep(0.1)
    raise AssertionError(f"not within {patience} s: {what} ({last})")


def check(condition, what):
    if not condition:
        raise AssertionError(what)


def luminance(colour):
    channels = [int(part) / 255 for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    high, low = sorted([luminance(one), luminance(other)], reverse=True)
    return (high + 0.05) / (low + 0.05)


# Text on what is behind it, of everything that is shown.
COLOURS = """
const shown = [...document.querySelectorAll('main *, header *')].filter((e) =>
  e.checkVisibility() && [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim()));
return shown.map((e) => {
  let ground = e;
  while (ground && getComputedStyle(ground).backgroundColor === 'rgba(0, 0, 0, 0)') ground = ground.parentElement;
  const fill = e instanceof SVGElement ? getComputedStyle(e).fill : getComputedStyle(e).color;
  return [e.tagName + '.' + e.className, fill, getComputedStyle(ground ?? document.body).backgroundColor];
});
"""

# Violations of the policy are events before they are lines in a log.
WATCH = """
window.violations = [];
document.addEventListener('securitypolicyviolation', (e) => window.violations.push(`${e.violatedDirective} ${e.blockedURI}`));
"""


def look(address, directory):
    browser = Browser(directory, (1280, 1400))
    try:
        browser.command("Page.addScriptToEvaluateOnNewDocument", source=WATCH)
        browser.scheme("light")
        browser.go(f"http://{address}/")
        wait("figures", lambda: browser.text("#stage") == "ready" and browser.text("#ratio") not in ("", "–"))
        wait("images", lambda: "library/debian" in browser.text("#images"))
        wait("errors", lambda: "<script>" in browser.text("#errors"))
        check("docker.io" in browser.text("#upstreams"), browser.text("#upstreams"))
        check("answering" in browser.text("#upstreams"), browser.text("#upstreams"))
        # In between it says that it is asking.
        wait("that it is live", lambda: browser.text("#fresh") == "live")
        check("served" in browser.text("#readout"), browser.text("#readout"))
        check(browser.run("return document.querySelectorAll('#chart rect').length") > 1, "no bars in the chart")

        # Strangers' words are text: nothing of them became an element, and nothing ran.
        check(browser.run("return document.querySelectorAll('main script, main img, main b').length") == 0, "markup")
        check(browser.run("return window.pwned === undefined"), "a name ran as a script")

        # Why was this a miss?
        for name, verdict in [
            ("docker.io/library/debian:bookworm", "A hit"),
            ("docker.io/library/nothing:here", "A miss"),
            ("<img src=x onerror=window.pwned=1>", "has no valid repository"),
        ]:
            browser.run(
                "const i = document.getElementById('why-name'); i.value = arguments[0];"
                "document.getElementById('why-form').requestSubmit();",
                name,
            )
            wait(f"an explanation of {name}", lambda: verdict in browser.text("#why"))
        check(browser.run("return document.querySelectorAll('#why img').length") == 0, "markup in an explanation")

        # By keys alone: everything that can be used is reached, and has a name.
        nameless = browser.run(
            "return [...document.querySelectorAll('button, input, progress, svg[role=img], a')]"
            ".filter((e) => !(e.labels?.length || e.getAttribute('aria-label') || e.getAttribute('aria-labelledby')"
            " || e.innerText?.trim())).map((e) => e.outerHTML)"
        )
        check(nameless == [], f"without a name: {nameless}")
        browser.run("document.getElementById('chart').focus()")
        before = browser.text("#readout")
        browser.run(
            "document.getElementById('chart').dispatchEvent(new KeyboardEvent('keydown', {key: 'ArrowLeft', bubbles: true}))"
        )
        check(browser.text("#readout") != before, "the chart cannot be walked through by keys")

        for scheme in ["light", "dark"]:
            browser.scheme(scheme)
            ground = browser.run("return getComputedStyle(document.body).backgroundColor")
            check((luminance(ground) > 0.5) == (scheme == "light"), f"{scheme}: {ground}")
            poor = [(what, one, other) for what, one, other in browser.run(COLOURS) if contrast(one, other) < 4.5]
            check(poor == [], f"{scheme}: too little contrast: {poor[:5]}")
            for width, height, mobile in [(1280, 1400, False), (360, 740, True), (320, 640, True)]:
                browser.size(width, height, mobile)
                wide = browser.run("return [document.documentElement.scrollWidth, document.documentElement.clientWidth]")
                check(wide[0] <= wide[1] <= width, f"{scheme}, {width} px: it is {wide} wide")
                browser.picture(os.path.join(directory, f"{scheme}-{width}.png"))
        browser.size(1280, 1400)

        foreign = [url for url in browser.requests() if not url.startswith(f"http://{address}/")]
        check([url for url in foreign if not url.startswith(("data:", "chrome"))] == [], f"requests elsewhere: {foreign}")
        check(browser.run("return window.violations") == [], browser.run("return window.violations"))
        said = [entry for entry in browser.log("browser") if entry["level"] in ("SEVERE", "WARNING")]
        # An answer that is an error, as of the name that is none, is told there, too.
        check([entry for entry in said if "400 (Bad Request)" not in entry["message"]] == [], said)
    finally:
        browser.close()


def away(address, directory, daemon):
    browser = Browser(directory, (1280, 1000))
    try:
        browser.go(f"http://{address}/")
        wait("figures", lambda: browser.text("#stage") == "ready")
        ratio = browser.text("#ratio")
        # It takes connections, and says nothing.
        os.kill(int(daemon), signal.SIGSTOP)
        try:
            wait("the page notices", lambda: "does not answer" in browser.text("#trouble"))
            check(browser.text("#ratio") == ratio, "what is known stays")
            check("last answer" in browser.text("#fresh"), browser.text("#fresh"))
        finally:
            os.kill(int(daemon), signal.SIGCONT)
        wait("it is live again", lambda: browser.text("#fresh") == "live" and browser.text("#trouble") == "")
    finally:
        browser.close()


def token(address, directory, file):
    with open(file, encoding="utf-8") as given:
        right = given.readline().strip()
    browser = Browser(directory, (1280, 1000))
    enter = "document.getElementById('token').value = arguments[0]; document.getElementById('login-form').requestSubmit();"
    try:
        browser.go(f"http://{address}/")
        wait("the question", lambda: "needs the token" in browser.text("#login"))
        check(browser.text("#stage") != "ready", "figures without a right")
        browser.run(enter, "wrong")
        wait("the refusal", lambda: "not the right one" in browser.text("#login"))
        browser.run(enter, right)
        wait("figures", lambda: browser.text("#stage") == "ready" and browser.text("#login") == "")
        kept = browser.run("return [localStorage.length, sessionStorage.length, document.cookie, location.href]")
        check(kept == [0, 1, "", f"http://{address}/"], f"where the token is: {kept}")
        browser.run("document.getElementById('forget').click()")
        wait("it is forgotten", lambda: "needs the token" in browser.text("#login"))
    finally:
        browser.close()


def picture(address, directory, path):
    browser = Browser(directory, (1180, 1180))
    try:
        browser.scheme("light")
        browser.size(1180, 1180)
        browser.go(f"http://{address}/")
        wait("figures", lambda: browser.text("#stage") == "ready" and "/" in browser.text("#images"))
        time.sleep(3)
        browser.picture(path)
    finally:
        browser.close()


if __name__ == "__main__":
    {"look": look, "away": away, "token": token, "picture": picture}[sys.argv[1]](*sys.argv[2:])
