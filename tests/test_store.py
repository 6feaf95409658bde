"""A line on disk: whole at every moment, whoever writes, reads, fails or dies meanwhile."""

import contextlib
import json
import multiprocessing
import os
import pickle
import shutil
import signal
import threading
import time

import pytest
import torch

from moleflow.errors import LineBusyError, LineError, NoLineError, TaskError
from moleflow.store import LineStore, TaskRecord, check_new_name, check_task_name, files, fingerprint
from moleflow.store import line as line_module
from moleflow.store.tensors import sha256_of
from saying import write_index

BASE = {"flow.weight": torch.arange(6.0).reshape(2, 3), "flow.bias": torch.zeros(2, dtype=torch.float64)}
PRINT = fingerprint(BASE)
posix = pytest.mark.skipif(os.name == "nt", reason="signals and links as POSIX has them")


def record(name="bottle", value=1.0, **more):
    return TaskRecord(
        name, None, {"lora.a": torch.full((3, 2), value)}, {"images": 12, "value": value}, **more
    )


@pytest.fixture
def line(tmp_path):
    store = LineStore(tmp_path / "line-3")
    store.create({"image_size": [256, 256]}, BASE, fingerprint=PRINT)
    store.put(record("bottle", 1.0))
    return store


def names(store):
    return [task.name for task in store.read().tasks]


def value(store, name="bottle"):
    return next(task for task in store.read().tasks if task.name == name).info["value"]


def snapshot(store):
    content = store.read()
    tensors = {(t.name, t.version, key): v.tolist() for t in content.tasks for key, v in t.tensors.items()}
    return (
        content.settings,
        content.fingerprint,
        tensors,
        [(t.name, t.info, t.overrides) for t in content.tasks],
    )


def debris(store):
    return [path for path in store.path.rglob("*") if path.name.startswith(".tmp-")]


def edit(store, change):
    path = store.path / "line.json"
    document = json.loads(path.read_text())
    change(document)
    write_index(path, document)


# Names


@pytest.mark.parametrize(
    "name",
    ["bottle", "Flasche 0,5 l", "瓶子", "v1.2", "schraube-ß", "con1", "console", "a" * 80, "नमूना", "x&y"],
)
def test_good_names_stay_as_they_are(name):
    assert check_task_name(name) == name


def test_names_are_normalised():
    assert check_task_name("Ko\u0308rper") == "Körper"


BAD_NAMES = [".", "..", ".hidden", "a/b", "a\\b", "../x", "a.", "a:b", "a*", "a?b", "a<b", "a|b", 'a"b']
BAD_NAMES += ["CON", "nul", "com1", "LPT9.txt", "COM¹"]
BAD_NAMES += ["", " a", "a ", "a\u00a0", "a\n", "a\0b", "\u202egnp", "Aux .x", "a" * 81, "é" * 41, "\ud800"]


@pytest.mark.parametrize("name", [*BAD_NAMES, None, 3, b"a"])
def test_bad_names_are_refused(name):
    with pytest.raises(TaskError, match="product"):
        check_task_name(name)


def test_a_line_that_has_a_product_called_as_none_is_read(line):
    for name in ("unknown", "Unknown"):
        with pytest.raises(TaskError, match="an image of no product"):
            check_new_name(name)
    assert check_new_name("unknown part") == "unknown part"
    line.put(record("unknown", 2.0))
    assert names(line) == ["bottle", "unknown"]
    line.override("unknown", {"threshold": 2.5})
    line.remove("unknown")
    assert names(line) == ["bottle"]


def test_fingerprint_depends_on_names_types_shapes_and_bytes_only():
    assert fingerprint(dict(reversed(BASE.items()))) == PRINT
    weight = BASE["flow.weight"]
    assert fingerprint({**BASE, "flow.weight": weight.t().contiguous().t()}) == PRINT
    variants = [weight.reshape(3, 2), weight.double(), weight.view(torch.int32), weight + 1e-6]
    others = {fingerprint({**BASE, "flow.weight": variant}) for variant in variants}
    others |= {fingerprint({}), fingerprint({"weight": weight})}
    assert len(others) == 6
    assert PRINT not in others


