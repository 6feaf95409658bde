"""The station's own document, taken at its word by schemathesis: no 5xx, no status that it does not tell."""

import os
import shutil
from contextlib import suppress
from unittest import SkipTest

import httpx
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable

from moleflow.station import Limits
from moleflow.station.web import Access, create_app, new_token, read_tokens
from moleflow.station.web.access import Brake
from station import inspect, listening, settings_of

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")
checks = pytest.importorskip("schemathesis.specs.openapi.checks")

TOKEN = new_token("admin")
WITH_TOKEN = {"Authorization": f"Bearer {TOKEN.partition(':')[2]}"}
EXAMPLES = int(os.environ.get("MOLEFLOW_EXAMPLES", "40"))  # of a route
OPTIONS = settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.generate],
)


# A name must be one of a folder on any system, a file an image, and there may be only so many of them.
MORE_THAN_A_SCHEMA_SAYS = {"POST /api/v1/inspections", "POST /api/v1/jobs"}


@pytest.fixture(scope="module")
def api(_saved_line, tmp_path_factory, pictures):
    """The document of a station with tokens; bad ones are asked with as often as schemathesis likes."""
    line = shutil.copytree(_saved_line, tmp_path_factory.mktemp("schema") / "line")
    settings = settings_of(line, limits=Limits(images=4, lesson_images=4))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("moleflow.station.web.access.TRIES", 10**9)
        patch.setattr("moleflow.station.web.parts.SLOWED", 0.0)
        app = create_app(settings, Access(read_tokens([TOKEN]), Brake()))
        with listening(app) as (port, _):
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=WITH_TOKEN) as client:
                inspect(client, pictures("gear", 3))
            yield schemathesis.openapi.from_url(f"http://127.0.0.1:{port}/openapi.json")


@pytest.mark.slow
def test_the_document_is_kept(api):
    operations = [found.ok() for found in api.get_all_operations()]
    assert len(operations) > 25
    failures = {}
    for operation in operations:
        try:
            asked(operation)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # schemathesis puts several into a group
            failures[operation.label] = error
    told = "\n".join(f"{label}: {error!r}\n{error}" for label, error in failures.items())
    assert not failures, told


def asked(operation):
    """Requests of an operation, as its document describes them and as it does not."""

    forms = operation.label in MORE_THAN_A_SCHEMA_SAYS
    excluded = [checks.positive_data_acceptance] if forms else []
    # What is wrong about a request may leave no trace in it (null in an address, a token that is put back),
    # and 413 is none of what it takes for a no: that wrong data is refused is tested elsewhere.
    wrong = [checks.negative_data_rejection]

    @given(case=operation.as_strategy(generation_mode=schemathesis.GenerationMode.POSITIVE))
    @OPTIONS
    def rightly(case):
        case.call_and_validate(headers=WITH_TOKEN, excluded_checks=excluded)

    @given(case=operation.as_strategy(generation_mode=schemathesis.GenerationMode.NEGATIVE))
    @OPTIONS
    def wrongly(case):
        case.call_and_validate(headers=WITH_TOKEN, excluded_checks=wrong)

    for ask in (rightly, wrongly):
        with suppress(Unsatisfiable, SkipTest):  # nothing can be wrong about a route without parameters
            ask()
