"""A pretended station for the page's tests: the routes of the real one over made-up pictures, in one process.

What an image is follows from its file's name: gear-bad-1.png is a defective gear, unknown-2.png no product.
Run as a program it serves the page with a line of three products: python tests/station_mock.py 8731
"""

from __future__ import annotations

import functools
import io
import json
import math
import re
import sys
import threading
import time
from datetime import datetime, timedelta, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np
from PIL import Image
from scipy import ndimage

from moleflow.data.factory import make_sample
from moleflow.maps.scale import Scale
from moleflow.verdict.regions import find_regions

PAGE = Path(__file__).parents[1] / "src" / "moleflow" / "station" / "page"
CSP = (
    "default-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; connect-src 'self'; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)
KINDS = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css",
    ".js": "text/javascript",
    ".json": "application/json",
    ".svg": "image/svg+xml",
}
FAULTS = {
    "gear": "missing_tooth",
    "bottle_cap": "scratch",
    "circuit_board": "missing_part",
    "wood": "scratch",
}
SIDE = 384
STOPS = ((20, 11, 70), (120, 28, 110), (205, 60, 75), (245, 140, 30), (250, 225, 100))
MAP_THRESHOLD = 3.2
ROLES = ["inspect", "teach", "admin"]


@functools.cache
def sample(product: str, seed: int, bad: bool):
    """Picture and map of a product; a faulty one is hot where its fault is."""
    from moleflow.data.factory import defect_kinds

    kinds = defect_kinds(product)
    kind = (FAULTS[product] if FAULTS.get(product) in kinds else kinds[seed % len(kinds)]) if bad else "good"
    made = make_sample(product, seed, kind=kind, size=SIDE)
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(SIDE, SIDE)), 14)
    scores = 0.7 * noise / noise.std()
    if bad:
        heat = ndimage.gaussian_filter(made.mask.astype(float), 7)
        scores += 6.5 * heat / heat.max()
    return made.image, scores.astype(np.float32)


def layer(levels):
    """Levels (H, W) as colours alone, (H, W, 4), clear at 0."""
    share = levels / 255
    colours = [
        np.interp(share, np.linspace(0, 1, len(STOPS)), channel) for channel in zip(*STOPS, strict=True)
    ]
    return np.dstack([*colours, levels]).astype(np.uint8)


def encoded(pixels, kind: str, side: int) -> bytes:
    picture = Image.fromarray(pixels)
    picture.thumbnail((side, side))
    stream = io.BytesIO()
    picture.save(stream, kind)
    return stream.getvalue()


def set_event():
    event = threading.Event()
    event.set()
    return event


class Refused(Exception):
    def __init__(self, status: int, code: str, message: str):
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


