"""Push a Space to the test Hub."""

from huggingface_hub import SpaceCard

from gdzoo.hub.__main__ import main
from gdzoo.zoo.names import CARD
from tests.hub.folders import SPACE_CARD, make_space


def test_a_space_holds_exactly_the_folder(hub, tmp_path, capsys):
    folder = make_space(tmp_path)
    (folder / "old.py").write_text("print()")
    arguments = ["push-space", str(folder), "--repo_id", "gdzoo/compare"]
    for files, commits in (({"old.py"}, 2), ({"old.py"}, 2), ({"new.py"}, 3), ({"new.py"}, 3)):
        if "new.py" in files and (folder / "old.py").exists():
            (folder / "old.py").rename(folder / "new.py")
        assert main(arguments) == 0
        assert set(hub.files("gdzoo/compare", repo_type="space")) == {".gitattributes", "app.py", CARD} | files
        assert len(hub.commits("gdzoo/compare", "space")) == commits
    assert "No files have been modified" not in capsys.readouterr().err


def test_a_space_of_others_is_replaced_only_with_overwrite(hub, tmp_path, capsys):
    arguments = ["push-space", str(make_space(tmp_path)), "--repo_id", "gdzoo/compare"]
    hub.add_repo("gdzoo/compare", "space")
    hub.commit("gdzoo/compare", {"app.py": b"theirs"}, repo_type="space")
    assert main(arguments) == 2
    assert "--repo_id gdzoo/compare is a Space that gdzoo did not push" in capsys.readouterr().err
    assert hub.files("gdzoo/compare", repo_type="space")["app.py"] == b"theirs"
    assert main([*arguments, "--overwrite_hub"]) == 0
    hub.commit("gdzoo/compare", {"app.py": b"by hand"}, repo_type="space")
    assert main(arguments) == 0  # it is gdzoo's now
    assert hub.files("gdzoo/compare", repo_type="space")["app.py"] == b"print()"


def test_the_card_names_the_owners_models_that_are_on_the_hub(hub, tmp_path):
    folder, arguments = make_space(tmp_path), ["push-space", str(tmp_path / "compare"), "--repo_id", "lab/compare"]
    assert main(arguments) == 0
    card = SpaceCard(hub.files("lab/compare", repo_type="space")[CARD].decode())
    assert not card.data.get("models") and not card.data.get("preload_from_hub")
    for repo_id in ("lab/split-digits-task5", "others/gdzoo-model"):
        hub.add_repo(repo_id)
    for _ in range(2):
        assert main(arguments) == 0
    assert (folder / CARD).read_text() == SPACE_CARD and len(hub.commits("lab/compare", "space")) == 3
    card = SpaceCard(hub.files("lab/compare", repo_type="space")[CARD].decode())
    assert card.data.models == ["lab/split-digits-task5", "others/gdzoo-model"]
    assert card.data.preload_from_hub == ["lab/split-digits-task5 model_index.json"]
    assert card.data.python_version == "3.11" and card.text == "\ngdzoo/split-digits-task5\n"
