"""The service's description: as OpenAPI has it, and as a page that needs nothing from elsewhere."""

import json
from html import escape
from typing import Any

from gems_jax.serving.http.bodies import Bodies, Body, batch_of
from gems_jax.serving.http.limits import Limits

_SCHEMAS = "#/components/schemas/"
_ITEM = {
    "type": "object",
    "properties": {
        "item_id": {"type": "string"},
        "title": {"type": "string"},
        "score": {"type": "number", "description": "mean log-probability of the item's tokens and the end token"},
        "known": {"type": "boolean", "description": "whether it is in the user's history"},
    },
}
_ANSWER = {
    "type": "object",
    "properties": {
        "items": {"type": "array", "items": {"$ref": f"{_SCHEMAS}Item"}},
        "notes": {"type": "array", "items": {"type": "string"}, "description": "what people should know of the answer"},
    },
}
_ANSWERS = {"type": "object", "properties": {"answers": {"type": "array", "items": {"$ref": f"{_SCHEMAS}Answer"}}}}
_ERRORS = {
    "401": "the token is missing or wrong",
    "413": "the body is too large",
    "422": "a field is wrong: detail names it",
    "503": "too many requests wait, or the model is being loaded: come again after Retry-After seconds",
    "504": "there is no answer in time",
}


def openapi(bodies: Bodies, limits: Limits) -> dict[str, Any]:
    """The description as OpenAPI 3.1, JSON values."""
    schemas: dict[str, Any] = {"Item": _ITEM, "Answer": _ANSWER, "Answers": _ANSWERS}
    paths: dict[str, Any] = {}
    said = {"recommend": "what to recommend", "search": "what a query finds", "rank": "a ranking for any task"}
    for name, about in said.items():
        body: type[Body] = getattr(bodies, name)
        both = [body, batch_of(body, limits)]
        for model in both:
            schema = model.model_json_schema(ref_template=f"{_SCHEMAS}{{model}}")
            schemas |= schema.pop("$defs", {}) | {model.__name__: schema}
        paths[f"/v1/{name}"] = {"post": _operation(about, [model.__name__ for model in both], ["Answer", "Answers"])}
    explain = bodies.explain.model_json_schema(ref_template=f"{_SCHEMAS}{{model}}")
    schemas |= explain.pop("$defs", {}) | {"Explain": explain}
    paths["/v1/explain"] = {
        "post": _operation("what each item of the history does to the score of an item", ["Explain"])
    }
    paths["/v1/beside"] = {
        "post": _operation("what popularity, BM25 and the base model, if it is kept, answer", ["Rank"])
    }
    paths["/v1/users"] = {"get": _operation("some users, ?like= by a part of their name")}
    paths["/v1/users/{user}"] = {"get": _operation("the history of a user") | _in_path("user")}
    paths["/v1/items"] = {"get": _operation("some items, ?like= by a part of their title")}
    paths["/v1/reload"] = {"post": _operation("loads model and catalogue anew")}
    paths["/v1/items/{item_id}"] = {"get": _operation("an item of the catalogue") | _in_path("item_id")}
    for path, about in (
        ("/healthz", "200 while the process lives"),
        ("/readyz", "200 while requests are answered, else 503"),
        ("/metrics", "numbers for Prometheus"),
    ):
        paths[path] = {"get": _operation(about)}
    return {
        "openapi": "3.1.0",
        "info": {"title": "gems-jax", "version": "1", "description": "Search and recommendations of a tuned model."},
        "paths": paths,
        "components": {"schemas": schemas, "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}},
    }


def _operation(about: str, bodies: list[str] | None = None, answers: list[str] | None = None) -> dict[str, Any]:
    operation: dict[str, Any] = {"summary": about, "responses": {"200": {"description": about}}}
    if bodies:
        operation["requestBody"] = {"required": True, "content": _content(bodies)}
        operation["responses"] |= {status: {"description": text} for status, text in _ERRORS.items()}
    if answers:
        operation["responses"]["200"]["content"] = _content(answers)
    return operation


def _in_path(name: str) -> dict[str, Any]:
    return {"parameters": [{"name": name, "in": "path", "required": True, "schema": {"type": "string"}}]}


def _content(names: list[str]) -> dict[str, Any]:
    return {"application/json": {"schema": {"anyOf": [{"$ref": _SCHEMAS + name} for name in names]}}}


def openapi_page(description: dict[str, Any]) -> str:
    """The description as a page."""
    rows = []
    for path, methods in description["paths"].items():
        for method, operation in methods.items():
            rows.append(f"<h2><code>{method.upper()} {escape(path)}</code></h2><p>{escape(operation['summary'])}</p>")
            if "requestBody" in operation:
                (_, content), *_ = operation["requestBody"]["content"].items()
                name = content["schema"]["anyOf"][0]["$ref"].removeprefix(_SCHEMAS)
                rows.append(_table(description["components"]["schemas"][name]))
                if len(content["schema"]["anyOf"]) > 1:
                    rows.append("<p>Several at once: <code>{&quot;requests&quot;: [...]}</code>.</p>")
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>gems-jax</title>'
        '<meta name="viewport" content="width=device-width"></head><body><h1>gems-jax</h1>'
        f'<p>{escape(description["info"]["description"])} The same as <a href="openapi.json">OpenAPI</a>.</p>'
        f"{''.join(rows)}</body></html>"
    )


def _table(schema: dict[str, Any]) -> str:
    lines = []
    for name, field in schema["properties"].items():
        needed = "needed" if name in schema.get("required", []) else f"default {json.dumps(field.get('default'))}"
        lines.append(f"<tr><td><code>{name}</code></td><td>{needed}</td><td>{escape(field['description'])}</td></tr>")
    return f"<table>{''.join(lines)}</table>"
