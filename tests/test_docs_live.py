"""The page in docs/guides/live-captions.md in a real browser, whose microphone is a file."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import psutil
import pytest
import requests
from websockets.asyncio.client import ClientConnection, connect

from tests.conftest import ServerUnderTest, wait_for
from tests.recordings import ROOT, encode, load_speech

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not CHROMIUM, reason="needs Chromium"), pytest.mark.timeout(90)]

RECORDER = """
document.getElementById("start").onclick = async () => {
  const show = (id, text) => document.getElementById(id).textContent = text;
  const server = "SERVER";
  const microphone = await navigator.mediaDevices.getUserMedia({ audio: true });
  SNIPPET
  document.getElementById("stop").disabled = false;
  document.getElementById("stop").onclick = () => recorder.stop();
  let said = "";
  socket.onmessage = ({ data }) => {
    const message = JSON.parse(data);
    if (message.type === "final") show("said", said += message.text + " ");
  };
  socket.onclose = ({ code }) => { if (code !== 1000) show("trouble", String(code)); show("stable", "closed"); };
};
"""


def read_snippet(language: str) -> str:
    """The first block of code in this language."""
    found = re.search(
        rf"```{language}\n(.*?)```", (ROOT / "docs" / "guides" / "live-captions.md").read_text(encoding="utf-8"), re.DOTALL
    )
    assert found
    return found[1]


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serve_pages(folder: Path) -> Iterator[str]:
    """The folder on a port of its own."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=str(folder))) as server:
        server.daemon_threads = True  # a browser opens connections that it may need, and says nothing on them
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://localhost:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def run_browser(microphone: Path) -> Iterator[str]:
    """Chromium without a window; the address of its one page's debugger."""
    with tempfile.TemporaryDirectory(prefix="b", ignore_cleanup_errors=True) as profile:  # it puts sockets there: keep it short
        yield from _start_browser(Path(profile), microphone)


def _start_browser(profile: Path, microphone: Path) -> Iterator[str]:
    command = [
        str(CHROMIUM), "--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0", "--no-first-run",
        f"--user-data-dir={profile}", "--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream",
        f"--use-file-for-fake-audio-capture={microphone}%noloop", "--host-resolver-rules=MAP captions.test 127.0.0.1",
        "about:blank",
    ]  # fmt: skip
    port = profile / "DevToolsActivePort"
    environment = os.environ | {"TMPDIR": str(profile)}  # it leaves things there
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as program:
        try:
            wait_for(lambda: port.exists() and port.read_text())
            listed = requests.get(f"http://127.0.0.1:{port.read_text().split()[0]}/json", timeout=10).json()
            yield next(page["webSocketDebuggerUrl"] for page in listed if page["type"] == "page")
        finally:
            helpers = psutil.Process(program.pid).children(recursive=True)
            program.terminate()
            program.wait(60)
            psutil.wait_procs(helpers, timeout=60)  # they write into the profile until they end


