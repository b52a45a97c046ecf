import asyncio
import re
from base64 import b64encode
from hashlib import sha256

from lit_ft.serving.page import page_route


def page():
    response = asyncio.run(page_route().endpoint(None))
    return response.body.decode(), response.headers["content-security-policy"]


def test_policy_names_the_hash_of_each_script_and_style_and_allows_no_other():
    text, policy = page()
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    for kind, count in (("script", 1), ("style", 2)):
        inside = re.findall(f"<{kind}>(.*?)</{kind}>", text, re.DOTALL)
        hashes = [f"'sha256-{b64encode(sha256(one.encode()).digest()).decode()}'" for one in inside]
        assert (rules[f"{kind}-src"].split(), len(hashes)) == (hashes, count)
        assert len(re.findall(f"<{kind}", text)) == count
    assert (rules["default-src"], rules["connect-src"], rules["frame-ancestors"]) == ("'none'", "'self'", "'none'")
    assert "unsafe" not in policy


def test_page_loads_nothing_and_makes_no_markup_of_names():
    text, _ = page()
    assert not re.findall(r"https?:|//[a-z]|\bsrc=|\bhref=| style=| on[a-z]+=", text)
    assert not re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", text)
    used = set(re.findall(r'find\("(\w+)"\)', text)) | {"files", "shot"}
    assert used <= set(re.findall(r"id='(\w+)'", text))
