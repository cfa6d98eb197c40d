from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import Complain, Load


def test_the_environment_is_put_into_the_text_before_it_is_yaml(load_text: Load) -> None:
    source = """
        globalTTL: ${env.N}
        includeAliasesInList: ${env.B}
        apiKeys: [${env.K}, "${env.K}2"]
        models: {"${env.ID}": {cmd: "$HOME ~ ${env.A1_}", proxy: http://h}}
    """
    config = load_text(source, environ={"N": "7", "B": "true", "K": "key", "ID": "x/y", "A1_": ""}).config
    assert (config.global_ttl, config.include_aliases_in_list) == (7, True)
    assert config.api_keys == ("key", "key2")
    assert config.models["x/y"].cmd == "$HOME ~ "


def test_every_variable_that_is_not_set_is_named_with_its_file(complaints: Complain) -> None:
    found = complaints("a: ${env.X}\n", "b: ${env.Y}${env.Z}\n")
    assert [problem.partition(";")[0] for problem in found] == [
        "a.yaml: environment variable 'X' is not set",
        "b.yaml: environment variable 'Y' is not set",
        "b.yaml: environment variable 'Z' is not set",
    ]


def test_a_variable_named_in_a_comment_need_not_exist(load_text: Load) -> None:
    assert load_text("# ${env.X}\nglobalTTL: 1 # ${env.Y}\n").config.global_ttl == 1


def test_in_text_that_is_no_yaml_yet_comments_count(complaints: Complain) -> None:
    assert any(
        "'Y' is not set" in problem for problem in complaints("apiKeys: [${env.X}] # ${env.Y}", environ={"X": ""})
    )


@pytest.mark.parametrize("value", ["a\nb", "a\rb", "a\0b"])
def test_a_variable_may_not_break_the_line(complaints: Complain, value: str) -> None:
    what = "environment variable 'X' contains newlines or null bytes which are not allowed in YAML substitution"
    assert complaints("a: ${env.X}", environ={"X": value}) == [f"a.yaml: {what}"]


def test_quotes_and_backslashes_of_a_variable_are_escaped(load_text: Load) -> None:
    config = load_text('apiKeys: ["${env.X}", ${env.X}]', environ={"X": 'a"\\b'}).config
    assert config.api_keys == ('a"\\b', 'a\\"\\\\b')


def test_a_variable_may_refer_to_another(load_text: Load) -> None:
    assert load_text("globalTTL: ${env.A}", environ={"A": "${env.B}", "B": "9"}).config.global_ttl == 9


def test_a_missing_variable_hides_no_other_problem_and_makes_none(complaints: Complain) -> None:
    source = "globalTTL: ${env.X}\nstartPort: 0\nmodels: {a: {cmd: 'x ${env.X}', proxy: 'http://h:1', ttl: '5'}}"
    assert complaints(source) == [
        "a.yaml: environment variable 'X' is not set; set it, take ${env.X} out, or if it is a credential: "
        "llamaswapd check -credentials DIRECTORY",
        "a.yaml: models.a.ttl: yaml: unmarshal errors: line 3: cannot unmarshal !!str `5` into int; "
        "write a whole number, without quotes",
        "a.yaml: startPort: startPort must be greater than 1; it is 0",
    ]
