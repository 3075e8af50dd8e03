"""`/_test/…`: the controls and the contents of a server that runs in another process.

    POST   /_test/faults                 {"action": "status", "status": 503, "times": 3, …}; DELETE clears
    POST   /_test/random                 {"seed": 1, "rate": 0.2}
    POST   /_test/down                   {"seconds": 10, "how": "down", "silence" or "black_hole"}
    POST   /_test/keys                   {"keys": ["…"]}: exactly these are valid from now on
    POST   /_test/resume                 {"mode": "late", "lag_s": 3}
    POST   /_test/rate_limit             {"remaining": 10, "reset_s": 5}, or {} to send none
    POST   /_test/project_limit          {"requests": 5, "per_s": 1, "retry_after": "date"}, or {} for no limit
    POST   /_test/deleted_answers        {"file_stream": 404, "upsert": 409}
    POST   /_test/expire_urls            no upload URL that was handed out is valid any more
    GET    /_test/traffic/{e}/{p}        the requests in each second
    POST   /_test/seed                   {"project": "p", "run_id": "r", "rows": 100, …}
    GET    /_test/runs                   a summary of each
    GET    /_test/runs/{e}/{p}/{r}       everything of one; DELETE deletes it
    POST   /_test/runs/{e}/{p}/{r}/stop  presses Stop; {"stopped": false} takes it back
    GET    /_test/violations  /_test/alerts  /_test/requests (DELETE forgets them)  /_test/health

Never asks for a key and never meets a fault. Strings that JSON cannot hold do not occur here: lines are
given as text.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from tests.wandb_server.limits import ProjectLimit
from tests.wandb_server.store import DeletedAnswers, ResumeAnswers, StoredRun

if TYPE_CHECKING:
    from tests.wandb_server.server import WandbServer

Handler = Callable[[Request], Awaitable[JSONResponse]]


def steering_app(server: WandbServer) -> Starlette:
    def run_of(request: Request) -> StoredRun:
        parts = request.path_params
        try:
            return server.run(parts["entity"], parts["project"], parts["run_id"])
        except KeyError:
            raise HTTPException(404, f"run {'/'.join(parts.values())!r} is unknown") from None

    async def health(request: Request) -> JSONResponse:
        return JSONResponse({"ok": True, "base_url": server.base_url, "requests": server.app.request_count})

    async def add_fault(request: Request) -> JSONResponse:
        return JSONResponse(asdict(server.faults.add(**await request.json())))

    async def clear_faults(request: Request) -> JSONResponse:
        server.faults.clear()
        return JSONResponse({})

    async def random(request: Request) -> JSONResponse:
        server.random_misbehaviour(**await request.json())
        return JSONResponse({})

    async def down(request: Request) -> JSONResponse:
        wanted = await request.json()
        server.down_soon(float(wanted["seconds"]), wanted.get("how", "down"))
        return JSONResponse({})

    async def keys(request: Request) -> JSONResponse:
        valid = (await request.json())["keys"]
        server.keys.clear()
        server.keys.update(valid)
        return JSONResponse({"keys": len(valid)})

    async def resume(request: Request) -> JSONResponse:
        wanted = await request.json()
        if "of" in wanted:
            wanted["of"] = tuple(wanted["of"])
        server.resume = ResumeAnswers(**wanted)
        return JSONResponse(asdict(server.resume))

    async def rate_limit(request: Request) -> JSONResponse:
        wanted = await request.json()
        server.rate_limit = (wanted["remaining"], wanted["reset_s"]) if wanted else None
        return JSONResponse({})

    async def project_limit(request: Request) -> JSONResponse:
        wanted = await request.json()
        server.project_limit = ProjectLimit(**wanted) if wanted else None
        return JSONResponse(wanted)

    async def deleted_answers(request: Request) -> JSONResponse:
        server.deleted_answers = DeletedAnswers(**await request.json())
        return JSONResponse(asdict(server.deleted_answers))

    async def expire_urls(request: Request) -> JSONResponse:
        server.expire_urls()
        return JSONResponse({})

    async def traffic(request: Request) -> JSONResponse:
        parts = request.path_params
        return JSONResponse(server.requests_per_second(parts["entity"], parts["project"]))

    async def seed(request: Request) -> JSONResponse:
        return JSONResponse(_overview(server, server.seed_run(**await request.json())))

    async def runs(request: Request) -> JSONResponse:
        return JSONResponse([_overview(server, run) for run in server.runs()])

    async def run(request: Request) -> JSONResponse:
        return JSONResponse(_contents(server, run_of(request)))

    async def stop(request: Request) -> JSONResponse:
        wanted = json.loads(await request.body() or b"{}")
        run_of(request).stopped = wanted.get("stopped", True)
        return JSONResponse({})

    async def delete(request: Request) -> JSONResponse:
        server.delete_run(*run_of(request).key)
        return JSONResponse({})

    async def violations(request: Request) -> JSONResponse:
        return JSONResponse(server.violations)

    async def alerts(request: Request) -> JSONResponse:
        return JSONResponse(server.alerts)

    async def requests(request: Request) -> JSONResponse:
        return JSONResponse([_shown(one) for one in server.requests])

    async def forget_requests(request: Request) -> JSONResponse:
        server.clear_requests()
        return JSONResponse({})

    one_run = "/_test/runs/{entity}/{project}/{run_id}"
    return Starlette(
        routes=[
            Route("/_test/health", health),
            Route("/_test/faults", add_fault, methods=["POST"]),
            Route("/_test/faults", clear_faults, methods=["DELETE"]),
            Route("/_test/random", random, methods=["POST"]),
            Route("/_test/down", down, methods=["POST"]),
            Route("/_test/keys", keys, methods=["POST"]),
            Route("/_test/resume", resume, methods=["POST"]),
            Route("/_test/rate_limit", rate_limit, methods=["POST"]),
            Route("/_test/project_limit", project_limit, methods=["POST"]),
            Route("/_test/deleted_answers", deleted_answers, methods=["POST"]),
            Route("/_test/expire_urls", expire_urls, methods=["POST"]),
            Route("/_test/traffic/{entity}/{project}", traffic),
            Route("/_test/seed", seed, methods=["POST"]),
            Route("/_test/runs", runs),
            Route(one_run, run),
            Route(one_run, delete, methods=["DELETE"]),
            Route(one_run + "/stop", stop, methods=["POST"]),
            Route("/_test/violations", violations),
            Route("/_test/alerts", alerts),
            Route("/_test/requests", requests),
            Route("/_test/requests", forget_requests, methods=["DELETE"]),
        ]
    )


def _overview(server: WandbServer, run: StoredRun) -> dict[str, Any]:
    return {
        "entity": run.entity,
        "project": run.project,
        "run_id": run.run_id,
        "display_name": run.display_name,
        "state": server.state(run),
        "exitcode": run.exitcode,
        "complete": run.complete,
        "history_count": len(run.history_lines),
        "events_count": len(run.events_lines),
        "console_count": len(run.console_lines),
        "replayed_lines": run.replayed_lines,
        "last_step": run.last_step,
    }


def _contents(server: WandbServer, run: StoredRun) -> dict[str, Any]:
    """Lines, config and summary as the text that was sent: it may hold a NaN, which JSON has not."""
    with server.lock:
        return {
            **_overview(server, run),
            "notes": run.notes,
            "tags": run.tags,
            "group": run.group,
            "job_type": run.job_type,
            "config_text": run.config_text,
            "summary_text": run.summary_text,
            "history_lines": run.history_lines,
            "events_lines": run.events_lines,
            "console_lines": run.console_lines,
            "files": {name: len(content) for name, content in run.files.items()},
            "uploaded": list(run.uploaded),
            "stopped": run.stopped,
        }


def _shown(request: Any) -> dict[str, Any]:
    """A request without its body, which may be bytes or large."""
    fields = ("method", "path", "kind", "operation", "variables", "headers", "status", "bytes", "at_s")
    return {name: getattr(request, name) for name in fields} | {
        "fault": request.fault.action if request.fault else None
    }
