"""Create the stack's webhook endpoint, and its subscription to a workflow, at the emulator.

At the real Extend, a person does this once.
"""

from __future__ import annotations

import httpx

from everyrun.extend.client import API_VERSION

#: The events to subscribe to: those that end or pause a run (docs.extend.ai, webhooks/events).
EVENTS = [f"workflow_run.{what}" for what in ("completed", "failed", "needs_review", "rejected", "cancelled")]


async def register_webhook(base_url: str, api_key: str, workflow_id: str, url: str, link_over: int) -> str:
    """Create the endpoint and the subscription, and return the signing secret. Raises httpx.HTTPError.

    A payload of more than ``link_over`` bytes is sent as a link. An existing endpoint with this URL is deleted first,
    because Extend shows the secret of an endpoint only when the endpoint is created. The subscription is necessary,
    because Extend sends workflow_run.* events only to subscribers of the workflow (docs.extend.ai, webhooks).
    """
    headers = {"authorization": f"Bearer {api_key}", "x-extend-api-version": API_VERSION}
    options = {"payload": {"format": "url", "urlThresholdBytes": link_over}}
    async with httpx.AsyncClient(base_url=base_url, headers=headers) as http:
        endpoint = {
            "url": url,
            "name": "Everyrun",
            "enabledEvents": [],
            "apiVersion": API_VERSION,
            "advancedOptions": options,
        }
        for known in (await http.get("/webhook_endpoints")).raise_for_status().json()["data"]:
            if known["url"] == url:
                (await http.delete(f"/webhook_endpoints/{known['id']}")).raise_for_status()
        made = (await http.post("/webhook_endpoints", json=endpoint)).raise_for_status().json()
        subscription = {
            "webhookEndpointId": made["id"],
            "resourceType": "workflow",
            "resourceId": workflow_id,
            "enabledEvents": EVENTS,
        }
        (await http.post("/webhook_subscriptions", json=subscription)).raise_for_status()
    return str(made["signingSecret"])
