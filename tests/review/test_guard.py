"""What the review's server refuses: everything that is not its own page, on this machine, with the token."""

import contextlib
import http.client
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from reviewing import decisions_in, make_review_run, served

from engines.review.guard import MOST_BODY
from engines.review.server import OpenReview

SECRET = "nobody may read this"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("guard")
    (root / "secret.txt").write_text(SECRET)
    return make_review_run(root / "run", 10)


@pytest.fixture(scope="module")
def review(run: Path) -> Iterator[OpenReview]:
    with served(run) as one:
        yield one


class Answer:
    def __init__(self, review: OpenReview, path: str, method: str = "GET", body: bytes | None = None, **headers: Any):
        url = urlsplit(review.url)
        assert url.hostname == "127.0.0.1"
        connection = http.client.HTTPConnection("127.0.0.1", url.port or 0, timeout=20)
        connection.putrequest(method, path, skip_host="host" in headers)
        for name, value in headers.items():
            connection.putheader(name.replace("_", "-"), value)
        if body is not None and "content_length" not in headers:
            connection.putheader("content-length", str(len(body)))
        connection.endheaders()
        if body:
            connection.send(body)
        answer = connection.getresponse()
        self.status, self.body = answer.status, answer.read().decode("utf-8", "replace")
        self.headers = {name.lower(): value for name, value in answer.getheaders()}
        connection.close()


def inside(review: OpenReview, path: str) -> str:
    return urlsplit(review.url).path + path


def post(review: OpenReview, name: str, value: object) -> Answer:
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return Answer(review, inside(review, f"api/{name}"), "POST", data, content_type="application/json")


def test_the_page_is_given_with_the_token(review: OpenReview) -> None:
    answer = Answer(review, inside(review, ""))
    assert (answer.status, "<title>dengine review" in answer.body) == (200, True)
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert answer.headers["referrer-policy"] == "no-referrer"


@pytest.mark.parametrize("path", ["/", "/x/", "/api/about", "/wrong-token/api/about", "//", "/%00/", "/%c3%a9/"])
def test_without_the_token_nothing_is_given(review: OpenReview, path: str) -> None:
    answer = Answer(review, path)
    assert (answer.status, len(answer.body.splitlines())) == (403, 1)


def test_a_token_that_is_nearly_right_is_wrong(review: OpenReview) -> None:
    path = urlsplit(review.url).path
    for near in (path[:-2] + "/", path[:-1] + "A/", path.upper(), "/" + path[1:].strip("/")[::-1] + "/"):
        assert Answer(review, near + "api/about").status == 403


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example:80", "", "192.168.0.1"]
)
def test_another_host_is_refused(review: OpenReview, host: str) -> None:
    assert Answer(review, inside(review, "api/about"), host=host).status == 403


def test_localhost_is_this_machine_too(review: OpenReview) -> None:
    port = urlsplit(review.url).port
    assert Answer(review, inside(review, "api/about"), host=f"localhost:{port}").status == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example"}, {"origin": "null"}, {"origin": "http://127.0.0.1:1"},
        {"sec_fetch_site": "cross-site"}, {"sec_fetch_site": "same-site"},
    ],
)  # fmt: skip
def test_another_origin_is_refused(review: OpenReview, headers: dict[str, Any]) -> None:
    assert Answer(review, inside(review, "api/about"), **headers).status == 403
    assert Answer(review, inside(review, "api/undo"), "POST", b'{"id": "decision-1"}', **headers).status == 403


@pytest.mark.parametrize(
    "path",
    [
        "../secret.txt", "..%2fsecret.txt", "%2e%2e/secret.txt", "..%5csecret.txt", "./../../etc/passwd",
        "//etc/passwd",
        "image/../secret.txt", "image/..%2f..%2fsecret.txt", "thumb/-1", "thumb/99999999999999999999", "image/0/../..",
        "image/1e3", "crop/0/../../secret.txt", "crop/0/a,b,c,d", "crop/0/nan,0,1,1", "crop/0/1,2", "app.py",
        "guard.py",
        "static/app.js", "style.css%00", "reference/0",
    ],
)  # fmt: skip
def test_no_path_leads_anywhere_else(review: OpenReview, path: str) -> None:
    answer = Answer(review, inside(review, path))
    assert answer.status in (403, 404)
    assert SECRET not in answer.body
    assert "root:" not in answer.body