class BrowserPage:
    """What a person could do with it."""

    def __init__(self, socket: ClientConnection):
        self._socket = socket
        self._number = 0

    async def _call_debugger(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        await self._socket.send(json.dumps({"id": self._number, "method": method, "params": parameters}))
        while (answer := json.loads(await self._socket.recv())).get("id") != self._number:
            pass
        result: dict[str, Any] = answer["result"]
        return result

    async def open_address(self, address: str) -> None:
        await self._call_debugger("Page.navigate", url=address)
        await self.wait_until("document.readyState === 'complete' && !!document.getElementById('start')?.onclick")

    async def evaluate(self, expression: str) -> Any:
        answer = await self._call_debugger("Runtime.evaluate", expression=expression, userGesture=True, returnByValue=True)
        return answer["result"].get("value")

    async def wait_until(self, expression: str, seconds: float = 30) -> None:
        async with asyncio.timeout(seconds):
            while not await self.evaluate(expression):  # noqa: ASYNC110 -- another process has no event for it
                await asyncio.sleep(0.05)

    async def read_text(self, id: str) -> str:
        return str(await self.evaluate(f"document.getElementById('{id}').textContent"))


@asynccontextmanager
async def open_page(html: str, tmp_path: Path, host: str = "localhost") -> AsyncIterator[BrowserPage]:
    microphone, folder = tmp_path / "speech.wav", tmp_path / "pages"
    microphone.write_bytes(encode(load_speech()[: int(7.5 * 16_000)], "wav"))
    folder.mkdir()
    (folder / "live.html").write_text(html, encoding="utf-8")
    with serve_pages(folder) as address, run_browser(microphone) as debugger:
        async with connect(debugger, max_size=None) as socket:
            page = BrowserPage(socket)
            await page.open_address(f"{address.replace('localhost', host)}/live.html")
            yield page


async def test_the_page_shows_what_is_said_while_it_is_said(server: ServerUnderTest, tmp_path: Path) -> None:
    await asyncio.to_thread(requests.post, f"{server.address}/api/ps/whisper-1", timeout=60)
    html = read_snippet("html").replace("127.0.0.1:8100", server.address.removeprefix("http://"))
    async with open_page(html, tmp_path) as page:
        await page.evaluate("document.getElementById('start').click()")
        await page.wait_until("document.getElementById('tentative').textContent")
        assert not await page.read_text("said")
        await page.wait_until("document.getElementById('said').textContent.includes('do for them.')")
        await page.evaluate("document.getElementById('stop').click()")
        await page.wait_until("!document.getElementById('start').disabled")
        assert "Dashwood had then leisure to consider how much there might be" in await page.read_text(
            "said"
        )  # the browser filters sound
        assert await page.read_text("trouble") == ""


async def test_what_a_media_recorder_records_goes_up_as_it_is(server: ServerUnderTest, tmp_path: Path) -> None:
    address = f"{server.address.replace('http', 'ws')}/v1/audio/transcriptions/stream"
    own = RECORDER.replace("SNIPPET", read_snippet("js")).replace("SERVER", address)
    html = re.sub(r"(?s)(<script type=\"module\">).*(</script>)", lambda found: found[1] + own + found[2], read_snippet("html"))
    async with open_page(html, tmp_path) as page:
        await page.evaluate("document.getElementById('start').click()")
        await page.wait_until("document.getElementById('said').textContent.includes('do for them.')")
        await page.evaluate("document.getElementById('stop').click()")
        await page.wait_until("document.getElementById('stable').textContent === 'closed'")
        assert await page.read_text("trouble") == ""


async def test_a_server_that_is_not_there_is_said_to_be(tmp_path: Path) -> None:
    async with open_page(read_snippet("html").replace("127.0.0.1:8100", "127.0.0.1:9"), tmp_path) as page:
        await page.evaluate("document.getElementById('start').click()")
        await page.wait_until("document.getElementById('trouble').textContent.includes('1006')")
        assert not await page.evaluate("document.getElementById('start').disabled")


async def test_a_page_that_may_not_use_the_microphone_says_why(tmp_path: Path) -> None:
    async with open_page(read_snippet("html"), tmp_path, host="captions.test") as page:
        await page.evaluate("document.getElementById('start').click()")
        await page.wait_until("document.getElementById('trouble').textContent.includes('https://')")
        assert not await page.evaluate("document.getElementById('start').disabled")


async def test_a_page_whose_origin_is_refused_says_so(server: ServerUnderTest, tmp_path: Path) -> None:
    html = read_snippet("html").replace("127.0.0.1:8100", server.address.removeprefix("http://"))
    html = html.replace("if (!navigator.mediaDevices)", "if (false)").replace(
        "await navigator.mediaDevices.getUserMedia({ audio: true })", "new AudioContext().createMediaStreamDestination().stream"
    )  # so that a page over plain HTTP gets as far as the server
    html = html.replace("await audio.audioWorklet.addModule", "if (0) await audio.audioWorklet.addModule")
    html = html.replace('new AudioWorkletNode(audio, "pcm")', "Object.assign(audio.createGain(), { port: {} })")
    async with open_page(html, tmp_path, host="captions.test") as page:
        await page.evaluate("document.getElementById('start').click()")
        await page.wait_until("document.getElementById('trouble').textContent.includes('http://captions.test')")
        assert not await page.evaluate("document.getElementById('start').disabled")
