"""Which configuration the launcher believes."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path
from typing import Any

import pytest

from llamaswapd.config.schema import Container, ModelConfig
from llamaswapd.errors import ConfigError
from llamaswapd.launcher.guard import check_files, check_users
from llamaswapd.systemd import sandbox
from llamaswapd.systemd.unit import Host

NOBODY = 65534

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="giving files away takes root")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    folder = tmp_path / "etc" / "llamaswapd"
    folder.mkdir(parents=True, mode=0o755)
    (folder / "config.yaml").write_text("models: {}")
    (folder / "config.yaml").chmod(0o640)
    return folder / "config.yaml"


def check(path: Path) -> None:
    check_files([path], os.geteuid())


def refused(path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        check(path)
    return str(caught.value)


class TestFiles:
    def test_of_their_owner_alone_are_believed(self, file: Path) -> None:
        check(file)

    def test_that_do_not_exist_are_left_to_whoever_reads_them(self, file: Path) -> None:
        check(file.with_name("other.yaml"))
        check(file.parent.parent / "nowhere" / "other.yaml")

    @needs_root
    def test_of_another_user_are_not(self, file: Path) -> None:
        os.chown(file, NOBODY, -1)
        assert re.search(rf"{file} belongs to user nobody, not to root.*; chown root {file}$", refused(file))

    @pytest.mark.parametrize(("mode", "who"), [(0o660, "its group"), (0o646, "everybody"), (0o666, "everybody")])
    def test_that_others_can_write_are_not(self, file: Path, mode: int, who: str) -> None:
        file.chmod(mode)
        assert f"can be written by {who} (mode {mode:04o})" in refused(file)
        assert f"chmod go-w {file}" in refused(file)

    @pytest.mark.parametrize("depth", [0, 1])
    def test_in_a_folder_that_others_can_write_are_not(self, file: Path, depth: int) -> None:
        folder = file.parents[depth]
        folder.chmod(0o775)
        assert f"{folder} can be written by its group" in refused(file)

    @needs_root
    def test_in_a_folder_of_another_user_are_not(self, file: Path) -> None:
        os.chown(file.parent.parent, NOBODY, -1)
        assert f"{file.parent.parent} belongs to user nobody" in refused(file)

    def test_may_be_below_a_sticky_folder(self, file: Path) -> None:
        file.parent.parent.chmod(0o1777)
        check(file)

    def test_are_not_taken_from_a_sticky_folder_where_anybody_can_put_some(self, file: Path) -> None:
        file.parent.chmod(0o1777)
        assert "can be written by everybody" in refused(file.parent)

    def test_behind_a_link_are_judged_where_they_are_and_where_the_link_is(self, file: Path, tmp_path: Path) -> None:
        (tmp_path / "open").mkdir()
        (tmp_path / "open" / "link.yaml").symlink_to("../etc/llamaswapd/config.yaml")
        check(tmp_path / "open" / "link.yaml")
        (tmp_path / "open").chmod(0o777)
        assert f"{tmp_path}/open can be" in refused(tmp_path / "open" / "link.yaml")
        (tmp_path / "open").chmod(0o755)
        file.parent.chmod(0o777)
        assert f"{file.parent} can be" in refused(tmp_path / "open" / "link.yaml")

    def test_behind_a_linked_folder_are_judged_where_they_are(self, file: Path, tmp_path: Path) -> None:
        (tmp_path / "link").symlink_to(file.parent.parent)
        file.chmod(0o666)
        assert f"{file} can be" in refused(tmp_path / "link" / "llamaswapd" / "config.yaml")

    def test_above_a_linked_folder_are_judged_where_they_are(self, file: Path, tmp_path: Path) -> None:
        (tmp_path / "link").symlink_to(file.parent)
        file.parent.with_name("other.yaml").write_text("models: {}")
        file.parent.with_name("other.yaml").chmod(0o666)
        assert f"{tmp_path}/etc/other.yaml can be" in refused(tmp_path / "link" / ".." / "other.yaml")

    def test_may_be_named_from_here(self, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(file.parent)
        check(Path(file.name))
        file.chmod(0o666)
        assert f"{file} can be" in refused(Path(file.name))

    @needs_root
    def test_behind_a_link_of_another_user_are_not_believed(self, file: Path, tmp_path: Path) -> None:
        (tmp_path / "link.yaml").symlink_to(file)
        os.lchown(tmp_path / "link.yaml", NOBODY, -1)
        assert f"{tmp_path}/link.yaml belongs to user nobody" in refused(tmp_path / "link.yaml")

    def test_behind_a_link_to_where_the_launcher_may_not_look_are_not_believed(
        self, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        home = tmp_path / "home"
        (tmp_path / "link.yaml").symlink_to(home / "joe" / "models.yaml")
        lstat = os.lstat

        def hidden(path: str) -> os.stat_result:
            if str(path).startswith(f"{home}/"):
                raise PermissionError(errno.EACCES, "Permission denied", path)
            return lstat(path)

        monkeypatch.setattr(os, "lstat", hidden)
        assert re.search(
            r"link.yaml: leads to where the launcher may not look, such as /home", refused(tmp_path / "link.yaml")
        )

    def test_behind_links_without_an_end_end_the_search(self, tmp_path: Path) -> None:
        (tmp_path / "a").symlink_to("b")
        (tmp_path / "b").symlink_to("a")
        check(tmp_path / "a")


def users(defaults: bool = True, **values: Any) -> None:
    model = ModelConfig(id="m", **{"cmd": "server", **values})
    check_users({"m": model}, Host(257, "/", defaults=sandbox.defaults(()) if defaults else {}))


class TestUsers:
    @pytest.mark.parametrize(
        "settings",
        [
            {},
            {"User": ("alice",)},
            {"DynamicUser": ("no",), "User": ("alice",)},
            {"User": ("root",)},
            {"User": ("alice", "0")},
            {"User": ("",)},
        ],
    )
    def test_a_model_is_nobody_who_matters_or_root_by_the_files_words(self, settings: dict[str, Any]) -> None:
        users(systemd=settings)

    @pytest.mark.parametrize(
        "settings",
        [
            {"DynamicUser": ("no",)},
            {"DynamicUser": ("FALSE",)},
            {"DynamicUser": ("off",), "User": ("root", "")},
        ],
    )
    def test_a_model_that_would_be_root_without_a_word_is_refused(self, settings: dict[str, Any]) -> None:
        with pytest.raises(ConfigError, match=r"^models.m.systemd: model .m. would run as root; give it a User:"):
            users(systemd=settings)

    def test_without_defaults_a_model_would_be_root(self) -> None:
        with pytest.raises(ConfigError, match="write User: root if that is what you want"):
            users(defaults=False)

    def test_an_engines_client_is_root_only_in_a_block_of_its_own(self) -> None:
        with pytest.raises(ConfigError, match="would run as root"):
            users(cmd="podman run image")
        users(cmd="podman run image", podman=Container(image="image"))