def test_fingerprint_takes_every_kind_of_tensor():
    kinds = [torch.tensor(1.0), torch.zeros(0, 3), torch.ones(2, dtype=torch.bfloat16), torch.tensor([True])]
    assert len({fingerprint({"a": tensor}) for tensor in kinds}) == len(kinds)


# Round trip


def test_what_is_written_is_read_bit_for_bit(tmp_path):
    tensors = {
        "shared": BASE["flow.weight"],
        "view": BASE["flow.weight"][:, 1:].t(),
        "half": torch.randn(3).bfloat16(),
        "scalar": torch.tensor(float("nan")),
        "empty": torch.zeros(0, 4),
        "count": torch.tensor([2**40]),
        "flag": torch.tensor([True, False]),
    }
    store = LineStore(tmp_path / "new" / "line")
    tasks = [
        TaskRecord("b", None, tensors, {"größe": [1, None, {"x": 0.1}]}, {"threshold": 3.2}),
        record("a"),
    ]
    store.create({"k": 1}, BASE, fingerprint="any text", tasks=tasks)
    content = LineStore(tmp_path / "new" / "line").read()
    assert (content.settings, content.base_info, content.fingerprint) == ({"k": 1}, {}, "any text")
    assert [(task.name, task.version) for task in content.tasks] == [("b", "0001"), ("a", "0001")]
    assert fingerprint(content.base) == PRINT
    assert fingerprint(content.tasks[0].tensors) == fingerprint(tensors)
    assert content.tasks[0].info == {"größe": [1, None, {"x": 0.1}]}
    assert content.tasks[0].overrides == {"threshold": 3.2}
    assert not debris(store)


