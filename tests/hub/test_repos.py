"""One repository, pushed to the test Hub: its content, what is refused, and faults at every call."""

import json

import httpx2
import numpy
import pytest
from huggingface_hub import CommitOperationAdd, constants
from huggingface_hub.errors import HfHubHTTPError
from safetensors.numpy import save_file

from gdzoo.hub import client
from gdzoo.hub.client import PermanentHubError, TemporaryHubError, connect, translated_errors, with_retries
from gdzoo.hub.repos import Target, download, find, local_files, missing, push_repo
from gdzoo.zoo.cards import text_to_image_card
from gdzoo.zoo.folders import write_json
from gdzoo.zoo.names import CARD as CARD_FILE
from gdzoo.zoo.names import RESULTS
from tests.hub.conftest import fill
from tests.hub.folders import CARD, NAME, REPO, RUN, WEIGHTS, assert_pushed_once, content, make_repo, on_hub, push
from tests.zoo.text_to_image import concepts


def test_a_push_is_one_commit_a_tag_and_an_entry_in_the_collection(hub, tmp_path):
    folder = make_repo(tmp_path)
    assert push_repo(connect(), folder, Target()) == REPO
    assert_pushed_once(hub, folder)
    assert hub.commits(REPO)[0].message == f"split-digits: task 2, run {RUN}"
    assert [collection.title for collection in hub.collections()] == ["gdzoo split-digits"]
    (folder / CARD_FILE).write_text("edited here")
    for _ in range(2):
        push_repo(connect(), folder, Target())
    assert len(hub.commits(REPO)) == 2 and len(hub.tags(REPO)) == 1 and len(hub.collections()[0].items) == 1


def test_a_push_completes_one_that_crashed(hub, tmp_path):
    folder = make_repo(tmp_path)
    hub.add_repo(REPO)  # and crashed before the commit
    push_repo(connect(), folder, Target())
    hub.store.repos["model", REPO].tags.clear()  # crashed before the tag
    push_repo(connect(), folder, Target())
    assert_pushed_once(hub, folder)


def test_weights_of_another_run_are_replaced_only_with_overwrite(hub, tmp_path):
    push_repo(connect(), make_repo(tmp_path), Target())
    hub.commit(REPO, {"unet/stale.bin": b"stale"})
    before = on_hub(hub)
    for changes, reason in (
        ({"run": "99999999"}, f"holds run {RUN}, not 99999999: --overwrite_hub"),
        ({"weights": 2.0}, "holds other weights"),
    ):
        folder = make_repo(tmp_path, **changes)
        with pytest.raises(PermanentHubError, match=reason):
            push_repo(connect(), folder, Target())
        assert on_hub(hub) == before
    push_repo(connect(), folder, Target(overwrite=True))
    assert_pushed_once(hub, folder, commits=3)  # the tag moved with the weights


def test_the_tag_of_a_run_is_moved_to_other_weights_only_with_overwrite(hub, tmp_path):
    push_repo(connect(), make_repo(tmp_path), Target())
    hub.commit(REPO, {WEIGHTS: None})
    tags, folder = hub.tags(REPO), make_repo(tmp_path, weights=2.0)  # the same configuration, other bits
    with pytest.raises(PermanentHubError, match=f"{REPO}@run-{RUN} on the Hub holds other weights"):
        push_repo(connect(), folder, Target())
    assert hub.tags(REPO) == tags and len(hub.commits(REPO)) == 3
    push_repo(connect(), folder, Target(overwrite=True))
    assert_pushed_once(hub, folder, commits=3)


def test_a_repository_with_weights_of_others_is_not_changed(hub, tmp_path):
    hub.add_repo(REPO)
    hub.commit(REPO, {"model.safetensors": b"theirs"})
    with pytest.raises(PermanentHubError, match="holds other weights"):
        push_repo(connect(), make_repo(tmp_path), Target())


