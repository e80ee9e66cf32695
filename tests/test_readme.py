"""The README tells the truth: its own-data block runs as it stands, and what it and the help texts name exists."""

import csv
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

import serving.subject_config
import training.config
from serving.messages import RecommendRequest
from tests.announced import wait_for_announcement
from towers.cli import usage
from towers.schema import KINDS, OWNERS
from towers.verbs import VERBS, conf_dir, config_groups
from training.data_config import SyntheticConfig
from training.sources.synthetic_world import CHANNELS, DEVICES, build_world
from training.sources.table_presets import PRESETS

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
SERVING = ("index", "serve")
ROOMS = ("towers", "training", "serving", "conf", "tests", "notebooks", "scripts")


def as_written(verb: str) -> Any:
    """The settings of a job, with nothing filled in."""
    return OmegaConf.to_container(OmegaConf.load(conf_dir() / f"{verb}.yaml"), resolve=False)


TEXTS = {"README.md": README, "towers --help": usage()} | {
    f"towers {verb} --help": str(as_written(verb)["hydra"]["help"]["header"]) for verb in VERBS
}


def block(heading: str, language: str) -> str:
    """The first fenced block of a language under a heading."""
    found = re.search(rf"^#+ {re.escape(heading)}$.*?^```{language}\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
    assert found, f"README has no {language} block under {heading!r}"
    return found[1]


def code_of(text: str) -> list[str]:
    """Pieces of code in a text: `...` and the lines of fenced blocks; every line of a help text, which has no fences."""
    if "```" not in text:
        return text.splitlines()
    fenced = re.findall(r"^```\w*\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    prose = re.sub(r"^```\w*\n.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    return [line for part in fenced for line in part.splitlines()] + re.findall(r"`([^`]+)`", prose)


def commands(text: str) -> Iterator[tuple[str, list[str]]]:
    """Verb and settings of every `towers <verb> ...`; explanations start after two spaces or a #."""
    for code in code_of(text):
        found = re.match(r"(?:Next\s+)?towers ([a-z]\S*)(.*)", code.strip())
        if found and not re.search(r"[:.]$", found[1]):
            told = re.split(r"\s{2,}|\s#", found[2])[0] if found[2].startswith(" ") and not found[2].startswith("  ") else ""
            yield found[1], [re.sub(r"[<>]", "", word) for word in told.split() if "=" in word]


def first_of_sweep(setting: str) -> str:
    key, _, value = setting.partition("=")
    return setting if value.startswith("[") else f"{key}={value.partition(',')[0]}"


@pytest.fixture(scope="module")
def settings() -> dict[str, Any]:
    """Every setting of both schemas, by group."""
    training.config.register()
    serving.subject_config.register()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        both = [OmegaConf.to_container(compose(name)) for name in ("serve", "train")]
    return {**both[0], **both[1]}  # type: ignore[dict-item]


@pytest.mark.parametrize("where", TEXTS)
def test_every_command_named_is_one_that_composes(where: str) -> None:
    training.config.register()
    serving.subject_config.register()
    named = list(commands(TEXTS[where]))
    assert named, "no command is named"
    own = {"data=shop"}  # the README's own example, run below
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        for verb, told in named:
            assert verb in VERBS, f"{where}: towers {verb}"
            compose(verb, overrides=[first_of_sweep(setting) for setting in told if setting not in own])


@pytest.mark.parametrize("where", TEXTS)
def test_every_setting_and_option_named_exists(where: str, settings: dict[str, Any]) -> None:
    groups, sections = config_groups(), "|".join(settings)
    for code in code_of(TEXTS[where]):
        for key in re.findall(rf"(?<![\w./-])((?:{sections})(?:\.[a-z_]+)+)", code):
            if not key.endswith((".yaml", ".json", ".py", ".txt", ".md", ".html")) and not code.startswith("from "):
                assert OmegaConf.select(OmegaConf.create(settings), key, default="absent") != "absent", f"{where}: {key}"
        for group, options in re.findall(rf"(?<![\w.])({'|'.join(groups)})=([a-z_0-9]+(?:, [a-z_0-9]+)*)", code):
            for option in options.split(", "):
                assert option in groups[group] or option == "shop", f"{where}: {group}={option}"


def test_every_file_named_exists() -> None:
    named = {word for code in code_of(README) for word in re.findall(r"(?<![\w./~-])[\w.-]+(?:/[\w.-]*)+", code)}
    in_rooms = {path for path in named if path.partition("/")[0] in ROOMS}
    assert len(in_rooms) >= len(ROOMS)
    for path in in_rooms:
        assert (ROOT / path).exists(), path
    for target in re.findall(r"^make (\w+)|`make (\w+)", README, re.MULTILINE):
        assert re.search(rf"^{''.join(target)}:", (ROOT / "Makefile").read_text(), re.MULTILINE), target


def test_lists_in_the_readme_are_those_of_the_code() -> None:
    told = block_of_prose("Your own data")
    for names in (KINDS, OWNERS, tuple(PRESETS)):
        for name in names:
            assert re.search(rf"[`, \n]{name}[`, \n]", told), f"{name} is not told of"
    assert {row[1] for row in re.findall(r"^\| (`towers (\w+)`) \|", README, re.MULTILINE)} == set(VERBS)
    fields = re.findall(r"`(\w+)`", re.search(r"^\| `POST /v1/recommend` \| (.*?) -> ", README, re.MULTILINE)[1])  # type: ignore[index]
    assert set(fields) == set(RecommendRequest.__struct_fields__)


def block_of_prose(heading: str) -> str:
    found = re.search(rf"^## {heading}$(.*?)^## ", README, re.DOTALL | re.MULTILINE)
    assert found
    return found[1]


def test_the_python_example_names_items_and_context_of_the_world() -> None:
    """The example itself is run on a finished run in e2e/test_readme_run.py."""
    example = block("Towers", "python")
    ids = re.findall(r'"(i\d+)"', example)
    assert ids and set(ids) <= set(build_world(SyntheticConfig()).item_ids)
    assert set(re.findall(r'"device": "(\w+)"', example)) <= set(DEVICES)
    assert set(re.findall(r'"channel": "(\w+)"', example)) <= set(CHANNELS)


def write_shop(folder: Path) -> None:
    """A thousand orders of eighty customers; each buys mostly from one brand."""
    folder.mkdir(parents=True)
    draw, brands, start = random.Random(0), ("Alder", "Birch", "Cedar", "Düne"), datetime(2025, 3, 1, tzinfo=UTC)
    products = [(f"SKU {n:03d}", f"{brands[n % 4]} chair no. {n}", brands[n % 4]) for n in range(60)]
    with (folder / "products.csv").open("w", newline="", encoding="utf-8") as sink:
        csv.writer(sink).writerows([("sku", "title", "brand"), *products])
    with (folder / "orders.csv").open("w", newline="", encoding="utf-8") as sink:
        rows = csv.writer(sink)
        rows.writerow(("customer", "sku", "bought_at", "device", "price"))
        for n in range(1000):
            customer = n % 80
            product = draw.randrange(15) * 4 + customer % 4 if draw.random() < 0.8 else draw.randrange(60)
            moment = start + timedelta(minutes=n * 80 + draw.randrange(60))
            rows.writerow((f"c{customer}", products[product][0], moment.isoformat(), draw.choice(("phone", "desktop")), 9.5))


@pytest.mark.long
def test_the_own_data_block_runs_as_it_stands_through_to_http_200(tmp_path: Path) -> None:
    started = time.monotonic()
    write_shop(tmp_path / "shop")
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    script = ["bash", "-eu", "-o", "pipefail", "-c", block("Your own data", "bash")]
    done = subprocess.run(script, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    server = subprocess.Popen(["towers", "serve", "run_dir=runs/shop", "serving.port=0"], cwd=tmp_path, env=environment)
    try:
        told = wait_for_announcement(server, tmp_path / "runs" / "shop")
        reply = answer(told["url"], "/v1/recommend", json.loads(re.search(r"-d '(.*)'", block("Serving", "bash"))[1]))  # type: ignore[index]
        assert reply["mode"] == "personalized" and len(reply["items"]) == 5
        assert all("chair no." in item["title"] for item in reply["items"])
        for path in re.findall(r"`(/[^`]*)`|`GET (/[^`]*)`", README):
            answer(told["url"], "".join(path).replace("{id}", "SKU%20003").replace("k=", "k=5"))
    finally:
        server.send_signal(signal.SIGTERM)
        assert server.wait(20) == 0
    assert time.monotonic() - started <= 90


def answer(url: str, path: str, body: dict[str, Any] | None = None) -> Any:
    """The reply to a request that is answered with 200; JSON where it is JSON."""
    sent = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(url + path, sent, {"content-type": "application/json"}), timeout=30) as reply:
        assert reply.status == 200
        text = reply.read()
        return json.loads(text) if "json" in reply.headers["content-type"] else text


def test_nothing_was_left_to_be_filled_in() -> None:
    assert not re.search(r"^[A-Z]+_[A-Z]+$", README, re.MULTILINE)