def test_the_same_line_has_the_same_bytes(tmp_path):
    for folder in ("a", "b"):
        LineStore(tmp_path / folder).create({"k": 1}, BASE, fingerprint=PRINT, tasks=[record()])
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file())
    assert len(files) == 5
    assert all((tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes() for file in files)


def test_read_without_tensors(line):
    content = line.read(tensors=False)
    assert content.base == {}
    assert content.tasks[0].tensors == {}
    assert content.tasks[0].info["images"] == 12


def test_loaded_tensors_can_be_changed(line):
    content = line.read()
    content.tasks[0].tensors["lora.a"] += 1
    content.base["flow.weight"] += 1
    assert value(line) == 1.0


@posix
def test_other_accounts_may_read_as_far_as_the_umask_allows(line):
    mask = os.umask(0o022)
    os.umask(mask)
    folder = line.path / "tasks" / "bottle" / "0001"
    assert folder.stat().st_mode & 0o777 == 0o777 & ~mask
    assert (folder / "expert.safetensors").stat().st_mode & 0o777 == 0o666 & ~mask


# Creating


def test_create_refuses_a_line_and_a_foreign_folder(line, tmp_path):
    before = snapshot(line)
    with pytest.raises(LineError, match="found a line"):
        line.create({}, BASE, fingerprint=PRINT)
    assert snapshot(line) == before
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(b"x")
    with pytest.raises(LineError, match=r"a\.png"):
        LineStore(tmp_path / "photos").create({}, BASE, fingerprint=PRINT)
    assert [path.name for path in (tmp_path / "photos").iterdir()] == ["a.png"]
    (tmp_path / "file").write_text("x")
    with pytest.raises(LineError, match="found a file"):
        LineStore(tmp_path / "file").create({}, BASE, fingerprint=PRINT)


def test_create_does_not_overwrite_a_line_whose_index_is_gone(line):
    (line.path / "line.json").unlink()
    with pytest.raises(LineError, match=r"base\.safetensors"):
        line.create({}, BASE, fingerprint=PRINT)
    assert (line.path / "base.safetensors").exists()


def test_create_syncs_the_entry_of_a_folder_that_was_there(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(line_module, "sync_folder", synced.append)
    (tmp_path / "line-3").mkdir()
    LineStore(tmp_path / "line-3").create({}, BASE, fingerprint=PRINT)
    assert tmp_path in synced


def test_create_accepts_an_empty_folder_and_leaves_nothing_behind_when_it_fails(tmp_path):
    bad = [record(), TaskRecord("cable", None, {}, {"x": float("nan")})]
    with pytest.raises(LineError, match="JSON"):
        LineStore(tmp_path / "deep" / "line").create({}, BASE, fingerprint=PRINT, tasks=bad)
    assert not list(tmp_path.iterdir())
    (tmp_path / "empty").mkdir()
    store = LineStore(tmp_path / "empty")
    with pytest.raises(LineError, match="JSON"):
        store.create({"x": object()}, BASE, fingerprint=PRINT)
    store.create({}, BASE, fingerprint=PRINT)
    assert names(store) == []


def test_no_line(tmp_path):
    store = LineStore(tmp_path / "none")
    assert not store.exists()
    calls = [store.read, lambda: store.put(record()), lambda: store.remove("a"), lambda: store.versions("a")]
    for call in calls:
        with pytest.raises(NoLineError, match=r"none/line\.json: expected .*, found no folder") as caught:
            call()
        again = pickle.loads(pickle.dumps(caught.value))  # as it comes from another process
        assert (again.line, str(again)) == (store.path, str(caught.value))
    with pytest.raises(LineError, match="no folder"), store.lock():
        pass
    assert not list(tmp_path.iterdir())


# Changing


def test_versions_and_rollback(line):
    first = (line.path / "tasks/bottle/0001/expert.safetensors").read_bytes()
    assert line.put(record("bottle", 2.0, overrides={"threshold": 5.0})) == "0002"
    assert line.versions("bottle") == ["0001", "0002"]
    assert value(line) == 2.0
    line.point("bottle", "0001")
    assert value(line) == 1.0
    assert line.read_task("bottle").overrides == {}
    assert line.read_task("bottle", "0002").overrides == {"threshold": 5.0}
    assert line.read_task("bottle", "0002").tensors["lora.a"].unique().tolist() == [2.0]
    assert line.put(record("bottle", 3.0)) == "0003"
    line.point("bottle", "0002")
    assert (value(line), line.read_task("bottle").overrides) == (2.0, {"threshold": 5.0})
    assert (line.path / "tasks/bottle/0001/expert.safetensors").read_bytes() == first
    for bad in ("0009", "..", "../../x"):
        with pytest.raises(LineError, match="0001, 0002, 0003"):
            line.point("bottle", bad)


def test_order_is_the_order_of_adding(line):
    line.put(record("cable"))
    line.put(record("apple"))
    line.put(record("bottle", 2.0))
    assert names(line) == ["bottle", "cable", "apple"]


def test_remove(line):
    line.put(record("cable"))
    line.remove("bottle")
    assert names(line) == ["cable"]
    assert not (line.path / "tasks/bottle").exists()
    assert not debris(line)
    assert names(line) == ["cable"]


def test_a_number_of_a_version_that_went_is_not_given_again(line):
    assert [line.put(record("bottle", 2.0)), line.put(record("bottle", 3.0))] == ["0002", "0003"]
    line.point("bottle", "0001")
    line.remove("bottle")
    assert line.put(record("bottle", 4.0)) == "0004"
    with line.transaction() as change:
        change.remove("bottle")
        assert change.put(record("bottle", 5.0)) == "0005"
    line.remove("bottle")
    assert line.put(record("bottle", 6.0)) == "0006"
    assert line.put(record("new")) == "0001"


def test_a_damaged_list_of_what_went_is_named(line):
    line.remove("bottle")
    edit(line, lambda document: document["removed"].update(bottle="../1"))
    with pytest.raises(LineError, match=r"line.json: expected a version like '0001' for 'bottle'"):
        line.read()


def test_what_another_program_says_of_the_base_stays_through_changes(line):
    said = json.loads((line.path / "line.json").read_text())
    del said["sha256"]  # of what is changed here by hand
    said["base"]["info"] = {"seconds": 1.5}
    (line.path / "line.json").write_text(json.dumps(said))
    line.put(record("cable"))
    assert line.read().base_info == {"seconds": 1.5}
    assert json.loads((line.path / "line.json").read_text())["base"]["info"] == {"seconds": 1.5}


def test_unknown_products_are_named(line):
    calls = [
        line.remove,
        line.versions,
        line.read_task,
        lambda n: line.point(n, "0001"),
        lambda n: line.override(n, {}),
    ]
    for call in calls:
        with pytest.raises(TaskError, match=r"'cable'.*bottle"):
            call("cable")


def test_names_that_differ_only_in_case_are_refused(line):
    with pytest.raises(TaskError, match="case"):
        line.put(record("Bottle"))
    with line.transaction() as change:
        change.remove("bottle")
        with pytest.raises(TaskError, match="case"):
            change.put(record("BOTTLE"))
        change.put(record("bottle"))
    assert names(line) == ["bottle"]


def test_overrides_merge_and_can_be_taken_back(line):
    version = (line.path / "tasks/bottle/0001/task.json").read_bytes()
    line.override("bottle", {"threshold": 3.2})
    line.override("bottle", {"false_alarm_rate": 0.01})
    assert line.read_task("bottle").overrides == {"threshold": 3.2, "false_alarm_rate": 0.01}
    line.override("bottle", {"threshold": None})
    assert line.read().tasks[0].overrides == {"false_alarm_rate": 0.01}
    assert (line.path / "tasks/bottle/0001/task.json").read_bytes() == version
    with pytest.raises(LineError, match="JSON"):
        line.override("bottle", {"threshold": float("inf")})


def test_a_transaction_is_one_step(line, monkeypatch):
    replaced = []
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda *paths: (replaced.append(paths), replace(*paths)))
    with line.transaction() as change:
        change.put(record("cable"))
        change.put(record("bottle", 2.0))
        assert line.put(record("bottle", 3.0)) == "0003"
        change.override("bottle", {"threshold": 1})
        change.remove("cable")
        change.put(record("screw"))
        assert names(line) == ["bottle"]
        assert value(line) == 1.0
    assert len(replaced) == 1
    assert (names(line), value(line)) == (["bottle", "screw"], 3.0)
    assert line.versions("bottle") == ["0001", "0002", "0003"]
    assert not debris(line)


def remove_and_fail(store):
    with store.transaction() as change:
        change.put(record("cable"))
        change.remove("bottle")
        raise ZeroDivisionError


def test_a_failed_transaction_changes_nothing(line):
    before = snapshot(line)
    with pytest.raises(ZeroDivisionError):
        remove_and_fail(line)
    assert snapshot(line) == before
    assert not debris(line)
    assert not (line.path / "tasks/cable").exists()
    line.put(record("cable"))
    assert names(line) == ["bottle", "cable"]


def test_replacing_a_product_from_scratch(line):
    line.override("bottle", {"threshold": 1})
    with line.transaction() as change:
        change.remove("bottle")
        change.put(record("bottle", 7.0))
    assert value(line) == 7.0
    assert line.read_task("bottle").overrides == {}
    assert line.versions("bottle") == ["0001", "0002"]


@pytest.mark.parametrize(
    "broken",
    [
        TaskRecord("x", None, {"a": [1, 2]}, {}),
        TaskRecord("x", None, {"a": torch.zeros(2).to_sparse()}, {}),
        TaskRecord("x", None, {}, {"a": torch.zeros(1)}),
        TaskRecord("x", None, {}, {"a": "\ud800"}),
        TaskRecord("x", None, {}, {}, {"threshold": float("nan")}),
    ],
)
def test_what_cannot_be_written_is_refused(line, broken):
    before = snapshot(line)
    with pytest.raises(LineError, match="'x' cannot be written"):
        line.put(broken)
    assert snapshot(line) == before
    assert not debris(line)


# Other lines


def other_line(tmp_path, base=BASE):
    other = LineStore(tmp_path / "other")
    other.create({}, base, fingerprint=fingerprint(base), tasks=[record("cable", 8.0)])
    return other


def test_adopt(line, tmp_path):
    source = other_line(tmp_path).path / "tasks/cable/0001"
    assert line.adopt(source) == "0001"
    assert line.adopt(source, "kabel") == "0001"
    assert line.adopt(source, "bottle") == "0002"
    assert names(line) == ["bottle", "cable", "kabel"]
    assert value(line, "kabel") == 8.0
    copied = line.path / "tasks/cable/0001/expert.safetensors"
    assert copied.read_bytes() == (source / "expert.safetensors").read_bytes()


def test_adopt_refuses_another_base_damage_and_foreign_folders(line, tmp_path):
    other = other_line(tmp_path, {"flow.weight": torch.ones(1)})
    before = snapshot(line)
    with pytest.raises(LineError, match="another base.*" + PRINT[:16]):
        line.adopt(other.path / "tasks/cable/0001")
    shutil.rmtree(other.path)
    source = other_line(tmp_path).path / "tasks/cable/0001"
    with pytest.raises(LineError, match=r"task\.json"):
        line.adopt(source.parent)
    flip(source / "expert.safetensors")
    with pytest.raises(LineError, match="SHA-256"):
        line.adopt(source)
    assert snapshot(line) == before


def test_put_refuses_a_product_of_another_base(line):
    assert line.put(record("cable"), fingerprint=PRINT) == "0001"
    with pytest.raises(LineError, match="another base"):
        line.put(record("screw"), fingerprint="f" * 64)
    assert names(line) == ["bottle", "cable"]


def test_a_version_of_another_base_is_not_read_nor_pointed_to(line, tmp_path):
    other = other_line(tmp_path, {"flow.weight": torch.ones(1)})
    shutil.copytree(other.path / "tasks/cable/0001", line.path / "tasks/bottle/0002")
    with pytest.raises(LineError, match="another base"):
        line.point("bottle", "0002")
    edit(line, lambda document: document["base"].update(fingerprint="0" * 64))
    with pytest.raises(LineError, match="another base"):
        line.read()


# Damage


def flip(path, at=-1):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    "file", ["base.safetensors", "tasks/bottle/0001/expert.safetensors", "tasks/bottle/0001/task.json"]
)
def test_damaged_and_missing_files(line, file):
    flip(line.path / file, 40)
    with pytest.raises(LineError, match=f"{file}.*expected SHA-256 .*found"):
        line.read()
    (line.path / file).unlink()
    with pytest.raises(LineError, match=f"{file}.*found nothing"):
        line.read()
    (line.path / file).mkdir()
    with pytest.raises(LineError, match=f"{file}.*no file"):
        line.read()


