import re
import time

import pytest

from samparser.methods.patterns import check_patterns

NAMES = [f"vision_encoder.layers.{i}.attn.{name}" for i in range(12) for name in ("qkv", "proj")]


@pytest.mark.parametrize(
    "pattern",
    [
        r"vision_encoder\.neck\.conv[12]",
        r".*\.attn\.(qkv|proj)",
        r".*\.layers\.\d+\.(attn|mlp)\..*(q|v)$",
        r"(?:.*\.)?lin[12]",
        r"(vision_encoder|mask_decoder).*\.lin\d+",
        "all-linear",
        "",
    ],
)
def test_expressions_as_people_write_them_pass_and_are_fast(pattern):
    check_patterns({"target_modules": pattern, "rank_pattern": {pattern: 3}}, "file")
    start = time.perf_counter()
    for name in NAMES:
        re.fullmatch(pattern, name)
    assert time.perf_counter() - start < 0.5


@pytest.mark.parametrize(
    "pattern",
    [
        r"(a|a|v)*(.*.*.*.*.*.*.*.*)*x$",
        r"(.*)*x$",
        r"(\w+)+\.$",
        r"([a-z_]+)*\d$",
        r"(ab|a|b)*x$",
        r"(.?){50}x(.*)*",
        r".*.*.*.*.*.*x",
        r"(?=(.*)*x).*",
        r"(?:(?P<a>v+)+)+!",
        r"(a{1,90}){1,90}x",
    ],
)
@pytest.mark.parametrize("field", ["target_modules", "exclude_modules", "rank_pattern"])
def test_expressions_that_could_take_for_ever_are_refused_by_field(pattern, field):
    given = {pattern: 3} if field == "rank_pattern" else pattern
    with pytest.raises(ValueError, match=rf"file: {field} has the regular expression .* List the modules by"):
        check_patterns({field: given}, "file")


@pytest.mark.parametrize("pattern", ["(((", "[", "*", "(?P<1>a)", "(" * 5000 + ")" * 5000])
def test_what_is_no_expression_is_refused(pattern):
    with pytest.raises(ValueError, match=r"file is damaged: alpha_pattern has .* no regular expression"):
        check_patterns({"alpha_pattern": {pattern: 3}}, "file")


@pytest.mark.parametrize("content", [{}, {"target_modules": ["((("]}, {"target_modules": None, "rank_pattern": [1]}])
def test_lists_of_names_are_no_expressions(content):
    check_patterns(content, "file")
