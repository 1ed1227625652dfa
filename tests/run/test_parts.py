"""Shards: every cell in exactly one, what belongs together in the same one, whatever is stored."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from attriboard.errors import ConfigurationError
from attriboard.records.record import Planned
from attriboard.records.store import Folder
from attriboard.run.identity import context_identity, scoring_identity
from attriboard.run.parts import MAX_SHARDS, Shard
from attriboard.run.suite import Suite, suites
from tests.bench.cli import call


def _shards(plan: list[Planned], n: int) -> list[list[Planned]]:
    return [Shard(i + 1, n)(plan) for i in range(n)]


@pytest.mark.parametrize("n", [1, 2, 7])
def test_shards_are_the_whole_plan_each_cell_once_in_its_order(n: int) -> None:
    plan = Suite.load(suites()["planted"]).plan()
    shards = _shards(plan, n)
    place = {repr(planned): i for i, planned in enumerate(plan)}
    places = [[place[repr(planned)] for planned in shard] for shard in shards]
    assert len(place) == len(plan) and sorted(i for own in places for i in own) == list(range(len(plan)))
    assert all(own == sorted(own) for own in places)
    of_group = [{context_identity(*planned) for planned in shard} for shard in shards]
    assert max(Counter(group for own in of_group for group in own).values()) == 1, "no group is divided"
    largest = max(Counter(context_identity(*planned) for planned in plan).values())
    sizes = [len(own) for own in places]
    assert max(sizes) - min(sizes) <= largest, "the shard with the most cells would not be the shorter without a group"


def test_a_group_is_divided_only_for_more_shards_than_groups_and_shared_scores_never(toy: dict) -> None:
    plan = Suite.load(suites()["quick"]).plan()
    group = context_identity(*plan[0])
    plan = [planned for planned in plan if context_identity(*planned) == group]
    pairs = Counter(scoring_identity(*planned) for planned in plan)
    for n in (2, 3, len(pairs) + 2):
        shards = _shards(plan, n)
        of_pair = [{scoring_identity(*planned) for planned in shard} for shard in shards]
        assert Counter(name for own in of_pair for name in own) == dict.fromkeys(pairs, 1)
        assert sum(map(len, shards)) == len(plan)
        assert len([shard for shard in shards if shard]) == min(n, len(pairs))


@pytest.mark.parametrize(
    "text", ["0/3", "4/3", "x", "1/0", "1", "-1/3", "1/3/3", "1.0/3", "9" * 5000 + "/3", "²/3", ""]
)
def test_a_shard_that_cannot_be_is_one_sentence(text: str) -> None:
    with pytest.raises(ConfigurationError, match=r"--shard is .*, expected I/N, the I-th of N parts") as caught:
        Shard.parse(text)
    assert len(str(caught.value)) < 250
    with pytest.raises(ConfigurationError, match="at most 10,000 parts"):
        Shard(1, MAX_SHARDS + 1)


def test_shards_are_run_one_by_one_and_are_the_same_whatever_is_stored(
    toy: dict, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["run", toy["suite"], "--include", toy["task"], "--out", tmp_path, "--limit", 8]
    arguments += ["--method", "random", "--method", "attribution_patching", "--batch-size", 2]
    found = []
    for shard in ("1/2", "2/2", "1/2"):
        code, out, _ = call(capsys, *arguments, "--shard", shard)
        assert code == 0
        found.append(out.split(", 0 failed")[0])
    assert found == ["1 cells run, 0 done before", "1 cells run, 0 done before", "0 cells run, 1 done before"]
    records = Folder(tmp_path).read()
    assert sorted(record.cell.method for record in records) == ["attribution_patching", "random"]
    assert {record.provenance.batch_size for record in records if record.provenance} == {2}
    code, _, err = call(capsys, *arguments, "--shard", "3/2")
    assert code == 2 and "--shard is '3/2'" in err