def test_bytes_that_are_not_safetensors(line):
    path = line.path / "base.safetensors"
    path.write_bytes(b"\xff" * 40)
    edit(line, lambda document: document["base"].update(sha256=sha256_of(b"\xff" * 40)))
    with pytest.raises(LineError, match="expected safetensors"):
        line.read()


def test_an_index_that_says_something_else_than_was_written_is_refused(line):
    path = line.path / "line.json"
    line.override("bottle", {"threshold": 4.0})
    document = json.loads(path.read_text())
    path.write_text(json.dumps(dict(reversed(document.items()))))  # says the same
    assert line.read_task("bottle").overrides == {"threshold": 4.0}
    path.write_text(path.read_text().replace("4.0", "4.5"))
    for call in (line.read, lambda: line.put(record())):
        with pytest.raises(LineError, match=r"line\.json: damaged or changed: .* without its key 'sha256'"):
            call()
    document = json.loads(path.read_text())
    del document["sha256"]
    path.write_text(json.dumps(document))
    assert line.read_task("bottle").overrides == {"threshold": 4.5}
    line.override("bottle", {"threshold": 5.0, "of channels": {2: 0.1, 10: 0.2}})
    assert "sha256" in json.loads(path.read_text())
    assert line.read_task("bottle").overrides["of channels"] == {"2": 0.1, "10": 0.2}


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"\xff\xfe", b'{"format": NaN}', b"[" * 100_000, b"null"])
def test_truncated_or_foreign_index(line, data):
    (line.path / "line.json").write_bytes(data)
    for call in (line.read, lambda: line.put(record())):
        with pytest.raises(LineError, match=r"line\.json: expected"):
            call()
    assert (line.path / "line.json").read_bytes() == data