class Mock:
    """The state behind the routes; `tokens` {token: role} closes it, a lesson takes `lesson_seconds`."""

    def __init__(self, *, tokens=None, lesson_seconds=1.5, past=40):
        self.tokens, self.lesson_seconds = tokens or {}, lesson_seconds
        self.lock = threading.RLock()
        self.inspections: list[dict] = []
        self.jobs: list[dict] = []
        self.away = False  # answers 503 to everything, as a station that begins
        self.going = (
            set_event()
        )  # cleared: nothing is answered but the page, as by a process that stands still
        self.judging = set_event()  # cleared: no image is judged, everything else is answered
        self.swallowed = 0  # of the next inspections the answer is lost after they were recorded
        self.keys: dict[str, dict] = {}
        self.troubles: list[str | None] = []  # why of the next images one cannot be judged; None where it can
        self.products = {name: self._product(name, at) for at, name in enumerate(FAULTS) if name != "wood"}
        start = datetime.now(timezone.utc) - timedelta(minutes=3 * past)
        names = [*self.products] * past
        for at in range(past):
            marks = {7: "-bad", 13: "-bad", 17: "unknown", 23: "-drift", 28: "-bad"}
            tag = marks.get(at % 31, "")
            source = f"unknown-{at}.png" if tag == "unknown" else f"{names[at]}{tag}-{at}.png"
            self.inspect(source, when=start + timedelta(minutes=3 * at))
        for entry in self.inspections[7:8]:
            entry["mark"] = self._mark("false_alarm", None, "oil film, wiped off")

    def _product(self, name: str, at: int) -> dict:
        versions = [f"{number:06d}" for number in range(1, 3 + at % 2)]
        return {
            "name": name,
            "version": versions[-1],
            "images": 120 + 40 * at,
            "threshold": 3.5,
            "false_alarm_rate": 0.01,
            "bytes": 301_000 + 1777 * at,
            "seconds": 41.0 + 7 * at,
            "quarantined": False,
            "reason": None,
            "versions": versions,
        }

    @staticmethod
    def _mark(kind, task, note):
        now = datetime.now(timezone.utc).isoformat()
        return {"kind": kind, "task": task, "note": note or "", "time": now}

    def inspect(self, source: str, *, when=None, task=None) -> dict:
        number = int((re.findall(r"\d+", source) or ["0"])[-1])
        product = next((name for name in FAULTS if source.startswith(name)), "wood")
        if product not in self.products:
            product = None
        bad, drift = "bad" in source, "drift" in source
        status = "unknown" if product is None else "defective" if bad else "drifting" if drift else "good"
        shown = product or "wood"
        _, scores = sample(shown, number, bad)
        nearest = task or product or next(iter(self.products), "gear")
        threshold = self.products.get(nearest, {}).get("threshold") or 3.5
        score = {
            "good": 0.4 + number % 9 / 4,
            "defective": 5.9 + number % 4 / 3,
            "unknown": 9.4,
            "drifting": 4.1,
        }[status]
        said = f"its score is {score:.2f}, the threshold {threshold:.2f}"
        reason = {
            "good": f"like good images of {nearest}: {said}",
            "defective": f"stranger than good images of {nearest} at a place: {said}",
            "unknown": f"like none of the taught products, not even the nearest, {nearest}",
            "drifting": "darker than every good image taught: mean grey 71, taught 82 to 97; "
            "so nobody can tell whether it is defective",
        }[status]
        found = find_regions(scores, MAP_THRESHOLD, size=(SIDE, SIDE)) if bad else ()
        with self.lock:
            entry = {
                "id": len(self.inspections) + 1,
                "time": (when or datetime.now(timezone.utc)).isoformat(),
                "source": source,
                "sha256": f"{number:064x}",
                "task": nearest,
                "status": status,
                "known": status != "unknown",
                "pred_score": score,
                "p_value": min(1.0, math.exp(-1.3 * score)),
                "threshold": threshold,
                "reason": reason,
                "place_score": float(scores.max()),
                "whole_score": score,
                "map_threshold": MAP_THRESHOLD,
                "image_size": [SIDE, SIDE],
                "certainty": None if task else {"margin": 3.4, "distance": 1.21, "distance_limit": 2.6},
                "regions": [region.to_dict() for region in found],
                "version": "000001",
                "latency_ms": 41.3,
                "mark": None,
                "_picture": (shown, number, bad),
            }
            self.inspections.append(entry)
        return entry

    # Lessons

    def teach(self, kind, name, count):
        if not name.strip() or set(name) & set('<>:"/\\|?*'):
            raise Refused(
                422, "bad_name", f'{name!r} cannot name a product: it holds one of < > : " / \\ | ? *'
            )
        if kind == "teach" and name in self.products:
            raise Refused(
                409, "name_taken", f"the line already knows {name!r}; update it, or choose another name"
            )
        job = {
            "id": len(self.jobs) + 1,
            "kind": kind,
            "name": name,
            "state": "learning",
            "stage": "backbone",
            "progress": 0.0,
            "seconds_left": self.lesson_seconds,
            "images": count,
            "error": None,
            "created": datetime.now(timezone.utc).isoformat(),
            "finished": None,
            "review": None,
            "_from": time.monotonic(),
            "unreadable": [],
            "_dropped": [],
        }
        self.jobs.insert(0, job)
        return job

    def job(self, number: int) -> dict:
        job = next((one for one in self.jobs if one["id"] == number), None)
        if job is None:
            raise Refused(404, "no_such_job", f"there is no lesson {number}")
        if job["state"] == "learning":
            share = min(1.0, (time.monotonic() - job["_from"]) / self.lesson_seconds)
            job["progress"], job["seconds_left"] = share, self.lesson_seconds * (1 - share)
            stages = ["backbone", "learning", "learning", "calibration"]
            job["stage"] = stages[min(3, int(4 * share))]
            if share >= 1:
                job["state"], job["review"] = "review", self._review(job)
        return job

    def _review(self, job):
        """What a lesson found; what was dropped is found no more."""
        spreads = "a model of the other photographs finds it 14 spreads stranger than a good one is as a rule"
        reasons = [
            (3, "it is darker than the others: mean grey level 41, theirs about 88"),
            (5, f"it may be defective: {spreads}"),
            (8, "it is 2.4 times less sharp than the others"),
        ]
        swallowed = [
            (5, "the version in use finds it defective"),
            (7, "the version in use takes it for wood"),
        ]
        suspects, swallowed = (
            [
                {"index": at, "source": f"{job['name']}-{at:03d}.png", "reason": reason}
                for at, reason in found
                if at not in job["_dropped"]
            ]
            for found in (reasons, swallowed)
        )
        mine = [one["id"] for one in self.inspections if one["task"] == job["name"]]
        update = job["kind"] == "update"
        bad = [
            one["id"]
            for one in self.inspections
            if one["task"] == job["name"] and one["status"] == "defective"
        ]
        return {
            "suspects": suspects,
            "swallowed": swallowed if update else [],
            "unreadable": ["notes.png: expected an image, it holds text"] if not job["_dropped"] else [],
            "promise": _promise(job["images"]),
            "threshold": 3.42,
            "false_alarm_rate": 0.01,
            "bytes": 302_114,
            "flips": {
                "inspections": len(mine) if update else 0,
                "to_good": bad[:1] if update else [],
                "to_defective": mine[4:5] if update else [],
            },
        }

    def accept(self, job, dropped):
        if job["state"] != "review":
            raise Refused(
                409, "not_in_review", f"lesson {job['id']} is {job['state']}, expected one in review"
            )
        if dropped:
            job.update(state="learning", review=None, progress=0.0, _from=time.monotonic(), _dropped=dropped)
            job["images"] -= len(dropped)
            return job
        job.update(state="live", finished=datetime.now(timezone.utc).isoformat())
        known = self.products.get(job["name"]) or self._product(job["name"], 0) | {"versions": []}
        known["versions"] = [*known["versions"], f"{len(known['versions']) + 1:06d}"]
        known |= {"version": known["versions"][-1], "images": job["images"]}
        self.products[job["name"]] = known
        return job

    # What is shown of a product

    def product(self, name):
        if name not in self.products:
            raise Refused(404, "no_such_product", f"the line knows no product {name!r}")
        return self.products[name]

    def detail(self, name):
        product = self.product(name)
        curve = [
            {"false_alarm_rate": float(rate), "threshold": 1.1 + 0.52 * -math.log(rate)}
            for rate in np.geomspace(0.0005, 0.2, 60)
        ]
        recent = {status: 0 for status in ("good", "defective", "unknown", "drifting")}
        for one in self.inspections:
            recent[one["status"]] += one["task"] == name
        return brief(product) | {
            "versions": [{"version": v, "current": v == product["version"]} for v in product["versions"]],
            "calibration": "left-out",
            "calibration_images": product["images"],
            "parts": {
                "statistics": 4_096,
                "whitening": 52_000,
                "lora": 38_000,
                "cells": 150_000,
                "coreset": 57_000,
            },
            "seconds": {"backbone": 14.2, "learning": 21.0, "calibration": 5.8},
            "promise": _promise(product["images"]),
            "suspects": 2,
            "curve": curve,
            "recent": recent,
        }

    def preview(self, name, rate):
        threshold = 1.1 + 0.52 * -math.log(rate)
        mine = [
            one for one in self.inspections if one["task"] == name and one["status"] in ("good", "defective")
        ]
        now = self.product(name)["threshold"]
        past = {
            "inspections": len(mine),
            "to_good": sum(now < one["pred_score"] <= threshold for one in mine),
            "to_defective": sum(threshold < one["pred_score"] <= now for one in mine),
        }
        return {"threshold": threshold, "past": past}

    def drift(self, name):
        self.product(name)
        start = datetime.now(timezone.utc) - timedelta(hours=6)
        dice = np.random.default_rng(len(name))
        channels = {  # middle, move, spread, and what was taught
            "light": (88, -9, 2.0, 82, 97),
            "sharpness": (1.11, 0, 0.02, 1.02, 1.17),
            "contrast": (0.42, 0.01, 0.01, 0.39, 0.46),
            "place": (0.1, 0.5, 0.2, -0.6, 1.2),
        }
        series = []
        for channel, (middle, move, spread, low, high) in channels.items():
            values = middle + move * np.linspace(0, 1, 60) ** 2 + spread * dice.normal(size=60) / 2
            times = [(start + timedelta(minutes=6 * at)).isoformat() for at in range(60)]
            points = [
                {"time": when, "value": float(value)} for when, value in zip(times, values, strict=True)
            ]
            series.append({"channel": channel, "points": points, "low": low, "high": high})
        sentence = (
            "28 of the last 30 good images are darker than the typical good image taught: mean grey 84, "
            "taught 82 to 97"
        )
        return {"state": "moving", "sentences": [sentence], "series": series}