def test_a_picture_that_is_a_link_out_of_a_dataset_is_not_listed(tmp_path: Path) -> None:
    """A dataset's reader follows no link out of it, so a review has no number for one."""
    from made_datasets import coco_content, picture, write_coco_file

    data = tmp_path / "data"
    for name in ("a.png", "b.png"):
        picture(data / "images" / name)
    outside = picture(tmp_path / "outside.png")
    (data / "images" / "b.png").unlink()
    (data / "images" / "b.png").symlink_to(outside)
    write_coco_file(data / "annotations.json", coco_content())
    with served(data, skip_bad=True) as review:
        assert json.loads(Answer(review, inside(review, "api/about")).body)["images"] == 1
        assert Answer(review, inside(review, "image/1")).status == 404


def test_huge_bodies_are_refused_before_they_are_read(review: OpenReview) -> None:
    path = inside(review, "api/decide")
    claimed = Answer(review, path, "POST", b"", content_length=str(MOST_BODY + 1), content_type="application/json")
    assert claimed.status == 413
    assert Answer(review, path, "POST", b"", content_length="9" * 60, content_type="application/json").status in (
        400,
        413,
    )


def test_a_huge_body_without_a_length_is_cut_off(review: OpenReview) -> None:
    url = urlsplit(review.url)
    connection = http.client.HTTPConnection("127.0.0.1", url.port or 0, timeout=20)
    chunks = (b"x" * 65536 for _ in range(40))
    headers = {"content-type": "application/json"}
    with contextlib.closing(connection), contextlib.suppress(OSError):  # it may hang up while more is sent
        connection.request("POST", url.path + "api/decide", body=chunks, headers=headers, encode_chunked=True)
        answer = connection.getresponse()
        assert answer.status == 413
        answer.close()
    assert Answer(review, inside(review, "api/about")).status == 200


@pytest.mark.parametrize(
    "value",
    [
        b"", b"{", b"[]", b"null", b"[" * 50_000, b"\xff", {}, {"decisions": []}, {"decisions": [{}]},
        {"decisions": [{"id": "decision-1", "do": "keep", "images": ["../secret.txt"]}]},
        {"decisions": [{"id": "decision-1", "do": "keep", "images": ["00000777.jpg"]}]},
        {"decisions": [{"id": "decision-1", "do": "draw", "images": ["00000000.jpg"], "box": [0, 0, 9, 9],
                        "label": "?"}]},
        {"decisions": [{"id": "decision-1", "do": "draw", "images": ["00000000.jpg"], "box": [900, 0, 950, 9],
                        "label": "cell"}]},
        {"decisions": [{"id": "decision-1", "do": "undo", "of": "decision-0"}]},
        {"decisions": [{"id": "decision-1\n", "do": "keep", "images": ["00000000.jpg"]}]},
    ],
)  # fmt: skip
def test_what_is_no_decision_is_refused_in_a_line_and_not_written(review: OpenReview, run: Path, value: object) -> None:
    answer = post(review, "decide", value)
    assert answer.status == 400
    assert len(answer.body) < 400
    assert decisions_in(run) == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("query", {"filter": {"label": 99}, "thresholds": [0.3] * 3}),
        ("query", {"filter": {"colour": 1}, "thresholds": [0.3] * 3}),
        ("query", {"filter": {"order": "by magic"}, "thresholds": [0.3] * 3}),
        ("query", {"filter": {}, "thresholds": [0.3]}),
        ("query", {"filter": {"reason": "?"}, "thresholds": [0.3] * 3}), ("counts", {"thresholds": [2, 0, 0]}),
        ("counts", {}), ("thresholds", {"thresholds": ["a", 0.3, 0.3]}), ("crops", {"label": 7}), ("crops", {}),
        ("decide_all", {"id": "decision-9", "do": "burn", "query": 1}),
        ("decide_all", {"id": "x", "do": "keep", "query": 1}),
        ("accept", {"id": "decision-9", "key": "?"}), ("near", {"query": 1234}), ("items", {"rows": [10**9]}),
    ],
)  # fmt: skip
def test_questions_that_make_no_sense_are_refused(review: OpenReview, name: str, value: object) -> None:
    answer = post(review, name, value)
    assert answer.status == 400, answer.body
    assert "Traceback" not in answer.body


def test_only_json_is_taken(review: OpenReview) -> None:
    form = Answer(review, inside(review, "api/undo"), "POST", b'{"id": "decision-1"}', content_type="text/plain")
    assert form.status == 400
    assert Answer(review, inside(review, "api/undo")).status == 405


def test_it_listens_on_this_machine_alone(review: OpenReview) -> None:
    port = urlsplit(review.url).port
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    listening = [line.split()[1] for line in lines if line.split()[3] == "0A"]
    assert [one for one in listening if int(one.split(":")[1], 16) == port] == [f"0100007F:{port:04X}"]
    assert os.access("/proc/net/tcp", os.R_OK)