def test_every_truncation_of_the_index_is_noticed(line):
    path = line.path / "line.json"
    text = path.read_bytes()
    for end in range(0, len(text) - 2, 7):
        path.write_bytes(text[:end])
        with pytest.raises(LineError):
            line.read()


def test_a_later_format_names_the_library_that_reads_it(line):
    edit(line, lambda document: document.update(format=3, library="9.9", tasks="of another shape"))
    with pytest.raises(LineError, match=r"format 3.*moleflow 9\.9 or later"):
        line.read()
    with pytest.raises(LineError, match="format 3"):
        line.put(record("cable"))


@pytest.mark.parametrize(
    "change",
    [
        {"name": "../../evil"},
        {"name": "a/b"},
        {"name": "Ko\u0308rper"},
        {"name": 7},
        {"version": "../0001"},
        {"version": "1"},
        {"version": "٠٠٠١"},
        {"sha256": None},
        {"overrides": []},
        {"overrides": {"0001": 3}},
    ],
)
def test_unsafe_entries_are_refused(line, change):
    edit(line, lambda document: document["tasks"][0].update(change))
    with pytest.raises(LineError, match=r"line\.json: expected"):
        line.read()


@pytest.mark.parametrize("key", ["format", "settings", "base", "tasks"])
def test_missing_keys(line, key):
    edit(line, lambda document: document.pop(key))
    with pytest.raises(LineError, match=f"expected the key '{key}'"):
        line.read()


