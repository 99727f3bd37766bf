"""Makes Redis's users for docker-compose.yml, each with a random password, unless they have been made before.

Redis gets the rules of docs/redis-access.md with hashes of the passwords. Nodes have a volume with `url`,
backends one with `url` and `password`.
"""

import os
import secrets
from hashlib import sha256
from pathlib import Path

SECRETS = Path(os.environ.get("SECRETS", "/secrets"))
REDIS_UID = int(os.environ.get("REDIS_UID", "999"))
GATEWAY_UID = int(os.environ.get("GATEWAY_UID", "65532"))

RIGHTS = {
    "node": "%R~websocket:* &websocket:* +ping +subscribe +unsubscribe +eval_ro +get +pttl +client|info "
    "+pubsub|numsub (+publish &websocket::*)",
    "backend": "~websocket:* &websocket:* +ping +eval +evalsha +script|load +set +publish",
}
"""As docs/redis-access.md explains them, with the optional right to show how long a result is retained."""

WITH_EVENTS = {
    "node": " (+xadd ~websocket::events*)",
    "backend": " +xreadgroup +xautoclaim +xack +xgroup|create",
}
"""What they need besides with GATEWAY_EVENTS=redis: nodes write events, backends read them."""


def rule(user: str, password: str) -> str:
    more = WITH_EVENTS[user] if os.environ.get("GATEWAY_EVENTS") == "redis" else ""
    return f"user {user} on #{sha256(password.encode()).hexdigest()} resetchannels {RIGHTS[user]}{more}\n"


def give(path: Path, text: str, uid: int) -> None:
    """Write a file that only the user `uid` can read. It is there completely, or not at all."""
    made = path.with_suffix(".new")
    made.unlink(missing_ok=True)
    made.touch(mode=0o600)  # before it has contents
    made.write_text(text)
    made.chmod(0o400)
    os.chown(made, uid, -1)
    made.rename(path)


def main() -> None:
    os.chown(SECRETS / "data", REDIS_UID, -1)
    rules = SECRETS / "rules" / "users.acl"
    if rules.exists():  # it is written last
        return
    passwords = {user: secrets.token_urlsafe(32) for user in RIGHTS}
    for user, uid in (("node", GATEWAY_UID), ("backend", REDIS_UID)):
        give(SECRETS / user / "url", f"redis://{user}:{passwords[user]}@redis:6379/0\n", uid)
    give(SECRETS / "backend" / "password", passwords["backend"], REDIS_UID)
    lines = [rule(user, password) for user, password in passwords.items()]
    give(rules, "user default off\n" + "".join(lines), REDIS_UID)


if __name__ == "__main__":
    main()
