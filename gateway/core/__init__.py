"""Who waits for what: sessions, the hub, the table of subscriptions, limits and deadlines.

Pure: bytes, events and the time are arguments. The one exception is logging. `structlog` and `telemetry.logs`
are a facade here: core names events and facts, and the process decides whether and where they are written.
"""