def test_unsafe_base_and_twins(line):
    edit(line, lambda document: document["tasks"].append({**document["tasks"][0], "name": "BOTTLE"}))
    with pytest.raises(LineError, match="twice"):
        line.read()
    edit(line, lambda document: document["base"].update(file="../secret"))
    with pytest.raises(LineError, match="secret"):
        line.read()
    edit(line, lambda document: document.update(format=True))
    with pytest.raises(LineError, match="bool"):
        line.read()


@posix
def test_links_out_of_the_line_are_refused(line, tmp_path):
    product = line.path / "tasks/bottle"
    shutil.move(product, tmp_path / "outside")
    product.symlink_to(tmp_path / "outside")
    for call in (line.read, lambda: line.put(record("bottle", 2.0)), lambda: line.point("bottle", "0002")):
        with pytest.raises(LineError):
            call()
    line.remove("bottle")
    assert (tmp_path / "outside/0001/expert.safetensors").exists()
    assert names(line) == []
    shutil.move(line.path / "tasks", tmp_path / "tasks")
    (line.path / "tasks").symlink_to(tmp_path / "tasks")
    (tmp_path / "tasks" / ".tmp-mine").write_text("x")
    with pytest.raises(LineError, match="inside"):
        line.put(record())
    assert [path.name for path in (tmp_path / "tasks").iterdir()] == [".tmp-mine"]


@posix
def test_a_line_behind_a_link_works(line, tmp_path):
    (tmp_path / "link").symlink_to(line.path)
    linked = LineStore(tmp_path / "link")
    linked.put(record("cable"))
    assert names(line) == ["bottle", "cable"]


def test_a_copy_without_empty_folders_works(tmp_path):
    store = LineStore(tmp_path / "line")
    store.create({}, BASE, fingerprint=PRINT)
    (store.path / "tasks").rmdir()
    (store.path / ".lock").unlink()
    store.put(record())
    assert names(store) == ["bottle"]


# Failing disks

CHANGES = {
    "add": lambda store: store.put(record("cable", 2.0)),
    "replace": lambda store: store.put(record("bottle", 2.0)),
    "remove": lambda store: store.remove("bottle"),
    "override": lambda store: store.override("bottle", {"threshold": 2.0}),
    "together": lambda store: together(store),
}


def together(store):
    with store.transaction() as change:
        change.remove("bottle")
        change.put(record("cable", 2.0))
        change.put(record("screw", 2.0))


class Counter:
    """Stands in for os functions and acts at the n-th call of any of them."""

    FUNCTIONS = ("replace", "rename", "fsync", "mkdir", "unlink", "rmdir")

    def __init__(self, act, at):
        self.calls, self.act, self.at = 0, act, at

    def install(self, patch):
        for name in self.FUNCTIONS:
            patch(name, self.wrap(getattr(os, name)))

    def wrap(self, function):
        def counted(*args, **kwargs):
            self.calls += 1
            if self.calls == self.at:
                self.act()
            return function(*args, **kwargs)

        return counted


def fail():
    raise OSError(28, "No space left on device")


def outcome(monkeypatch, counter, call):
    """Return the text of the LineError that the failing disk led to, None if it led to none."""
    with monkeypatch.context() as patch:
        counter.install(lambda name, function: patch.setattr(os, name, function))
        try:
            call()
        except LineError as error:
            return str(error)
    return None


