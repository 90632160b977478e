"""What an operator is shown of a session."""

from __future__ import annotations

import json
import pathlib

from mobillm.server.engine_local import LocalEngine
from mobillm.server.session import Session
from mobillm.server.summary import state_of, summarise, unreadable
from mobillm.server.workers import Workers
from tests.conftest import Run
from tests.sessions import NO_BLOBS, new_store, packed, spec


def test_states_and_figures(run_once: Run, tmp_path: pathlib.Path) -> None:
    """A session's word follows it from its first batch to its end; the figures are plain JSON."""

    async def main() -> None:
        workers = Workers()
        session = Session(new_store(tmp_path, spec(epochs=2, batches=2)), workers, LocalEngine(workers))
        before = summarise(session, attached=False)
        assert (before["state"], before["steps"], before["epoch"], before["loss"]) == (
            "receiving", None, None, None,
        )  # fmt: skip
        await session.start(NO_BLOBS)
        for seq in (1, 2):
            await session.put(packed(session.spec, seq))
        await session.finish(2)
        assert state_of(session) == "training"
        await session._tasks[1]
        done = summarise(session, attached=True)
        assert (done["state"], done["steps"], done["total_steps"], done["epoch"]) == ("finished", 4, 4, 2)
        assert done["loss"] > 0.0
        assert done["attached"] is True
        await session.park()
        assert summarise(session, attached=True) == done
        assert done["log_bytes"] == (session.store.directory / "activations.log").stat().st_size
        json.dumps(done, allow_nan=False)
        assert unreadable(session.id, "damaged").keys() == done.keys()
        session.failure = "no space"
        assert state_of(session) == "failed"
        await session.close()
        workers.close()

    run_once(main())