def test_a_card_edited_on_the_hub_is_kept(hub, tmp_path):
    folder = make_repo(tmp_path)
    push_repo(connect(), folder, Target())
    hub.commit(REPO, {CARD_FILE: b"edited by hand"})
    push_repo(connect(), folder, Target())
    assert on_hub(hub)[CARD_FILE] == b"edited by hand" and len(hub.commits(REPO)) == 3


def test_other_repositories_are_renamed_to_the_namespace(hub, tmp_path):
    folder = make_repo(tmp_path)
    for _ in range(2):
        assert push_repo(connect(), folder, Target("lab")) == f"lab/{NAME}"
    files = on_hub(hub, f"lab/{NAME}")
    assert json.loads(files[RESULTS])["base_model"] == "lab/split-digits-task1"
    assert files[CARD_FILE].decode() == CARD.replace("model: gdzoo/", "model: lab/")
    assert len(hub.commits(f"lab/{NAME}")) == 2 and hub.collections()[0].namespace == "lab"


def test_private_stays_private(hub, tmp_path):
    folder = make_repo(tmp_path)
    push_repo(connect(), folder, Target(private=True))
    assert hub.store.repos["model", REPO].private and hub.collections()[0].private
    hub.store.repos["model", REPO].private = False
    with pytest.raises(PermanentHubError, match="is public"):
        push_repo(connect(), folder, Target(private=True))


def test_a_commit_of_another_machine_is_compared_before_trying_again(hub, tmp_path):
    """It arrives between the comparison and the commit."""
    folder, api = make_repo(tmp_path), connect()
    original = api.create_commit

    def late(*args, **kwargs):
        api.create_commit = original
        hub.commit(REPO, {"model.safetensors": b"theirs"})
        return original(*args, **kwargs)

    api.create_commit = late
    with pytest.raises(TemporaryHubError, match="412"):
        push_repo(api, folder, Target())
    with pytest.raises(PermanentHubError, match="holds other weights"):
        push_repo(api, folder, Target())
    assert on_hub(hub) == {"model.safetensors": b"theirs"}


def test_hashes_are_those_of_the_hub(hub, tmp_path):
    """For regular files and LFS files, in memory and on disk."""
    files = {"a.txt": b"text", "b.safetensors": b"weights", "c.safetensors": tmp_path / "c", "d.txt": tmp_path / "d"}
    (tmp_path / "c").write_bytes(b"more weights")
    (tmp_path / "d").write_bytes(b"more text")
    api = connect()
    api.create_repo(REPO)
    api.create_commit(REPO, [CommitOperationAdd(*item) for item in files.items()], commit_message="Files")
    info = api.model_info(REPO, files_metadata=True)
    assert [sibling.rfilename for sibling in info.siblings if sibling.lfs] == ["b.safetensors", "c.safetensors"]
    assert missing(files, info) == []
    assert missing({path: b"other" for path in [*files, "e"]}, info) == [*files, "e"]


# Faults

FAULTS = ("429", "500", "503", "html", "drop", "lost")


@pytest.mark.parametrize("times", [1, None], ids=["once", "always"])
@pytest.mark.parametrize("kind", FAULTS)
def test_a_fault_at_any_call_leaves_a_folder_pushed_or_waiting(hub, tmp_path, pauses, kind, times):
    """Never lost, pushed twice or in part; and the next push completes it."""
    folder = make_repo(tmp_path)
    push([folder])
    calls = [request.kind for request in hub.requests]
    assert calls.count("commit") == 1 and len(calls) > 10
    for number, call in enumerate(calls if times else dict.fromkeys(calls)):
        fill(hub)
        match, skip = ("*", number) if times else (call, 0)
        fault = hub.fault(match, kind, times, skip=skip)
        pushes = push([folder])
        assert fault.hits, call
        assert not pushes.failed
        committed = hub.commits(REPO)[:-1] if REPO in hub.repos() else []
        assert len(committed) <= 1
        if committed:
            assert on_hub(hub) == content(folder)
        else:
            assert pushes.waiting, call
        if times == 1:
            assert not pushes.waiting, call
        hub.clear_faults()
        assert not push([folder]).waiting
        assert_pushed_once(hub, folder)