@pytest.mark.parametrize("change", CHANGES)
def test_a_disk_that_fails_at_any_step_leaves_the_line_before_or_after(line, change, monkeypatch):
    before, failures, undone = snapshot(line), 0, 0
    for at in range(1, 100):
        store = LineStore(line.path.with_name(f"copy-{at}"))
        shutil.copytree(line.path, store.path)
        counter = Counter(fail, at)
        error = outcome(monkeypatch, counter, lambda store=store: CHANGES[change](store))
        in_place = error is None or "in place" in error
        assert (snapshot(store) == before) is not in_place
        if error is not None:
            assert "No space left" in error
            failures += 1
            undone += not in_place
        if not in_place:
            assert not debris(store)
        if counter.calls < at:
            break
        store.put(record("later"))
        assert "later" in names(store)
        assert not debris(store)
    assert counter.calls < at
    assert failures == undone + 1
    assert undone >= 2


def test_a_failed_create_leaves_a_place_for_the_next(tmp_path, monkeypatch):
    for at in range(1, 100):
        store = LineStore(tmp_path / f"line-{at}")
        counter = Counter(fail, at)
        error = outcome(monkeypatch, counter, lambda store=store: CREATE(store))
        assert store.exists() is (error is None or "in place" in error)
        if counter.calls < at:
            break
        if not store.exists():
            store.create({}, BASE, fingerprint=PRINT, tasks=[record()])
        assert names(store) == ["bottle"]
    assert counter.calls < at


def test_an_interrupt_just_behind_the_replacement_does_not_break_the_line(line, monkeypatch):
    replace = os.replace

    def interrupted(*paths):
        replace(*paths)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            line.put(record("cable"))
    assert names(line) == ["bottle", "cable"]


