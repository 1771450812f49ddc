"""Judge the API key, the workflows, the webhook endpoints and their subscriptions, from Extend's responses. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from everyrun.doctor.facts import Answer
from everyrun.doctor.findings import Finding, failed, not_checked, ok, warning
from everyrun.extend.client import API_VERSION

KEY, WORKFLOW, ENDPOINT, SUBSCRIPTION = "Extend's key", "workflow", "webhook endpoint", "subscription"

#: The bridge's path for webhooks.
WEBHOOK_PATH = "/webhooks/extend"
#: The events that report that a run ended or paused (docs.extend.ai, webhooks/events). If a subscription lacks one of
#: them, such runs are found only by polling.
NEEDED_EVENTS = tuple(
    f"workflow_run.{what}" for what in ("completed", "failed", "needs_review", "rejected", "cancelled")
)


def _trouble(check: str, answer: Answer) -> Finding:
    """Return the finding for a response that tells nothing about the check, such as a server error."""
    found = f"{answer.status or 'no answer'} {answer.code}: {answer.message}".strip()
    if answer.status == 0:
        remedy = "Check EVERYRUN_EXTEND_BASE_URL, DNS and your proxy."
        return failed(check, f"Extend does not answer: {answer.message}", remedy)
    if answer.status == 403:
        return warning(check, found, "The key has no permission to read this. Check it in Extend's dashboard.")
    return warning(check, found, "Try again in a minute, and see Extend's status page.")


def judge_key(answer: Answer) -> Finding:
    """Judge whether the API key works, from the response to a request for a list of runs."""
    match answer.status:
        case 200:
            return ok(KEY, "works")
        case 401:
            remedy = (
                "Set EXTEND_API_KEY to a key (sk_...) of this workspace. In Extend's dashboard: Developers, API keys."
            )
            return failed(KEY, f"refused (401): {answer.message}", remedy)
        case 402:
            remedy = "The organization is out of credits. Add credits on Extend's billing page."
            return failed(KEY, f"refused (402): {answer.message}", remedy)
        case 403:
            remedy = "Give the key access to workflows. For an organization's key, also set EXTEND_WORKSPACE_ID."
            return failed(KEY, f"refused (403): {answer.message}", remedy)
        case 400:
            remedy = "See the message. For an organization's key, set EXTEND_WORKSPACE_ID."
            return failed(KEY, f"refused (400): {answer.message}", remedy)
    return _trouble(KEY, answer)


def judge_workflow(workflow_id: str, answer: Answer) -> Finding:
    """Judge whether a workflow exists, from the response to a request for it (SDK 1.20.0, workflows/client.py)."""
    check = f"{WORKFLOW} {workflow_id}"
    if answer.status == 200:
        name = answer.body.get("name") if isinstance(answer.body, dict) else None
        return ok(check, f"exists{f', {name!r}' if name else ''}")
    if answer.status in (400, 404):
        remedy = "Copy the id (workflow_...) from the workflow's page. The key must be of the same workspace."
        return failed(check, f"there is no such workflow at Extend ({answer.status})", remedy)
    return _trouble(check, answer)


def our_endpoints(endpoints: Iterable[Mapping[str, Any]], wanted_url: str) -> list[Mapping[str, Any]]:
    """Return those of Extend's webhook endpoints that send to a bridge.

    They have the URL ``wanted_url``. If that is empty, take every endpoint whose URL ends with the bridge's path.
    """
    if wanted_url:
        return [e for e in endpoints if str(e.get("url", "")).rstrip("/") == wanted_url.rstrip("/")]
    return [e for e in endpoints if urlsplit(str(e.get("url", ""))).path.rstrip("/").endswith(WEBHOOK_PATH)]


def judge_endpoint(
    answer: Answer | None, wanted_url: str, origins: Sequence[str]
) -> tuple[list[Finding], list[Mapping[str, Any]]]:
    """Judge whether Extend has an endpoint for the bridge, enabled and with our API version. Also return the endpoints.

    ``origins`` are the allowed origins of signed links (EVERYRUN_SIGNED_URL_ORIGINS).
    """
    if answer is None:
        return [not_checked(ENDPOINT, KEY)], []
    if answer.status != 200:
        return [_trouble(ENDPOINT, answer)], []
    found = our_endpoints(answer.body, wanted_url)
    if not found:
        where = wanted_url or f"a URL that ends {WEBHOOK_PATH}"
        remedy = (
            f"Create one with the bridge's public URL (https://YOUR-HOST{WEBHOOK_PATH}), without global events: see "
            "docs/how-to/real-extend.md. Without an endpoint, results are found by polling, which is slower."
        )
        return [failed(ENDPOINT, f"none of Extend's {len(answer.body)} endpoints has {where}", remedy)], []
    return [_of_endpoint(endpoint, origins) for endpoint in found], found


def _of_endpoint(endpoint: Mapping[str, Any], origins: Sequence[str]) -> Finding:
    name = f"{endpoint.get('url')} ({endpoint.get('id')})"
    if endpoint.get("status") != "enabled":
        remedy = "Enable it in Extend's dashboard (Developers, Webhooks), and find out why it was disabled."
        return failed(ENDPOINT, f"{name} is {endpoint.get('status')}", remedy)
    if endpoint.get("apiVersion") != API_VERSION:
        remedy = f"The version cannot be changed. Create a new endpoint with apiVersion {API_VERSION}; delete this one."
        return failed(ENDPOINT, f"{name} has the API version {endpoint.get('apiVersion')}", remedy)
    payload = (endpoint.get("advancedOptions") or {}).get("payload") or {}
    if payload.get("format") == "url" and not origins:
        remedy = "Set EVERYRUN_SIGNED_URL_ORIGINS to the links' origins. Until then, each such run costs a GET."
        return warning(ENDPOINT, f"{name} sends large payloads as signed links, and no origin is allowed", remedy)
    return ok(ENDPOINT, f"{name} is enabled, API version {API_VERSION}")


def judge_number_of_secrets(endpoints: Sequence[Mapping[str, Any]], secrets: int) -> list[Finding]:
    """Return a finding for each address that has more enabled endpoints than there are secrets.

    Each endpoint signs with its own secret, so at least one secret is missing in our settings. The finding cannot say
    which, because Extend does not return secrets.
    """
    enabled = Counter(str(endpoint.get("url")) for endpoint in endpoints if endpoint.get("status") == "enabled")
    remedy = (
        "Add the missing secret to EVERYRUN_WEBHOOK_SECRETS, here and at every bridge. If it is lost, delete its "
        "endpoint and create another: see docs/how-to/rotate-webhook-secret.md"
    )
    return [
        failed(
            f"{ENDPOINT} secrets",
            f"{number} enabled endpoints send to {url}, each with its own signing secret, but "
            f"EVERYRUN_WEBHOOK_SECRETS has {secrets}",
            remedy,
        )
        for url, number in enabled.items()
        if number > secrets
    ]


def judge_subscription(workflow_id: str, endpoints: Sequence[Mapping[str, Any]], answer: Answer | None) -> Finding:
    """Judge whether our endpoints are subscribed to all needed events of the workflow.

    ``endpoints`` are our endpoints, ``answer`` is Extend's list of all subscriptions.
    """
    check = f"{SUBSCRIPTION} to {workflow_id}"
    if answer is None:
        return not_checked(check, KEY)
    if answer.status != 200:
        return _trouble(check, answer)
    if not endpoints:
        return not_checked(check, ENDPOINT)
    ids = {endpoint["id"] for endpoint in endpoints}
    about = [s for s in answer.body if s.get("resourceType") == "workflow" and s.get("resourceId") == workflow_id]
    mine = [s for s in about if s.get("webhookEndpointId") in ids]
    subscribe = (
        f'POST /webhook_subscriptions with {{"webhookEndpointId": "{min(ids)}", "resourceType": "workflow", '
        f'"resourceId": "{workflow_id}", "enabledEvents": [...]}} of {", ".join(NEEDED_EVENTS)}.'
    )
    if not mine:
        others = f" (other endpoints have {len(about)})" if about else ""
        return failed(check, f"our endpoint is not subscribed{others}, so it gets no events of runs", subscribe)
    enabled = {event for subscription in mine for event in subscription.get("enabledEvents", ())}
    missing = [event for event in NEEDED_EVENTS if event not in enabled]
    if missing:
        return failed(check, f"lacks {', '.join(missing)}", f"Subscribe again, which replaces it: {subscribe}")
    lacking = _lacking(mine, endpoints)
    if lacking:
        return warning(
            check,
            f"{', '.join(lacking)} lacks events that another endpoint with the same address has",
            "If it is the new endpoint of a rotation, subscribe it to all events. If it is the old one, delete it once "
            "its retries have ended. See docs/how-to/rotate-webhook-secret.md",
        )
    return ok(check, f"has the {len(NEEDED_EVENTS)} needed events")


def _lacking(subscriptions: Sequence[Mapping[str, Any]], endpoints: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the ids of enabled endpoints that lack needed events and have the same address as another endpoint.

    An endpoint that is alone at its address is left out, because it may belong to another installation.
    """
    sharing = Counter(endpoint.get("url") for endpoint in endpoints)
    enabled = [e["id"] for e in endpoints if e.get("status") == "enabled" and sharing[e.get("url")] > 1]
    has = {
        endpoint: {
            event
            for subscription in subscriptions
            if subscription["webhookEndpointId"] == endpoint
            for event in subscription.get("enabledEvents", ())
        }
        for endpoint in enabled
    }
    return [endpoint for endpoint in enabled if not has[endpoint] >= set(NEEDED_EVENTS)]