def _promise(images):
    return (
        f"{images} independent photographs show by themselves a false-alarm rate of {1 / (images + 1):.2%} "
        "at the least; a defect must score 3.4 to be found; "
        "with 80 more photographs like these it would hardly be lower"
    )


def brief(product):
    return {key: value for key, value in product.items() if key != "versions"}


def public(entry):
    return {key: value for key, value in entry.items() if not key.startswith("_")}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def mock(self) -> Mock:
        return self.server.mock

    def log_message(self, *_):
        pass

    def do_GET(self):
        self._answer("GET")

    def do_POST(self):
        self._answer("POST")

    def do_PUT(self):
        self._answer("PUT")

    def do_DELETE(self):
        self._answer("DELETE")

    def _answer(self, method):
        url = urlsplit(self.path)
        parts = [unquote(part) for part in url.path.strip("/").split("/")]
        asked = {key: values[-1] for key, values in parse_qs(url.query).items()}
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        try:
            if url.path == "/" or parts[0] == "page":
                return self._file("index.html" if url.path == "/" else parts[1])
            self.mock.going.wait()
            inspects = method == "POST" and parts[2:] == ["inspections"]
            if inspects:
                self.mock.judging.wait()
            if self.mock.away:
                raise Refused(503, "not_ready", "the station is starting")
            role = self._role()
            if method != "GET" and self.headers.get("X-Moleflow") != "1":
                raise Refused(403, "no_header", "expected the header X-Moleflow: 1")
            with self.mock.lock:
                answer = self._route(method, parts[2:], asked, body, role)
                if inspects and self.mock.swallowed:
                    self.mock.swallowed -= 1
                    self.close_connection = True
                    return
                self._send(*answer)
        except Refused as no:
            self._send(no.status, {"error": {"code": no.code, "message": no.message}})
        except BrokenPipeError:
            pass

    def _file(self, name):
        path = PAGE / name
        if not path.is_file() or path.parent != PAGE:
            raise Refused(404, "no_such_file", f"there is no file {name!r}")
        self._send(200, path.read_bytes(), KINDS[path.suffix])

    def _role(self):
        if not self.mock.tokens:
            return "admin"
        role = self.mock.tokens.get(self.headers.get("Authorization", "").removeprefix("Bearer "))
        if role is None:
            raise Refused(401, "bad_token", "this token is not one of this station's")
        return role

    def _send(self, status, content, kind="application/json"):
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Content-Security-Policy", CSP)
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(data)

    def _route(self, method, parts, asked, body, role):
        first, rest = parts[0], parts[1:]
        if first == "me":
            return 200, {"role": role, "open": not self.mock.tokens, "version": "0.1.0"}
        if first == "scale":
            stops = [{"at": at / 4, "colour": f"#{bytes(stop).hex()}"} for at, stop in enumerate(STOPS)]
            return 200, {"stops": stops, "meaning": "0 typical good, 0.5 threshold, 1 twice as far"}
        if first == "line":
            return 200, {
                "name": "line-3",
                "products": [brief(product) for product in self.mock.products.values()],
                "image_size": [512, 512],
                "learning": True,
                "disk_free_bytes": 41_000_000_000,
                "limits": {"images": 64, "bytes": 64_000_000, "pixels": 100_000_000},
            }
        way = {"inspections": self._inspections, "products": self._products, "jobs": self._jobs}.get(first)
        if first == "inspections.csv":
            return 200, b"id,source\n", "text/csv"
        if way is None:
            raise Refused(404, "no_such_route", "there is nothing at this address")
        return way(method, rest, asked, body, role)

    def _need(self, role, least):
        if ROLES.index(role) < ROLES.index(least):
            raise Refused(403, "forbidden", f"this needs the role {least}, yours is {role}")

    def _inspections(self, method, rest, asked, body, role):
        mock = self.mock
        if method == "POST":
            form = self._form(body)
            key = form.get("key")
            if key in mock.keys:
                return 200, {"results": [public(mock.keys[key])]}
            results = []
            for name, data in form["files"]:
                trouble = mock.troubles.pop(0) if mock.troubles else None
                if trouble:
                    results.append(
                        {"source": name, "error": {"code": trouble, "message": f"the station: {trouble}"}}
                    )
                    continue
                try:
                    Image.open(io.BytesIO(data)).verify()
                except Exception:
                    error = {"code": "not_an_image", "message": f"{name}: expected an image, it is none"}
                    results.append({"source": name, "error": error})
                else:
                    entry = mock.inspect(name, task=form.get("task"))
                    results.append(public(entry))
                    if key:
                        mock.keys[key] = entry
            if all("error" in result for result in results):
                if trouble:
                    raise Refused(503, trouble, results[-1]["error"]["message"])
                raise Refused(415, "not_an_image", results[0]["error"]["message"])
            return 200, {"results": results}
        if not rest:
            return self._history(asked)
        entry = next((one for one in mock.inspections if str(one["id"]) == rest[0]), None)
        if entry is None:
            raise Refused(404, "no_such_inspection", f"there is no inspection {rest[0]}")
        side = int(asked.get("side", 1024))
        if rest[1:] == ["image"]:
            return 200, encoded(sample(*entry["_picture"])[0], "jpeg", side), "image/jpeg"
        if rest[1:] == ["map"]:
            levels = Scale(MAP_THRESHOLD).levels(sample(*entry["_picture"])[1])
            return 200, encoded(layer(levels), "png", side), "image/png"
        if rest[1:] == ["mark"]:
            given = json.loads(body) if method == "PUT" else None
            entry["mark"] = given and mock._mark(given["kind"], given.get("task"), given.get("note"))
        return 200, public(entry)

    def _history(self, asked):
        found = [public(one) for one in reversed(self.mock.inspections)]
        if "before" in asked:
            found = [one for one in found if one["id"] < int(asked["before"])]
        for key, field in (("product", "task"), ("status", "status")):
            if key in asked:
                found = [one for one in found if one[field] == asked[key]]
        if "mark" in asked:
            found = [one for one in found if one["mark"] and one["mark"]["kind"] == asked["mark"]]
        if "text" in asked:
            found = [one for one in found if asked["text"] in one["source"]]
        limit = int(asked.get("limit", 50))
        return 200, {"items": found[:limit], "next": found[limit - 1]["id"] if len(found) > limit else None}

    def _products(self, method, rest, asked, body, role):
        mock, name = self.mock, rest[0]
        product = mock.product(name)
        what = rest[1] if len(rest) > 1 else None
        if what == "drift":
            return 200, mock.drift(name)
        if what == "threshold" and method == "GET":
            return 200, mock.preview(name, float(asked["false_alarm_rate"]))
        if what == "threshold":
            self._need(role, "teach")
            rate = json.loads(body)["false_alarm_rate"]
            product |= {"false_alarm_rate": rate, "threshold": mock.preview(name, rate)["threshold"]}
        if what == "rollback":
            self._need(role, "teach")
            product["version"] = json.loads(body)["version"]
        if method == "DELETE":
            self._need(role, "admin")
            del mock.products[name]
            return 200, {}
        return 200, mock.detail(name)

    def _jobs(self, method, rest, asked, body, role):
        mock = self.mock
        if method == "POST":
            self._need(role, "teach")
        if not rest:
            if method == "GET":
                return 200, [public(mock.job(one["id"])) for one in mock.jobs]
            form = self._form(body)
            marked = [part for part in form.get("inspections", "").split(",") if part]
            return 202, public(mock.teach(form["kind"], form["name"], len(form["files"]) + len(marked)))
        job = mock.job(int(rest[0]))
        if rest[1:2] == ["images"]:
            known = job["name"] if job["name"] in FAULTS else "wood"
            image = sample(known, 900 + int(rest[2]), rest[2] == "5")[0]
            return 200, encoded(image // 2 if rest[2] == "3" else image, "jpeg", 512), "image/jpeg"
        if rest[1:] == ["accept"]:
            mock.accept(job, json.loads(body).get("drop") or [])
        if rest[1:] == ["cancel"]:
            job.update(state="cancelled", finished=datetime.now(timezone.utc).isoformat())
        if rest[1:] == ["resume"]:
            drop = json.loads(body).get("drop") or []
            job.update(unreadable=[], error=None, images=job["images"] - len(drop))
            job["_dropped"] += drop
            job.update(state="learning", review=None, _from=time.monotonic())
        return 200, public(job)

    def _form(self, body):
        """Fields of a multipart form; files under "files" as (name, bytes)."""
        boundary = self.headers["Content-Type"].split("boundary=")[1].encode()
        form = {"files": []}
        for part in body.split(b"--" + boundary)[1:-1]:
            head, data = (
                part.strip(b"\r\n").split(b"\r\n\r\n", 1)
                if b"\r\n\r\n" in part.strip(b"\r\n")
                else (part, b"")
            )
            described = head.decode()
            file = re.search(r'filename="([^"]*)"', described)
            if file:
                form["files"].append((file[1], data))
            else:
                form[re.search(r'name="([^"]*)"', described)[1]] = data.decode()
        return form


def serve(mock: Mock, port: int = 0) -> ThreadingHTTPServer:
    """A server in a thread of its own; `server_port` says where, `shutdown` and `server_close` end it."""
    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server.daemon_threads = True
    server.mock = mock
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


if __name__ == "__main__":
    server = serve(Mock(lesson_seconds=8), int(sys.argv[1]) if len(sys.argv) > 1 else 8731)
    print(f"http://127.0.0.1:{server.server_port}/")
    threading.Event().wait()