def test_a_read_only_folder_is_named(line, monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(files, "open", refuse, raising=False)
    with pytest.raises(LineError, match=r"line-3.*Permission denied"):
        line.put(record("cable"))
    monkeypatch.undo()
    assert names(line) == ["bottle"]


# Readers beside writers


def test_a_read_begins_again_when_a_product_goes_meanwhile(line, monkeypatch):
    line.put(record("cable"))
    load, calls = line_module.load_tensors, []

    def late(root, path, sha256):
        calls.append(path)
        if len(calls) == 1:
            line.remove("bottle")
        return load(root, path, sha256)

    monkeypatch.setattr(line_module, "load_tensors", late)
    assert names(line) == ["cable"]


def test_threads_of_one_store_wait_for_each_other(line):
    def add(name):
        for round_ in range(3):
            line.put(record(name, float(round_)))

    threads = [threading.Thread(target=add, args=(f"p{i}",)) for i in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        line.read()
    assert sorted(names(line)) == ["bottle", "p0", "p1", "p2", "p3"]
    assert line.versions("p3") == ["0001", "0002", "0003"]


def test_lock_is_reentrant_and_busy_for_others(line):
    other = LineStore(line.path)
    with line.lock(), line.lock(timeout=0):
        line.put(record("cable"))
        seen = []

        def attempt():
            with pytest.raises(LineBusyError, match="line-3"), other.lock(timeout=0.1):
                seen.append("entered")
            seen.append("refused")

        thread = threading.Thread(target=attempt)
        thread.start()
        thread.join()
        assert seen == ["refused"]
        with pytest.raises(LineBusyError, match="line-3"), other.lock(timeout=0.1):
            pass
    with other.lock(timeout=0):
        pass


def test_a_stale_lock_file_is_no_obstacle(line):
    (line.path / ".lock").write_text("4711")
    with line.lock(timeout=0):
        pass


# Other processes; the fork server imports torch once and forks the rest


@pytest.fixture(scope="module")
def processes():
    if "forkserver" not in multiprocessing.get_all_start_methods():
        pytest.skip("no fork server here")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["moleflow.store", "pytest"])
    return context


def add_many(path, prefix):
    store = LineStore(path)
    for i in range(5):
        store.put(record(f"{prefix}{i}"))


def test_two_processes_lose_nothing(line, processes):
    workers = [processes.Process(target=add_many, args=(line.path, prefix)) for prefix in "ab"]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    assert sorted(names(line)) == ["a0", "a1", "a2", "a3", "a4", "b0", "b1", "b2", "b3", "b4", "bottle"]


def use_inherited(path, seen):
    """Use a store that was opened before a fork, while the parent holds the lock and a transaction."""
    store = LineStore(path)
    with store.transaction(), store.lock():
        child = os.fork()
        if child == 0:
            try:
                with store.lock(timeout=0.1):
                    os._exit(1)
            except LineBusyError:
                os._exit(7)
        seen.value = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_forked_process_does_not_share_the_lock(line, processes):
    seen = processes.Value("i", 0)
    worker = processes.Process(target=use_inherited, args=(line.path, seen))
    worker.start()
    worker.join(60)
    assert seen.value == 7


def test_a_version_that_never_was_in_use_is_not_offered(line):
    left = line.path / "tasks/bottle/0002"
    shutil.copytree(line.path / "tasks/bottle/0001", left)
    (left / ".tmp-unlisted").touch()
    assert line.versions("bottle") == ["0001"]
    with pytest.raises(LineError, match="no version '0002'"):
        line.point("bottle", "0002")
    assert not left.exists()
    assert line.put(record("bottle", 2.0)) == "0002"


def churn(path, started):
    store = LineStore(path)
    store.put(record("cable"))
    started.set()
    while True:
        store.put(record("bottle", 2.0))
        together(store)
        with store.transaction() as change:
            change.put(record("bottle", 1.0))
            change.put(record("cable"))
            change.remove("screw")


@posix
@pytest.mark.slow
def test_killed_writers_leave_a_whole_line(line, processes):
    for attempt in range(4):
        started = processes.Event()
        worker = processes.Process(target=churn, args=(line.path, started))
        worker.start()
        assert started.wait(60)
        end = time.monotonic() + 0.01 + 0.02 * attempt
        while time.monotonic() < end:
            line.read()
        os.kill(worker.pid, signal.SIGKILL)
        worker.join(60)
        content = line.read()
        assert {task.name for task in content.tasks} in ({"bottle", "cable"}, {"cable", "screw"})
        with line.transaction(timeout=5) as change:
            change.put(record("bottle", 1.0))
            change.put(record("cable", 1.0))
            if "screw" in names(line):
                change.remove("screw")
        assert not debris(line)
        assert not (line.path / "tasks/screw").exists()


def die_at_every_step(path, change, last):
    """Fork a writer for each system call that it will not survive; the writer that survives is the last."""
    for at in range(1, 200):
        store = LineStore(path.with_name(f"copy-{at}"))
        if change != "create":
            shutil.copytree(path, store.path)
        child = os.fork()
        if child == 0:
            counter = Counter(lambda: os.kill(os.getpid(), signal.SIGKILL), at)
            counter.install(lambda name, function: setattr(os, name, function))
            with contextlib.suppress(Exception):
                CHANGES.get(change, CREATE)(store)
                os._exit(0)
            os._exit(1)
        _, status = os.waitpid(child, 0)
        if status == 0:
            last.value = at
            return
        if not os.WIFSIGNALED(status):
            return


def CREATE(store):
    store.create({}, BASE, fingerprint=PRINT, tasks=[record("bottle", 1.0)])


@posix
@pytest.mark.parametrize("change", ["together", "create"])
def test_death_at_every_step_leaves_the_line_before_or_after(line, change, processes):
    before, last = snapshot(line), processes.Value("i", 0)
    worker = processes.Process(target=die_at_every_step, args=(line.path, change, last))
    worker.start()
    worker.join(120)
    assert worker.exitcode == 0
    assert last.value > 10, "no writer came to its end"
    for at in range(1, last.value):
        store = LineStore(line.path.with_name(f"copy-{at}"))
        if change == "create":
            if not store.exists():
                CREATE(store)
            assert snapshot(store) == before or names(store) == ["bottle"]
        else:
            assert snapshot(store) == before or names(store) == ["cable", "screw"]
        store.put(record("later"))
        assert not debris(store)
        assert sorted(path.name for path in (store.path / "tasks").iterdir()) == sorted(names(store))
        assert all(store.versions(name) == ["0001"] for name in names(store))
