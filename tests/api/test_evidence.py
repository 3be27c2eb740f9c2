"""GET /evidence: there with --evidence alone, behind the key as everything else."""

from __future__ import annotations

import httpx

from api_support import engine_info
from lingflash.api.app import create_app
from lingflash.api.config import ServerConfig
from lingflash.cli import _run, report_errors
from lingflash.link.scripted import ScriptedEngine

TOLD = {"claims": [{"claim": "fast"}], "records": []}


def client_of(evidence, **settings):
    app = create_app(ScriptedEngine({(): []}, engine_info()), ServerConfig(**settings), evidence)
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://server")


async def test_evidence_when_given_then_answered_and_a_screen_of_the_page():
    async with client_of(TOLD) as client:
        assert (await client.get("/evidence")).json() == TOLD
        assert "evidence" in (await client.get("/ui/server.json")).json()["screens"]
        assert "/evidence" in (await client.get("/openapi.json")).json()["paths"]


async def test_evidence_when_not_given_then_no_route_and_no_screen():
    async with client_of(None) as client:
        assert (await client.get("/evidence")).status_code == 404
        assert "evidence" not in (await client.get("/ui/server.json")).json()["screens"]


async def test_evidence_when_there_are_keys_then_it_takes_one():
    async with client_of(TOLD, api_keys=("k",)) as client:
        assert (await client.get("/evidence")).status_code == 401
        headers = {"authorization": "Bearer k"}
        assert (await client.get("/evidence", headers=headers)).json() == TOLD


def test_serve_when_the_folder_is_none_or_holds_no_records_then_said(tmp_path, capsys):
    for folder, said in ((tmp_path / "none", "does not exist"), (tmp_path, "no benchmark record")):
        (tmp_path / "x.json").write_text("{}")
        words = ["serve", "--port", "0", "--evidence", str(folder)]
        assert report_errors(lambda words=words: _run(words)) == 2
        assert said in capsys.readouterr().err
