"""Serve Extend's API for webhook endpoints and subscriptions.

It follows the SDK 1.20.0: the packages webhook_endpoints and webhook_subscriptions.
"""

from __future__ import annotations

import secrets
import time
from typing import Any

from starlette.requests import Request

from everyrun.emulator import render
from everyrun.emulator.resources import RouteOf, paged
from everyrun.emulator.responses import json_body
from everyrun.emulator.store import Store
from everyrun.emulator.validate import check_endpoint, check_events, invalid, not_found
from everyrun.emulator.webhooks import Webhooks

_FILTERS = ("webhookEndpointId", "resourceType", "resourceId", "sortDir")
_RESOURCES = ("extractor", "classifier", "splitter", "workflow")


def webhook_routes(webhooks: Webhooks, store: Store, workflow_id: str) -> list[RouteOf]:
    """Return (method, path, handler) of each API endpoint."""
    api = _WebhookApi(webhooks, store, workflow_id)
    one, all_ = "/webhook_endpoints/{id}", "/webhook_endpoints"
    sub, subs = "/webhook_subscriptions/{id}", "/webhook_subscriptions"
    return [
        ("POST", all_, api.create_endpoint),
        ("GET", all_, api.list_endpoints),
        ("GET", one, api.get_endpoint),
        ("POST", one, api.update_endpoint),
        ("DELETE", one, api.delete_endpoint),
        ("POST", subs, api.create_subscription),
        ("GET", subs, api.list_subscriptions),
        ("GET", sub, api.get_subscription),
        ("POST", sub, api.update_subscription),
        ("DELETE", sub, api.delete_subscription),
    ]