@pytest.mark.parametrize("kind", FAULTS)
def test_a_fault_while_weights_are_replaced_leaves_the_old_or_the_new_ones(hub, tmp_path, pauses, kind):
    old = make_repo(tmp_path / "old", weights=0.5)
    folder, target = make_repo(tmp_path), Target(overwrite=True)
    number, hits = 0, 1
    while hits:
        fill(hub)
        push([old])
        fault = hub.fault("*", kind, skip=number)
        assert not push([folder], target).waiting
        assert_pushed_once(hub, folder, commits=2)
        number, hits = number + 1, fault.hits
    assert number > 10


def test_every_call_has_a_time_limit(hub, tmp_path, monkeypatch):
    limits = []
    send = httpx2.HTTPTransport.handle_request

    def recorded(self, request):
        limits.append(request.extensions["timeout"]["read"])
        return send(self, request)

    monkeypatch.setattr(httpx2.HTTPTransport, "handle_request", recorded)
    push_repo(connect(), make_repo(tmp_path), Target())
    assert len(limits) > 10 and set(limits) == {client.TIMEOUT}
    monkeypatch.setattr(client, "TIMEOUT", 0.05)
    hub.fault("info", "stall")
    with pytest.raises(TemporaryHubError, match="ReadTimeout"):
        push_repo(connect(), make_repo(tmp_path), Target())


def test_offline_mode_is_respected(hub, monkeypatch, pauses):
    """If this fails, the request hooks of get_session() no longer check HF_HUB_OFFLINE, and connect() has to."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(TemporaryHubError, match="OfflineModeIsEnabled"):
        with_retries(connect().whoami)
    assert not hub.requests


@pytest.mark.parametrize("status", [400, 401, 403, 404, 408, 409, 412, 429, 500, 502, 503, 504])
def test_which_answers_are_worth_another_attempt(hub, status):
    hub.fault("whoami", str(status))
    expected = TemporaryHubError if status in (408, 412, 429) or status >= 500 else PermanentHubError
    with pytest.raises(expected) as error, translated_errors():
        connect().whoami()
    assert isinstance(error.value.__cause__, HfHubHTTPError) and "\n" not in str(error.value)


def test_calls_before_training_are_tried_three_times(hub, pauses):
    fault = hub.fault("whoami", "503", times=2)
    assert with_retries(connect().whoami)["name"] == "gdzoo"
    assert fault.hits == 2 and pauses == [1, 3]
    hub.fault("whoami", "drop", times=None)
    with pytest.raises(TemporaryHubError):
        with_retries(connect().whoami)
    assert len(hub.requests) == 6


def test_a_text_to_image_model_is_pushed_and_downloaded_as_it_is(hub, tmp_path):
    folder = tmp_path / "zoo" / "gdzoo" / "pets-task2"
    for name in (WEIGHTS, "lora/pytorch_lora_weights.safetensors", "text_encoder/model.safetensors"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        save_file({"w": numpy.ones(8)}, folder / name)
    for name in ("tokenizer/merges.txt", "tokenizer/vocab.json", "samples/task1-0.png", "samples.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"{}")
    results = concepts(2, run=RUN)
    write_json(folder / RESULTS, results)
    (folder / CARD_FILE).write_text(text_to_image_card("gdzoo/pets-task2", results, {"resolution": 8}, "train"))
    push_repo(connect(), folder, Target())
    assert on_hub(hub, "gdzoo/pets-task2") == content(folder)
    assert hub.commits("gdzoo/pets-task2")[0].message == f"pets: task 2, run {RUN}"
    api = connect()
    download(api, find(api, "gdzoo/pets-task2"), tmp_path / "down")
    assert content(tmp_path / "down") == content(folder)
    pushed = local_files(folder, "me", "pets")  # names of other models of the chain follow
    assert json.loads(pushed[RESULTS])["base_model"] == "me/pets-task1"
    assert json.loads(pushed[RESULTS])["pretrained"] == "stable-diffusion-v1-5/stable-diffusion-v1-5"
    assert b"base_model: me/pets-task1" in pushed[CARD_FILE]