class _WebhookApi:
    def __init__(self, webhooks: Webhooks, store: Store, workflow_id: str) -> None:
        self._endpoints = webhooks.endpoints
        self._subscriptions = webhooks.subscriptions
        self._store = store
        self._workflow_id = workflow_id

    def _endpoint(self, request: Request) -> dict[str, Any]:
        found = self._endpoints.get(request.path_params["id"])
        if found is None:
            raise not_found("webhook endpoint")
        return found

    @staticmethod
    def _without_secret(endpoint: dict[str, Any]) -> dict[str, Any]:
        # Like Extend, show the secret only in the response to the creation of the endpoint.
        return {key: value for key, value in endpoint.items() if key != "signingSecret"}

    async def create_endpoint(self, request: Request) -> Any:
        """Answer POST /webhook_endpoints."""
        body = check_endpoint(await json_body(request), create=True)
        endpoint = {
            "object": "webhook_endpoint",
            "id": f"wh_{secrets.token_hex(10)}",
            "status": "enabled",
            "advancedOptions": None,
            **body,
            "createdAt": render.time(time.time()),
            "createdBy": None,
            "signingSecret": f"wss_{secrets.token_hex(16)}",
        }
        self._endpoints[endpoint["id"]] = endpoint
        await self._store.commit(self._store.put("endpoint", endpoint["id"], endpoint))
        return endpoint

    async def list_endpoints(self, request: Request) -> Any:
        """Answer GET /webhook_endpoints."""
        return paged([self._without_secret(endpoint) for endpoint in self._endpoints.values()], request, _FILTERS)

    async def get_endpoint(self, request: Request) -> Any:
        """Answer GET /webhook_endpoints/{id}."""
        return self._without_secret(self._endpoint(request))

    async def update_endpoint(self, request: Request) -> Any:
        """Answer POST /webhook_endpoints/{id}."""
        endpoint = self._endpoint(request)
        endpoint.update(check_endpoint(await json_body(request), create=False))
        await self._store.commit(self._store.put("endpoint", endpoint["id"], endpoint))
        return self._without_secret(endpoint)

    async def delete_endpoint(self, request: Request) -> Any:
        """Answer DELETE /webhook_endpoints/{id}: delete the endpoint and its subscriptions."""
        endpoint = self._endpoint(request)
        del self._endpoints[endpoint["id"]]
        deleted = [s["id"] for s in self._subscriptions.values() if s["webhookEndpointId"] == endpoint["id"]]
        for identifier in deleted:
            del self._subscriptions[identifier]
        drops = [self._store.drop("subscription", identifier) for identifier in deleted]
        await self._store.commit(self._store.drop("endpoint", endpoint["id"]), *drops)
        return {"id": endpoint["id"]}

    async def create_subscription(self, request: Request) -> Any:
        """Answer POST /webhook_subscriptions.

        Create a subscription. If the endpoint already has a subscription to the resource, replace its events instead.
        """
        body = await json_body(request)
        if not isinstance(body, dict):
            raise invalid("the body must be an object")
        for key in ("webhookEndpointId", "resourceType", "resourceId", "enabledEvents"):
            if key not in body:
                raise invalid(f"{key}: is required")
        if body["resourceType"] not in _RESOURCES:
            raise invalid(f"resourceType: one of {', '.join(_RESOURCES)}")
        if body["webhookEndpointId"] not in self._endpoints:
            raise not_found("webhook endpoint")
        about_workflow = body["resourceType"] == "workflow"
        check_events("enabledEvents", body["enabledEvents"], workflow=about_workflow)
        if about_workflow and body["resourceId"] != self._workflow_id:
            raise not_found(f"workflow {body['resourceId']}")
        about = (body["webhookEndpointId"], body["resourceType"], body["resourceId"])
        for known in self._subscriptions.values():
            if (known["webhookEndpointId"], known["resourceType"], known["resourceId"]) == about:
                return await self._set_events(known, body["enabledEvents"])
        subscription = {
            "object": "webhook_subscription",
            "id": f"whes_{secrets.token_hex(10)}",
            **{key: body[key] for key in ("webhookEndpointId", "resourceType", "resourceId", "enabledEvents")},
            "createdAt": render.time(time.time()),
        }
        self._subscriptions[subscription["id"]] = subscription
        await self._store.commit(self._store.put("subscription", subscription["id"], subscription))
        return subscription

    async def _set_events(self, subscription: dict[str, Any], events: list[str]) -> dict[str, Any]:
        subscription["enabledEvents"] = events
        await self._store.commit(self._store.put("subscription", subscription["id"], subscription))
        return subscription

    def _subscription(self, request: Request) -> dict[str, Any]:
        found = self._subscriptions.get(request.path_params["id"])
        if found is None:
            raise not_found("webhook subscription")
        return found

    async def list_subscriptions(self, request: Request) -> Any:
        """Answer GET /webhook_subscriptions: all subscriptions, or those of one endpoint or resource."""
        query = request.query_params
        names = ("webhookEndpointId", "resourceType", "resourceId")
        wanted = [s for s in self._subscriptions.values() if all(query.get(n) in (None, s[n]) for n in names)]
        return paged(wanted, request, _FILTERS)

    async def get_subscription(self, request: Request) -> Any:
        """Answer GET /webhook_subscriptions/{id}."""
        return self._subscription(request)

    async def update_subscription(self, request: Request) -> Any:
        """Answer POST /webhook_subscriptions/{id}: replace enabledEvents, the only field that can change."""
        subscription = self._subscription(request)
        body = await json_body(request)
        if not isinstance(body, dict) or set(body) != {"enabledEvents"}:
            raise invalid("enabledEvents: is the only field that can be changed")
        about_workflow = subscription["resourceType"] == "workflow"
        events = check_events("enabledEvents", body["enabledEvents"], workflow=about_workflow)
        return await self._set_events(subscription, events)

    async def delete_subscription(self, request: Request) -> Any:
        """Answer DELETE /webhook_subscriptions/{id}."""
        subscription = self._subscription(request)
        del self._subscriptions[subscription["id"]]
        await self._store.commit(self._store.drop("subscription", subscription["id"]))
        return {"id": subscription["id"]}
